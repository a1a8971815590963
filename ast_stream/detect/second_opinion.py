"""A second opinion on events that are about to begin, from the embedding of their window.

Only the windows that decide such events are encoded again, one by one. The cost is one window for
each event of a class with a verifier, and nothing otherwise. Results depend on the window alone,
so they are the same live, resumed and scanned.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ast_stream.detect.decision import Decision, Opinion, SlotNames
from ast_stream.detect.scorer import Positions, WindowScorer
from ast_stream.messages.event import Event
from ast_stream.model.fbank import first_frame, last_frame
from ast_stream.units import FRAME_SHIFT

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embedding:
    """The model's embedding of the window that decides an event.

    Attributes:
        whole: what the clip head reads, shape (width,).
        patches: what a frame head reads of each time patch, shape (n_time_patches, width).
        first, stop: the patches of the event so far, half-open; not empty.
    """

    whole: Floats
    patches: Floats
    first: int
    stop: int


class SecondOpinion(Protocol):
    """Judges events that are about to begin."""

    def concerns(self, index: int) -> bool:
        """Return whether it judges events of the class with this index."""
        ...

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        """Return the opinion on an event; it depends on the arguments alone."""
        ...


def embedding_of(
    scorer: WindowScorer, begin: Event, slot: int, first_real: int, last_real: int
) -> Embedding:
    """Return the embedding of the window that decided an event.

    Args:
        slot: of its stream.
        first_real, last_real: real frames of the slot, as in `DueWindows`.
    """
    whole, patches, begins = scorer.embedding(slot, begin.at_sample, first_real, last_real)
    dims = scorer.dims
    middles = begins + np.arange(len(patches)) * dims.time_stride + dims.patch_size // 2
    end = min(begin.at_sample // FRAME_SHIFT, last_real + 1)
    stop = max(1, int((middles < end).sum()))
    first = min(int((middles * FRAME_SHIFT < begin.onset_sample).sum()), stop - 1)
    return Embedding(whole, patches, first, stop)


class Withholder:
    """Asks for a second opinion on events that begin, and withholds those that it rejects.

    Attributes:
        withheld: how many events were withheld, by class and stream.
    """

    def __init__(
        self,
        opinion: SecondOpinion,
        names: SlotNames,
        positions: Positions,
        scorer: WindowScorer,
        decision: Decision,
    ) -> None:
        self.withheld: Counter[tuple[str, str]] = Counter()
        self._opinion = opinion
        self._names = names
        self._positions = positions
        self._scorer = scorer
        self._decision = decision

    def judge(self, events: list[Event]) -> list[Event]:
        """Return the events that are not withheld, with the scores of their opinions."""
        judged = {event.id: its for event in events if (its := self._opinion_of(event)) is not None}
        if not judged:
            return events
        ended = {event.id for event in events if event.type == "end"}  # as soon as they began
        reported = []
        for event in events:
            if (its := judged.get(event.id)) is not None:
                if event.type == "begin" and event.id not in ended:
                    self._decision.keep_opinion(self._names.slot(event.stream), event.index, its)
                if its.is_withheld:
                    self.withheld[event.slug, event.stream] += event.type == "begin"
                    continue
                event = replace(event, verifier_score=its.score)
            reported.append(event)
        return reported

    def _opinion_of(self, event: Event) -> Opinion | None:
        """Return the opinion on an event that begins; None for all others."""
        if event.type != "begin" or not self._opinion.concerns(event.index):
            return None
        at, slot = self._positions, self._names.slot(event.stream)
        if event.at_sample > at.next_end[slot] - at.hop:
            return None  # resumed and ended at once: its window was not pushed again
        first, last = first_frame(at.context_start[slot]), last_frame(at.received[slot])
        embedding = embedding_of(self._scorer, event, slot, int(first), int(last))
        return self._opinion.judge(event, embedding)
