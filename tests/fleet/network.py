"""The network between a box and the centre, which can be cut: a namespace, or a proxy."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_numbers = itertools.count(1)


class Link(Protocol):
    """What a box reaches the centre by."""

    def address(self, port: int) -> tuple[str, int]:
        """Return host and port of a server of the centre as the box sees it."""

    @property
    def prefix(self) -> list[str]:
        """What a command of the box begins with."""

    @property
    def n_bytes(self) -> int:
        """Bytes that went over it in both directions, with all headers that can be seen."""

    def cut(self) -> None:
        """Pass nothing on until `mend`."""

    def mend(self) -> None:
        """Pass on again."""

    def close(self) -> None:
        """Remove it."""


class Network(Protocol):
    """Makes links to one centre."""

    host: str

    def link(self) -> Link:
        """Return another one."""

    def close(self) -> None:
        """Remove it and its links."""


def network() -> Network:
    """Return namespaces where root and the kernel permit them, else proxies."""
    if os.geteuid() == 0 and shutil.which("ip") is not None:
        with suppress(subprocess.CalledProcessError):
            return Namespaces()
    return Proxies()


class Namespaces:
    """A bridge, and a namespace with a veth pair for each box: a cut loses packets, and no more."""

    def __init__(self) -> None:
        number = os.getpid() * 100 + next(_numbers)
        self._tag = f"{number % 1_000_000:06}"
        self._subnet = f"10.{200 + number % 50}.{number // 50 % 250}"
        self.host = f"{self._subnet}.1"
        self._links: list[_NamespaceLink] = []
        try:
            _ip("link", "add", f"fb{self._tag}", "type", "bridge")
            _ip("address", "add", f"{self.host}/24", "dev", f"fb{self._tag}")
            _ip("link", "set", f"fb{self._tag}", "up")
            self.link().close()  # whether namespaces can be had, too
        except subprocess.CalledProcessError:
            self.close()
            raise

    def link(self) -> Link:
        n = len(self._links)
        link = _NamespaceLink(f"{self._tag}{n}", f"fb{self._tag}", self._subnet, n + 2)
        self._links.append(link)
        return link

    def close(self) -> None:
        for link in self._links:
            link.close()
        with suppress(subprocess.CalledProcessError):
            _ip("link", "delete", f"fb{self._tag}")


class _NamespaceLink:
    def __init__(self, tag: str, bridge: str, subnet: str, host: int) -> None:
        self._name = f"fleet{tag}"
        self._outer = f"fo{tag}"
        self._centre = f"{subnet}.1"
        inner = f"fi{tag}"
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", self._name)
            _ip("link", "set", self._outer, "master", bridge, "up")
            _ip("-n", self._name, "address", "add", f"{subnet}.{host}/24", "dev", inner)
            _ip("-n", self._name, "link", "set", inner, "up")
            _ip("-n", self._name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    def address(self, port: int) -> tuple[str, int]:
        return self._centre, port

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self._name]

    @property
    def n_bytes(self) -> int:
        folder = Path("/sys/class/net") / self._outer / "statistics"
        return sum(int((folder / f"{way}_bytes").read_text()) for way in ("rx", "tx"))

    def cut(self) -> None:
        _ip("link", "set", self._outer, "down")

    def mend(self) -> None:
        _ip("link", "set", self._outer, "up")

    def close(self) -> None:
        for command in (("netns", "delete", self._name), ("link", "delete", self._outer)):
            with suppress(subprocess.CalledProcessError):
                _ip(*command)


class Proxies:
    """A proxy for each server of the centre, and a set of them for each box."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._links: list[_ProxyLink] = []

    def link(self) -> Link:
        self._links.append(_ProxyLink())
        return self._links[-1]

    def close(self) -> None:
        for link in self._links:
            link.close()


class _ProxyLink:
    """Proxies of one box; what is connected when it is cut stays so, and silent."""

    prefix: list[str]

    def __init__(self) -> None:
        self.prefix = []
        self.n_bytes = 0
        self._passes = threading.Event()
        self._passes.set()
        self._lock = threading.Lock()
        self._servers: dict[int, socket.socket] = {}
        self._open: set[socket.socket] = set()

    def address(self, port: int) -> tuple[str, int]:
        if port not in self._servers:
            server = self._servers[port] = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=self._accept, args=(server, port), daemon=True).start()
        return "127.0.0.1", self._servers[port].getsockname()[1]

    def cut(self) -> None:
        self._passes.clear()

    def mend(self) -> None:
        """Pass on again; connections of before are gone, as after a long cut."""
        self._hang_up()
        self._passes.set()

    def close(self) -> None:
        for server in self._servers.values():
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        self._hang_up()
        self._passes.set()

    def _hang_up(self) -> None:
        with self._lock:
            found, self._open = self._open, set()
        for connection in found:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket, port: int) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = server.accept()
                threading.Thread(target=self._connect, args=(near, port), daemon=True).start()

    def _connect(self, near: socket.socket, port: int) -> None:
        self._passes.wait()
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as far:
            with self._lock:
                self._open |= {near, far}
            back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
            back.start()
            self._copy(near, far)
            back.join()
            with self._lock:
                self._open -= {near, far}

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self._passes.wait()
                self.n_bytes += len(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
