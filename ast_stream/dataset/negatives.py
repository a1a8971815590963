"""Own recordings without any event: which there are, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ast_stream.audio.recording import RecordingError, recording_duration_s, recordings_in
from ast_stream.errors import ConfigError, Problem


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
                found.append((file, recording_duration_s(file)))
            except RecordingError as error:
                problems.append(Problem(str(file), None, "", error.text))
    if problems:
        raise ConfigError(problems)
    return found
