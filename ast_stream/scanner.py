"""The events of whole recordings: the detector that runs live, fed from a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ast_stream.audio.pcm import ChannelChoice, ChannelSelector
from ast_stream.audio.recording import RecordingError, RecordingReader, read_mono
from ast_stream.detect.cascade import Cascade
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.detect.second_opinion import SecondOpinion
from ast_stream.errors import UsageError
from ast_stream.messages.event import Event, Scores
from ast_stream.model.runners import PrecisionSetting
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.runtime.background import read_ahead
from ast_stream.settings.detection import DetectionSettings
from ast_stream.units import samples_to_seconds

_STREAM = "scan"
AHEAD = 8  # seconds that are decoded while those before are scored

OnRead = Callable[[RecordingReader], None]


@dataclass(frozen=True)
class ScannedEvent:
    """One sound in a recording; times in seconds from its beginning.

    Attributes:
        file: the recording, as it was named.
        slug: the label as the feed spells it.
        score: of the window that decided that it began.
        peak, mean: highest and mean score while it lasted.
        uncertainty_s: of the onset.
        watcher_score: what the small model of a cascade gave the class in the window that decided
            that the sound began; None without a cascade, or where it does not know the class.
        verifier_score: that it is right, by the verifier of its class; None without one.
    """

    file: str
    slug: str
    label: str
    onset_s: float
    offset_s: float
    score: float
    peak: float
    mean: float
    uncertainty_s: float
    watcher_score: float | None = None
    verifier_score: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object that `ast-stream scan --json` prints."""
        others = {"watcher_score": self.watcher_score, "verifier_score": self.verifier_score}
        return {
            "file": self.file,
            "class": self.slug,
            "label": self.label,
            "onset_s": self.onset_s,
            "offset_s": self.offset_s,
            "score": self.score,
            "peak": self.peak,
            "uncertainty_s": self.uncertainty_s,
            "mean": self.mean,
            **{name: score for name, score in others.items() if score is not None},
        }


class Scanner:
    """Finds the events of one recording after another.

    Args:
        tagger: the loaded model.
        detection, hop_s, min_context_s, on_scores, cascade, opinion: as for `Detector`.
        channel: which one is analysed, counted from 0; "mix": the mean of all.

    Attributes:
        warning: what made the last recording be heard wrongly, or not at all, or None.
    """

    def __init__(
        self,
        tagger: Tagger,
        detection: DetectionSettings | None = None,
        *,
        hop_s: float | None = None,
        min_context_s: float | None = 1.0,
        on_scores: Callable[[Scores], None] | None = None,
        channel: ChannelChoice = "mix",
        cascade: Cascade | None = None,
        opinion: SecondOpinion | None = None,
    ) -> None:
        if channel != "mix" and (type(channel) is not int or channel < 0):
            raise UsageError(f"channel: expected 'mix' or a number from 0, got {channel!r}")
        self.warning: str | None = None
        self._channel = channel
        self._detector = Detector(
            tagger,
            detection,
            hop_s=hop_s,
            min_context_s=min_context_s,
            max_streams=1,
            hops_at_once=hops_of_recording(tagger),
            on_scores=on_scores,
            cascade=cascade,
            opinion=opinion,
        )

    @property
    def n_scored(self) -> int:
        """Windows that the model has scored, of all recordings."""
        return self._detector.n_scored

    @property
    def n_asked(self) -> int | None:
        """Windows that the large model of a cascade was asked about; None without a cascade."""
        return self._detector.n_asked

    def scan(
        self, path: str | os.PathLike[str], name: str | None = None, on_read: OnRead | None = None
    ) -> Iterator[ScannedEvent]:
        """Yield the events of a recording as they end; memory does not grow with its length.

        Args:
            name: what to call the recording; None: its path.
            on_read: called with the reader after each second of sound, in another thread.

        Raises:
            RecordingError: it cannot be read, or, after its last event, not all of it could.
        """
        began: dict[str, Event] = {}
        for event in self.messages(path, on_read):
            if event.type == "begin":
                began[event.id] = event
            elif event.type == "end":
                begin = began.pop(event.id)
                yield scanned_event(os.fspath(path) if name is None else name, begin, event)

    def messages(
        self, path: str | os.PathLike[str], on_read: OnRead | None = None
    ) -> Iterator[Event]:
        """Yield begin, updates and end of every event of a recording; as `scan`."""
        detector = self._detector
        detector.open(_STREAM, "0" * 32)  # ids of the events are the same each time
        incomplete: RecordingError | None = None
        channels, self.warning = ChannelSelector(self._channel), None
        try:
            position = 0
            try:
                for pcm in read_ahead(partial(read_mono, path, on_read, channels=channels), AHEAD):
                    detector.push(_STREAM, position, pcm)
                    position += len(pcm)
                    if detector.windows_due(_STREAM) >= detector.hops_at_once:
                        yield from detector.run()
            except RecordingError as error:
                incomplete = error
            yield from detector.flush(_STREAM)
            self.warning = channels.summary if position else None
        finally:
            if _STREAM in detector.streams:
                detector.close(_STREAM, "shutdown")
        if incomplete is not None:
            raise incomplete


def scan_file(
    path: str | os.PathLike[str],
    tagger: Tagger | None = None,
    *,
    model: str = "bundled",
    device: str = "auto",
    precision: PrecisionSetting = "auto",
    window_s: float | None = None,
    hop_s: float | None = None,
    detection: DetectionSettings | None = None,
    channel: ChannelChoice = "mix",
) -> list[ScannedEvent]:
    """Return the events of a whole recording, of any length, format and rate, as `scan` does.

    Args:
        tagger: a model that is loaded already, for many recordings; None: `model` is loaded.
        model, device, precision, window_s: as for `load_tagger`.
        hop_s: seconds between windows; None: as the checkpoint was calibrated for.
        detection: how scores become events; None: as the checkpoint says.
        channel: which one is analysed, counted from 0; "mix": the mean of all.

    Raises:
        UsageError: an argument is none of these.
        RecordingError: the recording cannot be read, or not all of it; what was found in the part
            that could is what `Scanner(tagger).scan(path)` yields before it raises the same.
    """
    if tagger is None:
        tagger = load_tagger(model, device=device, precision=precision, window_s=window_s)
    elif isinstance(tagger, str | os.PathLike):
        raise UsageError(f"tagger: expected what load_tagger returns, got a name: model={tagger!r}")
    return list(Scanner(tagger, detection, hop_s=hop_s, channel=channel).scan(path))


def scanned_event(file: str, begin: Event, end: Event) -> ScannedEvent:
    """Return an event of a recording from the messages of its begin and end."""
    assert end.offset_sample is not None
    small, verified = begin.watcher_score, begin.verifier_score
    return ScannedEvent(
        file=file,
        slug=end.slug,
        label=end.label,
        onset_s=round(samples_to_seconds(end.onset_sample), 3),
        offset_s=round(samples_to_seconds(end.offset_sample), 3),
        score=round(begin.score, 4),
        peak=round(end.peak, 4),
        mean=round(end.mean or 0.0, 4),
        uncertainty_s=round(end.uncertainty_s, 3),
        watcher_score=None if small is None else round(small, 4),
        verifier_score=None if verified is None else round(verified, 4),
    )
