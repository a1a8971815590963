"""The thread of one output: reads its sources, sends in order, and saves its position."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ast_stream.forward.cloud_events import lost
from ast_stream.forward.output import Output, OutputError, ReconnectedError
from ast_stream.forward.positions import PositionFile
from ast_stream.forward.source import Buffered, Cursor, Item, MessageSource
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.logging import Outage, speaking_as
from ast_stream.settings.fleet import BoxIdentity

RETRY_S = (1.0, 60.0)
WAIT_S = 0.2  # for a message; also the longest delay before a stop is noticed
BEHIND_S = 10.0  # if a waiting message is older, there may be more than were read
COUNT_EVERY_S = 60.0  # counting what waits reads the whole log
READ_AHEAD_S = 2.0  # without another message: all that there are have been read
MAX_READ_AHEAD_S = 30.0
_LOOK_EVERY_S = 0.02
DRAIN_S = 2.0  # after a stop
LEAVE_S = 5.0  # for a batch that is in flight when the process stops
_GROWTH = 4  # of the batches after a failure, the first of which has one message

logger = logging.getLogger(__name__)


class Sender:
    """Sends the messages of its sources until it is stopped.

    Args:
        sources: returns the sources, given the saved positions; called in the thread.
        max_batch: messages in flight at most.
        wall_ns: wall clock.

    Attributes:
        sent: number of confirmed messages, by kind, since the start.
        bytes: size of their bodies.
        outage: whether and why it makes no progress.
    """

    def __init__(
        self,
        output: Output,
        positions: PositionFile,
        sources: Callable[[dict[str, Cursor]], Sequence[MessageSource]],
        identity: BoxIdentity,
        max_batch: int,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.output = output
        self.positions = positions
        self.sent: Counter[str] = Counter()
        self.bytes = 0
        self.outage = Outage(logger, f"output {output.name} gets on again")
        name = f"{identity.site}/{identity.box}"
        self._rivalry = Outage(logger, f"output {output.name}: no other box reports as {name}")
        self._make_sources = sources
        self._identity = identity
        self._max_batch = max_batch
        self._batch = max_batch
        self._wall_ns = wall_ns
        self._stopping = threading.Event()
        self._sources: list[Buffered] = []
        self._started_ns = wall_ns()
        self._unsaved = 0  # items confirmed since the position was saved
        self._waiting: tuple[int, int | None] = (0, None)  # how many, and since when (ns)
        self._counted_s = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"output {output.name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs, or has not been started yet."""
        return self._thread.is_alive() or self._thread.ident is None

    @property
    def waiting(self) -> int:
        """Number of unconfirmed messages, as of a few seconds ago."""
        return self._waiting[0]

    @property
    def oldest_s(self) -> float | None:
        """Age of the oldest unconfirmed message in seconds; None: there is none."""
        since_ns = self._waiting[1]
        return None if since_ns is None else max(0.0, (self._wall_ns() - since_ns) / 1e9)

    @property
    def error(self) -> str | None:
        """Why it makes little or no progress, as a sentence; None: all is well."""
        return self.output.rival or self.output.error or self.outage.text

    def start(self) -> None:
        """Start connecting and sending."""
        self.output.start()
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; messages in flight are still waited for."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for the thread to end, in bounded time, and save the position."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(LEAVE_S)
        self.output.close()  # makes calls that still wait for it fail
        if self._thread.ident is not None:
            self._thread.join(LEAVE_S)

    def _run(self) -> None:
        with speaking_as(f"forward {self.output.name}"):
            self._begin(self.positions.newest)
            backoff = Backoff(*RETRY_S)
            try:
                while not self._stopping.is_set():
                    try:
                        self._turn(backoff)
                    except Exception as error:  # the boundary: an output must not end silently
                        logger.exception("output %s: %r", self.output.name, error)
                        self._fail(OutputError(f"{type(error).__name__}: {error}"), backoff)
                self._drain(backoff)
            finally:
                self._save(at_once=True)
                for buffered in self._sources:
                    buffered.source.close()

    def _begin(self, cursors: dict[str, Cursor]) -> None:
        """Open the sources at these positions."""
        for buffered in self._sources:
            buffered.source.close()
        has_memory = self.output.memory is not None  # then marks tell what it has
        self._sources = [
            Buffered(source, cursors.get(source.name), is_known=has_memory)
            for source in self._make_sources(dict(cursors))
        ]

    def _go_back(self) -> None:
        """Go back to what the broker still has, after a connection to one that may lose messages.

        Raises:
            OutputError: the broker cannot be reached now.
        """
        memory = self.output.memory
        if memory is None or (kept := memory.kept()) is None:
            return
        cursors = self.positions.go_back(kept)
        if any(buffered.cursor != cursors.get(buffered.source.name) for buffered in self._sources):
            logger.info("output %s: goes on from what the broker still has", self.output.name)
            self._begin(cursors)

    def _drain(self, backoff: Backoff) -> None:
        """Send the last messages of workers that have just ended, if the broker is reachable."""
        end_s = time.monotonic() + DRAIN_S
        with suppress(Exception):  # what is not sent now is sent after the next start
            while self.output.error is None and time.monotonic() < end_s:
                if not self._turn(backoff):
                    return

    def _turn(self, backoff: Backoff) -> bool:
        """Send a batch of each source; wait a moment if no source has messages.

        Returns:
            Whether there may be more to send at once.
        """
        began_s = time.monotonic()
        try:
            if (problem := self.positions.problem) is not None:
                raise OutputError(problem)
            self._go_back()
        except OutputError as error:
            self._fail(error, backoff)
            return False
        n_feeds = max(1, len(self._sources))
        has_sent = False
        for buffered in self._sources:
            if not buffered.fill(self._max_batch, WAIT_S / n_feeds):
                continue
            self._note_waiting()
            try:
                self._send(buffered)
            except ReconnectedError:
                return True
            except OutputError as error:
                self._fail(error, backoff)
                return False
            has_sent = True
            backoff.reset()
            self._batch = min(self._max_batch, self._batch * _GROWTH)
            self.outage.worked()
        self._note_waiting()
        self._save()
        self._note_rival()
        if not has_sent:
            self._stopping.wait(max(0.01, WAIT_S - (time.monotonic() - began_s)))
        return has_sent

    def _send(self, buffered: Buffered) -> None:
        """Send the first items of a source.

        Raises:
            OutputError: not all are confirmed.
        """
        if not buffered.is_known:
            self._skip_held(buffered)
        items = buffered.first(self._batch)
        self._save(at_once=self._unsaved + len(items) > self._max_batch)
        batch = [item.outgoing for item in items if item.outgoing is not None]
        if not batch:
            buffered.confirm(len(items))
            return
        try:
            self.output.send(batch)
        except OutputError as error:
            self._confirm(buffered, items, error.confirmed)
            if error.is_too_large:
                self._give_up_first(buffered, str(error))
                return
            raise
        self._confirm(buffered, items, len(batch))

    def _skip_held(self, buffered: Buffered) -> None:
        """Skip messages that the broker took before a kill, but after the last saved position.

        No more than `max_batch` messages are ever sent beyond the saved position, so they are among
        the first `max_batch`, all of which are read before the broker is asked.
        """
        self._read_ahead(buffered)
        while items := buffered.first(self._max_batch):
            batch = [item.outgoing for item in items if item.outgoing is not None]
            held = self.output.holds(batch) if batch else set()
            if held:
                logger.info("%d messages were confirmed before a kill", len(held))
                buffered.leave_out(held)
            if batch and len(held) < len(batch):
                break
            buffered.confirm(len(items))
            self._read_ahead(buffered)
        buffered.is_known = True

    def _read_ahead(self, buffered: Buffered) -> None:
        """Read up to `max_batch` messages that were published before this start."""
        last_s = time.monotonic() + MAX_READ_AHEAD_S
        end_s = time.monotonic() + READ_AHEAD_S
        n_items = 0
        while not self._stopping.is_set() and time.monotonic() < min(end_s, last_s):
            buffered.fill(self._max_batch, WAIT_S)
            items = buffered.first(self._max_batch)
            if len(items) > n_items:
                n_items, end_s = len(items), time.monotonic() + READ_AHEAD_S
            is_new = bool(items) and (items[-1].since_ns or 0) > self._started_ns
            if n_items >= self._max_batch or is_new:  # a new message cannot have been sent before
                return
            self._stopping.wait(_LOOK_EVERY_S)

    def _confirm(self, buffered: Buffered, items: Sequence[Item], n_sent: int) -> None:
        """Move past the first `n_sent` messages and the items between them."""
        n_items = 0
        for item in items:
            if item.outgoing is not None:
                if n_sent == 0:
                    break
                n_sent -= 1
            n_items += 1
        for item in buffered.confirm(n_items):
            if item.outgoing is not None:
                self.sent[item.outgoing.kind] += 1
                self.bytes += len(item.outgoing.body)
                self.positions.lost += 1 if item.lost is None else item.lost
        self._unsaved += n_items
        self._save()

    def _give_up_first(self, buffered: Buffered, why: str) -> None:
        """Replace a message that the broker will never take by a notice that it is lost."""
        (item,) = buffered.first(1)
        assert item.outgoing is not None
        refused = item.outgoing
        logger.error("a message is left out, for it is too large: %s", why)
        note = lost(
            self._identity, buffered.source.name, after=None, upto=refused.id, count=1, reason=why
        )
        if refused.kind == "lost":
            buffered.replace_first(replace(item, outgoing=None))
            self.positions.lost += 1
        else:
            buffered.replace_first(replace(item, outgoing=note, lost=1))

    def _fail(self, error: OutputError, backoff: Backoff) -> None:
        """Wait before the next attempt, but only while there is no connection."""
        self._batch = 1
        self._note_rival()
        was_away = self.output.error is not None
        if not was_away:  # otherwise the connection itself has reported its loss
            self.outage.failed("output %s: %s", self.output.name, error)
        # jitter: one broker may refuse many boxes at the same moment
        end_s = time.monotonic() + backoff.next_s() * random.uniform(0.5, 1.5)
        while not self._stopping.is_set() and time.monotonic() < end_s:
            self._note_waiting()
            if was_away and self.output.error is None:
                backoff.reset()
                return
            self._save()
            self._stopping.wait(WAIT_S)

    def _note_rival(self) -> None:
        if (rival := self.output.rival) is None:
            self._rivalry.worked()
        else:
            self._rivalry.failed("output %s: %s", self.output.name, rival)

    def _note_waiting(self) -> None:
        oldest = [ns for buffered in self._sources if (ns := buffered.oldest_ns) is not None]
        since_ns = min(oldest, default=None)
        now_s = time.monotonic()
        is_behind = since_ns is not None and self._wall_ns() - since_ns > BEHIND_S * 1e9
        if is_behind and now_s - self._counted_s < COUNT_EVERY_S:
            self._waiting = (self._waiting[0], since_ns)
            return
        self._counted_s = now_s
        n_waiting = sum(buffered.waiting(counts=is_behind) for buffered in self._sources)
        self._waiting = (n_waiting, since_ns)

    def _save(self, *, at_once: bool = False) -> None:
        cursors = {buffered.source.name: buffered.cursor for buffered in self._sources}
        if self.positions.save(cursors, at_once=at_once, memory=self.output.memory):
            self._unsaved = 0
