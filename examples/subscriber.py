"""Print the events of a running worker, and go on where it stopped when it is started again.

python examples/subscriber.py ipc:///run/ast-stream/feed.sock --class bark --position position.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from ast_stream.feed import Subscriber


def main() -> None:
    """Read the feed until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("endpoint", help="of the feed, as `ast-stream check-config` prints it")
    parser.add_argument("--class", dest="classes", action="append", help="default: all")
    parser.add_argument("--position", type=Path, help="file that remembers where this stopped")
    parser.add_argument("--count", type=int, help="end after this many events")
    args = parser.parse_args()
    after = None
    if args.position is not None and args.position.exists():
        boot, seq = json.loads(args.position.read_text())
        after = boot, seq
    with Subscriber(args.endpoint, classes=args.classes, after=after) as feed:
        for number, event in enumerate(feed, 1):
            print(event["stream"], event["class"], event["type"], event["onset"], flush=True)
            if args.position is not None:
                args.position.write_text(json.dumps(feed.position))
            if number == args.count:
                break


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
