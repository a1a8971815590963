"""Segments on a disk that is careless, broken or full: what is synced stays, the rest is known."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ast_stream.runtime.segments import LineFile, SegmentFolder

LINE = b"0123456789abcde\n"


class Syncs:
    """Notes what is synced, by name; `error` is raised instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.error: OSError | None = None
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def watched(fd: int) -> None:
            if self.error is not None:
                raise self.error
            self.names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            sync(fd)

        return watched


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


def opened(path: Path) -> SegmentFolder[LineFile]:
    def scan(segment: LineFile, max_bytes: int) -> None:
        assert all(line == LINE for _, line in segment.lines(max_bytes))

    folder = SegmentFolder(path, "part", "test", LineFile, 256, 64)
    folder.open(scan)
    return folder


def content(path: Path) -> dict[str, int]:
    """How many lines each segment holds."""
    return {file.name[-7:-6]: file.read_bytes().count(LINE) for file in path.glob("*.jsonl")}


def test_the_name_of_a_new_segment_is_synced_with_its_first_lines(
    tmp_path: Path, syncs: Syncs
) -> None:
    folder = opened(tmp_path / "log")
    assert syncs.names == [tmp_path.name, "log"]  # the folder itself, and what it holds
    syncs.names.clear()
    folder.write(LINE)
    folder.write(LINE)
    folder.sync()
    folder.sync()  # nothing new
    assert syncs.names == ["part-000000000001.jsonl", "log"]
    syncs.names.clear()
    folder.write(LINE)
    folder.sync()
    assert syncs.names == ["part-000000000001.jsonl"]


def test_a_segment_is_synced_before_the_next_one_begins(tmp_path: Path, syncs: Syncs) -> None:
    folder = opened(tmp_path)
    for _ in range(5):
        folder.write(LINE)
    assert syncs.names[-2:] == ["part-000000000001.jsonl", tmp_path.name]
    assert content(tmp_path) == {"1": 4, "2": 1}


def test_what_a_killed_run_left_unsynced_is_synced_by_the_next(
    tmp_path: Path, syncs: Syncs
) -> None:
    folder = opened(tmp_path)
    folder.write(LINE)
    folder.close()
    syncs.names.clear()
    opened(tmp_path)
    assert syncs.names == ["part-000000000001.jsonl", tmp_path.name]


@pytest.mark.parametrize("is_closed", [False, True])
def test_lines_that_a_sync_has_failed_for_are_not_there_any_more(
    tmp_path: Path, syncs: Syncs, is_closed: bool
) -> None:
    folder = opened(tmp_path)
    folder.write(LINE)
    folder.sync()
    folder.write(LINE)
    folder.write(LINE)
    if is_closed:
        folder.segments[-1].close()
    syncs.error = OSError(errno.EIO, "broken")
    with pytest.raises(OSError, match="broken"):
        folder.sync()
    assert folder.segments[-1].size == len(LINE)
    syncs.error = None
    folder.sync()  # a disk calls written what it has lost: the file holds what it did before
    folder.write(LINE)
    assert content(tmp_path) == {"1": 2}


def test_reading_a_segment_does_not_make_its_lines_synced(tmp_path: Path, syncs: Syncs) -> None:
    folder = opened(tmp_path)
    folder.write(LINE)
    assert len(list(folder.segments[-1].lines(64))) == 1
    syncs.names.clear()
    folder.sync()
    assert syncs.names == ["part-000000000001.jsonl", tmp_path.name]
