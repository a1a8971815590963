"""The short form of the chaos run, one round of faults; `make chaos` is the long one."""

import pytest
from run import chaos


@pytest.mark.timeout(480)
def test_a_maltreated_box_publishes_and_tells_what_an_undisturbed_one_does() -> None:
    verdict = chaos(seed=7, seconds=0.0, n_streams=2)
    print(verdict.table())
    assert not verdict.problems, verdict.table()
