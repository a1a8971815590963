"""A pool of workers disturbed at random: what all logs say together is what one worker would say.

Workers are killed (SIGKILL), ended in order (SIGTERM), stopped and continued (SIGSTOP, SIGCONT) and
started again; the NATS server is restarted; each at moments that a seed decides. One is killed when
the recordings end, and stays away until others have all of them. At the end the events of all
workers, without what is there twice, must be those of an undisturbed detector: same ids, types,
samples and scores, each begin with one end, and each sample accounted for once.

    python tests/fleet/pool_trial.py --streams 60 --workers 3 --duration 240 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from pool_lag import LagWatch
from pool_of_workers import Member, PoolOfWorkers, median
from reactive_model import save_reactive

FAULTS = ("kill", "leave", "stop", "long stop", "broker", "join", "end")
AFTER_KILL_S = 15.0
START_S = 600.0  # on a busy machine
LEAST = 1  # workers that are there at any time


class Trial:
    """Disturbs a pool until its recordings are over."""

    def __init__(self, pool: PoolOfWorkers, n_workers: int, faults: list[str], seed: int) -> None:
        self.pool = pool
        self.faults = faults
        self.n_workers = n_workers
        self.random = random.Random(seed)
        self.done: list[str] = []
        self.watch = LagWatch()
        self.kills: list[tuple[float, str]] = []  # when, of which worker
        self.began_s = time.monotonic()

    def start(self) -> None:
        self.pool.nats.start()
        for n in range(self.n_workers):
            self.pool.add(f"worker-{n}")
        self.pool.wait(self.are_ready, "the workers", START_S)
        for member in self.pool.members.values():
            self.watch.follow(member)
        self.pool.start_captures()
        self.began_s = time.monotonic()
        self.pool.wait(
            lambda: len(self.pool.placed()) == len(self.pool.streams),
            "a worker for each stream",
            START_S,
        )

    def are_ready(self) -> bool:
        members = self.pool.members.values()
        ended = [member for member in members if not member.is_running]
        assert not ended, f"{ended[0].name} does not start: {ended[0].log[-400:]}"
        return all(member.is_ready for member in members)

    def run(self, pause_s: float) -> None:
        """Disturb, one fault after the other, as long as there is audio for them."""
        end_s = self.began_s + self.pool.duration_s - 45.0
        faults = [fault for fault in self.faults if fault != "end"]
        while time.monotonic() < end_s and faults:
            time.sleep(self.random.uniform(0.5, 1.5) * pause_s)
            if time.monotonic() < end_s:
                self.disturb(self.random.choice(faults))
        if "end" in self.faults:
            self.kill_at_the_end()

    def kill_at_the_end(self) -> None:
        """Kill a worker when the first recordings have ended; it does not come back for them."""
        members = self.pool.members.values()
        if sum(member.is_running for member in members) <= LEAST:
            self.disturb("join")
        self.pool.wait(
            lambda: any("the source has ended" in member.log for member in members),
            "the end of a recording",
            self.pool.duration_s + 120.0,
        )
        time.sleep(self.random.uniform(0, 1))
        member = self.random.choice([member for member in members if member.is_running])
        self.note("kill at the end", member)
        self.kills.append((time.monotonic(), member.name))
        member.kill()

    def disturb(self, fault: str) -> None:
        there = [member for member in self.pool.members.values() if member.is_running]
        if fault == "join" or len(there) <= LEAST:
            away = [member for member in self.pool.members.values() if not member.is_running]
            if away:
                self.note("join", away[0])
                self.join(away[0])
            return
        member = self.random.choice(there)
        self.note(fault, member)
        if fault == "kill":
            self.kills.append((time.monotonic(), member.name))
            member.kill()
            if self.random.random() < 0.5:
                time.sleep(self.random.uniform(0, 6))
                self.join(member)
        elif fault == "leave":
            member.stop()
        elif fault in ("stop", "long stop"):
            member.signal(signal.SIGSTOP)
            time.sleep(self.random.uniform(1, 3) if fault == "stop" else 14)
            member.signal(signal.SIGCONT)
        elif fault == "broker":
            self.pool.nats.kill()
            time.sleep(self.random.uniform(0.5, 6))
            self.pool.nats.start()

    def join(self, member: Member) -> None:
        self.pool.add(member.name)
        self.pool.wait(lambda: member.is_ready, "a worker that joins", START_S)

    def note(self, fault: str, member: Member) -> None:
        at_s = time.monotonic() - self.began_s
        self.done.append(
            f"{at_s:.1f} s: {fault}" + ("" if fault == "broker" else f" {member.name}")
        )
        print(self.done[-1], file=sys.stderr, flush=True)

    def finish(self) -> None:
        self.pool.wait_for_captures()
        for member in self.pool.members.values():
            if not member.is_running:
                self.join(member)  # its log may have events that it has to end, or must not
        time.sleep(6.0)
        self.watch.close()
        for member in self.pool.members.values():
            member.stop()


def report(pool: PoolOfWorkers, trial: Trial) -> tuple[list[str], dict[str, object]]:
    """Return what is wrong, and the figures."""
    problems = pool.compare() + pool.coverage_problems()
    found = pool.figures()
    took = found.pop("took_s")
    per_day = 86_400 / (len(pool.streams) * pool.duration_s)
    lags = [
        lag_s
        for at_s, worker in trial.kills
        for lag_s in trial.watch.of_undisturbed(at_s, AFTER_KILL_S, worker)
    ]
    found |= {
        "lag of streams that stayed, s, in the 15 s after a kill, median": median(lags),
        "the same lag, worst": max(lags, default=float("nan")),
        "streams": len(pool.streams),
        "faults": trial.done,
        "changes of worker": len(took),
        "from acknowledgement to acknowledgement, s, median": median(took),
        "the same, worst": max(took, default=float("nan")),
        "bytes per stream and day, without framing": {
            name: round(found[name] * per_day)
            for name in ("hello_bytes", "ack_bytes", "record_bytes")
            if name in found
        },
        "bytes of a record": round(found.get("record_bytes", 0) / max(1, found.get("records", 0))),
        "workers that left windows out, for lack of CPU": pool.overloaded,
        "problems": len(problems),
    }
    return problems, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--captures", type=int, default=3)
    parser.add_argument("--duration", type=float, default=240.0, help="s of each recording")
    parser.add_argument("--pause", type=float, default=15.0, help="s between faults, about")
    parser.add_argument("--hop", type=float, default=0.5, help="s between windows, at most 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS))
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))
    checkpoint = save_reactive(folder / "model")
    pool = PoolOfWorkers(
        folder,
        checkpoint,
        n_streams=options.streams,
        duration_s=options.duration,
        n_captures=options.captures,
        seed=options.seed,
        hop_s=options.hop,
    )
    trial = Trial(pool, options.workers, options.faults, options.seed)
    try:
        trial.start()
        trial.run(options.pause)
        trial.finish()
        problems, found = report(pool, trial)
    finally:
        pool.close()
    for problem in problems[:40]:
        print(problem)
    print(json.dumps(found, indent=2))
    if options.keep or problems:
        print(f"everything is in {folder}", file=sys.stderr)
    else:
        pool.remove()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
