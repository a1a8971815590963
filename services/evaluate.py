"""`ast-stream evaluate`: how well a checkpoint names clips and finds sounds in streams."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.training.evaluation.clips import ClipReport, report_clips
from ast_stream.training.evaluation.streams import StreamReport, stream_report
from ast_stream.training.material.clips import load_recordings
from ast_stream.training.material.held_out import held_out, scored_streams
from ast_stream.training.session import HELD_OUT_SEED
from services.clip_options import (
    DEFAULT_THREADS,
    Data,
    FileColumn,
    FoldColumn,
    LabelColumn,
    Threads,
    Where,
    clip_columns,
    clips_of_folds,
)

N_GENERATED, N_BACKGROUNDS = 24, 250
SEED = 2 * HELD_OUT_SEED  # neither trained on nor used for thresholds


def evaluate(
    data: Data,
    model: Annotated[str, typer.Option(help="Checkpoint to measure.")] = "bundled",
    file_column: FileColumn = "file",
    label_column: LabelColumn = "label",
    fold_column: FoldColumn = "fold",
    where: Where = None,
    test_fold: Annotated[
        list[str] | None, typer.Option(help="Measure on this fold only; may be repeated.")
    ] = None,
    negatives: Annotated[
        float, typer.Option(min=60, help="Seconds of streams without any event.")
    ] = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    threads: Threads = DEFAULT_THREADS,
) -> None:
    """Measure a checkpoint on labelled clips, and on streams mixed from them and generated sounds.

    Generated sounds and backgrounds are others than those of any training.

    Example: ast-stream evaluate sounds/labels.csv --test-fold 4
    """
    torch.set_num_threads(threads)
    tagger = load_tagger(model)
    columns = clip_columns(file_column, label_column, fold_column, where)
    chosen = clips_of_folds(data, columns, test_fold or [])
    labels = tuple(tagger.labels)
    held = held_out(
        labels,
        load_recordings(chosen, labels),
        SEED,
        n_generated=N_GENERATED,
        n_backgrounds=N_BACKGROUNDS,
    )
    by_clip = report_clips(held.recordings, tagger.scores, tagger.window_s, labels)
    with_sounds, without = scored_streams(tagger, held, negatives, seed=SEED)
    on_sounds, on_negatives = stream_report(with_sounds, labels), stream_report(without, labels)
    if as_json:
        print(json.dumps(_as_json(tagger, by_clip, on_sounds, on_negatives), ensure_ascii=False))
    else:
        _show(by_clip, on_sounds, on_negatives)


def _as_json(
    tagger: Tagger, by_clip: ClipReport, on_sounds: StreamReport, on_negatives: StreamReport
) -> dict[str, Any]:
    clips = asdict(by_clip) | {
        "confusion": by_clip.confusion.tolist(),
        "mean_average_precision": by_clip.mean_average_precision,
    }
    return {
        "model": tagger.hash,
        "clips": clips,
        "streams": asdict(on_sounds),
        "negatives": asdict(on_negatives),
    }


def _show(by_clip: ClipReport, on_sounds: StreamReport, on_negatives: StreamReport) -> None:
    console = Console()
    console.print(
        f"{by_clip.n_clips} clips: accuracy {by_clip.accuracy:.1%}, "
        f"mAP {by_clip.mean_average_precision:.3f}"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "clips", "AP", "found", "false/h", "onset s", "delay s", "quiet/h"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for label, figures in [*on_sounds.by_label.items(), ("all", on_sounds.overall)]:
        quiet = on_negatives.by_label.get(label, on_negatives.overall)
        table.add_row(
            label,
            _percent(by_clip.recall.get(label)),
            _number(by_clip.average_precision.get(label)),
            f"{figures.n_found}/{figures.n_sounds}",
            f"{figures.false_alarms_per_h:.1f}",
            _number(figures.onset_error_s),
            _number(figures.time_to_detect_s),
            f"{quiet.false_alarms_per_h:.1f}",
        )
    console.print(table)
    console.print(
        f"streams with sounds {on_sounds.hours:.2f} h; without {on_negatives.hours:.2f} h, "
        f"{on_negatives.overall.false_alarms_per_h:.1f} false events/h "
        f"(95 % below {on_negatives.overall.false_alarms_bound_per_h:.1f})"
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
