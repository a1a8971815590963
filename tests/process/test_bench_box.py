"""`ast-stream bench box` on a tiny model: real processes, and figures that can be believed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_model import save_tiny


@pytest.mark.timeout(120)
def test_a_box_is_measured_from_capture_to_feed(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 16_000).astype(np.int16)
    soundfile.write(tmp_path / "sounds" / "noise.wav", noise, 16_000)
    command = [sys.executable, "-m", "ast_stream.cli", "bench", "box", "--json"]
    command += ["--model", str(save_tiny(tmp_path / "model")), "--streams", "2", "--hop", "0.25"]
    command += ["--seconds", "2", "--recordings", str(tmp_path / "sounds")]
    command += ["--cascade", str(save_tiny(tmp_path / "small", seed=1))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)["timings"]
    assert figures["streams"] == 2
    # a result comes after the window that it needs, and before the machine is forgotten
    assert 0 < figures["lag_p50_s"] <= figures["lag_p95_s"] <= figures["lag_p99_s"] < 60
    assert figures["n_results"] > 0
    assert 0 < figures["asked_per_s"] <= figures["windows_per_s"]
    for kind in ("run", "worker", "capture"):
        assert figures[f"{kind}_cpu"] >= 0
        assert figures[f"{kind}_mib"] > 1
    assert figures["n_captures"] >= 1
    assert figures["hours"]["listened"] > 0
    assert figures["missed"] == 0
