"""From rule files to rules: every name is resolved, and every problem told at its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ast_stream.alerts.rules.compile import FileCompiler
from ast_stream.alerts.rules.parsing import alert_names, coded
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.load import Document, read_document


def load_rules(
    paths: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    actions: Collection[str] | None = None,
) -> RuleSet:
    """Return the rules in files.

    Args:
        labels: the model's classes, to check names against; None: names are taken as they are.
        actions: names of the configured actions; None: not known, any name will do.

    Raises:
        ConfigError: the files cannot be used; every problem of all of them is listed, each a
            `RuleProblem`.
    """
    documents: list[Document] = []
    unread: list[Problem] = []
    for path in paths:
        try:
            documents.append(read_rule_document(path))
        except ConfigError as error:
            unread += error.problems
    try:
        rules = compile_rules(documents, labels=labels, actions=actions)
    except ConfigError as error:
        # an alert that is not found may stand in a file that could not be read
        known = [one for one in error.problems if not unread or getattr(one, "code", "") != "E109"]
        raise ConfigError(unread + known) from error
    if unread:
        raise ConfigError(unread)
    return rules


def read_rule_document(path: Path) -> Document:
    """Return a rule file as plain data.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return read_document(path, "groups")
    except ConfigError as error:
        raise ConfigError([coded(problem) for problem in error.problems]) from error


def compile_rules(
    documents: Sequence[Document],
    *,
    labels: Sequence[str] | None = None,
    actions: Collection[str] | None = None,
) -> RuleSet:
    """Return the rules in documents that have been read; as `load_rules`."""
    problems: list[Problem] = []
    whole = RuleSet(resume_ns=0)
    lines: dict[str, str] = {}
    for document in documents:
        compiler = FileCompiler(document, labels, actions, lines)
        part = compiler.compile()
        problems += compiler.problems
        whole = RuleSet(
            rules=whole.rules + part.rules,
            inhibitions=whole.inhibitions + part.inhibitions,
            resume_ns=max(whole.resume_ns, part.resume_ns),
            files=whole.files + part.files,
        )
    problems += _unknown_inhibitions(whole)
    if problems:
        raise ConfigError(sorted(problems, key=lambda one: (one.file, one.line or 0)))
    return whole


def _unknown_inhibitions(rules: RuleSet) -> Iterator[RuleProblem]:
    names = {name for document, _, _ in rules.files for name in alert_names(document)}
    for document, parsed, _ in rules.files:
        for index, inhibit in enumerate(parsed.inhibit):
            for side, selector in (("source", inhibit.source), ("target", inhibit.target)):
                for name in selector.alert or []:
                    if name not in names:
                        text = f"there is no alert '{name}'{did_you_mean(name, names)}"
                        path: KeyPath = ("inhibit", index, side, "alert")
                        yield problem_at(document, path, "E109", text)
