"""Decoders of what servers answer: receivers of webhooks, brokers, lists of radio stations."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import sample_messages as samples
from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case

from ast_stream.alerts.actions.base import Entities
from ast_stream.alerts.actions.mqtt import Topics, announced_before, discovery, update_of
from ast_stream.alerts.actions.webhook import WebhookRunner
from ast_stream.alerts.notification import Notification
from ast_stream.capture.sources.http_response import HttpResponse, request_head
from ast_stream.settings.alerts import WebhookAction
from ast_stream.urls import check_url

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
_LATER = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: Fri, 20 Nov 2026 10:00:00 GMT\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)
_SOON = b"HTTP/1.0 429 Slow down\r\nRetry-After: 30\r\nX: y\r\n\r\n"
_RADIO = (
    b"HTTP/1.1 200 OK\r\nContent-Type: audio/x-mpegurl\r\n\r\n#EXTM3U\nhttp://example.org/a.mp3\n"
)
_MOVED = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\n\r\n"
_LISTS = (
    b"#EXTM3U\n#EXTINF:-1,Radio\nhttp://example.org/a.mp3\n../b.ogg\nrtsp://cam/1\n",
    b"[playlist]\nFile1=http://example.org/a\nTitle1=A\nNumberOfEntries=1\nFile2 = b\n",
    b'<asx version="3.0"><entry><ref href="http://example.org/a?x=1&amp;y=2"/></entry></asx>',
    b'<?xml version="1.0"?><playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>'
    b"http://example.org/a</location></track></trackList></playlist>",
)


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    answers = [(_OK,), (_LATER,), (_SOON,)]
    webhook, radio = _Webhook(), _Radio()
    yield Decoder("answer of a webhook", answers, webhook.decode, 0.05, close=webhook.server.close)
    seeds = [(_RADIO,), (_OK,), (_MOVED,)]
    yield Decoder("answer of a radio", seeds, radio.decode, 0.05, close=radio.server.close)
    lists = [(text, b"http://example.org/list.m3u") for text in _LISTS]
    yield Decoder("playlist", lists, _playlist, 0.5)
    yield Decoder("retained message of a broker", [(_device(),)], _retained, 0.5)


class _Server:
    """Answers each connection with some bytes; started in the process that asks."""

    def __init__(self) -> None:
        self._pid = 0
        self.answer = b""

    def port(self) -> int:
        """Return where it listens."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._listening = socket.create_server(("127.0.0.1", 0))
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        port: int = self._listening.getsockname()[1]
        return port

    def close(self) -> None:
        """Listen no longer."""
        if self._pid == os.getpid():
            self._listening.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            with connection:
                try:
                    connection.recv(65_536)
                    connection.sendall(self.answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):
                        pass
                except OSError:
                    continue


class _Webhook:
    def __init__(self) -> None:
        self.server = _Server()

    def decode(self, case: Case) -> object:
        url = f"http://127.0.0.1:{self.server.port()}/hook"
        settings = WebhookAction.model_validate(
            {"type": "webhook", "url": url, "allow_private": True, "timeout_s": 5}
        )
        self.server.answer = case[0] if case else b""
        notification = Notification(
            id="a1.firing", kind="firing", at_ns=samples.T0_NS, alert=samples.alert()
        )
        outcome = WebhookRunner("hook", settings, lambda: 1.7e9).deliver(notification)
        after_s = getattr(outcome, "after_s", 0.0)
        if not 0 <= after_s <= 86_400:
            raise Broken("a receiver asks to be left alone for too long", str(after_s))
        if not str(getattr(outcome, "reason", "")).isprintable():
            raise Broken("a reason holds control characters", repr(outcome))
        return outcome


class _Radio:
    def __init__(self) -> None:
        self.server = _Server()

    def decode(self, case: Case) -> object:
        self.server.answer = case[0] if case else b""
        try:
            answer = request_head(f"http://127.0.0.1:{self.server.port()}/radio", {}, 5.0)
        except OSError as error:
            return str(error)
        return _examined(answer)


def _playlist(case: Case) -> object:
    text, url = [*case, b"", b""][:2]
    shown = url.decode("utf-8", "replace")
    try:
        check_url(shown, ("http", "https"))
    except ValueError:
        shown = "http://example.org/list.m3u"
    return [
        _examined(HttpResponse(shown, 200, "OK", kind, text[:65_536]))
        for kind in ("", "audio/mpegurl")
    ]


def _examined(answer: HttpResponse) -> object:
    words = answer.describe()
    if words is not None and not words.isprintable():
        raise Broken("a reason holds control characters", repr(words))
    addresses = answer.addresses() if answer.is_playlist else []
    for address in addresses:
        if not address.isprintable() or address.partition(":")[0].lower() in (
            "file",
            "concat",
            "pipe",
        ):
            raise Broken("an address that must not be opened", repr(address))
    return addresses


_TOPICS = Topics("ast-stream", "box")
_ENTITIES = Entities(("porch",), ("Bark",), ("dog",))


def _device() -> bytes:
    return json.dumps(next(iter(discovery(_TOPICS, "homeassistant", _ENTITIES).values()))).encode()


def _retained(case: Case) -> object:
    before = announced_before(_TOPICS, case[0] if case else b"")
    if before is not None:
        for device in (None, *discovery(_TOPICS, "homeassistant", _ENTITIES).values()):
            json.dumps(update_of(device, before))
    return before
