"""How far behind the workers of a pool are, by the health that they publish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pool_of_workers import Member

from ast_stream.messages.event import FeedMessage
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import feed_endpoint
from ast_stream.transport.reader import FeedReader


@dataclass(frozen=True)
class Lag:
    """What a worker said of a stream: seconds of audio that were not scored."""

    at_s: float
    worker: str
    stream: str
    lag_s: float


class LagWatch:
    """Follows the feeds of workers, each in a thread; times are those of `now_s`."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.lags: list[Lag] = []
        self._now_s = now_s
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def follow(self, member: Member) -> None:
        thread = threading.Thread(target=self._read, args=(member,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10.0)

    def of_undisturbed(self, from_s: float, duration_s: float, lost: str) -> list[float]:
        """Return the lags of streams that stayed where they were, in some seconds after a loss.

        Args:
            lost: the worker that was lost.
        """
        until_s = from_s + duration_s
        near = [one for one in self.lags if from_s - 5.0 <= one.at_s <= until_s]
        workers: dict[str, set[str]] = {}
        for one in near:
            workers.setdefault(one.stream, set()).add(one.worker)
        before = {one.stream for one in near if one.at_s <= from_s}
        stayed = {name for name in before if len(workers[name]) == 1 and lost not in workers[name]}
        return [one.lag_s for one in near if one.at_s > from_s and one.stream in stayed]

    def _read(self, member: Member) -> None:
        endpoint = feed_endpoint(load_settings(member.config))
        reader = FeedReader(endpoint, None, ["health/"], None, patience_s=10.0)
        while not self._stop.is_set():
            message = reader.receive(0.5)
            if isinstance(message, FeedMessage) and message.kind == "health":
                lag_s = message.body.get("lag_s")
                if lag_s is not None:
                    stream = message.body["stream"]
                    self.lags.append(Lag(self._now_s(), member.name, stream, lag_s))
        reader.close()
