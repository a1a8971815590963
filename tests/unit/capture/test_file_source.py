"""Recordings: what is in the file is what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from source_blocks import MONO0, WALL0, Clock, joined, tone

from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.capture.sources.file import FilePlayer, Pace
from ast_stream.errors import AudioError
from ast_stream.settings.streams import FileSource

LOSSY_TOLERANCE = 0.02  # of full scale; vorbis and mp3 at their default quality


def recording(path: Path, clock: Clock | None = None, **settings: object) -> FilePlayer:
    parsed = FileSource.model_validate(
        {"type": "file", "path": str(path), "pace": "fast", **settings}
    )
    clock = clock or Clock()
    pace = Pace(
        parsed.pace == "realtime",
        monotonic_ns=clock.monotonic_ns,
        wall_ns=lambda: WALL0,
        sleep=clock.sleep,
    )
    return FilePlayer(parsed, pace)


def read_all(source: FilePlayer) -> list[SourceBlock]:
    source.open()
    blocks: list[SourceBlock] = []
    while not (blocks and blocks[-1].is_last):
        block = source.read(1.0)
        if block is not None:
            blocks.append(block)
    source.close()
    return blocks


def test_sixteen_bit_samples_come_out_bit_exact(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, (5_555, 2)).astype(np.int16)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, pcm, 22_050)
        blocks = read_all(recording(tmp_path / name))
        np.testing.assert_array_equal(joined(blocks), pcm)
        assert [block.rate for block in blocks] == [22_050] * len(blocks)
        assert [block.is_last for block in blocks] == [False] * (len(blocks) - 1) + [True]


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "float.wav"])
def test_other_formats_come_out_as_float_at_the_same_level(tmp_path: Path, name: str) -> None:
    sound = tone(1.0, 44_100, 2)
    subtype = "FLOAT" if name == "float.wav" else None
    soundfile.write(tmp_path / name, sound, 44_100, subtype=subtype)
    pcm = joined(read_all(recording(tmp_path / name)))
    assert pcm.dtype == np.float32
    assert pcm.shape == sound.shape
    assert np.abs(pcm - sound)[2_000:-2_000].max() < LOSSY_TOLERANCE


def test_a_file_of_whole_blocks_ends_with_an_empty_last_block(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(3_200, np.int16), 16_000)
    assert [len(block.pcm) for block in read_all(recording(tmp_path / "a.wav"))] == [1600, 1600, 0]


def test_in_real_time_a_block_comes_when_its_last_sample_has_been_heard(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(4_000, np.int16), 16_000)
    clock = Clock()
    blocks = read_all(recording(tmp_path / "a.wav", clock, pace="realtime"))
    assert [len(block.pcm) for block in blocks] == [1600, 1600, 800]
    assert clock.now_ns - MONO0 == 250_000_000
    times = [(block.monotonic_ns - MONO0, block.captured_ns - WALL0) for block in blocks]
    assert times == [(n * 100_000_000, n * 100_000_000) for n in range(3)]


def test_a_block_that_is_not_due_in_time_is_kept_for_later(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.arange(1_600, dtype=np.int16), 16_000)
    clock = Clock()
    source = recording(tmp_path / "a.wav", clock, pace="realtime")
    source.open()
    assert source.read(0.06) is None
    block = source.read(0.06)
    assert block is not None
    assert block.pcm[:, 0].tolist() == list(range(1_600))
    assert clock.slept == pytest.approx([0.06, 0.04])


def test_as_fast_as_possible_nobody_sleeps(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.int16), 16_000)
    clock = Clock()
    source = recording(tmp_path / "a.wav", clock)
    read_all(source)
    assert clock.slept == []
    assert not source.is_paced


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.flac", "a.wav"])
def test_a_file_read_in_blocks_is_the_file_read_at_once(tmp_path: Path, name: str) -> None:
    times = np.arange(44_100) / 44_100
    sweep = (0.25 * np.sin(2 * np.pi * 440 * times * (1 + times))).astype(np.float32)
    soundfile.write(tmp_path / name, sweep, 44_100)
    at_once, _ = soundfile.read(tmp_path / name, dtype="float32")
    source = recording(tmp_path / name, loop=True)
    source.open()
    blocks = [source.read(1.0) for _ in range(20)]
    in_blocks = joined([block for block in blocks if block is not None])[:, 0]
    if in_blocks.dtype == np.int16:
        in_blocks = in_blocks / np.float32(32_768)
    np.testing.assert_array_equal(in_blocks, np.tile(at_once, 2))


def test_a_loop_goes_round_without_a_seam(tmp_path: Path) -> None:
    pcm = np.arange(1_000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", pcm, 16_000)
    source = recording(tmp_path / "a.wav", loop=True)
    source.open()
    blocks = [source.read(1.0) for _ in range(5)]
    kept = [block for block in blocks if block is not None]
    assert [block.is_last for block in kept] == [False] * 5
    np.testing.assert_array_equal(joined(kept)[:, 0], np.tile(pcm, 8))


def test_a_file_that_is_not_there_may_come_and_one_that_is_no_recording_may_not(
    tmp_path: Path,
) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*none\.wav: No such file"):
        recording(tmp_path / "none.wav").open()
    (tmp_path / "text.wav").write_text("not a recording at all")
    with pytest.raises(AudioError, match=r"text\.wav: expected wav, flac, ogg or mp3"):
        recording(tmp_path / "text.wav").open()


def test_an_empty_file_ends_at_once_but_cannot_be_repeated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.int16), 16_000)
    assert [len(block.pcm) for block in read_all(recording(tmp_path / "a.wav"))] == [0]
    with pytest.raises(AudioError, match="expected samples to repeat, got none"):
        recording(tmp_path / "a.wav", loop=True).open()
