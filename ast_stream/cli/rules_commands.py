"""`ast-stream rules`: alert rules as code: checked, tested, explained and tried on the past."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ast_stream.alerts.backtest import BacktestReport, backtest, read_messages
from ast_stream.alerts.facts import RuleContext, rule_context
from ast_stream.alerts.rule_tests.files import TestResult, load_tests, run_tests
from ast_stream.alerts.rule_tests.schema import parse_moment
from ast_stream.alerts.rules.files import load_rules
from ast_stream.alerts.rules.lint import lint
from ast_stream.alerts.rules.problems import RuleProblem
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.audio.recording import recordings_in
from ast_stream.cli.output import json_line, say
from ast_stream.cli.rule_explain import explain_rule
from ast_stream.cli.rule_ledger import OutboxLedger
from ast_stream.cli.rule_recording import write_test
from ast_stream.cli.rule_reports import junit, summary_lines, transition_line
from ast_stream.cli.rule_scores import decide
from ast_stream.errors import AudioError, ConfigError, UsageError
from ast_stream.units import format_time

EXIT_FOUND = 1
_EVER = ("1970-01-01T00:00:00Z", "2200-01-01T00:00:00Z")

app = typer.Typer(
    no_args_is_help=True, epilog="Example: ast-stream rules check configs/alerts.yaml"
)

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE…", exists=True, dir_okay=False, help="YAML files.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        exists=True,
        dir_okay=False,
        help="Take model, detection and actions from it.",
    ),
]
Model = Annotated[str | None, typer.Option(help="Checkpoint. (default: bundled)")]
Labels = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Instead of a checkpoint: a file with one label on each line.",
    ),
]


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
    context = rule_context(config, model, labels)
    rules = _load(files, context)
    warnings = lint(rules, context.facts, context.actions, context.used_actions)
    for warning in warnings:
        say(str(warning))
    if warnings and strict:
        raise typer.Exit(EXIT_FOUND)
    named = ", ".join(str(file) for file in files)
    say(f"{named}: {len(rules.rules)} rules, {len(warnings)} warnings", err=True)


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
    context = rule_context(None, model, labels)
    results: list[TestResult] = []
    for file in files:
        try:
            loaded = load_tests(file, labels=context.labels)
        except ConfigError as error:
            _show_problems(error)
            raise typer.Exit(EXIT_FOUND) from error
        with ExitStack() as stack:
            for result in run_tests(loaded, decide, partial(OutboxLedger, stack=stack)):
                results.append(result)
                say(f"{'FAILED' if result.failures else 'passed'}  {file}: {result.name}")
                for failure in result.failures:
                    say(f"        {failure}")
    if junit_file is not None:
        _write(junit_file, junit(results))
    n_failed = sum(bool(result.failures) for result in results)
    say(f"{len(results)} tests, {n_failed} failed", err=True)
    if n_failed:
        raise typer.Exit(EXIT_FOUND)


@app.command()
def explain(
    files: Files, config: Config = None, model: Model = None, labels: Labels = None
) -> None:
    """Say what each rule matches among the classes of the model, and how it decides.

    Example: ast-stream rules explain configs/alerts.yaml
    """
    context = rule_context(config, model, labels)
    for rule in _load(files, context).rules:
        say("\n".join(explain_rule(rule, context)))
        typer.echo()


@app.command("record")
def record_command(
    rules: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The rules (YAML).")],
    events: Annotated[
        list[Path],
        typer.Option(
            exists=True, dir_okay=False, help="Event log or output of `subscribe`, JSON lines."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The test file to write.")],
    first: Annotated[str, typer.Option("--from", help="Onsets from here on.")] = _EVER[0],
    last: Annotated[str, typer.Option("--to", help="Onsets before this.")] = _EVER[1],
    name: Annotated[str, typer.Option(help="Name of the test.")] = "recorded",
    config: Config = None,
    model: Model = None,
) -> None:
    """Turn a stretch of the past into a rule test; streams get other names.

    It expects what the rules make of it now, so look at that before you keep it.

    Example: ast-stream rules record alerts.yaml --events night.jsonl -o night-tests.yaml
    """
    context = rule_context(config, model, None)
    n_sounds, n_told = write_test(
        _load([rules], context),
        rules,
        events,
        out,
        from_ns=_time("record: --from", first),
        to_ns=_time("record: --to", last),
        name=name,
        context=context,
    )
    say(f"{out}: {n_sounds} sounds, {n_told} firings and resolutions", err=True)


@app.command("backtest")
def backtest_command(
    rules: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The rules (YAML).")],
    events: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="Event log or output of `subscribe`, JSON lines."
        ),
    ] = None,
    audio: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Recordings, one after another.")
    ] = None,
    start: Annotated[
        str, typer.Option(help="When the first recording began, for windows of time.")
    ] = "2000-01-01T00:00:00Z",
    config: Config = None,
    model: Model = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for each alert.")
    ] = False,
) -> None:
    """Show what rules would have made of the past.

    Example: ast-stream rules backtest configs/alerts.yaml --events week.jsonl
    """
    if bool(events) == bool(audio):
        raise UsageError("rules backtest: expected --events or --audio, got both or neither")
    context = rule_context(config, model, None)
    loaded = _load([rules], context)
    report = BacktestReport()
    firings: list[tuple[int, str]] = []
    incomplete: list[str] = []
    with ExitStack() as stack:
        bodies = (
            _logged(events, report, stack)
            if events
            else _heard(audio or [], context, start, report, incomplete)
        )
        for one in backtest(loaded, bodies, report, context.timing):
            if one.to_state == "firing":
                firings.append((one.at_ns, one.alert.rule))
            if as_json:
                at = {"at": format_time(one.at_ns)}
                typer.echo(json_line(at | one.alert.body()))
            else:
                say(transition_line(one))
    if report.events == 0 and report.damaged:
        named = ", ".join(map(str, events or ()))
        raise UsageError(
            f"rules backtest: {named}: expected JSON lines of events, "
            f"got {report.damaged} others and no event"
        )
    say("\n".join(summary_lines(report, firings)), err=as_json)
    if incomplete:
        raise AudioError("\n".join(f"rules backtest: {text}" for text in incomplete))


def _load(files: list[Path], context: RuleContext) -> RuleSet:
    try:
        return load_rules(files, labels=context.labels, actions=context.actions)
    except ConfigError as error:
        _show_problems(error)
        raise typer.Exit(EXIT_FOUND) from error


def _show_problems(error: ConfigError) -> None:
    for problem in error.problems:
        if not isinstance(problem, RuleProblem):
            problem = RuleProblem(problem.file, problem.line, problem.path, problem.text)
        say(str(problem))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"rules test: --junit: {path}: {error.strerror}") from error


def _logged(
    files: list[Path], report: BacktestReport, stack: ExitStack
) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from read_messages(stack.enter_context(file.open("rb")), report)


def _heard(
    files: list[Path],
    context: RuleContext,
    start: str,
    report: BacktestReport,
    incomplete: list[str],
) -> Iterator[dict[str, Any]]:
    from ast_stream.cli.rule_audio import event_bodies  # imports torch

    start_ns = _time("backtest: --start", start)
    files = [one for file in files for one in (recordings_in(file) if file.is_dir() else [file])]
    return event_bodies(
        files, context.model, context.detection, start_ns, report.add_heard, incomplete.append
    )


def _time(option: str, text: str) -> int:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise UsageError(f"rules {option}: {error}") from error
