"""A time server on a UDP port of the loopback interface, as wrong as a test wants it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Self

_EPOCH_S = 2_208_988_800  # from 1900 to 1970
_FORMAT = "!BBbb11I"
_ROOT_DELAY_S, _ROOT_DISPERSION_S = 0.002, 0.004


class SntpServer:
    """Answers every request.

    Attributes:
        shift_s: how far its clock is ahead of the one of this machine.
        leap, stratum: what it says of itself; 3 or 16: it does not know the time.
        is_silent: it does not answer.
        forges: it answers something that was not asked.
        reply: bytes that it answers with instead.
        asked: how often it was.
    """

    def __init__(self, shift_s: float = 0.0) -> None:
        self.shift_s = shift_s
        self.leap, self.stratum = 0, 2
        self.is_silent = self.forges = False
        self.reply: bytes | None = None
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while request_from := self._socket.recvfrom(256):
            request, client = request_from
            received = self._now()
            if not request:
                return
            self.asked += 1
            if self.is_silent:
                continue
            answer = self._answer(request, received) if self.reply is None else self.reply
            self._socket.sendto(answer, client)

    def _answer(self, request: bytes, received: tuple[int, int]) -> bytes:
        asked = struct.unpack("!II", request[40:48])
        if self.forges:
            asked = (asked[0] - 10, asked[1])
        first = self.leap << 6 | 4 << 3 | 4  # version 4, mode server
        delays = (round(_ROOT_DELAY_S * 65_536), round(_ROOT_DISPERSION_S * 65_536))
        times = (*received, *asked, *received, *self._now())
        return struct.pack(_FORMAT, first, self.stratum, 4, -20, *delays, 0x7F000001, *times)

    def _now(self) -> tuple[int, int]:
        now_s = time.time() + _EPOCH_S + self.shift_s
        return int(now_s), int(now_s % 1 * 2**32)
