"""The reference of metrics is what real processes show to Prometheus."""

from __future__ import annotations

import make_reference
import pytest


@pytest.mark.slow
def test_page_of_metrics_is_current() -> None:
    page = make_reference.REFERENCE / "metrics.md"
    expected = make_reference.with_generated(page, make_reference.metrics_page())
    assert page.read_text() == expected, "run: make docs"
