"""From audio blocks to events: the detector, a pure core without sockets, clock or files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_stream.detect.detector import Detector

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    """Import `Detector` on first use: the decision stage alone needs no torch."""
    if name == "Detector":
        from ast_stream.detect.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
