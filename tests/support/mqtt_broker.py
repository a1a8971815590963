"""A real mosquitto on loopback, and a client that keeps what it gets."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from ports import free_ports
from server_process import ServerProcess

PATIENCE_S = 60.0
ANYBODY = "allow_anonymous true"
MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Forwarder:
    """Forwards connections on a port of its own to another one, until they are cut.

    Args:
        port: where the connections go.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut what is connected, without a goodbye; new connections are forwarded again."""
        connections, self._open = self._open, []
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join(PATIENCE_S)
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:  # the other side is down for a while
                    near.close()
                    continue
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    thread = threading.Thread(target=_copy, args=pair, daemon=True)
                    self._threads.append(thread)
                    thread.start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with source:
        with suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


class Broker(ServerProcess):
    """A broker that can be killed and started again on the same port.

    Args:
        lines: of its configuration, besides where it listens and that anybody may come.
        host: address that it listens at.
    """

    def __init__(self, folder: Path, *lines: str, host: str = "127.0.0.1") -> None:
        super().__init__(free_ports(), host)
        self._config = folder / "mosquitto.conf"
        own = (f"listener {self.port} {host}", f"user {getpass.getuser()}")
        rights = () if any("allow_anonymous" in line for line in lines) else (ANYBODY,)
        self._config.write_text("\n".join((*own, *rights, *lines, "")))

    def command(self) -> list[str]:
        assert MOSQUITTO is not None
        return [MOSQUITTO, "-c", str(self._config)]

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0


class Listener:
    """A client that keeps every message: topic, payload, and whether it was retained."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, str, bool]] = []
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE_S)

    def last(self, topic: str) -> str | None:
        """Return the last payload of a topic."""
        return next((text for name, text, _ in reversed(self.got) if name == topic), None)

    def count(self, topic: str) -> int:
        """Return how many messages a topic had."""
        return sum(name == topic for name, _, _ in self.got)

    def publish(self, topic: str, payload: str, retain: bool = False) -> None:
        """Publish, and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, *_: Any) -> None:
        client.subscribe("#", qos=1)

    def _on_message(self, client: Client, data: Any, message: Any) -> None:
        self.got.append((message.topic, message.payload.decode(), bool(message.retain)))


def password_file(folder: Path, name: str, password: str) -> Path:
    """Write a file of names and passwords as the broker wants it."""
    assert MOSQUITTO_PASSWD is not None
    path = folder / "passwords"
    subprocess.run([MOSQUITTO_PASSWD, "-b", "-c", str(path), name, password], check=True)
    return path


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fail naming `what` if it never does."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.01)


@contextmanager
def mqtt_broker(folder: Path, *lines: str) -> Iterator[Broker]:
    """Yield a broker that runs."""
    broker = Broker(folder, *lines)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@contextmanager
def listener(port: int) -> Iterator[Listener]:
    """Yield a client that has subscribed to everything."""
    client = Listener(port)
    try:
        yield client
    finally:
        client.close()
