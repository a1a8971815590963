"""The plots of a report: confusion, recall against false alarms, errors of time, time to detect."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ast_stream.evaluation.clip_figures import ClipReport
from ast_stream.evaluation.curves import ThresholdCurve
from ast_stream.evaluation.figures import Evaluation
from ast_stream.evaluation.matching import ReferenceMatch
from ast_stream.evaluation.stream_figures import (
    SoundscapeReport,
    detection_delays,
    offset_errors,
    onset_errors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
LARGEST_ERROR_S = 3.0  # of the histograms' axes; what lies beyond is counted at their ends
LARGEST_DELAY_S = 5.0
LEAST_FALSE_PER_H = 0.05  # of a logarithmic axis; a curve at zero is drawn here
PANELS_PER_ROW = 4


def plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the plots that there are figures for, by name, as PNG."""
    made: dict[str, Figure] = {}
    if evaluation.clips is not None:
        made["confusion"] = confusion_plot(evaluation.clips.pooled)
    if evaluation.streams is not None:
        measured = evaluation.streams
        sounds = [
            sound for parts in measured.matched.values() for part in parts for sound in part.sounds
        ]
        made["recall"] = recall_plot(measured.curves, measured.report)
        made["times"] = times_plot(sounds)
        made["delays"] = delay_plot(sounds)
    return {name: _png(figure) for name, figure in made.items()}


def confusion_plot(report: ClipReport) -> Figure:
    """Return the confusion of the classes that occur or were named: rows true, columns named."""
    counts = report.confusion
    kept = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    counts = counts[np.ix_(kept, kept)]
    parts = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    names = [report.labels[index] for index in kept]
    figure = _figure(1.8 + 0.45 * len(kept), 1.6 + 0.4 * len(kept))
    axes = figure.subplots()
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        colour = "white" if parts[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("named")
    axes.set_ylabel("true")
    return figure


def recall_plot(curves: dict[str, ThresholdCurve], report: SoundscapeReport) -> Figure:
    """Return recall against false alarms per hour, a panel a class; the dot is as shipped."""
    n_columns = min(PANELS_PER_ROW, max(1, len(curves)))
    n_rows = max(1, math.ceil(len(curves) / n_columns))
    figure = _figure(0.5 + 2.6 * n_columns, 0.4 + 2.1 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    panels = grid.ravel().tolist()
    for panel in panels:
        panel.set_visible(False)
    for panel, (label, curve) in zip(panels, curves.items(), strict=False):
        panel.set_visible(True)
        rate = np.maximum(curve.false_per_h[::-1], LEAST_FALSE_PER_H)  # as the threshold falls
        panel.step(rate, curve.recall[::-1], where="post")
        shipped = report.by_label[label]
        at = max(shipped.false_alarms.per_h, LEAST_FALSE_PER_H)
        panel.plot(at, shipped.recall.value, "o", color="C3")
        panel.set_xscale("log")
        panel.set_xlim(LEAST_FALSE_PER_H, 200)
        panel.set_ylim(-0.02, 1.02)
        panel.set_title(label, fontsize=9)
        panel.grid(alpha=0.3)
    figure.supxlabel("false events per hour")
    figure.supylabel("recall")
    return figure


def times_plot(sounds: list[ReferenceMatch]) -> Figure:
    """Return histograms of onset and offset less the true ones, before and after correction."""
    figure = _figure(8.0, 2.8)
    bins = np.linspace(-LARGEST_ERROR_S, LARGEST_ERROR_S, 61)
    for panel, (name, errors) in zip(
        figure.subplots(1, 2), (("onset", onset_errors), ("offset", offset_errors)), strict=True
    ):
        for raw in (True, False):
            values = _clipped(errors(sounds, raw), LARGEST_ERROR_S)
            panel.hist(values, bins, alpha=0.6, label="uncorrected" if raw else "published")
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel(f"{name} less true {name}, s")
        panel.legend(fontsize=8)
    return figure


def delay_plot(sounds: list[ReferenceMatch]) -> Figure:
    """Return the part of sounds that were known by a time after their onset."""
    delays = np.sort(np.array(detection_delays(sounds)))
    figure = _figure(5.0, 2.8)
    axes = figure.subplots()
    if delays.size:
        parts = np.arange(1, len(delays) + 1) / len(delays)
        known = np.isfinite(delays)
        axes.step(np.r_[0.0, delays[known]], np.r_[0.0, parts[known]], where="post")
    axes.set_xlim(0, LARGEST_DELAY_S)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("seconds after the onset")
    axes.set_ylabel("share of the sounds known")
    axes.grid(alpha=0.3)
    return figure


def _clipped(values: list[float], largest: float) -> npt.NDArray[np.float64]:
    known = np.array([value for value in values if not math.isnan(value)], np.float64)
    clipped: npt.NDArray[np.float64] = np.clip(known, -largest, largest)
    return clipped


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
