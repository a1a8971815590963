"""Rows of the classifier that stay as they are while the rest is fine-tuned.

A class that is kept and has no examples meets windows without it alone, so training could only
lower its scores, whatever a teacher says of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ast_stream.model.ast import AudioSpectrogramTransformer


class KeptRows:
    """What the rows of some classes, and the norm before the classifier, were at the start."""

    def __init__(self, model: AudioSpectrogramTransformer, rows: Sequence[int]) -> None:
        self._model = model
        self._rows = list(rows)
        self._kept = [part.detach().clone() for part in self._parts()]

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what a step did to them."""
        if not self._rows:
            return
        head, norm = self._model.head, self._model.head_norm
        for parameter, kept in zip((head.weight, head.bias), self._kept[:2], strict=True):
            parameter[self._rows] = kept
        for parameter, kept in zip((norm.weight, norm.bias), self._kept[2:], strict=True):
            parameter.copy_(kept)

    def _parts(self) -> list[Tensor]:
        head, norm = self._model.head, self._model.head_norm
        return [head.weight[self._rows], head.bias[self._rows], norm.weight, norm.bias]
