"""The query endpoint: every request one answer, and nothing changed by a bad one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_messages import health, worker_status

from ast_stream.errors import WireError
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import FeedMessage
from ast_stream.messages.query import (
    CoverageQuery,
    PingQuery,
    ReplayPage,
    ReplayQuery,
    Snapshot,
    TooOld,
    decode_replay,
)
from ast_stream.privacy.access import AudioAccess
from ast_stream.privacy.audit import AuditLog
from ast_stream.sample_clock import SampleClock
from ast_stream.transport.allow_list import Rights
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.listener import Listener
from ast_stream.transport.query import (
    ANSWERS_A_TURN,
    AudioRange,
    LaterAnswers,
    QueryServer,
    ReleasedAudio,
)
from ast_stream.transport.requester import NOBODY, Requester
from ast_stream.transport.sockets import Sockets
from ast_stream.transport.zmtp import GREETING, encode_message
from ast_stream.units import SAMPLE_RATE, format_time

START_NS = 1_700_000_000_000_000_000
TURNS = 5000  # only a failing test takes as many


class Publisher:
    boot = "b1"
    started_ns = START_NS
    durable_position = ("b1", 12)


class NoSocket:
    """For requests handed over directly."""

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        raise AssertionError

    def send(self, frames: list[bytes]) -> bool:
        raise AssertionError

    def requester(self, identity: bytes) -> Requester:
        return NOBODY


def held(wanted: AudioRange) -> AudioBlock:
    """A stream `porch` that holds samples 1600 to 4800, which began at START_NS."""
    if wanted.stream != "porch":
        raise WireError(f"audio: no stream {wanted.stream}")
    clock = SampleClock.from_start(START_NS)
    start, stop = wanted.samples(clock)
    start, stop = max(1600, start), min(4800, stop)
    pcm = np.arange(start, max(start, stop), dtype=np.int16)
    return AudioBlock("porch", "aaaaaaaa", start, clock.moment(start), pcm)


def no_speech(block: AudioBlock) -> list[tuple[int, int]]:
    return []


def server(
    log: EventLog | None = None,
    socket: Listener | NoSocket | None = None,
    now_s: Callable[[], float] = lambda: 0.0,
    audio: Callable[[AudioRange, Requester], ReleasedAudio] = lambda wanted, requester: (
        ReleasedAudio(held(wanted))
    ),
    coverage: LaterAnswers | None = None,
) -> QueryServer:
    return QueryServer(
        socket or NoSocket(),
        log,
        Publisher(),
        snapshot=lambda: Snapshot(boot="b1", streams=[health()], events=[], status=worker_status()),
        audio=audio,
        coverage=coverage,
        now_s=now_s,
    )


def ask(queries: QueryServer, body: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(queries.answer([json.dumps(body).encode()])[0])
    return answer


def filled_log(folder: Path) -> EventLog:
    log = EventLog(folder)
    log.begin("b1")
    for seq in range(1, 13):
        log.append(
            FeedMessage("gap/porch/", {"v": 1, "boot": "b1", "seq": seq, "previous": seq - 1})
        )
    return log


def test_ping_says_where_the_publisher_stands() -> None:
    assert ask(server(), {"op": "ping"}) == {
        "v": 1,
        "boot": "b1",
        "started": format_time(START_NS),
        "durable_seq": 12,
    }


def test_snapshot_is_the_workers() -> None:
    assert ask(server(), {"op": "snapshot"}) == {
        "v": 1,
        "boot": "b1",
        "streams": [health().to_json()],
        "events": [],
        "status": worker_status().to_json(),
    }


def test_replay_gives_topics_and_bodies(tmp_path: Path) -> None:
    queries = server(filled_log(tmp_path))
    answer = ask(queries, {"op": "replay", "after": ["b1", 10]})
    assert answer["more"] is False
    assert [entry["topic"] for entry in answer["messages"]] == ["gap/porch/"] * 2
    assert [entry["body"]["seq"] for entry in answer["messages"]] == [11, 12]
    page = decode_replay(queries.answer(ReplayQuery().encode()))
    assert isinstance(page, ReplayPage)
    assert [message.position[1] for message in page.messages] == list(range(13))


def test_replay_of_what_is_gone_says_where_to_go_on(tmp_path: Path) -> None:
    queries = server(filled_log(tmp_path))
    assert ask(queries, {"op": "replay", "after": ["b0", 3]}) == {
        "v": 1,
        "error": "too_old",
        "oldest": ["b1", 0],
    }
    assert decode_replay(queries.answer(ReplayQuery(after=("b0", 3)).encode())) == TooOld(("b1", 0))


def test_replay_without_a_log_is_refused() -> None:
    assert "no event log" in ask(server(), {"op": "replay"})["error"]


@pytest.mark.parametrize(
    ("start", "stop"),
    [(1600, 3200), (format_time(START_NS + 10**8), format_time(START_NS + 2 * 10**8))],
)
def test_audio_is_asked_by_samples_or_times(start: object, stop: object) -> None:
    query = {"op": "audio", "stream": "porch", "from": start, "to": stop}
    header, pcm = server().answer([json.dumps(query).encode()])
    assert json.loads(header) == {
        "v": 1,
        "boot": "b1",
        "stream": "porch",
        "epoch": "aaaaaaaa",
        "start": 1600,
        "rate": SAMPLE_RATE,
        "samples": 1600,
        "time": format_time(START_NS + 10**8),
        "monotonic_ns": START_NS + 10**8,
    }
    np.testing.assert_array_equal(np.frombuffer(pcm, "<i2"), np.arange(1600, 3200))


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 60 * SAMPLE_RATE + 1, "60 s"),
        (5, 4, "60 s"),
        (0, "2026-01-01T00:00:00Z", "both"),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:01", "offset"),
        ("yesterday", "today", "from"),
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", ""),
        (0, None, "to"),
    ],
)
def test_impossible_audio_is_refused(start: object, stop: object, expected: str) -> None:
    query = {"op": "audio", "stream": "porch", "from": start, "to": stop}
    answer = ask(server(), query)
    assert expected in answer["error"]


def test_unknown_stream_is_refused_in_the_workers_words() -> None:
    query = {"op": "audio", "stream": "attic", "from": 0, "to": 1}
    assert ask(server(), query) == {"v": 1, "error": "audio: no stream attic"}


def test_refusals_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    queries = server(now_s=lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            assert "error" in ask(queries, {"op": "stop\nnow"})
        assert len(caplog.records) == 1
        now_s[0] = 60.0
        ask(queries, {"op": 5})
    assert len(caplog.records) == 2
    assert "9 more" in caplog.text
    assert "stop\nnow" not in caplog.text
    assert queries.answered == {"refused": 11}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["v", "op", "after", "stream", "from", "to", "epoch", "\ud800", "x\n"])
OPS = st.sampled_from(["replay", "snapshot", "audio", "ping", "stop", "\ud800"])


@pytest.mark.slow
@given(
    frames=st.one_of(
        st.lists(st.binary(max_size=100), max_size=3),
        st.fixed_dictionaries({"op": OPS}, optional={"v": JSON})
        .flatmap(lambda body: st.dictionaries(KEYS, JSON).map(lambda extra: extra | body))
        .map(lambda body: [json.dumps(body).encode()]),
        st.just([b'{"op":"ping"' + b" " * 20_000 + b"}"]),
    )
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_request_gets_one_json_answer(frames: list[bytes]) -> None:
    queries = server()
    answer = queries.answer(frames)
    body = json.loads(answer[0])
    assert body["v"] == 1
    assert len(answer) == (2 if "samples" in body else 1)
    assert queries.answered.total() == 1


def test_dealer_and_req_are_both_answered(sockets: Sockets, socket_dir: Path) -> None:
    endpoint = f"ipc://{socket_dir}/query.sock"
    queries = server(socket=sockets.bind("router", endpoint, 64))
    dealer = sockets.connect("dealer", endpoint, 64)
    for envelope in ([], [b""]):
        dealer.send([*envelope, *PingQuery().encode()])
        answer = None
        for _ in range(TURNS):
            queries.serve()
            if (answer := dealer.receive(10)) is not None:
                break
        assert answer is not None
        assert answer[:-1] == envelope
        assert json.loads(answer[-1])["boot"] == "b1"


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["feed"], {"replay", "snapshot", "ping"}),
        (["audio"], {"audio", "ping"}),
        (["push:*", "scores", "admin"], {"ping"}),
    ],
)
def test_a_query_needs_the_right_to_what_it_asks_for(
    tmp_path: Path, words: list[str], allowed: set[str]
) -> None:
    audio = AudioAccess("off", AuditLog(tmp_path / "audit", max_bytes=4096), held, no_speech)
    queries = server(EventLog(tmp_path / "events"), audio=audio.release)
    client = replace(NOBODY, rights=Rights.of(words))
    answered = set()
    for op in ("replay", "snapshot", "ping", "audio"):
        query = {"op": op} | ({"stream": "porch", "from": 0, "to": 1} if op == "audio" else {})
        body = json.loads(queries.answer([json.dumps(query).encode()], client)[0])
        assert "error" not in body or "not allowed: the client lacks the right" in body["error"]
        answered |= set() if "error" in body else {op}
    assert answered == allowed


AS_ANOTHER_USER = """
import os, socket, sys
peer = socket.socket(socket.AF_UNIX)
os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(65534, 65534, 65534)
peer.connect(sys.argv[1])
peer.settimeout(10)
peer.sendall(bytes.fromhex(sys.argv[2]))
got = b""
while b"}" not in got[64:] and (data := peer.recv(65536)): got += data
sys.stdout.buffer.write(got)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("op", ["audio", "replay"])
def test_members_of_the_group_read_events_and_never_listen(
    sockets: Sockets, socket_dir: Path, tmp_path: Path, op: str
) -> None:
    socket_dir.chmod(0o750)
    router = sockets.bind("router", f"ipc://{socket_dir}/query.sock", 8)
    audio = AudioAccess("off", AuditLog(tmp_path / "audit", max_bytes=4096), held, no_speech)
    queries = server(EventLog(tmp_path / "events"), router, audio=audio.release)
    query = {"op": op} | ({"stream": "porch", "from": 1600, "to": 1700} if op == "audio" else {})
    ready = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    said = GREETING + ready + encode_message([json.dumps(query).encode()])
    command = [sys.executable, "-c", AS_ANOTHER_USER, str(socket_dir / "query.sock"), said.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as member:
        while queries.serve() == 0 and member.poll() is None:
            time.sleep(0.01)
        answer, _ = member.communicate(timeout=30)
    assert member.returncode == 0
    assert (b"lacks the right 'audio'" in answer) == (op == "audio")
    assert (b'"messages"' in answer) == (op == "replay")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_audio_of_another_user_is_not_received_over_ipc(
    sockets: Sockets, socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    socket_dir.chmod(0o750)
    pull = sockets.bind("pull", f"ipc://{socket_dir}/audio.sock", 8)
    command = [sys.executable, "-c", AS_ANOTHER_USER, str(socket_dir / "audio.sock"), ""]
    subprocess.run(command, timeout=30, check=False)  # cut off, so it ends
    assert pull.disconnected == 1
    assert "expected a process of user 0 or root" in caplog.text
    assert pull.receive() is None


def test_one_turn_answers_a_bounded_number(sockets: Sockets, socket_dir: Path) -> None:
    endpoint = f"ipc://{socket_dir}/query.sock"
    queries = server(socket=sockets.bind("router", endpoint, 64))
    dealer = sockets.connect("dealer", endpoint, 64)
    for _ in range(3 * ANSWERS_A_TURN):
        assert dealer.send(PingQuery().encode())
    turns = []
    for _ in range(TURNS):
        turns.append(queries.serve())
        if sum(turns) == 3 * ANSWERS_A_TURN:
            break
        dealer.receive(2)
    assert sum(turns) == 3 * ANSWERS_A_TURN
    assert max(turns) <= ANSWERS_A_TURN


def test_a_client_that_never_reads_does_not_stop_the_others(
    sockets: Sockets, socket_dir: Path, tmp_path: Path
) -> None:
    log = EventLog(tmp_path)
    log.begin("b1")
    pad = "x" * 100_000
    for seq in range(1, 12):
        body = {"v": 1, "boot": "b1", "seq": seq, "previous": seq - 1, "pad": pad}
        log.append(FeedMessage("gap/porch/", body))
    endpoint = f"ipc://{socket_dir}/query.sock"
    queries = server(log, sockets.bind("router", endpoint, 2))
    silent = sockets.connect("dealer", endpoint, 2)
    for _ in range(60):
        silent.send(ReplayQuery().encode())
        queries.serve()
    dealer = sockets.connect("dealer", endpoint, 64)
    dealer.send(PingQuery().encode())
    answer = None
    for _ in range(TURNS):
        queries.serve()
        if (answer := dealer.receive(10)) is not None:
            break
    assert answer is not None
    assert json.loads(answer[0])["durable_seq"] == 12


class Later:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[bytes], CoverageQuery]] = []
        self.is_ready = False

    def ask(self, envelope: list[bytes], query: CoverageQuery) -> None:
        self.asked.append((envelope, query))

    def finished(self) -> list[tuple[list[bytes], list[bytes]]]:
        if not self.is_ready:
            return []
        asked, self.asked = self.asked, []
        return [(envelope, [b"spans"]) for envelope, _ in asked]


