"""What may be speech is withheld, whatever range is asked for, and other sound is not."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.audio.activity import active_frames
from ast_stream.audio.pcm import SampleBuffer
from ast_stream.detect import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.model.tagger import load_tagger
from ast_stream.privacy.speech import MARGIN_S, SpeechMask
from ast_stream.privacy.voice import talk_frames
from ast_stream.soundscape.backgrounds import speak, speech_is_available
from ast_stream.units import SAMPLE_RATE

LABELS = ("Bark", "Speech")
FRAME = 2560
HELD_S = 60
SPEECH, NO_SPEECH = (np.array(scores, np.float32) for scores in ((0.0, 0.9), (0.9, 0.001)))


def noise(seconds: float, seed: int = 0) -> Pcm16:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 500, round(seconds * SAMPLE_RATE)).astype(np.int16)


def voice(seconds: float, pitch_hz: float = 120.0) -> Pcm16:
    """Return a buzz of a voice's pitch and overtones, four syllables a second."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * pitch_hz * n * time) / n for n in range(1, 20))
    syllables = np.maximum(0, np.sin(2 * np.pi * 4 * time))
    return (3000 * buzz * syllables).astype(np.int16)


class Stream:
    """A stream that is played and scored."""

    def __init__(self, labels: tuple[str, ...] = LABELS) -> None:
        self.audio = SampleBuffer(HELD_S * SAMPLE_RATE)
        self.mask = SpeechMask(labels, FRAME, self.audio.capacity)

    def play(self, pcm: Pcm16, scores: npt.NDArray[np.float32] | None = NO_SPEECH) -> None:
        for start in range(0, len(pcm), 1600):
            self.audio.append(pcm[start : start + 1600])
            self.mask.hear(self.audio)
        first = (self.audio.end - len(pcm)) // FRAME * FRAME + FRAME
        if scores is not None:
            for end in range(first, self.audio.end + 1, FRAME):
                self.mask.add_scores(end, scores)

    def is_withheld(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.bool_]:
        stop = self.audio.end if stop is None else stop
        flags = np.zeros(stop - start, np.bool_)
        for begin, end in self.mask.withheld(start, stop):
            assert start <= begin < end <= stop
            flags[begin - start : end - start] = True
        return flags


def seconds(value: float) -> int:
    return round(value * SAMPLE_RATE)


def test_what_the_model_calls_speech_is_withheld_with_a_second_around_it() -> None:
    stream = Stream()
    stream.play(noise(10))
    stream.play(noise(2), SPEECH)
    stream.play(noise(10))
    flags = stream.is_withheld()
    assert flags[seconds(10 - MARGIN_S) : seconds(12 + MARGIN_S)].all()
    assert not flags[: seconds(8.5)].any()
    assert not flags[seconds(13.5) : seconds(20)].any()


def test_what_is_not_judged_yet_is_withheld() -> None:
    stream = Stream()
    stream.play(noise(10))
    stream.play(noise(5), None)
    flags = stream.is_withheld()
    assert flags[seconds(10) - 1600 :].all()
    assert not flags[: seconds(8)].any()


def test_a_voice_is_withheld_where_the_model_does_not_rule_speech_out() -> None:
    for scores, expected in ((NO_SPEECH, False), (np.array([0.0, 0.02], np.float32), True)):
        stream = Stream()
        stream.play(noise(5))
        stream.play(voice(2), scores)
        stream.play(noise(5))
        assert stream.is_withheld()[seconds(5) : seconds(7)].all() == expected
        assert not stream.is_withheld()[: seconds(3.5)].any()


def test_a_model_without_speech_leaves_it_to_the_voice_detector() -> None:
    stream = Stream(("Bark", "Siren"))
    stream.play(noise(5))
    stream.play(voice(2))
    stream.play(noise(6))
    assert stream.is_withheld()[seconds(4.5) : seconds(7.5)].all()
    assert not stream.is_withheld()[: seconds(3)].any()
    assert not stream.is_withheld()[seconds(9) : seconds(11)].any()


@given(st.lists(st.integers(0, seconds(12)), min_size=2, max_size=6, unique=True))
def test_no_choice_of_ranges_gets_more(cuts: list[int]) -> None:
    stream = WITH_SPEECH
    whole = stream.is_withheld()
    for start, stop in itertools.pairwise(sorted(cuts)):
        np.testing.assert_array_equal(stream.is_withheld(start, stop), whole[start:stop])


def _with_speech() -> Stream:
    stream = Stream()
    stream.play(noise(5))
    stream.play(voice(1), SPEECH)
    stream.play(noise(6))
    return stream


WITH_SPEECH = _with_speech()


def test_what_was_released_is_never_withheld_while_it_is_held() -> None:
    stream = Stream()
    rng = np.random.default_rng(3)
    released = np.zeros(0, np.bool_)
    for number in range(60):
        is_speech = rng.random() < 0.3
        pcm = voice(1.5) if is_speech else noise(1.5, seed=number)
        stream.play(pcm, SPEECH if is_speech else NO_SPEECH)
        free = ~stream.is_withheld()
        held_from = seconds(max(0.0, stream.audio.end / SAMPLE_RATE - HELD_S + 1))
        was = released[held_from : len(released)]
        assert not (was & ~free[held_from : len(released)]).any()
        released = free
    assert released.any()


