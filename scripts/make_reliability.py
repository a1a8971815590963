"""Write RELIABILITY.md from the measurements in docs/reliability.

Each file there is a section, written by the command that measured it: a JSON object of `order`,
`title`, `command`, `measured` (a date), `facts` (by name), `text` (paragraphs) and `tables`
(`columns` and `rows`; the first column is text). To add a section, add a file.

python scripts/make_reliability.py [--soak FILE] [--fuzz FILE] [--intruder FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECTIONS = ROOT / "docs" / "reliability"
PAGE = ROOT / "RELIABILITY.md"
_WIDTH = 110
_HEAD = """# Reliability

Faults that a box was put through, and the results. Each section was written by the command that it
shows (as JSON, in `docs/reliability/`); run the command to measure it again.
[SECURITY.md](SECURITY.md) says who is trusted with what.
"""


def render(sections: list[dict[str, Any]]) -> str:
    """Return the page."""
    parts = [_HEAD]
    for section in sorted(sections, key=lambda each: (each["order"], each["title"])):
        parts += _lines(section)
    return "\n".join(parts).rstrip() + "\n"


def read_sections(folder: Path = SECTIONS) -> list[dict[str, Any]]:
    """Return the sections in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _lines(section: dict[str, Any]) -> Iterator[str]:
    yield f"## {section['title']}\n"
    for paragraph in section.get("text", []):
        yield from _wrapped(paragraph)
        yield ""
    facts = [f"{name} {value}" for name, value in section.get("facts", {}).items()]
    measured = [section["measured"]] if "measured" in section else []
    yield f"```\n{section['command']}\n```\n"
    yield from _wrapped(", ".join([*measured, *facts]) + ".")
    yield ""
    for table in section.get("tables", []):
        yield from _table(table["columns"], table["rows"])
        yield ""
    problems = section.get("problems", [])
    if problems:
        yield "Unexplained:\n"
        yield from (f"- {problem}" for problem in problems)
        yield ""


def _table(columns: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join(['---', *['---:'] * (len(columns) - 1)])}|"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"


def _cell(value: Any) -> str:
    text = f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)
    return text.replace("|", "\\|")


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def soak_section(report: dict[str, Any], command: str) -> dict[str, Any]:
    """Return the section of what `ast-stream bench soak --json` printed."""
    options, figures = report["options"], report["figures"]
    judged = [figure for figure in figures if figure["judged_s"]]
    hours = {kind: n / 16_000 / 3600 for kind, n in report["samples"].items()}
    gate = options["gate_dbfs"]
    wanted, reached = options["hours"], min(report["hours"].values())
    text = [
        f"{options['n_streams']} streams of scenes and quiet rooms, read as fast as the worker "
        f"scores them, and one in real time: {reached:.1f} of {wanted:g} hours of each in "
        f"{report['wall_s'] / 3600:.2f} hours, with a window every {options['hop_s']:g} s"
        + (f" (none for audio quieter than {gate:g} dBFS)" if gate is not None else "")
        + f", checkpoint {Path(options['model']).name}. Growth is the Theil-Sen slope over the "
        "life of a process, without its first quarter; each figure is from the process that grew "
        "most relative to its limit.",
    ]
    outages = [[kind, n] for kind, n in sorted(report["outages"].items())]
    return {
        "order": 20,
        "title": "Soak",
        "command": command,
        "measured": datetime.now(UTC).date().isoformat(),
        "facts": {"seed": options["seed"], **report["versions"]},
        "text": text,
        "tables": [
            {
                "columns": ["total", ""],
                "rows": [
                    ["hours of audio, all streams", f"{sum(report['hours'].values()):.1f}"],
                    ["speed, times real time", report["speed"]],
                    *[[f"hours {kind} in the ledger", f"{n:.1f}"] for kind, n in hours.items()],
                    ["samples missing in the ledger", report["unaccounted_samples"]],
                    ["messages read", report["messages"]],
                    ["missed messages, times", report["missed"]],
                    ["figures judged", f"{len(judged)} of {len(figures)}"],
                    ["grew too much", sum(figure["is_too_much"] for figure in figures)],
                ],
            },
            {"columns": ["outage", "times"], "rows": outages},
            {
                "columns": ["figure", "level", "growth", "limit", "in s"],
                "rows": [
                    [
                        f"{figure['name']}{', ' if figure['unit'] else ''}{figure['unit']}",
                        f"{figure['level']:.1f}",
                        f"{figure['growth']:+.2f}",
                        f"{figure['limit']:.1f}",
                        round(figure["judged_s"]),
                    ]
                    for figure in judged[:12]
                ],
            },
            {
                "columns": ["files", "largest MiB", "bound MiB"],
                "rows": [
                    [name, size["largest_mib"], size["bound_mib"]]
                    for name, size in report["files"].items()
                ],
            },
        ],
        "problems": report["problems"],
    }


