"""The action `mqtt`: alerts and live sensors on a broker, with Home Assistant discovery.

Alerts come through the outbox. Sensor states are not alerts: they show what is heard now, are
retained, and are published again after every connection and every start of Home Assistant.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from ast_stream.alerts.actions.base import (
    Delivered,
    Failed,
    Notification,
    Outcome,
    read_secret,
)
from ast_stream.alerts.actions.home_assistant import (
    NOTHING,
    OFFLINE,
    ONLINE,
    Topics,
    Watched,
    discovery_messages,
    removal_messages,
)
from ast_stream.alerts.actions.tls import connection_words, trust
from ast_stream.errors import StartupError
from ast_stream.labels import slug
from ast_stream.settings.alert_schema import MqttAction

if TYPE_CHECKING:  # an extra, which may not be there
    from paho.mqtt.client import Client

KEEPALIVE_S = 30
SETTLE_AFTER = 3  # health messages; an event that lasts is updated each second, so it is quiet
MAX_QUEUED = 1000
_RECONNECT_S = (1, 60)
_NOT_IN_NODES = re.compile(r"[^a-zA-Z0-9_-]")
_ATTRIBUTES = ("id", "label", "score", "peak", "onset", "offset", "reason")

logger = logging.getLogger(__name__)


class MqttRunner:
    """Publishes to one broker; connects, and connects again, in the background.

    Raises:
        StartupError: the library is missing, or the password or certificates cannot be read.
    """

    def __init__(self, name: str, settings: MqttAction, watched: Watched = NOTHING) -> None:
        self._settings = settings
        self._topics = Topics(settings.base_topic, settings.node or host_node())
        self._lock = threading.RLock()
        self._connected = threading.Event()
        self._watched = _with_own_classes(watched, settings)
        self._retained: dict[str, str] = {}  # states by topic
        self._sounding: dict[tuple[str, str], set[str]] = {}  # ids of open events
        self._health_seen: dict[str, int] = {}
        self._trouble: str | None = None  # why there is no connection
        self._client = new_client(name, settings)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = lambda *_: self._note_trouble(_current_words())
        self._client.on_disconnect = lambda *_: self._connected.clear()
        self._client.on_message = self._on_message
        self._client.will_set(self._topics.availability, OFFLINE, qos=1, retain=True)
        self._client.connect_async(settings.host, settings.port, KEEPALIVE_S)
        self._client.loop_start()

    def deliver(self, notification: Notification) -> Outcome:
        """Publish one alert and wait until the broker has it."""
        if not self._connected.wait(self._settings.timeout_s):
            why = f": {self._trouble}" if self._trouble else ""
            return Failed(f"no connection to {self._place}{why}", is_down=True)
        payload = {"event_type": notification.kind, **notification.to_json()}
        payload |= {"title": notification.title, "text": notification.text}
        topic = self._topics.event(notification.rule)
        sent = self._client.publish(topic, json.dumps(payload), qos=1, retain=False)
        try:
            sent.wait_for_publish(self._settings.timeout_s)
        except (ValueError, RuntimeError) as error:
            return Failed(f"the broker did not take it: {error}", is_down=True)
        if not sent.is_published():
            text = f"the broker did not confirm within {self._settings.timeout_s:g} s"
            return Failed(text, is_down=True)
        return Delivered()

    def watch(self, watched: Watched) -> None:
        """Show other streams, classes and rules from now on."""
        with self._lock:
            before, self._watched = self._watched, _with_own_classes(watched, self._settings)
            if self._connected.is_set() and before != self._watched:
                self._announce(before)

    def hear_event(self, body: dict[str, Any]) -> None:
        """Take an event message of the feed: it may switch a sensor."""
        stream, name = body["stream"], body["class"]
        with self._lock:
            if not self._is_watched(stream, name):
                return
            sounding = self._sounding.setdefault((stream, name), set())
            if body["type"] == "end":
                sounding.discard(body["id"])
            else:
                sounding.add(body["id"])
            attributes = {key: body.get(key) for key in _ATTRIBUTES}
            if body["type"] != "update":
                self._show(self._topics.attributes(stream, name), json.dumps(attributes))
            self._show(self._topics.sensor(stream, name), "ON" if sounding else "OFF")

    def hear_health(self, body: dict[str, Any]) -> None:
        """Take a health message of the feed: whether the stream has sound."""
        stream = body["stream"]
        with self._lock:
            if stream not in self._watched.streams:
                return
            is_there = body["state"] != "missing"
            self._show(self._topics.stream(stream), ONLINE if is_there else OFFLINE)
            seen = self._health_seen.get(stream, 0) + 1
            self._health_seen[stream] = seen
            if seen >= SETTLE_AFTER:
                for label in self._watched.classes:
                    topic = self._topics.sensor(stream, slug(label))
                    if topic not in self._retained:
                        self._show(topic, "OFF")

    def close(self) -> None:
        """Say goodbye, so that the broker need not send the last will, and disconnect."""
        if self._connected.is_set():
            sent = self._client.publish(self._topics.availability, OFFLINE, qos=1, retain=True)
            try:
                sent.wait_for_publish(1.0)
            except (ValueError, RuntimeError) as error:
                logger.debug("no goodbye to %s: %s", self._settings.host, error)
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def _place(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    def _note_trouble(self, why: str) -> None:
        """Remember why there is no connection, and say it once."""
        if why != self._trouble:
            self._trouble = why
            logger.error("no connection to the broker %s: %s", self._place, why)

    def _is_watched(self, stream: str, class_slug: str) -> bool:
        return stream in self._watched.streams and any(
            slug(label) == class_slug for label in self._watched.classes
        )

    def _show(self, topic: str, payload: str) -> None:
        if self._retained.get(topic) == payload:
            return
        self._retained[topic] = payload
        if self._connected.is_set():
            self._client.publish(topic, payload, qos=1, retain=True)

    def _announce(self, before: Watched = NOTHING) -> None:
        """Publish what there is, that it is there, and its states."""
        prefix = self._settings.discovery_prefix
        if prefix is not None:
            self._discover(discovery_messages(self._topics, prefix, self._watched, before))
        self._client.publish(self._topics.availability, ONLINE, qos=1, retain=True)
        for topic, state in self._retained.items():
            self._client.publish(topic, state, qos=1, retain=True)

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: Any, _: Any) -> None:
        if reason.is_failure:
            self._note_trouble(f"refused: {str(reason).lower()}")
            return
        self._trouble = None
        with self._lock:
            self._connected.set()
            if (prefix := self._settings.discovery_prefix) is not None:
                # first, so that what an earlier run announced comes before it is overwritten
                client.subscribe([(f"{prefix}/device/+/config", 1), (f"{prefix}/status", 1)])
            self._announce()

    def _on_message(self, client: Client, data: Any, message: Any) -> None:
        """Announce again when Home Assistant has started; take back what is shown no more."""
        prefix = self._settings.discovery_prefix or ""
        with self._lock:
            if message.topic != f"{prefix}/status":
                if message.retain:
                    told = (self._watched, message.topic, message.payload)
                    self._discover(removal_messages(self._topics, prefix, *told))
            elif message.payload == ONLINE.encode() and not message.retain:
                self._announce()

    def _discover(self, messages: list[tuple[str, dict[str, Any] | None]]) -> None:
        for topic, payload in messages:
            text = "" if payload is None else json.dumps(payload)
            self._client.publish(topic, text, qos=1, retain=True)


def host_node() -> str:
    """Return this machine's name as a part of topics: several may share a broker."""
    return _NOT_IN_NODES.sub("-", socket.gethostname())[:63] or "ast-stream"


def _with_own_classes(watched: Watched, settings: MqttAction) -> Watched:
    by_slug = {slug(label): label for label in (*settings.classes, *watched.classes)}
    return Watched(watched.streams, tuple(by_slug.values()), watched.rules)


def new_client(name: str, settings: MqttAction) -> Client:
    """Return a client that is not connected yet.

    Raises:
        StartupError: the library is missing, or the password or certificates cannot be read.
    """
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise StartupError(
            f"action {name}: paho-mqtt is not installed: pip install 'ast-stream[notify]'"
        ) from error
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(MAX_QUEUED)
    client.reconnect_delay_set(*_RECONNECT_S)
    if settings.username is not None:
        what = f"action {name}"
        password = read_secret(what, settings.password_file, settings.password_env)
        client.username_pw_set(settings.username, password)
    if settings.tls:
        client.tls_set_context(trust(name, settings.ca_file))
    return client


def _current_words() -> str:
    """Return why the connection failed; the library calls back while it handles the error."""
    error = sys.exception()
    return "unknown" if not isinstance(error, Exception) else connection_words(error)
