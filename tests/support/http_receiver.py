"""An HTTP server that answers as scripted and keeps what it got."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG, DRIP, GARBAGE = "hang", "drip", "garbage"
SLOW_BODY, HUGE_BODY = "slow body", "huge body"  # after a good status and its headers
Script = int | str | tuple[int, dict[str, str]]


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.raw)
        return decoded

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class HttpReceiver:
    """Answers `script` in order, then 204.

    Attributes:
        by_content: answers to requests that contain something, whenever these come.
    """

    url: str = ""
    script: list[Script] = field(default_factory=list)
    by_content: dict[bytes, Script] = field(default_factory=dict)
    got: list[Received] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)

    @property
    def ids(self) -> list[str]:
        return [request.id for request in self.got]


@contextmanager
def http_receiver(*script: Script, tls: ssl.SSLContext | None = None) -> Iterator[HttpReceiver]:
    """Yield a server on loopback; with `tls` it speaks nothing else."""
    receiver = HttpReceiver(script=list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            n_bytes = int(self.headers["Content-Length"])
            raw = self.rfile.read(n_bytes)
            if len(raw) < n_bytes:
                return  # the client died in mid-request: nothing was received
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append(Received(self.path, headers, raw))
            for content, answer in receiver.by_content.items():
                if content in raw:
                    return self._answer(answer)
            self._answer(receiver.script.pop(0) if receiver.script else 204)

        def _answer(self, what: Script) -> None:
            if what == HANG:
                receiver.let_go.wait()  # until the end: whoever asks gives up
            elif what == DRIP:
                while not receiver.let_go.wait(0.05):
                    self.wfile.write(b"H")
            elif what == GARBAGE:
                self.wfile.write(b"\x1b[31mgarbage\r\n\r\n")
            elif what in (SLOW_BODY, HUGE_BODY):
                self.send_response(200)
                self.send_header("Content-Length", str(1 << 40))
                self.end_headers()
                while not receiver.let_go.wait(0.05 if what == SLOW_BODY else 0):
                    self.wfile.write(b"x" * (1 if what == SLOW_BODY else 1 << 20))
            else:
                status, headers = what if isinstance(what, tuple) else (int(what), {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that gave up is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    scheme = "http" if tls is None else "https"
    receiver.url = f"{scheme}://127.0.0.1:{server.server_port}/hook?x=1"
    try:
        yield receiver
    finally:
        receiver.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()
