"""Many pools on a clock of their own, disturbed by a plan that a seed decides, on a busy machine.

Nothing waits for real time, so some hundred pools are done in minutes, with orders of turns that a
real machine shows once in a thousand times. A difference is printed with the faults before it.
Events that a leaving worker ended with `shutdown`, because there was no other one, are differences
as well: look for them first.

    python tests/fleet/pool_simulation.py --first 0 --count 200
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from reactive_model import save_reactive, tones_and_noise
from simulated_pool import SimulatedPool, SimulatedWorker

from ast_stream.model.tagger import Tagger, load_tagger

N_WORKERS = 3
FAULTS = ("kill", "stop", "continue", "start", "start", "broker", "leave", "leave")


def is_serving(worker: SimulatedWorker) -> bool:
    return worker.is_running and not worker.is_stopped and not worker.is_leaving


def disturb(pool: SimulatedPool, fault: str, worker: SimulatedWorker) -> bool:
    """Do something, if it is possible and leaves a worker; return whether."""
    serving = [one for one in pool.workers if is_serving(one)]
    can_lose = worker.is_running and serving != [worker]
    if fault == "broker":
        pool.bucket.is_connected = not pool.bucket.is_connected
    elif fault == "kill" and can_lose:
        worker.kill()
    elif fault == "stop" and can_lose and not worker.is_stopped:
        worker.is_stopped = True
    elif fault == "continue" and worker.is_stopped:
        worker.is_stopped = False
    elif fault == "start" and not worker.is_running:
        worker.start()
    elif fault == "leave" and is_serving(worker) and len(serving) > 1:
        worker.leave()
    else:
        return False
    return True


def trial(
    tagger: Tagger, seed: int, n_streams: int, duration_s: float
) -> tuple[list[str], list[str]]:
    """Return what is wrong with a pool, and what was done to it."""
    choose = random.Random(seed)
    pool = SimulatedPool(tagger, N_WORKERS, busy=choose.choice([0, 0.2, 0.4]), seed=seed)
    done = []
    try:
        names = [f"mic-{n}" for n in range(n_streams)]
        pool.listen(
            {
                name: tones_and_noise(duration_s, seed=n_streams * seed + n)
                for n, name in enumerate(names)
            }
        )
        began_s = pool.now_s
        while pool.now_s < began_s + duration_s:
            pool.step(1 + round(choose.choice([1, 5, 10, 30, 80]) * 2 * choose.random()))
            fault, worker = choose.choice(FAULTS), choose.choice(pool.workers)
            if disturb(pool, fault, worker):
                done.append(f"{pool.now_s - began_s:.1f} s: {fault} {worker.name}")
        pool.finish()
        return pool.problems(), done
    except AssertionError as error:
        return [str(error)], done
    finally:
        pool.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each stream")
    parser.add_argument("--log", action="store_true", help="print what everybody says")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.log else logging.FATAL)
    n_different = 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_reactive(Path(folder) / "model")
        tagger = load_tagger(str(checkpoint), device="cpu", precision="fp32", attention="math")
        for seed in range(options.first, options.first + options.count):
            problems, done = trial(tagger, seed, options.streams, options.seconds)
            n_different += bool(problems)
            print(seed, "equal" if not problems else f"{len(problems)} differences", flush=True)
            for line in problems[-10:] + (done if problems else []):
                print(f"  {line}")
    print(f"{n_different} of {options.count} differ")
    return min(1, n_different)


if __name__ == "__main__":
    sys.exit(main())
