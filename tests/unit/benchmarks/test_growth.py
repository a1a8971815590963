import random

import pytest

from ast_stream.benchmarks.growth import Figure, Limit, robust_slope


def _series(seconds: int, per_s: float, noise: float = 1.0) -> list[tuple[float, float]]:
    rng = random.Random(1)
    return [(float(at), 200 + per_s * at + rng.gauss(0, noise)) for at in range(0, seconds, 5)]


def _figure(*lives: list[tuple[float, float]], limit: Limit | None = None) -> Figure:
    figure = Figure("worker: memory", "MiB", limit or Limit(16.0, 0.05))
    for life, points in enumerate(lives):
        for at_s, value in points:
            figure.add(life, at_s, value)
    return figure


def test_a_slow_leak_under_noise_is_found() -> None:
    growth = _figure(_series(3600, per_s=0.01)).growth()
    assert growth.is_too_much
    assert growth.growth == pytest.approx(0.01 * growth.span_s, rel=0.05)


def test_noise_alone_is_no_growth() -> None:
    assert not _figure(_series(3600, per_s=0.0, noise=10.0)).growth().is_too_much


def test_what_fills_up_during_the_warm_up_is_no_growth() -> None:
    points = [(float(at), min(200.0, 2.0 * at)) for at in range(0, 600, 5)]
    assert not _figure(points).growth().is_too_much


def test_a_peak_after_an_outage_moves_no_slope() -> None:
    points = [(at, value + (500 if 2900 < at < 3100 else 0)) for at, value in _series(3600, 0.0)]
    assert abs(robust_slope(points)) * 3600 < 2


def test_each_life_of_a_process_is_judged_for_itself() -> None:
    first = _series(1200, per_s=0.0)
    second = [(at + 1200, value + 100) for at, value in first]  # a process that needs more
    assert not _figure(first, second).growth().is_too_much
    leaking = [(at + 2400, value) for at, value in _series(1200, per_s=0.1)]
    assert _figure(first, second, leaking).growth().is_too_much


def test_a_life_of_a_minute_is_not_judged() -> None:
    growth = _figure(_series(60, per_s=5.0)).growth()
    assert growth.span_s == 0
    assert not growth.is_too_much


def test_two_more_descriptors_are_no_leak_and_three_are() -> None:
    for n_more, is_leak in ((2, False), (4, True)):
        points = [(float(at), 20.0 + n_more * at / 450) for at in range(0, 605, 5)]
        assert _figure(points, limit=Limit(2.5)).growth().is_too_much is is_leak
