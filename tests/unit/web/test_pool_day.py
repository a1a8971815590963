"""The coverage that the page shows of a pool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from coverage_spans import BEGAN_NS, span
from coverage_worker import answer_of, coverage_worker
from ports import free_ports

from ast_stream.messages.query import CoverageQuery
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE
from ast_stream.web.stored_data import StoredData

S = SAMPLE_RATE
UNTIL_NS = BEGAN_NS + 40 * NS_PER_SECOND


class Pool:
    """A fixed list of two workers, of which one is there."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        members = [
            {
                "name": name,
                "audio": "tcp://127.0.0.1:1",
                "rings": "tcp://127.0.0.1:1",
                "feed": "tcp://127.0.0.1:1",
                "query": query,
            }
            for name, query in (("one", endpoint), ("two", f"tcp://127.0.0.1:{free_ports()}"))
        ]
        file = folder / "config.yaml"
        file.write_text(
            json.dumps(
                {
                    "runtime_dir": str(folder / "run"),
                    "state_dir": str(folder / "state"),
                    "pool": {"name": "city", "members": members},
                }
            )
        )
        self.settings: Settings = load_settings(file)


@pytest.fixture
def asked() -> list[CoverageQuery]:
    return []


@pytest.fixture
def past(tmp_path: Path, asked: list[CoverageQuery]) -> Iterator[StoredData]:
    def answer(query: CoverageQuery) -> list[bytes]:
        asked.append(query)
        return answer_of([span(0, 10 * S), span(20 * S, 40 * S)])

    with coverage_worker(answer) as endpoint:
        yield StoredData(Pool(tmp_path, endpoint).settings)


def test_a_day_is_asked_of_each_worker_once_however_often_it_is_looked_at(
    past: StoredData, asked: list[CoverageQuery]
) -> None:
    found = past.coverage(BEGAN_NS, UNTIL_NS)
    assert past.coverage(BEGAN_NS, UNTIL_NS) is found
    assert [(query.since_ns, query.until_ns) for query in asked] == [(BEGAN_NS, UNTIL_NS)]
    assert found.unasked == {"two": "it does not answer"}
    assert found.streams["porch"].samples["listened"] == 30 * S
