"""What `status` shows of several workers, and of settings that wait for a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from sample_messages import health, worker_status

from ast_stream import box_status
from ast_stream.box_status import BoxStatus, WorkersStatus, WorkersStatusClient
from ast_stream.cli.status import view_of_all
from ast_stream.messages.fleet import ClockReport
from ast_stream.messages.status import RecentLoss, WorkerStatus
from ast_stream.settings.paths import page_id
from ast_stream.settings.schema import Settings


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


def test_audio_that_was_lost_in_the_last_minutes_is_a_problem_of_a_stream_that_is_heard() -> None:
    loss = RecentLoss(seconds=3.2, ago_s=12.0, reasons=["overflow"])
    found = box()
    found.streams = {
        "porch": health("porch", recent_loss=loss),
        "yard": health("yard", state="missing", detail="gone", recent_loss=loss),
        "hall": health("hall"),
    }
    lost = "lost 3.2 s of audio in the last 5 minutes, the last 12 s ago: overflow"
    found.problems = box_status.problems(found, [])
    assert found.problems == [
        "stream yard is missing: gone",
        f"stream porch {lost}",
        f"stream yard {lost}",
    ]
    all_found = WorkersStatus({"front": found})
    assert all_found.losses == [f"front: stream porch {lost}", f"front: stream yard {lost}"]
    assert all_found.as_json()["losses"] == all_found.losses
    assert found.as_json()["losses"] == found.losses
    assert lost in shown(all_found)
    assert "everything is healthy" not in shown(all_found)


def test_clock_that_nothing_corrects_is_named_and_not_called_healthy() -> None:
    clock = ClockReport(is_synchronised=False)
    found = WorkersStatus({None: box()}, clock=clock)
    assert found.problems == [clock.problem]  # exit code 1
    assert found.problems[0] in shown(found)
    assert "everything is healthy" not in shown(found)
    right = WorkersStatus({None: box()}, clock=ClockReport(is_synchronised=True))
    assert "everything is healthy" in shown(right)


def test_page_of_several_workers_is_that_of_the_whole_configuration(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(box_status, "page_answers", lambda of, _: not asked.append(page_id(of)))
    scene = {"type": "scene", "duration_s": 10}
    settings = Settings.model_validate(
        {
            "runtime_dir": str(socket_dir),
            "state_dir": str(socket_dir / "state"),
            "streams": [{"name": name, "source": scene} for name in ("a", "b")],
            "workers": {"front": {"streams": ["a"]}, "back": {"streams": ["b"]}},
            "web": {"listen": "127.0.0.1:8080"},
        }
    )
    with WorkersStatusClient(settings, timeout_s=0.05) as client:
        found = client.ask()
    assert asked == [page_id(settings)]
    assert not any("page" in problem for problem in found.problems)
