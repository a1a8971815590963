from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from ast_stream.errors import StartupError
from ast_stream.forward.outputs import warn_of_former_workers
from ast_stream.forward.positions import PositionFile, PositionFolder, adopt


def test_positions_are_found_again(tmp_path: Path) -> None:
    file = PositionFile(tmp_path / "hub.json")
    assert file.cursors == {}
    file.lost = 3
    file.save({"feed": ["b1", 7], "alerts": None})
    again = PositionFile(tmp_path / "hub.json")
    assert again.cursors == {"feed": ["b1", 7]}
    assert again.lost == 3


def test_the_position_of_a_source_that_is_gone_is_kept(tmp_path: Path) -> None:
    PositionFile(tmp_path / "hub.json").save({"feed.front": ["b1", 7]})
    file = PositionFile(tmp_path / "hub.json")
    file.save({"feed.back": ["b2", 1]})
    assert PositionFile(file.path).cursors == {"feed.front": ["b1", 7], "feed.back": ["b2", 1]}


def test_positions_are_written_at_most_once_a_second(tmp_path: Path) -> None:
    now_s = [0.0]
    file = PositionFile(tmp_path / "hub.json", lambda: now_s[0])
    file.save({"health": 1})
    file.save({"health": 2})
    assert PositionFile(file.path).cursors == {"health": 1}
    now_s[0] = 1.0
    file.save({"health": 2})
    assert PositionFile(file.path).cursors == {"health": 2}
    file.save({"health": 3}, at_once=True)
    assert PositionFile(file.path).cursors == {"health": 3}


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[]", b'{"v":2}', b'{"v":1,"sources":3}'])
def test_a_damaged_file_is_set_aside_and_everything_is_sent_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "hub.json").write_bytes(content)
    assert PositionFile(tmp_path / "hub.json").cursors == {}
    if b"sources" not in content:
        assert "cannot be used" in caplog.text


def test_a_disk_that_refuses_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / ".hub.json.unfinished").mkdir()
    file = PositionFile(tmp_path / "none" / "hub.json", now_s := iter(range(100)).__next__)
    for n in range(5):
        file.save({"health": n})
    assert file.outage.text is not None
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "none").mkdir()
    file.save({"health": 9})
    assert PositionFile(file.path).cursors == {"health": 9}
    assert now_s() > 0


def test_a_worker_that_has_left_the_configuration_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_former_workers("centre", ["alerts", "feed", "feed.gpu", "feed.old"], ["gpu"])
    assert [record.getMessage().partition(" is not")[0] for record in caplog.records] == [
        "output centre: the worker of a configuration without workers",
        "output centre: the worker old",
    ]


def test_an_output_with_a_new_name_goes_on_where_the_old_one_was(tmp_path: Path) -> None:
    for name, receiver in (("hub", "nats a"), ("other", "nats b"), ("used", "nats c")):
        PositionFile(tmp_path / f"{name}.json", receiver=receiver).save({"feed": [name, 7]})
    new = tmp_path / "new.json"
    assert adopt(new, "nats c", {"new", "used"}) is None
    assert adopt(new, "nats d", {"new"}) is None
    assert adopt(new, "nats a", {"new", "used"}) == tmp_path / "hub.json"
    assert PositionFile(new).cursors == {"feed": ["hub", 7]}
    assert not (tmp_path / "hub.json").exists()
    assert adopt(new, "nats b", {"new", "used"}) is None  # it has one


def test_two_machines_on_one_folder_whose_locks_do_not_meet_are_noticed(tmp_path: Path) -> None:
    first = PositionFile(tmp_path / "hub.json")
    assert first.save({"feed": ["b1", 1]}, at_once=True)
    second = PositionFile(tmp_path / "hub.json")
    assert second.save({"feed": ["b1", 2]}, at_once=True)
    assert second.save({"feed": ["b1", 3]}, at_once=True)
    assert not first.save({"feed": ["b1", 9]}, at_once=True)
    assert first.problem is not None
    assert "two must not use one state folder" in first.problem
    assert not first.save({"feed": ["b1", 10]}, at_once=True)
    assert PositionFile(tmp_path / "hub.json").cursors == {"feed": ["b1", 3]}
    assert second.problem is None


def test_positions_whose_folder_is_removed_are_written_again_though_nothing_was_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now_s = tmp_path / "state" / "forward", [0.0]
    folder = PositionFolder(path, lambda: now_s[0])
    file = PositionFile(path / "hub.json", lambda: now_s[0])
    file.save({"health": 1})
    shutil.rmtree(tmp_path / "state")
    for _ in range(5):
        folder.stay_in_place()
        now_s[0] += 1.0
        file.save({"health": 1})
    said = f"the folder of positions {path} was removed or replaced while it was in use"
    assert caplog.text.count(said) == 1
    assert PositionFile(path / "hub.json").cursors == {"health": 1}
    with pytest.raises(StartupError, match="in use"):
        PositionFolder(path)
    now_s[0] += 60.0
    folder.stay_in_place()
    assert folder.outage.text is None
    folder.close()


def test_a_forwarder_whose_folder_another_one_has_made_anew_ends(tmp_path: Path) -> None:
    path = tmp_path / "forward"
    folder = PositionFolder(path)
    shutil.rmtree(path)
    other = PositionFolder(path)
    with pytest.raises(StartupError, match="in use by another process"):
        folder.stay_in_place()
    other.close()
    folder.close()
