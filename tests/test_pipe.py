"""Raw PCM on a pipe: any cut into writes gives the same frames."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ast_stream.audio.pipe import Pipe
from ast_stream.audio.source import SourceBlock, SourceError
from ast_stream.settings.schema import StdinSource

MONO0, WALL0 = 5_000_000_000, 1_763_700_000_000_000_000


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def pipe(descriptor: int, **settings: object) -> Pipe:
    source = Pipe(
        StdinSource.model_validate({"type": "stdin", **settings}),
        descriptor,
        monotonic_ns=lambda: MONO0,
        wall_ns=lambda: WALL0,
    )
    source.open()
    return source


def read_all(source: Pipe) -> list[SourceBlock]:
    blocks: list[SourceBlock] = []
    while not (blocks and blocks[-1].is_last):
        block = source.read(5.0)
        if block is not None:
            blocks.append(block)
    return blocks


def joined(blocks: list[SourceBlock]) -> npt.NDArray[Any]:
    return np.concatenate([block.pcm for block in blocks])


def test_frames_cut_across_writes_are_put_together(ends: tuple[int, int]) -> None:
    reading, writing = ends
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, (5_001, 2)).astype("<i2")
    data = pcm.tobytes()
    source = pipe(reading, channels=2, rate=44_100)

    def write() -> None:
        for start in range(0, len(data), 1_237):
            os.write(writing, data[start : start + 1_237])
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    blocks = read_all(source)
    writer.join()
    np.testing.assert_array_equal(joined(blocks), pcm)
    assert {block.rate for block in blocks} == {44_100}
    assert source.n_bytes_dropped == 0


def test_bytes_of_an_incomplete_last_frame_are_dropped_and_counted(ends: tuple[int, int]) -> None:
    reading, writing = ends
    os.write(writing, b"\x01\x00\x02\x00\x03\x00\x04")
    os.close(writing)
    source = pipe(reading, channels=2)
    blocks = read_all(source)
    assert joined(blocks).tolist() == [[1, 2]]
    assert source.n_bytes_dropped == 3
    assert blocks[-1].is_last
    assert len(blocks[-1].pcm) == 0


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("s32le", np.array([2**30, -(2**31)], dtype="<i4")),
        ("f32le", np.array([0.5, -1.0], dtype="<f4")),
    ],
)
def test_wider_formats_become_float_of_the_same_level(
    ends: tuple[int, int], format: str, data: npt.NDArray[Any]
) -> None:
    reading, writing = ends
    os.write(writing, data.tobytes())
    os.close(writing)
    pcm = joined(read_all(pipe(reading, format=format)))
    assert pcm.dtype == np.float32
    assert pcm[:, 0].tolist() == [0.5, -1.0]


def test_a_silent_pipe_is_no_end(ends: tuple[int, int]) -> None:
    reading, writing = ends
    source = pipe(reading)
    assert source.read(0.0) is None
    os.write(writing, b"\x01")
    assert source.read(1.0) is None
    os.write(writing, b"\x00")
    block = source.read(1.0)
    assert block is not None
    assert block.pcm.tolist() == [[1]]
    assert not block.is_last


def test_time_is_counted_in_samples_from_the_first(ends: tuple[int, int]) -> None:
    reading, writing = ends
    source = pipe(reading, rate=8_000)
    os.write(writing, bytes(1_600))
    first = source.read(1.0)
    os.write(writing, bytes(1_600))
    second = source.read(1.0)
    assert first is not None
    assert second is not None
    assert (first.monotonic_ns, first.captured_ns) == (MONO0, WALL0)
    assert second.captured_ns - WALL0 == second.monotonic_ns - MONO0 == 100_000_000


def test_a_regular_file_can_be_piped_in(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(np.arange(4_000, dtype="<i2").tobytes())
    with (tmp_path / "raw").open("rb") as file:
        pcm = joined(read_all(pipe(file.fileno())))
    np.testing.assert_array_equal(pcm[:, 0], np.arange(4_000))


def test_closed_standard_input_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match="standard input is closed"):
        Pipe(StdinSource(type="stdin")).open()
