"""Lints: rules that are valid but cannot work as intended; the warnings of `rules check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ast_stream.alerts.actions.base import used_without_rules
from ast_stream.alerts.model_facts import DetectorFacts
from ast_stream.alerts.rules.match import Vocabulary
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import Rule, RuleSet
from ast_stream.alerts.rules.schema import RuleFile
from ast_stream.alerts.triggers.base import Finding
from ast_stream.alerts.triggers.same_sound import SameSoundTrigger, too_few
from ast_stream.labels import did_you_mean, slug
from ast_stream.settings.alerts import AlertSettings
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.yaml import Document


def lint(
    rules: RuleSet,
    facts: DetectorFacts | None = None,
    alerts: AlertSettings | None = None,
    streams: Sequence[StreamSettings] = (),
) -> list[RuleProblem]:
    """Return warnings by file and line.

    Args:
        facts: about the detector; None: what depends on it is not checked.
        alerts: with the configured actions; None: those are not known.
        streams: those of the configuration, if it is known.
    """
    found = _stream_lints(rules, streams)
    found += [
        problem_at(rule.document, (*rule.path, *place), code, text)
        for rule in rules.rules
        for place, code, text in _rule_lints(rule, facts)
    ]
    for document, parsed, vocabulary in rules.files:
        found += _unused(document, parsed)
        found += _branch_members(document, vocabulary)
    found += [] if alerts is None else notification_lints(rules, alerts)
    return sorted(found, key=lambda problem: (problem.file, problem.line or 0, problem.code))


def _stream_lints(rules: RuleSet, streams: Sequence[StreamSettings]) -> list[RuleProblem]:
    """Return warnings of what does not fit the configured streams; none are not known."""
    if not streams:
        return []
    return [
        *_calibration_lints(rules, streams),
        *_group_lints(rules, streams),
        *_limit_lints(rules, streams),
        *_absent_stream_lints(rules, streams),
    ]


def _absent_stream_lints(
    rules: RuleSet, streams: Sequence[StreamSettings]
) -> Iterator[RuleProblem]:
    names = [stream.name for stream in streams]
    known = sorted({label for stream in streams for label in stream.labels})
    for rule in rules.rules:
        is_merging = SameSoundTrigger.given(rule.settings) is not None  # names are W216 there
        places = rule.trigger.matches(rule.settings)
        for (place, _), matcher in zip(places, rule.matchers, strict=True):
            if is_merging or any(
                matcher.covers_stream(stream.name, stream.labels) for stream in streams
            ):
                continue
            unknown = [(key, known) for key, _ in matcher.streams if key not in {"id", *known}]
            unknown += [(name, names) for name in sorted(matcher.named_streams or ())]
            near = did_you_mean(*unknown[0]) if unknown else ""
            text = f"'{rule.name}': no configured stream matches{near}"
            yield problem_at(rule.document, (*rule.path, *place, "stream"), "W219", text)
        for label in rule.group_by:
            if label not in {"stream", "class", "label", *known}:
                text = f"no stream has the label '{label}'{did_you_mean(label, known)}"
                yield problem_at(rule.document, (*rule.path, "group_by"), "W219", text)


def _rule_lints(rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
    yield from rule.trigger.lint(rule, facts)
    places = rule.trigger.matches(rule.settings)
    for (place, _), matcher in zip(places, rule.matchers, strict=True):
        if facts is None:
            continue
        if matcher.slugs is not None:
            yield from _match_lints(place, matcher.slugs, matcher.min_score, facts)
        if matcher.min_watcher_score is not None:
            yield from _watcher_lints(place, matcher.slugs, facts)
    both = sorted(set(rule.settings.when or ()) & set(rule.settings.unless or ()))
    if both:
        text = f"'{both[0]}' is in 'when' and in 'unless': the rule can never fire"
        yield ("unless",), "W210", text


def _calibration_lints(rules: RuleSet, streams: Sequence[StreamSettings]) -> Iterator[RuleProblem]:
    for rule in rules.by_levels:
        without = [
            stream.name
            for stream in streams
            if stream.calibration_db is None and rule.covers_stream(stream.name, stream.labels)
        ]
        if without:
            text = f"{', '.join(without)}: without calibration_db no level is known in dB re 20 µPa"
            yield problem_at(rule.document, (*rule.path, "level"), "W215", text)


def _limit_lints(rules: RuleSet, streams: Sequence[StreamSettings]) -> Iterator[RuleProblem]:
    """Yield rules that have more groups of streams than may fire at a time."""
    for rule in rules.rules:
        groups = {
            tuple(rule.group_of(stream.name, stream.labels).items())
            for stream in streams
            if not rule.matchers or rule.covers_stream(stream.name, stream.labels)
        }
        if len(groups) > rule.settings.limit:
            text = (
                f"'{rule.name}' can fire for {len(groups)} streams or groups of them, but no more "
                f"than {rule.settings.limit} (limit) at a time"
            )
            yield problem_at(rule.document, (*rule.path, "alert"), "W218", text)


def _group_lints(rules: RuleSet, streams: Sequence[StreamSettings]) -> Iterator[RuleProblem]:
    """Yield `same_sound` rules whose groups have too few of the configured streams."""
    names = {stream.name for stream in streams}
    for rule in rules.rules:
        given = SameSoundTrigger.given(rule.settings)
        if given is None:
            continue
        named = rule.matchers[0].named_streams
        for name in sorted(named - names) if named is not None else ():
            text = f"there is no stream '{name}'{did_you_mean(name, names)}"
            place = (*rule.path, "match", "stream", "id")
            yield problem_at(rule.document, place, "W216", text)
        sizes = Counter(
            tuple(rule.group_of(stream.name, stream.labels).items())
            for stream in streams
            if rule.covers_stream(stream.name, stream.labels)
        )
        largest = max(sizes.values(), default=0)
        if named is None or largest < len(named):
            for place, code, text in too_few(largest, given):
                yield problem_at(rule.document, (*rule.path, *place), code, text)


def _match_lints(
    place: KeyPath, slugs: frozenset[str], min_score: float, facts: DetectorFacts
) -> Iterator[Finding]:
    lowest = min(facts.thresholds.get(name, 0.0) for name in slugs)
    if 0 < min_score <= lowest:
        text = (
            f"a score of {min_score:g} keeps nothing out: the detector's own "
            f"threshold is {lowest:g}"
        )
        yield (*place, "score"), "W201", text
    without = sorted(slugs & frozenset(facts.without_events))
    if without:
        text = "makes no events: background, or off unless detection.classes enables it"
        yield place, "W209", f"{', '.join(without)}: {text}"


def _watcher_lints(
    place: KeyPath, slugs: frozenset[str] | None, facts: DetectorFacts
) -> Iterator[Finding]:
    unknown = facts.without_watcher & (frozenset(facts.thresholds) if slugs is None else slugs)
    if facts.without_watcher.issuperset(facts.thresholds):
        text = "without model.cascade no event has one: nothing matches"
        yield (*place, "watcher_score"), "W214", text
    elif unknown and slugs is not None:
        text = "the small model of model.cascade does not know it: nothing of it matches"
        yield (*place, "watcher_score"), "W214", f"{', '.join(sorted(unknown))}: {text}"


def notification_lints(rules: RuleSet, alerts: AlertSettings) -> list[RuleProblem]:
    """Return warnings of rules without any action, and of unused actions."""
    found = [problem for rule in rules.rules for problem in _notifies_nobody(rule, alerts)]
    by_rules = {name for rule in rules.rules for name in rule.actions or ()}
    for name in sorted(set(alerts.actions) - by_rules - used_without_rules(alerts)):
        document = rules.files[0][0]
        text = f"no rule uses the action '{name}' of the configuration"
        found.append(problem_at(document, ("groups",), "W206", text))
    return found


def _notifies_nobody(rule: Rule, alerts: AlertSettings) -> Iterator[RuleProblem]:
    path = (*rule.path, "alert")
    if rule.actions is None:
        text = (
            f"'{rule.name}' notifies nobody: expected 'actions' here, in its group or in "
            "'defaults', got none ('actions: []' if its alerts are for the feed alone)"
        )
        yield problem_at(rule.document, path, "W213", text)
        return
    known = [alerts.actions[name] for name in rule.actions if name in alerts.actions]
    if rule.actions and not any("firing" in action.on for action in known):
        named = " and ".join(f"'{name}'" for name in rule.actions)
        text = f"'{rule.name}' notifies nobody when it fires: {named} does not deliver firings"
        yield problem_at(rule.document, path, "W213", text)


def _unused(document: Document, parsed: RuleFile) -> Iterator[RuleProblem]:
    rules = [rule for group in parsed.groups for rule in group.rules]
    windows = {name for rule in rules for name in (*(rule.when or ()), *(rule.unless or ()))}
    for name in (name for name in parsed.windows if name not in windows):
        yield problem_at(document, ("windows", name), "W205", f"no rule uses the window '{name}'")
    groups = {name for rule in rules for name in _groups_in(rule.model_dump(exclude_none=True))}
    for name in (name for name in parsed.classes if name not in groups):
        text = f"no rule uses the class group '{name}'"
        yield problem_at(document, ("classes", name), "W207", text)


def _groups_in(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("group"), list):
            yield from value["group"]
        for inner in value.values():
            yield from _groups_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _groups_in(inner)


def _branch_members(document: Document, vocabulary: Vocabulary) -> Iterator[RuleProblem]:
    ontology = vocabulary.ontology
    if ontology is None:
        return
    for path in document.lines:
        if "under" not in path[-2:]:
            continue
        value: object = document.data
        for part in path:
            value = value[part] if isinstance(value, dict | list) else None  # type: ignore[index]
        if not isinstance(value, str):
            continue
        branch = ontology.branch(value)
        slugs = vocabulary.branch_named(value)
        elsewhere = sorted(
            f"{name} ({', '.join(outside)})"
            for name in branch
            if slug(name) in slugs
            and (outside := [parent for parent in ontology.parents(name) if parent not in branch])
            and any(parent in branch for parent in ontology.parents(name))
        )
        if elsewhere:
            text = f"members that also lie elsewhere: {', '.join(elsewhere)}"
            yield problem_at(document, path, "W208", text)
