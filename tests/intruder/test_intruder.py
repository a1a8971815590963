"""What an intruder tries that no other test does, and that the table of attempts is true."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from intruder.attempts import ATTEMPTS, rows
from intruder.flood import flood
from pipeline import pipeline, wait_for
from reactive_model import tones_and_noise
from sample_messages import event_message
from tiny_model import save_tiny

from ast_stream.cli.app import run_command_line
from ast_stream.errors import AstStreamError
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.messages.query import (
    MAX_PAGE_BYTES,
    MAX_PAGE_MESSAGES,
    ReplayPage,
    ReplayQuery,
    SnapshotQuery,
    decode_replay,
)
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.weights import read_tensors
from ast_stream.training.state import STATE_FILE, load_state
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets

ROOT = Path(__file__).parents[2]
NAMES = ("../evil", "/tmp/evil", "a/b", "..", ".", "a\0b", "a\nb", "evil/../../x", "~", "")


def test_the_table_in_security_md_is_the_list_of_attempts() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    head = "| attempt | what happens | test |\n|---|---|---|\n"
    assert head + rows() in text, "put this into SECURITY.md:\n" + rows()


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.tried[:40])
def test_every_attempt_is_tried_by_a_test_that_is_there(attempt: Any) -> None:
    assert attempt.tests
    for test in attempt.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.slow
def test_a_flood_of_tiny_messages_costs_others_nothing(socket_dir: Path) -> None:
    # a million of them by the command; see flood.py
    done = flood(str(socket_dir / "pull.sock"), 8, int(os.environ.get("FLOOD", "40000")))
    if folder := os.environ.get("FLOOD_FIGURES"):
        Path(folder).write_text(json.dumps(vars(done)))
    assert done.flooded >= 40_000
    assert done.polite > 0
    assert done.polite_lost == 0
    assert done.grown_mib < 64


@pytest.mark.slow
def test_more_streams_than_there_is_room_for_cost_the_others_nothing(
    checkpoint: Path, sockets: Sockets
) -> None:
    with pipeline(checkpoint, {"a": {"type": "file", "loop": True}}) as run:
        run.write_audio(tones_and_noise(8.0))
        worker = run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "the worker")
        run.start_capture("a")
        push = sockets.connect("push", f"ipc://{run.folder}/run/audio.sock", 8)
        folder = f"ipc://{run.folder}/run"
        for number in range(200):
            ring, moment = f"{folder}/ring.s{number}.sock", Moment(time.time_ns(), 1)
            block = AudioBlock(f"s{number}", "0" * 8, 0, moment, _SILENCE, ring=ring)
            wait_for(partial(push.send, block.encode()), "room for a block")
        query = QueryClient(sockets, f"ipc://{run.folder}/run/query.sock")
        wait_for(lambda: "(model.max_streams), got one more" in run.log("worker"), "the refusal")

        def streams() -> dict[str, Any]:
            frames = query.ask(SnapshotQuery(), 20.0)
            assert frames is not None
            return {one["stream"]: one for one in json.loads(frames[0])["streams"]}

        wait_for(lambda: streams()["a"]["state"] == "listening", "the stream that is there")
        assert len(streams()) == 64
        assert worker.poll() is None


_SILENCE = torch.zeros(1600, dtype=torch.int16).numpy()


def test_no_query_gets_more_than_a_page(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events")
    log.begin("b1")
    for seq in range(1, 3000):
        event = event_message(f"e{seq}", labels={"note": "x" * 300})
        stamp = Stamp("b1", seq, Moment(time.time_ns(), seq), previous=seq - 1)
        log.append(FeedMessage.of(event, stamp))
    found, after = 0, ReplayQuery().after
    while True:
        page = log.replay(after)
        assert isinstance(page, ReplayPage)
        (frame,) = page.encode("b1")
        assert len(page.messages) <= MAX_PAGE_MESSAGES
        assert len(frame) <= MAX_PAGE_BYTES + 64 * 1024
        decoded = decode_replay([frame])
        assert isinstance(decoded, ReplayPage)
        found += len(page.messages)
        if not page.more:
            break
        after = page.messages[-1].position
    assert found >= 2999
    log.close()


@pytest.mark.parametrize("name", NAMES)
def test_names_do_not_lead_out_of_their_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    whole = save_tiny(inside / "checkpoint")
    shutil.copy(whole / "model.safetensors", tmp_path / "evil")
    before = _files(tmp_path)
    # the stream of a block: also the name of a ring's socket, and of files
    block = AudioBlock("a", "0" * 8, 0, Moment(0, 0), _SILENCE).encode()
    with pytest.raises(AstStreamError, match="stream name: expected"):
        AudioBlock.decode([name.encode(), *block[1:]])
    # a stream of a configuration
    config = {"streams": [{"name": name, "source": {"type": "stdin"}}]}
    (inside / "config.yaml").write_text(json.dumps(config))
    before |= {inside / "config.yaml"}
    assert run_command_line(["check-config", str(inside / "config.yaml"), "--no-model"]) == 78
    # a key, and the stream of a right
    assert run_command_line(["keys", "create", name, "--dir", str(inside)]) == 2
    # a part of a checkpoint
    index = {"weight_map": {"a": name}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    before |= {whole / "model.safetensors.index.json"}
    with pytest.raises(AstStreamError, match=r"weight_map|is missing beside"):
        read_tensors(whole / "model.safetensors.index.json")
    assert _files(tmp_path) == before
    assert "Traceback" not in capsys.readouterr().err


def _files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


class _Command:
    """What a pickle can hold: a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "model.pt", "model.ckpt"])
@pytest.mark.parametrize("how", ["pickle", "torch", "torch, legacy", "beside tensors"])
def test_no_file_of_a_checkpoint_runs_a_command(tmp_path: Path, name: str, how: str) -> None:
    ran, path = tmp_path / "it-ran", tmp_path / name
    command = _Command(ran)
    with path.open("wb") as file:
        if how == "pickle":
            pickle.dump(command, file)
        else:
            content = {"weight": torch.zeros(2), "x": command} if "beside" in how else command
            torch.save(content, file, _use_new_zipfile_serialization="legacy" not in how)
    with pytest.raises(AstStreamError):
        load_checkpoint(str(path))
    assert run_command_line(["model", "info", str(path)]) != 0
    training = tmp_path / "training"
    training.mkdir()
    shutil.copy(path, training / STATE_FILE)
    assert load_state(training, {}) is None
    assert not ran.exists()
    # it would have, had anybody opened it
    if how == "pickle":
        program = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
        assert ran.exists()
