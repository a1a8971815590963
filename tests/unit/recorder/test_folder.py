from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sample_messages import T0_NS, event_message

from ast_stream.errors import StartupError
from ast_stream.history.database import FILE, History
from ast_stream.recorder.clip import Clip, Sheet
from ast_stream.recorder.folder import ClipFolder
from ast_stream.recorder.held_audio import CutAudio, Hole
from ast_stream.recorder.plan import ClipPart, TrackedEvent
from ast_stream.runtime.files import RemovedError
from ast_stream.settings.retention import MIB, ClipRetention
from ast_stream.units import seconds_to_ns

DAY_NS = seconds_to_ns(86_400.0)
RNG = np.random.default_rng(5)


class Disk:
    """A folder of clips and a history, with a clock and free space of their own."""

    def __init__(self, path: Path, history: History, **limits: Any) -> None:
        self.path = path
        self.history = history
        self.now_ns = T0_NS
        self.free = 10**12
        self.limits = ClipRetention.model_validate({"max_mib": 1, "min_free_mib": 100} | limits)
        self.clips = self.open()

    def open(self) -> ClipFolder:
        return ClipFolder(
            self.path,
            self.history,
            self.limits,
            wait_s=600.0,
            wall_ns=lambda: self.now_ns,
            free=lambda folder: self.free,
        )

    def write(
        self, event_id: str, seconds: float = 5.0, *, waits: bool = False, **fields: Any
    ) -> str | None:
        """Write a clip of noise, which FLAC hardly makes smaller: 32 kB a second."""
        return self.clips.write(clip(event_id, seconds, **fields), is_waiting=waits)

    def files(self) -> list[str]:
        return sorted(one.name for one in self.path.rglob("*.flac"))

    def in_history(self) -> set[str]:
        return {found.event_id for found, _ in self.history.all_clips() if found.path}


def clip(event_id: str, seconds: float = 5.0, number: int = 0, **fields: Any) -> Clip:
    n = round(seconds * 16_000)
    message = event_message(event_id, "end", offset_sample=n, **fields)
    pcm = RNG.integers(-30_000, 30_000, n).astype(np.int16)
    part = ClipPart(TrackedEvent(message), number, 0, n, True)
    return Clip.of(part, CutAudio(0, pcm, [], []), "flac", "")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with History(tmp_path / "history" / FILE) as history:
        yield Disk(tmp_path / "clips", history)


def test_a_clip_lies_by_stream_and_day_with_a_sheet_beside_it(disk: Disk) -> None:
    written = clip("one")
    assert disk.clips.write(written, is_waiting=False) is None
    path = disk.path / "porch" / "2023-11-14" / "20231114T221320Z_bark_one.flac"
    samples, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(samples, written.pcm)
    assert Sheet.decode(path.with_suffix(".json").read_bytes()) == written.sheet
    (found,) = disk.history.clips("one")
    assert (disk.path / found.path, found.size_bytes) == (path, path.stat().st_size)


@pytest.mark.parametrize("lost", ["lock", "folder"])
def test_a_folder_that_is_removed_while_it_is_in_use_is_noticed(disk: Disk, lost: str) -> None:
    disk.write("one")
    disk.clips.expect_in_place()
    if lost == "lock":
        (disk.path / "lock").unlink()
    else:
        disk.path.rename(disk.path.with_name("away"))
    with pytest.raises(RemovedError, match="the folder of clips"):
        disk.clips.expect_in_place()


def test_there_are_never_more_bytes_than_allowed_and_the_best_stay(disk: Disk) -> None:
    disk.clips.limits = ClipRetention(max_mib=1, keep_best=1, min_free_mib=0)
    for n in range(12):
        assert disk.write(f"n{n:02}", peak=0.95 if n == 3 else 0.5, onset_ns=T0_NS + n) is None
        assert sum(one.stat().st_size for one in disk.path.rglob("*.*")) <= MIB
    assert {"n03", "n11"} <= disk.in_history()
    assert "n00" not in disk.in_history()
    assert len(disk.in_history()) == len(disk.files()) == disk.clips.n_clips


def test_a_clip_that_no_room_can_be_made_for_is_refused(disk: Disk) -> None:
    reason = disk.write("long", seconds=40)
    assert reason is not None
    assert "retention.clips.max_mib" in reason
    assert disk.files() == []


