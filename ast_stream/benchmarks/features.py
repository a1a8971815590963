"""Features of live streams timed beside transformers' extractor, which computes whole windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.benchmarks.report import Spread, TableColumn, seconds_in_turn, times_as_fast
from ast_stream.model.dims import AUDIOSET_NORMALIZATION
from ast_stream.model.fbank import LOOK_BACK, UNUSED_TAIL, Fbank, SlidingFbank
from ast_stream.model.torchaudio_guard import import_torchaudio
from ast_stream.units import (
    FULL_SCALE,
    SAMPLE_RATE,
    frame_count,
    samples_for_frames,
    seconds_to_samples,
)

INPUT_MULTIPLE = 64  # the model takes whole patches: 1024 frames for 10.24 s
MIN_WINDOWS = 16  # of a round, over several hops of few streams: one takes too little time
_AMPLITUDE = 3000  # of the noise, in steps of int16

COLUMNS = (
    TableColumn("variant", "{name}", is_figure=False),
    TableColumn("streams", "{streams}"),
    TableColumn("ms per stream and hop", "{ms:.3f}"),
    TableColumn("min", "{low_ms:.3f}"),
    TableColumn("max", "{high_ms:.3f}"),
    TableColumn("speed-up", "{times_as_cheap:.1f}"),
    TableColumn("difference", "{max_error:.1e}"),
)

Windows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTiming:
    """What the windows of one hop of all streams cost one way.

    Attributes:
        ms: of the processor, all its cores, for a stream and hop: median over the rounds.
        times_as_cheap: as the first way, median over the rounds.
        max_error: largest difference of a normalised value from the first way's.
    """

    name: str
    streams: int
    ms: float
    low_ms: float
    high_ms: float
    times_as_cheap: float
    max_error: float


def time_features(
    n_streams: int, window_s: float, hop_s: float, n_rounds: int, on_round: Callable[[], None]
) -> list[FeatureTiming]:
    """Return the timings of transformers' extractor, where installed, and of ours.

    Args:
        window_s, hop_s: seconds, multiples of 0.01.
    """
    live = _LiveStreams(n_streams, seconds_to_samples(window_s), seconds_to_samples(hop_s))
    ways: dict[str, Callable[[], Windows]] = {"ast-stream, new frames only": live.advance}
    extractor = _extractor(live.n_input_frames)
    if extractor is not None:
        whole = "transformers, whole windows"
        ways = {whole: lambda: _extracted(extractor, live.last_windows()), **ways}
    found = [way() for way in reversed(ways.values())][::-1]  # ours first: it hears the next hop
    errors = [float(np.abs(features - found[0]).max()) for features in found]
    n_hops = -(-MIN_WINDOWS // n_streams)
    runs = [partial(_repeat, way, n_hops) for way in ways.values()]
    seconds = seconds_in_turn(runs, n_rounds, on_round, time.process_time)
    return [
        _timing(name, n_streams, n_hops, of_way, seconds[0], error)
        for name, of_way, error in zip(ways, seconds, errors, strict=True)
    ]


def _repeat(way: Callable[[], Windows], n_hops: int) -> None:
    for _hop in range(n_hops):
        way()


def _timing(
    name: str,
    n_streams: int,
    n_hops: int,
    seconds: Sequence[float],
    first: Sequence[float],
    error: float,
) -> FeatureTiming:
    spread = Spread.of([1000 * duration / (n_streams * n_hops) for duration in seconds])
    ratio = times_as_fast(seconds, first)
    return FeatureTiming(name, n_streams, spread.median, spread.low, spread.high, ratio, error)


class _LiveStreams:
    """Noise on several streams, whose windows are taken hop by hop; it repeats after a while."""

    def __init__(self, n_streams: int, window: int, hop: int) -> None:
        n_frames = frame_count(window)
        self.n_input_frames = -(-n_frames // INPUT_MULTIPLE) * INPUT_MULTIPLE
        self._hop, self._n_frames, self._end = hop, n_frames, 0
        self._slots = np.arange(n_streams)
        self._period = (-(-window // hop) + 1) * hop
        generator = np.random.default_rng(0)
        noise = generator.normal(0, _AMPLITUDE, (n_streams, self._period)).astype(np.int16)
        self._noise = np.concatenate((noise, noise), axis=1)  # any window of it is one slice
        device = torch.device("cpu")
        self._features = SlidingFbank(
            Fbank(device),
            AUDIOSET_NORMALIZATION,
            hop=hop,
            n_window_frames=n_frames,
            n_input_frames=self.n_input_frames,
            max_hops=1,
            device=device,
        )
        self._features.grow(n_streams)
        while self._end < self._period:
            self._push()

    def advance(self) -> Windows:
        """Hear the next hop and return the windows that end there, (streams, frames, 128)."""
        ends = self._push()
        windows = self._features.windows(self._slots, ends, np.zeros_like(ends), ends)
        values: Windows = windows.numpy()
        return values

    def last_windows(self) -> Windows:
        """Return the samples of the windows of the last hop heard, (streams, n), in [-1, 1]."""
        pcm = self._samples(samples_for_frames(self._n_frames))
        return pcm.astype(np.float32) / np.float32(FULL_SCALE)

    def _push(self) -> npt.NDArray[np.int64]:
        """Hear a hop and return where it ends on each stream."""
        self._end += self._hop
        ends = np.full(len(self._slots), self._end)
        self._features.push(self._slots, self._samples(LOOK_BACK + self._hop - UNUSED_TAIL), ends)
        return ends

    def _samples(self, n: int) -> npt.NDArray[np.int16]:
        """Return the last `n` samples of each stream that whole frames of this hop cover."""
        begin = (self._end - UNUSED_TAIL - n) % self._period
        return self._noise[:, begin : begin + n]


def _extractor(n_input_frames: int) -> Any:
    """Return transformers' features for windows of that many frames; None without the package."""
    try:
        import_torchaudio()
        from transformers import ASTFeatureExtractor
    except ImportError:
        return None
    extractor_of: Any = ASTFeatureExtractor
    return extractor_of(
        max_length=n_input_frames,
        mean=AUDIOSET_NORMALIZATION.mean,
        std=AUDIOSET_NORMALIZATION.std,
    )


def _extracted(extractor: Any, waveforms: Windows) -> Windows:
    inputs = extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="np")
    values: Windows = inputs["input_values"]
    return values
