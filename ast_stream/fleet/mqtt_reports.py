"""Reads the reports of boxes from an MQTT broker, which retains the newest of each box."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ast_stream.errors import StartupError, WireError
from ast_stream.fleet.buckets import MAX_BOXES, BucketEntry
from ast_stream.fleet.rollout import KnownBox, known_boxes
from ast_stream.labels import is_stream_name
from ast_stream.messages.codec import decode_json
from ast_stream.messages.fleet import MAX_REPORT_BYTES
from ast_stream.runtime.credentials import connection_error
from ast_stream.runtime.mqtt import QOS, new_client, protocol_5, reason_in_words
from ast_stream.settings.section import MqttBroker
from ast_stream.units import NS_PER_SECOND

_KEEPALIVE_S = 20
_QUIET_S = 0.5  # without a message: all retained messages have arrived
_STATUS = "status"


class MqttReports:
    """Subscribes, and keeps the newest report of each box.

    Args:
        broker: to connect to.
        prefix: of the topics.
        timeout_s: for connecting.
        wall_ns: the wall clock of this machine.

    Raises:
        StartupError: the library is missing, a secret cannot be read, or connecting failed.
    """

    def __init__(
        self,
        broker: MqttBroker,
        prefix: str,
        timeout_s: float,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._topic = f"{prefix}/+/+/{_STATUS}"
        self._n_prefix = len(prefix.split("/"))
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._bodies: dict[str, bytes] = {}
        self._is_subscribed = threading.Event()
        self._refusal: str | None = None
        self._heard_s = time.monotonic()
        self._client = new_client("fleet status", "fleet", broker, protocol=protocol_5())
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        what = broker.described
        try:
            self._client.connect(broker.host, broker.port, _KEEPALIVE_S)
        except Exception as error:  # of the network, or of TLS
            raise StartupError(f"{what}: {connection_error(error)}") from error
        self._client.loop_start()
        if not self._is_subscribed.wait(timeout_s) or self._refusal is not None:
            self.close()
            raise StartupError(f"{what}: {self._refusal or f'no answer within {timeout_s:g} s'}")

    def close(self) -> None:
        """Disconnect."""
        with suppress(Exception):
            self._client.disconnect()
        self._client.loop_stop()

    def read(self) -> tuple[dict[str, KnownBox], set[str]]:
        """Return the boxes by key, and the keys of those that the broker reports as offline."""
        while time.monotonic() - self._heard_s < _QUIET_S:
            time.sleep(_QUIET_S / 10)
        with self._lock:
            bodies = dict(self._bodies)
        offline: set[str] = set()
        entries = []
        for key, body in bodies.items():
            if _is_offline(body):
                offline.add(key)
            else:
                entries.append(BucketEntry(key, body, 0))
        boxes = known_boxes(entries)
        return {key: self._aged(box) for key, box in boxes.items()}, offline

    def _aged(self, box: KnownBox) -> KnownBox:
        """Return a box with the age of its report, computed from the report's own time."""
        if box.report is None:
            return box
        right_ns = box.report.time_ns + round((box.report.clock.offset_s or 0.0) * NS_PER_SECOND)
        age_s = max(0.0, (self._wall_ns() - right_ns) / NS_PER_SECOND)
        return KnownBox(box.key, box.report, age_s)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, _: Any) -> None:
        if reason.is_failure:
            self._refuse(f"the broker refuses the connection: {reason_in_words(reason)}")
        else:
            client.subscribe(self._topic, QOS)

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: Any, _: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse(f"the broker refuses {self._topic}: {reason_in_words(reasons[0])}")
        self._heard_s = time.monotonic()
        self._is_subscribed.set()

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        self._is_subscribed.set()

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        self._heard_s = time.monotonic()
        parts = str(message.topic).split("/")[self._n_prefix :]
        if len(parts) != 3 or not all(map(is_stream_name, parts[:2])):
            return
        key = ".".join(parts[:2])
        with self._lock:
            if not message.payload:  # the retained message was deleted
                self._bodies.pop(key, None)
            elif key in self._bodies or len(self._bodies) < MAX_BOXES:
                self._bodies[key] = bytes(message.payload[: MAX_REPORT_BYTES + 1])


def _is_offline(body: bytes) -> bool:
    try:
        return decode_json(body, "box report", MAX_REPORT_BYTES).get("online") is False
    except WireError:
        return False
