"""Live blocks from the ring to the worker: sent at once or left in the ring, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ast_stream.capture.ring import Ring
from ast_stream.capture.ring_service import RingService
from ast_stream.messages.audio import encode_block
from ast_stream.units import SAMPLE_RATE

MAX_BLOCK_SAMPLES = SAMPLE_RATE  # blocks are as the source wrote them; more only when late
_WAIT_S = 0.2
_RETRY_S = 0.02


class BlockSender:
    """Sends what is new in the ring; `run` is the body of a thread.

    A block of a live source that the worker does not take is skipped: it stays in the ring, and
    the next one is more urgent. A recording read faster than real time waits for the worker.

    Args:
        send: hands frames to the worker; False if it does not take them now.

    Attributes:
        n_sent, n_refused: blocks.
    """

    def __init__(
        self,
        ring: Ring,
        service: RingService,
        send: Callable[[list[bytes]], bool],
        *,
        is_paced: bool,
        stop: threading.Event,
    ) -> None:
        self.n_sent = 0
        self.n_refused = 0
        self.failure: Exception | None = None
        self._ring = ring
        self._service = service
        self._send = send
        self._is_paced = is_paced
        self._stop = stop
        self._cursor = 0

    def run(self) -> None:
        """Send until the end of the source is told, or `stop` is set."""
        try:
            while not self._stop.is_set() and not self._service.has_told_end:
                self._ring.wait_written(self._cursor, _WAIT_S)
                self.send_next()
        except Exception as error:  # the main thread raises it: no bug may end a thread in silence
            self.failure = error

    def send_next(self) -> None:
        """Send one block, if there is anything to say."""
        if not self._is_paced:
            self._cursor = max(self._cursor, self._ring.acked)
        block = self._service.block(self._cursor, MAX_BLOCK_SAMPLES)
        if len(block.pcm) == 0 and not block.is_last:
            return
        if self._send(encode_block(block)):
            self.n_sent += 1
            self._cursor = block.end_sample
            self._service.has_told_end = self._service.has_told_end or block.is_last
            return
        self.n_refused += 1
        if self._is_paced and len(block.pcm) > 0:
            self._cursor = block.end_sample
        else:
            self._stop.wait(_RETRY_S)
