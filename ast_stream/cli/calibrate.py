"""`ast-stream calibrate`: thresholds for a budget of false alarms."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from ast_stream.calibration.budgets import Budgets, class_named, parse_budget, parse_budgets
from ast_stream.calibration.folds import UnseenClips, clips_of_folds, unseen_clips, unseen_reviewed
from ast_stream.calibration.provenance import (
    check_target,
    events_of,
    with_calibration,
    write_copy,
    write_in_place,
)
from ast_stream.calibration.scores import (
    CalibrationAudio,
    foregrounds_of,
    frame_steps,
    negative_recordings,
    plain_tagger,
)
from ast_stream.calibration.thresholds import (
    MAX_CONFIRM_S,
    MAX_SMOOTHING_S,
    ClassCalibration,
    Timing,
    calibrate_classes,
    timings,
)
from ast_stream.cli.calibrate_report import record_of, result_json, show
from ast_stream.cli.clip_options import (
    ByWindows,
    ColumnOptions,
    Negatives,
    OnlyFolds,
)
from ast_stream.cli.options import (
    N_CORES,
    AsJson,
    Device,
    Threads,
    require_packages,
    with_option_groups,
)
from ast_stream.cli.terminal import ProgressView
from ast_stream.dataset.reviewed_clips import read_reviewed
from ast_stream.dataset.tables import Columns
from ast_stream.detect.detector import Detector
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.errors import UsageError
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint

N_GENERATED = 24  # foregrounds of every class that has a generator
GENERATED_HOURS = 1.0  # of negative audio, where no recordings are given


@dataclass(frozen=True)
class AudioOptions:
    """What to listen to, and which checkpoints may score it."""

    data: Annotated[
        Path | None,
        typer.Option(help="Labelled clips: folder with a sub-folder per class, or a CSV."),
    ] = None
    verdicts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `ast-stream review export`: confirmed sounds are found or missed, "
            "others must not be named. Those that CHECKPOINT was trained on are left out."
        ),
    ] = None
    test_fold: OnlyFolds = None
    fold_checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Checkpoint of the same recipe that held folds out: it scores the clips of those "
            "folds; may be repeated."
        ),
    ] = None
    unseen: Annotated[
        bool, typer.Option("--unseen", help="CHECKPOINT was trained on none of these clips.")
    ] = False
    negatives: Negatives = None
    negative_hours: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=f"Hours of generated noise, hum, music and speech. (default: {GENERATED_HOURS:g}, "
            "or 0 with --negatives)",
        ),
    ] = None
    generated: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Generated examples of each alarm class. (default: {N_GENERATED}, or 0 without "
            "--data or where CHECKPOINT was trained without)",
        ),
    ] = None
    hop: Annotated[
        float | None,
        typer.Option(min=0.01, help="Seconds between windows. (default: CHECKPOINT's)"),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=99, help="Of all that is generated.")] = 0
    device: Device = "cpu"
    by_windows: ByWindows = False

    def audio(
        self, checkpoint: Checkpoint, columns: Columns, is_partial: bool
    ) -> tuple[CalibrationAudio, list[str]]:
        """Return what is heard, and remarks about clips that cannot be used.

        Args:
            is_partial: only some classes are calibrated.

        Raises:
            ConfigError, CheckpointError, UsageError: something of it cannot be used.
        """
        folds = self.test_fold or []
        clips = [] if self.data is None else clips_of_folds(self.data, columns, folds)
        if self.fold_checkpoint and not clips:
            raise UsageError("--fold-checkpoint: expected --data with the clips of their folds")
        unseen_sets, remarks = [UnseenClips(checkpoint, [])], list[str]()
        if clips:
            others = [load_checkpoint(reference) for reference in self.fold_checkpoint or []]
            unseen_sets, remarks = unseen_clips(checkpoint, others, clips, folds, self.unseen)
        if self.verdicts is not None:
            reviewed = read_reviewed(self.verdicts, checkpoint.labels)
            unseen, seen = unseen_reviewed(checkpoint, reviewed)
            unseen_sets, remarks = [*unseen_sets, unseen], [*remarks, *seen]
        recordings = negative_recordings(self.negatives or [], checkpoint.labels)
        hours, n_generated = self.negative_hours, self.generated
        if hours is None:
            hours = 0.0 if recordings else GENERATED_HOURS
        if n_generated is None:
            was_generated = checkpoint.metadata.provenance.get("generated_takes")
            # without own sounds it is thresholds that are to be raised, and generated ones would
            # be reasons to lower those of their classes
            n_generated = N_GENERATED if was_generated and self.data is not None else 0
        audio = CalibrationAudio(
            checkpoint=checkpoint,
            sounds=foregrounds_of(unseen_sets, checkpoint.labels, n_generated, self.seed),
            negatives=recordings,
            generated_s=3600 * hours,
            hop_s=checked_hop(checkpoint, self.hop, is_partial),
            seed=self.seed,
            device=self.device,
            use_frames=not self.by_windows,
        )
        return audio, remarks


@dataclass(frozen=True)
class TargetOptions:
    """Which classes to calibrate, how, and for which budgets."""

    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="False alarms accepted of each class, like 0.5/h or 1/day; of one class with "
            "LABEL=1/day; may be repeated. (default: 0.5/h)"
        ),
    ] = None
    among: Annotated[
        str | None,
        typer.Option(
            help="The same among sounds of other classes, one every 8 s or so. (default: --budget)"
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Calibrate only this class, and show what other budgets would give; may be "
            "repeated.",
        ),
    ] = None
    longest_confirm: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Longest span in seconds in which windows may have to agree; a longer one finds "
            "more for the same budget, but later.",
        ),
    ] = MAX_CONFIRM_S
    longest_smoothing: Annotated[
        float,
        typer.Option(
            min=0, help="Longest time constant in seconds over which scores may be averaged."
        ),
    ] = MAX_SMOOTHING_S
    off_below: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Leave a class off by default if a smaller part of its sounds than this is found, "
            "or if its budget cannot be met; 0: as CHECKPOINT has it.",
        ),
    ] = 0.0

    def budgets(self, checkpoint: Checkpoint, chosen: Sequence[str]) -> Budgets:
        """Return the budgets of --budget and --among.

        Raises:
            UsageError: one is no budget, or of a class that is not calibrated.
        """
        budgets = parse_budgets(self.budget or [], checkpoint.labels)
        if self.among is not None:
            budgets = replace(budgets, among=parse_budget(self.among, "--among"))
        for label in budgets.by_label:
            if label not in chosen:
                raise UsageError(f"--budget: expected a class that is calibrated, got {label!r}")
        return budgets


@with_option_groups
def calibrate(
    checkpoint: Annotated[
        str, typer.Argument(help="bundled, the directory or file of a checkpoint, or a hub id.")
    ],
    *,
    audio: AudioOptions,
    columns: ColumnOptions,
    target: TargetOptions,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write the checkpoint to.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write into the directory CHECKPOINT.")
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Choose thresholds that keep a budget of false alarms, and say what is missed then.

    Labelled clips are placed over generated backgrounds at 0 to 20 dB; the budget holds for audio
    without any sound and, separately, among sounds of other classes. Without --out or --in-place
    nothing is written.

    Example: ast-stream calibrate runs/doorbell/checkpoint --data sounds/ --negatives night.wav
    --budget 1/day --out doorbell
    """
    torch.set_num_threads(threads or N_CORES)
    require_packages("calibrate", "scipy")
    check_target(checkpoint, out, in_place)
    loaded = load_checkpoint(checkpoint)
    chosen = chosen_labels(loaded, target.only or [])
    budgets = target.budgets(loaded, chosen)
    heard, remarks = audio.audio(loaded, columns.columns(), is_partial=bool(target.only))
    by_timing = timings(
        loaded.window_s,
        heard.hop_s,
        target.longest_confirm,
        target.longest_smoothing,
        frame_steps(loaded) if heard.use_frames else None,
    )
    calibrated = _listen(heard, chosen, budgets, by_timing)
    record = record_of(heard, audio.data, budgets) | {
        "longest_confirm_s": target.longest_confirm,
        "longest_smoothing_s": target.longest_smoothing,
        **({} if audio.verdicts is None else {"verdicts": str(audio.verdicts)}),
    }
    result = with_calibration(loaded, calibrated, heard.hop_s, record, target.off_below)
    written = None
    try:
        if out is not None:
            write_copy(checkpoint, result, out)
            use = f"use it with --model {out}, or model.checkpoint in a configuration"
            written = f"{out}: written; {use}"
        elif in_place:
            write_in_place(Path(checkpoint).expanduser(), result)
            written = f"{checkpoint}: calibrated in place"
    finally:  # neither a full disk nor a reader that is gone may cost the other what was found
        if as_json:
            print(json.dumps(result_json(result, calibrated, record, remarks, written)))
        else:
            show(calibrated, chosen if target.only else (), remarks)
    print(written or "nothing is written; give --out or --in-place", file=sys.stderr)


