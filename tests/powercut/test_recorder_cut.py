"""A power cut of a recorder: no verdict and no clip is lost, and files and history agree.

A sample of the operations; `python tests/powercut/power_cuts.py --recorder` cuts after each.
"""

from __future__ import annotations

import pytest
import recording
from power_cuts import cut_recorder, record_recorder
from recording import Operation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.skipif(not recording.has_compiler(), reason="needs Linux and a C compiler"),
]


@pytest.fixture(scope="module")
def minute() -> list[Operation]:
    return record_recorder(60.0)


def test_no_power_cut_takes_what_the_history_has_shown(minute: list[Operation]) -> None:
    outcome = cut_recorder(minute, states=4, share=0.01)
    assert outcome.broken == []
    assert outcome.n_states >= 40


@pytest.mark.parametrize("folder", ["history", "clips/porch/2023-11-14"])
def test_a_recorder_that_does_not_sync_a_folder_is_found_out(
    minute: list[Operation], folder: str
) -> None:
    (inode,) = {
        operation.inode
        for operation in minute
        if operation.kind == "D" and operation.paths == (folder,)
    }
    careless = [one for one in minute if not (one.kind == "S" and one.inode == inode)]
    assert cut_recorder(careless, states=1, share=0.01).broken != []
