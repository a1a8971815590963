"""Graphs without a GPU: work is done at once, but results come as late as they may on one.

What CUDA shares is shared: each graph writes its outputs over those of the others, and a download
reads its tensor only when somebody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ast_stream.model.graphs import Arrives, Graph, GraphRunner
from ast_stream.model.tagger import Tagger


class EagerDevice:
    """Stands for a GPU.

    Args:
        free_bytes: of its memory, at the start.
        room: the largest batch that can be captured.

    Attributes:
        log: "begin" and "wait" with the number of the download, in order.
    """

    device = torch.device("cpu")

    def __init__(self, free_bytes: int = 1 << 40, room: int = 1 << 40) -> None:
        self._free_bytes = free_bytes
        self._room = room
        self._shared: dict[str, Tensor] = {}
        self.log: list[tuple[str, int]] = []
        self.captured = 0
        self.released = 0
        self.broken_downloads: set[int] = set()

    def used(self) -> AbstractContextManager[object]:
        return nullcontext()

    def free_bytes(self) -> int:
        return self._free_bytes

    def capture(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> Graph:
        self.captured += 1
        outputs = [self._static(name, each) for name, each in zip("lf", forward(), strict=True)]

        def replay() -> None:
            for static, found in zip(outputs, forward(), strict=True):
                static.copy_(found)

        return Graph(replay, *outputs)

    def release_memory(self) -> None:
        self.released += 1

    def download(self, tensor: Tensor) -> Arrives:
        number = sum(word == "begin" for word, _number in self.log)
        self.log.append(("begin", number))

        def arrived() -> Tensor:
            self.log.append(("wait", number))
            if number in self.broken_downloads:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return tensor.clone()

        return arrived

    def _static(self, name: str, like: Tensor) -> Tensor:
        """Return memory that all graphs write to, as CUDA's pool gives it."""
        if len(like) > self._room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        shared = self._shared.get(name)
        if shared is None or len(shared) < len(like):
            shared = self._shared[name] = torch.full_like(like, torch.nan)
        return shared[: len(like)]


def on_eager_device(tagger: Tagger, device: EagerDevice) -> Tagger:
    """Return a tagger on the CPU in fp32, changed to score by graphs."""
    model = tagger.checkpoint.build_model()
    model.use_attention(tagger.attention_choice.attend)
    tagger._runner = GraphRunner(model, device, torch.float32, holds_attention=False)
    return tagger
