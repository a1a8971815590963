"""Everything that is read, checked and generated before the first step."""

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
from ast_stream.dataset.annotations import Clip
from ast_stream.dataset.clips import DecodedClip, load_recordings, read_data
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
from ast_stream.training.plan import Plan
from ast_stream.training.windows import ClipMixing

HELD_OUT_SEED = 1_000_000  # generated material for thresholds differs from that for training
HELD_OUT_SHARE = 0.08  # so much again is generated to choose thresholds
HELD_OUT_BACKGROUNDS_SHARE = 0.2  # of own backgrounds, the last of them
FEWEST_BACKGROUNDS = 20  # held out
TOUCHING_S = 0.001  # stretches no farther apart follow each other
FEWEST_TO_SHARE = 4  # recordings of a class: of fewer none is held out


@dataclass(frozen=True, eq=False)
class Prepared:
    """Material to train on and to choose thresholds with.

    Attributes:
        clips, held_out_clips: the recorded clips behind the two.
        facts: what identifies the data: counts, and a digest of names, labels and sound.
    """

    material: Soundbank
    held_out: Soundbank
    clips: list[Clip]
    held_out_clips: list[Clip]
    facts: dict[str, Any]


def prepare(plan: Plan, start: Checkpoint | None) -> Prepared:
    """Read and check all data and generate the rest.

    Raises:
        ConfigError: every problem of the data, together; or labels with one topic.
        UsageError: a test fold that no recording has, or what the plan makes impossible.
    """
    recordings, own = _read(plan)
    tested = _tested(plan, recordings)
    training = [one for one in recordings if id(one) not in {id(test) for test in tested}]
    labels = _labels(plan, start, {label for one in recordings for label in one.clip.labels})
    _check_classes(plan, recordings, training)
    n_own = len(own) - math.ceil(len(own) * HELD_OUT_BACKGROUNDS_SHARE)
    seed = plan.recipe.seed
    n_held = math.ceil(plan.n_generated * HELD_OUT_SHARE)
    n_held_backgrounds = max(FEWEST_BACKGROUNDS, math.ceil(plan.n_backgrounds * 3 * HELD_OUT_SHARE))
    held = Soundbank(
        labels,
        (
            *recorded_foregrounds(tested, labels),
            *generated_foregrounds(seed + HELD_OUT_SEED, labels, n_held),
        ),
        (*generated_backgrounds(seed + HELD_OUT_SEED, n_held_backgrounds), *own[n_own:]),
    )
    return Prepared(
        material=Soundbank(
            labels,
            (
                *recorded_foregrounds(training, labels),
                *generated_foregrounds(seed, labels, plan.n_generated),
            ),
            (*generated_backgrounds(seed, plan.n_backgrounds), *own[:n_own]),
        ),
        held_out=held,
        clips=[one.clip for one in training],
        held_out_clips=[one.clip for one in tested],
        facts=_facts(training, tested, own),
    )


def _read(plan: Plan) -> tuple[list[DecodedClip], list[Waveform]]:
    """Return the labelled recordings, and the backgrounds beside and between them.

    Raises:
        ConfigError: every problem of both, together.
    """
    problems: list[Problem] = []
    everything: list[DecodedClip] = []
    own: list[Waveform] = []
    try:
        everything = load_recordings(read_data(plan.data, plan.columns))
    except ConfigError as error:
        problems += error.problems
    try:
        own = read_backgrounds(plan.backgrounds)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    for one in everything:
        if not one.clip.labels and one.clip.fold not in plan.test_folds:
            own += background_pieces(one.waveform)
    return [one for one in everything if one.clip.labels], own


def _tested(plan: Plan, recordings: Sequence[DecodedClip]) -> list[DecodedClip]:
    """Return the recordings that are held out: of the test folds, or a share of each class.

    Stretches that follow each other without a gap are cut from the same sound, so they stay
    together.
    """
    folds = {one.clip.fold for one in recordings}
    for fold in plan.test_folds:
        if fold not in folds:
            known = ", ".join(sorted(str(fold) for fold in folds))
            raise UsageError(f"test fold: expected one of {known}, got {fold!r}")
    if plan.test_folds:
        return [one for one in recordings if one.clip.fold in plan.test_folds]
    by_labels: dict[tuple[str, ...], list[list[DecodedClip]]] = defaultdict(list)
    for group in _connected(recordings):
        by_labels[tuple(sorted({name for one in group for name in one.clip.labels}))].append(group)
    rng = np.random.default_rng((plan.recipe.seed, HELD_OUT_SEED))
    tested = []
    for _, of_class in sorted(by_labels.items()):
        order = rng.permutation(len(of_class))
        n_held = round(len(of_class) * plan.held_out_share)
        if len(of_class) >= FEWEST_TO_SHARE:
            tested += [one for index in order[:n_held] for one in of_class[int(index)]]
    return tested


