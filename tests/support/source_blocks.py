"""What the tests of sources share: a clock, a tone, and the samples of blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_stream.capture.sources.base import SourceBlock

MONO0, WALL0 = 5_000_000_000, 1_763_700_000_000_000_000  # clocks at the start of the tests


@dataclass
class Clock:
    """A clock that moves only when somebody sleeps."""

    now_ns: int = MONO0
    slept: list[float] = field(default_factory=list)

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.now_ns += round(duration_s * 1e9)


def tone(seconds: float, rate: int, n_channels: int = 1) -> npt.NDArray[np.float32]:
    times = np.arange(round(seconds * rate)) / rate
    mono = 0.25 * np.sin(2 * np.pi * 440 * times)
    return np.repeat(mono[:, None], n_channels, axis=1).astype(np.float32)


def joined(blocks: list[SourceBlock]) -> npt.NDArray[Any]:
    return np.concatenate([block.pcm for block in blocks])
