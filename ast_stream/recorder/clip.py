"""A clip on disk: its samples, the metadata in the file, and the JSON beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from ast_stream.audio.encoder import encode_pcm
from ast_stream.labels import is_stream_name
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    Body,
    SampleIndex,
    Text,
    Time,
    decode_json,
    encode_json,
)
from ast_stream.messages.event import EventMessage
from ast_stream.recorder.held_audio import CutAudio
from ast_stream.recorder.plan import ClipPart
from ast_stream.settings.recorder import ClipFormat
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time, samples_to_seconds
from ast_stream.version import __version__

MAX_SHEET_BYTES = 256 * 1024
_MAX_SAMPLE = MAX_SAMPLE_INDEX // 2
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
MAX_LISTED = 200  # holes and withheld ranges on a sheet; their sum includes those beyond it
_CONTAINERS: dict[ClipFormat, tuple[str, str]] = {
    "flac": ("FLAC", "PCM_16"),
    "opus": ("OGG", "OPUS"),
}


class Missing(Body):
    """Samples of a clip that are silence because they were not available."""

    start_sample: SampleIndex
    stop_sample: SampleIndex
    reason: Text


class Sheet(Body):
    """The JSON file beside a clip: its content and its event."""

    v: Literal[1] = 1
    event: dict[Text, Any]
    """The newest message about the event, as on the feed."""
    part: int
    """Number of the part of a long event, from 0."""
    is_last: bool
    start_sample: SampleIndex
    """Sample index, in the epoch of the event, of the first sample of the file."""
    stop_sample: SampleIndex
    """Sample index after the last."""
    start_ns: Time
    """When the first sample was captured."""
    rate: int = SAMPLE_RATE
    format: ClipFormat
    missing: list[Missing] = Field(default_factory=list)
    """The samples that are silence because they were not available."""
    withheld: list[Annotated[list[SampleIndex], Field(min_length=2, max_length=2)]] | None = None
    """The samples that are silence because somebody may be talking: first index, and index after
    the last; null: not checked, since `privacy` was off."""
    note: Text = ""
    """A remark, as a sentence; may be empty."""
    version: Text = __version__

    def encode(self) -> bytes:
        """Return the file."""
        return encode_json(self.to_json()) + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Sheet:
        """Return the sheet in a file.

        Raises:
            WireError: the file is not a sheet.
        """
        body = decode_json(content, "sheet of a clip", MAX_SHEET_BYTES, mends_text=True)
        return cls.from_json(body, "sheet")

    @property
    def message(self) -> EventMessage:
        """The newest message about the event.

        Raises:
            WireError: it is not an event message.
        """
        return EventMessage.from_json(self.event)


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip in memory, to be written."""

    sheet: Sheet
    message: EventMessage
    pcm: Pcm16

    @classmethod
    def of(
        cls,
        part: ClipPart,
        audio: CutAudio,
        format: ClipFormat,
        why_short: str,
        *,
        is_without_speech: bool = False,
    ) -> Clip:
        """Return the clip of a part.

        Args:
            is_without_speech: possible speech was detected and silenced.
            why_short: why there is no more audio, if it ends before the part.
        """
        message = part.event.message
        holes = [
            Missing(start_sample=hole.start, stop_sample=hole.stop, reason=hole.reason)
            for hole in audio.holes[:MAX_LISTED]
        ]
        withheld = (
            [list(span) for span in audio.withheld[:MAX_LISTED]] if is_without_speech else None
        )
        sheet = Sheet(
            event=message.to_json(),
            part=part.number,
            is_last=part.is_last,
            start_sample=audio.start,
            stop_sample=audio.stop,
            start_ns=part.event.time_ns(audio.start),
            format=format,
            missing=holes,
            withheld=withheld,
            note=describe(part, audio, why_short),
        )
        return cls(sheet, message, audio.pcm)

    @property
    def path(self) -> PurePosixPath:
        """Its path in the folder of clips: STREAM/DATE/ONSET_CLASS_ID.FORMAT."""
        message = self.message
        onset = datetime.fromtimestamp(message.onset_ns // NS_PER_SECOND, UTC)
        part = f"_{self.sheet.part + 1}" if self.sheet.part or not self.sheet.is_last else ""
        name = f"{onset:%Y%m%dT%H%M%SZ}_{message.class_}_{message.id}{part}.{self.sheet.format}"
        return PurePosixPath(message.stream, f"{onset:%Y-%m-%d}", name)

    def encode(self) -> bytes:
        """Return the content of the audio file: exactly these samples, except in Opus."""
        container, subtype = _CONTAINERS[self.sheet.format]
        message = self.message
        # libsndfile only knows these names; in FLAC and Opus they become Vorbis comments
        tags = {
            "title": message.label,
            "artist": message.stream,
            "album": message.id,
            "date": format_time(self.sheet.start_ns),
            "software": f"ast-stream {__version__}",
            "comment": encode_json(self._tags()).decode(),
        }
        return encode_pcm(self.pcm, container, subtype, tags)

    def _tags(self) -> dict[str, Any]:
        """Return the JSON comment inside the audio file."""
        body = self.sheet.event
        keys = ("id", "class", "label", "stream", "onset", "offset", "peak", "epoch", "model")
        own = self.sheet.to_json()
        of_clip = ("part", "is_last", "start_sample", "stop_sample", "note")
        return {key: body.get(key) for key in keys} | {key: own[key] for key in of_clip}


def why_without_clip(message: EventMessage) -> str | None:
    """Return why an event cannot have a clip at all; None: it can.

    The fields that become part of a file name are checked here, since a worker may be on another
    box and may be compromised.
    """
    if message.epoch is None or message.onset_sample is None:
        return "it does not say where its sound is"
    names = message.id, message.class_, message.epoch
    if not is_stream_name(message.stream) or not all(_PLAIN_NAME.match(name) for name in names):
        return "its names are none that a worker gives"
    samples = message.onset_sample, message.offset_sample or 0, message.at_sample or 0
    if max(map(abs, samples)) > _MAX_SAMPLE:
        return "its sound is where no audio can be"
    return None


def describe(part: ClipPart, audio: CutAudio, why_short: str) -> str:
    """Return a remark on the audio of a part, as a sentence; may be empty."""
    found = []
    by_reason: dict[str, int] = {}
    for hole in audio.holes:
        by_reason[hole.reason] = by_reason.get(hole.reason, 0) + hole.stop - hole.start
    found += [
        f"{samples_to_seconds(n):.3g} s are silence: {reason}" for reason, n in by_reason.items()
    ]
    if n_withheld := sum(stop - start for start, stop in audio.withheld):
        found.append(f"{samples_to_seconds(n_withheld):.3g} s are silence: somebody may talk")
    if audio.stop < part.stop:
        seconds = samples_to_seconds(part.stop - audio.stop)
        found.append(f"{seconds:.3g} s at the end are missing: {why_short}")
    if audio.start > part.start and len(audio.pcm):
        seconds = samples_to_seconds(audio.start - part.start)
        found.append(f"{seconds:.3g} s at the beginning are missing")
    return "; ".join(found)
