"""Answers from the coverage ledger: read in a thread, for the worker must not wait for its disk."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

from ast_stream.errors import WireError
from ast_stream.messages.query import CoverageQuery, refuse_query

MAX_WAITING = 8


class CoverageAnswers:
    """Answers queries for coverage one after the other.

    Args:
        answer: returns the frames of an answer; raises `WireError` if there can be none.
    """

    def __init__(self, answer: Callable[[CoverageQuery], list[bytes]]) -> None:
        self._answer = answer
        self._waiting: queue.Queue[tuple[list[bytes], CoverageQuery]] = queue.Queue(MAX_WAITING)
        self._finished: deque[tuple[list[bytes], list[bytes]]] = deque()
        self._thread: threading.Thread | None = None

    def ask(self, envelope: list[bytes], query: CoverageQuery) -> None:
        """Answer a query later.

        Args:
            envelope: of the client.

        Raises:
            WireError: too many wait already.
        """
        try:
            self._waiting.put_nowait((envelope, query))
        except queue.Full:
            raise WireError("coverage: too many others ask for it, ask again") from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="coverage", daemon=True)
            self._thread.start()

    def finished(self) -> list[tuple[list[bytes], list[bytes]]]:
        """Return the answers that are ready, each with the envelope of its client."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def _run(self) -> None:
        while True:
            envelope, query = self._waiting.get()
            try:
                answer = self._answer(query)
            except WireError as error:
                answer = refuse_query(str(error))
            self._finished.append((envelope, answer))
