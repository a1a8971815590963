"""Spectrogram frames of one stream for viewers: collected, and blank where speech may be."""

from __future__ import annotations

import numpy as np

from ast_stream.detect.detector import HeardFrames
from ast_stream.messages.spectrogram import WITHHELD, Spectrogram8, spectrogram_levels
from ast_stream.privacy.speech import SpeechMask
from ast_stream.units import FRAME_LENGTH, FRAME_SHIFT, FRAMES_PER_SECOND, N_MELS

MIN_FRAMES = 10  # of a message: there are ten a second at most
MAX_HELD_FRAMES = 60 * FRAMES_PER_SECOND  # that wait to be judged; the mask knows no more
_NOTHING: Spectrogram8 = np.zeros((0, N_MELS), np.uint8)

Piece = tuple[int, Spectrogram8]
"""Sample index of the start of the first frame, and levels of shape (frames, mels)."""


class LiveSpectrogram:
    """Takes frames as they are heard, and returns them once they may be seen.

    Args:
        speech: judges where somebody may talk: frames wait until no later window changes that;
            None: nobody looks for it, and nothing waits.
    """

    def __init__(self, speech: SpeechMask | None) -> None:
        self._speech = speech
        self._epoch: str | None = None
        self._first = 0  # frame of the first level that waits
        self._waiting = _NOTHING

    def add(self, heard: HeardFrames) -> list[Piece]:
        """Take new frames; return what may be seen now."""
        pieces = []
        if (heard.epoch, heard.first_frame) != (self._epoch, self._first + len(self._waiting)):
            if self._speech is None:
                pieces = self._taken(len(self._waiting))
            self._epoch, self._first, self._waiting = heard.epoch, heard.first_frame, _NOTHING
        self._waiting = np.concatenate([self._waiting, spectrogram_levels(heard.log_mel)])
        n_ready = len(self._waiting)
        if self._speech is not None:
            judged = (self._speech.judged_to - FRAME_LENGTH) // FRAME_SHIFT + 1
            n_ready = min(max(0, judged - self._first), n_ready)
        if n_ready >= MIN_FRAMES:
            pieces += self._taken(n_ready)
        too_many = max(0, len(self._waiting) - MAX_HELD_FRAMES)
        self._first, self._waiting = self._first + too_many, self._waiting[too_many:]
        return pieces

    def _taken(self, n_frames: int) -> list[Piece]:
        if n_frames == 0:
            return []
        start, levels = self._first * FRAME_SHIFT, self._waiting[:n_frames]
        if self._speech is not None:
            stop = start + (n_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
            for begin, end in self._speech.withheld(start, stop):
                # every frame that holds one of these samples
                first = max(0, (begin - start - FRAME_LENGTH) // FRAME_SHIFT + 1)
                levels[first : -(-(end - start) // FRAME_SHIFT)] = WITHHELD
        self._first, self._waiting = self._first + n_frames, self._waiting[n_frames:]
        return [(start, levels)]
