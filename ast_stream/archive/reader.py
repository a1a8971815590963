"""Reads the results of all shards together, after checking their manifests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ast_stream.archive.folders import (
    ArchiveError,
    ResultsFolder,
    folder_of,
    inside,
    shard_folders,
)
from ast_stream.archive.manifest import MANIFEST, ShardManifest
from ast_stream.archive.parquet import COVERAGE, EVENTS, SCORES, schema_of
from ast_stream.archive.stores import arrow

_MAX_NAMED = 10


@dataclass(frozen=True)
class ArchiveState:
    """The progress of the shards in a folder.

    Attributes:
        folder: its path or URI.
        n_shards: number of shards of the archive.
        manifests: of the shards that were started, by number.
        missing: shards that were not started.
        unfinished: shards that were started but are not complete.
        problems: sentences about damage, and about shards that do not belong together.
    """

    folder: str
    n_shards: int
    manifests: dict[int, ShardManifest]
    missing: tuple[int, ...]
    unfinished: tuple[int, ...]
    problems: tuple[str, ...]

    @property
    def why_not_whole(self) -> str | None:
        """What is missing or wrong, as a sentence; None: the archive is complete."""
        reasons = list(self.problems)
        if self.missing:
            reasons.append(f"{_shards(self.missing)} of {self.n_shards} not begun")
        if self.unfinished:
            reasons.append(f"{_shards(self.unfinished)} of {self.n_shards} not finished")
        return "; ".join(reasons) if reasons else None


def archive_state(folder: str | os.PathLike[str], *, has_sums: bool = False) -> ArchiveState:
    """Return the progress of the shards in a folder, and whether they belong together.

    Args:
        folder: a path, or the URI of a folder in an object store.
        has_sums: also compare the SHA-256 of every file, which reads all of them.

    Raises:
        ArchiveError: there is no shard, or a manifest cannot be read.
        ObjectStoreError: the object store cannot be read.
    """
    out = os.fspath(folder)
    manifests: dict[int, ShardManifest] = {}
    problems: list[str] = []
    counts: set[int] = set()
    for number, shard in shard_folders(out):
        manifest = ShardManifest.read(shard)
        if manifest is None:
            continue
        if manifest.number != number:
            raise ArchiveError(
                f"{inside(shard.place, MANIFEST)}: expected the manifest of shard {number}, got "
                f"that of {manifest.number}"
            )
        counts.add(manifest.of)
        manifests[manifest.shard] = manifest
        problems += [
            f"{_name(manifest)}/{name} is missing" for name in manifest.missing_files(shard)
        ]
        if has_sums:
            problems += _wrong_sums(shard, manifest)
    if not manifests:
        raise ArchiveError(f"{out}: expected the shards of an archive, got none")
    if len(counts) > 1:
        raise ArchiveError(
            f"{out}: expected the shards of one archive, got some of "
            + " and some of ".join(map(str, sorted(counts)))
        )
    problems += _not_alike(manifests)
    (n_shards,) = counts
    return ArchiveState(
        folder=out,
        n_shards=n_shards,
        manifests=manifests,
        missing=tuple(number for number in range(n_shards) if number not in manifests),
        unfinished=tuple(
            number for number, manifest in sorted(manifests.items()) if manifest.state != "complete"
        ),
        problems=tuple(problems),
    )


def read_events(folder: str | os.PathLike[str], *, is_partial: bool = False) -> Any:
    """Return the events of all shards as a pyarrow table, sorted by file, onset and class.

    Args:
        folder: the result folder, as given to `scan --out`.
        is_partial: allow missing and unfinished shards.

    Raises:
        ArchiveError: a shard is missing, unfinished, damaged, or was made differently.
    """
    table = _read(folder, EVENTS, is_partial=is_partial)
    return table.sort_by([("file", "ascending"), ("onset_s", "ascending"), ("class", "ascending")])


def read_coverage(folder: str | os.PathLike[str], *, is_partial: bool = False) -> Any:
    """Return a pyarrow table with one row for each recording of all shards, sorted by file.

    Raises:
        ArchiveError: as `read_events`.
    """
    return _read(folder, COVERAGE, is_partial=is_partial).sort_by("file")


def score_files(folder: str | os.PathLike[str], *, is_partial: bool = False) -> list[str]:
    """Return the paths or URIs of the score files, in Parquet; they may be larger than memory.

    Raises:
        ArchiveError: as `read_events`.
    """
    found = _files(folder, SCORES, is_partial=is_partial)
    return [inside(shard.place, name) for shard, name in found]


def _read(folder: str | os.PathLike[str], table: str, *, is_partial: bool) -> Any:
    pa, parquet = arrow(), arrow("pyarrow.parquet")
    schema = pa.schema([_plain(field) for field in schema_of(table)])
    files = _files(folder, table, is_partial=is_partial)
    # read_table leaves threads running, which can crash a process that ends at once (arrow#39162)
    tables = [
        parquet.ParquetFile(shard.source(name)).read(use_threads=False).cast(schema)
        for shard, name in files
    ]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _plain(field: Any) -> Any:
    """Return a field without dictionary encoding, which would hinder sorting and comparing."""
    pa = arrow()
    is_dictionary = pa.types.is_dictionary(field.type)
    return pa.field(field.name, field.type.value_type if is_dictionary else field.type)


def _files(
    folder: str | os.PathLike[str], table: str, *, is_partial: bool
) -> list[tuple[ResultsFolder, str]]:
    state = archive_state(folder)
    why = "; ".join(state.problems) if is_partial else state.why_not_whole
    if why:
        raise ArchiveError(f"{state.folder}: {why}")
    return [
        (folder_of(state.folder, manifest.number), part.files[table].file)
        for _, manifest in sorted(state.manifests.items())
        for part in manifest.parts
        if table in part.files
    ]


def _name(manifest: ShardManifest) -> str:
    return f"shard-{manifest.shard:05d}-of-{manifest.of:05d}"


def _not_alike(manifests: dict[int, ShardManifest]) -> list[str]:
    """Return sentences on what differs between shards but must be the same in one archive."""
    problems = []
    for what, values in (
        ("models", {manifest.made.model for manifest in manifests.values()}),
        ("settings", {manifest.made.settings for manifest in manifests.values()}),
        ("versions", {manifest.made.version for manifest in manifests.values()}),
        ("lists of recordings", {manifest.input.digest for manifest in manifests.values()}),
    ):
        if len(values) > 1:
            problems.append(f"its shards were made with {len(values)} different {what}")
    return problems


def _wrong_sums(shard: ResultsFolder, manifest: ShardManifest) -> list[str]:
    return [
        f"{_name(manifest)}/{file.file} has changed since it was written"
        for part in manifest.parts
        for file in part.files.values()
        if shard.sha256(file.file) not in (None, file.sha256)  # None: reported as missing already
    ]


def _shards(numbers: tuple[int, ...]) -> str:
    named = ", ".join(map(str, numbers[:_MAX_NAMED]))
    more = len(numbers) - _MAX_NAMED
    return f"shard{'s' if len(numbers) > 1 else ''} {named}" + (
        f" and {more} more" if more > 0 else ""
    )
