"""A whole box under load: real processes, recordings in real time, and how late the feed is.

Each number of streams is a run of its own: `ast-stream run` with a file source for each, read at
the pace of a microphone. Lag is the time from the end of the audio that a result needs, which is
the end of a window, to its message; of events also from the onset of the sound. Both are taken from
the times in the messages, so that how fast this reader is makes no difference.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ast_stream.audio.containers import recordings_in
from ast_stream.audio.recording import read_mono
from ast_stream.benchmarks.box import Box, ProcessFacts, facts_of
from ast_stream.benchmarks.report import TableColumn
from ast_stream.detect.parameters import model_facts, resolve_parameters
from ast_stream.errors import UsageError
from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.messages.event import EventMessage, ScoresHeader
from ast_stream.messages.status import Health, WorkerStatus
from ast_stream.model.description import describe
from ast_stream.settings.detection import DetectionSettings
from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import (
    NS_PER_SECOND,
    SAMPLE_RATE,
    samples_to_ns,
    samples_to_seconds,
    seconds_to_samples,
)

START_S = 300.0  # for the audio of all streams to be scored: each has a process that starts
SETTLE_S = 60.0  # then for the backlog of the start to be scored, at most
SETTLED_S = 3.0  # without any
N_FILES = 16  # streams share them
FILE_S = 60.0  # of sound in each, repeated

IsStopped = Callable[[], bool]
OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class BoxOptions:
    """What is run.

    Attributes:
        seconds: that are measured, once the start is over.
        cascade: a small checkpoint that hears all windows; None: the model does.
        recordings: a folder whose recordings are heard, one after the other; None: generated
            scenes.
        seed: of the scenes, or of the order of the recordings.
    """

    seconds: float = 30.0
    model: str = "bundled"
    cascade: str | None = None
    hop_s: float = 0.5
    recordings: Path | None = None
    seed: int = 1


@dataclass(frozen=True)
class BoxFigures:
    """What a box with so many streams did.

    Attributes:
        seconds: that were measured, once the start was over.
        load: of the machine before: processes that ran or waited for a core.
        windows_per_s: that the model scored; with a cascade, its small one.
        asked_per_s: that the model was asked about: all of them without a cascade.
        lag_p50_s, lag_p95_s, lag_p99_s: from the end of a window to its result on the feed.
        n_results: that these are of.
        onset_p50_s, onset_p95_s, onset_p99_s: from the onset of a sound to its event on the feed;
            None without any.
        n_events: that these are of.
        worker_cpu, capture_cpu, run_cpu: cores in use, of all processes of the kind together.
        worker_mib, capture_mib, run_mib: memory of them, without pages of files.
        n_captures: processes that capture.
        hours: of audio since the start by what became of it, as in `ast-stream coverage`.
        degraded_ratio: part of it of which windows were left out.
        lost_s: seconds that no process has heard, of all streams since the start.
        dropped: messages of the feed that a reader was too slow for.
        missed: times that this reader missed messages.
    """

    streams: int
    seconds: float
    load: float
    windows_per_s: float
    asked_per_s: float
    lag_p50_s: float | None
    lag_p95_s: float | None
    lag_p99_s: float | None
    n_results: int
    onset_p50_s: float | None
    onset_p95_s: float | None
    onset_p99_s: float | None
    n_events: int
    worker_cpu: float
    capture_cpu: float
    run_cpu: float
    worker_mib: float
    capture_mib: float
    run_mib: float
    n_captures: int
    hours: dict[str, float]
    degraded_ratio: float
    lost_s: float
    dropped: int
    missed: int


COLUMNS = (
    TableColumn("streams", "{streams}"),
    TableColumn("windows/s", "{windows_per_s:.0f}"),
    *(TableColumn(f"lag {p}", f"{{lag_{p}_s}}") for p in ("p50", "p95", "p99")),
    *(TableColumn(f"onset {p}", f"{{onset_{p}_s}}") for p in ("p50", "p95", "p99")),
    TableColumn("worker CPU", "{worker_cpu:.2f}"),
    TableColumn("captures CPU", "{capture_cpu:.2f}"),
    TableColumn("worker MiB", "{worker_mib:.0f}"),
    TableColumn("captures MiB", "{capture_mib:.0f}"),
    TableColumn("degraded", "{degraded_ratio:.1%}"),
    TableColumn("lost s", "{lost_s:.1f}"),
)


CASCADE_COLUMNS = (TableColumn("asked/s", "{asked_per_s:.0f}"),)


def write_recordings(folder: Path, n_streams: int, options: BoxOptions) -> list[Path]:
    """Write the recordings that streams play: files of `FILE_S`, mono at 16 kHz.

    Raises:
        UsageError: the folder of recordings has none.
        RecordingError: one cannot be read.
    """
    paths = [folder / f"{number}.wav" for number in range(min(n_streams, N_FILES))]
    sounds = _recorded(options) if options.recordings else _generated(options.seed)
    for path, pcm in zip(paths, sounds, strict=False):
        soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16")
    return paths


def _generated(seed: int) -> Iterator[np.ndarray[Any, np.dtype[np.int16]]]:
    for number in itertools.count(seed):
        yield generate_scene(number, FILE_S).pcm


def _recorded(options: BoxOptions) -> Iterator[np.ndarray[Any, np.dtype[np.int16]]]:
    """Yield recordings of a folder, in a random order, as many as a file takes."""
    assert options.recordings is not None
    paths = recordings_in(options.recordings)
    if not paths:
        raise UsageError(
            f"--recordings: expected a folder with recordings, got {options.recordings}"
        )
    random.Random(options.seed).shuffle(paths)
    n_wanted = seconds_to_samples(FILE_S)
    pcm, n_held = [np.zeros(0, np.int16)], 0
    for path in itertools.cycle(paths):
        for block in read_mono(path):
            pcm.append(block)
            n_held += len(block)
        if n_held >= n_wanted:
            yield np.concatenate(pcm)[:n_wanted]
            pcm, n_held = [np.zeros(0, np.int16)], 0


class BoxRun:
    """One run with a number of streams.

    Args:
        files: recordings, one for each stream in turn.
        folder: with a short path, for the sockets.
    """

    def __init__(
        self, n_streams: int, files: Sequence[Path], options: BoxOptions, folder: Path
    ) -> None:
        self._options = options
        self._streams = [f"s{number}" for number in range(n_streams)]
        self._box = Box(folder, _settings(self._streams, files, options))
        self._feed = _FeedReader(self._box.feed, _known_at(options))

    def run(self, is_stopped: IsStopped, on_progress: OnProgress) -> BoxFigures | None:
        """Return what was measured; None: it was stopped before.

        Raises:
            StartupError: no audio was scored.
        """
        load = os.getloadavg()[0]
        self._box.start()
        self._feed.start()
        measured: dict[str, Any] | None = None
        try:
            on_progress(f"{len(self._streams)} streams: starting")
            self._wait(self._feed.hears(self._streams), START_S, is_stopped, must=True)
            self._wait(self._feed.is_settled, SETTLE_S, is_stopped)
            on_progress(f"{len(self._streams)} streams: measuring for {self._options.seconds:g} s")
            measured = None if is_stopped() else self._measure(is_stopped)
        finally:
            self._box.end()
            self._feed.stop()
        if measured is None:
            return None
        samples, _ = self._box.accounted()
        return BoxFigures(
            streams=len(self._streams),
            load=round(load, 2),
            hours={kind: round(n / SAMPLE_RATE / 3600, 4) for kind, n in sorted(samples.items())},
            degraded_ratio=round(samples["degraded"] / max(1, samples.total()), 4),
            **measured,
        )

    def _wait(
        self, is_reached: IsStopped, limit_s: float, is_stopped: IsStopped, *, must: bool = False
    ) -> None:
        end_s = time.monotonic() + limit_s
        while not is_stopped() and not is_reached():
            self._box.check()
            if time.monotonic() > end_s:
                if must:
                    raise self._box.failed()
                return
            time.sleep(0.1)

    def _measure(self, is_stopped: IsStopped) -> dict[str, Any]:
        before, began_s = self._facts(), time.monotonic()
        self._feed.begin()
        while not is_stopped() and time.monotonic() - began_s < self._options.seconds:
            self._box.check()
            time.sleep(0.1)
        found = self._feed.found()
        passed_s = time.monotonic() - began_s
        return found | {"seconds": round(passed_s, 1)} | _usage(before, self._facts(), passed_s)

    def _facts(self) -> dict[str, ProcessFacts]:
        found = {name: facts_of(pid) for name, pid in self._box.processes().items()}
        return {name: facts for name, facts in found.items() if facts is not None}


class _FeedReader:
    """A reader of the feed, in a thread of its own, that notes how late its messages are."""

    def __init__(self, endpoint: str, known_at: Callable[[int], int]) -> None:
        topics = ("event/", "scores/", "health/", "status/")
        self._subscriber = Subscriber(endpoint, topics=topics, replay_patience_s=60.0)
        self._known_at = known_at
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._health: dict[str, Health] = {}
        self._settled_since_s: float | None = None
        self._status: list[WorkerStatus] = []  # while measuring, and the last one before
        self._is_measuring = False
        self._n_missed = 0
        self._lags_s: list[float] = []
        self._onset_lags_s: list[float] = []

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._subscriber.stop()
        self._thread.join()
        self._subscriber.close()

    def hears(self, streams: Sequence[str]) -> IsStopped:
        """Return what says whether audio of all streams is scored."""

        def hears_all() -> bool:
            with self._lock:
                scored = {name for name, health in self._health.items() if health.audio_s}
            return scored >= set(streams)

        return hears_all

    def is_settled(self) -> bool:
        """Return whether no stream has been behind for a while."""
        with self._lock:
            since_s = self._settled_since_s
        return since_s is not None and time.monotonic() - since_s >= SETTLED_S

    def begin(self) -> None:
        """Begin to measure."""
        with self._lock:
            self._lags_s, self._onset_lags_s = [], []
            self._is_measuring = True

    def found(self) -> dict[str, Any]:
        """Stop measuring, and return what was."""
        with self._lock:
            self._is_measuring = False
            first, last = self._status[0], self._status[-1]
            n_lost = sum(health.lost_samples for health in self._health.values())
            uptime_s = max(1.0, last.uptime_s - first.uptime_s)
            n_windows = last.counters["windows"] - first.counters["windows"]
            before, after = (status.counters.get("windows_asked") for status in (first, last))
            n_asked = n_windows if before is None or after is None else after - before
            return {
                "windows_per_s": round(n_windows / uptime_s, 1),
                "asked_per_s": round(n_asked / uptime_s, 1),
                **_percentiles("lag", self._lags_s),
                "n_results": len(self._lags_s),
                **_percentiles("onset", self._onset_lags_s),
                "n_events": len(self._onset_lags_s),
                "lost_s": round(samples_to_seconds(n_lost), 2),
                "dropped": last.counters["feed_drops"],
                "missed": self._n_missed,
            }

    def _read(self) -> None:
        for item in self._subscriber.messages():
            with self._lock:
                if isinstance(item, Missed):
                    self._n_missed += 1
                else:
                    self._note(item)

    def _note(self, message: FeedMessage) -> None:
        published_ns = message.published_ns
        if message.kind in ("scores", "event") and not (self._is_measuring and published_ns):
            return
        content = message.content()
        if isinstance(content, Health):
            self._health[content.stream] = content
            self._note_backlog()
        elif isinstance(content, WorkerStatus):
            self._status = [*self._status, content] if self._is_measuring else [content]
        elif isinstance(content, ScoresHeader) and published_ns:
            missing = self._known_at(content.end_sample) - content.end_sample
            heard_ns = content.time_ns + samples_to_ns(missing)
            self._lags_s.append((published_ns - heard_ns) / NS_PER_SECOND)
        elif isinstance(content, EventMessage) and content.type == "begin" and published_ns:
            self._onset_lags_s.append((published_ns - content.onset_ns) / NS_PER_SECOND)

    def _note_backlog(self) -> None:
        lags_s = [(health.lag_s or 0.0) - (health.hop_s or 0.0) for health in self._health.values()]
        if max(lags_s) > 0.5 or any(health.state == "degraded" for health in self._health.values()):
            self._settled_since_s = None
        elif self._settled_since_s is None:
            self._settled_since_s = time.monotonic()


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99 of seconds by the names of their fields; None of nothing."""
    ranks = (50, 95, 99)
    found = np.percentile(values, ranks).round(3).tolist() if values else [None] * len(ranks)
    return {f"{name}_p{rank}_s": value for rank, value in zip(ranks, found, strict=True)}


