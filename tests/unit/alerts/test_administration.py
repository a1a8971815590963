"""Who may administrate over a socket, and what changes: real sockets, a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alert_samples import action_settings, firing, states
from ports import free_ports

from ast_stream.alerts.administration import Administration
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.outbox_operations import snoozes
from ast_stream.alerts.store import Store
from ast_stream.cli.app import run_command_line
from ast_stream.errors import WireError
from ast_stream.messages.administration import (
    AcknowledgeRequest,
    Administered,
    AdministrationRequest,
    RetryRequest,
    SnoozeRequest,
)
from ast_stream.transport.allow_list import (
    ALL_RIGHTS,
    GROUP_RIGHTS,
    NO_RIGHTS,
    AllowedClient,
    Rights,
    write_allow_list,
)
from ast_stream.transport.authenticator import Authenticator
from ast_stream.transport.curve import make_key
from ast_stream.transport.keys import write_pair
from ast_stream.transport.listener import Listener
from ast_stream.transport.requester import Requester
from ast_stream.transport.sockets import Sockets
from ast_stream.transport.zmtp import GREETING, encode_message

AS_ANOTHER_USER = """
import os, socket, sys
os.setresgid(0, 0, 0)
os.setresuid(65534, 65534, 65534)
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.settimeout(10)
peer.sendall(bytes.fromhex(sys.argv[2]))
got = b""
while b"}" not in got[64:] and (data := peer.recv(65536)): got += data
sys.stdout.buffer.write(got)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "alerts.sqlite")
    outbox = Outbox(store, {"phone": action_settings(), "mail": action_settings()}, time.time_ns)
    with store.transaction() as db:
        outbox.enqueue(db, [firing("a1", "phone"), firing("b2", "phone", "mail")])
    yield store
    store.close()


def administration(socket: Listener, store: Store) -> Administration:
    return Administration(socket, store, lambda: {"dog", "cat"}, ("phone", "mail"))


@contextmanager
def serving(socket: Listener, store: Store) -> Iterator[None]:
    """Answer requests in a thread of its own, as the alerts process does between its turns."""
    stop = threading.Event()
    one = administration(socket, store)

    def serve() -> None:
        while not stop.is_set():
            one.serve()
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def answered(
    store: Store, socket: Listener, request: AdministrationRequest, rights: Rights = ALL_RIGHTS
) -> Administered:
    who = Requester("the test", "test", None, True, rights)
    return Administered.decode(administration(socket, store).answer(request.encode(), who))


@pytest.fixture
def router(sockets: Sockets, socket_dir: Path) -> Listener:
    return sockets.bind("router", f"ipc://{socket_dir}/admin.sock", 8)


