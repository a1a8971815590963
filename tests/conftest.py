"""What all tests share: seeded property tests, a clean environment, and short socket folders."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

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
