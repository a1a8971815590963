from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from nats_server import NatsServer, nats_server, needs_nats, stored, wait_for

from ast_stream.errors import StartupError
from ast_stream.runtime.jetstream import (
    JetStream,
    NatsMessage,
    PublishError,
    StreamSpec,
    bucket_spec,
)
from ast_stream.runtime.nats import NatsConnection, NatsError, read_login
from ast_stream.settings.forward import NatsAccess

pytestmark = needs_nats
SPEC = StreamSpec("EVENTS", ("box.*.event.>",), duplicates_s=60)
SECRET = "s3cret-and-l0ng"


@contextmanager
def connected(
    server: NatsServer, access: dict[str, Any] | None = None, inbox: str = "_INBOX"
) -> Iterator[NatsConnection]:
    settings = NatsAccess.model_validate({"servers": [server.url], **(access or {})})
    connection = NatsConnection(
        lambda: read_login("test", settings), "test", "the server", inbox=inbox, timeout_s=5
    )
    connection.start()
    try:
        wait_for(lambda: connection.is_connected or connection.outage.text is not None, "a result")
        yield connection
    finally:
        connection.close()


def messages(n: int, first: int = 0) -> list[NatsMessage]:
    return [
        NatsMessage("box.a.event.bark", b'{"n": %d}' % number, f"id-{number}")
        for number in range(first, first + n)
    ]


