"""Waveforms and windows in, scores out: equal to transformers, and independent of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import TINY_DIMS, TINY_LABELS, save_tiny, tiny_checkpoint

from ast_stream import load_tagger
from ast_stream.errors import CheckpointError, StartupError
from ast_stream.model import attention as attention_module
from ast_stream.model import runners as runners_module
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AstDims
from ast_stream.model.fbank import normalize
from ast_stream.model.metadata import FrameDecisions, PlattScaling
from ast_stream.model.runners import (
    cpu_has_int8,
    resolve_device,
    resolve_precision,
    without_tf32,
)
from ast_stream.model.tagger import Tagger
from ast_stream.model.torchaudio_guard import import_torchaudio

PARITY = 1e-4  # features and model together, fp32
needs_int8 = pytest.mark.skipif(not cpu_has_int8(), reason="this CPU does not multiply int8")
HALF = 0.05  # logits of order 1 in bf16, with 8 bits of mantissa


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tagger(tiny: Path) -> Tagger:
    return load_tagger(str(tiny), device="cpu", precision="fp32", attention="math")


def _waveforms(n_samples: int, batch: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(4).normal(0, 0.1, (batch, n_samples)).astype(np.float32)


def _windows(batch: int, n_frames: int = 128) -> torch.Tensor:
    return torch.randn(batch, n_frames, 128, generator=torch.Generator().manual_seed(2)) * 0.5


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [400, 8000, 16_000, 20_640, 40_000])
def test_logits_of_waveforms_equal_the_transformers_pipeline(
    tagger: Tagger, tiny: Path, n_samples: int
) -> None:
    import_torchaudio()
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    extractor: Any = ASTFeatureExtractor.from_pretrained(tiny)
    theirs: Any = ASTForAudioClassification.from_pretrained(tiny)
    waveforms = _waveforms(n_samples)
    inputs = extractor(list(waveforms), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**inputs).logits.numpy()
    np.testing.assert_allclose(tagger.logits(waveforms), expected, atol=PARITY, rtol=0)
    np.testing.assert_allclose(tagger.logits(waveforms[1])[0], expected[1], atol=PARITY, rtol=0)


def test_scores_are_the_sigmoid_of_logits(tagger: Tagger) -> None:
    waveforms = _waveforms(16_000)
    expected = 1 / (1 + np.exp(-tagger.logits(waveforms).astype(np.float64)))
    np.testing.assert_allclose(tagger.scores(waveforms), expected, atol=1e-6)


def test_tensors_give_tensors_and_arrays_give_arrays(tagger: Tagger) -> None:
    waveforms = _waveforms(16_000)
    as_tensor = tagger.logits(torch.from_numpy(waveforms))
    assert as_tensor.dtype == torch.float32
    assert not as_tensor.is_inference()
    np.testing.assert_array_equal(as_tensor.numpy(), tagger.logits(waveforms))
    scores = tagger.scores(waveforms)
    assert torch.equal(tagger.scores(torch.from_numpy(waveforms)), torch.from_numpy(scores))
    np.testing.assert_allclose(scores, as_tensor.sigmoid().numpy(), rtol=3e-7)


def test_facts_of_the_checkpoint_are_at_hand(tagger: Tagger) -> None:
    assert tagger.labels == TINY_LABELS
    assert (tagger.window_s, tagger.window_samples) == (1.0, 16_000)
    assert (tagger.n_input_frames, tagger.n_window_frames, tagger.hop_s) == (128, 98, 0.5)
    assert (tagger.device.type, tagger.precision, tagger.attention) == ("cpu", "fp32", "math")
    assert tagger.hash == tiny_checkpoint().hash


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=needs_int8)])
def test_scores_of_a_window_do_not_depend_on_the_batch(
    tiny: Path, precision: Any, n_threads: int
) -> None:
    with threads(n_threads):
        tagger = load_tagger(str(tiny), device="cpu", precision=precision)
    windows = _windows(9)
    together = tagger.window_scores(windows)
    assert together.shape == (9, 3)
    assert together.dtype == np.float32
    for index in range(9):
        np.testing.assert_array_equal(
            tagger.window_scores(windows[index : index + 1])[0], together[index]
        )
    np.testing.assert_array_equal(tagger.window_scores(windows[3:8]), together[3:8])
    assert np.ptp(together, axis=0).min() > 1e-3


@pytest.mark.parametrize(("one_thread_gflop", "n_threads"), [(5.0, 1), (0.0, 3)])
def test_only_large_models_are_spread_over_threads(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, one_thread_gflop: float, n_threads: int
) -> None:
    seen: list[int] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return v

    monkeypatch.setattr(runners_module, "ONE_THREAD_GFLOP", one_thread_gflop)
    monkeypatch.setattr(attention_module, "_attend", lambda _name: attend)
    monkeypatch.setattr(attention_module, "MAX_ERROR", {torch.float32: 100.0})
    with threads(3):
        tagger = load_tagger(str(tiny), device="cpu", precision="fp32", attention="math")
        seen.clear()
        tagger.window_scores(_windows(1))
        assert torch.get_num_threads() == 3
    assert seen == [n_threads] * (TINY_DIMS.n_layers - 1)


def test_windows_and_waveforms_score_alike(tagger: Tagger) -> None:
    waveforms = torch.from_numpy(_waveforms(16_000))
    frames = torch.nn.functional.pad(tagger.fbank.frames(waveforms), (0, 0, 0, 128 - 98))
    windows = normalize(frames, tagger.normalization)
    np.testing.assert_array_equal(tagger.window_scores(windows), tagger.scores(waveforms).numpy())


def test_an_empty_batch_has_no_scores(tagger: Tagger) -> None:
    assert tagger.window_scores(_windows(0)).shape == (0, 3)
    assert tagger.logits(np.zeros((0, 16_000), np.float32)).shape == (0, 3)


def test_low_precision_scores_stay_near_full_precision(tagger: Tagger, tiny: Path) -> None:
    half = load_tagger(str(tiny), device="cpu", precision="bf16")
    waveforms = _waveforms(16_000)
    difference = np.abs(half.logits(waveforms) - tagger.logits(waveforms)).max()
    assert 0 < difference < HALF


# --- window length -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window_s", "n_input_frames", "n_window_frames"),
    [
        (None, 128, 98),
        (1.0, 128, 98),
        (1.2, 128, 118),
        (1.3, 128, 128),
        (0.5, 50, 48),
        (0.16, 16, 14),
    ],
)
def test_window_length_decides_the_input(
    tiny: Path, window_s: float | None, n_input_frames: int, n_window_frames: int
) -> None:
    tagger = load_tagger(
        str(tiny), device="cpu", precision="fp32", attention="math", window_s=window_s
    )
    assert tagger.n_input_frames == n_input_frames
    assert tagger.n_window_frames == n_window_frames
    assert tagger.window_samples == round((window_s or 1.0) * 16_000)
    assert tagger.window_scores(_windows(2, n_input_frames)).shape == (2, 3)
    assert tagger.logits(_waveforms(16_000)).shape == (3, 3)


@pytest.mark.parametrize(
    ("window_s", "message"),
    [
        (1.31, "expected at most 128 frames of 10 ms as trained, got 1.31 s"),
        (60.0, "expected at most 128 frames"),
        (0.1, "window_s 0.1 is too short: n_frames: expected 16 to 128, got 10"),
        (0.505, "multiple of 0.01 s, got 0.505"),
        (0.0, "multiple of 0.01 s, got 0"),
        (-1.0, "multiple of 0.01 s"),
    ],
)
def test_a_window_the_model_cannot_have_is_refused(
    tiny: Path, window_s: float, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_tagger(str(tiny), device="cpu", window_s=window_s)


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        (np.zeros(399, np.float32), "at least 400 samples"),
        (np.zeros(0, np.float32), "at least 400 samples"),
        (np.zeros(16_000, np.float64), "expected float32 .* got torch.float64"),
        (np.zeros(16_000, np.int16), "divide int16 samples by 32768"),
        (np.zeros((1, 1, 16_000), np.float32), r"got \(1, 1, 16000\)"),
        (np.float32(0.5), "expected float32"),
        (np.full(16_000, np.nan, np.float32), "finite"),
        (np.full(16_000, np.inf, np.float32), "finite"),
        (np.full(16_000, 12_000, np.float32), r"in \[-1, 1\], got a peak of 12000"),
        ([0.0] * 16_000, "expected float32 .* got list"),
    ],
    ids=str,
)
def test_wrong_waveforms_are_refused(tagger: Tagger, waveforms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tagger.logits(waveforms)


def test_samples_of_another_rate_are_refused_where_it_is_named(tagger: Tagger) -> None:
    waveforms = _waveforms(16_000)
    np.testing.assert_array_equal(
        tagger.scores(waveforms, sample_rate=16_000), tagger.scores(waveforms)
    )
    for score in (tagger.scores, tagger.logits):
        with pytest.raises(ValueError, match="sample_rate: expected 16000 Hz, got 44100"):
            score(waveforms, sample_rate=44_100)


def test_that_only_the_beginning_is_scored_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tagger = Tagger(tiny_checkpoint(), device="cpu", precision="fp32", attention="math")
    longest = (tagger.n_input_frames - 1) * 160 + 400
    tagger.scores(_waveforms(longest))
    assert not caplog.messages
    for _ in range(2):
        cut, whole = tagger.scores(_waveforms(longest)), tagger.scores(_waveforms(60 * 16_000))
    assert cut.shape == whole.shape
    (message,) = caplog.messages
    assert message.startswith("waveforms: the first 1.29 s of 60.00 s are scored")
    assert "ast_stream.scan_file" in message


@pytest.mark.parametrize("shape", [(128, 128), (2, 127, 128), (2, 128, 64)])
def test_wrong_windows_are_refused(tagger: Tagger, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"windows: expected shape \(B, 128, 128\)"):
        tagger.window_scores(torch.zeros(shape))


# --- device and precision ------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_never_replaced(tiny: Path, device: str) -> None:
    with pytest.raises(StartupError, match=f"device {device}: no CUDA device is available"):
        load_tagger(str(tiny), device=device)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(StartupError, match="expected auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_full_precision_is_asked_for_and_given_back() -> None:
    cudnn: Any = torch.backends.cudnn
    convolution, product = cudnn.conv, torch.backends.cuda.matmul
    before = convolution.fp32_precision, product.fp32_precision
    assert before == ("tf32", "none")
    with without_tf32():
        assert (convolution.fp32_precision, product.fp32_precision) == ("ieee", "ieee")
    assert (convolution.fp32_precision, product.fp32_precision) == before


def test_half_precision_is_refused_on_a_cpu() -> None:
    with pytest.raises(StartupError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")],
)
def test_automatic_precision_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == expected


# --- on a GPU ------------------------------------------------------------------------------------

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def gpu_tagger(tiny: Path) -> Tagger:
    return load_tagger(str(tiny), device="cuda", precision="fp32", attention="math")


def framed(device: str, precision: Any = "fp32") -> Tagger:
    maps = {"Bark": PlattScaling(scale=1.5, bias=-0.5)}
    checkpoint = tiny_checkpoint(0, frames=FrameDecisions(score_maps=maps))
    return Tagger(checkpoint, device, precision, "math")


def test_frames_of_a_window_do_not_depend_on_its_batch_and_go_through_their_score_maps() -> None:
    tagger, windows = framed("cpu"), _windows(4)
    logits = tagger.frame_logits(windows)
    assert logits.shape == (4, tagger.dims.n_time_patches, 3)
    for index in range(4):
        np.testing.assert_array_equal(
            tagger.frame_logits(windows[index : index + 1])[0], logits[index]
        )
    with torch.inference_mode():
        plain = tagger.checkpoint.build_model().forward_frames(windows)[1].numpy()
    np.testing.assert_allclose(logits[..., 0], 1.5 * plain[..., 0] - 0.5, atol=1e-4)
    np.testing.assert_allclose(logits[..., 1:], plain[..., 1:], atol=1e-4)


def test_frames_are_refused_where_windows_decide(tagger: Tagger) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint with a frame head in use"):
        tagger.frame_logits(_windows(1))
    by_windows = Tagger(framed("cpu").checkpoint, "cpu", "fp32", "math", use_frames=False)
    assert by_windows.frames is None
    assert by_windows.frame_s is None
    np.testing.assert_array_equal(
        by_windows.window_scores(_windows(2)), framed("cpu").window_scores(_windows(2))
    )


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("batch", [0, 1, 3, 64, 65, 130])
    def test_every_batch_size_scores_as_on_the_cpu(
        self, tagger: Tagger, gpu_tagger: Tagger, batch: int
    ) -> None:
        windows = _windows(batch)
        expected = tagger.window_scores(windows)
        np.testing.assert_allclose(
            gpu_tagger.window_scores(windows.cuda()), expected, atol=1e-4, rtol=0
        )

    @pytest.mark.parametrize("batch", [1, 5, 65])
    def test_frames_are_those_on_the_cpu(self, batch: int) -> None:
        windows = _windows(batch)
        expected = framed("cpu").frame_logits(windows)
        on_gpu = framed("cuda").frame_logits(windows.cuda())
        np.testing.assert_allclose(on_gpu, expected, atol=1e-3, rtol=0)

    def test_a_smaller_batch_after_a_larger_one_is_not_mixed_up(self, gpu_tagger: Tagger) -> None:
        windows = _windows(64).cuda()
        large = gpu_tagger.window_scores(windows)
        small = gpu_tagger.window_scores(windows[10:13])
        np.testing.assert_allclose(small, large[10:13], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(gpu_tagger.window_scores(windows), large)

    def test_waveforms_score_as_on_the_cpu(self, tagger: Tagger, gpu_tagger: Tagger) -> None:
        waveforms = _waveforms(16_000)
        np.testing.assert_allclose(
            gpu_tagger.logits(waveforms), tagger.logits(waveforms), atol=1e-3, rtol=0
        )

    @pytest.mark.parametrize("attention", ["auto", "flash", "efficient", "math"])
    def test_half_precision_scores_stay_near_full_precision(
        self, tagger: Tagger, tiny: Path, attention: Any
    ) -> None:
        half = load_tagger(str(tiny), device="cuda", attention=attention)
        assert half.precision == "fp16"
        windows = _windows(5)
        np.testing.assert_allclose(
            half.window_scores(windows.cuda()), tagger.window_scores(windows), atol=0.01, rtol=0
        )


def test_any_size_of_model_is_accepted(tmp_path: Path) -> None:
    dims = AstDims(
        n_classes=5, hidden_size=24, n_layers=1, n_heads=3, intermediate_size=40, max_frames=256
    )
    tagger = Tagger(tiny_checkpoint(2, dims), device="cpu", precision="fp32")
    assert tagger.logits(_waveforms(16_000)).shape == (3, 5)
    assert tagger.dims != TINY_DIMS


def test_batches_that_would_change_a_score_are_not_used(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AudioSpectrogramTransformer.forward

    def rounds_by_batch(self: AudioSpectrogramTransformer, fbank: torch.Tensor) -> torch.Tensor:
        return plain(self, fbank) * (1 + 1e-6 * (len(fbank) > 4))

    monkeypatch.setattr(AudioSpectrogramTransformer, "forward", rounds_by_batch)
    tagger = load_tagger(str(tiny), device="cpu", precision="fp32")
    assert isinstance(tagger._runner, runners_module.CpuRunner)
    assert tagger._runner.batch == 4
    windows = _windows(9)
    np.testing.assert_array_equal(
        tagger.window_scores(windows)[5], tagger.window_scores(windows[5:6])[0]
    )


def test_windows_are_spread_over_the_threads_that_there_are(tiny: Path) -> None:
    with threads(3):
        runner = load_tagger(str(tiny), device="cpu", precision="fp32")._runner
    assert isinstance(runner, runners_module.CpuRunner)
    runner.batch = 8
    sizes = {n: [part.stop - part.start for part in runner._parts(n)] for n in (1, 2, 3, 5, 12, 64)}
    assert sizes == {
        1: [1],
        2: [1, 1],
        3: [1, 1, 1],
        5: [2, 2, 1],
        12: [4, 4, 4],
        64: [8] * 8,
    }
