"""The kinds of sources, and from the `source` section of a stream to the one it describes."""

from __future__ import annotations

from ast_stream.audio.resampler import ChannelSelector
from ast_stream.capture.sources.base import Source
from ast_stream.capture.sources.file import FilePlayer
from ast_stream.capture.sources.microphone import Microphone
from ast_stream.capture.sources.network import NetworkStream
from ast_stream.capture.sources.scene import ScenePlayer
from ast_stream.capture.sources.stdin import StandardInput
from ast_stream.settings import schema


def make_source(settings: schema.Source) -> Source:
    """Return the source that `settings` describes, not opened yet."""
    match settings:
        case schema.MicrophoneSource():
            return Microphone(settings)
        case schema.FileSource():
            return FilePlayer(settings)
        case schema.UrlSource():
            return NetworkStream(settings)
        case schema.StdinSource():
            return StandardInput(settings)
        case schema.SceneSource():
            return ScenePlayer(settings)


def make_channels(settings: schema.Source) -> ChannelSelector:
    """Return what picks the channel of the source that `settings` describes."""
    return ChannelSelector("mix" if isinstance(settings, schema.SceneSource) else settings.channel)
