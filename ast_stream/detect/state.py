"""The state of a stream that survives a kill: typed records, validated when they are read."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NEVER = -1  # instead of a sample index: it has not happened
MAX_UNCERTAINTY_S = 86_400.0
MAX_SAMPLE = 2**53  # JSON numbers are exact up to here


@dataclass(frozen=True)
class Column:
    """How the decision stage keeps a field of `ClassState` for all slots and classes.

    Attributes:
        dtype: of the array.
        lasts: until the end of the event, the next gap, or the end of the stream.
    """

    dtype: type[np.generic]
    lasts: Literal["event", "gap", "stream"] = "event"


_Flag = Annotated[bool, Column(np.bool_)]
_Sample = Annotated[int, Field(ge=0, le=MAX_SAMPLE), Column(np.int64)]
_SampleOrNever = Annotated[int, Field(ge=NEVER, le=MAX_SAMPLE), Column(np.int64)]
# a later event must neither begin before the end of this one nor have its id
_LastSample = Annotated[int, Field(ge=NEVER, le=MAX_SAMPLE), Column(np.int64, lasts="stream")]
_SampleOfRun = Annotated[int, Field(ge=NEVER, le=MAX_SAMPLE), Column(np.int64, lasts="gap")]
_Score = Annotated[float, Field(ge=0, le=1.001), Column(np.float32)]  # averages are rounded
_WindowScore = Annotated[float, Field(ge=0, le=1.001), Column(np.float32, lasts="gap")]
_Opinion = Annotated[float, Field(ge=NEVER, le=1), Column(np.float32)]
_Sum = Annotated[float, Field(ge=0, le=MAX_SAMPLE), Column(np.float64)]

# bounded, so that no state can contain an absurd value
_Uncertainty = Annotated[float, Field(ge=0, le=MAX_UNCERTAINTY_S), Column(np.float64)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ClassState(_Record):
    """What the decision stage keeps of one class; the defaults are its initial state.

    Each field is declared only here, with its valid range and its `Column`.

    Attributes:
        average: of the scores of the windows so far.
        hits: last windows above the onset threshold, newest in bit 0.
        is_active: confirmed.
        is_published: confirmed and long enough; its begin was published.
        is_withheld: rejected by a second opinion; it is never published.
        opinion: the score of the second opinion, or NEVER.
        score_before: of the previous window, if the class has an onset fit.
        crossed_at: end of the first window of a run of hits; `crossing_rise` and `crossing_within`
            are estimated from its scores.
        rising_since: end of the first frame of the present run in which a sound may have begun;
            NEVER if windows decide.
        t_up: end of the first window that saw the sound.
        first_seen: the same, but not beyond the audio; part of the event's id.
        low_since: end of the first window below the offset threshold.
        refractory_until: hits before this are ignored.
    """

    average: _WindowScore = 0.0
    hits: Annotated[int, Field(ge=0, lt=2**64), Column(np.uint64)] = 0
    is_active: _Flag = False
    is_published: _Flag = False
    is_withheld: _Flag = False
    opinion: _Opinion = float(NEVER)
    score_before: _WindowScore = 0.0
    crossed_at: _SampleOrNever = NEVER
    crossing_rise: Annotated[int, Field(ge=-MAX_SAMPLE, le=MAX_SAMPLE), Column(np.int64)] = 0
    crossing_within: _Sample = 0
    rising_since: _SampleOfRun = NEVER
    t_up: _SampleOrNever = NEVER
    first_seen: _SampleOrNever = NEVER
    low_since: _SampleOrNever = NEVER
    onset: _SampleOrNever = NEVER
    uncertainty_s: _Uncertainty = 0.0
    peak: _Score = 0.0
    score_sum: _Sum = 0.0
    score_count: _Sample = 0
    last_update: _SampleOrNever = NEVER
    refractory_until: _SampleOrNever = NEVER
    last_offset: _LastSample = NEVER
    last_first_seen: _LastSample = NEVER

    @classmethod
    def columns(cls) -> dict[str, Column]:
        """Return the column of each field."""
        return {
            name: next(item for item in field.metadata if isinstance(item, Column))
            for name, field in cls.model_fields.items()
        }

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.is_published and not self.is_active:
            raise ValueError("expected an event that was published to be active")
        if self.is_withheld and (self.is_published or not self.is_active):
            raise ValueError("expected an event that was withheld to be active and not published")
        if self.is_active and NEVER in (self.t_up, self.first_seen, self.onset):
            raise ValueError("expected an active event to have begun")
        if self.is_published and self.last_update == NEVER:
            raise ValueError("expected the time of the last message of a published event")
        return self


def _check_floats(text: str) -> str:
    """Return base64 of finite float32 numbers unchanged."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError as error:
        raise ValueError("expected base64 of float32 numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError("expected finite numbers")
    return text


_Floats = Annotated[str, Field(max_length=64 * 1024 * 1024), AfterValidator(_check_floats)]


class FrameState(_Record):
    """The frames of one stream that have been scored but not decided.

    Attributes:
        first_end: end of the first frame since start or gap.
        decided_to: frames before this sample are decided.
        last: logits of the last of them, (n_classes,), float32 in base64.
        weights: sum of the windows' weights for each undecided frame.
        sums: of logits times weights, (n_frames, n_classes), float32 in base64.
    """

    first_end: _Sample
    decided_to: _Sample
    last: _Floats
    weights: list[Annotated[float, Field(ge=0, le=MAX_SAMPLE)]] = Field(max_length=100_000)
    sums: _Floats

    @classmethod
    def of(
        cls,
        *,
        first_end: int,
        decided_to: int,
        last: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32],
        sums: npt.NDArray[np.float32],
    ) -> FrameState:
        """Return the state with its arrays as text."""
        # validated when it is read: nothing here may stop a running worker
        return cls.model_construct(
            first_end=first_end,
            decided_to=decided_to,
            last=_base64(last),
            weights=weights.tolist(),
            sums=_base64(sums),
        )

    @staticmethod
    def array(text: str) -> npt.NDArray[np.float32]:
        """Return the numbers of a text."""
        return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)

    def is_of(self, n_classes: int) -> bool:
        """Return whether a model with `n_classes` classes can have written this."""
        n_sums = len(self.weights) * n_classes
        return len(self.array(self.last)) == n_classes and len(self.array(self.sums)) == n_sums


def _base64(numbers: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


class DetectorState(_Record):
    """The detector's state of one stream.

    Attributes:
        position: windows that end up to this sample are scored and decided.
        context_start: first real sample since start or gap.
        first_scored: end of the first window scored since then, or NEVER.
        classes: by index, those that are not in their initial state.
        frames: scored but undecided frames; None without any, or if windows decide.
        asked_until: up to where a cascade selects windows for past reasons, or NEVER.
    """

    position: _Sample
    context_start: _Sample
    first_scored: _SampleOrNever
    classes: dict[int, ClassState] = Field(max_length=100_000)
    frames: FrameState | None = None
    asked_until: _SampleOrNever = NEVER

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.position < self.context_start:
            raise ValueError("expected a position after the start of the context")
        return self

    def is_of(self, n_classes: int) -> bool:
        """Return whether a model with `n_classes` classes can have written this."""
        has_its_classes = all(0 <= index < n_classes for index in self.classes)
        return has_its_classes and (self.frames is None or self.frames.is_of(n_classes))