def test_a_disk_that_is_nearly_full_is_left_alone_until_it_has_room(disk: Disk) -> None:
    disk.free = 100 * MIB + 50_000
    reason = disk.write("one")
    assert reason is not None
    assert "100 stay free (retention.clips.min_free_mib)" in reason
    assert disk.clips.outage.text is not None
    disk.free = 200 * MIB
    assert disk.write("one") is None


def test_clips_are_deleted_when_they_are_too_old_and_empty_folders_too(disk: Disk) -> None:
    disk.write("old", 1.0)
    disk.write("new", 1.0, onset_ns=T0_NS + 20 * DAY_NS)
    disk.now_ns = T0_NS + 31 * DAY_NS
    disk.clips.sweep(())
    assert disk.in_history() == {"new"}
    assert [one.name for one in (disk.path / "porch").iterdir()] == ["2023-12-04"]


def test_a_clip_waits_for_an_alert_and_is_kept_or_deleted(disk: Disk) -> None:
    disk.write("named", 1.0, waits=True)
    disk.write("not-named", 1.0, waits=True)
    assert disk.in_history() == set()
    disk.clips.keep("named")
    assert disk.in_history() == {"named"}
    disk.now_ns += seconds_to_ns(599)
    disk.clips.sweep(())
    assert len(disk.files()) == 2
    disk.now_ns += seconds_to_ns(2)
    disk.clips.sweep(["not-named"])  # its event lasts
    assert len(disk.files()) == 2
    disk.clips.sweep(())
    assert len(disk.files()) == 1
    assert disk.clips.deleted == {"no_alert": 1}


def test_a_start_makes_history_and_disk_agree(disk: Disk) -> None:
    for name in ("whole", "lost", "unknown"):
        disk.write(name, 1.0)
    lost, unknown = disk.history.clips("lost")[0], disk.history.clips("unknown")[0]
    disk.clips.close()
    (disk.path / lost.path).unlink()
    disk.history.remove_clips([unknown.path])
    (disk.path / "porch" / ".half.flac.unfinished").write_bytes(b"x")
    disk.clips = disk.open()
    assert disk.in_history() == {"whole", "unknown"}
    names = {one.name.split("_")[-1] for one in disk.path.rglob("*_*")}
    assert names == {"whole.flac", "whole.json", "unknown.flac", "unknown.json"}


def test_one_bad_file_stops_neither_the_start_nor_the_sweep(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        disk.write(name, 1.0)
    disk.clips.close()
    paths = {one.name.split("_")[-1][0]: one for one in disk.path.rglob("*.flac")}
    paths["a"].with_suffix(".json").write_bytes(b"\xff{")
    disk.clips = disk.open()
    assert disk.clips.n_clips == 3
    disk.now_ns = T0_NS + 400 * DAY_NS * 100
    unlink = Path.unlink

    def refusing(self: Path, missing_ok: bool = False) -> None:
        if self == paths["b"]:
            raise PermissionError(1, "Operation not permitted")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    disk.clips.sweep(())
    assert disk.files() == [paths["b"].name]
    assert disk.write("d", 1.0) is None


def test_two_recorders_do_not_share_a_folder(disk: Disk) -> None:
    with pytest.raises(StartupError, match="in use by another process"):
        disk.open()


def test_what_is_missing_is_said_beside_the_clip_and_in_the_history(disk: Disk) -> None:
    message = event_message("one", "end", offset_sample=16_000)
    part = ClipPart(TrackedEvent(message), 0, 0, 32_000, True)
    pcm = np.ones(30_000, np.int16)
    audio = CutAudio(0, pcm, [Hole(0, 8000, "overflow")], [(20_000, 24_000)])
    made = Clip.of(part, audio, "flac", "the source has ended", is_without_speech=True)
    assert disk.clips.write(made, is_waiting=False) is None
    (found,) = disk.history.clips("one")
    assert found.note == (
        "0.5 s are silence: overflow; 0.25 s are silence: somebody may talk; "
        "0.125 s at the end are missing: the source has ended"
    )
    sheet = Sheet.decode((disk.path / found.path).with_suffix(".json").read_bytes())
    assert [(one.start_sample, one.stop_sample) for one in sheet.missing] == [(0, 8000)]
    assert sheet.withheld == [[20_000, 24_000]]


def test_an_event_without_a_clip_has_the_reason_in_the_history(disk: Disk) -> None:
    message = event_message("one", "end", offset_sample=16_000)
    disk.clips.note(ClipPart(TrackedEvent(message), 0, 0, 16_000, True), "no longer held")
    (found,) = disk.history.clips("one")
    assert (found.path, found.note, found.stop_sample) == ("", "no longer held", 16_000)
