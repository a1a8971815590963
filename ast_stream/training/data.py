"""The data of a training: read, checked, split, and completed with generated sounds."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ast_stream.audio.activity import Waveform
from ast_stream.dataset.annotations import LabelledClip
from ast_stream.dataset.clips import DecodedClip, load_recordings, read_data
from ast_stream.dataset.reviewed_clips import GROUP, read_reviewed
from ast_stream.errors import ConfigError, Problem, UsageError
from ast_stream.labels import problem_with_labels, slug
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.soundscape.backgrounds import (
    background_pieces,
    generated_backgrounds,
    read_backgrounds,
)
from ast_stream.soundscape.soundbank import (
    Soundbank,
    generated_foregrounds,
    generated_labels,
    recorded_foregrounds,
)
from ast_stream.training.config import TrainingConfig
from ast_stream.training.windows import ClipMixing

HELD_OUT_SEED = 1_000_000  # generated sounds for thresholds differ from those for training
HELD_OUT_RATIO = 0.08  # so many more are generated to choose thresholds
HELD_OUT_EVERY = 5  # of own backgrounds one block in so many
MAX_BLOCK_PIECES = 6  # of backgrounds: what follows each other is alike
MIN_HELD_OUT_BACKGROUNDS = 20
TOUCHING_S = 0.001  # sections no farther apart follow each other
MIN_RECORDINGS_TO_SPLIT = 4  # of a class: of fewer none is held out


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Data for training, and data for choosing thresholds.

    Attributes:
        clips, held_out_clips: the recorded clips that the two soundbanks are made of.
        unlabelled_clips: recordings of sounds without a class, trained on as well.
        facts: what identifies the data: counts, and a digest of names, labels and sound.
    """

    soundbank: Soundbank
    held_out: Soundbank
    clips: list[LabelledClip]
    held_out_clips: list[LabelledClip]
    unlabelled_clips: list[LabelledClip]
    facts: dict[str, Any]


def prepare_data(config: TrainingConfig, start: Checkpoint | None) -> TrainingData:
    """Read and check all data and generate the rest.

    Raises:
        ConfigError: every problem of the data, together; or labels with one topic.
        UsageError: a test fold that no recording has, or what the configuration makes impossible.
    """
    recordings, unlabelled, backgrounds = _read(config, start)
    held_out = _held_out(config, recordings)
    held_out_ids = {id(recording) for recording in held_out}
    held_groups = {_group(recording) for recording in held_out} - {None}
    unlabelled = [recording for recording in unlabelled if _group(recording) not in held_groups]
    trained = [recording for recording in recordings if id(recording) not in held_out_ids]
    recorded_labels = {label for recording in recordings for label in recording.clip.labels}
    labels = _labels(config, start, recorded_labels)
    _check_classes(config, recordings, trained)
    trained_backgrounds, held_out_backgrounds = split_backgrounds(backgrounds)
    seed = config.optimization.seed
    n_held_out_backgrounds = max(
        MIN_HELD_OUT_BACKGROUNDS, math.ceil(config.n_backgrounds * 3 * HELD_OUT_RATIO)
    )
    return TrainingData(
        soundbank=_soundbank(
            labels,
            [*trained, *unlabelled],
            trained_backgrounds,
            seed,
            config.n_generated,
            config.n_backgrounds,
        ),
        held_out=_soundbank(
            labels,
            held_out,
            held_out_backgrounds,
            seed + HELD_OUT_SEED,
            math.ceil(config.n_generated * HELD_OUT_RATIO),
            n_held_out_backgrounds,
        ),
        clips=[recording.clip for recording in trained],
        held_out_clips=[recording.clip for recording in held_out],
        unlabelled_clips=[recording.clip for recording in unlabelled],
        facts=_facts(trained, held_out, backgrounds),
    )


