"""A box of real processes in a temporary folder: started, observed from outside, and stopped."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ast_stream.coverage.ledger import read_spans
from ast_stream.errors import StartupError
from ast_stream.runtime.lifecycle import start_command

END_S = 60.0
_LINES_SHOWN = 15
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Box:
    """The processes of one configuration.

    Args:
        folder: with a short path, for the sockets.
        settings: the configuration without its folders.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.runtime_dir, self.state_dir = folder / "run", folder / "state"
        self._config = folder / "config.yaml"
        self._log = folder / "log"
        own = {"runtime_dir": str(self.runtime_dir), "state_dir": str(self.state_dir)}
        self._config.write_text(json.dumps(own | dict(settings)))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def feed(self) -> str:
        """Endpoint of the worker's feed."""
        return f"ipc://{self.runtime_dir}/feed.sock"

    @property
    def log(self) -> str:
        """What all processes have written."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start all processes."""
        with self._log.open("wb") as log:
            self._process = start_command(["run", "-c", str(self._config)], stdout=log, stderr=log)

    def check(self) -> None:
        """Raise if the processes have ended.

        Raises:
            StartupError: they have; with the last lines of the log.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            raise self.failed()

    def failed(self) -> StartupError:
        """Return the error that no audio was scored."""
        return StartupError("\n".join(["no audio was scored:", *self._last_lines()]))

    def processes(self) -> dict[str, int]:
        """Return process ids by name, such as `run`, `worker` and `capture`."""
        assert self._process is not None
        return {"run": self._process.pid, **processes_under(self._process.pid)}

    def end(self) -> int:
        """Stop all processes and return the exit code of `run`."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def accounted(self) -> tuple[Counter[str], int]:
        """Return the samples of the ledger by kind, and how many it lacks within epochs."""
        samples: Counter[str] = Counter()
        lacking = 0
        unwritten = self.runtime_dir / "unwritten-coverage.jsonl"
        for stream_spans in read_spans(self.state_dir / "coverage", unwritten).values():
            stops: dict[str, int] = {}
            for span in stream_spans:
                samples[span.kind] += span.samples
                lacking += abs(span.start_sample - stops.get(span.epoch, span.start_sample))
                stops[span.epoch] = span.stop_sample
        return samples, lacking

    def _last_lines(self) -> Sequence[str]:
        return self.log.splitlines()[-_LINES_SHOWN:]


class ProcessFacts(NamedTuple):
    """Memory, CPU time, threads and descriptors of a process, as the kernel reports them.

    Attributes:
        cpu_s: of all its threads, since its start.
        memory_mib: without pages of files, which the kernel can drop at any time.
    """

    cpu_s: float
    memory_mib: float
    n_threads: int
    n_descriptors: int


def facts_of(pid: int) -> ProcessFacts | None:
    """Return the facts of a process; None of one that has ended."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "RssAnon" in facts:
            # after the name of the program, which may hold anything
            times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            return ProcessFacts(
                sum(map(int, times)) / _CLOCK_TICKS,
                int(facts["RssAnon"].split()[0]) / 1024,
                int(facts["Threads"]),
                len(os.listdir(f"/proc/{pid}/fd")),
            )
    return None


def processes_under(pid: int) -> dict[str, int]:
    """Return the processes of a box by name, such as `worker` and `capture`.

    Args:
        pid: of its `ast-stream run`.
    """
    found: dict[str, int] = {}
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                if name := _name_of(words):
                    found[name] = int(child)
    return found


def _name_of(words: list[str]) -> str | None:
    for command in ("worker", "alerts"):
        if command in words:
            return command
    if "capture" in words and "--stream" in words:
        return f"capture {words[words.index('--stream') + 1]}"
    return "capture" if "capture" in words else None


def folder_bytes(path: Path) -> int:
    """Return the size of a file or of a folder's content; files that vanish do not count."""
    total = 0
    for file in [path, *path.rglob("*")]:
        with suppress(OSError):
            if file.is_file():
                total += file.stat().st_size
    return total
