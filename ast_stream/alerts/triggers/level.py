"""`level`: the level of a stream, or its absence, for a time, whatever the sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from ast_stream.alerts.rules.field_types import Duration, Names, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.triggers.base import WaitingTrigger
from ast_stream.labels import did_you_mean
from ast_stream.messages.levels import BAND_NAMES, LevelsMessage
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.settings.explain import Path as KeyPath

MIN_MISSING_NS = 3 * NS_PER_SECOND
LEVEL_STALE_NS = 10 * NS_PER_SECOND  # health arrives each second; without it nothing is known


WEIGHTED_MEASURES = ("laeq", "laf_max", "laf_min", "l10", "l50", "l90")
_HZ = " Hz"
MEASURES = (*WEIGHTED_MEASURES, *(f"{name}{_HZ}" for name in BAND_NAMES))


def level_of(levels: LevelsMessage, measure: str) -> float | None:
    """Return one of `MEASURES`; None: the message does not have it."""
    if measure in WEIGHTED_MEASURES:
        level: float = getattr(levels, measure)
        return level
    return levels.third_octaves.get(measure.removesuffix(_HZ))


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
    louder_than_db: float | None = Field(
        default=None, ge=-20, le=200, description="`measure` is above this, dB re 20 µPa"
    )
    quieter_than_db: float | None = Field(
        default=None, ge=-20, le=200, description="`measure` is below this, dB re 20 µPa"
    )
    measure: str = Field(
        default="laeq",
        description="what of the sound levels of each second: laeq, laf_max, laf_min, l10, l50, "
        "l90, or a third octave from `25 Hz` to `6300 Hz`; of streams with `calibration_db` alone",
    )
    digital_silence: Literal[True] | None = Field(
        default=None, description="the source delivers only zeros"
    )
    missing: Literal[True] | None = Field(default=None, description="no audio comes")
    for_: Duration = Field(default=0, alias="for", description="how long the condition must hold")

    @field_validator("measure")
    @classmethod
    def _measure_is_known(cls, measure: str) -> str:
        if measure not in MEASURES:
            near = did_you_mean(measure, MEASURES)
            raise ValueError(
                f"expected {', '.join(WEIGHTED_MEASURES)}, or a third octave such as '63 Hz', "
                f"got '{measure}'{near}"
            )
        return measure

    @property
    def goes_by_levels(self) -> bool:
        """Whether it is about sound levels, and not about health."""
        return self.louder_than_db is not None or self.quieter_than_db is not None

    @model_validator(mode="after")
    def _one_condition(self) -> Level:
        names = (
            "louder_than_dbfs", "quieter_than_dbfs", "louder_than_db", "quieter_than_db",
            "digital_silence", "missing",
        )  # fmt: skip
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(names)}, got {got}")
        if self.missing and self.for_ < MIN_MISSING_NS:
            raise ValueError(
                "with 'missing' expected 'for' of at least 3s, as health comes each 1s"
            )
        if "measure" in self.model_fields_set and not self.goes_by_levels:
            raise ValueError(
                "'measure' goes with louder_than_db or quieter_than_db; dbfs is the level of health"
            )
        return self


@dataclass(eq=False)
class LevelFor(WaitingTrigger):
    """Fires when health or sound levels report a level, or none arrives, for a time.

    Attributes:
        sampled_ns: when the level was last reported.
    """

    key = "level"
    match_place = "level"
    takes_events = False
    reads_health = True
    reads_levels = True

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
        self._goes_by_levels = level.goes_by_levels
        self._louder_than_db = level.louder_than_db
        self._quieter_than_db = level.quieter_than_db
        self._measure = level.measure

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return the streams as a match of any class."""
        return [(("level",), EventMatch(stream=cls.given(settings).stream))]

    @classmethod
    def wants_levels(cls, settings: RuleSettings) -> bool:
        """Return whether a rule uses sound levels."""
        level: Level = cls.given(settings)
        return level.goes_by_levels

    def on_levels(self, levels: LevelsMessage, now: int) -> bool:
        """Process the sound levels of a second; return whether the rule fires."""
        self._check_stale(now)
        if not levels.calibrated:  # as good as not reported
            self._end()
            return False
        self.sampled_ns = now
        level = level_of(levels, self._measure)
        if level is None or not self._is_met_by(level):
            self._end()
        elif self.since is None:
            self.since = now
        return self.on_timer(now)

    def on_health(self, health: Health, now: int) -> bool:
        """Process a health message; return whether the rule fires."""
        if self._goes_by_levels:
            return self.on_timer(now)
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

    def _is_met_by(self, level_db: float) -> bool:
        if self._louder_than_db is not None:
            return level_db > self._louder_than_db
        return self._quieter_than_db is not None and level_db < self._quieter_than_db

    def _is_met(self, health: Health) -> bool:
        level = health.level_dbfs
        if level is None or health.state == "missing":
            return False
        if self._louder_than is not None:
            return level > self._louder_than
        return level < self._quieter_than or level <= SILENCE_DBFS
