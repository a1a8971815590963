"""Prove that shards, kills and Ray give the rows of one scan; writes the figures as JSON.

    python scripts/prove_archive.py --hours 24 --shards 8 --kills 20 --report archive.json

An archive is mixed from real recordings (--sounds), with long and short files, other formats, cut
and broken ones. It is scanned once; then in shards whose processes are killed (-9) at random
moments and started again; then by `examples/ray_archive.py` on workers of this machine. All three
must have the same rows. Run it with `nice` where others work: CPU time is counted beside the clock,
and what Ray adds to it is compared with the one scan of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from ast_stream.archive import archive_state, read_coverage, read_events
from ast_stream.audio.containers import recordings_in
from ast_stream.audio.recording import read_mono
from ast_stream.errors import AstStreamError
from ast_stream.units import SAMPLE_RATE

ROOT = Path(__file__).resolve().parents[1]
RAY = ROOT / "examples" / "ray_archive.py"
SOUNDS = ROOT.parent / "shared" / "data" / "sounds"
MAX_CLIPS = 400
LENGTHS_S = (3600.0, 3600.0, 1800.0, 600.0, 60.0, 10.0)
STORE_BYTES = 200_000_000  # of Ray's objects
POLL_S = 0.5
# Ray starts with as many CPUs and as much memory as it is given, and without its dashboard
RAY_MAIN = """
import runpy, sys, ray
folder, n_cpus, n_bytes, script, *args = sys.argv[1:]
ray.init(num_cpus=int(n_cpus), object_store_memory=int(n_bytes), include_dashboard=False,
         _temp_dir=folder, logging_level="warning")
sys.argv = [script, *args]
runpy.run_path(script, run_name="__main__")
ray.shutdown()
"""

Pcm = npt.NDArray[np.int16]


@dataclass
class Figures:
    """What one way to scan the archive took.

    Attributes:
        cpu_s: of all its processes, also those that were killed.
        processes: that were started, Ray's own not counted.
        busy_s: by the manifests: what whole parts took, without starts.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    busy_s: float = 0.0
    processes: int = 0
    kills: int = 0


