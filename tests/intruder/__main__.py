"""The intruder's walk: try every attempt of SECURITY.md, and write what happened as JSON.

PYTHONPATH=tests:tests/support:tests/process python -m intruder --out intruder.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from intruder.attempts import ATTEMPTS

ROOT = Path(__file__).parents[2]


class _Outcomes:
    """What became of each test, by its name without parameters."""

    def __init__(self) -> None:
        self.passed: dict[str, int] = {}
        self.failed: dict[str, list[str]] = {}
        self.skipped: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.failed:
            self.failed.setdefault(name, []).append(str(report.longrepr)[-500:])
        elif report.skipped:
            self.skipped[name] = self.skipped.get(name, 0) + 1
        elif report.when == "call":
            self.passed[name] = self.passed.get(name, 0) + 1


def main() -> int:
    """Run from the command line; exit code 0 only if every attempt ended as the table says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--flood", type=int, default=1_000_000, help="tiny messages")
    args = parser.parse_args()
    outcomes = _Outcomes()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "flood.json"
        os.environ |= {"FLOOD": str(args.flood), "FLOOD_FIGURES": str(figures)}
        tests = dict.fromkeys(test for attempt in ATTEMPTS for test in attempt.tests)
        options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-o", "timeout=900"]
        pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[outcomes])
        flood = json.loads(figures.read_text()) if figures.exists() else None
    rows = [_row(attempt, outcomes) for attempt in ATTEMPTS]
    report = {
        "seconds": round(time.monotonic() - began_s),
        "attempts": len(rows),
        "held": sum(row["held"] for row in rows),
        "flood": flood,
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        if not row["held"]:
            print(f"not as said: {row['attempt']}")
    print(f"{report['held']} of {report['attempts']} attempts ended as SECURITY.md says")
    return 0 if report["held"] == report["attempts"] else 1


def _row(attempt: Any, outcomes: _Outcomes) -> dict[str, Any]:
    failed = [text for test in attempt.tests for text in outcomes.failed.get(test, [])]
    tries = sum(outcomes.passed.get(test, 0) for test in attempt.tests)
    return {
        "attempt": attempt.tried,
        "happens": attempt.happens,
        "tests": list(attempt.tests),
        "tries": tries,
        "skipped": sum(outcomes.skipped.get(test, 0) for test in attempt.tests),
        "failed": failed,
        "held": not failed and all(outcomes.passed.get(test) for test in attempt.tests),
    }


if __name__ == "__main__":
    sys.exit(main())
