"""Every setting an operator may choose: frozen models, units in the names, defaults only here."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

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
from ast_stream.settings.fleet import FleetSettings
from ast_stream.settings.fleet import misfits as fleet_misfits
from ast_stream.settings.forward import ForwardOutput
from ast_stream.settings.forward import misfits as forward_misfits
from ast_stream.settings.pool import PoolSettings
from ast_stream.settings.recorder import RecorderSettings
from ast_stream.settings.retention import RetentionSettings
from ast_stream.settings.section import (
    FilePath,
    HostPort,
    Misfit,
    Patience,
    PositiveSeconds,
    Seconds,
    Section,
    refuse_misfits,
    resolved,
)
from ast_stream.settings.web import WebSettings
from ast_stream.units import SILENCE_DBFS, whole_frames
from ast_stream.urls import check_endpoint, check_url, mask

DEFAULT_CONFIRM_S = 0.75  # of classes for which no checkpoint says more
DEFAULT_FRAME_CONFIRM_S = 0.3  # the same, where frames decide and not windows
DEFAULT_HOLD_S = 0.75
MAX_CONFIRM_HOPS = 64  # `confirm_s` is counted in windows or frames, as bits of one word
RING_HOPS = 8  # `ring_s` at least: an unpaced source is up to a quarter of its ring ahead
MAX_CHANNELS = 64
FIRST_SOUND_S = 30.0  # of network streams: sound may begin later than the video
DEFAULT_ALLOW_LIST = "/etc/ast-stream/keys/allowed.json"
PrivacyMode = Literal["off", "speech", "sensor"]
BUNDLED = "bundled"  # the name of the checkpoint that is part of the package
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
MAX_INDEX = 10_000  # of sound devices
EACH_EVENT: Literal["each event"] = "each event"
MAX_SYNC_EVERY_S = 60  # of the event log; rings hold 90 s by default
_SYNC_EVERY = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,9})?) ?s\Z")
MAX_LABELS = 64
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"
MAX_LABEL_CHARACTERS = 256

Channel = Annotated[
    Literal["mix"] | Annotated[int, Field(ge=0, lt=MAX_CHANNELS)],
    Field(description="the channel to use, counted from 0; mix: the mean of all"),
]
Threshold = Annotated[float, Field(gt=0, le=1)]  # at 0 every window would be an event
SmoothingSeconds = Annotated[float, Field(ge=0, le=60)]
WindowSeconds = Annotated[float, Field(gt=0, le=600)]
LabelText = Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]


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


def _check_channel(channel: Channel, channels: int | None) -> None:
    if channel != "mix" and channels is not None and channel >= channels:
        raise ValueError(
            f"expected a channel from 0 to {channels - 1} for channels: {channels}, "
            f"got channel: {channel}"
        )


class SourceSection(Section):
    """One type of source; what other parts need to know of a type, it says here."""

    @property
    def can_end(self) -> bool:
        """Whether the source ends by itself."""
        return False

    @property
    def can_resume(self) -> bool:
        """Whether a new process reads on where the one before it stopped."""
        return False

    @property
    def shares_process(self) -> bool:
        """Whether one process captures several of the kind: what hangs in one stays with it."""
        return True

    @property
    def longest_step_s(self) -> float:
        """How long one attempt to open or read may take, beyond what any source may."""
        return 0.0

    def describe(self) -> str:
        """Return what it is, in a few words."""
        raise NotImplementedError

    def problem(self) -> tuple[str, str] | None:
        """Return why this machine cannot capture it, with the key at fault; None if it seems to.

        Nothing is started or connected to.
        """
        return None


class MicrophoneSource(SourceSection):
    """A sound card input, opened through PortAudio."""

    type: Literal["microphone"]
    device: str | Annotated[int, Field(ge=0, le=MAX_INDEX)] | None = Field(
        default=None,
        description="name, part of a name, index or stable hardware name; null: the default input",
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        le=MAX_CHANNELS,
        description="channels to open; null: 1 if the device allows it, all of them if `channel` "
        "selects one",
    )
    channel: Channel = "mix"
    block_s: float = Field(
        default=0.1, ge=0.01, le=1.0, description="seconds of audio in one callback"
    )
    latency_s: float = Field(
        default=0.2, ge=0.01, le=5.0, description="seconds of buffer asked of PortAudio"
    )

    @property
    def shares_process(self) -> bool:
        """PortAudio is one for a process, and where it hangs only ending that helps."""
        return False

    @model_validator(mode="after")
    def _channel_is_there(self) -> MicrophoneSource:
        _check_channel(self.channel, self.channels)
        return self

    def describe(self) -> str:
        """Return its device."""
        return f"microphone {'(default)' if self.device is None else repr(self.device)}"


class FileSource(SourceSection):
    """A recording: wav, flac, ogg, mp3; with the extra `url` also m4a, mp4, webm and more."""

    type: Literal["file"]
    path: FilePath = Field(description="relative ones begin at the configuration file")
    pace: Literal["realtime", "fast"] = Field(
        default="realtime", description="real time, or as fast as the worker takes it"
    )
    loop: bool = Field(default=False, description="start again at the end")
    channel: Channel = "mix"
    block_s: float = Field(
        default=0.1, ge=0.01, le=1.0, description="length of one block, in seconds of audio"
    )

    @property
    def can_end(self) -> bool:
        """Whether it is played once."""
        return not self.loop

    def describe(self) -> str:
        """Return its path and how it is played."""
        return f"file {self.path}, {self.pace}{', looped' if self.loop else ''}"

    def problem(self) -> tuple[str, str] | None:
        """Return why the file cannot be read."""
        try:
            found = os.stat(self.path)
            if stat.S_ISDIR(found.st_mode):
                return "path", f"expected a file, got the folder {self.path}"
            if stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for its writer
                os.close(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return "path", f"cannot read {self.path}: {error.strerror}"
        return None


class UrlSource(SourceSection):
    """A network stream, decoded by FFmpeg's libraries (needs the extra `url`)."""

    type: Literal["url"]
    url: str = Field(description="rtsp://, http:// or what else FFmpeg opens")
    options: dict[str, str] = Field(
        default_factory=dict, description="FFmpeg options, e.g. rtsp_transport: tcp"
    )
    open_timeout_s: Patience = Field(default=10.0, description="for the connection")
    read_timeout_s: Patience = Field(
        default=4.0, description="lost when no sound comes for that long, even if video does"
    )
    channel: Channel = "mix"

    @field_validator("url")
    @classmethod
    def _url_is_clear(cls, url: str) -> str:
        return check_url(url)

    @property
    def opening_limit_s(self) -> float:
        """The longest time that one attempt to open takes: header, sound, and what it was."""
        return 3 * self.open_timeout_s + 1

    @property
    def longest_step_s(self) -> float:
        """To open, or to wait for sound in a stream that has begun with video."""
        return max(self.opening_limit_s, FIRST_SOUND_S + self.read_timeout_s)

    def describe(self) -> str:
        """Return its address without passwords."""
        return f"url {mask(self.url)}"

    def problem(self) -> tuple[str, str] | None:
        """Return that the decoder is not installed."""
        if importlib.util.find_spec("av") is None:
            return "type", "sources of type url need PyAV: pip install 'ast-stream[url]'"
        return None