def _connected(recordings: Sequence[DecodedClip]) -> list[list[DecodedClip]]:
    """Return groups of recordings: of one file, whole or in stretches that touch."""
    groups: list[list[DecodedClip]] = []
    last_of: dict[Path, list[DecodedClip]] = {}
    until_s: dict[Path, float] = {}
    for one in sorted(recordings, key=lambda one: one.clip.span or (0.0, math.inf)):
        path, (onset_s, offset_s) = one.clip.path, one.clip.span or (0.0, math.inf)
        if path in last_of and onset_s <= until_s[path] + TOUCHING_S:
            last_of[path].append(one)
        else:
            last_of[path] = [one]
            groups.append(last_of[path])
        until_s[path] = max(offset_s, until_s.get(path, 0.0))
    place = {id(one): number for number, one in enumerate(recordings)}
    return sorted(groups, key=lambda group: min(place[id(one)] for one in group))


def _labels(plan: Plan, start: Checkpoint | None, recorded: set[str]) -> tuple[str, ...]:
    if plan.keep_classes:
        if start is None:
            raise UsageError("keep classes: expected a start checkpoint, whose classes to keep")
        _check_topics(plan, start.labels, recorded)
        return (*start.labels, *sorted(recorded - set(start.labels)))
    generated = set(generated_labels()) if plan.n_generated else set()
    _check_topics(plan, (), recorded | generated)
    return tuple(sorted(recorded | generated))


def _check_topics(plan: Plan, kept: Sequence[str], labels: set[str]) -> None:
    """Refuse labels that no checkpoint may have, and those with the topic of another class."""
    wrong = {label: problem_with_labels([label]) for label in sorted(labels - set(kept))}
    if any(wrong.values()):
        raise ConfigError(
            [
                Problem(str(plan.data), None, ascii(label), problem.replace(" class 0", " a class"))
                for label, problem in wrong.items()
                if problem is not None
            ]
        )
    taken = {slug(label): label for label in kept}
    problems = [
        Problem(
            str(plan.data), None, label,
            f"expected a label with a topic of its own, got {slug(label)!r} as of {other!r}",
        )
        for label in sorted(labels - set(kept))
        if (other := taken.setdefault(slug(label), label)) != label
    ]  # fmt: skip
    if problems:
        raise ConfigError(problems)


def _check_classes(
    plan: Plan, recordings: Sequence[DecodedClip], training: Sequence[DecodedClip]
) -> None:
    """Refuse classes that are held out whole, and several labels where a loss knows one."""
    trained = {label for one in training for label in one.clip.labels}
    for label in sorted({label for one in recordings for label in one.clip.labels} - trained):
        raise UsageError(
            f"test fold: expected recordings of {label!r} that are trained on, got all of them "
            "held out"
        )
    n_several = sum(len(one.clip.labels) > 1 for one in recordings)
    if plan.recipe.loss == "ce" and n_several:
        raise UsageError(
            f"{plan.data}: expected one label for each clip, which the loss of this preset (cross-"
            f"entropy) needs, got {n_several} clips with several"
        )
    if isinstance(plan.mixing, ClipMixing) and not training:
        raise UsageError(f"{plan.data}: expected clips to train on, got none")


def _facts(
    training: Sequence[DecodedClip], tested: Sequence[DecodedClip], own: Sequence[Waveform]
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for one in (*training, *tested):
        digest.update(json.dumps([one.clip.path.name, one.clip.labels, one.clip.span]).encode())
        digest.update(one.waveform.tobytes())
    for piece in own:
        digest.update(piece.tobytes())
    return {
        "clips": len(training),
        "held_out_clips": len(tested),
        "backgrounds": len(own),
        "background_samples": sum(len(piece) for piece in own),
        "content": digest.hexdigest(),
    }
