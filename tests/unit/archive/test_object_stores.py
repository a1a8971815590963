"""A real S3 server over HTTP: archives read from it, results written to it, and all that it can do.

Each test starts a server of its own, in this process, on a free port.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_rows import HOP_S, make_archive, rows_of, scan
from localbucket import S3Error
from s3_server import FaultyHandler, FaultyServer, busy, refusal, running_s3

from ast_stream.archive import archive_state, stores
from ast_stream.archive.folders import DiskFolder, StoreFolder, folder_at
from ast_stream.archive.manifest import ShardManifest
from ast_stream.archive.places import local_copy, recordings_below
from ast_stream.archive.stores import ObjectStoreError, StoreRefusedError
from ast_stream.errors import StartupError, UsageError

PATIENCE_S = 60.0
ARCHIVE, OUT = "s3://bucket/archive", "s3://bucket/events"
PARTS = ("--part-recordings", 3)


def never(seconds: float) -> None:
    raise AssertionError("asked again")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("stores") / "archive", n_recordings=6)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the results of a scan from disk to disk."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert scan(checkpoint, archive, "--out", out, *PARTS) == 0
    return out


@pytest.fixture
def buckets(archive: Path, tmp_path: Path) -> Path:
    """Give the folder of the server: one bucket, with an archive."""
    shutil.copytree(archive, tmp_path / "buckets" / "bucket" / "archive")
    return tmp_path / "buckets"


@pytest.fixture
def server(buckets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with running_s3(buckets, monkeypatch) as running:
        yield running


def parts_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}


def test_an_archive_in_a_bucket_gives_the_same_files_in_a_bucket(
    checkpoint: Path, whole: Path, server: FaultyServer, buckets: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, *PARTS) == 0
    assert f"in {OUT}/shard-00000-of-00001" in capsys.readouterr().err
    assert parts_in(buckets / "bucket/events") == parts_in(whole)
    assert rows_of(OUT) == rows_of(whole)
    assert archive_state(OUT, has_sums=True).why_not_whole is None
    assert scan(checkpoint, "--progress", OUT) == 0
    assert "complete" in capsys.readouterr().out
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, "--shard", "1/2") == 2
    assert "holds one of 1 shards" in capsys.readouterr().err
    # nothing but whole objects was ever put, and the manifest after what it names
    puts = [line.split("/", 3)[-1] for line in server.requests if line.startswith("PUT")]
    assert puts[-1] == puts[0] == "manifest.json"
    assert puts[1:4] == ["events-00000000.parquet", "coverage-00000000.parquet", "manifest.json"]
    part = buckets / "bucket/events/shard-00000-of-00001/events-00000001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert "events-00000001.parquet has changed" in str(
        archive_state(OUT, has_sums=True).why_not_whole
    )


def test_a_scan_to_a_bucket_that_is_killed_goes_on_to_the_same_files(
    checkpoint: Path, whole: Path, server: FaultyServer, buckets: Path,
    processes: list[subprocess.Popen[str]],
) -> None:  # fmt: skip
    command = [
        sys.executable, "-m", "ast_stream.cli", "scan", "--model", checkpoint, "--hop", HOP_S,
        f"{ARCHIVE}/", "--out", OUT, *PARTS, "--together", 1,
    ]  # fmt: skip
    manifests = 0

    def kill_at_a_manifest(handler: FaultyHandler) -> None:
        """End the process while it waits for the answer to its third manifest."""
        nonlocal manifests
        if handler.command == "PUT" and "manifest.json" in handler.path:
            manifests += 1
            if manifests == 3:
                processes[-1].send_signal(signal.SIGKILL)
                processes[-1].wait(PATIENCE_S)

    server.fault = kill_at_a_manifest
    processes.append(
        subprocess.Popen(
            [str(word) for word in command], text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    )  # fmt: skip
    assert processes[-1].wait(2 * PATIENCE_S) == -signal.SIGKILL
    manifest = ShardManifest.read(folder_at(f"{OUT}/shard-00000-of-00001"))
    assert manifest is not None
    assert manifest.state == "unfinished"
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, *PARTS) == 0
    assert parts_in(buckets / "bucket/events") == parts_in(whole)
    assert archive_state(OUT, has_sums=True).why_not_whole is None


def test_of_two_processes_at_a_shard_in_a_bucket_the_later_goes_on(
    checkpoint: Path, whole: Path, server: FaultyServer, buckets: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    taken: list[int] = []

    def begin_a_second(handler: FaultyHandler) -> None:
        if handler.command == "PUT" and "coverage-00000002" in handler.path and not taken:
            taken.append(-1)
            taken[0] = scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, *PARTS)

    server.fault = begin_a_second
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, *PARTS) == 3
    assert "shard 0/1 in s3://bucket/events is in use by another process" in capsys.readouterr().err
    assert taken == [0]
    assert parts_in(buckets / "bucket/events") == parts_in(whole)
    assert archive_state(OUT, has_sums=True).why_not_whole is None


def test_beginning_afresh_in_a_bucket_leaves_nothing_of_before(
    checkpoint: Path, server: FaultyServer, buckets: Path
) -> None:
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, "--part-recordings", 1) == 0
    assert len(parts_in(buckets / "bucket/events")) == 20
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", OUT, "--again", "--channel", 0) == 0
    assert sorted(parts_in(buckets / "bucket/events")) == [
        "coverage-00000000.parquet",
        "events-00000000.parquet",
    ]
    assert archive_state(OUT).why_not_whole is None


@pytest.mark.parametrize(
    ("environment", "place", "sentence"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAOTHER"}, f"{ARCHIVE}/", "the store refuses access: expected"),
        ({}, "s3://nosuch/archive/", "s3://nosuch/archive/: there is no such bucket"),
        ({}, "s3://bucket/nosuch/", "expected recordings in it, got none"),
    ],
)
def test_what_cannot_be_listed_is_one_sentence_at_once(
    checkpoint: Path, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str], place: str, sentence: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", never)
    assert scan(checkpoint, place, "--out", tmp_path / "out") in (1, 2)
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_results_that_cannot_be_put_into_a_bucket_are_one_sentence(
    checkpoint: Path, archive: Path, server: FaultyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(checkpoint, archive, "--out", "s3://nosuch/events") == 1
    assert "there is no such bucket" in capsys.readouterr().err

    def refuse(handler: FaultyHandler) -> None:
        if handler.command == "PUT":
            raise refusal("AccessDenied")

    server.fault = refuse
    assert scan(checkpoint, archive, "--out", OUT) == 1
    said = capsys.readouterr().err
    assert "s3://bucket/events/shard-00000-of-00001/manifest.json: the store refuses access" in said
    assert "with which it may be written" in said


def test_a_list_of_names_in_a_bucket_that_is_not_there_ends_the_shard(
    checkpoint: Path, server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text("a.wav\nb.wav\n")
    args = ["--list", tmp_path / "list", "--root", "s3://nosuch/archive", "--out", tmp_path / "o"]
    assert scan(checkpoint, *args) == 1
    assert "s3://nosuch/archive/a.wav: there is no such bucket" in capsys.readouterr().err


def test_what_the_command_line_names_in_a_store_must_be_a_recording(
    checkpoint: Path, server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, code, words in (
        (ARCHIVE, 2, f"expected a recording, got a folder; write {ARCHIVE}/"),
        ("s3://bucket/gone.wav", 2, "expected a recording or a folder, got no such file"),
        ("s3://nosuch/archive", 1, "there is no such bucket"),
    ):
        assert scan(checkpoint, place, "--out", tmp_path / "o") == code
        assert f"scan: {place}: {words}" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_store_that_is_busy_or_cuts_connections_is_asked_again(
    server: FaultyServer, buckets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(20_000_000)
    (buckets / "bucket/large.wav").write_bytes(content)
    gets = 0
    slept_s: list[float] = []

    def fail_often(handler: FaultyHandler) -> None:
        nonlocal gets
        gets += handler.command == "GET"
        if gets == 1:
            handler.cut_after = 1_000_000
        elif gets in (2, 4):
            raise busy()

    server.fault = fail_often
    with local_copy("s3://bucket/large.wav", slept_s.append) as (path, n_bytes):
        assert n_bytes == len(content)
        assert path.read_bytes() == content

    def fail_always(handler: FaultyHandler) -> None:
        raise S3Error(500, "InternalError", "We encountered an internal error.")

    server.fault = fail_always
    slept_s.clear()
    monkeypatch.setattr(stores, "ATTEMPTS", 1)  # the client of S3 tries often by itself
    with (
        pytest.raises(
            ObjectStoreError, match=r"large\.wav: the store cannot be read: .*HeadObject"
        ),
        local_copy("s3://bucket/large.wav", slept_s.append),
    ):
        pass
    assert slept_s == []


def test_a_copy_that_was_cut_off_goes_on_where_it_was(server: FaultyServer, buckets: Path) -> None:
    content = os.urandom(20_000_000)
    (buckets / "bucket/large.wav").write_bytes(content)
    is_cut = True

    def cut_the_rest(handler: FaultyHandler) -> None:
        if is_cut and handler.headers.get("Range", "").startswith("bytes=16"):
            handler.cut_after = 100

    def mend(seconds: float) -> None:
        nonlocal is_cut
        is_cut = False
        server.requests.clear()

    server.fault = cut_the_rest
    with local_copy("s3://bucket/large.wav", mend) as (path, _):
        assert path.read_bytes() == content
    assert sum(line.startswith("GET") for line in server.requests) == 1


def test_an_object_that_is_replaced_while_it_is_read_is_never_mixed(
    server: FaultyServer, buckets: Path
) -> None:
    path = buckets / "bucket/large.wav"
    path.write_bytes(b"a" * 20_000_000)
    n_slept = 0

    def replace_in_the_middle(handler: FaultyHandler) -> None:
        if handler.headers.get("Range", "").startswith("bytes=8") and n_slept == 0:
            path.write_bytes(b"b" * 20_000_000)

    def count(seconds: float) -> None:
        nonlocal n_slept
        n_slept += 1

    server.fault = replace_in_the_middle
    with local_copy("s3://bucket/large.wav", count) as (copy, _):
        assert copy.read_bytes() == b"b" * 20_000_000
    assert n_slept == 1


def test_an_object_that_is_not_given_out_is_a_row_and_one_that_may_not_be_seen_ends_the_shard(
    checkpoint: Path, whole: Path, server: FaultyServer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(handler: FaultyHandler) -> None:
        if "silent.wav" in handler.path and handler.command in refused:
            raise refusal("InvalidObjectState")

    server.fault = refuse
    out = tmp_path / "out"
    refused = ["GET"]  # as S3 does with what lies in Glacier
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", out, *PARTS) == 0
    (row,) = [row for row in rows_of(out)[1] if row["file"] == "silent.wav"]
    assert (row["status"], row["bytes"]) == ("unreadable", None)
    assert "the store shows it, but does not give it out" in row["sentence"]
    others = [row for row in rows_of(whole)[0] if row["file"] != "silent.wav"]
    assert rows_of(out)[0] == others
    refused = ["GET", "HEAD"]
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", out, "--again") == 1
    assert "silent.wav: the store refuses access: expected cred" in capsys.readouterr().err
    assert scan(checkpoint, f"{ARCHIVE}/", "--out", out, "--skip", "silent.wav") == 0


def test_what_a_store_and_a_disk_hold_is_alike(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    folders: list[Any] = [DiskFolder(tmp_path / "disk"), StoreFolder("s3://bucket/folder/")]
    for folder in folders:
        folder.hold("folder")
        assert folder.sizes() == ({"lock": 0} if folder.is_locked else {})
        with pytest.raises(FileNotFoundError):
            folder.read("a", 10)
        put = folder.put({"a": b"12", "b": lambda path: path.write_bytes(b"345")})
        assert [written.n_bytes for written in put.values()] == [2, 3]
        assert folder.sha256("b") == put["b"].sha256
        folder.replace("c", b"6")
        folder.replace("c", b"78")
        folder.delete(["a", "nosuch"])
        assert {name: size for name, size in folder.sizes().items() if name != "lock"} == {
            "b": 3,
            "c": 2,
        }
        assert folder.read("c", 10) == b"78"
        assert folder.sha256("nosuch") is None
        folder.release()
    other = StoreFolder("s3://bucket/folder")
    other.replace("d", b"1")
    with pytest.raises(StartupError, match="in use by another process"):
        folders[1].replace("d", b"2")


def test_a_uri_with_a_query_or_of_no_bucket_is_one_sentence(server: FaultyServer) -> None:
    for place, error in (
        ("s3:///archive/", UsageError),
        ("s3://nosuch/", StoreRefusedError),
    ):
        with pytest.raises(error):
            recordings_below(place)
