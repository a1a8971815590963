from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth
from ports import free_ports

from ast_stream.cli.app import run_command_line
from ast_stream.transport.allow_list import AllowedClient, changing_allow_list, read_allow_list


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run_command_line(["keys", *map(str, args)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_created_keys_are_private_and_their_secrets_are_never_shown(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o000)
    try:
        code, out, err = run(capsys, "create", "porch-box", "--dir", keys)
    finally:
        os.umask(before)
    assert code == 0
    assert out.splitlines() == [str(keys / "porch-box.key"), str(keys / "porch-box.key_secret")]
    _, secret = zmq.auth.load_certificate(keys / "porch-box.key_secret")
    assert secret is not None
    assert secret.decode() not in out + err
    assert stat.S_IMODE((keys / "porch-box.key_secret").stat().st_mode) == 0o600
    code, _, err = run(capsys, "create", "porch-box", "--dir", keys)
    assert code == 2
    assert "is there already" in err
    assert run(capsys, "create", "../porch", "--dir", keys)[0] == 2


def test_rights_are_given_changed_listed_and_taken(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "create", "porch-box", "--dir", keys)
    public = zmq.auth.load_certificate(keys / "porch-box.key")[0].decode()
    allowed = ("--allow-list", keys / "allowed.json")
    code, out, _ = run(capsys, "authorise", keys / "porch-box.key", "push:porch", *allowed)
    assert (code, out) == (0, "porch-box may: push:porch\n")
    run(capsys, "authorise", keys / "porch-box.key", "push:porch", "feed", *allowed)
    _, out, _ = run(capsys, "list", "--json", *allowed)
    (line,) = map(json.loads, out.splitlines())
    assert (line["name"], line["key"]) == ("porch-box", public)
    assert line["rights"] == ["push:porch", "feed"]
    _, out, _ = run(capsys, "list", *allowed)
    assert out.splitlines()[1].split()[0] == "porch-box"
    for named in ("porch-box", public, keys / "porch-box.key"):
        run(capsys, "authorise", "--name", "porch-box", *allowed, "--", public, "feed")
        assert run(capsys, "revoke", *allowed, "--", named)[0] == 0
        assert run(capsys, "list", "--json", *allowed)[1] == ""
    assert run(capsys, "revoke", "porch-box", *allowed)[0] == 2


def test_rights_that_are_replaced_are_named(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = ("--allow-list", keys / "allowed.json")
    run(capsys, "authorise", "0" * 40, "feed", "scores", "--name", "a", *allowed)
    _, out, _ = run(capsys, "authorise", "0" * 40, "push:porch", "--name", "a", *allowed)
    assert out == "a may: push:porch (was: feed, scores)\n"
    _, out, _ = run(capsys, "authorise", "0" * 40, "push:porch", "--name", "b", *allowed)
    assert out == "b may: push:porch (was: a, push:porch)\n"
    _, out, _ = run(capsys, "authorise", "0" * 40, "push:porch", "--name", "b", *allowed)
    assert out == "b may: push:porch\n"


def test_secret_key_is_refused_where_a_public_one_is_expected(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "create", "porch-box", "--dir", keys)
    secret, allow_list = keys / "porch-box.key_secret", keys / "allowed.json"
    code, _, err = run(capsys, "authorise", secret, "feed", "--allow-list", allow_list)
    assert code == 2
    assert "holds a secret key" in err
    assert "expected the public one, porch-box.key" in err
    assert not allow_list.exists()


def test_list_that_another_process_changes_is_left_to_it(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ("--allow-list", keys / "allowed.json")
    other = AllowedClient("other", "1" * 40, ("feed",), 0)
    with changing_allow_list(keys / "allowed.json") as clients:
        code, _, err = run(capsys, "authorise", "0" * 40, "feed", "--name", "a", *allowed)
        assert code == 3
        assert "in use by another process" in err
        clients.append(other)
    assert run(capsys, "authorise", "0" * 40, "feed", "--name", "a", *allowed)[0] == 0
    assert [client.name for client in read_allow_list(keys / "allowed.json")] == ["other", "a"]


def test_revoking_on_a_list_that_is_not_there_makes_none(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "revoke", "porch-box", "--allow-list", keys / "allowed.json")[0] == 2
    assert not keys.exists()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["0" * 40, "feed"], "--name: expected"),
        (["0" * 40, "listen", "--name", "a"], "expected a right"),
        (["nowhere.key", "feed"], "cannot read nowhere.key"),
        (["#" * 40, "feed", "--name", "a"], "expected a key in Z85"),
    ],
)
def test_what_cannot_be_authorised_is_explained(
    keys: Path, capsys: pytest.CaptureFixture[str], args: list[str], reason: str
) -> None:
    code, _, err = run(capsys, "authorise", *args, "--allow-list", keys / "allowed.json")
    assert code in (2, 3)
    assert reason in err
    assert not keys.exists()


def test_two_keys_never_share_a_name(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = ("--allow-list", keys / "allowed.json")
    assert run(capsys, "authorise", "0" * 40, "feed", "--name", "a", *allowed)[0] == 0
    code, _, err = run(capsys, "authorise", "1" * 40, "feed", "--name", "a", *allowed)
    assert code == 2
    assert "is the name of another key" in err


def test_sockets_of_libzmq_talk_with_the_keys(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("worker", "porch-box"):
        run(capsys, "create", name, "--dir", keys)
    server_public, server_secret = zmq.auth.load_certificate(keys / "worker.key_secret")
    endpoint = f"tcp://127.0.0.1:{free_ports()}"
    with (
        zmq.Context() as context,
        context.socket(zmq.PULL) as pull,
        context.socket(zmq.PUSH) as push,
    ):
        pull.curve_server, pull.curve_secretkey = True, server_secret
        pull.bind(endpoint)
        push.linger = 0
        push.curve_publickey, push.curve_secretkey = zmq.auth.load_certificate(
            keys / "porch-box.key_secret"
        )
        push.curve_serverkey = server_public
        push.connect(endpoint)
        push.send(b"hello")
        assert pull.poll(10_000)
        assert pull.recv() == b"hello"
