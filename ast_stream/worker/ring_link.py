"""The worker's line to the ring of one capture process."""

from __future__ import annotations

from ast_stream.messages.audio import AckRequest, ReadRequest, encode_request
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Poller, Socket, Sockets


class RingLink:
    """A DEALER to one ring, made when first needed and made anew when answers may be stale."""

    def __init__(self, sockets: Sockets, poller: Poller, endpoint: str) -> None:
        self.endpoint = endpoint
        self._sockets = sockets
        self._poller = poller
        self._socket: Socket | None = None
        self._has_asked = False

    def send(self, request: ReadRequest | AckRequest) -> bool:
        """Send a request; False if it could not go out now.

        A ring takes acknowledgements from connections that read it: none goes before a question.
        """
        if isinstance(request, AckRequest) and not self._has_asked:
            return False
        if self._socket is None:
            self._socket = self._sockets.connect("dealer", self.endpoint, QUERY_HWM_MESSAGES)
            self._poller.add(self._socket)
        is_sent = self._socket.send([encode_request(request)])
        self._has_asked = self._has_asked or is_sent
        return is_sent

    def receive(self) -> list[bytes] | None:
        """Return the frames of an answer, or None."""
        return None if self._socket is None else self._socket.receive()

    def close(self) -> None:
        """Close the socket: late answers must not be taken for those of later requests."""
        if self._socket is not None:
            self._poller.remove(self._socket)
            self._sockets.forget(self._socket)
            self._socket = None
            self._has_asked = False
