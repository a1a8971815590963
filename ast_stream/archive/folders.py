"""Result folders: on a disk, or in an object store, which has neither renames nor locks.

Files are written and replaced atomically. On a disk, a lock keeps a second process out. In a
store, a process checks before it replaces the manifest that the manifest is still its own, and
ends if it is not, so that the process that started last continues. Until then both write the same
parts, which does no harm.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ast_stream.archive.listing import ShardNumber
from ast_stream.archive.places import is_uri, local_path
from ast_stream.archive.stores import arrow, has_folders, open_store, retried
from ast_stream.audio.recording import RecordingAbsentError
from ast_stream.errors import AstStreamError, StartupError
from ast_stream.runtime.files import (
    Content,
    DamagedFileError,
    lock_file,
    make_folder,
    read_bounded,
    replace_files,
)
from ast_stream.runtime.temporary import nameless_file

_LOCK = "lock"
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\Z")


class ArchiveError(AstStreamError):
    """A result folder does not hold what was expected."""


class Written(NamedTuple):
    """A file that was written to a folder."""

    n_bytes: int
    sha256: str


class ResultsFolder(Protocol):
    """A result folder.

    Attributes:
        place: its path or URI.
        is_locked: no other process can write to it while it is held.
    """

    place: str
    is_locked: bool

    def hold(self, what: str) -> None:
        """Create the folder if it does not exist, and keep other processes out.

        Args:
            what: what the folder holds, for error messages.

        Raises:
            StartupError: it cannot be created, or another process is using it.
        """

    def release(self) -> None:
        """Let other processes in again."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is none.
            OSError, DamagedFileError, ObjectStoreError: it cannot be read.
        """

    def sizes(self) -> dict[str, int]:
        """Return the size of each file in it, in bytes; empty if there is no such folder."""

    def put(self, contents: Mapping[str, Content]) -> dict[str, Written]:
        """Write files, each atomically and durably.

        Raises:
            OSError, ObjectStoreError: a file could not be written.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Replace a file atomically.

        Raises:
            OSError, ObjectStoreError: it could not be written.
            StartupError: another process has replaced it.
        """

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that do not exist are ignored."""

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file in hex; None: it cannot be read."""

    def source(self, name: str) -> Any:
        """Return a file as a source that pyarrow can read from."""


def folder_at(place: str | os.PathLike[str]) -> ResultsFolder:
    """Return the folder at a path or URI."""
    place = os.fspath(place)
    return StoreFolder(place) if is_uri(place) else DiskFolder(local_path(place))


def folder_of(out: str | os.PathLike[str], shard: ShardNumber) -> ResultsFolder:
    """Return the folder of a shard inside the archive's result folder."""
    return folder_at(inside(out, f"shard-{shard.index:05d}-of-{shard.count:05d}"))


def shard_folders(out: str | os.PathLike[str]) -> list[tuple[ShardNumber, ResultsFolder]]:
    """Return the shard folders in a result folder, whatever number of shards they belong to.

    Raises:
        ObjectStoreError: a store cannot be read.
    """
    place = os.fspath(out)
    names = _folders_in_store(place) if is_uri(place) else _folders_on_disk(local_path(place))
    found = []
    for name in sorted(names):
        if (numbers := _SHARD.match(name)) and int(numbers[1]) < int(numbers[2]):
            shard = ShardNumber(int(numbers[1]), int(numbers[2]))
            found.append((shard, folder_at(inside(place, name))))
    return found


