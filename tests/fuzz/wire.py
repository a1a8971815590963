"""Decoders of what comes over sockets: messages, queries and their answers, ZMTP and CURVE."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import sample_messages as samples
from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from nacl import bindings
from opus_blocks import blocks_of, coded_samples, noisy_tones
from rule_bodies import rules_from

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.notification import Notification
from ast_stream.audio.opus import DifferentSamplesError, OpusReader
from ast_stream.coverage.spans import Span
from ast_stream.errors import WireError
from ast_stream.machine_clock import Moment
from ast_stream.messages.administration import (
    AcknowledgeRequest,
    Administered,
    DropRequest,
    RetryRequest,
    SnoozeRequest,
    decode_administration,
)
from ast_stream.messages.audio import (
    AckRequest,
    AudioBlock,
    ReadRequest,
    RingReply,
    decode_ring_request,
)
from ast_stream.messages.codec import add_checksum
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.messages.query import (
    AudioAnswer,
    PingAnswer,
    ReplayPage,
    Snapshot,
    TooOld,
    decode_query,
    decode_replay,
    refuse_query,
)
from ast_stream.transport.curve import CurveServer, make_key
from ast_stream.transport.keys import decode_key
from ast_stream.transport.listener import Listener, Reactor
from ast_stream.transport.query import _audio_range
from ast_stream.transport.zmtp import (
    GREETING,
    MAX_COMMAND_BYTES,
    MAX_SUBSCRIBED_BYTES,
    Kind,
    ZmtpSession,
    encode_message,
)

T0_NS = samples.T0_NS
_STAMP = Stamp("b1", 7, Moment(T0_NS, 5_000_000_000), previous=6)
_STATUS_STAMP = Stamp("b1", 8, Moment(T0_NS, 5_000_000_000), durable_seq=6)
_ZMTP_BYTES = 4_096  # of a message, in these sessions


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    yield Decoder("audio block", _blocks(), _audio_block)
    yield Decoder("blocks of Opus", [_opus_blocks()], _decode_opus)
    yield Decoder("ring request", _ring_requests(), _ring_request)
    yield Decoder("ring reply", _ring_replies(), _ring_reply)
    yield Decoder("query", _queries(), _query)
    yield Decoder("request to administrate", _requests(), _request)
    administered = Administered(deliveries=3, until_ns=T0_NS)
    yield Decoder("answer: done", [tuple(administered.encode())], _answer(Administered.decode))
    yield Decoder("answer: ping", [tuple(_ping().encode())], _answer(PingAnswer.decode))
    yield Decoder("answer: snapshot", [tuple(_snapshot().encode())], _answer(Snapshot.decode))
    yield Decoder("answer: audio", [tuple(_audio_answer().encode())], _answer(AudioAnswer.decode))
    yield Decoder("answer: replay", _pages(), _replay)
    yield Decoder("feed message", _feed_messages(), _feed_message, share=2.0)
    yield Decoder("line of the event log", _log_lines(), _log_line, repair=_with_checksums)
    yield Decoder("line of the ledger", _span_lines(), _span_line, repair=_with_checksums)
    yield Decoder("notification in the outbox", [(_notification().encode(),)], _decode_notification)
    yield Decoder("messages for the rules", _rule_streams(), _rules, share=0.1)
    for kind in ("pull", "pub", "router"):
        yield Decoder(f"ZMTP, {kind}", _zmtp_seeds(kind), _zmtp(kind))
    yield Decoder("CURVE handshake", [(b"", b"", b"", b"")], _curve, share=0.5)
    door = _Door(scratch)
    yield Decoder("connection to a socket", _connections(), door.connect, 0.15, close=door.close)


# audio


def _blocks() -> list[Case]:
    plain = AudioBlock(
        "porch", "9f2c4e1a", 483_200, Moment(T0_NS, 7_000_000), np.arange(50, dtype=np.int16),
        ring="ipc:///run/ast-stream/ring.porch.sock",
    )  # fmt: skip
    last = AudioBlock(
        "yard-2", "0" * 32, 0, Moment(T0_NS, 0), np.zeros(0, np.int16), gap_reason="overflow",
        is_last=True, state="missing", detail="the device is gone", clock="x/1",
    )  # fmt: skip
    return [tuple(plain.encode()), tuple(last.encode())]


def _audio_block(case: Case) -> AudioBlock:
    block = AudioBlock.decode(list(case))
    again = AudioBlock.decode(block.encode())
    if not np.array_equal(again.pcm, block.pcm) or again.encode() != block.encode():
        raise Broken("a block does not come back as it was")
    block.by_clock_of(Moment(T0_NS, 1))
    return block


def _opus_blocks() -> Case:
    """Return two blocks in a row: one that begins a run, and what follows it."""
    first, second, *_ = blocks_of(coded_samples(noisy_tones(0.2)))
    return (*first.encode(), *second.encode())


def _decode_opus(case: Case) -> object:
    reader = OpusReader()
    found = None
    for at in range(0, len(case), 3):
        block = AudioBlock.decode(list(case[at : at + 3]))
        if AudioBlock.decode(block.encode()).encode() != block.encode():
            raise Broken("a block does not come back as it was")
        if block.opus is None:
            continue
        with suppress(DifferentSamplesError):
            found = reader.read(block)
            if found is not None and found.shape != (len(block.pcm),):
                raise Broken("a block decodes to another number of samples")
    return found


def _ring_requests() -> list[Case]:
    read = ReadRequest(v=1, op="read", stream="porch", epoch="9f2c4e1a", start=1, stop=2)
    ack = AckRequest(v=1, op="ack", epoch="9f2c4e1a", stop=7)
    return [tuple(read.encode()), (b'{"v":1,"op":"read","stream":"porch"}',), tuple(ack.encode())]


def _ring_request(case: Case) -> object:
    request = decode_ring_request(list(case))
    if decode_ring_request(request.encode()) != request:
        raise Broken("a request does not come back as it was")
    return request


def _ring_replies() -> list[Case]:
    block = AudioBlock.decode(list(_blocks()[0]))
    return [tuple(RingReply(block, 0, 483_300, 5, is_paced=False).encode())]


def _ring_reply(case: Case) -> RingReply:
    reply = RingReply.decode(list(case), "porch")
    if RingReply.decode(reply.encode(), "porch").encode() != reply.encode():
        raise Broken("a reply does not come back as it was")
    return reply


# queries


def _queries() -> list[Case]:
    bodies: list[dict[str, Any]] = [
        {"op": "replay", "after": ["b1", 7]}, {"op": "replay", "after": None},
        {"v": 1, "op": "snapshot"}, {"op": "ping"},
        {"op": "audio", "stream": "porch", "from": 0, "to": 16000},
        {
            "op": "audio", "stream": "porch", "epoch": "9f2c4e1a",
            "from": "2026-11-20T10:00:00Z", "to": "2026-11-20T10:00:05+00:00",
        },
    ]  # fmt: skip
    return [(json.dumps(body).encode(),) for body in bodies]


def _query(case: Case) -> object:
    query = decode_query(list(case))
    if decode_query(query.encode()) != query:
        raise Broken("a query does not come back as it was")
    if query.op == "audio":
        wanted = _audio_range(query)
        if not wanted.stop - wanted.start >= 0:
            raise Broken("a range ends before it begins")
    refuse_query("no")
    return query


def _requests() -> list[Case]:
    requests = (
        AcknowledgeRequest(alert="ysl7yjzd"),
        SnoozeRequest(rule="dog", for_s=7200.0),
        RetryRequest(numbers=[17, 18]),
        DropRequest(action="phone"),
    )
    return [tuple(request.encode()) for request in requests]


def _request(case: Case) -> object:
    request = decode_administration(list(case))
    if decode_administration(request.encode()) != request:
        raise Broken("a request does not come back as it was")
    return request


def _ping() -> PingAnswer:
    return PingAnswer(boot="b1", started_ns=T0_NS, durable_seq=6)


def _snapshot() -> Snapshot:
    return Snapshot(
        boot="b1",
        streams=[samples.health(level_dbfs=-50.0, lag_s=0.1)],
        events=[samples.event_message()],
        status=samples.worker_status(counters={"windows": 3}),
    )


def _audio_answer() -> AudioAnswer:
    return AudioAnswer(AudioBlock.decode(list(_blocks()[0])), "b1")


def _answer(decode: Callable[[list[bytes]], Any]) -> Callable[[Case], object]:
    def again(case: Case) -> object:
        answer = decode(list(case))
        if decode(answer.encode()).encode() != answer.encode():
            raise Broken("an answer does not come back as it was")
        return answer

    return again


def _pages() -> list[Case]:
    messages = [FeedMessage.of(samples.event_message(), _STAMP), FeedMessage.start_of("b0")]
    page = ReplayPage([*messages, FeedMessage.of(samples.gap_message(), _STAMP)], more=True)
    return [
        tuple(page.encode("b1")),
        tuple(TooOld(("b1", 3)).encode()),
        tuple(TooOld(None).encode()),
    ]


def _replay(case: Case) -> object:
    page = decode_replay(list(case))
    if isinstance(page, ReplayPage):
        for message in page.messages:
            _use(message)
    return page


# the feed


def _contents() -> list[tuple[Any, Stamp]]:
    ended = samples.event_message(
        type="end", offset_ns=T0_NS + 10**9, duration_s=1.0, reason="quiet", mean=0.5,
        labels={"room": "porch"}, offset_sample=32_000, scored_ns=T0_NS, model="sha256:00",
    )  # fmt: skip
    return [
        (samples.event_message(), _STAMP),
        (ended, _STAMP),
        (samples.gap_message(time_ns=T0_NS), _STAMP),
        (samples.health(level_dbfs=-40.0, detail="no audio", epoch="aaaaaaaa"), _STATUS_STAMP),
        (samples.worker_status(), _STATUS_STAMP),
        (samples.alerts_status(failing=[samples.FAILING]), _STATUS_STAMP),
        (samples.recorder_status(disk="full"), _STATUS_STAMP),
        (samples.alert(), _STAMP),
        (samples.levels_message(), _STAMP),
    ]


def _feed_messages() -> list[Case]:
    cases = [tuple(FeedMessage.of(content, stamp).encode()) for content, stamp in _contents()]
    scores = np.linspace(0, 1, 5, dtype=np.float16)
    stamp = Stamp("b1", 9, Moment(T0_NS, 1))
    header, levels = samples.spectrogram_header(), np.arange(256, dtype=np.uint8).reshape(2, 128)
    return [
        *cases,
        tuple(FeedMessage.of(samples.scores_header(), stamp, scores).encode()),
        tuple(FeedMessage.of(header, stamp, spectrogram=levels).encode()),
    ]


def _use(message: FeedMessage) -> None:
    """Ask a message all that readers ask it."""
    facts = (
        message.kind, message.position, message.position_before, message.published_ns,
        message.stream, message.class_, message.identity, message.epoch_of_stream,
        message.at_sample, message.facts,
    )  # fmt: skip
    hash(facts[1])
    with suppress(WireError):
        content = message.content()
        kind = type(content)
        if kind.from_json(content.to_json(), "again").to_json() != content.to_json():
            raise Broken("a body does not come back as it was")
        str(content.topic)


def _feed_message(case: Case) -> FeedMessage:
    message = FeedMessage.decode(list(case))
    _use(message)
    again = FeedMessage.decode(message.encode())
    if again.body != message.body | again.body or again.topic != message.topic:
        raise Broken("a message does not come back as it was")
    return message


def _log_lines() -> list[Case]:
    return [
        (FeedMessage.of(content, stamp).encode_line(),)
        for content, stamp in _contents()
        if stamp is _STAMP
    ]


def _log_line(case: Case) -> FeedMessage:
    message = FeedMessage.decode_line(case[0] if case else b"")
    _use(message)
    if FeedMessage.decode_line(message.encode_line()).body != message.body:
        raise Broken("a line does not come back as it was")
    return message


def _span_lines() -> list[Case]:
    span = Span(
        stream="porch", epoch="9f2c4e1a", kind="gap", start_sample=1, samples=16_000,
        time_ns=T0_NS, reason="overflow",
    )  # fmt: skip
    return [(span.encode_line(),)]


def _span_line(case: Case) -> Span:
    span = Span.decode_line(case[0] if case else b"")
    if Span.decode_line(span.encode_line()) != span:
        raise Broken("a span does not come back as it was")
    span.within(span.start_sample + 1)
    return span


def _with_checksums(case: Case) -> Case:
    return tuple(with_checksums(frame) for frame in case)


def with_checksums(content: bytes) -> bytes:
    """Return lines with the checksum that each should have."""
    return b"".join(map(_with_checksum, content.splitlines(keepends=True)))


def _with_checksum(line: bytes) -> bytes:
    head, colon, rest = line.partition(b",")
    if not head.startswith(b'{"crc"') or not colon:
        return line
    return add_checksum(b"{" + rest.rstrip(b"\n"))


def _notification() -> Notification:
    return Notification(id="a1.firing", kind="firing", at_ns=T0_NS, alert=samples.alert())


def _decode_notification(case: Case) -> Notification:
    notification = Notification.decode(case[0] if case else b"")
    if Notification.decode(notification.encode()) != notification:
        raise Broken("a notification does not come back as it was")
    for line in (notification.title, notification.text):
        if not line.isprintable():
            raise Broken("a line for people holds control characters", repr(line))
    return notification


# rules: no message may end their evaluation, nor keep it from being stored

_RULES = rules_from(
    "alert: dog, match: {class: Bark}",
    "alert: often, match: {class: Bark}, count: {min: 3, within: 60s}",
    "alert: long, match: {class: Siren}, for: 5s, tolerate: 1s",
    "alert: both, sequence: {within: 60s, steps: [{match: {class: Bark}}, {match: {class: Knock}}"
    "]}",
    "alert: absent, absent: {match: {class: Alarm}, for: 600s}",
    "alert: loud, level: {louder_than_dbfs: -20, for: 10s}",
    "alert: gone, level: {missing: true, for: 30s}",
)


def _rule_streams() -> list[Case]:
    events = [
        samples.event_message("e1"), samples.event_message("e1", "end", offset_ns=T0_NS + 10**9),
        samples.event_message("e2", label="Siren"), samples.event_message("e3", label="Knock"),
    ]  # fmt: skip
    bodies: list[Any] = [
        *events,
        samples.health(level_dbfs=-10.0),
        samples.gap_message(time_ns=T0_NS),
    ]
    return [tuple(b"\n".join(FeedMessage.of(body, _STAMP).encode()) for body in bodies)]


def _rules(case: Case) -> object:
    engine = Engine(_RULES, now_ns=T0_NS)
    for frame in case:
        topic, _, body = frame.partition(b"\n")
        with suppress(WireError):
            message = FeedMessage.decode([topic, body])
            engine.process(message.content())
    engine.advance(engine.now_ns + 10**9)
    state = json.loads(json.dumps(engine.export()))
    again = Engine(_RULES, state, now_ns=engine.now_ns)
    again.resume()
    if json.loads(json.dumps(again.export())) != state:
        raise Broken("the state of the rules does not come back as it was")
    return [alert.to_json() for alert in engine.active_alerts()]


# ZMTP

_PEERS: dict[str, bytes] = {"pull": b"PUSH", "pub": b"SUB", "router": b"DEALER"}


def _ready(peer: bytes) -> bytes:
    value = b"\x0bSocket-Type" + len(peer).to_bytes(4, "big") + peer
    body = b"\x05READY" + value + b"\x08Identity\0\0\0\0"
    return bytes((4, len(body))) + body


def _zmtp_seeds(kind: str) -> list[Case]:
    after = {
        "pull": encode_message([b"porch", b"{}", bytes(300)]),
        "pub": b"\x04\x0f\x09SUBSCRIBEevent"
        + b"\x04\x0c\x06CANCELevent"
        + encode_message([b"\x01gap/"]),
        "router": encode_message([b"", b'{"op":"ping"}']),
    }[kind]
    ping = b"\x04\x0b\x04PING\x00\x64abcd"
    return [(GREETING, _ready(_PEERS[kind]), after + ping, after)]


def _zmtp(kind: Kind) -> Callable[[Case], object]:
    def decode(case: Case) -> object:
        session = ZmtpSession(kind, _ZMTP_BYTES)
        return _read_session(session, case)

    return decode


def _read_session(session: ZmtpSession, case: Case) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    for data in case:
        session.feed(data)
        while (message := session.next_message()) is not None:
            messages.append(message)
            if sum(map(len, message)) > _ZMTP_BYTES:
                raise Broken("a message is longer than allowed")
        # what has not come whole, a message in parts, a command, subscriptions
        if (
            session.held_bytes
            > len(data) + 2 * _ZMTP_BYTES + MAX_COMMAND_BYTES + MAX_SUBSCRIBED_BYTES
        ):
            raise Broken("too much is kept", f"{session.held_bytes} bytes")
        session.pop_replies()
    return messages


# CURVE: a client that knows its key, and sends something else at some step

_SERVER, _CLIENT = make_key(), make_key()
_SERVER_PUBLIC, _SECRET, _PUBLIC = map(decode_key, (_SERVER.public, _CLIENT.secret, _CLIENT.public))
_CURVE_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(23, b"\0") + bytes(32)


def _curve(case: Case) -> object:
    """Shake hands, and lay the case over what is sent: its first frame over HELLO, and so on."""
    changes = [*case, b"", b"", b"", b""][:4]
    session = ZmtpSession("router", _ZMTP_BYTES, CurveServer(_SERVER, lambda key: None))
    client = _CurveClient()
    greeting = _laid_over(_CURVE_GREETING, changes[0])
    got = _read_session(session, (greeting,))
    hello = _laid_over(client.hello(), changes[1])
    session.feed(bytes((4, 200 & 0xFF)) + b"\x05HELLO" + hello if len(hello) == 194 else hello)
    got += _drained(session)
    welcome = session.pop_replies()
    if not welcome:
        return got
    initiate = _laid_over(client.initiate(welcome), changes[2])
    size = len(initiate) + 9
    head = bytes((4, size)) if size < 256 else b"\x06" + size.to_bytes(8, "big")
    session.feed(head + b"\x08INITIATE" + initiate)
    got += _drained(session)
    session.pop_replies()
    for flags, body in ((1, b"a"), (0, b"b"), (2, b"\x04PING\x00\x01xx"), (0, changes[3])):
        sealed = client.seal(flags if body else 0, body)
        frame = _laid_over(sealed, changes[3]) if flags == 1 else sealed
        head = (
            bytes((0, len(frame))) if len(frame) < 256 else b"\x02" + len(frame).to_bytes(8, "big")
        )
        session.feed(head + frame)
        got += _drained(session)
    return got


def _drained(session: ZmtpSession) -> list[list[bytes]]:
    return list(iter(session.next_message, None))  # type: ignore[arg-type]


def _laid_over(right: bytes, change: bytes) -> bytes:
    """Return `right` with every byte of a change that is not 0 added, as far as both reach."""
    changed = bytearray(right)
    for place, byte in enumerate(change[: len(changed)]):
        changed[place] ^= byte
    return bytes(changed) + change[len(changed) : len(changed) + 64]


class _CurveClient:
    def __init__(self) -> None:
        self._short_public, self._short_secret = bindings.crypto_box_keypair()
        self._nonce = 0

    def hello(self) -> bytes:
        nonce = self._next()
        box = bindings.crypto_box(
            bytes(64), b"CurveZMQHELLO---" + nonce, _SERVER_PUBLIC, self._short_secret
        )
        return b"\x01\0" + bytes(72) + self._short_public + nonce + box

    def initiate(self, welcome: bytes) -> bytes:
        body = welcome[2:] if welcome[0] == 4 else welcome[9:]
        if not body.startswith(b"\x07WELCOME"):
            return b""
        content = bindings.crypto_box_open(
            body[24:], b"WELCOME-" + body[8:24], _SERVER_PUBLIC, self._short_secret
        )
        server_short, cookie = content[:32], content[32:]
        vouch_nonce = bytes(16)
        vouch = bindings.crypto_box(
            self._short_public + _SERVER_PUBLIC, b"VOUCH---" + vouch_nonce, server_short, _SECRET
        )
        metadata = b"\x0bSocket-Type\0\0\0\x06DEALER"
        self._shared = bindings.crypto_box_beforenm(server_short, self._short_secret)
        nonce = self._next()
        box = bindings.crypto_box_afternm(
            _PUBLIC + vouch_nonce + vouch + metadata, b"CurveZMQINITIATE" + nonce, self._shared
        )
        return cookie + nonce + box

    def seal(self, flags: int, body: bytes) -> bytes:
        nonce = self._next()
        box = bindings.crypto_box_afternm(
            bytes((flags,)) + body, b"CurveZMQMESSAGEC" + nonce, self._shared
        )
        return b"\x07MESSAGE" + nonce + box

    def _next(self) -> bytes:
        self._nonce += 1
        return self._nonce.to_bytes(8, "big")


# real sockets


def _connections() -> list[Case]:
    return [case for kind in _PEERS for case in _zmtp_seeds(kind)]


class _Door:
    """A socket that is bound, a client that behaves, and one that does not."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._opened: tuple[Listener, socket.socket] | None = None

    def close(self) -> None:
        if self._opened is not None:
            listener, good = self._opened
            good.close()
            listener.close()
            self._reactor.close()

    def connect(self, case: Case) -> object:
        if self._opened is None:  # in the process that uses it: threads do not survive a fork
            endpoint = f"ipc://{self._scratch}/door-{os.getpid()}.sock"
            self._reactor = Reactor()
            listener = Listener(self._reactor, "router", endpoint, 8)
            good = socket.socket(socket.AF_UNIX)
            good.connect(endpoint.removeprefix("ipc://"))
            good.settimeout(20.0)
            good.sendall(GREETING + _ready(b"DEALER"))
            self._opened = listener, good
        listener, good = self._opened
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(listener.endpoint.removeprefix("ipc://"))
            other.settimeout(5.0)
            with suppress(OSError):
                for data in case:
                    other.sendall(data)
        good.sendall(encode_message([b"?"]))
        found = 0
        while (message := listener.receive(20_000)) is not None:
            found += 1
            if message[1:] == [b"?"] and message[0] == (1).to_bytes(5, "big"):
                break
        else:
            raise Broken("a client that behaves is no longer heard")
        return found
