"""The `retention:` section: how long, and up to how many bytes, each kind of file is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ast_stream.settings.section import Section

MIB = 1024 * 1024
MAX_DAYS = 3650.0
MAX_MIB = 1024 * 1024  # a terabyte

Days = Annotated[float, Field(ge=1, le=MAX_DAYS)]


class EventRetention(Section):
    """Events and gaps, as they were published."""

    max_mib: int = Field(default=64, ge=8, le=MAX_MIB, description="MiB on disk")
    max_days: Days | None = Field(default=None, description="days; null: no limit but `max_mib`")


class CoverageRetention(Section):
    """What was listened to and what was not."""

    max_mib: int = Field(default=64, ge=2, le=MAX_MIB, description="MiB on disk")
    max_days: Days | None = Field(default=None, description="days; null: no limit but `max_mib`")


class AuditRetention(Section):
    """Who asked for audio."""

    max_mib: int = Field(default=16, ge=4, le=MAX_MIB, description="MiB on disk, of each process")
    max_days: Days | None = Field(default=90.0, description="days; null: no limit but `max_mib`")


class AlertRetention(Section):
    """Ended alerts and deliveries."""

    max_mib: int = Field(default=256, ge=16, le=MAX_MIB, description="MiB of the database")
    max_days: Days = Field(default=30.0, description="days")


class ClipRetention(Section):
    """The sound of events."""

    max_mib: int = Field(default=2048, ge=1, le=MAX_MIB, description="MiB on disk")
    max_days: Days | None = Field(default=30.0, description="days; null: no limit but `max_mib`")
    keep_best: int = Field(
        default=20,
        ge=0,
        le=10_000,
        description="clips per class with the highest scores, which are deleted last",
    )
    min_free_mib: int = Field(
        default=512, ge=0, le=MAX_MIB, description="MiB that clips must leave free on their disk"
    )


class HistoryRetention(Section):
    """Events, gaps, alerts and verdicts in the history."""

    max_mib: int = Field(default=512, ge=64, le=MAX_MIB, description="MiB of the database")
    max_days: Days | None = Field(default=365.0, description="days; null: no limit but `max_mib`")


class ScoreRetention(Section):
    """The scores of all classes."""

    max_mib: int = Field(default=1024, ge=8, le=MAX_MIB, description="MiB on disk")
    max_days: Days | None = Field(default=30.0, description="days; null: no limit but `max_mib`")


class RetentionSettings(Section):
    """Data that is older or beyond the size limit is deleted, oldest first."""

    events: EventRetention = EventRetention()
    coverage: CoverageRetention = CoverageRetention()
    audit: AuditRetention = AuditRetention()
    alerts: AlertRetention = AlertRetention()
    clips: ClipRetention = ClipRetention()
    history: HistoryRetention = HistoryRetention()
    scores: ScoreRetention = ScoreRetention()
