"""Kinds of faults, and seeded plans of them: what is done to which process, for how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import zip_longest

CAPTURE_STOP_S = 4.0  # longer, and the worker ends the events of a silent stream,
LOST_S = 8.0  # as here
WATCHDOG_STOP_S = 36.0  # the supervisor has killed it by then
HUNG_S = 7.0  # the sound server: the capture process has given up by then
STALL_S = 7.0  # the station: the connection was given up by then
RESUMED_S = 2.5  # and here not
HOUR_S = 3600
MICROPHONE, STATION = "mic", "radio"

Group = list["Fault"]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, its target and how long it lasts."""

    kind: str
    target: str = ""
    duration_s: float = 0.0
    delay_s: float = 0.0  # after the others of its group
    amount: float = 0.0  # of a clock: seconds that it is set forward

    @property
    def name(self) -> str:
        """Kind and target, for people."""
        return f"{self.kind} {self.target}".strip()

    @property
    def row(self) -> str:
        """Kind and kind of target, for tables."""
        return f"{self.kind} {self.target.partition(' ')[0]}".strip()

    def streams(self, streams: list[str]) -> list[str]:
        """Return those streams of a box that the fault is about; all where it is about none."""
        if self.kind == "sound server":
            return [MICROPHONE]
        if self.kind == "station":
            return [STATION]
        own = [stream for stream in streams if capture_of(stream) == self.target]
        return own or streams


@dataclass
class Injected:
    """A fault that was done; times of the monotonic clock.

    Attributes:
        over_s: when the last of its group was over.
        is_alone: nothing else was done until the box had recovered: its recovery can be timed.
    """

    fault: Fault
    at_s: float
    over_s: float
    note: str = ""
    is_alone: bool = True


def capture_of(stream: str) -> str:
    """Return the process that captures a stream: one for all but the microphone."""
    return f"capture {stream}" if stream == MICROPHONE else "capture"


def kills_and_stops(
    rng: random.Random, streams: list[str], *, with_disk: bool, is_long: bool
) -> list[Group]:
    """Return one round: groups of faults that fall together, with every kind of fault.

    Args:
        is_long: include stops that end a stream's events or trip the watchdog, and overload for
            longer.
    """

    def kill(target: str) -> Fault:
        return Fault("kill", target)

    def stop(target: str, max_s: float) -> Fault:
        return Fault("stop", target, round(rng.uniform(0.5, max_s), 1))

    def capture() -> str:
        return capture_of(rng.choice(streams))

    overload_s = (5.0, 10.0) if is_long else (2.0, 4.0)  # it takes all that others could use
    groups = [
        [kill("worker")],
        [kill(capture()), kill("alerts")],
        [kill("worker"), kill(capture()), kill("alerts")],
        [kill("worker"), stop("run", 4.0)],
        [stop("worker", 8.0)],
        [stop(capture(), CAPTURE_STOP_S), stop("alerts", 8.0), stop("subscriber", 8.0)],
        [Fault("overload", "", round(rng.uniform(*overload_s), 1)), kill("subscriber")],
    ]
    if is_long:
        groups.append([Fault("stop", capture(), LOST_S)])
        groups.append([Fault("stop", rng.choice(["worker", "alerts"]), WATCHDOG_STOP_S)])
    if with_disk:
        groups.append([Fault("full disk", "", round(rng.uniform(2.0, 6.0), 1))])
        victim = rng.choice(["worker", "alerts"])
        groups.append([Fault("full disk", "", 6.0), Fault("kill", victim, delay_s=3.0)])
        dying = ["worker", capture()]
        rng.shuffle(dying)
        killed = [
            Fault("kill", target, delay_s=2.0 + number) for number, target in enumerate(dying)
        ]
        groups.append([Fault("full disk", "", 6.0), *killed])
    rng.shuffle(groups)
    return groups


def surroundings(
    rng: random.Random, streams: list[str], *, with_clocks: bool, is_long: bool
) -> list[Group]:
    """Return one round of what happens around the processes: sources, clocks, limits, the GPU.

    Faults that do not touch each other fall together where the round is short.

    Args:
        streams: of the box; those of live sources are disturbed by their sources.
    """

    def some(least_s: float, most_s: float) -> float:
        return round(rng.uniform(least_s, most_s), 1)

    def shift(target: str) -> Fault:
        hours = rng.choice([-HOUR_S, HOUR_S])
        return Fault("clock", target, some(2.0, 4.0), amount=hours)

    cards: list[Group] = []
    stations: list[Group] = []
    if MICROPHONE in streams:
        cards = [
            [Fault("sound server", "killed", some(1.0, 3.0))],
            [Fault("sound server", "suspended", some(2.0, 3.0))],
            [Fault("sound server", "hung", HUNG_S)],
            [Fault("sound server", "unplugged", some(1.0, 3.0))],
        ]
    if STATION in streams:
        stations = [
            [Fault("station", "stalled", STALL_S)],
            [Fault("station", "stalled", RESUMED_S)],
            [Fault("station", "refusing", some(1.0, 3.0))],
            [Fault("station", "garbage", some(0.5, 1.5))],
            [Fault("station", "rate", some(1.0, 2.0))],
        ]
    captures = [capture_of(stream) for stream in streams]
    inner: list[Group] = [
        [Fault("gpu", "memory once")],
        [Fault("gpu", "access", some(4.0, 6.0))],
        [Fault("descriptors", "alerts", some(3.0, 5.0))],
        [Fault("descriptors", "worker", some(3.0, 5.0))],
        [Fault("descriptors", rng.choice(captures), some(2.0, 3.0))],
        [Fault("memory", "worker", some(3.0, 5.0))],
        [Fault("start order")],
    ]
    if with_clocks:
        inner += [
            [shift("worker")],
            [shift("alerts")],
            [shift(rng.choice(captures))],
            [Fault("clock", "all over DST", 5.0)],
        ]
    if is_long:
        inner += [
            [Fault("memory", "alerts", some(3.0, 5.0))],
            [Fault("memory", rng.choice(captures), some(2.0, 3.0))],
            [Fault("descriptors", "run", some(3.0, 5.0)), Fault("kill", "worker", delay_s=0.5)],
        ]
    for groups in (cards, stations, inner):
        rng.shuffle(groups)
    if is_long:
        groups = [*cards, *stations, *inner]
        rng.shuffle(groups)
        return groups
    return _fall_together(cards, stations, inner)


def _fall_together(*series: list[Group]) -> list[Group]:
    """Return groups of one of each series, as long as there are any."""
    return [
        [fault for group in groups for fault in group]
        for groups in zip_longest(*series, fillvalue=[])
    ]
