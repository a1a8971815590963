"""What each process tells its service manager: ready, alive, stuck, reloading, stopping."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from capture_process import STREAM, capture_process
from pipeline import Pipeline, pipeline, wait_for
from service_manager import ServiceManager, is_ready, service_manager
from torch import Tensor
from whole_files import write_whole

from ast_stream.capture import stream as capture
from ast_stream.capture.process import run_capture
from ast_stream.capture.sources.base import SourceBlock
from ast_stream.model import loading
from ast_stream.model.tagger import Array, Tagger
from ast_stream.runtime.lifecycle import EXIT_REMOVED
from ast_stream.settings.load import load_file, load_settings
from ast_stream.settings.model import ModelSettings
from ast_stream.worker import process as worker

ENDLESS = {"type": "scene", "duration_s": 3600}


@pytest.fixture
def manager(socket_dir: Path) -> Iterator[ServiceManager]:
    with service_manager(socket_dir) as one:
        yield one


class StalledSource:
    """A live source that gives two blocks and from then on nothing, without ever failing."""

    is_live = True
    is_paced = True

    def __init__(self) -> None:
        self._n_left = 2
        self.has_stalled = threading.Event()

    def open(self) -> None:
        """Be there at once."""

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return a block, or nothing for ever."""
        if self._n_left == 0:
            self.has_stalled.set()
            time.sleep(min(timeout_s, 0.02))
            return None
        self._n_left -= 1
        pcm = np.full((1_600, 1), 1_000, np.int16)
        return SourceBlock(pcm, 16_000, time.time_ns(), time.monotonic_ns())

    def close(self) -> None:
        """Have nothing to free."""


def test_capture_is_ready_tells_its_level_and_feeds_the_watchdog(manager: ServiceManager) -> None:
    with capture_process(ENDLESS) as process:
        process.start(manager.environ)
        ready = manager.wait_for(is_ready, "READY=1")
        assert "STATUS=" in ready
        status = manager.wait_for(lambda message: "dBFS" in message, "status with a level")
        assert status.startswith(f"STATUS=capturing {STREAM}, -")
        manager.wait_for(lambda message: message == "WATCHDOG=1", "WATCHDOG=1")
        assert process.terminate() == 0
        assert manager.wait_for(lambda message: "STOPPING=1" in message, "STOPPING=1")


def test_capture_that_waits_for_its_source_says_so_and_is_alive(manager: ServiceManager) -> None:
    with capture_process({"type": "file", "path": "/nowhere/a.wav"}) as process:
        process.start(manager.environ)
        waiting = manager.wait_for(is_ready, "READY=1")
        if "No such file" not in waiting:  # asked before the first attempt
            waiting = manager.wait_for(lambda message: "No such file" in message, "status")
        assert f"STATUS=waiting for {STREAM}: " in waiting
        manager.wait_for(lambda message: message == "WATCHDOG=1", "WATCHDOG=1")
        assert process.terminate() == 0


def test_capture_whose_source_stalls_and_claims_to_work_starves_the_watchdog(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in manager.environ.items():
        monkeypatch.setenv(key, value)
    source = StalledSource()
    monkeypatch.setattr(capture, "make_source", lambda settings: source)
    monkeypatch.setattr(capture, "PROGRESS_LIMIT_S", 1.0)
    with capture_process({"type": "microphone"}) as files:
        stop = threading.Event()
        settings = load_settings(files.config)
        thread = threading.Thread(target=run_capture, args=(settings, [STREAM], stop))
        thread.start()
        try:
            manager.wait_for(lambda message: message == "WATCHDOG=1", "WATCHDOG=1 while audio came")
            assert source.has_stalled.wait(60)
            manager.wait_for_silence("WATCHDOG=1", 1.0)
        finally:
            stop.set()
            thread.join()


def test_worker_is_ready_after_its_self_check_and_tells_what_it_hears(
    checkpoint: Path, manager: ServiceManager
) -> None:
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}) as run:
        run.env = manager.environ
        run.start_worker()
        manager.wait_for(is_ready, "READY=1")
        statuses = [message.split("STATUS=")[1] for message in manager.messages]
        assert statuses[:2] == ["loading the model", "checking the model against known scores"]
        assert all("EXTEND_TIMEOUT_USEC=180000000" in message for message in manager.messages[:2])
        assert "self-check passed" in run.log("worker")
        manager.wait_for(lambda message: message == "WATCHDOG=1", "WATCHDOG=1 with nothing due")
        run.env = {}
        run.start_capture("porch")
        line = manager.wait_for(lambda message: "listening to porch, -" in message, "status")
        assert " dBFS, lag " in line
        assert line.endswith(("event open", "events open"))
        manager.wait_for(
            lambda message: message == "WATCHDOG=1", "WATCHDOG=1 while windows are scored"
        )
        assert run.stop("worker") == 0
        manager.wait_for(lambda message: "STOPPING=1" in message, "STOPPING=1")


