"""A soak test: real processes, recordings read as fast as the worker goes, and outages.

Every few seconds memory, descriptors, threads, queues and files are sampled from outside.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ast_stream.benchmarks.box import Box, facts_of, folder_bytes
from ast_stream.benchmarks.growth import Figure, Growth, Limit
from ast_stream.feed import Missed, Subscriber
from ast_stream.settings.retention import MIB
from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import SAMPLE_RATE

LIVE = "live"  # the stream in real time, whose lag is judged
SCENE_S = 60.0  # a scene with sounds,
QUIET_S = 540.0  # then a quiet room, and again
RING_S = 300.0
START_S = 120.0  # for the first audio to be scored
STOP_S = 4.0  # the longest stop of a process: events of a stream that is silent longer end
_QUIET = 30.0  # standard deviation of the noise of a quiet room, of 32 768

MEMORY = Limit(16.0, 0.05)
COUNT = Limit(2.5)  # descriptors and threads: one or two more are no leak
LAG = Limit(2.0)
PENDING = Limit(20.0)
RUNTIME_FILES = Limit(4.0)
# logs and databases fill up to what the program states, in MiB
BOUNDS = {"events": 64 + 4, "coverage": 64 + 1, "alerts": 256}


@dataclass(frozen=True)
class SoakOptions:
    """What is run.

    Attributes:
        n_streams: read as fast as the worker goes; there is one more in real time.
        hours: of audio of each of them.
        outage_every_s: a process is killed or stopped that often; 0: never.
        sample_every_s: the processes are sampled that often.
        gate_dbfs: windows quieter than this are not scored; None: all are.
    """

    n_streams: int = 4
    hours: float = 1.0
    model: str = "bundled"
    hop_s: float = 0.5
    seed: int = 1
    outage_every_s: float = 60.0
    sample_every_s: float = 5.0
    gate_dbfs: float | None = None


@dataclass
class SoakResult:
    """What a soak has shown.

    Attributes:
        hours: of audio by stream, without the one in real time.
        growths: of every figure, the worst first.
        sizes_mib: of the files with a stated bound, the largest seen.
        samples: of the ledger, by kind.
        unaccounted: samples between the first and the last of an epoch that the ledger lacks.
        problems: why it failed; empty if it did not.
    """

    options: SoakOptions
    wall_s: float = 0.0
    hours: dict[str, float] = field(default_factory=dict)
    growths: list[Growth] = field(default_factory=list)
    sizes_mib: dict[str, float] = field(default_factory=dict)
    outages: Counter[str] = field(default_factory=Counter)
    samples: Counter[str] = field(default_factory=Counter)
    unaccounted: int = 0
    n_messages: int = 0
    n_missed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Hours of audio of all streams in an hour."""
        return 3600 * sum(self.hours.values()) / self.wall_s if self.wall_s else 0.0


