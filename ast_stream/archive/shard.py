"""The result files of one shard: parts in Parquet, each of which is complete or absent.

A part is closed when it has enough recordings or hours of audio, which depends on the recordings
alone, so that a shard that was killed and resumed ends up with the same files as any other.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ast_stream.archive.folders import (
    ArchiveError,
    DiskFolder,
    ResultsFolder,
    folder_of,
    inside,
    shard_folders,
)
from ast_stream.archive.listing import Listing, ShardNumber
from ast_stream.archive.manifest import (
    MANIFEST,
    Input,
    Made,
    PartFile,
    Progress,
    ShardManifest,
    ShardPart,
)
from ast_stream.archive.parquet import (
    COVERAGE,
    EVENTS,
    SCORES,
    coverage_row,
    event_rows,
    write_rows,
    write_scores,
)
from ast_stream.errors import UsageError
from ast_stream.runtime.files import reason_of

if TYPE_CHECKING:
    from ast_stream.archive.recording_rows import RecordingRows

AGAIN = "--again begins afresh"
PART_HOURS, PART_RECORDINGS = 6.0, 1000
_OF_A_PART = re.compile(rf"\.?(?:{EVENTS}|{COVERAGE}|{SCORES})-[^/]*\.parquet(?:\.unfinished)?\Z")


@dataclass(frozen=True)
class PartSize:
    """The size at which a part is closed, whichever is reached first."""

    hours: float = PART_HOURS
    recordings: int = PART_RECORDINGS


class ShardResults:
    """The folder of a shard, locked; `add` takes the recordings in order.

    Args:
        out: result folder of all shards, as a path or URI.
        listing: the recordings of the shard.
        made: what the rows depend on.
        computed_on: for information, see `ShardManifest`.
        is_again: delete existing results.
        monotonic, now: clocks, in seconds.

    Raises:
        StartupError: the folder cannot be written, or another process is using it.
        ObjectStoreError: an object store for the results cannot be read or written.
        UsageError: the folder has results of another archive, another number of shards, another
            model, other settings or another version.
        ArchiveError: existing results are damaged.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        shard: ShardNumber,
        listing: Listing,
        made: Made,
        computed_on: dict[str, str],
        *,
        size: PartSize | None = None,
        is_again: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder_of(out, shard)
        self._size = size or PartSize()
        self._made = made
        self._monotonic, self._now = monotonic, now
        self._waiting: list[RecordingRows] = []
        _check_count(out, shard)
        self.folder.hold(f"shard {shard} in {os.fspath(out)}")
        try:
            if is_again:
                self._delete_all()
            self.manifest = self._resumed(listing) or ShardManifest(
                shard=shard.index,
                of=shard.count,
                state="unfinished",
                made=made,
                input=_input_of(listing),
                root=listing.root,
                computed_on=computed_on,
            )
            self._began = (monotonic(), self.manifest.progress)
            with _explained(self.folder):
                self._delete_unfinished()
                n_starts = self.manifest.progress.starts + 1
                progress = self.manifest.progress.model_copy(update={"starts": n_starts})
                self._write_manifest(self.manifest.parts, progress)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> ShardResults:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def n_done(self) -> int:
        """Number of recordings in complete parts: where the scan continues."""
        return self.manifest.progress.recordings

    @property
    def is_complete(self) -> bool:
        """Whether all recordings of the shard are in complete parts."""
        return self.n_done == self.manifest.input.of_shard

    def add(self, recording: RecordingRows) -> None:
        """Add the next recording, and close the part if it is large enough.

        Raises:
            ArchiveError: the part, or the manifest, cannot be written.
        """
        self._waiting.append(recording)
        hours = sum(recording.duration_s for recording in self._waiting) / 3600
        is_last = self.n_done + len(self._waiting) == self.manifest.input.of_shard
        if hours >= self._size.hours or len(self._waiting) >= self._size.recordings or is_last:
            self._close_part()

    def release(self) -> None:
        """Unlock the folder; recordings that are not in a complete part are discarded."""
        for recording in self._waiting:
            if recording.scores is not None:
                recording.scores.close()
        self._waiting.clear()
        self.folder.release()

    def _close_part(self) -> None:
        recordings, number = self._waiting, len(self.manifest.parts)
        facts = {
            "model": self._made.model,
            "settings": self._made.settings,
            "channel": self._made.channel,
        }
        events = [row for recording in recordings for row in event_rows(recording)]
        rows = {EVENTS: len(events), COVERAGE: len(recordings)}
        contents = {
            EVENTS: partial(write_rows, table=EVENTS, rows=events),
            COVERAGE: partial(
                write_rows,
                table=COVERAGE,
                rows=[coverage_row(recording, facts) for recording in recordings],
            ),
        }
        if self._made.settings_are.get("scores"):
            contents[SCORES] = partial(write_scores, recordings=recordings)
            rows[SCORES] = sum(
                recording.scores.n_rows for recording in recordings if recording.scores is not None
            )
        names = {table: f"{table}-{number:08d}.parquet" for table in contents}
        with _explained(self.folder):
            put = self.folder.put({names[table]: write for table, write in contents.items()})
            files = {
                table: PartFile(
                    file=name, rows=rows[table], bytes=put[name].n_bytes, sha256=put[name].sha256
                )
                for table, name in names.items()
            }
            hours = sum(recording.duration_s for recording in recordings) / 3600
            part = ShardPart(
                number=number, recordings=len(recordings), hours=round(hours, 6), files=files
            )
            self._write_manifest((*self.manifest.parts, part), self._progress(recordings))
            if self.is_complete and not self.folder.is_locked:
                self._delete_unfinished()
        for recording in recordings:
            if recording.scores is not None:
                recording.scores.close()
        self._waiting = []

    def _progress(self, recordings: Iterable[RecordingRows]) -> Progress:
        """Return the progress after these recordings."""
        before = self.manifest.progress
        recordings = list(recordings)
        began_s, at_start = self._began
        ran_s = max(1e-3, self._monotonic() - began_s)
        n_done = before.recordings + len(recordings)
        hours = before.hours + sum(recording.duration_s for recording in recordings) / 3600
        n_left = self.manifest.input.of_shard - n_done
        counts = {
            status: getattr(before, status)
            + sum(recording.status == status for recording in recordings)
            for status in ("warned", "partial", "unreadable")
        }
        return Progress(
            recordings=n_done,
            hours=round(hours, 6),
            events=before.events + sum(len(recording.events) for recording in recordings),
            busy_s=round(at_start.busy_s + ran_s, 3),
            hours_per_hour=round((hours - at_start.hours) / ran_s * 3600, 3),
            eta_s=round(ran_s / max(1, n_done - at_start.recordings) * n_left, 1),
            updated=round(self._now(), 3),
            **counts,
        )

    def _write_manifest(self, parts: tuple[ShardPart, ...], progress: Progress) -> None:
        is_complete = progress.recordings == self.manifest.input.of_shard
        manifest = self.manifest.model_copy(
            update={
                "parts": parts,
                "progress": progress,
                "state": "complete" if is_complete else "unfinished",
            }
        )
        manifest.write(self.folder)
        self.manifest = manifest

    def _resumed(self, listing: Listing) -> ShardManifest | None:
        """Return the manifest of an earlier run that can be resumed; None: there is none.

        Raises:
            UsageError, ArchiveError: it was made differently, or is damaged.
        """
        try:
            found = ShardManifest.read(self.folder)
        except ArchiveError as error:
            raise ArchiveError(f"scan: {error}; {AGAIN}") from error
        if found is None:
            return None
        where = self.folder.place
        for difference in _differences(found, self._made, _input_of(listing)):
            raise UsageError(f"scan: {where}: {difference}; {AGAIN}")
        for name in found.missing_files(self.folder):
            raise ArchiveError(
                f"scan: {inside(where, name)}: missing, or not as it was written; {AGAIN}"
            )
        return found

    def _delete_all(self) -> None:
        """Delete existing results, the manifest first, since every file it names must exist."""
        self.folder.delete([MANIFEST])
        self._delete_parts(known=())

    def _delete_unfinished(self) -> None:
        """Delete files that a kill left behind and that no manifest names.

        Without a lock, another process may be about to add such a file to its manifest. There it is
        kept until the same part replaces it, or until the shard is complete.
        """
        if self.folder.is_locked or self.is_complete:
            parts = self.manifest.parts
            self._delete_parts(file.file for part in parts for file in part.files.values())

    def _delete_parts(self, known: Iterable[str]) -> None:
        known = set(known)
        names = [name for name in self.folder.sizes() if _OF_A_PART.match(name)]
        self.folder.delete(name for name in names if name not in known)


