"""A pool in one process, on a clock of its own: workers, capture processes, bucket and network.

Workers, their event logs and journals, links, rings, membership and directory are the real ones.
The network and the bucket are in memory, and everything takes its turn when it is told to: the
same steps give the same pool, however busy the machine is.
"""

from __future__ import annotations

import random
import secrets
import shutil
import tempfile
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any, cast

from pool_of_workers import Body, differences
from sample_messages import FACTS
from worker_harness import DETECTION

from ast_stream.capture.link import StreamLink
from ast_stream.capture.ring import BlockSender, Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.capture.worker_choice import PoolWorkers
from ast_stream.coverage.ledger import CoverageLedger, read_all_spans
from ast_stream.detect import Detector
from ast_stream.machine_clock import CLOCK_ID, Moment
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.pool import PoolMember, StreamClaim, StreamHistory
from ast_stream.messages.query import ReplayPage
from ast_stream.model.tagger import Tagger
from ast_stream.pool.directory import PoolDirectory
from ast_stream.pool.membership import Membership
from ast_stream.privacy.audit import AuditLog
from ast_stream.runtime.metrics import Metrics
from ast_stream.settings.streams import StreamSettings
from ast_stream.transport.allow_list import ALL_RIGHTS
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.requester import Requester
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, seconds_to_samples
from ast_stream.worker.journal import Journal, JournalFile
from ast_stream.worker.loop import Worker, WorkerSockets
from ast_stream.worker.process import HAND_OVER_S
from ast_stream.worker.report import WorkerMetrics

STEP_S = 0.1
HOP_S = 0.5
DEAD_S = 5.0
RECORD_S = 10.0
LINGER_S = 0.5  # of a ring that the worker is done with
BOX = Requester("box", "box", None, True, ALL_RIGHTS)
_MAX_QUEUE = 1000
_STARTED_NS = 1_690_000_000 * NS_PER_SECOND


