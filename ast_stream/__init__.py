"""Streaming audio event detection with an Audio Spectrogram Transformer.

`load_tagger` scores waveforms, `scan_file` finds the events of a recording,
`ast_stream.detect.Detector` turns audio into events, `ast_stream.feed.Subscriber` reads the feed
of a running worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ast_stream.version import __version__

if TYPE_CHECKING:
    from ast_stream.model.tagger import load_tagger
    from ast_stream.scanner import scan_file

__all__ = ["__version__", "load_tagger", "scan_file"]


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch: the capture and feed sides must start without it."""
    if name == "load_tagger":
        from ast_stream.model.tagger import load_tagger

        return load_tagger
    if name == "scan_file":
        from ast_stream.scanner import scan_file

        return scan_file
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
