"""Writing a calibrated checkpoint: thresholds, golden scores and provenance.

Weights stay as they are, and readers see all of the new checkpoint or nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ast_stream.calibration.budgets import Budgets, per_hour
from ast_stream.calibration.scores import (
    background_streams,
    frame_steps,
    mixed_s,
    plain_tagger,
    sound_streams,
)
from ast_stream.calibration.thresholds import (
    ClassCalibration,
    OperatingPoint,
    calibrate_classes,
    raised_thresholds,
    timings,
)
from ast_stream.errors import CheckpointError, UsageError
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.description import BUNDLED, folder_of
from ast_stream.model.metadata import Metadata, write_metadata
from ast_stream.model.selfcheck import golden_for
from ast_stream.runtime.files import replacing_folder
from ast_stream.soundscape.soundbank import Soundbank

PROVENANCE = "thresholds"  # key of the record in the checkpoint's provenance
RAISED = "raised_thresholds"  # key of the classes that alarmed too often at their start's
_SEED = 0


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    held: Soundbank,
    negatives_s: float,
    budget_per_h: float,
    on_progress: Callable[[float], None] = lambda ratio: None,
    heard_in_negatives: Collection[str] = (),
) -> Checkpoint:
    """Return a newly trained checkpoint, calibrated on its held-out recordings.

    Classes of which nothing was held out keep the threshold that they have, if they have one and
    it keeps the budget.

    Args:
        negatives_s: length of the streams without events that bound the false alarms.
        budget_per_h: false alarms of one class in an hour of them, and among other sounds.
        on_progress: called with the part of the streams that has been scored, 0 to 1.
        heard_in_negatives: labels whose events in the streams without events may be real.
    """
    tagger = plain_tagger(checkpoint)
    foregrounds = held.foregrounds
    expected_s, scored_s = mixed_s(foregrounds, checkpoint.window_s) + negatives_s, 0.0

    def on_scored(seconds: float) -> None:
        nonlocal scored_s
        scored_s += seconds
        on_progress(min(1.0, scored_s / expected_s))

    with_sounds = list(
        sound_streams(
            tagger, tagger.hop_s, foregrounds, held.backgrounds, held.labels, _SEED, on_scored
        )
    )
    negatives = list(
        background_streams(tagger, tagger.hop_s, negatives_s, _SEED, held.backgrounds, on_scored)
    )
    on_progress(1.0)
    heard = {sound.label for stream in with_sounds for sound in stream.truth}
    decided_by = checkpoint.metadata.frames or checkpoint.metadata
    known = set(decided_by.onset_thresholds) - heard
    budgets = Budgets(per_hour(budget_per_h))
    calibrated = calibrate_classes(
        checkpoint.labels,
        [label for label in events_of(checkpoint) if label not in known],
        with_sounds,
        negatives,
        budgets,
        timings(checkpoint.window_s, tagger.hop_s, frames=frame_steps(checkpoint)),
    )
    result = with_calibration(checkpoint, calibrated, tagger.hop_s, {"seed": _SEED})
    raisable = known.difference(heard_in_negatives)
    raised = raised_thresholds(result, raisable, with_sounds, negatives, budgets)
    metadata = result.metadata
    update: dict[str, Any] = {
        "provenance": metadata.provenance | ({RAISED: sorted(raised)} if raised else {}),
    }
    if metadata.frames is not None:
        thresholds = metadata.frames.onset_thresholds | raised
        update["frames"] = metadata.frames.model_copy(update={"onset_thresholds": thresholds})
    else:
        update["onset_thresholds"] = metadata.onset_thresholds | raised
    return replace(result, metadata=metadata.model_copy(update=update))


def events_of(checkpoint: Checkpoint) -> list[str]:
    """Return the labels that make events at all."""
    return [label for label in checkpoint.labels if label not in checkpoint.metadata.background]


def with_calibration(
    checkpoint: Checkpoint,
    calibrated: Sequence[ClassCalibration],
    hop_s: float,
    record: Mapping[str, Any],
    off_below: float = 0.0,
) -> Checkpoint:
    """Return the checkpoint with the results for some classes; the others are unchanged.

    Args:
        record: what was heard and how, for the provenance; nothing in it may depend on the day.
        off_below: classes of which a smaller part is found, or whose budget cannot be met, are left
            off by default; 0: those that were off before stay so, as do those without a sound.
    """
    metadata = checkpoint.metadata
    done = {result.label for result in calibrated if not result.is_raised_only}
    rises_on = {result.label: result.rise_on for result in calibrated if result.rise_on}
    rises_off = {result.label: result.rise_off for result in calibrated if result.rise_off}
    fields: dict[str, dict[str, Any]] = {
        "score_maps": {result.label: result.score_map for result in calibrated},
        "onset_thresholds": {result.label: result.choice.threshold for result in calibrated},
        "onset_fits": {result.label: result.onset.fit for result in calibrated if result.onset},
        "confirm_s": {result.label: result.timing.confirm_s for result in calibrated},
        "smoothing_s": {result.label: result.timing.smoothing_s for result in calibrated},
        "hold_s": {
            result.label: result.hold_s for result in calibrated if result.hold_s is not None
        },
        "rise_on_s": {label: rise.median_s for label, rise in rises_on.items()},
        "rise_off_s": {label: rise.median_s for label, rise in rises_off.items()},
        "rise_on_spread_s": {label: rise.spread_s for label, rise in rises_on.items()},
        "rise_off_spread_s": {label: rise.spread_s for label, rise in rises_off.items()},
    }
    by_frames = any(result.by_frames for result in calibrated)
    held = metadata.frames if by_frames and metadata.frames is not None else metadata
    update: dict[str, Any] = {
        name: _in_order(checkpoint.labels, _without(getattr(held, name), done) | found)
        for name, found in fields.items()
        if name in type(held).model_fields
    }
    if held is not metadata:  # what holds for decisions by windows stays beside it
        update = {"frames": held.model_copy(update=update)}
    if off_below:
        off = {result.label for result in calibrated if result.is_off(off_below)}
        off |= set(metadata.off) - {result.label for result in calibrated if result.choice.n_sounds}
        update["off"] = [label for label in checkpoint.labels if label in off]
    update["window_s"], update["hop_s"] = checkpoint.window_s, hop_s  # what all this holds for
    update["provenance"] = _provenance(metadata, checkpoint.hash, calibrated, record)
    calibrated_one = replace(checkpoint, metadata=metadata.model_copy(update=update))
    golden = {"golden": golden_for(calibrated_one)}
    return replace(calibrated_one, metadata=calibrated_one.metadata.model_copy(update=golden))


def choice_record(choice: OperatingPoint) -> dict[str, Any]:
    """Return the figures of one threshold as JSON."""
    return {
        "budget": choice.budget.text,
        "is_met": choice.is_met,
        "threshold": choice.threshold,
        "n_sounds": choice.n_sounds,
        "n_found": choice.n_found,
        "false_among_sounds": choice.false_among,
        "false_in_negatives": choice.false_negatives,
    }


def class_record(result: ClassCalibration) -> dict[str, Any]:
    """Return the figures of one class as JSON."""
    return choice_record(result.choice) | {
        **result.timing._asdict(),
        "hold_s": result.hold_s,
        "onset_error_s": result.onset and result.onset.error_s,
        "bound_per_h": None if result.bound_per_h is None else round(result.bound_per_h, 4),
        "rises_measured": [
            0 if rise is None else rise.n_measured for rise in (result.rise_on, result.rise_off)
        ],
    }


def _provenance(
    metadata: Metadata,
    model_hash: str,
    calibrated: Sequence[ClassCalibration],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the provenance with this run; runs whose classes were all replaced are dropped."""
    before = _object(metadata.provenance.get(PROVENANCE))
    done = {result.label for result in calibrated}
    heard = calibrated[0].choice if calibrated else None
    run = {
        "model": model_hash,
        **record,
        "hours_among_sounds": round(heard.hours_among, 3) if heard else 0.0,
        "hours_of_negatives": round(heard.hours_negative, 3) if heard else 0.0,
    }
    name = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    known = _object(before.get("classes")).items()
    classes = _without({label: record for label, record in known if isinstance(record, dict)}, done)
    classes |= {result.label: class_record(result) | {"run": name} for result in calibrated}
    in_use = {record.get("run") for record in classes.values()}
    runs = _object(before.get("runs")) | {name: run}
    return metadata.provenance | {
        PROVENANCE: {
            "runs": {name: run for name, run in runs.items() if name in in_use},
            "classes": classes,
        }
    }


