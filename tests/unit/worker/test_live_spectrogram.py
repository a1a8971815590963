"""What viewers of a spectrogram see: the model's own frames, once, and never anybody's talk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from audit_lines import lines
from reactive_model import tones_and_noise
from worker_harness import VIEWER, Site, site

from ast_stream.audio.pcm import SampleBuffer
from ast_stream.detect.detector import HeardFrames
from ast_stream.errors import WireError
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import FeedMessage
from ast_stream.messages.spectrogram import WITHHELD, Spectrogram8, spectrogram_levels
from ast_stream.model.fbank import Fbank
from ast_stream.model.tagger import Tagger
from ast_stream.privacy.audit import Access, AuditLog
from ast_stream.privacy.speech import SpeechMask
from ast_stream.settings.schema import PrivacyMode
from ast_stream.units import FRAME_LENGTH, FRAME_SHIFT, FULL_SCALE, SAMPLE_RATE
from ast_stream.worker.spectrogram import MAX_HELD_FRAMES, LiveSpectrogram

PCM = tones_and_noise(8)
WINDOW = 2560


def log_mel(pcm: Pcm16) -> npt.NDArray[np.float32]:
    samples = torch.from_numpy(pcm.astype(np.float32) / np.float32(FULL_SCALE))
    return Fbank().frames(samples).numpy()


class Viewer:
    """What a subscriber to spectrograms receives."""

    def __init__(self, box: Site) -> None:
        self.pieces: list[tuple[int, Spectrogram8]] = []
        self.messages: list[FeedMessage] = []
        box.on_sent = self._receive

    def _receive(self, message: FeedMessage) -> None:
        if message.spectrogram is not None:
            self.messages.append(message)
            self.pieces.append((message.body["start_sample"], message.spectrogram))

    def take(self) -> tuple[int, Spectrogram8]:
        """Return first sample and levels of what has come, which must be without a hole."""
        pieces, self.pieces = self.pieces, []
        for (start, levels), (following, _) in itertools.pairwise(pieces):
            assert start + len(levels) * FRAME_SHIFT == following
        return pieces[0][0], np.concatenate([levels for _, levels in pieces])


@pytest.fixture
def box(tagger: Tagger) -> Iterator[Site]:
    with site(tagger) as made:
        yield made


def test_viewers_get_the_frames_of_the_recording_each_once(box: Site) -> None:
    viewer = Viewer(box)
    box.start_capture()
    box.start_worker("mic")
    box.play(PCM[: 2 * SAMPLE_RATE])
    assert viewer.pieces == [], "nobody watches yet"
    box.read_topics += (b"spectrogram/mic/",)
    box.play(PCM[2 * SAMPLE_RATE : 5 * SAMPLE_RATE])
    expected = spectrogram_levels(log_mel(PCM))
    start, levels = viewer.take()
    first = start // FRAME_SHIFT
    assert start % FRAME_SHIFT == 0
    assert 0 < first <= 200 + 1, "what was heard before is not shown"
    assert (levels == expected[first : first + len(levels)]).all()
    assert len(levels) > 250
    header = viewer.messages[0].body
    assert (header["frames"], header["mels"], header["withheld"]) == (25, 128, 0), "a hop"
    n_bytes = sum(map(len, (frame for message in viewer.messages for frame in message.encode())))
    assert n_bytes / len(levels) < 150, "about 13 kB for a second"

    seen_to = first + len(levels)
    box.kill_worker()
    box.start_worker("mic")
    box.play(PCM[5 * SAMPLE_RATE :])
    start, levels = viewer.take()
    again = start // FRAME_SHIFT
    assert again <= seen_to, "nothing is missing after a kill"
    assert (levels == expected[again : again + len(levels)]).all()


def test_frames_before_a_gap_and_behind_it_are_of_real_samples(box: Site) -> None:
    viewer = Viewer(box)
    box.read_topics += (b"spectrogram/",)
    box.start_capture(ring_s=2)
    box.start_worker("mic")
    box.play(PCM[: 2 * SAMPLE_RATE])
    box.capture_only(PCM[2 * SAMPLE_RATE : 6 * SAMPLE_RATE])  # more than the ring keeps
    box.tick(50, seconds=0.1)
    box.play(PCM[6 * SAMPLE_RATE :])
    gap = box.messages("gap")[0]
    lost = range(gap["start"], gap["start"] + gap["samples"])
    expected = spectrogram_levels(log_mel(PCM))
    for start, levels in viewer.pieces:
        first = start // FRAME_SHIFT
        assert (levels == expected[first : first + len(levels)]).all()
        stop = start + (len(levels) - 1) * FRAME_SHIFT + FRAME_LENGTH
        assert stop <= lost.start or start >= lost.stop
    starts = [start for start, _ in viewer.pieces]
    assert starts[0] < lost.start < starts[-1]


def test_who_watches_is_recorded_and_what_cannot_be_recorded_is_not_shown(
    box: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = Viewer(box)
    box.read_topics += (b"spectrogram/",)
    box.start_capture()
    box.start_worker("mic")
    box.play(PCM[: 2 * SAMPLE_RATE])
    start, levels = viewer.take()
    view = lines(box.folder / "audit")[0]
    assert (view.who, view.stream, view.spectrogram) == (VIEWER.name, "mic", True)
    assert (view.outcome, view.start) == ("granted", start)

    def refuse(log: AuditLog, access: Access) -> None:
        raise WireError("audio: not handed out: the access cannot be recorded now")

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "record", refuse)
        box.play(PCM[2 * SAMPLE_RATE : 4 * SAMPLE_RATE])
    assert viewer.pieces == []
    box.play(PCM[4 * SAMPLE_RATE : 6 * SAMPLE_RATE])
    again, _ = viewer.take()
    assert again > start + len(levels) * FRAME_SHIFT


@pytest.mark.parametrize("mode", ["sensor", "speech"])
def test_nobody_sees_anything_of_a_box_that_is_private(box: Site, mode: PrivacyMode) -> None:
    viewer = Viewer(box)
    box.privacy = mode
    box.read_topics += (b"spectrogram/",)
    box.start_capture()
    box.start_worker("mic")
    box.play(PCM)
    shown = [levels for _, levels in viewer.pieces]
    if mode == "sensor":
        assert shown == []
        return
    # this model knows no speech: the voice detector decides alone, and takes tones for voices
    audio = SampleBuffer(60 * SAMPLE_RATE)
    mask = SpeechMask((), WINDOW, audio.capacity)
    for at in range(0, len(PCM), 1600):
        audio.append(PCM[at : at + 1600])
        mask.hear(audio)
    start, levels = viewer.take()
    for frame, level in enumerate(levels, start // FRAME_SHIFT):
        at = frame * FRAME_SHIFT
        assert (level == WITHHELD).all() == bool(mask.withheld(at, at + FRAME_LENGTH)), frame
    counts = [message.body["withheld"] for message in viewer.messages]
    assert sum(counts) == int((levels[:, 0] == WITHHELD).sum())


def test_frames_wait_until_every_window_has_judged_them_and_talk_is_blank() -> None:
    talks = np.array([0.0, 0.9], np.float32)
    quiet = np.array([0.9, 0.001], np.float32)
    rng = np.random.default_rng(1)
    pcm = rng.normal(0, 500, 20 * SAMPLE_RATE).astype(np.int16)
    audio = SampleBuffer(60 * SAMPLE_RATE)
    mask = SpeechMask(("Bark", "Speech"), WINDOW, audio.capacity)
    live = LiveSpectrogram(mask)
    frames = log_mel(pcm)
    shown: list[tuple[int, Spectrogram8]] = []
    n_given = 0
    for end in range(WINDOW, len(pcm) + 1, WINDOW):
        audio.append(pcm[end - WINDOW : end])
        mask.hear(audio)
        n_heard = 1 + (end - FRAME_LENGTH) // FRAME_SHIFT
        for start, levels in live.add(HeardFrames("porch", "e", n_given, frames[n_given:n_heard])):
            stop = start + (len(levels) - 1) * FRAME_SHIFT + FRAME_LENGTH
            assert stop <= mask.judged_to
            shown.append((start, levels.copy()))
        n_given = n_heard
        mask.add_scores(end, talks if 8 <= end / SAMPLE_RATE < 9 else quiet)
    assert shown[0][0] == 0
    levels = np.concatenate([piece for _, piece in shown])
    assert len(levels) > 15 * 100
    is_blank = (levels == WITHHELD).all(axis=1)
    assert (is_blank == (levels == WITHHELD).any(axis=1)).all()
    for frame, blank in enumerate(is_blank):
        at = frame * FRAME_SHIFT
        assert blank == bool(mask.withheld(at, at + FRAME_LENGTH)), frame
    assert is_blank[700:900].any()
    assert not is_blank[:600].any()
    assert not is_blank[1100:].any()


def test_what_is_never_judged_does_not_pile_up() -> None:
    live = LiveSpectrogram(SpeechMask(("Speech",), WINDOW, 60 * SAMPLE_RATE))
    some = np.zeros((1000, 128), np.float32)
    for n in range(20):
        assert live.add(HeardFrames("porch", "e", 1000 * n, some)) == []
    assert len(live._waiting) == MAX_HELD_FRAMES
