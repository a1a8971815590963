"""The ledger on disk: nothing is lost by a kill, little room is taken, damage stays where it is."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from coverage_spans import span
from damage import STRANGE_FILES, make_strange, mutations

from ast_stream.coverage.ledger import WRITE_EVERY_S, CoverageLedger, read_spans
from ast_stream.coverage.spans import Kind, Span
from ast_stream.errors import StartupError

SMALL: dict[str, Any] = {"max_bytes": 16_384, "segment_bytes": 4_096}


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def opened(folder: Path, clock: Clock | None = None, **sizes: int) -> CoverageLedger:
    return CoverageLedger(folder / "coverage", folder / "unwritten", clock or Clock(), **sizes)


def read(folder: Path, stream: str = "porch") -> list[Span]:
    return read_spans(folder / "coverage", folder / "unwritten").get(stream, [])


def lines(folder: Path) -> list[bytes]:
    return [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()
    ]


def test_what_was_saved_survives_a_kill_and_what_is_derived_again_is_left_out(
    tmp_path: Path,
) -> None:
    ledger = opened(tmp_path)
    ledger.add(span(0, 16_000))
    ledger.save()
    assert not list((tmp_path / "coverage").glob("*.jsonl"))  # it goes on
    ledger.release()
    ledger = opened(tmp_path)
    ledger.add(span(8_000, 16_000))  # from its journal, a little older
    ledger.add(span(16_000, 20_000))
    ledger.add(span(20_000, 30_000, "gated"))
    ledger.save()
    assert read(tmp_path) == [span(0, 20_000), span(20_000, 30_000, "gated")]
    ledger.close()
    assert read(tmp_path) == [span(0, 20_000), span(20_000, 30_000, "gated")]
    assert (tmp_path / "unwritten").read_bytes() == b""


def test_span_that_goes_on_is_written_once_in_a_while_and_read_as_one(tmp_path: Path) -> None:
    clock = Clock()
    ledger = opened(tmp_path, clock)
    seconds = round(3 * WRITE_EVERY_S) + 10
    for second in range(seconds):
        clock.now_s = float(second)
        ledger.add(span(16_000 * second, 16_000 * (second + 1)))
        ledger.save()
    assert len(lines(tmp_path / "coverage")) == 3
    ledger.release()
    assert read(tmp_path) == [span(0, 16_000 * seconds)]


def test_power_cut_costs_at_most_what_was_not_written_yet(tmp_path: Path) -> None:
    clock = Clock()
    ledger = opened(tmp_path, clock)
    for second in range(1000):
        clock.now_s = float(second)
        ledger.add(span(16_000 * second, 16_000 * (second + 1)))
        ledger.save()
    ledger.release()
    (tmp_path / "unwritten").unlink()  # the runtime folder is memory
    (found,) = read(tmp_path)
    assert found.start_sample == 0
    assert 1000 - found.stop_sample / 16_000 <= WRITE_EVERY_S


def test_full_segment_is_merged_so_that_only_changes_take_room(tmp_path: Path) -> None:
    clock = Clock()
    ledger = opened(tmp_path, clock, **SMALL)
    for turn in range(2000):
        clock.now_s += WRITE_EVERY_S
        ledger.add(span(100 * turn, 100 * turn + 100))
        ledger.add(span(100 * turn, 100 * turn + 100, stream="yard"))
        ledger.save()
        assert read(tmp_path) == [span(0, 100 * turn + 100)]
    assert len(list((tmp_path / "coverage").glob("*.jsonl"))) == 1
    ledger.close()
    ledger = opened(tmp_path, clock, **SMALL)
    ledger.add(span(200_000, 200_100))
    ledger.close()
    assert read(tmp_path) == [span(0, 200_100)]


def test_ledger_of_many_changes_is_bounded_and_the_oldest_are_forgotten(tmp_path: Path) -> None:
    ledger = opened(tmp_path, **SMALL)
    kinds: list[Kind] = ["listened", "gated"]
    for turn in range(1000):
        ledger.add(span(100 * turn, 100 * turn + 100, kinds[turn % 2]))
        ledger.save()
    ledger.close()
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "coverage").glob("*.jsonl"))
    assert n_bytes <= SMALL["max_bytes"]
    spans = read(tmp_path)
    assert spans[0].start_sample > 0
    assert spans[-1].stop_sample == 100_000
    assert all(one.samples == 100 for one in spans)
    assert sum(one.samples for one in spans) == 100_000 - spans[0].start_sample


def test_killed_between_any_two_steps_it_is_complete(tmp_path: Path) -> None:
    rng = random.Random(3)
    clock = Clock()
    ledger = opened(tmp_path, clock, **SMALL)
    kinds: list[Kind] = ["listened", "gated", "degraded"]
    journalled = at = 0
    whole: list[Span] = []
    for _ in range(600):
        stop = at + rng.randint(1, 400)
        # what is decided does not depend on the kill: the same again for the same samples
        kind = kinds[(at // 5000) % 3]
        whole.append(span(at, stop, kind))
        ledger.add(whole[-1])
        at = stop
        clock.now_s += rng.uniform(0, WRITE_EVERY_S / 3)
        if rng.random() < 0.5:
            ledger.save()
            if rng.random() < 0.8:  # killed before the journal else
                journalled = at
        if rng.random() < 0.1:
            ledger.release()
            ledger = opened(tmp_path, clock, **SMALL)
            again = [one.within(journalled) for one in whole]
            for part in again:
                if part is not None:
                    ledger.add(part)
    ledger.close()
    spans = read(tmp_path)
    edges = [spans[0].start_sample, *(one.stop_sample for one in spans)]
    assert [one.start_sample for one in spans] == edges[:-1]
    assert edges[-1] == at


def test_disk_that_refuses_for_a_while_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(tmp_path)
    folder = tmp_path / "coverage"
    folder.rename(tmp_path / "away")
    folder.touch()  # no folder: nothing can be made in it
    for turn in range(20):
        ledger.add(span(100 * turn, 100 * turn + 100, "gated" if turn % 2 else "listened"))
        ledger.save()
    assert "cannot be written" in (ledger.outage.text or "")
    assert sum(one.samples for one in read(tmp_path)) == 2000
    folder.unlink()
    (tmp_path / "away").rename(folder)
    ledger.close()
    assert len(lines(folder)) == 20
    assert sum(one.samples for one in read(tmp_path)) == 2000


def test_only_one_process_writes_and_any_may_read(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.add(span(0, 100))
    ledger.save()
    assert read(tmp_path) == [span(0, 100)]
    with pytest.raises(StartupError, match="in use by another process"):
        opened(tmp_path)
    ledger.close()


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_whatever_lies_in_the_place_of_its_files_it_starts_and_writes(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "coverage").mkdir()
    make_strange(tmp_path / "coverage" / "coverage-000000000001.jsonl", kind)
    make_strange(tmp_path / "unwritten", kind)
    ledger = opened(tmp_path)
    ledger.add(span(0, 100))
    ledger.close()
    assert read(tmp_path) == [span(0, 100)]


def test_damaged_lines_cost_the_spans_in_them_and_no_others(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    whole = [span(100 * n, 100 * n + 100, "gated" if n % 2 else "listened") for n in range(12)]
    for one in whole:
        ledger.add(one)
    ledger.close()
    (path,) = (tmp_path / "coverage").glob("*.jsonl")
    content = path.read_bytes()
    for damaged in mutations(content, 200, seed=7):
        path.write_bytes(damaged)
        assert all(one in whole for one in read(tmp_path))
        ledger = opened(tmp_path)
        ledger.release()


def test_nothing_is_read_where_nothing_was_written(tmp_path: Path) -> None:
    assert read_spans(tmp_path / "coverage", tmp_path / "unwritten") == {}


def test_spans_that_the_disk_refuses_to_sync_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(tmp_path)
    ledger.add(span(0, 16_000))
    ledger.add(span(16_000, 20_000, "gated"))

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        ledger.save()
        assert ledger.outage.text is not None
        assert read(tmp_path) == [span(0, 16_000), span(16_000, 20_000, "gated")]
    ledger.save()
    ledger.release()
    (tmp_path / "unwritten").unlink()  # as a power cut does where it is in memory
    assert read(tmp_path) == [span(0, 16_000)]
