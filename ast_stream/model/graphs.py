"""Batches on a GPU: padded to fixed sizes, each a CUDA graph, while the host does other things."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ast_stream.errors import StartupError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AstDims
from ast_stream.model.runners import without_tf32

logger = logging.getLogger(__name__)

# A batch is padded to the next of these. Those between the powers of two keep the padding below a
# third, where it would be up to a half.
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Of the memory that is free at the start, what a batch may take. The rest is for features, other
# batch sizes, other programs, and for what `window_bytes` does not know of.
MEMORY_SHARE = 0.5
_WORKSPACE = 2.0  # times what is reckoned: workspaces of kernels, and blocks that do not fit
_WARM_UP_RUNS = 3  # before a capture: kernels are chosen and workspaces allocated in the first

Arrives = Callable[[], Tensor]
"""Waits for a download and returns it on the host; raises the errors of its computation."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The model's work for one batch size.

    Attributes:
        replay: computes the outputs of what the input holds.
        logits: static output, (bucket, n_classes), float32; other graphs may write over it.
        frame_logits: the same, (bucket, n_time_patches, n_classes); empty without frame head.
    """

    replay: Callable[[], object]
    logits: Tensor
    frame_logits: Tensor


class GraphDevice(Protocol):
    """What graphs need from the device that they run on."""

    device: torch.device

    def used(self) -> AbstractContextManager[object]:
        """Return a context in which work goes to the device."""

    def free_bytes(self) -> int:
        """Return how much memory is available."""

    def capture(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> Graph:
        """Return the graph of a call that reads and writes the same memory each time.

        Raises:
            OutOfMemoryError: of torch.
        """

    def release_memory(self) -> None:
        """Free the memory of a failed capture."""

    def download(self, tensor: Tensor) -> Arrives:
        """Start copying a tensor to the host, after the work that computes it."""


class CudaDevice:
    """A GPU, with graphs whose memory is shared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        # of this device: the one that torch would take belongs to the first device that captured
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def used(self) -> AbstractContextManager[object]:
        """See `GraphDevice`."""
        return torch.cuda.device(self.device)

    def free_bytes(self) -> int:
        """See `GraphDevice`: including memory that torch has cached."""
        free, _total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + unused

    def capture(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> Graph:
        """See `GraphDevice`."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for _run in range(_WARM_UP_RUNS):
                forward()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logits, frame_logits = forward()
        return Graph(graph.replay, logits, frame_logits)

    def release_memory(self) -> None:
        """See `GraphDevice`."""
        torch.cuda.empty_cache()

    def download(self, tensor: Tensor) -> Arrives:
        """See `GraphDevice`: into page-locked memory of its own, so that the host does not wait."""
        new_event: Any = torch.cuda.Event
        with self.used():
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            is_copied = new_event()
            is_copied.record()

        def arrived() -> Tensor:
            is_copied.synchronize()
            return host

        return arrived


class GraphRunner:
    """Batches padded to fixed sizes, each a CUDA graph captured when first needed.

    The host only puts work into the device's queue, in order, and waits where `download` is asked
    for its result: one batch may be begun while the results of the one before are on their way.
    Each batch's results have memory of their own; inputs and outputs of graphs are shared, and
    copied in the queue's order.

    Not safe for use by several threads.

    Args:
        holds_attention: attention keeps its scores in memory, as `math` does.

    Attributes:
        buckets: sizes of batches, as many of `BUCKETS` as there is memory for at the start.
    """

    runs_ahead = True

    def __init__(
        self,
        model: AudioSpectrogramTransformer,
        device: GraphDevice,
        dtype: torch.dtype,
        *,
        holds_attention: bool,
    ) -> None:
        self._model = model
        self._on = device
        self._dtype = dtype
        self._graphs: dict[int, Graph] = {}
        self._windows: Tensor | None = None  # static input of all graphs
        each = window_bytes(model.dims, dtype, holds_attention=holds_attention)
        self.buckets = buckets_within(device.free_bytes(), each)
        logger.info(
            "batches of up to %d windows on %s, %.1f MB each", self.buckets[-1], device.device,
            each / 1e6,
        )  # fmt: skip

    @property
    def full_batch(self) -> int:
        """Windows worth scoring together."""
        return self.buckets[-1]

    def logits(self, windows: Tensor) -> Tensor:
        """Return (B, n_classes) float32 for (B, n_frames, n_mels), on the device."""
        logits = torch.empty((len(windows), self._model.dims.n_classes), device=self._on.device)
        return self._run(windows, logits, lambda graph: graph.logits)

    def frame_logits(self, windows: Tensor) -> Tensor:
        """Return (B, n_time_patches, n_classes) float32 for (B, n_frames, n_mels)."""
        dims = self._model.dims
        shape = (len(windows), dims.n_time_patches, dims.n_classes)
        logits = torch.empty(shape, device=self._on.device)
        return self._run(windows, logits, lambda graph: graph.frame_logits)

    def embedding(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `AudioSpectrogramTransformer.embed_one` gives, on the device.

        Without a graph: it is asked for seldom, and as an output it would cost every batch time.
        """
        with self._on.used(), without_tf32():
            return self._model.embed_one(window.to(self._dtype))

    def download(self, tensor: Tensor) -> Arrives:
        """Start copying a result to the host; call the returned function for it."""
        return self._on.download(tensor)

    def _run(self, windows: Tensor, logits: Tensor, output: Callable[[Graph], Tensor]) -> Tensor:
        """Fill `logits`, a row for each window, with an output of the graphs."""
        with self._on.used():
            for start in range(0, len(windows), self.full_batch):
                part = windows[start : start + self.full_batch]
                graph, static = self._graph(bucket_for(len(part), self.buckets))
                static[: len(part)].copy_(part)  # the rest keeps older windows, unread
                graph.replay()
                # Copied before the next replay, which may reuse the pool's memory.
                logits[start : start + len(part)].copy_(output(graph)[: len(part)])
        return logits

    def prepare(self, n_windows: int) -> None:
        """Capture the graphs for batches of up to `n_windows` windows in advance.

        The largest goes first, in whose memory the others then fit. One that there is no memory for
        is left out, which is logged: batches are smaller then.

        Raises:
            StartupError: not even a single window fits into the device's memory.
        """
        with self._on.used():
            largest = bucket_for(min(n_windows, self.full_batch), self.buckets)
            for bucket in reversed(self.buckets[: self.buckets.index(largest) + 1]):
                try:
                    self._graph(bucket)
                except torch.cuda.OutOfMemoryError as error:
                    self._leave_out(bucket, error)

    def _leave_out(self, bucket: int, error: Exception) -> None:
        self._on.release_memory()
        # nor is there for larger ones, but those that have their memory already
        self.buckets = tuple(size for size in self.buckets if size < bucket or size in self._graphs)
        if not self.buckets:
            raise StartupError(
                f"device {self._on.device}: no memory for a batch of {bucket}: {error}"
            ) from error
        logger.warning("no memory for batches of %d windows: skipped", bucket)

    def _graph(self, bucket: int) -> tuple[Graph, Tensor]:
        """Return the graph of a batch size, and its input (bucket, n_frames, n_mels)."""
        dims = self._model.dims
        if self._windows is None:
            shape = (self.full_batch, dims.max_frames, dims.n_mels)
            self._windows = torch.zeros(shape, device=self._on.device, dtype=self._dtype)
        static = self._windows[:bucket]
        if bucket not in self._graphs:
            with without_tf32():
                self._graphs[bucket] = self._on.capture(lambda: self._forward(static))
        return self._graphs[bucket], static

    def _forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        if self._model.frame_head is None:
            logits = self._model(windows).float()
            return logits, logits.new_empty(0)
        logits, frame_logits = self._model.forward_frames(windows)
        return logits.float(), frame_logits.float()


def window_bytes(dims: AstDims, dtype: torch.dtype, *, holds_attention: bool) -> int:
    """Return about how much memory a window of a batch takes while it is scored.

    What lives at once is reckoned at the widest place of a block, its MLP: residual, its norm, and
    the wide layer before and after the activation; or at its attention: residual, norm, queries,
    keys, values, result, and the scores of `math`, which torch computes in fp32 and copies.
    """
    size = dtype.itemsize
    mlp = dims.n_tokens * (2 * dims.hidden_size + 2 * dims.intermediate_size) * size
    attention = dims.n_tokens * 6 * dims.hidden_size * size
    if holds_attention:
        attention += 2 * dims.n_heads * dims.n_tokens**2 * torch.float32.itemsize
    features = dims.max_frames * dims.n_mels * (size + 2 * torch.float32.itemsize)
    return max(mlp, attention) + features


def buckets_within(free_bytes: int, bytes_per_window: int) -> tuple[int, ...]:
    """Return the batch sizes to use: those that take at most `MEMORY_SHARE` of what is free.

    A single window is always tried.
    """
    most = MEMORY_SHARE * free_bytes / (_WORKSPACE * bytes_per_window)
    return tuple(bucket for bucket in BUCKETS if bucket == BUCKETS[0] or bucket <= most)


def bucket_for(n_windows: int, buckets: Sequence[int] = BUCKETS) -> int:
    """Return the smallest of the batch sizes that holds `n_windows`, at most the largest."""
    return next(bucket for bucket in buckets if bucket >= n_windows)
