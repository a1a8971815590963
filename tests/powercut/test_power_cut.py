"""A power cut in a busy minute: nothing that anyone was told is lost, whatever was not synced.

A sample of the operations; `python tests/powercut/power_cuts.py` cuts the power after each.
"""

from __future__ import annotations

import pytest
import recording
from power_cuts import cut_everywhere, record
from recording import Operation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.skipif(not recording.has_compiler(), reason="needs Linux and a C compiler"),
]
SECONDS = 30.0
STATES = 4


@pytest.fixture(scope="module")
def each_event() -> list[Operation]:
    """What a box does that syncs each event before it is told."""
    return record("each_event", SECONDS)


def test_no_power_cut_takes_what_anyone_was_told(each_event: list[Operation]) -> None:
    outcome = cut_everywhere(each_event, syncs_first=True, states=STATES, share=0.02)
    assert outcome.broken == []
    assert outcome.n_states > 200


def test_with_a_sync_each_second_it_takes_nothing_of_which_the_audio_was_acknowledged() -> None:
    operations = record("1_s", SECONDS)
    outcome = cut_everywhere(operations, syncs_first=False, states=STATES, share=0.005)
    assert outcome.broken == []
    # and the check would notice: this is less than is promised with a sync for each event
    assert cut_everywhere(operations, syncs_first=True, states=STATES, share=0.005).broken != []


@pytest.mark.parametrize("folder", ["events", "coverage", "."])
def test_a_box_that_does_not_sync_a_folder_is_found_out(
    each_event: list[Operation], folder: str
) -> None:
    (inode,) = {
        operation.inode
        for operation in each_event
        if operation.kind == "D" and operation.paths == (folder,)
    }
    careless = [
        operation
        for operation in each_event
        if not (operation.kind == "S" and operation.inode == inode)
    ]
    assert cut_everywhere(careless, syncs_first=True, states=2, share=0.003).broken != []
