"""A network stream of tones that stops now and then, as a camera does whose network is bad."""

from __future__ import annotations

import random
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from reactive_model import tones_and_noise

from ast_stream.units import SAMPLE_RATE

SCENE_S = 60.0
BLOCK_S = 0.1
UNKNOWN = 0xFFFF_FFFF  # length of a WAV that does not end


class Station:
    """Serves endless WAV at `url`; what is sent while it stalls is nothing, and lost."""

    def __init__(self, host: str) -> None:
        self._stalls = threading.Event()
        self._ends = threading.Event()
        station = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Type", "audio/wav")
                    self.end_headers()
                    station.play(self)

            def log_message(self, format: str, *arguments: object) -> None:
                del format, arguments

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def play(self, handler: BaseHTTPRequestHandler) -> None:
        """Send a scene again and again, in real time."""
        handler.wfile.write(_header())
        pcm = tones_and_noise(SCENE_S, seed=random.randrange(1000)).astype("<i2")
        n_block = round(BLOCK_S * SAMPLE_RATE)
        began_s, at = time.monotonic(), 0
        while not self._ends.is_set():
            if not self._stalls.is_set():
                handler.wfile.write(pcm[at % len(pcm) :][:n_block].tobytes())
            at += n_block
            time.sleep(max(0.0, began_s + at / SAMPLE_RATE - time.monotonic()))

    def stall(self, seconds: float) -> None:
        """Send nothing for a while; connections stay."""
        self._stalls.set()
        time.sleep(seconds)
        self._stalls.clear()

    def close(self) -> None:
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()


def _header() -> bytes:
    rate, n_bytes = SAMPLE_RATE, 2
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * n_bytes, n_bytes, 8 * n_bytes)
    head = b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
    return head + b"data" + struct.pack("<I", UNKNOWN)
