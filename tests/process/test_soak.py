"""A short soak of a tiny model: real processes, outages, and a report that says what was seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import save_tiny


@pytest.mark.timeout(300)
def test_a_short_soak_with_outages_finds_no_growth_and_accounts_for_every_sample(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "ast_stream.cli", "bench", "soak", "--json"]
    command += ["--model", str(save_tiny(tmp_path / "model")), "--streams", "2"]
    command += ["--hours", "0.2", "--hop", "0.5", "--outage-every", "5", "--sample-every", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["hours"]) == {"fast0", "fast1"}
    assert all(hours >= 0.2 for hours in report["hours"].values())
    assert report["unaccounted_samples"] == 0
    assert sum(report["samples"].values()) / 16_000 / 3600 >= 0.4
    names = {figure["name"] for figure in report["figures"]}
    assert {"worker: memory", "alerts: descriptors", "capture: threads"} <= names
    assert {"live: lag", "files of the runtime folder"} <= names
    assert report["problems"] == []
