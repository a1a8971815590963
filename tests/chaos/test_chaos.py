"""The short form of the chaos run, one round of faults; `make chaos` is the long one."""

import pytest
from run import chaos


@pytest.mark.timeout(480)
def test_a_box_under_faults_publishes_and_delivers_what_an_undisturbed_one_does() -> None:
    comparison = chaos(seed=7, seconds=0.0, n_streams=2, plan="kills")
    print(comparison.table())
    assert not comparison.problems, comparison.table()
