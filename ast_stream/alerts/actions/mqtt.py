"""The action `mqtt`: alerts and live sensors on a broker, with Home Assistant discovery.

Alerts come through the outbox. Sensor states are not alerts: they show what is detected now, are
retained, and are published again after every connection and every start of Home Assistant.

There is one retained discovery message for each device: a stream with a binary sensor for each
class, and the alerts with an event entity for each rule. Event payloads are not retained, for Home
Assistant ignores retained ones. Source: Home Assistant, MQTT integration (device-based discovery).
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ast_stream.alerts.actions.base import (
    NO_ENTITIES,
    ActionRunner,
    Delivered,
    Entities,
    Failed,
    Outcome,
)
from ast_stream.alerts.notification import Notification
from ast_stream.labels import slug
from ast_stream.messages.event import EventMessage
from ast_stream.messages.status import Health
from ast_stream.runtime import mqtt
from ast_stream.runtime.mqtt import current_error
from ast_stream.settings.alerts import MqttAction
from ast_stream.version import __version__

if TYPE_CHECKING:  # an extra, which may not be there
    from paho.mqtt.client import Client

ONLINE, OFFLINE = "online", "offline"
EVENT_TYPES = ("firing", "resolved")
KEEPALIVE_S = 30
SETTLE_AFTER = 3  # health messages; an event that lasts is updated each second, so it is quiet
MAX_QUEUED = 1000
_RECONNECT_S = (1, 60)
_NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")
_ATTRIBUTES = {"id", "label", "score", "peak", "onset_ns", "offset_ns", "reason"}

Device = dict[str, Any]
"""The discovery message of a device: its components by their ids, and what holds for all."""

NO_DEVICE: Device = {"components": {}}

logger = logging.getLogger(__name__)


class MqttRunner(ActionRunner):
    """Publishes to one broker; connects, and connects again, in the background.

    Raises:
        StartupError: the library is missing, or the password or certificates cannot be read.
    """

    needs_rules: ClassVar[bool] = False
    _settings: MqttAction

    def __init__(self, name: str, settings: MqttAction, entities: Entities = NO_ENTITIES) -> None:
        super().__init__(name, settings)
        self._topics = Topics(settings.base_topic, settings.node or host_node())
        self._lock = threading.RLock()
        self._connected = threading.Event()
        self._entities = _with_own_classes(entities, settings)
        self._retained: dict[str, str] = {}  # states by topic
        self._open_events: dict[tuple[str, str], set[str]] = {}  # ids of open events
        self._health_seen: dict[str, int] = {}
        self._connection_error: str | None = None  # why there is no connection
        self._client = new_client(name, settings)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = lambda *_: self._note_connection_error(current_error())
        self._client.on_disconnect = lambda *_: self._connected.clear()
        self._client.on_message = self._on_message
        self._client.will_set(self._topics.availability, OFFLINE, qos=1, retain=True)
        self._client.connect_async(settings.host, settings.port, KEEPALIVE_S)
        self._client.loop_start()

    @classmethod
    def create(
        cls, name: str, settings: MqttAction, entities: Entities = NO_ENTITIES
    ) -> MqttRunner:
        """Return a runner that is connecting."""
        return cls(name, settings, entities)

    @classmethod
    def check(cls, name: str, settings: MqttAction) -> None:
        """Create a client without connecting it."""
        new_client(name, settings)

    def deliver(self, notification: Notification) -> Outcome:
        """Publish one alert and wait until the broker has it."""
        if not self._connected.wait(self._settings.timeout_s):
            why = f": {self._connection_error}" if self._connection_error else ""
            return Failed(f"no connection to {self._settings.place}{why}", is_down=True)
        payload = {"event_type": notification.kind, **notification.to_json()}
        payload |= {"title": notification.title, "text": notification.text}
        topic = self._topics.event(notification.alert.rule)
        sent = self._client.publish(topic, json.dumps(payload), qos=1, retain=False)
        try:
            sent.wait_for_publish(self._settings.timeout_s)
        except (ValueError, RuntimeError) as error:
            return Failed(f"the broker did not take it: {error}", is_down=True)
        if not sent.is_published():
            text = f"the broker did not confirm within {self._settings.timeout_s:g} s"
            return Failed(text, is_down=True)
        return Delivered()

    def expose(self, entities: Entities) -> None:
        """Show other streams, classes and rules from now on."""
        with self._lock:
            before, self._entities = self._entities, _with_own_classes(entities, self._settings)
            if self._connected.is_set() and before != self._entities:
                self._announce(before)

    def on_event(self, event: EventMessage) -> None:
        """Process an event message of the feed: it may switch a sensor."""
        stream, name = event.stream, event.class_
        with self._lock:
            if not self._is_exposed(stream, name):
                return
            open_events = self._open_events.setdefault((stream, name), set())
            if event.type == "end":
                open_events.discard(event.id)
            else:
                open_events.add(event.id)
            if event.type != "update":
                attributes = event.model_dump(by_alias=True, include=_ATTRIBUTES)
                self._publish_state(self._topics.attributes(stream, name), json.dumps(attributes))
            self._publish_state(self._topics.sensor(stream, name), "ON" if open_events else "OFF")

    def on_health(self, health: Health) -> None:
        """Process a health message of the feed: whether the stream has sound."""
        stream = health.stream
        with self._lock:
            if stream not in self._entities.streams:
                return
            is_there = health.state != "missing"
            self._publish_state(self._topics.stream(stream), ONLINE if is_there else OFFLINE)
            seen = self._health_seen.get(stream, 0) + 1
            self._health_seen[stream] = seen
            if seen >= SETTLE_AFTER:
                for label in self._entities.classes:
                    topic = self._topics.sensor(stream, slug(label))
                    if topic not in self._retained:
                        self._publish_state(topic, "OFF")

    def close(self) -> None:
        """Publish `offline`, so that the broker need not send the last will, and disconnect."""
        if self._connected.is_set():
            sent = self._client.publish(self._topics.availability, OFFLINE, qos=1, retain=True)
            try:
                sent.wait_for_publish(1.0)
            except (ValueError, RuntimeError) as error:
                logger.debug("no goodbye to %s: %s", self._settings.host, error)
        self._client.disconnect()
        self._client.loop_stop()

    def _note_connection_error(self, why: str) -> None:
        """Remember why there is no connection, and say it once."""
        if why != self._connection_error:
            self._connection_error = why
            logger.error("no connection to the broker %s: %s", self._settings.place, why)

    def _is_exposed(self, stream: str, class_slug: str) -> bool:
        return stream in self._entities.streams and any(
            slug(label) == class_slug for label in self._entities.classes
        )

    def _publish_state(self, topic: str, payload: str) -> None:
        if self._retained.get(topic) == payload:
            return
        self._retained[topic] = payload
        if self._connected.is_set():
            self._client.publish(topic, payload, qos=1, retain=True)

    def _announce(self, before: Entities = NO_ENTITIES) -> None:
        """Publish discovery, availability and the states of all entities."""
        announced = self._discovery(before)
        for topic, device in (dict.fromkeys(announced) | self._discovery(self._entities)).items():
            self._publish_device(topic, update_of(device, announced.get(topic, NO_DEVICE)))
        self._client.publish(self._topics.availability, ONLINE, qos=1, retain=True)
        for topic, state in self._retained.items():
            self._client.publish(topic, state, qos=1, retain=True)

    def _discovery(self, entities: Entities) -> dict[str, Device]:
        prefix = self._settings.discovery_prefix
        return {} if prefix is None else discovery(self._topics, prefix, entities)

    def _publish_device(self, topic: str, device: Device | None) -> None:
        text = "" if device is None else json.dumps(device)
        self._client.publish(topic, text, qos=1, retain=True)

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: Any, _: Any) -> None:
        if reason.is_failure:
            self._note_connection_error(f"refused: {str(reason).lower()}")
            return
        self._connection_error = None
        with self._lock:
            self._connected.set()
            if (prefix := self._settings.discovery_prefix) is not None:
                # first, so that what an earlier run announced comes before it is overwritten
                client.subscribe([(f"{prefix}/device/+/config", 1), (f"{prefix}/status", 1)])
            self._announce()

    def _on_message(self, client: Client, data: Any, message: Any) -> None:
        """Announce again when Home Assistant has started; take back what is shown no more."""
        with self._lock:
            if message.topic == f"{self._settings.discovery_prefix}/status":
                if message.payload == ONLINE.encode() and not message.retain:
                    self._announce()
            elif message.retain and (before := announced_before(self._topics, message.payload)):
                device = self._discovery(self._entities).get(message.topic)
                if (update := update_of(device, before)) is None or update != device:
                    self._publish_device(message.topic, update)


def host_node() -> str:
    """Return this machine's name as a part of topics: several may share a broker."""
    return _NOT_IN_IDS.sub("-", socket.gethostname())[:63] or "ast-stream"


