"""`ast-stream rules`: alert rules as code: checked, tested, explained and tried on the past."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.alerts.backtest import (
    BacktestReport,
    Message,
    RecordedTest,
    backtest,
    read_messages,
)
from ast_stream.alerts.model_facts import (
    DetectionTiming,
    DetectorFacts,
    decision_parameters,
    detection_timing,
    detector_facts,
    model_facts,
    unwatched,
)
from ast_stream.alerts.rule_test_files import load_tests, parse_moment
from ast_stream.alerts.rule_tests import TestResult, run_tests, transitions_of
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.lint import lint
from ast_stream.alerts.rules.problems import RuleProblem
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.audio.containers import recordings_in
from ast_stream.cli.options import MOMENT, json_option, moment
from ast_stream.cli.output import json_line, say
from ast_stream.cli.rules_report import explain_rule, junit, summary_lines, transition_line
from ast_stream.errors import AudioError, ConfigError, UsageError
from ast_stream.history.database import History
from ast_stream.history.export import in_order
from ast_stream.history.records import EventQuery
from ast_stream.labels import problem_with_labels
from ast_stream.settings.alerts import AlertSettings
from ast_stream.settings.detection import DEFAULT_CONFIRM_S, DEFAULT_HOLD_S, DetectionSettings
from ast_stream.settings.load import load_settings
from ast_stream.settings.model import ModelSettings
from ast_stream.settings.storage import history_database
from ast_stream.settings.streams import StreamSettings
from ast_stream.units import counted, format_time, samples_to_seconds

EXIT_FOUND = 1
_EVER = ("1970-01-01T00:00:00Z", "2200-01-01T00:00:00Z")
MAX_SOUNDS = 1000  # of a recorded test
MAX_GAPS = 1_000_000  # of a backtest on the history

app = typer.Typer(
    no_args_is_help=True, epilog="Example: ast-stream rules check configs/alerts.yaml"
)

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE…", exists=True, dir_okay=False, help="YAML files.")
]
RuleFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The rules (YAML).")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", exists=True, dir_okay=False,
        help="Take model, detection and actions from it.",
    ),
]  # fmt: skip
Model = Annotated[str | None, typer.Option(help="Checkpoint. (default: bundled)")]
Labels = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False,
        help="Instead of a checkpoint: a file with one label on each line.",
    ),
]  # fmt: skip
_EVENTS = typer.Option(
    exists=True, dir_okay=False, help="Event log or output of `subscribe`, JSON lines."
)


@app.command()
def check(
    files: Files,
    config: Config = None,
    model: Model = None,
    labels: Labels = None,
    strict: Annotated[bool, typer.Option(help="Fail on warnings, too.")] = False,
) -> None:
    """Check rule files; prints `file:line:col: error|warning CODE: text`.

    Exit codes: 0 clean, 1 errors (with --strict: or warnings), 2 wrong usage.

    Example: ast-stream rules check configs/alerts.yaml --strict
    """
    context = _context(config, model, labels)
    rules = _load(files, context)
    warnings = lint(rules, context.facts, context.alerts, context.streams)
    for warning in warnings:
        say(str(warning))
    if warnings and strict:
        raise typer.Exit(EXIT_FOUND)
    named = ", ".join(str(file) for file in files)
    say(
        f"{named}: {counted(len(rules.rules), 'rule')}, {counted(len(warnings), 'warning')}",
        err=True,
    )


@app.command("test")
def run_test_files(
    files: Files,
    model: Model = None,
    labels: Labels = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", help="Also write the results as JUnit XML.")
    ] = None,
) -> None:
    """Run tests of rules against a virtual clock; exit 1 if one fails.

    Example: ast-stream rules test configs/alerts-tests.yaml
    """
    context = _context(None, model, labels)
    results: list[TestResult] = []
    for file in files:
        try:
            loaded = load_tests(file, labels=context.labels)
        except ConfigError as error:
            _show_problems(error)
            raise typer.Exit(EXIT_FOUND) from error
        for result in run_tests(loaded):
            results.append(result)
            say(f"{'FAILED' if result.failures else 'passed'}  {file}: {result.name}")
            for failure in result.failures:
                say(f"        {failure}")
    if junit_file is not None:
        _write(junit_file, junit(results).splitlines(), "test: --junit")
    n_failed = sum(bool(result.failures) for result in results)
    say(f"{counted(len(results), 'test')}, {n_failed} failed", err=True)
    if n_failed:
        raise typer.Exit(EXIT_FOUND)


@app.command()
def explain(
    files: Files, config: Config = None, model: Model = None, labels: Labels = None
) -> None:
    """Say what each rule matches among the classes of the model, and how it decides.

    Example: ast-stream rules explain configs/alerts.yaml
    """
    context = _context(config, model, labels)
    for rule in _load(files, context).rules:
        say("\n".join(explain_rule(rule, context.labels, context.facts, context.timing)))
        typer.echo()


@app.command("record")
def record_command(
    rules: RuleFile,
    events: Annotated[list[Path], _EVENTS],
    out: Annotated[Path, typer.Option("--out", "-o", help="The test file to write.")],
    first: Annotated[str, typer.Option("--from", help="Onsets from here on.")] = _EVER[0],
    last: Annotated[str, typer.Option("--to", help="Onsets before this.")] = _EVER[1],
    name: Annotated[str, typer.Option(help="Name of the test.")] = "recorded",
    config: Config = None,
    model: Model = None,
) -> None:
    """Turn a stretch of the past into a rule test; streams get other names.

    It expects what the rules make of it now, so check that before you keep it.

    Example: ast-stream rules record alerts.yaml --events night.jsonl -o night-tests.yaml
    """
    context = _context(config, model, None)
    from_ns, to_ns = _time("record: --from", first), _time("record: --to", last)
    recording = RecordedTest(_load([rules], context))
    with ExitStack() as stack:
        for file in events:
            lines = stack.enter_context(file.open("rb"))
            recording.add(read_messages(lines, BacktestReport()), from_ns, to_ns)
    n_sounds = len(recording.sounds)
    if not 0 < n_sounds <= MAX_SOUNDS:
        raise UsageError(
            f"rules record: expected 1 to {MAX_SOUNDS} sounds, got {n_sounds}; "
            "--from and --to choose the stretch"
        )
    rule_files = [os.path.relpath(rules.resolve(), out.resolve().parent)]
    written = list(recording.lines(rule_files, name, _detector(context)))
    _write(out, [*written, "    expect: []"], "record: --out")
    (transitions,) = transitions_of(load_tests(out, labels=context.labels))
    expected = list(recording.expected_lines(transitions))
    _write(out, [*written, *expected], "record: --out")
    say(
        f"{out}: {counted(n_sounds, 'sound')}, {len(expected) - 1} firings and resolutions",
        err=True,
    )


@app.command("backtest")
def backtest_command(
    rules: RuleFile,
    events: Annotated[list[Path] | None, _EVENTS] = None,
    audio: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Recordings, one after another.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="The history that the recorder of --config keeps.")
    ] = False,
    since: Annotated[str | None, typer.Option(help=f"Of the history: {MOMENT}.")] = None,
    until: Annotated[str | None, typer.Option(help=f"Of the history: {MOMENT}.")] = None,
    start: Annotated[
        str, typer.Option(help="When the first recording began, for windows of time.")
    ] = "2000-01-01T00:00:00Z",
    config: Config = None,
    model: Model = None,
    as_json: Annotated[bool, json_option("One JSON object for each alert.")] = False,
) -> None:
    """Show what rules would have made of the past.

    Of an event in the history only begin, end and the highest score are known: a rule with a
    `score` may fire a little earlier than it would have.

    Example: ast-stream rules backtest configs/alerts.yaml --events week.jsonl
    """
    if [bool(events), bool(audio), history].count(True) != 1:
        raise UsageError(
            "rules backtest: expected one of --events, --audio and --history, got several or none"
        )
    if (since or until) and not history:
        raise UsageError("rules backtest: --since and --until: expected --history, got none")
    context = _context(config, model, None)
    loaded = _load([rules], context)
    report = BacktestReport()
    firings: list[tuple[int, str]] = []
    incomplete: list[str] = []
    with ExitStack() as stack:
        messages: Iterator[Message]
        if history:
            messages = _remembered(config, since, until, stack)
        elif events:
            messages = _logged(events, report, stack)
        else:
            messages = _scanned(audio or [], context, start, report, incomplete)
        for transition in backtest(loaded, messages, report, context.timing):
            if transition.to_state == "firing":
                firings.append((transition.at_ns, transition.alert.rule))
            if as_json:
                at = {"at": format_time(transition.at_ns)}
                typer.echo(json_line(at | transition.alert.to_json()))
            else:
                say(transition_line(transition))
    if report.events == 0 and report.damaged:
        named = ", ".join(map(str, events or ()))
        raise UsageError(
            f"rules backtest: {named}: expected JSON lines of events, "
            f"got {report.damaged} others and no event"
        )
    say("\n".join(summary_lines(report, firings)), err=as_json)
    if incomplete:
        raise AudioError("\n".join(f"rules backtest: {text}" for text in incomplete))


@dataclass(frozen=True)
class RuleContext:
    """What rules are checked against.

    Attributes:
        labels: classes of the model; None: not known, names are taken as they are.
        facts: about the detector; None: not known.
        timing: how late events are.
        confirm_s: the longest confirmation of any class.
        alerts: as configured; None: there is no configuration.
    """

    model: ModelSettings
    detection: DetectionSettings
    labels: tuple[str, ...] | None
    facts: DetectorFacts | None
    timing: DetectionTiming
    confirm_s: float
    alerts: AlertSettings | None
    streams: Sequence[StreamSettings] = ()


def _context(config: Path | None, checkpoint: str | None, labels_file: Path | None) -> RuleContext:
    """Return the context that the command line names: a configuration, checkpoint, or labels.

    Raises:
        ConfigError, CheckpointError, UsageError: something of it cannot be used.
    """
    settings = None if config is None else load_settings(config)
    model = ModelSettings() if settings is None else settings.model
    detection = DetectionSettings() if settings is None else settings.detection
    alerts = None if settings is None else settings.alerts
    streams = (settings and settings.all_streams) or ()
    if checkpoint is not None:
        model = model.model_copy(update={"checkpoint": checkpoint})
    if labels_file is not None:
        listed = _read_labels(labels_file)
        confirm_s = detection.defaults.confirm_s or DEFAULT_CONFIRM_S
        return RuleContext(
            model, detection, listed, None, DetectionTiming(), confirm_s, alerts, streams
        )
    known = model_facts(model)
    if known.labels is None and checkpoint is not None:
        raise UsageError(f"rules: {checkpoint}: expected a folder with a checkpoint, got none")
    parameters = decision_parameters(known, detection, model.hop_s)
    facts = None
    if known.labels is not None:
        facts = detector_facts(parameters, unwatched(model, known.labels))
    timing = detection_timing(parameters)
    longest = int(parameters.confirm_hops.max()) * parameters.geometry.hop
    confirm_s = samples_to_seconds(longest)
    return RuleContext(model, detection, known.labels, facts, timing, confirm_s, alerts, streams)


def _load(files: list[Path], context: RuleContext) -> RuleSet:
    try:
        actions = None if context.alerts is None else context.alerts.actions
        return load_rules(files, labels=context.labels, actions=actions)
    except ConfigError as error:
        _show_problems(error)
        raise typer.Exit(EXIT_FOUND) from error


def _show_problems(error: ConfigError) -> None:
    for problem in error.problems:
        if not isinstance(problem, RuleProblem):
            problem = RuleProblem(problem.file, problem.line, problem.path, problem.text)
        say(str(problem))


def _write(path: Path, lines: Sequence[str], option: str) -> None:
    try:
        path.write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"rules {option}: {path}: {error.strerror}") from error


def _logged(files: list[Path], report: BacktestReport, stack: ExitStack) -> Iterator[Message]:
    for file in files:
        yield from read_messages(stack.enter_context(file.open("rb")), report)


def _remembered(
    config: Path | None, since: str | None, until: str | None, stack: ExitStack
) -> Iterator[Message]:
    if config is None:
        raise UsageError("rules backtest: --history: expected --config, got none")
    now_ns = time.time_ns()
    since_ns, until_ns = moment(since, "--since", now_ns), moment(until, "--until", now_ns)
    path = history_database(load_settings(config)).path
    opened = stack.enter_context(History.open_read_only(path))
    query = EventQuery(since_ns=since_ns, until_ns=until_ns, newest_first=False)
    return in_order(opened.all_events(query), opened.gaps(since_ns, until_ns, limit=MAX_GAPS))


def _scanned(
    files: list[Path],
    context: RuleContext,
    start: str,
    report: BacktestReport,
    incomplete: list[str],
) -> Iterator[Message]:
    from ast_stream.cli.rules_audio import event_messages  # imports torch

    start_ns = _time("backtest: --start", start)
    found = [recordings_in(file) if file.is_dir() else [file] for file in files]
    return event_messages(
        list(chain.from_iterable(found)), context.model, context.detection, start_ns,
        report.add_listened, incomplete.append,
    )  # fmt: skip


def _time(option: str, text: str) -> int:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise UsageError(f"rules {option}: {error}") from error


def _detector(context: RuleContext) -> str:
    """Return the detector's section of a rule test."""
    hold_s = context.detection.defaults.hold_s
    values = {
        "window": 2.0 if context.facts is None else context.facts.window_s,
        "hop": context.model.hop_s,
        "confirm": context.confirm_s,
        "hold": DEFAULT_HOLD_S if hold_s is None else hold_s,
    }
    return "{" + ", ".join(f"{key}: {value:g}s" for key, value in values.items()) + "}"


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"rules: --labels: {path} cannot be read: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    problem = problem_with_labels(labels)
    if problem is not None:
        raise UsageError(f"rules: --labels: {path}: {problem}")
    if not labels:
        raise UsageError(f"rules: --labels: expected one label on each line of {path}, got none")
    return labels
