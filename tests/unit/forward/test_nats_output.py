"""What a NATS server refuses is said with the settings that asked for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from nats_server import nats_server, needs_nats, status_of, wait_for

from ast_stream.forward.output import OutputError
from ast_stream.forward.to_nats import NatsForwarder
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import NatsOutput

pytestmark = needs_nats


def refusal(
    folder: Path, limits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> tuple[str, str]:
    """Return what is said of the stream, and of the bucket, on a server with 100 MB."""
    caplog.set_level(logging.WARNING)
    small = f'jetstream {{ store_dir: "{folder}/store", max_file_store: 100MB }}\n'
    with nats_server(folder, small) as server:
        settings = NatsOutput.model_validate(
            {"type": "nats", "name": "centre", "servers": [server.url], "limits": limits}
        )
        output = NatsForwarder(settings, BoxIdentity("farm", "barn"))
        output.start()
        try:
            wait_for(lambda: output.error is None, "the connection")
            with pytest.raises(OutputError) as error:
                output.send([])
            output.publish_status(b"{}")
        finally:
            output.close()
    return str(error.value), caplog.text


def test_a_server_that_is_too_small_is_said_with_the_settings_that_ask_for_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream, bucket = refusal(tmp_path, {}, caplog)
    assert "the stream AST_STREAM cannot be made: the server says: insufficient" in stream
    asked = "where limits.max_gib asks for 10 GiB, and limits.replicas for 1 server; make it:"
    assert asked in stream
    assert "the bucket ast_stream_boxes cannot be made" in bucket
    asked = "where it asks for 1 GiB, a tenth of limits.max_gib, and limits.replicas for 1 server;"
    assert asked in bucket


def test_a_small_server_has_room_for_a_stream_that_fits_and_for_the_status(tmp_path: Path) -> None:
    small = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 100MB }}\n'
    with nats_server(tmp_path, small) as server:
        settings = NatsOutput.model_validate(
            {
                "type": "nats",
                "name": "centre",
                "servers": [server.url],
                "limits": {"max_gib": 0.08},
            }
        )
        output = NatsForwarder(settings, BoxIdentity("farm", "barn"))
        output.start()
        try:
            wait_for(lambda: output.error is None, "the connection")
            output.send([])
            output.publish_status(b"{}")
        finally:
            output.close()
        assert status_of(server.url, "farm.barn") == {}


def test_more_replicas_than_a_server_has_are_said_with_their_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream, _ = refusal(tmp_path, {"max_gib": 0.01, "replicas": 3}, caplog)
    assert "replicas > 1 not supported" in stream
    assert "limits.max_gib asks for 0.01 GiB, and limits.replicas for 3 servers" in stream
