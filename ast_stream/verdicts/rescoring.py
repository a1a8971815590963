"""Reviewed events scored again: their clips through the detector, for their embeddings.

A clip's samples keep their place on the stream's sample index, so the very windows are scored that
were scored live, and the event is found again under its own id. That needs a pre-roll of a window;
of a clip with less, the event nearest to the onset stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.audio.recording import RecordingError, read_mono
from ast_stream.detect.decision import Opinion
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.detect.second_opinion import Embedding
from ast_stream.detect.verifiers import event_vector
from ast_stream.labels import find_label
from ast_stream.messages.event import Event
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.model import ModelSettings
from ast_stream.units import seconds_to_samples
from ast_stream.verdicts.reviewed_events import ReviewedEvent

NEAR_S = 1.0

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RescoredEvent:
    """A reviewed event as a verifier sees it.

    Attributes:
        vector: shape (width,).
        is_same: it was found under its own id; else one near it stands for it.
    """

    reviewed: ReviewedEvent
    vector: Vector
    is_same: bool


class _Everything:
    """Keeps what the verifiers of all classes would see, and lets all events pass."""

    def __init__(self) -> None:
        self.rescored: list[tuple[Event, Vector]] = []

    def concerns(self, index: int) -> bool:
        return True

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        self.rescored.append((begin, event_vector(embedding)))
        return Opinion()


class ClipRescoring:
    """Scores the clips of reviewed events again, as the worker has scored them.

    Args:
        folder: of the clips.
    """

    def __init__(
        self, tagger: Tagger, model: ModelSettings, detection: DetectionSettings, folder: Path
    ) -> None:
        self._folder = folder
        self._labels = tagger.labels
        self._opinion = _Everything()
        self._detector = Detector(
            tagger,
            detection,
            hop_s=model.hop_s,
            min_context_s=model.min_context_s,
            max_streams=1,
            hops_at_once=hops_of_recording(tagger),
            opinion=self._opinion,
        )

    def rescore(self, reviewed: ReviewedEvent) -> RescoredEvent | None:
        """Return what a verifier sees of an event; None: it is not found in its clip.

        Raises:
            RecordingError: the clip cannot be read.
        """
        clip, event = reviewed.clip, reviewed.event
        if clip is None or find_label(event.label, self._labels) is None:
            return None
        path = self._folder / clip.path
        if not path.is_file():
            raise RecordingError(str(path), "the clip is not there")
        self._opinion.rescored.clear()
        at = clip.start_sample
        self._detector.open(event.stream, clip.epoch, at)
        try:
            for pcm in read_mono(path):
                self._detector.push(event.stream, at, pcm)
                at += len(pcm)
            self._detector.flush(event.stream)
        finally:
            if event.stream in self._detector.streams:
                self._detector.close(event.stream, "shutdown")
        own = [rescored for rescored in self._opinion.rescored if rescored[0].label == event.label]
        for begin, vector in own:
            if begin.id == event.id:
                return RescoredEvent(reviewed, vector, is_same=True)
        if event.onset_sample is None or not own:
            return None
        onset = event.onset_sample
        begin, vector = min(own, key=lambda rescored: abs(rescored[0].onset_sample - onset))
        if abs(begin.onset_sample - onset) > seconds_to_samples(NEAR_S):
            return None
        return RescoredEvent(reviewed, vector, is_same=False)
