"""`ast-stream evaluate`: how well checkpoints name clips and find sounds in streams."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from ast_stream.calibration.folds import cross_validated, known_clips_remark, single
from ast_stream.calibration.scores import negative_recordings
from ast_stream.cli.clip_options import (
    ByWindows,
    ColumnOptions,
    Data,
    Negatives,
    OnlyFolds,
)
from ast_stream.cli.options import (
    N_CORES,
    AsJson,
    CascadeCheckpoint,
    Threads,
    cascade_settings,
    require_packages,
    with_option_groups,
)
from ast_stream.cli.output import json_line, say
from ast_stream.cli.terminal import ProgressView, console, plain_table
from ast_stream.detect.cascade import load_cascade
from ast_stream.errors import UsageError
from ast_stream.evaluation.figures import Evaluation
from ast_stream.evaluation.figures import as_json as figures_json
from ast_stream.evaluation.figures import evaluate as figures_of
from ast_stream.evaluation.report_page import class_table, remarks_on, summary, write_report
from ast_stream.evaluation.scoring import (
    EvaluatedModel,
    MeasureSettings,
    ScoredMaterial,
    check_hop,
    score_material,
    total_s,
)
from ast_stream.settings.model import ModelSettings
from ast_stream.soundscape.backgrounds import speech_is_available

SNR_DB = "12"
FILE_WIDTH = 132  # of a table that does not go to a terminal


@dataclass(frozen=True)
class StreamOptions:
    """What streams are made of, and how."""

    snr: Annotated[
        str, typer.Option(help="Sounds over their backgrounds in dB: one figure, or LOW..HIGH.")
    ] = SNR_DB
    gap: Annotated[
        str | None,
        typer.Option(
            help="Seconds between sounds: one figure, or LOW..HIGH; a quarter lies closer than a "
            "window. (default: a little more than a window)"
        ),
    ] = None
    alarm_snr: Annotated[
        float, typer.Option(help="Generated alarms once more, at this SNR in dB.")
    ] = 0.0
    hop: Annotated[
        float | None, typer.Option(help="Seconds between windows; none: the checkpoint's.")
    ] = None
    repeats: Annotated[
        int, typer.Option(min=1, help="How often each sound is mixed in, at other levels.")
    ] = MeasureSettings.repeats
    hours: Annotated[
        float, typer.Option(min=0, help="At least so many hours of streams with sounds.")
    ] = MeasureSettings.hours
    negative_hours: Annotated[
        float, typer.Option(min=0, help="Hours of generated streams without any event.")
    ] = MeasureSettings.negative_hours
    negatives: Negatives = None
    generated: Annotated[
        int, typer.Option(min=0, help="Generated examples of each alarm class.")
    ] = MeasureSettings.n_generated
    seed: Annotated[int, typer.Option(min=0)] = MeasureSettings.seed
    write_streams: Annotated[
        Path | None, typer.Option(help="Folder for the streams as WAV, with their truth.")
    ] = None

    def settings(self) -> MeasureSettings:
        """Return what to measure on, but for `negatives`, which a checkpoint's labels may be in.

        Raises:
            UsageError, ConfigError: ranges, recordings or a folder that cannot be used.
        """
        if self.write_streams is not None:
            check_folder(self.write_streams, "--write-streams")
        gap_s = None
        if self.gap is not None:
            gap_s = range_of(self.gap, "--gap", "seconds like 60 or 30..90", 0, 3600)
        return MeasureSettings(
            snr_db=range_of(self.snr, "--snr", "decibels like 12 or 0..20", -60, 60),
            gap_s=gap_s,
            alarm_snr_db=self.alarm_snr,
            hop_s=self.hop,
            repeats=self.repeats,
            hours=self.hours,
            negative_hours=self.negative_hours,
            n_generated=self.generated,
            seed=self.seed,
            write_to=self.write_streams,
        )


@with_option_groups
def evaluate(
    data: Data,
    *,
    model: Annotated[
        list[str] | None, typer.Option(help="Checkpoint to measure. (default: bundled)")
    ] = None,
    cross_validate: Annotated[
        bool,
        typer.Option(
            "--cross-validate",
            help="Measure each --model on the folds it was not trained on, and pool.",
        ),
    ] = False,
    by_windows: ByWindows = False,
    cascade: CascadeCheckpoint = None,
    columns: ColumnOptions,
    test_fold: OnlyFolds = None,
    streams: StreamOptions,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, report.json and plots.")
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Measure a checkpoint on labelled clips, and on streams mixed from them and generated sounds.

    Generated sounds and backgrounds are others than those of any training.

    Example: ast-stream evaluate sounds/labels.csv --test-fold 4 --report report/
    """
    torch.set_num_threads(threads or N_CORES)
    require_packages("evaluate", "scipy")
    if report is not None:
        require_packages("evaluate --report", "matplotlib")
        check_folder(report, "--report")
    settings = streams.settings()
    choose = cross_validated if cross_validate else single
    subjects = choose(
        model or ["bundled"], data, columns.columns(), test_fold or [], use_frames=not by_windows
    )
    if cascade is not None:
        chosen = ModelSettings(cascade=cascade_settings(cascade))
        subjects = [replace(subject, cascade=load_cascade(chosen)) for subject in subjects]
    recordings = negative_recordings(streams.negatives or [], subjects[0].tagger.labels)
    settings = replace(settings, negatives=tuple(recordings))
    check_hop(subjects, settings.hop_s)
    notes = notes_of(subjects)
    _say(notes)
    material = _score(subjects, settings)
    figures = figures_of(subjects, material, settings)
    remarks = [*remarks_on(figures), *_cascade_remarks(material)]
    _say(remarks)
    notes += remarks
    try:
        if report is not None:
            command = shlex.join(["ast-stream", *sys.argv[1:]])
            write_report(report, figures, settings, command, notes)
            print(f"{report / 'report.html'}: written", file=sys.stderr)
    finally:  # neither a full disk nor a reader that is gone may cost the other its figures
        if as_json:
            print(json_line({"notes": notes, **figures_json(figures)}))
        else:
            _show(figures, settings)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"ast-stream evaluate: {note}", err=True)


