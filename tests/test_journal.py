"""The journal survives what a disk and a kill can do to it."""

import os
from pathlib import Path

import pytest

from ast_stream.runtime.journal import Journal, StreamRecord

RECORD = StreamRecord(
    epoch="ab" * 16,
    detector={
        "position": 480_000,
        "context_start": 0,
        "first_scored": 16_000,
        "decision": {"3": {"hits": 2**63, "peak": 0.91}},
    },
    clock=[[0, 1_790_000_000_000_000_000]],
)


def test_what_was_saved_is_loaded_unchanged(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.json", "sha256:a")
    assert journal.save({"porch": RECORD})
    loaded = Journal(tmp_path / "journal.json", "sha256:a").load()
    assert loaded == {"porch": RECORD}
    assert loaded["porch"].position == 480_000


def test_missing_journal_is_a_fresh_start(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal.json", "m").load() == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"v":1}', b"\xff\xfe", b'{"v":1,"model":3}']
)
def test_damaged_journal_is_a_fresh_start_and_says_so(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(content)
    assert Journal(path, "m").load() == {}
    assert "cannot be used" in caplog.text


def test_journal_of_another_model_is_not_used(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.json", "sha256:a").save({"porch": RECORD})
    assert Journal(tmp_path / "journal.json", "sha256:b").load() == {}


def test_failed_write_is_counted_logged_once_and_leaves_no_old_positions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "journal.json", "m")
    assert journal.save({"porch": RECORD})
    os.mkdir(tmp_path / "journal.new")  # a folder where the temporary file should go
    assert journal.save({})
    assert journal.save({})
    assert journal.errors == 2
    assert caplog.text.count("cannot be written") == 1
    assert Journal(tmp_path / "journal.json", "m").load() == {}
    os.rmdir(tmp_path / "journal.new")
    assert journal.save({"porch": RECORD})
    assert Journal(tmp_path / "journal.json", "m").load() == {"porch": RECORD}


def test_old_positions_that_cannot_be_removed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.mkdir()  # neither replaced by a file nor unlinked
    assert not Journal(path, "m").save({"porch": RECORD})
