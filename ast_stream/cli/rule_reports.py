"""How the results of rule tests and backtests look, for people and for CI."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence

from ast_stream.alerts.backtest import BacktestReport
from ast_stream.alerts.model import Transition
from ast_stream.alerts.rule_tests.files import TestResult
from ast_stream.units import NS_PER_SECOND, format_time

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 48
_LEAST_SPAN_NS = 60 * NS_PER_SECOND  # of less no rate can be told
_FORBIDDEN_IN_XML = {code: "�" for code in range(32) if code not in (9, 10, 13)}


def junit(results: Sequence[TestResult]) -> str:
    """Return test results as JUnit XML."""
    root = ET.Element("testsuites")
    for file in dict.fromkeys(result.file for result in results):
        of_file = [result for result in results if result.file == file]
        failed = sum(bool(result.failures) for result in of_file)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_plain(file),
            tests=str(len(of_file)),
            failures=str(failed),
            errors="0",
        )
        for result in of_file:
            case = ET.SubElement(
                suite, "testcase", name=_plain(result.name), classname=_plain(file)
            )
            if result.failures:
                text = _plain("\n".join(result.failures))
                message = _plain(result.failures[0])
                ET.SubElement(case, "failure", message=message).text = text
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def transition_line(one: Transition) -> str:
    """Return a firing or resolution as a line of a timeline."""
    alert = one.alert
    labels = " ".join(f"{name}={value}" for name, value in sorted(alert.labels.items()))
    text = next(iter(alert.annotations.values()), "")
    time = format_time(one.at_ns)[:19] + "Z"
    return f"{time}  {one.to_state:<8}  {alert.rule:<24}  {labels}  {text}".rstrip()


def summary_lines(report: BacktestReport, firings: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Yield how often each rule fired, and when.

    Args:
        firings: stream time and rule of each.
    """
    if report.first_ns is None or report.last_ns is None:
        yield "no events"
        return
    span_ns = max(report.last_ns - report.first_ns, 1)
    heard_ns = span_ns if report.heard_ns is None else report.heard_ns
    hours = heard_ns / NS_PER_SECOND / 3600
    yield (
        f"{report.events} event messages over {hours:.1f} h, "
        f"from {format_time(report.first_ns)[:19]}Z to {format_time(report.last_ns)[:19]}Z"
    )
    width = max((len(rule) for rule in report.fired), default=0)
    for rule, n_fired in report.fired.items():
        times = [at_ns for at_ns, name in firings if name == rule]
        bars = _bars(times, report.first_ns, span_ns)
        rate = f"{n_fired * 24 / hours:.1f}" if heard_ns >= _LEAST_SPAN_NS else "-"
        line = f"{rule:<{width}}  {n_fired:>5} fired  {rate:>6}/day  |{bars}|"
        held_back = report.held_back.get(rule, {})
        reasons = ", ".join(f"{n} by {reason}" for reason, n in held_back.items())
        yield f"{line}  held back: {reasons}" if reasons else line
    if report.damaged:
        yield f"lines that are no messages: {report.damaged}"


def _bars(times: Sequence[int], first_ns: int, span_ns: int) -> str:
    counts = Counter(min(_COLUMNS - 1, (at_ns - first_ns) * _COLUMNS // span_ns) for at_ns in times)
    most = max(counts.values(), default=1)
    return "".join(
        _BARS[-(-counts[column] * (len(_BARS) - 1) // most)] for column in range(_COLUMNS)
    )


def _plain(text: str) -> str:
    return text.translate(_FORBIDDEN_IN_XML)
