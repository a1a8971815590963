"""A box follows into a model that works, and else stays with what it has, killed or not."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_store import KilledError, MemoryStore
from sample_messages import T0_NS, event_message

from ast_stream.fleet import follower as module
from ast_stream.fleet.follower import STATE_FILE, RolloutFollower
from ast_stream.fleet.model_folder import ModelFolder, describe_files
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.messages.fleet import RolloutReport, WorkerReport
from ast_stream.messages.rollout import PIECE_BYTES, CheckpointManifest, WantedModel
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import undeclared
from ast_stream.transport.event_log import EventLog

CONFIGURED, OLD, NEW = (f"sha256:{64 * letter}" for letter in "abc")  # models
KEY = "farm.barn"
TICKS = 200


class Worker:
    """A worker as far as a follower sees it: it runs what the link leads to, or does not."""

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder
        self.broken: set[str] = set()  # models with which it cannot live
        self.falls_back = False  # it says so, and uses the one before
        self._runs: str | None = None
        self._n_boots = 0

    def report(self) -> WorkerReport:
        current = self.folder.current
        model = CONFIGURED if current is None else self.folder.manifest(current).model
        if model in self.broken and not self.falls_back:
            self._runs = None
            return WorkerReport()
        if self._runs != (current or ""):
            self._runs, self._n_boots = current or "", self._n_boots + 1
        used = CONFIGURED if model in self.broken else model
        return WorkerReport(boot=f"boot{self._n_boots}", model=used)

    def crash(self) -> None:
        self._n_boots += 1


class Box:
    """A follower that can be killed, its store, its disk, its worker."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = MemoryStore()
        self.now_s = 0.0
        self.problem: str | None = None  # what the check finds
        self.n_checks = 0
        self.state_dir = tmp_path / "state"
        self.settings = Settings.model_validate(
            {
                "streams": [{"name": "porch", "source": {"type": "scene"}}],
                "state_dir": str(self.state_dir),
                "fleet": {"site": "farm", "box": "barn", "models": {"follow": True}},
                "forward": [{"name": "c", "type": "nats", "servers": ["nats://a"]}],
            }
        )
        self.folder = ModelFolder(self.state_dir / "models")
        self.worker = Worker(self.folder)
        self.follower = self.new()

    def new(self) -> RolloutFollower:
        return RolloutFollower(
            self.settings,
            self.store,
            lambda: [self.worker.report()],
            self.check,
            now_s=lambda: self.now_s,
            wall_ns=lambda: T0_NS + round(self.now_s * 1e9),
        )

    def check(self, folder: Path, manifest: CheckpointManifest) -> str | None:
        self.n_checks += 1
        return self.problem

    def tick(self, seconds: float = 10.0) -> RolloutReport:
        self.now_s += seconds
        self.follower.tick()
        self.worker.report()
        return self.follower.report()

    def ask(self, content: str | None, order: str = "1") -> None:
        self.store.put(KEY, WantedModel(content=content, order=order).encode())

    def until(self, is_so: Callable[[RolloutReport], bool]) -> RolloutReport:
        for _ in range(TICKS):
            report = self.tick()
            if is_so(report):
                return report
        raise AssertionError(self.follower.report())

    def model(self) -> str:
        """What the link leads to, which must be whole."""
        current = self.folder.current
        return CONFIGURED if current is None else self.folder.check(current).model


