"""Workers of one pool, a NATS server and capture processes: real, on one machine.

`compare` holds what the workers have logged together against the detector itself, undisturbed on
the same recordings: the same ids, types, samples, scores and ends, each event ended once.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from forked_command import ForkedCommand
from nats_server import NatsServer
from ports import free_ports
from reactive_model import tones_and_noise

from ast_stream.coverage.ledger import read_all_spans
from ast_stream.detect.detector import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event
from ast_stream.messages.query import ReplayPage
from ast_stream.model.tagger import load_tagger
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import alerts_endpoint
from ast_stream.transport.allow_list import AllowedClient, write_allow_list
from ast_stream.transport.curve import make_key
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.keys import read_public, write_pair
from ast_stream.units import SAMPLE_RATE

Body = dict[str, Any]
PATIENCE_S = 120.0
SCORE_DIGITS = 4  # as on the feed
_PIECE = 10 * SAMPLE_RATE


class Member:
    """One worker of the pool, in folders of its own; it may be killed and started again."""

    def __init__(self, pool: PoolOfWorkers, name: str) -> None:
        self.name = name
        self.folder = pool.folder / name
        self.folder.mkdir()
        port = free_ports(4)
        self.address = {
            part: f"tcp://127.0.0.1:{port + n}"
            for n, part in enumerate(("audio", "rings", "feed", "query"))
        }
        self.config = self.folder / "config.yaml"
        settings = pool.common | {
            "runtime_dir": str(self.folder / "run"),
            "state_dir": str(self.folder / "state"),
            "pool": pool.section | {"member": name},
            "model": pool.model,
            "transport": dict(self.address),
        }
        if pool.keys is not None:
            pool.make_key(name, "workers")
            settings["transport"]["curve"] = {
                "server_secret": str(pool.keys / "workers" / f"{name}.key_secret"),
                "allow_list": str(pool.keys / "allowed.json"),
            }
        self._settings = settings
        self.use_section(pool.section)
        self.process: subprocess.Popen[bytes] | None = None
        self.n_starts = 0

    def use_section(self, section: Body) -> None:
        """Write the configuration, with another section `pool`."""
        self._settings["pool"] = section | {"member": self.name}
        self.config.write_text(json.dumps(self._settings))

    @property
    def log(self) -> str:
        path = self.folder / "worker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def n_logged(self) -> int:
        """Messages about events in its log."""
        logs = (self.folder / "state" / "events").glob("*.jsonl")
        return sum(path.read_bytes().count(b'"topic":"event/') for path in logs)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_ready(self) -> bool:
        return self.is_running and self.log.count("ready:") >= self.n_starts

    def start(self) -> None:
        self.process = ForkedCommand(["worker", "-c", self.config], self.folder / "worker.log")
        self.n_starts += 1

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def published(self) -> list[Body]:
        """Return its durable messages with their topics; the worker must have ended."""
        event_log = EventLog(self.folder / "state" / "events")
        found: list[Body] = []
        after = None
        while True:
            page = event_log.replay(after)
            assert isinstance(page, ReplayPage)
            found += [{"topic": message.topic} | message.body for message in page.messages]
            if not page.more:
                break
            after = page.messages[-1].position
        event_log.close()
        return found


class PoolOfWorkers:
    """The parts of a pool in one folder.

    Args:
        n_captures: capture processes that share the streams.
        has_keys: everything over tcp is encrypted, and everybody proves a key.
        duration_s: of each recording, which is played in real time, once.
        durations_s: the same of each, in their order; None: all are as long.
        listed: workers of a fixed list; none: NATS has the members.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        *,
        n_streams: int,
        duration_s: float,
        n_captures: int = 2,
        seed: int = 0,
        max_streams: int = 128,
        hop_s: float = 0.5,
        has_keys: bool = False,
        durations_s: Sequence[float] = (),
        listed: Sequence[str] = (),
        **pool: Any,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.duration_s = duration_s
        self._durations_s = durations_s or [duration_s] * n_streams
        self.streams = [f"mic-{n:03d}" for n in range(n_streams)]
        self.nats = NatsServer(folder)
        self.section = {"name": "test", "nats": {"servers": [self.nats.url]}} | pool
        self.model = {
            "checkpoint": str(checkpoint),
            "device": "cpu",
            "precision": "fp32",
            "attention": "math",
            "hop_s": hop_s,
            "max_streams": max_streams,
        }
        self.common: Body = {"logging": {"level": "info"}}
        self.keys = folder / "keys" if has_keys else None
        if self.keys is not None:
            rights = {"box": ("push:*",), "alerts": ("feed",), "recorder": ("feed", "audio")}
            for name in rights:
                self.make_key(name)
            clients = [
                AllowedClient(name, read_public(self.keys / f"{name}.key"), words, 1)
                for name, words in rights.items()
            ]
            write_allow_list(self.keys / "allowed.json", clients)
            self.section |= {"keys": [str(self.keys / "workers")]}
        self.members: dict[str, Member] = {}
        if listed:
            del self.section["nats"]
            self.members = {name: Member(self, name) for name in listed}
            members = [{"name": name} | one.address for name, one in self.members.items()]
            self.section |= {"members": members}
            for member in self.members.values():
                member.use_section(self.section)
        self.captures: list[subprocess.Popen[bytes]] = []
        self.readers: dict[str, subprocess.Popen[bytes]] = {}
        self._parts = [self.streams[n::n_captures] for n in range(n_captures)]
        for n, name in enumerate(self.streams):
            soundfile.write(folder / f"{name}.wav", self.pcm(n), SAMPLE_RATE, subtype="PCM_16")

    def make_key(self, name: str, folder: str = "") -> None:
        assert self.keys is not None
        write_pair(self.keys / folder, name, make_key())

    def pcm(self, n: int) -> Pcm16:
        """Return the recording of a stream."""
        return tones_and_noise(self._durations_s[n], seed=1000 * self.seed + n)

    def add(self, name: str) -> Member:
        """Start one more worker, or one again."""
        member = self.members.get(name)
        if member is None:
            member = self.members[name] = Member(self, name)
        member.start()
        return member

    def start_captures(self, *numbers: int) -> None:
        """Start the capture processes of these numbers, or all of them."""
        for n in numbers or range(len(self._parts)):
            names = self._parts[n]
            folder = self.folder / f"capture-{n}"
            folder.mkdir()
            sources = [
                {
                    "name": name,
                    "source": {
                        "type": "file",
                        "path": str(self.folder / f"{name}.wav"),
                        "pace": "realtime",
                    },
                    "labels": {"place": name},
                }
                for name in names
            ]
            settings = self.common | {
                "runtime_dir": str(folder / "run"),
                "state_dir": str(folder / "state"),
                "streams": sources,
                "model": {"max_streams": 4096},
                "pool": self.section,
            }
            if self.keys is not None:
                curve = {"client_secret": str(self.keys / "box.key_secret")}
                settings["transport"] = {"curve": curve}
            config = folder / "config.yaml"
            config.write_text(json.dumps(settings))
            self.captures.append(ForkedCommand(["capture", "-c", config], folder / "capture.log"))

    def start_alerts(self) -> None:
        """Start an alerts process that follows the pool, with a rule about two classes."""
        match = {"class": ["Bark", "Siren"]}
        rule = {"alert": "heard", "match": match, "group_by": ["stream", "class"]}
        rules = {"version": 1, "groups": [{"name": "all", "rules": [rule]}]}
        (self.folder / "alerts").mkdir()
        (self.folder / "alerts" / "rules.yaml").write_text(json.dumps(rules))
        self._start_reader("alerts", "alerts", {"alerts": {"rules": ["rules.yaml"]}})

    def start_recorder(self, recorder: Body, page: str | None = None) -> None:
        """Start a recorder that follows the pool, and a page beside it.

        Args:
            page: where it listens; None: there is none.
        """
        (self.folder / "recorder").mkdir()
        self._start_reader("recorder", "record", {"recorder": recorder, "web": {"listen": page}})
        if page is not None:
            self._start("web", "recorder")

    def _start_reader(self, name: str, command: str, section: Body) -> None:
        folder = self.folder / name
        settings = self.common | {
            "runtime_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
            "model": self.model,
            "pool": self.section,
            **section,
        }
        if self.keys is not None:
            curve = {"client_secret": str(self.keys / f"{name}.key_secret")}
            settings["transport"] = {"curve": curve}
        (folder / "config.yaml").write_text(json.dumps(settings))
        self._start(command, name)

    def _start(self, command: str, name: str) -> None:
        """Start a process with the configuration in a folder."""
        folder = self.folder / name
        self.readers[command] = ForkedCommand(
            [command, "-c", "config.yaml"], folder / f"{command}.log", cwd=folder
        )

    @property
    def alerts_feed(self) -> str:
        """Where the alerts process publishes."""
        return alerts_endpoint(load_settings(self.folder / "alerts" / "config.yaml"))

    @property
    def capture_log(self) -> str:
        """What all capture processes have written."""
        logs = sorted(self.folder.glob("capture-*/capture.log"))
        return "".join(log.read_text(errors="replace") for log in logs)

    def wait(
        self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S
    ) -> None:
        end_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < end_s, f"waited {patience_s:.0f} s for {what}"
            time.sleep(0.05)

    def watch(self, condition: Callable[[], bool]) -> None:
        """Wait for what a slow machine may not reach before the recordings are over."""
        self.wait(lambda: condition() or self.has_ended, "anything")

    @property
    def has_ended(self) -> bool:
        """Whether all recordings were played, heard and acknowledged."""
        return all(capture.poll() is not None for capture in self.captures)

    def wait_for_captures(self) -> None:
        """Wait until all recordings were played, heard and acknowledged."""
        patience_s = self.duration_s + PATIENCE_S
        self.wait(lambda: self.has_ended, "the capture processes", patience_s)

    def close(self) -> None:
        members = (member.process for member in self.members.values())
        for process in [*self.readers.values(), *self.captures, *members]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.nats.kill()

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def placed(self) -> dict[str, str]:
        """Return which worker each stream was last given to, as capture processes say."""
        found = {}
        pattern = re.compile(r"capture (mic-\d+): worker ([a-z0-9-]+) has the stream")
        for line in self.capture_log.splitlines():
            if (match := pattern.search(line)) is not None:
                found[match[1]] = match[2]
        return found

    @property
    def overloaded(self) -> list[str]:
        """Workers that left windows out for lack of CPU: what they found cannot be compared."""
        signs = ("scoring one of", "audio will be given up")
        return sorted(
            name
            for name, member in self.members.items()
            if any(sign in member.log for sign in signs)
        )

    # what came of it

    def published(self) -> dict[str, list[Body]]:
        """Return the durable messages of all workers, by worker."""
        return {name: member.published() for name, member in self.members.items()}

    def compare(self) -> list[str]:
        """Return what the workers found that an undisturbed one does not, or the other way."""
        config = next(iter(self.members.values())).config
        settings = load_settings(config)
        checkpoint = str(self.model["checkpoint"])
        tagger = load_tagger(checkpoint, device="cpu", precision="fp32", attention="math")
        detector = Detector(
            tagger,
            settings.detection,
            hop_s=settings.model.hop_s,
            min_context_s=settings.model.min_context_s,
            max_streams=len(self.streams),
        )
        pcm = {stream: self.pcm(n) for n, stream in enumerate(self.streams)}
        return differences(self.published(), detector, pcm)

    def figures(self) -> Body:
        """Return what the logs of the capture processes say: moves, take-overs, bytes."""
        log = self.capture_log
        took = [float(found) for found in re.findall(r"goes on ([0-9.]+) s after", log)]
        totals: dict[str, list[int]] = defaultdict(list)
        for found in re.finditer(
            r"moved (\d+) times, (\d+) of them.*?(\d+) bytes of hellos, (\d+) of acknowledgements, "
            r"(\d+) of (\d+) records",
            log,
        ):
            names = ("moves", "takeovers", "hello_bytes", "ack_bytes", "record_bytes", "records")
            for name, value in zip(names, found.groups(), strict=True):
                totals[name].append(int(value))
        return {"took_s": took, **{name: sum(values) for name, values in totals.items()}}

    def coverage_problems(self) -> list[str]:
        """Return streams of which the ledgers together do not have each sample once."""
        ledgers = [
            (member.folder / "state" / "coverage", member.folder / "run" / "coverage.jsonl")
            for member in self.members.values()
        ]
        spans = read_all_spans(ledgers)
        problems = []
        for n, stream in enumerate(self.streams):
            heard = sum(span.samples for span in spans.get(stream, []) if span.kind != "off")
            wanted = round(self._durations_s[n] * SAMPLE_RATE)
            if heard != wanted:
                problems.append(f"{stream}: {heard} samples accounted for, expected {wanted}")
            if any(span.kind == "off" for span in spans.get(stream, [])):
                problems.append(f"{stream}: off")
        return problems


