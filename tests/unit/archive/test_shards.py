"""Shards on disk: parts, manifests, going on after a kill, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from archive_rows import make_archive, rows_of, scan
from clocks import FakeSeconds

from ast_stream.archive import archive_state, read_events
from ast_stream.archive.folders import ArchiveError, DiskFolder
from ast_stream.archive.listing import Listing, ShardNumber
from ast_stream.archive.manifest import Made, ShardManifest
from ast_stream.archive.parquet import recorded_at
from ast_stream.archive.reader import score_files
from ast_stream.archive.recording_rows import RecordingRows
from ast_stream.archive.shard import PartSize, ShardResults


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("shards") / "archive")


@pytest.fixture(scope="module")
def whole(checkpoint: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the results of one scan in parts of three recordings."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert scan(checkpoint, archive, "--out", out, "--part-recordings", 3, "--with-scores") == 0
    return out


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """Give results that may be changed."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def folder(out: Path) -> Path:
    (found,) = out.glob("shard-*")
    return found


def files_of(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))
    }


def cut_back(out: Path, n_parts: int) -> None:
    """Leave a folder as a kill leaves it while a part is written, with `n_parts` whole ones."""
    manifest = ShardManifest.read(DiskFolder(folder(out)))
    assert manifest is not None
    parts = manifest.parts[:n_parts]
    progress = manifest.progress.model_copy(
        update={"recordings": sum(part.recordings for part in parts)}
    )
    manifest.model_copy(update={"parts": parts, "progress": progress, "state": "unfinished"}).write(
        DiskFolder(folder(out))
    )
    (folder(out) / ".events-00000009.parquet.unfinished").write_bytes(b"half")
    (folder(out) / f"coverage-{n_parts:08d}.parquet").write_bytes(b"not in the manifest")


def test_shards_have_together_the_rows_of_one_scan(
    checkpoint: Path, archive: Path, whole: Path, tmp_path: Path
) -> None:
    for index in (2, 0, 1):
        assert scan(checkpoint, archive, "--out", tmp_path, "--shard", f"{index}/3") == 0
    events, coverage = rows_of(whole)
    shard_events, shard_coverage = rows_of(tmp_path)
    assert shard_events == events
    without = [{**row, "settings": None} for row in coverage]  # these have scores as well
    assert [{**row, "settings": None} for row in shard_coverage] == without
    assert len(events) > 10
    assert {row["status"] for row in coverage} == {"ok", "warned", "partial", "unreadable"}
    assert sum(row["events"] for row in coverage) == len(events)
    long = next(row for row in events if row["file"] == "site-1/AM_20260501_210100.flac")
    assert (long["onset"] - recorded_at(long["file"])).total_seconds() == pytest.approx(
        long["onset_s"], abs=0.001
    )


@pytest.mark.parametrize("n_parts", [0, 1, 4])
def test_a_shard_that_was_killed_ends_with_the_same_files(
    checkpoint: Path, archive: Path, whole: Path, begun: Path, n_parts: int
) -> None:
    cut_back(begun, n_parts)
    again = ["--out", begun, "--part-recordings", 3, "--with-scores"]
    assert scan(checkpoint, archive, *again) == 0
    assert files_of(begun) == files_of(whole)
    assert not list(folder(begun).glob("*.unfinished"))
    state = archive_state(begun, has_sums=True)
    assert state.why_not_whole is None
    assert scan(checkpoint, archive, *again) == 0  # nothing to do
    assert files_of(begun) == files_of(whole)


def test_the_manifest_counts_what_is_in_the_parts(whole: Path, archive: Path) -> None:
    manifest = ShardManifest.read(DiskFolder(folder(whole)))
    assert manifest is not None
    assert manifest.state == "complete"
    assert [part.recordings for part in manifest.parts] == [3, 3, 3, 3, 3, 1]
    for part in manifest.parts:
        for file in part.files.values():
            found = parquet.read_table(folder(whole) / file.file)
            assert found.num_rows == file.rows
    progress, (events, coverage) = manifest.progress, rows_of(whole)
    assert progress.recordings == manifest.input.recordings == len(coverage) == 16
    assert progress.events == len(events)
    assert (progress.unreadable, progress.partial, progress.warned) == (1, 1, 2)
    assert progress.hours == pytest.approx(
        sum(row["duration_s"] for row in coverage) / 3600, abs=1e-5
    )
    assert progress.eta_s == 0.0


