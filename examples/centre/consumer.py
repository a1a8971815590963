"""Read what the boxes of a fleet send, and keep it: each message once, whatever is killed when.

python consumer.py --nats nats://127.0.0.1:4222 --postgres postgresql:///fleet
python consumer.py --mqtt 127.0.0.1:1883 --parquet /srv/fleet

A message is acknowledged after it is safe; until then the broker keeps it and sends it again. What
comes twice has the same source and id, and is kept once. It needs no program of the boxes:
nats-py or paho-mqtt, psycopg or pyarrow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import psycopg
from brokers import Broker, Mqtt, Nats, Received
from messages import read
from stores import Parquet, Postgres, Store

PAUSE_S = 2.0  # before another attempt

logger = logging.getLogger("consumer")


class Consumer:
    """Moves messages from a broker into stores.

    Args:
        stores: each opens one; called again after an error.
        max_messages: kept at once.
        every_s: messages are gathered so long, for fewer and larger writes.
    """

    def __init__(
        self,
        broker: Broker,
        stores: list[Callable[[], Store]],
        max_messages: int,
        every_s: float,
    ) -> None:
        self._broker = broker
        self._openers = stores
        self._stores: list[Store] = []
        self._max_messages = max_messages
        self._every_s = every_s

    async def run(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        said = ""  # once in an outage
        while True:
            messages: list[Received] = []
            end_s = loop.time() + self._every_s
            try:
                while len(messages) < self._max_messages and (left_s := end_s - loop.time()) > 0:
                    room = self._max_messages - len(messages)
                    messages += await self._broker.receive(room, min(max(left_s, 0.01), 1.0))
            except OSError as error:  # no connection: keep what has come, it may come no more
                if str(error) != said:
                    said = str(error)
                    logger.warning("%s; trying again", error)
                await asyncio.sleep(PAUSE_S)
            else:
                said = ""
            if messages:
                await self._keep(messages)
                await self._broker.acknowledge(messages)

    async def _keep(self, messages: list[Received]) -> None:
        """Write messages to all stores, however long that takes."""
        rows = [read(message.topic, message.body) for message in messages]
        while True:
            try:
                for open_store in self._openers[len(self._stores) :]:
                    self._stores.append(open_store())
                n_new = [await asyncio.to_thread(store.write, rows) for store in self._stores]
            except (psycopg.Error, OSError) as error:
                logger.warning("cannot write: %s; trying again", " ".join(str(error).split()))
                self._close_stores()
                await asyncio.sleep(PAUSE_S)
            else:
                logger.info("messages: %d, of them for the first time: %d", len(rows), min(n_new))
                return

    def _close_stores(self) -> None:
        for store in self._stores:
            with contextlib.suppress(Exception):
                store.close()
        self._stores = []


def broker_of(args: argparse.Namespace, ack_wait_s: float) -> Broker:
    """Return the broker that the command line names."""
    password = os.environ.get("CENTRE_PASSWORD", "")
    if args.nats is not None:
        options = {"user_credentials": str(args.creds)} if args.creds is not None else {}
        if args.user is not None:
            options |= {"user": args.user, "password": password}
        return Nats(args.nats, args.stream, args.name, ack_wait_s, **options)
    host, _, port = args.mqtt.partition(":")
    login = None if args.user is None else (args.user, password)
    return Mqtt(host, int(port or 1883), args.prefix, args.name, login)


def main() -> None:
    """Run until Ctrl-C, or until it is killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--nats", help="nats://host:port, several with commas between them")
    source.add_argument("--mqtt", help="host:port of an MQTT 5 broker")
    parser.add_argument("--stream", default="AST_STREAM", help="of JetStream")
    parser.add_argument("--prefix", default="ast_stream", help="of MQTT topics")
    parser.add_argument("--name", default="centre", help="that the broker knows this consumer by")
    parser.add_argument("--user", help="with the password in $CENTRE_PASSWORD")
    parser.add_argument("--creds", type=Path, help="credentials file of a NATS user")
    parser.add_argument("--postgres", help="where the table is, e.g. postgresql:///fleet")
    parser.add_argument("--parquet", type=Path, help="folder of files")
    parser.add_argument("--every-s", type=float, help="between writes; default: 1, Parquet: 60")
    parser.add_argument("--max-messages", type=int, default=5000, help="that are written at once")
    args = parser.parse_args()
    if args.postgres is None and args.parquet is None:
        parser.error("expected --postgres or --parquet, or both")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    every_s = args.every_s or (60.0 if args.parquet is not None else 1.0)
    stores: list[Callable[[], Store]] = []
    if args.postgres is not None:
        stores.append(lambda: Postgres(args.postgres))
    if args.parquet is not None:
        stores.append(lambda: Parquet(args.parquet))
    consumer = Consumer(
        broker_of(args, ack_wait_s=30 + 3 * every_s), stores, args.max_messages, every_s
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(consumer.run())


if __name__ == "__main__":
    main()
