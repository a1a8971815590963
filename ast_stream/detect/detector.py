"""The detector: audio of many streams in, events out; no sockets, no clock, no files.

Live, replayed and scanned audio go through this one object. Windows end at multiples of the hop
on each stream's sample index, so the results do not depend on how the audio was cut into blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ast_stream.audio.pcm import SlotBuffers
from ast_stream.detect.cascade import Cascade, Watcher
from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.frames import FrameAverages, PatchGrid
from ast_stream.detect.parameters import model_facts, resolve_parameters
from ast_stream.detect.scorer import (
    DueWindows,
    HopRun,
    HopRuns,
    LevelMeter,
    Positions,
    WindowScorer,
)
from ast_stream.detect.second_opinion import SecondOpinion, Withholder
from ast_stream.detect.state import NEVER, DetectorState
from ast_stream.errors import UsageError
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import EndReason, Event, Gap, Scores
from ast_stream.model.fbank import LOOK_BACK, UNUSED_TAIL, first_frame, last_frame
from ast_stream.model.tagger import Awaited, Tagger
from ast_stream.settings.detection import DetectionSettings
from ast_stream.units import (
    FRAME_LENGTH,
    SAMPLE_RATE,
    seconds_to_samples,
    whole_frames,
)

LONGEST_SILENT_HOLE = seconds_to_samples(0.2)  # shorter holes become silence, longer close events
STAGED_AT_ONCE_S = 6.0  # longer pushes are split
HOPS_AT_ONCE = 8  # of one stream that is behind; on CPUs, batches span live streams instead
WINDOWS_AT_ONCE = 256  # of all streams: half a GB of features in flight for AST-base
FLUSH_CONTEXT_S = 1.0  # while flushing, a window contains at least this much audio


@dataclass(frozen=True)
class _Ending:
    """What to do with a slot once all its audio is scored.

    Attributes:
        restart_at: first sample after a gap; None if the stream is over.
    """

    reason: EndReason
    restart_at: int | None


@dataclass(frozen=True, eq=False)
class _Begun:
    """Windows whose features are computed, but which are not decided yet.

    Attributes:
        found: waits for the model's results; None if a cascade has to select the windows first.
    """

    windows: DueWindows
    found: Awaited | None


@dataclass(frozen=True)
class StreamStatus:
    """How one stream is doing, for the feed's health messages."""

    level_dbfs: float
    hop_s: float
    open_events: int


@dataclass(frozen=True, eq=False)
class HeardFrames:
    """Log-mel frames of one stream, as the model gets them.

    Attributes:
        first_frame: frame i covers samples [160 i, 160 i + 400) of the epoch.
        log_mel: shape (n, 128), float32, natural logarithms, not normalised.
    """

    stream: str
    epoch: str
    first_frame: int
    log_mel: npt.NDArray[np.float32]


