"""The recipe of the small model of a cascade, in small: it makes a checkpoint that can watch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_stream.detect.cascade import Cascade
from ast_stream.detect.detector import Detector
from ast_stream.model.tagger import load_tagger
from ast_stream.settings.model import CascadeSettings
from ast_stream.units import SAMPLE_RATE

REPOSITORY = Path(__file__).parents[2]
COLUMNS = (
    "file", "label", "fold", "group", "source", "author", "licence", "url", "title", "active_s",
    "audioset_name", "suspect",
)  # fmt: skip
IN_SMALL = {
    "STEPS": "2", "GENERATED": "1", "BACKGROUNDS": "2", "TAKES": "1", "NEGATIVE_HOURS": "0.02",
    "OMP_NUM_THREADS": "1", "BIN": str(Path(sys.executable).parent),
}  # fmt: skip


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Two classes of the bundled checkpoint, with a clip of each in each of two folds."""
    folder = tmp_path / "sounds"
    (folder / "own").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for label, name in (("Bark", "bark"), ("Rain", "rain")):
        for fold in ("1", "4"):
            file = f"own/{name}{fold}.wav"
            soundfile.write(folder / file, 0.1 * rng.standard_normal(SAMPLE_RATE), SAMPLE_RATE)
            rows.append(
                {
                    "file": file, "label": label, "fold": fold, "group": file, "source": "ESC-50",
                    "author": "nobody", "licence": "CC0", "active_s": "1.0",
                    "audioset_name": "1", "suspect": "0",
                }
            )  # fmt: skip
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_watcher_recipe_makes_a_calibrated_checkpoint_that_can_watch(
    sounds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "watcher"
    recipe = REPOSITORY / "scripts" / "train_watcher.sh"
    done = subprocess.run(
        [str(recipe), str(sounds), "bundled", str(out)],
        cwd=REPOSITORY, env=os.environ | IN_SMALL, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small = load_tagger(str(out / "model" / "checkpoint"), device="cpu", use_frames=False)
    large = load_tagger("bundled", device="cpu")
    assert (small.dims.hidden_size, small.dims.n_layers, small.window_s) == (64, 4, 2.56)
    assert set(small.labels) <= set(large.labels)
    assert {"Bark", "Rain"} <= set(small.labels)
    assert set(small.metadata.provenance["thresholds"]["classes"]) >= {"Bark", "Rain"}
    assert small.metadata.provenance["teacher"] == large.hash

    detector = Detector(large, cascade=Cascade(small, CascadeSettings(checkpoint="small")))
    detector.open("hall", "0" * 32)
    detector.push("hall", 0, np.zeros(4 * SAMPLE_RATE, np.int16))
    list(detector.run())
    assert detector.n_scored == 7
    assert detector.n_asked is not None
