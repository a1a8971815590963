"""A real box goes back from a model that kills its worker, and on to one that is good."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet_rollouts import fleet, play, wait
from nats_server import needs_nats

QUICK = ("--after", "2s", "--settle", "1s", "--events-factor", "0")


@needs_nats
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_box_goes_back_from_a_model_that_kills_its_worker_and_on_to_a_good_one(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, ["barn"]) as centre:
        [box] = centre.boxes
        run = box.processes["run"]
        crash = play(centre, "crash", *QUICK)
        assert (crash["exit"], crash["stage"]) == (1, "returned"), box.log("run")
        assert "the worker did not start with it" in crash["reason"]
        old, good = centre.model_hash("old"), centre.model_hash("good")
        wait(lambda: box.model() == old, "the old model", box)
        assert "3 starts with it did not last" in box.log("run")
        found = play(centre, "good", *QUICK)
        assert (found["exit"], found["stage"]) == (0, "done"), box.log("run")
        wait(lambda: box.model() == good, "the good model", box)
        report = box.report()
        assert report is not None
        assert report.rollout is not None
        assert report.rollout.state == "in_use"
        assert run.poll() is None
        assert box.log("run").count("beginning again") >= 1