def differences(
    published: dict[str, list[Body]], detector: Detector, pcm: dict[str, Pcm16]
) -> list[str]:
    """Return what workers found together that one without disturbance does not, or the other way.

    Args:
        published: durable messages with their topics, by worker.
        detector: without streams.
        pcm: what each stream heard.
    """
    by_stream: dict[str, dict[tuple[Any, ...], Body]] = defaultdict(dict)
    problems: list[str] = []
    for worker, bodies in published.items():
        for body in bodies:
            if body["topic"].startswith("gap/"):
                problems.append(f"{worker}: gap {body}")
            if not body["topic"].startswith("event/"):
                continue
            key = body["id"], body["type"], body["at_sample"]
            known = by_stream[body["stream"]].setdefault(key, body)
            if _content(known) != _content(body):
                problems.append(
                    f"{worker}: {body['stream']} {key}: {_content(body)} and {_content(known)}"
                )
    epochs = {}
    for stream in pcm:
        of_stream = {body["epoch"] for body in by_stream[stream].values()}
        if len(of_stream) == 1:
            epochs[stream] = of_stream.pop()
        else:
            problems.append(f"{stream}: expected one epoch, got {len(of_stream)}")
    heard = {stream: pcm[stream] for stream in epochs}
    for stream, wanted in _undisturbed(detector, epochs, heard).items():
        found = by_stream[stream]
        got = {(*key, *_content(body)) for key, body in found.items()}
        problems += [f"{stream}: missing {event}" for event in sorted(wanted - got, key=str)]
        problems += [f"{stream}: too much {event}" for event in sorted(got - wanted, key=str)]
    return problems


