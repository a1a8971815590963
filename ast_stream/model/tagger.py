"""Waveforms or log-mel windows in, scores per class out, on the device and in the precision chosen.

The only place that puts the model on a device, casts it, and decides how batches are run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model.ast import cut_time, softmax_logits
from ast_stream.model.attention import AttentionSetting, choose_attention
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, model_with
from ast_stream.model.description import BUNDLED
from ast_stream.model.dims import AstDims
from ast_stream.model.fbank import Fbank, normalize, pad_frames
from ast_stream.model.float8 import use_float8
from ast_stream.model.graphs import CudaDevice, GraphRunner
from ast_stream.model.metadata import PlattScaling
from ast_stream.model.quantized import quantize
from ast_stream.model.runners import (
    CpuRunner,
    PrecisionSetting,
    dtype_of,
    pack,
    resolve_device,
    resolve_precision,
)
from ast_stream.model.weights import FRAME_HEAD
from ast_stream.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    FULL_SCALE,
    SAMPLE_RATE,
    counted,
    frame_count,
    whole_frames,
)

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Awaited = Callable[[], Array]
"""Waits for a started computation and returns its result."""

DEFAULT_HOP_S = 0.5
MEASURED_WINDOWS = 8  # in the choice of attention: 64 would need gigabytes for `math`
MAX_AMPLITUDE = 8.0  # beyond any float recording; what is louder was not scaled to [-1, 1]


class Tagger:
    """A checkpoint ready to score, with the features it was trained on.

    Args:
        on_batch: called with the size of each batch of windows and the seconds it took.
        use_frames: False: leave the frame head of a checkpoint out; windows decide, as of one that
            has none.

    Attributes:
        labels: class names in the order of the scores.
        window_s, window_samples, n_window_frames: audio in one window, and its whole frames.
        n_input_frames: frames the model takes; those beyond `n_window_frames` are padding.
        hop_s: distance between windows that the checkpoint was calibrated for.
        frames: how events are decided by frames; None: windows decide.
        frame_s: seconds from one frame to the next; None: windows decide.
        device, precision: where and how the model computes.
        attention: the attention in use, with `attention_choice.measurements` behind it.
        fbank: the features, on the same device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        precision: PrecisionSetting = "auto",
        attention: AttentionSetting = "auto",
        window_s: float | None = None,
        *,
        on_batch: Callable[[int, float], None] | None = None,
        use_frames: bool = True,
    ) -> None:
        dims, state_dict = checkpoint.dims, checkpoint.state_dict
        self.frames = checkpoint.metadata.frames if use_frames else None
        if self.frames is None:
            state_dict = {
                name: tensor for name, tensor in state_dict.items() if name not in FRAME_HEAD
            }
        self.window_s = checkpoint.window_s if window_s is None else window_s
        if self.window_s < checkpoint.window_s:
            dims, state_dict = _shortened(checkpoint, state_dict, self.window_s)
        self.window_samples = _window_frames(checkpoint, self.window_s) * FRAME_SHIFT
        self.n_window_frames = frame_count(self.window_samples)
        self.n_input_frames = dims.max_frames
        if self.n_window_frames > self.n_input_frames:
            raise CheckpointError(
                f"{checkpoint.origin}: window_s: expected at most {self.n_input_frames} frames of "
                f"10 ms as trained, got {self.window_s:g} s with {self.n_window_frames}"
            )
        self.checkpoint = checkpoint
        self.dims = dims
        self.frame_s = None if self.frames is None else dims.time_patch_s
        self.labels = list(checkpoint.labels)
        self.metadata = checkpoint.metadata
        self.normalization = checkpoint.normalization
        self.hash = checkpoint.hash
        self.hop_s = checkpoint.metadata.hop_s or min(DEFAULT_HOP_S, self.window_s)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        dtype = dtype_of(self.precision)
        n_windows = 1 if self.device.type == "cpu" else MEASURED_WINDOWS
        self.attention_choice = choose_attention(attention, dims, n_windows, self.device, dtype)
        self.attention = self.attention_choice.name
        self.fbank = Fbank(self.device)
        self._on_batch = on_batch
        self._last_noted_s = 0.0
        self._has_warned = False
        self._score_map = _score_map(checkpoint.metadata.score_maps, checkpoint.labels, self.device)
        self._frame_score_map = (
            _score_map(self.frames.score_maps, checkpoint.labels, self.device)
            if self.frames is not None
            else None
        )
        self._is_single_label = checkpoint.scoring == "softmax"
        model = model_with(dims, state_dict).to(self.device, dtype)
        model.use_attention(self.attention_choice.attend)
        self._runner: CpuRunner | GraphRunner
        if self.device.type == "cpu":
            if self.precision == "int8":
                quantize(model)
            problem = pack(model)
            self._kernels = "packed weights" if problem is None else problem
            self._runner = CpuRunner(model, dtype)
        else:
            if self.precision == "fp8":
                use_float8(model)
            self._kernels = "CUDA graphs"
            on_device, holds = CudaDevice(self.device), self.attention == "math"
            self._runner = GraphRunner(model, on_device, dtype, holds_attention=holds)
        logger.info("scoring on %s in %s: %s", self.device, self.precision, self._kernels)

    @property
    def kernels(self) -> str:
        """How windows are scored here, for people."""
        if isinstance(self._runner, GraphRunner):
            return self._kernels
        threads = counted(self._runner.n_threads, "thread")
        return f"{self._kernels}, batches of {self._runner.batch} on {threads}"

    @property
    def full_batch(self) -> int:
        """Windows that are worth scoring at once here."""
        return self._runner.full_batch

    @property
    def runs_ahead(self) -> bool:
        """Whether windows can be started while the results of others are in flight."""
        return self._runner.runs_ahead

    def window_scores(self, windows: Tensor) -> Array:
        """Return scores of normalised log-mel windows.

        Args:
            windows: shape (B, n_input_frames, 128), float32, on `device`; B may be 0.

        Returns:
            Scores in [0, 1], shape (B, n_classes), float32. On the CPU the scores of a window do
            not depend, to the last bit, on the other windows of the batch.

        Raises:
            ValueError: `windows` has another shape.
        """
        return self.begin_window_scores(windows)()

    def frame_logits(self, windows: Tensor) -> Array:
        """Return the calibrated logits of the time patches of windows.

        Args:
            windows: as for `window_scores`.

        Returns:
            Logits through the score maps of frames, shape (B, n_time_patches, n_classes), float32;
            of a window the same whatever the batch, as there.

        Raises:
            ValueError: `windows` has another shape, or `frames` is None.
        """
        return self.begin_frame_logits(windows)()

    @torch.inference_mode()
    def begin_window_scores(self, windows: Tensor) -> Awaited:
        """Start what `window_scores` does; call the result once for the scores.

        Several may be begun before the first is waited for, which is worth it where `runs_ahead`.
        Memory grows by what is begun. An error of the device may come in either place.
        """
        began_s = time.perf_counter()
        self._check_windows(windows)
        logits = self.calibrated(self._runner.logits(windows))
        arrives = self._runner.download(logits)
        return lambda: self._noted(len(windows), began_s, _sigmoid(_to_numpy(arrives())))

    @torch.inference_mode()
    def begin_frame_logits(self, windows: Tensor) -> Awaited:
        """Start what `frame_logits` does; see `begin_window_scores`."""
        if self.frames is None:
            raise ValueError("frame_logits: expected a checkpoint with a frame head in use")
        began_s = time.perf_counter()
        self._check_windows(windows)
        logits = self._runner.frame_logits(windows)
        if self._frame_score_map is not None:
            scale, bias = self._frame_score_map
            logits = logits * scale + bias
        arrives = self._runner.download(logits)
        return lambda: self._noted(len(windows), began_s, _to_numpy(arrives()))

    def _noted(self, n_windows: int, began_s: float, found: Array) -> Array:
        """Report how long windows took: since the previous ones, if these were waited for."""
        now_s = time.perf_counter()
        if self._on_batch is not None:
            self._on_batch(n_windows, now_s - max(began_s, self._last_noted_s))
        self._last_noted_s = now_s
        return found

    @torch.inference_mode()
    def embedding(self, window: Tensor) -> tuple[Array, Array]:
        """Return the embeddings that the heads read: of the whole window, and of each time patch.

        Args:
            window: shape (n_input_frames, 128), normalised, on `device`.

        Returns:
            Shapes (hidden_size,) and (n_time_patches, hidden_size), float32. A window is computed
            alone, so it has the same wherever it is asked about.

        Raises:
            ValueError: `window` has another shape.
        """
        self._check_windows(window[None])
        whole, patches = self._runner.embedding(window)
        return _to_numpy(whole), _to_numpy(patches)

    @overload
    def logits(self, waveforms: Tensor, sample_rate: int | None = None) -> Tensor: ...
    @overload
    def logits(
        self, waveforms: npt.NDArray[np.float32], sample_rate: int | None = None
    ) -> Array: ...
    def logits(
        self, waveforms: Tensor | npt.NDArray[np.float32], sample_rate: int | None = None
    ) -> Tensor | Array:
        """Return the logits of waveforms, padded or cut to one window as ASTFeatureExtractor does.

        Of a waveform longer than the window only the beginning is scored, which is logged once;
        `scan_file` finds the events of whole recordings.

        Args:
            waveforms: shape (n_samples,) or (B, n_samples), float32 in [-1, 1], at 16 kHz; numpy
                or torch.
            sample_rate: of the waveforms, to have it checked; None: they are taken for 16 kHz.

        Returns:
            Shape (1 or B, n_classes), float32; numpy for numpy, a CPU tensor for a tensor.

        Raises:
            ValueError: another type, shape or rate, fewer than 400 samples, samples that are not
                finite or not scaled to [-1, 1].
        """
        _check_rate(sample_rate)
        samples = _checked(waveforms)
        self._warn_of_cut(samples.shape[1])
        logits = self._waveform_logits(samples)
        # The clone is an ordinary tensor: those made in inference mode refuse later gradients.
        return _to_numpy(logits) if isinstance(waveforms, np.ndarray) else logits.clone()

    @overload
    def scores(self, waveforms: Tensor, sample_rate: int | None = None) -> Tensor: ...
    @overload
    def scores(
        self, waveforms: npt.NDArray[np.float32], sample_rate: int | None = None
    ) -> Array: ...
    def scores(
        self, waveforms: Tensor | npt.NDArray[np.float32], sample_rate: int | None = None
    ) -> Tensor | Array:
        """Return the scores of waveforms, in [0, 1]: the sigmoid of the calibrated `logits`."""
        if isinstance(waveforms, Tensor):
            logits = self.calibrated(self.logits(waveforms, sample_rate))
            return torch.from_numpy(_sigmoid(_to_numpy(logits)))
        return _to_numpy(self.scores(_checked(waveforms), sample_rate))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Return the calibrated logits: logits through the checkpoint's Platt scaling.

        Of a model that was trained to name one class out of all, what the maps are for is the
        logit of the softmax.

        Args:
            logits: shape (..., n_classes), float32.

        Returns:
            The same shape; `logits` itself where there is nothing to do.
        """
        if self._is_single_label:
            logits = softmax_logits(logits)
        if self._score_map is None:
            return logits
        scale, bias = (part.to(logits.device) for part in self._score_map)
        return logits * scale + bias

    def prepare(self, n_windows: int) -> None:
        """Prepare batches of up to `n_windows` windows, so that the first does not wait.

        Raises:
            StartupError: the device has no memory for them.
        """
        if isinstance(self._runner, GraphRunner):
            with torch.inference_mode():
                self._runner.prepare(n_windows)
        elif n_windows > 1:
            assert self._runner.batch  # found out now

    def _warn_of_cut(self, n_samples: int) -> None:
        """Log, once, that only the beginning of a waveform is scored."""
        if self._has_warned or frame_count(n_samples) <= self.n_input_frames:
            return
        self._has_warned = True
        n_scored = (self.n_input_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
        logger.warning(
            "waveforms: the first %.2f s of %.2f s are scored, cut as ASTFeatureExtractor does; "
            "ast_stream.scan_file finds the events of whole recordings",
            n_scored / SAMPLE_RATE, n_samples / SAMPLE_RATE,
        )  # fmt: skip

    @torch.inference_mode()
    def _waveform_logits(self, samples: Tensor) -> Tensor:
        return self._window_logits(self.windows(samples)).cpu()

    @torch.inference_mode()
    def windows(self, samples: Tensor) -> Tensor:
        """Return the windows of waveforms (B, n_samples), as `window_scores` takes them."""
        fbank = pad_frames(self.fbank.frames(samples.to(self.device)), self.n_input_frames)
        return normalize(fbank, self.normalization)

    def _window_logits(self, windows: Tensor) -> Tensor:
        self._check_windows(windows)
        return self._runner.logits(windows)

    def _check_windows(self, windows: Tensor) -> None:
        expected = (self.n_input_frames, self.dims.n_mels)
        if windows.ndim != 3 or windows.shape[1:] != expected:
            raise ValueError(
                f"windows: expected shape (B, {expected[0]}, {expected[1]}), "
                f"got {tuple(windows.shape)}"
            )


def load_tagger(
    reference: str = BUNDLED,
    device: str = "auto",
    precision: PrecisionSetting = "auto",
    attention: AttentionSetting = "auto",
    window_s: float | None = None,
    *,
    on_batch: Callable[[int, float], None] | None = None,
    use_frames: bool = True,
) -> Tagger:
    """Return a checkpoint ready to score.

    Args:
        reference: see `load_checkpoint`.
        device: auto, cpu, cuda or cuda:N.
        precision: auto is fp16 on CUDA, bf16 on CPUs that have it, else fp32; int8 (CPUs) and
            fp8 (GPUs from Hopper on) are never chosen by themselves.
        attention: auto measures what there is.
        window_s: seconds of audio in a window, a multiple of 0.01; None: as trained. A shorter
            one cuts the position embeddings at their centre.
        on_batch: called with the size of each batch of windows and the seconds it took.
        use_frames: False: decide by windows, even if the checkpoint has a frame head.

    Raises:
        CheckpointError: no such checkpoint, not an AST, damaged, or too long a window.
        StartupError: device, precision or attention are not available as asked.
    """
    checkpoint = load_checkpoint(reference)
    return Tagger(
        checkpoint, device, precision, attention, window_s, on_batch=on_batch, use_frames=use_frames
    )


def _window_frames(checkpoint: Checkpoint, window_s: float) -> int:
    try:
        return whole_frames(window_s, "window_s")
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.origin}: {error}") from error


def _shortened(
    checkpoint: Checkpoint, state_dict: Mapping[str, Tensor], window_s: float
) -> tuple[AstDims, dict[str, Tensor]]:
    try:
        n_frames = _window_frames(checkpoint, window_s)
        return cut_time(checkpoint.dims, state_dict, n_frames)
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.origin}: window_s {window_s:g} is too short: {error}"
        ) from error


def _score_map(
    by_label: Mapping[str, PlattScaling], labels: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Return scale and bias of all classes, each of shape (n_classes,), None if none has a map."""
    if not by_label:
        return None
    maps = [by_label.get(label, PlattScaling()) for label in labels]
    return (
        torch.tensor([score_map.scale for score_map in maps], dtype=torch.float32, device=device),
        torch.tensor([score_map.bias for score_map in maps], dtype=torch.float32, device=device),
    )


