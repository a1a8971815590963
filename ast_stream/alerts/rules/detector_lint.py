"""Rules that ask for more than the detector can tell apart: warnings for `rules check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ast_stream.alerts.model import seconds_to_ns
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import Rule
from ast_stream.labels import slug
from ast_stream.settings.explain import Path as KeyPath
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
        apart_s: two sounds of the class whose onsets are nearer than this become one event.
        shortest_s: no event is shorter.
        longest_s: longer sounds are cut into several events.
    """

    thresholds: Mapping[str, float]
    silent: Collection[str]
    window_s: float
    hop_s: float
    apart_s: Mapping[str, float]
    shortest_s: Mapping[str, float]
    longest_s: Mapping[str, float]

    def pause_s(self, one: str) -> float:
        """Return the shortest pause in a sound that is heard; what is shorter counts as sound."""
        return round(max(0.0, self.apart_s[one] - self.shortest_s[one]), 2)


def detector_lints(rule: Rule, facts: DetectorFacts | None) -> Iterator[RuleProblem]:
    """Yield warnings about one rule; without facts only those that hold for any detector."""
    yield from _for_on_impulsive(rule)
    yield from _unreachable_sequence(rule)
    if facts is not None:
        for check in _CHECKS:
            yield from check(rule, facts)


def _at(rule: Rule, key: KeyPath, code: str, text: str) -> RuleProblem:
    return problem_at(rule.document, (*rule.path, *key), code, text)


def _low_scores(rule: Rule, facts: DetectorFacts) -> Iterator[RuleProblem]:
    for number, matcher in enumerate(rule.matchers):
        if matcher.slugs is None or not matcher.min_score:
            continue
        lowest = min(facts.thresholds.get(one, 0.0) for one in matcher.slugs)
        if matcher.min_score <= lowest:
            text = (
                f"a score of {matcher.min_score:g} keeps nothing out: the detector's own "
                f"threshold is {lowest:g}"
            )
            yield _at(rule, (*_match_path(rule, number), "score"), "W201", text)


def _for_on_impulsive(rule: Rule) -> Iterator[RuleProblem]:
    needed = rule.settings.for_
    if needed is None or needed <= SHORT_FOR_NS:
        return
    brief = sorted((rule.matchers[0].slugs or frozenset()) & IMPULSIVE)
    if brief:
        text = f"{', '.join(brief)}: such sounds do not last; 'count' is for repeats"
        yield _at(rule, ("for",), "W202", text)


def _for_without_effect(rule: Rule, facts: DetectorFacts) -> Iterator[RuleProblem]:
    needed = rule.settings.for_
    slugs = _known(rule, facts)
    if needed is None or not slugs:
        return
    shortest_s = min(facts.shortest_s[one] for one in slugs)
    if needed <= seconds_to_ns(shortest_s):
        text = f"keeps nothing out: no event of these classes is shorter than {shortest_s:g} s"
        yield _at(rule, ("for",), "W211", text)
    longest_s = min(facts.longest_s[one] for one in slugs)
    resumed_s = 1.5 * facts.hop_s  # the next event's onset may be estimated so much too late
    if needed > seconds_to_ns(longest_s) and rule.settings.tolerate < seconds_to_ns(resumed_s):
        text = (
            f"events are cut after {longest_s:g} s (max_duration_s), and the next may begin "
            f"{resumed_s:g} s later: needs 'tolerate: {math.ceil(resumed_s)}s' or more"
        )
        yield _at(rule, ("for",), "W212", text)


def _too_fast(rule: Rule, facts: DetectorFacts) -> Iterator[RuleProblem]:
    count, slugs = rule.settings.count, _known(rule, facts)
    # several streams add up where they are not kept apart
    if count is None or not slugs or count.distinct or "stream" not in rule.group_by:
        return
    fitting = sum(count.within // seconds_to_ns(facts.apart_s[one]) + 1 for one in slugs)
    if fitting < count.min:
        nearest_s = min(facts.apart_s[one] for one in slugs)
        text = (
            f"at most {fitting} events of these classes fit into it: with windows of "
            f"{facts.window_s:g} s, sounds less than {nearest_s:g} s apart are one event"
        )
        yield _at(rule, ("count", "within"), "W203", text)


def _pause_too_short(rule: Rule, facts: DetectorFacts) -> Iterator[RuleProblem]:
    absent, slugs = rule.settings.absent, _known(rule, facts)
    if absent is None or not slugs:
        return
    pause_s = min(facts.pause_s(one) for one in slugs)
    if absent.for_ < seconds_to_ns(pause_s):
        text = (
            f"fires at every pause that is heard at all: with windows of {facts.window_s:g} s "
            f"those are longer than {pause_s:g} s"
        )
        yield _at(rule, ("absent", "for"), "W203", text)


def _unreachable_sequence(rule: Rule) -> Iterator[RuleProblem]:
    if rule.settings.sequence is None:
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


def _sequence_too_fast(rule: Rule, facts: DetectorFacts) -> Iterator[RuleProblem]:
    sequence = rule.settings.sequence
    if sequence is None:
        return
    if sequence.within < seconds_to_ns(facts.hop_s):
        text = f"which came first is not known so exactly: onsets are {facts.hop_s:g} s apart"
        yield _at(rule, ("sequence", "within"), "W203", text)
    lone = [next(iter(one.slugs)) for one in rule.matchers if one.slugs and len(one.slugs) == 1]
    for one in dict.fromkeys(lone):
        apart_s = facts.apart_s.get(one, 0.0)
        if (lone.count(one) - 1) * seconds_to_ns(apart_s) > sequence.within:
            text = (
                f"{one} {lone.count(one)} times within it: sounds less than {apart_s:g} s apart "
                "are one event"
            )
            yield _at(rule, ("sequence", "within"), "W204", text)


def _silent_classes(rule: Rule, facts: DetectorFacts) -> Iterator[RuleProblem]:
    for number, matcher in enumerate(rule.matchers):
        silent = sorted((matcher.slugs or frozenset()) & frozenset(facts.silent))
        if silent:
            text = f"{', '.join(silent)}: background or switched off, makes no events"
            yield _at(rule, _match_path(rule, number), "W209", text)


def _known(rule: Rule, facts: DetectorFacts) -> list[str]:
    """Return the classes of a rule with one matcher, as far as the detector has them."""
    slugs = rule.matchers[0].slugs if rule.matchers else None
    return sorted(one for one in slugs or () if one in facts.apart_s)


def _match_path(rule: Rule, number: int) -> KeyPath:
    if rule.trigger == "sequence":
        return ("sequence", "steps", number, "match")
    return (rule.trigger, "match") if rule.trigger == "absent" else ("match",)


_CHECKS: tuple[Callable[[Rule, DetectorFacts], Iterator[RuleProblem]], ...] = (
    _low_scores,
    _for_without_effect,
    _too_fast,
    _pause_too_short,
    _sequence_too_fast,
    _silent_classes,
)
