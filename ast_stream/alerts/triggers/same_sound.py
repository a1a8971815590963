"""`same_sound`: one sound that several microphones hear, merged into one occurrence.

Events of one class whose onsets lie within a time of the first are one occurrence. It is decided
once all of them must have been published: `within` and the detector's latency after its first
onset, and `SKEW_NS` for streams that are not equally far. So what is decided does not depend on
the order in which events arrive. One that arrives later still, of a stream that lagged, joins the
occurrence that it belongs to, and makes no other. So do those of a rule that waits for less.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from pydantic import Field, field_validator

from ast_stream.alerts.rules.field_types import Duration, PositiveDuration, RuleSection
from ast_stream.alerts.triggers.base import (
    MAX_CAUSES,
    Facts,
    Finding,
    MatchedEvent,
    MergedSound,
    Trigger,
)
from ast_stream.units import NS_PER_SECOND, counted

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule

SKEW_NS = NS_PER_SECOND // 2  # by which streams of one box may be unequally far
MAX_WITHIN_NS = 10 * NS_PER_SECOND  # sound goes three kilometres meanwhile
REMEMBER_NS = 150 * NS_PER_SECOND  # longer than any ring: no stream comes later than that
MAX_HEARD_BY = 64
MAX_UNDECIDED = 1000  # events of one class within seconds; with more it decides early
MAX_DECIDED = 200  # sounds


class SameSound(RuleSection):
    """One sound at several microphones: an alert for each, not for each microphone."""

    within: PositiveDuration = Field(
        description="events of a class with onsets within this, on any of the streams, are one "
        "sound; at most 10s"
    )
    heard_by: int = Field(
        default=1, ge=1, le=MAX_HEARD_BY, description="on so many streams at least"
    )

    wait: Duration | None = Field(
        default=None,
        description="the alert comes this long after the first onset, or as soon as enough have "
        "heard it after that; null: once all streams must have reported; sooner, the best is the "
        "best so far, and what comes later joins",
    )

    @field_validator("within")
    @classmethod
    def _is_short(cls, within: int) -> int:
        if within > MAX_WITHIN_NS:
            raise ValueError(f"expected at most {MAX_WITHIN_NS // NS_PER_SECOND}s")
        return within


class HasOnset(Protocol):
    """What has an onset."""

    @property
    def onset_ns(self) -> int:
        """When it began."""


Heard = TypeVar("Heard", bound=HasOnset)


def occurrences(events: Sequence[Heard], within_ns: int) -> list[list[Heard]]:
    """Return events of one class, ordered by onset, divided into sounds.

    Each sound reaches from its first onset to `within_ns` later.
    """
    found: list[list[Heard]] = []
    for event in events:
        if found and event.onset_ns - found[-1][0].onset_ns <= within_ns:
            found[-1].append(event)
        else:
            found.append([event])
    return found


class SoundEvent(NamedTuple):
    """One event of a sound.

    Attributes:
        verified: by its verifier, if it has one.
        peak: its highest score until its sound was decided.
    """

    onset_ns: int
    id: str
    stream: str
    verified: float = 0.0
    peak: float = 0.0

    @property
    def order(self) -> tuple[int, str]:
        """By what events of a sound are ordered."""
        return self.onset_ns, self.id

    @property
    def rank(self) -> tuple[float, float, int, str]:
        """Sort key, highest for the best event: by verifier, by peak, then the earlier one."""
        return self.verified, self.peak, -self.onset_ns, self.id


@dataclass(eq=False)
class Occurrence:
    """One sound that is decided.

    Attributes:
        events: in the order of their onsets.
        is_spent: enough streams have heard it, and it has fired.
    """

    events: list[SoundEvent]
    is_spent: bool = False

    def takes(self, event: MatchedEvent, within_ns: int) -> bool:
        """Return whether an event is near enough to belong to it."""
        first, last = self.events[0].onset_ns, self.events[-1].onset_ns
        return max(last, event.onset_ns) - min(first, event.onset_ns) <= within_ns

    def holds(self, event_id: str) -> bool:
        """Return whether an event is part of it."""
        return any(event.id == event_id for event in self.events)


@dataclass(eq=False)
class SameSoundTrigger(Trigger):
    """Fires when a sound was heard on enough streams, and holds while one of its events is open.

    A sound that is decided while the alert of another one still holds belongs to that alert.

    Attributes:
        undecided: events that others may still join, by onset.
        pending_facts: of each of them, what templates may show by its last message.
        decided: sounds of the last minutes, by onset.
        alerted: events of the alert that fired last.
        facts: what templates say of the best of these.
        hold_until: until when it holds at least.
    """

    key = "same_sound"
    is_pattern = True
    reads_facts = True
    merges_streams = True

    undecided: list[SoundEvent] = field(default_factory=list)
    pending_facts: dict[str, Facts] = field(default_factory=dict)
    decided: list[Occurrence] = field(default_factory=list)
    alerted: list[SoundEvent] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)
    hold_until: int | None = None

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        settings: SameSound = self.given(rule.settings)
        self._within_ns, self._heard_by = settings.within, settings.heard_by
        self._wait_ns = self.waits_ns(settings, timing)

    @staticmethod
    def waits_ns(settings: SameSound, timing: DetectionTiming) -> int:
        """Return how long after its first onset a sound is decided."""
        if settings.wait is not None:
            return settings.wait
        return settings.within + timing.latency_ns + SKEW_NS

    def export(self) -> dict[str, Any]:
        """Return the fields of the state that are not empty, as JSON values."""
        data = super().export()
        if self.decided:
            data["decided"] = [
                [occurrence.is_spent, list(occurrence.events)] for occurrence in self.decided
            ]
        return data

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        super().restore(data)
        self.undecided = _heard_events(self.undecided)
        self.alerted = _heard_events(self.alerted)
        decided: Any = self.decided
        self.decided = [Occurrence(_heard_events(events), is_spent) for is_spent, events in decided]

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield groups of too few streams, and sounds that would be merged wrongly."""
        settings: SameSound = cls.given(rule.settings)
        named = rule.matchers[0].named_streams
        if named is not None:
            yield from too_few(len(named), settings)
        slugs = [] if facts is None else facts.known(rule.matchers[0].slugs)
        if facts is None or not slugs:
            return
        nearest_s = min(facts.apart_s[slug] for slug in slugs)
        if settings.within / NS_PER_SECOND > nearest_s:
            text = (
                f"sounds {nearest_s:g} s apart are two events of a microphone, and would be one "
                "sound here"
            )
            yield (cls.key, "within"), "W217", text

    @property
    def merged(self) -> MergedSound | None:
        """The sound that fired last."""
        if not self.alerted:
            return None
        best = max(self.alerted, key=lambda event: event.rank)
        streams = _streams(self.alerted)
        heard = {"heard_by": len(streams), "heard_on": ", ".join(streams)}
        return MergedSound(best.id, streams, self.facts | heard)

    def on_facts(self, event_id: str, facts: Facts) -> None:
        """Keep what templates may show of an event until its sound is decided."""
        is_new = event_id not in self.open
        # of an event that outlasts the memory of its sound nothing more is of use
        if is_new or any(event.id == event_id for event in self.undecided):
            self.pending_facts[event_id] = facts

    def on_begin(self, event: MatchedEvent, now: int) -> bool:
        """Let the event join the sound that it belongs to; one that is decided may fire now."""
        if any(occurrence.holds(event.id) for occurrence in self.decided):
            return False
        self.open[event.id] = event.onset_ns
        heard = SoundEvent(event.onset_ns, event.id, event.stream)
        for occurrence in reversed(self.decided):
            if occurrence.takes(event, self._within_ns):
                insort(occurrence.events, self._scored(heard), key=lambda event: event.order)
                return self._settle(occurrence, now)
        if heard not in self.undecided:
            insort(self.undecided, heard, key=lambda event: event.order)
        due = self._due()
        is_late = due is not None and now >= due
        return (is_late or len(self.undecided) > MAX_UNDECIDED) and self._decide(now)

    def on_timer(self, now: int) -> bool:
        """Decide the sound that is due, and forget those that are long over."""
        while self.decided and now >= self._forgotten_at(self.decided[0]):
            del self.decided[0]
        if self.hold_until is not None and now >= self.hold_until:
            self.hold_until = None
        due = self._due()
        return due is not None and now >= due and self._decide(now)

    def holds(self, now: int) -> bool:
        """Hold while an event of a sound that was heard by enough is open, and for a moment."""
        is_new = self.hold_until is not None and now < self.hold_until
        return is_new or any(event.id in self.open for event in self.alerted)

    def deadline(self, now: int) -> int | None:
        """Return when the next sound is decided, or the oldest is forgotten."""
        times = [self._due(), self.hold_until, *map(self._forgotten_at, self.decided[:1])]
        return min((time for time in times if time is not None), default=None)

    def prune(self, now: int) -> None:
        """Forget what led to an alert that is over, unless events may still come to it."""
        if not self.undecided and not self.decided and not self.open:
            self.clear()

    def _due(self) -> int | None:
        return self.undecided[0].onset_ns + self._wait_ns if self.undecided else None

    def _forgotten_at(self, occurrence: Occurrence) -> int:
        return occurrence.events[0].onset_ns + self._wait_ns + REMEMBER_NS

    def _scored(self, heard: SoundEvent) -> SoundEvent:
        facts = self.pending_facts.get(heard.id, {})
        verified, peak = facts.get("verifier_score"), facts.get("peak")
        return heard._replace(verified=verified or 0.0, peak=peak or 0.0)

    def _decide(self, now: int) -> bool:
        """Decide the oldest sound; return whether it fires."""
        first = occurrences(self.undecided, self._within_ns)[0]
        del self.undecided[: len(first)]
        occurrence = Occurrence([self._scored(event) for event in first])
        insort(self.decided, occurrence, key=lambda occurrence: occurrence.events[0].order)
        fires = self._settle(occurrence, now)
        del self.decided[:-MAX_DECIDED]
        return fires

    def _settle(self, occurrence: Occurrence, now: int) -> bool:
        """Take note of who heard a sound by now; return whether it fires."""
        heard = occurrence.events
        fires = not occurrence.is_spent and len(_streams(heard)) >= self._heard_by
        occurrence.is_spent = occurrence.is_spent or fires
        known = {event.id for event in self.alerted}
        is_continued = (
            self.holds(now) if fires else not known.isdisjoint(event.id for event in heard)
        )
        if occurrence.is_spent and (fires or is_continued):
            before = self.alerted if is_continued else []
            new = [event for event in heard if event not in before]
            self.alerted = sorted([*before, *new][:MAX_CAUSES], key=lambda event: event.order)
            self.cause_ids = [event.id for event in self.alerted]
            self.started_ns = self.alerted[0].onset_ns
            best = max(self.alerted, key=lambda event: event.rank)
            self.facts = self.pending_facts.get(best.id, self.facts)
        if fires:
            # most sounds are over by now: the alert is to be sent before its end; and up to here
            # no other sound is decided
            self.hold_until = now + self._within_ns
        for event in heard:
            self.pending_facts.pop(event.id, None)
        return fires


def too_few(n_streams: int, settings: SameSound) -> Iterator[Finding]:
    """Yield what is wrong with a group of so few streams."""
    if n_streams < settings.heard_by:
        text = f"{counted(n_streams, 'stream')} cannot hear a sound on {settings.heard_by}"
        yield (SameSoundTrigger.key, "heard_by"), "W210", text
    elif n_streams < 2:
        text = f"expected several streams to hear one sound, got {n_streams}"
        yield (SameSoundTrigger.key,), "W216", text


def _heard_events(rows: Sequence[Any]) -> list[SoundEvent]:
    return [SoundEvent(*row) for row in rows]


def _streams(heard: Sequence[SoundEvent]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(event.stream for event in heard))
