"""How the model is run: device, precision, and batches on CPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ast_stream.errors import StartupError
from ast_stream.model.ast import ACTIVATIONS, AudioSpectrogramTransformer, Mlp
from ast_stream.model.dims import Activation
from ast_stream.units import counted

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
PrecisionSetting = Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"]

ONE_THREAD_GFLOP = 5.0  # about 100 ms on one core
_CPU_BF16_FEATURES = ("avx512_bf16", "amx_bf16")
_CPU_INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8")
_FP8_CAPABILITY = (9, 0)  # Hopper: scales for each row of a product
_MAX_CPU_BATCH = 8  # more gains nothing
# largest difference from the plain layer on values of order 1: the order of sums, and bf16's steps
MAX_PACKED_ERROR = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
_NOT_FUSED = ("none", "")


class PackedLinear(nn.Module):
    """A linear layer on a CPU, with the activation behind it if wanted; for inference alone.

    Its weights are laid out once for oneDNN. torch's own layer multiplies by MKL, which knows the
    widest registers of some makers only, and lays weights out anew in each call where it uses
    oneDNN: this takes 0.4 of its time in fp32 and 0.85 in bf16 (AMD EPYC with AVX-512, one thread,
    AST-base).

    Source: the operators that torch.compile puts in the place of linear layers on CPUs
    (torch/_inductor/fx_passes/mkldnn_fusion.py). They are not part of torch's public interface, so
    `pack` compares them with the plain layer before it uses them.

    Args:
        linear: the plain layer, on the CPU in fp32 or bf16.
        n_rows: of the inputs to expect; others give the same, perhaps slower.
        activation: the name of one that is computed on the way, or None.
    """

    def __init__(self, linear: nn.Linear, n_rows: int, activation: str | None = None) -> None:
        super().__init__()
        self._post, self._algorithm = _FUSED[activation] if activation else _NOT_FUSED
        self._linear_pointwise = torch.ops.mkldnn._linear_pointwise
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), n_rows)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features)."""
        result: Tensor = self._linear_pointwise(
            x, self._weight, self._bias, self._post, [], self._algorithm
        )
        return result


@torch.inference_mode()
def pack(model: AudioSpectrogramTransformer) -> str | None:
    """Put packed layers in the place of the linear ones of a model, in place.

    Returns:
        None, or why the model stays as it is: what is missing or wrong here.
    """
    n_rows, activation = model.dims.n_tokens, model.dims.activation
    problem = _problem_with_packed(next(model.parameters()).dtype, activation)
    if problem is not None:
        return problem
    for module in list(model.modules()):
        if not isinstance(module, Mlp) or activation not in _FUSED:
            continue
        if isinstance(module.fc1, nn.Linear):
            module.fc1 = PackedLinear(module.fc1, n_rows, activation)
            module.activation = nn.Identity()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child, n_rows))
    return None


def _problem_with_packed(dtype: torch.dtype, activation: Activation) -> str | None:
    """Return why packed layers cannot be used here, or None."""
    if dtype not in MAX_PACKED_ERROR:
        return f"no packed layers in {dtype}"
    with torch.random.fork_rng(devices=()):  # the seeds of others stay theirs
        torch.manual_seed(0)
        linear, numbers = nn.Linear(64, 32, dtype=dtype), torch.randn((3, 32, 64)).to(dtype)
    expected, error = linear(numbers), 0.0
    fused = activation if activation in _FUSED else None
    try:
        for name in {None, fused}:
            plain = expected if name is None else ACTIVATIONS[activation](expected)
            packed = PackedLinear(linear, len(numbers), name)(numbers)
            error = max(error, (packed - plain).abs().max().item())
    except (AttributeError, RuntimeError) as missing:  # NotImplementedError is a RuntimeError
        return f"no packed layers in torch {torch.__version__}: {str(missing).splitlines()[0]}"
    if not error <= MAX_PACKED_ERROR[dtype]:
        return f"packed layers differ from plain ones by {error:.2g}"
    return None


