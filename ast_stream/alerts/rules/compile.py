"""From rule files to rules: names are resolved, and every problem is reported at its line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ast_stream.alerts.rules.match import Ontology, Vocabulary, compile_match
from ast_stream.alerts.rules.problems import Notes, RuleProblem, problem_at
from ast_stream.alerts.rules.rule import Rule, RuleSet
from ast_stream.alerts.rules.schema import KINDS, Defaults, Group, RuleFile, RuleSettings
from ast_stream.alerts.rules.templates import Template
from ast_stream.alerts.rules.windows import TimeWindow, compile_windows
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean
from ast_stream.runtime.files import DamagedFileError, read_bounded
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.explain import explain_by_path
from ast_stream.settings.yaml import Document, read_document

MAX_ONTOLOGY_BYTES = 8 * 1024 * 1024  # AudioSet's has 0.4


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
        known = [
            problem
            for problem in error.problems
            if not unread or getattr(problem, "code", "") != "E109"
        ]
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
        return read_document(path, "groups", "rule file")
    except ConfigError as error:
        raise ConfigError([_coded(problem) for problem in error.problems]) from error


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
        compiler = _FileCompiler(document, labels, actions, lines)
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
        raise ConfigError(sorted(problems, key=lambda problem: (problem.file, problem.line or 0)))
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


class _FileCompiler:
    """Turns one file into rules, noting what is wrong.

    Args:
        labels: the model's classes; None: names are taken as they are.
        actions: names of the configured actions; None: any will do.
        places: where each alert's name was given first, over all files; is added to.
    """

    def __init__(
        self,
        document: Document,
        labels: Sequence[str] | None,
        actions: Collection[str] | None,
        places: dict[str, str],
    ) -> None:
        self._document = document
        self._labels = labels
        self._actions = actions
        self._places = places
        self._notes = Notes(document)
        self._vocabulary = Vocabulary()
        self._windows: dict[str, TimeWindow | None] = {}
        self._defaults = Defaults()

    @property
    def problems(self) -> list[RuleProblem]:
        """What has been noted."""
        return self._notes.problems

    def compile(self) -> RuleSet:
        """Return the file's rules; those with problems are left out."""
        parsed, wrong = _parse_rule_file(self._notes)
        if parsed is None:
            return RuleSet(resume_ns=0)
        self._defaults = parsed.defaults
        labels = None if self._labels is None else tuple(self._labels)
        groups = {name: tuple(members) for name, members in parsed.classes.items()}
        self._vocabulary = Vocabulary(labels, self._ontology(parsed.ontology), groups)
        for name in groups:
            self._notes.attempt(("classes", name), "E105", self._vocabulary.group_named, name)
        self._check_actions(parsed.defaults.actions, ("defaults", "actions"))
        for g, group in enumerate(parsed.groups):
            self._check_actions(group.actions, ("groups", g, "actions"))
        self._windows = compile_windows(parsed.windows, parsed.defaults.timezone, self._notes)
        rules = [
            self._rule(settings, group, ("groups", g, "rules", number))
            for g, group in enumerate(parsed.groups)
            for number, settings in zip(
                _right_rules(g, len(self._document.data["groups"][g]["rules"]), wrong),
                group.rules,
                strict=True,
            )
        ]
        return RuleSet(
            rules=tuple(rule for rule in rules if rule is not None),
            inhibitions=tuple(parsed.inhibit),
            resume_ns=parsed.defaults.resume_window,
            files=((self._document, parsed, self._vocabulary),),
        )

    def _ontology(self, name: str | None) -> Ontology | None:
        if name is None:
            return None
        path = Path(self._document.file).parent / name
        try:
            return Ontology.parse(read_bounded(path, MAX_ONTOLOGY_BYTES).decode())
        except OSError as error:
            self._notes.add(("ontology",), "E106", f"{path}: cannot be read: {error.strerror}")
        except (ValueError, DamagedFileError) as error:
            self._notes.add(("ontology",), "E106", f"{path}: {error}")
        return None

    def _rule(self, settings: RuleSettings, group: Group, path: KeyPath) -> Rule | None:
        before = len(self.problems)
        _check_trigger(settings, path, self._notes)
        self._check_name(settings, path)
        matchers = tuple(
            compile_match(match, (*path, *place), self._vocabulary, self._notes)
            for place, match in settings.trigger.matches(settings)
        )
        parsed = {
            name: self._notes.attempt((*path, "annotations", name), "E107", Template.parse, text)
            for name, text in settings.annotations.items()
        }
        when = self._named_windows(settings.when, (*path, "when"))
        unless = self._named_windows(settings.unless, (*path, "unless"))
        self._check_actions(settings.actions, (*path, "actions"))
        if len(self.problems) != before:
            return None
        defaults = self._defaults
        return Rule(
            name=settings.alert,
            group=group.name,
            settings=settings,
            matchers=matchers,
            group_by=_grouping(settings, defaults),
            when=when,
            unless=unless,
            keep_ns=_or_default(settings.keep_firing_for, defaults.keep_firing_for),
            cooldown_ns=_or_default(settings.cooldown, defaults.cooldown),
            severity=settings.severity or defaults.severity,
            labels=dict(group.labels) | settings.labels,
            actions=_innermost(settings.actions, group.actions, defaults.actions),
            annotations={
                name: template for name, template in parsed.items() if template is not None
            },
            document=self._document,
            path=path,
        )

    def _check_name(self, settings: RuleSettings, path: KeyPath) -> None:
        where = (*path, "alert")
        line = self._document.lines.get(where)
        if settings.alert in self._places:
            text = f"the alert '{settings.alert}' is there twice, first at "
            self._notes.add(where, "E108", text + self._places[settings.alert])
        else:
            self._places[settings.alert] = f"{self._document.file}:{line}"

    def _check_actions(self, names: Sequence[str] | None, path: KeyPath) -> None:
        for index, name in enumerate(names or ()):
            if self._actions is not None and name not in self._actions:
                near = did_you_mean(name, self._actions)
                known = near or f"; configured: {', '.join(sorted(self._actions)) or 'none'}"
                self._notes.add((*path, index), "E104", f"unknown action '{name}'{known}")

    def _named_windows(self, names: Sequence[str] | None, path: KeyPath) -> tuple[TimeWindow, ...]:
        for index, name in enumerate(names or ()):
            if name not in self._windows:
                near = did_you_mean(name, self._windows)
                self._notes.add((*path, index), "E103", f"there is no window '{name}'{near}")
        found = [self._windows.get(name) for name in names or ()]
        return tuple(window for window in found if window is not None)