def test_scores_are_those_that_were_decided_by(
    whole: Path, checkpoint: Path, archive: Path
) -> None:
    rows: list[dict[str, Any]] = [
        row for file in score_files(whole) for row in parquet.read_table(file).to_pylist()
    ]
    file = "site-1/AM_20260501_210100.flac"
    found = [row for row in rows if row["file"] == file]
    assert [row["time_s"] for row in found] == sorted(row["time_s"] for row in found)
    assert found[0]["time_s"] == 1.0
    assert found[-1]["time_s"] == 40.0
    assert {len(row["scores"]) for row in rows} == {3}
    highest = max(max(row["scores"][:2]) for row in found)
    peak = max(row["peak"] for row in rows_of(whole)[0] if row["file"] == file)
    assert highest == pytest.approx(peak, abs=1e-3)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--hop", "0.25"], "begun with other settings: hop_s was 0.5, is 0.25"),
        (["--channel", "0"], "begun with other settings: channel was mix, is 0"),
        (["--list", "{list}"], "another list of 16 recordings, this one has 17"),
        (["--shard", "0/2"], "holds one of 1 shards, this is one of 2"),
    ],
)
def test_a_shard_goes_on_with_nothing_else_than_it_was_begun_with(
    checkpoint: Path, archive: Path, begun: Path, tmp_path: Path, args: list[str], sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = files_of(begun)
    (tmp_path / "list").write_text("one-more.wav\n")
    given = [arg.format(list=tmp_path / "list") for arg in args]
    common = [archive, "--root", archive, "--out", begun, "--with-scores"]
    assert scan(checkpoint, *common, *given) == 2
    assert sentence in capsys.readouterr().err
    assert files_of(begun) == before


def test_another_model_is_refused_and_again_begins_afresh(
    checkpoint: Path, archive: Path, begun: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from reactive_model import save_reactive

    other = save_reactive(tmp_path / "other", seed=1)
    common = [archive, "--out", begun, "--with-scores"]
    assert scan(other, *common) == 2
    assert "begun with the model sha256:" in capsys.readouterr().err
    assert scan(other, *common, "--again") == 0
    state = archive_state(begun, has_sums=True)
    assert state.why_not_whole is None
    assert len(state.manifests[0].parts) == 1
    assert len(list(folder(begun).glob("*.parquet"))) == 3


def test_of_two_processes_at_one_shard_the_second_is_refused(
    checkpoint: Path, archive: Path, begun: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    taken: list[int] = []
    add = ShardResults.add

    def add_and_look(self: ShardResults, heard: Any) -> None:
        if not taken:
            taken.append(scan(checkpoint, archive, "--out", begun, "--with-scores"))
        add(self, heard)

    monkeypatch.setattr(ShardResults, "add", add_and_look)
    cut_back(begun, 2)
    assert scan(checkpoint, archive, "--out", begun, "--with-scores") == 0
    assert taken == [3]
    assert "shard 0/1 in" in capsys.readouterr().err
    assert archive_state(begun).why_not_whole is None


def test_on_a_full_disk_what_was_finished_is_whole_and_goes_on_later(
    checkpoint: Path, archive: Path, whole: Path, begun: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cut_back(begun, 2)
    args = [archive, "--out", begun, "--part-recordings", 3, "--with-scores"]
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def write(path: Path, table: str, rows: Any) -> None:
        with open("/dev/full", "wb") as full:
            full.write(b"x" * 4096)

    with monkeypatch.context() as patched:
        patched.setattr("ast_stream.archive.shard.write_rows", write)
        assert scan(checkpoint, *args) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "goes on from there when it is run again" in said
    manifest = ShardManifest.read(DiskFolder(folder(begun)))
    assert manifest is not None
    assert len(manifest.parts) == 2
    assert read_events(begun, is_partial=True).num_rows > 0
    assert scan(checkpoint, *args) == 0
    assert files_of(begun) == files_of(whole)


def test_damaged_results_are_refused_with_what_is_wrong(
    checkpoint: Path, archive: Path, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [archive, "--out", begun, "--with-scores"]
    events = folder(begun) / "events-00000001.parquet"
    content = bytearray(events.read_bytes())
    content[len(content) // 2] ^= 1
    events.write_bytes(content)
    assert "events-00000001.parquet has changed" in str(
        archive_state(begun, has_sums=True).why_not_whole
    )
    os.truncate(events, 10)
    assert scan(checkpoint, *args) == 1
    assert "events-00000001.parquet: missing, or not as it was written" in capsys.readouterr().err
    with pytest.raises(ArchiveError, match=r"events-00000001\.parquet is missing"):
        read_events(begun)
    (folder(begun) / "manifest.json").write_text("{}")
    assert scan(checkpoint, *args) == 1
    assert "damaged, or of another version" in capsys.readouterr().err
    assert scan(checkpoint, *args, "--again") == 0
    assert archive_state(begun).why_not_whole is None


def test_readers_are_told_of_missing_unfinished_and_unlike_shards(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArchiveError, match="expected the shards of an archive, got none"):
        read_events(tmp_path)
    assert scan(checkpoint, archive, "--out", tmp_path, "--shard", "1/3") == 0
    with pytest.raises(ArchiveError, match="shards 0, 2 of 3 not begun"):
        read_events(tmp_path)
    assert read_events(tmp_path, is_partial=True).num_rows > 0
    changed = [archive, "--out", tmp_path, "--channel", "0", "--shard"]
    assert scan(checkpoint, *changed, "0/3") == 0
    assert scan(checkpoint, *changed, "2/3") == 0
    with pytest.raises(ArchiveError, match="made with 2 different settings"):
        read_events(tmp_path)
    with pytest.raises(ArchiveError, match="made with 2 different settings"):
        read_events(tmp_path, is_partial=True)
    capsys.readouterr()
    assert scan(checkpoint, "--progress", tmp_path, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["shard", "shard", "shard", "archive"]
    assert lines[-1]["recordings"] == lines[-1]["total"] == 16
    assert lines[-1]["complete"] == lines[-1]["shards"] == 3
    assert lines[-1]["problems"]


def test_progress_of_an_archive_is_the_sum_of_its_shards(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 2):
        assert scan(checkpoint, archive, "--out", tmp_path, "--shard", f"{index}/3") == 0
    capsys.readouterr()
    assert scan(checkpoint, "--progress", tmp_path) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:3] == ["shard", "state", "recordings"]
    assert [line.split()[0] for line in lines[1:]] == ["0/3", "2/3", "all"]
    assert "unfinished" in lines[-1]
    assert "shard 1 of 3 not begun" in printed.err


def test_progress_is_shown_while_a_long_recording_is_heard(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("ast_stream.cli.scan_archive.LINE_EVERY_S", 0.0)
    long = archive / "site-1/AM_20260501_210100.flac"
    assert scan(checkpoint, long, archive / "silent.wav", "--out", tmp_path, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(lines[0]) == [
        "type", "shard", "of", "recordings", "total", "hours", "hours_per_hour", "eta_s",
    ]  # fmt: skip
    hours = [line["hours"] for line in lines[:-1]]
    assert hours == sorted(hours)
    assert len({line["hours"] for line in lines if line.get("recordings") == 0}) > 1
    assert hours[-1] == pytest.approx(45 / 3600, abs=1e-3)
    assert lines[-2]["eta_s"] == 0.0
    assert lines[-1]["type"] == "shard"
    assert scan(checkpoint, long, "--out", tmp_path / "text") == 0
    assert "of 1 recordings" in capsys.readouterr().err


def test_a_shard_that_never_finishes_a_part_says_so_and_a_recording_can_be_left_out(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def die(self: ShardResults, heard: Any) -> None:
        if heard.name == "silent.wav" and heard.sentence != "left out: --skip":
            raise SystemExit(139)
        add(self, heard)

    add = ShardResults.add
    monkeypatch.setattr(ShardResults, "add", die)
    args = [archive, "--out", tmp_path, "--together", 1, "--part-recordings", 1]
    for _ in range(4):
        assert scan(checkpoint, *args) == 139
        assert "begun" not in capsys.readouterr().err
    assert scan(checkpoint, *args) == 139
    said = capsys.readouterr().err
    assert "begun 3 times without finishing a part" in said
    assert "now it is silent.wav or one behind it" in said
    assert scan(checkpoint, *args, "--skip", "silent.wav") == 0
    (row,) = [row for row in rows_of(tmp_path)[1] if row["file"] == "silent.wav"]
    assert (row["status"], row["sentence"]) == ("unreadable", "left out: --skip")


def test_an_empty_shard_is_complete(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = archive / "silent.wav"
    for index in range(2):
        args = [alone, "--root", archive, "--out", tmp_path, "--shard", f"{index}/2", "--json"]
        assert scan(checkpoint, *args) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = [line["state"] for line in lines if line["type"] == "shard"]
    assert states == ["complete", "complete"]
    assert sorted(line["recordings"] for line in lines if line["type"] == "shard") == [0, 1]
    assert [row["file"] for row in rows_of(tmp_path)[1]] == ["silent.wav"]


def test_what_cannot_be_is_one_sentence(
    checkpoint: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for args, code, sentence in (
        ([archive, "--shard", "0/2"], 2, "expected --out DIR"),
        ([archive, "--out", tmp_path, "--labels", "csv"], 2, "neither --labels nor --scores"),
        (["--out", tmp_path, "--list", tmp_path / "nosuch"], 2, "--list: cannot read"),
        ([archive, "--out", tmp_path / "file" / "out"], 3, "--out: cannot create"),
        (["--progress", tmp_path / "nosuch"], 1, "expected the shards of an archive, got none"),
    ):
        assert scan(checkpoint, *args) == code
        assert sentence in capsys.readouterr().err


def test_names_of_recorders_say_when_a_recording_began() -> None:
    for name, expected in (
        ("a/20260501_213000.WAV", "2026-05-01T21:30:00"),
        ("S4A01234_20260501_213000.wav", "2026-05-01T21:30:00"),
        ("2026-05-01T21-30-00Z.flac", "2026-05-01T21:30:00"),
        ("porch 2026-05-01 21:30:00.wav", "2026-05-01T21:30:00"),
    ):
        found = recorded_at(name)
        assert found is not None
        assert found.isoformat() == expected
    for name in ("20260501_213000/night.wav", "20261301_213000.wav", "120260501_213000.wav"):
        assert recorded_at(name) is None


def test_speed_and_what_is_left_are_those_of_the_run_that_goes_on(tmp_path: Path) -> None:
    names = [f"{number}.wav" for number in range(10)]
    listing = Listing(None, names, 10, "digest")
    made = Made(model="m", settings="s", settings_are={}, version="1", channel="mix")
    clock = FakeSeconds(1000.0)

    def results() -> ShardResults:
        return ShardResults(
            tmp_path, ShardNumber(), listing, made, {}, size=PartSize(recordings=1),
            monotonic=clock, now=clock,
        )  # fmt: skip

    def scan(into: ShardResults, name: str, took_s: float) -> None:
        clock.now_s += took_s
        into.add(RecordingRows(name, 1, 3600.0, "ok", None, 1, 0.0, ()))

    with results() as slow:
        for name in names[:4]:
            scan(slow, name, took_s=100.0)
        assert slow.manifest.progress.hours_per_hour == pytest.approx(36.0)
        assert slow.manifest.progress.eta_s == pytest.approx(600.0)
    clock.now_s += 86_400  # nobody went on for a day
    with results() as quick:
        assert quick.n_done == 4
        for name in names[4:6]:
            scan(quick, name, took_s=10.0)
        progress = quick.manifest.progress
        assert progress.hours_per_hour == pytest.approx(360.0)
        assert progress.eta_s == pytest.approx(40.0)
        assert progress.busy_s == pytest.approx(420.0)