class StdinSource(SourceSection):
    """Standard input: raw PCM, or a WAV, whose header describes it."""

    type: Literal["stdin"]
    format: Literal["s16le", "s16be", "s24le", "s32le", "f32le", "f64le", "u8", "wav"] = Field(
        default="s16le",
        description="samples of raw PCM; wav: rate, format and channels are in its header",
    )
    rate: int = Field(
        default=16000, ge=1000, le=384000, description="of raw PCM: samples per second"
    )
    channels: int = Field(default=1, ge=1, le=MAX_CHANNELS, description="of raw PCM")
    channel: Channel = "mix"

    @property
    def shares_process(self) -> bool:
        """Each process has one standard input."""
        return False

    @model_validator(mode="after")
    def _channel_is_there(self) -> StdinSource:
        if self.format != "wav":
            _check_channel(self.channel, self.channels)
        return self

    @property
    def can_end(self) -> bool:
        """Whoever writes it may close it."""
        return True

    @property
    def can_resume(self) -> bool:
        """Raw PCM can be read from anywhere; the header of a WAV is read once."""
        return self.format != "wav"

    def describe(self) -> str:
        """Return its format."""
        if self.format == "wav":
            return "standard input, a WAV"
        return f"standard input, {self.format}, {self.rate} Hz, {self.channels} channel(s)"


