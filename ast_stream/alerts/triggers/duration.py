"""`for`: sound that lasts for a time, counted without its pauses."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ast_stream.alerts.triggers.base import MAX_CAUSES, EventListTrigger, Finding, MatchedEvent
from ast_stream.labels import slug
from ast_stream.units import NS_PER_SECOND, seconds_to_ns

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule

MAX_SPANS = 256  # of sound that is over, kept apart
_IMPULSIVE = (
    "Bang", "Breaking", "Burst, pop", "Cap gun", "Chop", "Clang", "Clapping", "Coin (dropping)",
    "Cough", "Crack", "Door", "Ding", "Ding-dong", "Explosion", "Finger snapping", "Firecracker",
    "Glass", "Gunshot, gunfire", "Hiccup", "Knock", "Mouse", "Shatter", "Slam", "Slap, smack",
    "Smash, crash", "Sneeze", "Tap", "Thump, thud", "Whack, thwack",
)  # fmt: skip
IMPULSIVE = frozenset(slug(label) for label in _IMPULSIVE)
SHORT_FOR_NS = NS_PER_SECOND // 2  # an impulsive sound may last this long


class _UnbrokenSound(NamedTuple):
    """Sounds with no pause longer than tolerated.

    Attributes:
        active_ns: for how long there certainly was sound.
        start: its first onset; None: there is none.
        reach: until when there may have been sound; with open events that is now.
    """

    active_ns: int
    start: int | None
    reach: int | None


@dataclass(eq=False)
class ForDuration(EventListTrigger):
    """Fires when sound has lasted for a time; pauses up to `tolerate` do not end the run.

    What counts is the sound itself: the union of the matched events from onset to offset, without
    the pauses, and for open events without the window's smear. That two events were apart may
    become known late, when the first one has ended: the run then begins with the second.

    Attributes:
        spans: sound that is over but may overlap with open events: (onset, offset).
        active_ns, run_start, last_off: sound of the present run before `spans`.
        is_spent: this run has fired; the next one must begin before the rule fires again.
    """

    key = "for"
    more_keys = ("tolerate",)
    is_about_pauses = True
    counts_open_time = True

    spans: list[tuple[int, int]] = field(default_factory=list)
    active_ns: int = 0
    run_start: int | None = None
    last_off: int | None = None
    is_spent: bool = False

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        super().restore(data)
        self.spans = [(onset, offset) for onset, offset in self.spans]

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        self._needed_ns: int = self.given(rule.settings)
        self._tolerate_ns = rule.settings.tolerate

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield durations that the sounds or the detector's events never have."""
        needed: int = cls.given(rule.settings)
        brief = sorted((rule.matchers[0].slugs or frozenset()) & IMPULSIVE)
        if needed > SHORT_FOR_NS and brief:
            text = f"{', '.join(brief)}: such sounds do not last; 'count' is for repeats"
            yield ("for",), "W202", text
        slugs = [] if facts is None else facts.known(rule.matchers[0].slugs)
        if facts is None or not slugs:
            return
        shortest_s = min(facts.shortest_s[class_slug] for class_slug in slugs)
        if needed <= seconds_to_ns(shortest_s):
            text = f"keeps nothing out: no event of these classes is shorter than {shortest_s:g} s"
            yield ("for",), "W211", text
        longest_s = min(facts.longest_s[class_slug] for class_slug in slugs)
        resumed_s = 1.5 * facts.hop_s  # the next event's onset may be estimated this much late
        if needed > seconds_to_ns(longest_s) and rule.settings.tolerate < seconds_to_ns(resumed_s):
            text = (
                f"events are cut after {longest_s:g} s (max_duration_s), and the next may begin "
                f"{resumed_s:g} s later: needs 'tolerate: {math.ceil(resumed_s)}s' or more"
            )
            yield ("for",), "W212", text

    def on_begin(self, event: MatchedEvent, now: int) -> bool:
        """Continue the run, or start another."""
        self.open[event.id] = event.onset_ns
        if event.id not in self.cause_ids and len(self.cause_ids) < MAX_CAUSES:
            self.cause_ids.append(event.id)
            insort(self.events, event)
        return self._crosses(now)

    def on_end(self, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Count what is now known to have sounded."""
        self.open.pop(event_id, None)
        self.spans = _joined(self.spans, onset, max(onset, offset))
        fires = self._crosses(now)
        self._drop_spans(now)
        return fires

    def on_timer(self, now: int) -> bool:
        """Fire once it has lasted long enough; end a run that is over."""
        if not self._has_run:
            return False
        if not self._is_over(now):
            return self._crosses(now)
        active_ns = self._run(now).active_ns
        self.clear()
        self.active_ns = active_ns  # for the text of the resolution
        return False

    def holds(self, now: int) -> bool:
        """Hold while the run that fired continues."""
        return self.is_spent and self._has_run and not self._is_over(now)

    def is_pending(self, now: int) -> bool:
        """Return whether there is a run that is too short as yet."""
        return not self.is_spent and self._has_run and not self._is_over(now)

    def deadline(self, now: int) -> int | None:
        """Return when the run may be long enough, or is over."""
        if not self.open:
            return self._over_at(now)
        if self.is_spent:
            return None
        # a bound: the run grows no faster than time; it is asked again at the bound
        return now + max(0, self._needed_ns - self._run(now).active_ns)

    def prune(self, now: int) -> None:
        """Forget a run that is over."""
        if not self._has_run:
            self.clear()

    def sounded_ns(self, now: int) -> int | None:
        """Return the sound in the run."""
        return self._run(now).active_ns

    @property
    def _has_run(self) -> bool:
        """Whether there was sound that a run consists of."""
        return bool(self.open or self.spans) or self.last_off is not None

    def _over_at(self, now: int) -> int | None:
        reach = None if self.open else self._run(now).reach
        if reach is None:
            return None
        # the next onset may lie within the pause although its begin has not arrived yet
        return reach + self._tolerate_ns + self._timing.latency_ns

    def _is_over(self, now: int) -> bool:
        over_at = self._over_at(now)
        return over_at is not None and now >= over_at

    def _crosses(self, now: int) -> bool:
        run = self._run(now)
        if run.start is not None and run.start != self.started_ns:
            if self.started_ns is not None and run.start > self.started_ns:
                self.is_spent = False
                self.events = [event for event in self.events if event.onset_ns >= run.start]
                self.cause_ids = [event.id for event in self.events]
            self.started_ns = run.start
        fires = not self.is_spent and run.active_ns >= self._needed_ns
        self.is_spent = self.is_spent or fires
        return fires

    def _run(self, now: int) -> _UnbrokenSound:
        """Return the latest run; folded sound comes first in it."""
        spans = [(onset, offset, offset) for onset, offset in self.spans]
        if self.open:  # all of them may reach until now, so the first stands for all
            onset = min(self.open.values())
            insort(spans, (onset, max(onset, now - self._timing.smear_ns), max(onset, now)))
        active, start, counted = self.active_ns, self.run_start, self.last_off
        reach = counted
        for onset, certain, possible in spans:
            if counted is None or reach is None or onset - reach > self._tolerate_ns:
                active, start, counted, reach = 0, onset, onset, onset
            active += max(0, certain - max(onset, counted))
            counted, reach = max(counted, certain), max(reach, possible)
        return _UnbrokenSound(active, start, reach)

    def _drop_spans(self, now: int) -> None:
        """Forget spans that no longer matter, and fold those that can no longer change."""
        start = self._run(now).start
        assert start is not None  # there is at least the span that has just been added
        known_ns = now - self._timing.latency_ns  # every sound that began before has arrived
        certain_ns = now - self._timing.smear_ns
        since = min(self.open.values(), default=now)
        self.spans = [
            (onset, offset)
            for onset, offset in self.spans
            if offset >= min(start, known_ns - self._tolerate_ns)
            and not since <= onset <= offset <= certain_ns  # an open event covers it
        ]
        while self.spans and (
            self.spans[0][1] <= min(known_ns, since) or len(self.spans) > MAX_SPANS
        ):
            onset, offset = self.spans.pop(0)
            if onset >= start:
                self._fold(start, onset, offset)

    def _fold(self, start: int, onset: int, offset: int) -> None:
        """Add a span to the folded sound of the run that began at `start`."""
        counted = self.last_off
        if counted is None or counted < start:  # what was folded belongs to an earlier run
            self.active_ns, counted = 0, onset
        self.active_ns += max(0, offset - max(onset, counted))
        self.run_start, self.last_off = start, max(counted, offset)


def _joined(spans: list[tuple[int, int]], onset: int, offset: int) -> list[tuple[int, int]]:
    """Return spans, which lie apart and in order, and one more."""
    before = [span for span in spans if span[1] < onset]
    after = [span for span in spans if span[0] > offset]
    among = spans[len(before) : len(spans) - len(after)]
    first = min([onset, *(span[0] for span in among)])
    last = max([offset, *(span[1] for span in among)])
    return [*before, (first, last), *after]
