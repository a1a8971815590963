"""A network between two processes that a test can cut: TCP is forwarded, or nothing gets through.

A cut network is not a closed connection: what is under way gets lost, and neither side is told.
With `is_noticed` the connections are closed as well, as a router does that forgets them.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading


class CuttableNetwork:
    """Forwards connections to ports of this machine, at other ports of it.

    Args:
        ports: of this network, each with the port that it leads to.
    """

    def __init__(self, ports: dict[int, int]) -> None:
        self.bytes_sent = 0
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._is_cut = self._is_closing = False
        self._others: dict[socket.socket, socket.socket] = {}
        self._listening: dict[socket.socket, int] = {}
        for here, there in ports.items():
            listening = socket.create_server(("127.0.0.1", here))
            self._listening[listening] = there
            self._selector.register(listening, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self, *, is_noticed: bool = False) -> None:
        """Let nothing through from now on."""
        with self._lock:
            self._is_cut = True
            if is_noticed:
                self._drop_all()

    def mend(self) -> None:
        """Let new connections through; those that were cut are dead."""
        with self._lock:
            self._drop_all()
            self._is_cut = False

    def close(self) -> None:
        """End."""
        self._is_closing = True
        self._thread.join()
        with self._lock:
            self._drop_all()
            for listening in self._listening:
                listening.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._is_closing:
            ready = self._selector.select(0.05)
            with self._lock:
                for key, _ in ready:
                    self._serve(key.fileobj)  # type: ignore[arg-type]
            if self._is_cut:
                threading.Event().wait(0.02)

    def _serve(self, ready: socket.socket) -> None:
        if ready in self._listening:
            self._accept(ready)
            return
        other = self._others.get(ready)
        if other is None or self._is_cut:
            return
        try:
            data = ready.recv(65_536)
            if data:
                other.settimeout(1.0)
                other.sendall(data)
                self.bytes_sent += len(data)
        except OSError:
            data = b""
        if not data:
            self._drop(ready)

    def _accept(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        if self._is_cut:
            connection.close()
            return
        try:
            there = socket.create_connection(("127.0.0.1", self._listening[listening]), 1.0)
        except OSError:
            connection.close()
            return
        for one, other in ((connection, there), (there, connection)):
            self._others[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _drop(self, one: socket.socket) -> None:
        for end in (one, self._others.pop(one, None)):
            if end is not None:
                self._others.pop(end, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                end.close()

    def _drop_all(self) -> None:
        while self._others:
            self._drop(next(iter(self._others)))