def _soundbank(
    labels: tuple[str, ...],
    recordings: Sequence[DecodedClip],
    backgrounds: Sequence[Waveform],
    seed: int,
    n_generated: int,
    n_backgrounds: int,
) -> Soundbank:
    """Return recordings and backgrounds together with generated ones."""
    return Soundbank(
        labels,
        (
            *recorded_foregrounds(recordings, labels),
            *generated_foregrounds(seed, labels, n_generated),
        ),
        (*generated_backgrounds(seed, n_backgrounds, labels=labels), *backgrounds),
    )


def split_backgrounds(pieces: Sequence[Waveform]) -> tuple[list[Waveform], list[Waveform]]:
    """Return the own backgrounds to train on, and those to choose thresholds with.

    Blocks of the latter are spread over all recordings: an hour of a room ends with something else
    than it begins with.
    """
    block = min(MAX_BLOCK_PIECES, max(1, len(pieces) // HELD_OUT_EVERY))
    parts: tuple[list[Waveform], list[Waveform]] = [], []
    for number, piece in enumerate(pieces):
        parts[number // block % HELD_OUT_EVERY == 0].append(piece)
    return parts


def _read(
    config: TrainingConfig, start: Checkpoint | None
) -> tuple[list[DecodedClip], list[DecodedClip], list[Waveform]]:
    """Return labelled recordings, those without any label, and backgrounds.

    A recording of a sound without a class is both: a sound not to be named, and a background.

    Raises:
        ConfigError: every problem of both, together.
    """
    problems: list[Problem] = []
    recordings: list[DecodedClip] = []
    backgrounds: list[Waveform] = []
    try:
        clips = read_data(config.data, config.columns)
        if config.verdicts is not None:
            known = {label for clip in clips for label in clip.labels}
            known |= set(start.labels if start is not None and config.keep_classes else ())
            clips += read_reviewed(config.verdicts, known)
        recordings = load_recordings(clips)
    except ConfigError as error:
        problems += error.problems
    try:
        backgrounds = read_backgrounds(config.backgrounds)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    unlabelled: list[DecodedClip] = []
    for recording in recordings:
        clip = recording.clip
        if clip.labels or clip.fold in config.test_folds:
            continue
        if _group(recording) is None:  # else it may belong to what is held out
            backgrounds += background_pieces(recording.waveform)
        if clip.section is None:
            unlabelled.append(recording)
    labelled = [recording for recording in recordings if recording.clip.labels]
    return labelled, unlabelled, backgrounds


def _held_out(config: TrainingConfig, recordings: Sequence[DecodedClip]) -> list[DecodedClip]:
    """Return the recordings that are held out: of the test folds, or a part of each class.

    Sections that follow each other without a gap are cut from the same sound, so they stay
    together.
    """
    folds = {recording.clip.fold for recording in recordings}
    for fold in config.test_folds:
        if fold not in folds:
            known = ", ".join(sorted(str(fold) for fold in folds))
            raise UsageError(f"test fold: expected one of {known}, got {fold!r}")
    if config.test_folds:
        return [recording for recording in recordings if recording.clip.fold in config.test_folds]
    groups_of: dict[tuple[str, ...], list[list[DecodedClip]]] = defaultdict(list)
    for group in _connected(recordings):
        labels = {label for recording in group for label in recording.clip.labels}
        groups_of[tuple(sorted(labels))].append(group)
    rng = np.random.default_rng((config.optimization.seed, HELD_OUT_SEED))
    held_out = []
    for _, groups in sorted(groups_of.items()):
        order = rng.permutation(len(groups))
        n_held_out = round(len(groups) * config.held_out_ratio)
        if len(groups) >= MIN_RECORDINGS_TO_SPLIT:
            held_out += [clip for index in order[:n_held_out] for clip in groups[int(index)]]
    return held_out


def _group(recording: DecodedClip) -> tuple[str, str] | None:
    """Return the group of a recording in its table, or None."""
    name = recording.clip.row.get(GROUP)
    return (recording.clip.table, name) if name else None


def _connected(recordings: Sequence[DecodedClip]) -> list[list[DecodedClip]]:
    """Return groups of recordings: of one file, whole or in sections that touch, or of one group.

    Which group, a table says in its column `group`.
    """
    groups: list[list[DecodedClip]] = []
    by_name: dict[tuple[str, str], list[DecodedClip]] = {}
    last_of: dict[Path, list[DecodedClip]] = {}
    end_s: dict[Path, float] = {}
    whole = (0.0, math.inf)
    for recording in sorted(recordings, key=lambda recording: recording.clip.section or whole):
        path, (onset_s, offset_s) = recording.clip.path, recording.clip.section or whole
        named = _group(recording)
        if named is not None and (known := by_name.get(named)) is not None:
            known.append(recording)
            last_of[path] = known
        elif path in last_of and onset_s <= end_s[path] + TOUCHING_S:
            last_of[path].append(recording)
        else:
            last_of[path] = [recording]
            groups.append(last_of[path])
        if named is not None:
            by_name.setdefault(named, last_of[path])
        end_s[path] = max(offset_s, end_s.get(path, 0.0))
    place = {id(recording): number for number, recording in enumerate(recordings)}
    return sorted(groups, key=lambda group: min(place[id(recording)] for recording in group))


def _labels(
    config: TrainingConfig, start: Checkpoint | None, recorded: set[str]
) -> tuple[str, ...]:
    if config.keep_classes:
        if start is None:
            raise UsageError("keep classes: expected a start checkpoint, whose classes to keep")
        _check_topics(config, start.labels, recorded)
        return (*start.labels, *sorted(recorded - set(start.labels)))
    generated = set(generated_labels()) if config.n_generated else set()
    _check_topics(config, (), recorded | generated)
    return tuple(sorted(recorded | generated))


def _check_topics(config: TrainingConfig, kept: Sequence[str], labels: set[str]) -> None:
    """Refuse labels that no checkpoint may have, and those with the topic of another class."""
    wrong = {label: problem_with_labels([label]) for label in sorted(labels - set(kept))}
    if any(wrong.values()):
        raise ConfigError(
            [
                Problem(
                    str(config.data), None, ascii(label), problem.replace(" class 0", " a class")
                )
                for label, problem in wrong.items()
                if problem is not None
            ]
        )
    taken = {slug(label): label for label in kept}
    problems = [
        Problem(
            str(config.data), None, label,
            f"expected a label with a topic of its own, got {slug(label)!r} as of {other!r}",
        )
        for label in sorted(labels - set(kept))
        if (other := taken.setdefault(slug(label), label)) != label
    ]  # fmt: skip
    if problems:
        raise ConfigError(problems)


def _check_classes(
    config: TrainingConfig, recordings: Sequence[DecodedClip], trained: Sequence[DecodedClip]
) -> None:
    """Refuse classes that are completely held out, and several labels with a single-label loss."""
    labels = {label for recording in recordings for label in recording.clip.labels}
    for label in sorted(labels - {label for clip in trained for label in clip.clip.labels}):
        raise UsageError(
            f"test fold: expected recordings of {label!r} that are trained on, got all of them "
            "held out"
        )
    n_several = sum(len(recording.clip.labels) > 1 for recording in recordings)
    if config.optimization.loss == "ce" and n_several:
        raise UsageError(
            f"{config.data}: expected one label for each clip, which the loss of this preset "
            f"(cross-entropy) needs, got {n_several} clips with several"
        )
    if isinstance(config.mixing, ClipMixing) and not trained:
        raise UsageError(f"{config.data}: expected clips to train on, got none")


def _facts(
    trained: Sequence[DecodedClip],
    held_out: Sequence[DecodedClip],
    backgrounds: Sequence[Waveform],
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for recording in (*trained, *held_out):
        clip = recording.clip
        digest.update(json.dumps([clip.path.name, clip.labels, clip.section]).encode())
        digest.update(recording.waveform.tobytes())
    for background in backgrounds:
        digest.update(background.tobytes())
    return {
        "clips": len(trained),
        "held_out_clips": len(held_out),
        "backgrounds": len(backgrounds),
        "background_samples": sum(len(background) for background in backgrounds),
        "content": digest.hexdigest(),
    }