class CpuMeter:
    """CPU time of processes and all that descend from them, read while they live."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], float] = {}
        self._roots: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, pid: int) -> None:
        """Count a process from now on."""
        self._roots.add(pid)

    def stop(self) -> float:
        """Return the seconds of all of them."""
        self._stop.set()
        self._thread.join()
        return sum(self._seen.values())

    def _run(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self._stop.wait(POLL_S):
            parents: dict[int, int] = {}
            times: dict[int, tuple[str, float]] = {}
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = path.read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                pid = int(path.parent.name)
                parents[pid] = int(fields[1])
                times[pid] = (fields[19], (int(fields[11]) + int(fields[12])) / tick)
            for pid, (began, cpu_s) in times.items():
                at: int | None = pid
                while at and at not in self._roots:
                    at = parents.get(at)
                if at:
                    self._seen[pid, began] = cpu_s


def main() -> None:
    """Run all ways, compare, and exit with 1 if a row differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sounds", type=Path, default=SOUNDS, help="folder of real recordings")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hop", type=float, default=0.5, help="seconds between windows")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--part-hours", type=float, default=0.5)
    parser.add_argument("--actors", type=int, default=1, help="of Ray; 0: leave Ray out")
    parser.add_argument("--folder", type=Path, help="for archive and results; default: temporary")
    parser.add_argument("--report", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ast-archive-") as temporary:
        folder = args.folder or Path(temporary)
        report = prove(args, folder)
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if args.report is not None:
        args.report.write_text(text)
    if report["differences"]:
        sys.exit(1)


def prove(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what was compared, what differs, and the figures."""
    archive, load_before = folder / "archive", os.getloadavg()[2]
    if not archive.exists():
        say(f"mixing {args.hours:g} h")
        mix(archive, args.sounds, args.hours, args.seed)
    n_files = len(recordings_in(archive))
    ways: dict[str, Figures] = {}
    one, shards, by_ray = folder / "one", folder / "shards", folder / "ray"
    say(f"one scan of {n_files} recordings")
    ways["one scan"] = scan_once(archive, one, args)
    say(f"{args.shards} shards, {args.kills} kills")
    ways["shards"] = scan_in_shards(archive, shards, args, ways["one scan"].wall_s)
    outs = {"shards": shards}
    if args.actors:
        say(f"Ray, actors: {args.actors}")
        ways["ray"] = scan_by_ray(archive, by_ray, args)
        outs["ray"] = by_ray
    for name, out in (("one scan", one), *outs.items()):
        ways[name].busy_s = round(
            sum(shard.progress.busy_s for shard in archive_state(out).manifests.values()), 1
        )
    differences = [text for name, out in outs.items() for text in different(name, one, out)]
    coverage = read_coverage(one).to_pylist()
    hours = sum(row["duration_s"] for row in coverage) / 3600
    return {
        "hours": round(hours, 3),
        "recordings": len(coverage),
        "events": read_events(one).num_rows,
        "statuses": {
            status: sum(row["status"] == status for row in coverage)
            for status in ("ok", "warned", "partial", "unreadable")
        },
        "hop_s": args.hop,
        "seed": args.seed,
        "shards": args.shards,
        "differences": differences,
        "bytes_an_hour": {
            table: round(bytes_of(one, table) / hours) for table in ("events", "coverage")
        },
        "hours_per_cpu_hour": {
            name: round(hours / figures.cpu_s * 3600, 1) for name, figures in ways.items()
        },
        "more_cpu_than_one_scan": {
            name: round(ways[name].cpu_s / ways["one scan"].cpu_s - 1, 3) for name in outs
        },
        "begins_after_s": {
            name: round((figures.wall_s - figures.busy_s) / figures.processes, 1)
            for name, figures in ways.items()
            if not figures.kills
        },
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in (load_before, os.getloadavg()[2])],
        "ways": {name: asdict(figures) for name, figures in ways.items()},
    }


def mix(archive: Path, sounds: Path, hours: float, seed: int) -> None:
    """Write an archive of so many hours; clips follow each other over a quiet noise."""
    rng = np.random.default_rng(seed)
    paths = recordings_in(sounds)
    if not paths:
        sys.exit(f"--sounds: expected a folder with recordings, got {sounds}")
    chosen = rng.permutation(len(paths))[:MAX_CLIPS]
    clips = [clip for clip in (_clip(paths[index]) for index in sorted(chosen)) if len(clip)]
    unfinished = archive.with_name("archive-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    left_s, number = hours * 3600, 0
    while left_s > 0:
        length_s = min(left_s, LENGTHS_S[number % len(LENGTHS_S)], hours * 3600 / 8 + 10)
        path = unfinished / f"site-{number % 5}" / f"AM{number:03d}_20260501_{number % 24:02d}0000"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path.with_suffix(".ogg" if number % 7 == 3 else ".flac"), length_s, clips, rng)
        left_s -= length_s
        number += 1
    _damage(unfinished, clips, rng)
    unfinished.rename(archive)


def _clip(path: Path) -> Pcm:
    try:
        pcm: Pcm = np.concatenate([np.zeros(0, np.int16), *read_mono(path)])
    except AstStreamError:
        return np.zeros(0, np.int16)
    return pcm[: 60 * SAMPLE_RATE]


def _write(path: Path, length_s: float, clips: Sequence[Pcm], rng: np.random.Generator) -> None:
    rate = 48_000 if path.suffix == ".ogg" else SAMPLE_RATE
    n_left = round(length_s * SAMPLE_RATE)
    noise = rng.normal(0, 12, 8 * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        while n_left > 0:
            clip = clips[int(rng.integers(len(clips)))] * rng.uniform(0.2, 1.0)
            block = np.concatenate([clip, np.zeros(rng.integers(1, 5 * SAMPLE_RATE))])[:n_left]
            block = np.clip(block + np.resize(noise, len(block)), -32_768, 32_767)
            file.write(block.astype(np.int16) if rate == SAMPLE_RATE else np.repeat(
                block.astype(np.int16), rate // SAMPLE_RATE
            ))  # fmt: skip
            n_left -= len(block)


def _damage(archive: Path, clips: Sequence[Pcm], rng: np.random.Generator) -> None:
    """Add what a large archive has, too: cut, empty and silent files, and what is none."""
    folder = archive / "damaged"
    folder.mkdir()
    for number in range(6):
        _write(folder / f"cut-{number}.flac", 30.0, clips, rng)
        size = (folder / f"cut-{number}.flac").stat().st_size
        os.truncate(folder / f"cut-{number}.flac", int(size * rng.uniform(0.05, 0.95)))
    for number in range(3):
        (folder / f"none-{number}.wav").write_bytes(rng.bytes(1000))
    (folder / "empty.flac").touch()
    soundfile.write(folder / "silent.wav", np.zeros(20 * SAMPLE_RATE, np.int16), SAMPLE_RATE)


def scan_command(archive: Path, out: Path, args: argparse.Namespace, shard: int, of: int) -> Any:
    """Return the command that scans a shard."""
    return [
        sys.executable, "-m", "ast_stream.cli", "scan", str(archive), "--out", str(out),
        "--shard", f"{shard}/{of}", "--hop", str(args.hop), "--model", args.model,
        "--part-hours", str(args.part_hours), "--json",
    ]  # fmt: skip


def scan_once(archive: Path, out: Path, args: argparse.Namespace) -> Figures:
    """Scan the archive as one shard."""
    meter, began_s = CpuMeter(), time.monotonic()
    with subprocess.Popen(
        scan_command(archive, out, args, 0, 1), stdout=subprocess.DEVNULL
    ) as process:
        meter.watch(process.pid)
    if process.returncode:
        sys.exit(f"one scan: expected exit code 0, got {process.returncode}")
    wall_s = round(time.monotonic() - began_s, 1)
    return Figures(wall_s=wall_s, cpu_s=round(meter.stop(), 1), processes=1)


def scan_in_shards(
    archive: Path, out: Path, args: argparse.Namespace, one_wall_s: float
) -> Figures:
    """Scan the shards one after the other, and kill their processes at random moments."""
    rng = random.Random(args.seed)
    figures, meter, began_s = Figures(), CpuMeter(), time.monotonic()
    shards = list(range(args.shards))
    rng.shuffle(shards)
    for place, shard in enumerate(shards):
        n_kills = round((args.kills - figures.kills) / (len(shards) - place))
        while True:
            command = scan_command(archive, out, args, shard, args.shards)
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                meter.watch(process.pid)
                figures.processes += 1
                if n_kills > 0:
                    # now in the start, now deep in a part, now while one is written
                    longest_s = one_wall_s / args.shards / (n_kills + 1) + 4.0
                    try:
                        process.wait(rng.uniform(0.1, longest_s))
                    except subprocess.TimeoutExpired:
                        time.sleep(POLL_S * rng.random())
                        process.kill()
            if process.returncode == 0:
                break
            if process.returncode != -9:
                sys.exit(f"shard {shard}: expected exit code 0, got {process.returncode}")
            figures.kills += 1
            n_kills -= 1
            say(f"shard {shard}: kill {figures.kills}")
    figures.wall_s = round(time.monotonic() - began_s, 1)
    figures.cpu_s = round(meter.stop(), 1)
    return figures


def scan_by_ray(archive: Path, out: Path, args: argparse.Namespace) -> Figures:
    """Scan the archive by Ray on workers of this machine, which are gone afterwards."""
    meter, began_s = CpuMeter(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        command = [
            sys.executable, "-c", RAY_MAIN, folder, str(args.actors + 1), str(STORE_BYTES),
            str(RAY), str(archive), "--out", str(out), "--hop", str(args.hop), "--model",
            args.model, "--part-hours", str(args.part_hours), "--actors", str(args.actors),
        ]  # fmt: skip
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
        ) as process:
            meter.watch(process.pid)
            said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"Ray: expected exit code 0, got {process.returncode}:\n{said[-4000:]}")
    wall_s = round(time.monotonic() - began_s, 1)
    return Figures(wall_s=wall_s, cpu_s=round(meter.stop(), 1), processes=1)


def different(name: str, one: Path, other: Path) -> list[str]:
    """Return the first row of each table that is not as in the one scan."""
    found = []
    for what, read in (("events", read_events), ("coverage", read_coverage)):
        expected, got = read(one), read(other)
        if expected.equals(got):
            continue
        pairs = zip(expected.to_pylist(), got.to_pylist(), strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        found.append(f"{name}: {what}: {expected.num_rows} and {got.num_rows} rows: {first}")
    return found


def bytes_of(out: Path, table: str) -> int:
    """Return the bytes of a table of all shards."""
    return sum(
        part.files[table].bytes
        for shard in archive_state(out).manifests.values()
        for part in shard.parts
    )


def say(text: str) -> None:
    """Tell what is being done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
