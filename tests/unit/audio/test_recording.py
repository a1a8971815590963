"""Recordings as they come from the field: read to their end, or a sentence says where not."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from ast_stream.audio.containers import recordings_in
from ast_stream.audio.decoders import FrameConverter
from ast_stream.audio.recording import (
    RecordingAbsentError,
    RecordingError,
    RecordingReader,
    read_mono,
    recording_duration_s,
)

av = pytest.importorskip("av")

RATE = 16_000
SECONDS = 12.0


def sweep(seconds: float = SECONDS) -> npt.NDArray[np.int16]:
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(0, 300, len(times))
    return (8_000 * np.sin(2 * np.pi * (300 + 50 * times) * times) + noise).astype(np.int16)


def write(path: Path, samples: npt.NDArray[np.int16] | None = None) -> Path:
    """Write a recording by libsndfile, or by FFmpeg where it has to."""
    samples = sweep() if samples is None else samples
    codecs = {
        ".ts": "mp2",
        ".m2ts": "mp2",
        ".m4a": "aac",
        ".mp4": "aac",
        ".aac": "aac",
        ".webm": "libopus",
        ".mkv": "pcm_s16le",
    }
    codec = codecs.get(path.suffix)
    if codec is None:
        soundfile.write(path, samples, RATE)
        return path
    formats = {".m4a": "mp4", ".aac": "adts", ".ts": "mpegts", ".m2ts": "mpegts"}
    options = {"mpegts_m2ts_mode": "1"} if path.suffix == ".m2ts" else {}
    container = av.open(str(path), "w", format=formats.get(path.suffix), options=options)
    stream = container.add_stream(codec, rate=48_000 if codec == "libopus" else RATE)
    stream.layout = "mono"
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.rate = RATE
    resampler = av.AudioResampler(
        format=stream.codec_context.format,
        rate=stream.rate,
        frame_size={"aac": 1_024, "mp2": 1_152}.get(codec, 960),
    )
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))
    container.close()
    return path


def read(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return all samples in [-1, 1] and what was wrong."""
    with RecordingReader(path) as reader:
        parts = [np.zeros((0, reader.n_channels), np.float32)]
        while len(pcm := reader.read(5_000)):
            scale = np.float32(32_768 if pcm.dtype == np.int16 else 1)
            parts.append((pcm / scale).astype(np.float32))
        return np.concatenate(parts)[:, 0], reader.problems


