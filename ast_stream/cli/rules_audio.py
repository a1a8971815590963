"""The events of recordings for a backtest: each file through the detector."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ast_stream.audio.recording import RecordingError, RecordingReader
from ast_stream.cli.scan import make_scanner, shown_as
from ast_stream.cli.terminal import ProgressView
from ast_stream.messages.event import EventMessage
from ast_stream.sample_clock import SampleClock
from ast_stream.scanner import OnRead
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.model import ModelSettings
from ast_stream.units import SAMPLE_RATE, seconds_to_ns, seconds_to_samples

MODEL = "backtest"
PAUSE_SAMPLES = 60 * SAMPLE_RATE  # between recordings, so that one ends before the next begins


def event_messages(
    files: list[Path],
    model: ModelSettings,
    detection: DetectionSettings,
    start_ns: int,
    on_end: Callable[[int], None] = lambda duration_ns: None,
    on_incomplete: Callable[[str], None] = lambda text: None,
) -> Iterator[EventMessage]:
    """Yield the event messages of recordings; each is a stream of its own, named after its file.

    Args:
        start_ns: stream time at which the first begins.
        on_end: called after each with its duration in nanoseconds.
        on_incomplete: called with what is wrong with each that was not read to its end.
    """
    scanner, _ = make_scanner(model, detection)
    with ProgressView() as progress:
        for file in files:
            clock = SampleClock.from_start(start_ns)
            end = 0
            readers: set[RecordingReader] = set()
            show = shown_as(str(file), progress)
            on_read = partial(_note, readers, show)
            try:
                for event in scanner.messages(file, on_read):
                    end = max(end, event.at_sample)
                    found = replace(event, stream=stream_name(file), id=f"{event.id}-{start_ns}")
                    scored = clock.moment(event.at_sample)
                    message = EventMessage.of(
                        found, clock, labels={}, audio_end=end, scored=scored, model=MODEL
                    )
                    with progress.paused():
                        yield message
            except RecordingError as error:
                on_incomplete(str(error))
            duration_s = max((reader.position_s for reader in readers), default=0.0)
            on_end(seconds_to_ns(duration_s))
            end = max(end, seconds_to_samples(duration_s))
            start_ns = clock.time_ns(end + PAUSE_SAMPLES)


def _note(readers: set[RecordingReader], show: OnRead, reader: RecordingReader) -> None:
    readers.add(reader)
    show(reader)


def stream_name(file: Path) -> str:
    """Return a file's name as the name of a stream.

    >>> stream_name(Path("night/Front Door (2).flac"))
    'front-door-2'
    """
    return re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:63] or "recording"
