"""What the options of `ast-stream calibrate` mean together, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ast_stream.calibration.budget import Budgets, class_named, parse_budget, parse_budgets
from ast_stream.calibration.checkpoint import events_of
from ast_stream.calibration.judges import Judge, judges_of
from ast_stream.calibration.streams import plain_tagger
from ast_stream.dataset.clips import Clip
from ast_stream.detect.detector import Detector
from ast_stream.errors import UsageError
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint


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


def budgets_of(
    checkpoint: Checkpoint, texts: Sequence[str], among: str | None, chosen: Sequence[str]
) -> Budgets:
    """Return the budgets of --budget and --among.

    Raises:
        UsageError: one is no budget, or of a class that is not calibrated.
    """
    budgets = parse_budgets(texts, checkpoint.labels)
    if among is not None:
        budgets = replace(budgets, among=parse_budget(among, "--among"))
    for label in budgets.by_label:
        if label not in chosen:
            raise UsageError(f"--budget: expected a class that is calibrated, got {label!r}")
    return budgets


def judges_for(
    checkpoint: Checkpoint,
    fold_checkpoints: Sequence[str],
    clips: Sequence[Clip],
    test_folds: Sequence[str],
    is_unseen: bool,
) -> tuple[list[Judge], list[str]]:
    """Return who scores which clips, and remarks about it.

    Raises:
        CheckpointError: one cannot be loaded.
        UsageError: there are no clips for them, or `judges_of` refuses them.
    """
    if not clips:
        if fold_checkpoints:
            raise UsageError("--fold-checkpoint: expected --data with the clips of their folds")
        return [Judge(checkpoint, [])], []
    loaded = [load_checkpoint(one) for one in fold_checkpoints]
    return judges_of(checkpoint, loaded, clips, test_folds, is_unseen)


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
