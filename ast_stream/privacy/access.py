"""The one place that hands out audio, governed by the setting `privacy`.

Anything that gives audio to people or programs, or keeps it, has to ask here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ast_stream.errors import WireError
from ast_stream.messages.audio import AudioBlock
from ast_stream.privacy.audit import Access, AuditLog
from ast_stream.privacy.speech import Range
from ast_stream.settings.schema import PrivacyMode
from ast_stream.transport.allow_list import AUDIO
from ast_stream.transport.query import AudioRange, ReleasedAudio
from ast_stream.transport.requester import Requester

SENSOR_REFUSAL = "audio: refused to everybody: with privacy: sensor nobody can get audio"
HISTORY_S = 60  # of audio kept for clients that may get it


class AudioAccess:
    """Returns the held audio of a stream, and records every attempt.

    Args:
        mode: the setting `privacy`.
        held: returns what is held of a range; raises `WireError` with a sentence if the stream or
            epoch is not known.
        speech: returns which samples of a block may hold speech.
        wall_ns: the time of day.
    """

    def __init__(
        self,
        mode: PrivacyMode,
        audit: AuditLog,
        held: Callable[[AudioRange], AudioBlock],
        speech: Callable[[AudioBlock], list[Range]],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.mode = mode
        self._audit = audit
        self._held = held
        self._speech = speech
        self._wall_ns = wall_ns

    @property
    def history_s(self) -> int:
        """Seconds of each stream that are kept to be handed out."""
        return 0 if self.mode == "sensor" else HISTORY_S

    @property
    def shows_spectrograms(self) -> bool:
        """Whether anybody may see spectrograms: from those, words could be made audible again."""
        return self.mode != "sensor"

    def release(self, wanted: AudioRange, requester: Requester) -> ReleasedAudio:
        """Return the requested audio, as far as it is held and permitted.

        Raises:
            WireError: it is not; says why.
        """
        try:
            released = self._released(wanted, requester)
        except WireError as error:
            self._audit.record(self._access(wanted, requester, refused=str(error)))
            raise
        self._audit.record(self._access(wanted, requester, released))
        return released

    def show(
        self, stream: str, start_sample: int, samples: int, withheld: int, viewers: list[Requester]
    ) -> None:
        """Record that viewers are shown the spectrogram of samples, before they are.

        Args:
            withheld: of the samples, those that are blank.

        Raises:
            WireError: it cannot be recorded, so it must not be shown.
        """
        for viewer in {viewer.account: viewer for viewer in viewers}.values():
            access = Access(
                time_ns=self._wall_ns(),
                who=viewer.name,
                account=viewer.account,
                stream=stream,
                start=start_sample,
                stop=start_sample + samples,
                outcome="granted",
                samples=samples,
                withheld=withheld,
                spectrogram=True,
            )
            self._audit.record(access)

    def _released(self, wanted: AudioRange, requester: Requester) -> ReleasedAudio:
        if self.mode == "sensor":
            raise WireError(SENSOR_REFUSAL)
        if not requester.rights.may(AUDIO):
            raise WireError(f"audio: not allowed: the client lacks the right {AUDIO!r}")
        block = self._held(wanted)
        if self.mode != "speech":
            return ReleasedAudio(block)
        withheld = self._speech(block)
        pcm = block.pcm.copy()
        for start, stop in withheld:
            pcm[start - block.start_sample : stop - block.start_sample] = 0
        return ReleasedAudio(replace(block, pcm=pcm), withheld)

    def _access(
        self,
        wanted: AudioRange,
        requester: Requester,
        released: ReleasedAudio | None = None,
        refused: str | None = None,
    ) -> Access:
        start, stop = wanted.shown()
        return Access(
            time_ns=self._wall_ns(),
            who=requester.name,
            account=requester.account,
            stream=wanted.stream,
            start=start,
            stop=stop,
            outcome="granted" if released is not None else "refused",
            reason=refused,
            samples=0 if released is None else len(released.block.pcm),
            withheld=sum(stop - start for start, stop in (released and released.withheld) or ()),
        )
