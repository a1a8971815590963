"""A worker takes the newest model that works, and knows when another one is to be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_stream.errors import CheckpointError
from ast_stream.fleet.model_folder import ModelFolder
from ast_stream.settings.chosen_model import folder_name
from ast_stream.settings.schema import Settings
from ast_stream.worker.model_choice import (
    MAX_TRIES,
    WORKS_AFTER_S,
    ModelChangedError,
    ModelChoice,
)

OLD, NEW = (f"sha256:{64 * letter}" for letter in "ab")


class Box:
    """A folder of two models, and workers that start in it."""

    def __init__(self, state_dir: Path) -> None:
        self.now_s = 0.0
        self.folder = ModelFolder(state_dir / "models")
        for content in (OLD, NEW):
            self.folder.path_of(content).mkdir(parents=True)
        self.settings = Settings.model_validate(
            {
                "streams": [{"name": "a", "source": {"type": "scene"}}],
                "state_dir": str(state_dir),
                "fleet": {"models": {"follow": True}},
                "forward": [{"name": "c", "type": "nats", "servers": ["nats://a"]}],
            }
        )

    def choice(self) -> ModelChoice:
        return ModelChoice(self.settings, "bundled", now_s=lambda: self.now_s)

    def path(self, content: str) -> str:
        return str(self.folder.path / folder_name(content))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_the_newest_choice_comes_first_and_the_configured_one_last(box: Box) -> None:
    assert box.choice().candidates() == ["bundled"]
    box.folder.activate(OLD)
    assert box.choice().candidates() == [box.path(OLD), "bundled"]
    box.folder.activate(NEW)
    assert box.choice().candidates() == [box.path(NEW), box.path(OLD), "bundled"]


def test_a_model_with_which_starts_do_not_last_is_left_out(box: Box) -> None:
    box.folder.activate(OLD)
    box.folder.activate(NEW)
    for _ in range(MAX_TRIES):
        choice = box.choice()
        assert choice.candidates()[0] == box.path(NEW)
        choice.starting(box.path(NEW))  # and is killed
    choice = box.choice()
    assert choice.candidates() == [box.path(OLD), "bundled"]
    choice.starting(box.path(OLD))
    choice.started()
    box.now_s += 5.0
    choice.poll()  # the link still leads to the one that was left out


def test_starts_that_last_are_not_counted(box: Box) -> None:
    box.folder.activate(NEW)
    for _ in range(2 * MAX_TRIES):
        choice = box.choice()
        choice.starting(choice.candidates()[0])
        choice.started()
        box.now_s += WORKS_AFTER_S + 1.0
        choice.poll()
    assert box.choice().candidates()[0] == box.path(NEW)


def test_a_worker_begins_again_when_the_link_leads_elsewhere(box: Box) -> None:
    box.folder.activate(OLD)
    choice = box.choice()
    choice.starting(box.path(OLD))
    choice.started()
    box.now_s += 2.0
    choice.poll()
    box.folder.activate(NEW)
    choice.poll()  # once a second
    box.now_s += 2.0
    with pytest.raises(ModelChangedError, match=folder_name(NEW)):
        choice.poll()


def test_a_worker_that_could_not_load_it_does_not_begin_again_for_it(box: Box) -> None:
    box.folder.activate(OLD)
    box.folder.activate(NEW)
    choice = box.choice()
    choice.starting(box.path(NEW))
    choice.failed(box.path(NEW), CheckpointError("damaged"))
    choice.starting(box.path(OLD))
    box.now_s += 2.0
    choice.poll()
    box.folder.restore(OLD)  # the follower returns: this is what is in use
    box.now_s += 2.0
    choice.poll()


def test_without_a_centre_nothing_is_looked_at(box: Box) -> None:
    box.folder.activate(NEW)
    alone = box.settings.model_copy(update={"fleet": type(box.settings.fleet)()})
    choice = ModelChoice(alone, "bundled", now_s=lambda: box.now_s)
    assert choice.candidates() == ["bundled"]
    box.now_s += 100.0
    choice.poll()