def _check_rate(sample_rate: int | None) -> None:
    if sample_rate is not None and sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"sample_rate: expected {SAMPLE_RATE} Hz, got {sample_rate}: resample the waveforms, "
            "or let ast_stream.scan_file read the recording"
        )


def _checked(waveforms: Tensor | npt.NDArray[Any]) -> Tensor:
    """Return samples of shape (B, n_samples), or say what is wrong with them."""
    samples: Any = waveforms
    if isinstance(waveforms, np.ndarray):
        with suppress(TypeError):  # a type that torch does not have
            samples = torch.from_numpy(np.ascontiguousarray(waveforms))
    if not isinstance(samples, Tensor) or samples.dtype != torch.float32:
        got = getattr(samples, "dtype", type(samples).__name__)
        raise ValueError(
            f"waveforms: expected float32 in [-1, 1], got {got}; "
            f"divide int16 samples by {FULL_SCALE}"
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            "waveforms: expected shape (n_samples,) or (batch, n_samples), "
            f"got {tuple(samples.shape)}"
        )
    checked: Tensor = samples if samples.ndim == 2 else samples[None]
    if checked.shape[1] < FRAME_LENGTH:
        raise ValueError(
            f"waveforms: expected at least {FRAME_LENGTH} samples (25 ms), got {checked.shape[1]}"
        )
    if not checked.isfinite().all():
        raise ValueError("waveforms: expected finite samples, got NaN or infinity")
    peak = checked.abs().max().item() if checked.numel() else 0.0
    if peak > MAX_AMPLITUDE:
        raise ValueError(f"waveforms: expected samples in [-1, 1], got a peak of {peak:g}")
    return checked


def _sigmoid(logits: Array) -> Array:
    """Return scores, float32: in float64, so that each is the same in arrays of any shape."""
    with np.errstate(over="ignore"):
        scores: Array = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return scores


def _to_numpy(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array