class SceneSource(SourceSection):
    """A generated scene of synthesised alarms over noise, with known truth."""

    type: Literal["scene"]
    channel: ClassVar[Literal["mix"]] = "mix"
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="which scene")
    duration_s: float = Field(default=40.0, ge=5, le=86400, description="length of the scene")
    pace: Literal["realtime", "fast"] = Field(
        default="realtime", description="real time, or as fast as the worker takes it"
    )
    block_s: float = Field(
        default=0.1, ge=0.01, le=1.0, description="length of one block, in seconds of audio"
    )

    @property
    def can_end(self) -> bool:
        """A scene has a length."""
        return True

    def describe(self) -> str:
        """Return its seed and length."""
        return f"generated scene {self.seed}, {self.duration_s:g} s, {self.pace}"


Source = Annotated[
    MicrophoneSource | FileSource | UrlSource | StdinSource | SceneSource,
    Field(discriminator="type"),
]


class WireSettings(Section):
    """How the sound of a stream goes from its capture process to a worker."""

    codec: Literal["pcm", "opus"] = Field(
        default="pcm",
        description="pcm: as it is, 256 kbit/s; opus: coded, for a worker on another box (needs "
        "the extra `url` on both)",
    )
    bit_rate: int = Field(
        default=32_000,
        ge=8_000,
        le=128_000,
        description="of opus: bits per second, without headers",
    )
    block_s: float = Field(
        default=0.1,
        ge=0.02,
        le=1.0,
        description="of opus: audio that is sent at once, about; headers cost as much as 24 kbit/s "
        "at 0.1, a fifth of that at 0.5",
    )

    def problem(self) -> tuple[str, str] | None:
        """Return that the codec is not installed, with the key at fault; None if it seems to be."""
        if self.codec == "opus" and importlib.util.find_spec("av") is None:
            return "codec", "opus needs PyAV with libopus: pip install 'ast-stream[url]'"
        return None


class StreamSettings(Section):
    """One stream: a source, its name on the feed, and labels for rules."""

    name: str
    source: Source
    labels: dict[LabelText, LabelText] = Field(default_factory=dict, max_length=MAX_LABELS)
    ring_s: float = Field(
        default=90.0, ge=10, le=600, description="audio kept for a worker that was away"
    )
    wire: WireSettings = Field(
        default=WireSettings(), description="the codec of its audio on the way to the worker"
    )
    calibration_db: float | None = Field(
        default=None,
        ge=-50,
        le=250,
        description="sound pressure level of full scale, dB re 20 µPa: what is added to dBFS; "
        "null: sound levels are not calibrated",
    )

    @property
    def unit(self) -> str | None:
        """systemd's unit of its capture process; None: services have no standard input."""
        if self.source.type == "stdin":
            return None
        if self.source.shares_process:
            return "ast-stream-capture-net.service"
        return f"ast-stream-capture@{self.name}.service"

    @field_validator("name")
    @classmethod
    def _name_is_valid(cls, name: str) -> str:
        if not is_stream_name(name):
            raise ValueError(f"expected {STREAM_NAME_RULE}, got {name!r}")
        return name


def _checkpoint(checkpoint: str, info: ValidationInfo) -> str:
    """Return the path of a checkpoint beside the configuration; other names as they are."""
    if checkpoint == BUNDLED:
        return checkpoint
    beside = resolved(checkpoint, info.context)
    return checkpoint if HUB_ID.match(checkpoint) and not os.path.exists(beside) else beside


class CascadeSettings(Section):
    """A small model scores every window, `model.checkpoint` only those that give a reason.

    A reason: the small model finds a class likely enough, the sound grows louder in some band, an
    event is open or may be confirmed, a stream begins, or it is time again.
    """

    checkpoint: str = Field(
        description="the small model: a directory, a .pth file or a hub id; of its classes those "
        "count that model.checkpoint has, too"
    )
    ask_ratio: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="a class is a reason from this ratio of the small model's onset threshold on",
    )
    change_db: float | None = Field(
        default=6.0,
        gt=0,
        le=100,
        description="a window gives a reason if bands of its newest hop are louder by this than in "
        "all its other hops; null: it does not",
    )
    every_s: PositiveSeconds | None = Field(
        default=30.0, description="without a reason, one window is scored this often; null: none"
    )

    steady_hops: int = Field(
        default=1,
        ge=1,
        le=8,
        description="while events are open and steady, and nothing else gives a reason, one of so "
        "many windows is scored",
    )

    _checkpoint_is_found = field_validator("checkpoint")(_checkpoint)


