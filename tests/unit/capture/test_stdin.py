"""Raw PCM on a pipe: any cut into writes gives the same frames."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from source_blocks import MONO0, WALL0, joined

from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.capture.sources.stdin import StandardInput
from ast_stream.errors import AudioError, ConfigError
from ast_stream.settings.streams import StdinSource


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def pipe(descriptor: int, **settings: object) -> StandardInput:
    source = StandardInput(
        StdinSource.model_validate({"type": "stdin", **settings}),
        descriptor,
        monotonic_ns=lambda: MONO0,
        wall_ns=lambda: WALL0,
    )
    source.open()
    return source


def read_all(source: StandardInput) -> list[SourceBlock]:
    blocks: list[SourceBlock] = []
    while not (blocks and blocks[-1].is_last):
        block = source.read(5.0)
        if block is not None:
            blocks.append(block)
    return blocks


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
        ("u8", np.array([192, 0], dtype="u1")),
        ("s16be", np.array([2**14, -(2**15)], dtype=">i2")),
        ("s24le", np.array([[0, 0, 0x40], [0, 0, 0x80]], dtype="u1")),
        ("f64le", np.array([0.5, -1.0], dtype="<f8")),
        ("s32le", np.array([2**30, -(2**31)], dtype="<i4")),
        ("f32le", np.array([0.5, -1.0], dtype="<f4")),
    ],
)
def test_every_format_has_the_level_that_it_means(
    ends: tuple[int, int], format: str, data: npt.NDArray[Any]
) -> None:
    reading, writing = ends
    os.write(writing, data.tobytes())
    os.close(writing)
    pcm = joined(read_all(pipe(reading, format=format)))
    assert pcm.dtype == (np.int16 if format in ("u8", "s16be") else np.float32)
    scale = 32_768 if pcm.dtype == np.int16 else 1
    assert (pcm[:, 0] / scale).tolist() == [0.5, -1.0]


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
        StandardInput(StdinSource(type="stdin")).open()


def sound(n_frames: int, n_channels: int = 1, seed: int = 0) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return generator.uniform(-0.5, 0.5, (n_frames, n_channels)).astype(np.float32)


def file_of(
    pcm: npt.NDArray[Any], format: str = "WAV", subtype: str | None = None, rate: int = 22_050
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=format, subtype=subtype)
    return file.getvalue()


def piped(data: bytes, piece: int = 65_536, **settings: object) -> list[SourceBlock]:
    """Return what a source makes of bytes that come in pieces."""
    reading, writing = os.pipe()

    def write() -> None:
        try:
            for start in range(0, len(data), piece):
                os.write(writing, data[start : start + piece])
        except BrokenPipeError:
            pass
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return read_all(pipe(reading, **settings))
    finally:
        os.close(reading)
        writer.join()


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_wav_is_what_its_header_says(format: str, subtype: str) -> None:
    pcm = sound(5_000, 2)
    data = file_of(pcm, format, subtype)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    blocks = piped(data, format="wav")
    got = joined(blocks)
    if got.dtype == np.int16:
        got = got / np.float32(32_768)
    np.testing.assert_array_equal(got, expected)
    assert {block.rate for block in blocks} == {22_050}
    assert blocks[-1].is_last


@pytest.mark.parametrize("piece", [1, 7, 44])
def test_a_wav_may_come_in_any_pieces(piece: int) -> None:
    data = file_of(sound(300), subtype="PCM_24")
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(joined(piped(data, piece, format="wav")), expected)


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_wav_of_unknown_length_goes_on_until_the_end(size: int) -> None:
    data = bytearray(file_of(sound(3_000)))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    assert len(joined(piped(bytes(data), format="wav"))) == 3_000


def test_what_follows_the_samples_of_a_wav_is_no_sound() -> None:
    data = file_of(sound(3_000)) + b"LIST" + struct.pack("<I", 400) + b"\x7f" * 400
    assert len(joined(piped(data, format="wav"))) == 3_000


def test_chunks_before_the_samples_are_passed_over() -> None:
    data = file_of(sound(1_000))
    list_chunk = b"LIST" + struct.pack("<I", 9_001) + bytes(9_002)
    assert len(joined(piped(data[:12] + list_chunk + data[12:], format="wav"))) == 1_000


def test_a_wav_that_ends_before_its_header_says_is_reported_after_its_last_sample() -> None:
    reading, writing = os.pipe()
    os.write(writing, file_of(sound(44_100), subtype="PCM_16")[: 44 + 2 * 22_050])
    os.close(writing)
    source = pipe(reading, format="wav")
    blocks: list[SourceBlock | None] = []

    def read_on() -> None:
        while True:
            blocks.append(source.read(1.0))

    with pytest.raises(AudioError, match=r"ended after 1.0 s: its WAV header says 2.0 s"):
        read_on()
    assert sum(len(block.pcm) for block in blocks if block is not None) == 22_050
    os.close(reading)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (file_of(sound(5_000), subtype="IMA_ADPCM"), "is a WAV of encoding 0x0011 with 4 bits"),
        (file_of(sound(5_000), subtype="ULAW"), "is a WAV of encoding 0x0007 with 8 bits"),
        (file_of(sound(5_000), "FLAC"), "begins with fLaC: a WAV is expected"),
        (b"RIFF\x04\0\0\0AVI " * 10, "begins with RIFF: a WAV is expected"),
        (b"RIFF\x04\0\0\0WAVEdata\0\0\0\0", "a `fmt ` chunk is expected before its samples"),
    ],
)
def test_what_is_no_wav_of_plain_pcm_is_refused_with_what_it_is(data: bytes, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        piped(data, format="wav")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def adts(n_frames: int) -> bytes:
    size = 200
    header = bytes([0xFF, 0xF1, 0x50, 0x80 | size >> 11, size >> 3 & 0xFF, (size & 7) << 5 | 0x1F])
    return (header + bytes(size - len(header))) * n_frames


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (file_of(sound(5_000), subtype="PCM_24"), "begins with RIFF: a WAV file"),
        (file_of(sound(5_000), "RF64"), "begins with RF64: a WAV file"),
        (file_of(sound(5_000), "FLAC"), "begins with fLaC: a FLAC file"),
        (file_of(sound(5_000), "OGG"), "begins with OggS: an Ogg file"),
        (file_of(sound(5_000), "AIFF"), "begins with FORM: an AIFF file"),
        (file_of(sound(5_000), "CAF"), "begins with caff: a CAF file"),
        (file_of(sound(5_000), "W64"), "begins with riff: a Wave64 file"),
        (file_of(sound(5_000), "AU"), "begins with .snd: an AU file"),
        (file_of(sound(50_000), "MP3"), "an MP3 stream"),
        (b"ID3\x04" + bytes(5_000), "an MP3 file"),
        (adts(20), "an AAC stream"),
        ((b"\x47" + bytes(187)) * 20, "an MPEG transport stream"),
        (b"\x1aE\xdf\xa3" + bytes(50), "begins with 1a 45 df a3: a Matroska or WebM file"),
        (b"\0\0\0\x20ftypM4A " + bytes(50), "an MP4 file"),
        (b"<!DOCTYPE html><html>", "a web page"),
    ],
)
@pytest.mark.parametrize("piece", [3, 65_536])
def test_a_file_where_raw_pcm_is_expected_is_refused_with_its_name(
    data: bytes, text: str, piece: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        piped(data, piece)
    assert text in str(caught.value)
    assert "raw PCM is expected (format: s16le)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", [b"\xff\xfb\x90\x00", b"\xff\xf1\x50\x80", b"GGGG", b"\0\0\0\0"])
def test_samples_that_look_like_the_first_bytes_of_a_file_are_samples(first: bytes) -> None:
    data = first + sound(5_000).tobytes()
    data = data[: len(data) // 2 * 2]
    assert joined(piped(data, 2)).astype("<i2").tobytes() == data
    assert joined(piped(first)).astype("<i2").tobytes() == first
