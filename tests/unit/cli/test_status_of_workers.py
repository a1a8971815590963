"""What `status` shows of several workers, and of settings that wait for a restart."""

from __future__ import annotations

from rich.console import Console
from sample_messages import worker_status

from ast_stream.box_status import BoxStatus, WorkersStatus
from ast_stream.cli.status import view_of_all
from ast_stream.messages.status import WorkerStatus


def box(*keys: str, problems: tuple[str, ...] = ()) -> BoxStatus:
    worker = worker_status().model_copy(update={"restart_needed": list(keys)})
    return BoxStatus(worker=worker, problems=list(problems))


def shown(found: WorkersStatus) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view_of_all(found))
    return capture.get()


def test_keys_that_wait_for_a_restart_are_named_and_are_no_problem() -> None:
    found = WorkersStatus({None: box("model.hop_s", "transport.feed")})
    assert found.problems == []
    assert found.as_json()["restart_needed"] == {"worker": ["model.hop_s", "transport.feed"]}
    assert "worker: a restart is needed for model.hop_s, transport.feed" in shown(found)


def test_status_on_the_wire_names_them_only_where_there_are_any() -> None:
    waiting = box("model.hop_s").worker
    assert waiting is not None
    assert waiting.to_json()["restart_needed"] == ["model.hop_s"]
    assert WorkerStatus.from_json(waiting.to_json(), "status") == waiting
    assert "restart_needed" not in worker_status().to_json()


def test_problems_of_several_workers_say_whose_they_are() -> None:
    found = WorkersStatus({"front": box(), "back": box(problems=("stream yard is missing",))})
    assert found.problems == ["back: stream yard is missing"]
    body = found.as_json()
    assert not body["healthy"]
    assert body["workers"]["front"]["healthy"]
    assert shown(found).index("worker front") < shown(found).index("worker back")