class Detector:
    """Scores the windows of all streams and decides their events.

    Args:
        tagger: the loaded model.
        detection: how scores become events.
        hop_s: seconds between windows, a multiple of 0.01.
        min_context_s: audio since start or gap before the first score; None: a full window.
        hops_at_once: windows of one stream that are scored together if it is behind; None: the
            best number for live streams. The events are the same.
        on_scores: called with the smoothed scores of each window, or of each frame if frames
            decide, in order; optional.
        on_run: called with runs of samples that were handled in the same way, see `settle_runs`;
            optional.
        cascade: a small model that scores all windows, and selects those for `tagger`; None:
            `tagger` scores all windows.
        opinion: second opinion on events before they are published; None: no second opinion.

    Attributes:
        n_taken: windows counted by `run`, whether or not they have been decided yet.

    Raises:
        UsageError: a setting (class, window or hop) or the small model does not fit the model.
    """

    def __init__(
        self,
        tagger: Tagger,
        detection: DetectionSettings | None = None,
        *,
        hop_s: float | None = None,
        min_context_s: float | None = 1.0,
        max_streams: int = 64,
        hops_at_once: int | None = None,
        on_scores: Callable[[Scores], None] | None = None,
        on_run: Callable[[HopRun], None] | None = None,
        cascade: Cascade | None = None,
        opinion: SecondOpinion | None = None,
    ) -> None:
        detection = detection or DetectionSettings()
        hop_s = tagger.hop_s if hop_s is None else hop_s
        _check_hop(hop_s, tagger.window_s)
        self._facts = model_facts(tagger.labels, tagger.window_s, tagger.metadata, tagger.frame_s)
        self._hop_s = hop_s
        self.parameters = resolve_parameters(detection, self._facts, hop_s)
        self.hop = seconds_to_samples(hop_s)
        self.window = tagger.window_samples
        self.max_streams = max_streams
        self._tagger = tagger
        self._on_scores = on_scores
        self.n_taken = 0
        context_s = tagger.window_s if min_context_s is None else min_context_s
        self._min_context = min(seconds_to_samples(context_s), self.window)
        self._flush_context = min(seconds_to_samples(FLUSH_CONTEXT_S), self._min_context)
        if hops_at_once is None:
            hops_at_once = 1 if tagger.device.type == "cpu" else HOPS_AT_ONCE
        self.hops_at_once = hops_at_once
        self._names = SlotNames(max_streams)
        self._decision = Decision(self.parameters, self._names)
        self._piece = seconds_to_samples(STAGED_AT_ONCE_S)
        # room for the silence after the last sample of a stream
        self._tail = self.window + self.hop
        longest = max(2 * self._piece, self.window)
        self._staging = SlotBuffers(
            longest + (self.hops_at_once + 2) * self.hop + LOOK_BACK + self._tail
        )
        self._scorer = WindowScorer(tagger, self.hop, self.hops_at_once)
        self._frames = _frame_averages(tagger, self.parameters.geometry.delay)
        self._withholder: Withholder | None = None
        self._watcher: Watcher | None = None
        self._shortest = self.window  # of the windows of all models
        self._reach = self.window  # how far back from its end a window of any model hears
        if cascade is not None:
            self._watcher = Watcher(
                cascade, tagger.labels, self._names,
                window=self.window, hop=self.hop, max_hops=self.hops_at_once,
            )  # fmt: skip
            self._watcher.use(self.parameters)
            self._shortest = min(self.window, cascade.tagger.window_samples)
            self._reach = max(self.window, cascade.tagger.window_samples)
        # which windows a cascade selects depends on earlier decisions
        self._runs_ahead = tagger.runs_ahead and cascade is None
        self._positions = Positions(self.hop)
        if opinion is not None:
            self._withholder = Withholder(
                opinion, self._names, self._positions, self._scorer, self._decision
            )
        self._levels = LevelMeter(self.window, self.hop, detection.gate_dbfs)
        self._has_viewer: Callable[[str], bool] | None = None
        self._on_frames: Callable[[HeardFrames], None] = lambda heard: None
        self._runs = None if on_run is None else HopRuns(self._names, on_run)
        self._n_slots = 0
        self._owed: list[Event] = []
        self._endings: dict[int, _Ending] = {}
        self._last_served = NEVER
        self._grow()

    @property
    def n_scored(self) -> int:
        """Windows that the model has scored; with a cascade, its small model, which scores all."""
        return self._scorer.n_scored if self._watcher is None else self._watcher.n_scored

    @property
    def n_asked(self) -> int | None:
        """Windows that the large model of a cascade has scored; None without a cascade."""
        return None if self._watcher is None else self._scorer.n_scored

    @property
    def n_gated(self) -> int:
        """Windows that were too quiet to score."""
        return self._scorer.n_gated

    @property
    def nan_scores(self) -> int:
        """Scores that were NaN and were replaced by 0."""
        small = 0 if self._watcher is None else self._watcher.nan_scores
        return self._scorer.nan_scores + small

    @property
    def withheld(self) -> Counter[tuple[str, str]]:
        """How many events a second opinion has withheld, by class and stream."""
        return Counter() if self._withholder is None else self._withholder.withheld

    @property
    def streams(self) -> list[str]:
        """Names of the open streams."""
        return self._names.streams

    def use(self, detection: DetectionSettings) -> None:
        """Apply other settings from the next window on; open events continue.

        Raises:
            UsageError: a setting does not fit the model; nothing has changed.
        """
        self.parameters = resolve_parameters(detection, self._facts, self._hop_s)
        self._decision.use(self.parameters)
        if self._watcher is not None:
            self._watcher.use(self.parameters)
        self._levels.set_gate(detection.gate_dbfs)

    def open(self, stream: str, epoch: str, start_sample: int = 0) -> None:
        """Begin a stream whose first sample has index `start_sample`.

        Raises:
            UsageError: it is already open, or no slot is free.
        """
        slot = self._names.add(stream, epoch)
        self._grow()
        self._decision.reset(slot)
        self._restart_context(slot, start_sample)
        self._positions.stride[slot] = 1

    def resume(self, stream: str, epoch: str, start_sample: int, state: DetectorState) -> None:
        """Continue a stream where `export` was called; audio from `start_sample` is pushed again.

        Audio before the exported position only fills the window; it is not scored again.

        Args:
            start_sample: first sample pushed; `context_needed(state)` if still available.
        """
        self.open(stream, epoch, start_sample)
        slot = self._names.slot(stream)
        self._decision.restore(slot, state.classes)
        if self._frames is not None:
            self._frames.restore(slot, state.frames)
        if self._watcher is not None:
            self._watcher.restore(slot, state.asked_until)
        self._positions.context_start[slot] = max(start_sample, state.context_start)
        self._positions.first_scored[slot] = state.first_scored
        self._positions.score_from[slot] = state.position
        if self._runs is not None:
            self._runs.restart(slot, max(start_sample, state.position))

    def export(self, stream: str) -> DetectorState:
        """Return what `resume` needs."""
        slot = self._names.slot(stream)
        known: dict[str, Any] = {
            "position": self._positions.decided(slot),
            "context_start": int(self._positions.context_start[slot]),
            "first_scored": int(self._positions.first_scored[slot]),
            "classes": self._decision.export(slot),
        }
        if self._frames is not None:
            known["frames"] = self._frames.export(slot)
        if self._watcher is not None:
            known["asked_until"] = self._watcher.asked_until(slot)
        return DetectorState.model_construct(**known)

    def context_needed(self, state: DetectorState) -> int:
        """Return the first sample that `resume` should be given again."""
        return max(state.context_start, state.position - self._reach - LOOK_BACK, 0)

    def position(self, stream: str) -> int:
        """Return the sample index up to which `stream` is decided."""
        return self._positions.decided(self._names.slot(stream))

    def received(self, stream: str) -> int:
        """Return the sample index up to which audio of `stream` was pushed."""
        return self._positions.received.item(self._names.slot(stream))

    def room(self, stream: str) -> int:
        """Return how many samples `push` accepts without scoring windows in between."""
        slot = self._names.slot(stream)
        return self._staging.room(slot, int(self._positions.received[slot])) - self._tail

    def push(self, stream: str, start_sample: int, pcm: Pcm16) -> None:
        """Take the next samples of a stream; `run` returns the resulting events.

        More samples than `room` are taken in pieces, with windows scored in between.

        Raises:
            ValueError: they do not continue the stream (tell `gap` first), or it is ending.
        """
        slot = self._names.slot(stream)
        if slot in self._endings:
            raise ValueError(f"stream {stream}: expected no more audio, its end is not scored yet")
        for at in range(0, len(pcm), self._piece):
            piece = pcm[at : at + self._piece]
            received = int(self._positions.received[slot])
            if start_sample + at != received:
                raise ValueError(
                    f"stream {stream}: expected sample {received} next, got {start_sample + at}"
                )
            if self.room(stream) < len(piece):
                self._owed += self._advance()
            self._staging.write(slot, received, piece)
            self._positions.receive(slot, len(piece))

    def gap(self, gap: Gap) -> list[Event]:
        """Continue a stream after lost samples.

        A hole of up to 0.2 s becomes silence; a longer one ends the open events, and windows
        contain only samples after it.
        """
        self.begin_gap(gap)
        return self._finish_ending(self._names.slot(gap.stream))

    def begin_gap(self, gap: Gap) -> None:
        """Like `gap`, but leave the scoring to `run`; no audio is accepted while `is_ending`."""
        if gap.samples <= LONGEST_SILENT_HOLE:
            self.push(gap.stream, gap.start_sample, np.zeros(gap.samples, np.int16))
        else:
            self._begin_ending(gap.stream, _Ending("gap", gap.start_sample + gap.samples))

    def flush(self, stream: str, reason: EndReason = "stream_lost") -> list[Event]:
        """End a stream whose audio is complete: find its last sounds and end its open events."""
        self.begin_flush(stream, reason)
        return self._finish_ending(self._names.slot(stream))

    def begin_flush(self, stream: str, reason: EndReason = "stream_lost") -> None:
        """Like `flush`, but leave the scoring to `run`; the stream is open while `is_ending`."""
        self._begin_ending(stream, _Ending(reason, None))

    def is_ending(self, stream: str) -> bool:
        """Return whether audio before a gap, or before the end, still has to be scored."""
        return stream in self._names and self._names.slot(stream) in self._endings

    @property
    def has_due(self) -> bool:
        """Whether a window waits to be scored."""
        return bool(self._endings) or bool(
            (self._positions.hops_waiting(self._open_slots()) > 0).any()
        )

    def windows_due(self, stream: str) -> int:
        """Return how many windows of `stream` wait to be scored."""
        return self._positions.hops_waiting_of(self._names.slot(stream))

    def windows_of(self, n_samples: int) -> int:
        """Return how many windows a stream of `n_samples` has, from its start to its flush.

        Counts scored and gated windows, without gaps or strides.
        """
        last = n_samples
        if n_samples >= FRAME_LENGTH:
            last += self.window - min(self._flush_context, n_samples)
        n_early = min(self._min_context - 1, n_samples) // self.hop
        return last // self.hop - n_early

    def run(self, max_windows: int | None = None) -> list[Event]:
        """Score the windows that are due and return the events, in order for each stream.

        Args:
            max_windows: stop after about this many, so that the caller can do other work.
        """
        events, self._owed = self._owed + self._advance(max_windows), []
        return events

    def close(self, stream: str, reason: EndReason) -> list[Event]:
        """Score the due windows of a stream and end it; open events end with `reason`."""
        slot = self._names.slot(stream)
        events = self._owed + self._advance(only=slot)
        self._owed = []
        if stream in self._names:
            self._endings.pop(slot, None)
            self._finish_run(slot)
            events += self._decide_rest(slot) + self._close(slot, reason)
            self._names.remove(stream)
        return events

    def drop(self, stream: str) -> None:
        """Forget a stream that moves to another worker: nothing more is scored, no event ends."""
        slot = self._names.slot(stream)
        self._owed = [event for event in self._owed if event.stream != stream]
        self._endings.pop(slot, None)
        self.settle_runs()
        self._names.remove(stream)

    def end_events(self, stream: str, reason: EndReason) -> list[Event]:
        """End the open events of a stream that continues; windows that are due are not scored."""
        events, self._owed = self._owed, []
        return events + self._close(self._names.slot(stream), reason)

    def settle_runs(self) -> None:
        """Report unfinished runs to `on_run`: all samples up to `position` of each stream.

        Finished runs are reported without this call.
        """
        if self._runs is not None:
            self._runs.settle()

    @property
    def widest_stride(self) -> int:
        """The largest stride at which no sound falls between two windows, of either model."""
        return max(1, self._shortest // self.hop)

    def show_frames(
        self, has_viewer: Callable[[str], bool], on_frames: Callable[[HeardFrames], None]
    ) -> None:
        """Call `on_frames` with the new frames of streams, in order and each once.

        Args:
            has_viewer: whether the frames of a stream are wanted now.
        """
        self._has_viewer, self._on_frames = has_viewer, on_frames

    def set_stride(self, stream: str, stride: int) -> None:
        """Under overload: score only every `stride`-th window; the others repeat its scores."""
        self._positions.stride[self._names.slot(stream)] = stride

    def open_events(self, stream: str) -> list[Event]:
        """Return the events of `stream` that have begun and not ended."""
        slot = self._names.slot(stream)
        return self._decision.open_events(slot, self._positions.decided(slot))

    def is_warming(self, stream: str) -> bool:
        """Return whether no window of `stream` was scored since its start or a gap."""
        return self._positions.first_scored.item(self._names.slot(stream)) == NEVER

    def is_gated(self, stream: str) -> bool:
        """Return whether the newest window of `stream` was too quiet to be scored."""
        return self._levels.is_gated(self._names.slot(stream))

    def status(self, stream: str) -> StreamStatus:
        """Return how `stream` is doing."""
        slot = self._names.slot(stream)
        return StreamStatus(
            level_dbfs=self._levels.level_dbfs(slot),
            hop_s=float(self._positions.stride[slot]) * self.hop / SAMPLE_RATE,
            open_events=self._decision.open_count(slot),
        )

    def _grow(self) -> None:
        n_slots = self._names.capacity
        if self._n_slots < n_slots:
            for part in (
                self._decision,
                self._staging,
                self._scorer,
                self._frames,
                self._watcher,
                self._positions,
                self._levels,
                self._runs,
            ):
                if part is not None:
                    part.grow(n_slots)
            self._n_slots = n_slots

    def _restart_context(self, slot: int, start_sample: int) -> None:
        self._positions.restart(slot, start_sample)
        self._staging.restart(slot, int(self._positions.next_end[slot]) - self.hop - LOOK_BACK)
        self._levels.reset(slot)
        self._scorer.reset(slot)
        if self._frames is not None:
            self._frames.reset(slot)
        if self._watcher is not None:
            self._watcher.reset(slot)
        if self._runs is not None:
            self._runs.restart(slot, start_sample)

    def _finish_run(self, slot: int) -> None:
        if self._runs is not None:
            self._runs.finish(slot, int(self._positions.received[slot]))

    def _open_slots(self) -> npt.NDArray[np.int64]:
        return np.array([self._names.slot(stream) for stream in self.streams], np.int64)

    def _advance(self, max_windows: int | None = None, only: int | None = None) -> list[Event]:
        """Score the due windows of all slots in turn, or of one, and complete streams that end.

        If the device works asynchronously, the next windows are started before the previous ones
        are decided. Decisions are made in the order in which windows were started.
        """
        events: list[Event] = []
        n_windows = 0
        begun: _Begun | None = None
        while max_windows is None or n_windows < max_windows:
            slots = self._open_slots() if only is None else np.array([only], np.int64)
            slots = slots[self._positions.hops_waiting(slots) > 0]
            if not len(slots):
                break
            # as many hops as all of them have due, so that no stream gets ahead of the others
            waiting = self._positions.hops_waiting(slots)
            n_hops = min(self.hops_at_once, int(waiting.min()))
            if max_windows is not None:
                slots = self._next_in_turn(slots, max(1, (max_windows - n_windows) // n_hops))
            step = max(1, WINDOWS_AT_ONCE // n_hops)
            for part in (slots[at : at + step] for at in range(0, len(slots), step)):
                before, begun = begun, self._begin(part, n_hops)
                n_windows += len(part) * n_hops
                self.n_taken += len(part) * n_hops
                if before is not None:
                    events += self._finish(before)
                if not self._runs_ahead:
                    events += self._finish(begun)
                    begun = None
            if self._has_ended():
                if begun is not None:
                    events += self._finish(begun)
                    begun = None
                events += self._complete_endings()
        if begun is not None:
            events += self._finish(begun)
        return events + self._complete_endings()

    def _next_in_turn(self, slots: npt.NDArray[np.int64], max_slots: int) -> npt.NDArray[np.int64]:
        """Return at most `max_slots` of `slots`, those that have waited longest."""
        if len(slots) <= max_slots:
            return slots
        order = np.concatenate(
            [slots[slots > self._last_served], slots[slots <= self._last_served]]
        )
        chosen = order[:max_slots]
        self._last_served = int(chosen[-1])
        return np.sort(chosen)

    def _begin_ending(self, stream: str, ending: _Ending) -> None:
        """Let windows extend beyond the end of the audio while they contain enough of it."""
        slot, at = self._names.slot(stream), self._positions
        received = int(at.received[slot])
        held = received - int(at.context_start[slot])
        if held >= FRAME_LENGTH:
            at.scored_until[slot] = received - min(self._flush_context, held) + self.window
            self._staging.write(slot, received, np.zeros(self._tail, np.int16))
        self._endings[slot] = ending

    def _finish_ending(self, slot: int) -> list[Event]:
        events = self._owed + self._advance(only=slot)
        self._owed = []
        return events

    def _has_ended(self) -> bool:
        """Return whether the last window of an ending slot was started."""
        return any(self._positions.hops_waiting_of(slot) <= 0 for slot in self._endings)

    def _complete_endings(self) -> list[Event]:
        events: list[Event] = []
        for slot in list(self._endings):
            if self._positions.hops_waiting_of(slot) > 0:
                continue
            ending = self._endings.pop(slot)
            self._finish_run(slot)
            events += self._decide_rest(slot) + self._close(slot, ending.reason)
            if ending.restart_at is None:
                self._names.remove(self._names.of(slot)[0])
            else:
                self._restart_context(slot, ending.restart_at)
        return events

    def _close(self, slot: int, reason: EndReason) -> list[Event]:
        received = int(self._positions.received[slot])
        return self._decision.close(slot, reason, self._positions.decided(slot), received)

    def _begin(self, slots: npt.NDArray[np.int64], n_hops: int) -> _Begun:
        """Advance each slot by `n_hops` windows: compute features and start the model."""
        at = self._positions
        ends = at.next_end[slots] + (n_hops - 1) * self.hop
        begin = ends - n_hops * self.hop - LOOK_BACK
        pcm = self._staging.read(slots, begin, n_hops * self.hop + LOOK_BACK)
        is_gated = self._levels.measure(slots, pcm[:, LOOK_BACK:])
        frames = self._scorer.push(slots, pcm[:, :-UNUSED_TAIL], ends)
        if self._watcher is not None:
            self._watcher.push(slots, frames, ends)
        if self._has_viewer is not None:
            self._show(self._has_viewer, slots, frames, ends)

        hop_ends = at.next_end[slots][None, :] + np.arange(n_hops)[:, None] * self.hop
        at.next_end[slots] += n_hops * self.hop
        self._staging.release(slots, at.next_end[slots] - self.hop - LOOK_BACK)
        held = hop_ends - at.context_start[slots]
        # at the end of a stream, less context is enough
        is_due = (held >= self._min_context) | (hop_ends > at.received[slots])
        is_due &= hop_ends > at.score_from[slots]
        is_run = is_due & ~is_gated
        is_run &= (hop_ends // self.hop) % self._positions.stride[slots] == 0
        first, last = first_frame(at.context_start[slots]), last_frame(at.received[slots])
        none = np.zeros_like(is_run)
        windows = DueWindows(slots, hop_ends, is_due, is_run, is_gated, none, none, first, last)
        if self._watcher is not None:
            return _Begun(windows, None)
        if self._frames is None:
            return _Begun(windows, self._scorer.begin_scores(windows))
        return _Begun(windows, self._scorer.begin_frame_logits(windows))

    def _finish(self, begun: _Begun) -> list[Event]:
        """Decide the windows that were started, hop by hop."""
        at, windows = self._positions, begun.windows
        slots, hop_ends, is_due = windows.slots, windows.hop_ends, windows.is_due
        if self._runs is not None:
            for ends, gated in zip(hop_ends, windows.is_gated, strict=True):
                stops = np.minimum(ends, at.received[slots])
                self._runs.add(slots, stops, gated, at.stride[slots] > 1)
        first = windows.first_frames
        events: list[Event] = []
        for hop, (asked, found) in enumerate(self._scored(begun)):
            rows = np.flatnonzero(is_due[hop])
            first_scored = at.mark_scored(slots[rows], hop_ends[hop, rows])
            decided: list[Event] = []
            if self._frames is None:
                is_decided = ~asked.is_passed_over[0, rows]
                rows, first_scored = rows[is_decided], first_scored[is_decided]
                if len(rows):
                    ends = hop_ends[hop, rows]
                    decided = self._decide(slots[rows], ends, found[rows], first_scored)
            else:
                # a skipped window has no scores for its frames
                says = asked.is_run[0] | asked.is_gated[0] | asked.is_unasked[0]
                rows = np.flatnonzero(is_due[hop] & says)
                begins = self._scorer.begins(hop_ends[hop, rows], first[rows])
                is_asked = ~asked.is_unasked[0, rows]
                ends = hop_ends[hop, rows]
                decided = self._decide_frames(slots[rows], ends, begins, found[rows], is_asked)
            if self._watcher is not None:
                decided = self._watcher.with_scores(decided, hop)
            events += decided
        return events

    def _show(
        self,
        has_viewer: Callable[[str], bool],
        slots: npt.NDArray[np.int64],
        frames: Tensor,
        ends: npt.NDArray[np.int64],
    ) -> None:
        """Hand new frames, shape (n, frames, 128), to viewers; the slots' hops end at `ends`."""
        names = [self._names.of(slot) for slot in slots.tolist()]
        rows = [row for row, (stream, _) in enumerate(names) if has_viewer(stream)]
        if not rows:
            return
        at, n_frames = self._positions, frames.shape[1]
        shown = frames[rows].cpu().numpy()
        ends, slots = last_frame(ends[rows]) + 1, slots[rows]
        # only real frames, and after a restart none that were already shown
        begins = np.maximum(ends - n_frames, first_frame(at.context_start[slots]))
        begins = np.maximum(begins, last_frame(at.score_from[slots]) + 1)
        stops = np.minimum(ends, last_frame(at.received[slots]) + 1)
        for row, log_mel, end, begin, stop in zip(rows, shown, ends, begins, stops, strict=True):
            if begin < stop:
                its = log_mel[begin - end + n_frames : stop - end + n_frames]
                self._on_frames(HeardFrames(*names[row], int(begin), its))

    def _scored(self, begun: _Begun) -> Iterator[tuple[DueWindows, npt.NDArray[np.float32]]]:
        """Yield, hop by hop, the windows and the model's results for them.

        Results are scores of windows or logits of their frames, shape (n, ...). Whether a cascade
        selects a window depends on the decision about the previous one.
        """
        windows = begun.windows
        if begun.found is not None:
            for hop, its in enumerate(begun.found()):
                yield windows.of_hop(hop), its
            return
        assert self._watcher is not None
        score = self._scorer.score if self._frames is None else self._scorer.frame_logits
        slots, at = windows.slots, self._positions
        self._watcher.hear(windows, at.context_start[slots])
        for hop in range(len(windows.hop_ends)):
            is_first = at.first_scored[slots] == NEVER
            is_live, steady = self._decision.has_live(slots), self._decision.steady(slots)
            asked = self._watcher.ask(hop, is_first, is_live, steady)
            yield asked, score(asked)[0]

    def _decide_frames(
        self,
        slots: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
        logits: npt.NDArray[np.float32],
        is_asked: npt.NDArray[np.bool_],
    ) -> list[Event]:
        """Decide the frames that become final with one more window of each slot."""
        assert self._frames is not None
        audio_ends = self._positions.received[slots]
        events: list[Event] = []
        for decided in self._frames.add(slots, ends, begins, audio_ends, logits, is_asked):
            rows = decided.rows
            first = self._frames.first_ends(slots[rows])
            events += self._decide(slots[rows], decided.ends, decided.scores, first, ends[rows])
        return events

    def _decide_rest(self, slot: int) -> list[Event]:
        """Decide the remaining frames of a slot, without waiting for further windows."""
        if self._frames is None:
            return []
        slots = np.array([slot], np.int64)
        at = np.array([self._positions.decided(slot)], np.int64)
        events: list[Event] = []
        for decided in self._frames.finish(slot):
            first = self._frames.first_ends(slots)
            events += self._decide(slots, decided.ends, decided.scores, first, at)
        return events

    def _decide(
        self,
        slots: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        first_scored: npt.NDArray[np.int64],
        known_at: npt.NDArray[np.int64] | None = None,
    ) -> list[Event]:
        """Decide a window, or a frame, of each slot; see `Decision.step`."""
        scores = self._decision.average(slots, scores, ends == first_scored)
        if self._on_scores is not None:
            for slot, end, row in zip(slots, ends, scores, strict=True):
                self._on_scores(Scores(*self._names.of(int(slot)), int(end), row.copy()))
        events = self._decision.step(
            slots,
            ends,
            scores,
            context_starts=self._positions.context_start[slots],
            first_scored=first_scored,
            audio_ends=self._positions.received[slots],
            known_at=known_at,
        )
        return events if self._withholder is None else self._withholder.judge(events)


def _frame_averages(tagger: Tagger, delay: int) -> FrameAverages | None:
    if tagger.frames is None:
        return None
    dims = tagger.dims
    grid = PatchGrid(dims.n_time_patches, dims.patch_size, dims.time_stride)
    return FrameAverages(grid, len(tagger.labels), delay)


def _check_hop(hop_s: float, window_s: float) -> None:
    try:
        whole_frames(hop_s, "hop_s")
    except ValueError as error:
        raise UsageError(str(error)) from error
    if hop_s > window_s:
        raise UsageError(
            f"hop_s: expected at most the window of {window_s:g} s, got {hop_s:g}: "
            "sounds between two windows would be missed"
        )


def hops_of_recording(tagger: Tagger) -> int:
    """Return how many windows of one recording to score together if latency does not matter."""
    return max(HOPS_AT_ONCE, tagger.full_batch)
