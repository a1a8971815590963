"""Foregrounds whose sound lies where the test wants it."""

from __future__ import annotations

import numpy as np

from ast_stream.soundscape.soundbank import Foreground
from ast_stream.units import SAMPLE_RATE


def burst(begin_s: float, end_s: float, length_s: float = 8.0) -> Foreground:
    waveform = np.zeros(round(length_s * SAMPLE_RATE), np.float32)
    begin, end = round(begin_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE)
    waveform[begin:end] = 0.1 * np.random.default_rng(1).standard_normal(end - begin)
    return Foreground(waveform, (0,), is_generated=False)