def test_audio_is_released_when_every_window_that_hears_it_is_scored() -> None:
    """A word at the end of a long window may not count there, and count in those that follow."""
    width, hop = seconds(10), seconds(0.5)
    stream = Stream()
    stream.mask = SpeechMask(LABELS, width, stream.audio.capacity)
    stream.play(noise(30), None)
    word = seconds(20)
    released = np.zeros(stream.audio.end, np.bool_)
    for end in range(width, stream.audio.end + 1, hop):
        is_heard = end - width < word < end - seconds(3)
        stream.mask.add_scores(end, SPEECH if is_heard else NO_SPEECH)
        released |= ~stream.is_withheld()
    assert released[: seconds(8)].any()
    assert not (released & stream.is_withheld()).any()
    assert not released[word - seconds(MARGIN_S) : word + seconds(MARGIN_S)].any()


def test_windows_behind_a_gap_do_not_judge_what_came_before_it() -> None:
    width, hop = seconds(10), seconds(0.5)
    stream = Stream()
    stream.mask = SpeechMask(LABELS, width, stream.audio.capacity)
    stream.play(noise(20.4), None)
    for end in range(width, seconds(20) + 1, hop):
        stream.mask.add_scores(end, NO_SPEECH)
    behind = seconds(21.4)
    stream.audio.append_silence(seconds(1))
    stream.mask.interrupt(behind)
    stream.play(noise(20), None)
    for end in range(behind + hop, stream.audio.end + 1, hop):
        stream.mask.add_scores(end, NO_SPEECH)
    flags = stream.is_withheld()
    assert flags[seconds(20) - seconds(MARGIN_S) : behind + seconds(MARGIN_S)].all()
    assert not flags[: seconds(18.9)].any()
    assert not flags[seconds(22.5) : seconds(30)].any()


def test_a_new_epoch_forgets_and_one_resumed_withholds_its_beginning() -> None:
    stream = Stream()
    stream.play(noise(10))
    stream.audio.restart(seconds(100))
    stream.mask.restart(seconds(100))
    stream.play(noise(6))
    flags = stream.is_withheld(seconds(100))
    assert flags[: seconds(1)].all()
    assert not flags[seconds(1.5) : seconds(4)].any()


def test_gaps_are_withheld_with_what_is_around_them() -> None:
    stream = Stream()
    stream.play(noise(5))
    stream.audio.append_silence(seconds(3))
    stream.play(noise(6))
    flags = stream.is_withheld()
    assert flags[seconds(4.1) : seconds(8.9)].all()
    assert not flags[: seconds(3.5)].any()


def test_alarms_and_noise_are_no_voice() -> None:
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    alarm = (9000 * np.sin(2 * np.pi * 3100 * time)).astype(np.int16)
    for pcm in (noise(3), alarm, alarm + noise(3), np.zeros(48_000, np.int16)):
        assert not talk_frames(pcm).any()
    for pitch_hz in (80.0, 120.0, 200.0, 300.0):
        assert talk_frames(voice(3, pitch_hz)).mean() > 0.9


def sentences() -> npt.NDArray[np.float32]:
    """Return four sentences by four voices, with quiet before and after."""
    quiet = np.zeros(5 * SAMPLE_RATE, np.float32)
    said = [speak(np.random.default_rng(seed)) for seed in range(4)]
    pause = quiet[: SAMPLE_RATE // 2]
    return np.concatenate([quiet, *itertools.chain(*zip(said, [pause] * 4, strict=True)), quiet])


@pytest.mark.slow
@pytest.mark.skipif(not speech_is_available(), reason="needs espeak-ng")
@pytest.mark.parametrize("snr_db", [20.0, 12.0])
def test_the_bundled_model_protects_speech_in_noise(snr_db: float) -> None:
    spoken = sentences()
    active = active_frames(spoken)
    power = float(np.mean(spoken[: len(active) * 160].reshape(-1, 160)[active] ** 2))
    background = np.random.default_rng(4).normal(0, 1, len(spoken)).astype(np.float32)
    mixed = spoken + background * np.sqrt(power / 10 ** (snr_db / 10))
    pcm = (mixed / np.abs(mixed).max() * 12_000).astype(np.int16)
    audio = SampleBuffer(HELD_S * SAMPLE_RATE)
    tagger = load_tagger("bundled", device="cpu", precision="fp32", attention="math")
    masks: list[SpeechMask] = []
    detector = Detector(
        tagger,
        hop_s=0.5,
        on_scores=lambda found: masks[0].add_scores(found.end_sample, found.scores),
    )
    geometry = detector.parameters.geometry
    masks.append(SpeechMask(tagger.labels, geometry.window, audio.capacity))
    detector.open("a", "ab" * 8)
    for start in range(0, len(pcm), 1600):
        audio.append(pcm[start : start + 1600])
        masks[0].hear(audio)
        detector.push("a", start, pcm[start : start + 1600])
        detector.run()
    withheld = np.zeros(len(pcm), np.bool_)
    for begin, end in masks[0].withheld(0, len(pcm)):
        withheld[begin:end] = True
    frames: npt.NDArray[np.bool_] = np.all(withheld[: len(active) * 160].reshape(-1, 160), axis=1)
    assert frames[active].mean() > 0.99
    assert not frames.all()  # the pauses before and after are not
