"""The interface of all sources: open, read blocks of sound, close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ast_stream.audio.pcm import Pcm
from ast_stream.errors import CaptureError

SourceState = Literal["listening", "degraded", "missing", "ended"]


@dataclass(frozen=True)
class SourceStatus:
    """What is known about a source now; `detail` says why it is missing or degraded.

    A source is degraded if it gives samples that cannot be the sound of a room.
    """

    state: SourceState
    detail: str | None = None


@dataclass(frozen=True, eq=False)
class SourceBlock:
    """Consecutive samples as the source delivered them.

    Attributes:
        pcm: shape (n_frames, n_channels), int16, or float32 in [-1, 1]; never a view of memory
            that the source will write to again.
        rate: frames per second.
        captured_ns: wall time of the first frame, nanoseconds since 1970.
        monotonic_ns: `time.monotonic_ns()` of the same moment.
        overflowed: an unknown number of frames was lost just before this block.
        is_last: the source has ended with this block (which may be empty).
    """

    pcm: Pcm
    rate: int
    captured_ns: int
    monotonic_ns: int
    overflowed: bool = False
    is_last: bool = False


class SourceError(CaptureError):
    """A source that cannot be opened or stopped delivering.

    Attributes:
        reason: one word for the gap record: `device_lost`, `device_absent`, `stalled`,
            `url_lost`, ...
        max_pause_s: up to which pauses between two attempts grow; None: as usual.
        is_unclear: the text does not say what is wrong.
    """

    def __init__(
        self,
        reason: str,
        text: str,
        *,
        max_pause_s: float | None = None,
        is_unclear: bool = False,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.max_pause_s = max_pause_s
        self.is_unclear = is_unclear


class SourceHungError(SourceError):
    """A source that cannot even be closed: only ending the process helps."""


class Source(Protocol):
    """A source of sound, used by one thread; may be opened again after `close`.

    A source that was read to its end is not opened again. A finite source that failed on the way
    continues where it was when it is opened again.
    """

    @property
    def is_live(self) -> bool:
        """Time passes whether or not it is read: it comes from a clock, and a loss leaves a gap.

        Microphones and network streams are live; files, pipes and scenes are finite.
        """

    @property
    def is_paced(self) -> bool:
        """Blocks come in real time; otherwise as fast as they are read."""

    def open(self) -> None:
        """Start.

        Raises:
            CaptureError: it cannot be opened now; worth another try.
            AudioError: it is there but can never be read.
        """

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block, or None if none came within `timeout_s` (and no failure either).

        Raises:
            CaptureError: the source was lost; `close` it and `open` it again.
            AudioError: a finite source that is damaged from here on.
        """

    def close(self) -> None:
        """Stop and free everything; does nothing if not open.

        Raises:
            SourceHungError: it could not be stopped.
        """
