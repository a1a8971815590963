"""A small archive of every kind of recording, and the rows of a scan of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from reactive_model import tones_and_noise

from ast_stream.archive import read_coverage, read_events
from ast_stream.cli.app import run_command_line
from ast_stream.units import SAMPLE_RATE

HOP_S = 0.5


def make_archive(root: Path, n_recordings: int = 12) -> Path:
    """Write recordings of different lengths, a cut one, one that is none, and a silent one."""
    root.mkdir(parents=True)
    for number in range(n_recordings):
        path = root / f"site-{number % 2}" / f"AM_20260501_21{number:02d}00.flac"
        path.parent.mkdir(exist_ok=True)
        length_s = 40.0 if number == 1 else 3.0 + number % 5
        soundfile.write(path, tones_and_noise(length_s, seed=number), SAMPLE_RATE)
    os.truncate(path, path.stat().st_size // 2)
    (root / "none.wav").write_text("no recording")
    soundfile.write(root / "silent.wav", np.zeros(5 * SAMPLE_RATE, np.int16), SAMPLE_RATE)
    soundfile.write(root / "empty.wav", np.zeros(0, np.int16), SAMPLE_RATE)
    soundfile.write(root / "short.wav", np.arange(100, dtype=np.int16), SAMPLE_RATE)
    return root


def scan(checkpoint: Path, *args: object) -> int:
    """Run `ast-stream scan` in this process, and return its exit code."""
    common = ["scan", "--model", str(checkpoint), "--hop", str(HOP_S)]
    return run_command_line([*common, *map(str, args)])


def rows_of(out: Path | str, *, is_partial: bool = False) -> tuple[list[Any], list[Any]]:
    """Return the rows of events and of coverage."""
    events = read_events(out, is_partial=is_partial).to_pylist()
    return events, read_coverage(out, is_partial=is_partial).to_pylist()
