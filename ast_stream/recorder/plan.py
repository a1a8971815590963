"""Events at work: which parts of their sound are due, and what becomes of them. No clock, no files.

A clip is exact: from onset - pre-roll to before offset + post-roll, in samples of the event's
epoch. A long event is cut into parts of `max_clip_s`, each as soon as it cannot be affected by an
end that comes to be known later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ast_stream.feed import Position
from ast_stream.messages.event import EventMessage
from ast_stream.recorder.policy import Decision, Policies, Subject
from ast_stream.settings.recorder import ClipPolicy
from ast_stream.units import samples_to_ns, seconds_to_samples

Source: TypeAlias = tuple[str, str]
"""A stream and an epoch of it."""

Positions: TypeAlias = Position | Mapping[str, Position] | None
"""Where a reader of one feed, or of several by their names, stands."""


@dataclass(frozen=True)
class Part:
    """A part of the sound of an event that can be cut now.

    Attributes:
        number: from 0.
        is_last: no other follows.
    """

    event: TrackedEvent
    number: int
    start: int
    stop: int
    is_last: bool


@dataclass(eq=False)
class TrackedEvent:
    """One event whose sound may be kept.

    Attributes:
        message: the newest about it.
        is_alerted: an alert names it.
        n_parts: parts that are cut.
        next_sample: where the next part begins; None: none is cut yet.
    """

    message: EventMessage
    is_alerted: bool = False
    n_parts: int = 0
    next_sample: int | None = None
    rolls: tuple[int, int] | None = None  # as they were for the first part

    @property
    def source(self) -> Source:
        """Its stream and epoch."""
        return self.message.stream, self.message.epoch or ""

    @property
    def is_over(self) -> bool:
        """Whether its end is known."""
        return self.message.type == "end"

    @property
    def subject(self) -> Subject:
        """What a policy is asked about."""
        message = self.message
        return Subject(message.class_, message.stream, message.peak, self.is_over, self.is_alerted)

    def span(self, policy: ClipPolicy | None) -> tuple[int, int | None]:
        """Return what its clip is to hold; None: the end is not known."""
        pre, post = self.rolls or (
            (0, 0)
            if policy is None
            else (seconds_to_samples(policy.pre_s), seconds_to_samples(policy.post_s))
        )
        onset = self.message.onset_sample or 0
        start = max(0, onset - pre)
        if not self.is_over:
            return start, None
        offset = self.message.offset_sample
        offset = self.message.at_sample if offset is None else offset
        return start, max(onset, offset or 0) + post

    def time_ns(self, sample: int) -> int:
        """Return when a sample of its epoch was captured, by the clock of its onset."""
        onset = self.message.onset_sample or 0
        moved = samples_to_ns(abs(sample - onset))
        return self.message.onset_ns + (moved if sample >= onset else -moved)


class Plan:
    """The events of which sound may be kept, from their first message to their last part.

    Args:
        max_clip: samples in a part, at most.
        margin: samples behind a part that its event must have lasted before it is cut: within
            them, an end that is past may come to be known.
    """

    def __init__(self, policies: Policies, max_clip: int, margin: int) -> None:
        self.policies = policies
        self.max_clip = max_clip
        self.margin = margin
        self._events: dict[str, TrackedEvent] = {}
        # of those that have ended, in that order: where the readers of the feeds stood before
        self._before_end: dict[str, Positions] = {}

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._events

    def __iter__(self) -> Iterator[TrackedEvent]:
        return iter(list(self._events.values()))

    def get(self, event_id: str) -> TrackedEvent | None:
        """Return an event at work."""
        return self._events.get(event_id)

    def observe(self, message: EventMessage, before: Positions) -> TrackedEvent | None:
        """Take a message; return its event, if its sound may be kept.

        An event may be met with any of its messages: after a restart the first are past.

        Args:
            before: where the readers of the feeds stood before it.
        """
        event = self._events.get(message.id)
        if event is None:
            event = TrackedEvent(message)
        elif event.is_over:
            return event
        event.message = message
        if self.policies.chosen(event.subject) is None and event.n_parts == 0:
            self.drop(event)
            return None
        self._events[message.id] = event
        if event.is_over:
            self._before_end[message.id] = before
        return event

    def drop(self, event: TrackedEvent) -> None:
        """Be done with an event."""
        self._events.pop(event.message.id, None)
        self._before_end.pop(event.message.id, None)

    def resume(self, event: TrackedEvent, parts: Iterable[tuple[int, int, int]]) -> None:
        """Go on behind the parts that an earlier run has cut: number, start and stop of each."""
        for number, start, stop in sorted(parts):
            if event.rolls is None:
                onset = event.message.onset_sample or 0
                policy = self.policies.chosen(event.subject)
                post = 0 if policy is None else seconds_to_samples(policy.post_s)
                event.rolls = max(0, onset - start), post
            event.n_parts, event.next_sample = number + 1, stop

    def decision(self, event: TrackedEvent) -> Decision:
        """Return what becomes of the sound of an event."""
        return self.policies.decide(event.subject)

    def wanted(self) -> dict[Source, int]:
        """Return, of each stream and epoch, the first sample that is still needed."""
        found: dict[Source, int] = {}
        for event in self._events.values():
            first = event.next_sample
            if first is None:
                first, _ = event.span(self.policies.chosen(event.subject))
            found[event.source] = min(first, found.get(event.source, first))
        return found

    def due(self, held: Mapping[Source, int], over: Iterable[Source] = ()) -> Iterator[Part]:
        """Yield the parts that can be cut; the caller passes each to `is_cut` before the next.

        Args:
            held: end of the audio that is there, of each stream and epoch.
            over: of which no more audio will come.
        """
        over = set(over)
        for event in list(self._events.values()):
            end, is_over = held.get(event.source), event.source in over
            while (part := self._part(event, end, is_over=is_over)) is not None:
                yield part
                if part.is_last or event.n_parts == part.number:
                    break

    def _part(self, event: TrackedEvent, end: int | None, *, is_over: bool) -> Part | None:
        start, stop = event.span(self.policies.chosen(event.subject))
        start = start if event.next_sample is None else event.next_sample
        if not event.is_over:
            cut = start + self.max_clip
            # not by the audio alone: where the feed is read late, its end may be on the way
            lasts = (event.message.at_sample or 0) >= cut + self.margin
            is_there = lasts and end is not None and end >= cut
            return Part(event, event.n_parts, start, cut, False) if is_there else None
        assert stop is not None
        cut = max(start, min(stop, start + self.max_clip))
        if is_over and (end is None or end < cut):
            return Part(event, event.n_parts, start, max(start, cut), True)
        if cut > start and (end is None or end < cut):
            return None
        return Part(event, event.n_parts, start, cut, cut >= stop)

    def is_cut(self, part: Part) -> None:
        """Take note that a part is cut, or cannot be had; behind the last the event is done."""
        event = part.event
        if event.rolls is None:
            policy = self.policies.chosen(event.subject)
            if policy is not None:
                rolls = policy.pre_s, policy.post_s
                event.rolls = seconds_to_samples(rolls[0]), seconds_to_samples(rolls[1])
        event.n_parts, event.next_sample = part.number + 1, part.stop
        if part.is_last:
            self.drop(event)

    def resume_at(self, now: Positions) -> Positions:
        """Return where a restart has to begin reading, so that no end of an event is missed."""
        return next(iter(self._before_end.values()), now)
