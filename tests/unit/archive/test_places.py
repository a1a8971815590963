"""Recordings in object stores: listed, copied, and what happens when the store does not answer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow.fs
import pytest
from archive_rows import make_archive, rows_of, scan

from ast_stream.archive import places, stores
from ast_stream.archive.listing import ShardNumber, list_archive, names_in
from ast_stream.archive.places import is_uri, local_copy, local_path
from ast_stream.archive.stores import ATTEMPTS, ObjectStoreError
from ast_stream.audio.recording import RecordingAbsentError
from ast_stream.errors import AstStreamError, UsageError

BUCKET = "memory://bucket/archive"


def never(seconds: float) -> None:
    raise AssertionError("asked again")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("places") / "archive", n_recordings=6)


@pytest.fixture
def bucket(archive: Path) -> Iterator[Any]:
    """Give a store that holds the archive, hidden objects and other files."""
    store = fsspec.filesystem("memory")
    store.put(f"{archive}/", "/bucket/archive/", recursive=True)
    for name in ("notes.txt", ".hidden.wav", ".trash/old.wav"):
        store.pipe(f"/bucket/archive/{name}", b"no recording")
    yield store
    store.rm("/bucket", recursive=True)


def test_an_archive_in_a_store_has_the_rows_of_its_copy_on_a_disk(
    checkpoint: Path, archive: Path, bucket: Any, tmp_path: Path
) -> None:
    assert scan(checkpoint, archive, "--out", tmp_path / "disk") == 0
    assert scan(checkpoint, f"{BUCKET}/", "--out", tmp_path / "store") == 0
    assert scan(checkpoint, archive.as_uri(), "--out", tmp_path / "uri") == 0
    expected = rows_of(tmp_path / "disk")
    assert rows_of(tmp_path / "store") == expected
    assert rows_of(tmp_path / "uri") == expected
    lines = "\n".join(f"{BUCKET}/{row['file']}" for row in expected[1])
    (tmp_path / "list").write_text(lines)
    listed = ["--list", tmp_path / "list", "--root", BUCKET, "--out", tmp_path / "listed"]
    assert scan(checkpoint, *listed) == 0
    assert rows_of(tmp_path / "listed") == expected


def test_a_list_of_uris_needs_no_look_into_the_store(tmp_path: Path) -> None:
    lines = tmp_path / "list"
    lines.write_text("s3://bucket/a/1.flac\ns3://bucket/b/2.flac\n")
    with lines.open("rb") as names:
        listing = list_archive(ShardNumber(), names=names_in(names), root="s3://bucket/")
    assert listing.names == ["a/1.flac", "b/2.flac"]
    assert listing.recording(1).place == "s3://bucket/b/2.flac"
    with lines.open("rb") as names:
        assert list_archive(ShardNumber(), names=names_in(names)).names[0] == "s3://bucket/a/1.flac"


def test_a_copy_has_no_name_and_is_gone_when_the_recording_was_read(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bucket.pipe("/bucket/archive/two.wav", b"22")
    with local_copy(f"{BUCKET}/two.wav") as (path, n_bytes):
        assert (path.read_bytes(), path.read_bytes(), n_bytes) == (b"22", b"22", 2)
        assert list(tmp_path.iterdir()) == []
    assert not path.exists()


COPIES = {
    "of an object": """
from ast_stream.archive.places import local_copy
fsspec.filesystem("memory").pipe("/bucket/a.wav", bytes(100_000))
with local_copy("memory://bucket/a.wav") as (path, _):
    end(path.stat().st_size)
""",
    "of standard input": """
from ast_stream.cli.scan import _recordings
with _recordings(["-"]) as [(_, path)]:
    end(path.stat().st_size)
""",
    "of a part": """
from ast_stream.archive.folders import StoreFolder
def write(path):
    path.write_bytes(bytes(100_000))
    end(path.stat().st_size)
StoreFolder("memory://bucket/out").put({"a.parquet": b"a", "b.parquet": write})
""",
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_kill_leaves_no_copy_behind(tmp_path: Path, copy: str) -> None:
    before = """
