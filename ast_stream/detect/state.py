"""What the detector keeps of every stream: slot, position, samples not yet scored, class states.

`Positions` and `Staging` are arrays over slots, so that the Python work of a hop does not grow with
the number of streams. `DetectorState` is what is kept of one stream to go on after a kill: a typed
record, checked when it is read.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ast_stream.errors import UsageError
from ast_stream.messages.audio import Pcm16

NEVER = -1  # a sample index that has not come
MAX_SAMPLE = 2**53  # JSON numbers are exact up to here
_FIRST_CAPACITY = 4

Samples = npt.NDArray[np.int64]


class SlotNames:
    """Streams come and go; their slots are reused."""

    def __init__(self, max_streams: int) -> None:
        self.capacity = min(_FIRST_CAPACITY, max_streams)
        self._max_streams = max_streams
        self._names: dict[int, tuple[str, str]] = {}
        self._slots: dict[str, int] = {}

    def __contains__(self, stream: str) -> bool:
        return stream in self._slots

    @property
    def streams(self) -> list[str]:
        """The streams that have a slot."""
        return list(self._slots)

    def add(self, stream: str, epoch: str) -> int:
        """Give `stream` a free slot.

        Raises:
            UsageError: it has one already, or all slots are taken.
        """
        if stream in self._slots:
            raise UsageError(f"stream {stream}: already open")
        if len(self._slots) >= self._max_streams:
            raise UsageError(f"stream {stream}: all {self._max_streams} slots are taken")
        slot = next(i for i in range(self._max_streams) if i not in self._names)
        self._names[slot] = (stream, epoch)
        self._slots[stream] = slot
        while slot >= self.capacity:
            self.capacity = min(2 * self.capacity, self._max_streams)
        return slot

    def remove(self, stream: str) -> int:
        """Free the slot of `stream` and return it."""
        slot = self._slots.pop(stream)
        del self._names[slot]
        return slot

    def slot(self, stream: str) -> int:
        """Return the slot of `stream`."""
        return self._slots[stream]

    def of(self, slot: int) -> tuple[str, str]:
        """Return stream and epoch of `slot`."""
        return self._names[slot]


class Positions:
    """Arrays over slots, shape (n_slots,), int64.

    Attributes:
        context_start: first real sample since start or gap.
        received: end of the audio that came.
        scored_until: windows may end up to here: at `received`, beyond it while a stream ends.
        next_end: end of the next window.
        score_from: windows up to here only fill the context again after a restart.
        first_scored: end of the first window scored since start or gap, or NEVER.
        stride: every how many windows one is scored.
    """

    def __init__(self, hop: int) -> None:
        self.hop = hop
        empty = np.zeros(0, np.int64)
        self.context_start: Samples = empty
        self.received: Samples = empty
        self.scored_until: Samples = empty
        self.next_end: Samples = empty
        self.score_from: Samples = empty
        self.first_scored: Samples = empty
        self.stride: Samples = empty

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        for name in (
            "context_start",
            "received",
            "scored_until",
            "next_end",
            "score_from",
            "first_scored",
        ):
            setattr(self, name, _grown(getattr(self, name), n_slots, 0))
        self.stride = _grown(self.stride, n_slots, 1)

    def restart(self, slot: int, start_sample: int) -> None:
        """Begin a context whose first sample is `start_sample`."""
        self.context_start[slot] = start_sample
        self.received[slot] = self.scored_until[slot] = start_sample
        self.next_end[slot] = (start_sample // self.hop + 1) * self.hop
        self.score_from[slot] = NEVER
        self.first_scored[slot] = NEVER

    def decided(self, slot: int) -> int:
        """Return the sample up to which `slot` is decided."""
        last_end = self.next_end[slot] - self.hop
        return int(max(last_end, self.context_start[slot], self.score_from[slot]))

    def hops_waiting(self, slots: Samples) -> Samples:
        """Return how many windows of each slot could be scored; 0 or less for none."""
        waiting: Samples = (self.scored_until[slots] - self.next_end[slots]) // self.hop + 1
        return waiting

    def receive(self, slot: int, n_samples: int) -> None:
        """Note that audio came."""
        self.received[slot] += n_samples
        self.scored_until[slot] = self.received[slot]

    def mark_scored(self, slots: Samples, ends: Samples) -> Samples:
        """Note that windows were scored and return the first scored of each slot."""
        first = self.first_scored[slots]
        first = np.where(first == NEVER, ends, first)
        self.first_scored[slots] = first
        return first


def _grown(array: Samples, n_slots: int, empty: int) -> Samples:
    grown = np.full(n_slots, empty, np.int64)
    grown[: len(array)] = array
    return grown


class Staging:
    """Circular buffers over slots, addressed by absolute sample index.

    Samples from `first` of a slot on are needed by a window that is not scored yet; a write that
    would overwrite one of them is refused.

    Args:
        capacity: samples kept for each slot.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: npt.NDArray[np.int16] = np.zeros((0, capacity), np.int16)
        self._first: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grown = np.zeros((n_slots, self.capacity), np.int16)
        grown[: len(self._buffer)] = self._buffer
        self._buffer = grown
        self._first = np.pad(self._first, (0, n_slots - len(self._first)))

    def room(self, slot: int, start: int) -> int:
        """Return how many samples can be written from sample `start` on."""
        return self.capacity - (start - int(self._first[slot]))

    def write(self, slot: int, start: int, pcm: Pcm16) -> None:
        """Store samples at their index.

        Raises:
            ValueError: samples that are still needed would be overwritten.
        """
        if len(pcm) > self.room(slot, start):
            raise ValueError(
                f"slot {slot}: expected at most {self.room(slot, start)} samples at {start}, "
                f"got {len(pcm)}: samples from {self._first[slot]} on are not scored yet"
            )
        at = start % self.capacity
        head = min(len(pcm), self.capacity - at)
        self._buffer[slot, at : at + head] = pcm[:head]
        self._buffer[slot, : len(pcm) - head] = pcm[head:]

    def restart(self, slot: int, first: int) -> None:
        """Fill a slot with silence; samples from `first` on will be needed."""
        self._buffer[slot] = 0
        self._first[slot] = first

    def release(self, slots: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> None:
        """Samples before `first`, shape (n,), of `slots`, shape (n,), are not needed any more."""
        self._first[slots] = first

    def read(
        self, slots: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], count: int
    ) -> npt.NDArray[np.int16]:
        """Return `count` samples of each slot from its start, shape (n, count).

        Raises:
            ValueError: samples that were released may be overwritten by now.
        """
        if (starts < self._first[slots]).any():
            raise ValueError("staging: samples that were released are not there any more")
        places = (starts[:, None] + np.arange(count)) % self.capacity
        samples: npt.NDArray[np.int16] = self._buffer[slots[:, None], places]
        return samples


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
_Score = Annotated[float, Field(ge=0, le=1.001), Column(np.float32)]  # averages are rounded
_WindowScore = Annotated[float, Field(ge=0, le=1.001), Column(np.float32, lasts="gap")]
_Sum = Annotated[float, Field(ge=0, le=MAX_SAMPLE), Column(np.float64)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ClassState(_Record):
    """What the decision stage keeps of one class; the defaults are those of a class not heard.

    A field is declared here and nowhere else: its range where a state is read, and its `Column`.

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
        refractory_until: hits before this are ignored.
    """

    average: _WindowScore = 0.0
    hits: Annotated[int, Field(ge=0, lt=2**64), Column(np.uint64)] = 0
    is_active: _Flag = False
    is_published: _Flag = False
    score_before: _WindowScore = 0.0
    crossed_at: _SampleOrNever = NEVER
    crossing_rise: Annotated[int, Field(ge=-MAX_SAMPLE, le=MAX_SAMPLE), Column(np.int64)] = 0
    crossing_within: _Sample = 0
    t_up: _SampleOrNever = NEVER
    first_seen: _SampleOrNever = NEVER
    low_since: _SampleOrNever = NEVER
    onset: _SampleOrNever = NEVER
    uncertainty_s: _Sum = 0.0
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
        if self.is_active and NEVER in (self.t_up, self.first_seen, self.onset):
            raise ValueError("expected an active event to have begun")
        if self.is_published and self.last_update == NEVER:
            raise ValueError("expected the time of the last message of a published event")
        return self


def _check_floats(text: str) -> str:
    """Return base64 of float32 numbers, all finite, as it is."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError as error:
        raise ValueError("expected base64 of float32 numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError("expected finite numbers")
    return text


_Floats = Annotated[str, Field(max_length=64 * 1024 * 1024), AfterValidator(_check_floats)]


class FrameState(_Record):
    """The frames of one stream that its windows have scored and that are not decided yet.

    Attributes:
        first_end: end of the first frame since start or gap.
        decided_to: frames before this sample are decided.
        last: logits of the last of them, (n_classes,), float32 in base64.
        weights: of what windows said of each undecided frame.
        sums: of their logits times their weights, (n_frames, n_classes), float32 in base64.
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
        # checked where it is read: nothing here may stop a worker that runs
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
        """Return whether a model of so many classes can have left this."""
        n_sums = len(self.weights) * n_classes
        return len(self.array(self.last)) == n_classes and len(self.array(self.sums)) == n_sums


def _base64(numbers: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


class DetectorState(_Record):
    """Where the detector stands in one stream.

    Attributes:
        position: windows that end up to this sample are scored, and what follows from them is
            decided.
        context_start: first real sample since start or gap.
        first_scored: end of the first window scored since then, or NEVER.
        classes: by index, those of which anything is known.
        frames: what is known of frames not decided yet; None without any, or where windows decide.
    """

    position: _Sample
    context_start: _Sample
    first_scored: _SampleOrNever
    classes: dict[int, ClassState] = Field(max_length=100_000)
    frames: FrameState | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.position < self.context_start:
            raise ValueError("expected a position behind the start of the context")
        return self

    def is_of(self, n_classes: int) -> bool:
        """Return whether a model of so many classes can have left this."""
        has_its_classes = all(0 <= index < n_classes for index in self.classes)
        return has_its_classes and (self.frames is None or self.frames.is_of(n_classes))