class VerifierSettings(Section):
    """Second opinions of events that are about to begin, learnt from verdicts of people."""

    file: str = Field(description="what `ast-stream review fit` wrote, for this checkpoint")
    action: Literal["drop", "tag"] = Field(
        default="drop",
        description="drop: events that their verifier rejects do not begin; tag: all begin, with "
        "its score",
    )

    @field_validator("file")
    @classmethod
    def _file_is_found(cls, value: str, info: ValidationInfo) -> str:
        return resolved(value, info.context)


class ModelSettings(Section):
    """Which checkpoint, on what, how precisely, how often."""

    checkpoint: str = Field(
        default="bundled", description="bundled, a directory, a .pth file or a hub id"
    )
    cascade: CascadeSettings | None = Field(
        default=None, description="a small model that scores all windows first; null: none"
    )
    verifiers: VerifierSettings | None = Field(
        default=None, description="second opinions learnt from verdicts; null: none"
    )
    device: str = Field(
        default="auto",
        pattern=DEVICE,
        description="auto, cpu, cuda or cuda:<number>",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"] = "auto"
    attention: Literal["auto", "flash_attn", "flash", "cudnn", "efficient", "blocked", "math"] = (
        "auto"
    )
    window_s: WindowSeconds | None = Field(
        default=None,
        description="null: as the checkpoint was trained; shorter is cut from the centre",
    )
    hop_s: WindowSeconds = Field(default=0.5, description="a window is scored this often")
    min_context_s: WindowSeconds | None = Field(
        default=1.0,
        description="audio needed after a start or gap before the first score; null: a full window",
    )
    max_streams: int = Field(default=64, ge=1, le=4096)

    _checkpoint_is_found = field_validator("checkpoint")(_checkpoint)

    @field_validator("hop_s", "window_s", "min_context_s")
    @classmethod
    def _whole_frames(cls, value: float | None) -> float | None:
        if value is not None:
            whole_frames(value)
        return value


class WorkerSettings(Section):
    """One of several workers: its streams and its device."""

    streams: list[str] = Field(min_length=1, description="names of its streams")
    device: str | None = Field(
        default=None,
        pattern=DEVICE,
        description="auto, cpu, cuda or cuda:<number>; null: as model.device",
    )


class ClassSettings(Section):
    """Detection settings of one class; null: as in `detection.defaults`."""

    enabled: bool | None = Field(
        default=None,
        description="whether the class makes events; null: unless the checkpoint leaves it off",
    )
    onset_threshold: Threshold | None = Field(
        default=None, description="score at which an event may begin"
    )
    confirm_s: Seconds | None = Field(
        default=None, description="span in which 60 % of windows must agree"
    )
    smoothing_s: SmoothingSeconds | None = Field(
        default=None, description="time constant over which scores are averaged"
    )
    hold_s: Seconds | None = Field(
        default=None, description="quiet time after which an event has ended"
    )
    min_duration_s: Seconds | None = Field(default=None, description="shorter sounds make no event")
    refractory_s: Seconds | None = Field(default=None, description="pause after an event")
    max_duration_s: PositiveSeconds | None = Field(
        default=None, description="longer events are cut"
    )


class DetectionDefaults(Section):
    """How scores become events, for classes without settings of their own."""

    onset_threshold: Threshold | None = Field(
        default=None, description="score at which an event may begin; null: from the checkpoint"
    )
    confirm_s: Seconds | None = Field(
        default=None,
        description="span in which 60 % of windows must agree, or of frames where these decide; "
        "null: from the checkpoint, 0.75 where it has none, 0.3 for frames",
    )
    smoothing_s: SmoothingSeconds | None = Field(
        default=None,
        description="time constant over which scores are averaged, 0 for none; null: from the "
        "checkpoint",
    )
    hold_s: Seconds | None = Field(
        default=None,
        description="quiet time after which an event has ended; null: from the checkpoint, 0.75 "
        "where it has none",
    )
    min_duration_s: Seconds = Field(default=0.0, description="shorter sounds make no event")
    refractory_s: Seconds = Field(default=0.0, description="pause after an event of the same class")
    max_duration_s: PositiveSeconds = Field(default=600.0, description="longer events are cut")


class DetectionSettings(Section):
    """From scores to events."""

    defaults: DetectionDefaults = DetectionDefaults()
    classes: dict[str, ClassSettings] = Field(
        default_factory=dict, description="by AudioSet display name or its slug"
    )
    gate_dbfs: float | None = Field(
        default=None, ge=SILENCE_DBFS, le=0, description="windows quieter than this are not scored"
    )


class CurveSettings(Section):
    """Keys of tcp endpoints, as `ast-stream keys create` makes them; ipc needs none."""

    server_secret: FilePath | None = Field(
        default=None,
        description="secret key of the worker; null: the worker runs on another box",
    )
    server_key: FilePath | None = Field(
        default=None,
        description="public key of the worker, which clients expect; null: the .key beside "
        "server_secret",
    )
    client_secret: FilePath | None = Field(
        default=None,
        description="secret key of what connects: capture, alerts, status, subscribe; null: "
        "nothing connects over tcp",
    )
    allow_list: FilePath = Field(
        default=DEFAULT_ALLOW_LIST,
        description="keys that the worker allows, and what each may do; read again when it changes",
    )


_ENDPOINTS = ("audio", "rings", "feed", "query", "admin")


class TransportSettings(Section):
    """ZeroMQ endpoints; null: ipc files in `runtime_dir`."""

    audio: str | None = None
    rings: str | None = Field(
        default=None,
        description="where capture processes of other boxes connect, so that the worker can read "
        "their rings: nothing that they still hold is lost; null: rings of this box alone",
    )
    feed: str | None = None
    query: str | None = None
    admin: str | None = Field(
        default=None,
        description="of the alerts process, for ack, snooze and the outbox commands",
    )
    curve: CurveSettings | None = Field(
        default=None, description="keys of tcp endpoints; null: tcp on loopback only, without keys"
    )

    @field_validator(*_ENDPOINTS)
    @classmethod
    def _endpoint_is_one(cls, endpoint: str | None) -> str | None:
        return endpoint if endpoint is None else check_endpoint(endpoint, has_keys=True)

    @property
    def has_keyed_tcp(self) -> bool:
        """Whether an endpoint needs keys."""
        endpoints = (getattr(self, name) for name in _ENDPOINTS)
        if self.curve is None:
            return False
        if self.curve.server_key is self.curve.server_secret is None:
            return True  # to the workers of a pool, each of which has a key of its own
        return any(endpoint is not None and endpoint.startswith("tcp://") for endpoint in endpoints)

    def misfits(self, *, is_in_pool: bool) -> Iterator[Misfit]:
        """Yield what is not safe, or cannot work."""
        for name in _ENDPOINTS:
            endpoint = getattr(self, name)
            if endpoint is None or self.curve is not None:
                continue
            try:
                check_endpoint(endpoint)
            except ValueError as error:
                yield ("transport", name), str(error)
        first: dict[str, str] = {}
        for name in _ENDPOINTS:
            endpoint = getattr(self, name)
            if endpoint is not None and (other := first.setdefault(endpoint, name)) != name:
                text = (
                    f"expected an endpoint of its own, got {endpoint}, which is transport.{other}"
                )
                yield ("transport", name), text
        is_away = self.audio is not None and self.audio.startswith("tcp://")
        if self.rings is not None and not is_away:
            text = "expected transport.audio over tcp as well: both are of the same worker"
            yield ("transport", "rings"), text
        curve = self.curve
        is_keyless = curve is not None and curve.server_key is curve.server_secret is None
        if is_keyless and not is_in_pool:
            text = "expected server_key, or server_secret on the box of the worker, got neither"
            yield ("transport", "curve"), text


class LoggingSettings(Section):
    """What is logged and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journald"] = "auto"


class MetricsSettings(Section):
    """Prometheus endpoints, one for each process, at ports that follow each other."""

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
        "that a power cut loses nothing that was sent; a time, e.g. 1 s: before the begin of an "
        "event is sent, so that it gets its end, and that often: a power cut may lose updates, "
        "ends and gaps since",
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
        description="who may get audio. off: every client with the right `audio`; speech: the "
        "same, with stretches that may contain speech silenced; sensor: nobody",
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
        description="brokers that events, gaps, alerts, coverage and health are sent to; empty: "
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
        refuse_misfits(
            [
                *self._stream_misfits(),
                *self._worker_misfits(),
                *self._port_misfits(),
                *self.transport.misfits(is_in_pool=self.pool is not None),
                *(() if self.pool is None else self.pool.misfits()),
                *self._privacy_misfits(),
                *self._recorder_misfits(),
                *self.web.misfits(),
                *forward_misfits(self.forward),
                *fleet_misfits(self),
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
