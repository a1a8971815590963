"""The section `streams`: what is listened to, and how its audio goes to the worker."""

from __future__ import annotations

import importlib.util
import os
import stat
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.settings.section import FilePath, Patience, Section
from ast_stream.urls import check_url, mask

MAX_CHANNELS = 64
MAX_INDEX = 10_000  # of sound devices
FIRST_SOUND_S = 30.0  # of network streams: sound may begin later than the video
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256

Channel = Annotated[
    Literal["mix"] | Annotated[int, Field(ge=0, lt=MAX_CHANNELS)],
    Field(description="the channel to use, counted from 0; mix: the mean of all"),
]
LabelText = Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]


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
    path: FilePath = Field(description="relative paths begin at the configuration file")
    pace: Literal["realtime", "fast"] = Field(
        default="realtime", description="real time, or as fast as the worker scores it"
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
    url: str = Field(description="rtsp://, http:// or any other URL that FFmpeg opens")
    options: dict[str, str] = Field(
        default_factory=dict, description="FFmpeg options, e.g. rtsp_transport: tcp"
    )
    open_timeout_s: Patience = Field(default=10.0, description="for the connection")
    read_timeout_s: Patience = Field(
        default=4.0,
        description="without sound for this long the stream is lost, even if video arrives",
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
        default="realtime", description="real time, or as fast as the worker scores it"
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
    """How the audio of a stream is sent from its capture process to a worker."""

    codec: Literal["pcm", "opus"] = Field(
        default="pcm",
        description="pcm: uncompressed, 256 kbit/s; opus: compressed, for a worker on another box "
        "(needs the extra `url` on both)",
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
        description="of opus: approximate length of a block; headers take 24 kbit/s at 0.1, a fifth"
        " of that at 0.5",
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
        default=WireSettings(), description="codec of its audio on the way to the worker"
    )
    calibration_db: float | None = Field(
        default=None,
        ge=-50,
        le=250,
        description="sound pressure level of full scale, dB re 20 µPa, which is added to dBFS; "
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
