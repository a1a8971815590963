"""What is kept of one stream to go on after a kill: a typed record, checked when it is read."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ast_stream.detect.positions import NEVER

MAX_SAMPLE = 2**53  # JSON numbers are exact up to here

_Sample = Annotated[int, Field(ge=0, le=MAX_SAMPLE)]
_SampleOrNever = Annotated[int, Field(ge=NEVER, le=MAX_SAMPLE)]
_Score = Annotated[float, Field(ge=0, le=1.001)]  # averages are rounded


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ClassState(_Record):
    """What the decision stage keeps of one class; the defaults are those of a class not heard.

    Attributes:
        average: of the scores of the windows so far.
        hits: last windows above the onset threshold, newest in bit 0.
        is_active: confirmed.
        is_published: confirmed and long enough: its begin is out.
        score_before: of the window before, where a class has an onset fit.
        crossed_at: end of the first hit after none, and what its scores say: `crossing_rise`,
            `crossing_within`.
        t_up: end of the first window that saw the sound.
        first_seen: the same, but not beyond the audio: names the event.
        low_since: end of the first window below the offset threshold.
        deaf_until: refractory: hits before this are ignored.
    """

    average: _Score = 0.0
    hits: int = Field(default=0, ge=0, lt=2**64)
    is_active: bool = False
    is_published: bool = False
    score_before: _Score = 0.0
    crossed_at: _SampleOrNever = NEVER
    crossing_rise: int = Field(default=0, ge=-MAX_SAMPLE, le=MAX_SAMPLE)
    crossing_within: _Sample = 0
    t_up: _SampleOrNever = NEVER
    first_seen: _SampleOrNever = NEVER
    low_since: _SampleOrNever = NEVER
    onset: _SampleOrNever = NEVER
    uncertainty_s: float = Field(default=0.0, ge=0, le=MAX_SAMPLE)
    peak: _Score = 0.0
    score_sum: float = Field(default=0.0, ge=0, le=MAX_SAMPLE)
    score_count: _Sample = 0
    last_update: _SampleOrNever = NEVER
    deaf_until: _SampleOrNever = NEVER
    last_offset: _SampleOrNever = NEVER
    last_first_seen: _SampleOrNever = NEVER

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.is_published and not self.is_active:
            raise ValueError("expected an event that was published to be active")
        if self.is_active and NEVER in (self.t_up, self.first_seen, self.onset):
            raise ValueError("expected an active event to have begun")
        if self.is_published and self.last_update == NEVER:
            raise ValueError("expected the time of the last message of a published event")
        return self


class DetectorState(_Record):
    """Where the detector stands in one stream.

    Attributes:
        position: samples before this index are decided.
        context_start: first real sample since start or gap.
        first_scored: end of the first window scored since then, or NEVER.
        classes: by index, those of which anything is known.
    """

    position: _Sample
    context_start: _Sample
    first_scored: _SampleOrNever
    classes: dict[int, ClassState] = Field(max_length=100_000)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.position < self.context_start:
            raise ValueError("expected a position behind the start of the context")
        return self

    def is_of(self, n_classes: int) -> bool:
        """Tell whether a model of so many classes can have left this."""
        return all(0 <= index < n_classes for index in self.classes)