class Clients(NoSocket):
    """Clients whose requests are given, and the answers to them."""

    def __init__(self, *requests: list[bytes]) -> None:
        self._requests = list(requests)
        self.answers: list[list[bytes]] = []

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        return self._requests.pop(0) if self._requests else None

    def send(self, frames: list[bytes]) -> bool:
        self.answers.append(frames)
        return True

    def requester(self, identity: bytes) -> Requester:
        rights = Rights.of(["feed"]) if identity == b"reader" else NOBODY.rights
        return replace(NOBODY, rights=rights)


def test_others_are_answered_while_coverage_is_read() -> None:
    coverage = CoverageQuery().encode()
    clients = Clients([b"reader", *coverage], [b"reader", *PingQuery().encode()])
    later = Later()
    queries = server(socket=clients, coverage=later)
    assert queries.serve() == 2
    assert [json.loads(answer[1])["durable_seq"] for answer in clients.answers] == [12]
    later.is_ready = True
    queries.serve()
    assert clients.answers[1:] == [[b"reader", b"spans"]]


def test_coverage_is_for_readers_of_the_feed() -> None:
    clients = Clients([b"anybody", *CoverageQuery().encode()])
    later = Later()
    server(socket=clients, coverage=later).serve()
    assert later.asked == []
    assert "lacks the right 'feed'" in json.loads(clients.answers[0][1])["error"]


def test_a_publisher_without_a_ledger_says_so() -> None:
    assert "no coverage ledger" in ask(server(), {"op": "coverage"})["error"]
