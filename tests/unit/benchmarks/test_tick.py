"""`ast-stream bench tick` drives a real worker on a clock of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import save_tiny
from typer.testing import CliRunner

from ast_stream.cli.bench import app


def test_every_window_of_every_stream_is_scored_and_every_stage_timed(tmp_path: Path) -> None:
    arguments = ["tick", "--streams", "3", "--streams", "10", "--seconds", "1", "--hop", "0.25"]
    model = ["--model", str(save_tiny(tmp_path / "tiny"))]
    for more, scores_are_read in (
        (["--read", "scores", *model], True),
        (["--classes", "20"], False),
    ):
        result = CliRunner().invoke(app, [*arguments, *more, "--json"])
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)["timings"]
        assert [row["windows_per_s"] for row in rows] == [3 / 0.25, 10 / 0.25]
        for row in rows:
            stages = [value for name, value in row.items() if name.endswith("_ms")]
            assert all(value >= 0 for value in stages)
            assert row["asked_per_s"] == row["windows_per_s"]
            assert (row["messages_per_s"] > row["windows_per_s"]) == scores_are_read


def test_a_small_model_in_front_is_a_stage_of_its_own(tmp_path: Path) -> None:
    model, small = save_tiny(tmp_path / "tiny"), save_tiny(tmp_path / "small", seed=1)
    arguments = ["--model", str(model), "--cascade", str(small), "--hop", "0.25", "--json"]
    tick = ["tick", "--streams", "3", "--seconds", "2", *arguments]
    (row,) = json.loads(CliRunner().invoke(app, tick).stdout)["timings"]
    assert row["windows_per_s"] == 3 / 0.25
    assert 0 < row["asked_per_s"] <= row["windows_per_s"]
    assert row["small_model_ms"] > 0

    result = CliRunner().invoke(app, ["scan", "--minutes", "0.2", *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cascade"] == str(small)
    for row in found["timings"]:
        assert 0 < row["asked"] <= row["windows"]
