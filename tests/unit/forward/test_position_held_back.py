"""The position on disk stays behind what a broker may lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ast_stream.forward.positions import MAX_MARKS, PositionFile


class Broker:
    """Confirms at once, and is safe what was confirmed 5 s ago."""

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self.marks: list[str] = []

    @property
    def safe_s(self) -> float:
        return self._clock[0] - 5

    def mark(self, word: str) -> None:
        self.marks.append(word)

    def kept(self) -> list[str] | None:
        return None


def numbers(upto: int, path: Path) -> tuple[PositionFile, Broker]:
    """Return a file that was written each second, and the broker that has its marks."""
    clock = [100.0]
    broker = Broker(clock)
    positions = PositionFile(path, lambda: clock[0])
    for second in range(upto):
        clock[0] = 100.0 + second
        positions.save({"feed": ["boot", second]}, at_once=True, memory=broker)
    return positions, broker


def test_position_is_written_when_it_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "centre.json"
    positions, _ = numbers(10, path)
    assert json.loads(path.read_text())["sources"] == {"feed": ["boot", 4]}
    assert PositionFile(path).newest == {"feed": ["boot", 9]}
    positions.save({"feed": ["boot", 9]}, at_once=True)  # a broker that writes first
    assert json.loads(path.read_text())["sources"] == {"feed": ["boot", 9]}
    assert PositionFile(path).cursors == {"feed": ["boot", 9]}


def test_position_goes_back_to_the_newest_mark_that_the_broker_has(tmp_path: Path) -> None:
    path = tmp_path / "centre.json"
    _, broker = numbers(10, path)
    assert PositionFile(path).go_back(broker.marks) == {"feed": ["boot", 9]}
    assert PositionFile(path).go_back(broker.marks[3:8]) == {"feed": ["boot", 7]}
    assert PositionFile(path).go_back(broker.marks[:2]) == {"feed": ["boot", 4]}
    assert PositionFile(path).go_back([]) == {"feed": ["boot", 4]}
    series = broker.marks[0].split()[0]
    strange = ["", "x", f"{series} 999", f"{series} ²", f"{series} -1", "other 3"]
    assert PositionFile(path).go_back(strange) == {"feed": ["boot", 4]}


def test_numbers_of_marks_are_never_used_again(tmp_path: Path) -> None:
    path = tmp_path / "centre.json"
    _, broker = numbers(10, path)
    again = PositionFile(path)
    again.go_back([])
    other = Broker([0.0])
    again.save({"feed": ["boot", 5]}, at_once=True, memory=other)
    (new,) = other.marks
    assert new not in broker.marks
    assert int(new.split()[1]) > int(broker.marks[-1].split()[1])


def test_marks_are_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    clock = [0.0]

    class Never(Broker):
        safe_s = float("-inf")

    broker = Never(clock)
    positions = PositionFile(tmp_path / "centre.json", lambda: clock[0])
    for n in range(100):
        positions.save({"feed": n, "alerts": [n // 10]}, at_once=True, memory=broker)
    content: Any = json.loads((tmp_path / "centre.json").read_bytes())
    kept = [number for number, _ in content["marks"]["kept"]]
    assert len(kept) <= MAX_MARKS
    assert kept[-4:] == [97, 98, 99, 100]
    again = PositionFile(tmp_path / "centre.json")
    assert again.cursors == {}
    assert again.newest == {"feed": 99, "alerts": [9]}
    assert again.go_back(broker.marks[:96])["feed"] <= 95
