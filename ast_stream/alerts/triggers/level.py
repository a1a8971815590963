"""`level`: the level of a stream, or that it is missing, for a time, whatever the sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ast_stream.alerts.rules.fields import Duration, Names, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.triggers.base import Finding, Trigger, TriggerState
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
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


class LevelFields(RuleSection):
    """Keys of a rule."""

    level: Level | None = Field(
        default=None, description="fires on the level or the absence of a stream"
    )


@dataclass
class LevelState(TriggerState):
    """State of `level`.

    Attributes:
        since: since when the condition is true; None: it is not.
        sampled_ns: when the level was last reported.
        is_spent: this occasion has fired; the condition must be false before the next.
    """

    TIMES: ClassVar[tuple[str, ...]] = ("started_ns", "since", "sampled_ns")

    since: int | None = None
    sampled_ns: int | None = None
    is_spent: bool = False

    @property
    def began_ns(self) -> int | None:
        """When the condition became true."""
        return self.since


class LevelFor(Trigger):
    """Fires when a stream's health reports a level, or none arrives, for a time."""

    key = "level"
    match_place = "level"
    takes_events = False
    reads_health = True

    def __init__(self, rule: Rule, timing: DetectionTiming) -> None:
        super().__init__(rule, timing)
        level = rule.settings.level
        assert level is not None
        self._needed_ns = level.for_
        self._is_missing = level.missing is True
        self._louder_than = level.louder_than_dbfs
        quieter_than = level.quieter_than_dbfs
        self._quieter_than = SILENCE_DBFS if quieter_than is None else quieter_than

    @classmethod
    def is_given(cls, settings: RuleSettings) -> bool:
        """Return whether a rule has this kind of trigger."""
        return settings.level is not None

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return the streams as a match of any class."""
        if settings.level is None:
            return []
        return [(("level",), EventMatch(stream=settings.level.stream))]

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield grouping by what levels do not have."""
        if {"class", "label"} & set(rule.group_by):
            yield ("group_by",), "W210", "'level' has no class to group by"

    def new_state(self) -> LevelState:
        """Return the state of a group that is new."""
        return LevelState()

    def on_health(self, state: LevelState, health: Health, now: int) -> bool:
        """Process a health message; return whether the rule fires."""
        is_stale = now >= (state.sampled_ns or now) + LEVEL_STALE_NS
        if is_stale and not self._is_missing:  # the level meanwhile is not known
            state.since, state.is_spent = None, False
        state.sampled_ns = now
        if self._is_missing and health.detail == SOURCE_ENDED:
            state.since, state.is_spent = None, False  # nothing more is expected of it
        elif self._is_missing:
            is_true = health.state == "missing"
            state.since = state.since if is_true and state.since is not None else now
            state.is_spent = state.is_spent and is_true
        elif self._is_met(health):
            state.since = now if state.since is None else state.since
        else:
            state.since, state.is_spent = None, False
        return self.on_timer(state, now)

    def start(self, state: LevelState, now: int) -> None:
        """Expect health from now on."""
        if self._is_missing and state.since is None:
            state.since = now

    def on_downtime(self, state: LevelState, away_ns: int) -> None:
        """Do not count a time in which this process was not running."""
        if self._is_missing and state.since is not None and not state.is_spent:
            state.since += away_ns

    def on_timer(self, state: LevelState, now: int) -> bool:
        """Fire once it has lasted for long enough; a level that is not reported is unknown."""
        if not self._is_missing and now >= (state.sampled_ns or now) + LEVEL_STALE_NS:
            state.since, state.is_spent = None, False
        due = None if state.since is None else state.since + self._needed_ns
        fires = due is not None and now >= due and not state.is_spent
        state.is_spent = state.is_spent or fires
        return fires

    def holds(self, state: LevelState, now: int) -> bool:
        """Hold while it lasts."""
        return state.since is not None and now >= state.since + self._needed_ns

    def is_pending(self, state: LevelState, now: int) -> bool:
        """Return whether the level is wrong, but not for long enough.

        A missing stream is not pending: streams are expected at any time.
        """
        return not self._is_missing and state.since is not None and not state.is_spent

    def deadline(self, state: LevelState, now: int) -> int | None:
        """Return when it will have lasted for long enough, or is no longer known."""
        if state.since is None:
            return None
        due = None if state.is_spent else state.since + self._needed_ns
        if self._is_missing or state.sampled_ns is None:
            return due
        stale = state.sampled_ns + LEVEL_STALE_NS
        return stale if due is None else min(due, stale)

    def prune(self, state: LevelState, now: int) -> None:
        """Keep on watching."""

    def _is_met(self, health: Health) -> bool:
        level = health.level_dbfs
        if level is None or health.state == "missing":
            return False
        if self._louder_than is not None:
            return level > self._louder_than
        return level < self._quieter_than or level <= SILENCE_DBFS
