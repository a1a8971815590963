"""Teachers: other models whose scores a training run learns from, besides its labels.

With its start as the teacher a fine-tuning keeps the classes that it has no examples of: what the
start hears in a window stays what the result hears in it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_stream.errors import CheckpointError, StartupError
from ast_stream.model.ast import cut_time, softmax_logits
from ast_stream.model.checkpoint import Checkpoint, model_with
from ast_stream.model.fbank import normalize, pad_frames
from ast_stream.training.compute import attend_short, autocast, autocast_type
from ast_stream.units import FRAMES_PER_SECOND

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # classes, in the warning about those a teacher does not know


class Teacher(Protocol):
    """Scores windows.

    Attributes:
        is_taught: shape (n_classes,), 1.0 for the labels that it knows, else 0.0.
    """

    is_taught: Tensor

    def scores(self, fbank: Tensor) -> Tensor:
        """Return scores (B, n_classes) of log-mel frames (B, n_frames, n_mels)."""
        ...


class CheckpointTeacher:
    """Another checkpoint as the teacher of a training on `labels`.

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
                f"{', '.join(labels[:MAX_NAMED])}"
            )
        unknown = [label for label in labels if label not in places]
        if unknown:
            more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
            logger.warning(
                "the teacher %s does not know %s%s: learned from examples only",
                checkpoint.origin, ", ".join(unknown[:MAX_NAMED]), more,
            )  # fmt: skip
        self.is_taught = torch.zeros(len(labels))
        self.is_taught[self._to] = 1.0
        self._max_frames = dims.max_frames
        self._normalization = checkpoint.normalization
        self._is_single_label = checkpoint.scoring == "softmax"
        self._model = model_with(dims, weights).to(self._device)
        if self._device.type == "cpu":
            self._model.use_attention(attend_short)
        self._autocast_type = autocast_type("auto", self._device)

    @torch.no_grad()
    def scores(self, fbank: Tensor) -> Tensor:
        """Return the scores of windows, shape (B, n_classes); 0 for classes it does not know.

        Args:
            fbank: log-mel frames, padded but not normalised, shape (B, n_frames, n_mels).
        """
        windows = normalize(pad_frames(fbank, self._max_frames), self._normalization)
        with autocast(self._device, self._autocast_type):
            logits = self._model(windows)
        scores = torch.zeros(len(windows), len(self.is_taught), device=self._device)
        logits = softmax_logits(logits.float()) if self._is_single_label else logits.float()
        scores[:, self._to] = torch.sigmoid(logits)[:, self._from]
        return scores


class WaveformTeacher(Protocol):
    """Scores waveforms with its own classes, from which a student learns sound similarity.

    Attributes:
        n_classes: of its scores.
        n_samples: of the waveform it takes, at 16 kHz.
    """

    n_classes: int
    n_samples: int

    def scores(self, waveforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return scores (B, n_classes) of waveforms (B, n_samples) in [-1, 1]."""
        ...


class LiteRtTeacher:
    """A TFLite model that takes one waveform of fixed length, such as YAMNet.

    Raises:
        StartupError: ai-edge-litert is not installed.
        CheckpointError: the file is missing, or no such model.
    """

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise StartupError(
                f"{path}: a teacher in a .tflite file needs ai-edge-litert; "
                "install it with: pip install ai-edge-litert"
            ) from error
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a .tflite file, got none")
        try:
            self._interpreter = Interpreter(str(path), num_threads=1)
            self._interpreter.allocate_tensors()
            (given,) = self._interpreter.get_input_details()
            out = self._interpreter.get_output_details()[0]
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: cannot be loaded as a teacher: {error}") from error
        if len(given["shape"]) != 1 or out["shape"][0] != 1:
            raise CheckpointError(
                f"{path}: expected a model of one waveform, got input {tuple(given['shape'])}, "
                f"output {tuple(out['shape'])}"
            )
        self._input, self._output = given["index"], out["index"]
        self.n_samples, self.n_classes = int(given["shape"][0]), int(out["shape"][-1])
        self.hash = hashlib.sha256(path.read_bytes()).hexdigest()

    def scores(self, waveforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return scores (B, n_classes) of waveforms (B, n_samples) in [-1, 1]."""
        scores = np.empty((len(waveforms), self.n_classes), np.float32)
        for row, waveform in enumerate(waveforms):
            self._interpreter.set_tensor(self._input, np.ascontiguousarray(waveform))
            self._interpreter.invoke()
            scores[row] = self._interpreter.get_tensor(self._output)[0]
        return scores
