"""Frame scores: the logits of overlapping windows for the same moment, averaged until decided.

A checkpoint with a frame head scores each time patch of a window. Windows overlap, so the same
moment is scored several times, each time with more of the audio after it. The frames of a stream
lie on a grid of their own, `[g * step, (g + 1) * step)` on the sample index, with the step of the
patches, at any hop: a window's logit of a frame is interpolated linearly between the two patches
around the middle of the frame. Logits are averaged instead of scores, so that Platt scaling gives
the same result before and after averaging.

    weight of a window = 1 + (end of window - end of frame) / step

A frame is decided by the first window that ends at least `delay` after it. A window that a cascade
does not select counts as silence, but any selected window outweighs it, and it decides only frames
that no later window covers: so a selected window decides all its frames. Everything depends on the
sample index alone, so blocks of any size, a replay and a resumed run give the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.detect.state import NEVER, FrameState
from ast_stream.units import FRAME_SHIFT

MAX_LOGIT = 16.0  # beyond it, a float32 score no longer determines the logit
# of windows that a cascade does not select: a power of two that float32 loses beside 1
UNASKED_WEIGHT = np.float32(2.0**-40)

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PatchGrid:
    """The time patches of a window.

    Attributes:
        n_patches: in a window.
        patch, stride: length and distance in frames of the filterbank (10 ms).
    """

    n_patches: int
    patch: int
    stride: int

    @property
    def step(self) -> int:
        """Distance of patches in samples."""
        return self.stride * FRAME_SHIFT


class DecidedFrames(NamedTuple):
    """One final frame for each of several slots.

    Attributes:
        rows: index of the slot among those given, shape (n,).
        ends: end of the frame in samples, shape (n,).
        scores: shape (n, n_classes), in [0, 1].
    """

    rows: Indices
    ends: Indices
    scores: Floats


class FrameAverages:
    """The frames of all slots that are not decided yet.

    Args:
        delay: samples from the end of a frame to the end of the window that decides it, at least.
    """

    def __init__(self, grid: PatchGrid, n_classes: int, delay: int) -> None:
        self._grid = grid
        self._delay = delay
        # a window does not cover frames before its first patch, and these are decided before it is
        # added: this many frames of a window can be undecided
        self._capacity = grid.n_patches + 1
        self._n_classes = n_classes
        self._sums: Floats = np.zeros((0, self._capacity, n_classes), np.float32)
        self._weights: Floats = np.zeros((0, self._capacity), np.float32)
        self._last: Floats = np.zeros((0, n_classes), np.float32)  # logits of the last decided
        self._first = np.zeros(0, np.int64)  # first frame since start or gap
        self._next = np.zeros(0, np.int64)  # first frame not decided
        self._known = np.zeros(0, np.int64)  # first frame that no window has scored

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        more = n_slots - len(self._sums)
        self._sums = np.pad(self._sums, ((0, more), (0, 0), (0, 0)))
        self._weights = np.pad(self._weights, ((0, more), (0, 0)))
        self._last = np.pad(self._last, ((0, more), (0, 0)))
        for name in ("_first", "_next", "_known"):
            setattr(self, name, np.pad(getattr(self, name), (0, more), constant_values=NEVER))

    def reset(self, slot: int) -> None:
        """Forget the frames of a slot: its stream starts, or continues after a gap."""
        self._sums[slot] = self._weights[slot] = 0
        self._last[slot] = -MAX_LOGIT
        self._first[slot] = self._next[slot] = self._known[slot] = NEVER

    def add(
        self,
        slots: Indices,
        ends: Indices,
        begins: Indices,
        audio_ends: Indices,
        logits: Floats,
        is_asked: Flags,
    ) -> Iterator[DecidedFrames]:
        """Take the logits of one window of each slot, and yield the frames that become final.

        Args:
            slots: which slots, shape (n,), each at most once.
            ends: end of the window, shape (n,).
            begins: first filterbank frame of the window, shape (n,).
            audio_ends: end of the audio known; less than `ends` while a stream ends.
            logits: of the window's patches, shape (n, n_patches, n_classes).
            is_asked: False if a cascade has not selected the window, shape (n,).
        """
        grid = self._grid
        end_frames, audio_frames = ends // FRAME_SHIFT, audio_ends // FRAME_SHIFT
        # the last patch within the window and, at the end of the audio, at least half within that
        last_patch = np.minimum(
            (end_frames - begins - grid.patch) // grid.stride, grid.n_patches - 1
        )
        half_in = (2 * (audio_frames - begins) - grid.patch) // (2 * grid.stride)
        last_patch = np.minimum(last_patch, half_in)
        # frames whose middle lies between the middles of two patches
        middle = 2 * begins + grid.patch - grid.stride
        first = -(-middle // (2 * grid.stride))
        stop = (middle + 2 * grid.stride * last_patch) // (2 * grid.stride) + 1
        has_any = stop > first
        first, stop = np.where(has_any, first, NEVER), np.where(has_any, stop, NEVER)
        is_new = has_any & (self._first[slots] == NEVER)
        for kept in (self._first, self._next, self._known):
            kept[slots[is_new]] = first[is_new]
        # no later window covers the frames before this one
        yield from self._decide(slots, first)
        self._accumulate(slots, ends, begins, stop, logits, is_asked)
        self._known[slots] = np.maximum(self._known[slots], stop)
        final = np.minimum((ends - self._delay) // grid.step, self._known[slots])
        yield from self._decide(slots, np.where(is_asked, final, first))

    def finish(self, slot: int) -> Iterator[DecidedFrames]:
        """Yield the remaining frames of a slot: no further window will cover them."""
        slots = np.array([slot], np.int64)
        yield from self._decide(slots, self._known[slots])

    def first_ends(self, slots: Indices) -> Indices:
        """Return the end of the first frame since start or gap of each slot, in samples."""
        first = self._first[slots]
        return np.where(first == NEVER, NEVER, (first + 1) * self._grid.step)

    def export(self, slot: int) -> FrameState | None:
        """Return what `restore` needs; None: no window has scored a frame yet."""
        if self._first[slot] == NEVER:
            return None
        places = np.arange(self._next[slot], self._known[slot]) % self._capacity
        return FrameState.of(
            first_end=int(self._first[slot] + 1) * self._grid.step,
            decided_to=int(self._next[slot]) * self._grid.step,
            last=self._last[slot],
            weights=self._weights[slot, places],
            sums=self._sums[slot, places],
        )

    def restore(self, slot: int, state: FrameState | None) -> None:
        """Restore what `export` returned."""
        self.reset(slot)
        if state is None:
            return
        step = self._grid.step
        sums = state.array(state.sums).reshape(-1, self._n_classes)[: self._capacity]
        self._first[slot] = state.first_end // step - 1
        self._next[slot] = state.decided_to // step
        self._known[slot] = self._next[slot] + len(sums)
        self._last[slot] = state.array(state.last)
        places = np.arange(self._next[slot], self._known[slot]) % self._capacity
        self._weights[slot, places] = state.weights[: len(sums)]
        self._sums[slot, places] = sums

    def _accumulate(
        self,
        slots: Indices,
        ends: Indices,
        begins: Indices,
        stop: Indices,
        logits: Floats,
        is_asked: Flags,
    ) -> None:
        grid, begin = self._grid, self._next[slots]
        bounded = np.clip(logits, -MAX_LOGIT, MAX_LOGIT)
        # of the first frame: the patch before its middle, and how far behind that patch's it lies
        place = 2 * (begin * grid.stride - begins) + grid.stride - grid.patch
        patch, beyond = np.divmod(place, 2 * grid.stride)
        ratio = (beyond / (2 * grid.stride)).astype(np.float32)[:, None]
        n_frames = np.maximum(stop - begin, 0)  # at most `_capacity`: each has a cell of its own
        numbers = np.arange(np.max(n_frames, initial=0))
        rows, number = np.nonzero(numbers < n_frames[:, None])
        frame, here = begin[rows] + number, patch[rows] + number
        after = np.minimum(here + 1, grid.n_patches - 1)
        said = (1 - ratio[rows]) * bounded[rows, here] + ratio[rows] * bounded[rows, after]
        context = (ends[rows] - (frame + 1) * grid.step) / grid.step
        weight = np.where(is_asked[rows], (1 + context).astype(np.float32), UNASKED_WEIGHT)
        cell = (slots[rows], frame % self._capacity)
        self._sums[cell] += weight[:, None] * said
        self._weights[cell] += weight

    def _decide(self, slots: Indices, stop: Indices) -> Iterator[DecidedFrames]:
        """Yield the frames of each slot before `stop`, one of each slot at a time."""
        while (self._next[slots] < stop).any():
            first = self._next[slots]
            n_frames = np.clip(stop - first, 0, self._capacity)
            numbers = np.arange(n_frames.max())
            means = self._means(slots, first, numbers)
            is_final = numbers < n_frames[:, None]  # (n, numbers)
            rows, number = np.nonzero(is_final)
            cell = (slots[rows], (first[rows] + number) % self._capacity)
            self._sums[cell] = self._weights[cell] = 0
            is_moved = n_frames > 0
            self._last[slots[is_moved]] = means[is_moved, n_frames[is_moved] - 1]
            self._next[slots] = first + n_frames
            self._known[slots] = np.maximum(self._known[slots], first + n_frames)
            # in float64, so that the score is the same in arrays of any shape
            scores = (1 / (1 + np.exp(-means.astype(np.float64)))).astype(np.float32)
            for number in numbers:
                rows = np.flatnonzero(is_final[:, number])
                ends = (first[rows] + number + 1) * self._grid.step
                yield DecidedFrames(rows, ends, scores[rows, number])

    def _means(self, slots: Indices, first: Indices, numbers: Indices) -> Floats:
        """Return the averages of frames from `first` on, shape (n, numbers, n_classes)."""
        cell = (slots[:, None], (first[:, None] + numbers) % self._capacity)
        weights = self._weights[cell]
        means: Floats = self._sums[cell] / np.where(weights > 0, weights, 1)[:, :, None]
        if not weights.all():
            # under overload, a frame that no window has scored repeats the previous one
            before = self._last[slots]
            for number in numbers:
                is_known = weights[:, number, None] > 0
                before = means[:, number] = np.where(is_known, means[:, number], before)
        return means
