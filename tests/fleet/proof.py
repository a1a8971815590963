"""Boxes and a centre under faults: the table of the centre must equal the files of the boxes.

python tests/fleet/proof.py --broker nats --minutes 14 --cut-s 600 --kills 50 --seed 1

Each box runs capture, worker, alerts and forwarder in a network namespace of its own. Meanwhile the
network of one box is cut for long and of another again and again; the broker, the database and the
consumer are killed; forwarders are killed at random moments, and workers now and then; the clock
of one box is an hour ahead, and is then set right. Streams stall, workers are stopped for longer
than the rings hold, captures are killed: gaps. Of one box the event log and the alert database are
lost while it is cut off. At the end everything in the files of the boxes must be one row of the
table, with the same content, and there must be no other: events, gaps, alerts, coverage, health.
What is missing must be of the files that were lost, and the box must have said so.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

from centre import Consumer
from centre_table import Comparison, compare
from fleet_box import RING_S, FleetBox
from mqtt_broker import Broker
from nats_server import NatsServer
from network import Network, network
from postgres import Postgres, postgres
from reactive_model import save_reactive
from stalling_station import Station
from wall_clocks import WallClocks

NAMES = ("attic", "barn", "cellar")
HOUR_NS = 3600 * 1_000_000_000
START_S = 300.0  # for the first messages on a busy machine
QUIET_S = 3.0  # after everything is there
DELIVERY_S = 300.0
MOSQUITTO = ("persistence true", "autosave_interval 1", "max_queued_messages 0")

logger = logging.getLogger("proof")


@dataclass(frozen=True)
class Plan:
    """What is done to a fleet.

    Attributes:
        seconds: how long it runs under faults.
        cut_s: how long the network of one box is cut; the others' are cut for moments.
        kills: of forwarders.
        consumer_kills, broker_kills, worker_kills, database_kills: of the others.
        stalls: of the network streams of all boxes.
        pauses: of workers, for longer than a ring holds.
        capture_kills: each loses what was not read of its ring.
        loses_files: one box loses its event log and its alerts while it is cut off.
    """

    broker: str
    boxes: int
    seconds: float
    cut_s: float
    kills: int
    consumer_kills: int
    broker_kills: int
    worker_kills: int
    database_kills: int
    short_cuts: int
    stalls: int
    pauses: int
    capture_kills: int
    loses_files: bool
    streams: int
    seed: int


@dataclass
class Result:
    """What came of it.

    Attributes:
        comparison: of the table with the files of the boxes.
        received: messages that the consumer kept, those that came again included.
        removed: messages that came again, from a box or from the broker.
    """

    plan: Plan
    network: str
    comparison: Comparison = field(default_factory=Comparison)
    received: int = 0
    removed: int = 0
    cut_s: float = 0.0
    killed: Counter[str] = field(default_factory=Counter)
    minutes: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        found = {name: value for name, value in vars(self).items() if name != "plan"}
        found["comparison"] = vars(self.comparison)
        return {"plan": asdict(self.plan), "is_right": self.is_right, **found}

    @property
    def is_right(self) -> bool:
        """Whether the table equals the files."""
        return bool(self.comparison.expected) and self.comparison.is_right


class Centre:
    """A broker, a database and a consumer.

    Args:
        kind: nats or mqtt.
    """

    def __init__(self, kind: str, folder: Path, host: str, database: Postgres) -> None:
        self.kind = kind
        self.database = database
        self.broker: NatsServer | Broker
        if kind == "nats":
            self.broker = NatsServer(folder, host=host)
            source = ("--nats", f"nats://{host}:{self.broker.port}")
        else:
            self.broker = Broker(folder, *MOSQUITTO, f"persistence_location {folder}/", host=host)
            source = ("--mqtt", f"{host}:{self.broker.port}")
        stores = ("--postgres", database.address)
        self.consumer = Consumer(folder, *source, *stores, "--every-s", "0.5")

    def start(self) -> None:
        self.broker.start()
        self.consumer.start()

    def output(self, address: tuple[str, int]) -> dict[str, Any]:
        """Return the settings of a box's output."""
        host, port = address
        own: dict[str, Any] = {"name": "centre", "type": self.kind, "timeout_s": 3.0}
        if self.kind == "nats":
            return own | {"servers": [f"nats://{host}:{port}"]}
        return own | {"host": host, "port": port, "resend_s": 60.0}

    def rows(self) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Return source, id, type and data of all."""
        with self.database.connect() as db:
            return list(db.execute("SELECT source, id, type, data FROM messages").fetchall())

    def count(self) -> int:
        with self.database.connect() as db:
            if db.execute("SELECT to_regclass('messages')").fetchall() == [(None,)]:
                return 0
            return int(db.execute("SELECT count(*) FROM messages").fetchall()[0][0])

    def close(self) -> None:
        self.consumer.close()
        self.broker.kill()


class Fleet:
    """Boxes and their centre, and what is done to them."""

    def __init__(self, plan: Plan, folder: Path, database: Postgres, wires: Network) -> None:
        self.plan = plan
        self.centre = Centre(plan.broker, folder, wires.host, database)
        self.station = Station(wires.host)
        checkpoint = save_reactive(folder / "model")
        self.boxes: list[FleetBox] = []
        for name in NAMES[: plan.boxes]:
            link = wires.link()
            output = self.centre.output(link.address(self.centre.broker.port))
            # the clocks of the last box are wrong
            has_clocks = name == NAMES[plan.boxes - 1] and WallClocks.can_be_set()
            host, port = link.address(self.station.port)
            url = f"http://{host}:{port}/line.wav"
            options: dict[str, Any] = {"has_clocks": has_clocks, "url": url}
            self.boxes.append(FleetBox(name, plan.streams, checkpoint, link, output, **options))
        self.result = Result(plan, type(wires).__name__)
        self._rng = random.Random(plan.seed)
        self._lock = threading.Lock()
        self._began_s = 0.0

    def start(self) -> None:
        """Start everything, and wait for the first messages of all boxes."""
        self.centre.start()
        self._began_s = time.monotonic()
        for box in self.boxes:
            self._set_clocks(box, HOUR_NS)
            box.start()
        wait_for(lambda: len(self._heard_of()) == len(self.boxes), "messages of all boxes", START_S)

    def disturb(self) -> None:
        """Do all that is planned, at random moments."""
        plan = self.plan
        began_s = time.monotonic()
        faults: list[tuple[float, Callable[[], None]]] = []

        def at_random(count: int, fault: Callable[[], None]) -> None:
            faults.extend((self._rng.uniform(0, 0.9 * plan.seconds), fault) for _ in range(count))

        at_random(plan.kills, self._kill_forwarder)
        at_random(plan.consumer_kills, self._kill_consumer)
        at_random(plan.broker_kills, self._kill_broker)
        at_random(plan.worker_kills, self._kill_worker)
        at_random(plan.database_kills, self._kill_database)
        at_random(plan.stalls, lambda: self.station.stall(self._rng.uniform(3, 12)))
        at_random(plan.pauses, self._pause_worker)
        at_random(plan.capture_kills, self._kill_capture)
        at_random(plan.short_cuts, lambda: self._cut(self.boxes[1], self._rng.uniform(1, 20)))
        cut_at_s = 0.3 * max(0.0, plan.seconds - plan.cut_s)
        faults.append((cut_at_s, lambda: self._cut(self.boxes[0], plan.cut_s)))
        if plan.loses_files:
            faults.append((0.6 * plan.seconds, self._lose_files))
        faults.append((plan.seconds / 2, lambda: self._set_clocks(self.boxes[-1], 0)))
        threads = []
        for at_s, fault in sorted(faults, key=lambda found: found[0]):
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            thread = threading.Thread(target=fault)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        time.sleep(max(0.0, began_s + plan.seconds - time.monotonic()))

    def finish(self) -> None:
        """Stop all boxes, have them deliver what they still have, and compare."""
        for box in self.boxes:
            box.stop()
        self.result.minutes = (time.monotonic() - self._began_s) / 60
        time.sleep(QUIET_S)
        self._compare()
        for _ in range(3):
            if self.result.is_right:
                break
            for box in self.boxes:
                box.start_to_deliver()
            self._wait_until_delivered()
            for box in self.boxes:
                box.stop_to_deliver()
            time.sleep(QUIET_S)  # for what should not come
            self._compare()
        self.result.received, new = self.centre.consumer.received
        self.result.removed = self.result.received - new

    def close(self) -> None:
        """End all of it."""
        with ExitStack() as stack:
            stack.callback(self.centre.close)
            stack.callback(self.station.close)
            for box in self.boxes:
                stack.callback(box.close)

    def _heard_of(self) -> set[str]:
        if self.centre.count() == 0:
            return set()
        return {source.split("/")[2] for source, *_ in self.centre.rows()}

    def _wait_until_delivered(self) -> None:
        """Wait until every message of the files is there, or for long in vain."""
        end_s = time.monotonic() + DELIVERY_S
        while time.monotonic() < end_s:
            if all(box.is_delivering for box in self.boxes):
                self._compare()
                if self.result.is_right:
                    return
            time.sleep(1.0)

    def _compare(self) -> None:
        for box in self.boxes:
            box.record()
        self.result.comparison = compare(self.boxes, self.centre.rows())

    def _kill_forwarder(self) -> None:
        box = self._rng.choice(self.boxes)
        end_s = time.monotonic() + 60.0
        while not box.kill("forward") and time.monotonic() < end_s:  # it is being restarted
            time.sleep(0.05)
        self._note("forwarder")

    def _kill_worker(self) -> None:
        if self._rng.choice(self.boxes).kill("worker"):
            self._note("worker")

    def _pause_worker(self) -> None:
        self._rng.choice(self.boxes).pause("worker", RING_S + self._rng.uniform(3, 8))
        self._note("paused worker")

    def _kill_capture(self) -> None:
        if self._rng.choice(self.boxes).kill("capture"):
            self._note("capture")

    def _lose_files(self) -> None:
        """Lose what was not sent of one box: its log, and its alerts."""
        box = self.boxes[1]
        box.link.cut()
        time.sleep(8.0)  # there is something that was not sent
        box.lose("feed", "worker", "events/*.jsonl")
        box.lose("alerts", "alerts", "alerts.sqlite*")
        time.sleep(2.0)
        box.link.mend()
        self._note("lost files")

    def _kill_consumer(self) -> None:
        with self._lock:
            self.centre.consumer.kill()
            time.sleep(self._rng.uniform(0, 3))
            self.centre.consumer.start()
        self._note("consumer")

    def _kill_broker(self) -> None:
        with self._lock:
            self.centre.broker.kill()
            time.sleep(self._rng.uniform(0, 15))
            self.centre.broker.start()
        self._note("broker")

    def _kill_database(self) -> None:
        with self._lock:
            self.centre.database.kill()
            time.sleep(self._rng.uniform(0, 5))
            self.centre.database.start()
        self._note("database")

    def _cut(self, box: FleetBox, seconds: float) -> None:
        logger.info("network of %s is cut for %.0f s", box.name, seconds)
        box.link.cut()
        time.sleep(seconds)
        box.link.mend()
        self.result.cut_s += seconds

    def _set_clocks(self, box: FleetBox, by_ns: int) -> None:
        if box.clocks is not None:
            for process in box.clocks.processes:
                box.clocks.shift(process, by_ns)
            logger.info("clocks of %s are %+.0f s off", box.name, by_ns / 1e9)

    def _note(self, what: str) -> None:
        self.result.killed[what] += 1
        logger.info("%s killed (%d)", what, self.result.killed[what])


def prove(plan: Plan) -> Result:
    """Run a fleet by a plan, and compare."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        database = stack.enter_context(postgres())
        wires = network()
        stack.callback(wires.close)
        fleet = Fleet(plan, folder, database, wires)
        stack.callback(fleet.close)
        try:
            fleet.start()
            fleet.disturb()
            fleet.finish()
        finally:
            if not fleet.result.is_right:
                logs = {box.name: box.log for box in fleet.boxes}
                for name, log in (logs | {"consumer": fleet.centre.consumer.log}).items():
                    logger.error("%s:\n%s", name, log[-4000:])
        return fleet.result


def wait_for(condition: Callable[[], bool], what: str, patience_s: float) -> None:
    """Wait until `condition` holds; fail naming `what` if it never does."""
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.2)


def main() -> int:
    """Run from the command line; exit code 0 only if the table equals the logs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=("nats", "mqtt"), default="nats")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--cut-s", type=float, default=600.0)
    parser.add_argument("--kills", type=int, default=50, help="of forwarders")
    parser.add_argument("--streams", type=int, default=3, help="of each box")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left behind
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    plan = Plan(
        broker=args.broker,
        boxes=len(NAMES),
        seconds=60 * args.minutes,
        cut_s=args.cut_s,
        kills=args.kills,
        consumer_kills=10,
        broker_kills=4,
        worker_kills=4,
        database_kills=2,
        short_cuts=6,
        stalls=4,
        pauses=3,
        capture_kills=3,
        loses_files=True,
        streams=args.streams,
        seed=args.seed,
    )
    result = prove(plan)
    print(json.dumps(result.to_json(), indent=1))
    print("the table equals the logs" if result.is_right else "THE TABLE DIFFERS")
    return 0 if result.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
