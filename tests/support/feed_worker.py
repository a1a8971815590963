"""A publisher with its event log and query server, without audio and model.

As a script it publishes numbered events until it has done all of them, and after a kill goes on
as the worker does: a little before where it was, leaving out what the log holds.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import threading
import time
from pathlib import Path

from sample_messages import EPOCH, STREAM, event_message, worker_status

from ast_stream.errors import WireError
from ast_stream.messages.event import EventMessage
from ast_stream.messages.query import Snapshot
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.query import AudioRange, QueryServer, ReleasedAudio
from ast_stream.transport.requester import Requester
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, QUERY_HWM_MESSAGES, Listener, Sockets

REDERIVED = 25  # events between the last journal and a kill
TURNS_PER_STATUS = 10  # of 10 ms


def event(n: int, kind: str = "begin", label: str = "Bark", stream: str = STREAM) -> EventMessage:
    return event_message(f"id{n}", kind, at_sample=n, label=label, stream=stream)


class LossyPub:
    """A PUB socket that loses messages on request."""

    def __init__(self, pub: Listener) -> None:
        self.loses = False
        self._pub = pub

    def send(self, frames: list[bytes]) -> bool:
        return self.loses or self._pub.send(frames)

    def has_reader(self, topic: bytes) -> bool:
        return self._pub.has_reader(topic)

    def readers(self, topic: bytes) -> list[Requester]:
        return self._pub.readers(topic)


class Worker:
    """A publisher and its query server in a thread, as a worker runs them."""

    def __init__(self, folder: Path, boot: str, *, answers: bool = True, logs: bool = True) -> None:
        self.sockets = Sockets()
        self.log = EventLog(folder / "events") if logs else None
        pub = self.sockets.bind("pub", f"ipc://{folder}/feed.sock", FEED_HWM_MESSAGES)
        self.pub = LossyPub(pub)
        self.publisher = FeedPublisher(self.pub, self.log, boot)
        self.queries = None
        if answers:
            router = self.sockets.bind("router", f"ipc://{folder}/query.sock", QUERY_HWM_MESSAGES)
            self.queries = QueryServer(
                router, self.log, self.publisher, snapshot=self._snapshot, audio=self._audio
            )
        self.lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def publish(self, *events: EventMessage, arrives: bool = True) -> None:
        with self.lock:
            self.pub.loses = not arrives
            for message in events:
                self.publisher.publish(message)
            self.pub.loses = False

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.sockets.close()
        if self.log is not None:
            self.log.close()

    def _run(self) -> None:
        for n_turn in itertools.count():
            if self._stop.wait(0.01):
                return
            with self.lock:
                if n_turn % TURNS_PER_STATUS == 0:
                    self.publisher.publish(worker_status())
                if self.queries is not None:
                    self.queries.serve()

    def _snapshot(self) -> Snapshot:
        boot = self.publisher.boot
        return Snapshot(boot=boot, streams=[], events=[], status=worker_status())

    def _audio(self, wanted: AudioRange, requester: Requester) -> ReleasedAudio:
        raise WireError("audio: none")


def publish_numbers(folder: Path, n_events: int, pause_s: float) -> None:
    """Publish events 1 to `n_events`, then stay."""
    worker = Worker(folder, secrets.token_hex(8))
    assert worker.log is not None
    published = worker.log.published(STREAM, EPOCH)
    last = max((int(identity[2]) for identity in published.identities), default=0)
    for n in range(max(1, last - REDERIVED), n_events + 1):
        message = event(n)
        if message.identity not in published.identities:
            worker.publish(message)
            time.sleep(pause_s)
    threading.Event().wait()


if __name__ == "__main__":
    publish_numbers(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
