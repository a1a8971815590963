"""Recordings through the scanner as `ast-stream scan` does: how fast, and in how much memory."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ast_stream.audio.containers import recordings_in
from ast_stream.audio.recording import recording_duration_s
from ast_stream.benchmarks.report import TableColumn
from ast_stream.errors import UsageError
from ast_stream.scanner import Scanner
from ast_stream.soundscape.scene import SceneRenderer
from ast_stream.units import SAMPLE_RATE

_BLOCK = 60 * SAMPLE_RATE


@dataclass(frozen=True)
class ScanFigures:
    """What scanning some recordings took.

    Attributes:
        name: what they are.
        times_real_time: their length by the time that it took.
        times_by_cpu: their length by the CPU time that it took, of one core.
        cpu_ms: for a window, of all threads, decoding included.
        asked: that the checkpoint was asked about: all of them without a cascade.
        peak_mib: of the process, so far.
    """

    name: str
    files: int
    audio_s: float
    wall_s: float
    times_real_time: float
    times_by_cpu: float
    cpu_ms: float
    windows: int
    asked: int
    events: int
    peak_mib: float


COLUMNS = (
    TableColumn("recordings", "{name}", is_figure=False),
    TableColumn("files", "{files}"),
    TableColumn("seconds", "{audio_s:.0f}"),
    TableColumn("times real time", "{times_real_time:.0f}"),
    TableColumn("per core", "{times_by_cpu:.0f}"),
    TableColumn("CPU ms per window", "{cpu_ms:.2f}"),
    TableColumn("events", "{events}"),
    TableColumn("peak MiB", "{peak_mib:.0f}"),
)
CASCADE_COLUMNS = (TableColumn("windows", "{windows}"), TableColumn("asked", "{asked}"))


def write_scene(path: Path, duration_s: float) -> Path:
    """Write a generated scene as 16-bit FLAC."""
    renderer = SceneRenderer(0, duration_s)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, subtype="PCM_16") as file:
        while len(pcm := renderer.render(_BLOCK)):
            file.write(pcm)
    return path


def some_recordings(folder: Path, n_files: int) -> list[Path]:
    """Return recordings from all over a folder, the same each time.

    Raises:
        UsageError: there is none.
    """
    paths = recordings_in(folder)
    if not paths:
        raise UsageError(f"--recordings: expected a folder with recordings, got {folder}")
    random.Random(0).shuffle(paths)
    return sorted(paths[:n_files])


def time_scan(name: str, paths: Sequence[Path], make_scanner: Callable[[], Scanner]) -> ScanFigures:
    """Return what scanning recordings took.

    Raises:
        RecordingError: one cannot be read.
    """
    audio_s = sum(recording_duration_s(path) for path in paths)
    scanner = make_scanner()
    cpu_s, began_s = time.process_time(), time.perf_counter()
    n_events = sum(1 for path in paths for _ in scanner.scan(path))
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return ScanFigures(
        name=name,
        files=len(paths),
        audio_s=round(audio_s, 1),
        wall_s=round(wall_s, 2),
        times_real_time=round(audio_s / wall_s, 1),
        times_by_cpu=round(audio_s / cpu_s, 1),
        cpu_ms=round(1000 * cpu_s / max(1, scanner.n_scored), 3),
        windows=scanner.n_scored,
        asked=scanner.n_scored if scanner.n_asked is None else scanner.n_asked,
        events=n_events,
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
