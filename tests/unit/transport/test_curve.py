"""CURVE over tcp, with libzmq as the client: who gets in, what they may do, and how they leave."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from damage import STRANGE_FILES, make_strange
from hypothesis import given
from hypothesis import strategies as st
from ports import free_ports

from ast_stream.errors import ConfigError, WireError
from ast_stream.feed import Subscriber
from ast_stream.settings.transport import CurveSettings, TransportSettings
from ast_stream.transport.allow_list import AllowedClient, write_allow_list
from ast_stream.transport.authenticator import Authenticator
from ast_stream.transport.curve import CurveServer, make_key
from ast_stream.transport.keys import ClientKeys, KeyPair, client_keys, server_key, write_pair
from ast_stream.transport.listener import Listener
from ast_stream.transport.sockets import ConnectedKind, Socket, Sockets
from ast_stream.transport.zmtp import CURVE_GREETING, GREETING, ZmtpSession

WAIT_MS = 60_000  # a limit, not a duration
QUIET_MS = 300  # in which what is refused would have come
SERVER = make_key()
PORCH, STRANGER = make_key(), make_key()


class Door:
    """An allow-list and sockets behind it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "allowed.json"
        self.endpoint = f"tcp://127.0.0.1:{free_ports()}"
        self.bound = Sockets()
        self._clients: list[Sockets] = []
        self._allowed: dict[str, AllowedClient] = {}

    def allow(self, name: str, key: KeyPair, *words: str) -> None:
        self._allowed[name] = AllowedClient(name, key.public, words, 0)
        write_allow_list(self.path, list(self._allowed.values()))

    def revoke(self, name: str) -> None:
        del self._allowed[name]
        write_allow_list(self.path, list(self._allowed.values()))

    def bind(self, kind: str, hwm: int = 8) -> Listener:
        authenticator = Authenticator(SERVER, self.path)
        return self.bound.bind(kind, self.endpoint, hwm, authenticator=authenticator)  # type: ignore[arg-type]

    def connect(self, kind: ConnectedKind, key: KeyPair | None, server: KeyPair = SERVER) -> Socket:
        keys = None if key is None else ClientKeys(key, server.public)
        self._clients.append(Sockets(keys))
        return self._clients[-1].connect(kind, self.endpoint, 8)

    def close(self) -> None:
        for sockets in (*self._clients, self.bound):
            sockets.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    opened = Door(tmp_path)
    yield opened
    opened.close()


def eventually(holds: Callable[[], object]) -> bool:
    end_s = time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < end_s:
        if holds():
            return True
        time.sleep(0.01)
    return bool(holds())


def pushed(push: Socket, frames: list[bytes]) -> bool:
    return eventually(lambda: push.send(frames))


