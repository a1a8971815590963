"""Trials: what a box would have reported with other settings, and the alerts of that.

Shared by `ast-stream history trial` and the page: both show the same events and the same snippet of
configuration.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ast_stream.alerts.backtest import BacktestReport, backtest
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import decision_parameters, detection_timing, model_facts
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.coverage.ledger import read_all_spans
from ast_stream.coverage.spans import HEARD
from ast_stream.coverage.timeline import UNDECIDED_NS
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.errors import UsageError
from ast_stream.history.database import History
from ast_stream.history.records import EventRecord
from ast_stream.history.score_log import ScoreReader
from ast_stream.history.trial import Heard, TrialResult, refuse_other_smoothing, try_out
from ast_stream.labels import did_you_mean, find_label, slug
from ast_stream.messages.event import Gap
from ast_stream.settings.detection import ClassSettings, DetectionSettings
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import (
    coverage_ledger,
    history_database,
    score_log,
    unwritten_coverage,
)
from ast_stream.settings.workers import of_worker, worker_names

_MAX_GAPS = 100_000

_ByClass = dict[tuple[str, str], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
"""Onsets and ends of events, each in order, by stream and class."""


@dataclass(frozen=True)
class Comparison:
    """Events as configured, and as they would have been.

    Two events are the same if they are of one class on one stream and overlap.

    Attributes:
        kept: events that are reported in both ways, as they would have been.
        gained: those that only the other settings report.
        lost: those that only the settings in force report.
    """

    kept: list[EventRecord] = field(default_factory=list)
    gained: list[EventRecord] = field(default_factory=list)
    lost: list[EventRecord] = field(default_factory=list)


class Trials:
    """Trials on the history of the box that a configuration describes.

    Args:
        history: open, for the gaps.
        now_ns: the time of day.

    Attributes:
        reader: of the score log.
        parameters: in force.

    Raises:
        CheckpointError, UsageError: the configured checkpoint or detection cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        history: History,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._now_ns = now_ns
        self._history = history
        self._facts = model_facts(settings.model)
        self.reader = ScoreReader(score_log(settings).folder, self._facts.labels)
        self.parameters = self._parameters(settings.detection)

    @property
    def labels(self) -> Sequence[str]:
        """Of the configured checkpoint."""
        return self.parameters.labels

    def label(self, name: str) -> str:
        """Return the label of a class that is named by label or slug.

        Raises:
            UsageError: the model does not have it.
        """
        label = find_label(name, self.labels)
        if label is None:
            hint = did_you_mean(name, self.labels)
            raise UsageError(f"expected a class of the model, got {name!r}{hint}")
        return label

    def settings_of(self, name: str) -> ClassSettings:
        """Return the configured settings of a class."""
        wanted = slug(self.label(name))
        found = (
            own for key, own in self._settings.detection.classes.items() if slug(key) == wanted
        )
        return next(found, ClassSettings())

    def changed(self, name: str, **changes: object) -> ClassSettings:
        """Return the settings of a class with some of them changed.

        Raises:
            UsageError: a value that the configuration would refuse.
        """
        known = self.settings_of(name).model_dump(exclude_none=True)
        try:
            return ClassSettings(**known | changes)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{where}: {first['msg']}, got {first.get('input')!r}") from error

    def parameters_with(self, classes: Mapping[str, ClassSettings]) -> DecisionParameters:
        """Return the parameters in force with other settings of some classes.

        Raises:
            UsageError: they cannot be fulfilled, or not be tried on the scores that are kept.
        """
        by_label = {self.label(name): own for name, own in classes.items()}
        others = {
            key: own
            for key, own in self._settings.detection.classes.items()
            if find_label(key, self.labels) not in by_label
        }
        detection = self._settings.detection.model_copy(update={"classes": others | by_label})
        parameters = self._parameters(detection)
        refuse_other_smoothing(self.parameters, parameters)
        return parameters

    def remarks(self) -> Iterator[str]:
        """Yield what no trial on this box can know, in sentences."""
        if self._settings.model.verifiers is not None:
            yield "the verifiers of model.verifiers have no say: they hear sound, which is not kept"
        if self._settings.model.cascade is not None:
            yield (
                "what the cascade did not ask the large model about has no scores: a lower "
                "threshold would have asked more"
            )

    def run(
        self,
        parameters: DecisionParameters,
        since_ns: int,
        until_ns: int,
        *,
        classes: Iterable[str] | None = None,
        streams: Sequence[str] = (),
    ) -> list[TrialResult]:
        """Return what would have been reported on each stream of which there are scores."""
        named = None if classes is None else list(classes)
        heard = self._heard()
        return [
            try_out(self.reader, stream, since_ns, until_ns, parameters, classes=named, heard=heard)
            for stream in streams or self.reader.streams()
        ]

    def transitions(
        self, rules: RuleSet, results: Iterable[TrialResult], report: BacktestReport
    ) -> Iterator[Transition]:
        """Yield the alerts that rules would have made of the events of trials."""
        messages = sorted(
            (message for result in results for message in result.messages),
            key=lambda message: message.captured_ns,
        )
        yield from backtest(rules, messages, report, detection_timing(self.parameters))

    def _parameters(self, detection: DetectionSettings) -> DecisionParameters:
        return decision_parameters(self._facts, detection, self._settings.model.hop_s)

    def _heard(self) -> Heard:
        """Return up to where each stream was heard, from gaps and the ledger."""
        ends: dict[tuple[str, str], int] = {}
        going_on: set[tuple[str, str]] = set()
        workers = [of_worker(self._settings, name) for name in worker_names(self._settings)]
        ledgers = [
            (coverage_ledger(worker).folder, unwritten_coverage(worker).path) for worker in workers
        ]
        try:
            spans = read_all_spans(ledgers)
        except OSError:  # it is not needed for more than the ends
            spans = {}
        undecided_ns = self._now_ns() - UNDECIDED_NS
        for stream, its in spans.items():
            for span in (candidate for candidate in its if candidate.kind in HEARD):
                key = stream, span.epoch
                ends[key] = max(ends.get(key, 0), span.stop_sample)
                if span.stop_ns > undecided_ns:
                    going_on.add(key)
        gaps = self._history.gaps(limit=_MAX_GAPS)
        return Heard(
            [Gap(gap.stream, gap.epoch, gap.start_sample, gap.samples, gap.reason) for gap in gaps],
            {key: end for key, end in ends.items() if key not in going_on},
            {stream.name: stream.labels for stream in self._settings.streams},
        )


