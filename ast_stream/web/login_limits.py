"""Rate limits of logins: by name, by address and in total, in bounded memory."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_BUCKETS = 10_000


@dataclass(frozen=True)
class Allowance:
    """How many attempts are allowed at once, and how long until another one is."""

    burst: int
    refill_s: float


OF_ALL = Allowance(100, 1.0)
OF_ADDRESS = Allowance(20, 15.0)
OF_NAME = Allowance(50, 30.0)  # from all addresses: large, so that a user is not easily locked out
OF_NAME_AND_ADDRESS = Allowance(5, 60.0)


@dataclass
class _Bucket:
    allowance: Allowance
    level: float
    at_s: float

    def fill(self, now_s: float) -> None:
        gained = (now_s - self.at_s) / self.allowance.refill_s
        self.level, self.at_s = min(self.allowance.burst, self.level + gained), now_s


class LoginLimits:
    """Counts attempts before a password is checked; a successful one is given back.

    Args:
        now_s: monotonic clock.

    Attributes:
        refused: number of attempts that were not allowed.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.refused = 0
        self._now_s = now_s
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def try_again_s(self, name: str, address: str) -> float:
        """Count an attempt and return 0, or return the seconds until the next one is allowed.

        Args:
            name: user name of the attempt, known or not.
            address: of the client.
        """
        now_s = self._now_s()
        with self._lock:
            waits_s = []
            buckets = []
            for key, allowance in _keys(name, address):
                bucket = self._buckets.get(key) or _Bucket(allowance, allowance.burst, now_s)
                bucket.fill(now_s)
                buckets.append((key, bucket))
                waits_s.append(max(0.0, 1 - bucket.level) * allowance.refill_s)
            if max(waits_s) > 0:
                self.refused += 1
                return max(waits_s)
            for key, bucket in buckets:
                bucket.level -= 1
                self._buckets[key] = bucket
                self._buckets.move_to_end(key)
            while len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
            return 0.0

    def give_back(self, name: str, address: str) -> None:
        """Uncount the last attempt for a name and an address, because it succeeded."""
        with self._lock:
            for key, allowance in _keys(name, address):
                if (bucket := self._buckets.get(key)) is not None:
                    bucket.level = min(allowance.burst, bucket.level + 1)


def in_words(wait_s: float) -> str:
    """Return a waiting time in words."""
    if wait_s > 90:
        return f"{math.ceil(wait_s / 60)} minutes"
    n_seconds = math.ceil(wait_s)
    return f"{n_seconds} second{'' if n_seconds == 1 else 's'}"


def _keys(name: str, address: str) -> list[tuple[tuple[str, ...], Allowance]]:
    place = _place(address)
    return [
        (("all",), OF_ALL),
        (("address", place), OF_ADDRESS),
        (("name", name), OF_NAME),
        (("both", name, place), OF_NAME_AND_ADDRESS),
    ]


def _place(address: str) -> str:
    """Return the address, or the network that one customer usually has, for counting attempts."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 6:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
