"""Trials for the page Tune: what other settings would have reported for recent scores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from ast_stream.alerts.backtest import BacktestReport, backtest
from ast_stream.alerts.model_facts import detection_timing
from ast_stream.alerts.rule_files import RuleFiles
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.trials import Comparison, Trials, compare, snippet
from ast_stream.errors import AstStreamError
from ast_stream.history.export import in_order
from ast_stream.history.records import EventQuery, EventRecord
from ast_stream.history.trial import TrialResult
from ast_stream.labels import slug
from ast_stream.messages.alert import Alert
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.storage import DAY_S
from ast_stream.units import NS_PER_SECOND, seconds_to_ns
from ast_stream.web.stored_data import StoredData

WAIT_S = 30.0  # for other trials: they run one at a time, since the worker needs the cores
LANE_POINTS = 1000
MAX_GAPS = 10_000
MAX_CLASSES = 8  # in one trial, for rules with several classes


class BusyError(AstStreamError):
    """Another trial is running."""


@dataclass(frozen=True)
class ScoreLane:
    """The scores of a class on one stream.

    Attributes:
        peaks: the highest score in each of equal parts of the time, by the number of the part;
            parts without scores are left out.
    """

    stream: str
    peaks: Mapping[int, float]


@dataclass(frozen=True)
class AlertCount:
    """Alerts of a rule, as configured and as tried."""

    rule: str
    before: int
    after: int


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of a trial.

    Attributes:
        events: with the configured and with the tried settings, compared.
        right_kept, right_lost: events judged right that would still be reported, or be lost.
        wrong_kept, wrong_lost: the same for events judged wrong.
        alerts: of the rules that use the class.
        remarks: what could not be judged.
        snippet: the settings that were tried, as YAML.
    """

    label: str
    events: Comparison
    right_kept: int
    right_lost: int
    wrong_kept: int
    wrong_lost: int
    alerts: list[AlertCount] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    snippet: str = ""

    @property
    def n_before(self) -> int:
        """Events as configured."""
        return len(self.events.kept) + len(self.events.lost)

    @property
    def n_after(self) -> int:
        """Events as tried."""
        return len(self.events.kept) + len(self.events.gained)


