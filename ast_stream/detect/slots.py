"""Which stream has which slot of the detector's arrays."""

from __future__ import annotations

from ast_stream.errors import UsageError

_FIRST_CAPACITY = 4


class SlotNames:
    """Streams come and go; their slots are reused."""

    def __init__(self, max_streams: int) -> None:
        self.capacity = min(_FIRST_CAPACITY, max_streams)
        self._max_streams = max_streams
        self._names: dict[int, tuple[str, str]] = {}
        self._slots: dict[str, int] = {}

    def __contains__(self, stream: str) -> bool:
        return stream in self._slots

    @property
    def streams(self) -> list[str]:
        """The streams that have a slot."""
        return list(self._slots)

    def add(self, stream: str, epoch: str) -> int:
        """Give `stream` a free slot.

        Raises:
            UsageError: it has one already, or all slots are taken.
        """
        if stream in self._slots:
            raise UsageError(f"stream {stream}: already open")
        if len(self._slots) >= self._max_streams:
            raise UsageError(f"stream {stream}: all {self._max_streams} slots are taken")
        slot = next(i for i in range(self._max_streams) if i not in self._names)
        self._names[slot] = (stream, epoch)
        self._slots[stream] = slot
        while slot >= self.capacity:
            self.capacity = min(2 * self.capacity, self._max_streams)
        return slot

    def remove(self, stream: str) -> int:
        """Free the slot of `stream` and return it."""
        slot = self._slots.pop(stream)
        del self._names[slot]
        return slot

    def slot(self, stream: str) -> int:
        """Return the slot of `stream`."""
        return self._slots[stream]

    def of(self, slot: int) -> tuple[str, str]:
        """Return stream and epoch of `slot`."""
        return self._names[slot]
