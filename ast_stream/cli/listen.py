"""`ast-stream listen`: what the model detects right now, without a configuration."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from ast_stream.audio.pcm import Resampler
from ast_stream.capture.intake import make_source
from ast_stream.capture.sources.base import Source
from ast_stream.cli.options import CascadeCheckpoint, cascade_settings, json_option
from ast_stream.cli.output import say
from ast_stream.cli.terminal import console, level_bar, level_text, score_bars
from ast_stream.errors import CaptureError, StartupError
from ast_stream.messages.event import Event, Scores
from ast_stream.model.loading import load_model
from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.settings.explain import with_options
from ast_stream.settings.model import ModelSettings
from ast_stream.settings.streams import MicrophoneSource
from ast_stream.units import SAMPLE_RATE, samples_to_seconds

if TYPE_CHECKING:
    from ast_stream.detect.detector import Detector

READ_TIMEOUT_S = 1.0
STREAM = "listen"


@dataclass
class _Latest:
    """The newest window's scores, and the events that are open."""

    scores: npt.NDArray[np.float32] | None = None
    level_dbfs: float | None = None
    is_fresh: bool = False

    def take(self, scores: Scores) -> None:
        self.scores, self.is_fresh = scores.scores, True


def listen(
    device: Annotated[
        str | None, typer.Option(help="Input device: name, part of a name or index.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="How many classes to show.")] = 10,
    hop: Annotated[float, typer.Option(help="Seconds between scores.")] = 0.25,
    model: Annotated[str, typer.Option(help="Checkpoint.")] = "bundled",
    cascade: CascadeCheckpoint = None,
    as_json: Annotated[bool, json_option("JSON lines on standard output.")] = False,
) -> None:
    """Show what the model detects right now: level, best classes and events.

    Example: ast-stream listen --device "USB Audio" --top 5
    """
    from ast_stream.detect.cascade import load_cascade  # imports torch
    from ast_stream.detect.detector import Detector

    latest = _Latest()
    chosen = ModelSettings(checkpoint=model, cascade=cascade_settings(cascade))
    large = load_model(chosen)
    detector = Detector(large, hop_s=hop, on_scores=latest.take, cascade=load_cascade(chosen))
    index = int(device) if device is not None and device.isdecimal() else device
    microphone = MicrophoneSource(type="microphone")
    source = make_source(with_options(microphone, {"device": ("listen: --device", index)}))
    try:
        source.open()
    except CaptureError as error:
        raise StartupError(str(error)) from error
    view = _View
    if as_json:
        view = _JsonView
    elif sys.stderr.isatty() and sys.stdout.isatty():
        view = _LiveView
    try:
        with stop_on_signals() as stop, view(detector, top) as shown:
            _follow(source, detector, latest, shown, stop)
    finally:
        source.close()


def _follow(
    source: Source, detector: Detector, latest: _Latest, view: _View, stop: threading.Event
) -> None:
    """Show what comes from the source until `stop`, or until it is lost."""
    resampler: Resampler | None = None
    detector.open(STREAM, "0" * 32)
    position = 0
    while not stop.is_set():
        block = source.read(READ_TIMEOUT_S)
        if block is None:
            continue
        resampler = resampler or Resampler(block.rate)
        pcm = resampler.push(block.pcm)
        detector.push(STREAM, position, pcm)
        position += len(pcm)
        for event in detector.run():
            view.show_event(event)
        latest.level_dbfs = detector.status(STREAM).level_dbfs
        if latest.is_fresh:
            view.show_scores(latest)
            latest.is_fresh = False


class _View:
    """Where scores and events go; this one writes a plain line a second and one for each event."""

    def __init__(self, detector: Detector, top: int) -> None:
        self.labels = detector.parameters.labels
        self.thresholds = detector.parameters.onset_threshold
        self.top = top
        self._detector = detector
        self._windows_a_line = max(1, round(SAMPLE_RATE / detector.hop))
        self._n_windows = 0

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def best(self, latest: _Latest) -> list[tuple[str, float, float]]:
        """Return the best classes as (label, score, onset threshold)."""
        assert latest.scores is not None
        order = np.argsort(-latest.scores, kind="stable")[: self.top]
        return [(self.labels[i], float(latest.scores[i]), float(self.thresholds[i])) for i in order]

    @property
    def asked(self) -> float | None:
        """The part of the windows so far that a cascade asked --model about; None without one."""
        n_asked = self._detector.n_asked
        return None if n_asked is None else n_asked / max(1, self._detector.n_scored)

    def show_scores(self, latest: _Latest) -> None:
        self._n_windows += 1
        if self._n_windows % self._windows_a_line == 0:
            best = "  ".join(f"{label} {score:.2f}" for label, score, _ in self.best(latest)[:3])
            asked = "" if self.asked is None else f"  {_asked_text(self.asked)}"
            print(f"{level_text(latest.level_dbfs):>16}  {best}{asked}", flush=True)

    def show_event(self, event: Event) -> None:
        if event.type != "update":
            say(_event_line(event))


class _JsonView(_View):
    """JSON lines: every window's best classes, every event."""

    def show_scores(self, latest: _Latest) -> None:
        best = {label: round(score, 4) for label, score, _ in self.best(latest)}
        asked = {} if self.asked is None else {"asked": round(self.asked, 4)}
        line = {"level_dbfs": latest.level_dbfs, "scores": best} | asked
        print(json.dumps(line), flush=True)

    def show_event(self, event: Event) -> None:
        small = event.watcher_score
        said = {} if small is None else {"watcher_score": round(small, 4)}
        print(json.dumps({"event": event.type, "label": event.label} | said), flush=True)


class _LiveView(_View):
    """Bars that are redrawn in place, with the last events below."""

    def __init__(self, detector: Detector, top: int) -> None:
        super().__init__(detector, top)
        self._live = Live(console=console(), refresh_per_second=8, redirect_stdout=False)
        self._events: deque[str] = deque(maxlen=5)

    def __enter__(self) -> _View:
        self._live.start()
        self._live.update(Text("listening, filling the first window (Ctrl-C ends)", style="dim"))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show_scores(self, latest: _Latest) -> None:
        level, best = level_bar(latest.level_dbfs), score_bars(self.best(latest))
        lines = [level, best, Text("\n".join(self._events), style="bold")]
        if self.asked is not None:
            lines.append(Text(_asked_text(self.asked), style="dim"))
        self._live.update(Group(*lines))

    def show_event(self, event: Event) -> None:
        if event.type != "update":
            self._events.append(_event_line(event))


def _event_line(event: Event) -> str:
    sample = event.onset_sample if event.offset_sample is None else event.offset_sample
    at_s = samples_to_seconds(sample)
    small = "" if event.watcher_score is None else f"  small model {event.watcher_score:.2f}"
    return f"{at_s:8.1f} s  {event.type:<5}  {event.label}  peak {event.peak:.2f}{small}"


def _asked_text(asked: float) -> str:
    return f"asked about {asked:.0%} of the windows"
