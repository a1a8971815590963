"""Which checkpoint scores which clips: no model may be asked about sounds it was trained on.

A checkpoint meant for use is best trained on all folds, but then no labelled clip is left to show
what it finds. So checkpoints of the same recipe, each trained with some folds held out, score the
clips of those folds, and their scores are pooled as in cross-validation: they show what the recipe
finds, and stand for the checkpoint that is calibrated. Sound-free audio was seen by none of them,
so there the checkpoint's own scores are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ast_stream.dataset.annotations import Clip
from ast_stream.errors import UsageError
from ast_stream.model.checkpoint import Checkpoint

TEST_FOLDS = "test_folds"  # key of a trained checkpoint's provenance
HELD_OUT = "held-out"  # fold that a training gives, in its own list of clips, to those it kept back


@dataclass(frozen=True, eq=False)
class UnseenClips:
    """A checkpoint and the clips that it has never seen."""

    checkpoint: Checkpoint
    clips: list[Clip]

    @property
    def folds(self) -> list[str]:
        """Folds of the clips, in order."""
        return sorted({clip.fold for clip in self.clips if clip.fold is not None})


def unseen_clips(
    checkpoint: Checkpoint,
    fold_checkpoints: Sequence[Checkpoint],
    clips: Sequence[Clip],
    test_folds: Sequence[str],
    is_unseen: bool = False,
) -> tuple[list[UnseenClips], list[str]]:
    """Return who checkpoints which of `clips`, and remarks about clips that cannot be used.

    Args:
        test_folds: only clips of these; none: all that may be judged.
        is_unseen: a person says that `checkpoint` was trained on none of them.

    Raises:
        UsageError: a checkpoint was trained on what it would checkpoint, does not say what it held
            out, or differs from `checkpoint` in classes or windows.
    """
    chosen = [clip for clip in clips if not test_folds or clip.fold in test_folds]
    if fold_checkpoints:
        return _by_folds(checkpoint, fold_checkpoints, chosen, test_folds)
    trained_without = held_folds(checkpoint)
    if is_unseen or trained_without is None:
        return [UnseenClips(checkpoint, chosen)], []
    if all(clip.fold is None for clip in chosen):
        return [UnseenClips(checkpoint, chosen)], [no_folds_remark(checkpoint)]
    held = [*trained_without, HELD_OUT]
    unseen = [clip for clip in chosen if clip.fold in held]
    seen = sorted({str(clip.fold) for clip in chosen} - set(held))
    if seen and (test_folds or not unseen):
        raise UsageError(
            f"{checkpoint.origin} was trained on fold {', '.join(seen)}: expected "
            f"{_held_text(trained_without)}--fold-checkpoint with checkpoints that held them out, "
            "or --unseen where these are other clips than it was trained on"
        )
    remarks = [f"clips of fold {', '.join(seen)} are left out: it was trained on them"]
    return [UnseenClips(checkpoint, unseen)], remarks if seen else []


def held_folds(checkpoint: Checkpoint) -> list[str] | None:
    """Return the folds that a checkpoint was not trained on; None: it does not say."""
    folds = checkpoint.metadata.provenance.get(TEST_FOLDS)
    return [str(fold) for fold in folds] if isinstance(folds, list | tuple) else None


def no_folds_remark(checkpoint: Checkpoint) -> str:
    """Return what to know of figures of clips without folds."""
    return (
        f"whether {checkpoint.origin} was trained on these clips is unknown, as they have "
        "no folds; if it was, it finds more of them than of new ones"
    )


def _held_text(held: Sequence[str]) -> str:
    return f"--test-fold {' or '.join(held)}, " if held else ""


def _by_folds(
    checkpoint: Checkpoint,
    fold_checkpoints: Sequence[Checkpoint],
    clips: Sequence[Clip],
    test_folds: Sequence[str],
) -> tuple[list[UnseenClips], list[str]]:
    unseen_sets: list[UnseenClips] = []
    scored_by: dict[str, str] = {}
    for one in fold_checkpoints:
        held = _check(one, checkpoint)
        for fold in held:
            if fold in scored_by:
                raise UsageError(
                    f"--fold-checkpoint: expected each fold held out once, "
                    f"got {fold} by {scored_by[fold]} and {one.origin}"
                )
            scored_by[fold] = one.origin
        own = [clip for clip in clips if clip.fold in held]
        if own:
            unseen_sets.append(UnseenClips(one, own))
    missing = sorted({str(clip.fold) for clip in clips} - set(scored_by))
    if not unseen_sets or (missing and test_folds):
        there = ", ".join(sorted(scored_by))
        raise UsageError(
            f"--fold-checkpoint: expected clips of fold {there}, which they held out, "
            f"got fold {', '.join(missing)}"
        )
    remarks = [f"clips of fold {', '.join(missing)} are left out: no checkpoint held them out"]
    return unseen_sets, remarks if missing else []


def _check(fold_checkpoint: Checkpoint, checkpoint: Checkpoint) -> list[str]:
    """Return the folds that a fold checkpoint held out."""
    where = f"--fold-checkpoint {fold_checkpoint.origin}"
    held = held_folds(fold_checkpoint)
    if not held:
        raise UsageError(f"{where}: expected a checkpoint trained with --test-fold, got none held")
    if fold_checkpoint.labels != checkpoint.labels:
        differing = sorted(set(fold_checkpoint.labels) ^ set(checkpoint.labels))
        raise UsageError(
            f"{where}: expected the classes of {checkpoint.origin} in their order, "
            f"got a difference at {', '.join(differing) or 'the order'}"
        )
    if fold_checkpoint.window_s != checkpoint.window_s:
        raise UsageError(
            f"{where}: expected windows of {checkpoint.window_s:g} s, "
            f"got {fold_checkpoint.window_s:g} s"
        )
    return held
