"""`ast-stream rules record`: a stretch of the past as a rule test."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from ast_stream.alerts.backtest import BacktestReport, read_messages
from ast_stream.alerts.facts import RuleContext
from ast_stream.alerts.rule_tests.files import load_tests, transitions_of
from ast_stream.alerts.rule_tests.record import Recording
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import UsageError

MAX_SOUNDS = 1000


def write_test(
    rules: RuleSet,
    rule_file: Path,
    events: Iterable[Path],
    out: Path,
    *,
    from_ns: int,
    to_ns: int,
    name: str,
    context: RuleContext,
) -> tuple[int, int]:
    """Write a test file; return how many sounds it has, and how many firings and resolutions.

    Raises:
        UsageError: no sounds, too many, or a file that cannot be written.
    """
    recording = Recording(rules)
    with ExitStack() as stack:
        for file in events:
            lines = stack.enter_context(file.open("rb"))
            recording.hear(read_messages(lines, BacktestReport()), from_ns, to_ns)
    n_sounds = len(recording.sounds)
    if not 0 < n_sounds <= MAX_SOUNDS:
        raise UsageError(
            f"rules record: expected 1 to {MAX_SOUNDS} sounds, got {n_sounds}; "
            "--from and --to choose the stretch"
        )
    rule_files = [os.path.relpath(rule_file.resolve(), out.resolve().parent)]
    written = list(recording.lines(rule_files, name, _detector(context)))
    _write(out, [*written, "    expect: []"])
    (found,) = transitions_of(load_tests(out, labels=context.labels))
    expected = list(recording.expected_lines(found))
    _write(out, [*written, *expected])
    return n_sounds, len(expected) - 1


def _detector(context: RuleContext) -> str:
    defaults = context.detection.defaults
    window_s = 2.0 if context.facts is None else context.facts.window_s
    values = {
        "window": window_s,
        "hop": context.model.hop_s,
        "confirm": context.confirm_s,
        "hold": defaults.hold_s,
    }
    return "{" + ", ".join(f"{key}: {value:g}s" for key, value in values.items()) + "}"


def _write(path: Path, lines: list[str]) -> None:
    try:
        path.write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"rules record: --out: {path}: {error.strerror}") from error
