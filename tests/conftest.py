"""What all tests share: seeded property tests, a clean environment, and short socket folders."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from ast_stream.model.tagger import Tagger
    from ast_stream.transport.sockets import Sockets

hypothesis.settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, max_examples=100
)
hypothesis.settings.load_profile("house")

# set by service managers and by a supervisor for its children: not part of any test's input
_OUTER = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "JOURNAL_STREAM",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test the environment of a plain login shell."""
    for name in list(os.environ):
        if name in _OUTER or name.startswith("AST_STREAM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """Give a folder short enough for ipc paths of at most 107 bytes, which `tmp_path` is not."""
    folder = Path(tempfile.mkdtemp(prefix="ast-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def no_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate backgrounds as without espeak-ng, which has limits and a time of its own."""
    monkeypatch.setattr("ast_stream.soundscape.backgrounds.speech_is_available", lambda: False)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Give sockets that are closed after the test."""
    from ast_stream.transport.sockets import Sockets

    opened = Sockets()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny checkpoint whose scores react to sound."""
    from reactive_model import save_reactive  # needs torch, as many tests do not

    return save_reactive(tmp_path_factory.mktemp("reactive"))


@pytest.fixture(scope="module")
def tagger(checkpoint: Path) -> Tagger:
    """Give a tagger of `checkpoint`, the same on every CPU."""
    from ast_stream.model.tagger import load_tagger

    return load_tagger(str(checkpoint), device="cpu", precision="fp32", attention="math")
