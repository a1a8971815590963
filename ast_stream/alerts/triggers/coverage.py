"""`coverage`: too little of a stream was listened to in a sliding period."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ast_stream.alerts.rules.field_types import Names, PositiveDuration, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.triggers.base import Finding, Trigger
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.units import NS_PER_SECOND, samples_to_ns, seconds_to_ns

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.settings.explain import Path as KeyPath

MIN_BUDGET_NS = 10 * NS_PER_SECOND  # a busy worker may lag that far behind without losing any
N_PARTS = 100  # of the period: losses leave it in steps of a hundredth
_HEALTH_NS = (
    2 * NS_PER_SECOND
)  # health comes each second: a message without figures covers that much
ENOUGH = 0.9  # of the budget: the alert is over once no more than that is lost


class LowCoverage(RuleSection):
    """Too little of a stream was heard in the last period; gated windows count as heard."""

    stream: dict[str, Names] = Field(
        default_factory=dict,
        description="by `id` (the stream's name) and by labels; all streams if left out",
    )
    heard_below_percent: float = Field(gt=0, lt=100, description="of the period, e.g. 99")
    of_last: PositiveDuration = Field(description="the period, up to now, e.g. 1d")

    @property
    def budget_ns(self) -> int:
        """How much of the period may be lost."""
        return round(self.of_last * (1 - self.heard_below_percent / 100))

    @model_validator(mode="after")
    def _budget_is_measurable(self) -> LowCoverage:
        if self.budget_ns < MIN_BUDGET_NS:
            raise ValueError(
                f"expected at least {MIN_BUDGET_NS / NS_PER_SECOND:g} s that may be lost, "
                f"got {self.budget_ns / NS_PER_SECOND:g} s: look back further, or ask for less"
            )
        return self


@dataclass(eq=False)
class CoverageBelow(Trigger):
    """Fires when more of the period is lost than the budget, and holds until clearly less is.

    Each health message says how far its stream is decided, and how much of that is lost for good.
    Wall time by which that progress falls behind counts as lost until it is made up for: a worker
    that was away finds in the ring what it missed. Time before the stream was first seen does not
    count.

    Attributes:
        sampled_ns: when the stream was last reported; None: nothing is expected of it.
        epoch: run of its capture process then.
        decided_ns: how much of that was decided then; None: not known.
        lost_ns: how much was lost then, as the worker counts since its start.
        excused_ns: how long this process was not running since then.
        lost: beginning and length of the parts in which something was lost, oldest first.
        is_spent: this occasion has fired.
    """

    key = "coverage"
    match_place = "coverage"
    takes_events = False
    reads_health = True

    sampled_ns: int | None = None
    epoch: str | None = None
    decided_ns: int | None = None
    lost_ns: int = 0
    excused_ns: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    is_spent: bool = False

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        super().restore(data)
        self.lost = [(start, length) for start, length in self.lost]

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        coverage: LowCoverage = self.given(rule.settings)
        self._span_ns = coverage.of_last
        self._budget_ns = coverage.budget_ns
        self._part_ns = max(NS_PER_SECOND, coverage.of_last // N_PARTS)

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return the streams as a match of any class."""
        return [(("coverage",), EventMatch(stream=cls.given(settings).stream))]

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield groups that are no streams."""
        if "stream" not in rule.group_by:
            text = "'coverage' is of one stream: expected 'stream' here, or several are mixed"
            yield ("group_by",), "W210", text
        elif {"class", "label"} & set(rule.group_by):
            yield ("group_by",), "W210", "'coverage' has no class to group by"

    def start(self, now: int) -> None:
        """Expect the stream from now on."""
        if self.sampled_ns is None:
            self.sampled_ns = now

    def on_downtime(self, away_ns: int) -> None:
        """Excuse time in which this process did not run, unless health reports it as lost."""
        if self.sampled_ns is not None:
            self.excused_ns += away_ns

    def on_health(self, health: Health, now: int) -> bool:
        """Process a health message; return whether the rule fires."""
        if health.detail == SOURCE_ENDED:
            self.sampled_ns = self.epoch = self.decided_ns = None  # nothing more is expected
            return self._fires(now)
        decided_ns = None
        if health.audio_s is not None:
            decided_ns = seconds_to_ns(health.audio_s - (health.lag_s or 0.0))
        lost_ns = samples_to_ns(health.lost_samples)
        if self.sampled_ns is not None:
            heard_ns = self._heard(health, decided_ns, lost_ns, now - self.sampled_ns)
            self._add_loss(now, now - self.sampled_ns - heard_ns)
        self.sampled_ns, self.excused_ns, self.lost_ns = now, 0, lost_ns
        if decided_ns is not None:
            self.epoch, self.decided_ns = health.epoch, decided_ns
        return self._fires(now)

    def on_timer(self, now: int) -> bool:
        """Fire once nothing has been reported for too long."""
        return self._fires(now)

    def holds(self, now: int) -> bool:
        """Hold while clearly too much is lost."""
        return self._lost_until(now) > ENOUGH * self._budget_ns

    def deadline(self, now: int) -> int | None:
        """Return when too much will be lost if nothing more is reported."""
        if self.sampled_ns is None or self.is_spent:
            return None
        left_ns = self._budget_ns - sum(length for _, length in self.lost)
        return max(now + 1, self.sampled_ns + self.excused_ns + left_ns)

    def prune(self, now: int) -> None:
        """Keep on counting."""

    def sounded_ns(self, now: int) -> int | None:
        """Return how much was lost."""
        return self._lost_until(now)

    def _heard(self, health: Health, decided_ns: int | None, lost_ns: int, elapsed_ns: int) -> int:
        """Return how much was heard since the last report, audio from before it included."""
        if decided_ns is None:  # not open, or written by hand
            known_ns = min(elapsed_ns, _HEALTH_NS + self.excused_ns)
            return 0 if health.state == "missing" else known_ns
        if self.decided_ns is None or health.epoch != self.epoch:
            # what was before this capture process is lost, except for what nobody could report
            return min(elapsed_ns, decided_ns + self.excused_ns)
        if lost_ns >= self.lost_ns:  # else another worker counts
            lost_ns -= self.lost_ns
        return decided_ns - self.decided_ns - lost_ns

    def _add_loss(self, now: int, length_ns: int) -> None:
        """Add what was lost until now; a negative length makes up for the newest losses."""
        while length_ns < 0 and self.lost:
            start, last_ns = self.lost.pop()
            length_ns += last_ns
            if length_ns > 0:
                self.lost.append((start, length_ns))
                return
        if length_ns <= 0:
            return
        start = now - now % self._part_ns
        if self.lost and self.lost[-1][0] >= start:
            start, last_ns = self.lost.pop()
            length_ns += last_ns
        self.lost.append((start, length_ns))

    def _lost_until(self, now: int) -> int:
        """Return how much of the period is lost."""
        since = now - self._span_ns
        lost_ns = sum(length for start, length in self.lost if start + self._part_ns > since)
        if self.sampled_ns is not None:
            lost_ns += max(0, now - self.sampled_ns - self.excused_ns)
        return min(lost_ns, self._span_ns)

    def _fires(self, now: int) -> bool:
        """Forget losses from before the period, and return whether the rule fires."""
        since = now - self._span_ns
        self.lost = [part for part in self.lost if part[0] + self._part_ns > since]
        lost_ns = self._lost_until(now)
        self.is_spent = self.is_spent and lost_ns > ENOUGH * self._budget_ns
        if lost_ns < self._budget_ns or self.is_spent:
            return False
        self.is_spent = True
        self.started_ns = self.lost[0][0] if self.lost else self.sampled_ns
        return True
