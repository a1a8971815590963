"""Trials: logged scores decided again, with other parameters.

The scores go through the same decision stage again, window by window, with other parameters. With
the original parameters the result is the same events, except for the float16 rounding of the feed:
a score within half a rounding step of a threshold may be on its other side.

Scores are logged after smoothing, so a trial cannot change the smoothing. Where scores are missing
without a gap of the stream (the recorder was down), nothing can be judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.detect.state import NEVER
from ast_stream.errors import UsageError
from ast_stream.history.records import EventRecord
from ast_stream.history.score_blocks import BlockFile, Place
from ast_stream.history.score_log import ScoreReader
from ast_stream.labels import did_you_mean, find_label
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import EndReason, Event, EventMessage, Gap
from ast_stream.sample_clock import SampleClock
from ast_stream.units import NS_PER_SECOND, samples_to_ns, seconds_to_samples

MODEL = "trial"  # model of the events, instead of a hash
LEAD_NS = 120 * NS_PER_SECOND  # decided before the requested time, to know what is open then
_SILENT_HOLE = seconds_to_samples(0.2)  # a shorter gap was silence to the detector
_SLOT = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Heard:
    """What is known about the audio besides its scores; unknown facts affect events at its edges.

    Attributes:
        gaps: of all streams.
        ends: end of the audio of finished epochs, in samples, by stream and epoch.
        labels: of the streams, for the messages.
    """

    gaps: Sequence[Gap] = ()
    ends: Mapping[tuple[str, str], int] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial on one stream.

    Attributes:
        messages: of the events with an onset in the requested time, in order, as a worker would
            have published them.
        n_windows: number of windows, or frames, that were judged.
        n_foreign: number of those that were not, since they have another model or hop.
        holes: start and end of times without scores that are no gaps (ns).
    """

    stream: str
    messages: list[EventMessage]
    n_windows: int
    n_foreign: int
    holes: list[tuple[int, int]]

    @property
    def events(self) -> list[EventRecord]:
        """The events, by onset; one that had not ended is open."""
        return sorted(records_of(self.messages), key=lambda event: event.key)


def try_out(
    reader: ScoreReader,
    stream: str,
    since_ns: int,
    until_ns: int,
    parameters: DecisionParameters,
    *,
    classes: Iterable[str] | None = None,
    heard: Heard | None = None,
) -> TrialResult:
    """Decide the logged scores of a stream with other parameters.

    Args:
        since_ns, until_ns: range of the onsets.
        classes: labels or slugs of the wanted classes; None: all that are enabled.

    Raises:
        UsageError: the parameters have no such class.
    """
    parameters = _with_classes(parameters, classes)
    longest_ns = samples_to_ns(int(parameters.max_duration.max(initial=0)))
    places = reader.places(stream, since_ns - LEAD_NS, until_ns + longest_ns + LEAD_NS)
    run = _Run(reader, stream, parameters, heard or Heard(), until_ns)
    messages = list(run.decide(places))
    wanted = {message.id for message in messages if since_ns <= message.onset_ns < until_ns}
    return TrialResult(
        stream,
        [message for message in messages if message.id in wanted],
        run.n_windows,
        run.n_foreign,
        [hole for hole in run.holes if hole[0] < until_ns and hole[1] > since_ns],
    )


def refuse_other_smoothing(configured: DecisionParameters, tried: DecisionParameters) -> None:
    """Refuse parameters for which the log has no scores.

    Raises:
        UsageError: a class has another smoothing.
    """
    changed = np.flatnonzero(configured.ema_alpha != tried.ema_alpha)
    if len(changed):
        label = tried.labels[changed[0]]
        raise UsageError(
            f"smoothing_s: expected that of the configuration for {label}, for the log holds "
            "scores that are averaged already, got another"
        )


def records_of(messages: Iterable[EventMessage]) -> Iterator[EventRecord]:
    """Yield event records, as the history would have them, from messages in order."""
    begun: dict[str, EventMessage] = {}
    last: dict[str, EventMessage] = {}
    for message in messages:
        begun.setdefault(message.id, message)
        last[message.id] = message
    for id, message in last.items():
        first = begun[id]
        yield EventRecord(
            id=id, stream=message.stream, class_=message.class_, label=message.label,
            index=message.index, state=message.type, score=first.score, peak=message.peak,
            mean=message.mean, onset_ns=message.onset_ns, offset_ns=message.offset_ns,
            onset_sample=message.onset_sample, offset_sample=message.offset_sample,
            at_sample=message.at_sample, uncertainty_s=message.uncertainty_s,
            duration_reliable=message.duration_reliable, reason=message.reason,
            watcher_score=first.watcher_score, verifier_score=None, captured_ns=first.captured_ns,
            scored_ns=first.scored_ns, published_ns=None, updated_ns=message.captured_ns,
            epoch=message.epoch, model=message.model, labels=dict(message.labels),
        )  # fmt: skip


