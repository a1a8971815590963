"""A loss stays in the health of its stream for some minutes, however many losses there are."""

from __future__ import annotations

import numpy as np
import pytest
from reactive_model import tones_and_noise
from worker_harness import site

from ast_stream.messages.event import Gap
from ast_stream.messages.status import RECENT_LOSS_S, Health, RecentLoss
from ast_stream.model.tagger import Tagger
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE
from ast_stream.worker.reassembly import CAPTURE_RESTART
from ast_stream.worker.recent_losses import RecentLosses


def gap(samples: int, reason: str = "overflow") -> Gap:
    return Gap("mic", "e1", 0, samples, reason)


def at(seconds: float) -> int:
    return round((1000 + seconds) * NS_PER_SECOND)


def test_losses_are_added_up_and_forgotten_after_some_minutes() -> None:
    losses = RecentLosses()
    assert losses.summary(at(0)) is None
    losses.add(gap(SAMPLE_RATE), at(0))
    losses.add(gap(SAMPLE_RATE // 2, "ring_overrun"), at(60))
    found = losses.summary(at(70))
    assert found == RecentLoss(seconds=1.5, ago_s=10.0, reasons=["overflow", "ring_overrun"])
    found = losses.summary(at(RECENT_LOSS_S + 1))
    assert found is not None
    assert (found.seconds, found.reasons) == (0.5, ["ring_overrun"])
    assert losses.summary(at(RECENT_LOSS_S + 61)) is None


def test_a_capture_process_that_was_away_has_lost_nothing() -> None:
    losses = RecentLosses()
    losses.add(gap(SAMPLE_RATE, CAPTURE_RESTART), at(0))
    assert losses.summary(at(0)) is None


def test_a_device_that_overflows_at_each_block_takes_bounded_memory() -> None:
    losses = RecentLosses()
    for n in range(20_000):
        losses.add(gap(160), at(n / 10))
    assert len(losses._losses) <= RECENT_LOSS_S + 1
    found = losses.summary(at(2000))
    assert found is not None
    assert found.seconds == pytest.approx(RECENT_LOSS_S * 10 * 0.01, rel=0.02)


def test_health_on_the_wire_names_a_loss_only_where_there_was_one() -> None:
    whole = Health(stream="mic", state="listening")
    assert "recent_loss" not in whole.to_json()
    lossy = whole.model_copy(
        update={"recent_loss": RecentLoss(seconds=3.25, ago_s=12.0, reasons=["overflow"])}
    )
    assert Health.from_json(lossy.to_json(), "health") == lossy
    assert lossy.recent_loss is not None
    assert lossy.recent_loss.text == (
        "lost 3.25 s of audio in the last 5 minutes, the last 12 s ago: overflow"
    )


def test_a_stream_that_lost_audio_and_is_heard_again_still_says_so(tagger: Tagger) -> None:
    pcm = tones_and_noise(10.0)
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm)
        box.capture().ring.skip(SAMPLE_RATE, "overflow")
        box.play(np.zeros(3 * SAMPLE_RATE, np.int16))
        (stream,) = box.worker._streams
        health = stream.health(box.now_s)
        assert health.state in ("listening", "warming", "gated")
        assert health.recent_loss is not None
        assert health.recent_loss.seconds == 1.0
        assert health.recent_loss.reasons == ["overflow"]
