"""What boxes and operators do at a centre: reports put into the real buckets, commands run."""

from __future__ import annotations

from typing import Any

from nats_server import ask


def put(url: str, key: str, body: bytes, bucket: str = "ast_stream_boxes") -> None:
    """Put a value into a bucket, which is made if it is not there."""

    async def work(client: Any) -> None:
        from nats.js.errors import NotFoundError

        js = client.jetstream()
        try:
            found = await js.key_value(bucket)
        except NotFoundError:
            found = await js.create_key_value(bucket=bucket)
        await found.put(key, body)

    ask(url, work)


def value(url: str, key: str, bucket: str = "ast_stream_rollout") -> bytes | None:
    """Return a value of a bucket; None: there is none."""

    async def work(client: Any) -> bytes | None:
        from nats.js.errors import NotFoundError

        try:
            entry = await (await client.jetstream().key_value(bucket)).get(key)
        except NotFoundError:
            return None
        return bytes(entry.value or b"")

    return ask(url, work)
