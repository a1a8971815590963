"""From rule files to rules: every name is resolved, and every problem told at its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import time
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ast_stream.alerts.matching import (
    Matcher,
    Ontology,
    UnknownName,
    Vocabulary,
    stream_conditions,
)
from ast_stream.alerts.model import stable_id
from ast_stream.alerts.problems import RuleProblem, problem_at
from ast_stream.alerts.rules import Inhibition, Rule, RuleSet, triggers_of
from ast_stream.alerts.schema import (
    Defaults,
    EventMatch,
    Level,
    RuleFile,
    RuleSettings,
    SoundMatch,
    WindowSettings,
)
from ast_stream.alerts.templates import Template
from ast_stream.alerts.windows import TimeWindow, parse_clock, parse_dates, parse_days, parse_zone
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.explain import explain, show_path
from ast_stream.settings.load import Document, read_document

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


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
    return compile_rules(
        [read_rule_document(path) for path in paths], labels=labels, actions=actions
    )


def read_rule_document(path: Path) -> Document:
    """Return a rule file as plain data.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return read_document(path, "groups")
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
        raise ConfigError(sorted(problems, key=lambda one: (one.file, one.line or 0)))
    return whole


def _coded(problem: Problem) -> RuleProblem:
    return RuleProblem(problem.file, problem.line, problem.path, problem.text, None, "E100")


def _unknown_inhibitions(rules: RuleSet) -> Iterator[RuleProblem]:
    names = {
        rule.alert
        for _, parsed, _ in rules.files
        for group in parsed.groups
        for rule in group.rules
    }
    for document, parsed, _ in rules.files:
        for index, inhibit in enumerate(parsed.inhibit):
            for side, selector in (("source", inhibit.source), ("target", inhibit.target)):
                for name in selector.alert or []:
                    if name not in names:
                        text = f"there is no alert '{name}'{did_you_mean(name, names)}"
                        path: KeyPath = ("inhibit", index, side, "alert")
                        yield problem_at(document, path, "E109", text)


