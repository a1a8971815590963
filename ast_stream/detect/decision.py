"""From scores to events: smoothing, confirmation, hysteresis, hold and corrected boundaries.

This is the only place where scores become events. State is arrays over [slots, classes]; one step
decides one window of every given slot at once, and work is done only for the cells where something
is above its threshold, pending or open. Live streams are slots of one `Decision`; `stream_events`
applies it to whole streams at once. Positions are sample indices; there is no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ast_stream.detect.boundaries import locate_offset, locate_onset
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.detect.state import NEVER, ClassState
from ast_stream.errors import UsageError
from ast_stream.messages.event import EndReason, Event, EventType, event_id
from ast_stream.units import SAMPLE_RATE

UPDATE_INTERVAL = SAMPLE_RATE  # samples: at most one update a second for each event
_FIRST_CAPACITY = 4  # slots; doubled when they are taken
FORGOTTEN = np.float32(0.01)  # a moving average below this counts as 0 for the next one

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Cells = tuple[Indices, Indices]
"""Slots and class indices, each of shape (n,)."""

_COLUMNS = ClassState.columns()
_IDLE = ClassState().model_dump()

KINDS: tuple[EventType, ...] = get_args(EventType)
BEGIN, UPDATE, END = (KINDS.index(kind) for kind in ("begin", "update", "end"))
REASONS: tuple[EndReason, ...] = get_args(EndReason)

TRANSITION = np.dtype(
    [
        ("kind", np.int8),  # index into `KINDS`
        ("slot", np.int64),
        ("index", np.int64),  # of the class
        ("at", np.int64),  # end of the window, or frame, that decided
        ("known_at", np.int64),  # the same, or end of the window that decided the frame
        ("score", np.float32),
        ("peak", np.float32),
        ("opinion", np.float32),  # score of a second opinion, or NEVER
        ("mean", np.float64),
        ("t_up", np.int64),  # end of the first window that saw the sound
        ("first_seen", np.int64),  # the same, but not beyond the audio
        ("t_down", np.int64),  # end of the first window that no longer saw it, or NEVER
        ("onset", np.int64),
        ("uncertainty_s", np.float64),
        ("offset", np.int64),  # of ends only, like the fields below
        ("reason", np.int8),  # index into `REASONS`
        ("duration_reliable", np.bool_),
    ]
)
Transitions = npt.NDArray[np.void]
"""Records of `TRANSITION`: events that begin, last or end, shape (n,)."""

NOTHING: Transitions = np.zeros(0, TRANSITION)


@dataclass(frozen=True)
class Opinion:
    """The second opinion of a verifier on an event that is about to begin.

    Attributes:
        score: for the event being right, in [0, 1]; None: unknown.
        is_withheld: the event is never published, however long it lasts.
    """

    score: float | None = None
    is_withheld: bool = False


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


class Decision:
    """The decision stage of all slots."""

    def __init__(self, parameters: DecisionParameters, names: SlotNames) -> None:
        self.use(parameters)
        self._names = names
        self._n_classes = len(parameters.labels)
        self._state: dict[str, npt.NDArray[Any]] = {}
        self.grow(names.capacity)

    def use(self, parameters: DecisionParameters) -> None:
        """Decide by `parameters`, of the same classes, from the next window on.

        Open events continue, even those of a class that is no longer enabled.
        """
        self.parameters = parameters
        self._hit_mask = (
            (np.uint64(1) << parameters.confirm_hops.astype(np.uint64)) - np.uint64(1)
        ).astype(np.uint64)
        self._hit_mask[parameters.confirm_hops == 64] = np.uint64(2**64 - 1)
        self._is_smoothing = bool((parameters.ema_alpha < 1).any())
        self._is_fitted = bool(parameters.onset_fits.is_fitted.any())
        self._max_rise = parameters.max_rise

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        for field, column in _COLUMNS.items():
            shape = (n_slots, self._n_classes)
            grown: npt.NDArray[Any] = np.full(shape, _IDLE[field], column.dtype)
            if field in self._state:
                grown[: len(self._state[field])] = self._state[field]
            self._state[field] = grown

    def reset(self, slot: int) -> None:
        """Forget all about `slot`."""
        for field, idle in _IDLE.items():
            self._state[field][slot] = idle

    def average(self, slots: Indices, scores: Scores, is_first: Flags) -> Scores:
        """Take the scores of one window of each slot; return the averages that `step` decides by.

        An exponential moving average: the weight of a window at distance t before the newest is
        proportional to exp(-t / time constant). Averages near 0 are set to 0, so that a stream's
        state stays small.

        Args:
            slots: which slots, shape (n,), each at most once.
            scores: shape (n, n_classes), in [0, 1].
            is_first: whether the window is the first since start or gap, shape (n,).
        """
        if not self._is_smoothing:
            return scores
        averages, self._state["average"][slots] = moving_average(
            scores, self._state["average"][slots], self.parameters.ema_alpha, is_first[:, None]
        )
        return averages

    def step(
        self,
        slots: Indices,
        ends: Indices,
        scores: Scores,
        *,
        context_starts: Indices,
        first_scored: Indices,
        audio_ends: Indices,
        known_at: Indices | None = None,
    ) -> list[Event]:
        """Decide one window, or frame, of each slot.

        Args:
            slots: which slots, shape (n,), each at most once.
            ends: end of the window or frame, shape (n,).
            scores: as `average` returns them, shape (n, n_classes), in [0, 1].
            context_starts: first real sample since start or gap, shape (n,).
            first_scored: end of the first window scored since then, shape (n,).
            audio_ends: end of the audio known, shape (n,).
            known_at: end of the window that decides the frame; None: the earliest possible.

        Returns:
            The events that begin, last or end with these windows.
        """
        transitions = self.advance(
            slots,
            ends,
            scores,
            context_starts=context_starts,
            first_scored=first_scored,
            audio_ends=audio_ends,
        )
        if known_at is not None and len(transitions):
            by_slot = dict(zip(slots.tolist(), known_at.tolist(), strict=True))
            transitions["known_at"] = [by_slot[slot] for slot in transitions["slot"].tolist()]
        return self._events(transitions)

    def advance(
        self,
        slots: Indices,
        ends: Indices,
        scores: Scores,
        *,
        context_starts: Indices,
        first_scored: Indices,
        audio_ends: Indices,
    ) -> Transitions:
        """Like `step`, but return arrays, ordered by row and class, each begin before its end."""
        p, s = self.parameters, self._state
        if p.geometry.is_of_frames:
            self._keep_rises(slots, ends, scores)
        is_high = (scores >= p.onset_threshold) & p.is_enabled
        rows, index = np.nonzero(is_high | self._is_live(slots))
        cell = (slots[rows], index)
        at, score = ends[rows], scores[rows, index]
        is_hit = is_high[rows, index] & (at >= s["refractory_until"][cell])
        was_active = s["is_active"][cell]
        earlier_hits = (s["hits"][cell] << np.uint64(1)) & self._hit_mask[index]
        if self._is_fitted:
            self._keep_crossings(cell, at, score, is_hit & (earlier_hits == 0) & ~was_active)
            s["score_before"][slots] = np.where(scores > p.onset_fits.floor, scores, 0)
        if not len(rows):
            return NOTHING
        hits = earlier_hits | is_hit.astype(np.uint64)
        is_enough = np.bitwise_count(hits) >= p.confirm_hits[index]
        is_confirmed = ~was_active & is_hit & is_enough
        is_open = was_active | is_confirmed

        is_counted = is_open | (hits != 0)
        s["hits"][cell] = hits
        s["is_active"][cell] = is_open
        s["peak"][cell] = np.where(is_counted, np.maximum(s["peak"][cell], score), 0)
        s["score_sum"][cell] = np.where(is_counted, s["score_sum"][cell] + score, 0)
        s["score_count"][cell] = np.where(is_counted, s["score_count"][cell] + 1, 0)
        low_since = np.where(s["low_since"][cell] == NEVER, at, s["low_since"][cell])
        is_low = is_open & (score < p.offset_threshold[index])
        s["low_since"][cell] = np.where(is_low, low_since, NEVER)
        if is_confirmed.any():
            row = rows[is_confirmed]
            self._confirm(
                (slots[row], index[is_confirmed]),
                ends[row],
                context_start=context_starts[row],
                first_scored=first_scored[row],
                audio_end=audio_ends[row],
            )
        if not is_open.any():
            return NOTHING
        row = rows[is_open]
        return self._transitions(
            (slots[row], index[is_open]), ends[row], score[is_open], audio_ends[row]
        )

    def keep_opinion(self, slot: int, index: int, opinion: Opinion) -> None:
        """Store the second opinion on an event that has just begun.

        If it is withheld, its begin is taken back, and nothing of it is published.
        """
        if opinion.score is not None:
            self._state["opinion"][slot, index] = opinion.score
        if opinion.is_withheld:
            self._state["is_published"][slot, index] = False
            self._state["is_withheld"][slot, index] = True

    def has_live(self, slots: Indices) -> Flags:
        """Return which slots have an event that is open or may be confirmed, shape (n,).

        For the other slots, a window below all onset thresholds changes nothing, nor does a second
        frame in a row below all rising thresholds.
        """
        has_live: Flags = np.any(self._is_live(slots), axis=1)
        return has_live

    def steady(self, slots: Indices) -> Flags:
        """Return the classes with an open event, shape (n, n_classes), of steady slots.

        A slot is steady if none of its open events is ending and no other may be confirmed.
        """
        is_open: Flags = self._state["is_active"][slots]
        is_ending = is_open & (self._state["low_since"][slots] != NEVER)
        is_changing = np.any(is_ending | (self._is_live(slots) & ~is_open), axis=1)
        steady: Flags = is_open & ~is_changing[:, None]
        return steady

    def close(self, slot: int, reason: EndReason, at: int, audio_end: int) -> list[Event]:
        """End all events of `slot` because there is no more audio, and forget its state."""
        return self._events(self.cut(slot, reason, at, audio_end))

    def cut(self, slot: int, reason: EndReason, at: int, audio_end: int) -> Transitions:
        """Like `close`, but return arrays."""
        index = np.flatnonzero(self._state["is_active"][slot])
        cell = (np.full(len(index), slot), index)
        codes = np.full(len(index), REASONS.index(reason))
        ended = self._end(cell, codes, np.full(len(index), at), np.full(len(index), audio_end))
        ended["known_at"] = at  # no later window is waited for
        for field, column in _COLUMNS.items():
            if column.lasts != "stream":
                self._state[field][slot] = _IDLE[field]
        return ended

    def open_count(self, slot: int) -> int:
        """Return how many published events of `slot` have not ended."""
        return int(self._state["is_published"][slot].sum())

    def open_events(self, slot: int, at: int) -> list[Event]:
        """Return the published events of `slot` that have not ended, as of `at`."""
        index = np.flatnonzero(self._state["is_published"][slot])
        cell = (np.full(len(index), slot), index)
        records = self._records(UPDATE, cell, at, np.float32(0))
        records["known_at"] = at
        return self._events(records)

    def export(self, slot: int) -> dict[int, ClassState]:
        """Return the state of `slot` by class index, without classes in their initial state."""
        known: dict[int, dict[str, Any]] = {}
        for field, idle in _IDLE.items():
            row = self._state[field][slot]
            for index in np.flatnonzero(row != idle):
                known.setdefault(int(index), {})[field] = row[index].item()
        # validated when it is read: nothing here may stop a running worker
        return {index: ClassState.model_construct(**fields) for index, fields in known.items()}

    def restore(self, slot: int, classes: Mapping[int, ClassState]) -> None:
        """Restore what `export` returned."""
        self.reset(slot)
        for index, known in classes.items():
            for field in _COLUMNS:
                self._state[field][slot, index] = getattr(known, field)

    def _is_live(self, slots: Indices) -> Flags:
        is_live: Flags = self._state["is_active"][slots] | (self._state["hits"][slots] != 0)
        return is_live

    def _keep_crossings(self, cell: Cells, at: Indices, score: Scores, is_crossing: Flags) -> None:
        """Estimate the rise of classes whose score crosses its threshold."""
        fits, s = self.parameters.onset_fits, self._state
        slot, index = cell
        kept = np.flatnonzero(is_crossing & fits.is_fitted[index])
        crossed = (slot[kept], index[kept])
        rise, within = fits.rise(crossed[1], s["score_before"][crossed], score[kept])
        s["crossed_at"][crossed] = at[kept]
        s["crossing_rise"][crossed] = rise
        s["crossing_within"][crossed] = within

    def _keep_rises(self, slots: Indices, ends: Indices, scores: Scores) -> None:
        """Note since when each class has been above the score at which a sound may begin."""
        since = self._state["rising_since"][slots]
        is_rising = (scores >= self.parameters.rising_threshold) & self.parameters.is_enabled
        since = np.where(since == NEVER, ends[:, None], since)
        self._state["rising_since"][slots] = np.where(is_rising, since, NEVER)

    def _confirm(
        self,
        cell: Cells,
        at: Indices,
        *,
        context_start: Indices,
        first_scored: Indices,
        audio_end: Indices,
    ) -> None:
        p, s = self.parameters, self._state
        index = cell[1]
        hops_ago = np.array([int(hits).bit_length() - 1 for hits in s["hits"][cell]])
        t_up = at - hops_ago * p.geometry.hop
        has_fit = s["crossed_at"][cell] == t_up
        since = np.maximum(s["rising_since"][cell], t_up - self._max_rise)
        first_risen = np.where(s["rising_since"][cell] == NEVER, t_up, np.minimum(since, t_up))
        onset = locate_onset(
            p.geometry,
            first_risen,
            np.where(has_fit, s["crossing_rise"][cell], p.rise_on[index]),
            uncertainty=np.where(
                has_fit,
                s["crossing_within"][cell],
                p.geometry.hop // 2 + p.rise_on_spread[index] + (t_up - first_risen) // 2,
            ),
            earliest=np.maximum(context_start, s["last_offset"][cell]),
            first_scored=first_scored,
            audio_end=audio_end,
        )
        first_seen = np.minimum(t_up, audio_end)
        # two events beyond the end of the audio: ids must differ
        first_seen = np.where(first_seen <= s["last_first_seen"][cell], t_up, first_seen)
        s["t_up"][cell] = t_up
        s["first_seen"][cell] = s["last_first_seen"][cell] = first_seen
        s["onset"][cell] = onset.sample
        s["uncertainty_s"][cell] = onset.uncertainty_s

    def _transitions(
        self, cell: Cells, at: Indices, score: Scores, audio_end: Indices
    ) -> Transitions:
        """Return the due messages of open events, and end those that are over."""
        p, s = self.parameters, self._state
        index = cell[1]
        low_since, is_published = s["low_since"][cell], s["is_published"][cell]
        is_quiet = (low_since != NEVER) & (at - low_since >= p.hold[index])
        is_over = is_quiet | (at - s["onset"][cell] >= p.max_duration[index])
        # for how long even a click stays in the windows
        smear = p.geometry.window - p.rise_on[index] - p.rise_off[index]
        seen_until = np.where(low_since == NEVER, at, low_since)
        min_duration = p.min_duration[index]
        is_long_enough = (min_duration == 0) | (
            seen_until - s["t_up"][cell] - smear >= min_duration
        )
        is_new = ~is_published & ~s["is_withheld"][cell] & is_long_enough
        is_due = is_published & ~is_over & (at - s["last_update"][cell] >= UPDATE_INTERVAL)

        found, order = [], []
        for kind, is_kind in ((BEGIN, is_new), (UPDATE, is_due)):
            if is_kind.any():
                its = (cell[0][is_kind], index[is_kind])
                s["is_published"][its] = True
                s["last_update"][its] = at[is_kind]
                found.append(self._records(kind, its, at[is_kind], score[is_kind]))
                order.append(np.flatnonzero(is_kind))
        if is_over.any():
            its = (cell[0][is_over], index[is_over])
            reason = np.where(
                is_quiet[is_over], REASONS.index("quiet"), REASONS.index("max_duration")
            )
            is_announced = s["is_published"][its]
            found.append(self._end(its, reason, at[is_over], audio_end[is_over], score[is_over]))
            order.append(np.flatnonzero(is_over)[is_announced])
        if not found:
            return NOTHING
        return np.concatenate(found)[np.argsort(np.concatenate(order), kind="stable")]

    def _end(
        self,
        cell: Cells,
        reason: Indices,
        at: Indices,
        audio_end: Indices,
        score: Scores | None = None,
    ) -> Transitions:
        """Return the ends of the published events among these cells, and reset all of the cells."""
        p, s = self.parameters, self._state
        index = cell[1]
        onset = s["onset"][cell]
        offset = locate_offset(
            p.geometry,
            onset,
            s["low_since"][cell],
            p.rise_on[index],
            p.rise_off[index],
            audio_end=np.minimum(at, audio_end),
        )
        sample = np.where(
            reason == REASONS.index("max_duration"),
            np.minimum(offset.sample, onset + p.max_duration[index]),
            offset.sample,
        )
        ended = self._records(END, cell, at, np.float32(0) if score is None else score)
        ended["offset"], ended["reason"] = sample, reason
        ended["duration_reliable"] = offset.is_reliable
        is_published = s["is_published"][cell]
        for field, column in _COLUMNS.items():
            if column.lasts == "event":
                s[field][cell] = _IDLE[field]
        s["last_offset"][cell] = sample
        heard_from = sample + p.geometry.hop // 2 + p.rise_on[index]
        s["refractory_until"][cell] = np.where(
            p.refractory[index] > 0, heard_from + p.refractory[index], NEVER
        )
        published: Transitions = ended[is_published]
        return published

    def _records(
        self, kind: int, cell: Cells, at: Indices | int, score: Scores | np.float32
    ) -> Transitions:
        """Return the present state of events as records."""
        s = self._state
        records = np.zeros(len(cell[0]), TRANSITION)
        records["kind"], records["at"], records["score"] = kind, at, score
        records["known_at"] = self.parameters.geometry.known_at(at)
        records["slot"], records["index"] = cell
        records["mean"] = s["score_sum"][cell] / np.maximum(1, s["score_count"][cell])
        records["t_down"] = s["low_since"][cell]
        for field in ("peak", "opinion", "t_up", "first_seen", "onset", "uncertainty_s"):
            records[field] = s[field][cell]
        return records

    def _events(self, transitions: Transitions) -> list[Event]:
        return [self._event(record) for record in transitions]

    def _event(self, record: np.void) -> Event:
        stream, epoch = self._names.of(int(record["slot"]))
        index = int(record["index"])
        has_ended = record["kind"] == END
        return Event(
            type=KINDS[record["kind"]],
            id=event_id(stream, epoch, index, int(record["first_seen"])),
            stream=stream,
            epoch=epoch,
            index=index,
            label=self.parameters.labels[index],
            score=float(record["score"]),
            peak=float(record["peak"]),
            mean=float(record["mean"]) if has_ended else None,
            onset_sample=int(record["onset"]),
            offset_sample=int(record["offset"]) if has_ended else None,
            uncertainty_s=float(record["uncertainty_s"]),
            at_sample=int(record["known_at"]),
            reason=REASONS[record["reason"]] if has_ended else None,
            duration_reliable=bool(record["duration_reliable"]) if has_ended else True,
            verifier_score=None if record["opinion"] == NEVER else float(record["opinion"]),
        )


def moving_average(
    scores: Scores, kept: Scores, alpha: Scores, is_first: Flags | bool
) -> tuple[Scores, Scores]:
    """Return the averages with `scores` as the newest, and what is kept of them for the next."""
    blended = alpha * scores + (np.float32(1) - alpha) * kept
    averages: Scores = np.where(is_first, scores, blended)
    is_kept = (averages >= FORGOTTEN) & (alpha < 1)
    return averages, np.where(is_kept, averages, np.float32(0))
