"""Files are replaced whole or not at all, read within bounds, and set aside by name."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from damage import SPARSE_BYTES, STRANGE_FILES, make_strange

from ast_stream.errors import StartupError
from ast_stream.runtime.files import (
    MAX_ASIDE,
    DamagedFileError,
    RemovedError,
    expect_in_place,
    make_folder,
    make_writable_folder,
    out_of_reach,
    read_bounded,
    read_state,
    reason_of,
    replace_file,
    replace_files,
    set_aside,
    write_output_file,
)

WRITER = """
import sys
from pathlib import Path
from ast_stream.runtime.files import replace_file
number = 0
while True:
    number += 1
    replace_file(Path(sys.argv[1]), (b"%d " % number) * 100_000)
"""


def test_reader_never_sees_half_a_file_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for round_number in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        end_s = time.monotonic() + 20
        while not path.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        time.sleep(0.05 + 0.03 * round_number)
        words = path.read_bytes().split()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert len(words) == 100_000
        assert len(set(words)) == 1
        words = path.read_bytes().split()
        assert (len(words), len(set(words))) == (100_000, 1)
    replace_file(path, b"after the kills")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_of_several_files_none_is_replaced_before_all_are_written(tmp_path: Path) -> None:
    replace_files(tmp_path, {"a": b"old a", "b": b"old b"})

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/b'"):
        replace_files(tmp_path, {"a": b"new a", "b": fail})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a": b"old a",
        "b": b"old b",
    }


def test_files_have_the_usual_rights_whoever_writes_them(tmp_path: Path) -> None:
    def closed(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    (tmp_path / "usual").touch()
    replace_files(tmp_path, {"bytes": b"", "library": closed}, is_synced=True)
    replace_file(tmp_path / "given", b"", mode=0o604)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["bytes"] == modes["library"] == modes["usual"]
    assert modes["given"] == 0o604


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_what_is_no_file_is_replaced_by_one_and_kept_if_it_is_a_folder(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "state"
    make_strange(path, kind)
    read_state(path, bytes.decode, 100, "state")  # neither waits nor raises
    replace_file(path, b"new")
    assert read_state(path, bytes.decode, 100, "state") == "new"


def test_the_reason_of_an_error_has_words_whatever_made_it() -> None:
    assert reason_of(OSError(errno.ENOSPC, "No space left on device", "/a")) == (
        "No space left on device"
    )
    assert reason_of(OSError("no number")) == "no number"  # a library's own: without strerror
    assert reason_of(DamagedFileError("expected a file")) == "expected a file"


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    assert read_bounded(path, 4, is_cut=True) == b"1234"
    with pytest.raises(DamagedFileError, match="expected at most 4 bytes, got 5"):
        read_bounded(path, 4)
    make_strange(tmp_path / "sparse", "sparse file")
    with pytest.raises(DamagedFileError, match=f"got {SPARSE_BYTES}"):
        read_bounded(tmp_path / "sparse", 1000)


def test_what_is_set_aside_takes_the_place_of_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for number in range(MAX_ASIDE + 2):
        path.write_text(str(number))
        assert set_aside(path) is not None
        time.sleep(0.02)
    kept = sorted(int(path.read_text()) for path in tmp_path.iterdir())
    assert kept == list(range(2, MAX_ASIDE + 2))


def test_what_a_user_has_named_is_written_to_and_not_replaced_where_it_is_no_file(
    tmp_path: Path,
) -> None:
    fifo, target, link = (tmp_path / name for name in ("fifo", "target", "link"))

    def write(path: Path) -> None:
        path.write_bytes(b"written")

    os.mkfifo(fifo)
    link.symlink_to(target)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_output_file(fifo, b"bytes ")
        write_output_file(fifo, write)
        assert os.read(reader, 100) == b"bytes written"
    finally:
        os.close(reader)
    write_output_file(link, b"followed")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"followed")
    with pytest.raises(IsADirectoryError):
        write_output_file(tmp_path, b"")


def test_what_another_user_may_not_change_is_found(tmp_path: Path) -> None:
    uid, gid = os.geteuid() + 1, os.getegid()
    for name, mode in (("open", 0o666), ("of_group", 0o660), ("readable", 0o644), ("own", 0o600)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o750)
    (tmp_path / "link").symlink_to("/nowhere")

    def names(gids: set[int]) -> list[str]:
        return [path.name for path in out_of_reach(tmp_path, uid, gids)]

    assert names({gid}) == ["folder", "own", "readable"]
    assert names(set()) == ["folder", "of_group", "own", "readable"]
    assert list(out_of_reach(tmp_path, os.geteuid(), set())) == []
    assert list(out_of_reach(tmp_path, 0, set())) == []


def test_folders_of_a_person_are_never_deleted_to_make_room(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for _ in range(MAX_ASIDE):
        make_strange(path, "full folder")
        assert set_aside(path) is not None
    make_strange(path, "full folder")
    assert set_aside(path) is None
    assert sum(1 for _ in tmp_path.rglob("something")) == MAX_ASIDE + 1


def test_a_folder_that_cannot_be_made_is_refused_and_a_full_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_writable_folder(tmp_path / "a" / "b", "state_dir")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(
        StartupError, match=r"state_dir: cannot create .*file/c: Not a directory; set"
    ):
        make_writable_folder(tmp_path / "file" / "c", "state_dir")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    make_writable_folder(tmp_path / "later", "state_dir")


def test_parents_of_a_folder_are_as_closed_as_the_folder(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_folder(tmp_path / "audit" / "worker", 0o750)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("audit", "audit/worker")]
    assert modes == [0o750, 0o750]


def test_a_file_in_use_that_is_removed_replaced_or_out_of_reach_is_told_apart(
    tmp_path: Path,
) -> None:
    path = tmp_path / "folder" / "state"
    path.parent.mkdir()
    path.write_bytes(b"a")
    used = path.stat()
    expect_in_place(path, used, "the state")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    expect_in_place(path, used, "the state")
    path.unlink()
    path.symlink_to(path)  # cannot be looked at: nothing is known
    expect_in_place(path, used, "the state")
    path.unlink()
    with pytest.raises(RemovedError, match="the state was removed or replaced"):
        expect_in_place(path, used, "the state")
    path.write_bytes(b"a")
    with pytest.raises(RemovedError, match="this process ends, to begin anew"):
        expect_in_place(path, used, "the state")
