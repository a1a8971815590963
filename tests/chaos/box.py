"""A box under faults: real processes of one configuration, and seeded faults.

Captures play known scenes in real time, the worker detects, the alerts process delivers to a
webhook, and subscribers read along, while processes are killed and stopped, processors taken away
and the disk filled. `comparison` then compares the result with an undisturbed run.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from http_receiver import HttpReceiver

from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.messages.audio import Pcm16
from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import SAMPLE_RATE

Body = dict[str, Any]

HOP_S = 0.5
RING_S = 90.0
MIN_SCENE_S = 100.0
MAX_SCENE_S = 300.0  # then it begins again
STREAMS = {"attic": 3, "cellar": 5, "yard": 8}  # with the seeds of their scenes
DISK_BYTES = 64 * 1024 * 1024  # an hour's log and database take about 30 MB
DELIVERY_S = 30.0
START_S = 60.0  # for all processes to start on a busy machine
CAPTURE_STOP_S = 4.0  # longer, and the worker ends the events of a silent stream,
LOST_S = 8.0  # as here
WATCHDOG_STOP_S = 36.0  # the supervisor has killed it by then
LEFT_BEHIND_S = 2.0  # a stream with more audio waiting has not recovered
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, its target and how long it lasts."""

    kind: str  # kill, stop, overload, full disk
    target: str = ""
    duration_s: float = 0.0
    delay_s: float = 0.0  # after the others of its group

    @property
    def name(self) -> str:
        """Kind and target, for the table."""
        return f"{self.kind} {self.target}".strip()


@dataclass
class Injected:
    """A fault that was done; times of the monotonic clock."""

    fault: Fault
    at_s: float
    over_s: float
    note: str = ""


def plan(
    rng: random.Random, streams: list[str], *, with_disk: bool, is_long: bool
) -> list[list[Fault]]:
    """Return one round: groups of faults that fall together, with every kind of fault.

    Args:
        is_long: include stops that end a stream's events or trip the watchdog.
    """

    def kill(target: str) -> Fault:
        return Fault("kill", target)

    def stop(target: str, max_s: float) -> Fault:
        return Fault("stop", target, round(rng.uniform(0.5, max_s), 1))

    def capture() -> str:
        return f"capture {rng.choice(streams)}"

    groups = [
        [kill("worker")],
        [kill(capture()), kill("alerts")],
        [kill("worker"), kill(capture()), kill("alerts")],
        [kill("worker"), stop("run", 4.0)],
        [stop("worker", 8.0)],
        [stop(capture(), CAPTURE_STOP_S), stop("alerts", 8.0), stop("subscriber", 8.0)],
        [Fault("overload", "", round(rng.uniform(5.0, 10.0), 1)), kill("subscriber")],
    ]
    if is_long:
        groups.append([Fault("stop", capture(), LOST_S)])
        groups.append([Fault("stop", rng.choice(["worker", "alerts"]), WATCHDOG_STOP_S)])
    if with_disk:
        groups.append([Fault("full disk", "", round(rng.uniform(2.0, 6.0), 1))])
        victim = rng.choice(["worker", "alerts"])
        groups.append([Fault("full disk", "", 6.0), Fault("kill", victim, delay_s=3.0)])
        dying = ["worker", capture()]
        rng.shuffle(dying)
        killed = [
            Fault("kill", target, delay_s=2.0 + number) for number, target in enumerate(dying)
        ]
        groups.append([Fault("full disk", "", 6.0), *killed])
    rng.shuffle(groups)
    return groups


@dataclass
class Seen:
    """What the undisturbed reader of the feed received."""

    durable: list[tuple[str, Body]] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    healths: list[tuple[float, str, Body]] = field(default_factory=list)  # with the time of arrival
    scores: dict[tuple[str, str], dict[int, npt.NDArray[np.float16]]] = field(default_factory=dict)

    def recovered_after(self, at_s: float, streams: list[str]) -> float | None:
        """Return how long after `at_s` all streams were healthy at once, None if never."""
        begin = bisect.bisect_left(self.healths, at_s, key=lambda health: health[0])
        healthy: set[str] = set()
        for arrived_s, stream, body in self.healths[begin:]:
            (healthy.add if is_healthy(body) else healthy.discard)(stream)
            if healthy == set(streams):
                return arrived_s - at_s
        return None


def is_healthy(health: Body) -> bool:
    """Return whether a stream is active and its lag is small."""
    lag_s = health["lag_s"]
    is_active = health["state"] in ("listening", "warming")
    return is_active and lag_s is not None and lag_s < LEFT_BEHIND_S


