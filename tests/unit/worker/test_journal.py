"""The journal survives what a disk, a kill and a stranger can do to it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from damage import STRANGE_FILES, make_strange, mutations
from loud_frames import loud_frames, noise_bursts
from reactive_model import tones_and_noise

from ast_stream.detect.detector import Detector
from ast_stream.detect.state import ClassState, DetectorState
from ast_stream.messages.codec import add_checksum
from ast_stream.model.tagger import Tagger
from ast_stream.runtime.files import MAX_ASIDE
from ast_stream.sample_clock import Anchor, SampleClock
from ast_stream.worker.journal import (
    SAVE_EVERY_S,
    SAVE_EVERY_SAMPLES,
    Journal,
    JournalFile,
    StreamRecord,
)

N_CLASSES = 5
EPOCH = "ab" * 16
RECORD = StreamRecord(
    epoch=EPOCH,
    detector=DetectorState(
        position=480_000,
        context_start=0,
        first_scored=16_000,
        classes={3: ClassState(hits=2**63, peak=0.91)},
    ),
    clock=[(0, 1_790_000_000_000_000_000, 5)],
)


def journal(path: Path, model: str = "m") -> JournalFile:
    return JournalFile(path, model, N_CLASSES)


@pytest.fixture(scope="module")
def real_records(tagger: Tagger) -> dict[str, StreamRecord]:
    """What a worker would journal of three streams in the midst of sounds."""
    detector = Detector(tagger, hop_s=0.25)
    records = {}
    for number, name in enumerate(("porch", "yard", "attic")):
        epoch = f"{number + 10:032x}"
        detector.open(name, epoch)
        pcm = tones_and_noise(9.0 + number, seed=number)
        detector.push(name, 0, pcm)
        detector.run()
        clock = SampleClock([Anchor(0, 1_790_000_000_000_000_000 + number, number)])
        records[name] = StreamRecord.of(epoch, detector.export(name), clock)
    assert any(record.detector.classes for record in records.values())
    return records


def test_what_was_saved_is_loaded_unchanged(tmp_path: Path) -> None:
    assert journal(tmp_path / "journal", "sha256:a").save({"porch": RECORD})
    loaded = journal(tmp_path / "journal", "sha256:a").load()
    assert loaded == {"porch": RECORD}
    assert loaded["porch"].position == 480_000


def test_state_of_a_detector_comes_back_to_the_last_bit(
    tmp_path: Path, real_records: dict[str, StreamRecord]
) -> None:
    assert JournalFile(tmp_path / "journal", "m", 99).save(real_records)
    loaded = JournalFile(tmp_path / "journal", "m", 99).load()
    assert {name: record.model_dump() for name, record in loaded.items()} == {
        name: record.model_dump() for name, record in real_records.items()
    }


def test_undecided_frames_come_back_to_the_last_bit_and_damaged_ones_do_not(tmp_path: Path) -> None:
    detector = Detector(loud_frames(), hop_s=0.5)
    detector.open("porch", RECORD.epoch)
    detector.push("porch", 0, noise_bursts(1)[0])
    detector.run()
    state = detector.export("porch")
    assert state.frames is not None
    assert state.frames.weights
    record = StreamRecord.of(RECORD.epoch, state, RECORD.sample_clock())
    assert JournalFile(tmp_path / "journal", "m", 3).save({"porch": record})
    loaded = JournalFile(tmp_path / "journal", "m", 3).load()["porch"]
    assert loaded.detector.frames == state.frames
    # of a model with other classes
    assert JournalFile(tmp_path / "journal", "m", 4).load() == {}


def test_nobody_but_the_worker_writes_its_journal(tmp_path: Path) -> None:
    before = os.umask(0o007)  # of the units
    try:
        journal(tmp_path / "journal").save({"porch": RECORD})
    finally:
        os.umask(before)
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o640


def test_missing_journal_is_a_fresh_start(tmp_path: Path) -> None:
    assert journal(tmp_path / "journal").load() == {}


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{", b"[]", b'{"v":1}', b"\xff\xfe", b'{"v":1,"model":3}', b"\0" * 99]
)
def test_damaged_journal_is_a_fresh_start_that_keeps_the_file_and_says_so(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert journal(path).load() == {}
    (record,) = caplog.records
    assert re.search(
        r"^worker journal \S+ cannot be used \(.+\): kept as journal\.damaged-1, ",
        record.getMessage(),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["journal.damaged-1"]


def test_of_damaged_journals_a_few_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for number in range(10):
        path.write_text(f"damage {number}")
        journal(path).load()
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == MAX_ASIDE
    assert {path.read_text() for path in kept} >= {"damage 9", "damage 8"}


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_nothing_in_the_place_of_a_journal_stops_a_start_or_lets_it_wait(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    make_strange(path, kind)
    assert journal(path).load() == {}
    assert len(caplog.records) == 1
    assert journal(path).save({"porch": RECORD})
    assert journal(path).load() == {"porch": RECORD}


def test_nothing_in_the_place_of_the_unfinished_journal_stops_writing(tmp_path: Path) -> None:
    for kind in STRANGE_FILES:
        path = tmp_path / kind / "journal"
        path.parent.mkdir()
        make_strange(path.with_name(".journal.unfinished"), kind)
        assert journal(path).save({"porch": RECORD})
        assert journal(path).load() == {"porch": RECORD}


@pytest.mark.slow
def test_no_mutated_journal_raises_and_no_mutated_record_is_used(
    tmp_path: Path, tagger: Tagger, real_records: dict[str, StreamRecord]
) -> None:
    path = tmp_path / "journal"
    n_classes = len(tagger.labels)
    JournalFile(path, "m", n_classes).save(real_records)
    whole = path.read_bytes()
    expected = JournalFile(path, "m", n_classes).load()
    n_used = 0
    for mutated in mutations(whole, 600, seed=13):
        path.write_bytes(mutated)
        found = JournalFile(path, "m", n_classes).load()
        assert all(expected[name] == record for name, record in found.items())
        n_used += len(found)
        detector = Detector(tagger, hop_s=0.25)
        for name, record in found.items():
            detector.resume(name, record.epoch, record.position, record.detector)
    assert n_used > 600  # damage to one record costs no other


def with_checksum(line: dict[str, Any]) -> bytes:
    """A forged line: what the checksum cannot tell, the checks of each field must."""
    return add_checksum(json.dumps(line).encode())


def set_at(line: dict[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(line))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


IMPOSSIBLE: list[Any] = [
    None, True, -2, 2**54, 10**40, 1e300, -0.5, float("nan"), float("inf"), "7", [], {}, [[1]],
]  # fmt: skip


def test_records_of_impossible_values_are_not_used_whatever_their_checksum(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    journal(path).save({"porch": RECORD})
    stream_line, last_line = path.read_bytes().splitlines(keepends=True)
    line = json.loads(stream_line)
    del line["crc"]
    fields = list(ClassState.model_fields)
    line = set_at(line, ("record", "detector", "classes", "3"), ClassState().model_dump())
    places = [
        ("v",), ("record",), ("record", "epoch"), ("record", "detector"),
        ("record", "clock"), ("record", "detector", "position"),
        ("record", "detector", "context_start"), ("record", "detector", "first_scored"),
        ("record", "detector", "classes"),
        *(("record", "detector", "classes", "3", field) for field in fields),
    ]  # fmt: skip
    n_tried = 0
    for place in places:
        for value in IMPOSSIBLE:
            changed = set_at(line, place, value)
            path.write_bytes(with_checksum(changed) + last_line)
            for name, record in journal(path).load().items():
                # what is used is what was written: nothing is guessed
                assert place[-1] not in ("epoch", "detector")
                found = json.loads(record.model_dump_json())
                inner = found
                for key in place[1:]:
                    inner = inner[key]
                assert (name, inner) == ("porch", value)
                n_tried += 1
    assert n_tried < 30  # True of a flag and the like


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("stream",), "Not A Name"),
        (("stream",), "../../etc"),
        (("record", "epoch"), "xyz"),
        (("record", "clock"), [[5, 5], [3, 3]]),
        (("record", "clock"), [[0, 10**19]]),
        (("record", "clock"), [[n, n] for n in range(300)]),
        (("record", "detector", "position"), 2**53),  # in the year 19 000
        (("record", "detector", "context_start"), 480_001),
        (("record", "detector", "classes"), {str(N_CLASSES): {"peak": 0.5}}),
        (("record", "detector", "classes"), {"-1": {"peak": 0.5}}),
        (("record", "detector", "classes"), {"3": {"is_published": True}}),
        (("record", "detector", "classes"), {"3": {"is_active": True}}),
        (("record", "detector", "classes"), {"3": {"unknown": 1}}),
    ],
)
def test_record_that_makes_no_sense_is_not_used(
    tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    path = tmp_path / "journal"
    journal(path).save({"porch": RECORD, "yard": RECORD})
    first, second, last = path.read_bytes().splitlines(keepends=True)
    line = json.loads(first)
    del line["crc"]
    path.write_bytes(with_checksum(set_at(line, place, value)) + second + last)
    assert journal(path).load() == {"yard": RECORD}


def test_a_stream_that_is_missing_from_the_file_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    journal(path).save({"porch": RECORD, "yard": RECORD})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    assert journal(path).load() == {"yard": RECORD}
    assert "expected 2 streams, got 1" in caplog.text


def test_journal_of_another_model_is_not_used(tmp_path: Path) -> None:
    journal(tmp_path / "journal", "sha256:a").save({"porch": RECORD})
    assert journal(tmp_path / "journal", "sha256:b").load() == {}


@pytest.mark.usefixtures("small_files")
def test_failed_write_is_counted_logged_once_and_leaves_no_old_positions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    one = journal(path)
    assert one.save({"porch": RECORD})
    many = {f"stream-{number}": RECORD for number in range(50)}  # more than a file may hold
    assert one.save(many)
    assert one.save(many)
    assert one.errors == 2
    assert caplog.text.count("cannot be written") == 1
    assert journal(path).load() == {}
    assert one.save({"porch": RECORD})
    assert journal(path).load() == {"porch": RECORD}
    assert [found.name for found in tmp_path.iterdir()] == ["journal"]


def test_old_positions_that_cannot_be_removed_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.mkdir()  # neither replaced by a file nor unlinked
    assert not journal(path).save({"porch": RECORD})


class DecidedStream:
    """A stream whose audio is decided up to a position, as the journal sees it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.position: int | None = 0
        self.acknowledged: list[int] = []
        self._path = path

    def record(self) -> StreamRecord | None:
        if self.position is None:
            return None
        state = RECORD.detector.model_copy(update={"position": self.position})
        return RECORD.model_copy(update={"detector": state})

    def acknowledge(self, stop: int) -> None:
        journalled = journal(self._path).load()
        assert not self._path.is_file() or journalled[self.name].position == stop
        self.acknowledged.append(stop)


