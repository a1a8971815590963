"""Several workers share the streams: each has its own, and folders of its own."""

from __future__ import annotations

import pytest

from ast_stream.errors import ConfigError, UsageError
from ast_stream.settings import paths
from ast_stream.settings.load import parse_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import kept
from ast_stream.settings.workers import of_worker, process_name, worker_names, worker_of

STREAMS = """
runtime_dir: /run/a
state_dir: /var/a
streams:
  - {name: porch, source: {type: scene}}
  - {name: yard, source: {type: scene}}
  - {name: gate, source: {type: scene}}
"""
TWO = "workers: {one: {streams: [porch, gate]}, two: {streams: [yard], device: 'cuda:1'}}\n"


def settings(text: str = TWO) -> Settings:
    return parse_settings(STREAMS + text)


def test_worker_has_its_streams_its_device_and_folders_of_its_own() -> None:
    whole = settings()
    one, two = (of_worker(whole, name) for name in ("one", "two"))
    assert [stream.name for stream in one.streams] == ["porch", "gate"]
    assert [stream.name for stream in two.streams] == ["yard"]
    assert (one.model.device, two.model.device) == ("auto", "cuda:1")
    assert paths.feed_endpoint(one) == "ipc:///run/a/one/feed.sock"
    assert paths.ring_endpoint(two, "yard") == "ipc:///run/a/two/ring.yard.sock"
    assert (one.state_dir, two.state_dir) == ("/var/a/one", "/var/a/two")
    assert worker_of(whole, "yard") == "two"


def test_configuration_without_workers_has_one_without_a_name() -> None:
    whole = settings("")
    assert worker_names(whole) == [None]
    assert of_worker(whole, None) == whole
    assert process_name(None) == "worker"


def test_every_process_has_a_port_of_its_own() -> None:
    whole = settings(TWO + "metrics: {listen: '127.0.0.1:9464'}\n")
    names = paths.processes(whole)
    assert names[0] == "worker one"
    assert len({paths.metrics_address(whole, name) for name in names}) == len(names)
    two = of_worker(whole, "two")
    assert paths.metrics_address(two, "worker") == paths.metrics_address(whole, "worker two")


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (
            "{one: {streams: [porch, yard, gate]}, two: {streams: [yard]}}",
            "workers.two.streams: expected each stream at one worker, got yard at one, too",
        ),
        (
            "{one: {streams: [porch, porch, yard, gate]}}",
            "workers.one.streams: expected each stream at one worker, got porch at one, twice",
        ),
        (
            "{one: {streams: [porch]}}",
            "workers: expected a worker for each stream, got none for yard, gate",
        ),
        (
            "{one: {streams: [porch, yard, gat]}}",
            "workers.one.streams: no stream 'gat'; did you mean 'gate'?",
        ),
        ("{One: {streams: [porch, yard, gate]}}", "workers.One: expected "),
        ("{one: {streams: []}}", "workers.one.streams: "),
        (
            "{one: {streams: [porch, yard, gate]}}\ntransport: {feed: 'tcp://127.0.0.1:1'}",
            "transport.feed: expected null where there are several workers",
        ),
    ],
)
def test_streams_that_are_not_shared_out_are_refused_with_their_place(
    workers: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        settings(f"workers: {workers}\n")
    assert expected in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("three", "no worker 'three'"), ("tow", "did you mean 'two'"), (None, "one, two")],
)
def test_worker_that_is_none_is_refused(name: str | None, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        of_worker(settings(), name)


def test_files_of_every_worker_are_declared() -> None:
    places = {str(kind.folder) for kind in kept(settings())}
    assert {"/var/a/one/events", "/var/a/two/events", "/run/a/one", "/run/a/two"} <= places
