"""From plain data to a rule file as its models have it; what is wrong is noted, the rest used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ast_stream.alerts.rules.problems import Notes, RuleProblem, shortened
from ast_stream.alerts.rules.schema import RuleFile
from ast_stream.errors import Problem
from ast_stream.settings.explain import explain, show_path
from ast_stream.settings.load import Document


def parse_rule_file(notes: Notes) -> tuple[RuleFile, list[list[int]]] | None:
    """Return a file as far as it is right, None if more than rules is wrong.

    Rules with wrong keys or values are left out, so that other mistakes are told, too.

    Returns:
        The file, and for each group where in the document its rules stand.
    """
    data = notes.document.data
    try:
        parsed = RuleFile.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        _note(notes, details)
        return _parse_without(data, _wrong_rules([one["loc"] for one in details]))
    _note(notes, [])
    return parsed, [list(range(len(group.rules))) for group in parsed.groups]


def coded(problem: Problem) -> RuleProblem:
    """Return a problem of reading YAML with its code."""
    return RuleProblem(problem.file, problem.line, problem.path, problem.text, None, "E100")


def alert_names(document: Document) -> set[str]:
    """Return the names of all alerts in a document, also of rules that are wrong."""
    data = document.data if isinstance(document.data, dict) else {}
    groups = data.get("groups")
    rules = [
        rule
        for group in (groups if isinstance(groups, list) else [])
        if isinstance(group, dict) and isinstance(group.get("rules"), list)
        for rule in group["rules"]
    ]
    return {str(rule["alert"]) for rule in rules if isinstance(rule, dict) and "alert" in rule}


def _note(notes: Notes, details: list[ErrorDetails]) -> None:
    """Note what reading and validating found, once for each place."""
    document = notes.document
    found = {(one.line, one.path): coded(one) for one in document.problems}
    for one in explain(details, RuleFile, document.file, document.lines):
        column = _column(document, one)
        text = shortened(one.text)
        problem = RuleProblem(one.file, one.line, one.path, text, column, "E101")
        found.setdefault((one.line, one.path), problem)
    notes.problems += found.values()


def _wrong_rules(locations: Iterable[tuple[int | str, ...]]) -> set[tuple[int, int]]:
    """Return group and number of the rules in which something is wrong."""
    return {
        (one[1], one[3])
        for one in locations
        if len(one) > 3
        and (one[0], one[2]) == ("groups", "rules")
        and isinstance(one[1], int)
        and isinstance(one[3], int)
    }


def _parse_without(
    data: Any, wrong: set[tuple[int, int]]
) -> tuple[RuleFile, list[list[int]]] | None:
    groups = data.get("groups") if isinstance(data, dict) else None
    if not wrong or not isinstance(groups, list):
        return None
    kept, numbers = [], []
    for g, group in enumerate(groups):
        rules = group.get("rules") if isinstance(group, dict) else None
        if not isinstance(rules, list):
            return None
        right = [r for r in range(len(rules)) if (g, r) not in wrong]
        numbers.append(right)
        kept.append(group | {"rules": [rules[r] for r in right]})
    try:
        return RuleFile.model_validate(data | {"groups": kept}), numbers
    except ValidationError:  # something else than a rule is wrong, and has been noted
        return None


def _column(document: Document, problem: Problem) -> int | None:
    """Return the column of what a problem on some line is about."""
    around = [
        path
        for path, line in document.lines.items()
        if line == problem.line and problem.path.startswith(show_path(path))
    ]
    return document.columns[max(around, key=len)] if around else None