def _usage(
    before: Mapping[str, ProcessFacts], after: Mapping[str, ProcessFacts], passed_s: float
) -> dict[str, float]:
    """Return what the processes took, by kind: the first word of their names."""
    usage: dict[str, float] = {}
    for kind in ("run", "worker", "capture"):
        names = [name for name in after if name.partition(" ")[0] == kind]
        cpu_s = sum(after[name].cpu_s - before[name].cpu_s for name in names if name in before)
        usage[f"{kind}_cpu"] = round(cpu_s / passed_s, 3)
        usage[f"{kind}_mib"] = round(sum(after[name].memory_mib for name in names), 1)
    return usage | {"n_captures": sum(name.startswith("capture") for name in after)}


def _known_at(options: BoxOptions) -> Callable[[int], int]:
    """Return the function from a window or frame to the last sample that its result depends on."""
    found = describe(options.model)
    facts = model_facts(found.labels, found.window_s, found.metadata, found.frame_s)
    geometry = resolve_parameters(DetectionSettings(), facts, options.hop_s).geometry
    return lambda end_sample: int(geometry.known_at(end_sample))


def _settings(streams: Sequence[str], files: Sequence[Path], options: BoxOptions) -> dict[str, Any]:
    return {
        "streams": [
            {"name": name, "source": {"type": "file", "path": str(path), "loop": True}}
            for name, path in zip(streams, itertools.cycle(files), strict=False)
        ],
        "model": {
            "checkpoint": options.model,
            "cascade": None if options.cascade is None else {"checkpoint": options.cascade},
            "hop_s": options.hop_s,
            "max_streams": max(64, len(streams)),
        },
        "logging": {"level": "warning"},
    }