def _content(body: Body) -> tuple[Any, ...]:
    """Return what must be the same wherever an event was decided."""
    return (
        body["label"],
        body["onset_sample"],
        body["offset_sample"],
        body["reason"],
        body["score"],
        body["peak"],
        body["mean"],
    )


def _undisturbed(
    detector: Detector, epochs: dict[str, str], pcm: dict[str, Pcm16]
) -> dict[str, set[tuple[Any, ...]]]:
    """Return what one worker without disturbance finds in each stream."""
    events: list[Event] = []
    for stream, epoch in epochs.items():
        detector.open(stream, epoch)
    for at in range(0, max(map(len, pcm.values())), _PIECE):
        for stream, samples in pcm.items():
            detector.push(stream, at, samples[at : at + _PIECE])
        events += detector.run()
    for stream in epochs:
        events += detector.flush(stream)
    found: dict[str, set[tuple[Any, ...]]] = {stream: set() for stream in epochs}
    for event in events:
        scores = (_rounded(score) for score in (event.score, event.peak, event.mean))
        found[event.stream].add(
            (
                event.id,
                event.type,
                event.at_sample,
                event.label,
                event.onset_sample,
                event.offset_sample,
                event.reason,
                *scores,
            )
        )
    return found


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, SCORE_DIGITS)


def median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")
