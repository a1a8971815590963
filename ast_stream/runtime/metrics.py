"""Metrics for Prometheus; the only importer of prometheus_client.

Most figures are renewed once a second by the loop that owns them, as a whole, so that a scrape in
another thread never sees half of them; durations are observed where they happen.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ast_stream.errors import StartupError

logger = logging.getLogger(__name__)

RENEW_EVERY_S = 1.0
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAX_CLIENTS = 16  # at a time; each is a thread
CLIENT_TIMEOUT_S = 5.0  # a client that asks nothing for so long is disconnected
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Family = Metric
Values = Mapping[Any, float | None]
"""Values by label values, a tuple of texts; None is left out."""


def figure(
    name: str, help: str, values: Values | float | None, labels: Sequence[str] = ()
) -> Family:
    """Return a figure: a counter if `name` ends in `_total`, else one that goes up and down.

    Args:
        name: with its unit.
        values: one, or those of all label values.
    """
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(name, help, labels=labels)
    for key, value in (values if isinstance(values, Mapping) else {(): values}).items():
        if value is not None:
            family.add_metric(key, value)
    return family


class _Renewed(Collector):
    """The families that were last handed in."""

    def __init__(self) -> None:
        self.families: tuple[Family, ...] = ()

    def collect(self) -> Iterable[Family]:
        return self.families

    def describe(self) -> Iterable[Family]:
        return ()


class Metrics:
    """The figures of one process, and the endpoint that shows them.

    Args:
        process: worker, alerts or capture.
        address: host and port to listen on; None: nothing is shown.

    Attributes:
        is_on: whether anyone can see the figures.

    Raises:
        StartupError: the address cannot be bound.
    """

    def __init__(self, process: str, address: tuple[str, int] | None = None) -> None:
        self.is_on = address is not None
        self._registry = CollectorRegistry()
        self._renewed = _Renewed()
        self._registry.register(self._renewed)
        ProcessCollector(registry=self._registry)
        self._up = figure(
            "ast_stream_up", "1 while the process runs", {(process,): 1}, ("process",)
        )
        self.renew([])
        if address is not None:
            self._serve(*address)

    def move(self, address: tuple[str, int] | None) -> None:
        """Listen on another address, or on none.

        Raises:
            StartupError: the address cannot be bound; nothing is shown until it can.
        """
        self.close()
        if address is not None:
            self._serve(*address)
            self.is_on = True

    def renew(self, families: Iterable[Family]) -> None:
        """Show these figures from now on."""
        self._renewed.families = (self._up, *families)

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        """Return a histogram to `observe`; shown beside the renewed figures."""
        return Histogram(name, help, labels, buckets=buckets, registry=self._registry)

    def close(self) -> None:
        """Stop listening."""
        if self.is_on:
            self.is_on = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _serve(self, host: str, port: int) -> None:
        try:
            self._server = _server_class(host, port)((host, port), _Handler)
        except (OSError, UnicodeError) as error:
            raise StartupError(
                f"metrics.listen: cannot listen on {host}:{port}: {error}"
            ) from error
        self._server.set_app(make_wsgi_app(self._registry))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()
        logger.info("metrics at http://%s:%d/metrics", host, port)


class _Handler(WSGIRequestHandler):
    """Answers one client without a line in the log."""

    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _MetricsServer(ThreadingMixIn, WSGIServer):
    """Has a thread for each client, and no more of them than it can afford."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(*args)

    def server_bind(self) -> None:
        """Bind without asking the name service what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client, or turn it away."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


def _server_class(host: str, port: int) -> type[_MetricsServer]:
    """Return the server for the address family of `host`.

    Raises:
        OSError: `host` is no address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return type("_Server", (_MetricsServer,), {"address_family": found})
