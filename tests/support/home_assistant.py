"""What Home Assistant accepts as device-based discovery, and what it refuses.

Source: home-assistant/core, components/mqtt/{schemas,discovery,binary_sensor,event}.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Topic = Annotated[str, Field(pattern=r"^[^+#\x00]{1,512}$")]
_DISCOVERY_TOPIC = re.compile(r"homeassistant/device/[a-zA-Z0-9_-]+/config")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Device(_Strict):
    identifiers: list[str] = Field(min_length=1)
    name: str
    manufacturer: str | None = None


class Origin(_Strict):
    name: str
    sw_version: str | None = None


class Availability(_Strict):
    topic: Topic


class Entity(_Strict):
    # platform alone says that the component is gone; one that is there needs the rest
    unique_id: str
    name: str
    state_topic: Topic
    availability: list[Availability]
    availability_mode: Literal["all", "any", "latest"] = "latest"
    json_attributes_topic: Topic | None = None


class BinarySensor(Entity):
    platform: Literal["binary_sensor"]
    device_class: Literal["sound"]


class Event(Entity):
    platform: Literal["event"]
    event_types: list[str] = Field(min_length=1)


class Removed(_Strict):
    platform: Literal["binary_sensor", "event"]


class Discovery(_Strict):
    device: Device
    origin: Origin
    components: dict[str, BinarySensor | Event | Removed]
    qos: Literal[0, 1, 2]


def check_discovery(topic: str, payload: str) -> None:
    """Raise unless Home Assistant would take it; an empty payload removes the device."""
    assert _DISCOVERY_TOPIC.fullmatch(topic), topic
    if not payload:
        return
    discovery = Discovery.model_validate_json(payload)
    there = [
        component
        for component in discovery.components.values()
        if not isinstance(component, Removed)
    ]
    ids = [component.unique_id for component in there]
    assert len(set(ids)) == len(ids)
