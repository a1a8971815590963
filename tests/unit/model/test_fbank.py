"""Features equal torchaudio's and transformers', however the audio is cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ast_stream.model import fbank as fbank_module
from ast_stream.model.dims import AUDIOSET_NORMALIZATION
from ast_stream.model.fbank import (
    LOOK_BACK,
    SILENCE_LOG_MEL,
    UNUSED_TAIL,
    Fbank,
    SlidingFbank,
    normalize,
    pad_frames,
)
from ast_stream.model.torchaudio_guard import import_kaldi
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE, frame_count, samples_for_frames

PARITY = 1e-4  # after normalisation; transformers' own torchaudio and numpy paths differ by 7e-5
N_SAMPLES = 3 * SAMPLE_RATE


def _noise() -> Tensor:
    return torch.randn(N_SAMPLES, generator=torch.Generator().manual_seed(7)) * 0.1


def _tone(frequency_hz: float = 1000.0, amplitude: float = 0.5) -> Tensor:
    time = torch.arange(N_SAMPLES, dtype=torch.float64) / SAMPLE_RATE
    return (torch.sin(time * 2 * torch.pi * frequency_hz) * amplitude).float()


SIGNALS: dict[str, Callable[[], Tensor]] = {
    "noise": _noise,
    "tone": _tone,
    "quiet tone": lambda: _tone(441.7, 0.001),
    "tone on a constant": lambda: _tone(3000, 0.5) + 0.3,
    "silence": lambda: torch.zeros(N_SAMPLES),
    "click": lambda: torch.nn.functional.one_hot(torch.tensor(20_000), N_SAMPLES).float(),
}


@pytest.fixture(scope="module")
def fbank() -> Fbank:
    return Fbank("cpu")


@pytest.fixture(params=SIGNALS)
def signal(request: pytest.FixtureRequest) -> Tensor:
    return SIGNALS[request.param]()


def test_frames_equal_torchaudio(fbank: Fbank, signal: Tensor) -> None:
    reference = import_kaldi().fbank(
        signal[None],
        sample_frequency=SAMPLE_RATE,
        htk_compat=True,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    difference = (reference - fbank.frames(signal)).abs().max() / (2 * AUDIOSET_NORMALIZATION.std)
    assert difference < PARITY


@pytest.mark.parametrize("seconds", [0.5, 3.0, 10.0, 12.0])
def test_padded_and_normalised_frames_equal_the_transformers_extractor(
    fbank: Fbank, seconds: float
) -> None:
    import_kaldi()
    from transformers import ASTFeatureExtractor

    extractor: Any = ASTFeatureExtractor()
    samples = torch.randn(
        round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(3)
    ).mul(0.2)
    reference = extractor(samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
    ours = normalize(pad_frames(fbank.frames(samples), 1024), AUDIOSET_NORMALIZATION)
    torch.testing.assert_close(ours, reference["input_values"][0], atol=PARITY, rtol=0)


@pytest.mark.parametrize("block_frames", [1, 2, 3, 5, 10, 16, 33, 100])
def test_streamed_frames_are_bit_equal_to_offline_frames(
    fbank: Fbank, signal: Tensor, block_frames: int
) -> None:
    offline = fbank.frames(signal)
    streamed = [
        fbank.frames(signal[start * FRAME_SHIFT :][: samples_for_frames(block_frames)])
        for start in range(0, len(offline), block_frames)
    ]
    assert torch.equal(torch.cat(streamed), offline)


def test_frames_do_not_depend_on_the_other_streams_of_the_batch(fbank: Fbank) -> None:
    batch = torch.stack([make() for make in SIGNALS.values()])
    together = fbank.frames(batch)
    assert together.shape == (len(SIGNALS), frame_count(N_SAMPLES), 128)
    for row, alone in zip(together, batch, strict=True):
        assert torch.equal(row, fbank.frames(alone))


def test_more_input_than_one_block_gives_the_same_frames(
    fbank: Fbank, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.stack([_noise(), _tone()])
    whole = fbank.frames(batch)
    monkeypatch.setattr("ast_stream.model.fbank.MAX_BLOCK_FRAMES", {"cpu": 50})
    assert torch.equal(fbank.frames(batch), whole)


@pytest.mark.parametrize(
    ("n_samples", "n_frames"), [(0, 0), (399, 0), (400, 1), (16_000, 98), (160_000, 998)]
)
def test_frame_count_is_that_of_snipped_edges(fbank: Fbank, n_samples: int, n_frames: int) -> None:
    assert fbank.frames(torch.zeros(2, n_samples)).shape == (2, n_frames, 128)


def test_silence_and_padding_have_their_known_values(fbank: Fbank) -> None:
    window = normalize(pad_frames(fbank.frames(torch.zeros(16_000)), 128), AUDIOSET_NORMALIZATION)
    assert torch.allclose(window[:98], torch.tensor(-1.2775939), atol=1e-6)
    assert torch.allclose(window[98:], torch.tensor(0.46703237), atol=1e-6)


def test_doubling_the_amplitude_adds_two_ln_two(fbank: Fbank) -> None:
    louder = fbank.frames(_noise() * 2) - fbank.frames(_noise())
    is_audible = fbank.frames(_noise()) > SILENCE_LOG_MEL + 1
    np.testing.assert_allclose(louder[is_audible].numpy(), 2 * math.log(2), atol=1e-4)


def test_a_tone_peaks_in_the_mel_band_of_its_frequency(fbank: Fbank) -> None:
    def mel(frequency_hz: float) -> float:
        return 1127 * math.log(1 + frequency_hz / 700)

    band_width = (mel(8000) - mel(20)) / 129
    for frequency_hz in (500.0, 1000.0, 4000.0):
        nearest = (mel(frequency_hz) - mel(20)) / band_width - 1
        peak = fbank.frames(_tone(frequency_hz)).mean(0).argmax().item()
        assert abs(peak - nearest) <= 1


def test_a_constant_offset_is_not_heard(fbank: Fbank) -> None:
    difference = fbank.frames(_noise() + 0.01) - fbank.frames(_noise())
    assert difference.abs().max() < 2e-3  # float32 rounding of the shifted samples


def test_a_sample_that_is_not_finite_spoils_only_its_own_frames(fbank: Fbank) -> None:
    samples = _noise()
    samples[8000] = float("nan")
    spoiled = fbank.frames(samples).isnan().any(dim=1).nonzero().flatten().tolist()
    assert spoiled == [48, 49, 50]  # frames 48-50 hold sample 8000
    clean = ~fbank.frames(samples).isnan()
    assert torch.equal(fbank.frames(samples)[clean], fbank.frames(_noise())[clean])


def test_integer_samples_are_refused(fbank: Fbank) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        fbank.frames(torch.zeros(1600, dtype=torch.int16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_frames_on_the_gpu_equal_those_on_the_cpu(fbank: Fbank, signal: Tensor) -> None:
    on_gpu = Fbank("cuda").frames(signal.cuda()).cpu()
    difference = (on_gpu - fbank.frames(signal)).abs() / (2 * AUDIOSET_NORMALIZATION.std)
    # Far below a pure tone both hold only their FFT's rounding noise, hence two bounds.
    assert difference.mean() < PARITY / 10
    assert difference.max() < 1e-3


def sliding(device: str, hop: int) -> SlidingFbank:
    features = SlidingFbank(
        Fbank(device),
        AUDIOSET_NORMALIZATION,
        hop=hop,
        n_window_frames=98,
        n_input_frames=100,
        max_hops=1,
        device=torch.device(device),
    )
    features.grow(1)
    return features


def windows_of(features: SlidingFbank, signal: Tensor, hop: int) -> list[Tensor]:
    pcm = (signal * 32_767).numpy().astype(np.int16)
    padded = np.concatenate((np.zeros(LOOK_BACK, np.int16), pcm))
    slots, first = np.array([0]), np.array([0])
    found = []
    for start in range(0, len(pcm) - hop + 1, hop):
        ends = np.array([start + hop])
        step = padded[start : start + hop + LOOK_BACK - UNUSED_TAIL]
        features.push(slots, step[None], ends)
        found.append(features.windows(slots, ends, first, ends).clone())
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_never_waits_for_a_gpu_that_computes_windows(signal: Tensor) -> None:
    hop = SAMPLE_RATE // 2
    features = sliding("cuda", hop)
    windows_of(features, signal, hop)  # kernels and plans are made in the first run
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = windows_of(features, signal, hop)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = windows_of(sliding("cpu", hop), signal, hop)
    for one, other in zip(on_gpu, expected, strict=True):
        assert (one.cpu() - other).abs().max() < 1e-3


def test_sliding_windows_end_with_the_frames_of_the_whole_recording(
    fbank: Fbank, signal: Tensor
) -> None:
    hop = SAMPLE_RATE // 2
    windows = windows_of(sliding("cpu", hop), signal, hop)
    pcm = (signal * 32_767).to(torch.int16).float() / 32_768
    whole = normalize(fbank.frames(pcm), AUDIOSET_NORMALIZATION)
    for number, window in enumerate(windows):
        stop = frame_count((number + 1) * hop)
        start = max(0, stop - 98)
        assert torch.equal(window[0, : stop - start], whole[start:stop])


def test_a_window_holds_the_real_frames_wherever_they_lie_in_the_ring_and_padding_behind(
    fbank: Fbank,
) -> None:
    hop, n_frames = SAMPLE_RATE // 10, 98
    features, signal = sliding("cpu", hop), _noise()
    pcm = (signal * 32_767).to(torch.int16).float() / 32_768
    whole = normalize(fbank.frames(pcm), AUDIOSET_NORMALIZATION)
    padding = normalize(torch.zeros(()), AUDIOSET_NORMALIZATION)
    windows_of(features, signal, hop)
    slots, ends = np.array([0]), np.array([N_SAMPLES])
    newest = frame_count(N_SAMPLES) - 1
    for end in range(0, 3 * SAMPLE_RATE // 10, hop):  # windows of hops before lie elsewhere
        for first, last in ((0, newest), (newest - 40, newest), (0, newest - 30), (newest, 0)):
            ends = np.array([N_SAMPLES - end])
            (window,) = features.windows(slots, ends, np.array([first]), np.array([last]))
            stop = min(frame_count(int(ends[0])) - 1, last) + 1
            begin = max(frame_count(int(ends[0])) - n_frames, first)
            n_real = max(0, stop - begin)
            assert torch.equal(window[:n_real], whole[begin : begin + n_real])
            assert (window[n_real:] == padding).all()


def test_the_mel_bank_in_parts_gives_the_energies_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, fbank: Fbank, signal: Tensor
) -> None:
    monkeypatch.setattr(fbank_module, "CPU_MEL_PARTS", 1)
    assert torch.equal(Fbank("cpu").frames(signal), fbank.frames(signal))
