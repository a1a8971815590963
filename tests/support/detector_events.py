"""Audio through a detector in blocks, and the events that come of it."""

from __future__ import annotations

from collections.abc import Iterator

from ast_stream.detect import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event

EPOCH = "ab" * 16


def blocks(pcm: Pcm16, size: int, start: int = 0) -> Iterator[tuple[int, Pcm16]]:
    """Yield blocks of `size` samples, each with the index of its first one."""
    for begin in range(0, len(pcm), size):
        yield start + begin, pcm[begin : begin + size]


def events_of(detector: Detector, pcm: Pcm16, size: int = 1600, stream: str = "mic") -> list[Event]:
    """Return all events of a recording that comes in blocks of `size` samples."""
    detector.open(stream, EPOCH)
    events = []
    for start, block in blocks(pcm, size):
        detector.push(stream, start, block)
        events += detector.run()
    return events + detector.flush(stream)
