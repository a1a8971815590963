from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from damage import STRANGE_FILES, make_strange

from ast_stream.errors import StartupError
from ast_stream.runtime.files import lock_file
from ast_stream.transport.sockets import (
    AUDIO_HWM_BLOCKS,
    MAX_MESSAGE_BYTES,
    Poller,
    Socket,
    Sockets,
)

WAIT_MS = 60_000  # a limit, not a duration: messages come at once


@pytest.fixture
def endpoint(socket_dir: Path) -> str:
    return f"ipc://{socket_dir}/a.sock"


def send_when_connected(socket: Socket, frames: list[bytes]) -> None:
    for _ in range(WAIT_MS):
        if socket.send(frames):
            return
        time.sleep(0.001)
    raise AssertionError("never connected")


def test_blocks_pushed_are_pulled_in_order(sockets: Sockets, endpoint: str) -> None:
    pull = sockets.bind("pull", endpoint, AUDIO_HWM_BLOCKS)
    push = sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
    send_when_connected(push, [b"a", b"1"])
    assert push.send([b"b", b"2"])
    assert [pull.receive(WAIT_MS), pull.receive(WAIT_MS)] == [[b"a", b"1"], [b"b", b"2"]]


def test_receive_gives_none_when_nothing_is_there(sockets: Sockets, endpoint: str) -> None:
    pull = sockets.bind("pull", endpoint, 1)
    assert pull.receive() is None
    assert pull.receive(timeout_ms=1) is None


def test_push_without_a_peer_is_refused_and_not_queued(sockets: Sockets, endpoint: str) -> None:
    push = sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
    assert not push.send([b"lost"])


def test_push_to_a_peer_that_does_not_read_is_refused_after_a_bounded_number(
    sockets: Sockets, socket_dir: Path
) -> None:
    endpoint = f"ipc://{socket_dir}/a.sock"
    sockets.bind("pull", endpoint, AUDIO_HWM_BLOCKS)
    push = sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
    block = [b"x" * 100_000]
    send_when_connected(push, block)
    refused = 0
    for _ in range(200):
        refused += not push.send(block)
    assert refused > 100


def test_subscriber_gets_its_topics_and_no_other(sockets: Sockets, endpoint: str) -> None:
    publisher = sockets.bind("pub", endpoint, 10)
    subscriber = sockets.connect("sub", endpoint, 10)
    subscriber.subscribe("event/bark/")
    received = None
    for _ in range(WAIT_MS):  # until the subscription has arrived
        publisher.send([b"event/barking/porch/", b"other"])
        publisher.send([b"event/bark/porch/", b"mine"])
        received = subscriber.receive(timeout_ms=1)
        if received:
            break
    assert received == [b"event/bark/porch/", b"mine"]


def test_router_answer_to_a_peer_that_is_gone_is_dropped(sockets: Sockets, endpoint: str) -> None:
    router = sockets.bind("router", endpoint, 10)
    assert router.send([b"nobody", b"answer"]) in (True, False)  # and raises nothing
    dealer = sockets.connect("dealer", endpoint, 10)
    dealer.send([b"question"])
    message = router.receive(WAIT_MS)
    assert message is not None
    assert router.send([message[0], b"answer"])
    assert dealer.receive(WAIT_MS) == [b"answer"]


def test_poller_returns_for_the_socket_that_has_a_message(
    sockets: Sockets, socket_dir: Path
) -> None:
    silent = sockets.bind("pull", f"ipc://{socket_dir}/silent.sock", 1)
    pull = sockets.bind("pull", f"ipc://{socket_dir}/a.sock", 1)
    poller = Poller([silent])
    poller.add(pull)
    push = sockets.connect("push", f"ipc://{socket_dir}/a.sock", 1)
    send_when_connected(push, [b"x"])
    poller.wait(WAIT_MS)
    assert pull.receive() == [b"x"]
    poller.remove(silent)
    poller.wait(0)


def test_second_bind_of_a_live_endpoint_is_refused(sockets: Sockets, endpoint: str) -> None:
    first = sockets.bind("pull", endpoint, AUDIO_HWM_BLOCKS)
    other = Sockets()
    with pytest.raises(StartupError, match=r"a\.sock is in use by another process"):
        other.bind("pull", endpoint, AUDIO_HWM_BLOCKS)
    other.close()
    push = sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
    send_when_connected(push, [b"still mine"])
    assert first.receive(WAIT_MS) == [b"still mine"]


