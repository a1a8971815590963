"""A real PostgreSQL in a temporary folder, for the length of a test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from ports import free_ports

PATIENCE_S = 60.0


def _programs() -> Path | None:
    """Return the folder of the server's programs; Debian does not have it in the path."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if (named := shutil.which("initdb")) is not None:
        found.append(Path(named).parent)
    return max(found, default=None)


class Postgres:
    """A server that can be killed and started again on the same port.

    Attributes:
        address: how to connect.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._port = free_ports()
        # it refuses to run as root
        self._user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._server: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self._folder, self._user)
        command = ["initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        self._call(*command, "--no-sync", "--no-instructions", "--locale=C.UTF-8")
        self.address = f"host=127.0.0.1 port={self._port} user=postgres dbname=postgres"

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
        }
        words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        self._server = subprocess.Popen(
            [*self._as_user(), str(self._programs / "postgres"), "-D", self._data, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
        )
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self.address, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._server.poll() is None, "PostgreSQL has ended"
                assert time.monotonic() < end_s, "PostgreSQL does not answer"
                time.sleep(0.05)

    def kill(self) -> None:
        """End it at once; what was committed is there at the next start."""
        if self._server is not None:
            # without time for anything; its other processes go with it
            self._call("pg_ctl", "stop", "-D", self._data, "-m", "immediate", check=False)
            self._server.kill()
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def connect(self) -> psycopg.Connection:
        """Return a connection that commits each statement."""
        return psycopg.connect(self.address, autocommit=True)

    def psql(self, *arguments: str) -> str:
        """Return what psql prints."""
        command = [shutil.which("psql") or "psql", self.address, "-XAt", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _call(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [*self._as_user(), str(self._programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._folder)
        assert not check or done.returncode == 0, done.stderr

    def _as_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        entry = pwd.getpwnam(self._user)
        return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Yield a server that runs; skip the test where there is none, in CI fail it."""
    programs = _programs()
    if programs is None:
        missing = "PostgreSQL is not installed (apt install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    server = Postgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.close()