def _input_of(listing: Listing) -> Input:
    return Input(digest=listing.digest, recordings=listing.n_all, of_shard=len(listing.names))


def _differences(found: ShardManifest, made: Made, given: Input) -> list[str]:
    """Return why a shard cannot be resumed, as sentences."""
    before = found.made
    differences = []
    if before.model != made.model:
        differences.append(f"it was begun with the model {before.model}, this is {made.model}")
    if before.settings != made.settings:
        changed = _changed(before.settings_are, made.settings_are)
        differences.append(f"it was begun with other settings: {changed}")
    if before.version != made.version:
        differences.append(f"it was begun by version {before.version}, this is {made.version}")
    if found.input != given:
        differences.append(
            f"it was begun with another list of {found.input.recordings} recordings, "
            f"this one has {given.recordings}"
        )
    return differences


def _changed(before: Any, now: Any, path: str = "") -> str:
    """Return the first setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _changed(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    return f"{path} was {before}, is {now}"


def _check_count(out: str | os.PathLike[str], shard: ShardNumber) -> None:
    """Make sure that all shards in a folder belong to the same number of shards.

    Raises:
        UsageError: they do not.
    """
    for number, folder in shard_folders(out):
        if number.count != shard.count and MANIFEST in folder.sizes():
            raise UsageError(
                f"scan: --out: {os.fspath(out)} holds one of {number.count} shards, this is one of "
                f"{shard.count}: expected the same number, or another folder"
            )


@contextmanager
def _explained(folder: ResultsFolder) -> Iterator[None]:
    """Turn an error of the disk into an ArchiveError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder.place
        why = reason_of(error)
        then = "what was finished is whole, and the shard goes on from there when it is run again"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            disk = folder.path if isinstance(folder, DiskFolder) else tempfile.gettempdir()
            why = f"{why} ({shutil.disk_usage(disk).free >> 20} MiB are free)"
        raise ArchiveError(f"scan: cannot write {where}: {why}; {then}") from error
