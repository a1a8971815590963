"""The allow-list: public keys and their rights over tcp; a file that is read again on change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ast_stream.errors import StartupError
from ast_stream.labels import STREAM_NAME_RULE, did_you_mean, is_stream_name
from ast_stream.runtime.files import (
    DamagedFileError,
    lock_file,
    read_bounded,
    reason_of,
    replace_file,
)
from ast_stream.transport.keys import NAME, NAME_RULE, decode_key
from ast_stream.transport.zmtp import Kind
from ast_stream.units import format_time, parse_time

FEED, SCORES, AUDIO, ADMIN = "feed", "scores", "audio", "admin"
PUSH = "push:"
ALL_STREAMS = "*"
WORDS = {
    f"{PUSH}STREAM": "send the audio of this stream; push:* of every stream",
    FEED: "read events, gaps, health and status, and ask for what was missed",
    SCORES: "read the scores of every window",
    AUDIO: "ask for what was heard, and read spectrograms",
    ADMIN: "administrate",
}
MAX_KEYS = 4096
# rights to topics by how they begin; all others take `feed`
_RIGHTS_TO_TOPICS = ((b"scores/", SCORES), (b"spectrogram/", AUDIO))
_VERSION = 1
_MAX_BYTES = 4 * 1024 * 1024
_MODE = 0o644  # it holds no secret
_FOLDER_MODE = 0o755
_OTHERS_MAY_WRITE = 0o002


@dataclass(frozen=True)
class Rights:
    """What a client may do.

    Attributes:
        push: streams whose audio it may send, as bytes on the wire; `*` for all.
        reads: the words of what it may read or do.
    """

    push: frozenset[bytes]
    reads: frozenset[str]

    @classmethod
    def of(cls, words: Iterable[str]) -> Rights:
        """Return the rights that words stand for, e.g. `push:porch` and `feed`.

        Raises:
            ValueError: a word that is none.
        """
        push, reads = set(), set()
        for word in words:
            stream = word.removeprefix(PUSH)
            if word in (FEED, SCORES, AUDIO, ADMIN):
                reads.add(word)
            elif stream == word:
                near = did_you_mean(word, (FEED, SCORES, AUDIO, ADMIN, "push"))
                raise ValueError(f"expected a right ({', '.join(WORDS)}), got {word!r}{near}")
            elif stream == ALL_STREAMS or is_stream_name(stream):
                push.add(stream.encode())
            else:
                raise ValueError(f"{PUSH}: expected {STREAM_NAME_RULE}, or '*', got {stream!r}")
        return cls(frozenset(push), frozenset(reads))

    def may_push(self, stream: bytes) -> bool:
        """Return whether audio of a stream may come from this client."""
        return stream in self.push or ALL_STREAMS.encode() in self.push

    def may(self, word: str) -> bool:
        """Return whether a right other than to push is among them."""
        return word in self.reads

    def may_receive(self, topic: bytes) -> bool:
        """Return whether messages of a topic of the feed are for this client."""
        for beginning, word in _RIGHTS_TO_TOPICS:
            if topic.startswith(beginning):
                return word in self.reads
        return FEED in self.reads

    def may_connect(self, kind: Kind) -> bool:
        """Return whether there is anything to do for this client at a socket that is bound.

        PULL receives audio, PUB is the feed, ROUTER answers queries.
        """
        match kind:
            case "pull":
                return bool(self.push)
            case "pub":
                return not self.reads.isdisjoint((FEED, SCORES, AUDIO))
            case "router":
                return not self.reads.isdisjoint((FEED, AUDIO, ADMIN))


ALL_RIGHTS = Rights(frozenset({ALL_STREAMS.encode()}), frozenset({FEED, SCORES, AUDIO, ADMIN}))
# over ipc, of members of the group that may open the socket: events, never what was said
GROUP_RIGHTS = Rights(frozenset(), frozenset({FEED, SCORES}))
NO_RIGHTS = Rights(frozenset(), frozenset())


@dataclass(frozen=True)
class AllowedClient:
    """One line of the allow-list."""

    name: str
    key: str
    """Public key in Z85."""
    words: tuple[str, ...]
    """Its rights, as they are written."""
    added_ns: int
    """When it was authorised, or its rights were changed."""

    rights: Rights = field(init=False, compare=False, repr=False)
    """What the words mean."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rights", Rights.of(self.words))


def read_allow_list(path: Path) -> list[AllowedClient]:
    """Return the clients in an allow-list; nobody if there is no such file.

    Raises:
        StartupError: it cannot be read, is damaged, or anybody may write it.
    """
    try:
        content = read_bounded(path, _MAX_BYTES)
        mode = path.stat().st_mode
    except FileNotFoundError:
        return []
    except (OSError, DamagedFileError) as error:
        raise StartupError(f"allow-list: cannot read {path}: {reason_of(error)}") from error
    if mode & _OTHERS_MAY_WRITE:
        raise StartupError(f"allow-list: everybody may write {path}: chmod o-w {path}")
    try:
        return _decode(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StartupError(f"allow-list: {path} cannot be used: {error}") from error


@contextmanager
def changing_allow_list(path: Path) -> Iterator[list[AllowedClient]]:
    """Yield the clients in an allow-list, and write the list as it is left, unless that raises.

    Raises:
        StartupError: it cannot be read or written, or another process is changing it.
    """
    _make_folder(path)
    lock_fd = lock_file(path.with_name(f".{path.name}.lock"), f"allow-list {path}")
    try:
        clients = read_allow_list(path)
        yield clients
        write_allow_list(path, clients)
    finally:
        os.close(lock_fd)


def write_allow_list(path: Path, clients: Sequence[AllowedClient]) -> None:
    """Write an allow-list; running processes follow it within two seconds.

    Raises:
        StartupError: it cannot be written; what was there is whole.
    """
    body = {
        "version": _VERSION,
        "keys": [
            {
                "name": client.name,
                "key": client.key,
                "rights": list(client.words),
                "added": format_time(client.added_ns),
            }
            for client in clients
        ],
    }
    _make_folder(path)
    text = json.dumps(body, indent=2) + "\n"
    try:
        replace_file(path, text.encode(), is_synced=True, mode=_MODE)
    except OSError as error:
        raise StartupError(f"allow-list: cannot write {path}: {error.strerror}") from error


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"allow-list: cannot write {path}: {error.strerror}") from error


def _decode(content: bytes) -> list[AllowedClient]:
    body = json.loads(content)
    if not isinstance(body, dict) or body.get("version") != _VERSION:
        raise ValueError(f"expected an object of version {_VERSION}, got something else")
    entries = body["keys"]
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ValueError(f"expected a list of at most {MAX_KEYS} keys, got something else")
    clients = [_decode_client(entry) for entry in entries]
    for what in ("name", "key"):
        values = [getattr(client, what) for client in clients]
        if len(set(values)) < len(values):
            raise ValueError(f"expected a {what} once, got one twice")
    return clients


def _decode_client(entry: Any) -> AllowedClient:
    name, key, words = entry["name"], entry["key"], entry["rights"]
    if not isinstance(name, str) or not NAME.match(name):
        raise ValueError(f"name: expected {NAME_RULE}, got {name!r}")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"rights of {name}: expected a list of words, got something else")
    try:
        decode_key(key)
        return AllowedClient(name, key, tuple(words), parse_time(entry["added"]))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
