"""What all tests share: their order, seeded property tests, a clean environment, socket folders."""

from __future__ import annotations

import gc
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from ast_stream.cli import options

if TYPE_CHECKING:
    from virtual_mic import VirtualMic

    from ast_stream.model.tagger import Tagger
    from ast_stream.transport.sockets import Sockets

hypothesis.settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, max_examples=100
)
hypothesis.settings.load_profile("house")

# Several processes run tests at a time, and start others: in each a computation on all cores spins
# until all its threads had a core, which takes ten times as much of them as one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read where torch is imported
options.N_CORES = 1  # of commands that compute on all cores

# set by service managers and by a supervisor for its children: not part of any test's input
_OUTER = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "JOURNAL_STREAM",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
)


# what waits most of the time, the longest first
_WAITING = ("system", "chaos", "process", "browser")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in what is imported for the tests, nor in the tests: it all stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mix files whose tests wait with files whose tests compute.

    Files are handed out in this order when several run at a time. So neither do all wait at once
    nor compute at once, and no long file begins when all others are done.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [path for path in files if path.parent.name in _WAITING]
    waiting.sort(key=lambda path: _WAITING.index(path.parent.name))
    computing = [path for path in files if path.parent.name not in _WAITING]
    places = {path: (n + 0.5) / len(computing) for n, path in enumerate(computing)}
    places |= {path: 0.8 * n / len(waiting) for n, path in enumerate(waiting)}
    items[:] = [
        item for path in sorted(files, key=lambda path: places[path]) for item in files[path]
    ]


@pytest.fixture(autouse=True, scope="session")
def signals_of_a_shell() -> Iterator[None]:
    """Let processes that tests start ignore no signal, as a shell does that nothing detached.

    Under `nohup` or in the background of a script they would inherit that hangups or interrupts
    are ignored. A handler is not inherited, and this process goes on ignoring them by it.
    """
    ignored = [
        number
        for number in (signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test the environment of a plain login shell."""
    for name in list(os.environ):
        if name in _OUTER or name.startswith("AST_STREAM_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Take back what a command that a test runs in this process has set up for its own log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    """Take back how many threads a command that a test runs in this process lets torch have."""
    yield
    torch = sys.modules.get("torch")
    threads = int(os.environ["OMP_NUM_THREADS"])
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


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


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Give a list for processes that the test starts, to be killed at its end."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.communicate()


@pytest.fixture
def mic() -> Iterator[VirtualMic]:
    """Give a microphone that tests play into."""
    from virtual_mic import virtual_mic

    with virtual_mic() as running:
        yield running


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