import os, signal
import fsspec
def end(size):
    os.write(1, b"%d" % size)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", before + COPIES[copy]],
        input=bytes(100_000),
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, b"100000"), killed.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_gone_is_unreadable_and_not_asked_for_again(
    checkpoint: Path, bucket: Any, tmp_path: Path
) -> None:
    with (
        pytest.raises(RecordingAbsentError, match="No such file"),
        local_copy(f"{BUCKET}/gone.wav", sleep=never),
    ):
        pass
    (tmp_path / "list").write_text("gone.wav\nsilent.wav\n")
    listed = ["--list", tmp_path / "list", "--root", BUCKET, "--out", tmp_path / "out"]
    assert scan(checkpoint, *listed) == 0
    _, (gone, silent) = rows_of(tmp_path / "out")
    assert (gone["status"], gone["sentence"], gone["bytes"]) == (
        "unreadable",
        "No such file or directory",
        None,
    )
    assert silent["duration_s"] == 5.0


class FailingStore:
    """A store that fails some times before it answers."""

    def __init__(self, n_failures: int) -> None:
        self.n_left = n_failures

    def open_input_file(self, path: str) -> Any:
        if self.n_left:
            self.n_left -= 1
            raise OSError("connection reset, see https://user:secret@store/")
        return pyarrow.BufferReader(b"content of " + path.encode())

    def get_file_info(self, path: str) -> Any:
        return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File)


def test_a_store_that_fails_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    delays_s: list[float] = []
    for n_failures in (ATTEMPTS - 1, ATTEMPTS):
        store = FailingStore(n_failures)
        monkeypatch.setattr(places, "open_store", lambda place, store=store: (store, "a.wav"))
        delays_s.clear()
        if n_failures < ATTEMPTS:
            with local_copy("s3://bucket/a.wav", sleep=delays_s.append) as (path, _):
                assert path.read_bytes() == b"content of a.wav"
        else:
            with (
                pytest.raises(ObjectStoreError, match="the store cannot be read") as raised,
                local_copy("s3://bucket/a.wav", sleep=delays_s.append),
            ):
                pass
            assert "secret" not in str(raised.value)
    assert delays_s == [1.0, 2.0, 4.0, 8.0, 16.0]


