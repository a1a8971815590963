"""The folder of clips: written atomically, within limits, and consistent with the history.

Clips that may still be dropped are in a separate folder, and count towards the limits. A failure to
write or delete a clip is reported, and stops nothing else.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from ast_stream.errors import StartupError, WireError
from ast_stream.history.database import History, HistoryError
from ast_stream.history.records import ClipRecord
from ast_stream.recorder.clip import MAX_SHEET_BYTES, Clip, Sheet
from ast_stream.recorder.plan import ClipPart
from ast_stream.recorder.retention import StoredClip, make_room, too_old
from ast_stream.runtime.files import (
    DamagedFileError,
    expect_in_place,
    lock_file,
    make_folder,
    read_bounded,
    replace_file,
    sync,
)
from ast_stream.runtime.logging import LimitedLog, Outage
from ast_stream.settings.retention import MIB, ClipRetention
from ast_stream.settings.storage import DAY_S
from ast_stream.units import seconds_to_ns

Reason = Literal["age", "room", "no_alert", "dropped"]
"""Why a clip was deleted; `dropped`: in the end no policy keeps its event."""

WAITING = ".waiting"  # cannot be the name of a stream
SUFFIXES = (".flac", ".opus")
MAX_UNRECORDED = 10_000  # rows that wait while the history cannot be written
_SHEET = ".json"
_UNFINISHED = ".unfinished"

logger = logging.getLogger(__name__)


def free_bytes(folder: Path) -> int:
    """Return the free space on the disk of a folder, for this user."""
    return shutil.disk_usage(folder).free


class ClipFolder:
    """Clips on the disk, and their rows in the history.

    Args:
        limits: may be changed at any time.
        wait_s: how long a clip waits for a decision; may be changed at any time.

    Attributes:
        outage: whether and why nothing can be written.
        written: clips written, by class.
        deleted: clips deleted, by reason.

    Raises:
        StartupError: another process uses the folder, or it cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        history: History,
        limits: ClipRetention,
        wait_s: float,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.wait_s = wait_s
        self.outage = Outage(logger, f"clips are written to {folder} again")
        self.written: Counter[str] = Counter()
        self.deleted: Counter[Reason] = Counter()
        self._history = history
        self._wall_ns = wall_ns
        self._free = free
        self._clips: dict[str, StoredClip] = {}  # by path
        self._by_event: dict[str, set[str]] = {}  # paths
        self._stuck: set[str] = set()  # paths of clips that cannot be deleted
        self._rows: deque[ClipRecord | str] = deque(maxlen=MAX_UNRECORDED)  # to add, or to remove
        self._limited_log = LimitedLog(logger)
        try:
            make_folder(folder, 0o750)
        except OSError as error:
            raise StartupError(f"cannot create {folder}: {error.strerror}") from error
        self._lock = lock_file(folder / "lock", f"the folder of clips {folder}")
        self._look_through()
        self._reconcile()

    @property
    def n_clips(self) -> int:
        """Number of stored clips."""
        return sum(not clip.is_waiting for clip in self._clips.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all clips and their sheets."""
        return sum(clip.size_bytes for clip in self._clips.values())

    def close(self) -> None:
        """Write the rows that wait, if possible, and release the folder."""
        self.retry()
        os.close(self._lock)

    def expect_in_place(self) -> None:
        """Check that the folder at its path is still the one that this process has locked.

        Raises:
            RemovedError: it was removed or replaced.
        """
        what = f"the folder of clips {self.folder}"
        expect_in_place(self.folder / "lock", os.fstat(self._lock), what)

    def of_event(self, event_id: str) -> list[StoredClip]:
        """Return the stored parts of an event, in order."""
        found = [self._clips[path] for path in self._by_event.get(event_id, ())]
        return sorted(found, key=lambda clip: clip.part)

    def waiting(self) -> set[str]:
        """Return the events whose clips wait for a decision."""
        return {clip.event_id for clip in self._clips.values() if clip.is_waiting}

    def write(self, clip: Clip, *, is_waiting: bool) -> str | None:
        """Write a clip, to be kept or to wait for a decision; return why that is impossible."""
        audio, sheet = clip.encode(), clip.sheet.encode()
        n_bytes = len(audio) + len(sheet)
        path = PurePosixPath(WAITING) / clip.path if is_waiting else clip.path
        until_ns = self._wall_ns() + seconds_to_ns(self.wait_s) if is_waiting else None
        stored = _stored(str(path), clip.sheet, n_bytes, until_ns)
        self._forget(str(path))  # replaces that of an earlier run
        problem = self._make_room(n_bytes)
        if problem is None:
            place = self.folder / path
            try:
                make_folder(place.parent, 0o750)
                # in this order: a power cut may leave a sheet without audio, but never the reverse
                replace_file(place.with_suffix(_SHEET), sheet, is_synced=True, mode=0o640)
                replace_file(place, audio, is_synced=True, mode=0o640)
            except OSError as error:
                problem = f"{self.folder} cannot be written: {error.strerror}"
        if problem is not None:
            self.outage.failed("clips are not kept: %s", problem)
            return problem
        self.outage.worked()
        self._remember(stored)
        if not is_waiting:
            self.written[stored.class_] += 1
            self._record(_record(str(path), clip.sheet, len(audio)))
        return None

    def note(self, part: ClipPart, why: str) -> None:
        """Record why a part of an event has no clip."""
        message = part.event.message
        stop = max(part.start, part.stop)
        record = ClipRecord(
            message.id, part.number, "", message.stream, message.epoch or "", part.start, stop,
            part.event.time_ns(part.start), "", 0, why,
        )  # fmt: skip
        self._record(record)

    def keep(self, event_id: str) -> None:
        """Keep the waiting clips of an event."""
        for clip in self.of_event(event_id):
            if clip.is_waiting:
                self._move(clip)

    def wait(self, event_id: str) -> None:
        """Start the waiting time of the clips of an event that has ended."""
        until_ns = self._wall_ns() + seconds_to_ns(self.wait_s)
        for clip in self.of_event(event_id):
            if clip.is_waiting:
                self._remember(replace(clip, until_ns=until_ns))

    def drop(self, event_id: str) -> None:
        """Delete the clips of an event."""
        self._delete(self.of_event(event_id), "dropped")

    def sweep(self, at_work: Container[str]) -> None:
        """Delete clips that are too old, too many, or have waited too long; called each minute.

        Args:
            at_work: events in progress, whose clips still wait.
        """
        now_ns = self._wall_ns()
        if self.limits.max_days is not None:
            before_ns = now_ns - seconds_to_ns(self.limits.max_days * DAY_S)
            self._delete(list(too_old(list(self._clips.values()), before_ns)), "age")
        in_vain = [
            clip
            for clip in self._clips.values()
            if clip.is_waiting and clip.until_ns < now_ns and clip.event_id not in at_work
        ]
        self._delete(in_vain, "no_alert")
        self._make_room(0)
        self._stuck.clear()  # try again to delete them
        for place, _, _ in os.walk(self.folder, topdown=False):
            with suppress(OSError):  # not empty
                if Path(place) != self.folder:
                    os.rmdir(place)

    def retry(self) -> None:
        """Write the rows that could not be written to the history so far."""
        try:
            while self._rows:
                row = self._rows[0]
                if isinstance(row, str):
                    self._history.remove_clips([row])
                else:
                    self._history.add_clip(row)
                self._rows.popleft()
        except HistoryError as error:
            self._history.outage.failed("%s", error)

    def _make_room(self, n_bytes: int) -> str | None:
        """Delete clips to make room for `n_bytes`; return why there is still none, if so."""
        limit = self.limits.max_mib * MIB
        if n_bytes > limit:
            return f"a clip takes {n_bytes} bytes, and retention.clips.max_mib allows {limit}"
        while (excess := self.n_bytes + n_bytes - limit) > 0:
            candidates = [clip for clip in self._clips.values() if clip.path not in self._stuck]
            victims = list(make_room(candidates, excess, self.limits.keep_best))
            if not victims:
                return f"{self.folder} is full, and what is there cannot be deleted"
            self._delete(victims, "room")
        try:
            free = self._free(self.folder)
        except OSError as error:
            return f"{self.folder} cannot be looked at: {error.strerror}"
        if n_bytes and free - n_bytes < self.limits.min_free_mib * MIB:
            return (
                f"the disk of {self.folder} has {free // MIB} MiB left, and "
                f"{self.limits.min_free_mib} stay free (retention.clips.min_free_mib)"
            )
        return None

    def _move(self, clip: StoredClip) -> None:
        """Move a waiting clip to those that are kept."""
        path = PurePosixPath(clip.path).relative_to(WAITING)
        source, target = self.folder / clip.path, self.folder / path
        try:
            sheet = Sheet.decode(read_bounded(source.with_suffix(_SHEET), MAX_SHEET_BYTES))
            make_folder(target.parent, 0o750)
            replace_file(target.with_suffix(_SHEET), sheet.encode(), is_synced=True, mode=0o640)
            os.replace(source, target)
            sync(target.parent)
            sync(source.parent)
            source.with_suffix(_SHEET).unlink()
            n_bytes = target.stat().st_size
        except (OSError, DamagedFileError, WireError) as error:
            self._limited_log.warning("the clip %s cannot be kept: %s", source, error)
            return
        self._forget(clip.path)
        self._remember(replace(clip, path=str(path), is_waiting=False, until_ns=0))
        self.written[clip.class_] += 1
        self._record(_record(str(path), sheet, n_bytes))

    def _delete(self, clips: Iterable[StoredClip], reason: Reason) -> None:
        """Delete clips; one that cannot be deleted stays, and is skipped for a while."""
        gone = []
        for clip in clips:
            place = self.folder / clip.path
            try:
                place.unlink(missing_ok=True)
            except OSError as error:
                self._stuck.add(clip.path)
                text = "the clip %s cannot be deleted: %s"
                self._limited_log.warning(text, place, error.strerror)
                continue
            gone.append(clip)
        # in this order: a power cut may leave a sheet without audio, but never the reverse
        for folder in {(self.folder / clip.path).parent for clip in gone}:
            with suppress(OSError):
                sync(folder)
        for clip in gone:
            with suppress(OSError):  # the next start removes it
                (self.folder / clip.path).with_suffix(_SHEET).unlink(missing_ok=True)
            self._forget(clip.path)
            self.deleted[reason] += 1
            if not clip.is_waiting:
                self._record(clip.path)

    def _record(self, row: ClipRecord | str) -> None:
        self._rows.append(row)
        self.retry()

    def _remember(self, clip: StoredClip) -> None:
        self._clips[clip.path] = clip
        self._by_event.setdefault(clip.event_id, set()).add(clip.path)

    def _forget(self, path: str) -> None:
        clip = self._clips.pop(path, None)
        if clip is not None:
            paths = self._by_event[clip.event_id]
            paths.discard(path)
            if not paths:
                del self._by_event[clip.event_id]

    def _look_through(self) -> None:
        """Find the clips on the disk, and remove the leftovers of an interrupted run."""
        for place, _, names in os.walk(self.folder):
            for name in names:
                path = Path(place, name)
                is_alone = name.endswith(_SHEET) and not any(
                    path.with_suffix(suffix).exists() for suffix in SUFFIXES
                )
                if name.endswith(_UNFINISHED) or is_alone:
                    with suppress(OSError):
                        path.unlink()
                elif name.endswith(SUFFIXES):
                    self._find(path)

    def _find(self, path: Path) -> None:
        """Register a clip; one without a readable sheet counts, too, and is deleted by age."""
        name = path.relative_to(self.folder).as_posix()
        try:
            found = path.lstat()
        except OSError:
            return
        try:
            content = read_bounded(path.with_suffix(_SHEET), MAX_SHEET_BYTES)
            sheet = Sheet.decode(content)
            is_waiting = name.startswith(f"{WAITING}/")
            until_ns = found.st_mtime_ns + seconds_to_ns(self.wait_s) if is_waiting else None
            self._remember(_stored(name, sheet, found.st_size + len(content), until_ns))
        except (OSError, DamagedFileError, WireError) as error:
            self._limited_log.warning("the sheet of the clip %s cannot be read: %s", path, error)
            self._remember(
                StoredClip(name, name, 0, True, "", 0.0, found.st_mtime_ns, 0, 0, found.st_size)
            )

    def _reconcile(self) -> None:
        """Update the history to the clips on the disk."""
        known = {clip.path for clip, _ in self._history.all_clips() if clip.path}
        kept = {path for path, clip in self._clips.items() if not clip.is_waiting and clip.class_}
        for path in known - kept:
            self._record(path)
        for path in kept - known:
            with suppress(OSError, DamagedFileError, WireError):
                place = self.folder / path
                sheet = Sheet.decode(read_bounded(place.with_suffix(_SHEET), MAX_SHEET_BYTES))
                self._record(_record(path, sheet, place.stat().st_size))
        if known ^ kept:
            text = "the history did not know %s clips that there are, and knew %s that are gone"
            logger.warning(text, len(kept - known), len(known - kept))


def _stored(path: str, sheet: Sheet, n_bytes: int, until_ns: int | None) -> StoredClip:
    message = sheet.message
    return StoredClip(
        path, message.id, sheet.part, sheet.is_last, message.class_, message.peak, sheet.start_ns,
        sheet.start_sample, sheet.stop_sample, n_bytes, until_ns is not None, until_ns or 0,
    )  # fmt: skip


def _record(path: str, sheet: Sheet, n_bytes: int) -> ClipRecord:
    message = sheet.message
    return ClipRecord(
        message.id, sheet.part, path, message.stream, message.epoch or "", sheet.start_sample,
        sheet.stop_sample, sheet.start_ns, sheet.format, n_bytes, sheet.note,
    )  # fmt: skip
