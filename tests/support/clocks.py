"""Clocks that move on request, to be passed in where code takes a clock."""

from __future__ import annotations

from ast_stream.units import NS_PER_SECOND


class FakeClock:
    """A clock in nanoseconds."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(seconds * NS_PER_SECOND)


class FakeSeconds:
    """A clock in seconds."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
