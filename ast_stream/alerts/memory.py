"""What a rule remembers of one group of labels, as plain values that survive a restart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

_TIMES = ("run_start", "last_off", "started_ns", "since", "sampled_ns", "hold_until", "floor_ns")


class Heard(NamedTuple):
    """One event that a rule matched.

    Attributes:
        steps: which matchers of the rule it fits, bit by bit.
    """

    onset_ns: int
    id: str
    stream: str
    slug: str
    steps: int


@dataclass
class Memory:
    """Fields that one or the other trigger uses; empty ones cost nothing in an export.

    Attributes:
        open: onset of each matched event that has not ended, by id.
        heard: matched events that may still matter, by onset.
        spans: activity that is over but may overlap with open events: [onset, offset].
        active_ns, run_start, last_off: activity of the present run before `spans`.
        run_events: ids of the events in the run, of the match, or of the window.
        started_ns: onset of the first of them.
        since: since when the condition is true, or the sound is absent; None: it is not.
        sampled_ns: when the level was last heard of.
        hold_until: the condition is true until then.
        floor_ns: onsets up to here were used in a match.
        is_spent: this occasion to fire is over; the condition must be false before the next.
    """

    open: dict[str, int] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    active_ns: int = 0
    run_start: int | None = None
    last_off: int | None = None
    run_events: list[str] = field(default_factory=list)
    started_ns: int | None = None
    since: int | None = None
    sampled_ns: int | None = None
    hold_until: int | None = None
    floor_ns: int | None = None
    is_spent: bool = False

    def clear(self) -> None:
        """Become as new."""
        vars(self).update(vars(Memory()))

    def step(self, step_ns: int) -> None:
        """Move every time along with a clock that was set."""
        self.open = {name: onset + step_ns for name, onset in self.open.items()}
        self.heard = [one._replace(onset_ns=one.onset_ns + step_ns) for one in self.heard]
        self.spans = [(onset + step_ns, offset + step_ns) for onset, offset in self.spans]
        for name in _TIMES:
            if (time_ns := getattr(self, name)) is not None:
                setattr(self, name, time_ns + step_ns)

    def export(self) -> dict[str, Any]:
        """Return the fields that are not empty, as JSON has them."""
        return {
            name: value.copy() if isinstance(value, list | dict) else value
            for name, value in vars(self).items()
            if value
        }

    @property
    def is_empty(self) -> bool:
        """Whether it is as new."""
        return not any(vars(self).values())

    @classmethod
    def restore(cls, data: dict[str, Any]) -> Memory:
        """Take back what `export` gave, also after JSON made lists of its tuples."""
        memory = cls(**data)
        memory.heard = [Heard(*one) for one in memory.heard]
        memory.spans = [(on, off) for on, off in memory.spans]
        return memory
