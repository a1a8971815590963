"""Keys and the allow-list as files."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import zmq.auth
from damage import STRANGE_FILES, make_strange
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from ast_stream.errors import StartupError, UsageError
from ast_stream.transport.allow_list import AllowedClient, Rights, read_allow_list, write_allow_list
from ast_stream.transport.curve import make_key
from ast_stream.transport.keys import (
    KeyPair,
    decode_key,
    encode_z85,
    read_pair,
    read_public,
    write_pair,
)


@pytest.fixture
def pair() -> KeyPair:
    return make_key()


@given(st.binary(min_size=32, max_size=32))
def test_z85_is_that_of_zeromq(key: bytes) -> None:
    text = encode_z85(key)
    assert text == z85.encode(key).decode()
    assert decode_key(text) == key


@pytest.mark.parametrize("text", ["", "x" * 39, "x" * 41, "x" * 39 + "~", "#" * 40])
def test_what_is_no_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="expected a key") as caught:
        decode_key(text)
    assert not text or text not in str(caught.value)


def test_files_of_a_key_are_the_certificates_of_zeromq(tmp_path: Path, pair: KeyPair) -> None:
    public, secret = write_pair(tmp_path / "keys", "porch-box", pair)
    assert zmq.auth.load_certificate(public) == (pair.public.encode(), None)
    assert zmq.auth.load_certificate(secret) == (pair.public.encode(), pair.secret.encode())
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert pair.secret not in public.read_text()
    assert (read_public(public), read_public(secret)) == (pair.public, pair.public)
    assert read_pair(secret) == pair
    assert pair.secret not in repr(pair)


def test_a_key_of_pyzmq_can_be_read(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "porch-box")
    with pytest.raises(StartupError, match="expected mode 0600, got 0644"):
        read_pair(Path(secret))  # as pyzmq leaves it
    Path(secret).chmod(0o600)
    assert read_pair(Path(secret)).public == read_public(Path(public))


def test_a_key_is_never_overwritten(tmp_path: Path, pair: KeyPair) -> None:
    _, secret = write_pair(tmp_path, "worker", pair)
    with pytest.raises(UsageError, match="is there already"):
        write_pair(tmp_path, "worker", make_key())
    assert read_pair(secret) == pair


def test_the_credential_of_a_service_is_used_instead_of_the_file(
    tmp_path: Path, pair: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = write_pair(tmp_path, "worker", pair)
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "curve-server").write_bytes(secret.read_bytes())
    (folder / "curve-server").chmod(0o440)  # as systemd's are, with an ACL for the user
    secret.write_text("root's alone")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert read_pair(secret, "curve-server") == pair
    assert read_pair(folder / "curve-server") == pair, "also where it is named by its path"
    with pytest.raises(StartupError, match="holds none"):
        read_pair(secret, "curve-client")


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_whatever_lies_in_the_place_of_a_key_is_explained(tmp_path: Path, kind: str) -> None:
    make_strange(tmp_path / "worker.key_secret", kind)
    with pytest.raises(StartupError, match=r"secret key: .*worker\.key_secret"):
        read_pair(tmp_path / "worker.key_secret")


def test_rights_are_what_their_words_say() -> None:
    rights = Rights.of(["push:porch", "feed"])
    assert rights.may_push(b"porch")
    assert not rights.may_push(b"yard")
    assert rights.may("feed")
    assert not rights.may("audio")
    assert Rights.of(["push:*"]).may_push(b"yard")
    assert not Rights.of([]).may_push(b"*")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("fed", "did you mean 'feed'"),
        ("push:", "push:: expected"),
        ("push:A", "lower-case letters"),
    ],
)
def test_a_word_that_is_no_right_is_explained(word: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Rights.of([word])


def test_an_allow_list_is_read_as_it_was_written(tmp_path: Path, pair: KeyPair) -> None:
    path = tmp_path / "keys" / "allowed.json"
    assert read_allow_list(path) == []
    client = AllowedClient("porch-box", pair.public, ("push:porch", "feed"), 1_795_000_000 * 10**9)
    write_allow_list(path, [client])
    assert read_allow_list(path) == [client]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_an_allow_list_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "allowed.json"
    write_allow_list(path, [])
    path.chmod(0o666)
    with pytest.raises(StartupError, match="everybody may write"):
        read_allow_list(path)


@pytest.mark.parametrize("kind", sorted(set(STRANGE_FILES) - {"dangling link"}))
def test_whatever_lies_in_the_place_of_an_allow_list_is_explained(
    tmp_path: Path, kind: str
) -> None:
    make_strange(tmp_path / "allowed.json", kind)
    with pytest.raises(StartupError, match=r"allow-list: .*allowed\.json"):
        read_allow_list(tmp_path / "allowed.json")


def entry(**changed: object) -> dict[str, object]:
    whole = {"name": "a", "key": "0" * 40, "rights": ["feed"], "added": "2026-11-28T00:00:00Z"}
    return whole | changed


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"version": 2, "keys": []},
        {"version": 1},
        {"version": 1, "keys": [entry(), entry(name="b")]},
        {"version": 1, "keys": [entry(), entry(key="1" * 40)]},
        {"version": 1, "keys": [entry(key="short")]},
        {"version": 1, "keys": [entry(key=7)]},
        {"version": 1, "keys": [entry(rights="feed")]},
        {"version": 1, "keys": [entry(rights=["everything"])]},
        {"version": 1, "keys": [entry(name="\x1b")]},
        {"version": 1, "keys": [entry(added="yesterday")]},
        {"version": 1, "keys": [7]},
    ],
    ids=str,
)
def test_a_damaged_allow_list_lets_nobody_in(tmp_path: Path, body: object) -> None:
    path = tmp_path / "allowed.json"
    path.write_text(json.dumps(body))
    with pytest.raises(StartupError, match="cannot be used"):
        read_allow_list(path)