def _object(value: Any) -> dict[str, Any]:
    """Return an object of the provenance, which is free form; nothing else is kept."""
    return value if isinstance(value, dict) else {}


def _without(values: Mapping[str, Any], labels: set[str]) -> dict[str, Any]:
    return {label: value for label, value in values.items() if label not in labels}


def _in_order(labels: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {label: values[label] for label in labels if label in values}


def check_target(reference: str, out: Path | None, is_in_place: bool) -> None:
    """Refuse a target that cannot be written, before hours of listening.

    Raises:
        UsageError: both or an impossible target.
    """
    if out is not None and is_in_place:
        raise UsageError("calibrate: expected --out or --in-place, got both")
    if is_in_place:
        folder = Path(reference).expanduser()
        if reference == BUNDLED or not folder.is_dir():
            raise UsageError(
                f"--in-place: expected the directory of a checkpoint, got {reference!r}; use --out"
            )
        if not os.access(folder, os.W_OK):
            raise UsageError(f"--in-place: {folder} cannot be written")
    if out is not None:
        _check_out(out)


def _check_out(out: Path) -> None:
    whole = out.resolve()
    if whole.is_file() or (whole.is_dir() and any(whole.iterdir())):
        raise UsageError(f"--out: expected a new or empty folder, got {out}, which is there")
    if whole == Path.cwd() or whole.is_mount():
        raise UsageError(
            f"--out: expected a folder that can be replaced, got {out}; name a new one"
        )
    above = next(parent for parent in whole.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"--out: {above} cannot be written")


def write_in_place(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the ast_stream.json of a checkpoint's folder at once.

    Raises:
        CheckpointError: it cannot be written; the old one is whole.
    """
    write_metadata(folder, checkpoint.metadata)


def write_copy(reference: str, checkpoint: Checkpoint, out: Path) -> None:
    """Write the checkpoint that `reference` names to `out`, with its new metadata.

    Raises:
        CheckpointError: it cannot be written; nothing is left behind.
    """
    out = out.resolve()  # a link stays, and what it leads to is replaced
    source = folder_of(reference)
    try:
        with replacing_folder(out) as unfinished:
            if source is None:
                precision: Literal["fp16", "fp32"] = "fp16" if _fits_fp16(checkpoint) else "fp32"
                save_checkpoint(unfinished, checkpoint, precision)
            else:
                for file in sorted(source.iterdir()):
                    if file.is_file() and not file.name.startswith("."):
                        shutil.copyfile(file, unfinished / file.name)
                write_metadata(unfinished, checkpoint.metadata)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from error


def _fits_fp16(checkpoint: Checkpoint) -> bool:
    """Return whether half precision holds every weight exactly."""
    return all(
        torch.equal(tensor.half().float(), tensor) for tensor in checkpoint.state_dict.values()
    )