@dataclass
class _FileCompiler:
    """Turns one file into rules, noting what is wrong."""

    document: Document
    labels: Sequence[str] | None
    actions: Collection[str] | None
    places: dict[str, str]  # where each alert's name was given first, over all files
    problems: list[RuleProblem] = field(default_factory=list)
    _vocabulary: Vocabulary = field(default_factory=Vocabulary)
    _windows: dict[str, TimeWindow] = field(default_factory=dict)
    _window_names: set[str] = field(default_factory=set)
    _defaults: Defaults = field(default_factory=Defaults)

    def compile(self) -> RuleSet:
        """Return the file's rules; those with problems are left out."""
        parsed = self._parse()
        if parsed is None:
            return RuleSet(resume_ns=0)
        self._defaults = parsed.defaults
        labels = None if self.labels is None else tuple(self.labels)
        groups = {name: tuple(members) for name, members in parsed.classes.items()}
        self._vocabulary = Vocabulary(labels, self._ontology(parsed.ontology), groups)
        for name in groups:
            self._try(("classes", name), "E105", self._vocabulary.group_named, name)
        for name, window in parsed.windows.items():
            self._window(name, window)
        self._window_names = set(parsed.windows)
        rules = [
            self._rule(settings, group.name, group.labels, ("groups", g, "rules", r))
            for g, group in enumerate(parsed.groups)
            for r, settings in enumerate(group.rules)
        ]
        inhibitions = tuple(
            Inhibition(one.source, one.target, tuple(one.equal)) for one in parsed.inhibit
        )
        return RuleSet(
            rules=tuple(rule for rule in rules if rule is not None),
            inhibitions=inhibitions,
            resume_ns=parsed.defaults.resume_window,
            files=((self.document, parsed, self._vocabulary),),
        )

    def _parse(self) -> RuleFile | None:
        document = self.document
        found = {(one.line, one.path): _coded(one) for one in document.problems}
        parsed = None
        try:
            parsed = RuleFile.model_validate(document.data)
        except ValidationError as error:
            for one in explain(
                error.errors(include_url=False), RuleFile, document.file, document.lines
            ):
                column = _column(document, one)
                coded = RuleProblem(one.file, one.line, one.path, one.text, column, "E101")
                found.setdefault((one.line, one.path), coded)
        self.problems += found.values()
        return parsed

    def _note(self, path: KeyPath, code: str, text: str) -> None:
        is_lone = path and isinstance(path[-1], int) and path not in self.document.lines
        if is_lone:  # one name where a list of names may be, too
            path = path[:-1]
        self.problems.append(problem_at(self.document, path, code, text))

    def _try(
        self, path: KeyPath, code: str, make: Callable[[_Given], _Made], given: _Given
    ) -> _Made | None:
        """Return what `make` makes of `given`, or None and note why not."""
        try:
            return make(given)
        except ValueError as error:
            self._note(path, code, str(error))
            return None

    def _ontology(self, name: str | None) -> Ontology | None:
        if name is None:
            return None
        path = Path(self.document.file).parent / name
        try:
            return Ontology.parse(path.read_text("utf-8"))
        except OSError as error:
            self._note(("ontology",), "E106", f"{path}: cannot be read: {error.strerror}")
        except ValueError as error:
            self._note(("ontology",), "E106", f"{path}: {error}")
        return None

    def _window(self, name: str, given: WindowSettings) -> None:
        path: KeyPath = ("windows", name)
        before = len(self.problems)
        zone_name = given.timezone or self._defaults.timezone
        if zone_name is None:
            text = "expected a 'timezone' here or in 'defaults', got neither"
            self._note(path, "E103", text)
        where = (*path, "timezone") if given.timezone else ("defaults", "timezone")
        zone = self._try(where, "E103", parse_zone, zone_name) if zone_name else None
        days = self._try((*path, "days"), "E103", parse_days, given.days) if given.days else None
        dates = (
            self._try((*path, "dates"), "E103", parse_dates, given.dates) if given.dates else None
        )
        hours = self._hours(path, given)
        if not (given.days or given.dates or given.from_ or given.to):
            self._note(path, "E103", "expected 'days', 'dates' or 'from' and 'to', got none")
        if len(self.problems) == before and zone is not None:
            self._windows[name] = TimeWindow(zone, days, dates, hours)

    def _hours(self, path: KeyPath, given: WindowSettings) -> tuple[time, time] | None:
        if given.from_ is None and given.to is None:
            return None
        if given.from_ is None or given.to is None:
            self._note(path, "E103", "expected both 'from' and 'to', got one of them")
            return None
        first = self._try((*path, "from"), "E103", parse_clock, given.from_)
        last = self._try((*path, "to"), "E103", parse_clock, given.to)
        if first is None or last is None:
            return None
        if first == last:
            text = "expected 'from' and 'to' to differ; for the whole day leave both out"
            self._note(path, "E103", text)
        return first, last

    def _rule(
        self, settings: RuleSettings, group: str, group_labels: Mapping[str, str], path: KeyPath
    ) -> Rule | None:
        before = len(self.problems)
        self._check_trigger(settings, path)
        self._check_name(settings, path)
        matchers = self._matchers(settings, path)
        parsed = {
            name: self._try((*path, "annotations", name), "E107", Template.parse, text)
            for name, text in settings.annotations.items()
        }
        when = self._named_windows(settings.when, (*path, "when"))
        unless = self._named_windows(settings.unless, (*path, "unless"))
        self._check_actions(settings, path)
        if len(self.problems) != before:
            return None
        defaults = self._defaults
        rule = Rule(
            name=settings.alert,
            group=group,
            digest="",
            settings=settings,
            matchers=matchers,
            group_by=tuple(defaults.group_by if settings.group_by is None else settings.group_by),
            when=when,
            unless=unless,
            keep_ns=_first(settings.keep_firing_for, defaults.keep_firing_for),
            cooldown_ns=_first(settings.cooldown, defaults.cooldown),
            severity=settings.severity or defaults.severity,
            labels=dict(group_labels) | settings.labels,
            annotations={name: one for name, one in parsed.items() if one is not None},
            document=self.document,
            path=path,
        )
        return replace(rule, digest=_digest(rule))

    def _check_trigger(self, settings: RuleSettings, path: KeyPath) -> None:
        given = triggers_of(settings)
        if len(given) > 1:
            text = f"expected one trigger, got {' and '.join(given)}"
            self._note((*path, given[1]), "E102", text)
        elif given and given[0] in ("sequence", "absent", "level") and settings.match:
            place = "'steps'" if given[0] == "sequence" else f"'{given[0]}'"
            text = f"with '{given[0]}' expected what to match inside {place}, got 'match' beside it"
            self._note((*path, "match"), "E102", text)
        elif settings.match is None and (not given or given[0] in ("for", "count")):
            needed = "sequence, absent or level" if not given else f"'match' beside '{given[0]}'"
            start = "expected 'match', " if not given else "expected "
            self._note(
                path, "E102", f"{start}{needed}, got neither" if not given else start + needed
            )
        if settings.tolerate and settings.for_ is None:
            self._note((*path, "tolerate"), "E102", "'tolerate' belongs to 'for', got no 'for'")

    def _check_name(self, settings: RuleSettings, path: KeyPath) -> None:
        where = (*path, "alert")
        line = self.document.lines.get(where)
        if settings.alert in self.places:
            text = f"the alert '{settings.alert}' is there twice, first at "
            self._note(where, "E108", text + self.places[settings.alert])
        else:
            self.places[settings.alert] = f"{self.document.file}:{line}"

    def _check_actions(self, settings: RuleSettings, path: KeyPath) -> None:
        for index, name in enumerate(settings.actions):
            if self.actions is not None and name not in self.actions:
                near = did_you_mean(name, self.actions)
                known = near or f"; configured: {', '.join(sorted(self.actions)) or 'none'}"
                self._note((*path, "actions", index), "E104", f"unknown action '{name}'{known}")

    def _named_windows(self, names: Sequence[str] | None, path: KeyPath) -> tuple[TimeWindow, ...]:
        for index, name in enumerate(names or ()):
            if name not in self._window_names:
                near = did_you_mean(name, self._window_names)
                self._note((*path, index), "E103", f"there is no window '{name}'{near}")
        return tuple(self._windows[name] for name in names or () if name in self._windows)

    def _matchers(self, settings: RuleSettings, path: KeyPath) -> tuple[Matcher, ...]:
        if settings.sequence is not None:
            return tuple(
                self._matcher(step.match, (*path, "sequence", "steps", index, "match"))
                for index, step in enumerate(settings.sequence.steps)
            )
        if settings.absent is not None:
            return (self._matcher(settings.absent.match, (*path, "absent", "match")),)
        if isinstance(settings.level, Level):
            return (Matcher(streams=stream_conditions(settings.level.stream)),)
        return () if settings.match is None else (self._matcher(settings.match, (*path, "match")),)

    def _matcher(self, given: EventMatch, path: KeyPath) -> Matcher:
        slugs = self._slugs(given, path)
        exceptions: tuple[Matcher, ...] = ()
        if given.not_ is not None:
            inner: KeyPath = (*path, "not")
            exceptions = (
                Matcher(self._slugs(given.not_, inner), stream_conditions(given.not_.stream)),
            )
            if exceptions[0] == Matcher():
                self._note(inner, "E101", "expected something that is not meant, got nothing")
        return Matcher(
            slugs=slugs,
            streams=stream_conditions(given.stream),
            min_score=0.0 if given.score is None else given.score.min,
            relatives=self._vocabulary.relatives(slugs) if given.under and slugs else {},
            exceptions=exceptions,
        )

    def _slugs(self, given: SoundMatch, path: KeyPath) -> frozenset[str] | None:
        """Return the classes that hold for every key given; None: any."""
        sources: tuple[
            tuple[str, Sequence[str] | None, str, Callable[[str], frozenset[str]]], ...
        ] = (
            ("class", given.class_, "E105", self._vocabulary.class_named),
            ("any_of", given.any_of, "E105", self._vocabulary.class_named),
            ("group", given.group, "E106", self._vocabulary.group_named),
            ("under", given.under, "E106", self._vocabulary.branch_named),
        )
        chosen: frozenset[str] | None = None
        for key, names, code, resolve in sources:
            if names is None:
                continue
            found: set[str] = set()
            for index, name in enumerate(names):
                try:
                    found |= resolve(name)
                except UnknownName as error:
                    is_group_member = key == "group" and name in self._vocabulary.groups
                    if not is_group_member:  # told where the group is written
                        self._note((*path, key, index), code, str(error))
            chosen = frozenset(found) if chosen is None else chosen & found
        if chosen is not None and not chosen and not self.problems:
            self._note(path, "E105", "no class is in all of the keys given; of one key any will do")
        return chosen


def _first(value: int | None, default: int) -> int:
    return default if value is None else value


def _column(document: Document, problem: Problem) -> int | None:
    """Return the column of what a problem on some line is about."""
    around = [
        path
        for path, line in document.lines.items()
        if line == problem.line and problem.path.startswith(show_path(path))
    ]
    return document.columns[max(around, key=len)] if around else None


def _digest(rule: Rule) -> str:
    """Return a digest of all that decides when a rule fires; texts and actions may change."""
    content = rule.settings.model_dump(
        mode="json", exclude={"annotations", "actions", "labels", "severity"}
    )
    resolved = [
        [sorted(one.slugs or ()), one.min_score, [sorted(x.slugs or ()) for x in one.exceptions]]
        for one in rule.matchers
    ]
    return stable_id(
        json.dumps(content, sort_keys=True),
        json.dumps(resolved),
        ",".join(rule.group_by),
    )
