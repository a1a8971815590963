"""Own recordings without any event as backgrounds: an hour of room noise is worth a lot of mixing.

Files are read once and front to back, in pieces; only the pieces are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ast_stream.audio.activity import Waveform, active_rms
from ast_stream.audio.recording import (
    RecordingError,
    RecordingReader,
    recording_duration_s,
    recordings_in,
)
from ast_stream.dataset.decode import Mono16k
from ast_stream.errors import ConfigError, Problem
from ast_stream.soundscape.synthesis import to_active_level
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

PIECE_S = 10.0
SHORTEST_S = 1.0  # at the end of a file
MOST_S = 4 * 3600.0  # kept, evenly spread over all files: 0.9 GB
LOWEST_DBFS = -85.0  # quieter pieces are a switched-off input; amplified they would be nonsense


def read_backgrounds(paths: Sequence[Path]) -> list[Waveform]:
    """Return the sounding pieces of up to 10 s of files and folders, each at one active level.

    Of more than four hours evenly spread pieces are kept.

    Raises:
        ConfigError: every file that is missing, empty or no audio, together.
    """
    problems: list[Problem] = []
    files = [file for path in paths for file in _audio_files(path, problems)]
    total_s = sum(_duration_s(file) for file in files)
    every = max(1, -(-round(total_s) // round(MOST_S)))
    pieces: list[Waveform] = []
    for file in files:
        try:
            pieces += _kept_pieces(file, every)
        except RecordingError as error:
            problems.append(Problem(str(file), None, "", error.text))
    if problems:
        raise ConfigError(problems)
    if paths and not pieces:
        raise ConfigError(
            [Problem(str(paths[0]), None, "", "expected sound in the backgrounds, got silence")]
        )
    return pieces


def background_pieces(waveform: Waveform) -> list[Waveform]:
    """Return the sounding pieces of a decoded recording, each at one active level."""
    step = seconds_to_samples(PIECE_S)
    cuts = (waveform[start : start + step] for start in range(0, len(waveform), step))
    return [to_active_level(np.asarray(cut)) for cut in cuts if _is_of_use(cut)]


def _audio_files(path: Path, problems: list[Problem]) -> list[Path]:
    if path.is_dir():
        files = recordings_in(path)
        if not files:
            problems.append(Problem(str(path), None, "", "expected recordings in it, got none"))
        return files
    if not path.is_file():
        problems.append(Problem(str(path), None, "", "file is missing"))
        return []
    return [path]


def _duration_s(file: Path) -> float:
    try:
        return recording_duration_s(file)
    except RecordingError:
        return 0.0  # told when it is read


def _kept_pieces(file: Path, every: int) -> Iterator[Waveform]:
    with RecordingReader(file) as recording:
        n_wanted = round(PIECE_S * recording.rate)
        for number in itertools.count():
            samples = recording.read(n_wanted)
            if not len(samples):
                break
            if number % every:
                continue
            converter = Mono16k(recording.rate)
            piece = np.concatenate([converter.push(samples), converter.flush()])
            if _is_of_use(piece):
                yield to_active_level(piece)
        if recording.position_s == 0:
            raise RecordingError(file, "expected sound, got an empty file")
        recording.check()


def _is_of_use(piece: Waveform) -> bool:
    is_long = len(piece) >= SHORTEST_S * SAMPLE_RATE
    return is_long and active_rms(piece) > 10 ** (LOWEST_DBFS / 20)