def patched(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def damaged(path: Path, at: float = 0.5, n_bytes: int = 3_000) -> Path:
    n_whole = path.stat().st_size
    return patched(path, round(n_whole * at), np.random.default_rng(1).bytes(n_bytes))


def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("av", "av.error", "av.logging"):
        monkeypatch.setitem(sys.modules, name, None)


def data_at(path: Path) -> int:
    return path.read_bytes().index(b"data") + 4


@pytest.mark.parametrize("n_bytes", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_wav_whose_length_was_never_filled_in_is_read_to_its_end(
    tmp_path: Path, n_bytes: int
) -> None:
    path = write(tmp_path / "a.wav")
    patched(path, 4, struct.pack("<I", n_bytes))
    patched(path, data_at(path), struct.pack("<I", n_bytes))
    samples, problems = read(path)
    np.testing.assert_array_equal(samples * 32_768, sweep())
    assert not problems


@pytest.mark.parametrize("name", ["a.aiff", "a.w64", "a.caf", "a.au", "a.rf64"])
def test_other_containers_that_were_never_closed_are_read_to_their_end(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    soundfile.write(path, sweep(), RATE, format=path.suffix[1:].upper(), subtype="PCM_16")
    content = path.read_bytes()
    match path.suffix:
        case ".aiff":
            patched(path, 4, bytes(4))
            patched(path, content.index(b"COMM") + 10, bytes(4))
            patched(path, content.index(b"SSND") + 4, bytes(4))
        case ".w64":
            patched(path, content.index(b"data") + 16, bytes(8))
        case ".caf":
            patched(path, content.index(b"data") + 4, b"\xff" * 8)
        case ".au":
            patched(path, 8, bytes(4))
        case ".rf64":
            patched(path, content.index(b"ds64") + 8, bytes(24))
    samples, problems = read(path)
    assert len(samples) == len(sweep())
    np.testing.assert_array_equal(samples * 32_768, sweep())
    assert not problems


def test_an_empty_wav_with_chunks_behind_its_samples_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.zeros(0, np.int16))
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    samples, problems = read(path)
    assert len(samples) == 0
    assert not problems


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.caf", "a.w64", "a.flac", "a.ogg"])
def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes_and_says_so(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name)
    os.truncate(path, path.stat().st_size // 2)
    samples, problems = read(path)
    assert 4.0 < len(samples) / RATE < 8.0
    assert len(problems) == 1
    assert "its end is missing" in problems[0]


@pytest.mark.parametrize("name", ["a.voc", "a.ts", "a.m2ts"])
@pytest.mark.parametrize("part", [0.5, 0.98])
def test_containers_without_a_length_say_that_they_were_cut_off(
    tmp_path: Path, name: str, part: float
) -> None:
    path = write(tmp_path / name)
    assert read(path)[1] == []
    os.truncate(path, round(part * path.stat().st_size) - 7)
    samples, problems = read(path)
    assert len(problems) == 1
    assert f"its end is missing: read to {len(samples) / RATE:.2f} s" in problems[0]
    assert len(samples) / RATE == pytest.approx(part * SECONDS, abs=0.2)


@pytest.mark.parametrize(("n_bytes", "n_bits"), [(4, 16), (1, 16), (4, 24), (2, 8)])
def test_a_wav_whose_header_contradicts_itself_is_refused(
    tmp_path: Path, n_bytes: int, n_bits: int
) -> None:
    path = write(tmp_path / "a.wav")
    at = path.read_bytes().index(b"fmt ") + 8 + 12
    patched(path, at, struct.pack("<HH", n_bytes, n_bits))
    with pytest.raises(RecordingError, match=rf"got {n_bytes}: its header contradicts itself"):
        read(path)


def test_a_wav_whose_block_align_was_left_out_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    samples, problems = read(patched(path, path.read_bytes().index(b"fmt ") + 20, bytes(2)))
    assert (len(samples), problems) == (len(sweep()), [])


@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
def test_a_video_container_that_was_cut_off_says_so(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    os.truncate(path, path.stat().st_size // 2)
    _, problems = read(path)
    assert len(problems) == 1
    assert "as its header says" in problems[0]


@pytest.mark.parametrize("name", ["a.m4a", "film.mkv", "film.avi"])
def test_a_container_whose_length_is_not_that_of_the_sound_says_that_its_end_is_missing(
    tmp_path: Path, name: str
) -> None:
    path = film(tmp_path / name) if name.startswith("film") else write(tmp_path / name)
    assert not read(path)[1]
    os.truncate(path, path.stat().st_size * 2 // 3)
    try:
        (problem,) = read(path)[1]
    except RecordingError as error:  # an m4a has its index at its end
        problem = error.text
    assert "its end is missing" in problem
    assert "more bytes are promised" in problem


def film(path: Path) -> Path:
    """Write pictures for a while, and sound beside them."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 64
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for second in range(round(SECONDS)):
            for _ in range(5):
                picture = av.VideoFrame.from_ndarray(
                    np.zeros((64, 64, 3), np.uint8), format="rgb24"
                )
                container.mux(pictures.encode(picture))
            samples = sweep()[second * RATE : (second + 1) * RATE]
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.rate, frame.pts = RATE, second * RATE
            container.mux(sound.encode(frame))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
    return path


def test_bytes_behind_the_end_by_the_header_are_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    patched(path, data_at(path), struct.pack("<I", 2 * RATE))
    samples, problems = read(path)
    assert len(samples) == RATE
    assert problems == [
        f"read to 1.00 s, where it ends by its header, but {22 * RATE} bytes that are no metadata "
        "follow"
    ]


def flac_length(path: Path, n_samples: int) -> Path:
    at = path.read_bytes().index(b"fLaC") + 8 + 10
    kept = int.from_bytes(path.read_bytes()[at : at + 8], "big") >> 36
    return patched(path, at, (kept << 36 | n_samples).to_bytes(8, "big"))


@pytest.mark.parametrize("n_samples", [0, RATE])
def test_a_flac_of_unknown_or_too_short_a_length_is_read_to_its_end(
    tmp_path: Path, n_samples: int
) -> None:
    path = flac_length(write(tmp_path / "a.flac"), n_samples)
    samples, problems = read(path)
    np.testing.assert_array_equal(samples * 32_768, sweep())
    assert not problems
    if n_samples == 0:
        assert recording_duration_s(path) == SECONDS


def test_a_flac_that_claims_weeks_allocates_nothing_and_says_so(tmp_path: Path) -> None:
    path = flac_length(write(tmp_path / "a.flac"), (1 << 36) - 1)
    with RecordingReader(path) as reader:
        assert reader.duration_s is None
    assert recording_duration_s(path) == SECONDS


@pytest.mark.parametrize(
    ("at", "data", "sentence"),
    [
        (24, struct.pack("<I", 1), "expected a rate of 1000 to 1000000 Hz, got 1 Hz"),
        (24, struct.pack("<I", 4_000_000_000), "expected"),
        (22, struct.pack("<H", 1_000), "expected 1 to 256 channels, got 1000"),
        (22, struct.pack("<H", 60_000), "expected"),
        (22, struct.pack("<H", 0), "expected"),
        (34, struct.pack("<H", 0), "expected"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused_in_a_sentence(
    tmp_path: Path, at: int, data: bytes, sentence: str
) -> None:
    path = patched(write(tmp_path / "a.wav"), at, data)
    with pytest.raises(RecordingError, match=sentence):
        read(path)


@pytest.mark.parametrize(("name", "at_s"), [("a.mp3", 6.0), ("a.flac", 6.0), ("a.ogg", 6.0)])
def test_what_lies_behind_damage_is_read_at_its_own_time(
    tmp_path: Path, name: str, at_s: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = damaged(write(tmp_path / name))
    samples, problems = read(path)
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.2)
    assert len(problems) == 1
    assert "damaged at" in problems[0]
    second = float(problems[0].split("damaged at ")[1].split()[0])
    assert second == pytest.approx(at_s, abs=1.5)
    whole, _ = read(write(tmp_path / f"whole{path.suffix}"))
    last, expected = samples[-RATE:], whole[-RATE:]
    lags = np.correlate(last, expected, "same") if len(last) == len(expected) else np.zeros(1)
    assert abs(int(np.argmax(lags)) - RATE // 2) < 0.2 * RATE
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.ogg"])
def test_without_pyav_damage_is_reported_with_its_second_and_the_extra(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    without_pyav(monkeypatch)
    path = damaged(write(tmp_path / name))
    samples, problems = read(path)
    assert len(samples) > 3 * RATE
    assert "damaged at " in problems[0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.aac", "a.webm", "a.mkv"])
def test_what_libsndfile_cannot_read_is_read_by_ffmpeg_at_the_same_level(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name)
    pcm = np.concatenate(list(read_mono(path)))
    assert len(pcm) / RATE == pytest.approx(SECONDS, abs=0.2)
    expected = np.sqrt(np.mean(np.square(sweep().astype(np.float64))))
    assert np.sqrt(np.mean(np.square(pcm.astype(np.float64)))) == pytest.approx(expected, rel=0.05)


def test_without_pyav_other_formats_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.m4a")
    without_pyav(monkeypatch)
    with pytest.raises(RecordingError, match=r"a\.m4a: expected .*'ast-stream\[url\]'"):
        read(path)


@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.mp3"])
def test_streams_in_a_row_are_all_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    kind = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    soundfile.write(path, sweep(), RATE, **kind)
    path.write_bytes(path.read_bytes() * 2)
    with RecordingReader(path) as reader:
        while len(reader.read(RATE)):
            pass
        assert reader.position_s == pytest.approx(2 * SECONDS, abs=0.3)
        assert not reader.problems


def test_an_mp3_without_its_beginning_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3")
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 3 + 100 :])
    samples, _ = read(path)
    assert len(samples) / RATE == pytest.approx(SECONDS * 2 / 3, abs=0.5)


def test_metadata_behind_the_sound_is_none(tmp_path: Path) -> None:
    for name in ("a.mp3", "a.flac", "a.wav"):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes() + b"TAG" + b"x" * 125)
        samples, problems = read(path)
        assert len(samples) == len(sweep()), name
        assert not problems


def test_samples_that_are_no_numbers_are_reported_once_with_their_second(tmp_path: Path) -> None:
    samples = np.zeros(3 * RATE, np.float32)
    samples[RATE + 100] = np.nan
    samples[2 * RATE] = np.inf
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    read_samples, problems = read(tmp_path / "a.wav")
    assert problems == ["expected finite samples, got NaN or infinity from 1.01 s on"]
    assert not read_samples.any()


def test_a_file_that_grows_while_it_is_read_is_read_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    with RecordingReader(path) as reader:
        reader.read(RATE)
        with path.open("ab") as file:
            file.write(bytes(2 * RATE))
        while len(reader.read(RATE)):
            pass
        assert reader.problems == ["it grew while it was read: read to 12.00 s only"]


def test_pipes_devices_folders_and_text_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").touch()
    for name, sentence in (
        ("fifo.wav", "expected a file, got a FIFO"),
        ("/dev/zero", "expected a file, got a device"),
        (".", "expected a file, got a folder"),
        ("text.wav", "expected wav, flac, ogg or mp3"),
        ("empty.wav", "expected a recording, got an empty file"),
    ):
        with pytest.raises(RecordingError, match=sentence):
            RecordingReader(tmp_path / name)
    with pytest.raises(RecordingAbsentError, match="No such file"):
        RecordingReader(tmp_path / "none.wav")
    with pytest.raises(RecordingAbsentError, match="null"):
        RecordingReader(f"{tmp_path}/a\0b.wav")


def test_a_playlist_does_not_make_us_open_other_files(tmp_path: Path) -> None:
    write(tmp_path / "secret.aac")
    for name, text in (
        ("a.m4a", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.aac\n#EXT-X-ENDLIST\n"),
        ("b.m4a", f"ffconcat version 1.0\nfile '{tmp_path}/secret.aac'\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecordingError, match=rf"{name}: expected wav, flac, ogg or mp3"):
            RecordingReader(tmp_path / name)


def test_a_folder_gives_what_a_file_argument_reads_by_content_and_once(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    write(tmp_path / "sub" / "b.flac" if (tmp_path / "sub").mkdir() is None else tmp_path)
    write(tmp_path / "no-suffix.ogg").rename(tmp_path / "no-suffix")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / ".hidden.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    write(other / "c.mp3")
    (tmp_path / "link").symlink_to(other)
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "pipe")
    names = [str(path.relative_to(tmp_path)) for path in recordings_in(tmp_path)]
    assert names == ["a.wav", "gone.wav", "link/c.mp3", "no-suffix", "pipe.wav", "sub/b.flac"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.aiff", "a.au", "a.caf", "a.w64", "a.m4a", "a.mkv"],
)
def test_whatever_is_wrong_with_a_file_it_is_read_or_refused_in_a_sentence(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = write(tmp_path / name, sweep(3.0)).read_bytes()
    rng = np.random.default_rng(7)
    for number in range(25):
        content = bytearray(whole)
        for _ in range(1 + number % 3):
            at = int(rng.integers(min(120, len(content))))
            content[at : at + 4] = (b"\xff" * 4, bytes(4), rng.bytes(4))[int(rng.integers(3))]
        if number % 5 == 0:
            del content[int(rng.integers(len(content))) :]
        path = tmp_path / f"mutated{number}"
        path.write_bytes(content)
        try:
            samples, _ = read(path)
        except RecordingError:
            continue
        assert np.isfinite(samples).all()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(1_800):
            file.write(np.zeros((48_000, 2), np.int16))
    script = (
        "import resource, sys\n"
        "from ast_stream.audio.recording import read_mono\n"
        "n, before = 0, None\n"
        "for pcm in read_mono(sys.argv[1]):\n"
        "    n += len(pcm)\n"
        "    before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    n_samples, grown_kb = map(int, done.stdout.split())
    assert n_samples == 1_800 * RATE
    assert grown_kb < 50_000


def test_an_error_of_the_disk_is_reported_with_its_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.wav")
    read_at: Callable[[int, int, int], bytes] = os.pread

    def failing(descriptor: int, n_bytes: int, at: int) -> bytes:
        is_of_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if is_of_file and n_bytes and at > 10 * RATE:
            raise OSError(5, "Input/output error")
        return read_at(descriptor, n_bytes, at)

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(RecordingError, match=r"cannot be read beyond \d\.\d\d s: Input/output"):
        read(path)


@pytest.mark.parametrize("n_channels", [1, 2, 9, 17])
def test_frames_of_any_number_of_channels_come_out_as_they_are(n_channels: int) -> None:
    frame = av.AudioFrame(format="s16", layout=f"{n_channels}C", samples=100)
    frame.sample_rate = 8_000
    pcm = np.random.default_rng(0).integers(-30_000, 30_000, (100, n_channels)).astype("<i2")
    frame.planes[0].update(pcm.tobytes())
    np.testing.assert_array_equal(FrameConverter()(frame), pcm / np.float32(32_768))


@pytest.mark.parametrize("n_channels", [1, 2, 8, 9])
@pytest.mark.parametrize("format", ["flt", "fltp"])
def test_float_frames_come_out_as_they_are(format: str, n_channels: int) -> None:
    pcm = np.random.default_rng(0).normal(size=(100, n_channels)).astype(np.float32)
    pcm[3, 0] = np.nan
    packed = av.AudioFrame(format="flt", layout=f"{n_channels}C", samples=100)
    packed.sample_rate = 8_000
    packed.planes[0].update(pcm.tobytes())
    (frame,) = av.AudioResampler(format=format).resample(packed)
    found = FrameConverter()(frame)
    np.testing.assert_array_equal(found, pcm)
    # in one piece, whichever way round
    assert found.flags.c_contiguous or found.T.flags.c_contiguous
