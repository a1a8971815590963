"""Sound and video over HTTP for tests: made here, served by a real server."""

from __future__ import annotations

import io
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
from source_blocks import tone

Respond = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def http_server(respond: Respond) -> Iterator[str]:
    """Serve every GET by `respond` until the block ends; give the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                respond(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/sound"
    finally:
        server.shutdown()
        serving.join()
        socketserver.TCPServer.server_close(server)


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/octet-stream")
    handler.end_headers()
    handler.wfile.write(body)


def encoded(sound: npt.NDArray[Any], rate: int, format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=format)
    return file.getvalue()


def muxed(
    sound_s: tuple[float, float], video_s: float, *, format: str = "mpegts", rate: int = 16_000
) -> bytes:
    """Return video from the start on with sound from and to a moment, in time of the stream."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        video = None
        if video_s:
            video = container.add_stream("mpeg2video", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("mp2", rate=rate, layout="mono") if sound_s[1] else None
        n_frames = 1_152
        begin, end = (round(at_s * rate) for at_s in sound_s)
        sound = (8_000 * tone(max(sound_s[1], 0.1), rate)[:, 0]).astype(np.int16)
        at = begin
        for picture in range(max(1, round(video_s * 25))):
            if video is not None:
                frame = av.VideoFrame(32, 32, "yuv420p")
                frame.pts = picture
                container.mux(video.encode(frame))
            limit = end if not video_s else min(end, (picture + 1) * rate // 25)
            while audio is not None and at + n_frames <= limit:
                piece = sound[at : at + n_frames][None]
                block = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                block.sample_rate, block.pts = rate, at
                container.mux(audio.encode(block))
                at += n_frames
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode(None))
    return file.getvalue()


def paced(body: bytes, seconds: float) -> Respond:
    """Send a body bit by bit; a busy machine makes single bits late, and not all of it slower."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        n_pieces = round(seconds * 20)
        size = len(body) // n_pieces + 1
        send(handler, b"")
        began_s = time.monotonic()
        for number, start in enumerate(range(0, len(body), size), start=1):
            handler.wfile.write(body[start : start + size])
            time.sleep(max(0.0, began_s + number / 20 - time.monotonic()))

    return respond
