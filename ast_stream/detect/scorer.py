"""Scores of due windows: sliding features through the model, kept scores for skipped windows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_stream.model.sliding import SlidingFbank
from ast_stream.model.tagger import Tagger

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class WindowScorer:
    """Features and last scores of every slot.

    Attributes:
        nan_scores: scores that were not a number and were taken for 0.
        n_scored: windows that the model has scored.
        n_gated: windows that were due, and too quiet to score.
    """

    def __init__(self, tagger: Tagger, hop: int, max_hops: int) -> None:
        self.nan_scores = self.n_scored = self.n_gated = 0
        self._tagger = tagger
        self._features = SlidingFbank(
            tagger.fbank,
            tagger.normalization,
            hop=hop,
            n_window_frames=tagger.n_window_frames,
            n_input_frames=tagger.n_input_frames,
            max_hops=max_hops,
            device=tagger.device,
        )
        self._last = np.zeros((0, len(tagger.labels)), np.float32)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` streams."""
        self._features.grow(n_slots)
        more = n_slots - len(self._last)
        self._last = np.pad(self._last, ((0, more), (0, 0)))

    def reset(self, slot: int) -> None:
        """Forget the last scores of a slot."""
        self._last[slot] = 0

    def push(self, slots: Indices, pcm: npt.NDArray[np.int16], ends: Indices) -> None:
        """Take new samples (n, n_samples) of `slots` that end at sample `ends` (n,)."""
        self._features.push(slots, pcm, ends)

    def score(
        self,
        slots: Indices,
        hop_ends: Indices,
        is_due: Flags,
        is_run: Flags,
        is_gated: Flags,
        first_frames: Indices,
        last_frames: Indices,
    ) -> npt.NDArray[np.float32]:
        """Return scores (hops, n, classes): the ones before if not run, 0 if gated.

        Args:
            slots: shape (n,).
            hop_ends: last sample of each window, shape (hops, n).
            is_due: windows to decide on, shape (hops, n).
            is_run: those of them to score.
            is_gated: slots too quiet to score, shape (n,) or (hops, n).
            first_frames, last_frames: real frames of each slot, shape (n,); others are padding.
        """
        hop_rows, slot_rows = np.nonzero(is_run)
        self.n_scored += len(hop_rows)
        self.n_gated += int((is_due & is_gated).sum())
        n_hops, n = is_run.shape
        scores = np.zeros((n_hops, n, self._last.shape[1]), np.float32)
        if len(hop_rows):
            windows = self._features.windows(
                slots[slot_rows],
                hop_ends[hop_rows, slot_rows],
                first_frames[slot_rows],
                last_frames[slot_rows],
            )
            scores[hop_rows, slot_rows] = self._finite(self._tagger.window_scores(windows))
        for hop in range(n_hops):
            kept = ~is_run[hop] & ~is_gated[hop]
            scores[hop, kept] = self._last[slots[kept]]
            self._last[slots] = scores[hop]
        return scores

    def _finite(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Take NaN (an overflow in half precision, say) for 0, and count it."""
        is_nan = np.isnan(scores)
        self.nan_scores += int(is_nan.sum())
        return np.where(is_nan, np.float32(0), scores)
