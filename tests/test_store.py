from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ast_stream.alerts.store import Store, StoreError, save_progress
from ast_stream.errors import StartupError


def test_progress_is_there_after_opening_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    with store.transaction() as db:
        save_progress(db, {"pending": [1]}, ("boot", 7))
    store.close()
    again = Store(tmp_path / "a.sqlite")
    assert again.engine_state() == {"pending": [1]}
    assert again.position() == ("boot", 7)
    again.close()


def test_new_database_knows_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "a.sqlite")
    assert (store.engine_state(), store.position()) == (None, None)
    store.close()


def test_database_knows_when_it_was_first_used(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    assert [store.since_ns(7), store.since_ns(9)] == [7, 7]
    store.close()


def test_position_is_kept_where_a_save_names_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    with store.transaction() as db:
        save_progress(db, {}, ("boot", 7))
    with store.transaction() as db:
        save_progress(db, {"x": 1}, None)
    assert (store.engine_state(), store.position()) == ({"x": 1}, ("boot", 7))
    store.close()


def test_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")

    def fail_at_the_end() -> None:
        with store.transaction() as db:
            save_progress(db, {"half": True}, ("boot", 1))
            raise KeyError

    with pytest.raises(KeyError):
        fail_at_the_end()
    assert store.engine_state() is None
    store.close()


def test_commits_are_on_the_disk_when_they_return(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    with store.reading() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_full_disk_is_an_error_that_leaves_the_state_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    with store.transaction() as db:
        save_progress(db, {"n": 1}, None)
    with store.reading() as db:
        (n_pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {n_pages}")
    with pytest.raises(StoreError, match="disk is full"), store.transaction() as db:
        save_progress(db, {"big": "x" * 100_000}, None)
    assert store.engine_state() == {"n": 1}
    store.close()


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(StartupError, match="expected version 1, got 9, of a newer ast-stream"):
        Store(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_text("this is no database, but long enough to be taken for one" * 100)
    with pytest.raises(StartupError, match="file is not a database"):
        Store(path)


def test_commands_do_not_create_a_database(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="the alerts process has not run yet"):
        Store(tmp_path / "a.sqlite", must_exist=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot open the alert database"):
        Store(tmp_path / "file" / "a.sqlite")
