"""Rules that are valid and still not what their author means: warnings for `rules check`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ast_stream.alerts.matching import Vocabulary
from ast_stream.alerts.model import seconds_to_ns
from ast_stream.alerts.problems import RuleProblem, problem_at
from ast_stream.alerts.rules import Rule, RuleSet
from ast_stream.alerts.schema import RuleFile
from ast_stream.labels import slug
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.load import Document
from ast_stream.units import NS_PER_SECOND

_IMPULSIVE = (
    "Bang", "Breaking", "Burst, pop", "Cap gun", "Chop", "Clang", "Clapping", "Coin (dropping)",
    "Cough", "Crack", "Door", "Ding", "Ding-dong", "Explosion", "Finger snapping", "Firecracker",
    "Glass", "Gunshot, gunfire", "Hiccup", "Knock", "Mouse", "Shatter", "Slam", "Slap, smack",
    "Smash, crash", "Sneeze", "Tap", "Thump, thud", "Whack, thwack",
)  # fmt: skip
IMPULSIVE = frozenset(slug(label) for label in _IMPULSIVE)
SHORT_FOR_NS = NS_PER_SECOND // 2  # an impulsive sound may last this long


@dataclass(frozen=True)
class DetectorFacts:
    """What the detector in use does; classes by slug.

    Attributes:
        thresholds: score at which an event may begin.
        silent: classes that make no events: background, or switched off.
        apart_s: two sounds of one class with a shorter pause become one event.
    """

    thresholds: Mapping[str, float]
    silent: Collection[str]
    window_s: float
    apart_s: float


def lint(
    rules: RuleSet, facts: DetectorFacts | None = None, actions: Collection[str] | None = None
) -> list[RuleProblem]:
    """Return warnings by file and line.

    Args:
        facts: of the detector; None: what depends on it is not looked at.
        actions: configured ones; None: not known.
    """
    found = [problem for rule in rules.rules for check in _CHECKS for problem in check(rule, facts)]
    for document, parsed, vocabulary in rules.files:
        found += _unused(document, parsed)
        found += _branch_members(document, parsed, vocabulary)
    found += _unused_actions(rules, actions)
    return sorted(found, key=lambda one: (one.file, one.line or 0, one.code))


def _at(rule: Rule, key: KeyPath, code: str, text: str) -> RuleProblem:
    return problem_at(rule.document, (*rule.path, *key), code, text)


def _low_scores(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    for number, matcher in enumerate(rule.matchers):
        if facts is None or matcher.slugs is None or not matcher.min_score:
            continue
        lowest = min(facts.thresholds.get(one, 0.0) for one in matcher.slugs)
        if matcher.min_score <= lowest:
            text = (
                f"a score of {matcher.min_score:g} keeps nothing out: the detector's own "
                f"threshold is {lowest:g}"
            )
            yield _at(rule, (*_match_path(rule, number), "score"), "W201", text)


def _for_on_impulsive(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    needed = rule.settings.for_
    if needed is None or needed <= SHORT_FOR_NS:
        return
    brief = sorted((rule.matchers[0].slugs or frozenset()) & IMPULSIVE)
    if brief:
        text = f"{', '.join(brief)}: such sounds do not last; 'count' is for repeats"
        yield _at(rule, ("for",), "W202", text)


def _too_fast(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    count = rule.settings.count
    slugs = rule.matchers[0].slugs if rule.matchers else None
    if facts is None or count is None or slugs is None or count.distinct:
        return
    if "stream" not in rule.group_by:  # several streams add up
        return
    each = count.within // seconds_to_ns(facts.apart_s) + 1
    if each * len(slugs) < count.min:
        text = (
            f"at most {each * len(slugs)} events of these classes fit into it: with windows of "
            f"{facts.window_s:g} s, sounds less than {facts.apart_s:g} s apart are one event"
        )
        yield _at(rule, ("count", "within"), "W203", text)


def _unreachable_sequence(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    sequence = rule.settings.sequence
    if sequence is None:
        return
    slugs = [matcher.slugs for matcher in rule.matchers]
    known = [one for one in slugs if one is not None]
    if "class" in rule.group_by and known and not frozenset.intersection(*known):
        text = "grouped by class, but no class fits every step"
        yield _at(rule, ("group_by",), "W204", text)
    streams = [one for one in (matcher.named_streams for matcher in rule.matchers) if one]
    if "stream" in rule.group_by and streams and not frozenset.intersection(*streams):
        text = "grouped by stream, but no stream fits every step; write group_by: []"
        yield _at(rule, ("sequence",), "W204", text)
    repeated = max((slugs.count(one) for one in slugs if one and len(one) == 1), default=1)
    if facts is not None and (repeated - 1) * seconds_to_ns(facts.apart_s) > sequence.within:
        text = (
            f"one class {repeated} times within it: sounds less than {facts.apart_s:g} s apart "
            "are one event"
        )
        yield _at(rule, ("sequence", "within"), "W204", text)


def _silent_classes(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    for number, matcher in enumerate(rule.matchers):
        silent = sorted((matcher.slugs or frozenset()) & frozenset(facts.silent if facts else ()))
        if silent:
            text = f"{', '.join(silent)}: background or switched off, makes no events"
            yield _at(rule, _match_path(rule, number), "W209", text)


def _never(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    both = sorted(set(rule.settings.when or ()) & set(rule.settings.unless or ()))
    if both:
        text = f"'{both[0]}' is in 'when' and in 'unless': the rule can never fire"
        yield _at(rule, ("unless",), "W210", text)
    if rule.trigger in ("absent", "level") and {"class", "label"} & set(rule.group_by):
        text = f"'{rule.trigger}' has no class to group by"
        yield _at(rule, ("group_by",), "W210", text)


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


def _unused_actions(rules: RuleSet, actions: Collection[str] | None) -> Iterator[RuleProblem]:
    used = {name for rule in rules.rules for name in rule.settings.actions}
    for name in sorted(set(actions or ()) - used):
        document = rules.files[0][0]
        text = f"no rule uses the action '{name}' of the configuration"
        yield problem_at(document, ("groups",), "W206", text)


def _match_path(rule: Rule, number: int) -> KeyPath:
    if rule.trigger == "sequence":
        return ("sequence", "steps", number, "match")
    return (rule.trigger, "match") if rule.trigger == "absent" else ("match",)


_CHECKS: tuple[Callable[[Rule, DetectorFacts | None], Iterator[RuleProblem]], ...] = (
    _low_scores,
    _for_on_impulsive,
    _too_fast,
    _unreachable_sequence,
    _silent_classes,
    _never,
)
