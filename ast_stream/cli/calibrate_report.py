"""The output of `ast-stream calibrate`: tables for people, one object for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ast_stream.calibration.budgets import Budgets, claim, hours_text, rate_text
from ast_stream.calibration.onsets import RiseTime
from ast_stream.calibration.provenance import choice_record, class_record
from ast_stream.calibration.scores import CalibrationAudio
from ast_stream.calibration.thresholds import ClassCalibration, OperatingPoint
from ast_stream.cli import terminal
from ast_stream.model.checkpoint import Checkpoint

WIDE_COLUMNS = 105  # rise times are shown where there is room
LINE_COLUMNS = 124  # of tables in a file or pipe, which have no width of their own
SHORTEST_NAME = 11  # columns of a folded class name
MAX_NAMED = 60  # classes that one remark lists; AudioSet has 527
SNR_BANDS_DB = ((0, 6), (6, 12), (12, 20))


def class_json(result: ClassCalibration) -> dict[str, Any]:
    recall, onset = result.choice.recall, result.onset
    return class_record(result) | {
        "recall": None if math.isnan(recall) else round(recall, 4),
        "score_map": result.score_map.model_dump(),
        "rise_on": result.rise_on and asdict(result.rise_on),
        "rise_off": result.rise_off and asdict(result.rise_off),
        "onset": onset and asdict(onset) | {"fit": onset.fit.model_dump()},
        "remarks": result.remarks(),
        "trade_off": [_choice_json(choice) for choice in result.ladder],
    }


def record_of(audio: CalibrationAudio, data: Path | None, budgets: Budgets) -> dict[str, Any]:
    """Return what was heard, for the provenance: the same for the same call, on any day."""
    unseen_sets = [unseen_set for unseen_set, _ in audio.sounds if unseen_set.clips]
    return {
        "data": data.name if data and unseen_sets else None,
        "clips": sum(len(unseen_set.clips) for unseen_set in unseen_sets),
        "judges": [
            {"model": unseen.checkpoint.hash, "folds": unseen.folds} for unseen in unseen_sets
        ],
        "generated_takes": sum(
            foreground.is_generated for _, foregrounds in audio.sounds for foreground in foregrounds
        ),
        "negative_recordings": [recording.path.name for recording in audio.negatives],
        "generated_hours": round(audio.generated_s / 3600, 3),
        "budget_among": budgets.among and budgets.among.text,
        "hop_s": audio.hop_s,
        "seed": audio.seed,
    }


def result_json(
    checkpoint: Checkpoint,
    calibrated: Sequence[ClassCalibration],
    record: dict[str, Any],
    remarks: Sequence[str],
    written: str | None,
) -> dict[str, Any]:
    heard = calibrated[0].choice
    return {
        "checkpoint": checkpoint.origin,
        "model": checkpoint.hash,
        "is_written": written is not None,
        "hours_among_sounds": round(heard.hours_among, 4),
        "hours_of_negatives": round(heard.hours_negative, 4),
        "heard": record,
        "remarks": list(remarks),
        "classes": {result.label: class_json(result) for result in calibrated},
    }


def show(
    calibrated: Sequence[ClassCalibration], asked: Sequence[str], remarks: Sequence[str]
) -> None:
    """Print the table of all classes, the trade-off of those asked for, and what to know."""
    console = terminal.console(stderr=False, piped_width=LINE_COLUMNS)
    console.print(_classes_table(calibrated, is_wide=console.width >= WIDE_COLUMNS))
    choice = calibrated[0].choice
    console.print(
        f"false alarms per hour among sounds of 0 to 20 dB SNR ({hours_text(choice.hours_among)}) "
        f"and without any ({hours_text(choice.hours_negative)}); "
        "(thresholds in brackets) keep no budget",
        soft_wrap=True,
    )
    for result in calibrated:
        if result.label in asked:
            console.print(f"\n{result.label}: what other budgets would choose")
            console.print(_trade_off_table(result))
    for remark in [*remarks, *_grouped_remarks(calibrated)]:
        console.print(f"- {remark}", soft_wrap=True)


def _classes_table(calibrated: Sequence[ClassCalibration], is_wide: bool) -> Table:
    table = _table(
        "class", "budget", "threshold", "confirm s", "average s", "found",
        "among/h", "without/h", "95 % below",
        *(("r_on s", "r_off s") if is_wide else ()),
    )  # fmt: skip
    for result in calibrated:
        choice = result.choice
        table.add_row(
            result.label,
            choice.budget.text,
            f"{choice.threshold:.3f}" if choice.is_met else f"({choice.threshold:.3f})",
            f"{result.timing.confirm_s:g}",
            f"{result.timing.smoothing_s:g}",
            f"{choice.n_found}/{choice.n_sounds}",
            _rate(choice.false_among, choice.hours_among),
            _rate(choice.false_negatives, choice.hours_negative),
            "" if result.bound_per_h is None else rate_text(result.bound_per_h),
            *(_rise_texts(result) if is_wide else ()),
        )
    return table


def _trade_off_table(result: ClassCalibration) -> Table:
    bands = [f"{low}-{high} dB" for low, high in SNR_BANDS_DB]
    table = _table("budget", "threshold", "found", *bands, "to claim it")
    for choice in result.ladder:
        if not choice.is_met:
            table.add_row(choice.budget.text, "none")
            continue
        unproven = claim(choice.false_negatives, choice.hours_negative, choice.budget)
        needed = f"{hours_text(choice.budget.hours_to_claim)} without any"
        table.add_row(
            choice.budget.text,
            f"{choice.threshold:.3f}",
            f"{choice.n_found}/{choice.n_sounds}",
            *(_ratio(*choice.found_between(*band)) for band in SNR_BANDS_DB),
            needed if unproven else "heard enough",
        )
    return table


def _grouped_remarks(calibrated: Sequence[ClassCalibration]) -> list[str]:
    """Return each remark once, with the classes it is about."""
    about: dict[str, list[str]] = {}
    for result in calibrated:
        for remark in result.remarks():
            about.setdefault(remark, []).append(result.label)
    everyone = len(calibrated) if len(calibrated) > 1 else math.inf
    return [
        f"{'all classes' if len(labels) == everyone else _listed(labels)}: {remark}"
        for remark, labels in about.items()
    ]


def _listed(labels: Sequence[str]) -> str:
    """Return the classes a remark is about, of many the first ones."""
    more = len(labels) - MAX_NAMED
    named = "; ".join(labels[:MAX_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        is_text = heading in ("class", "budget", "to claim it")
        # on a narrow terminal names are folded and figures are not cut
        table.add_column(
            heading, justify="left" if is_text else "right", no_wrap=heading != "class",
            overflow="fold", min_width=SHORTEST_NAME if heading == "class" else None,
        )  # fmt: skip
    return table


def _choice_json(choice: OperatingPoint) -> dict[str, Any]:
    return choice_record(choice) | {
        "found_by_snr": {
            f"{low}-{high} dB": list(choice.found_between(low, high)) for low, high in SNR_BANDS_DB
        },
        "unproven": claim(choice.false_negatives, choice.hours_negative, choice.budget),
    }


def _ratio(n_found: int, n_sounds: int) -> str:
    return f"{n_found / n_sounds:.0%} of {n_sounds}" if n_sounds else "none"


def _rate(count: int, hours: float) -> str:
    return f"{count / hours:.2f}" if hours else ""


def _rise_texts(result: ClassCalibration) -> tuple[str, str]:
    if result.by_frames:
        return "-", "-"
    return _rise_text(result.rise_on), _rise_text(result.rise_off)


def _rise_text(rise: RiseTime | None) -> str:
    return "assumed" if rise is None else f"{rise.median_s:.2f}±{rise.spread_s:.2f}"
