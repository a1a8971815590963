"""One rule file: from plain data to rules, with every problem at its place."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ast_stream.alerts.model import stable_id
from ast_stream.alerts.rules.match import Ontology, Vocabulary
from ast_stream.alerts.rules.matchers import compile_matchers
from ast_stream.alerts.rules.parsing import parse_rule_file
from ast_stream.alerts.rules.problems import Notes, RuleProblem
from ast_stream.alerts.rules.rule import Inhibition, Rule, RuleSet, triggers_of
from ast_stream.alerts.rules.schema import Defaults, Group, RuleSettings
from ast_stream.alerts.rules.templates import Template
from ast_stream.alerts.rules.window_names import compile_windows
from ast_stream.alerts.rules.windows import TimeWindow
from ast_stream.labels import did_you_mean
from ast_stream.runtime.files import DamagedFileError, read_bounded
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.load import Document

MAX_ONTOLOGY_BYTES = 8 * 1024 * 1024  # AudioSet's has 0.4


class FileCompiler:
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
        found = parse_rule_file(self._notes)
        if found is None:
            return RuleSet(resume_ns=0)
        parsed, numbers = found
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
            for number, settings in zip(numbers[g], group.rules, strict=True)
        ]
        inhibitions = tuple(
            Inhibition(one.source, one.target, tuple(one.equal)) for one in parsed.inhibit
        )
        return RuleSet(
            rules=tuple(rule for rule in rules if rule is not None),
            inhibitions=inhibitions,
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
        except RecursionError:
            self._notes.add(("ontology",), "E106", f"{path}: is nested too deeply")
        return None

    def _rule(self, settings: RuleSettings, group: Group, path: KeyPath) -> Rule | None:
        before = len(self.problems)
        _check_trigger(settings, path, self._notes)
        self._check_name(settings, path)
        matchers = compile_matchers(settings, path, self._vocabulary, self._notes)
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
        rule = Rule(
            name=settings.alert,
            group=group.name,
            digest="",
            settings=settings,
            matchers=matchers,
            group_by=tuple(defaults.group_by if settings.group_by is None else settings.group_by),
            when=when,
            unless=unless,
            keep_ns=_first(settings.keep_firing_for, defaults.keep_firing_for),
            cooldown_ns=_first(settings.cooldown, defaults.cooldown),
            severity=settings.severity or defaults.severity,
            labels=dict(group.labels) | settings.labels,
            actions=_given(settings.actions, group.actions, defaults.actions),
            annotations={name: one for name, one in parsed.items() if one is not None},
            document=self._document,
            path=path,
        )
        return replace(rule, digest=_digest(rule))

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
        return tuple(one for one in found if one is not None)


def _check_trigger(settings: RuleSettings, path: KeyPath, notes: Notes) -> None:
    given = triggers_of(settings)
    if len(given) > 1:
        text = f"expected one trigger, got {' and '.join(given)}"
        notes.add((*path, given[1]), "E102", text)
    elif given and given[0] in ("sequence", "absent", "level") and settings.match:
        place = "'steps'" if given[0] == "sequence" else f"'{given[0]}'"
        text = f"with '{given[0]}' expected what to match inside {place}, got 'match' beside it"
        notes.add((*path, "match"), "E102", text)
    elif settings.match is None and (not given or given[0] in ("for", "count")):
        needed = "sequence, absent or level" if not given else f"'match' beside '{given[0]}'"
        start = "expected 'match', " if not given else "expected "
        notes.add(path, "E102", f"{start}{needed}, got neither" if not given else start + needed)
    if settings.tolerate and settings.for_ is None:
        notes.add((*path, "tolerate"), "E102", "'tolerate' belongs to 'for', got no 'for'")


def _given(*levels: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return what the innermost level says that says anything; None: none does."""
    return next((tuple(one) for one in levels if one is not None), None)


def _first(value: int | None, default: int) -> int:
    return default if value is None else value


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
