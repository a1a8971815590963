"""A real mosquitto on loopback, and a client that keeps what it gets."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

PATIENCE_S = 20.0
ANYBODY = "allow_anonymous true"
MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Broker:
    """A broker that can be killed and started again on the same port.

    Args:
        lines: of its configuration, besides where it listens and that anybody may come.
    """

    def __init__(self, folder: Path, *lines: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        own = (f"listener {self.port} 127.0.0.1", f"user {getpass.getuser()}")
        rights = () if any("allow_anonymous" in line for line in lines) else (ANYBODY,)
        self._config.write_text("\n".join((*own, *rights, *lines, "")))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers, "the broker")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


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
