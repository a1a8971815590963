"""What a rule matches and how it decides, in words, for `rules explain`."""

from __future__ import annotations

from collections.abc import Iterator

from ast_stream.alerts.facts import RuleContext
from ast_stream.alerts.rules.rule import TRIGGERS, Rule
from ast_stream.labels import slug
from ast_stream.units import NS_PER_SECOND


def explain_rule(rule: Rule, context: RuleContext) -> Iterator[str]:
    """Yield lines that say what a rule matches and how it decides."""
    yield f"{rule.name} ({rule.trigger}, {rule.severity}), {rule.document.file}"
    for number, matcher in enumerate(rule.matchers):
        step = f"step {number + 1}: " if rule.trigger == "sequence" else ""
        if rule.trigger != "level":
            yield f"  {step}classes: {', '.join(_classes(matcher.slugs, context))}"
        for exception in matcher.exceptions:
            yield f"  {step}but not: {', '.join(_classes(exception.slugs, context))}"
        if matcher.min_score:
            yield f"  {step}score: at least {matcher.min_score:g}"
        for key, values in matcher.streams:
            yield f"  {step}stream {key}: {' or '.join(sorted(values))}"
    written = rule.document.data
    for part in rule.path:
        written = written[part]  # type: ignore[index]
    for key in (*TRIGGERS, "tolerate", "when", "unless", "keep_firing_for", "cooldown"):
        if key in written:
            yield f"  {key}: {_as_written(written[key])}"
    yield from _hearing(rule, context)
    yield f"  one alert for each: {', '.join(rule.group_by) or 'all together'}"
    yield f"  actions: {', '.join(rule.actions or ()) or 'none, only published'}"


def _hearing(rule: Rule, context: RuleContext) -> Iterator[str]:
    """Say what the detector makes of the sounds, as far as that matters to the trigger."""
    slugs = sorted(frozenset().union(*(one.slugs or () for one in rule.matchers)))
    if context.facts is None or rule.trigger == "level":
        return
    apart = [one for slug_, one in context.facts.apart_s.items() if slug_ in slugs or not slugs]
    if rule.trigger in ("count", "sequence") and apart:
        yield f"  heard: sounds of a class less than {_span(apart)} s apart are one event"
    pauses = [
        context.facts.pause_s(one) for one in context.facts.apart_s if one in slugs or not slugs
    ]
    if rule.trigger in ("for", "absent") and pauses:
        yield f"  heard: pauses of less than {_span(pauses)} s count as sound"
    timing = context.timing.of_classes(slugs or None)
    begin_s, end_s = timing.latency_ns / NS_PER_SECOND, timing.smear_ns / NS_PER_SECOND
    yield (
        f"  told: up to {begin_s:.1f} s after a sound has begun, "
        f"and up to {end_s:.1f} s after it has ended"
    )


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _classes(slugs: frozenset[str] | None, context: RuleContext) -> list[str]:
    if slugs is None:
        return ["any"]
    by_slug = {slug(label): label for label in context.labels or ()}
    thresholds = {} if context.facts is None else context.facts.thresholds
    return [
        f"{by_slug.get(one, one)} (from {thresholds[one]:.2f})"
        if one in thresholds
        else by_slug.get(one, one)
        for one in sorted(slugs)
    ]


def _as_written(value: object) -> str:
    """Return a value of the file on one line, without what it matches: that is shown already."""
    if isinstance(value, dict):
        inside = {key: one for key, one in value.items() if key not in ("match", "steps", "stream")}
        return ", ".join(f"{key} {_as_written(one)}" for key, one in inside.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
