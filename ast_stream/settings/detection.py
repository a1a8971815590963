"""The section `detection`: how scores become events."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ast_stream.settings.section import PositiveSeconds, Seconds, Section
from ast_stream.units import SILENCE_DBFS

DEFAULT_CONFIRM_S = 0.75  # of classes for which no checkpoint says more
DEFAULT_FRAME_CONFIRM_S = 0.3  # the same, where frames decide and not windows
DEFAULT_HOLD_S = 0.75
MAX_CONFIRM_HOPS = 64  # `confirm_s` is counted in windows or frames, as bits of one word

Threshold = Annotated[float, Field(gt=0, le=1)]  # at 0 every window would be an event
SmoothingSeconds = Annotated[float, Field(ge=0, le=60)]


class ClassSettings(Section):
    """Detection settings of one class; null: as in `detection.defaults`."""

    enabled: bool | None = Field(
        default=None,
        description="whether the class is reported; null: unless the checkpoint has it off",
    )
    onset_threshold: Threshold | None = Field(
        default=None, description="score at which an event may begin"
    )
    confirm_s: Seconds | None = Field(
        default=None, description="time span in which 60 % of the windows must agree"
    )
    smoothing_s: SmoothingSeconds | None = Field(
        default=None, description="time constant of the moving average of scores"
    )
    hold_s: Seconds | None = Field(
        default=None, description="quiet time after which an event has ended"
    )
    min_duration_s: Seconds | None = Field(
        default=None, description="shorter sounds are not reported"
    )
    refractory_s: Seconds | None = Field(default=None, description="pause after an event")
    max_duration_s: PositiveSeconds | None = Field(
        default=None, description="longer events are ended"
    )


class DetectionDefaults(Section):
    """How scores become events, for classes without settings of their own."""

    onset_threshold: Threshold | None = Field(
        default=None, description="score at which an event may begin; null: from the checkpoint"
    )
    confirm_s: Seconds | None = Field(
        default=None,
        description="time span in which 60 % of the windows (or frames, if these decide) must "
        "agree; null: from the checkpoint, else 0.75, or 0.3 for frames",
    )
    smoothing_s: SmoothingSeconds | None = Field(
        default=None,
        description="time constant of the moving average of scores, 0 for none; null: from the "
        "checkpoint",
    )
    hold_s: Seconds | None = Field(
        default=None,
        description="quiet time after which an event has ended; null: from the checkpoint, else "
        "0.75",
    )
    min_duration_s: Seconds = Field(default=0.0, description="shorter sounds are not reported")
    refractory_s: Seconds = Field(default=0.0, description="pause after an event of the same class")
    max_duration_s: PositiveSeconds = Field(default=600.0, description="longer events are ended")


class DetectionSettings(Section):
    """From scores to events."""

    defaults: DetectionDefaults = DetectionDefaults()
    classes: dict[str, ClassSettings] = Field(
        default_factory=dict, description="by AudioSet display name or its slug"
    )
    gate_dbfs: float | None = Field(
        default=None, ge=SILENCE_DBFS, le=0, description="windows quieter than this are not scored"
    )