def fuzz_section(report: dict[str, Any], command: str) -> dict[str, Any]:
    """Return the section of what `python -m fuzz --out FILE` wrote."""
    names = ("name", "cases", "accepted", "refused", "slowest_s")
    return {
        "order": 30,
        "title": "Fuzzing",
        "command": command,
        "measured": datetime.now(UTC).date().isoformat(),
        "facts": {"seed": report["seed"], "seconds": report["seconds"]},
        "text": [
            f"{report['cases']:,} damaged inputs for all decoders of outside bytes. Each must give "
            "a value, or an error that says what is wrong, in bounded time and memory. Anything "
            f"else is a finding: {report['findings']}."
        ],
        "tables": [
            {
                "columns": ["decoder", "cases", "accepted", "refused", "slowest s"],
                "rows": [[decoder[name] for name in names] for decoder in report["decoders"]],
            }
        ],
        "problems": [
            f"{decoder['name']}: {finding}"
            for decoder in report["decoders"]
            for finding in decoder["findings"]
        ],
    }


def intruder_section(report: dict[str, Any], command: str) -> dict[str, Any]:
    """Return the section of what `python -m intruder --out FILE` wrote."""
    flood = report["flood"]
    return {
        "order": 40,
        "title": "Attacks",
        "command": command,
        "measured": datetime.now(UTC).date().isoformat(),
        "facts": {"seconds": report["seconds"]},
        "text": [
            f"Every attempt that SECURITY.md lists, against real sockets, files and processes: "
            f"{report['held']} of {report['attempts']} ended as stated there. Each is tried in "
            "several ways: with and without keys, over ipc and tcp, as the services' user, as root "
            "and as another user.",
            f"The flood: {flood['clients']} clients sent {flood['flooded']:,} messages of one byte "
            f"in {flood['seconds']} s. Meanwhile a well-behaved client sent {flood['polite']}, of "
            f"which {flood['polite_lost']} were lost; half arrived within {flood['median_ms']} ms, "
            f"all within {flood['longest_ms']} ms. The receiving process grew by "
            f"{flood['grown_mib']} MiB.",
        ],
        "tables": [
            {
                "columns": ["attempt", "what happens", "tries", "as stated"],
                "rows": [
                    [row["attempt"], row["happens"], row["tries"], "yes" if row["held"] else "NO"]
                    for row in report["rows"]
                ],
            }
        ],
        "problems": [row["attempt"] for row in report["rows"] if not row["held"]],
    }


def main() -> None:
    """Write the page; with an option, first the section of what another command measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soak", type=Path, help="what `ast-stream bench soak --json` printed")
    parser.add_argument("--fuzz", type=Path, help="what `python -m fuzz --out` wrote")
    parser.add_argument("--intruder", type=Path, help="what `python -m intruder --out` wrote")
    args = parser.parse_args()
    if args.intruder is not None:
        report = json.loads(args.intruder.read_text())
        _write("intruder", intruder_section(report, "make intruder"))
    if args.fuzz is not None:
        report = json.loads(args.fuzz.read_text())
        command = f"make fuzz CASES={round(report['cases'], -3)} SEED={report['seed']}"
        _write("fuzzing", fuzz_section(report, command))
    if args.soak is not None:
        report = json.loads(args.soak.read_text())
        options = report["options"]
        command = (
            f"ast-stream bench soak --streams {options['n_streams']} --hours {options['hours']:g} "
            f"--hop {options['hop_s']:g} --seed {options['seed']} "
            f"--outage-every {options['outage_every_s']:g} --json"
        )
        if options["gate_dbfs"] is not None:
            command += f" --gate {options['gate_dbfs']:g}"
        if options["model"] != "bundled":
            command += f" --model {Path(options['model']).name}"
        _write("soak", soak_section(report, command))
    PAGE.write_text(render(read_sections()))


def _write(name: str, section: dict[str, Any]) -> None:
    (SECTIONS / f"{name}.json").write_text(json.dumps(section, indent=1) + "\n")


if __name__ == "__main__":
    main()
