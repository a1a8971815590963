"""The base class of triggers: their part of the rule file, their state, and when they fire.

A trigger watches one group of labels for one rule. It answers three questions at a stream time:
does something make the rule fire now, does the condition hold (an alert stays active), and when
must it be asked again. It reasons about sounds, not about messages: an event's begin arrives up to
`latency_ns` late, and an open event is only certain to have sounded until `smear_ns` ago
(`DetectionTiming`).

A kind is one module with a class of `Trigger` and what the rule file says under its key;
`rules.schema` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ast_stream.alerts.rules.match import EventMatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.messages.levels import LevelsMessage
    from ast_stream.messages.status import Health
    from ast_stream.settings.explain import Path as KeyPath

MAX_CAUSES = 64  # event ids an alert names; the newest are left out

Facts = dict[str, Any]
"""What templates may say of an event or a stream, by the names of their fields."""

Finding = tuple["KeyPath", str, str]
"""A lint's place within the rule, its code and its text."""


class MatchedEvent(NamedTuple):
    """An event that a rule matched.

    Attributes:
        steps: which matchers of the rule it fits, as a bit mask.
    """

    onset_ns: int
    id: str
    stream: str
    slug: str
    steps: int


class MergedSound(NamedTuple):
    """One sound of which several streams have events.

    Attributes:
        best: id of the event that heard it best.
        streams: that heard it, the first one first.
        facts: what templates say of it.
    """

    best: str
    streams: tuple[str, ...]
    facts: Facts


