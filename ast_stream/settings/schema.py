"""The whole configuration: every section, and the settings that must fit each other.

Sections are frozen models beside this file, one file for each key; defaults are only there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ast_stream.labels import STREAM_NAME_RULE, did_you_mean, is_stream_name
from ast_stream.settings.alerts import AlertSettings
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.fleet import FleetSettings
from ast_stream.settings.fleet import misfits as fleet_misfits
from ast_stream.settings.forward import ForwardOutput
from ast_stream.settings.forward import misfits as forward_misfits
from ast_stream.settings.model import DEVICE, ModelSettings
from ast_stream.settings.pool import PoolSettings
from ast_stream.settings.recorder import RecorderSettings
from ast_stream.settings.retention import RetentionSettings
from ast_stream.settings.section import (
    FilePath,
    HostPort,
    Misfit,
    Section,
    refuse_misfits,
    unless_left_out,
)
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.transport import TransportSettings
from ast_stream.settings.web import WebSettings

RING_HOPS = 8  # `ring_s` at least: an unpaced source is up to a quarter of its ring ahead
PrivacyMode = Literal["off", "speech", "sensor"]
EACH_EVENT: Literal["each event"] = "each event"
MAX_SYNC_EVERY_S = 60  # of the event log; rings hold 90 s by default
_SYNC_EVERY = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,9})?) ?s\Z")


def _as_durability(value: Any) -> Any:
    """Return `each event`, or seconds: `1 s` as 1.0.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        if value.replace("_", " ") == EACH_EVENT:
            return EACH_EVENT
        seconds = _SYNC_EVERY.match(value)
        number = None if seconds is None else float(seconds[1])
    else:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or not 1 <= number <= MAX_SYNC_EVERY_S:
        text = f"expected 'each event', or 1 s to {MAX_SYNC_EVERY_S} s between two syncs"
        raise ValueError(f"{text}, got {value!r}")
    return float(number)


Durability = Annotated[
    Literal["each event"] | float,
    BeforeValidator(_as_durability),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["each event", "each_event"], "type": "string"},
                {"type": "string", "pattern": "^" + _SYNC_EVERY.pattern.replace(r"\Z", "$")},
                {"type": "number", "minimum": 1, "maximum": MAX_SYNC_EVERY_S},
            ]
        }
    ),
]


class WorkerSettings(Section):
    """One of several workers: its streams and its device."""

    streams: list[str] = Field(min_length=1, description="names of its streams")
    device: str | None = Field(
        default=None,
        pattern=DEVICE,
        description="auto, cpu, cuda or cuda:<number>; null: as model.device",
    )