def test_endpoint_is_free_again_once_closed(sockets: Sockets, endpoint: str) -> None:
    sockets.forget(sockets.bind("pull", endpoint, 1))
    pull = sockets.bind("pull", endpoint, 1)
    send_when_connected(sockets.connect("push", endpoint, 1), [b"x"])
    assert pull.receive(WAIT_MS) == [b"x"]


def test_endpoint_left_behind_by_a_killed_process_can_be_bound(
    sockets: Sockets, endpoint: str
) -> None:
    code = (
        "import os, sys; from ast_stream.transport.sockets import Sockets\n"
        "s = Sockets(); s.bind('pull', sys.argv[1], 1); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, endpoint], check=False)
    assert killed.returncode == -9
    assert Path(endpoint.removeprefix("ipc://")).exists()
    sockets.bind("pull", endpoint, 1)


def test_endpoints_files_are_for_owner_and_group(sockets: Sockets, socket_dir: Path) -> None:
    path = socket_dir / "sub" / "a.sock"
    mask = os.umask(0o022)
    try:
        sockets.bind("pull", f"ipc://{path}", 1)
    finally:
        assert os.umask(mask) == 0o022
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


@pytest.mark.parametrize("endpoint", ["ipc:///proc/nope/a.sock", "tcp://256.0.0.1:1", "nonsense"])
def test_endpoint_that_cannot_be_bound_is_explained(sockets: Sockets, endpoint: str) -> None:
    with pytest.raises(StartupError, match=endpoint):
        sockets.bind("pull", endpoint, 1)


def test_endpoint_that_is_none_cannot_be_connected(sockets: Sockets) -> None:
    with pytest.raises(StartupError, match="cannot connect to nonsense"):
        sockets.connect("push", "nonsense", 1)


def test_peer_that_sends_too_much_is_disconnected(sockets: Sockets, endpoint: str) -> None:
    pull = sockets.bind("pull", endpoint, 1)
    rude = sockets.connect("push", endpoint, 1)
    send_when_connected(rude, [b"x" * (MAX_MESSAGE_BYTES + 1)])
    polite = sockets.connect("push", endpoint, 1)
    send_when_connected(polite, [b"hello"])
    assert pull.receive(WAIT_MS) == [b"hello"]


READER = """
import sys, time
from ast_stream.transport.sockets import Sockets
pull = Sockets().bind('pull', sys.argv[1], 8)
print('bound', flush=True)
sys.stdin.readline()  # a worker that loads a model
n = 0
while pull.receive(500): n += 1
print(n, flush=True)
"""
WRITER = """
import sys, time
from ast_stream.transport.sockets import Sockets
push = Sockets().connect('push', sys.argv[1], 8)
while not push.send([b'porch', bytes(3200)]): time.sleep(0.005)
refused = 0
while refused < 20:
    refused += not push.send([b'porch', bytes(3200)])
    time.sleep(0.001)
print('full', flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_writer_that_ends_while_the_queue_is_full_does_not_end_the_reader(
    endpoint: str, how: signal.Signals
) -> None:
    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, endpoint]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    with start(READER) as reader, start(WRITER) as writer:
        assert reader.stdout is not None
        assert writer.stdout is not None
        assert reader.stdout.readline() == "bound\n"
        assert writer.stdout.readline() == "full\n"
        writer.send_signal(how)
        time.sleep(2)  # longer than the heartbeats that libzmq would send
        writer.kill()
        out, _ = reader.communicate("\n", timeout=30)
        assert int(out) >= 8
    assert reader.returncode == 0


def test_lock_names_what_is_in_use_and_is_released_by_closing(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "run.lock", "the folder")
    with pytest.raises(StartupError, match="the folder is in use by another process"):
        lock_file(tmp_path / "run.lock", "the folder")
    os.close(held)
    os.close(lock_file(tmp_path / "run.lock", "the folder"))


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_lock_neither_follows_nor_waits_for_nor_gives_way_to_what_lies_in_its_place(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "run.lock"
    make_strange(path, kind)
    lock_fd = lock_file(path, "the folder")
    with pytest.raises(StartupError, match="the folder is in use by another process"):
        lock_file(path, "the folder")
    os.close(lock_fd)
    assert not (tmp_path / "nowhere").exists()
