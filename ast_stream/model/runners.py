"""Forward passes in fixed shapes: normalised windows in, logits and scores on the device out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.device import at_most_threads, scoring_threads, without_tf32

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # batch sizes on CUDA; a batch is padded to the next one
_WARM_UP_RUNS = 3  # before a capture: kernels are chosen and workspaces allocated in the first


class SingleRunner:
    """One window at a time: what a window scores never depends on its neighbours in a batch.

    Kernels for matrix products round differently for different batch sizes, and live, resumed and
    scanned runs, which batch differently, must decide the same events.
    """

    def __init__(self, model: AudioSpectrogramTransformer, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype
        self._n_threads = scoring_threads(model.dims.gflop)

    def logits(self, windows: Tensor) -> Tensor:
        """Return (B, n_classes) float32 for (B, n_frames, n_mels)."""
        logits = torch.empty((len(windows), self._model.dims.n_classes))
        with at_most_threads(self._n_threads):
            for window, row in zip(windows, logits, strict=True):
                row.copy_(self._model(window[None].to(self._dtype))[0])
        return logits


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    windows: Tensor  # static input, (bucket, n_frames, n_mels)
    logits: Tensor  # static output, (bucket, n_classes), float32


class GraphRunner:
    """Batches padded to fixed sizes, each a CUDA graph captured when first needed.

    Not safe for use by several threads: inputs and outputs of the graphs are shared.
    """

    def __init__(
        self, model: AudioSpectrogramTransformer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype
        self._graphs: dict[int, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def logits(self, windows: Tensor) -> Tensor:
        """Return (B, n_classes) float32 for (B, n_frames, n_mels)."""
        logits = torch.empty((len(windows), self._model.dims.n_classes), device=self._device)
        with torch.cuda.device(self._device):
            for start in range(0, len(windows), BUCKETS[-1]):
                part = windows[start : start + BUCKETS[-1]]
                graph = self._graph(bucket_for(len(part)))
                graph.windows[: len(part)].copy_(part)  # the rest keeps older windows, unread
                graph.graph.replay()
                # Copied before the next replay, which may reuse the pool's memory.
                logits[start : start + len(part)].copy_(graph.logits[: len(part)])
        return logits

    def prepare(self, n_windows: int) -> None:
        """Capture the graph for batches of up to `n_windows` windows before they come."""
        with torch.cuda.device(self._device):
            self._graph(bucket_for(min(n_windows, BUCKETS[-1])))

    def _graph(self, bucket: int) -> _Graph:
        if bucket not in self._graphs:
            with without_tf32():
                self._graphs[bucket] = self._capture(bucket)
        return self._graphs[bucket]

    def _capture(self, bucket: int) -> _Graph:
        dims = self._model.dims
        shape = (bucket, dims.max_frames, dims.n_mels)
        windows = torch.zeros(shape, device=self._device, dtype=self._dtype)
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _run in range(_WARM_UP_RUNS):
                self._model(windows)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._model(windows).float()
        return _Graph(graph, windows, logits)


def bucket_for(n_windows: int) -> int:
    """Return the smallest batch size of `BUCKETS` that holds `n_windows` (at most 64)."""
    return next(bucket for bucket in BUCKETS if bucket >= n_windows)
