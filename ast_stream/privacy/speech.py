"""The speech mask: which samples may hold speech, decided before audio is handed out.

A 10 ms frame is withheld, with a second on either side, if the model scores it as speech, or if it
sounds like a voice and the model does not rule speech out. So are frames that were not judged: not
scored yet by every window that covers them, in a gap, or older than what is held. A withheld sample
may be released later; one that was released is never withheld, and asking for other ranges reveals
no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ast_stream.audio.pcm import SampleBuffer
from ast_stream.privacy.voice import CONTEXT, Flags, talk_frames
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE

SPEECH_LABELS = frozenset(
    (
        "Speech", "Male speech, man speaking", "Female speech, woman speaking",
        "Child speech, kid speaking", "Conversation", "Narration, monologue", "Babbling",
        "Speech synthesizer", "Shout", "Bellow", "Yell", "Children shouting", "Whispering",
        "Singing", "Male singing", "Female singing", "Child singing", "Synthetic singing", "Chant",
        "Rapping", "Chatter", "Crowd", "Hubbub, speech noise, speech babble", "Children playing",
    )
)  # fmt: skip
SPEECH_SCORE = 0.1  # of any of these, from which it is speech
HINT_SCORE = 0.01  # from which it is where there is a voice
MARGIN_S = 1.0
HEAR_EVERY_S = 1.0  # of audio that the voice detector takes at a time
_MARGIN = round(MARGIN_S * SAMPLE_RATE) // FRAME_SHIFT  # frames
_UNKNOWN, _QUIET, _VOICE = -1, 0, 1

Range = tuple[int, int]
"""Samples from one index to before another."""


class SpeechMask:
    """What is known of the newest audio of one stream, for each 10 ms.

    Args:
        labels: classes of the model.
        width: samples that end at `end_sample` of a score, and that it is about.
        capacity: samples of audio that are held.
    """

    def __init__(self, labels: Sequence[str], width: int, capacity: int) -> None:
        self._classes = np.flatnonzero([label in SPEECH_LABELS for label in labels])
        self._width = width
        self._n_frames = capacity // FRAME_SHIFT + 2 * _MARGIN
        self._voice = np.full(self._n_frames, _UNKNOWN, np.int8)
        self._scores = np.full(self._n_frames, np.nan, np.float32)
        self._start = 0
        self._end = 0  # frames before it have cells
        self._heard = 0  # frames before it are judged by the voice detector
        self._settled = 0  # no later score is about frames before it

    def restart(self, start_sample: int) -> None:
        """Forget everything; the next audio begins here."""
        self._start = self._end = self._heard = -(-start_sample // FRAME_SHIFT)
        self._settled = self._start
        self._voice.fill(_UNKNOWN)
        self._scores.fill(np.nan)

    def interrupt(self, sample: int) -> None:
        """Note a gap: the scores that follow do not cover anything before this sample."""
        self._settled = max(self._settled, -(-sample // FRAME_SHIFT))

    def add_scores(self, end_sample: int, scores: npt.NDArray[np.float32]) -> None:
        """Take the scores of a window or frame, shape (n_classes,)."""
        if not len(self._classes):
            return
        stop = end_sample // FRAME_SHIFT
        self._make_cells(stop)
        self._settled = max(self._settled, (end_sample - self._width) // FRAME_SHIFT)
        first = max(self._settled, stop - self._n_frames)
        cells = np.arange(first, stop) % self._n_frames
        self._scores[cells] = np.fmax(self._scores[cells], scores[self._classes].max())

    def hear(self, audio: SampleBuffer) -> None:
        """Look for voices in new audio, once there are `HEAR_EVERY_S` of it."""
        stop = (audio.end - CONTEXT) // FRAME_SHIFT
        if stop - self._heard < HEAR_EVERY_S * SAMPLE_RATE / FRAME_SHIFT:
            return
        first = max(self._heard, self._start, -(-audio.oldest // FRAME_SHIFT))
        begin, pcm = audio.read(first * FRAME_SHIFT - CONTEXT, audio.end)
        skipped = -(-begin // FRAME_SHIFT)  # where the audio begins within 10 ms
        talks = talk_frames(pcm[skipped * FRAME_SHIFT - begin :])
        self._make_cells(stop)
        frames = np.arange(first, stop)
        self._voice[frames % self._n_frames] = talks[frames - skipped]
        self._heard = stop

    @property
    def judged_to(self) -> int:
        """Sample up to which `withheld` will always answer as it does now, while audio is held."""
        known = min(self._heard, self._settled) if len(self._classes) else self._heard
        return (known - _MARGIN) * FRAME_SHIFT

    def withheld(self, start: int, stop: int) -> list[Range]:
        """Return which samples from `start` to before `stop` may hold speech, in order."""
        if start >= stop:
            return []
        first, last = start // FRAME_SHIFT, -(-stop // FRAME_SHIFT)
        flags = self._may_be_speech(np.arange(first - _MARGIN, last + _MARGIN))
        counts = np.cumsum(np.concatenate([[0], flags]))
        near = counts[2 * _MARGIN + 1 :] > counts[: -2 * _MARGIN - 1]
        steps = np.diff(np.concatenate([[0], near.astype(np.int8), [0]]))
        edges = (first + np.flatnonzero(steps)) * FRAME_SHIFT
        return [
            (max(start, int(begin)), min(stop, int(end))) for begin, end in edges.reshape(-1, 2)
        ]

    def _may_be_speech(self, frames: npt.NDArray[np.int64]) -> Flags:
        cells = frames % self._n_frames
        voice, scores = self._voice[cells], self._scores[cells]
        flags: Flags = voice != _QUIET
        if len(self._classes):
            unknown = (voice == _UNKNOWN) | np.isnan(scores) | (frames >= self._settled)
            flags = unknown | (scores > SPEECH_SCORE) | (flags & (scores > HINT_SCORE))
        is_held = (frames < self._end) & (frames >= self._end - self._n_frames)
        flags |= ~is_held | (frames < self._start)
        if self._start == 0:  # before the very first sample there was nothing
            flags &= frames >= 0
        return flags

    def _make_cells(self, stop: int) -> None:
        """Make cells for the frames before `stop`, in the place of the oldest."""
        first = max(self._end, stop - self._n_frames)
        cells = np.arange(first, stop) % self._n_frames
        self._voice[cells] = _UNKNOWN
        self._scores[cells] = np.nan
        self._end = max(self._end, stop)
