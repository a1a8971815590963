"""A step that fails, hangs or has nothing to measure takes nothing from the others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_figures
import pytest


def _step(code: str, limit_s: float = 20.0) -> dict[str, Any]:
    return gpu_figures.run_step([sys.executable, "-c", code], limit_s)


def test_figures_are_the_json_on_the_last_line() -> None:
    result = _step("import json; print('a warning'); print(json.dumps({'ms': 1.5}))")
    assert (result["status"], result["figures"]) == ("done", {"ms": 1.5})


def test_a_failure_is_told_with_its_reason() -> None:
    result = _step("raise SystemExit('CUDA error: an illegal memory access')")
    assert result["status"] == "failed"
    assert "illegal memory access" in result["problem"]
    assert "illegal" in gpu_figures.lines("profile", result)[1]


def test_a_step_that_hangs_is_stopped() -> None:
    result = _step("import time; time.sleep(60)", limit_s=1.0)
    assert result == {"status": "stopped after 1 s", "seconds": 1.0}


def test_a_step_without_its_device_says_so() -> None:
    result = _step("import json; print(json.dumps({'needs': 'a GPU'}))")
    assert result["status"] == "needs a GPU"
    assert "figures" not in result


def test_every_step_has_a_limit_and_is_listed_when_no_time_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = (gpu_figures.STEPS_FILE).read_text()
    assert all(f"\ndef {step}(bench: Bench) -> Figures:" in steps for step in gpu_figures.LIMITS_S)
    assert steps.count("(bench: Bench) -> Figures:") == len(gpu_figures.LIMITS_S)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu_figures.py", "--minutes", "0", "--out", str(out)])
    gpu_figures.main()
    results = json.loads(out.read_text())["steps"]
    assert results.keys() == gpu_figures.LIMITS_S.keys()
    assert {result["status"] for result in results.values()} == {"no time was left"}
    assert len(capsys.readouterr().out.splitlines()) == len(results)


def test_a_table_fits_a_terminal() -> None:
    figures = {"rows": [{"name": "x" * 200, "ms": 1.23456}], "ms": {"attention": 0.5}, "gpus": 1}
    shown = gpu_figures.lines("forward", {"status": "done", "seconds": 1.0, "figures": figures})
    assert max(map(len, shown)) <= gpu_figures.SHOWN
    assert shown[2:] == ["  ms attention 0.5", "  gpus 1"]
