"""The event log on disk: what is kept, what is bounded, what a broken disk does."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import SPARSE_BYTES, STRANGE_FILES, make_strange, mutations
from sample_messages import event_message, gap_message

from ast_stream.errors import StartupError
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import BOOT_TOPIC, FeedMessage, Position, Stamp
from ast_stream.messages.query import MAX_PAGE_BYTES, ReplayPage, TooOld
from ast_stream.transport import event_log
from ast_stream.transport.event_log import EventLog

SMALL: dict[str, Any] = {"max_bytes": 4096, "segment_bytes": 1024}


def message(seq: int, boot: str = "b1", previous: int | None = None, **body: Any) -> FeedMessage:
    numbers = {"v": 1, "boot": boot, "seq": seq}
    before = seq - 1 if previous is None else previous
    return FeedMessage("event/bark/porch/", numbers | {"previous": before} | body)


def event(seq: int, at_sample: int, kind: str = "update", epoch: str = "aaaaaaaa") -> FeedMessage:
    content = event_message(f"id{epoch}", kind, at_sample=at_sample, epoch=epoch)
    return FeedMessage.of(content, Stamp("b1", seq, Moment(0, 0), previous=seq - 1))


def fill(log: EventLog, boot: str, n_messages: int, **body: Any) -> None:
    log.begin(boot)
    for seq in range(1, n_messages + 1):
        log.append(message(seq, boot, **body))


def page(log: EventLog, after: Position | None, limit: int = 1000) -> ReplayPage:
    found = log.replay(after, limit)
    assert isinstance(found, ReplayPage)
    return found


def positions(log: EventLog, after: Position | None) -> list[Position]:
    """All positions after one, over as many pages as it takes, without the starts of boots."""
    found: list[Position] = []
    while True:
        part = page(log, after, limit=7)
        found += [message.position for message in part.messages]
        if not part.more:
            return [position for position in found if position[1] > 0]
        after = found[-1]


def test_replay_gives_what_came_after_a_position_over_boots(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fill(log, "b1", 20)
    log.close()
    log = EventLog(tmp_path)
    fill(log, "b2", 10)
    assert positions(log, ("b1", 17)) == [("b1", 18), ("b1", 19), ("b1", 20)] + [
        ("b2", seq) for seq in range(1, 11)
    ]
    assert positions(log, ("b2", 0)) == [("b2", seq) for seq in range(1, 11)]
    assert positions(log, ("b2", 10)) == []
    assert len(positions(log, None)) == 30


def test_position_between_two_messages_is_known(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.begin("b1")
    for seq, previous in ((5, 0), (9, 5)):
        log.append(message(seq, previous=previous))
    assert positions(log, ("b1", 7)) == [("b1", 9)]


def test_page_is_bounded_in_bytes_but_never_empty(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fill(log, "b1", 10, pad="x" * 200_000)
    first = page(log, None)
    assert first.more
    assert 2 <= len(first.messages) <= 1 + MAX_PAGE_BYTES // 200_000
    assert len(positions(log, None)) == 10


def test_unknown_boot_is_too_old_and_says_where_to_go_on(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.replay(("b0", 5)) == TooOld(None)
    fill(log, "b1", 3)
    assert log.replay(("b0", 5)) == TooOld(("b1", 0))
    assert positions(log, ("b1", 0)) == [("b1", 1), ("b1", 2), ("b1", 3)]


def test_boot_without_messages_is_known(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.begin("b1")
    log.begin("b2")
    log.append(message(4, "b2", previous=0))
    assert positions(log, ("b1", 0)) == [("b2", 4)]
    topics = [message.topic for message in page(log, None).messages]
    assert topics == [BOOT_TOPIC, BOOT_TOPIC, "event/bark/porch/"]


def test_size_is_bounded_by_the_oldest_segment_going(tmp_path: Path) -> None:
    log = EventLog(tmp_path, **SMALL)
    fill(log, "b1", 200)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.jsonl")]
    assert sum(sizes) <= 4096
    assert max(sizes) <= 1024
    too_old = log.replay(("b1", 3))
    assert isinstance(too_old, TooOld)
    assert too_old.oldest is not None
    kept = positions(log, too_old.oldest)
    assert kept == [("b1", seq) for seq in range(too_old.oldest[1] + 1, 201)]
    assert len(kept) > 20


def test_log_opened_again_goes_on_in_the_same_order(tmp_path: Path) -> None:
    for boot in range(1, 6):
        log = EventLog(tmp_path, **SMALL)
        fill(log, f"b{boot}", 3)
        log.close()
    log = EventLog(tmp_path, **SMALL)
    assert positions(log, None) == [(f"b{b}", seq) for b in range(1, 6) for seq in range(1, 4)]


def test_torn_last_line_is_cut_off_and_no_damage(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fill(log, "b1", 5)
    log.close()
    (path,) = tmp_path.glob("*.jsonl")
    os.truncate(path, path.stat().st_size - 10)
    log = EventLog(tmp_path)
    assert log.damaged == 0
    fill(log, "b2", 2)
    assert positions(log, ("b1", 3)) == [("b1", 4), ("b2", 1), ("b2", 2)]
    log.close()
    assert EventLog(tmp_path).damaged == 0


@pytest.mark.parametrize("seed", range(30))
def test_garbled_files_lose_only_garbled_lines(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    log = EventLog(tmp_path, **SMALL)
    fill(log, "b1", 30)
    log.close()
    for path in sorted(tmp_path.glob("*.jsonl")):
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(4)):
            place = rng.randrange(len(content))
            match rng.randrange(4):
                case 0:
                    content[place] = rng.randrange(256)
                case 1:
                    del content[place:]
                case 2:
                    content[place:place] = rng.randbytes(rng.randrange(50))
                case 3:
                    content[place:place] = bytes(content[: rng.randrange(len(content) + 1)])
            content = content or bytearray(b"\n")
        path.write_bytes(content)
    log = EventLog(tmp_path, **SMALL)
    before = positions(log, None)
    assert before == sorted(set(before))
    assert set(before) <= {("b1", seq) for seq in range(1, 31)}
    fill(log, "b2", 5)
    assert positions(log, None)[-5:] == [("b2", seq) for seq in range(1, 6)]
    log.recent("porch", "aaaaaaaa")
    log.close()


def test_lines_out_of_order_are_passed_over(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fill(log, "b1", 5)
    fill(log, "b2", 5)
    log.close()
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes() * 2)
    log = EventLog(tmp_path)
    assert log.damaged == 12
    assert len(positions(log, None)) == 10


def test_file_garbled_while_open_does_not_raise(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fill(log, "b1", 5)
    (path,) = tmp_path.glob("*.jsonl")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0
    path.write_bytes(content)
    assert len(positions(log, None)) == 4


@pytest.mark.parametrize("kind", STRANGE_FILES)
@pytest.mark.parametrize("name", ["events-000000000002.jsonl", "lock", "events"])
def test_nothing_in_the_place_of_a_file_of_the_log_stops_a_start_or_lets_it_wait(
    tmp_path: Path, kind: str, name: str
) -> None:
    folder = tmp_path / "events"
    if name != "events":
        log = EventLog(folder)
        fill(log, "b1", 5)
        log.close()
    path = folder if name == "events" else folder / name
    path.unlink(missing_ok=True)
    make_strange(path, kind)
    log = EventLog(folder)
    fill(log, "b2", 3)
    assert log.write_errors == 0
    assert positions(log, None)[-3:] == [("b2", 1), ("b2", 2), ("b2", 3)]
    log.close()
    again = EventLog(folder)
    assert len(positions(again, None)) == (3 if name == "events" else 8)
    assert again.damaged == 0
    again.close()


def test_of_damaged_segments_a_few_are_kept(tmp_path: Path) -> None:
    for number in range(1, 9):
        os.mkfifo(tmp_path / f"events-{number:012}.jsonl")
    log = EventLog(tmp_path)
    fill(log, "b1", 1)
    assert log.damaged == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "events-000000000009.jsonl", "lock", "segment.damaged-1", "segment.damaged-2",
        "segment.damaged-3",
    ]  # fmt: skip


def test_segment_with_a_tail_that_was_never_written_loses_the_tail_alone(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fill(log, "b1", 5)
    log.close()
    (path,) = tmp_path.glob("*.jsonl")
    os.truncate(path, SPARSE_BYTES)
    log = EventLog(tmp_path)
    assert log.damaged == 1
    assert len(positions(log, None)) == 5
    fill(log, "b2", 1)
    assert path.stat().st_size < 10_000
    assert len(positions(log, None)) == 6


def test_more_segments_than_the_log_may_hold_are_dropped_oldest_first(tmp_path: Path) -> None:
    log = EventLog(tmp_path, max_bytes=100_000, segment_bytes=1024)
    fill(log, "b1", 300)
    log.close()
    log = EventLog(tmp_path, **SMALL)
    kept = positions(log, None)
    assert kept == [("b1", seq) for seq in range(kept[0][1], 301)]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 4096


@pytest.mark.slow
def test_no_mutated_log_raises_or_invents_a_message(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.begin("b1")
    for seq in range(1, 40):
        log.append(event(seq, seq * 8000, "begin" if seq % 3 else "end"))
    log.close()
    log = EventLog(tmp_path)
    expected = {str(body) for body in bodies(log)}
    log.close()
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    for mutated in mutations(whole, 500, seed=17):
        path.write_bytes(mutated)
        log = EventLog(tmp_path)
        found = [str(body) for body in bodies(log)]
        assert set(found) <= expected
        assert len(set(found)) == len(found)
        log.published("porch", "aaaaaaaa")
        log.open_events()
        log.append(message(1, "b2", previous=0))
        assert positions(log, None)[-1] == ("b2", 1)
        log.close()


def bodies(log: EventLog) -> list[dict[str, Any]]:
    return [message.body for message in page(log, None).messages]


class BrokenDisk:
    """os.write that takes part of a line and fails, in one folder, while `is_broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.is_broken = False
        self._folder = folder
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        is_here = Path(os.readlink(f"/proc/self/fd/{fd}")).parent == self._folder
        return self._write(fd, data[:10] if self.is_broken and is_here else data)


def test_full_disk_keeps_messages_in_memory_and_writes_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    log = EventLog(tmp_path, now_s=lambda: now_s[0])
    fill(log, "b1", 3)
    disk = BrokenDisk(monkeypatch, tmp_path)
    disk.is_broken = True
    with caplog.at_level(logging.WARNING):
        for seq in range(4, 10):
            log.append(message(seq))
        assert len(caplog.records) == 1
        now_s[0] = 61.0
        log.append(message(10))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "5 more" in caplog.records[1].getMessage()
    assert log.write_errors == 7
    assert positions(log, ("b1", 2)) == [("b1", seq) for seq in range(3, 11)]
    assert "No space left on device" in str(log.outage.text)
    disk.is_broken = False
    log.retry()
    assert log.outage.text is not None, "one message that fits is no end of it"
    now_s[0] = 70.0
    with caplog.at_level(logging.WARNING):
        log.retry()
        log.retry()
    assert log.outage.text is None
    assert [record.getMessage() for record in caplog.records[2:]] == [
        f"event log {tmp_path} is written again after 61 s and 7 failures"
    ]
    log.close()
    log = EventLog(tmp_path)
    assert log.damaged == 0
    assert positions(log, None) == [("b1", seq) for seq in range(1, 11)]


def test_messages_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_UNWRITTEN", 5)
    log = EventLog(tmp_path)
    BrokenDisk(monkeypatch, tmp_path).is_broken = True
    fill(log, "b1", 20)
    assert log.dropped == 16
    assert log.replay(("b1", 3)) == TooOld(None if not positions(log, None) else ("b1", 15))
    assert positions(log, ("b1", 15)) == [("b1", seq) for seq in range(16, 21)]


def test_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    log = EventLog(folder, **SMALL)
    fill(log, "b1", 40)
    shutil.rmtree(folder)
    log.append(message(41))
    assert positions(log, None) == [("b1", 41)]
    shutil.rmtree(folder)
    assert positions(log, None) == []
    log.append(message(42))
    assert positions(log, None) == [("b1", 42)]
    assert log.write_errors == 0
    log.close()
    assert positions(EventLog(folder, **SMALL), None) == [("b1", 42)]


def test_folder_that_cannot_be_made_leaves_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = EventLog(tmp_path / "file" / "events")
    fill(log, "b1", 3)
    assert log.write_errors == 4
    assert positions(log, ("b1", 1)) == [("b1", 2), ("b1", 3)]


def test_second_process_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(StartupError, match="in use"):
        EventLog(tmp_path)
    log.close()
    EventLog(tmp_path).close()


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half of max_bytes"):
        EventLog(tmp_path, max_bytes=1000, segment_bytes=501)


def test_published_knows_events_and_gaps_of_one_epoch(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.begin("b1")
    log.append(event(1, 8000, "begin"))
    log.append(event(2, 16000, epoch="bbbbbbbb"))
    log.append(FeedMessage.of(gap_message(24000), Stamp("b1", 3, Moment(0, 0), previous=2)))
    log.close()
    log = EventLog(tmp_path)
    published = log.published("porch", "aaaaaaaa")
    begin, gap = event_message("idaaaaaaaa", at_sample=8000), gap_message(24000)
    assert published.identities == {begin.identity, gap.identity}
    assert log.recent("yard", "aaaaaaaa") == []


def test_recent_reads_no_further_back_than_needed(tmp_path: Path) -> None:
    log = EventLog(tmp_path, max_bytes=2_000_000, segment_bytes=40_000)
    log.begin("b1")
    for seq in range(1, 2001):
        log.append(event(seq, seq * 100))
    found = log.recent("porch", "aaaaaaaa", from_sample=190_000)
    seqs = [message.body["seq"] for message in found]
    assert seqs == list(range(seqs[0], 2001))
    assert 1500 < seqs[0] <= 1900
    assert len(log.recent("porch", "aaaaaaaa")) == 2000


def test_open_events_are_those_without_an_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.begin("b1")
    log.append(event(1, 8000, "begin"))
    log.append(event(2, 8000, "begin", epoch="bbbbbbbb"))
    log.append(event(3, 16000, "update", epoch="bbbbbbbb"))
    log.append(event(4, 24000, "end"))
    assert log.open_events() == []
    log.close()
    (left_open,) = EventLog(tmp_path).open_events()
    assert (left_open.id, left_open.at_sample) == ("idbbbbbbbb", 16000)


def test_what_the_disk_refused_is_in_the_log_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spare = tmp_path / "events", tmp_path / "spare.jsonl"
    disk = BrokenDisk(monkeypatch, folder)
    log = EventLog(folder, spare=spare)
    log.begin("b1")
    disk.is_broken = True
    for seq, kind in ((1, "begin"), (2, "update")):
        log.append(event(seq, seq * 8000, kind))
    log.release()  # as a kill would
    log = EventLog(folder, spare=spare)  # the disk is still full
    assert positions(log, None) == [("b1", 1), ("b1", 2)]
    assert [event.type for event in log.open_events()] == ["update"]
    log.begin("b2")
    log.append(message(1, "b2", previous=0))
    log.release()  # as a kill would
    disk.is_broken = False
    log = EventLog(folder, spare=spare)
    assert not spare.exists()
    log.close()
    log = EventLog(folder)
    assert positions(log, None) == [("b1", 1), ("b1", 2), ("b2", 1)]
    assert log.damaged == 0


def test_kill_between_the_log_and_the_spare_file_gives_no_message_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spare = tmp_path / "events", tmp_path / "spare.jsonl"
    disk = BrokenDisk(monkeypatch, folder)
    log = EventLog(folder, spare=spare)
    log.begin("b1")
    disk.is_broken = True
    for seq in range(1, 6):
        log.append(message(seq))
    left = spare.read_bytes()
    disk.is_broken = False
    log.retry()
    assert not spare.exists()
    log.release()  # as a kill would
    spare.write_bytes(left + left[:20])
    log = EventLog(folder, spare=spare)
    assert positions(log, None) == [("b1", seq) for seq in range(1, 6)]
    assert not spare.exists()


def test_spare_file_keeps_as_many_messages_as_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_UNWRITTEN", 10)
    folder, spare = tmp_path / "events", tmp_path / "spare.jsonl"
    disk = BrokenDisk(monkeypatch, folder)
    log = EventLog(folder, spare=spare)
    disk.is_broken = True
    for seq in range(1, 101):
        log.append(message(seq))
        assert len(spare.read_bytes().splitlines()) <= 20
    log.release()  # as a kill would
    assert positions(EventLog(folder, spare=spare), None) == [("b1", seq) for seq in range(91, 101)]


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_whatever_lies_at_the_spare_file_does_not_stop_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder, spare = tmp_path / "events", tmp_path / "spare.jsonl"
    make_strange(spare, kind)
    disk = BrokenDisk(monkeypatch, folder)
    log = EventLog(folder, spare=spare)
    disk.is_broken = True
    fill(log, "b1", 3)
    log.release()  # as a kill would
    disk.is_broken = False
    log = EventLog(folder, spare=spare)
    assert positions(log, None) == [("b1", seq) for seq in range(1, 4)]


def test_what_the_disk_refuses_to_sync_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path, **SMALL, spare=tmp_path / "spare")
    log.begin("b1")
    log.append(message(1))
    log.sync()

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    for seq in (2, 3):
        log.append(message(seq))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        patch.setattr(os, "fsync", broken)
        log.sync()
        assert log.outage.text is not None
        log.append(message(4))
        assert positions(log, None) == [("b1", seq) for seq in range(1, 5)]  # from memory
        assert (tmp_path / "spare").read_bytes().count(b"\n") == 3
    assert log.write_errors == 3
    log.append(message(5))
    log.sync()
    assert not (tmp_path / "spare").exists()
    log.release()
    log = EventLog(tmp_path, **SMALL)
    assert positions(log, None) == [("b1", seq) for seq in range(1, 6)]
    assert log.damaged == 0
