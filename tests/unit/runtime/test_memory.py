"""Free memory goes back to the system, now and then."""

import os

from ast_stream.benchmarks.box import facts_of
from ast_stream.runtime.memory import EVERY_S, FIRST_S, FreeMemory, malloc_trim


def test_free_memory_is_given_back_soon_after_the_start_and_then_once_a_minute() -> None:
    at_s, trims = 100.0, []
    memory = FreeMemory(lambda: trims.append(at_s), lambda: at_s)
    for _ in range(1000):
        memory.turn()
        at_s += 0.5
    assert trims[0] == 100.0 + FIRST_S
    assert trims == [trims[0] + EVERY_S * number for number in range(len(trims))]
    assert len(trims) == 8


def test_what_lies_free_between_pieces_in_use_is_given_back() -> None:
    def memory_mib() -> float:
        facts = facts_of(os.getpid())
        assert facts is not None
        return facts.memory_mib

    # glibc maps and unmaps single large blocks until one was freed: these come from its heap
    bytes(400_000)
    pieces = [bytes([number % 255 + 1]) * 100_000 for number in range(600)]
    kept = [b"x" * 1000 for _ in range(10)] + pieces[::10]
    del pieces
    before = memory_mib()
    malloc_trim()()
    assert len(kept) == 70
    assert memory_mib() < before - 20
