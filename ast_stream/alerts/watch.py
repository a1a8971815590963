"""What is shown live beside the alerts: the classes that rules name."""

from __future__ import annotations

from ast_stream.alerts.actions.base import Entities
from ast_stream.alerts.detector import model_facts
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.labels import slug
from ast_stream.settings.schema import Settings


def exposed_entities(settings: Settings, rules: RuleSet) -> Entities:
    """Return what is shown live: classes that rules name, not all of a branch or of the model."""
    labels = {slug(label): label for label in model_facts(settings.model).labels or ()}
    named = {
        one: None
        for rule in rules.rules
        for _, match in rule.trigger.matches(rule.settings)
        for name in (*(match.class_ or ()), *(match.any_of or ()))
        for one in (slug(name),)
    }
    return Entities(
        streams=tuple(stream.name for stream in settings.streams),
        classes=tuple(labels.get(one, one) for one in named),
        rules=tuple(rule.name for rule in rules.rules),
    )
