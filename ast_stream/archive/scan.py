"""Scans one shard, from its list of recordings to its last part."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.archive.batch_scanner import BatchScanner
from ast_stream.archive.folders import ArchiveError, folder_of
from ast_stream.archive.listing import Listing, ShardNumber
from ast_stream.archive.manifest import Made, Progress, ShardManifest
from ast_stream.archive.shard import PartSize, ShardResults
from ast_stream.version import __version__

ABSENT_AT_FIRST = 10  # if so many recordings are missing from the start, so is the archive


@dataclass(frozen=True)
class ShardSpeed:
    """The progress of a running scan, including recordings that are not in a complete part yet.

    Attributes:
        recordings, hours: scanned, in all runs.
        total: number of recordings in the shard.
        hours_per_hour: speed of this run; None: nothing has been scanned yet.
        eta_s: until the shard is done; None: no recording is done yet.
    """

    recordings: int
    total: int
    hours: float
    hours_per_hour: float | None
    eta_s: float | None


def scan_shard(
    scanner: BatchScanner,
    results: ShardResults,
    listing: Listing,
    on_progress: Callable[[ShardSpeed], None] = lambda speed: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Progress:
    """Scan the recordings of a shard that are not in a complete part yet; return its progress.

    Args:
        on_progress: called after every few seconds of audio scanned.

    Raises:
        ObjectStoreError: an object store cannot be read; running the shard again resumes it.
        ArchiveError: nothing more can be written (running it again resumes it), or the first
            recordings are all missing.
    """
    first = results.n_done
    at_start = results.manifest.progress.hours
    began_s, scanned_at_start = monotonic(), scanner.scanned_s
    recordings = listing.recordings(first)
    n_done = n_present = 0

    def report() -> None:
        ran_s = max(1e-3, monotonic() - began_s)
        hours = (scanner.scanned_s - scanned_at_start) / 3600
        n_left = len(listing.names) - first - n_done
        on_progress(
            ShardSpeed(
                recordings=first + n_done,
                total=len(listing.names),
                hours=at_start + hours,
                hours_per_hour=hours / ran_s * 3600 if hours else None,
                eta_s=ran_s / n_done * n_left if n_done else None,
            )
        )

    for recording in scanner.scan(recordings, report):
        n_done += 1
        n_present += not recording.is_absent
        if n_present == 0 and n_done == ABSENT_AT_FIRST:
            where = "there" if listing.root is None else f"in {listing.root}"
            raise ArchiveError(
                f"scan: none of the first {ABSENT_AT_FIRST} recordings is {where}: expected the "
                f"archive, is it mounted? The last of them is {recording.name}: "
                f"{recording.sentence}"
            )
        results.add(recording)
    report()
    return results.manifest.progress


def open_results(
    scanner: BatchScanner,
    out: str | os.PathLike[str],
    shard: ShardNumber,
    listing: Listing,
    *,
    size: PartSize | None = None,
    is_again: bool = False,
) -> ShardResults:
    """Return the results of a shard, locked and ready to be continued; see `ShardResults`."""
    return ShardResults(
        out,
        shard,
        listing,
        made_by(scanner),
        scanner.computed_on,
        size=size,
        is_again=is_again,
    )


def made_by(scanner: BatchScanner) -> Made:
    """Return what the rows of a scan depend on."""
    return Made(
        model=scanner.model,
        settings=scanner.settings,
        settings_are=scanner.facts,
        version=__version__,
        channel=scanner.channel,
    )


def attention_before(out: str | os.PathLike[str], shard: ShardNumber) -> str | None:
    """Return the attention backend of a shard's first run; None: the shard was not started.

    With `attention: auto`, a shard is resumed with the backend that its first run chose.
    """
    manifest = ShardManifest.read(folder_of(out, shard))
    if manifest is None:
        return None
    attention = manifest.made.settings_are.get("attention")
    return attention if isinstance(attention, str) else None
