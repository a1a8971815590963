from __future__ import annotations

import socket
from pathlib import Path

from ast_stream.runtime.lifecycle import notify, watchdog_interval_s
from ast_stream.runtime.supervisor import Watchdog


def stuck_between(watch: Watchdog, begin_s: int, end_s: int) -> list[int]:
    """Check every second and return when the child was stuck."""
    return [second for second in range(begin_s, end_s) if watch.is_stuck(float(second))]


def test_child_is_stuck_once_it_was_ready_and_fed_nothing_for_too_long(socket_dir: Path) -> None:
    watch = Watchdog(socket_dir / "watch.0", limit_s=10.0)
    assert stuck_between(watch, 0, 100) == []  # not ready yet: it loads, and may take long
    notify("READY=1\nSTATUS=fine", watch.environ)
    assert stuck_between(watch, 100, 110) == []
    notify("WATCHDOG=1", watch.environ)
    assert stuck_between(watch, 110, 125) == [121, 122, 123, 124]
    watch.close()


def test_status_alone_feeds_nothing_and_stopping_ends_the_watch(socket_dir: Path) -> None:
    watch = Watchdog(socket_dir / "watch.0", limit_s=10.0)
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 0, 5) == []
    notify("STATUS=WATCHDOG=1 is what I say", watch.environ)
    assert stuck_between(watch, 5, 12) == [11]
    notify("STOPPING=1", watch.environ)
    assert stuck_between(watch, 12, 50) == []
    watch.close()


def test_new_process_is_not_judged_by_the_one_before(socket_dir: Path) -> None:
    watch = Watchdog(socket_dir / "watch.0", limit_s=10.0)
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 0, 12) == [11]
    notify("READY=1", watch.environ)  # sent before it was replaced, not yet received
    watch.begin()
    assert stuck_between(watch, 12, 40) == []
    watch.close()


def test_supervisor_that_was_away_does_not_blame_the_child(socket_dir: Path) -> None:
    watch = Watchdog(socket_dir / "watch.0", limit_s=10.0)
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 0, 3) == []
    assert not watch.is_stuck(1_000.0)
    assert stuck_between(watch, 1_001, 1_013) == [1_011, 1_012]
    watch.close()


def test_child_is_asked_to_feed_twice_within_the_limit(socket_dir: Path) -> None:
    watch = Watchdog(socket_dir / "watch.0", limit_s=10.0)
    assert watchdog_interval_s(watch.environ) == 5.0
    watch.close()


def test_socket_that_a_killed_supervisor_left_is_replaced(socket_dir: Path) -> None:
    path = socket_dir / "watch.0"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    watch = Watchdog(path)
    assert notify("READY=1", watch.environ)
    watch.close()
    assert not path.exists()


def test_socket_file_that_was_removed_is_bound_again_and_the_child_not_blamed(
    socket_dir: Path,
) -> None:
    folder = socket_dir / "run"
    folder.mkdir()
    watch = Watchdog(folder / "watch.0", limit_s=10.0)
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 0, 3) == []
    (folder / "watch.0").unlink()
    folder.rmdir()
    assert not notify("WATCHDOG=1", watch.environ)
    assert stuck_between(watch, 3, 13) == []
    assert notify("WATCHDOG=1", watch.environ)
    assert stuck_between(watch, 13, 25) == [24]
    watch.close()


def test_child_is_not_blamed_while_its_socket_cannot_be_bound_again(socket_dir: Path) -> None:
    folder = socket_dir / "run"
    folder.mkdir()
    watch = Watchdog(folder / "watch.0", limit_s=10.0)
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 0, 3) == []
    (folder / "watch.0").unlink()
    folder.rmdir()
    folder.write_text("in the way")
    assert stuck_between(watch, 3, 30) == []
    folder.unlink()
    assert stuck_between(watch, 30, 42) == [41]
    watch.close()


def test_a_child_that_begins_again_is_waited_for_as_long_as_it_asks(socket_dir: Path) -> None:
    watch = Watchdog(socket_dir / "watch.0", limit_s=10.0)
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 0, 5) == []
    assert watch.was_ready
    notify("WATCHDOG_USEC=60000000\nWATCHDOG=1", watch.environ)
    assert stuck_between(watch, 5, 70) == [66, 67, 68, 69]
    watch.begin()  # it was killed: the next one gets no more time than others
    assert not watch.was_ready
    notify("READY=1", watch.environ)
    assert stuck_between(watch, 70, 82) == [81]
    watch.close()
