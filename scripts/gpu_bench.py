"""What the steps of `gpu_steps.py` share: device, sizes, models, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ast_stream.benchmarks.model import random_base
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.dims import AstDims
from ast_stream.model.runners import Precision
from ast_stream.model.tagger import Tagger


class NeedsGpu(Exception):
    """A step has nothing to measure without CUDA."""


@dataclass(frozen=True)
class Bench:
    """Where and how large to measure."""

    device: torch.device
    is_small: bool

    @property
    def precision(self) -> Precision:
        """The one that matters on the device."""
        return "fp16" if self.device.type == "cuda" else "bf16"

    def pick(self, full: Sequence[int], small: Sequence[int]) -> Sequence[int]:
        """Return the sizes to measure."""
        return small if self.is_small else full

    def base(self) -> Checkpoint:
        """Return AST-base with random weights, or what stands for it."""
        dims = AstDims(n_classes=527)
        if self.is_small:
            dims = replace(dims, hidden_size=192, n_heads=3, n_layers=2, intermediate_size=384)
            dims = replace(dims, max_frames=256)
        return random_base(dims)

    def tagger(self, precision: Precision | None = None) -> Tagger:
        """Return AST-base on the device."""
        return Tagger(self.base(), self.device.type, precision or self.precision)

    def needs_cuda(self) -> None:
        """Raise `NeedsGpu` on a CPU."""
        if self.device.type != "cuda":
            raise NeedsGpu

    def synchronize(self) -> None:
        """Wait for the GPU, if there is one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, run: Callable[[], object], rounds: int = 10) -> float:
        """Return milliseconds of a call: of many in a row, after two that are not measured."""
        for _warm_up in range(2):
            run()
        self.synchronize()
        began_s = time.perf_counter()
        for _round in range(rounds):
            run()
        self.synchronize()
        return 1000 * (time.perf_counter() - began_s) / rounds

    def peak_gb(self) -> float | None:
        """Return the most memory that was in use on the GPU since the last call."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 3)
