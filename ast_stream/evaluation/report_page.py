"""The report of an evaluation: text and tables, and a folder with page, JSON and plots."""

from __future__ import annotations

import base64
import json
import math
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ast_stream.errors import AstStreamError
from ast_stream.evaluation.figures import Evaluation, as_json, jsonable
from ast_stream.evaluation.intervals import Interval
from ast_stream.evaluation.plots import plots
from ast_stream.evaluation.scoring import MeasureSettings
from ast_stream.evaluation.stream_figures import FalseAlarms, SoundscapeReport, TimingFigures
from ast_stream.version import __version__

MANY_SOUNDS_PER_EVENT = 1.5
PLOT_TITLES = {
    "confusion": "Clips: true class (rows) and named class (columns)",
    "recall": "Streams: recall against false events per hour, as the threshold falls; the dot is "
    "the checkpoint's threshold",
    "times": "Streams: onsets and offsets, as published and before the correction for the window",
    "delays": "Streams: time to detect, from a sound's onset until its event was published",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .15rem .6rem }
th { text-align: right; border-bottom: 1px solid #888 } td { text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f4f6f8 }
img { max-width: 100%; height: auto }
pre { white-space: pre-wrap; background: #f4f6f8; padding: .6rem }
.note { background: #fff4d6; padding: .4rem .6rem }
"""


def summary(evaluation: Evaluation, settings: MeasureSettings) -> list[str]:
    """Return the main figures, a sentence each."""
    lines = []
    if evaluation.clips is not None:
        clips = evaluation.clips
        lines.append(
            f"Clips: {percentage(clips.accuracy)} of {clips.pooled.n_clips} named right, "
            f"mAP {clips.mean_average_precision:.3f}"
        )
        if len(evaluation.models) > 1:
            lines += [
                f"  fold {', '.join(model.folds)}: {model.accuracy:.1%} of {model.n_clips}, "
                f"mAP {model.mean_average_precision:.3f}"
                for model in evaluation.models
                if model.accuracy is not None
            ]
            lines.append(f"  mean over the models: {clips.mean_accuracy:.1%}")
    if evaluation.streams is not None:
        lines += _stream_lines(evaluation.streams.report, settings)
    if evaluation.alarms is not None and settings.alarm_snr_db is not None:
        alarms = evaluation.alarms
        lines.append(
            f"Generated alarms at {settings.alarm_snr_db:g} dB SNR: {alarms.n_found} of "
            f"{alarms.n_sounds} found ({percentage(alarms.recall)})"
        )
    if evaluation.negatives is not None:
        lines.append(f"Streams without events: {alarm_rate(evaluation.negatives)}")
    for label, alarms_beside in evaluation.negatives_by_expected.items():
        lines.append(f"  besides {label}, in streams of it: {alarm_rate(alarms_beside)}")
    return lines


def _stream_lines(report: SoundscapeReport, settings: MeasureSettings) -> list[str]:
    low, high = settings.snr_db
    snr = f"{low:g} dB" if low == high else f"{low:g} to {high:g} dB"
    timing, within = report.timing, report.mean_recall_within
    return [
        f"Streams at {snr} SNR, {report.hours:.2f} h: {report.n_found} of {report.n_sounds} sounds "
        f"found ({percentage(report.recall)}), "
        f"{report.false_alarms_per_class.per_h:.2f} false events per hour and class "
        f"({report.false_alarms.count} in all)",
        "  recall within "
        + ", ".join(f"{name}/h: {value:.1%}" for name, value in within.items())
        + " false events per class (best thresholds)",
        *_timing_lines(timing),
        "  " + ", ".join(f"{name} {interval.value:.3f}" for name, interval in report.psds.items()),
        "  F1: "
        + ", ".join(f"{name} {interval.value:.3f}" for name, interval in report.mean_f1.items()),
    ]


def _timing_lines(timing: TimingFigures) -> list[str]:
    """Return the lines about timing; empty if nothing was found."""
    both = (("onset", timing.onset, timing.raw_onset), ("offset", timing.offset, timing.raw_offset))
    errors = [
        f"{name} {errors.bias_s:+.2f} s, median error {errors.median_absolute_s:.2f} s"
        + (f" (uncorrected {raw.bias_s:+.2f} s)" if raw.n else "")
        for name, errors, raw in both
        if errors.n
    ]
    delays = f"time to detect: median {seconds(timing.detect_p50_s.value)}, "
    delays += f"90 % {seconds(timing.detect_p90_s)}"
    if not math.isnan(timing.end_p50_s):
        delays += f"; time to end: median {seconds(timing.end_p50_s)}"
    lines = [*(["  " + "; ".join(errors)] if errors else []), "  " + delays]
    if not math.isnan(timing.events_per_sound):
        lines.append(
            f"  {timing.events_per_sound:.2f} events per found sound, "
            f"{timing.sounds_per_event:.2f} sounds per event"
        )
    return lines


def remarks_on(evaluation: Evaluation) -> list[str]:
    """Return the caveats of the figures."""
    streams = evaluation.streams
    merged = math.nan if streams is None else streams.report.timing.sounds_per_event
    if not merged > MANY_SOUNDS_PER_EVENT:
        return []
    return [
        f"an event runs on over {merged:.1f} sounds in the mean: it finds all of them and is "
        "hardly ever false, so what is found and what is false say little"
    ]


def class_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return headings and a row for each class."""
    headings = ["class", "clips", "AP", "found", "recall", "false/h", "at 0.5/h", "onset s"]
    headings += ["offset s", "detect s", "quiet/h"]
    streams = None if evaluation.streams is None else evaluation.streams.report
    clips = None if evaluation.clips is None else evaluation.clips.pooled
    rows = []
    for label in evaluation.labels:
        cells = {"class": label}
        if clips is not None and label in clips.recall:
            cells["clips"] = f"{clips.recall[label]:.0%}"
            cells["AP"] = f"{clips.average_precision[label]:.2f}"
        if streams is not None:
            cells["false/h"] = f"{streams.false_alarms_by_label[label].per_h:.1f}"
        if streams is not None and label in streams.by_label:
            figures = streams.by_label[label]
            cells["found"] = f"{figures.n_found}/{figures.n_sounds}"
            cells["recall"] = f"{figures.recall.value:.0%}"
            cells["at 0.5/h"] = f"{figures.recall_within['0.5']:.0%}"
            cells["onset s"] = number(figures.timing.onset.median_absolute_s)
            cells["offset s"] = number(figures.timing.offset.median_absolute_s)
            cells["detect s"] = number(figures.timing.detect_p50_s.value)
        if label in evaluation.negatives_by_label:
            cells["quiet/h"] = f"{evaluation.negatives_by_label[label].per_h:.1f}"
        rows.append([cells.get(heading, "") for heading in headings])
    return headings, rows


def percentage(interval: Interval) -> str:
    """Return a ratio with its interval, in per cent."""
    if math.isnan(interval.low):
        return f"{interval.value:.1%}, too few recordings for an interval"
    return f"{interval.value:.1%}, 95 % {interval.low:.1%} to {interval.high:.1%}"


def alarm_rate(alarms: FalseAlarms) -> str:
    """Return a rate of false alarms with its bound."""
    return (
        f"{alarms.count} events in {alarms.hours:.2f} h, {alarms.per_h:.2f} per hour "
        f"(with 95 % below {alarms.bound_per_h:.2f})"
    )


def seconds(value: float) -> str:
    """Return a time; a part of the sounds that is not reached is never."""
    return "never" if math.isinf(value) else f"{value:.2f} s"


def number(value: float) -> str:
    """Return a figure of a table, empty without one."""
    if math.isnan(value):
        return ""
    return "never" if math.isinf(value) else f"{value:.2f}"


def details(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: figures of the streams with their 95 % intervals."""
    rows: list[list[str]] = []
    streams = None if evaluation.streams is None else evaluation.streams.report
    for name, report in (("streams", streams), ("alarms in noise", evaluation.alarms)):
        if report is None:
            continue
        figures = {
            "recall": report.recall,
            "median onset error, s": report.timing.onset_absolute_s,
            "median time to detect, s": report.timing.detect_p50_s,
            **report.psds,
            **{f"F1, {kind}": interval for kind, interval in report.mean_f1.items()},
        }
        for what, interval in figures.items():
            between = f"{number(interval.low)} to {number(interval.high)}"
            between = "too few" if math.isnan(interval.low) else between
            rows.append([f"{name}: {what}", number(interval.value), between])
        false = report.false_alarms_per_class
        what = f"{name}: false events per hour and class"
        rows.append([what, f"{false.per_h:.2f}", f"below {false.bound_per_h:.2f}"])
    return ["figure", "value", "95 %"], rows


def write_report(
    folder: Path,
    evaluation: Evaluation,
    settings: MeasureSettings,
    command: str,
    notes: Sequence[str],
) -> None:
    """Write report.html, report.json and the plots as PNG.

    Raises:
        AstStreamError: a file cannot be written.
    """
    pictures = plots(evaluation)
    for name, png in pictures.items():
        _write(folder / f"{name}.png", png)
    versions = {
        "ast-stream": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    content = {
        "command": command,
        "versions": versions,
        "notes": list(notes),
        "settings": jsonable(settings),
        **as_json(evaluation),
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    _write(folder / "report.json", f"{text}\n".encode())
    page = _page(evaluation, settings, pictures, content)
    _write(folder / "report.html", page.encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise AstStreamError(f"{path}: cannot be written: {error.strerror or error}") from error


def _page(
    evaluation: Evaluation,
    settings: MeasureSettings,
    pictures: Mapping[str, bytes],
    content: Mapping[str, Any],
) -> str:
    models = []
    for model in evaluation.models:
        sizes = (
            f"{model.window_s:g}",
            f"{model.hop_s:g}",
            ", ".join(model.folds),
            str(model.n_clips),
        )
        models.append([model.name, model.hash, *sizes])
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Evaluation</title>",
        f"<style>{STYLE}</style><h1>Evaluation</h1>",
        *(f"<p class='note'>{escape(note)}</p>" for note in content["notes"]),
        "<h2>In short</h2>",
        *(f"<p>{escape(line.strip())}</p>" for line in summary(evaluation, settings)),
        "<h2>By class</h2>",
        _table(*class_table(evaluation)),
        "<p>found, recall, false/h: streams with sounds, at the checkpoint's thresholds; at 0.5/h: "
        "recall at the best threshold with at most 0.5 false events per hour; onset s, offset s: "
        "median errors; detect s: median time to detect, misses counted as never; quiet/h: events "
        "per hour of streams without any.</p>",
    ]
    for name, png in pictures.items():
        encoded = base64.b64encode(png).decode("ascii")
        title = escape(PLOT_TITLES[name])
        parts.append(f"<h2>{title}</h2><img alt='{title}' src='data:image/png;base64,{encoded}'>")
    parts += [
        "<h2>Details</h2>",
        _table(*details(evaluation)),
        "<h2>Models</h2>",
        _table(["model", "hash", "window s", "hop s", "folds", "clips"], models),
        "<h2>Settings</h2>",
        f"<pre>{escape(content['command'])}</pre>",
        f"<pre>{escape(json.dumps(content['settings'], indent=1))}</pre>",
        f"<pre>{escape(json.dumps(content['versions'], indent=1))}</pre></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
