"""A second opinion on events that are about to begin, from the embedding of their window.

Only windows that decide such an event are encoded again, one by one: what it costs is a window's
work for each event of a class that somebody has an opinion of, and nothing without. The numbers
depend on the window alone, so they are the same live, resumed and scanned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ast_stream.detect.decision import Opinion
from ast_stream.detect.scorer import WindowScorer
from ast_stream.messages.event import Event
from ast_stream.units import FRAME_SHIFT

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the model made of the window that decides an event.

    Attributes:
        whole: what the clip head reads, shape (width,).
        patches: what a frame head reads of each time patch, shape (n_time_patches, width).
        first, stop: the patches of the event so far, half-open; at least one.
    """

    whole: Floats
    patches: Floats
    first: int
    stop: int


class SecondOpinion(Protocol):
    """Who is asked about events that are about to begin."""

    def concerns(self, index: int) -> bool:
        """Return whether events of the class with this index are asked about."""
        ...

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        """Return the opinion of an event; a function of its arguments alone."""
        ...


def embedding_of(
    scorer: WindowScorer, begin: Event, slot: int, first_frame: int, last_frame: int
) -> Embedding:
    """Return what the model makes of the window that decided an event.

    Args:
        slot: of its stream.
        first_frame, last_frame: real frames of the slot, as in `DueWindows`.
    """
    whole, patches, begins = scorer.embedding(slot, begin.at_sample, first_frame, last_frame)
    dims = scorer.dims
    middles = begins + np.arange(len(patches)) * dims.time_stride + dims.patch_size // 2
    end = min(begin.at_sample // FRAME_SHIFT, last_frame + 1)
    stop = max(1, int((middles < end).sum()))
    first = min(int((middles * FRAME_SHIFT < begin.onset_sample).sum()), stop - 1)
    return Embedding(whole, patches, first, stop)
