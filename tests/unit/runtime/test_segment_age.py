"""Lines of a log are deleted by their age, also where few are written, or none any more."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from ast_stream.runtime.logging import Outage
from ast_stream.runtime.segments import SEGMENTS_AN_AGE, LineFile, SegmentFolder

DAY_S = 86_400.0
AGE_S = 10 * DAY_S


def read(segment: LineFile, max_bytes: int) -> None:
    for _ in segment.lines(max_bytes):
        pass


class Log:
    """A log whose clock is set, file times included."""

    def __init__(self, path: Path, max_age_s: float | None = AGE_S) -> None:
        self.path = path
        self.now_s = time.time()
        self.max_age_s = max_age_s
        self.open()

    def open(self) -> None:
        self.folder = SegmentFolder(
            self.path,
            "x",
            "log",
            LineFile,
            10_000,
            1_000,
            self.max_age_s,
            lambda: self.now_s,
            outage=Outage(logging.getLogger(__name__), "the log is written again"),
        )
        self.folder.open(read)

    def write(self, text: str) -> None:
        segment, _ = self.folder.write(text.encode() + b"\n")
        os.utime(segment.path, (self.now_s, self.now_s))

    def lines(self) -> list[str]:
        found = sorted(self.path.glob("x-*.jsonl"))
        return [line for path in found for line in path.read_text().splitlines()]


def test_lines_go_when_they_are_too_old_and_not_before(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for day in range(40):
        log.write(f"{day}")
        oldest = int(log.lines()[0])
        assert day - 10 - 10 / SEGMENTS_AN_AGE <= oldest <= max(0, day - 10)
        log.now_s += DAY_S


def test_a_log_to_which_nothing_is_written_is_emptied(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write("a")
    log.now_s += AGE_S - DAY_S
    log.folder.purge()
    assert log.lines() == ["a"]
    log.now_s += 2 * DAY_S
    log.folder.purge()
    assert log.lines() == []
    log.write("b")
    assert log.lines() == ["b"]


def test_restarts_do_not_keep_old_lines_alive(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for hour in range(0, 24 * 30, 7):
        log.write(f"{hour}")
        log.now_s += 7 * 3600
        log.folder.close()
        log.open()
    assert int(log.lines()[0]) >= 24 * (30 - 10 - 2)


def test_what_was_set_aside_grows_old_too(tmp_path: Path) -> None:
    log = Log(tmp_path)
    (tmp_path / "segment.damaged-1").write_text("events of long ago")
    log.now_s += AGE_S + DAY_S
    log.folder.purge()
    assert not (tmp_path / "segment.damaged-1").exists()


def test_without_an_age_nothing_is_deleted_by_it(tmp_path: Path) -> None:
    log = Log(tmp_path, max_age_s=None)
    for number in range(5):
        log.write(f"{number}")
        log.now_s += 1000 * DAY_S
    assert log.lines() == list("01234")
    assert len(list(tmp_path.glob("x-*"))) == 1