def _check_trigger(settings: RuleSettings, path: KeyPath, notes: Notes) -> None:
    given = settings.kinds
    if len(given) > 1:
        text = f"expected one trigger, got {' and '.join(kind.key for kind in given)}"
        notes.add((*path, given[1].key), "E102", text)
    elif given and given[0].match_place is not None and settings.match:
        key, place = given[0].key, given[0].match_place
        text = f"with '{key}' expected what to match inside '{place}', got 'match' beside it"
        notes.add((*path, "match"), "E102", text)
    elif settings.match is None and not given:
        *others, last = [kind.key for kind in KINDS if kind.match_place is not None]
        text = f"expected 'match', {', '.join(others)} or {last}, got neither"
        notes.add(path, "E102", text)
    elif settings.match is None and given[0].match_place is None:
        notes.add(path, "E102", f"expected 'match' beside '{given[0].key}'")
    for kind in given[:1]:
        if kind.merges_streams and "stream" in (settings.group_by or ()):
            text = f"'{kind.key}' is about several streams: expected no 'stream' here"
            notes.add((*path, "group_by"), "E101", text)
    for kind in KINDS:
        for key in kind.more_keys:
            if getattr(settings, key) and kind not in given:
                text = f"'{key}' belongs to '{kind.key}', got no '{kind.key}'"
                notes.add((*path, key), "E102", text)


def _grouping(settings: RuleSettings, defaults: Defaults) -> tuple[str, ...]:
    given = defaults.group_by if settings.group_by is None else settings.group_by
    if not settings.trigger.merges_streams:
        return tuple(given)
    return ("class", *(name for name in given if name not in ("class", "stream")))


def _innermost(*levels: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the list of the innermost level that has one; None: none has."""
    return next((tuple(level) for level in levels if level is not None), None)


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value


def _parse_rule_file(notes: Notes) -> tuple[RuleFile | None, set[KeyPath]]:
    """Return a file as far as it is right, None if more than rules is wrong; and the wrong rules.

    Rules with wrong keys or values are left out, so that other mistakes are reported, too.
    """
    document = notes.document
    found = {(problem.line, problem.path): _coded(problem) for problem in document.problems}
    wrong: set[KeyPath] = set()
    parsed: RuleFile | None
    try:
        parsed = RuleFile.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = explain_by_path(details, RuleFile, document.file, document.lines)
        for path, problem in problems.items():
            coded = problem_at(document, path, "E101", problem.text)
            found.setdefault((problem.line, problem.path), coded)
        wrong = {detail["loc"][:4] for detail in details}
        parsed = _parse_without(document.data, wrong)
    notes.problems += found.values()
    return parsed, wrong


def _parse_without(data: Any, wrong: set[KeyPath]) -> RuleFile | None:
    """Return a file without some of its rules; None if something else is wrong."""
    if any(len(place) < 4 or (place[0], place[2]) != ("groups", "rules") for place in wrong):
        return None
    groups = [
        group | {"rules": [group["rules"][r] for r in _right_rules(g, len(group["rules"]), wrong)]}
        for g, group in enumerate(data["groups"])
    ]
    try:
        return RuleFile.model_validate(data | {"groups": groups})
    except ValidationError:  # nothing is left of a group
        return None


def _right_rules(group: int, n_rules: int, wrong: set[KeyPath]) -> list[int]:
    return [r for r in range(n_rules) if ("groups", group, "rules", r) not in wrong]


def _coded(problem: Problem) -> RuleProblem:
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
