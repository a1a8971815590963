"""The manifest of a shard: its complete parts, their input, and how they were made.

It is replaced atomically whenever a part is complete. A file that it does not name is unfinished.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ast_stream.archive.folders import ArchiveError, ResultsFolder, inside
from ast_stream.archive.listing import ShardNumber
from ast_stream.runtime.files import DamagedFileError

MANIFEST = "manifest.json"
_MAX_BYTES = 1 << 30
_Count = Annotated[int, Field(ge=0)]


class _ManifestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PartFile(_ManifestModel):
    """One Parquet file of a part."""

    file: Annotated[str, Field(pattern=r"^[a-z]+-[0-9]{8}\.parquet$")]
    rows: _Count
    bytes: _Count
    sha256: str


class ShardPart(_ManifestModel):
    """A run of recordings, in the order of the shard, whose rows have been written.

    Attributes:
        files: by table: events, coverage and, if requested, scores.
    """

    number: _Count
    recordings: _Count
    hours: float
    files: dict[str, PartFile]


class Input(_ManifestModel):
    """The list of recordings that a shard was taken from.

    Attributes:
        digest: of the names in all shards.
        recordings: number of names in all shards, as listed.
        of_shard: number of names in this shard, without duplicates.
    """

    digest: str
    recordings: _Count
    of_shard: _Count


class Made(_ManifestModel):
    """What the rows depend on: a shard can only be resumed with the same.

    Attributes:
        model: hash of the checkpoint.
        settings: hash of `settings_are`.
        version: of ast_stream.
    """

    model: str
    settings: str
    settings_are: dict[str, Any]
    version: str
    channel: str


class Progress(_ManifestModel):
    """The progress of a shard, counting complete parts only.

    Attributes:
        hours: of audio scanned.
        busy_s: time spent, in all runs together.
        hours_per_hour: hours of audio scanned per hour in the last run; None: not known yet.
        eta_s: until the shard is done, at the speed of the last run; None: not known yet.
        updated: Unix time.
        starts: runs since the last complete part.
    """

    recordings: _Count = 0
    hours: float = 0.0
    events: _Count = 0
    warned: _Count = 0
    partial: _Count = 0
    unreadable: _Count = 0
    busy_s: float = 0.0
    hours_per_hour: float | None = None
    eta_s: float | None = None
    updated: float = 0.0
    starts: _Count = 0


class ShardManifest(_ManifestModel):
    """The content of a shard's `manifest.json`.

    Attributes:
        root: of the archive, as information only: it may be mounted elsewhere the next time.
        computed_on: device and versions of the first run, as information only.
    """

    version: Literal[1] = 1
    shard: _Count
    of: Annotated[int, Field(ge=1)]
    state: Literal["unfinished", "complete"]
    made: Made
    input: Input
    root: str | None
    computed_on: dict[str, str]
    parts: tuple[ShardPart, ...] = ()
    progress: Progress = Progress()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        n_recordings = sum(part.recordings for part in self.parts)
        if self.shard >= self.of or n_recordings != self.progress.recordings:
            raise ValueError("expected parts that add up to its progress, and a shard below `of`")
        return self

    @property
    def number(self) -> ShardNumber:
        """The shard's number."""
        return ShardNumber(self.shard, self.of)

    def write(self, folder: ResultsFolder) -> None:
        """Replace the manifest in a shard's folder, atomically and durably.

        Raises:
            OSError, ObjectStoreError: it cannot be written; the previous one is intact.
            StartupError: another process has replaced it, in an object store.
        """
        folder.replace(MANIFEST, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, folder: ResultsFolder) -> ShardManifest | None:
        """Return the manifest of a shard's folder; None: there is none.

        Raises:
            ArchiveError, ObjectStoreError: it cannot be read.
        """
        place = inside(folder.place, MANIFEST)
        try:
            return cls.model_validate_json(folder.read(MANIFEST, _MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArchiveError(f"{place}: cannot be read: {error.strerror}") from error
        except DamagedFileError as error:
            raise ArchiveError(f"{place}: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            what = f"{where}: {first['msg']}" if where else first["msg"]
            raise ArchiveError(f"{place}: damaged, or of another version: {what}") from error

    def missing_files(self, folder: ResultsFolder) -> Iterator[str]:
        """Yield the names of files of complete parts that are missing or have another size."""
        there = folder.sizes() if self.parts else {}
        for part in self.parts:
            for file in part.files.values():
                if there.get(file.file) != file.bytes:
                    yield file.file
