"""A disk that refuses operations by turns: nothing is lost that anyone was told, nor restarted."""

from __future__ import annotations

import logging
from pathlib import Path

import promises
import pytest
import recording
from disk_states import Disk, Loss, put
from power_cuts import RESTARTED_NS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.skipif(not recording.has_compiler(), reason="needs Linux and a C compiler"),
]
SECONDS = "24"
N_REFUSED = 20  # at least, of about sixty turns


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "SHORT"])
def test_once_the_disk_works_again_it_has_everything(
    error: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    (tmp_path / "box").mkdir()
    script = str(recording.HERE / "full_disk.py")
    record = recording.under_shim(tmp_path, tmp_path / "box", script, error, SECONDS)
    disk, told, n_refused = Disk(), promises.Told(), 0
    for operation in recording.read(record):
        if operation.kind != "M":
            disk.apply(operation)
        elif "refused" in operation.mark:
            n_refused = operation.mark["refused"]
        else:
            told.note(operation.mark)
    assert n_refused >= N_REFUSED
    losses: tuple[Loss, ...] = ("nothing", "everything")  # that was not synced
    for loss in losses:
        folder = tmp_path / loss
        folder.mkdir()
        put(disk.after_cut(loss, seed=0), folder)
        assert promises.broken(folder, told, RESTARTED_NS, syncs_first=True) == [], loss
