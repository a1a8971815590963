"""Kill a forwarder again and again while its box publishes; nothing may be missing at the centre.

    python tests/fleet/forwarder_kills.py --kills 50 --seed 1

A real nats-server keeps the stream. Afterwards its messages, each once, must be those of the box's
event log, in the same order; how many the stream itself holds twice is reported. Prints one JSON
object; exits 1 if a message is missing, invented, changed or out of order.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/support")]

from forward_box import ForwardBox, forward_box, nats_output, once  # noqa: E402
from nats_server import NatsServer, Stored, count, nats_server, stored  # noqa: E402

PATIENCE_S = 180.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        messages: in the event log of the box.
        missing, invented, changed: messages of the stream, each once, against those.
        in_order: those of the stream are in the order of the log.
        stored_twice: messages that the stream holds a second time.
    """

    seed: int
    kills: int
    server_kills: int
    messages: int
    missing: int
    invented: int
    changed: int
    in_order: bool
    stored_twice: int
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the centre has exactly what the box had."""
        return self.in_order and not (self.missing or self.invented or self.changed)


def run(
    folder: Path,
    *,
    n_kills: int,
    seed: int,
    rate: float,
    server_kills: int = 0,
    duplicates_s: float = 600.0,
    max_unconfirmed: int = 256,
    longest_s: float = 2.5,
) -> Outcome:
    """Kill the forwarder at random moments while messages are published, and compare.

    Args:
        rate: messages a second.
        server_kills: of the kills so many are of the server too, at another moment.
        duplicates_s: window of the server; short: what it does not recognise itself.
        longest_s: from a start to its kill; a forwarder needs about one second to begin.
    """
    choose = random.Random(seed)
    began_s = time.monotonic()
    with nats_server(folder / "nats") as server:
        limits = {"duplicates_s": duplicates_s}
        output = nats_output(server.url, limits=limits, max_unconfirmed=max_unconfirmed)
        with forward_box([output]) as box:
            stop = threading.Event()
            publisher = threading.Thread(target=_publish, args=(box, rate, stop))
            publisher.start()
            try:
                with_server = set(choose.sample(range(n_kills), server_kills))
                for n in range(n_kills):
                    box.start()
                    time.sleep(choose.uniform(0.3, longest_s))
                    if n in with_server:
                        server.kill()
                        time.sleep(choose.uniform(0.0, 1.0))
                        server.start()
                    box.kill()
            finally:
                stop.set()
                publisher.join()
            box.start()
            _wait_for_all(box, server)
            found = stored(server.url)
            return _compare(box, found, seed, server_kills, time.monotonic() - began_s)


def _publish(box: ForwardBox, rate: float, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        box.publish(max(1, round(rate * 0.05)))


def _wait_for_all(box: ForwardBox, server: NatsServer) -> None:
    """Wait until the forwarder is behind the last message, and as many are stored."""
    last = list(box.logged()[-1].position)
    end_s = time.monotonic() + PATIENCE_S
    while box.position().get("sources", {}).get("feed") != last:
        if time.monotonic() > end_s:
            print(f"{count(server.url)} messages stored; {box.log[-2000:]}", file=sys.stderr)
            raise SystemExit("the forwarder does not come to the last message")
        time.sleep(0.1)


def _compare(
    box: ForwardBox, found: list[Stored], seed: int, server_kills: int, seconds: float
) -> Outcome:
    logged = {key: message for key, message in zip(box.expected(), box.logged(), strict=True)}
    expected = list(logged)
    feed = [one for one in found if one.body["type"].split(".")[2] in ("event", "gap")]
    keys = [one.key for one in feed]
    changed = sum(one.key in logged and one.body["data"] != logged[one.key].body for one in feed)
    return Outcome(
        seed=seed,
        kills=box.kills,
        server_kills=server_kills,
        messages=len(expected),
        missing=len(set(expected) - set(keys)),
        invented=len(set(keys) - set(expected)),
        changed=changed,
        in_order=once(keys) == expected,
        stored_twice=len(keys) - len(set(keys)),
        seconds=round(seconds, 1),
    )


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second")
    parser.add_argument("--server-kills", type=int, default=5)
    parser.add_argument("--window", type=float, default=600.0, help="of the server, seconds")
    parser.add_argument("--unconfirmed", type=int, default=256)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ask-", dir="/tmp") as folder:
        outcome = run(
            Path(folder),
            n_kills=chosen.kills,
            seed=chosen.seed,
            rate=chosen.rate,
            server_kills=chosen.server_kills,
            duplicates_s=chosen.window,
            max_unconfirmed=chosen.unconfirmed,
        )
    print(json.dumps(asdict(outcome)))
    return 0 if outcome.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