@dataclass(eq=False)
class Trigger:
    """Fires when a matching event begins, and holds while one is open; all kinds build on it.

    The fields of this dataclass, and of each kind, are the state: JSON values that survive a
    restart. What follows from the rule is private, and set by `use`.

    Attributes:
        key: what the rule file calls it.
        more_keys: keys of a rule that make sense only beside `key`.
        match_place: the key under which its matches stand; None: `match` beside it.
        is_pattern: whether it is about several events, which must be distinguished.
        is_about_pauses: whether pauses within sounds matter to it.
        takes_events: whether it is given events.
        reads_facts: whether it is given what each message says of an event.
        merges_streams: whether it is about several streams as one: never grouped by stream, always
            by class, and its alert goes on to name the events that come to it.
        reads_health: whether it is given health messages.
        reads_levels: whether it is given sound levels, if a rule `wants_levels`.
        needs_listener: whether it may count only while a stream is listened to.
        counts_open_time: whether the duration of open events matters: while the feed is lost, they
            are certain only up to their last message.
        open: onset of each matched event that has not ended, by id.
        cause_ids: ids of the events that make or made the rule fire.
        started_ns: onset of the first of them.
    """

    key: ClassVar[str] = "plain"
    more_keys: ClassVar[tuple[str, ...]] = ()
    match_place: ClassVar[str | None] = None
    is_pattern: ClassVar[bool] = False
    is_about_pauses: ClassVar[bool] = False
    takes_events: ClassVar[bool] = True
    reads_facts: ClassVar[bool] = False
    merges_streams: ClassVar[bool] = False
    reads_health: ClassVar[bool] = False
    reads_levels: ClassVar[bool] = False
    needs_listener: ClassVar[bool] = False
    counts_open_time: ClassVar[bool] = False

    open: dict[str, int] = field(default_factory=dict)
    cause_ids: list[str] = field(default_factory=list)
    started_ns: int | None = None

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Apply a rule from now on; the state is kept."""
        self._timing = timing

    def clear(self) -> None:
        """Become as new."""
        vars(self).update(vars(type(self)()))

    @property
    def is_empty(self) -> bool:
        """Whether its state is the initial one."""
        return not any(self._state().values())

    @property
    def began_ns(self) -> int | None:
        """When what makes the rule fire began."""
        return self.started_ns

    @property
    def merged(self) -> MergedSound | None:
        """The sound that fired last; None: this kind merges none."""
        return None

    def export(self) -> dict[str, Any]:
        """Return the fields of the state that are not empty, as JSON values."""
        return {
            name: value.copy() if isinstance(value, list | dict) else value
            for name, value in self._state().items()
            if value
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `export` returned, also after JSON turned its tuples into lists.

        Raises:
            ValueError: a field that this kind of trigger does not have.
        """
        unknown = set(data) - set(self._state())
        if unknown:
            raise ValueError(f"state of a trigger: unknown {', '.join(sorted(unknown))}")
        vars(self).update(data)

    @classmethod
    def given(cls, settings: RuleSettings) -> Any:
        """Return what a rule says under `key`; None: it has another kind of trigger."""
        return getattr(settings, f"{cls.key}_" if iskeyword(cls.key) else cls.key)

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return what it matches, in the order of its steps, and where in the rule that stands."""
        return [] if settings.match is None else [(("match",), settings.match)]

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield what is valid and can still not be what the author means.

        Args:
            facts: about the detector; None: yield only what holds for any detector.
        """
        yield from ()

    def on_begin(self, event: MatchedEvent, now: int) -> bool:
        """Process an event that matched; return whether the rule fires."""
        self.open[event.id] = event.onset_ns
        self.cause_ids, self.started_ns = [event.id], event.onset_ns
        return True

    def on_facts(self, event_id: str, facts: Facts) -> None:
        """Process what templates may show of a matching event; for the first, before `on_begin`."""

    def on_end(self, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Process the end of a matched event; return whether the rule fires."""
        self.open.pop(event_id, None)
        return False

    def on_timer(self, now: int) -> bool:
        """Process the passing of time; return whether the rule fires."""
        return False

    def on_health(self, health: Health, now: int) -> bool:
        """Process a health message; return whether the rule fires."""
        return False

    @classmethod
    def wants_levels(cls, settings: RuleSettings) -> bool:
        """Return whether a rule of this kind uses sound levels."""
        return False

    def on_levels(self, levels: LevelsMessage, now: int) -> bool:
        """Process the sound levels of a second; return whether the rule fires."""
        return False

    def on_gap(self, end_ns: int) -> None:
        """Process that a stream was not heard until `end_ns`."""

    def on_downtime(self, away_ns: int) -> None:
        """Process that this process was not running for a while."""

    def start(self, now: int) -> None:
        """Begin to wait, from now on at the earliest, for something not to happen."""

    def pause(self) -> None:
        """Stop counting: the stream is not known to be listened to."""

    def resume(self, now: int) -> None:
        """Continue counting as if there had been no pause."""

    def holds(self, now: int) -> bool:
        """Return whether an alert stays active."""
        return bool(self.open)

    def is_pending(self, now: int) -> bool:
        """Return whether the rule will fire unless something happens."""
        return False

    def deadline(self, now: int) -> int | None:
        """Return when to ask again; None: at the next event."""
        return None

    def prune(self, now: int) -> None:
        """Forget what can no longer matter; called only while no alert is active."""
        if not self.open:
            self.clear()

    def sounded_ns(self, now: int) -> int | None:
        """Return how much sound has lasted, or is lost; None: this kind does not count that."""
        return None

    def _state(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(eq=False)
class EventListTrigger(Trigger):
    """A trigger that looks back at several events.

    Attributes:
        events: matched events that may still matter, by onset.
    """

    events: list[MatchedEvent] = field(default_factory=list)

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        super().restore(data)
        self.events = [MatchedEvent(*event) for event in self.events]


@dataclass(eq=False)
class WaitingTrigger(Trigger):
    """Fires once when something has stayed true for a time, which a subclass decides.

    Attributes:
        since: since when it is true; None: it is not, or not known.
        is_spent: this occasion has fired; it must be false before the next.
    """

    since: int | None = None
    is_spent: bool = False

    _needed_ns = 0  # for how long, see `use`

    @property
    def began_ns(self) -> int | None:
        """When it became true."""
        return self.since

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield grouping by what does not exist while nothing is heard."""
        if {"class", "label"} & set(rule.group_by):
            yield ("group_by",), "W210", f"'{cls.key}' has no class to group by"

    def on_timer(self, now: int) -> bool:
        """Fire once it has lasted for long enough."""
        due = self._due()
        fires = due is not None and now >= due and not self.is_spent
        self.is_spent = self.is_spent or fires
        return fires

    def is_pending(self, now: int) -> bool:
        """Return whether it is true, but not for long enough."""
        return self.since is not None and not self.is_spent

    def deadline(self, now: int) -> int | None:
        """Return when it will have lasted for long enough."""
        return None if self.is_spent else self._due()

    def prune(self, now: int) -> None:
        """Keep on waiting."""

    def _due(self) -> int | None:
        return None if self.since is None else self.since + self._needed_ns
