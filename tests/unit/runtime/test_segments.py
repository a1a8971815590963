"""Segments on a disk that is careless, broken or full: what is synced stays, the rest is known."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ast_stream.errors import StartupError
from ast_stream.runtime.logging import RECOVERY_S, Outage
from ast_stream.runtime.segments import LineFile, SegmentFolder

logger = logging.getLogger(__name__)

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


def opened(path: Path, outage: Outage | None = None) -> SegmentFolder[LineFile]:
    def scan(segment: LineFile, max_bytes: int) -> None:
        assert all(line == LINE for _, line in segment.lines(max_bytes))

    outage = outage or Outage(logger, "the test is written again")
    folder = SegmentFolder(path, "part", "test", LineFile, 256, 64, outage=outage)
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


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_folder_that_is_removed_is_begun_anew_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_quiet: bool
) -> None:
    path, clock = tmp_path / "state" / "log", Clock()
    outage = Outage(logger, "the test is written again", clock)
    folder = opened(path, outage)
    for _ in range(6):
        folder.write(LINE)
    shutil.rmtree(tmp_path / "state")
    for _ in range(5):
        if is_quiet:
            folder.purge()
        else:
            folder.write(LINE)
    said = f"test {path} was removed or replaced while it was in use: it is begun anew"
    assert outage.text == said
    assert [record.getMessage() for record in caplog.records] == [said]
    with pytest.raises(StartupError, match="in use"):
        opened(path)
    assert sum(content(path).values()) == (0 if is_quiet else 5)
    clock.now_s += RECOVERY_S + 1
    folder.purge()
    assert outage.text is None
    folder.write(LINE)
    folder.close()
    assert [segment.size for segment in opened(path).segments][-1] % len(LINE) == 0


def test_a_folder_that_is_replaced_by_an_older_copy_keeps_what_the_copy_holds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    folder = opened(path)
    for _ in range(7):  # four a segment
        folder.write(LINE)
    shutil.copytree(path, tmp_path / "copy")
    for _ in range(2):
        folder.write(LINE)
    path.rename(tmp_path / "away")
    (tmp_path / "copy").rename(path)
    folder.write(LINE)
    folder.close()
    assert content(tmp_path / "away") == {"1": 4, "2": 4, "3": 1}
    assert content(path) == {"1": 4, "2": 3, "4": 1}


def test_a_lock_that_is_removed_is_taken_again_and_no_line_is_lost(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for _ in range(6):
        folder.write(LINE)
    (tmp_path / "lock").unlink()
    folder.write(LINE)
    with pytest.raises(StartupError, match="in use"):
        opened(tmp_path)
    assert content(tmp_path) == {"1": 4, "2": 3}
    assert len(folder.segments) == 2


def test_a_folder_that_another_process_has_meanwhile_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    folder = opened(path)
    folder.write(LINE)
    shutil.rmtree(path)
    other = opened(path)
    other.write(LINE)
    for _ in range(2):
        with pytest.raises(OSError, match="in use by another process"):
            folder.write(LINE)
    assert content(path) == {"1": 1}
    other.close()
    folder.write(LINE)
    assert content(path) == {"1": 1, "2": 1}


def test_a_removed_folder_that_cannot_be_made_is_begun_anew_once_it_can(tmp_path: Path) -> None:
    path = tmp_path / "state" / "log"
    folder = opened(path)
    folder.write(LINE)
    shutil.rmtree(path.parent)
    path.parent.touch()
    for _ in range(2):
        folder.purge()
        with pytest.raises(OSError, match="state"):
            folder.write(LINE)
    path.parent.unlink()
    folder.write(LINE)
    assert content(path) == {"2": 1}
    with pytest.raises(StartupError, match="in use"):
        opened(path)
