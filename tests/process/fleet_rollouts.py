"""Real boxes and a real centre: roll-outs of models that are good and that are not, with kills.

    PYTHONPATH=.:tests/support:tests/process python tests/process/fleet_rollouts.py --kills 20

prints a line of JSON for each scenario. All processes are real; models are tiny.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from fleet_centre import value
from forked_command import ForkedCommand
from nats_server import NatsServer, nats_server, status_of
from pipeline import Pipeline
from reactive_model import save_reactive, tones_and_noise
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.fleet.model_folder import describe_files
from ast_stream.messages.fleet import BoxReport
from ast_stream.messages.rollout import RolloutPlan
from ast_stream.model.checkpoint import load_checkpoint, save_checkpoint
from ast_stream.settings.chosen_model import folder_name

QUICK = Path(__file__).parents[1] / "support" / "quick_fleet"
ROOT = Path(__file__).parents[2]
PATIENCE_S = 400.0
CLI = (sys.executable, "-m", "ast_stream.cli")


def content_of(checkpoint: Path) -> str:
    """Return the content hash of a checkpoint."""
    return describe_files(checkpoint, load_checkpoint(str(checkpoint)).hash).content


def make_models(folder: Path) -> dict[str, Path]:
    """Write checkpoints by what is wrong with them."""
    made = {name: folder / name for name in ("old", "good", "labels", "crash", "deaf")}
    for seed, name in enumerate(("old", "good", "labels", "crash", "deaf")):
        save_reactive(made[name], seed)
    other = load_checkpoint(str(made["labels"]))
    labels = ["Cat" if label == "Bark" else label for label in other.labels]
    save_checkpoint(made["labels"], dataclasses.replace(other, labels=labels))
    deaf = load_checkpoint(str(made["deaf"]))
    weights = dict(deaf.state_dict)
    weights["head.weight"] = torch.zeros_like(weights["head.weight"])
    weights["head.bias"] = torch.full_like(weights["head.bias"], -9.0)
    metadata = deaf.metadata.model_copy(update={"golden": None})
    save_checkpoint(made["deaf"], dataclasses.replace(deaf, state_dict=weights, metadata=metadata))
    return made


def make_slow_model(folder: Path) -> Path:
    """Write a checkpoint of the size of AST Base, too large for one core at a hop of 0.25 s."""
    dims = dataclasses.replace(
        TINY_DIMS,
        hidden_size=768,
        n_layers=12,
        n_heads=12,
        intermediate_size=3072,
        frequency_stride=10,
        time_stride=10,
    )
    checkpoint = tiny_checkpoint(9, dims, background=["Background"])
    save_checkpoint(folder, checkpoint, "fp16")
    return folder


class FleetBox(Pipeline):
    """A box that runs all its processes, and follows the centre."""

    def __init__(self, name: str, checkpoint: Path, url: str, crashes: str = "none") -> None:
        centre = {"name": "centre", "type": "nats", "servers": [url]}
        super().__init__(
            checkpoint,
            {"porch": {"type": "file", "path": "audio.wav", "loop": True}},
            fleet={"site": "farm", "box": name, "models": {"follow": True}},
            forward=[centre],
            detection={"classes": {"Bark": {"onset_threshold": 0.5}}},
        )
        self.name = name
        self.url = url
        self.write_audio(tones_and_noise(20.0))
        self.env = {"PYTHONPATH": f"{QUICK}:{ROOT}", "AST_TEST_CRASHES": crashes}
        self.start("run", "run")

    def report(self) -> BoxReport | None:
        """Return what the centre knows of it."""
        found = status_of(self.url, f"farm.{self.name}")
        return None if found is None else BoxReport.from_json(found, "box report")

    def state(self) -> str:
        """Return what its follower is about, by its file."""
        with suppress(OSError, ValueError):
            body = json.loads((self.folder / "state/models/follower.json").read_text())
            return str(body["state"])
        return "none"

    def model(self) -> str | None:
        """Return the model that its worker uses, as the centre knows."""
        report = self.report()
        return None if report is None or not report.models else report.models[0]

    def pids(self, word: str) -> list[int]:
        """Return the processes of it with this word in their command."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(self.config) in words and word in words:
                found.append(int(path.parent.name))
        return found

    def kill_process(self, word: str) -> None:
        """Kill a process with SIGKILL; `run` starts it again."""
        for pid in self.pids(word):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Centre:
    """A centre with boxes, and what an operator does there."""

    def __init__(self, server: NatsServer, models: dict[str, Path], boxes: list[FleetBox]) -> None:
        self.server = server
        self.models = models
        self.boxes = boxes
        self.log = boxes[0].folder / "rollout.log"

    def start(self, model: str, *options: str) -> subprocess.Popen[bytes]:
        """Begin a roll-out, or go on with it."""
        command = ["fleet", "rollout", "start", str(self.models[model])]
        command += ["--canary", f"farm/{self.boxes[0].name}", "--nats", self.server.url, *options]
        return ForkedCommand(command, self.log)

    def plan(self) -> RolloutPlan | None:
        body = value(self.server.url, "plan")
        return None if body is None else RolloutPlan.decode(body)

    def model_hash(self, model: str) -> str:
        return str(load_checkpoint(str(self.models[model])).hash)


