"""Scenes as sources: the whole scene, at its pace, and on from where it was."""

from __future__ import annotations

import numpy as np

from ast_stream.capture.sources.base import SourceBlock
from ast_stream.capture.sources.scene import ScenePlayer
from ast_stream.settings.streams import SceneSource
from ast_stream.soundscape.scene import generate_scene


def player(seed: int, duration_s: float, pace: str, block_s: float) -> ScenePlayer:
    settings = {"type": "scene", "seed": seed, "duration_s": duration_s}
    return ScenePlayer(SceneSource.model_validate(settings | {"pace": pace, "block_s": block_s}))


def test_the_source_delivers_the_scene_and_says_when_it_ends() -> None:
    source = player(2, 5.05, "fast", 0.1)
    source.open()
    blocks: list[SourceBlock] = []
    while not blocks or not blocks[-1].is_last:
        block = source.read(timeout_s=0.0)
        assert block is not None
        blocks.append(block)
    pcm = np.concatenate([block.pcm for block in blocks])
    np.testing.assert_array_equal(pcm[:, 0], generate_scene(2, 5.05).pcm)
    steps = np.diff([block.captured_ns for block in blocks])
    assert (steps == 100_000_000).all()
    assert len(blocks) == 51


def test_the_source_goes_on_where_it_was_after_it_was_opened_again() -> None:
    source = player(2, 5.0, "fast", 0.5)
    source.open()
    first = source.read(0.0)
    source.close()
    source.open()
    second = source.read(0.0)
    assert first is not None
    assert second is not None
    pcm = np.concatenate([first.pcm, second.pcm])[:, 0]
    np.testing.assert_array_equal(pcm, generate_scene(2, 5.0).pcm[: len(pcm)])


def test_a_paced_source_gives_nothing_before_it_is_due() -> None:
    source = player(0, 60.0, "realtime", 1.0)
    source.open()
    assert source.is_paced
    assert source.read(timeout_s=0.0) is None
