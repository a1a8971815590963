from ast_stream.machine_clock import read_clocks


class _Machine:
    """Two clocks that run in step, and a process that is not run for a while before a reading."""

    def __init__(self, pauses_ns: list[int]) -> None:
        self.now_ns = 0
        self._pauses_ns = pauses_ns

    def wall_ns(self) -> int:
        return self._read() + 1_000_000_000_000

    def monotonic_ns(self) -> int:
        return self._read()

    def _read(self) -> int:
        self.now_ns += 100 + (self._pauses_ns.pop(0) if self._pauses_ns else 0)
        return self.now_ns


def test_a_pause_between_the_two_clocks_does_not_look_like_a_clock_that_was_set() -> None:
    steady = _Machine([])
    offset_ns = read_clocks(steady.wall_ns, steady.monotonic_ns).offset_ns
    for place in range(4):
        pauses_ns = [0] * place + [200_000_000]
        paused = _Machine(pauses_ns)
        moment = read_clocks(paused.wall_ns, paused.monotonic_ns)
        assert abs(moment.offset_ns - offset_ns) < 1_000_000, place


def test_where_every_reading_is_interrupted_the_closest_pair_counts() -> None:
    busy = _Machine([9_000_000, 9_000_000, 9_000_000, 3_000_000, 2_000_000, *[9_000_000] * 20])
    moment = read_clocks(busy.wall_ns, busy.monotonic_ns)
    assert abs(moment.offset_ns - 1_000_000_000_000) <= 5_000_200
