"""A capture process and a worker whose sockets are attacked, against the same two left alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from pipeline import PATIENCE_S, Pipeline, events_of, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.feed import FeedMessage, Subscriber
from ast_stream.messages.audio import (
    AckRequest,
    AudioBlock,
    Pcm16,
    ReadRequest,
    RingReply,
)
from ast_stream.transport.listener import raise_descriptor_limit
from ast_stream.transport.sockets import Sockets
from ast_stream.units import SAMPLE_RATE

SOUND_S = 40.0
N_CONNECTIONS = 1050
BLOCK = 1600


def read_ring(sockets: Sockets, run: Pipeline, *, acknowledges: bool = False) -> RingReply:
    """Read the ring as anybody may; `acknowledges` claims all of it for oneself."""
    dealer = sockets.connect("dealer", f"ipc://{run.folder}/run/ring.a.sock", 8)
    dealer.send(ReadRequest(v=1, op="read", stream="a").encode())
    frames = dealer.receive(60_000)
    assert frames is not None
    reply = RingReply.decode(frames, "a")
    if acknowledges:
        request = AckRequest(v=1, op="ack", epoch=reply.block.epoch, stop=reply.next)
        dealer.send(request.encode())
        time.sleep(0.2)
    sockets.forget(dealer)
    return reply


def is_heard(message: object) -> bool:
    """Tell whether a health message is of a stream whose audio comes."""
    return isinstance(message, FeedMessage) and message.body["state"] in ("warming", "listening")


def connected(one: socket.socket, path: Path) -> bool:
    """Tell whether a connection could be made; a full backlog of ipc is an error at once."""
    one.setblocking(False)
    try:
        one.connect(str(path))
    except BlockingIOError:
        return False
    return True


def forged_end(reply: RingReply, stream: str = "a", ring: str | None = None) -> list[bytes]:
    block = AudioBlock(
        stream,
        reply.block.epoch,
        reply.next,
        reply.block.moment,
        reply.block.pcm[:0],
        ring=ring,
        is_last=True,
    )
    return block.encode()


@contextmanager
def feeding(capture: subprocess.Popen[bytes], pcm: Pcm16) -> Iterator[threading.Event]:
    """Write sound to a capture process in real time; once the event is set, all the rest of it.

    So however long the attacks take on a busy machine, the sound is not over before them.
    """
    assert capture.stdin is not None
    pipe, is_over = capture.stdin, threading.Event()

    def feed() -> None:
        with suppress(BrokenPipeError), pipe:
            for start in range(0, len(pcm), BLOCK):
                pipe.write(pcm[start : start + BLOCK].tobytes())
                pipe.flush()
                is_over.wait(BLOCK / SAMPLE_RATE)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield is_over
    finally:
        is_over.set()
        thread.join(PATIENCE_S)


def test_attacked_sockets_cost_no_event_and_no_process(checkpoint: Path, sockets: Sockets) -> None:
    pcm = tones_and_noise(SOUND_S)
    with pipeline(checkpoint, {"a": {"type": "file", "pace": "fast"}}) as calm:
        calm.write_audio(pcm)
        calm.start_worker()
        calm.start_capture("a")
        assert calm.wait("capture-a") == 0
        assert calm.stop("worker") == 0
        expected = events_of(calm.published(), "a")
    assert len(expected) > 4
    raise_descriptor_limit()
    with pipeline(checkpoint, {"a": {"type": "stdin"}}) as run, ExitStack() as leaked:
        worker = run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "worker")
        capture = run.start("capture-a", "capture", "--stream", "a", stdin=subprocess.PIPE)
        is_over = leaked.enter_context(feeding(capture, pcm))
        folder = run.folder / "run"
        reader = Subscriber(run.feed, topics=["health/"])
        leaked.callback(reader.close)
        # the worker reads the ring: from now on no other client moves its cursor
        wait_for(lambda: is_heard(reader.receive(0.1)), "the worker's first audio")

        # a dashboard that leaks connections, on every socket there is
        names = ("audio.sock", "feed.sock", "query.sock", "ring.a.sock")
        paths = [folder / name for name in names]
        wait_for(paths[-1].is_socket, "the ring")
        for path in paths:
            for _ in range(N_CONNECTIONS):
                one = leaked.enter_context(socket.socket(socket.AF_UNIX))
                wait_for(partial(connected, one, path), "room in the backlog")

        # blocks that end the stream, a cursor that is moved, a ring that is none
        reply = read_ring(sockets, run, acknowledges=True)
        push = sockets.connect("push", f"ipc://{folder}/audio.sock", 8)
        for _ in range(20):
            wait_for(lambda: push.send(forged_end(reply)), "room for a block")
        trap = leaked.enter_context(socket.create_server(("127.0.0.1", 0)))
        trap.settimeout(0.5)
        ring = f"tcp://127.0.0.1:{trap.getsockname()[1]}"
        wait_for(lambda: push.send(forged_end(reply, "b", ring)), "room for a block")
        with pytest.raises(TimeoutError, match="timed out"):
            trap.accept()

        # a worker that is stopped for longer than any heartbeat, then files that disappear
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(worker.pid, signal.SIGCONT)
        for path in folder.glob("*.sock*"):
            path.unlink()
        wait_for(lambda: all(path.is_socket() for path in paths), "the sockets' files")
        late = Subscriber(run.feed, topics=["health/"])
        leaked.callback(late.close)
        wait_for(lambda: late.receive(0.1) is not None, "a new subscriber")

        query = sockets.connect("dealer", f"ipc://{folder}/query.sock", 8)
        query.send([b'{"op":"snapshot"}'])
        answer = query.receive(60_000)
        assert answer is not None
        assert json.loads(answer[0])["status"]["streams"] == ["a"]

        is_over.set()
        assert run.wait("capture-a") == 0
        assert run.stop("worker") == 0
        assert events_of(run.published(), "a") == expected
        for name in ("worker", "capture-a"):
            log = run.log(name)
            assert "Assertion" not in log
            assert "Traceback" not in log
            assert "was removed: bound again" in log
        assert "acknowledgement refused" in run.log("capture-a")
        assert "stream b: ring: expected ipc://" in run.log("worker")
