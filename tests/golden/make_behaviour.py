"""Write the golden behaviour: events, scores, bytes on the wire, the report of the demo.

Run from the repository's root: `PYTHONPATH=.:tests/support python tests/golden/make_behaviour.py`.
A change of these files is a change that users can see: say in the commit which one, and why.
"""

from __future__ import annotations

import json
from typing import Any

import golden_behaviour as golden
import numpy as np


def main() -> None:
    """Write all files of `behaviour/`."""
    events, arrays = golden.scan_command()
    store("scan", events)
    np.savez_compressed(golden.STORED / "scores.npz", allow_pickle=False, **arrays)
    store("live", golden.live_events(golden.BLOCKS[0]))
    store("wire", {**golden.worker_messages(), **golden.process_messages()})
    store("demo", golden.demo_command())


def store(name: str, value: Any) -> None:
    """Write one file as JSON that people can read and compare."""
    path = golden.STORED / f"{name}.json"
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
