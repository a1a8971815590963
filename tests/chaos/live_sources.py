"""Live sources of a box under faults: a station over HTTP, and a sound card that plays a scene."""

from __future__ import annotations

import io
import random
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler

import av
import numpy as np
import soxr
from sound_server import http_server
from virtual_mic import SINK, VirtualMic

from ast_stream.messages.audio import Pcm16
from ast_stream.units import SAMPLE_RATE

RATES = (44_100, 22_050)  # the station changes from one to the other and back
_BIT_RATE = 64_000
_STEP_S = 0.05


class Station:
    """A radio station: MP3 without an end over HTTP, that misbehaves on request.

    What it could not send in a stall it sends afterwards, as TCP does. Damage is of the seed.

    Attributes:
        url: where it is.
        mode: play; stall: nothing is sent; refuse: connections are closed, new ones refused;
            garbage: noise instead of MP3.
        rate: 0 or 1, of `RATES`; a change of it is in the middle of a connection.
    """

    def __init__(self, pcm: Pcm16, seed: int) -> None:
        self.mode = "play"
        self.rate = 0
        self._bodies = [mp3(pcm, rate) for rate in RATES]
        self._rng = random.Random(seed)
        self._began_s = time.monotonic()
        self._is_closed = threading.Event()
        self._stack = ExitStack()
        self.url = self._stack.enter_context(http_server(self._respond))

    def close(self) -> None:
        """Close all connections."""
        self._is_closed.set()
        self._stack.close()

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        if self.mode == "refuse":
            handler.send_error(503)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "audio/mpeg")
        handler.send_header("icy-name", "chaos")
        handler.end_headers()
        n_sent = self._due()
        while not self._is_closed.wait(_STEP_S) and self.mode != "refuse":
            due = self._due()
            if self.mode == "stall" or due == n_sent:
                continue
            if self.mode == "garbage":
                piece = self._rng.randbytes(due - n_sent)
            else:
                body = self._bodies[self.rate]
                begin = n_sent % len(body)
                piece = (body + body)[begin : begin + due - n_sent]
            handler.wfile.write(piece)
            n_sent = due
        handler.close_connection = True

    def _due(self) -> int:
        return round((time.monotonic() - self._began_s) * _BIT_RATE / 8)


def mp3(pcm: Pcm16, rate: int) -> bytes:
    """Return a mono MP3 of constant bit rate, without what decoders would skip at its start."""
    sound = soxr.resample(pcm.astype(np.float32) / 32_768, SAMPLE_RATE, rate)
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as out:
        stream = out.add_stream("libmp3lame", rate=rate, layout="mono")
        stream.bit_rate = _BIT_RATE
        for at in range(0, len(sound), 1152):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[None, at : at + 1152]), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = rate, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


class SoundCard:
    """A virtual microphone in front of which a scene is played again and again."""

    def __init__(self, pcm: Pcm16) -> None:
        self.mic = VirtualMic()
        self._pcm = pcm.astype("<i2").tobytes()
        self._is_closed = threading.Event()
        self._player: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._play, daemon=True)

    def start(self) -> SoundCard:
        """Start the server, and play."""
        self.mic.start()
        self._thread.start()
        return self

    def close(self) -> None:
        """End both."""
        self._is_closed.set()
        self.mic.thaw()
        if self._player is not None:
            self._player.kill()
        self._thread.join()
        self.mic.close()

    def _play(self) -> None:
        command = ["pacat", "--raw", f"--rate={SAMPLE_RATE}", "--channels=1", "--format=s16le"]
        while not self._is_closed.wait(0.1):
            with subprocess.Popen(
                [*command, "-d", SINK],
                env=self.mic.full_environment(),
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as player:
                self._player = player
                assert player.stdin is not None
                with suppress(BrokenPipeError):
                    while not self._is_closed.is_set():
                        player.stdin.write(self._pcm)
                with suppress(BrokenPipeError):
                    player.stdin.close()
