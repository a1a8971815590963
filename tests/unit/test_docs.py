"""What README and docs/ show is run or checked, so that it stays true."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_reference
import numpy as np
import pytest
import soundfile
from reactive_model import tones_and_noise

from ast_stream.cli.app import COMMANDS, run_command_line
from ast_stream.messages.audio import AudioBlock, decode_ring_request
from ast_stream.settings.load import parse_settings
from ast_stream.transport.sockets import Sockets

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
NEAR = ("CONTRIBUTING.md", "SECURITY.md")
PAGES = (README, *map(ROOT.joinpath, NEAR), *sorted(ROOT.glob("docs/**/*.md")))
WRITTEN = tuple(page for page in PAGES if make_reference.MARK not in page.read_text())
PROTOCOL = (ROOT / "docs/reference/protocol.md").read_text()
LIMIT_S = 60
MAX_README_LINES = 200
# of the README: what needs no device, service or root, on files that the test makes
RUN = ("scan night.flac", "rules check", "rules test", "rules backtest")

name_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    parts = re.split(r"^```(\w*)\n", page.read_text(), flags=re.MULTILINE)[1:]
    # what opens a block is followed by what closes it: every other part is prose
    opened = zip(parts[::4], parts[1::4], strict=True)
    return [text for name, text in opened if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `ast-stream` command in the blocks without a language."""
    for block in (*blocks(page, ""), *blocks(page, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "ast-stream " in line else []
            for index, word in enumerate(words):
                if Path(word).name == "ast-stream" and words[index + 1 :]:
                    ends = [n for n, other in enumerate(words) if n > index and other in "|>"]
                    yield words[index + 1 : ends[0] if ends else None]
                    break


def options() -> dict[str, set[str]]:
    """Return the options of each command, as the reference lists them."""
    found: dict[str, set[str]] = {}
    page = (ROOT / "docs/reference/commands.md").read_text()
    for section in page.split("\n## ")[1:]:
        name = section.split("`")[1].removeprefix("ast-stream ")
        cells = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
        found[name] = {word.strip(",") for cell in cells for word in cell.split()} | {"--help"}
    return found


@pytest.mark.slow
def test_generated_pages_are_current() -> None:
    for name, text in make_reference.pages().items():
        page = ROOT / "docs/reference" / name
        assert page.read_text() == make_reference.with_generated(page, text), "run: make docs"


@pytest.mark.parametrize("name", ["settings.md", "rules.md"])
def test_every_key_has_a_meaning(name: str) -> None:
    page = (ROOT / "docs/reference" / name).read_text()
    assert [line for line in page.splitlines() if re.search(r"^\| `.*\|\s+\|$", line)] == []


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


@name_of
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            linked = page.parent / path if path else page
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE) if anchor else []
            slugs = {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
            assert not anchor or anchor in slugs, target


@name_of
def test_configurations_load(page: Path) -> None:
    for text in blocks(page, "yaml"):
        settings = parse_settings(text)
        assert settings.streams or settings.pool


@name_of
def test_code_can_be_parsed(page: Path) -> None:
    for text in blocks(page, "python"):
        assert compile(text, page.name, "exec")
    for text in blocks(page, "json"):
        assert json.loads(text)


@name_of
def test_commands_and_their_options_exist(page: Path) -> None:
    known = options()
    names = {command.name for command in COMMANDS}
    for arguments in commands(page):
        longest = (" ".join(arguments[:n_words]) for n_words in (3, 2))
        name = next((words for words in longest if words in known), arguments[0])
        assert name.split()[0] in names
        used = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
        assert used <= known[name], name


@name_of
def test_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(r"\b(?:configs|examples|scripts|tests)/[\w./-]*\w", page.read_text()):
        assert (ROOT / path).exists(), path


def test_stored_figures_are_json_that_any_program_reads() -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    for path in (ROOT / "docs").rglob("*.json"):
        assert json.loads(path.read_text(), parse_constant=refuse)


def test_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    soundfile.write(tmp_path / "night.flac", tones_and_noise(8.0), 16_000, subtype="PCM_16")
    (tmp_path / "week.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    ran = set()
    for arguments in commands(README):
        for start in RUN:
            if shlex.join(arguments).startswith(start):
                ran.add(start)
                assert run_command_line(arguments) == 0, capsys.readouterr().err
    assert ran == set(RUN)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of apprise's own imports
def test_rule_file_of_the_readme_is_free_of_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (rules,) = [text for text in blocks(README, "") if text.startswith("version: 1")]
    (configuration,) = [text for text in blocks(README, "yaml") if "rules: [alerts.yaml]" in text]
    (tmp_path / "alerts.yaml").write_text(rules)
    (tmp_path / "config.yaml").write_text(configuration)
    monkeypatch.setenv("PHONE", "json://localhost")
    config, file = str(tmp_path / "config.yaml"), str(tmp_path / "alerts.yaml")
    assert run_command_line(["rules", "check", "--strict", "-c", config, file]) == 0
    assert run_command_line(["check-config", "--no-speed", config]) == 0, capsys.readouterr().err


def test_parts_can_be_used_on_their_own() -> None:
    (program,) = blocks(ROOT / "docs/reference/python.md", "python")
    variables: dict[str, Any] = {"waveform": np.zeros(16_000, np.float32)}
    exec(program + "shape, labels = tagger.scores(waveform).shape, tagger.labels\n", variables)
    assert variables["shape"] == (1, len(variables["labels"]))


def test_audio_block_of_the_protocol_is_one() -> None:
    plain, coded = re.findall(r'^\{"v":1,"epoch".*"rate".*\}$', PROTOCOL, re.MULTILINE)
    assert AudioBlock.decode([b"porch", plain.encode(), bytes(3200)]).start_sample == 483_200
    packets = b"\x02\x00\xff\xb8\x00" * 6  # of 100 ms, and one before the run
    block = AudioBlock.decode([b"porch", coded.encode(), packets])
    assert block.opus is not None
    assert block.opus.run == block.start_sample == 480_000


def test_ring_requests_of_the_protocol_are_such() -> None:
    requests = re.findall(r'`(\{"v":1,"op":"(?:read|ack)".*?\})`', PROTOCOL)
    assert len(requests) == 2
    for request in requests:
        decode_ring_request([request.replace('"…"', '"9f2c4e1a"').encode()])


@pytest.mark.parametrize("page", [README, ROOT / "docs/how-to/subscribe.md"], ids=str)
def test_subscriber_in_ten_lines_prints_events(page: Path, socket_dir: Path) -> None:
    (program,) = [text for text in blocks(page, "python") if "import json, sys, zmq" in text]
    assert len([line for line in program.splitlines() if line]) <= 12
    endpoint = f"ipc://{socket_dir}/feed.sock"
    sockets = Sockets()
    feed = sockets.bind("pub", endpoint, 10)
    reader = subprocess.Popen(
        [sys.executable, "-c", program, endpoint], stdout=subprocess.PIPE, text=True
    )
    body = {"type": "begin", "onset": "2026-11-20T10:00:29.640000Z", "score": 0.83}
    try:
        assert reader.stdout is not None
        for _ in range(LIMIT_S * 100):  # until the subscription has arrived
            feed.send([b"event/bark/porch/", json.dumps(body).encode()])
            time.sleep(0.01)
            if reader.poll() is not None or has_output(reader):
                break
        with reader.stdout as out:
            line = out.readline()
    finally:
        reader.kill()
        reader.wait(LIMIT_S)
        sockets.close()
    assert line == "event/bark/porch/ begin 2026-11-20T10:00:29.640000Z 0.83\n"


def has_output(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_module_map_names_what_there_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"^  (\w+)(?:\.py|/) ", text, flags=re.MULTILINE))
    words = re.findall(r"^  ([a-z_ ]+?)  +words that", text, flags=re.MULTILINE)[0].split()
    found = {path.stem for path in (ROOT / "ast_stream").iterdir() if path.suffix != ".typed"}
    assert listed | set(words) == found - {"__init__", "__pycache__"}


def test_commands_of_make_are_explained() -> None:
    done = subprocess.run(
        ["make", "help"],
        cwd=ROOT,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    named = set(re.findall(r"^make (\w+)", done.stdout, re.MULTILINE))
    used = {
        word
        for page in WRITTEN
        for word in re.findall(r"^make (\w+)", page.read_text(), re.MULTILINE)
    }
    assert used <= named
