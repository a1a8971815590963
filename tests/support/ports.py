"""Ports of the loopback interface for servers that a test starts."""

from __future__ import annotations

import itertools
import os
import socket

_PORTS = range(20_000, 32_000)  # below those that the kernel gives away
_BLOCK = 4
_N_BLOCKS = len(_PORTS) // _BLOCK
# tests run in several processes at a time: each begins elsewhere, and takes no port twice
_blocks = itertools.count(os.getpid() * 61)


def free_ports(n: int = 1) -> int:
    """Return the first of `n` (at most 4) consecutive ports that nobody uses."""
    for block in itertools.islice(_blocks, _N_BLOCKS):
        first = _PORTS[block % _N_BLOCKS * _BLOCK]
        if all(map(_is_free, range(first, first + n))):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