class CpuRunner:
    """Windows in batches, and on several cores, that give each window what it scores alone.

    Kernels for matrix products may round differently for different batch sizes and numbers of
    threads, and live, resumed and scanned runs, which batch differently, must decide the same
    events. So a few windows are scored in every way that would be used, once, and only what agrees
    to the last bit is. What a kernel computes for a row does not depend on the numbers in others.

    Small windows are batched and spread over the cores, a thread for each. Large ones have the
    cores together, one after the other; batches gain them nothing.

    Not safe for use by several threads.

    Attributes:
        n_threads: threads that score such batches at the same time, or a large window together.
    """

    runs_ahead = False

    def __init__(self, model: AudioSpectrogramTransformer, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype
        self._threads_for_one = scoring_threads(model.dims.gflop)
        self.n_threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if self._threads_for_one == 1 and self.n_threads > 1:
            self._pool = ThreadPoolExecutor(self.n_threads, "scoring", torch.set_num_threads, (1,))

    @cached_property
    def batch(self) -> int:
        """Maximum number of windows scored together; determined at the first access."""
        if self._threads_for_one > 1:
            return 1
        batch = self._exact_batch()
        logger.info("batches of %d windows on %s", batch, counted(self.n_threads, "thread"))
        return batch

    @property
    def full_batch(self) -> int:
        """Windows that keep all threads busy."""
        return self.batch * self.n_threads if self._pool is not None else self.batch

    def logits(self, windows: Tensor) -> Tensor:
        """Return (B, n_classes) float32 for (B, n_frames, n_mels)."""
        logits = torch.empty((len(windows), self._model.dims.n_classes))
        self._run(windows, logits, self._model)
        return logits

    def frame_logits(self, windows: Tensor) -> Tensor:
        """Return (B, n_time_patches, n_classes) float32 for (B, n_frames, n_mels)."""
        dims = self._model.dims
        logits = torch.empty((len(windows), dims.n_time_patches, dims.n_classes))
        self._run(windows, logits, self._model.frame_logits)
        return logits

    def download(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Return a function that returns a finished result."""
        return lambda: tensor

    def embedding(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `AudioSpectrogramTransformer.embed_one` gives for one window."""
        with at_most_threads(self._threads_for_one):
            return self._model.embed_one(window.to(self._dtype))

    def _run(self, windows: Tensor, logits: Tensor, forward: Callable[[Tensor], Tensor]) -> None:
        """Fill `logits`, a row for each window, in batches that are exact."""
        parts = list(self._parts(len(windows)))

        def score(part: slice) -> None:
            with torch.inference_mode():  # a setting of each thread
                logits[part] = forward(windows[part].to(self._dtype)).float()

        if self._pool is None or len(parts) == 1:
            with at_most_threads(self._threads_for_one):
                for part in parts:
                    score(part)
            return
        scored = [self._pool.submit(score, part) for part in parts]
        try:
            for future in scored:
                future.result()
        finally:  # whatever was raised here: no thread works on for nobody
            for future in scored:
                future.cancel()
            wait(scored)

    def _parts(self, n_windows: int) -> Iterator[slice]:
        """Yield slices of powers of two up to `batch`, small enough for all threads to have one."""
        if n_windows == 1:
            yield slice(0, 1)  # for which no batch has to be known
            return
        share = min(self.batch, -(-n_windows // self.n_threads) if self._pool else n_windows)
        at = 0
        while at < n_windows:
            size = 1 << (min(share, n_windows - at).bit_length() - 1)
            yield slice(at, at + size)
            at += size

    @torch.inference_mode()
    def _exact_batch(self) -> int:
        """Return the largest batch in which windows score exactly as they do alone."""
        dims = self._model.dims
        generator = torch.Generator().manual_seed(0)
        windows = torch.randn((_MAX_CPU_BATCH, dims.max_frames, dims.n_mels), generator=generator)
        windows = windows.to(self._dtype)

        def scored(size: int) -> list[Tensor]:
            parts = torch.split(windows, size)
            logits = [self._model(part) for part in parts]
            if self._model.frame_head is not None:
                logits += [self._model.frame_logits(part).flatten(1) for part in parts]
            return [row for part in logits for row in part]

        with at_most_threads(1):
            alone, batch = scored(1), 1
            while batch < _MAX_CPU_BATCH:
                if not all(map(torch.equal, scored(2 * batch), alone)):
                    logger.info("batches of %d windows are not exact here", 2 * batch)
                    break
                batch *= 2
        return batch


def resolve_device(setting: str) -> torch.device:
    """Return the device that `setting` (auto, cpu, cuda, cuda:N) names.

    Raises:
        StartupError: it is not a device of this machine; another one is never taken instead.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "auto":
        return torch.device("cuda", 0) if n_gpus else torch.device("cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise StartupError(f"device: expected auto, cpu, cuda or cuda:N, got '{setting}'")
    if device.type == "cpu":
        return torch.device("cpu")
    if not n_gpus:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise StartupError(
            f"device {setting}: no CUDA device is available to torch {torch.__version__} ({built})"
        )
    index = device.index or 0
    if index >= n_gpus:
        raise StartupError(f"device {setting}: expected an index below {n_gpus}, the GPUs found")
    return torch.device("cuda", index)


def resolve_precision(setting: PrecisionSetting, device: torch.device) -> Precision:
    """Return the precision to compute in.

    `auto` is fp16 on CUDA, bf16 on CPUs with instructions for it, else fp32; never int8 or fp8.

    Raises:
        StartupError: the device does not compute in the precision asked for.
    """
    if setting == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if cpu_has_bf16() else "fp32"
    if setting not in get_args(Precision):
        raise StartupError(
            f"precision: expected auto, fp32, fp16, bf16, int8 or fp8, got '{setting}'"
        )
    if setting == "fp16" and device.type == "cpu":
        raise StartupError("precision fp16 needs a CUDA device; on a CPU use bf16 or fp32")
    if setting == "int8" and device.type == "cuda":
        raise StartupError("precision int8 is for CPUs; on a CUDA device use fp16")
    if setting == "fp8":
        _check_fp8(device)
    if setting == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if not has_bf16:
            raise StartupError(f"precision bf16: {torch.cuda.get_device_name(device)} lacks it")
    return setting


def _check_fp8(device: torch.device) -> None:
    if device.type == "cpu":
        raise StartupError("precision fp8 needs a CUDA device; on a CPU use int8, bf16 or fp32")
    if not gpu_has_fp8(device):
        found = torch.cuda.get_device_capability(device)
        raise StartupError(
            f"precision fp8: expected a GPU of compute capability 9.0 or later (Hopper), got "
            f"{torch.cuda.get_device_name(device)} with {found[0]}.{found[1]}; use fp16"
        )


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype of a model; for int8 and fp8, the dtype of everything else in it."""
    if precision == "int8":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    if precision == "fp8":
        return torch.float16
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def scoring_threads(gflop: float) -> int:
    """Return how many CPU threads to use for windows of that much work each."""
    return 1 if gflop <= ONE_THREAD_GFLOP else torch.get_num_threads()


@contextmanager
def at_most_threads(limit: int) -> Iterator[None]:
    """Let torch use at most `limit` CPU threads inside the block.

    Small work gains nothing from a second thread, and where the cores are busy each of its many
    parallel regions waits for a thread that is not scheduled: 15 ms become 500 ms.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, limit))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let fp32 be fp32 inside the block: cuDNN's convolutions use TF32 by default."""
    # not `allow_tf32`: torch refuses to read these once the older switches were set
    cudnn: Any = torch.backends.cudnn
    backends: tuple[Any, ...] = (cudnn.conv, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware."""
    return _cpu_has(_CPU_BF16_FEATURES)


def cpu_has_int8() -> bool:
    """Return whether this CPU multiplies int8 in hardware and adds up without overflow."""
    return _cpu_has(_CPU_INT8_FEATURES)


def gpu_has_fp8(device: torch.device) -> bool:
    """Return whether this GPU multiplies fp8 with a scale for each row."""
    return torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


def _cpu_has(features: Sequence[str]) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature) for feature in features)
