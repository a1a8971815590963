"""What the how-to page says of job arrays and of reading results works as it stands there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import duckdb
import pytest
from archive_rows import make_archive, rows_of, scan

from ast_stream.archive.listing import ShardNumber

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "archive.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("queries")
    archive = make_archive(folder / "archive", n_recordings=6)
    for index in range(2):
        args = [archive, "--out", folder / "out", "--shard", f"{index}/2", "--part-recordings", 2]
        assert scan(checkpoint, *args) == 0
    return folder / "out"


def blocks(language: str, out: Path) -> list[str]:
    found = [text for kind, text in _BLOCK.findall(PAGE.read_text()) if kind == language]
    assert found
    return [text.replace("/data/events", str(out)) for text in found]


def test_the_queries_of_the_page_find_what_readers_find(out: Path) -> None:
    events, coverage = rows_of(out)
    statements = [one for text in blocks("sql", out) for one in text.split(";") if one.strip()]
    by_class, not_whole, by_site = (duckdb.connect().execute(one).fetchall() for one in statements)
    assert sum(row[1] for row in by_class) == len(events) > 10
    assert by_class[0][1] == max(row[1] for row in by_class)
    hours = sum(row["offset_s"] - row["onset_s"] for row in events) / 3600
    assert sum(row[2] for row in by_class) == pytest.approx(hours)
    assert sum(row[2] for row in not_whole) == sum(row["status"] != "ok" for row in coverage)
    (barks,) = [an_hour for site, kind, an_hour in by_site if (site, kind) == ("site-1", "bark")]
    inside = [row for row in coverage if row["file"].startswith("site-1/")]
    n_barks = sum(row["class"] == "bark" and row["file"].startswith("site-1/") for row in events)
    assert barks == pytest.approx(n_barks / sum(row["duration_s"] for row in inside) * 3600)


def test_the_program_of_the_page_runs(out: Path) -> None:
    names: dict[str, object] = {}
    for text in blocks("python", out):
        exec(text, names)
    events, _ = rows_of(out)
    counts = names["counts"]
    assert counts["bark"] == len(names["barks"])  # type: ignore[index, arg-type]
    assert counts.total() == len(events)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("engine", "environment"),
    [
        ("Slurm", {"SLURM_ARRAY_TASK_ID": "7"}),
        ("AWS Batch", {"AWS_BATCH_JOB_ARRAY_INDEX": "7"}),
        ("Google Cloud Batch", {"BATCH_TASK_INDEX": "7", "BATCH_TASK_COUNT": "100"}),
        ("Kubernetes", {"JOB_COMPLETION_INDEX": "7"}),
    ],
)
def test_the_command_of_a_job_array_names_a_shard(engine: str, environment: dict[str, str]) -> None:
    (line,) = re.findall(
        rf"^\| {engine}, .*\| `(ast-stream .*)` \|$", PAGE.read_text(), re.MULTILINE
    )
    command = line.replace("ast-stream", "printf '%s\\n'", 1)
    said = subprocess.run(
        ["sh", "-uc", command], env=environment, capture_output=True, text=True, check=True
    )
    words = said.stdout.splitlines()
    assert ShardNumber.parse(words[words.index("--shard") + 1]) == ShardNumber(7, 100)
    assert {"scan", "--out", "--json"} <= set(words)
