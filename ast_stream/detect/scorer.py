"""The scores of due windows, or of their frames: 0 below the level gate, else the model's.

`Positions` says which windows are due. `HopRuns` records for the coverage ledger how each hop was
handled: scored, gated, or skipped under overload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ast_stream.coverage.spans import Kind
from ast_stream.detect.decision import SlotNames
from ast_stream.detect.frames import MAX_LOGIT
from ast_stream.detect.state import NEVER
from ast_stream.model.dims import AstDims
from ast_stream.model.fbank import SlidingFbank
from ast_stream.model.tagger import Awaited, Tagger
from ast_stream.units import FULL_SCALE, amplitude_to_dbfs

_KINDS: tuple[Kind, ...] = ("listened", "gated", "degraded")
_LISTENED, _GATED, _DEGRADED = range(len(_KINDS))
_NONE = -1

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DueWindows:
    """The windows of one step: `hops` of each of n slots.

    Attributes:
        slots: shape (n,).
        hop_ends: last sample of each window, shape (hops, n).
        is_due: windows to decide on, shape (hops, n).
        is_run: those of them to score.
        is_gated: windows too quiet to score, shape (hops, n).
        is_unasked: windows that a cascade does not pass to the model, shape (hops, n).
        is_passed_over: windows of a steady sound, about which nothing is decided, (hops, n).
        first_frames, last_frames: real frames of each slot, shape (n,); others are padding.
    """

    slots: Indices
    hop_ends: Indices
    is_due: Flags
    is_run: Flags
    is_gated: Flags
    is_unasked: Flags
    is_passed_over: Flags
    first_frames: Indices
    last_frames: Indices

    def of_hop(self, hop: int) -> DueWindows:
        """Return the windows of one hop."""
        rows = slice(hop, hop + 1)
        return replace(
            self,
            hop_ends=self.hop_ends[rows],
            is_due=self.is_due[rows],
            is_run=self.is_run[rows],
            is_gated=self.is_gated[rows],
            is_unasked=self.is_unasked[rows],
            is_passed_over=self.is_passed_over[rows],
        )


class Positions:
    """Where each slot is in its audio: arrays of shape (n_slots,), int64.

    Attributes:
        context_start: first real sample since start or gap.
        received: end of the audio that came.
        scored_until: windows may end up to here: at `received`, beyond it while a stream ends.
        next_end: end of the next window.
        score_from: windows up to here only fill the context again after a restart.
        first_scored: end of the first window scored since start or gap, or NEVER.
        stride: every how many windows one is scored.
    """

    def __init__(self, hop: int) -> None:
        self.hop = hop
        empty = np.zeros(0, np.int64)
        self.context_start: Indices = empty
        self.received: Indices = empty
        self.scored_until: Indices = empty
        self.next_end: Indices = empty
        self.score_from: Indices = empty
        self.first_scored: Indices = empty
        self.stride: Indices = empty

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        for name in (
            "context_start",
            "received",
            "scored_until",
            "next_end",
            "score_from",
            "first_scored",
        ):
            setattr(self, name, _grown(getattr(self, name), n_slots, 0))
        self.stride = _grown(self.stride, n_slots, 1)

    def restart(self, slot: int, start_sample: int) -> None:
        """Begin a context whose first sample is `start_sample`."""
        self.context_start[slot] = start_sample
        self.received[slot] = self.scored_until[slot] = start_sample
        self.next_end[slot] = (start_sample // self.hop + 1) * self.hop
        self.score_from[slot] = NEVER
        self.first_scored[slot] = NEVER

    def decided(self, slot: int) -> int:
        """Return the sample up to which `slot` is decided."""
        last_end = self.next_end.item(slot) - self.hop  # numbers of Python: asked for all the time
        return max(last_end, self.context_start.item(slot), self.score_from.item(slot))

    def hops_waiting(self, slots: Indices) -> Indices:
        """Return how many windows of each slot could be scored; 0 or less for none."""
        waiting: Indices = (self.scored_until[slots] - self.next_end[slots]) // self.hop + 1
        return waiting

    def hops_waiting_of(self, slot: int) -> int:
        """Return how many windows of a slot could be scored, at least 0."""
        waiting = (self.scored_until.item(slot) - self.next_end.item(slot)) // self.hop + 1
        return max(0, waiting)

    def receive(self, slot: int, n_samples: int) -> None:
        """Note that audio came."""
        self.received[slot] += n_samples
        self.scored_until[slot] = self.received[slot]

    def mark_scored(self, slots: Indices, ends: Indices) -> Indices:
        """Note that windows were scored and return the first scored of each slot."""
        first = self.first_scored[slots]
        first = np.where(first == NEVER, ends, first)
        self.first_scored[slots] = first
        return first


def _grown(array: Indices, n_slots: int, empty: int) -> Indices:
    grown = np.full(n_slots, empty, np.int64)
    grown[: len(array)] = array
    return grown


class WindowScorer:
    """Features and last scores of every slot.

    Attributes:
        nan_scores: scores that were NaN and were replaced by 0.
        n_scored: windows that the model has scored.
        n_gated: due windows that were too quiet to score.
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

    def push(self, slots: Indices, pcm: npt.NDArray[np.int16], ends: Indices) -> Tensor:
        """Take new samples (n, n_samples) of `slots` that end at sample `ends` (n,).

        Returns:
            Their frames, which `keep` of another scorer takes.
        """
        return self._features.push(slots, pcm, ends)

    def keep(self, slots: Indices, frames: Tensor, ends: Indices) -> None:
        """Take new frames instead of their samples."""
        self._features.keep(slots, frames, ends)

    def score(self, asked: DueWindows) -> npt.NDArray[np.float32]:
        """Return scores (hops, n, classes): the previous ones if not run, 0 if gated or unasked."""
        return self.begin_scores(asked)()

    def frame_logits(self, asked: DueWindows) -> npt.NDArray[np.float32]:
        """Return logits of frames (hops, n, frames of a window, classes).

        They are `-MAX_LOGIT` where gated or unasked, and undefined where the window is neither, nor
        run.
        """
        return self.begin_frame_logits(asked)()

    def begin_scores(self, asked: DueWindows) -> Awaited:
        """Start what `score` does; call the result, in the order of the starts, for the scores."""
        tagger = self._tagger
        begin = tagger.begin_window_scores if tagger.runs_ahead else at_once(tagger.window_scores)
        found = self._begin(asked, begin, (), 0.0)

        def scores() -> npt.NDArray[np.float32]:
            scores = found()
            for hop, is_run in enumerate(asked.is_run):
                kept = ~is_run & ~asked.is_gated[hop] & ~asked.is_unasked[hop]
                scores[hop, kept] = self._last[asked.slots[kept]]
                self._last[asked.slots] = scores[hop]
            return scores

        return scores

    def begin_frame_logits(self, asked: DueWindows) -> Awaited:
        """Start what `frame_logits` does, see `begin_scores`."""
        tagger = self._tagger
        begin = tagger.begin_frame_logits if tagger.runs_ahead else at_once(tagger.frame_logits)
        return self._begin(asked, begin, (tagger.dims.n_time_patches,), -MAX_LOGIT)

    @property
    def dims(self) -> AstDims:
        """The model's dimensions."""
        return self._tagger.dims

    def embedding(
        self, slot: int, end: int, first_frame: int, last_frame: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], int]:
        """Return `Tagger.embedding` of a recently pushed window, and its first frame.

        Args:
            end: of the window, in samples.
            first_frame, last_frame: real frames of the slot.
        """
        its = [np.array([number], np.int64) for number in (slot, end, first_frame, last_frame)]
        whole, patches = self._tagger.embedding(self._features.windows(*its)[0])
        return whole, patches, int(self._features.begins(its[1], its[2])[0])

    def begins(self, hop_ends: Indices, first_frames: Indices) -> Indices:
        """Return the first filterbank frame of windows; both of shape (n,)."""
        return self._features.begins(hop_ends, first_frames)

    def _begin(
        self,
        asked: DueWindows,
        model: Callable[[Tensor], Awaited],
        shape: tuple[int, ...],
        nothing: float,
    ) -> Awaited:
        """Start scoring the windows that are due, shape (hops, n, *shape, classes).

        Args:
            nothing: used for windows that were not run, and for NaN (such as an overflow in half
                precision), which is counted.
        """
        filled = np.full((*asked.is_run.shape, *shape, self._last.shape[1]), nothing, np.float32)
        hops, rows = np.nonzero(asked.is_run)
        self.n_scored += len(hops)
        self.n_gated += int((asked.is_due & asked.is_gated).sum())
        if not len(hops):
            return lambda: filled
        windows = self._features.windows(
            asked.slots[rows],
            asked.hop_ends[hops, rows],
            asked.first_frames[rows],
            asked.last_frames[rows],
        )
        found = model(windows)

        def scored() -> npt.NDArray[np.float32]:
            numbers = found()
            is_nan = np.isnan(numbers)
            self.nan_scores += int(is_nan.sum())
            filled[hops, rows] = np.where(is_nan, np.float32(nothing), numbers)
            return filled

        return scored


