"""What the detector itself finds, undisturbed: in a known scene, or in what a live source gave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from box import HOP_S
from ring_tap import Recording

from ast_stream.detect.detector import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Gap, Scores
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionSettings
from ast_stream.units import SAMPLE_RATE

_PIECE = 10 * SAMPLE_RATE
_STREAM = "reference"


class _Undisturbed:
    """Events and scores of one stream.

    Attributes:
        events: in order.
        scores: by the last sample of each window.
    """

    def __init__(self, tagger: Tagger) -> None:
        self.events: list[Event] = []
        self.scores: dict[int, npt.NDArray[np.float32]] = {}
        self._detector = Detector(tagger, DetectionSettings(), hop_s=HOP_S, on_scores=self._keep)
        self._detector.open(_STREAM, "0" * 32)

    @property
    def longest_wait(self) -> int:
        """Samples that a frame may wait for the window that decides it; 0 where windows decide.

        The last frames of an epoch are decided without that window.
        """
        return self._detector.parameters.geometry.longest_wait

    def _keep(self, scores: Scores) -> None:
        self.scores[scores.end_sample] = scores.scores


class SceneReference(_Undisturbed):
    """An endless repetition of a scene, as far as it was needed."""

    end: int | None = None

    def __init__(self, tagger: Tagger, pcm: Pcm16) -> None:
        super().__init__(tagger)
        self._pcm = pcm
        self._end_sample = 0

    def advance(self, until: int) -> None:
        """Run the detector up to sample `until`."""
        while self._end_sample < until:
            at = self._end_sample % len(self._pcm)
            piece = self._pcm[at : at + _PIECE]
            self._detector.push(_STREAM, self._end_sample, piece)
            self.events += self._detector.run()
            self._end_sample += len(piece)


class RecordedReference(_Undisturbed):
    """What a live source gave in one epoch, with its holes.

    Attributes:
        end: index after the last sample that is known.
    """

    def __init__(self, tagger: Tagger, recording: Recording) -> None:
        super().__init__(tagger)
        self.end: int | None = recording.end
        holes = {stop: (start, reason) for start, stop, reason in recording.holes}
        for begin, pcm in recording.parts:
            if begin in holes:
                start, reason = holes[begin]
                gap = Gap(_STREAM, "0" * 32, start, begin - start, reason)
                self.events += self._detector.gap(gap)
            self._detector.push(_STREAM, begin, pcm)
            self.events += self._detector.run()

    def advance(self, until: int) -> None:
        """Do nothing: all of it was run."""


Reference = SceneReference | RecordedReference
