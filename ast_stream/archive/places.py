"""Where archives are stored: on a disk, or in an object store, from which files are downloaded."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote, urlsplit

from ast_stream.archive.stores import (
    BLOCK_BYTES,
    StoreRefusedError,
    arrow,
    has_bucket,
    is_not_given,
    open_store,
    retried,
)
from ast_stream.audio.containers import RECORDING_SUFFIXES
from ast_stream.audio.recording import RecordingAbsentError
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.runtime.temporary import nameless_file

# errors of a network share or of this process, which say nothing about the recording
NOT_OF_THE_FILE = frozenset(
    {
        *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
_URI = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_FILE = "file"
_NOT_GIVEN = "the store shows it, but does not give it out: is it archived, or its key refused?"


def is_uri(place: str) -> bool:
    """Return whether a place is in an object store; a file:// URI counts as a path."""
    found = _URI.match(place)
    return found is not None and found[1].lower() != _FILE


def local_path(place: str) -> Path:
    """Return a path or file:// URI as a path."""
    found = _URI.match(place)
    if found is None:
        return Path(place)
    return Path(unquote(urlsplit(place).path))


@contextmanager
def local_copy(
    place: str, sleep: Callable[[float], None] = time.sleep
) -> Iterator[tuple[Path, int | None]]:
    """Yield the path where a recording can be read, and its size in bytes (None: unknown).

    An object of a store is downloaded to a temporary file without a name.

    Raises:
        RecordingAbsentError: there is no such object, or the store does not deliver it.
        ObjectStoreError: the store refuses access, or cannot be read after several attempts.
        AstStreamError: the temporary file cannot be written.
    """
    if not is_uri(place):
        path = local_path(place)
        yield path, _size(path)
        return
    with nameless_file() as (copy, path):
        _Download(place, copy).run(sleep)
        yield path, os.fstat(copy.fileno()).st_size


def recordings_below(folder: str) -> list[str]:
    """Return the URIs of the objects below a URI that have the suffix of a recording.

    Raises:
        ObjectStoreError: the store cannot be reached, refuses access, or has no such bucket.
    """
    files, path = open_store(folder)
    kinds = arrow("pyarrow.fs")

    def listed() -> list[str]:
        selector = kinds.FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True)
        return [
            info.path
            for info in files.get_file_info(selector)
            if info.type == kinds.FileType.File and _is_shown(info.path, path)
        ]

    start = folder[: len(folder) - len(path)] if folder.endswith(path) else None
    if start is None:
        raise UsageError(f"scan: {folder}: expected a folder of an object store without a query")
    found = retried(folder, listed)
    if not found and not has_bucket(folder):
        raise StoreRefusedError(f"scan: {folder}: there is no such bucket")
    return [start + path.lstrip("/") for path in found]


def kind_of(place: str) -> Literal["file", "folder", "nothing", "unknown"]:
    """Return what there is at a path or URI; unknown: reading it will tell.

    Raises:
        ObjectStoreError: the store cannot be reached, refuses access, or has no such bucket.
    """
    if not is_uri(place):
        try:
            return "folder" if stat.S_ISDIR(local_path(place).stat().st_mode) else "file"
        except (FileNotFoundError, NotADirectoryError):
            return "nothing"
        except (OSError, ValueError):
            return "unknown"
    files, path = open_store(place)
    kinds = arrow("pyarrow.fs").FileType
    found = retried(place, lambda: files.get_file_info(path).type)
    if found == kinds.NotFound and not has_bucket(place):
        raise StoreRefusedError(f"scan: {place}: there is no such bucket")
    if found == kinds.NotFound:
        return "nothing"
    return "folder" if found == kinds.Directory else "file"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # opening it will give the reason
        return None


def _is_shown(path: str, folder: str) -> bool:
    inside = path[len(folder.rstrip("/")) :]
    is_hidden = any(part.startswith(".") for part in inside.split("/"))
    return not is_hidden and posixpath.splitext(path)[1].lower() in RECORDING_SUFFIXES


class _Download:
    """A resumable download of an object; starts again if the object has changed meanwhile."""

    def __init__(self, place: str, copy: BinaryIO | Any) -> None:
        self._place, self._copy = place, copy
        self._version: object = None
        self._n_bytes = 0

    def run(self, sleep: Callable[[float], None]) -> None:
        """Download the object; raises what `local_copy` does."""
        retried(self._place, self._attempt, sleep, progress=lambda: self._n_bytes)

    def _attempt(self) -> None:
        files, path = open_store(self._place)
        with files.open_input_file(path) as source:
            version = _version(source, files, path)
            if version is None or version != self._version:
                self._n_bytes, self._version = 0, version
            self._copy.truncate(self._n_bytes)
            self._copy.seek(self._n_bytes)
            if self._n_bytes:
                source.seek(self._n_bytes)
            while block := self._given(source, files, path):
                self._keep(block)
            n_expected = _length(source)
        if n_expected is not None and self._n_bytes < n_expected:
            raise OSError(f"it ended after {self._n_bytes} of {n_expected} bytes")
        with files.open_input_file(path) as source:
            is_replaced = _version(source, files, path) != version
        if is_replaced:
            self._version = None
            raise OSError("it was replaced while it was read")

    def _given(self, source: Any, files: Any, path: str) -> bytes:
        """Return the next bytes of an object.

        S3 needs the same permission for HEAD and GET. If only HEAD succeeds, the reason lies in the
        object: it is archived, or its encryption key may not be used. (pyarrow often loses the
        reason that the store gives.)
        """
        try:
            return bytes(source.read(BLOCK_BYTES))
        except OSError as error:
            if not is_not_given(error):
                raise
            files.open_input_file(path).close()  # raises if access is refused altogether
            raise RecordingAbsentError(self._place, _NOT_GIVEN) from error

    def _keep(self, block: bytes) -> None:
        try:
            self._copy.write(block)
            self._copy.flush()
        except OSError as error:
            where = f"cannot be kept in {tempfile.gettempdir()} (TMPDIR names another folder)"
            raise AstStreamError(f"scan: {self._place}: {where}: {error.strerror}") from error
        self._n_bytes += len(block)


def _version(source: Any, files: Any, path: str) -> object:
    """Return a value that changes when the object is replaced; None: there is none."""
    with suppress(NotImplementedError, AttributeError, OSError):
        for key, value in (source.metadata() or {}).items():
            if key.lower() == "etag":
                return value
    info = files.get_file_info(path)
    return None if info.mtime_ns is None else (info.mtime_ns, info.size)


def _length(source: Any) -> int | None:
    with suppress(Exception):  # not every store knows it
        return int(source.size())
    return None
