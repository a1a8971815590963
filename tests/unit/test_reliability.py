"""RELIABILITY.md is what its measurements say."""

import json
from pathlib import Path
from typing import Any

import make_reliability
import pytest


def test_the_page_is_what_the_measurements_say() -> None:
    expected = make_reliability.render(make_reliability.read_sections())
    assert make_reliability.PAGE.read_text() == expected, "run: scripts/make_reliability.py"


def test_nothing_is_lost_without_an_excuse_in_what_was_measured() -> None:
    faults = json.loads((make_reliability.SECTIONS / "faults.json").read_text())
    totals = dict(faults["tables"][0]["rows"])
    assert totals["samples lost, unexplained"] == 0
    assert totals["faults injected"] == totals["recovered"] > 100


def test_a_section_shows_its_command_its_facts_and_tables_in_the_order_it_asks_for(
    tmp_path: Path,
) -> None:
    late = {"order": 30, "title": "Late", "command": "make late", "facts": {"seed": 7}}
    early = {
        "order": 5,
        "title": "Early",
        "command": "make early",
        "measured": "2026-11-28",
        "text": ["One | two."],
        "tables": [{"columns": ["what", "n"], "rows": [["a|b", 1234567], ["c", 0.5]]}],
        "problems": ["something is wrong"],
    }
    for number, section in enumerate((late, early)):
        (tmp_path / f"{number}.json").write_text(json.dumps(section))
    page = make_reliability.render(make_reliability.read_sections(tmp_path))
    assert page.index("## Early") < page.index("## Late")
    assert "```\nmake early\n```\n\n2026-11-28." in page
    assert "seed 7." in page
    assert "| what | n |\n|---|---:|\n| a\\|b | 1 234 567 |\n| c | 0.5 |" in page
    assert "Unexplained:\n\n- something is wrong" in page


@pytest.mark.parametrize("gate_dbfs", [None, -50.0])
def test_a_soak_becomes_a_section(gate_dbfs: float | None) -> None:
    figure = {"name": "worker: memory", "unit": "MiB", "level": 190.0, "growth": 0.5}
    figure |= {"limit": 16.0, "judged_s": 60.0, "is_too_much": False}
    options = {"n_streams": 4, "hours": 168, "model": "bundled", "hop_s": 0.5, "seed": 1}
    report = {
        "options": options | {"gate_dbfs": gate_dbfs, "outage_every_s": 60},
        "versions": {"Python": "3.11"},
        "wall_s": 3600.0,
        "hours": {"fast0": 100.0, "fast1": 101.0},
        "speed": 201.0,
        "outages": {"kill worker": 3},
        "messages": 10,
        "missed": 0,
        "samples": {"listened": 16_000 * 3600},
        "unaccounted_samples": 0,
        "figures": [figure, figure | {"judged_s": 0.0}],
        "files": {"events": {"largest_mib": 60.0, "bound_mib": 68}},
        "problems": [],
    }
    page = make_reliability.render([make_reliability.soak_section(report, "ast-stream bench soak")])
    assert "100.0 of 168 hours of each" in " ".join(page.split())
    assert ("quieter than -50 dBFS" in " ".join(page.split())) is (gate_dbfs is not None)
    assert "| figures judged | 1 of 2 |" in page
    assert "| worker: memory, MiB | 190.0 | +0.50 | 16.0 | 60 |" in page


def test_a_fuzz_report_becomes_a_section() -> None:
    decoder = {"name": "feed", "cases": 1000, "accepted": 10, "refused": 990, "slowest_s": 0.01}
    report: dict[str, Any] = {"seed": 1, "seconds": 9, "cases": 1000, "findings": 1}
    report["decoders"] = [decoder | {"findings": ["IndexError at codec.py:5"]}]
    page = make_reliability.render([make_reliability.fuzz_section(report, "make fuzz")])
    assert "| feed | 1 000 | 10 | 990 | 0.01 |" in page
    assert "Unexplained:\n\n- feed: IndexError at codec.py:5" in page


def test_an_attempt_that_did_not_end_as_said_is_a_problem() -> None:
    row = {"attempt": "no key", "happens": "disconnected", "tries": 3, "held": False}
    flood = {"clients": 8, "flooded": 1_000_000, "seconds": 14.0, "polite": 500, "polite_lost": 0}
    flood |= {"median_ms": 0.5, "longest_ms": 148.5, "grown_mib": 0.0}
    report = {"seconds": 200, "attempts": 1, "held": 0, "flood": flood, "rows": [row]}
    page = make_reliability.render([make_reliability.intruder_section(report, "make intruder")])
    assert "| no key | disconnected | 3 | NO |" in page
    assert "0 of 1 ended as stated there" in page
    assert "Unexplained:\n\n- no key" in page