class Tuning:
    """Tries settings on the history; for any thread, one trial at a time."""

    def __init__(self, loaded: LoadedSettings, past: StoredData) -> None:
        self._loaded = loaded
        self._past = past
        self._lock = threading.Lock()
        self._trials: Trials | None = None

    @property
    def trials(self) -> Trials:
        """Trials on the history.

        Raises:
            NoHistoryError: there is none.
            CheckpointError, UsageError: the configured checkpoint or detection cannot be used.
        """
        if self._trials is None:
            self._trials = Trials(self._loaded.settings, self._past.history)
        return self._trials

    def in_force(self, label: str) -> tuple[float, bool]:
        """Return the onset threshold of a class, and whether the class is enabled."""
        parameters = self.trials.parameters
        index = parameters.labels.index(label)
        return float(parameters.onset_threshold[index]), bool(parameters.is_enabled[index])

    def lanes(self, label: str, since_ns: int, until_ns: int) -> list[ScoreLane]:
        """Return the scores of a class on each stream, in the resolution of the drawing."""
        reader = self.trials.reader
        part_ns = max(1, (until_ns - since_ns) // LANE_POINTS)
        found = []
        for stream in reader.streams():
            times, scores = reader.peaks(stream, since_ns, until_ns, label)
            parts = np.clip((times[:, 0] - since_ns) // part_ns, 0, LANE_POINTS - 1)
            peaks: dict[int, float] = {}
            for part, score in zip(parts.tolist(), scores.tolist(), strict=True):
                peaks[part] = max(peaks.get(part, 0.0), score)
            found.append(ScoreLane(stream, dict(sorted(peaks.items()))))
        return found

    def try_out(
        self, name: str, changes: Mapping[str, object], since_ns: int, until_ns: int
    ) -> TrialOutcome:
        """Return what other settings of a class would have reported.

        Raises:
            UsageError: there is no such class, or the settings are invalid.
            BusyError: others try settings out.
            NoHistoryError: there is no history.
        """
        with self._one_at_a_time():
            trials = self.trials
            label, own = trials.label(name), trials.changed(name, **changes)
            tried = trials.parameters_with({label: own})
            rules, remarks = self._rules(label)
            classes = _classes(label, rules, trials.labels)
            before, after = (
                trials.run(parameters, since_ns, until_ns, classes=classes)
                for parameters in (trials.parameters, tried)
            )
            alerts = self._alerts(rules, before, after)
            events = compare(_of_class(before, label), _of_class(after, label))
            judged = self._judged(label, since_ns, until_ns)
        return TrialOutcome(
            label,
            events,
            **judged_counts(judged, [*events.kept, *events.gained]),
            alerts=alerts,
            remarks=[*remarks, *_remarks(after)],
            snippet=snippet(label, own) if changes else "",
        )

    def would_have_fired(self, since_ns: int, until_ns: int) -> list[Alert]:
        """Return the alerts that the configured rules would fire for recorded events, by time.

        Rules about health or levels are left out, since these are not recorded.

        Raises:
            AstStreamError: the rules, or the checkpoint whose timing they use, cannot be used.
            BusyError: others try settings out.
            NoHistoryError: there is no history.
        """
        with self._one_at_a_time():
            history = self._past.history
            rules = RuleFiles(self._loaded).load()
            judged = tuple(rule for rule in rules.rules if not rule.trigger.reads_health)
            query = EventQuery(since_ns=since_ns, until_ns=until_ns, newest_first=False)
            gaps = history.gaps(since_ns, until_ns, limit=MAX_GAPS)
            transitions = backtest(
                replace(rules, rules=judged),
                in_order(history.all_events(query), gaps),
                BacktestReport(),
                detection_timing(self.trials.parameters),
            )
            return [
                transition.alert for transition in transitions if transition.to_state == "firing"
            ]

    def _rules(self, label: str) -> tuple[RuleSet, list[str]]:
        """Return the rules that use a class, and why others cannot be judged."""
        if not self._loaded.settings.alerts.rules:
            return RuleSet(), []
        try:
            rules = RuleFiles(self._loaded).load()
        except AstStreamError as error:
            return RuleSet(), [f"no alerts are judged: {str(error).splitlines()[0]}"]
        wanted = slug(label)
        own = [rule for rule in rules.rules if rule.slugs is None or wanted in rule.slugs]
        return replace(
            rules, rules=tuple(rule for rule in own if not rule.trigger.reads_health)
        ), []

    def _alerts(
        self, rules: RuleSet, before: Sequence[TrialResult], after: Sequence[TrialResult]
    ) -> list[AlertCount]:
        if not rules.rules:
            return []
        fired = []
        for results in (before, after):
            report = BacktestReport()
            for _ in self.trials.transitions(rules, results, report):
                pass  # its report counts the alerts
            fired.append(report.fired)
        return [
            AlertCount(rule.name, fired[0][rule.name], fired[1][rule.name]) for rule in rules.rules
        ]

    def _judged(self, label: str, since_ns: int, until_ns: int) -> list[EventRecord]:
        query = EventQuery(
            classes=(slug(label),), since_ns=since_ns, until_ns=until_ns, has_verdict=True
        )
        return list(self._past.history.all_events(query))

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=WAIT_S):
            raise BusyError("others try settings out at this moment: try again")
        try:
            yield
        finally:
            self._lock.release()


def judged_counts(judged: Iterable[EventRecord], reported: Sequence[EventRecord]) -> dict[str, int]:
    """Return how many of the judged events are among the reported ones."""
    found = dict.fromkeys(("right_kept", "right_lost", "wrong_kept", "wrong_lost"), 0)
    for kind, verdicts in (("right", ("right",)), ("wrong", ("wrong", "other"))):
        own = [event for event in judged if event.verdict in verdicts]
        outcome = compare(own, reported)
        found[f"{kind}_lost"] = len(outcome.lost)
        found[f"{kind}_kept"] = len(own) - len(outcome.lost)
    return found


def span_of_days(days: int, now_ns: int | None = None) -> tuple[int, int]:
    """Return start and end of the last `days` days (ns)."""
    until_ns = time.time_ns() if now_ns is None else now_ns
    return until_ns - seconds_to_ns(days * DAY_S), until_ns


def _classes(label: str, rules: RuleSet, labels: Sequence[str]) -> list[str]:
    """Return the classes that a trial must decide: the class and others in the same rules."""
    wanted = {name for rule in rules.rules for name in rule.slugs or ()} - {slug(label)}
    others = [other for other in labels if slug(other) in wanted]
    return [label, *others[: MAX_CLASSES - 1]]


def _of_class(results: Iterable[TrialResult], label: str) -> list[EventRecord]:
    return [event for result in results for event in result.events if event.label == label]


def _remarks(results: Iterable[TrialResult]) -> Iterator[str]:
    for result in results:
        if not result.n_windows:
            yield f"{result.stream}: there are no scores of this model in that time"
        if result.n_foreign:
            text = f"{result.stream}: {result.n_foreign} windows of another model or hop"
            yield f"{text} are not judged"
        if result.holes:
            lost_s = sum(stop - start for start, stop in result.holes) / NS_PER_SECOND
            yield f"{result.stream}: {lost_s:.0f} s have no scores, in {len(result.holes)} places"
