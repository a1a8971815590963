"""The record of who asked for audio, and of what was administrated on the page: a line for each in
a bounded log, and in the journal.

The first access of a user or key to a stream is written before audio is handed out; if it cannot be
written, no audio is. Repeats are counted and written as one line a minute, so that a client that
listens or tries all day does not push the accesses of others out of the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from ast_stream.errors import StartupError, WireError
from ast_stream.messages.codec import Body, Text, Time, decode_json, encode_json
from ast_stream.runtime.files import reason_of
from ast_stream.runtime.logging import Outage
from ast_stream.runtime.segments import LineFile, SegmentFolder
from ast_stream.settings import storage
from ast_stream.settings.schema import Settings

REPEATS_S = 60.0
VIEWS_S = 3600.0  # the same of spectrograms: a page may show all streams all day
SEGMENT_BYTES = 2 * 1024 * 1024
MAX_REPEATED = 1000  # users, keys and streams whose repeats are counted at a time
_NAME = "audit"
_WHAT = "audit log"

logger = logging.getLogger(__name__)

Place = Annotated[int | Text | None, Field(union_mode="left_to_right")]
"""Sample index, or a time; None: where there is nothing to say."""


class Access(Body):
    """One access to audio, or repeats of it: a line of the log."""

    v: Literal[1] = 1
    time_ns: Time
    """When it was, or the last of them."""
    who: Text
    """A process and its user, or a key."""
    account: Text
    """The user or key alone."""
    stream: Text
    start: Annotated[Place, Field(alias="from")] = None
    """What was asked for: a sample index or a time."""
    stop: Annotated[Place, Field(alias="to")] = None
    outcome: Literal["granted", "refused"]
    reason: Text | None = None
    """Why it was refused."""
    samples: int = 0
    """Samples returned, including withheld ones."""
    withheld: int = 0
    """Of these, samples that were replaced by silence."""
    clip: Text | None = None
    """Id of the event whose recorded clip it was, on the page."""
    spectrogram: bool = False
    """It was no sound but the spectrogram, as long as somebody watched."""
    requests: int = 1
    """How many of them this line stands for."""

    def with_another(self, later: Self) -> Self:
        """Return this access and a later one of the same kind as one."""
        return later.model_copy(
            update={
                "start": self.start,
                "samples": self.samples + later.samples,
                "withheld": self.withheld + later.withheld,
                "requests": self.requests + later.requests,
            }
        )

    def encode_line(self) -> bytes:
        """Return the line."""
        return encode_json(self.to_json()) + b"\n"

    def __str__(self) -> str:
        """Read as a sentence."""
        what = "the spectrogram" if self.spectrogram else "audio"
        asked = f"{what} of {self.stream} from {self.start} to {self.stop}"
        asked += "" if self.clip is None else f" (clip of event {self.clip})"
        times = f" ({self.requests} times)" if self.requests > 1 else ""
        if self.outcome == "refused":
            return f"{self.who} asked for {asked}{times} and was refused: {self.reason}"
        withheld = f", {self.withheld} of them withheld" if self.withheld else ""
        return f"{self.who} was given {asked}{times}: {self.samples} samples{withheld}"


class Act(Body):
    """An act of administration on the page: a line of the log."""

    v: Literal[1] = 1
    time_ns: Time
    """When it was asked for."""
    who: Text
    """A user, and how it was known."""
    account: Text
    """The user alone."""
    act: Text
    """What was asked for, in words."""

    def encode_line(self) -> bytes:
        """Return the line."""
        return encode_json(self.to_json()) + b"\n"

    def __str__(self) -> str:
        """Read as a sentence."""
        return f"{self.who} asked to {self.act}"


class AuditLog:
    """Writes the accesses that one process sees.

    Args:
        folder: created for the first line; used by one process at a time.
        max_age_s: after which lines are deleted; None: not by age.
        now_s: monotonic clock.

    Attributes:
        outage: whether accesses cannot be recorded, and why.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age_s: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outage = Outage(logger, f"{_WHAT} {folder} is written again", now_s)
        self._now_s = now_s
        segment_bytes = min(SEGMENT_BYTES, max_bytes // 2)
        self._folder = SegmentFolder(
            folder, _NAME, _WHAT, LineFile, max_bytes, segment_bytes, max_age_s, outage=self.outage
        )
        self._repeated: dict[tuple[str, ...], tuple[float, Access | None]] = {}
        self._is_open = False
        try:
            is_there = folder.is_dir()
        except (
            OSError
        ) as error:  # root made the folder around it: audio waits, the process does not
            self._cannot_open(error)
        else:
            if is_there:  # what earlier runs recorded grows old
                self._open()

    def record(self, access: Access) -> None:
        """Record an access before it happens.

        Raises:
            WireError: it cannot be recorded, so it must not take place.
        """
        self.write_repeats()
        key: tuple[str, ...] = (access.outcome, access.account)
        if access.outcome == "granted":  # of a stream that there is: what is refused may name any
            kind = "spectrogram" if access.spectrogram else access.clip or ""
            key = (*key, access.stream, kind)
        if key in self._repeated:
            since_s, before = self._repeated[key]
            access = access if before is None else before.with_another(access)
            self._repeated[key] = since_s, access
            return
        if not self._is_written(access) and access.outcome == "granted":
            raise WireError("audio: not handed out: the access cannot be recorded now")
        if len(self._repeated) >= MAX_REPEATED:
            self._end(next(iter(self._repeated)))
        self._repeated[key] = self._now_s(), None

    def record_act(self, act: Act) -> None:
        """Record an action before it happens.

        Raises:
            WireError: it cannot be recorded, so it must not take place.
        """
        if not self._is_written(act):
            raise WireError("not done: the act cannot be recorded now")

    def write_repeats(self, *, at_once: bool = False) -> None:
        """Write the repeats whose minute is over, and delete what is too old; to be called once in
        a while.
        """
        if self._is_open:
            self._folder.purge()
        now_s = self._now_s()
        for key, (since_s, repeats) in list(self._repeated.items()):
            is_view = repeats is not None and repeats.spectrogram
            if now_s - since_s >= (VIEWS_S if is_view else REPEATS_S):
                self._end(key)
        if at_once:
            for key in list(self._repeated):
                self._end(key)

    def close(self) -> None:
        """Write everything, if the disk accepts it, and release the folder."""
        self.write_repeats(at_once=True)
        self._folder.close()

    def _end(self, key: tuple[str, ...]) -> None:
        _, repeats = self._repeated.pop(key)
        if repeats is not None:
            self._is_written(repeats)

    def _is_written(self, line: Access | Act) -> bool:
        logger.info("%s", line)
        try:
            if not self._is_open and not self._open():
                return False
            self._folder.write(line.encode_line())
            self._folder.sync()  # what a power cut could take is not recorded yet
        except OSError as error:
            self.outage.failed("%s %s cannot be written: %s", _WHAT, self._folder.path, error)
            return False
        self.outage.worked()
        return True

    def _open(self) -> bool:
        try:
            self._folder.open(_count_lines)
        except (OSError, StartupError) as error:
            self._cannot_open(error)
            return False
        self._is_open = True
        return True

    def _cannot_open(self, error: Exception) -> None:
        self.outage.failed("%s %s cannot be opened: %s", _WHAT, self._folder.path, reason_of(error))


def open_audit_log(settings: Settings, process: str) -> AuditLog:
    """Return the audit log of a process: "worker", "web", or "capture" and a stream's name."""
    place = storage.audit_log(settings, process)
    return AuditLog(place.folder, max_bytes=place.max_bytes, max_age_s=place.max_age_s)


def decode_access(line: bytes) -> Access:
    """Return the access in a line of the log.

    Raises:
        WireError: the line is damaged, of a later version, or an act.
    """
    return Access.from_json(decode_json(line, "audit line", LineFile.MAX_LINE_BYTES), "audit line")


def decode_act(line: bytes) -> Act:
    """Return the act in a line of the log.

    Raises:
        WireError: the line is damaged, of a later version, or an access.
    """
    return Act.from_json(decode_json(line, "audit line", LineFile.MAX_LINE_BYTES), "audit line")


def _count_lines(segment: LineFile, max_bytes: int) -> None:
    for _ in segment.lines(max_bytes):
        pass
