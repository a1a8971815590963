"""What a durable event costs on a disk: milliseconds from its publication until it is sent.

    .venv/bin/python tests/benchmarks/bench_sync.py [--folder /var/lib/ast-stream] [--events 500]

Events one by one, as on a quiet box, and eight at once, which share a sync; with
`durability: each event` and with `1 s`, where nothing but the begin of an event waits for the disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

from sample_messages import event_message

from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import FeedPublisher, SyncedFirst
from ast_stream.transport.requester import Requester

EVERY_S = 0.01  # a disk that is never idle may be slower, or faster
AT_ONCE = 8


class Silence:
    """A feed that nobody reads."""

    def send(self, frames: list[bytes]) -> bool:
        """Send to nobody."""
        return True

    def has_reader(self, topic: bytes) -> bool:
        """Nobody reads anything."""
        return False

    def readers(self, topic: bytes) -> list[Requester]:
        """Nobody reads anything."""
        return []


def waits_ms(folder: Path, n_events: int, at_once: int, synced_first: SyncedFirst) -> list[float]:
    """Return how long updates of events wait, in milliseconds."""
    log = EventLog(folder / f"events-{at_once}-{synced_first}")
    publisher = FeedPublisher(Silence(), log, "b1", synced_first=synced_first)
    waits: list[float] = []
    for number in range(n_events):
        began_s = time.perf_counter()
        for part in range(at_once):
            publisher.publish(event_message(f"id{number}.{part}", "update"))
        publisher.flush()
        waits.append(1000 * (time.perf_counter() - began_s))
        time.sleep(EVERY_S)
    log.close()
    return waits


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="on the disk in question; default: here")
    parser.add_argument("--events", type=int, default=500)
    args = parser.parse_args()
    print("durability  at once   median    p99    max   ms")
    with tempfile.TemporaryDirectory(dir=args.folder or Path.cwd(), prefix=".bench-sync-") as at:
        settings: dict[str, SyncedFirst] = {"each event": "each event", "1 s": "begins"}
        for name, synced_first in settings.items():
            for at_once in (1, AT_ONCE):
                waits = waits_ms(Path(at), args.events, at_once, synced_first)
                median, p99 = np.percentile(waits, [50, 99])
                print(f"{name:<11} {at_once:>7} {median:>8.2f} {p99:>6.2f} {max(waits):>6.2f}")


if __name__ == "__main__":
    main()
