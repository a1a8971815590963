"""Streaming audio event detection with an Audio Spectrogram Transformer.

`load_tagger` scores waveforms, `ast_stream.detect.Detector` turns audio into events,
`ast_stream.feed.Subscriber` reads the feed of a running worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ast_stream.version import __version__

if TYPE_CHECKING:
    from ast_stream.model.tagger import load_tagger

__all__ = ["__version__", "load_tagger"]


def __getattr__(name: str) -> Any:
    """Import `load_tagger` on first use: the capture and feed sides must start without torch."""
    if name == "load_tagger":
        from ast_stream.model.tagger import load_tagger

        return load_tagger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
