"""A teacher: another checkpoint's scores of the same windows, to learn from beside the labels.

With the checkpoint itself as its teacher a fine-tuning keeps the classes that it has no examples
of: what the start heard in a window stays what the result hears in it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model.ast import softmax_logits
from ast_stream.model.checkpoint import Checkpoint, model_with
from ast_stream.model.fbank import pad_frames
from ast_stream.model.grid import cut_time
from ast_stream.training.cpu_speed import attend_short
from ast_stream.training.precision import autocast_type
from ast_stream.units import FRAMES_PER_SECOND

logger = logging.getLogger(__name__)

NAMED = 5  # classes, in the notice about those a teacher does not know


class Teacher:
    """Scores windows for a training on `labels` with windows of `window_s` seconds.

    Attributes:
        is_taught: shape (n_classes,), 1.0 for the labels that the teacher has, else 0.0.

    Raises:
        CheckpointError: its windows are shorter, or it has none of the labels.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        labels: Sequence[str],
        window_s: float,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        dims, weights = checkpoint.dims, checkpoint.state_dict
        if checkpoint.window_s < window_s:
            raise CheckpointError(
                f"{checkpoint.origin}: expected a teacher with windows of {window_s:g} s or more, "
                f"got one with {checkpoint.window_s:g} s"
            )
        if checkpoint.window_s > window_s:
            dims, weights = cut_time(dims, weights, round(window_s * FRAMES_PER_SECOND))
        places = {label: place for place, label in enumerate(checkpoint.labels)}
        self._from = [places[label] for label in labels if label in places]
        self._to = [place for place, label in enumerate(labels) if label in places]
        if not self._to:
            raise CheckpointError(
                f"{checkpoint.origin}: expected a teacher with some of the classes, got none of "
                f"{', '.join(labels[:NAMED])}"
            )
        unknown = [label for label in labels if label not in places]
        if unknown:
            more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
            logger.warning(
                "%s, as a teacher, does not know %s%s: learnt from examples alone",
                checkpoint.origin, ", ".join(unknown[:NAMED]), more,
            )  # fmt: skip
        self.is_taught = torch.zeros(len(labels))
        self.is_taught[self._to] = 1.0
        self._max_frames = dims.max_frames
        self._normalization = checkpoint.normalization
        self._is_single_label = checkpoint.scoring == "softmax"
        self._model = model_with(dims, weights).to(self._device)
        if self._device.type == "cpu":
            self._model.use_attention(attend_short)
        self._type = autocast_type("auto", self._device)

    @torch.no_grad()
    def scores(self, fbank: Tensor) -> Tensor:
        """Return the scores of windows, shape (B, n_classes); 0 for classes it does not know.

        Args:
            fbank: log-mel frames, padded but not normalised, shape (B, n_frames, n_mels).
        """
        windows = self._normalization.apply(pad_frames(fbank, self._max_frames))
        with torch.autocast(
            self._device.type, self._type or torch.bfloat16, enabled=self._type is not None
        ):
            logits = self._model(windows)
        scores = torch.zeros(len(windows), len(self.is_taught), device=self._device)
        logits = softmax_logits(logits.float()) if self._is_single_label else logits.float()
        scores[:, self._to] = torch.sigmoid(logits)[:, self._from]
        return scores
