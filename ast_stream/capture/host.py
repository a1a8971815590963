"""The streams of one capture process: one thread answers ring reads, one sends all blocks.

Each source has a thread of its own. What becomes of one stream is no concern of another: it ends,
begins again, comes and goes by itself.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ast_stream.capture.ended_marks import EndedMark
from ast_stream.capture.report import families, status_of_all
from ast_stream.capture.ring import BlockSender
from ast_stream.capture.sources.base import SourceHungError
from ast_stream.capture.stream import StreamCapture
from ast_stream.capture.worker_choice import keys_to_workers, worker_choice
from ast_stream.errors import AstStreamError, AudioError, StartupError
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.lifecycle import SUPERVISED, Notifier
from ast_stream.runtime.logging import LimitedLog, speaking_as
from ast_stream.runtime.metrics import RENEW_EVERY_S, Metrics
from ast_stream.runtime.reload import Reloader
from ast_stream.settings.paths import make_runtime_dir
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.workers import capture_settings, of_worker, worker_of
from ast_stream.transport.sockets import MAX_PEERS, Sockets

logger = logging.getLogger(__name__)

RING_PEERS = 32  # of each ring where there are several: descriptors must last for all of them
_POLL_S = 0.1
_JOIN_S = 1.0
_ADD_S = (0.5, 3.0)  # first and longest pause before an endpoint that is in use is tried again


@dataclass
class Change:
    """What a new configuration means for a capture process.

    Attributes:
        metrics: where its figures are shown: the port depends on the streams before it.
        is_removed: it has no stream any more, or one for another unit of systemd.
        is_other_source: a device, ring or worker is another: a new process has to begin.
    """

    metrics: tuple[str, int] | None
    is_removed: bool = False
    is_other_source: bool = False

    @property
    def is_due(self) -> bool:
        """Whether this process must end."""
        return self.is_removed or self.is_other_source


@dataclass
class _Wanted:
    """A stream to be captured, and the settings that it was started with."""

    settings: Settings
    stream: StreamSettings
    part: Mapping[str, Any]
    mark: EndedMark
    due_s: float
    backoff: Backoff = field(default_factory=lambda: Backoff(*_ADD_S))
    error: Exception | None = None


class CaptureHost:
    """Captures streams until they end or are removed, or the process is told to stop.

    Args:
        settings: of all workers.
        streams: several, whose sources share a process, or one of any kind.
        metrics: where figures are shown; None: nowhere.

    Raises:
        StartupError: no stream can begin, or the port of the metrics is in use.
        ConfigError: the runtime folder cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        streams: Sequence[StreamSettings],
        metrics: tuple[str, int] | None,
    ) -> None:
        self._sockets = Sockets(keys_to_workers(settings))
        self._choice = worker_choice(settings)
        self._sender = BlockSender()
        self._epoll = select.epoll()
        self._streams: dict[str, StreamCapture] = {}  # that are captured
        self._by_fd: dict[int, StreamCapture] = {}
        self._wanted: dict[str, _Wanted] = {}  # not captured yet
        self._begun: dict[str, _Wanted] = {}
        self._over: dict[str, Exception | None] = {}  # with what was wrong
        self._left: list[threading.Thread] = []  # of streams that are gone
        self._shares = len(streams) > 1 or streams[0].source.shares_process
        self._max_peers = MAX_PEERS if len(streams) == 1 else RING_PEERS
        self._log = LimitedLog(logger)
        self._metrics = Metrics("capture", None)
        self._metrics_at: tuple[str, int] | None = None
        self._next_turn_s = self._next_chores_s = float("-inf")
        try:
            if metrics is not None:
                self._metrics.move(metrics)
                self._metrics_at = metrics
            self._sender.start()
            if self._choice is not None:
                self._choice.start()
            self._want(settings, streams)
            self._begin_wanted(time.monotonic())
            if not self._streams and self._wanted:
                raise next(
                    wanted.error for wanted in self._wanted.values() if wanted.error is not None
                )
        except BaseException:
            self.close()
            raise

    def run(self, stop: threading.Event, reloader: Reloader | None, change: Change) -> None:
        """Answer ring requests until all streams have ended or the process must stop."""
        notifier = Notifier()
        while not (stop.is_set() or change.is_due or self._is_done):
            self._answer()
            now_s = time.monotonic()
            if now_s < self._next_turn_s:
                continue
            self._next_turn_s = now_s + _POLL_S
            self._turn(now_s)
            notifier.turn(self.status, is_working=self._is_working)
            if reloader is not None:
                reloader.poll(notifier)
            if now_s >= self._next_chores_s:
                self._next_chores_s = now_s + RENEW_EVERY_S
                self._do_chores(change.metrics)
        if not change.is_other_source:  # else the same process is ready again soon
            notifier.stopping()

    def follow(self, settings: Settings, streams: Sequence[StreamSettings]) -> None:
        """Capture these streams from now on; unchanged streams are not affected."""
        parts = {stream.name: capture_settings(settings, stream) for stream in streams}
        known = {**self._wanted, **self._begun}
        for name, source in known.items():
            if parts.get(name) != source.part:
                with speaking_as(f"capture {name}"):
                    logger.info(
                        "restarting with the new source"
                        if name in parts
                        else "the configuration has no such stream any more"
                    )
                self._remove(name)
        self._want(
            settings,
            [stream for stream in streams if parts[stream.name] != _part(known, stream.name)],
        )

    def keep_only(self, names: Sequence[str]) -> None:
        """Stop capturing all other streams, and start none."""
        for name in [name for name in (*self._wanted, *self._begun) if name not in names]:
            self._remove(name)

    def status(self) -> str:
        """Return the state of the streams in words."""
        others = [f"{name} cannot begin: {wanted.error}" for name, wanted in self._wanted.items()]
        if self._over:
            others.append(f"{len(self._over)} ended")
        return status_of_all([*self._streams.values()], others)

    def close(self) -> None:
        """Stop those threads that can be stopped, and release the endpoints."""
        for stream in self._streams.values():
            stream.stop()
        self._sender.close(_JOIN_S)
        end_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        for name in list(self._streams):
            self._close(name)
        self._sockets.close()
        if self._choice is not None:
            self._choice.close()
        self._metrics.close()
        self._epoll.close()
        if os.environ.get(SUPERVISED) != "1":  # else `run` forgets them: it may start us again
            for begun in self._begun.values():
                begun.mark.remove()

    @property
    def failure(self) -> Exception | None:
        """What was wrong with ended sources, or why this process must end; or None."""
        failures = {name: found for name, found in self._over.items() if found is not None}
        if not self._shares and self.has_hung:
            (name,) = self._begun
            return SourceHungError("stalled", f"the source of {name} does not return")
        if len(failures) > 1:
            return AudioError(f"{len(failures)} sources failed: {', '.join(failures)}")
        return next(iter(failures.values()), None)

    @property
    def has_hung(self) -> bool:
        """Whether a thread has not ended: a normal exit could wait for it."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def _threads(self) -> list[threading.Thread]:
        of_streams = [thread for stream in self._streams.values() for thread in stream.threads]
        return [*of_streams, *self._left]

    @property
    def _is_done(self) -> bool:
        return not self._streams and not self._wanted

    @property
    def _is_working(self) -> bool:
        streams = self._streams.values()
        return not streams or any(stream.is_working for stream in streams)

    def _answer(self) -> None:
        """Wait briefly for requests, and answer them."""
        wait_s = max(0.0, min(_POLL_S, self._next_turn_s - time.monotonic()))
        for fd, _ in self._epoll.poll(wait_s):
            if (stream := self._by_fd.get(fd)) is not None:
                stream.answer()
        if self._choice is not None:
            for stream in self._streams.values():
                stream.serve_link()

    def _turn(self, now_s: float) -> None:
        for name, stream in list(self._streams.items()):
            stream.turn(now_s)
            if stream.is_over:
                self._end(name, stream)
        if self._wanted:
            self._begin_wanted(now_s)

    def _do_chores(self, metrics: tuple[str, int] | None) -> None:
        for stream in self._streams.values():
            stream.write_repeats()
        self._left = [thread for thread in self._left if thread.is_alive()]
        self._renew_metrics(metrics)

    def _renew_metrics(self, address: tuple[str, int] | None) -> None:
        if address != self._metrics_at:
            try:
                self._metrics.move(address)
            except StartupError as error:  # perhaps of a process that moves, or ends, as well
                self._log.warning("%s", error)
                self._metrics_at = None
                return
            self._metrics_at = address
        if self._metrics.is_on:
            self._metrics.renew(families([*self._streams.values()]))

    def _want(self, settings: Settings, streams: Sequence[StreamSettings]) -> None:
        """Schedule more streams; those whose source has already ended are not started again."""
        for stream in streams:
            own = of_worker(settings, worker_of(settings, stream.name))
            make_runtime_dir(own)
            mark = EndedMark(own, stream)
            part = capture_settings(settings, stream)
            wanted = _Wanted(own, stream, part, mark, time.monotonic())
            is_over, failure = mark.read() if self._shares else (False, None)
            if is_over:
                with speaking_as(f"capture {stream.name}"):
                    logger.info("not started again: the source has already ended")
                self._begun[stream.name] = wanted
                self._over[stream.name] = failure
            else:
                self._wanted[stream.name] = wanted

    def _begin_wanted(self, now_s: float) -> None:
        for name, wanted in list(self._wanted.items()):
            if now_s < wanted.due_s:
                continue
            try:
                stream = StreamCapture(
                    wanted.settings,
                    wanted.stream,
                    self._sockets,
                    self._sender,
                    self._max_peers,
                    self._choice,
                )
            except (AstStreamError, OSError) as error:  # perhaps of a process that ends
                wanted.error, wanted.due_s = error, now_s + wanted.backoff.next_s()
                if self._begun or len(self._wanted) > 1:
                    with speaking_as(f"capture {name}"):
                        self._log.warning("cannot start yet: %s", error)
                continue
            self._begun[name] = self._wanted.pop(name)
            self._streams[name] = self._by_fd[stream.waitable] = stream
            self._epoll.register(stream.waitable, select.EPOLLIN)

    def _end(self, name: str, stream: StreamCapture) -> None:
        """Note that a source has ended for good."""
        self._over[name] = stream.failure
        if self._shares:
            self._begun[name].mark.write(stream.failure)
        self._close(name)

    def _remove(self, name: str) -> None:
        """Forget a stream that was replaced or removed."""
        self._wanted.pop(name, None)
        self._over.pop(name, None)
        if name in self._streams:
            self._close(name)
        if (begun := self._begun.pop(name, None)) is not None:
            begun.mark.remove()

    def _close(self, name: str) -> None:
        stream = self._streams.pop(name)
        self._epoll.unregister(stream.waitable)
        del self._by_fd[stream.waitable]
        stream.close()
        self._left += stream.threads


def _part(known: Mapping[str, _Wanted], name: str) -> Mapping[str, Any] | None:
    return known[name].part if name in known else None
