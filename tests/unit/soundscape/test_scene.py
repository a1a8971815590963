"""A scene is the same however it is read, and its truth is where its sounds are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.soundscape.scene import SceneRenderer, generate_scene
from ast_stream.soundscape.synthesis import SOUNDS
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

WINDOW_S = 2.56


def _truth(seed: int, duration_s: float) -> list[ReferenceEvent]:
    return generate_scene(seed, duration_s).truth


@pytest.mark.slow
def test_a_scene_of_forty_seconds_holds_every_class_in_six_to_eight_sounds() -> None:
    for seed in range(6):
        truth = _truth(seed, 40.0)
        assert 6 <= len(truth) <= 8
        assert len({planted.label for planted in truth}) == len(SOUNDS)


@pytest.mark.slow
def test_sounds_of_one_class_are_more_than_a_window_and_a_second_apart() -> None:
    for seed in range(6):
        ended: dict[str, float] = {}
        for planted in _truth(seed, 60.0):
            assert planted.onset_s - ended.get(planted.label, -9.0) > WINDOW_S + 1.0
            ended[planted.label] = planted.offset_s


def test_sounds_do_not_overlap_and_lie_within_the_scene() -> None:
    truth = _truth(3, 60.0)
    for before, after in itertools.pairwise(truth):
        assert before.offset_s + 1.0 < after.onset_s
    assert truth[0].onset_s > 1.0
    assert truth[-1].offset_s < 60.0


@pytest.mark.slow
@pytest.mark.parametrize("n_block", [160, 1600, 7777, 400_000])
def test_block_size_changes_no_sample(n_block: int) -> None:
    whole = generate_scene(5, 25.0)
    renderer = SceneRenderer(5, 25.0)
    blocks = []
    while len(block := renderer.render(n_block)):
        blocks.append(block)
    np.testing.assert_array_equal(np.concatenate(blocks), whole.pcm)
    assert renderer.truth == whole.truth


@pytest.mark.slow
def test_truth_tells_where_it_gets_loud() -> None:
    for seed in range(3):
        scene = generate_scene(seed, 40.0)
        for planted in scene.truth:
            onset = round(planted.onset_s * SAMPLE_RATE)
            before = scene.pcm[onset - 1600 : onset - 80].astype(float)
            first = scene.pcm[onset : onset + 1600].astype(float)
            assert np.square(first).mean() > 3 * np.square(before).mean(), planted


def test_the_bed_has_the_level_that_the_truth_says() -> None:
    scene = generate_scene(1, 12.0)
    first = scene.truth[0]
    quiet = scene.pcm[: round(first.onset_s * SAMPLE_RATE)] / FULL_SCALE
    level = 10 * np.log10(np.square(quiet).mean())
    assert level == pytest.approx(first.level_dbfs - first.snr_db, abs=1.5)


def test_a_scene_too_short_for_any_sound_is_a_bed() -> None:
    scene = generate_scene(0, 1.0)
    assert scene.truth == []
    assert len(scene.pcm) == SAMPLE_RATE
    assert scene.pcm.any()
