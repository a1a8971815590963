"""From the `source` section of a stream to the source it describes."""

from __future__ import annotations

from ast_stream.audio.channels import Channels
from ast_stream.audio.source import Source
from ast_stream.capture.sources.file import Recording
from ast_stream.capture.sources.microphone import Microphone
from ast_stream.capture.sources.network import NetworkStream
from ast_stream.capture.sources.stdin import Pipe
from ast_stream.settings import schema
from ast_stream.soundscape.scene import SceneSource


def make_source(settings: schema.Source) -> Source:
    """Return the source that `settings` describes, not opened yet."""
    match settings:
        case schema.MicrophoneSource():
            return Microphone(settings)
        case schema.FileSource():
            return Recording(settings)
        case schema.UrlSource():
            return NetworkStream(settings)
        case schema.StdinSource():
            return Pipe(settings)
        case schema.SceneSource():
            return SceneSource(settings.seed, settings.duration_s, settings.pace, settings.block_s)


def make_channels(settings: schema.Source) -> Channels:
    """Return what takes the wanted channel of the source that `settings` describes."""
    return Channels("mix" if isinstance(settings, schema.SceneSource) else settings.channel)
