"""What `ast-stream run` makes of settings that it reads again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_stream.cli import run
from ast_stream.cli.app import run_command_line
from ast_stream.errors import ConfigError
from ast_stream.runtime.supervisor import ChildSpec
from ast_stream.settings.load import LoadedSettings, parse_text


class _Reloaded:
    def __init__(self) -> None:
        self.specs: list[ChildSpec] | None = None

    def reload(self, specs: list[ChildSpec]) -> None:
        self.specs = specs


def _settings(names: str, max_streams: int, workers: str) -> LoadedSettings:
    streams = "".join(
        f"  - {{name: {name}, source: {{type: url, url: rtsp://{name}}}}}\n" for name in names
    )
    return parse_text(f"model: {{max_streams: {max_streams}}}\nstreams:\n{streams}{workers}")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        (
            "workers: {x: {streams: [a]}, y: {streams: [b]}}",
            "workers: {x: {streams: [a]}, y: {streams: [b, c, d]}}",
        ),
    ],
)
def test_streams_for_which_a_running_worker_has_no_room_are_refused_as_by_that_worker(
    before: str, after: str
) -> None:
    in_use, new = _settings("ab", 2, before), _settings("abcd", 4, after)
    supervisor = _Reloaded()
    with pytest.raises(ConfigError, match=r"expected at most 2 until the next restart .*got [34]"):
        run._follow(new, in_use.settings, Path("config.yaml"), supervisor)  # type: ignore[arg-type]
    assert supervisor.specs is None


@pytest.mark.parametrize("folder", ["state", "state/front"])
def test_state_of_a_later_version_is_refused_before_a_process_starts(
    folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"state_dir: {tmp_path}/state\nruntime_dir: {tmp_path}/run\n"
        "streams: [{name: a, source: {type: scene}}]\nworkers: {front: {streams: [a]}}\n"
    )
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "format.json").write_text('{"format": 99, "version": "9.1.0"}')
    assert run_command_line(["run", "-c", str(config)]) == 78
    said = capfd.readouterr().err
    assert said.count("has the format 99 of ast-stream 9.1.0") == 1
    assert "started" not in said