class HangingTagger(Tagger):
    """A tagger whose second batch does not come back before `release` is set."""

    release = threading.Event()
    n_batches = 0

    def window_scores(self, windows: Tensor) -> Array:
        """Score, or hang."""
        type(self).n_batches += 1
        if self.n_batches == 2:
            assert self.release.wait(60)
        return super().window_scores(windows)


def test_worker_whose_model_hangs_starves_the_watchdog(
    checkpoint: Path, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_hanging(model: ModelSettings, on_batch: Callable[[int, float], None]) -> Tagger:
        tagger = loading.load_model(model, on_batch)
        tagger.__class__ = HangingTagger
        return tagger

    monkeypatch.setattr(worker, "load_model", load_hanging)
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}) as run:
        for key, value in manager.environ.items():
            monkeypatch.setenv(key, value)
        stop, reload = threading.Event(), threading.Event()
        loaded = load_file(run.config)
        thread = threading.Thread(target=worker.run_worker, args=(loaded, stop, reload))
        thread.start()
        try:
            manager.wait_for(
                lambda message: message == "WATCHDOG=1", "WATCHDOG=1 while nothing is due"
            )
            run.env = {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": ""}
            run.start_capture("porch")
            wait_for(lambda: HangingTagger.n_batches == 2, "the model to hang")
            manager.wait_for_silence("WATCHDOG=1", 1.0)
            HangingTagger.release.set()
            manager.wait_for(
                lambda message: message == "WATCHDOG=1", "WATCHDOG=1 of a model that goes on"
            )
        finally:
            HangingTagger.release.set()
            stop.set()
            thread.join()


def rewrite(run: Pipeline, **sections: object) -> None:
    settings = json.loads(run.config.read_text())
    run.config.write_text(json.dumps(settings | sections))


def test_worker_takes_new_thresholds_and_names_what_needs_a_restart(
    checkpoint: Path, manager: ServiceManager
) -> None:
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}) as run:
        run.env = manager.environ
        process = run.start_worker()
        manager.wait_for(is_ready, "READY=1")
        model = json.loads(run.config.read_text())["model"]
        rewrite(
            run,
            detection={"defaults": {"onset_threshold": 0.9}},
            logging={"level": "debug"},
            model=model | {"hop_s": 0.5},
        )
        process.send_signal(signal.SIGHUP)
        reloading = manager.wait_for(lambda message: "RELOADING=1" in message, "RELOADING=1")
        assert "MONOTONIC_USEC=" in reloading
        reloaded = manager.wait_for(is_ready, "READY=1 after the reload")
        assert "detection.defaults.onset_threshold, logging.level changed" in reloaded
        assert "a restart is needed for model.hop_s" in reloaded

        run.config.write_text(run.config.read_text().replace("onset_threshold", "onset_treshold"))
        process.send_signal(signal.SIGHUP)
        refused = manager.wait_for(
            lambda message: is_ready(message) and "kept as they were" in message, "refusal"
        )
        assert "did you mean 'onset_threshold'?" in refused
        assert f"{run.config}:1: detection.defaults.onset_treshold" in run.log("worker")
        manager.wait_for(lambda message: message == "WATCHDOG=1", "WATCHDOG=1: it goes on")
        assert run.stop("worker") == 0


def test_capture_takes_a_new_log_level_and_names_what_needs_a_restart(
    manager: ServiceManager,
) -> None:
    with capture_process(ENDLESS) as process:
        process.start(manager.environ)
        manager.wait_for(is_ready, "READY=1")
        settings = json.loads(process.config.read_text())
        settings["transport"] = {"feed": "tcp://127.0.0.1:1"}
        settings["detection"] = {"gate_dbfs": -50}  # no concern of this process
        process.config.write_text(json.dumps(settings | {"logging": {"level": "warning"}}))
        assert process.process is not None
        process.process.send_signal(signal.SIGHUP)
        reloaded = manager.wait_for(
            lambda message: is_ready(message) and "read again" in message,
            "READY=1 after the reload",
        )
        assert reloaded.endswith("logging.level changed; a restart is needed for transport.feed")
        assert process.terminate() == 0


