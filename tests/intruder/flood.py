"""Many clients that send as many tiny messages as they can, beside one that behaves."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import socket
import statistics
import threading
import time
from dataclasses import dataclass

from ast_stream.transport.listener import Listener, Reactor
from ast_stream.transport.zmtp import GREETING, encode_message

_READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
_POLITE = b"polite"
_AT_ONCE = 2_000  # messages in one call of the system
_POLITE_EVERY_S = 0.02


@dataclass(frozen=True)
class Flood:
    """What a flood did.

    Attributes:
        flooded: messages of the clients that flood, as far as they were received.
        polite, polite_lost: messages of the one that behaves, and those that never came.
        median_ms, longest_ms: on the way, of those.
        grown_mib: by how much the receiving process grew.
    """

    clients: int
    flooded: int
    seconds: float
    polite: int
    polite_lost: int
    median_ms: float
    longest_ms: float
    grown_mib: float


def flood(path: str, n_clients: int, n_messages: int) -> Flood:
    """Bind a PULL at an ipc path, let `n_clients` processes send `n_messages`, and take all."""
    reactor = Reactor()
    listener = Listener(reactor, "pull", f"ipc://{path}", 64)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    context = multiprocessing.get_context("spawn")
    flooding = [
        context.Process(target=_send_tiny, args=(path, n_messages // n_clients))
        for _ in range(n_clients)
    ]
    sent: list[float] = []
    stop = threading.Event()
    polite = threading.Thread(target=_send_politely, args=(path, sent, stop))
    began_s = time.monotonic()
    for one in flooding:
        one.start()
    polite.start()
    delays_ms, flooded = [], 0
    n_wanted = n_clients * (n_messages // n_clients)
    while True:
        message = listener.receive(500)
        if message is None:
            if not polite.is_alive():
                break
            if not any(one.is_alive() for one in flooding):
                stop.set()
        elif message[0] == _POLITE:
            delays_ms.append(1000 * (time.monotonic() - float(message[1])))
        else:
            flooded += 1
        if flooded >= n_wanted:
            stop.set()
    seconds = time.monotonic() - began_s
    for one in flooding:
        one.join()
    polite.join()
    listener.close()
    reactor.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return Flood(
        clients=n_clients,
        flooded=flooded,
        seconds=round(seconds, 1),
        polite=len(sent),
        polite_lost=len(sent) - len(delays_ms),
        median_ms=round(statistics.median(delays_ms), 2),
        longest_ms=round(max(delays_ms), 1),
        grown_mib=round(grown / 1024, 1),
    )


def _connected(path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    peer.sendall(GREETING + _READY)
    return peer


def _send_tiny(path: str, n_messages: int) -> None:
    with _connected(path) as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while n_messages > 0:
            n = min(n_messages, _AT_ONCE)
            peer.sendall(encode_message([b"x"]) * n)
            n_messages -= n


def _send_politely(path: str, sent: list[float], stop: threading.Event) -> None:
    with _connected(path) as peer:
        while not stop.wait(_POLITE_EVERY_S):
            now_s = time.monotonic()
            peer.sendall(encode_message([_POLITE, repr(now_s).encode()]))
            sent.append(now_s)
