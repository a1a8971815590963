"""Rule tests: a virtual clock, sounds at known times, and exactly the alerts that are expected.

Each test has its own engine. Sounds become the messages that the detector would publish, as late
as `detector` says (without it: at once); scores go through the real decision stage, which whoever
runs the tests supplies. At `restart_at` the state goes through its JSON form into a new engine.
By default (`exact`) every firing and every resolution must be expected; transitions to other
states are compared when a test names that state. What is heard in `down_for` after a restart
comes late, as from the feed's log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ast_stream.alerts.model import Transition
from ast_stream.alerts.rule_tests.run import Decide, Ledger, LoadedTests, TestRun
from ast_stream.alerts.rule_tests.schema import RuleTestFile, TestEvent, TestScores
from ast_stream.alerts.rules.files import load_rules
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import ConfigError
from ast_stream.labels import find_label
from ast_stream.settings.explain import explain
from ast_stream.settings.load import Document, read_document


@dataclass(frozen=True)
class TestResult:
    """What came of one test; it passed if there is no failure."""

    __test__ = False  # not for pytest

    file: str
    name: str
    failures: list[str]


def load_tests(path: Path, *, labels: Sequence[str] | None = None) -> LoadedTests:
    """Return the tests in a file, and the rules, whose paths are relative to it.

    Args:
        labels: classes of the model, where the file does not list any.

    Raises:
        ConfigError: either cannot be used.
    """
    document = read_document(path, "tests")
    problems = list(document.problems)
    try:
        settings = RuleTestFile.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        known = {problem.line for problem in problems}
        for one in explain(details, RuleTestFile, document.file, document.lines):
            if one.line not in known:
                problems.append(RuleProblem(one.file, one.line, one.path, one.text))
        raise ConfigError(problems) from error
    if problems:
        raise ConfigError(problems)
    known_labels = settings.labels or labels
    paths = [path.parent / name for name in settings.rules]
    rules = load_rules(paths, labels=known_labels)
    _check_names(document, settings, {rule.name for rule in rules.rules}, known_labels)
    return LoadedTests(
        document, settings, rules, None if known_labels is None else tuple(known_labels)
    )


def run_tests(
    tests: LoadedTests, decide: Decide | None, new_ledger: Callable[[RuleSet], Ledger]
) -> Iterator[TestResult]:
    """Run the tests of a file one after another.

    Args:
        decide: the decision stage; None: tests with scores fail.
        new_ledger: makes the outbox of one test.
    """
    for index, test in enumerate(tests.settings.tests):
        failures = TestRun(tests, test, index, new_ledger(tests.rules)).failures(decide)
        yield TestResult(tests.document.file, test.name, failures)


def transitions_of(tests: LoadedTests) -> Iterator[list[Transition]]:
    """Yield what happens in each test, whatever it expects; tests of scores are not among these."""
    for index, test in enumerate(tests.settings.tests):
        yield TestRun(tests, test, index, _NoLedger()).transitions(None)


class _NoLedger:
    """Counts no deliveries."""

    def take(self, transitions: list[Transition]) -> None:
        """Leave them."""

    def rows(self) -> int:
        """Return none."""
        return 0


def _check_names(
    document: Document,
    settings: RuleTestFile,
    alerts: Collection[str],
    labels: Sequence[str] | None,
) -> None:
    """Refuse tests of alerts and classes that do not exist: they would always pass."""
    problems = []
    for t, test in enumerate(settings.tests):
        for e, expected in enumerate(test.expect):
            if expected.alert not in alerts:
                text = f"no rule file has the alert '{expected.alert}'"
                problems.append(problem_at(document, ("tests", t, "expect", e), "E109", text))
        sounds: list[tuple[str, int, TestEvent | TestScores]] = [
            *(("events", e, event) for e, event in enumerate(test.events)),
            *(("scores", e, track) for e, track in enumerate(test.scores)),
        ]
        for kind, e, one in sounds:
            if labels is not None and find_label(one.class_, labels) is None:
                text = f"the model has no class '{one.class_}'"
                problems.append(problem_at(document, ("tests", t, kind, e), "E105", text))
    if problems:
        raise ConfigError(list(problems))
