"""The state on the disk: whole or not there, and only for the training it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from damage import STRANGE_FILES, make_strange, mutations
from torch import nn

from ast_stream.errors import AstStreamError, CheckpointError
from ast_stream.training.state import (
    METRICS_FILE,
    STATE_FILE,
    append_metrics,
    differences,
    forget_metrics,
    load_state,
    read_metrics,
    save_state,
)

IDENTITY = {"recipe": {"steps": 10, "rate": 0.1}, "classes": ["Bark"], "data": {"clips": 4}}
STORED = '{"recipe": {"steps": 10, "rate": 0.1}, "classes": ["Bark"], "data": {"clips": 4}}'
FIELDS: dict[str, Any] = {
    "step": 0, "losses": [], "student": {}, "average": {}, "optimizers": [], "scaler": {},
    "identity": STORED,
}  # fmt: skip


def test_a_state_comes_back_for_the_same_training(tmp_path: Path) -> None:
    assert load_state(tmp_path, IDENTITY) is None
    save_state(tmp_path, FIELDS | {"step": 3, "student": {"w": torch.ones(2)}})
    state = load_state(tmp_path, IDENTITY)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["student"]["w"], torch.ones(2))


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    save_state(tmp_path, FIELDS)
    now = {"recipe": {"steps": 10, "rate": 0.2}, "classes": ["Bark", "Rain"], "data": {"clips": 5}}
    with pytest.raises(CheckpointError) as caught:
        load_state(tmp_path, now)
    assert str(caught.value) == (
        f"{tmp_path / STATE_FILE}: expected the settings of the training run there, got other "
        'classes (["Bark"], now ["Bark", "Rain"]), data.clips (4, now 5), recipe.rate (0.1, now '
        "0.2); choose another folder or delete this one"
    )


def test_long_values_differ_by_name_alone() -> None:
    assert differences({"a": "x" * 64, "b": None}, {"a": "y" * 64, "b": None}) == ["a"]


def real_state() -> dict[str, Any]:
    """A small model, its average and an optimizer that has made steps."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.rand(8, 16)).square().mean().backward()
        optimizer.step()
    weights = model.state_dict()
    optimizers = [optimizer.state_dict()]
    return FIELDS | {"step": 3, "student": weights, "average": weights, "optimizers": optimizers}


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04 cut"])
def test_a_damaged_state_is_set_aside_and_the_training_begins_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    assert load_state(tmp_path, IDENTITY) is None
    (record,) = caplog.records
    assert "cannot be used (its checksum is another than that of its content): kept as " in (
        record.getMessage()
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"{STATE_FILE}.damaged-1"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRANGE_FILES)
@pytest.mark.parametrize("name", [STATE_FILE, METRICS_FILE])
def test_nothing_in_the_place_of_a_state_stops_a_training_or_lets_it_wait(
    tmp_path: Path, kind: str, name: str
) -> None:
    make_strange(tmp_path / name, kind)
    assert load_state(tmp_path, IDENTITY) is None
    forget_metrics(tmp_path)
    save_state(tmp_path, real_state())
    append_metrics(tmp_path, {"step": 1.0})
    state = load_state(tmp_path, IDENTITY)
    assert state is not None
    assert state["step"] == 3
    assert read_metrics(tmp_path) == [{"step": 1.0}]


def test_no_training_goes_on_from_a_mutated_state(tmp_path: Path) -> None:
    save_state(tmp_path, real_state())
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    for mutated in mutations(whole, 300, seed=19):
        path.write_bytes(mutated)
        assert load_state(tmp_path, IDENTITY) is None
    path.write_bytes(whole)
    assert load_state(tmp_path, IDENTITY) is not None


def test_what_is_no_state_of_a_training_is_not_used_whatever_its_checksum(tmp_path: Path) -> None:
    for change in (
        {"step": -1},
        {"step": "3"},
        {"student": None},
        {"identity": "{"},
        {"losses": 1},
    ):
        save_state(tmp_path, FIELDS | change)
        assert load_state(tmp_path, IDENTITY) is None


def test_reports_that_are_none_are_left_out(tmp_path: Path) -> None:
    lines = ['{"step": 1.0}', "[]", '{"step": "x"}', '{"loss": 1.0}', "\0\0", "7", '{"step": 2.0}']
    (tmp_path / METRICS_FILE).write_text("\n".join(lines))
    assert read_metrics(tmp_path) == [{"step": 1.0}, {"step": 2.0}]


@pytest.mark.usefixtures("small_files")
def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    save_state(tmp_path, FIELDS | {"step": 1})
    with pytest.raises(AstStreamError, match="the state before is kept, and the same command"):
        save_state(tmp_path, FIELDS | {"step": 2, "student": {"w": torch.rand(10_000)}})
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
