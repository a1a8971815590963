from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from page_process import PASSWORD, add_users

from ast_stream.cli import web as web_command
from ast_stream.cli.app import run_command_line
from ast_stream.errors import StartupError
from ast_stream.privacy.page_users import User, Users, changing_users, read_users

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    streams = [{"name": "porch", "source": {"type": "scene"}}]
    file.write_text(json.dumps({"state_dir": str(tmp_path / "state"), "streams": streams}))
    return file


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def users(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `ast-stream users`; return its exit code and what it said."""

    def run(*args: str, password: str = PASSWORD) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
        code = run_command_line(["users", *args, "-c", str(config)])
        return (code, *capsys.readouterr())

    return run


def test_users_are_added_changed_listed_and_removed(users: Run, config: Path) -> None:
    file = config.parent / "state/web/users.json"
    assert users("add", "anna", "listen", "view")[:2] == (0, "anna may: view, listen\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = read_users(file)["anna"]
    assert first.password_hash is not None
    assert first.password_hash.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert PasswordHasher().verify(first.password_hash, PASSWORD)
    said = "anna may: view, administrate (was: view, listen)\n"
    assert users("allow", "anna", "administrate", "view")[:2] == (0, said)
    assert users("passwd", "anna", password="another long one")[:2] == (
        0,
        "anna has another password\n",
    )
    second = read_users(file)["anna"]
    assert second.stamp != first.stamp
    assert users("add", "bob", "view", "--proxy-only")[0] == 0
    listed = users("list", "--json")[1].splitlines()
    assert [json.loads(line) for line in listed] == [
        {"name": "anna", "scopes": ["view", "administrate"], "has_password": True},
        {"name": "bob", "scopes": ["view"], "has_password": False},
    ]
    assert users("remove", "anna")[:2] == (0, "anna may do nothing any more\n")
    assert list(read_users(file)) == ["bob"]


@pytest.mark.parametrize(
    ("args", "password", "sentence"),
    [
        (("add", "an na", "view"), PASSWORD, "expected 1 to 64 of A-Z"),
        (("add", "anna", "vew"), PASSWORD, "got 'vew'; did you mean 'view'?"),
        (("add", "anna", "view"), "short", "expected 10 characters to 1024 bytes as a password"),
        (("add", "anna", "view"), "x" * 2000, "expected 10 characters to 1024 bytes"),
        (("add", "bob", "view"), PASSWORD, "there is a user bob already"),
        (("passwd", "bo"), PASSWORD, "there is no user 'bo'; did you mean 'bob'?"),
        (("remove", "nobody"), PASSWORD, "there is no user 'nobody'"),
    ],
)
def test_mistakes_are_refused_in_a_sentence_and_change_nothing(
    users: Run, config: Path, args: tuple[str, ...], password: str, sentence: str
) -> None:
    file = config.parent / "state/web/users.json"
    add_users(file, {"bob": ["view"]})
    before = file.read_bytes()
    code, _, said = users(*args, password=password)
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said
    assert password not in said
    assert file.read_bytes() == before


def test_a_missing_extra_is_a_sentence(users: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_command, "MODULES", ("no_such_module",))
    code, _, said = users("add", "anna", "view")
    assert code == 3
    assert "pip install 'ast-stream[web]'" in said


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        ('{"version": 1, "users": []}', 0o640, "expected mode 0600"),
        ("[]", 0o600, "expected an object of version 1"),
        ('{"version": 2, "users": []}', 0o600, "expected an object of version 1"),
        ('{"version": 1}', 0o600, "cannot be used"),
        ("not json", 0o600, "cannot be used"),
        (
            '{"version": 1, "users": [{"name": "a", "password_hash": "x", "scopes": []}]}',
            0o600,
            "expected one of argon2",
        ),
        (
            '{"version": 1, "users": [{"name": "a", "password_hash": null, "scopes": ["all"]}]}',
            0o600,
            "scopes of a: expected a list of view",
        ),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(
    tmp_path: Path, content: str, mode: int, sentence: str
) -> None:
    file = tmp_path / "users.json"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(StartupError, match=sentence):
        Users(file)


def test_changes_are_followed_and_damage_is_not(tmp_path: Path) -> None:
    now_s = [0.0]
    file = tmp_path / "users.json"
    add_users(file, {"anna": ["view"]})
    users = Users(file, lambda: now_s[0])
    with changing_users(file) as found:
        found["bob"] = User("bob", None, ("view",))
    assert users.get("bob") is None  # looked at once a second
    now_s[0] += 1
    assert users.get("bob") is not None
    file.write_text("{")
    now_s[0] += 1
    assert users.get("anna") is not None
    file.unlink()
    now_s[0] += 1
    assert users.get("anna") is None


@needs_root
def test_what_root_writes_belongs_to_the_owner_of_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 12_345, 12_346)
    add_users(state / "web/users.json", {"anna": ["view"]})
    for path in (state / "web", state / "web/users.json", state / "web/.users.json.lock"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12_345, 12_346)