def inside(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URI of something in a folder."""
    place = os.fspath(folder)
    return f"{place.rstrip('/')}/{name}" if is_uri(place) else os.path.join(place, name)


class DiskFolder:
    """A folder on a disk, or on a network share; see `ResultsFolder`."""

    is_locked = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._lock = -1

    def hold(self, what: str) -> None:
        """Create and lock it."""
        try:
            make_folder(self.path)
        except OSError as error:
            where = error.filename or self.path
            raise StartupError(f"scan: --out: cannot create {where}: {error.strerror}") from error
        self._lock = lock_file(self.path / _LOCK, what)

    def release(self) -> None:
        """Unlock it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file."""
        return read_bounded(self.path / name, max_bytes)

    def sizes(self) -> dict[str, int]:
        """Return the size of each file in it, in bytes."""
        found = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(OSError):
                    found[entry.name] = entry.stat().st_size
        return found

    def put(self, contents: Mapping[str, Content]) -> dict[str, Written]:
        """Write temporary files, sync them, and rename them."""
        replace_files(self.path, contents, is_synced=True)
        return {name: _described(self.path / name) for name in contents}

    def replace(self, name: str, content: bytes) -> None:
        """Replace a file by renaming a synced temporary one."""
        replace_files(self.path, {name: content}, is_synced=True)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def sha256(self, name: str) -> str | None:
        """Return the checksum of a file."""
        try:
            return _described(self.path / name).sha256
        except OSError:
            return None

    def source(self, name: str) -> Any:
        """Return the path of a file."""
        return str(self.path / name)


class StoreFolder:
    """A folder in an object store, where writes are atomic; see `ResultsFolder`.

    Args:
        sleep: waits between attempts.
    """

    is_locked = False

    def __init__(self, place: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.place = place.rstrip("/")
        self._sleep = sleep
        self._what = self.place
        self._known: dict[str, bytes | None] = {}  # what this process last read or wrote

    def hold(self, what: str) -> None:
        """Remember what it holds; a store has no locks."""
        self._what = what
        files, path = open_store(self.place)
        if has_folders(self.place):
            self._retried(lambda: files.create_dir(path, recursive=True))

    def release(self) -> None:
        """Do nothing."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of an object."""
        content = self._read(name, max_bytes)
        if content is None:
            raise FileNotFoundError(inside(self.place, name))
        self._known[name] = content
        return content

    def sizes(self) -> dict[str, int]:
        """Return the size of each object in it, in bytes."""
        files, path = open_store(self.place)
        kinds = arrow("pyarrow.fs")
        selector = kinds.FileSelector(path, allow_not_found=True)
        found = self._retried(lambda: files.get_file_info(selector))
        return {info.base_name: info.size for info in found if info.type == kinds.FileType.File}

    def put(self, contents: Mapping[str, Content]) -> dict[str, Written]:
        """Write temporary files, and upload them once all are complete."""
        written = {}
        with ExitStack() as cleanup:
            paths: dict[str, Path] = {}
            for name, content in contents.items():
                _, path = cleanup.enter_context(nameless_file())
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    content(path)
                paths[name], written[name] = path, _described(path)
            for name, path in paths.items():
                self._upload(name, path.read_bytes())
        return written

    def replace(self, name: str, content: bytes) -> None:
        """Replace an object if it is still the one that this process last read or wrote."""
        found = self._read(name)
        if found == content:  # an earlier attempt succeeded, but its answer was lost
            return
        if found != self._known.get(name):
            raise StartupError(f"{self._what} is in use by another process")
        self._upload(name, content)
        self._known[name] = content

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects."""
        files, path = open_store(self.place)
        there = self.sizes()
        for name in names:
            self._known.pop(name, None)
            with suppress(RecordingAbsentError):  # an earlier attempt succeeded unanswered
                if name in there:
                    self._retried(partial(files.delete_file, f"{path}/{name}"))

    def sha256(self, name: str) -> str | None:
        """Return the checksum of an object."""
        content = self._read(name)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def source(self, name: str) -> Any:
        """Return the content of an object as a pyarrow buffer."""
        content = self._read(name)
        if content is None:
            raise FileNotFoundError(inside(self.place, name))
        return arrow().BufferReader(content)

    def _read(self, name: str, max_bytes: int | None = None) -> bytes | None:
        files, path = open_store(self.place)

        def read() -> bytes:
            with files.open_input_file(f"{path}/{name}") as source:
                size = source.size()
                if max_bytes is not None and size > max_bytes:
                    raise DamagedFileError(f"expected at most {max_bytes} bytes, got {size}")
                return bytes(source.read(size))

        try:
            content: bytes = self._retried(read)
        except RecordingAbsentError:
            return None
        return content

    def _upload(self, name: str, content: bytes) -> None:
        files, path = open_store(self.place)

        def write() -> None:
            with files.open_output_stream(f"{path}/{name}") as target:
                target.write(content)

        retried(inside(self.place, name), write, self._sleep, does="written")

    def _retried(self, call: Callable[[], Any]) -> Any:
        return retried(self.place, call, self._sleep)


def _folders_on_disk(out: Path) -> list[str]:
    return [path.name for path in out.glob("shard-*")]


def _folders_in_store(out: str) -> set[str]:
    files, path = open_store(out.rstrip("/"))
    # recursive: in some stores a folder exists only as a prefix of object names
    selector = arrow("pyarrow.fs").FileSelector(path, allow_not_found=True, recursive=True)
    found = retried(out, lambda: files.get_file_info(selector))
    return {info.path.removeprefix(path).lstrip("/").partition("/")[0] for info in found}


def _described(path: Path) -> Written:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(os.fstat(file.fileno()).st_size, digest)
