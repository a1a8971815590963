from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ast_stream.alerts import store as store_module
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
    with pytest.raises(StartupError) as raised:
        Store(path)
    assert str(raised.value) == (
        f"the alert database {path}: file is not a database; move it and its -wal away to begin "
        "anew: what waits in it is lost"
    )


def damaged(path: Path) -> None:
    """Make a database whose second half is not what was written."""
    store = Store(path)
    with store.transaction() as db:
        save_progress(db, {"big": "x" * 200_000}, ("boot", 7))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xa5" * (len(whole) - len(whole) // 2))


def test_damaged_database_is_refused_in_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    damaged(path)
    with pytest.raises(StartupError) as raised:
        Store(path)
    assert str(raised.value).startswith(f"the alert database {path} is damaged (")
    assert str(raised.value).endswith(
        "; move it and its -wal away to begin anew: what waits in it is lost"
    )
    assert "\n" not in str(raised.value)


def test_damage_that_is_found_later_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    damaged(path)
    store = Store(path, must_exist=True)  # as commands open it: they need not read all of it
    with pytest.raises(StoreError, match="is malformed; move it and its -wal away to begin anew"):
        store.engine_state()
    store.close()


def test_database_that_a_stranger_holds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BUSY_MS", 50)
    path = tmp_path / "a.sqlite"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StartupError, match=f"the alert database {path}: database is locked"):
        Store(path)
    db.close()


def test_commands_do_not_create_a_database(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="the alerts process has not run yet"):
        Store(tmp_path / "a.sqlite", must_exist=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot open the alert database"):
        Store(tmp_path / "file" / "a.sqlite")
