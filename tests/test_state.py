"""The state on the disk: whole or not there, and only for the training it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ast_stream.errors import AstStreamError, CheckpointError
from ast_stream.training.state import (
    METRICS_FILE,
    STATE_FILE,
    append_metrics,
    differences,
    load_state,
    read_metrics,
    save_state,
)

IDENTITY = {"recipe": {"steps": 10, "rate": 0.1}, "classes": ["Bark"], "data": {"clips": 4}}
STORED = '{"recipe": {"steps": 10, "rate": 0.1}, "classes": ["Bark"], "data": {"clips": 4}}'


def test_a_state_comes_back_for_the_same_training(tmp_path: Path) -> None:
    assert load_state(tmp_path, IDENTITY) is None
    save_state(tmp_path, {"step": 3, "model": {"w": torch.ones(2)}, "identity": STORED})
    state = load_state(tmp_path, IDENTITY)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["model"]["w"], torch.ones(2))


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    save_state(tmp_path, {"identity": STORED})
    now = {"recipe": {"steps": 10, "rate": 0.2}, "classes": ["Bark", "Rain"], "data": {"clips": 5}}
    with pytest.raises(CheckpointError) as caught:
        load_state(tmp_path, now)
    assert str(caught.value) == (
        f"{tmp_path / STATE_FILE}: expected the same training as was begun there, got other "
        'classes (["Bark"], now ["Bark", "Rain"]), data.clips (4, now 5), recipe.rate (0.1, now '
        "0.2); choose another folder or delete this one"
    )


def test_long_values_differ_by_name_alone() -> None:
    assert differences({"a": "x" * 64, "b": None}, {"a": "y" * 64, "b": None}) == ["a"]


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04 cut"])
def test_a_damaged_state_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="delete it to begin again"):
        load_state(tmp_path, IDENTITY)


@pytest.mark.usefixtures("small_files")
def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    save_state(tmp_path, {"step": 1, "identity": STORED})
    with pytest.raises(AstStreamError, match="the state before is kept, and the same command"):
        save_state(tmp_path, {"step": 2, "large": torch.rand(10_000), "identity": STORED})
    state = load_state(tmp_path, IDENTITY)
    assert state is not None
    assert state["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.usefixtures("small_files")
def test_a_first_state_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AstStreamError, match=r"state\.pt: cannot be written: .*; nothing kept"):
        save_state(tmp_path, {"large": torch.rand(10_000)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_metrics_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(" " * 4096)
    with pytest.raises(AstStreamError, match=r"metrics\.jsonl: cannot be written"):
        append_metrics(tmp_path, {"step": 1.0})


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 1.0})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 2.0, "lo')
    assert read_metrics(tmp_path) == [{"step": 1.0}]
