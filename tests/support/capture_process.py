"""A real capture process and the worker's side of its sockets, for tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from forked_command import ForkedCommand

from ast_stream.messages.audio import (
    AckRequest,
    AudioBlock,
    Pcm16,
    ReadRequest,
    RingReply,
)
from ast_stream.transport.sockets import Listener, Socket, Sockets

LIMIT_S = 120.0  # until a wait is given up: far beyond what a loaded machine needs
STREAM = "porch"


class CaptureProcess:
    """One capture process on a folder of its own; this side plays the worker.

    Args:
        others: sources of more streams, by name; then it captures all of them.
    """

    def __init__(
        self,
        source: Mapping[str, Any],
        ring_s: float = 60.0,
        others: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.streams = {STREAM: source, **(others or {})}
        self.folder = Path(tempfile.mkdtemp(prefix="cap-", dir="/tmp"))  # socket paths are short
        self.config = self.folder / "config.yaml"
        settings = {
            "version": 1,
            "runtime_dir": str(self.folder),
            "state_dir": str(self.folder),
            "streams": [
                {"name": name, "source": dict(each), "ring_s": ring_s}
                for name, each in self.streams.items()
            ],
        }
        self.config.write_text(json.dumps(settings))  # JSON is YAML
        self.sockets = Sockets()
        self.process: subprocess.Popen[bytes] | None = None
        self._pull: Listener | None = None
        self._dealers: dict[str, Socket] = {}

    @property
    def log(self) -> str:
        """What the process has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def start(
        self,
        environment: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> CaptureProcess:
        """Start the process; as a fork, unless something is to be loaded or put into it."""
        given = {**os.environ, **(environment or {})}
        if "LD_PRELOAD" not in given and "PYTHONPATH" not in given and stdin == subprocess.DEVNULL:
            self.process = ForkedCommand(self._arguments(), self.folder / "log", env=given)
            return self
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=stdin,
                stdout=log,
                stderr=log,
                env=given,
            )
        return self

    def command(self, *streams: str) -> list[str]:
        """Return the command line of a capture process."""
        return [sys.executable, "-m", "ast_stream.cli", *self._arguments(*streams)]

    def _arguments(self, *streams: str) -> list[str]:
        arguments = ["capture", "-c", str(self.config)]
        if streams or len(self.streams) == 1:
            arguments += [word for name in streams or (STREAM,) for word in ("--stream", name)]
        return arguments

    def listen(self) -> None:
        """Receive live blocks, as a worker that has started."""
        self._pull = self.sockets.bind("pull", f"ipc://{self.folder}/audio.sock", 1_000)

    def stop_listening(self) -> None:
        """Vanish, as a worker that was killed."""
        assert self._pull is not None
        self.sockets.forget(self._pull)
        self._pull = None

    def next_block(self, timeout_s: float = LIMIT_S) -> AudioBlock:
        """Return the next live block."""
        assert self._pull is not None
        frames = self._pull.receive(round(timeout_s * 1000))
        assert frames is not None, f"no block in {timeout_s} s:\n{self.log}"
        return AudioBlock.decode(frames)

    def read(self, stream: str = STREAM, **request: Any) -> RingReply:
        """Return the ring's reply, as soon as the process answers."""
        body = {"v": 1, "op": "read", "stream": stream} | request
        frames = self.ask(ReadRequest.model_validate(body).encode(), stream)
        return RingReply.decode(frames, stream)

    def ask(self, frames: list[bytes], stream: str = STREAM) -> list[bytes]:
        """Send a request and return the frames of the reply."""
        dealer = self._ring(stream)
        dealer.send(frames)
        reply = dealer.receive(round(LIMIT_S * 1000))
        assert reply is not None, f"no reply:\n{self.log}"
        return reply

    def ack(self, epoch: str, stop: int, stream: str = STREAM) -> None:
        """Acknowledge all samples before `stop`."""
        request = AckRequest(v=1, op="ack", epoch=epoch, stop=stop)
        self._ring(stream).send(request.encode())

    def read_all(self, start: int = 0, stream: str = STREAM) -> tuple[Pcm16, RingReply]:
        """Return everything from `start` to the end of a source that ends, acknowledging it."""
        pieces = []
        while True:
            reply = self.read(stream, start=start)
            pieces.append(reply.block.pcm)
            start = reply.block.end_sample
            self.ack(reply.block.epoch, start, stream)
            if reply.block.is_last:
                return np.concatenate(pieces), reply
            if len(reply.block.pcm) == 0:
                time.sleep(0.02)

    def wait_for_state(self, state: str, stream: str = STREAM) -> RingReply:
        """Return the first reply with `state`."""
        return self.wait_for(lambda reply: reply.state == state, stream)

    def wait_for(self, is_so: Callable[[RingReply], bool], stream: str = STREAM) -> RingReply:
        """Return the first reply for which `is_so`."""
        deadline_s = time.monotonic() + LIMIT_S
        while not is_so(reply := self.read(stream, start=0, stop=0)):
            assert time.monotonic() < deadline_s, f"still {reply.state}:\n{self.log}"
            time.sleep(0.05)
        return reply

    def wait_exit(self) -> int:
        """Return the exit code."""
        assert self.process is not None
        return self.process.wait(LIMIT_S)

    def terminate(self, signal_number: int = signal.SIGTERM) -> int:
        """Ask the process to stop and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        return self.wait_exit()

    def close(self) -> None:
        """End everything."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.sockets.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ring(self, stream: str) -> Socket:
        if stream not in self._dealers:
            endpoint = f"ipc://{self.folder}/ring.{stream}.sock"
            self._dealers[stream] = self.sockets.connect("dealer", endpoint, 1_000)
        return self._dealers[stream]


@contextmanager
def capture_process(
    source: Mapping[str, Any],
    ring_s: float = 60.0,
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[CaptureProcess]:
    """Give a capture process that is not started yet."""
    process = CaptureProcess(source, ring_s, others)
    try:
        yield process
    finally:
        process.close()