def open_trials(settings: Settings) -> tuple[Trials, History]:
    """Return trials on the history of this box, and the history, which is to be closed.

    Raises:
        StartupError: there is no history.
    """
    history = History.open_read_only(Path(history_database(settings).path))
    try:
        return Trials(settings, history), history
    except BaseException:
        history.close()
        raise


def compare(before: Iterable[EventRecord], after: Iterable[EventRecord]) -> Comparison:
    """Return which events two trials have in common, and which only one of them has."""
    before, after = list(before), list(after)
    had, has = _by_class(before), _by_class(after)
    found = Comparison()
    for event in sorted(after, key=lambda event: event.key):
        (found.kept if _overlaps(event, had) else found.gained).append(event)
    for event in sorted(before, key=lambda event: event.key):
        if not _overlaps(event, has):
            found.lost.append(event)
    return found


def snippet(label: str, changed: ClassSettings) -> str:
    """Return the settings of a class as YAML, to be put into the configuration."""
    lines = ["detection:", "  classes:", f"    {json.dumps(label, ensure_ascii=False)}:"]
    known = changed.model_dump(exclude_none=True)
    lines += [f"      {name}: {json.dumps(value)}" for name, value in known.items()]
    return "\n".join(lines) + "\n"


def _by_class(events: Iterable[EventRecord]) -> _ByClass:
    groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        groups[event.stream, event.class_].append((event.onset_ns, _stop(event)))
    return {
        key: (np.sort([onset for onset, _ in spans]), np.sort([stop for _, stop in spans]))
        for key, spans in groups.items()
    }


def _overlaps(event: EventRecord, others: _ByClass) -> bool:
    """Return whether one of others overlaps; of one class on one stream none overlap each other."""
    onsets, stops = others.get((event.stream, event.class_), (np.zeros(0), np.zeros(0)))
    first = np.searchsorted(stops, event.onset_ns)
    return bool(first < len(onsets) and onsets[first] <= _stop(event))


def _stop(event: EventRecord) -> float:
    return math.inf if event.offset_ns is None else event.offset_ns
