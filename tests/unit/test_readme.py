"""What the README shows is run, so that it stays true."""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ast_stream.cli.app import COMMANDS
from ast_stream.messages.audio import decode_block, decode_ring_request
from ast_stream.settings.load import parse_settings
from ast_stream.transport.sockets import Sockets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LIMIT_S = 30


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_configuration_in_the_readme_loads() -> None:
    for text in blocks("yaml"):
        assert parse_settings(text).streams


def test_audio_block_in_the_readme_is_one() -> None:
    header = next(text for text in blocks("json") if '"epoch"' in text and '"rate"' in text)
    block = decode_block([b"porch", header.strip().encode(), bytes(3200)])
    assert block.start_sample == 483_200


def test_ring_requests_in_the_readme_are_such() -> None:
    requests = re.findall(r'`(\{"v":1,"op":"(?:read|ack)".*?\})`', README)
    assert len(requests) == 2
    for request in requests:
        decode_ring_request(request.replace('"…"', '"9f2c4e1a"').encode())


@pytest.mark.parametrize("language", ["python", "json"])
def test_code_in_the_readme_is_free_of_typing_errors(language: str) -> None:
    assert blocks(language)
    for text in blocks(language):
        if language == "python":
            compile(text, "README.md", "exec")
        else:
            json.loads(text)


def test_subscriber_in_ten_lines_prints_events(socket_dir: Path) -> None:
    program = next(text for text in blocks("python") if "import json, sys, zmq" in text)
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
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_module_map_in_the_readme_names_what_there_is() -> None:
    listed = re.findall(r"^  (\w+)(?:\.py|/) ", README, flags=re.MULTILINE)
    found = {path.stem for path in (ROOT / "ast_stream").iterdir() if path.suffix != ".typed"}
    words = {
        "errors",
        "units",
        "labels",
        "version",
        "urls",
        "__init__",
        "__pycache__",
    }
    assert set(listed) == found - words


def test_commands_in_the_readme_exist() -> None:
    names = {command.name for command in COMMANDS}
    used = set(re.findall(r"ast-stream ([a-z][a-z-]*)", README)) | {"demo"}
    assert used <= names


def test_files_in_the_readme_exist() -> None:
    for path in re.findall(r"configs/[\w./-]+\.yaml", README):
        assert (ROOT / path).exists(), path
