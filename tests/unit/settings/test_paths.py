"""Where the processes of one configuration meet."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from ast_stream.errors import ConfigError
from ast_stream.settings.load import parse_settings
from ast_stream.settings.paths import (
    MAX_IPC_PATH_BYTES,
    audio_endpoint,
    feed_endpoint,
    make_runtime_dir,
    metrics_address,
    query_endpoint,
    ring_endpoint,
    runtime_dir,
)
from ast_stream.settings.schema import Settings


def settings(**sections: object) -> Settings:
    stream = {"name": "porch", "source": {"type": "microphone"}}
    return Settings.model_validate({"streams": [stream], **sections})


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_the_configuration_comes_before_systemd_and_systemd_before_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_dir(settings()) == Path("/run/user/7/ast-stream")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ast-stream:/run/second")
    assert runtime_dir(settings()) == Path("/run/ast-stream")
    assert runtime_dir(settings(runtime_dir="/somewhere")) == Path("/somewhere")


def test_endpoints_are_sockets_in_the_folder_unless_set() -> None:
    found = settings(runtime_dir="/run/x", transport={"feed": "tcp://127.0.0.1:5556"})
    assert audio_endpoint(found) == "ipc:///run/x/audio.sock"
    assert feed_endpoint(found) == "tcp://127.0.0.1:5556"
    assert query_endpoint(found) == "ipc:///run/x/query.sock"
    assert ring_endpoint(found, "porch") == "ipc:///run/x/ring.porch.sock"


def test_asking_creates_nothing_and_making_creates_a_folder_for_the_group(tmp_path: Path) -> None:
    chosen = settings(runtime_dir=str(tmp_path / "a" / "b"))
    audio_endpoint(chosen)
    assert not (tmp_path / "a").exists()
    folder = make_runtime_dir(chosen)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert make_runtime_dir(chosen) == folder


def test_the_last_resort_is_a_private_folder_with_a_stable_name(tmp_path: Path) -> None:
    folder = runtime_dir(settings())
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert runtime_dir(settings()) == folder


@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_a_private_folder_that_others_could_have_made_is_refused(tmp_path: Path, trap: str) -> None:
    folder = runtime_dir(settings())
    if trap == "open":
        folder.chmod(0o770)
    else:
        folder.rmdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere") if trap == "link" else folder.write_text("")
    with pytest.raises(ConfigError, match=r"runtime_dir: .*ast-stream-"):
        runtime_dir(settings())


def test_a_path_too_long_for_a_socket_is_refused_with_its_length() -> None:
    fits = "/" + "d" * (MAX_IPC_PATH_BYTES - len("//audio.sock"))
    assert audio_endpoint(settings(runtime_dir=fits)).endswith("d/audio.sock")
    with pytest.raises(ConfigError, match="sockets of at most 107 bytes, got 108 bytes in"):
        audio_endpoint(settings(runtime_dir=fits + "d"))


def test_a_runtime_dir_too_long_for_its_sockets_is_a_problem_of_its_line(tmp_path: Path) -> None:
    fits = "/" + "d" * (MAX_IPC_PATH_BYTES - len("//ring.porch.sock"))
    text = "runtime_dir: {}\nstreams: [{{name: porch, source: {{type: microphone}}}}]\n"
    parse_settings(text.format(fits))
    with pytest.raises(ConfigError) as refused:
        parse_settings("\n" + text.format(fits + "d"), "a.yaml")
    assert str(refused.value).startswith("a.yaml:2: runtime_dir: expected a folder short enough")
    assert "got 108 bytes in" in str(refused.value)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot create .*file/inside"):
        make_runtime_dir(settings(runtime_dir=str(tmp_path / "file" / "inside")))


def test_each_process_shows_its_figures_on_a_port_of_its_own() -> None:
    streams = [{"name": name, "source": {"type": "microphone"}} for name in ("porch", "yard")]
    chosen = settings(streams=streams, metrics={"listen": "127.0.0.1:9464"})
    assert metrics_address(chosen, "worker") == ("127.0.0.1", 9464)
    assert metrics_address(chosen, "capture porch") == ("127.0.0.1", 9466)
    assert metrics_address(chosen, "capture yard") == ("127.0.0.1", 9467)
    assert metrics_address(settings(metrics={"listen": "[::1]:9000"}), "alerts") == ("::1", 9001)
    assert metrics_address(settings(), "worker") is None


@pytest.mark.parametrize("port", [0, 65_531, 65_535, 99_999])
def test_metrics_port_leaves_one_for_each_process(port: int) -> None:
    with pytest.raises(ValueError, match="expected a port from 1 to 65530"):
        settings(metrics={"listen": f"127.0.0.1:{port}"})
