"""The kinds of triggers; the only module to change when one is added, besides its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ast_stream.alerts.triggers.absent import AbsentFields, AbsentFor
from ast_stream.alerts.triggers.base import Trigger
from ast_stream.alerts.triggers.count import CountFields, CountWithin
from ast_stream.alerts.triggers.duration import DurationFields, ForDuration
from ast_stream.alerts.triggers.level import LevelFields, LevelFor
from ast_stream.alerts.triggers.sequence import SequenceFields, SequenceWithin

if TYPE_CHECKING:
    from ast_stream.alerts.rules.schema import RuleSettings


KINDS: tuple[type[Trigger], ...] = (ForDuration, CountWithin, SequenceWithin, AbsentFor, LevelFor)
"""In the order in which messages list them; a rule without any has the plain `Trigger`."""


class TriggerFields(LevelFields, AbsentFields, SequenceFields, CountFields, DurationFields):
    """The keys of a rule that belong to a trigger."""


def kinds_of(settings: RuleSettings) -> list[type[Trigger]]:
    """Return the kinds of triggers that a rule has; a valid rule has at most one."""
    return [kind for kind in KINDS if kind.is_given(settings)]


def kind_of(settings: RuleSettings) -> type[Trigger]:
    """Return the kind of trigger that a valid rule has."""
    return next(iter(kinds_of(settings)), Trigger)
