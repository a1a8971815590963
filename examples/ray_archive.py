"""Scan an archive on a Ray cluster, with Ray Data: the same Parquet as `ast-stream scan --out`.

    python examples/ray_archive.py s3://bucket/archive/ --out /data/events --actors 8 --gpus 1

Actors load the model once and turn recordings into rows; this process alone writes them, in the
order of the names, part by part. A task that fails, or an actor that is killed, is repeated by Ray:
its rows come once. This process killed and run again goes on after the last whole part. The
cluster is the one that RAY_ADDRESS names, or this machine; it needs ast_stream on every node.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ast_stream.archive.batch_scanner import BatchScanner
from ast_stream.archive.listing import Listing, ShardNumber, list_archive, names_in
from ast_stream.archive.manifest import Made
from ast_stream.archive.recording_rows import RecordingRows
from ast_stream.archive.scan import made_by
from ast_stream.archive.shard import PartSize, ShardResults
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.load import load_settings
from ast_stream.settings.model import ModelSettings


class ScanActor:
    """An actor: scans recordings by their numbers in the listing."""

    def __init__(self, model: ModelSettings, detection: DetectionSettings, listing: Any) -> None:
        self._scanner = BatchScanner(model, detection)
        self._listing: Listing = ray.get(listing)
        self._made = made_by(self._scanner).model_dump_json()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what became of recordings, and what it was made by."""
        recordings = [self._listing.recording(int(number)) for number in batch["id"]]
        rows = [one.to_json() for one in self._scanner.scan(recordings)]
        return {"rows": np.array(rows, object), "made": np.array([self._made] * len(rows))}


def describe(model: ModelSettings, detection: DetectionSettings) -> tuple[Made, dict[str, str]]:
    """Return what rows will depend on, found out where they are made."""
    scanner = BatchScanner(model, detection)
    return made_by(scanner), scanner.computed_on


def main() -> None:
    """Scan what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="recordings and folders, by path or URI")
    parser.add_argument("--out", required=True, help="folder of the results, by path or URI")
    parser.add_argument("--list", type=Path, help="recordings, one on each line")
    parser.add_argument("--root", help="what names are relative to")
    parser.add_argument("--config", type=Path, help="model and detection settings")
    parser.add_argument("--model", help="checkpoint")
    parser.add_argument("--hop", type=float, help="seconds between windows")
    parser.add_argument("--actors", type=int, default=1, help="that scan recordings")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each actor")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each actor")
    parser.add_argument("--batch", type=int, default=16, help="recordings that an actor gets")
    parser.add_argument("--part-hours", type=float, default=PartSize.hours)
    args = parser.parse_args()
    settings = None if args.config is None else load_settings(args.config)
    model = ModelSettings() if settings is None else settings.model
    detection = DetectionSettings() if settings is None else settings.detection
    given = {"checkpoint": args.model, "hop_s": args.hop}
    model = model.model_copy(update={key: value for key, value in given.items() if value})
    lines = () if args.list is None else names_in(args.list.open("rb"))
    listing = list_archive(ShardNumber(), args.files, root=args.root, names=lines)
    needs = {"num_cpus": args.cpus, "num_gpus": args.gpus}
    made, computed_on = ray.get(ray.remote(**needs)(describe).remote(model, detection))
    size = PartSize(args.part_hours)
    with ShardResults(args.out, ShardNumber(), listing, made, computed_on, size=size) as results:
        left = range(results.n_done, len(listing.names))
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        numbers = ray.data.from_items(
            [{"id": number} for number in left],
            override_num_blocks=max(1, -(-len(left) // args.batch)),
        )
        rows = numbers.map_batches(
            ScanActor, fn_constructor_args=(model, detection, ray.put(listing)),
            batch_size=args.batch, concurrency=args.actors, **needs,
        )  # fmt: skip
        for row in rows.iter_rows() if left else ():
            if Made.model_validate_json(row["made"]) != made:
                raise SystemExit(f"a node computes otherwise: expected {made}, got {row['made']}")
            results.add(RecordingRows.from_json(row["rows"]))
    print(f"{results.manifest.progress}")


if __name__ == "__main__":
    main()