class Soak:
    """One run in a folder of its own.

    Args:
        folder: with a short path, for the sockets.
    """

    def __init__(self, options: SoakOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._streams = [f"fast{number}" for number in range(options.n_streams)]
        self._box = Box(folder, self._settings())
        self._feed = _FeedsReader(self._box.runtime_dir)
        self._figures: dict[str, Figure] = {}
        self._result = SoakResult(options)
        self._outages = _Outages(options)
        self._began_s = 0.0

    def run(
        self, is_stopped: Callable[[], bool], on_progress: Callable[[float, float], None]
    ) -> SoakResult:
        """Run until every stream has its hours, or until it is stopped.

        Args:
            on_progress: called with the least hours of any stream, and the speed.

        Raises:
            StartupError: no audio was scored.
        """
        self._box.start()
        self._feed.start()
        try:
            self._wait_for_audio(is_stopped)
            self._began_s = time.monotonic()
            next_s = self._began_s
            while not is_stopped() and not self._is_done():
                self._outages.turn(time.monotonic(), self._box.processes)
                if (now_s := time.monotonic()) >= next_s:
                    next_s = now_s + self._options.sample_every_s
                    self._look(now_s)
                    on_progress(min(self._hours().values()), self._speed(now_s))
                time.sleep(0.1)
            self._result.wall_s = time.monotonic() - self._began_s
            self._result.hours = self._hours()
        finally:
            self._outages.end(self._box.processes)
            code = self._box.end()
            self._feed.stop()
        self._judge(code)
        return self._result

    def _wait_for_audio(self, is_stopped: Callable[[], bool]) -> None:
        end_s = time.monotonic() + START_S
        while not is_stopped() and set(self._feed.hours()) != {*self._streams, LIVE}:
            self._box.check()
            if time.monotonic() > end_s:
                raise self._box.failed()
            time.sleep(0.1)

    def _is_done(self) -> bool:
        return all(hours >= self._options.hours for hours in self._hours().values())

    def _hours(self) -> dict[str, float]:
        hours = self._feed.hours()
        return {stream: hours.get(stream, 0.0) for stream in self._streams}

    def _speed(self, now_s: float) -> float:
        passed_s = max(1e-3, now_s - self._began_s)
        return 3600 * sum(self._hours().values()) / passed_s

    def _look(self, now_s: float) -> None:
        for name, pid in self._box.processes().items():
            for what, unit, limit, value in _figures_of(pid):
                self._add(f"{name}: {what}", unit, limit, value, now_s, pid=pid)
        for name, unit, limit, value in self._feed.figures():
            self._add(name, unit, limit, value, now_s)
        runtime = folder_bytes(self._box.runtime_dir) / MIB
        self._add("files of the runtime folder", "MiB", RUNTIME_FILES, runtime, now_s)
        for part in BOUNDS:
            size = sum(folder_bytes(path) for path in self._box.state_dir.glob(f"{part}*")) / MIB
            self._result.sizes_mib[part] = max(size, self._result.sizes_mib.get(part, 0.0))

    def _add(
        self, name: str, unit: str, limit: Limit, value: float, now_s: float, pid: int = 0
    ) -> None:
        figure = self._figures.setdefault(name, Figure(name, unit, limit))
        figure.add(pid, now_s, value)

    def _judge(self, code: int) -> None:
        result, problems = self._result, self._result.problems
        result.growths = sorted(
            (figure.growth() for figure in self._figures.values()),
            key=lambda growth: -growth.growth / growth.limit,
        )
        problems += [
            f"{growth.name}: grew by {growth.growth:.3g} {growth.unit} in {growth.span_s:.0f} s, "
            f"expected at most {growth.limit:.3g}"
            for growth in result.growths
            if growth.is_too_much
        ]
        problems += [
            f"{name}: {size:.0f} MiB, expected at most {BOUNDS[name]:g}"
            for name, size in result.sizes_mib.items()
            if size > BOUNDS[name]
        ]
        result.outages = self._outages.done
        result.n_messages, result.n_missed = self._feed.n_durable, self._feed.n_missed
        if result.n_missed:
            problems.append(f"a reader of the feed missed messages {result.n_missed} times")
        result.samples, result.unaccounted = self._box.accounted()
        if result.unaccounted:
            problems.append(f"the ledger lacks {result.unaccounted} samples")
        if code != 0:
            problems.append(f"expected exit code 0 of the box, got {code}")
        n_crashes = self._box.log.count("Traceback")
        if n_crashes:
            problems.append(f"the log has {n_crashes} times 'Traceback'")

    def _settings(self) -> dict[str, Any]:
        """Write the recordings and the rules, and return the configuration."""
        sources = {}
        for number, stream in enumerate([*self._streams, LIVE]):
            path = self._folder / f"{stream}.wav"
            soundfile.write(path, _day(self._options.seed + number), SAMPLE_RATE, subtype="PCM_16")
            pace = {"pace": "realtime"} if stream == LIVE else {"pace": "fast", "block_s": 1.0}
            sources[stream] = {"type": "file", "path": str(path), "loop": True, **pace}
        rule = {"alert": "sound", "match": {"stream": {"id": list(sources)}}, "actions": ["line"]}
        rules = {"version": 1, "groups": [{"name": "soak", "rules": [rule]}]}
        (self._folder / "rules.yaml").write_text(json.dumps(rules))
        return {
            "streams": [
                {"name": name, "source": source, "ring_s": RING_S}
                for name, source in sources.items()
            ],
            "model": {"checkpoint": self._options.model, "hop_s": self._options.hop_s},
            "detection": {"gate_dbfs": self._options.gate_dbfs},
            "alerts": {
                "rules": ["rules.yaml"],
                # below the level of the log: what is judged are queues, not the log
                "actions": {
                    "line": {
                        "type": "log",
                        "level": "info",
                        "rate_limit": {"max": 1_000_000, "per_s": 1},
                    }
                },
            },
            "logging": {"level": "warning"},
        }


class _FeedsReader:
    """What a reader of both feeds has seen, in threads of its own."""

    def __init__(self, folder: Path) -> None:
        self.n_durable = self.n_missed = 0
        self._audio_s: dict[tuple[str, str], float] = {}  # by stream and epoch
        self._lag_s: dict[str, float] = {}
        self._pending: float | None = None
        topics = ("event/", "gap/", "health/")
        self._worker = Subscriber(
            f"ipc://{folder}/feed.sock", topics=topics, replay_patience_s=60.0
        )
        self._alerts = Subscriber(f"ipc://{folder}/alerts.sock", topics=("status/",))
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._read, args=(subscriber,), daemon=True)
            for subscriber in (self._worker, self._alerts)
        ]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End reading."""
        for subscriber, thread in zip((self._worker, self._alerts), self._threads, strict=True):
            subscriber.stop()
            thread.join()
            subscriber.close()

    def hours(self) -> dict[str, float]:
        """Return the hours of audio of each stream, of all its epochs."""
        found: dict[str, float] = defaultdict(float)
        with self._lock:
            for (stream, _), audio_s in self._audio_s.items():
                found[stream] += audio_s / 3600
        return dict(found)

    def figures(self) -> Iterator[tuple[str, str, Limit, float]]:
        """Yield name, unit, limit and value of what waits somewhere."""
        with self._lock:
            for stream, lag_s in self._lag_s.items():
                yield f"{stream}: lag", "s", LAG if stream == LIVE else Limit(RING_S / 4), lag_s
            if self._pending is not None:
                yield "alerts: deliveries that wait", "", PENDING, self._pending

    def _read(self, subscriber: Subscriber) -> None:
        for item in subscriber.messages():
            with self._lock:
                if isinstance(item, Missed):
                    self.n_missed += 1
                elif item.kind == "health" and item.body["audio_s"] is not None:
                    epoch = item.body["stream"], item.body["epoch"]
                    self._audio_s[epoch] = item.body["audio_s"]
                    self._lag_s[epoch[0]] = item.body["lag_s"]
                elif item.topic == "status/alerts/":
                    self._pending = item.body["pending"]
                elif item.kind in ("event", "gap"):
                    self.n_durable += 1


class _Outages:
    """Kills and stops of one process at a time, from a seed."""

    def __init__(self, options: SoakOptions) -> None:
        self.done: Counter[str] = Counter()
        self._rng = random.Random(options.seed)
        self._every_s = options.outage_every_s
        self._names = ["worker", "alerts", "capture"]
        self._due_s: float | None = None
        self._stopped: tuple[str, int, float] | None = None  # name, pid, until when

    def turn(self, now_s: float, processes: Callable[[], dict[str, int]]) -> None:
        """Begin or end an outage if it is time to."""
        if self._stopped is not None and now_s >= self._stopped[2]:
            self.end(processes)
        if not self._every_s:
            return
        if self._due_s is None:
            self._due_s = now_s + self._every_s
        if now_s < self._due_s or self._stopped is not None:
            return
        self._due_s = now_s + self._rng.uniform(0.5, 1.5) * self._every_s
        name, is_kill = self._rng.choice(self._names), self._rng.random() < 0.4
        pid = processes().get(name)
        if pid is None:
            return
        kind = "kill" if is_kill else "stop"
        self.done[f"{kind} {name.partition(' ')[0]}"] += 1
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if is_kill else signal.SIGSTOP)
        if not is_kill:
            self._stopped = name, pid, now_s + self._rng.uniform(0.5, STOP_S)

    def end(self, processes: Callable[[], dict[str, int]]) -> None:
        """Continue a stopped process."""
        if self._stopped is not None:
            name, pid, _ = self._stopped
            self._stopped = None
            if processes().get(name) == pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def _figures_of(pid: int) -> Iterator[tuple[str, str, Limit, float]]:
    """Yield what, unit, limit and value of a process; nothing of one that has ended."""
    facts = facts_of(pid)
    if facts is not None:
        yield "memory", "MiB", MEMORY, facts.memory_mib
        yield "threads", "", COUNT, float(facts.n_threads)
        yield "descriptors", "", COUNT, float(facts.n_descriptors)


def _day(seed: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return a scene with sounds and then a quiet room."""
    scene = generate_scene(seed, SCENE_S).pcm
    noise = np.random.default_rng(seed).normal(0, _QUIET, round(QUIET_S * SAMPLE_RATE))
    return np.concatenate([scene, noise.astype(np.int16)])
