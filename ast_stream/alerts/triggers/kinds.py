"""Which trigger a rule's settings ask for."""

from __future__ import annotations

from ast_stream.alerts.model import DetectionTiming
from ast_stream.alerts.rules.rule import Rule
from ast_stream.alerts.triggers.base import Plain, Trigger
from ast_stream.alerts.triggers.duration import For
from ast_stream.alerts.triggers.level import AbsentFor, LevelFor
from ast_stream.alerts.triggers.pattern import CountWithin, SequenceWithin


def make_trigger(rule: Rule, timing: DetectionTiming) -> Trigger:
    """Return the trigger that a rule's settings ask for; its classes say how late events are."""
    settings = rule.settings
    timing = timing.of_classes(_slugs(rule))
    if settings.for_ is not None:
        return For(settings.for_, settings.tolerate, timing)
    if settings.count is not None:
        count = settings.count
        by_stream = count.distinct == "stream"
        return CountWithin(count.min, count.within, by_stream, rule.matchers[0], timing.latency_ns)
    if settings.sequence is not None:
        return SequenceWithin(len(rule.matchers), settings.sequence.within, timing.latency_ns)
    if settings.absent is not None:
        return AbsentFor(settings.absent.for_, timing.latency_ns)
    if settings.level is not None:
        return LevelFor(
            settings.level.for_,
            louder_than=settings.level.louder_than_dbfs,
            quieter_than=settings.level.quieter_than_dbfs,
            is_missing=settings.level.missing is True,
        )
    return Plain()


def _slugs(rule: Rule) -> frozenset[str] | None:
    """Return the classes of a rule's matchers together; None: any."""
    slugs: frozenset[str] = frozenset()
    for matcher in rule.matchers:
        if matcher.slugs is None:
            return None
        slugs |= matcher.slugs
    return slugs
