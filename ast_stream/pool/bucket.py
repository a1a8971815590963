"""The key-value bucket of a pool in NATS, read and written in a separate thread.

Members are under `member.<name>`, written when something changes. Their renewals are under
`alive.<name>`, written every two seconds, but read only by processes that have lost a worker:
otherwise thousands of capture boxes would receive every renewal of every worker. The claims on a
stream are under `stream.<name>`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from ast_stream.errors import WireError
from ast_stream.labels import is_stream_name
from ast_stream.messages.codec import decode_json, encode_json, validate
from ast_stream.messages.pool import (
    MAX_HISTORY_BYTES,
    MAX_MEMBER_BYTES,
    PoolMember,
    StreamClaim,
    StreamHistory,
)
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.nats import NatsConnection, NatsError, read_login
from ast_stream.settings.pool import PoolSettings

if TYPE_CHECKING:
    from nats.aio.client import Client

CALL_S = 3.0
_REMOVAL_S = 1.0  # a server that does not allow it does not answer
MAX_MEMBERS = 1024  # more are ignored: a user who may write the bucket can write any number
_LIST_EVERY_S = 600.0  # in case a change was missed,
_LIST_AGAIN_S = 5.0  # and at a random time within this after the server was down
_TRIES = 8  # of a change that conflicts with others
_MEMBER, _ALIVE, _STREAM = "member.", "alive.", "stream."
_NOT_THERE = ("KeyNotFoundError", "KeyDeletedError", "NotFoundError")
_CHANGED_MEANWHILE = ("KeyWrongLastSequenceError",)

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredHistory:
    """The claims on a stream as stored by the server.

    Attributes:
        written_s: when they were written, seconds since 1970 by the server's clock; None: unknown.
    """

    history: StreamHistory
    revision: int
    written_s: float | None


class PoolBucket:
    """The bucket of one pool; methods wait at most a few seconds, and raise `NatsError`.

    Args:
        who: name of this process, as the server shows it.
        on_members: called in another thread with all known members, after each change. None: do
            not follow members.
        is_quiet: do not log connection problems; a command reports them itself.
    """

    def __init__(
        self,
        settings: PoolSettings,
        who: str,
        on_members: Callable[[dict[str, PoolMember]], None] | None = None,
        *,
        is_quiet: bool = False,
    ) -> None:
        assert settings.nats is not None
        access = settings.nats
        self._settings = settings
        self._on_members = on_members
        self._members: dict[str, PoolMember] = {}  # as last listed,
        self._changes: dict[str, PoolMember | None] = {}  # and the changes since then
        self._has_listed = False
        self._kv: Any = None
        self._following: asyncio.Task[None] | None = None
        self._log = LimitedLog(logger)
        what = f"pool {settings.name}"
        self.connection = NatsConnection(
            lambda: read_login(what, access),
            f"ast-stream {who}",
            f"{what}: NATS server {', '.join(access.servers)}",
            is_quiet=is_quiet,
            on_connected=self._begin,
        )

    def start(self) -> None:
        """Connect in the background, and reconnect whenever necessary."""
        self.connection.start()

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()

    @property
    def is_connected(self) -> bool:
        """Whether it can be read and written now."""
        return self.connection.is_connected

    def put_member(self, member: PoolMember) -> None:
        """Write the entry of a worker."""
        self._call(lambda kv: kv.put(_MEMBER + member.name, member.encode()))

    def renew(self, name: str, boot: str, streams: int) -> None:
        """Renew a worker's sign of life, with its number of streams."""
        value = encode_json({"boot": boot, "streams": streams})
        self._call(lambda kv: kv.put(_ALIVE + name, value))

    def streams_of(self, name: str) -> int | None:
        """Return how many streams a worker had at its last renewal; None: not known."""

        async def read(kv: Any) -> int | None:
            entry = await _get(kv, _ALIVE + name)
            try:
                found = None if entry is None else decode_json(entry.value, "renewal")["streams"]
            except (WireError, KeyError):
                return None
            return found if isinstance(found, int) else None

        return self._call(read)

    def withdraw(self, name: str) -> None:
        """Delete the entry of a worker that is stopping."""
        self._call(lambda kv: kv.delete(_MEMBER + name))

    def renewal(self, name: str) -> int:
        """Return a number that grows with each renewal of a worker; 0: there is none."""

        async def read(kv: Any) -> int:
            entry = await _get(kv, _ALIVE + name)
            return 0 if entry is None else int(entry.revision)

        return self._call(read)

    def members(self) -> dict[str, PoolMember]:
        """Return all members in the bucket, whether alive or not."""
        return self._call(self._list)

    def claim(self, stream: str, claim: StreamClaim) -> None:
        """Add a worker's claim on an epoch of a stream, keeping concurrent claims of others."""

        async def change(kv: Any) -> None:
            for _ in range(_TRIES):
                entry = await _get(kv, _STREAM + stream)
                history = _history(stream, None if entry is None else entry.value)
                value = history.with_claim(claim).encode()
                try:
                    # revision 0: the key must not exist
                    last = 0 if entry is None else entry.revision
                    await kv.update(_STREAM + stream, value, last=last)
                except Exception as error:
                    if type(error).__name__ not in _CHANGED_MEANWHILE:
                        raise
                    await asyncio.sleep(random.uniform(0, 0.05))
                else:
                    return
            raise NatsError(f"stream {stream}: changed by others again and again")

        self._call(change)

    def history(self, stream: str) -> StreamHistory:
        """Return the claims on a stream."""

        async def read(kv: Any) -> StreamHistory:
            entry = await _get(kv, _STREAM + stream)
            return _history(stream, None if entry is None else entry.value)

        return self._call(read)

    def stored(self, stream: str) -> StoredHistory | None:
        """Return the claims on a stream as they are stored; None: there are none."""

        async def read(kv: Any) -> StoredHistory | None:
            message = await self._message(kv, _STREAM + stream)
            if message is None:
                return None
            history = _history(stream, message.data)
            return StoredHistory(history, int(message.seq), _seconds(message.time))

        return self._call(read)

    def renewed_s(self, name: str) -> float | None:
        """Return the time of a worker's last renewal, seconds since 1970 by the server's clock."""

        async def read(kv: Any) -> float | None:
            message = await self._message(kv, _ALIVE + name)
            return None if message is None else _seconds(message.time)

        return self._call(read)

    def write_again(self, stream: str, stored: StoredHistory) -> None:
        """Rewrite claims unchanged, unless they have changed meanwhile."""

        async def write(kv: Any) -> None:
            try:
                await kv.update(_STREAM + stream, stored.history.encode(), last=stored.revision)
            except Exception as error:
                if type(error).__name__ not in _CHANGED_MEANWHILE:
                    raise

        self._call(write)

    def remove(self, stream: str, stored: StoredHistory) -> None:
        """Remove the claims on a stream, unless they have changed meanwhile.

        The key is purged completely; a deletion by the client library would leave a marker.
        """

        async def purge(kv: Any) -> None:
            bucket = self._settings.bucket
            subject = f"$KV.{bucket}.{_STREAM}{stream}"
            removal = kv._js.purge_stream(f"KV_{bucket}", seq=stored.revision + 1, subject=subject)
            try:
                await asyncio.wait_for(removal, _REMOVAL_S)
            except TimeoutError as error:
                text = f"{bucket}: the server does not remove it: is STREAM.PURGE allowed?"
                raise NatsError(text) from error

        self._call(purge)

    def streams(self) -> list[str]:
        """Return the names of all streams that have claims."""

        async def read(kv: Any) -> list[str]:
            return await self._keys(kv, _STREAM)

        return self._call(read)

    def _call(self, work: Callable[[Any], Awaitable[_T]]) -> _T:
        async def run(client: Client) -> _T:
            if self._kv is None:
                raise NatsError(f"pool {self._settings.name}: its bucket is not open yet")
            return await work(self._kv)

        return self.connection.call(run, CALL_S)

    async def _begin(self, client: Client) -> None:
        """Open the bucket on a new connection, and follow the members."""
        jetstream = client.jetstream(timeout=CALL_S)
        bucket = self._settings.bucket
        try:
            self._kv = await jetstream.key_value(bucket)
        except Exception as error:
            is_missing = type(error).__name__ in ("BucketNotFoundError", *_NOT_THERE)
            if not is_missing or not self._settings.create:
                raise
            self._kv = await jetstream.create_key_value(
                bucket=bucket, description="ast-stream: a pool of workers", direct=True
            )
        if self._on_members is None:
            return
        if self._following is not None:
            self._following.cancel()
        await client.subscribe(f"$KV.{bucket}.{_MEMBER}>", cb=self._note)
        is_first = not self._has_listed
        if is_first:
            await self._refresh()
        next_s = _LIST_EVERY_S if is_first else random.uniform(0, _LIST_AGAIN_S)
        self._following = asyncio.ensure_future(self._follow(client, next_s))

    async def _note(self, message: Any) -> None:
        """Apply one change of a member."""
        name = message.subject.removeprefix(f"$KV.{self._settings.bucket}.{_MEMBER}")
        if not is_stream_name(name):  # a user who may write the bucket can write anything
            return
        is_deleted = (message.headers or {}).get("KV-Operation") in ("DEL", "PURGE")
        member = None if is_deleted else self._decode(name, message.data)
        known = self._members.keys() | self._changes.keys()
        if member is not None and name not in known and len(known) >= MAX_MEMBERS:
            self._warn_of_many()
            return
        if member is None and name not in self._members:
            self._changes.pop(name, None)
        else:
            self._changes[name] = member
        self._use(self._members)

    async def _follow(self, client: Client, next_s: float) -> None:
        """Read all members again after `next_s`, and then at intervals."""
        while not client.is_closed:
            await asyncio.sleep(next_s)
            next_s = _LIST_EVERY_S * random.uniform(0.8, 1.2)
            try:
                await self._refresh()
            except Exception as error:  # of the library; the next attempt may succeed
                self._log.warning("pool %s: members: %s", self._settings.name, error)

    async def _refresh(self) -> None:
        self._changes.clear()  # changes that arrive while the list is read are newer than it
        self._use(await self._list(self._kv))
        self._has_listed = True

    def _use(self, members: dict[str, PoolMember]) -> None:
        """Use these members and the changes since they were listed."""
        self._members = members
        found = members | {
            name: change for name, change in self._changes.items() if change is not None
        }
        for name, change in self._changes.items():
            if change is None:
                found.pop(name, None)
        if self._on_members is not None:
            self._on_members(found)

    async def _list(self, kv: Any) -> dict[str, PoolMember]:
        found: dict[str, PoolMember] = {}
        names = await self._keys(kv, _MEMBER)
        if len(names) > MAX_MEMBERS:
            self._warn_of_many()
        for name in names[:MAX_MEMBERS]:
            entry = await _get(kv, _MEMBER + name)
            member = None if entry is None else self._decode(name, entry.value)
            if member is not None:
                found[name] = member
        return found

    def _warn_of_many(self) -> None:
        text = "pool %s: expected at most %d workers in its bucket, got more: others are left out"
        self._log.warning(text, self._settings.name, MAX_MEMBERS)

    def _decode(self, name: str, value: bytes) -> PoolMember | None:
        try:
            body = decode_json(value, "pool member", MAX_MEMBER_BYTES)
            member = validate(PoolMember, body, "pool member")
        except WireError as error:
            self._log.warning("pool %s: %s", self._settings.name, error)
            return None
        return member if member.name == name else None

    async def _message(self, kv: Any, key: str) -> Any:
        """Return the stored message of a key, with the server's time; None: there is none."""
        bucket = self._settings.bucket
        subject = f"$KV.{bucket}.{key}"
        try:
            return await kv._js.get_msg(f"KV_{bucket}", subject=subject, direct=kv._direct)
        except Exception as error:
            if type(error).__name__ in _NOT_THERE:
                return None
            raise

    async def _keys(self, kv: Any, beginning: str) -> list[str]:
        """Return the rest of all keys with this prefix, without those that no worker writes."""
        bucket = self._settings.bucket
        prefix = f"$KV.{bucket}.{beginning}"
        info = await kv._js.stream_info(f"KV_{bucket}", subjects_filter=f"{prefix}>")
        names = (subject.removeprefix(prefix) for subject in info.state.subjects or {})
        return sorted(name for name in names if is_stream_name(name))


async def _get(kv: Any, key: str) -> Any:
    try:
        return await kv.get(key)
    except Exception as error:
        if type(error).__name__ in _NOT_THERE:
            return None
        raise


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _history(stream: str, value: bytes | None) -> StreamHistory:
    if value is None:
        return StreamHistory(claims=[])
    try:
        what = f"history of stream {stream}"
        return validate(StreamHistory, decode_json(value, what, MAX_HISTORY_BYTES), what)
    except WireError as error:
        logger.warning("%s: it begins afresh", error)
        return StreamHistory(claims=[])
