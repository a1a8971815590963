"""What Home Assistant is told over MQTT: devices, binary sensors and event entities; pure.

One retained discovery message for each device: a stream with a binary sensor for each class, and
the alerts with an event entity for each rule. Event payloads are not retained: Home Assistant
ignores retained ones. Source: Home Assistant, MQTT integration (device-based discovery).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ast_stream.labels import slug
from ast_stream.version import __version__

ONLINE, OFFLINE = "online", "offline"
EVENT_TYPES = ("firing", "resolved")
_NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass(frozen=True)
class Watched:
    """What is shown: streams by classes as binary sensors, rules as events.

    Attributes:
        classes: labels as people read them.
    """

    streams: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


NOTHING = Watched()


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
        """`ON` while the class is heard on the stream, else `OFF`."""
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


def discovery_messages(
    topics: Topics, prefix: str, watched: Watched, before: Watched = NOTHING
) -> list[tuple[str, dict[str, Any] | None]]:
    """Return topic and payload of every device; a payload of None removes the device.

    Args:
        before: what was shown until now: components that are gone are named without content.
    """
    messages: list[tuple[str, dict[str, Any] | None]] = []
    for stream in dict.fromkeys((*watched.streams, *before.streams)):
        classes = watched.classes if stream in watched.streams else ()
        device = object_id(topics.node, "stream", stream)
        topic = f"{prefix}/device/{device}/config"
        if not classes:
            messages += [(topic, None)] if before.classes else []
            continue
        components = {slug(label): _sensor(topics, device, stream, label) for label in classes}
        for label in before.classes:
            components.setdefault(slug(label), {"platform": "binary_sensor"})
        messages.append((topic, _device(topics, device, f"Sounds on {stream}", components)))
    return messages + _alert_messages(topics, prefix, watched.rules, before.rules)


def removal_messages(
    topics: Topics, prefix: str, watched: Watched, topic: str, retained: bytes
) -> list[tuple[str, dict[str, Any] | None]]:
    """Return what takes back that of an earlier run which is shown no more, often nothing.

    Args:
        topic: a discovery topic, perhaps of others.
        retained: what the broker has there.
    """
    try:
        components = dict(json.loads(retained)["components"])
        there = {name: one["platform"] for name, one in components.items() if "state_topic" in one}
        ours = f"{topics.base}/{topics.node}/"
        if not any(components[name]["state_topic"].startswith(ours) for name in there):
            return []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # of others, who may have what they like
    wanted = dict(discovery_messages(topics, prefix, watched)).get(topic)
    if wanted is None:
        return [(topic, None)]
    gone = {name: {"platform": there[name]} for name in there if name not in wanted["components"]}
    return [(topic, wanted | {"components": wanted["components"] | gone})] if gone else []


def _alert_messages(
    topics: Topics, prefix: str, rules: Sequence[str], before: Sequence[str]
) -> list[tuple[str, dict[str, Any] | None]]:
    device = object_id(topics.node, "alerts")
    topic = f"{prefix}/device/{device}/config"
    if not rules:
        return [(topic, None)] if before else []
    components = {object_id(rule): _event(topics, device, rule) for rule in rules}
    for rule in before:
        components.setdefault(object_id(rule), {"platform": "event"})
    return [(topic, _device(topics, device, "Sound alerts", components))]


def _device(
    topics: Topics, device: str, name: str, components: dict[str, dict[str, Any]]
) -> dict[str, Any]:
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