def _with_own_classes(entities: Entities, settings: MqttAction) -> Entities:
    by_slug = {slug(label): label for label in (*settings.classes, *entities.classes)}
    return Entities(entities.streams, tuple(by_slug.values()), entities.rules)


def new_client(name: str, settings: MqttAction) -> Client:
    """Return a client that is not connected yet.

    Raises:
        StartupError: the library is missing, or the password or certificates cannot be read.
    """
    client = mqtt.new_client(f"action {name}", "notify", settings)
    client.max_queued_messages_set(MAX_QUEUED)
    client.reconnect_delay_set(*_RECONNECT_S)
    return client


@dataclass(frozen=True)
class Topics:
    """Names of the topics below one base."""

    base: str
    node: str

    @property
    def availability(self) -> str:
        """`online` or `offline`: the alerts process."""
        return f"{self.base}/{self.node}/status"

    def stream(self, stream: str) -> str:
        """`online` or `offline`: sound of a stream."""
        return f"{self.base}/{self.node}/{stream}/status"

    def sensor(self, stream: str, class_slug: str) -> str:
        """`ON` while an event of the class is open on the stream, else `OFF`."""
        return f"{self.base}/{self.node}/{stream}/{class_slug}/state"

    def attributes(self, stream: str, class_slug: str) -> str:
        """The last event of the class, as JSON."""
        return f"{self.base}/{self.node}/{stream}/{class_slug}/attributes"

    def event(self, rule: str) -> str:
        """An alert that fires or is resolved, as JSON."""
        return f"{self.base}/{self.node}/alerts/{object_id(rule)}"