@contextmanager
def fleet(folder: Path, names: Sequence[str], start: str = "old") -> Iterator[Centre]:
    """Yield a centre and boxes that have reported."""
    models = make_models(folder / "models")
    with ExitStack() as cleanup:
        server = cleanup.enter_context(nats_server(folder / "nats"))
        boxes = []
        for name in names:
            crashes = folder_name(content_of(models["crash"]))
            box = FleetBox(name, models[start], server.url, crashes)
            cleanup.callback(box.close)
            cleanup.callback(stop, box)
            boxes.append(box)
        centre = Centre(server, models, boxes)
        for box in boxes:
            wait(lambda box=box: is_heard(box), f"{box.name} to report", box)  # type: ignore[misc]
        yield centre


def is_heard(box: FleetBox) -> bool:
    report = box.report()
    return (
        report is not None
        and bool(report.models)
        and report.rollout is not None
        and all(stream.state == "listening" for stream in report.streams)
    )


def stop(box: FleetBox) -> None:
    if "run" in box.processes:
        box.stop("run")


def wait(condition: Callable[[], bool], what: str, box: FleetBox) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited for {what}: {box.log('run')[-6000:]}"
        time.sleep(0.2)


def play(centre: Centre, model: str, *options: str) -> dict[str, Any]:
    """Roll a model out, and return how that ended."""
    began_s = time.monotonic()
    process = centre.start(model, *options)
    code = process.wait(PATIENCE_S)
    plan = centre.plan()
    assert plan is not None, centre.log.read_text()
    return {
        "scenario": model,
        "exit": code,
        "stage": plan.stage,
        "reason": plan.reason,
        "seconds": round(time.monotonic() - began_s, 1),
    }


def play_with_kills(centre: Centre, model: str, n_kills: int, seed: int) -> dict[str, Any]:
    """Roll a model out while the command, and followers of boxes, are killed at random moments."""
    chance = random.Random(seed)
    options = ("--after", "4s", "--settle", "1s", "--events-factor", "0")
    began_s = time.monotonic()
    process = centre.start(model, *options)
    killed: Counter[str] = Counter()
    for _ in range(n_kills):
        time.sleep(chance.uniform(0.1, 4.0))
        box = chance.choice(centre.boxes)
        victim = chance.choice(("command", "forward", "worker"))
        if victim == "command":
            plan = centre.plan()
            killed[f"command, {plan.stage if plan else 'none'}"] += 1
            process.kill()
            process.wait()
            process = centre.start(model, *options)
        else:
            killed[f"{victim}, {box.state()}"] += 1
            box.kill_process(victim)
        for each in centre.boxes:
            link = each.folder / "state" / "models" / "current"
            assert not link.is_symlink() or link.exists(), "the link leads to nothing"
    code = process.wait(PATIENCE_S)
    plan = centre.plan()
    return {
        "scenario": f"{model} with {n_kills} kills",
        "exit": code,
        "stage": None if plan is None else plan.stage,
        "seconds": round(time.monotonic() - began_s, 1),
        "killed": dict(sorted(killed.items())),
        "models": len({box.model() for box in centre.boxes}),
    }


def main() -> None:
    """Play all scenarios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--boxes", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["labels", "crash", "deaf", "good", "kills"])
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    quick = ("--after", "5s", "--settle", "1s", "--events-factor", "0")
    judged = ("--after", "90s", "--settle", "1s")
    names = [f"box{number}" for number in range(arguments.boxes)]
    try:
        with fleet(folder, names) as centre:
            for scenario in arguments.only:
                match scenario:
                    case "labels" | "crash":
                        show(play(centre, scenario, *quick), centre, "old")
                    case "deaf":
                        time.sleep(60.0)  # so that there is something to compare with
                        show(play(centre, scenario, *judged), centre, "old")
                    case "slow":
                        centre.models["slow"] = make_slow_model(folder / "models" / "slow")
                        slow = ("--after", "5m", "--settle", "1s", "--events-factor", "0")
                        show(play(centre, scenario, *slow), centre, "old")
                    case "good":
                        show(play(centre, scenario, *quick), centre, scenario)
                        show(play(centre, "old", *quick), centre, "old")
                    case "kills":
                        found = play_with_kills(centre, "good", arguments.kills, arguments.seed)
                        show(found, centre, "good")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show(found: dict[str, Any], centre: Centre, expected: str) -> None:
    """Print a scenario, with whether all boxes use what they should."""
    wanted = centre.model_hash(expected)
    for box in centre.boxes:
        wait(lambda box=box: box.model() == wanted, f"{box.name} to use {expected}", box)  # type: ignore[misc]
    print(json.dumps(found | {"all_use": expected}), flush=True)


if __name__ == "__main__":
    main()