def _listen(
    audio: CalibrationAudio,
    chosen: Sequence[str],
    budgets: Budgets,
    by_timing: Mapping[Timing, DecisionParameters],
) -> list[ClassCalibration]:
    if not audio.expected_s:
        raise UsageError("calibrate: expected --data, --negatives or --negative-hours, got none")
    minutes = audio.expected_s / 60
    with ProgressView(transient=False) as progress:
        task = progress.add_task("", total=audio.expected_s)

        def on_progress(seconds: float) -> None:
            progress.proceed(task, seconds, f"scoring {minutes:.0f} minutes of audio", "scored")

        with_sounds = audio.score_sounds(on_progress)
        negatives = audio.score_negatives(on_progress)
        progress.update(task, completed=audio.expected_s, description="thresholds")
        return calibrate_classes(
            audio.checkpoint.labels,
            chosen,
            with_sounds,
            negatives,
            budgets,
            by_timing,
            known=audio.checkpoint,
        )


def chosen_labels(checkpoint: Checkpoint, only: Sequence[str]) -> list[str]:
    """Return the labels to calibrate, in the checkpoint's order.

    Raises:
        UsageError: a class that the checkpoint does not have, or none makes events.
    """
    possible = events_of(checkpoint)
    if not possible:
        raise UsageError(
            f"calibrate: expected a class that makes events, got {checkpoint.origin}, "
            "whose classes are all background"
        )
    wanted = {class_named(name, possible, "--class") for name in only}
    return [label for label in possible if not wanted or label in wanted]


def checked_hop(checkpoint: Checkpoint, hop_s: float | None, is_partial: bool) -> float:
    """Return the hop to calibrate for.

    Raises:
        UsageError: the model cannot have it, or classes that stay as they are have another.
    """
    tagger = plain_tagger(checkpoint)
    if hop_s is None:
        return tagger.hop_s
    if is_partial and hop_s != tagger.hop_s:
        raise UsageError(
            f"--hop: expected {tagger.hop_s:g} s with --class, as for the other classes, "
            f"got {hop_s:g}"
        )
    Detector(tagger, hop_s=hop_s, max_streams=1)
    return hop_s