def test_capture_of_another_source_begins_it_in_the_same_process(manager: ServiceManager) -> None:
    with capture_process(ENDLESS) as process:
        process.start(manager.environ)
        manager.wait_for(is_ready, "READY=1")
        before = process.wait_for_state("listening").block.epoch
        settings = json.loads(process.config.read_text())
        settings["streams"][0]["source"] = ENDLESS | {"seed": 7}
        process.config.write_text(json.dumps(settings))
        assert process.process is not None
        process.process.send_signal(signal.SIGHUP)
        reloaded = manager.wait_for(
            lambda message: is_ready(message) and "read again" in message, "the reload"
        )
        assert reloaded.endswith("streams.porch.source.seed changed")
        process.wait_for(lambda reply: reply.block.epoch != before)
        assert process.terminate() == 0


def test_capture_of_another_device_begins_again_in_place_of_the_process(
    manager: ServiceManager,
) -> None:
    with capture_process({"type": "stdin"}) as process:
        process.start(manager.environ, stdin=subprocess.PIPE)
        manager.wait_for(is_ready, "READY=1")
        settings = json.loads(process.config.read_text())
        settings["streams"][0]["source"]["rate"] = 8000
        process.config.write_text(json.dumps(settings))
        assert process.process is not None
        for _ in range(2):  # the second comes while the new one starts
            process.process.send_signal(signal.SIGHUP)
        reloaded = manager.wait_for(
            lambda message: is_ready(message) and "read again" in message, "the reload"
        )
        assert reloaded.endswith("streams.porch.source.rate changed")
        manager.wait_for(is_ready, "READY=1 of the new one")
        assert "STOPPING=1" not in "\n".join(manager.messages)
        assert process.process.poll() is None
        assert process.process.stdin is not None
        process.process.stdin.close()
        assert process.terminate() == 0


def test_capture_whose_stream_was_removed_ends_with_a_code_of_its_own(
    manager: ServiceManager,
) -> None:
    with capture_process(ENDLESS) as process:
        process.start(manager.environ)
        manager.wait_for(is_ready, "READY=1")
        settings = json.loads(process.config.read_text())
        settings["streams"][0]["name"] = "other"
        process.config.write_text(json.dumps(settings))
        assert process.process is not None
        process.process.send_signal(signal.SIGHUP)
        assert process.process.wait(60) == EXIT_REMOVED


def test_settings_of_other_classes_than_the_model_has_are_refused(
    checkpoint: Path, manager: ServiceManager
) -> None:
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}) as run:
        run.env = manager.environ
        process = run.start_worker()
        manager.wait_for(is_ready, "READY=1")
        rewrite(run, detection={"classes": {"Brak": {"enabled": False}}})
        process.send_signal(signal.SIGHUP)
        refused = manager.wait_for(
            lambda message: is_ready(message) and "kept as they were" in message, "refusal"
        )
        assert "unknown class 'Brak'; did you mean 'Bark'?" in refused
        assert run.stop("worker") == 0


RULES = "version: 1\ngroups: [{name: g, rules: [{alert: bark, match: {class: Bark}}]}]\n"


def test_alerts_is_ready_waits_for_the_worker_and_takes_new_rules(
    checkpoint: Path, manager: ServiceManager
) -> None:
    alerts = {"rules": ["rules.yaml"]}
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}, alerts=alerts) as run:
        rules = run.folder / "rules.yaml"
        rules.write_text(RULES)
        run.env = manager.environ
        process = run.start("alerts", "alerts")
        ready = manager.wait_for(is_ready, "READY=1")
        assert ready.endswith("STATUS=1 rule, 0 to deliver, waiting for the worker")
        manager.wait_for(lambda message: message == "WATCHDOG=1", "WATCHDOG=1 while it waits")
        run.env = {}
        run.start_worker()
        manager.wait_for(
            lambda message: message == "STATUS=1 rule, 0 to deliver",
            "status with the worker connected",
        )

        write_whole(rules, RULES.replace("}]}]", "}, {alert: siren, match: {class: Siren}}]}]"))
        process.send_signal(signal.SIGHUP)
        manager.wait_for(lambda message: "RELOADING=1" in message, "RELOADING=1")
        manager.wait_for(lambda message: "2 rules" in message, "status with the new rules")
        write_whole(rules, RULES.replace("alert:", "alrt:"))
        process.send_signal(signal.SIGHUP)
        refused = manager.wait_for(
            lambda message: is_ready(message) and "kept as they were" in message, "refusal"
        )
        assert f"{rules}:2:" in refused
        manager.wait_for(lambda message: "2 rules" in message, "status with the rules before")
        assert run.stop("alerts") == 0
        manager.wait_for(lambda message: "STOPPING=1" in message, "STOPPING=1")
