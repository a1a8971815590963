"""Folds: which checkpoint scores which clips, so that no model scores its training data.

A checkpoint meant for use is best trained on all folds, but then no labelled clip is left to show
what it finds. So checkpoints of the same recipe, each trained with some folds held out, score the
clips of those folds, and their scores are pooled as in cross-validation: they show what the recipe
finds, and stand for the checkpoint that is calibrated. Sound-free audio was seen by none of them,
so there the checkpoint's own scores are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_stream.dataset.annotations import LabelledClip
from ast_stream.dataset.clips import DecodedClip, load_recordings, read_clips
from ast_stream.dataset.reviewed_clips import TRAINED_ON, event_digest
from ast_stream.dataset.tables import Columns
from ast_stream.errors import UsageError
from ast_stream.evaluation.scoring import EvaluatedModel
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.soundscape.soundbank import recorded_foregrounds

TEST_FOLDS = "test_folds"  # key of a trained checkpoint's provenance
HELD_OUT = "held-out"  # fold that a training gives, in its own list of clips, to those it kept back


@dataclass(frozen=True, eq=False)
class UnseenClips:
    """A checkpoint and the clips that it has never seen."""

    checkpoint: Checkpoint
    clips: list[LabelledClip]

    @property
    def folds(self) -> list[str]:
        """Folds of the clips, in order."""
        return sorted({clip.fold for clip in self.clips if clip.fold is not None})


def unseen_clips(
    checkpoint: Checkpoint,
    fold_checkpoints: Sequence[Checkpoint],
    clips: Sequence[LabelledClip],
    test_folds: Sequence[str],
    is_unseen: bool = False,
) -> tuple[list[UnseenClips], list[str]]:
    """Return which checkpoint scores which clips, and remarks about clips that cannot be used.

    Args:
        test_folds: only clips of these; none: all that may be scored.
        is_unseen: a person says that `checkpoint` was trained on none of them.

    Raises:
        UsageError: a checkpoint was trained on what it would score, does not say what it held out,
            or differs from `checkpoint` in classes or windows.
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


def unseen_reviewed(
    checkpoint: Checkpoint, reviewed: Sequence[LabelledClip]
) -> tuple[UnseenClips, list[str]]:
    """Return the reviewed events that a checkpoint was not trained on, and a remark on others.

    Raises:
        UsageError: it was trained on all of them.
    """
    trained = checkpoint.metadata.provenance.get(TRAINED_ON)
    known = {str(path) for path in trained} if isinstance(trained, list | tuple) else set()
    unseen = [clip for clip in reviewed if event_digest(clip) not in known]
    n_seen = len(reviewed) - len(unseen)
    if n_seen and not unseen:
        raise UsageError(
            f"--verdicts: expected events that {checkpoint.origin} was not trained on, got "
            f"{n_seen} that it was"
        )
    remark = f"{n_seen} of {len(reviewed)} reviewed events are left out: it was trained on them"
    return UnseenClips(checkpoint, unseen), [remark] if n_seen else []


def held_folds(checkpoint: Checkpoint) -> list[str] | None:
    """Return the folds that a checkpoint was not trained on; None: it does not say."""
    folds = checkpoint.metadata.provenance.get(TEST_FOLDS)
    return [str(fold) for fold in folds] if isinstance(folds, list | tuple) else None


def no_folds_remark(checkpoint: Checkpoint) -> str:
    """Return a remark about figures of clips without folds."""
    return (
        f"whether {checkpoint.origin} was trained on these clips is unknown, as they have "
        "no folds; if it was, it finds more of them than of new ones"
    )


def _held_text(held: Sequence[str]) -> str:
    return f"--test-fold {' or '.join(held)}, " if held else ""


def _by_folds(
    checkpoint: Checkpoint,
    fold_checkpoints: Sequence[Checkpoint],
    clips: Sequence[LabelledClip],
    test_folds: Sequence[str],
) -> tuple[list[UnseenClips], list[str]]:
    unseen_sets: list[UnseenClips] = []
    scored_by: dict[str, str] = {}
    for candidate in fold_checkpoints:
        held = _check(candidate, checkpoint)
        for fold in held:
            if fold in scored_by:
                raise UsageError(
                    f"--fold-checkpoint: expected each fold held out once, "
                    f"got {fold} by {scored_by[fold]} and {candidate.origin}"
                )
            scored_by[fold] = candidate.origin
        own = [clip for clip in clips if clip.fold in held]
        if own:
            unseen_sets.append(UnseenClips(candidate, own))
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


