"""Claims of streams that nobody has any more are removed, and never those of one in use."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from clocks import FakeSeconds

from ast_stream.messages.pool import PoolMember, StreamClaim, StreamHistory
from ast_stream.pool.bucket import StoredHistory
from ast_stream.pool.claim_sweep import AT_ONCE, DAY_S, KEPT_S, ClaimSweep
from ast_stream.runtime.nats import NatsError

EPOCH = "a" * 32
NOW_S = 1e9


class Bucket:
    """Claims, and when they were written: days before now."""

    def __init__(self, **days: tuple[str, float]) -> None:
        self.claims = {stream: (worker, NOW_S - n * DAY_S) for stream, (worker, n) in days.items()}
        self.written: list[str] = []
        self.removed: list[str] = []
        self.refuses = False

    def members(self) -> Mapping[str, PoolMember]:
        known = {"boot": "1", "model": "m/1", "capacity": 8, "weight": 8.0}
        endpoints = {"audio": "tcp://127.0.0.1:5555", "rings": "tcp://127.0.0.1:5559"}
        return {
            name: PoolMember.model_validate({"name": name} | known | endpoints)
            for name in ("this", "other")
        }

    def streams(self) -> list[str]:
        return sorted(self.claims)

    def renewed_s(self, name: str) -> float | None:
        return NOW_S

    def stored(self, stream: str) -> StoredHistory | None:
        worker, written_s = self.claims[stream]
        claim = StreamClaim(epoch=EPOCH, term=0, worker=worker, is_continued=True)
        return StoredHistory(StreamHistory(claims=[claim]), 1, written_s)

    def write_again(self, stream: str, stored: StoredHistory) -> None:
        self.written.append(stream)

    def remove(self, stream: str, stored: StoredHistory) -> None:
        if self.refuses:
            raise NatsError("not allowed")
        self.removed.append(stream)


def sweep(bucket: Bucket, *held: str, n_turns: int = 2) -> ClaimSweep:
    clock = FakeSeconds(0.0)
    running = ClaimSweep(bucket, "this", clock)
    running.turn(held)
    assert bucket.written == bucket.removed == []  # capture processes are still coming back
    clock.now_s += DAY_S
    for _ in range(n_turns):
        running.turn(held)
    return running


def test_what_nobody_has_had_for_long_is_removed() -> None:
    days = KEPT_S / DAY_S + 1
    bucket = Bucket(gone=("this", days), recent=("this", days - 2), orphan=("nobody", days))
    assert sweep(bucket).removed == 2
    assert bucket.removed == ["gone", "orphan"]
    assert bucket.written == []


def test_a_stream_in_use_keeps_its_claims_and_they_stay_young() -> None:
    bucket = Bucket(old=("this", 400), young=("this", 0.5), theirs=("other", 400))
    sweep(bucket, "old", "young")
    assert bucket.removed == []
    assert bucket.written == ["old"]


@pytest.mark.parametrize("refuses", [True, False])
def test_a_few_are_looked_at_in_each_turn_and_none_after_a_refusal(refuses: bool) -> None:
    n_streams = AT_ONCE + 1
    bucket = Bucket(**{f"s{n}": ("this", 400) for n in range(n_streams)})
    bucket.refuses = refuses
    sweep(bucket, n_turns=1)
    assert len(bucket.removed) == (0 if refuses else AT_ONCE)
    whole = Bucket(**{f"s{n}": ("this", 400) for n in range(n_streams)})
    whole.refuses = refuses
    sweep(whole, n_turns=2)
    assert len(whole.removed) == (0 if refuses else n_streams)
