"""The short form of the chaos run, one round of faults; `make chaos` is the long one."""

from pathlib import Path

import pytest
from run import chaos


@pytest.mark.timeout(480)
def test_a_box_under_faults_publishes_and_delivers_what_an_undisturbed_one_does(
    checkpoint: Path,
) -> None:
    comparison = chaos(seed=7, seconds=0.0, n_streams=2, plan="kills", checkpoint=checkpoint)
    print(comparison.table())
    assert not comparison.problems, comparison.table()
