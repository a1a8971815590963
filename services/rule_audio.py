"""Recordings as a backtest hears them: through the detector, one after another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_stream.messages import SampleClock, event_body
from ast_stream.settings.schema import DetectionSettings, ModelSettings
from ast_stream.units import SAMPLE_RATE
from services.scan import make_scanner, scan_progress, shown_as

MODEL = "backtest"
PAUSE_SAMPLES = 60 * SAMPLE_RATE  # between recordings, so that one ends before the next begins


def event_bodies(
    files: list[Path], model: ModelSettings, detection: DetectionSettings, start_ns: int
) -> Iterator[dict[str, Any]]:
    """Yield the event bodies of recordings; each is a stream of its own, named after its file.

    Args:
        start_ns: stream time at which the first begins.

    Raises:
        AudioError: a recording cannot be read.
    """
    scanner, _ = make_scanner(model, detection)
    with scan_progress() as progress:
        for file in files:
            clock = SampleClock()
            clock.observe(0, start_ns)
            end = 0
            for event in scanner.messages(file, shown_as(str(file), progress)):
                end = max(end, event.at_sample)
                body = event_body(
                    event,
                    clock,
                    labels={},
                    audio_end=end,
                    scored_ns=clock.time_ns(event.at_sample),
                    model=MODEL,
                )
                with progress.paused():
                    yield body | {"stream": stream_name(file), "id": f"{event.id}-{start_ns}"}
            start_ns = clock.time_ns(end + PAUSE_SAMPLES)


def stream_name(file: Path) -> str:
    """Return a file's name as the name of a stream.

    >>> stream_name(Path("night/Front Door (2).flac"))
    'front-door-2'
    """
    return re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:63] or "recording"
