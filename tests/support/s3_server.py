"""An S3 server over HTTP, on a free port, whose buckets are folders, and which can be made to fail.

`localbucket` answers as S3 does, but lets everybody in: here callers have to name the one access
key that there is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from localbucket import S3Error, S3Handler

from ast_stream.archive import stores

ACCESS_KEY = "AKIATEST"
FAULT = Callable[["FaultyHandler"], None]


class FaultyHandler(S3Handler):  # type: ignore[misc]
    """Answers one request, unless something goes wrong with it.

    Attributes:
        cut_after: bytes of an object after which the connection breaks; None: never.
    """

    server: FaultyServer
    cut_after: int | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _dispatch(self, action: Any) -> None:
        def checked(bucket: str, key: str) -> None:
            self.server.requests.append(f"{self.command} {bucket}/{key}")
            if f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
                raise refusal("InvalidAccessKeyId")
            self.server.fault(self)
            action(bucket, key)

        super()._dispatch(checked)

    def _put(self, bucket: str, key: str) -> None:
        if key.endswith("/"):  # stands for a folder: S3 takes it as it takes other objects
            self._read_body()
            self._send(HTTPStatus.OK)
        else:
            super()._put(bucket, key)

    def _send_file(
        self, status: Any, file: Any, start: int, length: int, headers: Any, include_body: bool
    ) -> None:
        if self.cut_after is None or not include_body or length <= self.cut_after:
            super()._send_file(status, file, start, length, headers, include_body)
            return
        self._send_headers(status, length, headers)
        file.seek(start)
        self.wfile.write(file.read(self.cut_after))
        self.close_connection = True


def refusal(code: str) -> S3Error:
    """Return the answer to somebody who may not."""
    return S3Error(HTTPStatus.FORBIDDEN, code, "You may not.")


def busy() -> S3Error:
    """Return the answer of a store that has too much to do."""
    return S3Error(HTTPStatus.SERVICE_UNAVAILABLE, "SlowDown", "Please reduce your request rate.")


class FaultyServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        requests: all that came, such as "GET bucket/key".
        fault: called before a request is answered; may raise `S3Error`, or change the handler.
    """

    daemon_threads = True

    def __init__(self, buckets: Path) -> None:
        handler = type("Handler", (FaultyHandler,), {"data_root": buckets})
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[str] = []
        self.fault: FAULT = lambda handler: None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone."""


@contextmanager
def running_s3(buckets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Yield a server of the folders below a folder, which this process then finds as S3."""
    server = FaultyServer(buckets)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    stores._arrow_store.cache_clear()
    try:
        yield server
    finally:
        stores._arrow_store.cache_clear()
        server.shutdown()
        server.server_close()
        thread.join()
