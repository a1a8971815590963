"""A box that has scored an hour in which a dog was heard three times, less and less surely."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from history_samples import SECOND, published, verdict, whole_event

from ast_stream.alerts.model_facts import model_facts
from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.coverage.spans import Span
from ast_stream.history.database import History
from ast_stream.history.score_log import ScoreLog
from ast_stream.messages.event import ScoresHeader
from ast_stream.settings.load import load_settings
from ast_stream.settings.storage import (
    coverage_ledger,
    history_database,
    score_log,
    unwritten_coverage,
)
from ast_stream.units import samples_to_ns

HOUR_NS = 3600 * SECOND
FRAME = 2560
N_FRAMES = 2000
EPOCH = "ab" * 16
# first and last frame, score, and what somebody said of it
SOUNDS = ((300, 340, 0.99, "right"), (900, 940, 0.95, "right"), (1500, 1540, 0.2, "wrong"))
RULES = """
version: 1
groups:
  - name: test
    rules:
      - {alert: any_dog, match: {class: Bark}}
      - {alert: siren, match: {class: Siren}}
"""


def write_tuned_box(folder: Path, listen: str, *, has_history: bool = True, **web: Any) -> Path:
    """Write the configuration of the box and what it has recorded; return the configuration.

    Args:
        web: further settings of the page.
    """
    config = folder / "config.yaml"
    (folder / "rules.yaml").write_text(RULES)
    settings = {
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": [{"name": "porch", "source": {"type": "microphone"}}],
        "recorder": {},
        "alerts": {"rules": ["rules.yaml"]},
        "web": {"listen": listen, **web},
    }
    config.write_text(json.dumps(settings))
    if has_history:
        _write_history(config)
    return config


def _write_history(config: Path) -> None:
    settings = load_settings(config)
    start_ns = time.time_ns() // SECOND * SECOND - HOUR_NS
    labels = model_facts(settings.model).labels or ()
    scores = np.full((N_FRAMES, len(labels)), 0.01, np.float16)
    with History(history_database(settings).path) as history:
        for number, (first, last, score, said) in enumerate(SOUNDS):
            scores[first:last, labels.index("Bark")] = score
            onset_ns = start_ns + samples_to_ns(first * FRAME)
            history.add_messages(
                whole_event(f"e{number}", onset_ns, label="Bark", stream="porch", peak=score)
            )
            history.add_verdict(verdict(f"e{number}", said))
    place = score_log(settings)
    with ScoreLog(place.folder, place.max_bytes, labels=lambda: labels) as log:
        log.note_model("sha256:bundled")
        for number, row in enumerate(scores, start=1):
            end = number * FRAME
            header = ScoresHeader(
                stream="porch",
                epoch=EPOCH,
                end_sample=end,
                time_ns=start_ns + samples_to_ns(end),
            )
            log.append(published(header, number, scores=row))
    ledger = CoverageLedger(coverage_ledger(settings).folder, unwritten_coverage(settings).path)
    ledger.add(
        Span(
            stream="porch",
            epoch=EPOCH,
            kind="listened",
            start_sample=0,
            samples=N_FRAMES * FRAME,
            time_ns=start_ns,
        )
    )
    ledger.close()
