"""Events in progress: which parts of their clips are due, and whether they are kept.

A clip is exact: from onset - pre-roll to offset + post-roll, half-open, in samples of the event's
epoch. A long event is cut into parts of `max_clip_s`, each as soon as it cannot be affected by an
end that is not known yet.
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

StreamEpoch: TypeAlias = tuple[str, str]
"""A stream and one of its epochs."""

Positions: TypeAlias = Position | Mapping[str, Position] | None
"""The position on a feed, or the positions on several feeds by their names."""


@dataclass(frozen=True)
class ClipPart:
    """A part of an event's audio that can be cut now.

    Attributes:
        number: from 0.
        is_last: no other part follows.
    """

    event: TrackedEvent
    number: int
    start: int
    stop: int
    is_last: bool


@dataclass(eq=False)
class TrackedEvent:
    """An event that may get a clip.

    Attributes:
        message: the newest message about it.
        is_alerted: an alert names it.
        is_best: an alert names it, and no better event.
        n_parts: number of parts already cut.
        next_sample: where the next part begins; None: no part has been cut yet.
    """

    message: EventMessage
    is_alerted: bool = False
    is_best: bool = False
    n_parts: int = 0
    next_sample: int | None = None
    rolls: tuple[int, int] | None = None  # of the first part

    @property
    def source(self) -> StreamEpoch:
        """Its stream and epoch."""
        return self.message.stream, self.message.epoch or ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.message.type == "end"

    @property
    def subject(self) -> Subject:
        """The properties on which a policy decides."""
        message = self.message
        return Subject(
            message.class_,
            message.stream,
            message.peak,
            self.is_over,
            self.is_alerted,
            self.is_best,
        )

    def span(self, policy: ClipPolicy | None) -> tuple[int, int | None]:
        """Return the range of its clip in samples; None: the end is not known."""
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
    """The events that may get a clip, from their first message to their last part.

    Args:
        max_clip: longest part, in samples.
        margin: an event must have lasted so many samples beyond a part before the part is cut,
            since its end may become known with this delay.
    """

    def __init__(self, policies: Policies, max_clip: int, margin: int) -> None:
        self.policies = policies
        self.max_clip = max_clip
        self.margin = margin
        self._events: dict[str, TrackedEvent] = {}
        # of ended events, in that order: the positions before their end
        self._before_end: dict[str, Positions] = {}

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._events

    def __iter__(self) -> Iterator[TrackedEvent]:
        return iter(list(self._events.values()))

    def get(self, event_id: str) -> TrackedEvent | None:
        """Return an event in progress."""
        return self._events.get(event_id)

    def observe(self, message: EventMessage, before: Positions) -> TrackedEvent | None:
        """Process a message; return its event, if it may get a clip.

        The first message about an event may be any of its messages, after a restart.

        Args:
            before: positions on the feeds before the message.
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
        """Remove an event."""
        self._events.pop(event.message.id, None)
        self._before_end.pop(event.message.id, None)

    def resume(self, event: TrackedEvent, parts: Iterable[tuple[int, int, int]]) -> None:
        """Continue after parts cut by an earlier run, given as (number, start, stop)."""
        for number, start, stop in sorted(parts):
            if event.rolls is None:
                onset = event.message.onset_sample or 0
                policy = self.policies.chosen(event.subject)
                post = 0 if policy is None else seconds_to_samples(policy.post_s)
                event.rolls = max(0, onset - start), post
            event.n_parts, event.next_sample = number + 1, stop

    def decision(self, event: TrackedEvent) -> Decision:
        """Return the decision on the clips of an event."""
        return self.policies.decide(event.subject)

    def wanted(self) -> dict[StreamEpoch, int]:
        """Return the first sample that is still needed, by stream and epoch."""
        found: dict[StreamEpoch, int] = {}
        for event in self._events.values():
            first = event.next_sample
            if first is None:
                first, _ = event.span(self.policies.chosen(event.subject))
            found[event.source] = min(first, found.get(event.source, first))
        return found

    def due(
        self, held: Mapping[StreamEpoch, int], over: Iterable[StreamEpoch] = ()
    ) -> Iterator[ClipPart]:
        """Yield the parts that can be cut; the caller passes each to `is_cut` before the next.

        Args:
            held: end of the available audio, by stream and epoch.
            over: streams and epochs without further audio.
        """
        over = set(over)
        for event in list(self._events.values()):
            end, is_over = held.get(event.source), event.source in over
            while (part := self._part(event, end, is_over=is_over)) is not None:
                yield part
                if part.is_last or event.n_parts == part.number:
                    break

    def _part(self, event: TrackedEvent, end: int | None, *, is_over: bool) -> ClipPart | None:
        start, stop = event.span(self.policies.chosen(event.subject))
        start = start if event.next_sample is None else event.next_sample
        if not event.is_over:
            cut = start + self.max_clip
            # audio alone does not suffice: if the feed is read late, the end may still arrive
            lasts = (event.message.at_sample or 0) >= cut + self.margin
            is_there = lasts and end is not None and end >= cut
            return ClipPart(event, event.n_parts, start, cut, False) if is_there else None
        assert stop is not None
        cut = max(start, min(stop, start + self.max_clip))
        if is_over and (end is None or end < cut):
            return ClipPart(event, event.n_parts, start, max(start, cut), True)
        if cut > start and (end is None or end < cut):
            return None
        return ClipPart(event, event.n_parts, start, cut, cut >= stop)

    def is_cut(self, part: ClipPart) -> None:
        """Mark a part as cut or unavailable; after the last part the event is removed."""
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
        """Return where a restart must begin reading in order to miss no end of an event."""
        return next(iter(self._before_end.values()), now)
