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
# nobody else's while this process lives, long before a server listens there and while it is down
_claims: list[int] = []


def free_ports(n: int = 1) -> int:
    """Return the first of `n` (at most 4) consecutive ports that nobody uses, nor will soon."""
    for block in itertools.islice(_blocks, _N_BLOCKS):
        first = _PORTS[block % _N_BLOCKS * _BLOCK]
        if _is_claimed(first) and all(map(_is_free, range(first, first + n))):
            return first
    raise AssertionError("no free ports")


def _is_claimed(first: int) -> bool:
    """Claim a block by a name that the kernel gives once, and takes back with the process."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0ast-stream-tests-port-{first}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim.detach())
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
