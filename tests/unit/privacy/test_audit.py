"""Who asked for audio is on the disk before it is handed out, in a log that cannot be flooded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from audit_lines import lines
from damage import forbid_below

from ast_stream.errors import WireError
from ast_stream.privacy.audit import Access, AuditLog

MAX_BYTES = 64 * 1024
NOW_NS = 1_700_000_000_000_000_000


def access(**changes: Any) -> Access:
    fields: dict[str, Any] = {
        "time_ns": NOW_NS,
        "who": "process 7 of user 1000",
        "account": "user 1000",
        "stream": "porch",
        "start": 0,
        "stop": 1600,
        "outcome": "granted",
        "samples": 1600,
    }
    return Access(**fields | changes)


def test_an_access_is_on_disk_and_in_the_journal_when_it_takes_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES)
    with caplog.at_level(logging.INFO):
        log.record(access())
    assert lines(tmp_path / "audit") == [access()]
    assert "process 7 of user 1000 was given audio of porch from 0 to 1600: 1600" in caplog.text


def test_no_folder_is_made_while_nobody_asks(tmp_path: Path) -> None:
    AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES).close()
    assert not (tmp_path / "audit").exists()


def test_who_watches_a_spectrogram_all_day_is_two_lines_an_hour_at_most(tmp_path: Path) -> None:
    now_s = [0.0]
    log = AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES, now_s=lambda: now_s[0])
    for second in range(0, 7200, 10):
        now_s[0] = float(second)
        log.record(access(start=1600 * second, stop=1600 * second + 1600, spectrogram=True))
        log.record(access(start=1600 * second, stop=1600 * second + 1600))
    log.close()
    views = [line for line in lines(tmp_path / "audit") if line.spectrogram]
    assert sum(line.requests for line in views) == 720
    assert len(views) <= 4
    assert "was given the spectrogram of porch" in str(views[0])


def test_repeats_are_one_line_a_minute_that_counts_them(tmp_path: Path) -> None:
    now_s = [0.0]
    log = AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES, now_s=lambda: now_s[0])
    for second in range(121):
        now_s[0] = float(second)
        start = 1600 * second
        log.record(access(who=f"process {second} of user 1000", start=start, stop=start + 1600))
    log.close()
    found = lines(tmp_path / "audit")
    assert [line.requests for line in found] == [1, 59, 1, 59, 1]
    assert sum(line.samples for line in found) == 121 * 1600
    assert (found[1].start, found[1].stop) == (1600, 60 * 1600)


def test_many_names_of_streams_are_still_one_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES)
    for number in range(500):
        refused = {"outcome": "refused", "reason": "no such stream", "samples": 0}
        log.record(access(stream=f"s{number}", **refused))
    log.close()
    assert [line.requests for line in lines(tmp_path / "audit")] == [1, 499]


def test_others_are_recorded_at_once(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES)
    log.record(access())
    log.record(access(account="key reader"))
    log.record(access(stream="attic"))
    log.record(access(outcome="refused", reason="no", samples=0))
    assert len(lines(tmp_path / "audit")) == 4


def test_audio_whose_access_cannot_be_recorded_is_not_handed_out(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("")  # nothing can be made below a file
    log = AuditLog(tmp_path / "full" / "audit", max_bytes=MAX_BYTES)
    with pytest.raises(WireError, match="cannot be recorded"):
        log.record(access())
    log.record(access(outcome="refused", reason="no", samples=0))
    assert log.outage.text is not None
    with pytest.raises(WireError, match="cannot be recorded"):
        log.record(access())


def test_a_folder_that_may_not_be_looked_at_hands_out_no_audio_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_below(tmp_path / "audit", monkeypatch)
    log = AuditLog(tmp_path / "audit" / "capture.porch", max_bytes=MAX_BYTES)
    assert log.outage.text
    assert "capture.porch cannot be opened: Permission denied" in caplog.text


def test_the_log_is_bounded_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    for run in range(40):
        log = AuditLog(tmp_path / "audit", max_bytes=8192)
        for user in range(40):
            log.record(access(account=f"user {run * 40 + user}"))
        log.close()
    found = lines(tmp_path / "audit")
    assert sum(path.stat().st_size for path in (tmp_path / "audit").iterdir()) <= 8192
    assert found[-1].account == "user 1599"


def test_names_from_outside_cannot_break_a_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", max_bytes=MAX_BYTES)
    log.record(access(stream='a\n{"who":"x"}\ud800', outcome="refused", reason="no"))
    assert len(lines(tmp_path / "audit")) == 1
