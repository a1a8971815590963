"""What a training is made of: what learns, where its windows come from, who else advises it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.training.state import Metrics
from ast_stream.training.windows import Window

Evaluate = Callable[[AudioSpectrogramTransformer], Metrics]


class Maker(Protocol):
    """Where windows come from: the same for the same seed and step.

    Attributes:
        labels: class names in the order of the targets.
        has_examples: for each class, whether anything it is drawn from holds it.
    """

    labels: list[str]
    has_examples: list[bool]

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        """Return the windows of one step."""
        ...


class Adviser(Protocol):
    """What else says what is heard in a window.

    Attributes:
        is_taught: shape (n_classes,), 1.0 for the labels that it has, else 0.0.
    """

    is_taught: Tensor

    def scores(self, fbank: Tensor) -> Tensor:
        """Return scores (B, n_classes) of log-mel frames (B, n_frames, n_mels)."""
        ...
