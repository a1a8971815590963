"""Which recordings are in which shard, and how they are named."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from ast_stream.archive.listing import (
    Listing,
    ShardNumber,
    list_archive,
    names_in,
    shown_name,
)
from ast_stream.errors import UsageError

ALL = ShardNumber()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Give a folder of names alone: nothing in it is read."""
    root = tmp_path / "archive"
    for number in range(40):
        folder = root / f"site {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.wav").touch()
    return root


def test_every_recording_is_in_one_shard_wherever_the_archive_is_mounted(
    archive: Path, tmp_path: Path
) -> None:
    whole = list_archive(ALL, [str(archive)])
    shards = [list_archive(ShardNumber(index, 7), [str(archive)]) for index in range(7)]
    assert sorted(name for shard in shards for name in shard.names) == whole.names
    assert {shard.digest for shard in shards} == {whole.digest}
    assert sum(bool(shard.names) for shard in shards) > 4
    archive.rename(tmp_path / "elsewhere")
    again = list_archive(ShardNumber(3, 7), [str(tmp_path / "elsewhere")])
    assert again.names == shards[3].names
    assert [recording.place for recording in again.recordings(1)] == [
        str(tmp_path / "elsewhere" / name) for name in again.names[1:]
    ]


def test_a_shard_of_a_name_never_changes() -> None:
    # from sha256sum: a job array that runs in a year must find the same recordings
    assert [ShardNumber(index, 8).has("site 4/night.flac") for index in range(8)].index(True) == 1
    assert ShardNumber(8, 100).has("a.wav")


def test_the_same_names_are_the_same_list_however_they_are_given(archive: Path) -> None:
    folder = list_archive(ALL, [str(archive)])
    root = str(archive)
    lines = "\n".join(reversed([f"{root}/{name}" for name in folder.names])).encode()
    below = list_archive(ALL, root=root + "/", names=names_in(io.BytesIO(lines + b"\r\n\n")))
    nul = b"\0".join(name.encode() for name in folder.names)
    relative = list_archive(ALL, root=f"{root}/.", names=names_in(io.BytesIO(nul)))
    alone = list_archive(ALL, root=f"file://{root.replace(' ', '%20')}")
    twice = list_archive(ALL, [root, root], root=root)
    for listing in (below, relative, alone):
        assert listing == Listing(root, folder.names, folder.n_all, folder.digest)
    assert twice.names == folder.names
    assert list_archive(ALL, [f"{root}/site 1"], root=root).names == [
        name for name in folder.names if name.startswith("site 1/")
    ]


def test_names_without_a_root_are_as_they_are_written(archive: Path) -> None:
    names = [f"{archive}/site 0/000.wav", f"{archive}/site 1"]
    listing = list_archive(ALL, names)
    assert listing.root is None
    assert listing.names[0] == names[0]
    assert all(recording.name == recording.place for recording in listing.recordings())


def test_a_name_that_is_no_text_is_listed_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"n\xe4chtlich.wav")
    (tmp_path / name).touch()
    (recording,) = list_archive(ALL, [str(tmp_path)]).recordings()
    assert recording.name == name
    assert shown_name(name) == "n\\xe4chtlich.wav"
    (listed,) = names_in(io.BytesIO(b"n\xe4chtlich.wav"))
    assert listed == name


@pytest.mark.parametrize(
    ("files", "root", "names", "sentence"),
    [
        ([], None, [], "got no recording"),
        ([], None, ["", ""], "got no recording"),
        (["-"], None, [], "--list - reads a list"),
        (["{}/empty"], None, [], "expected recordings in it, got none"),
        (["/elsewhere/a.wav"], "{}", [], "expected recordings below --root"),
        ([], "{}", ["../a.wav"], "expected recordings below --root"),
        ([], "{}", ["s3://bucket/a.wav"], "expected recordings below --root"),
        ([], "{}/nosuch", [], "--root: expected a folder"),
    ],
)
def test_what_is_no_archive_is_one_sentence(
    tmp_path: Path, files: list[str], root: str | None, names: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=sentence):
        list_archive(
            ALL,
            [file.format(tmp_path) for file in files],
            root=None if root is None else root.format(tmp_path),
            names=names_in(io.BytesIO("\n".join(names).encode())),
        )


@pytest.mark.parametrize("text", ["8", "8/8", "1/0", "-1/4", "a/b", "0/100001", "1/4/2", "1 / 4"])
def test_what_is_no_shard_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="scan: --shard: "):
        ShardNumber.parse(text)
    assert ShardNumber.parse("3/8") == ShardNumber(3, 8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("archiv", "expected a recording or a folder, got no such file"),
        ("site 0/000.wav/x", "expected a recording or a folder, got no such file"),
        ("site 0", "expected a recording, got the folder"),
    ],
)
def test_what_the_command_line_names_must_be_a_recording(
    archive: Path, given: str, words: str
) -> None:
    with pytest.raises(UsageError, match=f"scan: {given}: {words}"):
        list_archive(ALL, [given], root=str(archive))
    # in a list it may have been deleted since
    assert list_archive(ALL, names=[given], root=str(archive)).names == [given]
