"""The query endpoint of a worker that is asked for nothing but its coverage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ports import free_ports

from ast_stream.coverage.answer import CoverageAnswer
from ast_stream.coverage.spans import Span
from ast_stream.messages.query import CoverageQuery, decode_query
from ast_stream.transport.sockets import Sockets


@contextmanager
def coverage_worker(answer: Callable[[CoverageQuery], list[bytes]]) -> Iterator[str]:
    """Yield the endpoint of a worker that answers so."""
    sockets = Sockets()
    endpoint = f"tcp://127.0.0.1:{free_ports()}"
    bound = sockets.bind("router", endpoint, 64)
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.is_set():
            message = bound.receive(20)
            if message is not None:
                query = decode_query(message[1:])
                assert isinstance(query, CoverageQuery)
                bound.send([message[0], *answer(query)])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield endpoint
    finally:
        is_over.set()
        thread.join()
        sockets.close()


def answer_of(spans: list[Span], older_ns: int | None = None) -> list[bytes]:
    """Return the frames of an answer with these spans."""
    return CoverageAnswer(boot="b", complete_from_ns=older_ns, spans=spans).encode()