class Inbox:
    """Messages that are on their way, or have arrived; those of one sender keep their order."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._messages: list[tuple[float, int, list[bytes]]] = []  # a heap, by arrival
        self._n = count()
        self._last_s: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, frames: list[bytes], sender: object = None) -> None:
        arrives_s = max(self._last_s.get(sender, 0.0), self._network.next_arrival_s())
        self._last_s[sender] = arrives_s
        heappush(self._messages, (arrives_s, next(self._n), frames))

    def take(self) -> list[bytes] | None:
        if not self._messages or self._messages[0][0] > self._network.now_s():
            return None
        return heappop(self._messages)[2]


class Bound:
    """The end of the network that a worker listens at."""

    waitable = 0  # nothing is waited for here

    def __init__(self, endpoint: str, network: Network) -> None:
        self.endpoint = endpoint
        self.inbox = Inbox(network)
        self.peers: dict[bytes, Connected] = {}
        self.is_closed = False

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        return self.inbox.take()

    def send(self, frames: list[bytes]) -> bool:
        peer = self.peers.get(frames[0])
        if peer is None:
            return False
        peer.inbox.put(frames[1:])
        return True

    def is_trusted(self, identity: bytes) -> bool:
        return identity in self.peers

    def requester(self, identity: bytes) -> Requester:
        return BOX

    def has_reader(self, topic: bytes) -> bool:
        return False

    def readers(self, topic: bytes) -> list[Requester]:
        return []


class Connected:
    """The other end: it connects again when another run of the worker listens."""

    def __init__(self, network: Network, kind: str, endpoint: str) -> None:
        self.inbox = Inbox(network)
        self._network = network
        self._kind = kind
        self._endpoint = endpoint
        self._bound: Bound | None = None
        self._identity = b""
        self._was_connected = False

    @property
    def is_lost(self) -> bool:
        """Whether a connection was there and is gone."""
        return self._was_connected and self._find() is None

    def _find(self) -> Bound | None:
        bound = self._network.bound.get(self._endpoint)
        if bound is not self._bound:
            self.disconnect()
            self._bound = bound
            self._identity = secrets.token_bytes(5)
            if bound is not None:
                bound.peers[self._identity] = self
                self._was_connected = True
        return bound

    def disconnect(self) -> None:
        if self._bound is not None:
            self._bound.peers.pop(self._identity, None)
        self._bound = None

    def send(self, frames: list[bytes]) -> bool:
        bound = self._find()
        if bound is None or len(bound.inbox) >= _MAX_QUEUE:
            return False
        bound.inbox.put([self._identity, *frames] if self._kind == "link" else frames, self)
        return True

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        self._find()
        return self.inbox.take()


class Network:
    """Who listens where; it stands for the `Sockets` of a capture process.

    Args:
        next_arrival_s: returns when a message that is sent now arrives.
    """

    def __init__(self, now_s: Callable[[], float], next_arrival_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self.next_arrival_s = next_arrival_s
        self.bound: dict[str, Bound] = {}

    def bind(self, endpoint: str) -> Bound:
        bound = self.bound[endpoint] = Bound(endpoint, self)
        return bound

    def connect(self, kind: str, endpoint: str, hwm: int, key: str | None = None) -> Connected:
        return Connected(self, kind, endpoint)

    def forget(self, socket: Connected) -> None:
        socket.disconnect()


class Bucket:
    """What NATS would keep."""

    def __init__(self) -> None:
        self.is_connected = True
        self.by_name: dict[str, PoolMember] = {}
        self.renewals: dict[str, int] = {}
        self.histories: dict[str, StreamHistory] = {}

    def start(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def put_member(self, member: PoolMember) -> None:
        self.by_name[member.name] = member

    def withdraw(self, name: str) -> None:
        self.by_name.pop(name, None)

    def renew(self, name: str, boot: str, streams: int) -> None:
        self.renewals[name] = self.renewals.get(name, 0) + 1

    def renewal(self, name: str) -> int:
        return self.renewals.get(name, 0)

    def claim(self, stream: str, claim: StreamClaim) -> None:
        self.histories[stream] = self.history(stream).with_claim(claim)

    def history(self, stream: str) -> StreamHistory:
        return self.histories.get(stream, StreamHistory(claims=[]))


class LiveSender:
    """Sends live blocks in the turn of their capture process."""

    def __init__(self) -> None:
        self._sends: dict[RingServer, Callable[[list[bytes]], bool]] = {}

    def add(self, server: RingServer, send: Callable[[list[bytes]], bool]) -> None:
        self._sends[server] = send

    def remove(self, server: RingServer) -> None:
        self._sends.pop(server, None)

    def notify(self, server: RingServer) -> None:
        """Do nothing: it is looked at in each turn."""

    def turn(self) -> None:
        for server, send in self._sends.items():
            if not server.end_delivered:
                server.send_next(send)


class Mic:
    """A stream of a capture process."""

    def __init__(self, pool: SimulatedPool, name: str, pcm: Pcm16) -> None:
        self.name, self.pcm = name, pcm
        self.ring = Ring(seconds_to_samples(90.0))
        self.status = SourceStatus("listening")
        self._pool = pool
        self._began_s = self._over_since_s = pool.now_s
        source = {"type": "file", "path": "/nowhere.wav", "pace": "realtime"}
        settings = StreamSettings.model_validate({"name": name, "source": source})
        self.link = StreamLink(
            settings,
            cast(Any, pool.network),
            cast(BlockSender, pool.sender),
            PoolWorkers(pool.membership),
            keeps_record=True,
            now_s=lambda: pool.now_s,
            random_unit=pool.random.random,
        )
        self.server = RingServer(
            name,
            secrets.token_hex(16),
            f"ipc:///box/ring.{name}.sock",
            self.ring,
            lambda: self.status,
            is_trusted=self.link.is_client,
            clock=CLOCK_ID,
        )
        self.link.use(self.server, self.ring)

    @property
    def is_over(self) -> bool:
        """Whether all was played, heard and confirmed, a while ago."""
        if not self.server.is_done_with:
            self._over_since_s = self._pool.now_s
        return self._pool.now_s - self._over_since_s >= LINGER_S

    def turn(self) -> None:
        """Talk to the worker, until all is over."""
        if self.is_over:
            self._pool.sender.remove(self.server)
            self.link.close()
        else:
            self.link.turn()

    def capture(self) -> None:
        """Write what there is to hear until now."""
        passed = round((self._pool.now_s - self._began_s) * SAMPLE_RATE)
        start, stop = self.ring.next, min(passed, len(self.pcm))
        if stop > start:
            began_ns = round(self._began_s * NS_PER_SECOND) + start * NS_PER_SECOND // SAMPLE_RATE
            first_ns = began_ns // 1000 * 1000
            self.ring.write(self.pcm[start:stop], Moment(first_ns, first_ns - _STARTED_NS))
        if self.ring.next == len(self.pcm):
            self.status = SourceStatus("ended")


class SimulatedWorker:
    """A member of the pool: it can be killed, stopped, continued, ended in order, and started."""

    def __init__(self, pool: SimulatedPool, name: str) -> None:
        self.name = name
        self.is_stopped = False
        self.worker: Worker | None = None
        self._pool = pool
        self._leaves_at_s: float | None = None
        self._said_s = float("-inf")
        self._folder = pool.folder / name
        self._folder.mkdir()

    @property
    def is_running(self) -> bool:
        return self.worker is not None

    @property
    def is_leaving(self) -> bool:
        return self._leaves_at_s is not None

    def start(self) -> None:
        pool, folder, network = self._pool, self._folder, self._pool.network
        self.log = EventLog(folder / "events", spare=folder / "unlogged.jsonl")
        self._ledger = CoverageLedger(*self.coverage, now_s=lambda: pool.now_s)
        self._audit = AuditLog(folder / "audit", max_bytes=1024 * 1024, now_s=lambda: pool.now_s)
        audio, rings = (f"tcp://127.0.0.1:{pool.port(self.name, kind)}" for kind in (0, 1))
        member = PoolMember(
            name=self.name,
            boot=secrets.token_hex(4),
            audio=audio,
            rings=rings,
            model="m",
            capacity=pool.capacity,
            weight=float(pool.capacity),
        )
        self._directory = PoolDirectory(cast(Any, pool.bucket), member, lambda: pool.now_s)
        file = JournalFile(folder / "journal.json", "m", len(pool.tagger.labels))
        sockets = WorkerSockets(
            cast(Any, network),
            audio=cast(Any, network.bind(audio)),
            feed=cast(Any, Bound("", network)),
            query=cast(Any, Bound("", network)),
            rings=cast(Any, network.bind(rings)),
        )
        self._ends = (audio, rings)
        self.worker = Worker(
            [],
            lambda on_scores, on_run: Detector(
                pool.tagger,
                DETECTION,
                hop_s=HOP_S,
                max_streams=pool.capacity,
                on_scores=on_scores,
                on_run=on_run,
            ),
            self.log,
            Journal(file, 64, pool.now_s),
            self._ledger,
            self._audit,
            sockets,
            metrics=WorkerMetrics(Metrics("worker", None)),
            facts=FACTS,
            ring_folder="ipc:///nowhere/",
            syncs_first=True,
            directory=self._directory,
            record_every_s=RECORD_S,
            now_s=lambda: pool.now_s,
            now=pool.moment,
        )

    @property
    def coverage(self) -> tuple[Path, Path]:
        return self._folder / "coverage", self._folder / "coverage.jsonl"

    def turn(self) -> None:
        if self.worker is None or self.is_stopped:
            return
        if self._leaves_at_s is not None:
            self._turn_leaving(self.worker, self._leaves_at_s)
            return
        self.worker.tick()
        self.worker.report_to_pool()
        self._directory.turn()

    def leave(self) -> None:
        """Begin to end in order, as after SIGTERM."""
        self._leaves_at_s = self._pool.now_s + HAND_OVER_S

    def _turn_leaving(self, worker: Worker, until_s: float) -> None:
        """Do what `Worker.hand_over` does until that is done."""
        worker._is_closing = True
        worker.report_to_pool()
        self._directory.turn()
        assert worker._links is not None
        if self._pool.now_s - self._said_s >= 1.0:
            self._said_s = self._pool.now_s
            worker._links.say_leaving()
        if worker._links.may_move() and self._pool.now_s < until_s:
            worker.tick()
            return
        worker.finish()
        if self._pool.bucket.is_connected:
            self._pool.bucket.withdraw(self.name)
        self.kill()

    def kill(self) -> None:
        """Lose it with everything that it had in memory."""
        for endpoint in self._ends:
            self._pool.network.bound.pop(endpoint, None)
        self.log.close()
        self._ledger.release()
        self._audit.close()
        self.worker, self.is_stopped = None, False
        self._leaves_at_s, self._said_s = None, float("-inf")

    def published(self) -> list[Body]:
        found: list[Body] = []
        after = None
        while True:
            page = self.log.replay(after)
            assert isinstance(page, ReplayPage)
            found += [{"topic": message.topic} | message.body for message in page.messages]
            if not page.more:
                return found
            after = page.messages[-1].position


class SimulatedPool:
    """Steps of `STEP_S` in which everybody has a turn.

    Args:
        busy: part of the turns that are lost; a quarter of it of messages come later.
        capacity: streams that a worker can have.
    """

    def __init__(
        self,
        tagger: Tagger,
        n_workers: int,
        busy: float = 0.0,
        seed: int = 0,
        capacity: int = 64,
    ) -> None:
        self.tagger = tagger
        self.capacity = capacity
        self.now_s = 1_700_000_000.0
        self.busy = busy
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="pool-"))
        self.network = Network(lambda: self.now_s, self._next_arrival_s)
        self.bucket, self.sender = Bucket(), LiveSender()
        self.membership = Membership(
            lambda note: cast(Any, self.bucket),
            self.folder / "pool.json",
            DEAD_S,
            lambda member: True,
            lambda: self.now_s,
        )
        self.mics: dict[str, Mic] = {}
        self.workers = [SimulatedWorker(self, f"worker-{n}") for n in range(n_workers)]
        for worker in self.workers:
            worker.start()
            worker.turn()

    def port(self, name: str, kind: int) -> int:
        return 10_000 + 2 * int(name.rpartition("-")[2]) + kind

    def moment(self) -> Moment:
        now_ns = round(self.now_s * NS_PER_SECOND)
        return Moment(now_ns, now_ns - _STARTED_NS)

    def listen(self, pcm: dict[str, Pcm16]) -> None:
        self._follow_members()
        self.mics = {name: Mic(self, name, samples) for name, samples in pcm.items()}

    def step(self, n_steps: int = 1) -> None:
        for _ in range(n_steps):
            self.now_s += STEP_S
            for mic in self.mics.values():
                mic.capture()
            if not self._is_busy():
                self._follow_members()
                for mic in self.mics.values():
                    mic.turn()
                self.sender.turn()
            for worker in self.workers:
                if not self._is_busy():
                    worker.turn()

    def step_until(self, condition: Callable[[], bool], limit_s: float = 600.0) -> None:
        end_s = self.now_s + limit_s
        while not condition():
            assert self.now_s < end_s, "it did not come in time"
            self.step()

    def restart_capture(self, stream: str) -> None:
        """Kill the capture process of a stream, and start another one: the sound begins anew."""
        mic = self.mics[stream]
        self.sender.remove(mic.server)
        mic.link.close()
        self.mics[stream] = Mic(self, stream, mic.pcm)

    def bodies(self, stream: str) -> list[Body]:
        """Return all messages about events of a stream, of all workers."""
        published = (worker.published() for worker in self.workers)
        found = (body for bodies in published for body in bodies)
        return [
            body for body in found if body["topic"].startswith("event/") if body["stream"] == stream
        ]

    def has_open_event(self, worker: SimulatedWorker, stream: str) -> bool:
        """Return whether a worker has begun an event of a stream that has not ended."""
        bodies = [body for body in worker.published() if body.get("stream") == stream]
        begun = {body["id"] for body in bodies if body.get("type") == "begin"}
        return bool(begun - {body["id"] for body in bodies if body.get("type") == "end"})

    @property
    def is_over(self) -> bool:
        return all(mic.is_over for mic in self.mics.values())

    def holder(self, stream: str) -> str:
        """Return the name of the worker that has a stream, empty if none has."""
        return (self.mics[stream].link.worker or "").rpartition("/")[0]

    def claimant(self, stream: str) -> str:
        """Return the name of the worker that last said that it has a stream."""
        claims = self.bucket.history(stream).claims
        return claims[-1].worker if claims else ""

    def finish(self) -> None:
        """Let everybody work until all was heard; a worker that was killed begins again."""
        self.bucket.is_connected = True
        for worker in self.workers:
            worker.is_stopped = False
        self.step_until(self._is_over_with_all)
        self._is_over_with_all()
        self.busy = 0
        self.step(60)

    def _is_over_with_all(self) -> bool:
        for worker in self.workers:
            if not worker.is_running:
                worker.start()  # its log may have events that it has to end, or must not
        return self.is_over

    def problems(self) -> list[str]:
        """Return how the logs and ledgers of all workers differ from what they should hold."""
        pcm = {name: mic.pcm for name, mic in self.mics.items()}
        published = {worker.name: worker.published() for worker in self.workers}
        found = differences(published, Detector(self.tagger, DETECTION, hop_s=HOP_S), pcm)
        spans = read_all_spans([worker.coverage for worker in self.workers])
        for name, samples in pcm.items():
            heard = sum(span.samples for span in spans.get(name, []) if span.kind != "off")
            if heard != len(samples):
                found.append(f"{name}: {heard} samples accounted for, expected {len(samples)}")
        return found

    def close(self) -> None:
        for worker in self.workers:
            if worker.is_running:
                worker.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_busy(self) -> bool:
        return self.busy > 0 and self.random.random() < self.busy

    def _next_arrival_s(self) -> float:
        """Decide it for each message, so that any number of them can be had in one turn."""
        n_steps = 0
        while self.busy > 0 and self.random.random() < self.busy / 4:
            n_steps += 1
        return self.now_s + (n_steps - 0.5) * STEP_S

    def _follow_members(self) -> None:
        if self.bucket.is_connected:
            self.membership._use(dict(self.bucket.by_name))
        self.membership.turn()