class LoggingSettings(Section):
    """What is logged and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journald"] = "auto"


class MetricsSettings(Section):
    """Prometheus endpoints, one for each process, at consecutive ports."""

    listen: HostPort | None = Field(
        default=None,
        description="host:port of the worker, e.g. 127.0.0.1:9464; null: off",
    )


class Settings(Section):
    """The whole configuration; only `streams` has no default."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["streams"]}, {"required": ["pool"]}]}
    )
    version: Literal[1] = 1
    runtime_dir: FilePath | None = Field(
        default=None,
        description="folder of sockets and locks; null: $RUNTIME_DIRECTORY, else "
        "$XDG_RUNTIME_DIR/ast-stream, else a private temporary folder",
    )
    state_dir: FilePath = Field(
        default="/var/lib/ast-stream",
        description="folder of what must survive a restart: event log, coverage, alerts",
    )
    durability: Durability = Field(
        default=EACH_EVENT,
        description="when the event log is synced to disk. each event: before an event is sent, so "
        "that a power cut loses no sent message; a time, e.g. 1 s: before the begin of "
        "an event is sent, so that the event gets its end, and at least this often; a "
        "power cut may lose later updates, ends and gaps",
    )
    streams: list[StreamSettings] = Field(
        default_factory=list,
        description="at least one; none for a worker of a pool, whose streams come from boxes",
    )
    model: ModelSettings = ModelSettings()
    detection: DetectionSettings = DetectionSettings()
    transport: TransportSettings = TransportSettings()
    alerts: AlertSettings = AlertSettings()
    privacy: PrivacyMode = Field(
        default="off",
        description="who may get audio. off: every client with the right `audio`; speech: the same,"
        " but anything that may be speech is silenced; sensor: nobody",
    )
    recorder: RecorderSettings | None = Field(
        default=None, description="clips of events, and a history of them; null: nothing is kept"
    )
    retention: RetentionSettings = RetentionSettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    web: WebSettings = WebSettings()
    fleet: FleetSettings = FleetSettings()
    pool: PoolSettings | None = Field(
        default=None,
        description="workers that share the streams of many boxes, and take over from each other; "
        "null: the streams belong to one worker",
    )
    forward: list[ForwardOutput] = Field(
        default_factory=list,
        max_length=16,
        description="brokers to which events, gaps, alerts, coverage and health are sent; empty: "
        "nothing leaves this box",
    )
    workers: dict[str, WorkerSettings] = Field(
        default_factory=dict,
        description="several workers that share the streams, by name, each with a folder of its "
        "own in runtime_dir and state_dir; empty: one for all",
    )

    @property
    def all_streams(self) -> list[StreamSettings] | None:
        """Every stream that there can be; None: those of other boxes are in theirs alone."""
        is_here = self.transport.audio is None or self.transport.audio.startswith("ipc://")
        return self.streams if is_here and self.pool is None else None

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_known(cls, version: Any) -> Any:
        if type(version) is not int or version != 1:  # True and 1.0 are equal to 1
            raise ValueError(f"expected 1, the only version there is, got {version!r}")
        return version

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Settings:
        transport = self.transport.misfits(is_in_pool=self.pool is not None)
        in_transport = [
            ("transport", "audio"),
            ("transport", "curve", "server_key"),
            ("transport", "curve", "server_secret"),
        ]
        names = [("streams", "*", "name"), ("workers", "*", "streams")]
        in_pool = [("pool", key) for key in ("nats", "members")]
        in_web = [("web", key) for key in ("certificate", "private_key")]
        refuse_misfits(
            [
                *unless_left_out(self._stream_misfits(), info, ("pool",)),
                *unless_left_out(self._worker_misfits(), info, *names),
                *self._port_misfits(),
                *unless_left_out(transport, info, ("pool",), *in_transport),
                *unless_left_out(() if self.pool is None else self.pool.misfits(), info, *in_pool),
                *self._privacy_misfits(),
                *unless_left_out(self._recorder_misfits(), info, *names),
                *unless_left_out(self.web.misfits(), info, *in_web),
                *forward_misfits(self.forward),
                *unless_left_out(fleet_misfits(self), info, ("forward",)),
            ],
            info,
        )
        return self

    def _privacy_misfits(self) -> Iterator[Misfit]:
        """Yield other settings that would give audio away all the same."""
        if self.privacy == "off":
            return
        for name in ("audio", "rings"):
            endpoint = getattr(self.transport, name)
            if endpoint is not None and not endpoint.startswith("ipc://"):
                text = f"expected ipc with privacy: {self.privacy}, got {endpoint}: sound must not "
                yield ("transport", name), f"{text}leave the processes of this box"
        if self.privacy == "speech" and self.model.cascade is not None:
            text = (
                "expected null with privacy: speech: of windows that the checkpoint is not asked "
            )
            yield ("model", "cascade"), f"{text}about, nobody knows whether they hold speech"
        for name, action in self.alerts.actions.items():
            if self.privacy == "sensor" and action.type == "command":
                text = "expected an action that runs no program, which could record sound itself, "
                yield ("alerts", "actions", name), f"{text}with privacy: sensor"

    def _recorder_misfits(self) -> Iterator[Misfit]:
        if self.recorder is None:
            return
        names = None if self.all_streams is None else [stream.name for stream in self.all_streams]
        yield from self.recorder.misfits(names)
        if self.privacy == "sensor" and self.recorder.keeps_sound:
            text = "expected [] with privacy: sensor, got policies that keep sound, which nobody "
            yield ("recorder", "clips"), f"{text}can have; the history is kept without them"

    def _stream_misfits(self) -> Iterator[Misfit]:
        names = [stream.name for stream in self.streams]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            text = f"expected different names, got more than once: {', '.join(doubled)}"
            yield ("streams",), text
        elif sum(stream.source.type == "stdin" for stream in self.streams) > 1:
            yield ("streams",), "expected at most one stdin source, got several"
        if len(names) > self.model.max_streams:
            text = f"expected at most model.max_streams={self.model.max_streams} streams, "
            yield (), f"{text}got {len(names)}"
        if not self.streams:
            if self.pool is None:
                is_there = "streams" in self.model_fields_set
                text = "expected at least 1, got 0" if is_there else "the key 'streams' is missing"
                yield ("streams",), text
            return
        smallest = min(self.streams, key=lambda stream: stream.ring_s)
        if smallest.ring_s < RING_HOPS * self.model.hop_s:
            text = f"expected ring_s of at least {RING_HOPS} x model.hop_s = "
            text += f"{RING_HOPS * self.model.hop_s:g}, got {smallest.ring_s:g} for {smallest.name}"
            yield (), text

    def _worker_misfits(self) -> Iterator[Misfit]:
        """Yield where the workers do not share the streams: each stream belongs to one of them."""
        if not self.workers:
            return
        names = [stream.name for stream in self.streams]
        owners: dict[str, str] = {}
        for name, worker in self.workers.items():
            path = ("workers", name, "streams")
            if not is_stream_name(name):
                yield ("workers", name), f"expected {STREAM_NAME_RULE}, got {name!r}"
            for stream in worker.streams:
                if stream not in names:
                    yield path, f"no stream {stream!r}{did_you_mean(stream, names)}"
                elif stream in owners:
                    text = f"expected each stream at one worker, got {stream} at {owners[stream]}, "
                    yield path, f"{text}too" if owners[stream] != name else f"{text}twice"
                owners.setdefault(stream, name)
        if orphans := [name for name in names if name not in owners]:
            text = f"expected a worker for each stream, got none for {', '.join(orphans)}"
            yield ("workers",), text
        for key in ("audio", "rings", "feed", "query"):
            if getattr(self.transport, key) is not None:
                text = "expected null where there are several workers: each has its own sockets, "
                yield ("transport", key), f"{text}in runtime_dir"

    def _port_misfits(self) -> Iterator[Misfit]:
        if self.metrics.listen is None:
            return
        first = int(self.metrics.listen.rpartition(":")[2])
        # beside the first worker: alerts, recorder, page, forward, the captures, other workers
        max_port = 65_535 - 4 - len(self.streams) - max(0, len(self.workers) - 1)
        if not 1 <= first <= max_port:
            text = f"expected a port from 1 to {max_port} in metrics.listen, which leaves one for "
            yield (), f"{text}each process, got {first}"
