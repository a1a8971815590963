"""Stop a forwarder while it catches up with a week, and let one wait for hours for a server.

    python tests/fleet/forward_stops.py --messages 70000 --stops 8
    python tests/fleet/forward_stops.py --away 100000

With `--stops` the log is full before the forwarder starts; SIGTERM comes at random moments while it
is sent. Each stop must be in order and in time, and in the end the stream must hold all of the log,
in order and once. With `--away` so many messages are published while the server is down; the memory
of the forwarder is read meanwhile. Prints one JSON object; exits 1 if something is not right.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/support")]

from forward_box import ForwardBox, forward_box, nats_output, wait_until  # noqa: E402
from nats_server import nats_server, stored  # noqa: E402

PATIENCE_S = 900.0
_READY = "ready: forwards"
STOP_S = 20.0  # two waits for the broker, one drain, and a busy machine


def stops(folder: Path, n_messages: int, n_stops: int, seed: int, longest_s: float) -> Any:
    """Return what came of stops while a full log is sent."""
    choose = random.Random(seed)
    with nats_server(folder) as server, forward_box([nats_output(server.url)]) as box:
        box.publish(n_messages)
        seconds, sent = [], []
        for _ in range(n_stops):
            _start(box)
            time.sleep(choose.uniform(0.0, longest_s))
            began_s = time.monotonic()
            assert box.stop() == 0, box.log[-2000:]
            seconds.append(round(time.monotonic() - began_s, 2))
            sent.append(box.position().get("sources", {}).get("feed", [None, 0])[1])
        _start(box)
        wait_until(lambda: _is_behind(box), "the rest", PATIENCE_S)
        assert box.stop() == 0
        found = [one.key for one in stored(server.url)]
        return {
            "messages": len(box.expected()),
            "is_equal": found == box.expected(),
            "stop_s": seconds,
            "sent_at_stops": sent,
            "is_right": found == box.expected() and max(seconds, default=0.0) < STOP_S,
        }


def away(folder: Path, n_messages: int, n_steps: int = 10) -> Any:
    """Return the memory of a forwarder that waits for its server while messages are published."""
    with nats_server(folder) as server, forward_box([nats_output(server.url)]) as box:
        box.publish(10)
        _start(box)
        wait_until(lambda: _is_behind(box), "the first")
        server.kill()
        rss = {0: _rss_mib(box)}
        for step in range(1, n_steps + 1):
            box.publish(n_messages // n_steps)
            time.sleep(2.0)
            rss[step * n_messages // n_steps] = _rss_mib(box)
        server.start()
        wait_until(lambda: _is_behind(box), "all of them", PATIENCE_S)
        after = _rss_mib(box)
        assert box.stop() == 0
        stream = stored(server.url)
        kept = set(box.expected())  # the log is bounded: the oldest may be lost, and said to be
        found = [one.key for one in stream if one.key in kept]
        n_lost = sum(one.body["type"].endswith(".lost") for one in stream)
        return {
            "messages": n_messages,
            "kept_in_log": len(kept),
            "lost_messages": n_lost,
            "rss_mib_by_messages": rss,
            "rss_mib_after": after,
            "is_right": found == box.expected() and (len(kept) > n_messages or n_lost == 1),
        }


def _start(box: ForwardBox) -> None:
    """Start a forwarder, and wait until it would take a signal in good order."""
    n_starts = box.log.count(_READY)
    box.start()
    wait_until(lambda: box.log.count(_READY) > n_starts, "the start")


def _is_behind(box: ForwardBox) -> bool:
    last = list(box.worker.publisher.durable_position)
    return bool(box.position().get("sources", {}).get("feed") == last)


def _rss_mib(box: ForwardBox) -> float:
    assert box.process is not None
    status = Path(f"/proc/{box.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=70_000)
    parser.add_argument("--stops", type=int, default=8)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds from start to stop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--away", type=int, help="messages published while the server is down")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asd-", dir="/tmp") as name:
        if chosen.away is not None:
            found = away(Path(name), chosen.away)
        else:
            numbers = (chosen.messages, chosen.stops, chosen.seed, chosen.longest)
            found = stops(Path(name), *numbers)
    print(json.dumps(found))
    return 0 if found["is_right"] else 1


if __name__ == "__main__":
    sys.exit(main())
