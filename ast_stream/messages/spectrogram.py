"""Spectrograms on the feed: the log-mel frames that the model hears, one byte for each band.

A level L of the third frame is `low_db + step_db * L` dB, and level 0 is a frame that is withheld.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ast_stream.errors import WireError
from ast_stream.labels import stream_topic
from ast_stream.messages.codec import FeedBody, SampleIndex, Text, Time, validate
from ast_stream.units import FRAME_SHIFT, N_MELS

LOW_DB = -70.0  # the floor of the features is -69.2 dB, a full-scale sine about 45 dB
STEP_DB = 0.5
WITHHELD: Final = 0  # level of all bands of a frame that is not shown
MAX_FRAMES = 10_000
_DB_OF_E = 10 / math.log(10)  # of an energy e, as features are natural logarithms

Spectrogram8 = npt.NDArray[np.uint8]
"""Levels of frames, shape (frames, mels), low frequencies first."""


_Mels = Annotated[int, Field(ge=1, le=1024)]


class SpectrogramHeader(FeedBody):
    """The body of a piece of spectrogram; the levels are a frame of their own.

    The mel energy in dB is that of the model's features: frames of 25 ms, pre-emphasis and Hann
    window of Kaldi, samples in [-1, 1].
    """

    stream: Text
    epoch: Text
    """Run of the capture process."""
    start_sample: SampleIndex
    """Sample index of the start of the first frame."""
    time_ns: Time
    """Wall time of that sample."""
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    """How many frames follow each other."""
    frame_samples: Annotated[int, Field(ge=1)] = FRAME_SHIFT
    """From the start of a frame to that of the next."""
    mels: _Mels = N_MELS
    """Bands of each frame, from 20 Hz to 8 kHz."""
    low_db: float = LOW_DB
    """Of level 0, which no band that is shown has."""
    step_db: float = STEP_DB
    """From a level to the next, dB."""
    withheld: Annotated[int, Field(ge=0, le=MAX_FRAMES)] = 0
    """How many of the frames are blank because somebody may talk (`privacy: speech`)."""

    @property
    def topic(self) -> str:
        """`spectrogram/<stream>/`."""
        return stream_topic("spectrogram", self.stream)


def spectrogram_levels(log_mel: npt.NDArray[np.float32]) -> Spectrogram8:
    """Return log-mel energies (natural logarithms) as levels of the same shape, at least 1."""
    levels = np.rint((log_mel * _DB_OF_E - LOW_DB) / STEP_DB)
    shown: Spectrogram8 = np.clip(levels, WITHHELD + 1, 255).astype(np.uint8)
    return shown


class _Shape(FeedBody):
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    mels: _Mels


def encode_spectrogram(levels: Spectrogram8) -> bytes:
    """Return the third frame of a message."""
    return np.ascontiguousarray(levels).tobytes()


def decode_spectrogram(body: Mapping[str, Any], payload: bytes, what: str) -> Spectrogram8:
    """Return the levels in the third frame of a message.

    Raises:
        WireError: it is not as long as the body says.
    """
    shape = validate(_Shape, body, what)
    n_bytes = shape.frames * shape.mels
    if len(payload) != n_bytes:
        raise WireError(f"{what}: expected {n_bytes} bytes of levels, got {len(payload)}")
    return np.frombuffer(payload, dtype=np.uint8).reshape(shape.frames, shape.mels)
