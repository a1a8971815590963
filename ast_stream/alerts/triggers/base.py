"""When a rule fires: one class for each kind of trigger, all over the same `Memory`.

A trigger tells three things of a memory at a stream time: whether something now makes the rule
fire (an edge), whether the condition holds (an alert stays), and when to ask again. It reasons
about sounds: an event's begin is late by up to `latency_ns`, and an open event is only sure to
have sounded until `smear_ns` ago (`model.DetectionTiming`). How long sounds last is in
`trigger_durations`, patterns of several events are in `trigger_patterns`, what is not heard and how
loud it is in `trigger_levels`.
"""

from __future__ import annotations

from typing import Protocol

from ast_stream.alerts.memory import Heard, Memory


class Trigger(Protocol):
    """What the engine asks of every kind; `now` is stream time in nanoseconds."""

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Take an event that matched; tell whether the rule fires."""

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Take the end of a matched event; tell whether the rule fires."""

    def timer(self, memory: Memory, now: int) -> bool:
        """Take that time has passed; tell whether the rule fires."""

    def holds(self, memory: Memory, now: int) -> bool:
        """Tell whether an alert stays."""

    def is_pending(self, memory: Memory, now: int) -> bool:
        """Tell whether the rule fires by itself unless something happens."""

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when to ask again, None: at the next event."""

    def tidy(self, memory: Memory, now: int) -> None:
        """Forget what can no longer matter; asked only while there is no alert."""

    def active_ns(self, memory: Memory, now: int) -> int | None:
        """Return how long the sound has lasted, None if this kind does not know."""


class Plain:
    """Fires when a matching event begins, and holds while one is open."""

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Fire."""
        memory.open[heard.id] = heard.onset_ns
        memory.run_events, memory.started_ns = [heard.id], heard.onset_ns
        return True

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Forget the event."""
        memory.open.pop(event_id, None)
        return False

    def timer(self, memory: Memory, now: int) -> bool:
        """Time alone fires nothing."""
        return False

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while a sound lasts."""
        return bool(memory.open)

    def is_pending(self, memory: Memory, now: int) -> bool:
        """It fires at once or not at all."""
        return False

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Nothing to wait for."""
        return None

    def tidy(self, memory: Memory, now: int) -> None:
        """Keep nothing longer than the sound."""
        if not memory.open:
            memory.clear()

    def active_ns(self, memory: Memory, now: int) -> int | None:
        """Durations are not counted."""
        return None