class Box:
    """One box with its processes.

    Args:
        seconds: of sound that the streams need at least.
        receiver: gets the alerts.
    """

    def __init__(self, n_streams: int, seconds: float, receiver: HttpReceiver) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asc-", dir="/tmp"))  # ipc paths are short
        self.streams = list(STREAMS)[:n_streams]
        self.state = self.folder / "state"
        self.state.mkdir()
        self.has_own_disk = self._mount()
        self.scenes: dict[str, Pcm16] = {}
        for stream in self.streams:
            scene_s = min(max(MIN_SCENE_S, seconds), MAX_SCENE_S)
            self.scenes[stream] = generate_scene(STREAMS[stream], round(scene_s)).pcm
            path = self.folder / f"{stream}.wav"
            soundfile.write(path, self.scenes[stream], SAMPLE_RATE, subtype="PCM_16")
        self.config = self.folder / "config.yaml"
        self._write_configuration(receiver.url)
        self._receiver = receiver
        self.seen = Seen()
        self.injected: list[Injected] = []
        self.exit_codes: dict[str, int] = {}
        self.delivered_after_restart = False
        self._run: subprocess.Popen[bytes] | None = None
        self._subscriber: subprocess.Popen[bytes] | None = None
        self.n_subscribers = 0
        self._feed = Subscriber(
            self.feed, topics=("event/", "gap/", "health/", "scores/"), after="oldest",
            replay_patience_s=60.0,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)

    @property
    def feed(self) -> str:
        """Endpoint of the feed."""
        return f"ipc://{self.folder}/run/feed.sock"

    @property
    def log(self) -> str:
        """What all processes have written."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start everything, and wait until every stream is healthy."""
        self._start_run()
        self._start_subscriber()
        self._reader.start()
        self.wait_until_healthy(START_S)

    def wait_until_healthy(self, patience_s: float) -> bool:
        """Wait until every stream is healthy; return False if that takes too long."""
        began_s = max([0.0, *(injected.over_s for injected in self.injected)])
        end_s = time.monotonic() + patience_s
        while self.seen.recovered_after(began_s, self.streams) is None:
            if time.monotonic() > end_s:
                return False
            time.sleep(0.1)
        return True

    def inject(self, faults: list[Fault]) -> None:
        """Inject faults at the same time; return when they are over."""
        threads = [threading.Thread(target=self._inject, args=(fault,)) for fault in faults]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._run is not None and self._run.poll() is not None:
            self._run.wait()
            self._start_run()  # as the service manager would
        if self._subscriber is not None and self._subscriber.poll() is not None:
            self._start_subscriber()

    def stop(self) -> None:
        """End everything in order, as an operator would."""
        assert self._run is not None
        assert self._subscriber is not None
        self._wait(self._is_everything_received)
        self._run.terminate()
        self.exit_codes["run"] = self._run.wait(30)
        self._wait(self._is_feed_read)
        if not self._are_alerts_delivered():
            self._start_without_captures()
        self._subscriber.terminate()
        self.exit_codes["subscriber"] = self._subscriber.wait(30)
        self._feed.stop()
        self._reader.join()
        self._feed.close()

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        for process in (self._run, self._subscriber):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if self.has_own_disk:
            end_s = time.monotonic() + 10
            # the children die with `run`, but not before it
            while subprocess.run(["umount", self.state], stderr=subprocess.DEVNULL).returncode:
                if time.monotonic() > end_s:
                    subprocess.run(["umount", "--lazy", self.state])
                    break
                time.sleep(0.2)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_without_captures(self) -> None:
        """Restart worker and alerts to deliver what was pending at the stop."""
        self.delivered_after_restart = True
        processes = [
            self._start("log", command, "-c", str(self.config)) for command in ("worker", "alerts")
        ]
        self._wait(self._are_alerts_delivered)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition for a while; `comparison` reports what is missing then."""
        end_s = time.monotonic() + DELIVERY_S
        while not condition() and time.monotonic() < end_s:
            time.sleep(0.2)

    def _is_everything_received(self) -> bool:
        return self._are_alerts_delivered() and self._is_feed_read()

    def _are_alerts_delivered(self) -> bool:
        """Return whether the resolution of every event that has ended was delivered."""
        ended = {body["id"] for _, body in list(self.seen.durable) if body.get("type") == "end"}
        resolved = {
            event_id
            for message in list(self._receiver.got)
            if message.body["data"]["kind"] == "resolved"
            for event_id in message.body["data"]["alert"]["events"]
        }
        return ended <= resolved

    def _is_feed_read(self) -> bool:
        *_, newest = self.subscribed()
        return len(newest) >= len(self.seen.durable)

    def _mount(self) -> bool:
        """Give the state folder a small disk of its own; False where nobody may."""
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return False
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0750"]
        done = subprocess.run(["mount", *options, "chaos", self.state], capture_output=True)
        return done.returncode == 0

    def _write_configuration(self, url: str) -> None:
        rules = [
            {
                "alert": "sound",
                "match": {"stream": {"id": self.streams}},
                "group_by": ["stream", "class"],
                "cooldown": "0s",
                "actions": ["hook"],
            }
        ]
        groups = [{"name": "chaos", "rules": rules}]
        (self.folder / "rules.yaml").write_text(json.dumps({"version": 1, "groups": groups}))
        hook = {
            "type": "webhook",
            "url": url,
            "allow_private": True,
            "timeout_s": 5,
            "on": ["firing", "resolved"],
            "rate_limit": {"max": 100_000, "per_s": 1},
        }
        settings = {
            "runtime_dir": str(self.folder / "run"),
            "state_dir": str(self.state),
            "streams": [
                {
                    "name": name,
                    "source": {"type": "file", "path": f"{self.folder}/{name}.wav", "loop": True},
                    "ring_s": RING_S,
                }
                for name in self.streams
            ],
            "model": {"device": "cpu", "precision": "fp32", "attention": "math", "hop_s": HOP_S},
            "alerts": {"rules": ["rules.yaml"], "actions": {"hook": hook}},
        }
        self.config.write_text(json.dumps(settings))  # JSON is YAML

    def _start_run(self) -> None:
        self._run = self._start("log", "run", "-c", str(self.config))

    def _start_subscriber(self) -> None:
        self.n_subscribers += 1
        with (self.folder / f"subscriber-{self.n_subscribers}").open("wb") as output:
            self._subscriber = self._start(
                "subscriber.log", "subscribe", "event", "gap", "--replay", "-c", str(self.config),
                output=output.fileno(),
            )  # fmt: skip

    def subscribed(self) -> Iterator[list[Body]]:
        """Yield what each run of the disturbed subscriber printed; a kill may cut its last line."""
        for number in range(1, self.n_subscribers + 1):
            lines = (self.folder / f"subscriber-{number}").read_bytes().splitlines(keepends=True)
            yield [json.loads(line) for line in lines if line.endswith(b"\n")]

    def _start(self, log: str, *args: str, output: int | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "ast_stream.cli", *args],
                stdin=subprocess.DEVNULL,
                stdout=file if output is None else output,
                stderr=file,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def _read(self) -> None:
        for item in self._feed.messages():
            if isinstance(item, Missed):
                self.seen.missed.append(item)
            elif item.kind == "health":
                self.seen.healths.append((time.monotonic(), item.body["stream"], item.body))
            elif item.kind == "scores":
                self._keep_scores(item)
            else:
                self.seen.durable.append((item.topic, item.body))

    def _keep_scores(self, message: FeedMessage) -> None:
        assert message.scores is not None
        epoch = message.body["stream"], message.body["epoch"]
        self.seen.scores.setdefault(epoch, {})[message.body["end_sample"]] = message.scores

    def _inject(self, fault: Fault) -> None:
        time.sleep(fault.delay_s)
        at_s = time.monotonic()
        note = ""
        match fault.kind:
            case "kill":
                note = self._signal(fault.target, signal.SIGKILL)
            case "stop":
                note = self._signal(fault.target, signal.SIGSTOP)
                time.sleep(fault.duration_s)
                self._signal(fault.target, signal.SIGCONT)
            case "overload":
                with cpu_load(2 * (os.cpu_count() or 1)):
                    time.sleep(fault.duration_s)
            case "full disk":
                with full_disk(self.state):
                    time.sleep(fault.duration_s)
        self.injected.append(Injected(fault, at_s, time.monotonic(), note))

    def _signal(self, target: str, number: signal.Signals) -> str:
        """Send a signal; return why not if no such process is running."""
        pid = self._pid(target)
        if pid is None:
            return "not running"
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if number == signal.SIGKILL:
            for process in (self._run, self._subscriber):
                if process is not None and process.pid == pid:
                    process.wait()
        return ""

    def _pid(self, target: str) -> int | None:
        assert self._run is not None
        assert self._subscriber is not None
        if target in ("run", "subscriber"):
            return self._run.pid if target == "run" else self._subscriber.pid
        words = target.replace("capture ", "capture --stream ").split()
        for pid in children(self._run.pid):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if all(word in command for word in words):
                    return pid
        return None


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    with suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


@contextmanager
def cpu_load(n: int) -> Iterator[None]:
    """Keep the processors busy."""
    busy = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Fill the disk of a folder to the last byte."""
    filler = folder / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        yield
    finally:
        filler.unlink()


def inject_faults(
    box: Box, seed: int, seconds: float, report: Callable[[str], None] = lambda text: None
) -> None:
    """Inject faults for at least `seconds`, in whole rounds, and let the box recover at the end.

    Some faults come before it has recovered from earlier ones. Between rounds everything is killed.
    """
    rng = random.Random(seed)
    began_s = time.monotonic()
    is_first = True
    while is_first or time.monotonic() - began_s < seconds:
        groups = plan(rng, box.streams, with_disk=box.has_own_disk, is_long=seconds > 0)
        for faults in groups if is_first else [[Fault("kill", "run")], *groups]:
            if rng.random() < 0.5:
                box.wait_until_healthy(START_S)
            time.sleep(rng.uniform(0.2, 2.5))
            report(
                f"{time.monotonic() - began_s:6.1f} s  " + ", ".join(fault.name for fault in faults)
            )
            box.inject(faults)
            if any(fault.kind == "full disk" for fault in faults):
                # a killed worker's unsaved messages are derived again if their audio survives
                box.wait_until_healthy(START_S)
        is_first = False
    box.wait_until_healthy(START_S)
