"""The identity of a peer, from the kernel or from its key."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass, replace

from ast_stream.transport.allow_list import (
    ALL_RIGHTS,
    GROUP_RIGHTS,
    NO_RIGHTS,
    AllowedClient,
    Rights,
)


@dataclass(frozen=True)
class Requester:
    """Who a request came from.

    Attributes:
        name: in words.
        account: the user or the key alone: what stays the same from connection to connection.
        pid: its process; None over tcp, or where that is in a container of its own.
        is_of_own_user: it is of this process's user, or root's; over tcp everybody is.
        rights: what it may do.
    """

    name: str
    account: str
    pid: int | None
    is_of_own_user: bool
    rights: Rights

    @classmethod
    def of(cls, connection: socket.socket) -> Requester:
        """Return who has connected, with the rights that need no key."""
        if connection.family != socket.AF_UNIX:
            address = "somebody"
            with contextlib.suppress(OSError):  # it has hung up already
                address = connection.getpeername()[0]
            name = f"{address} over tcp"
            return cls(name, name, None, True, ALL_RIGHTS)
        pid, uid = _peer_process(connection)
        is_own = uid in (os.geteuid(), 0)
        rights = ALL_RIGHTS if is_own else GROUP_RIGHTS
        return cls(f"process {pid} of user {uid}", f"user {uid}", pid or None, is_own, rights)

    def without_rights(self) -> Requester:
        """Return the same as long as it has not shown a key."""
        return replace(self, rights=NO_RIGHTS)

    def with_key_of(self, client: AllowedClient) -> Requester:
        """Return the same as a client on the allow-list, whose key it has shown."""
        name, account = f"{client.name} over tcp", f"key {client.name}"
        return replace(self, name=name, account=account, rights=client.rights)


NOBODY = Requester("a client that is gone", "nobody", None, False, NO_RIGHTS)


def listening_process(endpoint: str) -> int | None:
    """Return which process listens at an ipc endpoint; None if none does that can be seen."""
    if not endpoint.startswith("ipc://"):
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.setblocking(False)
            connection.connect(endpoint.removeprefix("ipc://"))
            return _peer_process(connection)[0] or None
    except OSError:  # nobody does, or this process has no descriptor left to ask with
        return None


def is_listened_at(endpoint: str) -> bool:
    """Return whether a process listens at an ipc endpoint, were it stopped; False over tcp."""
    if not endpoint.startswith("ipc://"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.setblocking(False)
            connection.connect(endpoint.removeprefix("ipc://"))
    except BlockingIOError:  # more wait to be accepted than there is room for
        return True
    except OSError:
        return False
    return True


def _peer_process(connection: socket.socket) -> tuple[int, int]:
    """Return process and user at the other end of a connection between processes of one machine.

    Of who has connected as it was then; of who listens as it was when it began to. The process is
    0 where it is in a container of its own.
    """
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", found)
    return pid, uid
