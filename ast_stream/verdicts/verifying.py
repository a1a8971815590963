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
from ast_stream.verdicts.comparison import ClassResult, Outcome, fit_class
from ast_stream.verdicts.hearing import ClipHearing, HeardEvent
from ast_stream.verdicts.reviewed import Reviewed


@dataclass(frozen=True, eq=False)
class Heard:
    """Reviewed events by label, and what could not be used.

    Attributes:
        without_clip, not_found: events without a recording, and those not found again in theirs.
        nearby: events that one near them stands for.
        unreadable: what is wrong with clips that cannot be read.
    """

    by_label: dict[str, list[HeardEvent]]
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


def hear_all(
    reviewed: Sequence[Reviewed], hearing: ClipHearing, on_heard: Callable[[], None]
) -> Heard:
    """Return what verifiers see of all events that are right or wrong.

    Args:
        on_heard: called after each event.
    """
    by_label: dict[str, list[HeardEvent]] = defaultdict(list)
    without_clip = not_found = nearby = 0
    unreadable = []
    for one in reviewed:
        if one.is_right is None:
            continue
        try:
            heard = hearing.hear(one)
        except RecordingError as error:
            unreadable.append(error.text if one.clip is None else f"{one.clip.path}: {error.text}")
            heard = None
        else:
            without_clip += one.clip is None
            not_found += one.clip is not None and heard is None
        if heard is not None:
            nearby += not heard.is_same
            by_label[one.event.label].append(heard)
        on_heard()
    return Heard(dict(by_label), without_clip, not_found, nearby, unreadable)


def fit_all(
    heard: Heard, labels: Sequence[str], max_lost: float, in_force: VerifiersFile | None
) -> list[ClassResult]:
    """Return the result of each class, by label; those without enough verdicts say so.

    Args:
        labels: only these; none: all with a verdict.
    """
    chosen = labels or sorted(heard.by_label)
    return [fit_class(label, heard.by_label.get(label, []), max_lost, in_force) for label in chosen]


def file_of(
    results: Sequence[ClassResult], tagger: Tagger, provenance: dict[str, Any]
) -> VerifiersFile:
    """Return the file of the verifiers that could be fitted.

    Raises:
        UsageError: none could; says why, class by class.
    """
    fitted = [(one, one.fitted) for one in results if one.fitted is not None]
    if not fitted:
        problems = [one.problem for one in results if one.problem is not None]
        text = "; ".join(problems) or "no event with a clip has a verdict"
        raise UsageError(f"review fit: {text}")
    description = VerifiersDescription(
        checkpoint=tagger.hash,
        layer=LAYER,
        width=tagger.dims.hidden_size,
        classes=[one.description for one, _ in fitted],
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
    total, force = Outcome(0, 0, 0, 0), Outcome(0, 0, 0, 0)
    for one in results:
        counts = [one.label, str(one.n_right), str(one.n_wrong)]
        if one.held_out is None:
            rows.append([*counts, "", "too few verdicts", "", ""])
            continue
        total += one.held_out
        force += one.in_force or Outcome(0, 0, 0, 0)
        rows.append([*counts, str(one.n_days), *_cells(one.held_out), _both(one.in_force)])
    if len(rows) > 2:
        has_any = any(one.in_force is not None for one in results)
        both = _both(force if has_any else None)
        rows.append(["all", "", "", "", *_cells(total), both])
    return rows


def _cells(outcome: Outcome) -> list[str]:
    if not outcome.n_wrong + outcome.n_right:
        return ["not shown", "not shown"]
    return [
        f"{outcome.turned_off} of {outcome.n_wrong}",
        f"{outcome.lost} of {outcome.n_right}",
    ]


def _both(outcome: Outcome | None) -> str:
    if outcome is None:
        return "none"
    off, lost = _cells(outcome)
    return f"{off} withheld, {lost} lost"


def output_path(folder: Path, stamp: str) -> Path:
    """Return where verifiers are written if nobody says where."""
    return folder / f"verifiers-{stamp}.safetensors"
