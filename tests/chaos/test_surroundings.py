"""One round of faults around the processes: sources, clocks, limits, the GPU, order of start."""

from pathlib import Path

import pytest
from run import chaos


@pytest.mark.timeout(480)
def test_faults_around_the_processes_leave_equal_events_or_gaps_that_explain_the_others(
    checkpoint: Path,
) -> None:
    comparison = chaos(seed=3, seconds=0.0, n_streams=1, plan="surroundings", checkpoint=checkpoint)
    print(comparison.table())
    assert not comparison.problems, comparison.table()
