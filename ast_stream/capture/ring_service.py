"""The ring of one stream as others see it: requests in, replies out, no sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ast_stream.capture.intake import SourceStatus
from ast_stream.capture.ring import Ring, RingSlice
from ast_stream.errors import WireError
from ast_stream.limited_log import LimitedLog
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AckRequest,
    ReadRequest,
    RingReply,
    decode_ring_request,
    encode_error,
    encode_ring_reply,
)
from ast_stream.messages.event import AudioBlock

logger = logging.getLogger(__name__)

_MAX_DETAIL = 512  # characters, as the codec allows


class RingService:
    """Answers ring requests of one stream and makes the blocks that are sent.

    Args:
        is_trusted: tells whether a client is connected and may acknowledge. Of those only one
            has the say: the first that acknowledged, as long as it is connected.

    Attributes:
        has_told_end: somebody was given the last sample and knows that it is the last.
        n_malformed: requests that did not follow the format.
    """

    def __init__(
        self,
        stream: str,
        epoch: str,
        endpoint: str,
        ring: Ring,
        status: Callable[[], SourceStatus],
        *,
        is_paced: bool = True,
        is_trusted: Callable[[bytes], bool] = lambda _: True,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.has_told_end = False
        self.n_malformed = 0
        self._stream = stream
        self._epoch = epoch
        self._endpoint = endpoint
        self._ring = ring
        self._status = status
        self._is_paced = is_paced
        self._is_trusted = is_trusted
        self._clients: set[bytes] = set()  # that have read
        self._worker: bytes | None = None  # whose acknowledgements count
        self._wall_ns = wall_ns
        self._log = LimitedLog(logger)

    def answer(self, frames: list[bytes], client: bytes = b"") -> list[bytes] | None:
        """Return the frames of the reply to a request, or None where none is expected.

        Args:
            frames: the request as a DEALER sent it, without the identity.
            client: its identity, of one connection.
        """
        try:
            if len(frames) != 1:
                raise WireError(f"ring request: expected 1 frame, got {len(frames)}")
            request = decode_ring_request(frames[0])
        except WireError as error:
            self.n_malformed += 1
            self._log.warning("malformed request refused: %s", error)
            return [encode_error("malformed", detail=str(error)[:_MAX_DETAIL])]
        if isinstance(request, AckRequest):
            self._acknowledge(request, client)
            return None
        if request.stream != self._stream:
            return [encode_error("wrong_stream", stream=self._stream)]
        if request.epoch not in (None, self._epoch):
            return [self._wrong_epoch()]
        self._clients = {one for one in self._clients if self._is_trusted(one)} | {client}
        return self._read(request)

    def block(self, start: int, max_samples: int) -> AudioBlock:
        """Return the first block at or after `start`; it is the last if the source has ended."""
        status = self._status()  # asked first: after the end `next` stays
        return self._block(self._ring.read(start, self._ring.next, max_samples), status)

    def _read(self, request: ReadRequest) -> list[bytes]:
        status = self._status()
        start = self._ring.acked if request.start is None else request.start
        stop = self._ring.next if request.stop is None else request.stop
        slice_ = self._ring.read(start, stop, MAX_BLOCK_SAMPLES)
        block = self._block(slice_, status)
        self.has_told_end = self.has_told_end or block.is_last
        return encode_ring_reply(
            RingReply(
                block=block,
                oldest=self._ring.oldest,
                next=self._ring.next,
                acked=self._ring.acked,
                state=status.state,
                detail=block.detail,
                is_paced=self._is_paced,
            )
        )

    def _acknowledge(self, request: AckRequest, client: bytes) -> None:
        # an acknowledgement meant for the process before this one is late, not wrong
        if request.epoch != self._epoch:
            return
        if not self._is_of_worker(client):
            self.n_malformed += 1
            self._log.warning(
                "acknowledgement refused: expected one of the client that reads this ring, "
                "got one of another"
            )
        elif self._ring.ack(request.stop):
            self._worker = client
        else:
            logger.debug("acknowledgement of %d ignored", request.stop)

    def _is_of_worker(self, client: bytes) -> bool:
        """Tell whether a client's word counts: it has read, and no other that reads has the say."""
        if self._worker is not None and self._worker != client and self._is_trusted(self._worker):
            return False
        return client in self._clients and self._is_trusted(client)

    def _wrong_epoch(self) -> bytes:
        return encode_error(
            "wrong_epoch", epoch=self._epoch, oldest=self._ring.oldest, next=self._ring.next
        )

    def _block(self, slice_: RingSlice, status: SourceStatus) -> AudioBlock:
        return AudioBlock(
            stream=self._stream,
            epoch=self._epoch,
            start_sample=slice_.start_sample,
            time_ns=self._wall_ns() if slice_.time_ns is None else slice_.time_ns,
            pcm=slice_.pcm,
            ring=self._endpoint,
            gap_reason=slice_.gap_reason,
            is_last=status.state == "ended" and slice_.end_sample == self._ring.next,
            state=status.state,
            detail=None if status.detail is None else status.detail[:_MAX_DETAIL],
        )
