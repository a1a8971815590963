"""The long form: a million changed cases through every decoder of bytes from outside.

PYTHONPATH=tests:tests/support python -m fuzz --cases 1000000 --seed 1 --out fuzz.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from fuzz.campaign import BATCH, FINDINGS, Campaign, keep_finding, shares
from fuzz.everything import all_decoders


def main() -> int:
    """Run from the command line; exit code 0 only if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="decoders whose names hold this")
    parser.add_argument("--out", type=Path, help="JSON file for what was found, also on the way")
    parser.add_argument("--keep", type=Path, default=FINDINGS, help="folder for findings")
    args = parser.parse_args()
    began_s = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # databases sync each commit
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as scratch:
        decoders = [
            one for one in all_decoders(Path(scratch)) if args.only is None or args.only in one.name
        ]
        left = shares(decoders, args.cases)
        campaigns = {one.name: Campaign(one, args.seed) for one in decoders}
        while any(left.values()):
            for name, campaign in campaigns.items():
                batch = min(left[name], max(20, round(BATCH * campaign.decoder.share)))
                if batch == 0:
                    continue
                known = set(campaign.tally.findings)
                left[name] -= min(left[name], max(1, campaign.run_apart(batch).cases))
                for kind in campaign.tally.findings.keys() - known:
                    finding = campaign.tally.findings[kind]
                    path = keep_finding(finding, args.keep)
                    print(f"{name}: {kind}: {path}", file=sys.stderr, flush=True)
                report = _report(campaigns, args.seed, time.monotonic() - began_s)
                if args.out is not None:
                    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(_table(report))
    return 1 if report["findings"] else 0


def _report(campaigns: dict[str, Campaign], seed: int, seconds: float) -> dict[str, object]:
    tallies = {name: campaign.tally for name, campaign in campaigns.items()}
    return {
        "seed": seed,
        "seconds": round(seconds),
        "cases": sum(tally.cases for tally in tallies.values()),
        "findings": sum(len(tally.findings) for tally in tallies.values()),
        "decoders": [
            {
                "name": name,
                "cases": tally.cases,
                "accepted": tally.accepted,
                "refused": tally.refused,
                "ways": len(tally.ways),
                "mean_ms": round(1000 * tally.seconds / max(1, tally.cases), 3),
                "slowest_s": round(tally.slowest_s, 3),
                "findings": sorted(tally.findings),
            }
            for name, tally in tallies.items()
        ],
    }


def _table(report: dict[str, object]) -> str:
    lines = [f"{'decoder':34} {'cases':>9} {'accepted':>9} {'refused':>9} {'ways':>5} {'ms':>7}"]
    for one in report["decoders"]:  # type: ignore[attr-defined]
        lines.append(
            f"{one['name']:34} {one['cases']:9} {one['accepted']:9} {one['refused']:9} "
            f"{one['ways']:5} {one['mean_ms']:7.2f} {'; '.join(one['findings'])}"
        )
    total = f"{report['cases']} cases, {report['findings']} findings, {report['seconds']} s"
    return "\n".join([*lines, total])


if __name__ == "__main__":
    sys.exit(main())