_Place = tuple[BlockFile, Place]


@dataclass(frozen=True)
class _Stretch:
    """Adjacent blocks without missing windows.

    Attributes:
        context_start: first real sample that its first window may have contained.
        first_scored: end of its first window if nothing was scored before it, or NEVER.
        audio_end: end of the audio, if it ends with the stretch; otherwise None.
        reason: why open events end with it; None: they continue.
    """

    places: list[_Place]
    context_start: int
    first_scored: int
    audio_end: int | None
    reason: EndReason | None


class _Run:
    """One pass of a stream's scores through the decision stage."""

    def __init__(
        self,
        reader: ScoreReader,
        stream: str,
        parameters: DecisionParameters,
        heard: Heard,
        until_ns: int,
    ) -> None:
        self.n_windows = 0
        self.n_foreign = 0
        self.holes: list[tuple[int, int]] = []
        self._reader = reader
        self._stream = stream
        self._parameters = parameters
        self._heard = heard
        self._labels = heard.labels.get(stream, {})
        self._until_ns = until_ns
        self._epoch: str | None = None
        self._state: tuple[Decision, SampleClock]
        p = parameters
        lowest = p.rising_threshold if p.geometry.is_of_frames else p.onset_threshold
        self._enabled = np.flatnonzero(p.is_enabled)
        self._lowest = lowest[self._enabled]

    def decide(self, places: Sequence[_Place]) -> Iterator[EventMessage]:
        """Yield the messages of all events; those still open at the end get no `end`."""
        own = [place for place in places if self._is_own(place)]
        for stretch in self._stretches(own):
            yield from self._decide_stretch(stretch)

    def _is_own(self, place: _Place) -> bool:
        """Return whether a block has this model and hop."""
        labels = self._reader.labels_of(*place)
        geometry = self._parameters.geometry
        is_own = (
            place[1].step in (0, geometry.hop)
            and place[1].n_classes == len(self._parameters.labels)
            and labels in (None, self._parameters.labels)
        )
        if not is_own:
            self.n_foreign += place[1].n_windows
        return is_own

    def _stretches(self, places: Sequence[_Place]) -> Iterator[_Stretch]:
        hop = self._parameters.geometry.hop
        runs: list[list[_Place]] = []
        for place in places:
            newest, its = runs[-1][-1][1] if runs else None, place[1]
            if newest and (newest.epoch, newest.last_end + hop) == (its.epoch, its.end):
                runs[-1].append(place)
            else:
                runs.append([place])
        for number, run in enumerate(runs):
            before = runs[number - 1][-1][1] if number > 0 else None
            after = runs[number + 1][0][1] if number + 1 < len(runs) else None
            yield self._stretch(run, before, after)

    def _stretch(self, run: list[_Place], before: Place | None, after: Place | None) -> _Stretch:
        first, last = run[0][1], run[-1][1]
        geometry = self._parameters.geometry
        window = max(geometry.window, geometry.window_hop)
        gaps = [gap for gap in self._gaps(first.epoch)]
        context_start, first_scored = max(0, first.end - window), NEVER
        behind = [gap.stop_sample for gap in gaps if gap.stop_sample < first.end]
        is_behind_gap = bool(behind) and (
            behind[-1] > first.end - 2 * window
            if before is None or before.epoch != first.epoch
            else behind[-1] > before.last_end - 2 * window
        )
        if is_behind_gap:
            context_start, first_scored = behind[-1], first.end
        elif first.end <= window + geometry.hop:  # an epoch begins at its sample 0
            context_start, first_scored = 0, first.end
        ahead = [gap.start_sample for gap in gaps if gap.start_sample > first.end - window]
        is_over = after is not None
        audio_end: int | None = None
        reason: EndReason | None = "gap" if is_over else None
        if ahead and (ahead[0] <= last.last_end or (is_over and after and ahead[0] < after.end)):
            audio_end, reason = ahead[0], "gap"
        elif after is not None and after.epoch == first.epoch:
            self.holes.append((last.stop_ns, after.start_ns))
        else:
            audio_end = self._heard.ends.get((self._stream, first.epoch))
            if audio_end is not None or is_over:
                reason = "stream_lost"
        return _Stretch(run, context_start, first_scored, audio_end, reason)

    def _gaps(self, epoch: str) -> list[Gap]:
        found = [
            gap
            for gap in self._heard.gaps
            if (gap.stream, gap.epoch) == (self._stream, epoch) and gap.samples > _SILENT_HOLE
        ]
        return sorted(found, key=lambda gap: gap.start_sample)

    def _decide_stretch(self, stretch: _Stretch) -> Iterator[EventMessage]:
        decision, clock = self._of_epoch(stretch.places[0][1].epoch)
        is_busy = [self._is_busy(place) for _, place in stretch.places]
        near = np.pad(is_busy, 1)
        near = near[:-2] | near[1:-1] | near[2:]
        at = stretch.places[-1][1].last_end
        for (file, place), is_near in zip(stretch.places, near, strict=True):
            for sample, time_ns in ((place.end, place.start_ns), (place.last_end, place.stop_ns)):
                clock.observe(sample, Moment(time_ns, time_ns))
            is_live = bool(decision.has_live(_SLOT)[0])
            if place.start_ns >= self._until_ns and not is_live:
                return
            self.n_windows += place.n_windows
            if not is_near and not is_live:
                continue
            span = self._reader.load(file, place)
            if span is None:
                self.holes.append((place.start_ns, place.stop_ns))
                ended = decision.close(0, "gap", place.end, place.end)
                yield from self._messages(ended, clock, place.end)
                continue
            scores = span.scores.astype(np.float32)
            yield from self._decide_block(decision, stretch, clock, span.ends, scores)
        if stretch.reason is not None:
            end = at if stretch.audio_end is None else stretch.audio_end
            ended = decision.close(0, stretch.reason, max(at, end), end)
            yield from self._messages(ended, clock, end)

    def _of_epoch(self, epoch: str) -> tuple[Decision, SampleClock]:
        """Return the state of an epoch, which continues over its gaps."""
        if self._epoch != epoch:
            names = SlotNames(1)
            names.add(self._stream, epoch)
            self._epoch = epoch
            self._state = Decision(self._parameters, names), SampleClock()
        return self._state

    def _is_busy(self, place: Place) -> bool:
        return bool((place.peaks[self._enabled] >= self._lowest).any())

    def _decide_block(
        self,
        decision: Decision,
        stretch: _Stretch,
        clock: SampleClock,
        ends: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
    ) -> Iterator[EventMessage]:
        """Decide the windows of a block that may change something."""
        is_high = (scores[:, self._enabled] >= self._lowest).any(axis=1)
        near = np.pad(is_high, 1, constant_values=True)  # neighbouring blocks are not known
        near = near[:-2] | near[1:-1] | near[2:]
        context_start = np.array([stretch.context_start])
        first_scored = np.array([stretch.first_scored])
        is_live = bool(decision.has_live(_SLOT)[0])
        for number in range(len(ends)):
            if not (near[number] or is_live):
                continue
            end = ends[number : number + 1]
            audio_end = end if stretch.audio_end is None else np.minimum(end, stretch.audio_end)
            events = decision.step(
                _SLOT,
                end,
                scores[number : number + 1],
                context_starts=context_start,
                first_scored=first_scored,
                audio_ends=audio_end,
            )
            is_live = bool(decision.has_live(_SLOT)[0])
            if events:
                limit = stretch.audio_end if stretch.audio_end is not None else 2**53
                yield from self._messages(events, clock, limit)

    def _messages(
        self, events: Sequence[Event], clock: SampleClock, audio_end: int
    ) -> Iterator[EventMessage]:
        for event in events:
            yield EventMessage.of(
                event, clock, labels=self._labels, audio_end=audio_end,
                scored=clock.moment(event.at_sample), model=MODEL,
            )  # fmt: skip


def _with_classes(
    parameters: DecisionParameters, classes: Iterable[str] | None
) -> DecisionParameters:
    """Return parameters that disable all other classes."""
    if classes is None:
        return parameters
    is_wanted = np.zeros(len(parameters.labels), np.bool_)
    for name in classes:
        label = find_label(name, parameters.labels)
        if label is None:
            hint = did_you_mean(name, parameters.labels)
            raise UsageError(f"trial: expected a class of the model, got {name!r}{hint}")
        is_wanted[parameters.labels.index(label)] = True
    return replace(parameters, is_enabled=parameters.is_enabled & is_wanted)