def test_acknowledging_drops_what_is_still_to_be_sent_and_says_who_did_it(
    store: Store, router: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert answered(store, router, AcknowledgeRequest(alert="b2")).deliveries == 2
    assert states(store)["b2", "firing", "phone"] == "dropped"
    assert "alert b2 is acknowledged by the test" in caplog.text
    with store.reading() as db:
        (reason,) = db.execute("SELECT DISTINCT last_error FROM deliveries WHERE state='dropped'")
    assert reason[0] == "acknowledged by the test"


def test_a_snooze_holds_a_rule_back_and_says_until_when(store: Store, router: Listener) -> None:
    answer = answered(store, router, SnoozeRequest(rule="dog", for_s=3600.0))
    assert answer.deliveries == 3
    assert answer.until_ns is not None
    ((rule, _),) = snoozes(store, store.steady_time().now_ns())
    assert rule == "dog"
    answered(store, router, SnoozeRequest(rule="dog", for_s=0.0))
    assert snoozes(store, store.steady_time().now_ns()) == []


@pytest.mark.parametrize(
    "rights", [NO_RIGHTS, GROUP_RIGHTS, Rights.of(["feed", "audio", "push:*"])]
)
def test_nobody_administrates_without_the_right(
    store: Store, router: Listener, rights: Rights
) -> None:
    before = states(store)
    for request in (
        AcknowledgeRequest(alert="b2"),
        SnoozeRequest(rule="dog", for_s=60.0),
        RetryRequest(),
    ):
        with pytest.raises(WireError, match="lacks the right 'admin'"):
            answered(store, router, request, rights)
    assert states(store) == before
    assert snoozes(store, store.steady_time().now_ns()) == []


@pytest.mark.parametrize(
    ("request_body", "reason"),
    [
        ({"op": "acknowledge", "alert": "zz"}, "unknown 'zz'"),
        ({"op": "acknowledge", "alert": ""}, "alert: "),
        ({"op": "snooze", "rule": "dgo", "for_s": 60}, "did you mean 'dog'"),
        ({"op": "snooze", "rule": "dog", "for_s": -1}, "for_s: "),
        ({"op": "snooze", "rule": "dog", "for_s": 1e300}, "for_s: "),
        ({"op": "retry", "numbers": [4711]}, "got 4711"),
        ({"op": "retry", "numbers": list(range(1, 2000))}, "numbers: "),
        ({"op": "drop", "action": "fone"}, "did you mean 'phone'"),
        ({"op": "drop", "all": True}, "all: "),
        ({"op": "shutdown"}, "expected acknowledge, snooze, retry, drop"),
    ],
)
def test_a_request_that_makes_no_sense_changes_nothing_and_is_told_why(
    store: Store, router: Listener, request_body: dict[str, object], reason: str
) -> None:
    before = states(store)
    who = Requester("the test", "test", None, True, ALL_RIGHTS)
    frames = administration(router, store).answer([json.dumps(request_body).encode()], who)
    with pytest.raises(WireError, match=f"refused: .*{reason}"):
        Administered.decode(frames)
    assert states(store) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_members_of_the_group_do_not_administrate_over_ipc(
    store: Store, router: Listener, socket_dir: Path
) -> None:
    socket_dir.chmod(0o750)
    ready = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    request = AcknowledgeRequest(alert="b2").encode()
    said = GREETING + ready + encode_message(request)
    command = [sys.executable, "-c", AS_ANOTHER_USER, str(socket_dir / "admin.sock"), said.hex()]
    with serving(router, store):
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert b"lacks the right 'admin'" in done.stdout
    assert states(store)["b2", "firing", "phone"] == "pending"


def test_commands_operate_alerts_over_ipc(
    store: Store, router: Listener, socket_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = ("--endpoint", f"ipc://{socket_dir}/admin.sock")
    with serving(router, store):
        assert run_command_line(["ack", "a1", *endpoint]) == 0
        assert run_command_line(["snooze", "dog", "--for", "2h", *endpoint]) == 0
        assert run_command_line(["outbox", "drop", "--all", "--action", "mail", *endpoint]) == 0
        assert run_command_line(["outbox", "retry", "--all", *endpoint]) == 0
        assert run_command_line(["ack", "zz", *endpoint]) == 1
    out, err = capsys.readouterr()
    assert "acknowledged; 1 delivery is dropped" in out
    assert "dog is snoozed until 20" in out
    assert "2 deliveries are tried again" in out
    assert "expected the id of one alert" in err
    assert states(store)["a1", "firing", "phone"] == "pending", "dropped, then tried again"


def test_over_tcp_a_key_needs_the_right(
    store: Store, sockets: Sockets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, guard, reader = make_key(), make_key(), make_key()
    for name, key in (("server", server), ("guard", guard), ("reader", reader)):
        write_pair(tmp_path, name, key)
    clients = [AllowedClient("guard", guard.public, ("admin",), 0)]
    clients.append(AllowedClient("reader", reader.public, ("feed", "scores", "audio", "push:*"), 0))
    write_allow_list(tmp_path / "allowed.json", clients)
    endpoint = f"tcp://127.0.0.1:{free_ports()}"
    authenticator = Authenticator(server, tmp_path / "allowed.json")
    router = sockets.bind("router", endpoint, 8, authenticator=authenticator)

    def ack(alert: str, name: str) -> int:
        keys = ["--client-key", str(tmp_path / f"{name}.key_secret")]
        keys += ["--server-key", str(tmp_path / "server.key")]
        return run_command_line(["ack", alert, "--endpoint", endpoint, *keys])

    with serving(router, store):
        assert ack("b2", "reader") == 1
        assert states(store)["b2", "firing", "phone"] == "pending"
        assert ack("b2", "guard") == 0
    assert "lacks the right 'admin'" in capsys.readouterr().err
    assert states(store)["b2", "firing", "phone"] == "dropped"
    with store.reading() as db:
        (reason,) = db.execute("SELECT DISTINCT last_error FROM deliveries WHERE state='dropped'")
    assert reason[0] == "acknowledged by guard over tcp"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["ack", "a1"], "expected --config or --endpoint"),
        (["ack", "a1", "-c", "x", "--endpoint", "ipc:///x"], "expected --config or --endpoint"),
        (["ack", "a1", "--endpoint", "ipc:///x", "--client-key", "k"], "--server-key"),
        (["outbox", "retry", "0", "--endpoint", "ipc:///x"], "numbers"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(arguments) == 2
    assert text in capsys.readouterr().err
