"""A cut network passes nothing on, and is there again afterwards."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from network import Namespaces, Network, Proxies

_ASK = """
import socket, sys
address = sys.argv[1], int(sys.argv[2])
with socket.create_connection(address, timeout=float(sys.argv[3])) as connection:
    connection.sendall(b"x")
    print(connection.recv(1).decode())
"""


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(100):
            self.request.sendall(data)


@contextmanager
def echo(host: str) -> Iterator[int]:
    with socketserver.ThreadingTCPServer((host, 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def namespaces() -> Network:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        return Namespaces()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs network namespaces")


@pytest.mark.parametrize("make", [namespaces, Proxies])
def test_cut_link_is_silent_until_it_is_mended(make: type[Proxies]) -> None:
    wires = make()
    try:
        link, other = wires.link(), wires.link()
        with echo(wires.host) as port:
            command = [*link.prefix, sys.executable, "-c", _ASK]
            host, at = link.address(port)

            def answer(patience_s: float) -> str:
                asked = [*command, host, str(at), str(patience_s)]
                return subprocess.run(asked, capture_output=True, text=True).stdout.strip()

            assert answer(60.0) == "x"
            link.cut()
            assert answer(1.0) == ""
            there, here = other.address(port)
            if not other.prefix:
                with socket.create_connection((there, here)) as connection:
                    connection.sendall(b"y")
                    assert connection.recv(1) == b"y"
            link.mend()
            assert answer(60.0) == "x"
            assert link.n_bytes > 0
    finally:
        wires.close()