def save_if_due(keeper: Journal, stream: DecidedStream, now_s: float) -> None:
    if keeper.is_due([stream], now_s):
        keeper.save([stream], now_s)


def test_audio_is_acknowledged_once_a_second_and_only_after_it_was_journalled(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    stream = DecidedStream("porch", path)
    keeper = Journal(journal(path), max_streams=4, now_s=0.0)
    for tick in range(1, 31):
        stream.position = 1600 * tick
        save_if_due(keeper, stream, 0.1 * tick)
    assert len(stream.acknowledged) == round(3.0 / SAVE_EVERY_S)
    stream.position = 1600 * 30 + SAVE_EVERY_SAMPLES  # a source faster than real time
    save_if_due(keeper, stream, 3.05)
    assert stream.acknowledged[-1] == stream.position
    stream.position = None  # its end is being scored
    save_if_due(keeper, stream, 9.0)
    assert len(stream.acknowledged) == 4


def test_nothing_is_acknowledged_while_a_journal_of_older_positions_is_left_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    stream = DecidedStream("porch", path)
    keeper = Journal(journal(path), max_streams=4, now_s=0.0)
    path.mkdir()  # neither replaced by a file nor unlinked
    stream.position = 1600
    keeper.save([stream], 1.0)
    assert stream.acknowledged == []
    path.rmdir()
    keeper.save([stream], 2.0)
    assert stream.acknowledged == [1600]


def test_record_of_a_stream_that_is_away_stays_until_it_is_claimed_or_the_model_changes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    journal(path).save({"porch": RECORD, "yard": RECORD})
    keeper = Journal(journal(path), max_streams=4, now_s=0.0)
    assert keeper.claim("porch") == RECORD
    assert keeper.claim("porch") is None
    keeper.save([], 1.0)
    assert journal(path).load() == {"yard": RECORD}
    keeper.change_model("other")
    keeper.save([], 2.0)
    assert journal(path, "other").load() == {}
    assert keeper.claim("yard") is None
