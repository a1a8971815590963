"""What strangers can do to the sockets that this program binds, with bytes of their own."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from ports import free_ports

from ast_stream.errors import StartupError, WireError
from ast_stream.transport.listener import MAX_PEERS, Listener
from ast_stream.transport.requester import is_listened_at, listening_process
from ast_stream.transport.sockets import AUDIO_HWM_BLOCKS, Poller, Socket, Sockets
from ast_stream.transport.zmtp import GREETING, MAX_PARTS, Kind, ZmtpSession, encode_message

WAIT_MS = 60_000  # a limit, not a duration
MORE, LONG, COMMAND = 1, 2, 4


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, socket_dir: Path) -> str:
    if request.param == "ipc":
        return f"ipc://{socket_dir}/a.sock"
    return f"tcp://127.0.0.1:{free_ports()}"


@pytest.fixture
def ipc(socket_dir: Path) -> str:
    return f"ipc://{socket_dir}/a.sock"


dialled: list[socket.socket] = []


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    yield
    while dialled:
        dialled.pop().close()


def dial(endpoint: str) -> socket.socket:
    """Connect and say nothing."""
    scheme, _, place = endpoint.partition("://")
    is_ipc = scheme == "ipc"
    found = socket.socket(socket.AF_UNIX if is_ipc else socket.AF_INET)
    dialled.append(found)
    found.settimeout(WAIT_MS / 1000)
    host, _, port = place.rpartition(":")

    def is_connected() -> bool:
        try:
            found.connect(place if is_ipc else (host, int(port)))
        except BlockingIOError:  # a Unix socket with a limit of time does not wait for the backlog
            return False
        return True

    assert eventually(is_connected)
    return found


def frame(body: bytes, flags: int = 0, size: int | None = None) -> bytes:
    size = len(body) if size is None else size
    if size < 256:
        return bytes((flags, size)) + body
    return bytes((flags | LONG,)) + size.to_bytes(8, "big") + body


def ready(kind: bytes) -> bytes:
    metadata = b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return frame(b"\x05READY" + metadata, COMMAND)


def greet(endpoint: str, kind: bytes) -> socket.socket:
    """Connect as a ZeroMQ socket of `kind`."""
    found = dial(endpoint)
    found.sendall(GREETING + ready(kind))
    got = b""
    while len(got) < len(GREETING) + 2 or len(got) < len(GREETING) + 2 + got[len(GREETING) + 1]:
        got += found.recv(1024)
    return found


def subscribe(topic: bytes) -> bytes:
    return frame(b"\x09SUBSCRIBE" + topic, COMMAND)


def is_cut_off(peer: socket.socket) -> bool:
    """Tell whether the other side closes the connection, within the limit."""
    peer.settimeout(WAIT_MS / 1000)
    try:
        while peer.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def eventually(holds: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < end_s:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def push_connected(push: Socket, frames: list[bytes]) -> None:
    assert eventually(lambda: push.send(frames))


def test_peer_with_heartbeats_that_fills_the_queue_and_dies_ends_nothing(
    sockets: Sockets, endpoint: str
) -> None:
    pull = sockets.bind("pull", endpoint, AUDIO_HWM_BLOCKS)
    peer = greet(endpoint, b"PUSH")
    ping = frame(b"\x04PING\x00\x05", COMMAND)
    for n in range(40):
        peer.sendall(frame(b"%d" % n) + ping)
    peer.close()
    time.sleep(0.2)  # libzmq meets the hang-up with its queue full, and aborts at the next PING
    patience_ms = 200 if endpoint.startswith("tcp") else WAIT_MS
    got: list[list[bytes]] = []
    while len(got) < 40 and (message := pull.receive(patience_ms)) is not None:
        got.append(message)
    assert got == [[b"%d" % n] for n in range(len(got))]
    assert len(got) == 40 or endpoint.startswith("tcp")  # where the kernel drops what was unread
    other = sockets.connect("push", endpoint, 1)
    push_connected(other, [b"still here"])
    assert pull.receive(WAIT_MS) == [b"still here"]


def test_heartbeat_of_a_peer_is_answered_while_nobody_receives(
    sockets: Sockets, endpoint: str
) -> None:
    sockets.bind("router", endpoint, 8)
    peer = greet(endpoint, b"DEALER")
    peer.sendall(frame(b"\x04PING\x00\x05abc", COMMAND))
    assert peer.recv(100) == frame(b"\x04PONGabc", COMMAND)


@pytest.mark.slow
def test_leaked_connections_cost_only_who_leaks_them(sockets: Sockets, endpoint: str) -> None:
    pull = sockets.bind("pull", endpoint, AUDIO_HWM_BLOCKS)
    capture = sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
    push_connected(capture, [b"before"])
    for _ in range(1050):
        dial(endpoint)
    assert eventually(lambda: pull.n_peers >= MAX_PEERS)
    push_connected(capture, [b"after"])
    assert [pull.receive(WAIT_MS), pull.receive(WAIT_MS)] == [[b"before"], [b"after"]]
    newcomer = sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
    push_connected(newcomer, [b"new"])
    assert pull.receive(WAIT_MS) == [b"new"]
    assert pull.n_peers <= MAX_PEERS


def test_subscriber_finds_room_while_another_process_leaks_subscribers(
    sockets: Sockets, ipc: str
) -> None:
    pub = sockets.bind("pub", ipc, 100)
    leak = (
        "import sys, time, zmq\n"
        "context = zmq.Context()\n"
        "leaked = [context.socket(zmq.SUB) for _ in range(500)]\n"
        "for one in leaked:\n"
        "    one.subscribe('')\n"
        "    one.connect(sys.argv[1])\n"
        "print('leaked', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", leak, ipc], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert eventually(lambda: pub.n_peers == MAX_PEERS)
            mine = sockets.connect("sub", ipc, 100)
            mine.subscribe("event/")
            assert eventually(lambda: pub.send([b"event/", b"x"]) and bool(mine.receive(50)))
        finally:
            process.kill()


def test_process_with_few_descriptors_survives_more_connections_than_it_has(
    sockets: Sockets, socket_dir: Path
) -> None:
    reader = (
        "import sys\n"
        "from ast_stream.transport.sockets import Sockets\n"
        "pull = Sockets().bind('pull', sys.argv[1], 8)\n"
        "print('bound', flush=True)\n"
        "print(pull.receive(60000), flush=True)\n"
    )
    endpoint = f"ipc://{socket_dir}/a.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", reader, endpoint],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200)),
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(400):
            dial(endpoint)
        push_connected(sockets.connect("push", endpoint, 1), [b"audio"])
        assert process.stdout.readline() == "[b'audio']\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("kind", "peer_kind", "rude"),
    [
        ("pub", b"SUB", subscribe(b"x" * 513)),
        ("pub", b"SUB", frame(b"\x01" + b"x" * 513)),  # as before ZMTP 3.1
        ("pub", b"SUB", frame(b"\x09SUBSCRIBE" + b"x" * 9000, COMMAND, size=15_000_000)),
        ("pub", b"SUB", frame(b"\x01" + b"x" * 9000, size=15_000_000)),
        ("pub", b"SUB", b"".join(subscribe(b"%d" % n) for n in range(100_000))),
        ("pub", b"SUB", b"".join(subscribe(b"%0400d" % n) for n in range(1000))),
        ("pull", b"PUSH", frame(b"x", MORE) * 100),
        ("pull", b"PUSH", frame(b"", MORE) * 100),
        ("pull", b"PUSH", frame(b"x" * 300_000, MORE) * 2),
        ("pull", b"PUSH", frame(b"x", size=2**63)),
        ("router", b"DEALER", frame(b"x", MORE) * 100),
        ("router", b"DEALER", frame(b"x" * 100, size=300_000)),
        ("router", b"DEALER", frame(b"x", 0x80)),
        ("router", b"DEALER", ready(b"DEALER") + frame(b"\x04PING", COMMAND | MORE)),
    ],
)
def test_peer_that_goes_beyond_a_limit_is_disconnected_and_no_other(
    sockets: Sockets, ipc: str, kind: Kind, peer_kind: bytes, rude: bytes
) -> None:
    bound = sockets.bind(kind, ipc, 8)
    polite, peer = greet(ipc, peer_kind), greet(ipc, peer_kind)
    assert eventually(lambda: bound.n_peers == 2)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.sendall(rude)
    assert is_cut_off(peer)
    assert eventually(lambda: bound.n_peers == 1)
    assert bound.disconnected == 1
    polite.sendall(frame(b"\x04PING\x00\x00", COMMAND))
    assert polite.recv(10) == frame(b"\x04PONG", COMMAND)


@pytest.mark.parametrize(
    "stranger",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x00" + bytes(54),
        b"\xff" + bytes(8) + b"\x7f\x01" + bytes(53),
        GREETING.replace(b"NULL", b"CURV"),
        GREETING + ready(b"PUB"),
        GREETING + ready(b"PUSH")[:-1] + b"\x00",
        GREETING + frame(b"\x05READY\x0bSocket-Type\xff\xff\xff\xffPUSH", COMMAND),
        GREETING + frame(b"hello"),
        GREETING + frame(b"", COMMAND),
        GREETING + frame(b"\x05ERROR\x03why", COMMAND),
    ],
)
def test_stranger_that_speaks_something_else_is_disconnected(
    sockets: Sockets, endpoint: str, stranger: bytes
) -> None:
    bound = sockets.bind("pull", endpoint, 8)
    peer = dial(endpoint)
    peer.sendall(stranger)
    assert is_cut_off(peer)
    assert bound.n_peers == 0


def test_requests_of_a_client_that_reads_no_answers_wait_and_others_are_answered(
    sockets: Sockets, ipc: str
) -> None:
    router = sockets.bind("router", ipc, 64)
    silent = [greet(ipc, b"DEALER") for _ in range(40)]
    for peer in silent:
        peer.sendall(frame(b"audio") * 50)
    client = sockets.connect("dealer", ipc, 64)
    for _ in range(5):
        client.send([b"mine"])
    answer = b"x" * 1_920_000  # a minute of audio
    n_silent = n_mine = 0
    while (request := router.receive(WAIT_MS if n_mine < 5 else 1000)) is not None:
        router.send([request[0], answer])
        if request[1] == b"mine":
            assert client.receive(WAIT_MS) == [answer]
            n_mine += 1
        else:
            n_silent += 1
    assert n_mine == 5
    assert n_silent <= len(silent)  # of 2000: the others wait until the first answer is read


def test_answers_that_are_read_late_all_come(sockets: Sockets, ipc: str) -> None:
    router = sockets.bind("router", ipc, 64)
    client = sockets.connect("dealer", ipc, 64)
    for n in range(20):
        client.send([b"%d" % n])
    answers = []
    for _ in range(20):
        request = router.receive(WAIT_MS)
        assert request is not None
        assert router.send([request[0], request[1] * 100_000])
        answer = client.receive(WAIT_MS)
        assert answer is not None
        answers.append(answer[0][:2])
    assert len(answers) == 20


def test_slow_subscriber_loses_the_newest_and_no_other_loses_anything(
    sockets: Sockets, ipc: str
) -> None:
    pub = sockets.bind("pub", ipc, 100)
    slow = greet(ipc, b"SUB")
    slow.sendall(subscribe(b"event/"))
    quick = sockets.connect("sub", ipc, 10_000)
    quick.subscribe("event/")
    assert eventually(lambda: pub.send([b"event/", b"-"]) and bool(quick.receive(10)))
    assert pub.send([b"event/", b"begin"])
    while quick.receive(WAIT_MS) != [b"event/", b"begin"]:
        pass
    body = b"x" * 10_000
    sent = []
    for n in range(500):
        sent.append(pub.send([b"event/", b"%d" % n, body]))
        got = quick.receive(WAIT_MS)
        assert got is not None
        assert got[1] == b"%d" % n
    assert sent[:50] == [True] * 50
    assert not sent[-1]
    assert pub.dropped == sent.count(False)
    assert pub.n_peers == 2


def test_subscriptions_can_be_cancelled(sockets: Sockets, ipc: str) -> None:
    pub = sockets.bind("pub", ipc, 100)
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    try:
        sub.connect(ipc)
        for topic in (b"a/", b"b/"):
            sub.setsockopt(zmq.SUBSCRIBE, topic)
        assert eventually(lambda: pub.send([b"b/", b""]) and bool(sub.poll(10)))
        sub.setsockopt(zmq.UNSUBSCRIBE, b"b/")
        assert eventually(lambda: _only(pub, sub, b"a/"))
    finally:
        sub.close(0)
        context.destroy(0)


def _only(pub: Listener, sub: zmq.Socket[bytes], wanted: bytes) -> bool:
    for topic in (b"a/", b"b/"):
        pub.send([topic, b""])
    time.sleep(0.05)
    got = set()
    while sub.poll(50):
        got.add(sub.recv_multipart()[0])
    return got == {wanted}


def test_req_and_dealer_of_libzmq_are_answered(sockets: Sockets, endpoint: str) -> None:
    router = sockets.bind("router", endpoint, 8)
    context = zmq.Context()
    req = context.socket(zmq.REQ)
    try:
        req.setsockopt(zmq.HEARTBEAT_IVL, 50)
        req.connect(endpoint)
        req.send(b"question")
        request = router.receive(WAIT_MS)
        assert request is not None
        identity, *rest = request
        assert rest == [b"", b"question"]
        time.sleep(0.3)  # some heartbeats
        assert router.send([identity, b"", b"answer"])
        assert req.poll(WAIT_MS)
        assert req.recv() == b"answer"
    finally:
        req.close(0)
        context.destroy(0)


def test_no_client_can_take_the_identity_of_another(sockets: Sockets, ipc: str) -> None:
    router = sockets.bind("router", ipc, 8)
    context = zmq.Context()
    clients = [context.socket(zmq.DEALER) for _ in range(2)]
    try:
        for client in clients:
            client.setsockopt(zmq.IDENTITY, b"worker")
            client.connect(ipc)
            client.send(b"x")
        found = [router.receive(WAIT_MS), router.receive(WAIT_MS)]
        assert len({answer[0] for answer in found if answer is not None}) == 2
    finally:
        context.destroy(0)


def test_router_tells_who_is_gone(sockets: Sockets, ipc: str) -> None:
    router = sockets.bind("router", ipc, 8)
    client = sockets.connect("dealer", ipc, 8)
    client.send([b"x"])
    request = router.receive(WAIT_MS)
    assert request is not None
    assert router.is_trusted(request[0])
    sockets.forget(client)
    assert eventually(lambda: not router.is_trusted(request[0]))
    assert not router.send([request[0], b"late"])


@pytest.mark.parametrize("removed", ["a.sock", "a.sock.lock", "both", "folder"])
def test_socket_file_that_was_removed_is_bound_again(
    sockets: Sockets, socket_dir: Path, removed: str
) -> None:
    folder = socket_dir / "run"
    endpoint = f"ipc://{folder}/a.sock"
    pull = sockets.bind("pull", endpoint, 8)
    before = sockets.connect("push", endpoint, 8)
    push_connected(before, [b"before"])
    for path in sorted(folder.iterdir()):
        if removed in (path.name, "both", "folder"):
            path.unlink()
    if removed == "folder":
        folder.rmdir()
    assert eventually((folder / "a.sock").is_socket)
    assert eventually((folder / "a.sock.lock").is_file)
    push_connected(sockets.connect("push", endpoint, 8), [b"after"])
    push_connected(before, [b"still connected"])
    got = {tuple(pull.receive(WAIT_MS) or ()) for _ in range(3)}
    assert got == {(b"before",), (b"after",), (b"still connected",)}
    other = Sockets()
    with pytest.raises(StartupError, match="in use by another process"):
        other.bind("pull", endpoint, 8)
    other.close()


def test_file_of_another_kind_in_the_place_of_a_socket_is_left_alone(
    sockets: Sockets, socket_dir: Path
) -> None:
    (socket_dir / "a.sock").write_text("precious")
    with pytest.raises(StartupError, match="exists and is not a socket"):
        sockets.bind("pull", f"ipc://{socket_dir}/a.sock", 8)
    assert (socket_dir / "a.sock").read_text() == "precious"


def test_closing_removes_the_file_and_disconnects(sockets: Sockets, socket_dir: Path) -> None:
    endpoint = f"ipc://{socket_dir}/a.sock"
    bound = sockets.bind("pull", endpoint, 8)
    peer = greet(endpoint, b"PUSH")
    sockets.forget(bound)
    assert is_cut_off(peer)
    assert not (socket_dir / "a.sock").exists()


def test_peers_that_come_and_go_are_not_kept(sockets: Sockets, ipc: str) -> None:
    pull = sockets.bind("pull", ipc, 8)
    for _ in range(300):
        peer = greet(ipc, b"PUSH")
        peer.sendall(frame(b"x" * 100_000))
        peer.close()
    assert eventually(lambda: pull.n_peers == 0)
    gc.collect()
    while pull.receive(100) is not None:
        pass
    push_connected(sockets.connect("push", ipc, 8), [b"y"])
    assert pull.receive(WAIT_MS) == [b"y"]


def test_poller_wakes_for_a_bound_socket_each_time_it_has_something(
    sockets: Sockets, ipc: str
) -> None:
    pull = sockets.bind("pull", ipc, 8)
    poller = Poller([pull])
    push = sockets.connect("push", ipc, 8)
    for n in range(3):
        push_connected(push, [b"%d" % n])
        poller.wait(WAIT_MS)
        assert pull.receive() == [b"%d" % n]
    began_s = time.monotonic()
    poller.wait(50)
    assert time.monotonic() - began_s > 0.04  # nothing is left: it waits


MESSAGES = st.lists(
    st.lists(st.binary(max_size=300), min_size=1, max_size=MAX_PARTS), min_size=1, max_size=5
)


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 4000), max_size=20))
def test_messages_are_the_same_however_their_bytes_are_cut(
    messages: list[list[bytes]], cuts: list[int]
) -> None:
    data = GREETING + ready(b"PUSH") + b"".join(map(encode_message, messages))
    session = ZmtpSession("pull", 100_000)
    got = []
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, stop in itertools.pairwise(places):
        session.feed(data[start:stop])
        while (message := session.next_message()) is not None:
            got.append(message)
    assert got == messages


@given(data=st.binary(max_size=200), kind=st.sampled_from(["pull", "pub", "router"]))
def test_any_bytes_after_the_greeting_are_messages_or_refused(data: bytes, kind: Kind) -> None:
    session = ZmtpSession(kind, 1000)
    peer = {"pull": b"PUSH", "pub": b"SUB", "router": b"REQ"}[kind]
    session.feed(GREETING + ready(peer) + data)
    got: list[list[bytes]] = []
    with contextlib.suppress(WireError):
        got.extend(iter(session.next_message, None))
    assert sum(len(part) for message in got for part in message) <= len(data)


def test_a_socket_whose_file_cannot_be_removed_is_closed_all_the_same(
    sockets: Sockets, ipc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        bound = sockets.bind("pull", ipc, hwm=1)
        patch.setattr(os, "unlink", broken)
        sockets.forget(bound)
    sockets.bind("pull", ipc, hwm=1)


@pytest.fixture
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = next(n for n in itertools.count() if not os.path.lexists(f"/proc/self/fd/{n}"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_descriptor_to_ask_with_nobody_is_seen_to_listen(
    sockets: Sockets, ipc: str, request: pytest.FixtureRequest
) -> None:
    sockets.bind("pull", ipc, 10)
    assert listening_process(ipc) == os.getpid()
    request.getfixturevalue("no_descriptors")
    assert listening_process(ipc) is None


def test_a_process_that_accepts_nobody_is_seen_to_listen_until_it_is_gone(ipc: str) -> None:
    assert not is_listened_at(ipc)
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(ipc.removeprefix("ipc://"))
        stopped.listen(2)
        for _ in range(5):  # more than there is room for
            assert is_listened_at(ipc)
    assert not is_listened_at(ipc)
    assert not is_listened_at("tcp://127.0.0.1:1")