def clips_of_folds(data: Path, columns: Columns, folds: Sequence[str]) -> list[LabelledClip]:
    """Return the labelled files of `data` in the given folds; all of them without any fold.

    Raises:
        ConfigError: the source is missing or empty, or the table cannot be understood.
        UsageError: a fold that no clip has.
    """
    clips = read_clips(data, columns)
    known = {clip.fold for clip in clips if clip.fold is not None}
    for fold in folds:
        if fold not in known:
            there = ", ".join(sorted(known)) or "no folds"
            raise UsageError(f"--test-fold: expected a fold of {data} ({there}), got {fold!r}")
    return [clip for clip in clips if not folds or clip.fold in folds]


def single(
    models: Sequence[str],
    data: Path,
    columns: Columns,
    test_folds: Sequence[str],
    *,
    use_frames: bool = True,
) -> list[EvaluatedModel]:
    """Return one model with the clips of the given folds, or with all clips.

    Raises:
        UsageError: several models, or a fold that no clip has.
        ConfigError: everything that is wrong with the clips.
    """
    if len(models) > 1:
        raise UsageError(f"--model: expected one without --cross-validate, got {len(models)}")
    tagger = load_tagger(models[0], use_frames=use_frames)
    clips = clips_of_folds(data, columns, test_folds)
    recordings = load_recordings(clips, tagger.labels, min_clips=1)
    return [_subject(tagger, recordings, _folds(clips))]


def cross_validated(
    models: Sequence[str],
    data: Path,
    columns: Columns,
    test_folds: Sequence[str],
    *,
    use_frames: bool = True,
) -> list[EvaluatedModel]:
    """Return every model with the clips of the folds that it was not trained on.

    Raises:
        UsageError: models that do not say so, share a fold, leave one out, or differ in labels.
        ConfigError: everything that is wrong with the clips.
    """
    if test_folds:
        raise UsageError(
            "--test-fold: expected none with --cross-validate: each model says which it has not "
            "been trained on"
        )
    clips = read_clips(data, columns)
    taggers = [load_tagger(model, use_frames=use_frames) for model in models]
    for tagger in taggers[1:]:
        if tagger.labels != taggers[0].labels:
            raise UsageError(
                f"--cross-validate: expected models with the same labels, got {len(tagger.labels)} "
                f"in {tagger.checkpoint.origin} that differ from the {len(taggers[0].labels)} of "
                f"{taggers[0].checkpoint.origin}"
            )
    folds = [tuple(held_folds(tagger.checkpoint) or ()) for tagger in taggers]
    _check_folds(list(zip(models, folds, strict=True)), data, _folds(clips))
    recordings = load_recordings(clips, taggers[0].labels, min_clips=1)
    subjects = []
    for tagger, its in zip(taggers, folds, strict=True):
        own = [recording for recording in recordings if recording.clip.fold in its]
        subjects.append(_subject(tagger, own, its))
    return subjects


def _subject(
    tagger: Tagger, recordings: Sequence[DecodedClip], folds: tuple[str, ...]
) -> EvaluatedModel:
    return EvaluatedModel(tagger, tuple(recorded_foregrounds(recordings, tagger.labels)), folds)


def known_clips_remark(subject: EvaluatedModel) -> str | None:
    """Return a warning if a model may have been trained on its clips, else None."""
    checkpoint = subject.tagger.checkpoint
    held = held_folds(checkpoint)
    if held is None or not subject.foregrounds:
        return None
    if not subject.folds:
        return no_folds_remark(checkpoint)
    seen = [fold for fold in subject.folds if fold not in (*held, HELD_OUT)]
    if not seen:
        return None
    if not held:
        return (
            f"{checkpoint.origin} held no clips out of its training: if it was trained on these, "
            "it finds more of them than of new ones"
        )
    return (
        f"{checkpoint.origin} was trained on clips of fold {', '.join(seen)}: figures of clips it "
        f"knows say little (it was not trained on fold {', '.join(held)})"
    )


def _folds(clips: Iterable[LabelledClip]) -> tuple[str, ...]:
    return tuple(sorted({clip.fold for clip in clips if clip.fold is not None}))


def _check_folds(
    folds: Sequence[tuple[str, tuple[str, ...]]], data: Path, known: Sequence[str]
) -> None:
    problems = [
        f"{model} does not say which folds it was not trained on" for model, its in folds if not its
    ]
    claimed = [fold for _, its in folds for fold in its]
    twice = sorted({fold for fold in claimed if claimed.count(fold) > 1})
    problems += [f"fold {fold} is tested by several models" for fold in twice]
    problems += [f"fold {fold} is not in {data}" for fold in sorted(set(claimed) - set(known))]
    problems += [f"fold {fold} is tested by no model" for fold in known if fold not in claimed]
    if problems:
        raise UsageError(
            "--cross-validate: expected models that together test every fold once: "
            + "; ".join(problems)
        )
