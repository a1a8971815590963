"""The recordings of an archive, and which of them a shard scans.

A recording is identified by its name: its path or URI relative to the root of the archive. Its
shard follows from the name alone, so that a job array needs no coordinator, and the archive may be
mounted elsewhere the next time.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ast_stream.archive.places import is_uri, kind_of, local_path, recordings_below
from ast_stream.audio.containers import recordings_in
from ast_stream.errors import UsageError

MAX_SHARDS = 100_000
_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})\Z")
_DIGEST_BITS = 256


@dataclass(frozen=True)
class ShardNumber:
    """Shard `index` of `count`, counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Return `I/N`, as on the command line."""
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> ShardNumber:
        """Return the shard that `I/N` names.

        Raises:
            UsageError: the text does not name a shard.
        """
        found = _SHARD.match(text)
        if found is None:
            raise UsageError(f"scan: --shard: expected I/N, such as 0/8 to 7/8, got {text!r}")
        index, count = int(found[1]), int(found[2])
        if not 1 <= count <= MAX_SHARDS:
            raise UsageError(f"scan: --shard: expected 1 to {MAX_SHARDS} shards, got {count}")
        if index >= count:
            raise UsageError(
                f"scan: --shard: shards are counted from 0: of {count} the last is "
                f"{count - 1}/{count}, got {text}"
            )
        return cls(index, count)

    def has(self, name: str) -> bool:
        """Return whether the recording with this name belongs to this shard."""
        return int.from_bytes(_hash(name)[:8], "big") % self.count == self.index


@dataclass(frozen=True)
class Recording:
    """One recording of an archive.

    Attributes:
        name: relative to the root of the archive, as in the rows.
        place: its path or URI.
        is_left_out: it is not to be scanned.
    """

    name: str
    place: str
    is_left_out: bool = False


@dataclass(frozen=True)
class Listing:
    """The recordings of one shard of an archive.

    Attributes:
        root: folder or URI that names are relative to; None: names are paths or URIs themselves.
        names: of this shard, sorted, without duplicates.
        n_all: number of names in all shards, as listed.
        digest: identifies the list of all shards, whatever its order.
        left_out: names that are not to be scanned, because they repeatedly crashed the process.
    """

    root: str | None
    names: list[str]
    n_all: int
    digest: str
    left_out: frozenset[str] = frozenset()

    def recordings(self, first: int = 0) -> Iterator[Recording]:
        """Yield the recordings of the shard, starting with number `first`."""
        for number in range(first, len(self.names)):
            yield self.recording(number)

    def recording(self, number: int) -> Recording:
        """Return a recording of the shard by its place in `names`."""
        name = self.names[number]
        return Recording(name, place_of(self.root, name), name in self.left_out)


def list_archive(
    shard: ShardNumber,
    files: Iterable[str] = (),
    *,
    root: str | None = None,
    names: Iterable[str] = (),
) -> Listing:
    """Return the recordings of a shard.

    Args:
        files: recordings and folders of them, by path or URI. A single folder is the root if no
            other is given.
        root: folder or URI that names are relative to.
        names: recordings, e.g. from `names_in`; they are not searched as folders.

    Raises:
        UsageError: a name is not below the root, a folder cannot be read or holds no recordings,
            one of `files` is not there, or nothing was given.
    """
    places = list(files)
    if root is None and len(places) == 1 and _is_folder(places[0]):
        root = places[0]
    if root is not None:
        root = _plain(root)
        if not is_uri(root) and not local_path(root).is_dir():
            raise UsageError(f"scan: --root: expected a folder, got {root}")
    chosen: set[str] = set()
    n_all, total = 0, 0
    for name in _all_names(places, root, names):
        digest = _hash(name)
        n_all += 1
        total = (total + int.from_bytes(digest, "big")) % (1 << _DIGEST_BITS)
        if shard.has(name):
            chosen.add(name)
    if n_all == 0:
        raise UsageError("scan: expected recordings, folders, --root or --list, got no recording")
    return Listing(root, sorted(chosen, key=_as_bytes), n_all, f"sha256-sum:{total:064x}")


def place_of(root: str | None, name: str) -> str:
    """Return the path or URI of the recording with this name."""
    return name if root is None else f"{root.rstrip('/') or ''}/{name}"


def shown_name(name: str) -> str:
    """Return a name as it appears in rows: bytes that are not UTF-8 are escaped."""
    return _as_bytes(name).decode("utf-8", "backslashreplace")


def names_in(lines: BinaryIO) -> Iterator[str]:
    """Yield the names in a list: one per line, or NUL-terminated as from `find -print0`."""
    rest, separator = b"", b""
    while block := lines.read(1 << 20):
        rest += block
        separator = separator or (b"\0" if b"\0" in block else b"")
        *whole, rest = rest.split(separator or b"\n")
        for line in whole:
            if name := _name_on(line, separator):
                yield name
    if name := _name_on(rest, separator):
        yield name


def _name_on(line: bytes, separator: bytes) -> str:
    return os.fsdecode(line if separator else line.rstrip(b"\r"))


def _all_names(places: list[str], root: str | None, names: Iterable[str]) -> Iterator[str]:
    for place in places:
        if not place:
            raise UsageError("scan: expected recordings or folders, got an empty name")
        if place == "-":
            raise UsageError("scan: -: a shard is of named recordings; --list - reads a list")
        inside = _plain(place) if _is_folder(place) else None
        if inside is None:
            name = _name_below(root, place)
            _expect_recording(place, place_of(root, name))
            yield name
            continue
        found = _recordings_of(inside)
        if not found:
            raise UsageError(f"scan: {place}: expected recordings in it, got none")
        for recording in found:
            yield _name_below(root, recording)
    n_listed = 0
    for name in names:
        n_listed += 1
        yield _name_below(root, name)
    if root is not None and not places and not n_listed:
        for recording in _recordings_of(root):
            yield _name_below(root, recording)


def _expect_recording(given: str, place: str) -> None:
    """Refuse what was named on the command line and is no recording, e.g. a mistyped folder.

    In a list such a name is a row: there it may have been deleted since the list was made.

    Raises:
        UsageError: nothing is there, or a folder.
        ObjectStoreError: the store cannot be asked.
    """
    kind = kind_of(place)
    if kind == "folder" and is_uri(place):
        raise UsageError(f"scan: {given}: expected a recording, got a folder; write {given}/")
    if kind == "folder":
        raise UsageError(f"scan: {given}: expected a recording, got the folder {place}")
    if kind == "nothing":
        raise UsageError(f"scan: {given}: expected a recording or a folder, got no such file")


def _recordings_of(folder: str) -> list[str]:
    if is_uri(folder):
        return recordings_below(folder)
    path = local_path(folder)
    return [str(recording) for recording in recordings_in(path)]


def _name_below(root: str | None, place: str) -> str:
    """Return the name of a recording: its path or URI relative to the root.

    Raises:
        UsageError: it is not below the root.
    """
    place = _plain(place)
    if root is None:
        return place
    start = root.rstrip("/") + "/"
    if place.startswith(start):
        place = place[len(start) :]
    elif is_uri(place) or place.startswith("/"):
        raise UsageError(f"scan: {place}: expected recordings below --root {root}")
    if place.split("/", 1)[0] in ("..", ".", ""):
        raise UsageError(f"scan: {place}: expected recordings below --root {root}")
    return place


def _plain(place: str) -> str:
    """Return a path or URI in normal form; a file:// URI becomes a path."""
    if is_uri(place):
        user, at, _ = place.partition("://")[2].partition("/")[0].partition("@")
        if at and ":" in user:  # the password would be in every row
            raise UsageError(
                f"scan: {place}: expected a URI without a user and password: stores find them "
                "where their own tools do"
            )
        return place
    return posixpath.normpath(str(local_path(place)))


def _is_folder(place: str) -> bool:
    if is_uri(place):
        return place.endswith("/")
    return Path(local_path(place)).is_dir()


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _hash(name: str) -> bytes:
    return hashlib.sha256(_as_bytes(name)).digest()
