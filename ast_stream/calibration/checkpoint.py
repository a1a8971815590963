"""A checkpoint with score maps, thresholds, rise times, golden scores, and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ast_stream.calibration.budget import Budgets, per_hour
from ast_stream.calibration.streams import (
    background_streams,
    laid_s,
    plain_tagger,
    sound_streams,
)
from ast_stream.calibration.thresholds import (
    ClassCalibration,
    calibrate_classes,
    raised_thresholds,
    timings,
)
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import Metadata
from ast_stream.model.selfcheck import golden_for
from ast_stream.soundscape.soundbank import Soundbank

PROVENANCE = "thresholds"  # key of the record in the checkpoint's provenance
RAISED = "raised_thresholds"  # key of the classes that alarmed too often at their start's
_SEED = 0


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    held: Soundbank,
    negatives_s: float,
    budget_per_h: float,
    on_share: Callable[[float], None] = lambda share: None,
) -> Checkpoint:
    """Return a checkpoint that was just trained, calibrated on what was held out from it.

    Classes of which nothing was held out keep the threshold that they have, if they have one and
    it keeps the budget.

    Args:
        negatives_s: length of the streams without events that bound the false alarms.
        budget_per_h: false alarms of one class in an hour of them, and among other sounds.
        on_share: called with the share of the streams that has been scored, 0 to 1.
    """
    tagger = plain_tagger(checkpoint)
    takes = held.foregrounds
    expected_s, scored_s = laid_s(takes, checkpoint.window_s) + negatives_s, 0.0

    def on_heard(seconds: float) -> None:
        nonlocal scored_s
        scored_s += seconds
        on_share(min(1.0, scored_s / expected_s))

    with_sounds = list(
        sound_streams(tagger, tagger.hop_s, takes, held.backgrounds, held.labels, _SEED, on_heard)
    )
    negatives = list(
        background_streams(tagger, tagger.hop_s, negatives_s, _SEED, held.backgrounds, on_heard)
    )
    on_share(1.0)
    heard = {sound.label for stream in with_sounds for sound in stream.truth}
    known = set(checkpoint.metadata.onset_thresholds) - heard
    budgets = Budgets(per_hour(budget_per_h))
    calibrated = calibrate_classes(
        checkpoint.labels,
        [label for label in events_of(checkpoint) if label not in known],
        with_sounds,
        negatives,
        budgets,
        timings(checkpoint.window_s, tagger.hop_s),
    )
    result = with_calibration(checkpoint, calibrated, tagger.hop_s, {"seed": _SEED})
    raised = raised_thresholds(result, known, with_sounds, negatives, budgets)
    metadata = result.metadata
    update = {
        "onset_thresholds": metadata.onset_thresholds | raised,
        "provenance": metadata.provenance | ({RAISED: sorted(raised)} if raised else {}),
    }
    return replace(result, metadata=metadata.model_copy(update=update))


def events_of(checkpoint: Checkpoint) -> list[str]:
    """Return the labels that make events at all."""
    return [label for label in checkpoint.labels if label not in checkpoint.metadata.background]


def with_calibration(
    checkpoint: Checkpoint,
    calibrated: Sequence[ClassCalibration],
    hop_s: float,
    record: Mapping[str, Any],
) -> Checkpoint:
    """Return the checkpoint with what was found for some classes; the others keep what they had.

    Args:
        record: what was heard and how, for the provenance; nothing in it may depend on the day.
    """
    metadata = checkpoint.metadata
    done = {one.label for one in calibrated}
    rises_on = {one.label: one.rise_on for one in calibrated if one.rise_on}
    rises_off = {one.label: one.rise_off for one in calibrated if one.rise_off}
    fields: dict[str, dict[str, Any]] = {
        "score_maps": {one.label: one.score_map for one in calibrated},
        "onset_thresholds": {one.label: one.choice.threshold for one in calibrated},
        "onset_fits": {one.label: one.onset.fit for one in calibrated if one.onset},
        "confirm_s": {one.label: one.timing.confirm_s for one in calibrated},
        "smoothing_s": {one.label: one.timing.smoothing_s for one in calibrated},
        "rise_on_s": {label: rise.median_s for label, rise in rises_on.items()},
        "rise_off_s": {label: rise.median_s for label, rise in rises_off.items()},
        "rise_on_spread_s": {label: rise.spread_s for label, rise in rises_on.items()},
        "rise_off_spread_s": {label: rise.spread_s for label, rise in rises_off.items()},
    }
    update: dict[str, Any] = {
        name: _in_order(checkpoint.labels, _without(getattr(metadata, name), done) | found)
        for name, found in fields.items()
    }
    update["window_s"], update["hop_s"] = checkpoint.window_s, hop_s  # what all this holds for
    update["provenance"] = _provenance(metadata, checkpoint.hash, calibrated, record)
    calibrated_one = replace(checkpoint, metadata=metadata.model_copy(update=update))
    golden = {"golden": golden_for(calibrated_one)}
    return replace(calibrated_one, metadata=calibrated_one.metadata.model_copy(update=golden))


def class_record(one: ClassCalibration) -> dict[str, Any]:
    """Return the figures of one class as JSON."""
    choice = one.choice
    return {
        "budget": choice.budget.text,
        "is_met": choice.is_met,
        "threshold": choice.threshold,
        **one.timing._asdict(),
        "n_sounds": choice.n_sounds,
        "n_found": choice.n_found,
        "false_among_sounds": choice.false_among,
        "false_in_negatives": choice.false_negatives,
        "onset_error_s": one.onset and one.onset.error_s,
        "bound_per_h": None if one.bound_per_h is None else round(one.bound_per_h, 4),
        "rises_measured": [
            0 if rise is None else rise.n_measured for rise in (one.rise_on, one.rise_off)
        ],
    }


def _provenance(
    metadata: Metadata,
    model_hash: str,
    calibrated: Sequence[ClassCalibration],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the provenance with this run in it; runs of which no class is left are dropped."""
    before = _object(metadata.provenance.get(PROVENANCE))
    done = {one.label for one in calibrated}
    heard = calibrated[0].choice if calibrated else None
    run = {
        "model": model_hash,
        **record,
        "hours_among_sounds": round(heard.hours_among, 3) if heard else 0.0,
        "hours_of_negatives": round(heard.hours_negative, 3) if heard else 0.0,
    }
    name = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    known = _object(before.get("classes")).items()
    classes = _without({label: one for label, one in known if isinstance(one, dict)}, done)
    classes |= {one.label: class_record(one) | {"run": name} for one in calibrated}
    in_use = {one.get("run") for one in classes.values()}
    runs = _object(before.get("runs")) | {name: run}
    return metadata.provenance | {
        PROVENANCE: {
            "runs": {name: one for name, one in runs.items() if name in in_use},
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
