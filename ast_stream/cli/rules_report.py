"""The output of `ast-stream rules`: explanations, timelines, summaries and JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence

from ast_stream.alerts.backtest import BacktestReport
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
from ast_stream.alerts.rule_tests import TestResult
from ast_stream.alerts.rules.rule import Rule
from ast_stream.alerts.rules.schema import KINDS
from ast_stream.alerts.triggers.same_sound import SameSoundTrigger
from ast_stream.labels import slug
from ast_stream.units import NS_PER_SECOND, format_time

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 48
_MIN_SPAN_NS = 60 * NS_PER_SECOND  # a shorter span gives no rate
_FORBIDDEN_IN_XML = {code: "�" for code in range(32) if code not in (9, 10, 13)}


def explain_rule(
    rule: Rule,
    labels: Sequence[str] | None,
    facts: DetectorFacts | None,
    timing: DetectionTiming,
) -> Iterator[str]:
    """Yield lines that say what a rule matches and how it decides.

    Args:
        labels: of the model; None: not known.
        facts, timing: about the detector.
    """
    yield f"{rule.name} ({rule.trigger.key}, {rule.severity}), {rule.document.file}"
    for number, matcher in enumerate(rule.matchers):
        step = f"step {number + 1}: " if len(rule.matchers) > 1 else ""
        if rule.trigger.takes_events:
            yield f"  {step}classes: {', '.join(_classes(matcher.slugs, labels, facts))}"
        for exception in matcher.exceptions:
            yield f"  {step}but not: {', '.join(_classes(exception.slugs, labels, facts))}"
        if matcher.min_score:
            yield f"  {step}score: at least {matcher.min_score:g}"
        if matcher.min_watcher_score is not None:
            yield f"  {step}score of the small model: at least {matcher.min_watcher_score:g}"
        if matcher.min_verifier_score is not None:
            yield f"  {step}score of the verifier: at least {matcher.min_verifier_score:g}"
        for key, values in matcher.streams:
            yield f"  {step}stream {key}: {' or '.join(sorted(values))}"
    written = rule.document.data
    for part in rule.path:
        written = written[part]  # type: ignore[index]
    keys = [kind.key for kind in KINDS] + [key for kind in KINDS for key in kind.more_keys]
    for key in (*keys, "when", "unless", "keep_firing_for", "cooldown"):
        if key in written:
            yield f"  {key}: {_as_written(written[key])}"
    if facts is not None and rule.trigger.takes_events:
        yield from _limits(rule, facts, timing)
    yield f"  one alert for each: {', '.join(rule.group_by) or 'all together'}"
    yield f"  actions: {', '.join(rule.actions or ()) or 'none, only published'}"


def _limits(rule: Rule, facts: DetectorFacts, timing: DetectionTiming) -> Iterator[str]:
    """Yield what the detector can tell apart, as far as it matters to the trigger, and how late."""
    slugs = sorted(frozenset().union(*(matcher.slugs or () for matcher in rule.matchers)))
    names = [name for name in facts.apart_s if name in slugs or not slugs]
    if rule.trigger.is_pattern and names:
        apart = _span([facts.apart_s[name] for name in names])
        yield f"  resolution: sounds of a class less than {apart} s apart are one event"
    if rule.trigger.is_about_pauses and names:
        pauses = _span([facts.pause_s(name) for name in names])
        yield f"  resolution: pauses of less than {pauses} s count as sound"
    timing = timing.of_classes(slugs or None)
    begin_s, end_s = timing.latency_ns / NS_PER_SECOND, timing.smear_ns / NS_PER_SECOND
    yield (
        f"  latency: up to {begin_s:.1f} s after a sound has begun, "
        f"and up to {end_s:.1f} s after it has ended"
    )
    merging = SameSoundTrigger.given(rule.settings)
    if merging is not None:
        wait_s = SameSoundTrigger.waits_ns(merging, timing) / NS_PER_SECOND
        yield f"  it fires {wait_s:.1f} s after the first onset: by then all streams have reported"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _classes(
    slugs: frozenset[str] | None, labels: Sequence[str] | None, facts: DetectorFacts | None
) -> list[str]:
    if slugs is None:
        return ["any"]
    by_slug = {slug(label): label for label in labels or ()}
    thresholds = {} if facts is None else facts.thresholds
    return [
        f"{by_slug.get(name, name)} (from {thresholds[name]:.2f})"
        if name in thresholds
        else by_slug.get(name, name)
        for name in sorted(slugs)
    ]


def _as_written(value: object) -> str:
    """Return a value of the file on one line, without what it matches: that is shown already."""
    if isinstance(value, dict):
        inside = {
            key: item for key, item in value.items() if key not in ("match", "steps", "stream")
        }
        return ", ".join(f"{key} {_as_written(item)}" for key, item in inside.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def junit(results: Sequence[TestResult]) -> str:
    root = ET.Element("testsuites")
    for file in dict.fromkeys(result.file for result in results):
        of_file = [result for result in results if result.file == file]
        n_failed = str(sum(bool(result.failures) for result in of_file))
        counts = {"tests": str(len(of_file)), "failures": n_failed, "errors": "0"}
        suite = ET.SubElement(root, "testsuite", {"name": _plain(file), **counts})
        for result in of_file:
            names = {"name": _plain(result.name), "classname": _plain(file)}
            case = ET.SubElement(suite, "testcase", names)
            if result.failures:
                message = _plain(result.failures[0])
                failure = ET.SubElement(case, "failure", message=message)
                failure.text = _plain("\n".join(result.failures))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def transition_line(transition: Transition) -> str:
    """Return a firing or resolution as a line of a timeline."""
    alert = transition.alert
    labels = " ".join(f"{name}={value}" for name, value in sorted(alert.labels.items()))
    text = next(iter(alert.annotations.values()), "")
    time = format_time(transition.at_ns)[:19] + "Z"
    return f"{time}  {transition.to_state:<8}  {alert.rule:<24}  {labels}  {text}".rstrip()


def summary_lines(report: BacktestReport, firings: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Yield how often each rule fired, and when.

    Args:
        firings: stream time and rule of each.
    """
    if report.first_ns is None or report.last_ns is None:
        yield "no events"
        return
    span_ns = max(report.last_ns - report.first_ns, 1)
    listened_ns = span_ns if report.listened_ns is None else report.listened_ns
    hours = listened_ns / NS_PER_SECOND / 3600
    yield (
        f"{report.events} event messages over {hours:.1f} h, "
        f"from {format_time(report.first_ns)[:19]}Z to {format_time(report.last_ns)[:19]}Z"
    )
    width = max((len(rule) for rule in report.fired), default=0)
    for rule, n_fired in report.fired.items():
        times = [at_ns for at_ns, name in firings if name == rule]
        bars = _bars(times, report.first_ns, span_ns)
        rate = f"{n_fired * 24 / hours:.1f}" if listened_ns >= _MIN_SPAN_NS else "-"
        line = f"{rule:<{width}}  {n_fired:>5} fired  {rate:>6}/day  |{bars}|"
        suppressed = report.suppressed.get(rule, {})
        reasons = ", ".join(f"{n} by {reason}" for reason, n in suppressed.items())
        yield f"{line}  suppressed: {reasons}" if reasons else line
    if report.not_judged:
        names = ", ".join(report.not_judged)
        yield f"not judged, for they go by messages of health or levels, which are missing: {names}"
    if report.damaged:
        yield f"lines that are not messages: {report.damaged}"


def _bars(times: Sequence[int], first_ns: int, span_ns: int) -> str:
    counts = Counter(min(_COLUMNS - 1, (at_ns - first_ns) * _COLUMNS // span_ns) for at_ns in times)
    most = max(counts.values(), default=1)
    return "".join(
        _BARS[-(-counts[column] * (len(_BARS) - 1) // most)] for column in range(_COLUMNS)
    )


def _plain(text: str) -> str:
    return text.translate(_FORBIDDEN_IN_XML)