def asked(dealer: Socket, router: Listener) -> bool:
    """Tell whether a request gets in and its answer out, for long enough for a handshake."""
    dealer.send([b"?"])
    request = router.receive(WAIT_MS // 2)
    return request is not None and router.send([request[0], b"!"]) and bool(dealer.receive(WAIT_MS))


def test_an_allowed_key_sends_the_audio_of_its_own_streams_and_of_no_other(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    pull = door.bind("pull")
    push = door.connect("push", PORCH)
    block = [b"porch", b"{}", os.urandom(320_000)]
    assert pushed(push, [b"yard", b"{}", b""])
    assert push.send(block)
    assert pull.receive(WAIT_MS) == block
    assert pull.receive() is None
    assert pull.refused == 1
    assert pull.n_peers == 1, "it stays connected for its own streams"
    assert "audio of b'yard' refused: porch-box over tcp may not send it" in caplog.text


@pytest.mark.parametrize(
    ("key", "server", "reason"),
    [
        (None, SERVER, ""),  # libzmq hangs up before it says more
        (STRANGER, SERVER, f"its key {STRANGER.public} is not in"),
        (PORCH, STRANGER, "expects another server key"),
        (KeyPair(PORCH.public, STRANGER.secret), SERVER, "does not prove its key"),
    ],
    ids=["no key", "unknown key", "wrong server key", "another's public key"],
)
def test_who_does_not_prove_an_allowed_key_gets_nothing_in(
    door: Door,
    caplog: pytest.LogCaptureFixture,
    key: KeyPair | None,
    server: KeyPair,
    reason: str,
) -> None:
    door.allow("porch-box", PORCH, "push:*", "feed", "audio")
    router = door.bind("router")
    dealer = door.connect("dealer", key, server)
    dealer.send([b"?"])
    assert eventually(lambda: reason in caplog.text), caplog.text
    assert router.receive(QUIET_MS) is None


def test_refused_audio_is_said_though_somebody_was_cut_off_a_moment_ago(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    door.bind("pull")
    door.connect("push", STRANGER)
    assert eventually(lambda: f"its key {STRANGER.public} is not in" in caplog.text)
    push = door.connect("push", PORCH)
    assert pushed(push, [b"yard"])
    assert eventually(lambda: "porch-box over tcp may not send it" in caplog.text)


def test_a_stranger_that_speaks_without_a_key_is_cut_off(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "push:*")
    pull = door.bind("pull")
    with socket.create_connection(("127.0.0.1", int(door.endpoint.rpartition(":")[2]))) as peer:
        ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
        peer.sendall(GREETING + bytes((4, len(ready))) + ready + b"\x00\x05porch")
        peer.settimeout(WAIT_MS / 1000)
        while peer.recv(1024):
            pass
    assert "the client has no key" in caplog.text
    assert pull.receive() is None


@pytest.mark.parametrize(
    ("kind", "bound", "words"),
    [("push", "pull", ["feed", "scores", "audio", "admin"]), ("sub", "pub", ["push:*", "admin"])],
)
def test_a_key_that_has_nothing_to_do_at_a_socket_is_refused_there(
    door: Door, caplog: pytest.LogCaptureFixture, kind: ConnectedKind, bound: str, words: list[str]
) -> None:
    door.allow("porch-box", PORCH, *words)
    door.bind(bound)
    door.connect(kind, PORCH)
    assert eventually(lambda: "and none of that here" in caplog.text)


def test_a_refused_client_recovers_once_it_is_allowed(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    pull = door.bind("pull")
    push = door.connect("push", STRANGER)
    plain = zmq.Context()
    other = plain.socket(zmq.PUSH)  # which nobody watches and replaces
    other.linger = 0
    other.curve_publickey = STRANGER.public.encode()
    other.curve_secretkey = STRANGER.secret.encode()
    other.curve_serverkey = SERVER.public.encode()
    other.connect(door.endpoint)
    other.send_multipart([b"yard", b"plain"])
    refused = "refuses the connection: this key is not allowed there"
    assert eventually(lambda: not push.send([b"yard"]) and refused in caplog.text)
    door.allow("yard-box", STRANGER, "push:yard")
    assert pushed(push, [b"yard", b"ours"])
    got = {(pull.receive(WAIT_MS) or [b""])[-1] for _ in range(2)}
    assert got == {b"ours", b"plain"}
    plain.destroy(linger=0)


def test_a_client_whose_worker_had_no_keys_recovers_once_it_has(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    before = door.bound.bind("pull", door.endpoint, 8)
    push = door.connect("push", PORCH)
    said = "it has no CURVE keys in its configuration"
    assert eventually(lambda: not push.send([b"porch"]) and said in caplog.text)
    door.bound.forget(before)
    pull = door.bind("pull")
    assert pushed(push, [b"porch", b"at last"])
    assert pull.receive(WAIT_MS) == [b"porch", b"at last"]


def test_a_client_without_a_key_is_told_that_one_is_asked_for_and_recovers_without_it(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    pull = door.bind("pull")
    push = door.connect("push", None)
    assert eventually(lambda: not push.send([b"porch"]) and "asks for a CURVE key" in caplog.text)
    door.bound.forget(pull)
    pull = door.bound.bind("pull", door.endpoint, 8)
    assert pushed(push, [b"porch", b"at last"])
    assert pull.receive(WAIT_MS) == [b"porch", b"at last"]


@pytest.mark.slow
def test_a_revoked_key_is_disconnected_and_stays_out(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "feed")
    router = door.bind("router")
    dealer = door.connect("dealer", PORCH)
    assert asked(dealer, router)
    door.revoke("porch-box")
    assert eventually(lambda: router.n_peers == 0)
    assert "its key is revoked" in caplog.text
    dealer.send([b"?"])
    assert router.receive(QUIET_MS) is None
    door.allow("porch-box", PORCH, "feed")
    assert asked(dealer, router)


def test_rights_that_change_hold_for_who_is_connected(door: Door) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    pull = door.bind("pull")
    push = door.connect("push", PORCH)
    assert pushed(push, [b"porch"])
    assert pull.receive(WAIT_MS) == [b"porch"]
    door.allow("porch-box", PORCH, "push:yard")
    assert eventually(lambda: push.send([b"yard"]) and pull.receive(100) == [b"yard"])
    n_refused = pull.refused
    assert push.send([b"porch"])
    assert eventually(lambda: pull.refused > n_refused)
    assert pull.receive() is None


@pytest.mark.slow
def test_damage_to_the_allow_list_leaves_the_last_good_one_in_force(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "feed")
    router = door.bind("router")
    dealer = door.connect("dealer", PORCH)
    assert asked(dealer, router)
    door.path.write_text("{")
    assert eventually(lambda: "the one before stays in force" in caplog.text)
    assert asked(dealer, router)
    door.path.unlink()
    assert eventually(lambda: router.n_peers == 0), "no list is a list of nobody"


@pytest.mark.parametrize("kind", sorted(set(STRANGE_FILES) - {"dangling link"}))
def test_whatever_takes_the_place_of_the_allow_list_leaves_the_last_good_one_in_force(
    door: Door, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    door.allow("porch-box", PORCH, "feed")
    authenticator = Authenticator(SERVER, door.path)
    door.path.unlink()
    make_strange(door.path, kind)
    authenticator.poll()
    assert "the one before stays in force" in caplog.text
    assert authenticator.client(PORCH.public) is not None


def test_allow_list_that_becomes_writable_for_everybody_is_followed_no_longer(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "feed")
    authenticator = Authenticator(SERVER, door.path)
    door.path.chmod(0o666)
    authenticator.poll()
    assert "everybody may write" in caplog.text
    door.path.write_text('{"version": 1, "keys": []}')
    authenticator.poll()
    assert authenticator.client(PORCH.public) is not None
    door.path.chmod(0o644)
    authenticator.poll()
    assert authenticator.client(PORCH.public) is None, "mended, it is followed again"


def test_scores_are_for_those_with_the_right_to_them(door: Door) -> None:
    door.allow("reader", PORCH, "feed")
    door.allow("scorer", STRANGER, "scores")
    pub = door.bind("pub", hwm=1000)
    readers = {name: door.connect("sub", key) for name, key in (("r", PORCH), ("s", STRANGER))}
    for reader in readers.values():
        reader.subscribe("")
    got: dict[str, set[bytes]] = {"r": set(), "s": set()}

    def both_have_something() -> bool:
        for topic in (b"event/bark/porch/", b"scores/porch/", b"health/porch/"):
            pub.send([topic, b"{}"])
        for name, reader in readers.items():
            while (frames := reader.receive(5)) is not None:
                got[name].add(frames[0])
        return all(got.values())

    assert eventually(lambda: both_have_something() and len(got["r"]) == 2)
    for _ in range(20):
        both_have_something()
    assert got["r"] == {b"event/bark/porch/", b"health/porch/"}
    assert got["s"] == {b"scores/porch/"}


def test_spectrograms_are_for_those_who_may_listen(door: Door) -> None:
    door.allow("reader", PORCH, "feed", "scores")
    door.allow("listener", STRANGER, "audio")
    pub = door.bind("pub", hwm=1000)
    reader, listener = (door.connect("sub", key) for key in (PORCH, STRANGER))
    reader.subscribe("")
    assert eventually(lambda: pub.has_reader(b"scores/porch/"))
    assert not pub.has_reader(b"spectrogram/porch/"), "for the reader none is made"
    listener.subscribe("")
    assert eventually(lambda: pub.has_reader(b"spectrogram/porch/"))
    for topic in (b"spectrogram/porch/", b"event/bark/porch/", b"scores/porch/"):
        assert pub.send([topic, b"{}"])
    got: dict[str, set[bytes]] = {"reader": set(), "listener": set()}
    for name, sub, n_topics in (("reader", reader, 2), ("listener", listener, 1)):
        while frames := sub.receive(WAIT_MS if len(got[name]) < n_topics else 300):
            got[name].add(frames[0])
    assert got["reader"] == {b"event/bark/porch/", b"scores/porch/"}
    assert got["listener"] == {b"spectrogram/porch/"}


def test_who_has_no_right_to_a_topic_is_no_reader_of_it(door: Door) -> None:
    door.allow("reader", PORCH, "feed")
    pub = door.bind("pub")
    reader = door.connect("sub", PORCH)
    reader.subscribe("")
    assert eventually(lambda: pub.has_reader(b"event/bark/porch/"))
    assert not pub.has_reader(b"scores/porch/")
    door.allow("reader", PORCH, "feed", "scores")
    assert eventually(lambda: pub.has_reader(b"scores/porch/")), "rights change while it is there"


def test_a_message_beyond_the_limit_ends_the_connection_of_its_sender_alone(door: Door) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    door.allow("yard-box", STRANGER, "push:yard")
    pull = door.bind("pull")
    polite, rude = door.connect("push", STRANGER), door.connect("push", PORCH)
    assert pushed(polite, [b"yard", b"1"])
    assert pull.receive(WAIT_MS) == [b"yard", b"1"]
    assert pushed(rude, [b"porch", bytes(400 * 1024)])
    assert eventually(lambda: pull.disconnected == 1)

    def send_too_many_parts() -> bool:
        rude.send([b"porch", *[b""] * 8])  # the old connection takes it until its end is noticed
        return pull.disconnected >= 2

    assert eventually(send_too_many_parts)
    for _ in range(100):
        rude.send([b"porch"])
    assert polite.send([b"yard", b"2"])
    while (frames := pull.receive(WAIT_MS)) == [b"porch"]:
        pass
    assert frames == [b"yard", b"2"]


def test_heartbeats_of_a_client_are_answered(door: Door) -> None:
    door.allow("porch-box", PORCH, "feed")
    router = door.bind("router")
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.heartbeat_ivl, dealer.heartbeat_timeout = 50, 1000  # for a busy machine to answer
        dealer.curve_publickey = PORCH.public.encode()
        dealer.curve_secretkey = PORCH.secret.encode()
        dealer.curve_serverkey = SERVER.public.encode()
        dealer.connect(door.endpoint)
        dealer.send(b"1")
        first = router.receive(WAIT_MS)
        time.sleep(2.5)  # several timeouts
        dealer.send(b"2")
        second = router.receive(WAIT_MS)
        assert first is not None
        assert second is not None
        assert first[0] == second[0], "the same connection"


class Relay(threading.Thread):
    """Stands between one client and the server; `change` may alter what the client sends."""

    def __init__(self, endpoint: str, change: Callable[[bytes], bytes]) -> None:
        super().__init__(daemon=True)
        self.heard = b""
        self._change = change
        self._server = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        client, _ = self._listening.accept()
        server = socket.create_connection(self._server)
        with client, server, self._listening:
            back = threading.Thread(target=self._copy_back, args=(server, client), daemon=True)
            back.start()
            while data := client.recv(65_536):
                self.heard += data
                server.sendall(self._change(data))
            back.join(1)

    def _copy_back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65_536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def test_what_is_sent_cannot_be_read_altered_or_sent_again(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.allow("porch-box", PORCH, "push:porch")
    pull = door.bind("pull")
    altered = threading.Event()

    def change(data: bytes) -> bytes:
        return data[:-1] + bytes((data[-1] ^ 1,)) if altered.is_set() else data

    relay = Relay(door.endpoint, change)
    sockets = Sockets(ClientKeys(PORCH, SERVER.public))
    push = sockets.connect("push", relay.endpoint, 8)
    assert pushed(push, [b"porch", b"plain words"])
    assert pull.receive(WAIT_MS) == [b"porch", b"plain words"]
    assert b"plain" not in relay.heard
    altered.set()
    assert push.send([b"porch", b"another"])
    assert eventually(lambda: "expected a frame of this connection" in caplog.text)
    assert pull.receive() is None
    sockets.close()
    with socket.create_connection(("127.0.0.1", int(door.endpoint.rpartition(":")[2]))) as again:
        again.sendall(relay.heard)
        again.settimeout(WAIT_MS / 1000)
        while again.recv(65_536):
            pass
    assert pull.receive() is None


@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_no_bytes_of_a_stranger_do_more_than_end_the_connection(
    parts: list[bytes], is_curve: bool
) -> None:
    asked_for: list[str] = []
    session = ZmtpSession("pull", 1000, CurveServer(SERVER, asked_for.append))
    session.feed(CURVE_GREETING if is_curve else GREETING)
    try:
        for part in parts:
            session.feed(bytes((4, min(255, len(part)))) + part)
            session.next_message()
    except WireError:
        pass
    assert not session.is_ready
    assert asked_for == []
    assert session.held_bytes < 4096


@pytest.mark.parametrize("nth", range(3))
def test_a_handshake_out_of_order_is_refused(nth: int) -> None:
    server = CurveServer(SERVER, lambda key: None)
    with pytest.raises(WireError):
        (server.welcome, server.initiate, server.welcome)[nth](bytes((0, 194, 200)[nth]))


def settings(folder: Path, **changed: str | None) -> TransportSettings:
    whole: dict[str, str | None] = {
        "server_secret": str(folder / "worker.key_secret"),
        "client_secret": str(folder / "box.key_secret"),
        "allow_list": str(folder / "allowed.json"),
    }
    curve = CurveSettings.model_validate(whole | changed)
    return TransportSettings(feed="tcp://10.0.0.1:5000", curve=curve)


def test_keys_are_those_of_the_configuration(tmp_path: Path) -> None:
    write_pair(tmp_path, "worker", SERVER)
    write_pair(tmp_path, "box", PORCH)
    (tmp_path / "worker.key_secret").rename(tmp_path / "hidden")
    assert client_keys(settings(tmp_path)) == ClientKeys(PORCH, SERVER.public)
    (tmp_path / "hidden").rename(tmp_path / "worker.key_secret")
    assert server_key(settings(tmp_path)) == SERVER
    other = settings(tmp_path, server_key=str(tmp_path / "box.key"), server_secret=None)
    assert client_keys(other) == ClientKeys(PORCH, PORCH.public)
    with pytest.raises(ConfigError, match=r"curve\.server_secret: expected a secret key"):
        server_key(other)
    with pytest.raises(ConfigError, match=r"curve\.client_secret: expected a secret key"):
        client_keys(settings(tmp_path, client_secret=None))
    assert client_keys(TransportSettings()) is None
    ipc = TransportSettings(curve=CurveSettings(server_secret="nowhere"))
    assert (client_keys(ipc), server_key(ipc)) == (None, None), "ipc needs none"


def test_a_subscriber_reads_over_tcp_with_keys_of_files(
    door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    door.allow("reader", PORCH, "feed")
    write_pair(tmp_path, "worker", SERVER)
    write_pair(tmp_path, "reader", PORCH)
    pub = door.bind("pub", hwm=1000)
    keys = ClientKeys.load(tmp_path / "reader.key_secret", tmp_path / "worker.key")
    with Subscriber(door.endpoint, topics=["levels/"], keys=keys) as reader:
        body = b'{"v":1,"boot":"b","seq":1}'
        assert eventually(lambda: pub.send([b"levels/porch/", body]) and reader.receive(0.01))
    assert "refuses" not in caplog.text
