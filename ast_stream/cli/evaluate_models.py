"""Which model `evaluate` judges by which clips: none by clips that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ast_stream.calibration.judges import HELD_OUT, held_folds, no_folds_remark
from ast_stream.cli.clip_options import clips_of_folds
from ast_stream.dataset.clips import Clip, Columns, load_recordings, read_clips
from ast_stream.errors import UsageError
from ast_stream.evaluation.plan import Subject
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.soundscape.speech import speech_is_available
from ast_stream.soundscape.takes import Take, recorded_takes


def single(
    models: Sequence[str], data: Path, columns: Columns, test_folds: Sequence[str]
) -> Subject:
    """Return one model with the clips of the given folds, or with all.

    Raises:
        UsageError: several models, or a fold that no clip has.
        ConfigError: everything that is wrong with the clips.
    """
    if len(models) > 1:
        raise UsageError(f"--model: expected one without --cross-validate, got {len(models)}")
    tagger = load_tagger(models[0])
    clips = clips_of_folds(data, columns, test_folds)
    return Subject(tagger, _takes(clips, tagger), _folds(clips))


def cross_validated(
    models: Sequence[str], data: Path, columns: Columns, test_folds: Sequence[str]
) -> list[Subject]:
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
    taggers = [load_tagger(model) for model in models]
    _check_labels(taggers)
    folds = [tuple(held_folds(tagger.checkpoint) or ()) for tagger in taggers]
    _check_folds(list(zip(models, folds, strict=True)), data, _folds(clips))
    recordings = load_recordings(clips, taggers[0].labels, fewest=1)
    subjects = []
    for tagger, its in zip(taggers, folds, strict=True):
        own = [one for one in recordings if one.clip.fold in its]
        subjects.append(Subject(tagger, tuple(recorded_takes(own, tagger.labels)), its))
    return subjects


def notes_of(subjects: Sequence[Subject]) -> list[str]:
    """Return what a reader of the figures must know."""
    notes = [note for subject in subjects if (note := _known_clips(subject))]
    if not speech_is_available():
        notes.append("espeak-ng is not installed: there is no speech among the backgrounds")
    return notes


def _known_clips(subject: Subject) -> str | None:
    """Return what says that a model may have been trained on its clips; None: nothing does."""
    checkpoint = subject.tagger.checkpoint
    held = held_folds(checkpoint)
    if held is None or not subject.takes:
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


def _takes(clips: Sequence[Clip], tagger: Tagger) -> tuple[Take, ...]:
    recordings = load_recordings(clips, tagger.labels, fewest=1)
    return tuple(recorded_takes(recordings, tagger.labels))


def _folds(clips: Iterable[Clip]) -> tuple[str, ...]:
    return tuple(sorted({clip.fold for clip in clips if clip.fold is not None}))


def _check_labels(taggers: Sequence[Tagger]) -> None:
    first, *others = taggers
    for tagger in others:
        if tagger.labels != first.labels:
            raise UsageError(
                f"--cross-validate: expected models with the same labels, got {len(tagger.labels)} "
                f"in {tagger.checkpoint.origin} that differ from the {len(first.labels)} of "
                f"{first.checkpoint.origin}"
            )


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
