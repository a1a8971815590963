"""Who reads the ring of a stream: its worker, for what it missed, or another process.

The worker is the process that listens where the blocks are sent: the kernel says which one that is,
and of which process a request came. Its reads are how sound gets to it, and nothing to record.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ast_stream.messages.audio import AudioBlock, ReadRequest
from ast_stream.privacy.audit import Access, AuditLog
from ast_stream.settings.schema import PrivacyMode
from ast_stream.transport.listener import Listener
from ast_stream.transport.requester import listening_process

NOT_THE_WORKER = "this ring is for the worker alone"
NOT_OF_THIS_USER = "only processes of this user and root may listen"


class RingReaders:
    """Decides who may listen to a ring, and records who else than the worker asks for audio.

    Args:
        router: the socket of the ring.
        audio_endpoint: where the worker takes blocks.
        mode: the setting `privacy`; unless it is off, nobody but the worker may listen.
    """

    def __init__(
        self,
        router: Listener,
        audio_endpoint: str,
        mode: PrivacyMode,
        audit: AuditLog,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._router = router
        self._audio_endpoint = audio_endpoint
        self._mode = mode
        self._audit = audit
        self._wall_ns = wall_ns
        self._worker: bytes | None = None  # the connection that was the worker's when it asked

    def may_listen(self, client: bytes) -> bool:
        """Return whether a client is connected and may have audio."""
        if not self._router.is_trusted(client):
            return False
        return self._mode == "off" or self._is_worker(client)

    def note(self, client: bytes, request: ReadRequest, given: AudioBlock | None) -> None:
        """Record what a reader other than the worker is sent or refused.

        Raises:
            WireError: it cannot be recorded, and so must not be given.
        """
        if given is not None and self._is_worker(client):
            return
        requester = self._router.requester(client)
        reason = NOT_THE_WORKER if requester.is_of_own_user else NOT_OF_THIS_USER
        self._audit.record(
            Access(
                time_ns=self._wall_ns(),
                who=requester.name,
                account=requester.account,
                stream=request.stream,
                start=request.start if given is None else given.start_sample,
                stop=request.stop if given is None else given.end_sample,
                outcome="refused" if given is None else "granted",
                reason=reason if given is None else None,
                samples=0 if given is None else len(given.pcm),
            )
        )

    def write_repeats(self) -> None:
        """Write the counted reads, once a minute."""
        self._audit.write_repeats()

    def close(self) -> None:
        """Write all counted reads."""
        self._audit.close()

    def _is_worker(self, client: bytes) -> bool:
        if client == self._worker:
            return True
        pid = self._router.requester(client).pid
        if pid is None or pid != listening_process(self._audio_endpoint):
            return False
        self._worker = client
        return True
