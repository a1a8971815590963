from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from damage import STRANGE_FILES, forbid_below, make_strange

from ast_stream.alerts.store import Store, StoreError, save_progress
from ast_stream.errors import StartupError
from ast_stream.runtime import database
from ast_stream.runtime.files import RemovedError


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
            raise KeyError("a fault at the end")

    with pytest.raises(KeyError, match="a fault at the end"):
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


def set_aside(path: Path) -> list[Path]:
    """Return what was kept of a database that could not be used, without its side files."""
    return sorted(
        file
        for file in path.parent.glob(f"{path.name}.damaged-*")
        if not file.name.endswith(("-wal", "-shm"))
    )


def test_database_of_another_version_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.sqlite"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(StartupError, match="is of version 9, where this ast-stream has 2; the al"):
        Store(path, must_exist=True)
    Store(path).close()
    (kept,) = set_aside(path)
    assert [record.message for record in caplog.records] == [
        f"the alert database {path} is of version 9, where this ast-stream has 2: it is kept as "
        f"{kept.name}, and a new one begins with 0 of its rows"
    ]


@pytest.mark.parametrize(
    "what",
    [b"this is no database, but long enough to be taken for one" * 100, b"short", b"\0" * 8192],
)
def test_file_that_is_no_database_is_set_aside(tmp_path: Path, what: bytes) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(what)
    store = Store(path)
    assert store.engine_state() is None
    store.close()
    (kept,) = set_aside(path)
    assert kept.read_bytes() == what


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_a_strange_file_in_its_place_neither_blocks_nor_keeps_it_from_writing(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / "a.sqlite"
    make_strange(tmp_path / f"a.sqlite{suffix}", kind)
    for n in range(2):
        store = Store(path)
        with store.transaction() as db:
            save_progress(db, {"n": n}, None)
        assert store.engine_state() == {"n": n}
        store.close()


def test_empty_file_begins_anew_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.sqlite"
    path.touch()
    Store(path).close()
    assert [record.message for record in caplog.records] == [
        f"the alert database {path} is empty: it begins anew"
    ]


def damaged(path: Path) -> None:
    """Make a database whose second half is not what was written."""
    store = Store(path)
    with store.transaction() as db:
        save_progress(db, {"big": "x" * 200_000}, ("boot", 7))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xa5" * (len(whole) - len(whole) // 2))


def test_damaged_database_is_set_aside_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.sqlite"
    damaged(path)
    store = Store(path)
    assert store.engine_state() is None
    store.close()
    (record,) = caplog.records
    assert record.message.startswith(f"the alert database {path} is damaged (")
    (kept,) = set_aside(path)
    assert f": it is kept as {kept.name}, and a new one begins with " in record.message
    assert "\n" not in record.message


def test_damage_that_is_found_later_is_reported_with_what_becomes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    damaged(path)
    store = Store(path, must_exist=True)  # as commands open it: they need not read all of it
    with pytest.raises(StoreError, match="is malformed; the alerts process sets it aside") as error:
        store.engine_state()
    assert error.value.is_damaged
    store.close()


def test_only_so_many_damaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    for _ in range(10):
        path.write_bytes(b"no database")
        Store(path).close()
    assert len(set_aside(path)) == 3


def test_database_that_a_stranger_holds_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_MS", 50)
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


def test_a_command_that_may_not_look_into_the_folder_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.sqlite"
    forbid_below(tmp_path, monkeypatch)
    with pytest.raises(StartupError, match=f"the alert database {path}: Permission denied"):
        Store(path, must_exist=True)


def test_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot open the alert database"):
        Store(tmp_path / "file" / "a.sqlite")


def test_a_database_that_is_removed_while_it_is_in_use_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    store.expect_in_place()
    store.since_ns(7)
    store.empty_log()
    store.expect_in_place()
    (tmp_path / "a.sqlite").unlink()
    with pytest.raises(RemovedError, match="the alert database"):
        store.expect_in_place()
    store.close()
