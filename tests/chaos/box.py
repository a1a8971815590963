"""A box under faults: real processes of one configuration, and what is seen of them.

Captures play known scenes in real time, or hear a sound card and a radio station; the worker
detects, the alerts process delivers to a webhook, and subscribers read along, while `injection`
disturbs them. `comparison` then compares the result with an undisturbed run.
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
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from faults import MICROPHONE, STATION, Fault, Injected, capture_of
from http_receiver import HttpReceiver
from injection import NOT_RUNNING, inject
from live_sources import SoundCard, Station
from reactive_model import tones_and_noise
from ring_tap import RingTap
from virtual_mic import missing_parts
from wall_clocks import WallClocks

from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.messages.audio import Pcm16
from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import SAMPLE_RATE

Body = dict[str, Any]

HOP_S = 0.5
RING_S = 90.0
MIN_SCENE_S = 60.0
MAX_SCENE_S = 300.0  # then it begins again
STREAMS = {"attic": 3, "cellar": 5, "yard": 8}  # with the seeds of their scenes
LIVE_SEEDS = {MICROPHONE: 13, STATION: 21}
DISK_BYTES = 64 * 1024 * 1024  # an hour's log and database take about 30 MB
DELIVERY_S = 30.0
START_S = 60.0  # for all processes to start on a busy machine
LEFT_BEHIND_S = 2.0  # a stream with more audio waiting has not recovered
ZONE = "Europe/Berlin"  # which has summer time
ROOT = Path(__file__).parents[2]


@dataclass
class Seen:
    """What the undisturbed reader of the feed received."""

    durable: list[tuple[str, Body]] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    healths: list[tuple[float, str, Body]] = field(default_factory=list)  # with the time of arrival
    alerts: list[tuple[float, bool]] = field(default_factory=list)  # whether they hear the worker
    scores: dict[tuple[str, str], dict[int, npt.NDArray[np.float16]]] = field(default_factory=dict)

    def recovered_after(self, at_s: float, streams: list[str]) -> float | None:
        """Return how long after `at_s` all streams were healthy at once, None if never."""
        begin = bisect.bisect_left(self.healths, at_s, key=lambda health: health[0])
        healthy: set[str] = set()
        for arrived_s, stream, body in self.healths[begin:]:
            (healthy.add if is_healthy(body) else healthy.discard)(stream)
            if healthy >= set(streams):
                return arrived_s - at_s
        return None

    def alerts_recovered_after(self, at_s: float) -> float | None:
        """Return how long after `at_s` the alerts process said that it hears the worker."""
        begin = bisect.bisect_left(self.alerts, at_s, key=lambda status: status[0])
        return next((at - at_s for at, hears in self.alerts[begin:] if hears), None)


def is_healthy(health: Body) -> bool:
    """Return whether a stream is active and its lag is small."""
    lag_s = health["lag_s"]
    is_active = health["state"] in ("listening", "warming")
    return is_active and lag_s is not None and lag_s < LEFT_BEHIND_S


class Box:
    """One box with its processes.

    Args:
        n_streams: that play scenes from files.
        seconds: of sound that the streams need at least.
        receiver: gets the alerts.
        is_live: also with a sound card, where there is one, and a station; what these gave is
            read along from their rings.
        checkpoint: one whose scores react to tones, which are then what is heard; None: the bundled
            one, and scenes.
    """

    def __init__(
        self,
        n_streams: int,
        seconds: float,
        receiver: HttpReceiver,
        *,
        is_live: bool = False,
        checkpoint: Path | None = None,
    ) -> None:
        self.checkpoint = "bundled" if checkpoint is None else str(checkpoint)
        self._make_sound = _scene if checkpoint is None else _tones
        self.folder = Path(tempfile.mkdtemp(prefix="asc-", dir="/tmp"))  # ipc paths are short
        self.streams = list(STREAMS)[:n_streams]
        self.state = self.folder / "state"
        self.state.mkdir()
        self.has_own_disk = self._mount()
        self.scenes: dict[str, Pcm16] = {}
        scene_s = round(min(max(MIN_SCENE_S, seconds), MAX_SCENE_S))
        for stream in self.streams:
            self.scenes[stream] = self._make_sound(STREAMS[stream], scene_s)
            path = self.folder / f"{stream}.wav"
            soundfile.write(path, self.scenes[stream], SAMPLE_RATE, subtype="PCM_16")
        self.card: SoundCard | None = None
        self.station: Station | None = None
        self.taps: dict[str, RingTap] = {}
        if is_live:
            self._add_live_sources(scene_s)
        self.clocks = self._make_clocks() if is_live else None
        self.broken_gpu = self.folder / "broken-gpu"
        self.config = self.folder / "config.yaml"
        self._write_configuration(receiver.url)
        self._receiver = receiver
        self.seen = Seen()
        self.injected: list[Injected] = []
        self.exit_codes: dict[str, int] = {}
        self.delivered_after_restart = False
        self._run: subprocess.Popen[bytes] | None = None
        self._subscriber: subprocess.Popen[bytes] | None = None
        self._started_alone: list[subprocess.Popen[bytes]] = []
        self.n_subscribers = 0
        self._feed = Subscriber(
            self.feed, topics=("event/", "gap/", "health/", "scores/"), after="oldest",
            replay_patience_s=60.0,
        )  # fmt: skip
        self._alerts = Subscriber(f"ipc://{self.folder}/run/alerts.sock", topics=("status/",))
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_alerts)
        ]

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
        if self.card is not None:
            self.card.start()
        self._start_run()
        self._start_subscriber()
        for thread in self._readers:
            thread.start()
        for tap in self.taps.values():
            tap.start()
        self.wait_until_healthy(START_S)

    def wait_until_healthy(self, patience_s: float) -> bool:
        """Wait until streams and alerts are healthy; return False if that takes too long."""
        began_s = max([0.0, *(injected.over_s for injected in self.injected)])
        end_s = time.monotonic() + patience_s
        while (
            self.seen.recovered_after(began_s, self.streams) is None
            or self.seen.alerts_recovered_after(began_s) is None
        ):
            if time.monotonic() > end_s:
                return False
            time.sleep(0.1)
        return True

    def forget_recoveries(self) -> None:
        """Do not time the recovery from the last faults: others come before it."""
        began_s = max((injected.at_s for injected in self.injected), default=0.0)
        for injected in self.injected:
            if injected.over_s >= began_s:
                injected.is_alone = False

    def inject(self, faults: list[Fault]) -> None:
        """Inject faults at the same time; return when they are over."""
        group: list[Injected] = []
        threads = [threading.Thread(target=self._inject, args=(fault, group)) for fault in faults]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        over_s = time.monotonic()
        for injected in group:
            injected.over_s = over_s
        self.injected += group
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
        for tap in self.taps.values():
            tap.stop()
        for subscriber, reader in zip((self._feed, self._alerts), self._readers, strict=True):
            subscriber.stop()
            reader.join()
            subscriber.close()

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        with ExitStack() as stack:  # the last first, and all of it, whatever fails
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            if self.has_own_disk:
                stack.callback(self._unmount)
            for source in (self.card, self.station):
                if source is not None:
                    stack.callback(source.close)
            for process in (self._run, self._subscriber, *self._started_alone):
                if process is not None:
                    stack.callback(process.wait)
                    stack.callback(process.kill)

    def keep(self, folder: Path) -> None:
        """Copy what the processes have written, but no recordings."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.is_file() and path.suffix != ".wav":
                shutil.copy(path, folder)
        with suppress(shutil.Error):  # what vanishes meanwhile
            shutil.copytree(self.state, folder / "state", dirs_exist_ok=True)

    def start_out_of_order(self) -> None:
        """Kill everything, then start each process by itself in any order, and `run` again.

        What is started by itself is stopped as a service manager would.
        """
        assert self._run is not None
        self._run.kill()
        self._run.wait()
        commands = [["worker"], ["alerts"], *map(words_of, self._captures)]
        rng = random.Random(len(self.injected))
        rng.shuffle(commands)
        processes = {}
        for command in commands:
            name = " ".join(command)
            processes[name] = self._start("log", *command, "-c", str(self.config))
            self._started_alone.append(processes[name])
            time.sleep(rng.uniform(0.2, 1.5))
        began_s = time.monotonic()
        self._wait(lambda: self.seen.recovered_after(began_s, self.streams) is not None)
        for process in processes.values():
            process.terminate()
        for name, process in processes.items():
            if (code := process.wait(30)) != 0:
                self.exit_codes[name] = code
        self._start_run()

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

    def _unmount(self) -> None:
        end_s = time.monotonic() + 10
        # the children die with `run`, but not before it
        while subprocess.run(["umount", self.state], stderr=subprocess.DEVNULL).returncode:
            if time.monotonic() > end_s:
                subprocess.run(["umount", "--lazy", self.state])
                break
            time.sleep(0.2)

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
                {"name": name, "source": self._source(name), "ring_s": RING_S}
                for name in self.streams
            ],
            "model": {"checkpoint": self.checkpoint, "hop_s": HOP_S}
            | {"device": "cpu", "precision": "fp32", "attention": "math"},
            "alerts": {"rules": ["rules.yaml"], "actions": {"hook": hook}},
        }
        self.config.write_text(json.dumps(settings))  # JSON is YAML

    def _source(self, name: str) -> Body:
        if name == MICROPHONE:
            return {"type": "microphone", "device": "default"}
        if name == STATION:
            assert self.station is not None
            return {"type": "url", "url": self.station.url}
        return {"type": "file", "path": f"{self.folder}/{name}.wav", "loop": True}

    def _add_live_sources(self, scene_s: float) -> None:
        scenes = {name: self._make_sound(seed, scene_s) for name, seed in LIVE_SEEDS.items()}
        if missing_parts() is None:
            self.card = SoundCard(scenes[MICROPHONE])
        self.station = Station(scenes[STATION], LIVE_SEEDS[STATION])
        live = [STATION] if self.card is None else [MICROPHONE, STATION]
        self.streams += live
        self.taps = {
            name: RingTap(name, f"ipc://{self.folder}/run/ring.{name}.sock") for name in live
        }

    def _make_clocks(self) -> WallClocks | None:
        if not WallClocks.can_be_set():
            return None
        return WallClocks(self.folder / "clocks", ["worker", "alerts", *self._captures])

    @property
    def _captures(self) -> list[str]:
        return list(dict.fromkeys(map(capture_of, self.streams)))

    @property
    def _environment(self) -> dict[str, str]:
        found = {"OMP_NUM_THREADS": "1", "TZ": ZONE, "CHAOS_GPU": str(self.broken_gpu)}
        found["PYTHONPATH"] = str(Path(__file__).parent / "failing_gpu")
        if self.card is not None:
            found |= self.card.mic.environment
        if self.clocks is not None:
            found |= self.clocks.environment
        return dict(os.environ) | found

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
                env=self._environment,
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

    def _read_alerts(self) -> None:
        for item in self._alerts.messages():
            if isinstance(item, FeedMessage) and "hears" in item.body:
                self.seen.alerts.append((time.monotonic(), item.body["hears"]))

    def _inject(self, fault: Fault, group: list[Injected]) -> None:
        time.sleep(fault.delay_s)
        at_s = time.monotonic()
        note = inject(self, fault)
        group.append(Injected(fault, at_s, time.monotonic(), note))

    def signal(self, target: str, number: signal.Signals) -> str:
        """Send a signal; return why not if no such process is running."""
        pid = self.pid(target)
        if pid is None:
            return NOT_RUNNING
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if number == signal.SIGKILL:
            for process in (self._run, self._subscriber):
                if process is not None and process.pid == pid:
                    process.wait()
        return ""

    def pid(self, target: str) -> int | None:
        """Return the process of a target, such as `worker` and `capture attic`; None if none."""
        assert self._run is not None
        assert self._subscriber is not None
        if target in ("run", "subscriber"):
            return self._run.pid if target == "run" else self._subscriber.pid
        words = words_of(target)
        for pid in children(self._run.pid):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                is_alone = "--stream" in command
                if all(word in command for word in words) and is_alone == ("--stream" in words):
                    return pid
        return None


def _scene(seed: int, seconds: float) -> Pcm16:
    return generate_scene(seed, seconds).pcm


def _tones(seed: int, seconds: float) -> Pcm16:
    return tones_and_noise(seconds, seed)


def words_of(target: str) -> list[str]:
    """Return the sub-command of a process, with its options."""
    return target.replace("capture ", "capture --stream ").split()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    with suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []
