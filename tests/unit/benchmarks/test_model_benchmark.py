"""`ast-stream bench model` times all ways in turn and says how far their scores differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_model import save_tiny
from typer.testing import CliRunner

from ast_stream.benchmarks.model import AST_BASE, beginnings, random_base, time_model
from ast_stream.cli.bench import app
from ast_stream.errors import UsageError
from ast_stream.model.runners import cpu_has_bf16, cpu_has_int8


def test_every_way_is_timed_for_every_batch_beside_transformers(tmp_path: Path) -> None:
    tiny = str(save_tiny(tmp_path / "tiny"))
    arguments = ["model", "--model", tiny, "--rounds", "2", "--batch", "1", "--batch", "3"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["timings"]
    precisions = ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]
    names = [f"transformers sdpa {precision}" for precision in precisions]
    assert [row["name"] for row in rows if row["batch"] == 3][: len(names)] == names
    assert len(rows) == 2 * (2 * len(precisions) + cpu_has_int8())
    for row in rows:
        assert 0 < row["low_ms"] <= row["ms"] <= row["high_ms"]
        assert row["max_error"] < (1e-4 if row["name"].endswith("fp32") else 0.1)
    assert rows[0]["times_as_fast"] == 1.0


def test_rounds_go_through_all_ways_in_turn(tmp_path: Path) -> None:
    rounds: list[int] = []
    time_model(str(save_tiny(tmp_path)), [1, 2], 3, "cpu", lambda: rounds.append(1))
    assert len(rounds) == 6


def test_ast_base_has_the_shape_of_the_published_models() -> None:
    base = random_base()
    assert AST_BASE == "ast-base"
    assert (base.dims.n_tokens, base.dims.n_layers, len(base.labels)) == (1214, 12, 527)


def test_recordings_are_scored_from_theirbeginnings(tmp_path: Path) -> None:
    tiny = str(save_tiny(tmp_path / "tiny"))
    sounds = np.random.default_rng(0).standard_normal((2, 20_000)) * 0.1
    for number, sound in enumerate(sounds):  # longer than a window, and shorter
        soundfile.write(tmp_path / f"{number}.wav", sound[: 20_000 - 12_000 * number], 16_000)
    rows = time_model(tiny, [3], 1, "cpu", lambda: None, tmp_path)
    for row in rows:
        assert row.max_error < (1e-4 if row.name.endswith("fp32") else 0.05)
        assert row.top_5 == 1.0  # of three classes
    assert beginnings(tmp_path, 16_000).shape == (2, 16_000)
    assert not beginnings(tmp_path, 16_000)[1, 8_000:].any()


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="expected a folder with recordings"):
        time_model(str(save_tiny(tmp_path)), [1], 1, "cpu", lambda: None, tmp_path / "empty")
