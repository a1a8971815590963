from __future__ import annotations

import pytest

from ast_stream.errors import ConfigError
from ast_stream.settings.fleet import BoxIdentity, box_identity, host_name
from ast_stream.settings.load import parse_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import kept

START = "streams: [{name: porch, source: {type: scene}}]\n"
SERVERS = "servers: ['nats://hub:4222']"


def settings(text: str) -> Settings:
    return parse_settings(START + text)


def test_nothing_is_forwarded_unless_it_is_asked_for() -> None:
    assert settings("").forward == []
    assert not any(kind.writer == "forward" for kind in kept(settings("")))


def test_a_box_is_called_as_its_host_unless_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Attic_Pi.example.org")
    assert box_identity(settings("")) == BoxIdentity("home", "attic-pi")
    assert box_identity(settings("fleet: {site: farm, box: b1}")).key == "farm.b1"
    monkeypatch.setattr("socket.gethostname", lambda: "ß-" + "x" * 100)
    assert len(host_name()) <= 63
    monkeypatch.setattr("socket.gethostname", lambda: "___")
    assert host_name() == "box"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"forward: [{{name: a, type: nats, {SERVERS}}}, {{name: a, type: nats, {SERVERS}}}]",
         "forward[1].name: expected different names, got 'a' twice"),
        (f"forward: [{{name: A, type: nats, {SERVERS}}}]", "expected lower-case letters"),
        (f"forward: [{{name: a, type: nats, {SERVERS}, prefix: 'a.b'}}]", "forward[0].prefix"),
        ("forward: [{name: a, type: nats, servers: ['http://hub']}]", "nats or tls scheme"),
        ("forward: [{name: a, type: nats, servers: []}]", "forward[0].servers"),
        (f"forward: [{{name: a, type: nats, {SERVERS}, username: x}}]",
         "expected username and password_file or password_env, got one alone"),
        (f"forward: [{{name: a, type: nats, {SERVERS}, token_env: X, nkey_file: y}}]",
         "expected one way to log in, got token_file or token_env and nkey_file"),
        (f"forward: [{{name: a, type: nats, {SERVERS}, key_file: y}}]",
         "key_file: expected cert_file beside it, got none"),
        (f"forward: [{{name: a, type: nats, {SERVERS}, kinds: [score]}}]", "forward[0].kinds[0]"),
        ("fleet: {site: 'My Home'}", "fleet.site: expected lower-case letters"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(text)
    assert sentence in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError) as error:
        settings("forward: [{name: a, type: nats, servers: ['nats://box:hunter22@hub:4222']}]")
    assert "hunter22" not in str(error.value)
    assert "expected an address without user and password" in str(error.value)


def test_a_seed_in_the_place_of_its_file_is_not_shown() -> None:
    seed = "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU"
    text = f"forward: [{{name: a, type: nats, {SERVERS}, nkey_file: ['{seed}']}}]"
    with pytest.raises(ConfigError) as error:
        settings(text)
    assert seed not in str(error.value)


def test_positions_and_the_spool_are_declared() -> None:
    declared = kept(settings(f"forward: [{{name: hub, type: nats, {SERVERS}}}]"))
    found = {kind.name: kind for kind in declared if kind.writer == "forward"}
    assert set(found) == {"positions of outputs", "health spool"}
    assert found["positions of outputs"].path.name == "hub.json"
