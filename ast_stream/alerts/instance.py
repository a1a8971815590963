"""One rule for one group of labels: its state from inactive to resolved.

    inactive -> pending -> firing -> recovering -> resolved
                  |           ^----------'
                  '-> inactive

Windows of time, inhibition, cooldown and the limit of alerts are asked at the moment of firing.
Whoever may not fire does not wait for its chance: the occasion is over and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ast_stream.alerts.memory import Memory
from ast_stream.alerts.model import ACTIVE_STATES, Alert, AlertState, Transition, stable_id
from ast_stream.alerts.rules.rule import Rule
from ast_stream.alerts.triggers.base import Trigger
from ast_stream.units import NS_PER_SECOND, format_time

Facts = dict[str, Any]


@dataclass
class Instance:
    """State of a rule for one group of labels.

    Attributes:
        group: values of the rule's `group_by`.
        facts: what is known of the newest event or health message, for templates.
        keep_until: a recovering alert is resolved then.
        quiet_until: the cooldown ends then.
        held_back: firings suppressed since the last alert.
    """

    rule: Rule
    trigger: Trigger
    group: dict[str, str]
    memory: Memory = field(default_factory=Memory)
    state: AlertState = "inactive"
    facts: Facts = field(default_factory=dict)
    alert_id: str = ""
    started_ns: int = 0
    fired_ns: int | None = None
    events: tuple[str, ...] = ()
    keep_until: int | None = None
    quiet_until: int | None = None
    held_back: int = 0

    @property
    def is_active(self) -> bool:
        """Whether people were told and not yet that it is over."""
        return self.state in ACTIVE_STATES

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the alert: the file's, the rule's, the group's, and the severity."""
        known = {name: value for name, value in self.group.items() if value}
        return dict(self.rule.labels) | known | {"severity": self.rule.severity}

    def is_idle(self, now: int) -> bool:
        """Tell whether nothing would be lost by forgetting it."""
        is_cooling = self.quiet_until is not None and now < self.quiet_until
        is_forgotten = self.memory.is_empty and not is_cooling and not self.held_back
        return self.state == "inactive" and is_forgotten

    def deadline(self, now: int) -> int | None:
        """Return the stream time at which it must be asked again."""
        times = [self.trigger.deadline(self.memory, now), self.keep_until]
        if self.state == "inactive" and self.quiet_until is not None and now < self.quiet_until:
            times.append(self.quiet_until)
        return min((time for time in times if time is not None), default=None)

    def settle(
        self, is_edge: bool, now: int, event_id: str | None, refusal: Callable[[Instance], str]
    ) -> list[Transition]:
        """Go to the state that fits, and return the way there.

        Args:
            is_edge: the trigger fires now.
            refusal: says why it may not fire, or nothing.
        """
        transitions = []
        if is_edge and not self.is_active and refusal(self):
            is_edge = False
        while (step := self._step(is_edge, now)) is not None:
            from_state, to_state, reason = step
            is_news = to_state == "resolved" or (
                to_state == "firing" and from_state != "recovering"
            )
            transitions.append(
                Transition(
                    alert=self.alert(to_state, now, reason),
                    from_state=from_state,
                    to_state=to_state,
                    at_ns=now,
                    actions=self.rule.actions or () if is_news else (),
                    event_id=event_id,
                )
            )
            if to_state == "firing":
                is_edge = False
                self.held_back = 0
            if to_state == "resolved":
                self._rest()
        if self.state == "inactive":
            self.trigger.tidy(self.memory, now)
        return transitions

    def end(self, now: int, reason: str) -> list[Transition]:
        """Resolve an alert because it cannot go on, and forget the memory."""
        transitions = []
        if self.is_active:
            from_state = self.state
            self.state = "resolved"
            alert = self.alert("resolved", now, reason)
            actions = self.rule.actions or ()
            transitions.append(Transition(alert, from_state, "resolved", now, actions))
            self.quiet_until = now + self.rule.cooldown_ns
        elif self.state == "pending":
            alert = self.alert("inactive", now, reason)
            transitions.append(Transition(alert, "pending", "inactive", now))
        self._rest()
        self.memory = Memory()
        return transitions

    def step(self, step_ns: int) -> None:
        """Move every time along with a clock that was set."""
        self.memory.step(step_ns)
        self.started_ns += step_ns
        for name in ("fired_ns", "keep_until", "quiet_until"):
            if (time_ns := getattr(self, name)) is not None:
                setattr(self, name, time_ns + step_ns)

    def alert(self, state: AlertState, now: int, reason: str | None) -> Alert:
        """Return the alert as of now."""
        rule = self.rule
        values = self._values(state, now) if rule.annotations else {}
        return Alert(
            id=self.alert_id,
            fingerprint=stable_id(rule.name, *_flat(self.group)),
            rule=rule.name,
            state=state,
            severity=rule.severity,
            group=dict(self.group),
            labels=self.labels,
            annotations={name: one.render(values) for name, one in rule.annotations.items()},
            started_ns=self.started_ns,
            fired_ns=self.fired_ns,
            resolved_ns=now if state == "resolved" else None,
            events=self.events,
            suppressed=self.held_back,
            reason=reason,
        )

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values; the rule goes by its name."""
        return {
            "rule": self.rule.name,
            "group": self.group,
            "memory": self.memory.export(),
            "state": self.state,
            "facts": self.facts,
            "alert_id": self.alert_id,
            "started_ns": self.started_ns,
            "fired_ns": self.fired_ns,
            "events": list(self.events),
            "keep_until": self.keep_until,
            "quiet_until": self.quiet_until,
            "held_back": self.held_back,
        }

    @classmethod
    def restore(cls, rule: Rule, trigger: Trigger, data: Mapping[str, Any]) -> Instance:
        """Take back what `export` gave."""
        fields = {name: value for name, value in data.items() if name != "rule"}
        fields["memory"] = Memory.restore(fields["memory"])
        fields["events"] = tuple(fields["events"])
        return cls(rule=rule, trigger=trigger, **fields)

    def _step(self, is_edge: bool, now: int) -> tuple[AlertState, AlertState, str | None] | None:
        """Go one state on and return from where, to where and why; None: it fits already."""
        state = self.state
        if state in ("inactive", "pending") and is_edge:
            if state == "inactive":
                self._name(now)
            else:  # what was pending may have turned out to be a sound before this one
                self.started_ns = self._began(now)
            self.state, self.fired_ns, self.keep_until = "firing", now, None
            self.events = tuple(self.memory.run_events)
        elif state == "inactive":
            if not self.trigger.is_pending(self.memory, now):
                return None
            self._name(now)
            self.state = "pending"
        elif state == "pending":
            if self.trigger.is_pending(self.memory, now):
                return None
            self.state = "inactive"
        elif state == "firing":
            if is_edge or self.trigger.holds(self.memory, now):
                return None
            self.state = "recovering" if self.rule.keep_ns else "resolved"
            self.keep_until = now + self.rule.keep_ns if self.rule.keep_ns else None
        elif is_edge or self.trigger.holds(self.memory, now):
            self.state, self.keep_until = "firing", None
        elif self.keep_until is not None and now >= self.keep_until:
            self.state = "resolved"
        else:
            return None
        if self.state == "resolved":
            self.quiet_until = now + self.rule.cooldown_ns
        return state, self.state, "quiet" if self.state == "resolved" else None

    def _name(self, now: int) -> None:
        """Give the alert that begins its id, by what began it."""
        memory = self.memory
        self.started_ns = self._began(now)
        first = memory.run_events[0] if memory.run_events else f"@{self.started_ns}"
        self.alert_id = stable_id(self.rule.name, *_flat(self.group), first)
        self.fired_ns = None
        self.events = tuple(memory.run_events)

    def _began(self, now: int) -> int:
        times = (self.memory.started_ns, self.memory.since, now)
        return next(time for time in times if time is not None)

    def _rest(self) -> None:
        self.state, self.keep_until = "inactive", None

    def _values(self, state: AlertState, now: int) -> dict[str, str | int | float | None]:
        active_ns = self.trigger.active_ns(self.memory, now)
        counted = now - self.started_ns if active_ns is None else active_ns
        values: dict[str, str | int | float | None] = {
            "alert": self.rule.name,
            "severity": self.rule.severity,
            "group": self.rule.group,
            "state": state,
            "started": format_time(self.started_ns),
            "fired": None if self.fired_ns is None else format_time(self.fired_ns),
            "active_s": round(counted / NS_PER_SECOND, 3),
            "count": len(self.events),
            "suppressed": self.held_back,
        }
        stream_labels = self.facts.get("labels", {})
        values |= {name: one for name, one in self.facts.items() if name != "labels"}
        values |= {f"stream.labels.{name}": one for name, one in stream_labels.items()}
        return values | {f"labels.{name}": one for name, one in self.labels.items()}


def _flat(group: Mapping[str, str]) -> Iterable[str]:
    return [f"{name}={value}" for name, value in sorted(group.items())]
