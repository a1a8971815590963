"""How a pool grows to ten thousand streams: placement and membership for all, sockets for a part.

Nothing here has a model. The bucket is a real NATS server's, with as many members as a pool would
have, and followers as capture processes are; one worker's socket has the connections of as many
streams as a GPU holds, with hellos, acknowledgements and records of the size that real ones have.

    python tests/fleet/pool_growth.py --streams 10000 --workers 40 --boxes 200
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from nats_server import NatsServer
from ports import free_ports

from ast_stream.capture.link import FixedWorkers, StreamLink, WorkerAddress
from ast_stream.capture.ring import Ring, RingServer
from ast_stream.messages.audio import AckRequest
from ast_stream.messages.pool import PoolMember, StreamClaim
from ast_stream.messages.rings import Accepted, Hello
from ast_stream.pool.bucket import PoolBucket
from ast_stream.pool.directory import PoolDirectory
from ast_stream.pool.membership import Membership, ranked
from ast_stream.settings.forward import NatsAccess
from ast_stream.settings.pool import PoolSettings
from ast_stream.settings.streams import StreamSettings
from ast_stream.transport.sockets import Sockets
from ast_stream.worker.links import RingLinks

RECORD_BYTES = 900  # of the bundled model, compressed
DAY_S = 86_400
Figures = dict[str, Any]


def placement(n_streams: int, n_workers: int) -> Figures:
    """Place all streams; let one worker leave, and one join."""
    streams = [f"mic-{n}" for n in range(n_streams)]
    weights = {f"gpu-{n}": 1.0 for n in range(n_workers)}

    def placed(weights: dict[str, float]) -> dict[str, str]:
        return {stream: ranked(stream, weights)[0] for stream in streams}

    began_s = time.perf_counter()
    before = placed(weights)
    took_s = time.perf_counter() - began_s
    joined = placed(weights | {"new": 1.0})
    moved = [stream for stream in streams if before[stream] != joined[stream]]
    left = placed({name: weight for name, weight in weights.items() if name != "gpu-0"})
    orphans = [stream for stream in streams if before[stream] == "gpu-0"]
    counts = Counter(before.values())
    taken = Counter(left[stream] for stream in orphans)
    return {
        "streams on a worker, least, mean, most": [
            min(counts.values()),
            n_streams / n_workers,
            max(counts.values()),
        ],
        "moved by a worker that joins": len(moved),
        "of all": round(len(moved) / n_streams, 4),
        "moved elsewhere by it": sum(joined[stream] != "new" for stream in moved),
        "moved by a worker that dies": len(orphans),
        "others moved by it": sum(
            left[stream] != before[stream] for stream in streams if stream not in set(orphans)
        ),
        "most of them on one worker": max(taken.values()),
        "microseconds to place a stream": round(took_s / n_streams * 1e6, 1),
    }


def traffic(server: NatsServer, monitor: int) -> tuple[int, int, int, int, float]:
    """Return messages and bytes in and out, and CPU seconds of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/varz") as answer:
        found = json.load(answer)
    assert server._process is not None
    stat = Path(f"/proc/{server._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu_s = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    keys = ("in_msgs", "out_msgs", "in_bytes", "out_bytes")
    return (*(found[key] for key in keys), cpu_s)


def membership(n_streams: int, n_workers: int, n_boxes: int, seconds: float) -> Figures:
    """Keep a pool of members and followers for some time, claim all streams, lose one member."""
    folder = Path(tempfile.mkdtemp(prefix="growth-", dir="/tmp"))
    monitor = free_ports()
    server = NatsServer(folder, f"http: 127.0.0.1:{monitor}\n")
    server.start()
    settings = PoolSettings(name="growth", nats=NatsAccess(servers=[server.url]))
    workers, boxes = [], []
    try:
        first = PoolBucket(settings, "first")
        first.start()
        assert first.connection.wait(30)
        for n in range(n_workers):
            member = PoolMember(
                name=f"gpu-{n}",
                boot="0" * 16,
                audio=f"tcp://127.0.0.1:{5000 + n}",
                rings=f"tcp://127.0.0.1:{6000 + n}",
                key="k" * 40,
                model="sha256:" + "0" * 64 + "/" + "0" * 16,
                capacity=512,
                weight=512.0,
            )
            workers.append(PoolDirectory(PoolBucket(settings, member.name), member))
            workers[-1].start()
        for n in range(n_boxes):
            boxes.append(
                Membership(
                    lambda note: PoolBucket(settings, "box", note),
                    folder / f"box-{n}" / "pool.json",
                    settings.dead_s,
                    lambda one: True,
                )
            )
            boxes[-1].start()
        end_s = time.monotonic() + 120
        while any(len(box.members) < n_workers for box in boxes):
            assert time.monotonic() < end_s, "the boxes do not know all workers"
            time.sleep(0.1)
        time.sleep(3.0)
        before = traffic(server, monitor)
        time.sleep(seconds)
        after = traffic(server, monitor)
        rate = [(b - a) / seconds for a, b in zip(before, after, strict=True)]

        server.kill()
        server.start()
        counts = [0]
        for _ in range(60):
            time.sleep(0.25)
            counts.append(traffic(server, monitor)[0])
        back = [4 * (later - before) for before, later in itertools.pairwise(counts)]

        began_s = time.perf_counter()
        n_claims = min(n_streams, 2000)
        for n in range(n_claims):
            claim = StreamClaim(epoch="a" * 32, term=0, worker="gpu-0", is_continued=False)
            first.claim(f"mic-{n}", claim)
        claimed_s = time.perf_counter() - began_s

        workers.pop().close(is_leaving=False)
        lost = f"gpu-{n_workers - 1}"
        began_s = time.monotonic()
        knows: list[float] = []
        waiting = list(boxes)
        while waiting:
            assert time.monotonic() - began_s < 120, "a dead worker was not noticed"
            for box in list(waiting):
                if box.is_lost(lost):
                    knows.append(time.monotonic() - began_s)
                    waiting.remove(box)
            time.sleep(0.1)
        first.close()
    finally:
        for worker in workers:
            worker.close(is_leaving=False)
        for box in boxes:
            box.close()
        server.kill()
    names = ("messages in", "messages out", "bytes in", "bytes out", "CPU of the server")
    return {
        "members": n_workers,
        "boxes": n_boxes,
        "each second": {name: round(value, 3) for name, value in zip(names, rate, strict=True)},
        "bytes out to a box at rest, a day": 0,
        "messages in to a server that begins again: all in 15 s, most in a second": [
            counts[-1],
            max(back),
        ],
        "claims a second, one after the other": round(n_claims / claimed_s),
        "a dead worker was noticed after, s, first, last": [
            round(min(knows), 1),
            round(max(knows), 1),
        ],
    }


def sockets(n_streams: int, seconds: float) -> Figures:
    """Connect the links of one worker's streams, and acknowledge each once a second."""
    bound, clients = Sockets(), Sockets()
    endpoint = f"tcp://127.0.0.1:{free_ports()}"
    links = RingLinks(
        bound.bind("router", endpoint, 64, 2 * n_streams + 64, reads_rings=True),
        "gpu-0/1",
        10.0,
        time.monotonic,
    )
    connected = [clients.connect("link", endpoint, 64) for _ in range(n_streams)]
    hello = Hello(op="hello", stream="x", epoch="a" * 32, keeps_record=True)
    stop = threading.Event()
    received: Counter[str] = Counter()

    def captures() -> None:
        said = [float("-inf")] * n_streams
        while not stop.is_set():
            for n, socket in enumerate(connected):
                now_s = time.monotonic()
                if now_s - said[n] > 5.0:
                    body = hello.model_copy(update={"stream": f"mic-{n}"})
                    if socket.send(body.encode()):
                        said[n] = now_s
                while (frames := socket.receive()) is not None:
                    received["messages"] += 1
                    received["bytes"] += sum(map(len, frames))
            time.sleep(0.05)

    thread = threading.Thread(target=captures)
    thread.start()
    attached: dict[str, Any] = {}
    acked_s: dict[str, float] = {}
    record, end_s, cpu_s, n_acks = bytes(RECORD_BYTES), float("inf"), 0.0, 0
    began_s = time.monotonic()
    while time.monotonic() < end_s:
        before_s = time.thread_time()
        for said in links.turn():
            if isinstance(said.message, Hello):
                attached[said.message.stream] = links.attach(said, said.message)
                links.accept(said)
        now_s = time.monotonic()
        for name, link in attached.items():
            if now_s - acked_s.get(name, 0.0) >= 1.0:
                acked_s[name] = now_s
                request = AckRequest(v=1, op="ack", epoch="a" * 32, stop=1)
                is_due = link.is_record_due()
                if link.acknowledge(request, record if is_due else None):
                    n_acks += 1
                    if is_due:
                        link.note_recorded()
        if len(attached) == n_streams:
            cpu_s += time.thread_time() - before_s
            if end_s == float("inf"):
                began_s, end_s = now_s, now_s + seconds
                n_acks, cpu_s = 0, 0.0
                received.clear()
        time.sleep(0.02)
    took_s = time.monotonic() - began_s
    stop.set()
    thread.join()
    descriptors = len(os.listdir("/proc/self/fd"))
    clients.close()
    bound.close()
    return {
        "streams": n_streams,
        "descriptors of worker and captures together": descriptors,
        "limit of descriptors here": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "acknowledgements a second": round(n_acks / took_s),
        "of a core, for the links of all": round(cpu_s / took_s, 3),
        "bytes to a stream a day, without framing": round(
            received["bytes"] / took_s / n_streams * DAY_S
        ),
    }


class Silence:
    """Stands for the sockets of a capture process whose worker loads its model: it answers late.

    Attributes:
        answers: hellos are answered.
        waiting: hellos that nobody has read.
        said: hellos, by tenths of a second.
    """

    def __init__(self) -> None:
        self.answers = False
        self.waiting = 0
        self.said: Counter[int] = Counter()
        self.now_s = 0.0

    def connect(self, kind: str, *_: object) -> SilentSocket:
        return SilentSocket(self)

    def forget(self, _: object) -> None:
        """Do nothing."""


class SilentSocket:
    """A connection to it."""

    is_lost = False

    def __init__(self, silence: Silence) -> None:
        self._silence = silence
        self._is_due = False

    def send(self, frames: list[bytes]) -> bool:
        self._silence.said[round(10 * self._silence.now_s)] += 1
        self._silence.waiting += not self._silence.answers
        self._is_due = True
        return True

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        if not (self._is_due and self._silence.answers):
            return None
        self._is_due = False
        return Accepted(worker="gpu-0/1").encode()


def hellos(n_streams: int) -> Figures:
    """Let all streams lose their workers at once, on a clock of its own, for half a minute."""
    silence = Silence()
    address = WorkerAddress("gpu-0", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    choice = FixedWorkers(lambda stream: address)
    links = []
    for n in range(n_streams):
        source = {"type": "file", "path": "/nowhere.wav", "pace": "realtime"}
        stream = StreamSettings.model_validate({"name": f"mic-{n}", "source": source})
        link = StreamLink(
            stream,
            cast(Any, silence),
            cast(Any, NoSender()),
            choice,
            keeps_record=True,
            now_s=lambda: silence.now_s,
        )
        ring = Ring(1)
        endpoint = "ipc:///nowhere"
        link.use(
            RingServer(
                stream.name, "a" * 32, endpoint, ring, lambda: cast(Any, None), is_paced=True
            ),
            ring,
        )
        links.append(link)
    for step in range(600):
        silence.now_s = step / 10
        silence.answers = silence.now_s >= 30.0
        for link in links:
            link.turn()
    said = [silence.said[tenth] for tenth in range(600)]
    return {
        "streams": n_streams,
        "hellos that wait for a worker that loads for 30 s, each stream": round(
            silence.waiting / n_streams, 1
        ),
        "of all in a tenth of a second: the first, most later, most at rest": [
            said[0],
            max(said[1:]),
            max(said[450:]),
        ],
    }


class NoSender:
    """Sends no audio."""

    def add(self, *_: object) -> None:
        """Do nothing."""

    def remove(self, *_: object) -> None:
        """Do nothing."""

    def notify(self, *_: object) -> None:
        """Do nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=40)
    parser.add_argument("--boxes", type=int, default=200, help="capture processes that follow")
    parser.add_argument("--links", type=int, default=256, help="streams of the one real socket")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    found = {
        "placement": placement(options.streams, options.workers),
        "hellos": hellos(options.streams),
        "sockets": sockets(options.links, options.seconds),
        "membership": membership(options.streams, options.workers, options.boxes, options.seconds),
    }
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
