"""From scores to events: confirmation, hysteresis, hold and corrected boundaries.

State is arrays over [slots, classes]; one `step` decides one window of every given slot at once,
and Python work is done only for the few classes where something begins, lasts or ends.
Positions are sample indices; there is no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_stream.detect.boundaries import locate_offset, locate_onset
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.detect.positions import NEVER
from ast_stream.detect.slots import SlotNames
from ast_stream.detect.smoothing import averaged, remembered
from ast_stream.detect.state import ClassState
from ast_stream.messages.event import EndReason, Event, EventType, event_id
from ast_stream.units import SAMPLE_RATE

UPDATE_INTERVAL = SAMPLE_RATE  # samples: at most one update a second for each event
_DTYPES: dict[str, type] = {  # of the fields of `ClassState`
    "average": np.float32,
    "hits": np.uint64,
    "is_active": np.bool_,
    "is_published": np.bool_,
    "score_before": np.float32,
    "crossed_at": np.int64,
    "crossing_rise": np.int64,
    "crossing_within": np.int64,
    "t_up": np.int64,
    "first_seen": np.int64,
    "low_since": np.int64,
    "onset": np.int64,
    "uncertainty_s": np.float64,
    "peak": np.float32,
    "score_sum": np.float64,
    "score_count": np.int64,
    "last_update": np.int64,
    "deaf_until": np.int64,
    "last_offset": np.int64,
    "last_first_seen": np.int64,
}
_UNHEARD = ClassState().model_dump()
_FIELDS = {field: (dtype, _UNHEARD[field]) for field, dtype in _DTYPES.items()}
# a later event must neither begin before the end of this one nor have its id
_OUTLIVE_EVENTS = ("last_offset", "last_first_seen")
# not of the event, but of the windows
_OF_WINDOWS = ("average", "score_before")


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

        Events that are open go on, also those of a class that is no longer enabled.
        """
        self.parameters = parameters
        self._hit_mask = (
            (np.uint64(1) << parameters.confirm_hops.astype(np.uint64)) - np.uint64(1)
        ).astype(np.uint64)
        self._hit_mask[parameters.confirm_hops == 64] = np.uint64(2**64 - 1)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        for field, (dtype, empty) in _FIELDS.items():
            grown: npt.NDArray[Any] = np.full((n_slots, self._n_classes), empty, dtype)
            if field in self._state:
                grown[: len(self._state[field])] = self._state[field]
            self._state[field] = grown

    def reset(self, slot: int) -> None:
        """Forget all about `slot`."""
        for field, (_, empty) in _FIELDS.items():
            self._state[field][slot] = empty

    def average(
        self,
        slots: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        is_first: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """Take the scores of one window of each slot; return the averages that `step` decides by.

        Args:
            slots: which slots, shape (n,), each at most once.
            scores: shape (n, n_classes), in [0, 1].
            is_first: whether the window is the first since start or gap, shape (n,).
        """
        share = self.parameters.share_of_newest
        if (share == 1).all():
            return scores
        before = self._state["average"][slots]
        averages = np.where(is_first[:, None], scores, averaged(scores, before, share))
        self._state["average"][slots] = remembered(averages, share)
        return averages

    def step(
        self,
        slots: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        *,
        context_starts: npt.NDArray[np.int64],
        first_scored: npt.NDArray[np.int64],
        audio_ends: npt.NDArray[np.int64],
    ) -> list[Event]:
        """Decide one window of each slot.

        Args:
            slots: which slots, shape (n,), each at most once.
            ends: end of the window, shape (n,).
            scores: as `average` returns them, shape (n, n_classes), in [0, 1].
            context_starts: first real sample since start or gap, shape (n,).
            first_scored: end of the first window scored since then, shape (n,).
            audio_ends: end of the audio known, shape (n,).

        Returns:
            The events that begin, last or end with these windows.
        """
        p, s = self.parameters, self._state
        now = ends[:, None]
        is_on = (scores >= p.onset_threshold) & p.is_enabled & (now >= s["deaf_until"][slots])
        was_active = s["is_active"][slots]
        earlier_hits = (s["hits"][slots] << np.uint64(1)) & self._hit_mask
        hits = earlier_hits | is_on.astype(np.uint64)
        self._look_at_crossings(slots, ends, scores, is_on & (earlier_hits == 0) & ~was_active)
        is_confirmed = ~was_active & is_on & (np.bitwise_count(hits) >= p.confirm_hits)
        is_open = was_active | is_confirmed

        is_counted = is_open | (hits != 0)
        s["hits"][slots] = hits
        s["is_active"][slots] = is_open
        s["peak"][slots] = np.where(is_counted, np.maximum(s["peak"][slots], scores), 0)
        s["score_sum"][slots] = np.where(is_counted, s["score_sum"][slots] + scores, 0)
        s["score_count"][slots] = np.where(is_counted, s["score_count"][slots] + 1, 0)
        low = np.where(s["low_since"][slots] == NEVER, now, s["low_since"][slots])
        is_low = is_open & (scores < p.offset_threshold)
        s["low_since"][slots] = np.where(is_low, low, NEVER)

        for row, index in np.argwhere(is_confirmed):
            self._confirm(
                int(slots[row]),
                int(index),
                int(ends[row]),
                context_start=int(context_starts[row]),
                first_scored=int(first_scored[row]),
                audio_end=int(audio_ends[row]),
            )
        return self._emit(slots, ends, scores, audio_ends)

    def close(self, slot: int, reason: EndReason, at: int, audio_end: int) -> list[Event]:
        """End all events of `slot` because there is no more audio, and forget its state."""
        events = []
        for index in np.flatnonzero(self._state["is_active"][slot]):
            events += self._end(slot, int(index), reason, at, audio_end)
        kept = {field: self._state[field][slot].copy() for field in _OUTLIVE_EVENTS}
        self.reset(slot)
        for field, values in kept.items():
            self._state[field][slot] = values
        return events

    def open_count(self, slot: int) -> int:
        """Return how many published events of `slot` have not ended."""
        return int(self._state["is_published"][slot].sum())

    def open_events(self, slot: int, at: int) -> list[Event]:
        """Return the published events of `slot` that have not ended, as of `at`."""
        indices = np.flatnonzero(self._state["is_published"][slot])
        return [self._event("update", slot, int(i), at, 0.0) for i in indices]

    def export(self, slot: int) -> dict[int, ClassState]:
        """Return the state of `slot`: by class index, only what is known."""
        known: dict[int, dict[str, Any]] = {}
        for field, (_, empty) in _FIELDS.items():
            row = self._state[field][slot]
            for index in np.flatnonzero(row != empty):
                known.setdefault(int(index), {})[field] = row[index].item()
        # checked where it is read: nothing here may stop a worker that runs
        return {index: ClassState.model_construct(**fields) for index, fields in known.items()}

    def restore(self, slot: int, classes: Mapping[int, ClassState]) -> None:
        """Take back what `export` gave."""
        self.reset(slot)
        for index, known in classes.items():
            for field in _FIELDS:
                self._state[field][slot, index] = getattr(known, field)

    def _emit(
        self,
        slots: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        audio_ends: npt.NDArray[np.int64],
    ) -> list[Event]:
        p, s = self.parameters, self._state
        now = ends[:, None]
        is_open = s["is_active"][slots]
        is_published = s["is_published"][slots]
        low_since = s["low_since"][slots]
        is_quiet = is_open & (low_since != NEVER) & (now - low_since >= p.hold)
        is_too_long = is_open & ~is_quiet & (now - s["onset"][slots] >= p.max_duration)
        smear = p.geometry.window - p.rise_on - p.rise_off  # how long a mere click stays visible
        seen_until = np.where(low_since == NEVER, now, low_since)
        is_long_enough = (p.min_duration == 0) | (
            seen_until - s["t_up"][slots] - smear >= p.min_duration
        )
        is_new = is_open & ~is_published & is_long_enough
        is_due = is_published & (now - s["last_update"][slots] >= UPDATE_INTERVAL)

        events: list[Event] = []
        for row, index in np.argwhere(is_new | is_due | is_quiet | is_too_long):
            slot, at, score = int(slots[row]), int(ends[row]), float(scores[row, index])
            place = (slot, int(index))
            if is_new[row, index]:
                s["is_published"][place] = True
                s["last_update"][place] = at
                events.append(self._event("begin", *place, at, score))
            if is_quiet[row, index] or is_too_long[row, index]:
                reason: EndReason = "quiet" if is_quiet[row, index] else "max_duration"
                events += self._end(*place, reason, at, int(audio_ends[row]), score)
            elif is_due[row, index]:
                s["last_update"][place] = at
                events.append(self._event("update", *place, at, score))
        return events

    def _look_at_crossings(
        self,
        slots: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        is_crossing: npt.NDArray[np.bool_],
    ) -> None:
        """Estimate the rise of classes whose score crosses its threshold; remember the scores."""
        fits, s = self.parameters.onset_fits, self._state
        if not fits.is_fitted.any():
            return
        for row, index in np.argwhere(is_crossing & fits.is_fitted):
            slot = int(slots[row])
            before = float(s["score_before"][slot, index])
            rise, within = fits.rise(int(index), before, float(scores[row, index]))
            s["crossed_at"][slot, index] = ends[row]
            s["crossing_rise"][slot, index] = rise
            s["crossing_within"][slot, index] = within
        s["score_before"][slots] = np.where(scores > fits.floor, scores, 0)

    def _confirm(
        self,
        slot: int,
        index: int,
        at: int,
        *,
        context_start: int,
        first_scored: int,
        audio_end: int,
    ) -> None:
        p, s = self.parameters, self._state
        hops_ago = int(s["hits"][slot, index]).bit_length() - 1
        t_up = at - hops_ago * p.geometry.hop
        rise = int(p.rise_on[index])
        uncertainty = p.geometry.hop // 2 + int(p.rise_on_spread[index])
        if s["crossed_at"][slot, index] == t_up:
            rise = int(s["crossing_rise"][slot, index])
            uncertainty = int(s["crossing_within"][slot, index])
        onset = locate_onset(
            p.geometry,
            t_up,
            rise,
            uncertainty=uncertainty,
            earliest=max(context_start, int(s["last_offset"][slot, index])),
            first_scored=first_scored,
            audio_end=audio_end,
        )
        s["t_up"][slot, index] = t_up
        first_seen = min(t_up, audio_end)
        if first_seen <= s["last_first_seen"][slot, index]:
            first_seen = t_up  # two events beyond the end of the audio: ids must differ
        s["first_seen"][slot, index] = s["last_first_seen"][slot, index] = first_seen
        s["onset"][slot, index] = onset.sample
        s["uncertainty_s"][slot, index] = onset.uncertainty_s

    def _end(
        self,
        slot: int,
        index: int,
        reason: EndReason,
        at: int,
        audio_end: int,
        score: float | None = None,
    ) -> list[Event]:
        p, s = self.parameters, self._state
        low_since, onset = int(s["low_since"][slot, index]), int(s["onset"][slot, index])
        offset = locate_offset(
            p.geometry,
            onset,
            None if low_since == NEVER else low_since,
            int(p.rise_on[index]),
            int(p.rise_off[index]),
            audio_end=min(at, audio_end),
        )
        sample = offset.sample
        if reason == "max_duration":
            sample = min(sample, onset + int(p.max_duration[index]))
        is_published = bool(s["is_published"][slot, index])
        event = self._event(
            "end",
            slot,
            index,
            at,
            0.0 if score is None else score,
            offset_sample=sample,
            reason=reason,
            duration_reliable=offset.is_reliable,
        )
        for field, (_, empty) in _FIELDS.items():
            if field not in _OUTLIVE_EVENTS + _OF_WINDOWS:
                s[field][slot, index] = empty
        s["last_offset"][slot, index] = sample
        if p.refractory[index]:
            heard_from = sample + p.geometry.hop // 2 + int(p.rise_on[index])
            s["deaf_until"][slot, index] = heard_from + p.refractory[index]
        return [event] if is_published else []

    def _event(
        self,
        kind: EventType,
        slot: int,
        index: int,
        at: int,
        score: float,
        *,
        offset_sample: int | None = None,
        reason: EndReason | None = None,
        duration_reliable: bool = True,
    ) -> Event:
        s = self._state
        stream, epoch = self._names.of(slot)
        count = int(s["score_count"][slot, index])
        mean = float(s["score_sum"][slot, index]) / max(1, count)
        return Event(
            type=kind,
            id=event_id(stream, epoch, index, int(s["first_seen"][slot, index])),
            stream=stream,
            epoch=epoch,
            index=index,
            label=self.parameters.labels[index],
            score=score,
            peak=float(s["peak"][slot, index]),
            mean=mean if kind == "end" else None,
            onset_sample=int(s["onset"][slot, index]),
            offset_sample=offset_sample,
            uncertainty_s=float(s["uncertainty_s"][slot, index]),
            at_sample=at,
            reason=reason,
            duration_reliable=duration_reliable,
        )
