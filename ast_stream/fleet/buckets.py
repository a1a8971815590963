"""The buckets of a fleet in NATS JetStream: reports, models, and the model wanted of each box.

The centre creates three buckets: key-value `ast_stream_boxes` (reports) and `ast_stream_rollout`
(wanted models, and the plan of a roll-out), and the object store `ast_stream_models`. Every call
has a time limit and raises `NatsError` with a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ast_stream.errors import WireError
from ast_stream.messages.rollout import MAX_MANIFEST_BYTES, PIECE_BYTES, WantedModel
from ast_stream.runtime.nats import NatsConnection, NatsError

if TYPE_CHECKING:  # an extra that may not be installed
    from nats.aio.client import Client

ROLLOUT_BUCKET = "ast_stream_rollout"
MODELS_BUCKET = "ast_stream_models"
ALL = "all"  # key of the model wanted of all boxes that have no key of their own
PLAN = "plan"  # key of the roll-out's plan; the key of a box has a `.`
CALL_S = 15.0
PIECE_S = 120.0  # for 4 MiB: 35 kB/s
MAX_BOXES = 10_000
_NOT_YET = dict.fromkeys((ROLLOUT_BUCKET, MODELS_BUCKET), "no roll-out was begun here yet")
_T = TypeVar("_T")


@dataclass(frozen=True)
class BucketEntry:
    """A value of a bucket.

    Attributes:
        revision: of the bucket when it was written.
        age_s: time since it was written, by this machine's clock; None: not known.
    """

    key: str
    value: bytes
    revision: int
    age_s: float | None = None


class RolloutStore(Protocol):
    """What a box needs of the store."""

    def wanted(self, box: str) -> WantedModel | None:
        """Return the model wanted of a box; None: there is none."""

    def manifest(self, content: str) -> bytes:
        """Return the bytes of a manifest."""

    def piece(self, digest: str) -> bytes:
        """Return a piece of a checkpoint by its SHA-256."""


class FleetStore:
    """The buckets of a fleet, on a connection that its owner keeps open.

    Args:
        boxes: name of the bucket with the reports.
        domain: JetStream domain; None: the server's.
    """

    def __init__(
        self, connection: NatsConnection, boxes: str = "ast_stream_boxes", domain: str | None = None
    ) -> None:
        self._connection = connection
        self._boxes = boxes
        self._domain = domain

    def create(self, replicas: int = 1) -> None:
        """Create the buckets of models and roll-outs, if they do not exist."""

        async def work(client: Client) -> None:
            js = self._js(client)
            if not await _is_there(js.key_value(ROLLOUT_BUCKET)):
                await js.create_key_value(bucket=ROLLOUT_BUCKET, history=5, replicas=replicas)
            if not await _is_there(js.object_store(MODELS_BUCKET)):
                await js.create_object_store(bucket=MODELS_BUCKET)

        self._call(work)

    def reports(self) -> list[BucketEntry]:
        """Return the newest report of every box, as it was sent."""
        return self._entries(self._boxes)

    def wanted(self, box: str) -> WantedModel | None:
        """Return the model wanted of a box, or else of all boxes; None: there is none.

        Raises:
            NatsError: the store cannot be reached, or the value is invalid.
        """
        for key in (box, ALL):
            if (entry := self.get(key)) is not None:
                return decoded(entry)
        return None

    def all_wanted(self) -> list[BucketEntry]:
        """Return the wanted models: of single boxes, and of all."""
        return [entry for entry in self._entries(ROLLOUT_BUCKET) if entry.key != PLAN]

    def get(self, key: str) -> BucketEntry | None:
        """Return a value of the roll-out bucket; None: there is none."""

        async def work(client: Client) -> BucketEntry | None:
            bucket = await self._bucket(client, ROLLOUT_BUCKET)
            try:
                found = await bucket.get(key)
            except Exception as error:
                if type(error).__name__ in ("KeyNotFoundError", "KeyDeletedError"):
                    return None
                raise
            return BucketEntry(key, found.value or b"", found.revision)

        return self._call(work)

    def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        """Replace a value of the roll-out bucket, and return its new revision.

        Args:
            revision: its expected revision; 0: it must not exist; None: any.

        Raises:
            NatsError: the revision is another one, because another process has changed the value.
        """

        async def work(client: Client) -> int:
            bucket = await self._bucket(client, ROLLOUT_BUCKET)
            try:
                if revision is None:
                    return int(await bucket.put(key, value))
                if revision == 0:
                    return int(await bucket.create(key, value))
                return int(await bucket.update(key, value, last=revision))
            except Exception as error:
                if type(error).__name__ == "KeyWrongLastSequenceError":
                    raise NatsError(
                        f"{key} in {ROLLOUT_BUCKET} was changed by somebody else"
                    ) from error
                raise

        return self._call(work)

    def delete(self, key: str) -> None:
        """Delete a value of the roll-out bucket."""

        async def work(client: Client) -> None:
            await (await self._bucket(client, ROLLOUT_BUCKET)).delete(key)

        self._call(work)

    def manifest(self, content: str) -> bytes:
        """Return the bytes of a manifest, unchecked.

        Raises:
            NatsError: it does not exist.
        """
        return self._object(content, MAX_MANIFEST_BYTES, CALL_S)

    def piece(self, digest: str) -> bytes:
        """Return a piece of a checkpoint, unchecked.

        Raises:
            NatsError: it does not exist.
        """
        return self._object(digest, PIECE_BYTES, PIECE_S)

    def has_object(self, name: str) -> bool:
        """Return whether an object with this name exists."""

        async def work(client: Client) -> bool:
            store = await self._js(client).object_store(MODELS_BUCKET)
            try:
                await store.get_info(name)
            except Exception as error:
                if _is_not_found(error):
                    return False
                raise
            return True

        return self._call(work)

    def put_object(self, name: str, body: bytes) -> None:
        """Store an object."""

        async def work(client: Client) -> None:
            store = await self._js(client).object_store(MODELS_BUCKET)
            await store.put(name, body)

        self._call(work, PIECE_S)

    def _object(self, name: str, max_bytes: int, timeout_s: float) -> bytes:
        async def work(client: Client) -> bytes:
            store = await self._js(client).object_store(MODELS_BUCKET)
            try:
                info = await store.get_info(name)
                if (info.size or 0) > max_bytes:
                    text = f"{name}: expected at most {max_bytes} bytes, got {info.size}"
                    raise NatsError(text)
                found = await store.get(name)
            except Exception as error:
                if _is_not_found(error):
                    raise NatsError(f"there is no object {name} in {MODELS_BUCKET}") from error
                if type(error).__name__ in ("DigestMismatchError", "BadObjectMetaError"):
                    text = f"the object {name} in {MODELS_BUCKET} is damaged"
                    raise NatsError(text) from error
                raise
            return bytes(found.data or b"")

        return self._call(work, timeout_s)

    def _entries(self, bucket: str) -> list[BucketEntry]:
        async def work(client: Client) -> list[BucketEntry]:
            found: list[BucketEntry] = []
            watcher = await (await self._bucket(client, bucket)).watchall(ignore_deletes=True)
            try:
                async for update in watcher:
                    if update is None or len(found) >= MAX_BOXES:
                        break
                    age_s = (
                        None if update.created is None else time.time() - update.created.timestamp()
                    )
                    value = update.value or b""
                    found.append(
                        BucketEntry(str(update.key), value, int(update.revision or 0), age_s)
                    )
            finally:
                await watcher.stop()
            return found

        return self._call(work)

    async def _bucket(self, client: Client, name: str) -> Any:
        try:
            return await self._js(client).key_value(name)
        except Exception as error:
            if _is_not_found(error):
                why = _NOT_YET.get(name, "no box has reported here yet")
                raise NatsError(f"there is no bucket {name}: {why}") from error
            raise

    def _js(self, client: Client) -> Any:
        return client.jetstream(domain=self._domain)

    def _call(
        self, work: Callable[[Client], Coroutine[Any, Any, _T]], timeout_s: float = CALL_S
    ) -> _T:
        return self._connection.call(work, timeout_s)


def decoded(entry: BucketEntry) -> WantedModel:
    """Return the wanted model in an entry.

    Raises:
        NatsError: it is invalid.
    """
    try:
        return WantedModel.decode(entry.value)
    except WireError as error:
        raise NatsError(f"{entry.key} in {ROLLOUT_BUCKET}: {error}") from error


async def _is_there(opening: Coroutine[Any, Any, Any]) -> bool:
    try:
        await opening
    except Exception as error:
        if _is_not_found(error):
            return False
        raise
    return True


def _is_not_found(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"NotFoundError", "BucketNotFoundError", "ObjectNotFoundError"})
