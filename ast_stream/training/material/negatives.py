"""Own recordings without any event, block by block: hours of them need no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ast_stream.audio.media import Recording
from ast_stream.audio.resample import Resampler
from ast_stream.errors import AudioError, CaptureError, ConfigError, Problem
from ast_stream.messages import Pcm16
from ast_stream.settings.schema import FileSource
from ast_stream.training.material.clip import recordings_in

BLOCK_S = 1.0
READ_TIMEOUT_S = 10.0  # never waited for: recordings are read as fast as they come


def negative_files(paths: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return the recordings of some files and folders, each with its seconds.

    Raises:
        ConfigError: everything that is missing, empty or no audio, together.
    """
    found: list[tuple[Path, float]] = []
    problems: list[Problem] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = recordings_in(path)
            if not inside:
                problems.append(Problem(str(path), None, "", "expected recordings in it, got none"))
        for file in inside:
            try:
                found.append((file, _duration_s(file)))
            except (AudioError, CaptureError) as error:
                problems.append(Problem(str(file), None, "", str(error).removeprefix(f"{file}: ")))
    if problems:
        raise ConfigError(problems)
    return found


def read_blocks(path: Path) -> Iterator[Pcm16]:
    """Yield a recording as blocks of mono int16 at 16 kHz.

    Raises:
        CaptureError, AudioError: it cannot be read, or is damaged.
    """
    recording = _opened(path)
    try:
        resampler = Resampler(recording.rate)
        is_last = False
        while not is_last:
            block = recording.read(READ_TIMEOUT_S)
            assert block is not None, "an unpaced recording is always ready"
            yield resampler.push(block.pcm)
            is_last = block.is_last
        yield resampler.flush()
    finally:
        recording.close()


def _duration_s(path: Path) -> float:
    recording = _opened(path)
    try:
        return recording.duration_s
    finally:
        recording.close()


def _opened(path: Path) -> Recording:
    recording = Recording(FileSource(type="file", path=str(path), pace="fast", block_s=BLOCK_S))
    recording.open()
    return recording