def object_id(*names: str) -> str:
    """Return an id of the characters that Home Assistant allows."""
    return "_".join(_NOT_IN_IDS.sub("_", name) for name in names)


def discovery(topics: Topics, prefix: str, entities: Entities) -> dict[str, Device]:
    """Return every device to announce, by topic: streams with their classes, and the alerts."""
    devices = {}
    for stream in entities.streams if entities.classes else ():
        device = object_id(topics.node, "stream", stream)
        sensors = {
            slug(label): _sensor(topics, device, stream, label) for label in entities.classes
        }
        devices[device] = _device(device, f"Sounds on {stream}", sensors)
    if entities.rules:
        device = object_id(topics.node, "alerts")
        events = {object_id(rule): _event(topics, device, rule) for rule in entities.rules}
        devices[device] = _device(device, "Sound alerts", events)
    return {f"{prefix}/device/{device}/config": payload for device, payload in devices.items()}


def update_of(device: Device | None, before: Device) -> Device | None:
    """Return what turns a device into another; None removes it.

    Components that are gone are named without content, as Home Assistant wants it.
    """
    if device is None:
        return None
    there = device["components"]
    gone = {
        name: {"platform": component["platform"]}
        for name, component in before["components"].items()
        if name not in there
    }
    return device | {"components": there | gone}


def announced_before(topics: Topics, retained: bytes) -> Device | None:
    """Return the device that an earlier run of ours announced; None: it is another program's.

    Args:
        retained: what the broker has at a discovery topic.
    """
    try:
        components = dict(json.loads(retained)["components"])
        there = {
            name: {"platform": component["platform"], "state_topic": component["state_topic"]}
            for name, component in components.items()
            if "state_topic" in component
        }
        ours = f"{topics.base}/{topics.node}/"
        if any(component["state_topic"].startswith(ours) for component in there.values()):
            return {"components": there}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # it may have any format
    return None


def _device(device: str, name: str, components: dict[str, dict[str, Any]]) -> Device:
    return {
        "device": {"identifiers": [device], "name": name, "manufacturer": "ast-stream"},
        "origin": {"name": "ast-stream", "sw_version": __version__},
        "components": components,
        "qos": 1,
    }


def _sensor(topics: Topics, device: str, stream: str, label: str) -> dict[str, Any]:
    name = slug(label)
    return {
        "platform": "binary_sensor",
        "unique_id": object_id(device, name),
        "name": label,
        "device_class": "sound",
        "state_topic": topics.sensor(stream, name),
        "json_attributes_topic": topics.attributes(stream, name),
        # a dead daemon or a missing microphone is not the same as quiet
        "availability": [{"topic": topics.availability}, {"topic": topics.stream(stream)}],
        "availability_mode": "all",
    }


def _event(topics: Topics, device: str, rule: str) -> dict[str, Any]:
    return {
        "platform": "event",
        "unique_id": object_id(device, rule),
        "name": rule.replace("_", " "),
        "state_topic": topics.event(rule),
        "event_types": list(EVENT_TYPES),
        "availability": [{"topic": topics.availability}],
    }


RUNNER = MqttRunner
