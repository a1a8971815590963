"""Rules that are valid and still not what their author means: warnings for `rules check`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ast_stream.alerts.rules.detector_lint import DetectorFacts, detector_lints
from ast_stream.alerts.rules.match import Vocabulary
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import Rule, RuleSet
from ast_stream.alerts.rules.schema import RuleFile
from ast_stream.labels import slug
from ast_stream.settings.load import Document

Actions = Collection[str] | Mapping[str, Collection[str]]
"""Names of the configured actions, perhaps with whether each takes `firing` and `resolved`."""


def lint(
    rules: RuleSet,
    facts: DetectorFacts | None = None,
    actions: Actions | None = None,
    used: Collection[str] = (),
) -> list[RuleProblem]:
    """Return warnings by file and line.

    Args:
        facts: of the detector; None: what depends on it is not looked at.
        actions: configured ones; None: not known.
        used: actions that something else uses.
    """
    found = [problem for rule in rules.rules for problem in detector_lints(rule, facts)]
    found += [problem for rule in rules.rules for problem in _never(rule)]
    for document, parsed, vocabulary in rules.files:
        found += _unused(document, parsed)
        found += _branch_members(document, parsed, vocabulary)
    found += reach_lints(rules, actions, used)
    return sorted(found, key=lambda one: (one.file, one.line or 0, one.code))


def reach_lints(
    rules: RuleSet, actions: Actions | None, used: Collection[str] = ()
) -> list[RuleProblem]:
    """Return warnings of rules that tell nobody, and of actions by which nobody is told.

    Args:
        actions: configured ones; None: not known.
        used: actions that something else uses.
    """
    if actions is None:
        return []
    found = [problem for rule in rules.rules for problem in _reaches_nobody(rule, actions)]
    return found + list(_unused_actions(rules, actions, used))


def _reaches_nobody(rule: Rule, actions: Collection[str]) -> Iterator[RuleProblem]:
    path = (*rule.path, "alert")
    if rule.actions is None:
        text = (
            f"'{rule.name}' tells nobody: expected 'actions' here, in its group or in 'defaults', "
            "got none ('actions: []' if its alerts are for the feed alone)"
        )
        yield problem_at(rule.document, path, "W213", text)
        return
    kinds = actions if isinstance(actions, Mapping) else dict.fromkeys(actions, ("firing",))
    if rule.actions and not any("firing" in kinds.get(name, ()) for name in rule.actions):
        named = " and ".join(f"'{name}'" for name in rule.actions)
        text = f"'{rule.name}' tells nobody when it fires: {named} is not on for firing"
        yield problem_at(rule.document, path, "W213", text)


def _never(rule: Rule) -> Iterator[RuleProblem]:
    both = sorted(set(rule.settings.when or ()) & set(rule.settings.unless or ()))
    if both:
        text = f"'{both[0]}' is in 'when' and in 'unless': the rule can never fire"
        yield problem_at(rule.document, (*rule.path, "unless"), "W210", text)
    if rule.trigger in ("absent", "level") and {"class", "label"} & set(rule.group_by):
        text = f"'{rule.trigger}' has no class to group by"
        yield problem_at(rule.document, (*rule.path, "group_by"), "W210", text)


def _unused(document: Document, parsed: RuleFile) -> Iterator[RuleProblem]:
    rules = [rule for group in parsed.groups for rule in group.rules]
    windows = {name for rule in rules for name in (*(rule.when or ()), *(rule.unless or ()))}
    for name in parsed.windows:
        if name not in windows:
            text = f"no rule uses the window '{name}'"
            yield problem_at(document, ("windows", name), "W205", text)
    dumped = [rule.model_dump(exclude_none=True) for rule in rules]
    groups = {name for one in dumped for name in _groups_in(one)}
    for name in parsed.classes:
        if name not in groups:
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


def _branch_members(
    document: Document, parsed: RuleFile, vocabulary: Vocabulary
) -> Iterator[RuleProblem]:
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
            and (outside := [one for one in ontology.parents(name) if one not in branch])
            and any(one in branch for one in ontology.parents(name))
        )
        if elsewhere:
            text = f"members that also lie elsewhere: {', '.join(elsewhere)}"
            yield problem_at(document, path, "W208", text)


def _unused_actions(
    rules: RuleSet, actions: Collection[str], used: Collection[str]
) -> Iterator[RuleProblem]:
    by_rules = {name for rule in rules.rules for name in rule.actions or ()}
    for name in sorted(set(actions) - by_rules - set(used)):
        document = rules.files[0][0]
        text = f"no rule uses the action '{name}' of the configuration"
        yield problem_at(document, ("groups",), "W206", text)