def _cascade_remarks(material: ScoredMaterial) -> list[str]:
    asked = material.asked()
    if asked is None:
        return []
    n_asked, n_windows = asked
    share = n_asked / max(1, n_windows)
    return [f"with a cascade: the model was asked about {share:.1%} of {n_windows} windows"]


def range_of(
    text: str, option: str, expected: str, lowest: float, highest: float
) -> tuple[float, float]:
    """Return the range that an option names.

    Raises:
        UsageError: it is neither a number nor LOW..HIGH, or goes beyond the limits.
    """
    try:
        values = [float(part) for part in text.split("..")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not lowest <= values[0] <= values[-1] <= highest:
        raise UsageError(f"{option}: expected {expected}, got {text!r}")
    return values[0], values[-1]


def _show(evaluation: Evaluation, settings: MeasureSettings) -> None:
    out = console(stderr=False, piped_width=FILE_WIDTH)
    for line in summary(evaluation, settings):
        out.print(line, soft_wrap=True)
    headings, rows = class_table(evaluation)
    table = plain_table(*headings, right=headings[1:])
    for row in rows:
        table.add_row(*row)
    for column in table.columns:
        column.no_wrap = True
    out.print(table)


def _score(subjects: Sequence[EvaluatedModel], settings: MeasureSettings) -> ScoredMaterial:
    with ProgressView(transient=False) as progress:
        task = progress.add_task("", total=total_s(subjects, settings))

        def on_progress(what: str, seconds: float) -> None:
            progress.proceed(task, seconds, f"measuring {what}", "measured")

        heard = score_material(subjects, settings, on_progress)
        progress.update(task, completed=progress.tasks[task].total or 0)
    return heard


def notes_of(subjects: Sequence[EvaluatedModel]) -> list[str]:
    """Return what a reader of the figures must know."""
    notes = [note for subject in subjects if (note := known_clips_remark(subject))]
    notes += [
        f"{subject.tagger.checkpoint.origin} is decided by windows, not by its frame head"
        for subject in subjects
        if subject.tagger.checkpoint.has_frames and subject.tagger.frames is None
    ]
    if not speech_is_available():
        notes.append("espeak-ng is not installed: there is no speech among the backgrounds")
    return notes


def check_folder(folder: Path, option: str) -> None:
    """Make the folder, so that hours of measuring are not lost for want of one.

    Raises:
        UsageError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"{option}: expected a folder that can be written to, got {folder} "
            f"({error.strerror or error})"
        ) from error
