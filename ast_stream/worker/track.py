"""Where the intake of one stream stands: its epoch, the next sample wanted, and what comes out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ast_stream.messages.event import AudioBlock, Gap, Pcm16
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

CAPTURE_RESTART = "capture_restart"  # gap reason: what was only in a capture process that died

_MAX_DEAD_EPOCHS = 16


@dataclass(frozen=True, eq=False)
class Audio:
    """The next samples: shape (n_samples,), int16; `time_ns` is the wall time of the first."""

    epoch: str
    start_sample: int
    time_ns: int
    pcm: Pcm16
    is_last: bool = False

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)


@dataclass(frozen=True)
class GapFound:
    """Samples that are lost for good; reading goes on after them."""

    gap: Gap


@dataclass(frozen=True)
class NewEpoch:
    """Reading starts at `start_sample` of an epoch; nothing more comes of the one before."""

    epoch: str
    start_sample: int


@dataclass(frozen=True)
class Ended:
    """The source has ended; `end_sample` is the index just after its last sample."""

    epoch: str
    end_sample: int


Item = Audio | GapFound | NewEpoch | Ended


class Track:
    """The position in one epoch of a stream; every step returns what comes out by it.

    Attributes:
        epoch: epoch being read, None before the first.
        position: index of the next sample wanted.
        has_ended: the source has ended and all of it came out.
    """

    def __init__(self, stream: str) -> None:
        self.epoch: str | None = None
        self.position = 0
        self.has_ended = False
        self._stream = stream
        self._position_ns: int | None = None  # wall time of `position`
        self._dead_epochs: deque[str] = deque(maxlen=_MAX_DEAD_EPOCHS)

    def place(self, epoch: str, position: int, time_ns: int | None) -> None:
        """Stand at a position of an epoch; `time_ns` is its wall time, if known."""
        self.epoch, self.position, self._position_ns = epoch, position, time_ns
        self.has_ended = False

    def is_dead(self, epoch: str) -> bool:
        """Tell whether an epoch was left for another."""
        return epoch in self._dead_epochs

    def brings_news(self, block: AudioBlock) -> bool:
        """Tell whether a block of this epoch reaches beyond the position, or ends the source."""
        is_end = block.is_last and block.end_sample == self.position
        return not self.has_ended and (is_end or block.end_sample > self.position)

    def enter(self, epoch: str, start: int, time_ns: int, at_most: int | None) -> list[Item]:
        """Turn to another epoch, from sample `start` at `time_ns` on.

        Args:
            at_most: samples that can have been lost since the position, None if not known: a
                step of the wall clock is not taken for time.
        """
        items: list[Item] = []
        if epoch in self._dead_epochs:
            self._dead_epochs.remove(epoch)
        if self.epoch is not None:
            self._dead_epochs.append(self.epoch)
            if not self.has_ended:
                lost = self._samples_until(time_ns)
                lost = lost if at_most is None else min(lost, at_most)
                items += self._gap(self.epoch, lost, CAPTURE_RESTART)
        self.place(epoch, start, time_ns)
        return [*items, NewEpoch(epoch, start)]

    def return_to(self, position: int) -> list[Item]:
        """Begin the epoch again at a position that the ring knows."""
        assert self.epoch is not None
        self.place(self.epoch, position, None)
        return [NewEpoch(self.epoch, position)]

    def skip_to(self, sample: int, reason: str) -> list[Item]:
        """Leave out what does not exist any more between the position and `sample`."""
        if sample <= self.position or self.epoch is None:
            return []
        samples = sample - self.position
        found = self._gap(self.epoch, samples, reason)
        self.position = sample
        if self._position_ns is not None:
            self._position_ns += samples_to_ns(samples)
        return found

    def accept(self, block: AudioBlock) -> list[Item]:
        """Take the new part of a block that begins at or before the position and brings news."""
        had = self.position - block.start_sample
        pcm = block.pcm[had:]
        items: list[Item] = []
        if len(pcm):
            time_ns = block.time_ns + samples_to_ns(had)
            items.append(Audio(block.epoch, self.position, time_ns, pcm, block.is_last))
        self.position = block.end_sample
        self._position_ns = block.time_ns + samples_to_ns(len(block.pcm))
        self.has_ended = block.is_last
        return [*items, Ended(block.epoch, self.position)] if block.is_last else items

    def _samples_until(self, time_ns: int) -> int:
        if self._position_ns is None:
            return 0
        return max(0, (time_ns - self._position_ns) * SAMPLE_RATE // NS_PER_SECOND)

    def _gap(self, epoch: str, samples: int, reason: str) -> list[Item]:
        return [GapFound(Gap(self._stream, epoch, self.position, samples, reason))]