class ArchivedObject:
    """An object of which S3 gives out the head alone, in the words of pyarrow."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> ArchivedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None: ...

    def metadata(self) -> dict[str, str]:
        return {"ETag": "1"}

    def read(self, n_bytes: int) -> bytes:
        raise OSError(f"When reading information for key 'a.wav' in bucket 'b': {self._words}")


@pytest.mark.parametrize(
    "words",
    [
        "AWS Error ACCESS_DENIED during GetObject operation: ",  # where pyarrow loses the reason
        "AWS Error [code 136] during GetObject operation: You may not.",
        "AWS Error INVALID_OBJECT_STATE during GetObject operation: You may not.",
    ],
)
def test_an_archived_object_is_unreadable_however_pyarrow_says_so(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SimpleNamespace(open_input_file=lambda path: ArchivedObject(words))
    monkeypatch.setattr(places, "open_store", lambda place: (store, "a.wav"))
    with (
        pytest.raises(RecordingAbsentError, match="does not give it out"),
        local_copy("s3://b/a.wav", sleep=never),
    ):
        pass


def test_a_store_that_does_not_answer_ends_the_shard_which_goes_on_later(
    checkpoint: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    attempt = places._Download._attempt

    def fail_for_one(self: places._Download) -> None:
        if "_210400" in self._place:
            raise OSError("no route to host")
        attempt(self)

    args = [f"{BUCKET}/", "--out", tmp_path, "--part-recordings", 2, "--together", 1]
    with monkeypatch.context() as patched:
        patched.setattr(places._Download, "_attempt", fail_for_one)
        patched.setattr(stores, "ATTEMPTS", 1)
        assert scan(checkpoint, *args) == 1
        assert "the store cannot be read: no route to host" in capsys.readouterr().err
    assert len(rows_of(tmp_path, is_partial=True)[1]) == 6
    assert scan(checkpoint, *args) == 0
    _, coverage = rows_of(tmp_path)
    assert len(coverage) == 10
    assert sum(row["status"] == "unreadable" for row in coverage) == 1


def test_a_copy_that_has_no_room_is_one_sentence(bucket: Any, small_files: None) -> None:
    bucket.pipe("/bucket/archive/large.wav", bytes(1 << 20))
    with (
        pytest.raises(AstStreamError, match=r"cannot be kept in .*TMPDIR names another folder"),
        local_copy(f"{BUCKET}/large.wav", sleep=never),
    ):
        pass


def test_a_store_of_pyarrow_is_listed_by_its_uris(monkeypatch: pytest.MonkeyPatch) -> None:
    mock = pyarrow.fs._MockFileSystem()
    mock.create_dir("bucket/archive/site")
    for name in ("site/b.flac", "a.wav", "notes.txt"):
        with mock.open_output_stream(f"bucket/archive/{name}") as file:
            file.write(b"x")
    monkeypatch.setattr(stores, "_arrow_store", lambda bucket: (mock, "bucket"))
    listing = list_archive(ShardNumber(), ["s3://bucket/archive/"])
    assert listing.root == "s3://bucket/archive/"
    assert listing.names == ["a.wav", "site/b.flac"]
    with local_copy(listing.recording(1).place) as (path, n_bytes):
        assert (path.read_bytes(), n_bytes) == (b"x", 1)


def test_a_store_that_is_not_known_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"nosuch://.*: no such store can be read"):
        list_archive(ShardNumber(), ["nosuch://bucket/"])


def test_an_archive_that_is_not_mounted_is_not_taken_for_unreadable(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(str(path.relative_to(archive)) for path in archive.rglob("*.*"))
    (tmp_path / "list").write_text("\n".join(names))
    (tmp_path / "mount").mkdir()
    args = ["--list", tmp_path / "list", "--root", tmp_path / "mount", "--out", tmp_path / "out"]
    assert scan(checkpoint, *args, "--part-recordings", 1) == 1
    assert "none of the first 10 recordings is in" in capsys.readouterr().err
    (tmp_path / "mount").rmdir()
    (tmp_path / "mount").symlink_to(archive)
    assert scan(checkpoint, *args, "--again") == 0
    assert {row["status"] for row in rows_of(tmp_path / "out")[1]} > {"ok", "unreadable"}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
def test_a_share_that_is_gone_ends_the_shard_and_is_no_row(
    checkpoint: Path, archive: Path, tmp_path: Path, number: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    args = [archive, "--out", tmp_path, "--part-recordings", 1, "--together", 1]
    read = os.pread

    def fail_later(fd: int, n_bytes: int, at: int) -> bytes:
        if "210400" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        return read(fd, n_bytes, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail_later)
        assert scan(checkpoint, *args) == 1
    assert os.strerror(number) in capsys.readouterr().err
    assert "210400" not in str(rows_of(tmp_path, is_partial=True)[1])
    assert scan(checkpoint, *args) == 0
    (row,) = [row for row in rows_of(tmp_path)[1] if "210400" in row["file"]]
    assert row["status"] == "ok"


def test_secrets_in_a_uri_are_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="expected a URI without a user") as raised:
        list_archive(ShardNumber(), ["s3://key:secret@bucket/archive/"])
    assert "secret" not in str(raised.value)
    shown = str(ObjectStoreError("s3://key:secret@bucket/site 4/AM17_20260501T213000.wav: gone"))
    assert shown == "s3://***@bucket/site 4/AM17_20260501T213000.wav: gone"


def test_what_is_a_uri_and_what_a_path() -> None:
    assert [is_uri(place) for place in ("s3://a/b", "file:///a", "a/b", "c:d", "/a://b")] == [
        True, False, False, False, False,
    ]  # fmt: skip
    assert local_path("file:///a%20b/c.wav") == Path("/a b/c.wav")
