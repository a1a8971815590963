"""The short form of proof.py: two boxes and a centre, with a few faults of each kind."""

from __future__ import annotations

import pytest
from nats_server import needs_nats
from proof import Plan, prove


@pytest.mark.slow
@pytest.mark.timeout(600)  # boxes start, and stop, on a machine that may be busy
@needs_nats
def test_table_of_the_centre_equals_the_logs_of_its_boxes() -> None:
    plan = Plan(
        broker="nats",
        boxes=2,
        seconds=12.0,
        cut_s=6.0,
        kills=4,
        consumer_kills=2,
        broker_kills=1,
        worker_kills=1,
        database_kills=1,
        short_cuts=1,
        stalls=1,
        pauses=0,
        capture_kills=1,
        loses_files=False,
        streams=1,
        seed=3,
    )
    result = prove(plan)
    found = result.comparison
    assert found.missing == []
    assert found.different == []
    assert found.surplus == []
    assert result.is_right, found
    assert found.expected["event"] > 20
    assert result.killed["forwarder"] == 4
