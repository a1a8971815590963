"""`level`: the level of a stream, or that it is missing, for a time, whatever the sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ast_stream.alerts.rules.field_types import Duration, Names, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.triggers.base import WaitingTrigger
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.settings.explain import Path as KeyPath

MIN_MISSING_NS = 3 * NS_PER_SECOND
LEVEL_STALE_NS = 10 * NS_PER_SECOND  # health arrives each second; without it nothing is known


class Level(RuleSection):
    """The level or the absence of a stream, whatever the sound; exactly one condition."""

    stream: dict[str, Names] = Field(
        default_factory=dict,
        description="by `id` (the stream's name) and by labels; all streams if left out",
    )
    louder_than_dbfs: float | None = Field(
        default=None, ge=-120, le=0, description="the level is above this"
    )
    quieter_than_dbfs: float | None = Field(
        default=None, ge=-120, le=0, description="the level is below this"
    )
    digital_silence: Literal[True] | None = Field(
        default=None, description="the source delivers only zeros"
    )
    missing: Literal[True] | None = Field(default=None, description="no audio comes")
    for_: Duration = Field(default=0, alias="for", description="how long the condition must hold")

    @model_validator(mode="after")
    def _one_condition(self) -> Level:
        names = ("louder_than_dbfs", "quieter_than_dbfs", "digital_silence", "missing")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(names)}, got {got}")
        if self.missing and self.for_ < MIN_MISSING_NS:
            raise ValueError(
                "with 'missing' expected 'for' of at least 3s, as health comes each 1s"
            )
        return self


@dataclass(eq=False)
class LevelFor(WaitingTrigger):
    """Fires when a stream's health reports a level, or none arrives, for a time.

    Attributes:
        sampled_ns: when the level was last reported.
    """

    key = "level"
    match_place = "level"
    takes_events = False
    reads_health = True

    sampled_ns: int | None = None

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        level: Level = self.given(rule.settings)
        self._needed_ns = level.for_
        self._is_missing = level.missing is True
        self._louder_than = level.louder_than_dbfs
        quieter_than = level.quieter_than_dbfs
        self._quieter_than = SILENCE_DBFS if quieter_than is None else quieter_than

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return the streams as a match of any class."""
        return [(("level",), EventMatch(stream=cls.given(settings).stream))]

    def on_health(self, health: Health, now: int) -> bool:
        """Process a health message; return whether the rule fires."""
        self._check_stale(now)
        self.sampled_ns = now
        if self._is_missing and health.detail == SOURCE_ENDED:
            self._end()  # nothing more is expected of it
        elif self._is_missing:
            is_true = health.state == "missing"
            self.since = self.since if is_true and self.since is not None else now
            self.is_spent = self.is_spent and is_true
        elif not self._is_met(health):
            self._end()
        elif self.since is None:
            self.since = now
        return self.on_timer(now)

    def start(self, now: int) -> None:
        """Expect health from now on."""
        if self._is_missing and self.since is None:
            self.since = now

    def on_downtime(self, away_ns: int) -> None:
        """Do not count a time in which this process was not running."""
        if self._is_missing and self.since is not None and not self.is_spent:
            self.since += away_ns

    def on_timer(self, now: int) -> bool:
        """Fire once it has lasted for long enough; a level that is not reported is unknown."""
        self._check_stale(now)
        return super().on_timer(now)

    def holds(self, now: int) -> bool:
        """Hold while it lasts."""
        due = self._due()
        return due is not None and now >= due

    def is_pending(self, now: int) -> bool:
        """Return whether the level is wrong, but not for long enough.

        A missing stream is not pending: streams are expected at any time.
        """
        return not self._is_missing and super().is_pending(now)

    def deadline(self, now: int) -> int | None:
        """Return when it will have lasted for long enough, or is no longer known."""
        due = super().deadline(now)
        if self._is_missing or self.since is None or self.sampled_ns is None:
            return due
        stale = self.sampled_ns + LEVEL_STALE_NS
        return stale if due is None else min(due, stale)

    def _end(self) -> None:
        """Note that the condition is not true, or not known."""
        self.since, self.is_spent = None, False

    def _check_stale(self, now: int) -> None:
        if not self._is_missing and now >= (self.sampled_ns or now) + LEVEL_STALE_NS:
            self._end()

    def _is_met(self, health: Health) -> bool:
        level = health.level_dbfs
        if level is None or health.state == "missing":
            return False
        if self._louder_than is not None:
            return level > self._louder_than
        return level < self._quieter_than or level <= SILENCE_DBFS