def offer(store: MemoryStore, source: Path, model: str, weights: bytes = b"w") -> str:
    """Store a checkpoint at the centre; return its content hash."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    (source / "config.json").write_bytes(json.dumps({"model": model}).encode())
    (source / "model.safetensors").write_bytes(weights)
    (source / "README.md").touch()
    manifest = describe_files(source, model)
    for file in manifest.files:
        content = (source / file.name).read_bytes()
        for index, digest in enumerate(file.pieces):
            store.objects[digest] = content[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
    store.objects[manifest.content] = manifest.encode()
    return manifest.content


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture
def old(box: Box, tmp_path: Path) -> str:
    """A model that the box uses already."""
    content = offer(box.store, tmp_path / "old", OLD)
    box.ask(content, "0")
    box.until(lambda report: report.state == "in_use" and report.current == content)
    return content


@pytest.fixture
def new(box: Box, tmp_path: Path) -> str:
    weights = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"the rest"
    return offer(box.store, tmp_path / "new", NEW, weights)


def test_a_box_that_nobody_asks_uses_what_is_configured(box: Box) -> None:
    report = box.tick()
    assert (report.wanted, report.current, report.state) == (None, None, "in_use")


def test_a_box_follows_and_knows_the_way_back(box: Box, old: str, new: str) -> None:
    box.ask(new)
    report = box.until(lambda report: report.state == "in_use" and report.current == new)
    assert (report.wanted, report.previous) == (new, old)
    assert box.model() == NEW
    box.ask(old, "2")
    assert box.until(lambda report: report.current == old and report.state == "in_use")
    assert box.n_checks == 3
    files = (path for path in box.state_dir.rglob("*") if path.is_file())
    assert list(undeclared(box.settings, files)) == []
    box.ask(None, "3")
    report = box.until(lambda report: report.current is None and report.state == "in_use")
    assert box.model() == CONFIGURED


def test_what_does_not_fit_changes_nothing_and_is_tried_again_only_if_ordered(
    box: Box, old: str, new: str
) -> None:
    box.problem = "config.yaml:9: detection.classes.Bark: unknown class 'Bark'"
    box.ask(new)
    report = box.until(lambda report: report.state == "refused")
    assert report.detail == box.problem
    assert box.model() == OLD
    assert not box.folder.holds(new)
    n_checks = box.n_checks
    for _ in range(5):
        assert box.tick().state == "refused"
    assert box.n_checks == n_checks
    box.problem = None
    box.ask(new, "2")
    box.until(lambda report: report.current == new and report.state == "in_use")


def test_a_model_that_workers_do_not_survive_is_given_up_without_the_centre(
    box: Box, old: str, new: str
) -> None:
    box.worker.broken.add(NEW)
    box.ask(new)
    box.until(lambda report: report.state == "starting")
    box.store.is_away = True
    report = box.until(lambda report: report.state == "returned")
    assert report.detail == "the worker did not come up within 300 s"
    assert box.model() == OLD
    box.store.is_away = False
    for _ in range(5):
        assert box.tick().current == old  # the same order again is no reason


def test_a_worker_that_takes_the_one_before_says_so(box: Box, old: str, new: str) -> None:
    box.worker.broken.add(NEW)
    box.worker.falls_back = True
    box.ask(new)
    report = box.until(lambda report: report.state == "returned")
    assert report.detail == (
        f"the worker did not start with it and uses {CONFIGURED}: its log says why"
    )
    assert box.folder.current == old


def test_a_worker_that_later_begins_again_without_it_is_noticed(
    box: Box, old: str, new: str
) -> None:
    box.ask(new)
    box.until(lambda report: report.state == "in_use" and report.current == new)
    box.worker.broken.add(NEW)
    box.worker.falls_back = True
    report = box.until(lambda report: report.state == "returned")
    assert report.detail == f"the worker no longer uses it, but {CONFIGURED}"
    assert box.folder.current == old


def test_a_box_that_is_asked_no_more_stays_as_it_is(box: Box, old: str) -> None:
    box.store.delete(KEY)
    report = box.tick()
    assert (report.wanted, report.current, report.state) == (None, old, "in_use")


def test_a_return_that_the_centre_orders_is_content_with_what_is_there(
    box: Box, old: str, new: str
) -> None:
    box.problem = "no"
    box.ask(new)
    box.until(lambda report: report.state == "refused")
    box.ask(old, "1-return")
    report = box.tick()
    assert (report.state, report.current, report.detail) == ("in_use", old, None)


@pytest.mark.parametrize("damage", ["piece", "manifest", "missing piece", "no manifest"])
def test_a_damaged_object_is_never_used(box: Box, old: str, new: str, damage: str) -> None:
    manifest = CheckpointManifest.decode(box.store.objects[new], new)
    weights = next(file for file in manifest.files if file.name == "model.safetensors")
    match damage:
        case "piece":
            box.store.objects[weights.pieces[1]] = b"\0" * PIECE_BYTES
        case "manifest":
            box.store.objects[new] = manifest.encode().replace(b'"v":1', b'"v": 1')
        case "missing piece":
            del box.store.objects[weights.pieces[2]]
        case "no manifest":
            del box.store.objects[new]
    box.ask(new)
    report = box.until(lambda report: report.state in ("refused", "waiting"))
    assert report.state == ("refused" if damage in ("piece", "manifest") else "waiting")
    assert report.detail
    assert box.model() == OLD
    assert box.n_checks == 1  # of the old one


def test_weights_that_can_hold_programs_are_refused(box: Box, old: str) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    file = {"name": "pytorch_model.bin", "bytes": 1, "sha256": digest, "pieces": [digest]}
    body = json.dumps({"v": 1, "model": NEW, "files": [file]}).encode()
    content = f"sha256:{hashlib.sha256(body).hexdigest()}"
    box.store.objects |= {content: body, digest: b"x"}
    box.ask(content)
    report = box.until(lambda report: report.state == "refused")
    assert "expected weights as safetensors, got pytorch_model.bin" in (report.detail or "")


def test_a_full_disk_waits(box: Box, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(box.state_dir)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        box.ask(new)
        report = box.until(lambda report: report.state == "waiting")
        assert report.detail is not None
        assert report.detail.startswith("the disk has no room for the model: ")
        assert box.model() == OLD
    box.until(lambda report: report.current == new and report.state == "in_use")


def test_a_disk_that_fills_up_in_the_middle_waits(
    box: Box, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_piece", full)
        box.ask(new)
        report = box.until(lambda report: report.state == "waiting")
        assert report.detail == "the disk refuses: No space left on device"
        assert box.model() == OLD
    box.until(lambda report: report.current == new and report.state == "in_use")


def test_a_state_that_cannot_be_read_is_no_reason_to_leave(
    box: Box, old: str, caplog: pytest.LogCaptureFixture
) -> None:
    (box.folder.path / STATE_FILE).write_bytes(b"\0")
    box.follower = box.new()
    report = box.tick()
    assert (report.current, report.state, report.wanted) == (old, "in_use", old)


def test_events_are_counted_before_and_since(box: Box, new: str) -> None:
    log = EventLog(box.state_dir / "events")
    log.begin("aa")

    def begin(seq: int, label: str) -> None:
        event = event_message(id=f"id{seq}", label=label, onset_ns=T0_NS)
        now = Moment(T0_NS + round(box.now_s * 1e9), seq)
        log.append(FeedMessage.of(event, Stamp("aa", seq + 1, now, previous=seq)))

    for seq in range(5):
        box.now_s += 60.0
        begin(seq, "Bark")
    box.ask(new)
    box.until(lambda report: report.current == new and report.state == "in_use")
    begin(5, "Siren")
    begin(6, "Bark")
    box.worker.crash()
    for _ in range(4):
        report = box.tick(60.0)
    assert report.began_before == {"bark": 5}
    assert report.before_s == pytest.approx(250, abs=60)
    assert report.began == {"siren": 1, "bark": 1}
    assert report.restarts == 1
    log.close()


STEPS = (
    *((module, name) for name in ("replace_file", "write_piece", "begun_before", "end_of_logs")),
    *((ModelFolder, name) for name in ("accept", "activate", "restore", "purge", "forget")),
    *((MemoryStore, name) for name in ("manifest", "piece")),
)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_kill_between_any_two_steps_leaves_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    left: int | None = None

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            for happens in (lambda: None, lambda: call(*arguments, **keywords)):
                result = happens()
                if left == 0:
                    left = None
                    raise KilledError
                left = left and left - 1
            return result

        return step

    for place, name in STEPS:
        monkeypatch.setattr(place, name, killing(getattr(place, name)))
    n_kills = 0
    for n_steps in range(1000):
        folder = tmp_path / str(n_steps)
        box = Box(folder)
        old = offer(box.store, folder / "old", OLD)
        new = offer(box.store, folder / "new", NEW, b"w" * (PIECE_BYTES + 1))
        box.ask(old, "0")
        box.until(lambda report, old=old: report.state == "in_use" and report.current == old)  # type: ignore[misc]
        if is_broken:
            box.worker.broken.add(NEW)
        box.ask(new)
        left = n_steps
        for _ in range(TICKS):
            try:
                report = box.tick(20.0)
            except KilledError:
                n_kills += 1
                assert box.model() in (OLD, NEW)
                box.follower = box.new()
                continue
            assert box.model() in (OLD, NEW)
            is_over = report.state == "returned" if is_broken else report.current == new
            if is_over and report.state in ("in_use", "returned"):
                break
        else:
            raise AssertionError((n_steps, box.follower.report()))
        assert box.model() == (OLD if is_broken else NEW)
        shutil.rmtree(folder)
        if left is not None:
            break
    assert n_kills > 30
