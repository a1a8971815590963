"""What a live source really gave: everything that the ring of its capture process ever held."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ast_stream.errors import WireError
from ast_stream.messages.audio import Pcm16, ReadRequest, RingReply
from ast_stream.transport.sockets import Socket, Sockets
from ast_stream.units import SAMPLE_RATE

_EVERY_S = 0.2
_PATIENCE_MS = 1_000


@dataclass
class Recording:
    """The audio of one epoch.

    Attributes:
        parts: first sample and samples of what was read, in order; holes are between them.
        holes: first sample, sample after the last, and reason of what never was in the ring.
        end: index after the last sample that was read.
        lateness_s: of the newest sample, each time that some came: seconds that have passed since
            an arbitrary moment, without the seconds of samples and holes.
    """

    parts: list[tuple[int, Pcm16]] = field(default_factory=list)
    holes: list[tuple[int, int, str]] = field(default_factory=list)
    end: int = 0
    lateness_s: list[float] = field(default_factory=list)

    def add(self, reply: RingReply) -> None:
        """Add what follows."""
        block = reply.block
        if len(block.pcm) == 0:
            return
        if block.start_sample > self.end:
            self.holes.append((self.end, block.start_sample, block.gap_reason or "unread"))
        self.parts.append((block.start_sample, block.pcm))
        self.end = block.end_sample
        if self.end == reply.next:
            self.lateness_s.append(time.monotonic() - self.end / SAMPLE_RATE)


class RingTap:
    """Reads the ring of one stream along, in a thread, whatever happens to its process.

    Attributes:
        recordings: by epoch.
    """

    def __init__(self, stream: str, endpoint: str) -> None:
        self.recordings: dict[str, Recording] = {}
        self._stream = stream
        self._endpoint = endpoint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        sockets = Sockets()
        socket: Socket | None = None
        epoch: str | None = None
        while not self._stop.wait(_EVERY_S):
            while not self._stop.is_set():
                if socket is None:
                    socket = sockets.connect("dealer", self._endpoint, 100)
                start = self.recordings[epoch].end if epoch is not None else 0
                socket.send(
                    ReadRequest(
                        v=1, op="read", stream=self._stream, epoch=epoch, start=start
                    ).encode()
                )
                frames = socket.receive(_PATIENCE_MS)
                if frames is None:  # a late answer must not be taken for a later one
                    sockets.forget(socket)
                    socket = None
                    break
                try:
                    reply = RingReply.decode(frames, self._stream)
                except WireError:  # another epoch by now
                    epoch = None
                    break
                epoch = reply.block.epoch
                self.recordings.setdefault(epoch, Recording()).add(reply)
                if len(reply.block.pcm) == 0:
                    break
        sockets.close()