def test_messages_are_confirmed_in_order_and_once(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, connected(server) as connection:
        stream = JetStream(connection)
        stream.ensure(SPEC, create=True)
        stream.ensure(SPEC, create=False)
        assert stream.publish(messages(300), 10, "EVENTS") == 300
        assert stream.publish(messages(10, 295), 10, "EVENTS") == 10
        assert stream.duplicates == 5
        assert [one.body["n"] for one in stored(server.url, "EVENTS")] == list(range(305))
        assert stream.ids("EVENTS", ["box.a.event.bark", "box.b.event.bark"]) == {
            "box.a.event.bark": "id-304"
        }


def test_a_server_that_is_killed_is_connected_to_again_and_has_what_it_confirmed(
    tmp_path: Path,
) -> None:
    with nats_server(tmp_path) as server, connected(server) as connection:
        stream = JetStream(connection)
        stream.ensure(SPEC, create=True)
        stream.publish(messages(10), 10)
        server.kill()
        wait_for(lambda: not connection.is_connected, "the loss to be noticed")
        with pytest.raises(NatsError, match="the server"):
            stream.publish(messages(1), 10)
        server.start()
        wait_for(lambda: connection.is_connected, "the connection")
        assert stream.publish(messages(20), 10) == 20
        assert connection.connects == 2
        assert len(stored(server.url, "EVENTS")) == 20


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, connected(server) as connection:
        stream = JetStream(connection)
        stream.ensure(SPEC, create=True)
        server.pause()
        try:
            with pytest.raises(PublishError, match=r"is not confirmed within 0\.5 s") as error:
                stream.publish(messages(10), 0.5)
        finally:
            server.resume()
        assert error.value.confirmed == 0
        assert stream.publish(messages(20), 30) == 20
        assert len(stored(server.url, "EVENTS")) == 20


def test_what_no_stream_takes_is_said(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, connected(server) as connection:
        stream = JetStream(connection)
        with pytest.raises(PublishError, match=r"box\.a\.event\.bark: no stream takes it"):
            stream.publish(messages(2), 10)
        with pytest.raises(NatsError, match="there is no stream EVENTS; make it: nats stream add"):
            stream.ensure(SPEC, create=False)
        with pytest.raises(NatsError, match="there is no bucket boxes; make it: nats kv add boxes"):
            stream.ensure(bucket_spec("boxes"), create=False)
        stream.ensure(SPEC, create=True)
        other = StreamSpec("EVENTS", ("box.*.alert.>",))
        with pytest.raises(NatsError, match=r"does not take box\.\*\.alert\.>"):
            stream.ensure(other, create=True)


def test_without_jetstream_that_is_said(tmp_path: Path) -> None:
    with (
        nats_server(tmp_path, has_jetstream=False) as server,
        connected(server) as connection,
        pytest.raises(NatsError, match="JetStream is off"),
    ):
        JetStream(connection).ensure(SPEC, create=True)


def test_a_message_that_is_too_large_is_told_apart(tmp_path: Path) -> None:
    with nats_server(tmp_path, "max_payload: 1024\n") as server, connected(server) as connection:
        stream = JetStream(connection)
        stream.ensure(SPEC, create=True)
        batch = [*messages(2), NatsMessage("box.a.event.bark", b"0" * 2000, "big"), *messages(1, 9)]
        with pytest.raises(PublishError, match="2067 bytes, where the server takes 1024") as error:
            stream.publish(batch, 10)
        assert error.value.confirmed == 2
        assert error.value.is_too_large


def test_a_stream_that_is_full_is_said(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, connected(server) as connection:
        stream = JetStream(connection)
        stream.ensure(bucket_spec("small", max_bytes=2000), create=True)
        batch = [NatsMessage(f"$KV.small.k{n}", b"0" * 400) for n in range(10)]
        with pytest.raises(PublishError, match="maximum bytes exceeded") as error:
            stream.publish(batch, 10)
        assert 0 < error.value.confirmed < 10
        assert not error.value.is_too_large


RIGHTS = """{
  publish: ["box.a.>", "$JS.API.STREAM.INFO.EVENTS"]
  subscribe: ["_INBOX.a.>"]
}"""
USERS = f"""authorization {{ users: [
  {{user: "box", password: "{SECRET}", permissions: {RIGHTS}}}
  {{user: "admin", password: "admin"}}
] }}
"""


def test_what_a_user_may_not_do_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_PASSWORD", SECRET)
    login = {"username": "box", "password_env": "NATS_PASSWORD"}
    with (
        nats_server(tmp_path, USERS) as server,
        connected(server, login, "_INBOX.a") as connection,
    ):
        stream = JetStream(connection)
        with pytest.raises(NatsError, match=r"there is no stream EVENTS, and this user may not"):
            stream.ensure(SPEC, create=True)
        with pytest.raises(PublishError, match=r"may not publish to box\.b\.event"):
            stream.publish([NatsMessage("box.b.event.x", b"{}")], 30)
        with pytest.raises(NatsError, match="this user may not publish to"):
            stream.ids("EVENTS", ["box.b.event.x"])


@pytest.mark.parametrize("password", ["wrong-one", None])
def test_a_wrong_login_is_said_without_the_secret(
    tmp_path: Path, password: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    access = {}
    if password is not None:
        (tmp_path / "password").write_text(password + "\n")
        access = {"username": "box", "password_file": str(tmp_path / "password")}
    with nats_server(tmp_path, USERS) as server, connected(server, access) as connection:
        assert connection.error is not None
        assert "the server refuses the login" in connection.error
        assert "wrong-one" not in caplog.text + connection.error


def test_a_secret_file_that_appears_later_is_used(tmp_path: Path) -> None:
    path = tmp_path / "password"
    access = {"username": "box", "password_file": str(path)}
    with nats_server(tmp_path, USERS) as server, connected(server, access) as connection:
        assert connection.error is not None
        assert "cannot read" in connection.error
        path.write_text(SECRET)
        wait_for(lambda: connection.is_connected, "the connection")


def test_secrets_that_cannot_be_ones_are_refused_without_quoting_them(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    path.write_text("SUxNOTASEED")
    for key, what in (("nkey_file", "the seed of a user's nkey"), ("creds_file", "a JWT and a")):
        settings = NatsAccess.model_validate({"servers": ["nats://a"], key: str(path)})
        with pytest.raises(StartupError, match=what) as error:
            read_login("output hub", settings)
        assert "NOTASEED" not in str(error.value)


def test_a_seed_of_an_nkey_logs_in(tmp_path: Path) -> None:
    import nkeys

    raw = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(raw)).public_key.decode()
    (tmp_path / "seed").write_bytes(raw + b"\n")
    config = f'authorization {{ users: [{{nkey: "{public}"}}] }}\n'
    access = {"nkey_file": str(tmp_path / "seed")}
    with nats_server(tmp_path, config) as server, connected(server, access) as connection:
        assert connection.is_connected, connection.error


def test_a_token_logs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_TOKEN", SECRET)
    config = f'authorization {{ token: "{SECRET}" }}\n'
    access = {"token_env": "NATS_TOKEN"}
    with nats_server(tmp_path, config) as server, connected(server, access) as connection:
        assert connection.is_connected, connection.error


def test_nothing_is_sent_to_a_server_without_the_tls_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_PASSWORD", SECRET)
    access = {"username": "box", "password_env": "NATS_PASSWORD", "tls": True}
    trace = "debug: true\ntrace: true\n"
    with nats_server(tmp_path, USERS + trace) as server:
        with connected(server, access) as connection:
            assert connection.error is not None
            assert "the server has no TLS, which the settings ask for" in connection.error
        assert "CONNECT {" not in server.log.read_text()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {\r\n", b"INFO []\r\n", b"\xff" * 5000, b""],
)
def test_something_else_than_a_server_is_an_error_in_words(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near, _ = other.accept()
                    with near:
                        near.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        settings = NatsAccess(servers=[f"nats://127.0.0.1:{other.getsockname()[1]}"])
        connection = NatsConnection(
            lambda: read_login("test", settings), "test", "the server", timeout_s=2
        )
        connection.start()
        try:
            wait_for(lambda: connection.outage.text is not None, "the refusal")
            assert connection.error is not None
            assert connection.error.startswith("the server: ")
            assert "Traceback" not in connection.error
        finally:
            connection.close()
        other.shutdown(socket.SHUT_RDWR)
        thread.join(10)
