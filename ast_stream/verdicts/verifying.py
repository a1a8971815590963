"""From verdicts to a file of verifiers, and a table of what it would have done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ast_stream.audio.recording import RecordingError
from ast_stream.detect.verifiers import LAYER, VerifiersDescription, VerifiersFile
from ast_stream.errors import UsageError
from ast_stream.model.tagger import Tagger
from ast_stream.verdicts.comparison import ClassResult, VerifierOutcome, fit_class
from ast_stream.verdicts.rescoring import ClipRescoring, RescoredEvent
from ast_stream.verdicts.reviewed_events import ReviewedEvent


@dataclass(frozen=True, eq=False)
class RescoredEvents:
    """Reviewed events by label, and what could not be used.

    Attributes:
        without_clip, not_found: events without a recording, and those not found again in theirs.
        nearby: events that one near them stands for.
        unreadable: what is wrong with clips that cannot be read.
    """

    by_label: dict[str, list[RescoredEvent]]
    without_clip: int
    not_found: int
    nearby: int
    unreadable: list[str]

    def remarks(self) -> list[str]:
        """Return what a person should know, in sentences."""
        said = []
        if self.without_clip:
            said.append(f"{self.without_clip} reviewed events have no clip")
        if self.not_found:
            said.append(
                f"{self.not_found} reviewed events were not found again in their clips: detected "
                "with another model or other settings, or with less pre-roll than a window"
            )
        if self.nearby:
            said.append(f"of {self.nearby} events one that began within a second stands for it")
        return said + self.unreadable


def rescore_all(
    reviewed: Sequence[ReviewedEvent], rescoring: ClipRescoring, on_rescored: Callable[[], None]
) -> RescoredEvents:
    """Return what verifiers see of all events that are right or wrong.

    Args:
        on_rescored: called after each event.
    """
    by_label: dict[str, list[RescoredEvent]] = defaultdict(list)
    without_clip = not_found = nearby = 0
    unreadable = []
    for reviewed_event in reviewed:
        if reviewed_event.is_right is None:
            continue
        try:
            rescored = rescoring.rescore(reviewed_event)
        except RecordingError as error:
            unreadable.append(
                error.text
                if reviewed_event.clip is None
                else f"{reviewed_event.clip.path}: {error.text}"
            )
            rescored = None
        else:
            without_clip += reviewed_event.clip is None
            not_found += reviewed_event.clip is not None and rescored is None
        if rescored is not None:
            nearby += not rescored.is_same
            by_label[reviewed_event.event.label].append(rescored)
        on_rescored()
    return RescoredEvents(dict(by_label), without_clip, not_found, nearby, unreadable)


def fit_all(
    rescored: RescoredEvents, labels: Sequence[str], max_lost: float, in_force: VerifiersFile | None
) -> list[ClassResult]:
    """Return the result of each class, by label; those without enough verdicts say so.

    Args:
        labels: only these; none: all with a verdict.
    """
    chosen = labels or sorted(rescored.by_label)
    return [
        fit_class(label, rescored.by_label.get(label, []), max_lost, in_force) for label in chosen
    ]


def file_of(
    results: Sequence[ClassResult], tagger: Tagger, provenance: dict[str, Any]
) -> VerifiersFile:
    """Return the file of the verifiers that could be fitted.

    Raises:
        UsageError: none could; says why, class by class.
    """
    fitted = [(result, result.fitted) for result in results if result.fitted is not None]
    if not fitted:
        problems = [result.problem for result in results if result.problem is not None]
        text = "; ".join(problems) or "no event with a clip has a verdict"
        raise UsageError(f"review fit: {text}")
    description = VerifiersDescription(
        checkpoint=tagger.hash,
        layer=LAYER,
        width=tagger.dims.hidden_size,
        classes=[result.description for result, _ in fitted],
        provenance=provenance,
    )
    return VerifiersFile(
        description,
        np.stack([its.weights for _, its in fitted]),
        np.array([its.bias for _, its in fitted], np.float32),
    )


def table_of(results: Sequence[ClassResult]) -> list[list[str]]:
    """Return the comparison as rows of cells, the first of which are the headings."""
    rows = [["class", "right", "wrong", "days", "wrong withheld", "right lost", "in force"]]
    total, force = VerifierOutcome(0, 0, 0, 0), VerifierOutcome(0, 0, 0, 0)
    for result in results:
        counts = [result.label, str(result.n_right), str(result.n_wrong)]
        if result.held_out is None:
            rows.append([*counts, "", "too few verdicts", "", ""])
            continue
        total += result.held_out
        force += result.in_force or VerifierOutcome(0, 0, 0, 0)
        rows.append([*counts, str(result.n_days), *_cells(result.held_out), _both(result.in_force)])
    if len(rows) > 2:
        has_any = any(result.in_force is not None for result in results)
        both = _both(force if has_any else None)
        rows.append(["all", "", "", "", *_cells(total), both])
    return rows


def _cells(outcome: VerifierOutcome) -> list[str]:
    if not outcome.n_wrong + outcome.n_right:
        return ["not shown", "not shown"]
    return [
        f"{outcome.turned_off} of {outcome.n_wrong}",
        f"{outcome.lost} of {outcome.n_right}",
    ]


def _both(outcome: VerifierOutcome | None) -> str:
    if outcome is None:
        return "none"
    off, lost = _cells(outcome)
    return f"{off} withheld, {lost} lost"


def output_path(folder: Path, stamp: str) -> Path:
    """Return where verifiers are written if nobody says where."""
    return folder / f"verifiers-{stamp}.safetensors"
