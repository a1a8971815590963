from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ast_stream.cli.app import run_command_line
from ast_stream.settings.load import load_file, load_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import MicrophoneSource, StreamSettings

CONFIGS = Path(__file__).parents[3] / "configs"
DEFAULT = CONFIGS / "default.yaml"
RULES = set(CONFIGS.glob("alerts*.yaml"))  # rule files have tests of their own
DEFAULT_STREAM = StreamSettings(name="microphone", source=MicrophoneSource(type="microphone"))


def keys_of(model: BaseModel, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Return the path of every key below `model`; free mappings and lists of text are leaves."""
    found: set[tuple[str | int, ...]] = set()
    for name in type(model).model_fields:
        value: Any = getattr(model, name)
        found.add((*path, name))
        if isinstance(value, BaseModel):
            found |= keys_of(value, (*path, name))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                found |= {(*path, name, index)}
                found |= (
                    keys_of(item, (*path, name, index)) if isinstance(item, BaseModel) else set()
                )
    return found


@pytest.mark.parametrize(
    "path",
    sorted(set(CONFIGS.rglob("*.yaml")) - RULES),
    ids=lambda path: str(path.relative_to(CONFIGS)),
)
def test_every_configuration_that_is_shipped_loads(path: Path) -> None:
    assert load_settings(path).streams


def test_shipped_service_means_what_it_says_together_with_the_shipped_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command_line(["check-config", "--no-speed", str(CONFIGS / "service.yaml")]) == 0
    assert "warning" not in capsys.readouterr().out


def test_there_are_examples() -> None:
    assert len(list(CONFIGS.glob("examples/*.yaml"))) >= 4


def test_default_configuration_equals_the_defaults() -> None:
    assert load_settings(DEFAULT) == Settings(streams=[DEFAULT_STREAM])


def test_default_configuration_shows_every_key() -> None:
    loaded = load_file(DEFAULT)
    assert set(loaded.lines) == keys_of(loaded.settings)


def test_default_configuration_explains_every_key_on_its_line() -> None:
    lines = DEFAULT.read_text().splitlines()
    for path, number in load_file(DEFAULT).lines.items():
        assert "#" in lines[number - 1], f"{path} has no comment on line {number}"


def test_default_configuration_tells_the_unit_of_every_duration_and_level() -> None:
    lines = DEFAULT.read_text().splitlines()
    for path, number in load_file(DEFAULT).lines.items():
        unit = {"s": "second", "dbfs": "dBFS"}.get(str(path[-1]).rsplit("_", 1)[-1])
        assert unit is None or unit in lines[number - 1], f"{path} names no unit on line {number}"


def test_shipped_configurations_fit_a_terminal() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        too_long = [line for line in path.read_text().splitlines() if len(line) > 100]
        assert too_long == [], path