def at_once(model: Callable[[Tensor], npt.NDArray[np.float32]]) -> Callable[[Tensor], Awaited]:
    """Return a function that starts scoring windows and returns finished results."""

    def begin(windows: Tensor) -> Awaited:
        found = model(windows)
        return lambda: found

    return begin


class LevelMeter:
    """RMS of the hops in each slot's window.

    Args:
        gate_dbfs: windows whose loudest hop is quieter are gated; None: none are.
    """

    def __init__(self, window: int, hop: int, gate_dbfs: float | None) -> None:
        self._hop = hop
        self.set_gate(gate_dbfs)
        self._rms = np.zeros((0, max(1, window // hop)), np.float64)
        self._is_gated = np.zeros(0, np.bool_)

    def set_gate(self, gate_dbfs: float | None) -> None:
        """Gate by another level from the next hop on."""
        self._gate = 0.0 if gate_dbfs is None else 10 ** (gate_dbfs / 20)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grow_by = n_slots - len(self._rms)
        self._rms = np.pad(self._rms, ((0, grow_by), (0, 0)))
        self._is_gated = np.pad(self._is_gated, (0, grow_by))

    def reset(self, slot: int) -> None:
        """Forget the levels of a slot."""
        self._rms[slot] = 0
        self._is_gated[slot] = False

    def measure(
        self, slots: npt.NDArray[np.int64], pcm: npt.NDArray[np.int16]
    ) -> npt.NDArray[np.bool_]:
        """Take the next hops of each slot, shape (n, hops * hop).

        Returns:
            Whether the window that ends with each hop is gated, shape (hops, n).
        """
        hops = pcm.reshape(len(pcm), -1, self._hop).astype(np.float32) / FULL_SCALE
        n_hops, n_kept = hops.shape[1], self._rms.shape[1]
        rms = np.concatenate([self._rms[slots], np.sqrt(np.mean(hops * hops, axis=2))], axis=1)
        self._rms[slots] = rms[:, -n_kept:]
        windows = np.lib.stride_tricks.sliding_window_view(rms, n_kept, axis=1)[:, -n_hops:]
        is_gated: npt.NDArray[np.bool_] = (windows.max(axis=2) < self._gate).T
        self._is_gated[slots] = is_gated[-1]
        return is_gated

    def is_gated(self, slot: int) -> bool:
        """Return whether the newest window was gated."""
        return bool(self._is_gated[slot])

    def level_dbfs(self, slot: int) -> float:
        """Return the level of the newest hop."""
        return amplitude_to_dbfs(float(self._rms[slot, -1]))


@dataclass(frozen=True)
class HopRun:
    """Samples from `start` to `stop`, half-open, whose hops were handled in the same way."""

    stream: str
    epoch: str
    kind: Kind
    start: int
    stop: int


class HopRuns:
    """The runs of all slots, as arrays: Python code runs only when a run ends.

    Between two calls of `restart`, the runs of a slot are consecutive, from the sample given there
    to the one given to `finish`.

    Args:
        on_run: called with each run that has ended, in order for each slot.
    """

    def __init__(self, names: SlotNames, on_run: Callable[[HopRun], None]) -> None:
        self._names = names
        self._on_run = on_run
        self._kind: Indices = np.zeros(0, np.int64)
        self._start: Indices = np.zeros(0, np.int64)
        self._stop: Indices = np.zeros(0, np.int64)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        more = (0, n_slots - len(self._kind))
        self._kind = np.pad(self._kind, more, constant_values=_NONE)
        self._start = np.pad(self._start, more)
        self._stop = np.pad(self._stop, more)

    def restart(self, slot: int, sample: int) -> None:
        """Start at a sample; an unfinished run is dropped."""
        self._kind[slot] = _NONE
        self._start[slot] = self._stop[slot] = sample

    def add(
        self,
        slots: Indices,
        stops: Indices,
        is_gated: npt.NDArray[np.bool_],
        is_late: npt.NDArray[np.bool_],
    ) -> None:
        """Take one hop of each slot; all of shape (n,).

        Args:
            stops: end of the hop, or of the audio where that is less.
            is_gated: its window was too quiet to be scored.
            is_late: windows are skipped because the model cannot keep up.
        """
        is_new = stops > self._stop[slots]  # others only refilled the window after a restart
        kinds = np.where(is_gated, _GATED, np.where(is_late, _DEGRADED, _LISTENED))
        for row in np.flatnonzero(is_new & (kinds != self._kind[slots])):
            self._end(int(slots[row]))
            self._kind[slots[row]] = kinds[row]
        self._stop[slots[is_new]] = stops[is_new]

    def finish(self, slot: int, stop: int) -> None:
        """End the run of a slot whose audio ends at `stop`.

        The samples that no window reached, less than a hop, count as degraded.
        """
        self._end(slot)
        self._kind[slot] = _DEGRADED
        self._stop[slot] = max(stop, self._stop[slot])
        self._end(slot)

    def settle(self) -> None:
        """End and report the runs of all slots; new runs follow."""
        for stream in self._names.streams:
            self._end(self._names.slot(stream))

    def _end(self, slot: int) -> None:
        start, stop = int(self._start[slot]), int(self._stop[slot])
        if start < stop:
            self._on_run(HopRun(*self._names.of(slot), _KINDS[self._kind[slot]], start, stop))
        self._start[slot] = stop
