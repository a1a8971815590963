"""A box of three days: a model that calls every loud sound a bark, its history, and its clips.

Noise stands for barks and tones for what is taken for them. The frame head of the tiny model is
solved for loudness, so everything, from the checkpoint's files to the events, is real.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.detect import Detector
from ast_stream.history.database import History
from ast_stream.history.records import ClipRecord, Verdict, VerdictRecord
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, EventMessage, FeedMessage, Stamp
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.tagger import Tagger
from ast_stream.sample_clock import SampleClock
from ast_stream.settings.load import load_settings
from ast_stream.units import SAMPLE_RATE, samples_to_seconds

SURE = 6.0  # logit of a patch that is wholly loud, and of one that is not at all
DAY_NS = 86_400 * 10**9
FIRST_DAY_NS = 1_790_000_000 * 10**9
PRE_S = 3.0
EVERY_S = 5.0
CONFIG = """\
streams: [{{name: porch, source: {{type: stdin}}}}]
state_dir: {state}
model: {{checkpoint: {model}, device: cpu, precision: fp32, attention: math}}
detection:
  defaults: {{onset_threshold: 0.5, confirm_s: 0.3, hold_s: 0.5}}
  classes: {{siren: {{enabled: false}}}}
recorder: {{clips: [{{classes: all, when: event}}]}}
"""


def barks_at_everything() -> Checkpoint:
    """Return a checkpoint whose frames say Bark where something is loud, whatever it is."""
    dims = replace(TINY_DIMS, max_frames=256)
    checkpoint = tiny_checkpoint(0, dims, FrameDecisions(), background=["Background"])
    tagger = Tagger(checkpoint, "cpu", "fp32", "math")
    pcm, _ = day(16, seed=99)
    waveform = torch.from_numpy(pcm.astype(np.float32) / 32_768)
    size = tagger.window_samples
    windows = tagger.windows(
        torch.stack([waveform[at : at + size] for at in range(0, len(pcm) - size, 8_000)])
    )
    patches = np.concatenate([tagger.embedding(window)[1] for window in windows])
    energies = np.sort(windows.numpy(), axis=2)[:, :, -8:].mean(axis=2)  # a tone is in few bands
    loud = (energies.max() + energies.min()) / 2
    starts = np.arange(dims.n_time_patches) * dims.time_stride
    is_loud = np.stack(
        [(energies[:, at : at + dims.patch_size] > loud).mean(axis=1) for at in starts], axis=1
    ).ravel()
    design = np.column_stack((patches, np.ones(len(patches))))
    solved = np.linalg.lstsq(design, SURE * (2 * is_loud - 1), rcond=None)[0].astype(np.float32)
    state = dict(checkpoint.state_dict)
    state["frame_head.weight"] = torch.zeros_like(state["frame_head.weight"])
    state["frame_head.weight"][0] = torch.from_numpy(solved[:-1])
    state["frame_head.bias"] = torch.full_like(state["frame_head.bias"], -SURE)
    state["frame_head.bias"][0] = float(solved[-1]) + SURE / 2
    return replace(checkpoint, state_dict=state)


def day(n_sounds: int, seed: int) -> tuple[Pcm16, npt.NDArray[np.bool_]]:
    """Return near silence with a sound every five seconds, and which of them are noise."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(0, 5, round((n_sounds * EVERY_S + 4) * SAMPLE_RATE))
    is_noise = np.arange(n_sounds) % 2 == 0
    for number, noise in enumerate(is_noise):
        start = round((number * EVERY_S + 3.5 + rng.uniform(0, 0.5)) * SAMPLE_RATE)
        n = round(rng.uniform(0.8, 1.4) * SAMPLE_RATE)
        tone = 12_000 * np.sin(2 * np.pi * rng.uniform(1_000, 1_200) * np.arange(n) / SAMPLE_RATE)
        audio[start : start + n] += rng.normal(0, 9_000, n) if noise else tone
    return np.clip(audio, -32_000, 32_000).astype(np.int16), is_noise


def make_box(folder: Path, n_days: int = 3, n_sounds: int = 10) -> tuple[Path, dict[str, bool]]:
    """Write a model, a configuration, and what a recorder leaves of some days.

    Returns:
        The configuration, and by event whether it was a bark.
    """
    model, state = folder / "model", folder / "state"
    save_checkpoint(model, barks_at_everything())
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(state=state, model=model))
    settings = load_settings(config)
    tagger = Tagger(barks_at_everything(), "cpu", "fp32", "math")
    truth: dict[str, bool] = {}
    (state / "history").mkdir(parents=True)
    with History(state / "history" / "history.sqlite") as history:
        for number in range(n_days):
            pcm, is_noise = day(n_sounds, seed=number)
            epoch = f"{number:032x}"
            clock = SampleClock.from_start(FIRST_DAY_NS + number * DAY_NS)
            detector = Detector(tagger, settings.detection, hop_s=settings.model.hop_s)
            detector.open("porch", epoch)
            detector.push("porch", 0, pcm)
            events = detector.run() + detector.flush("porch")
            history.add_messages(_messages(events, clock, len(pcm), tagger.hash))
            for event in events:
                if event.type == "end":
                    sound = int((samples_to_seconds(event.onset_sample) - 3) // EVERY_S)
                    truth[event.id] = bool(is_noise[sound])
                    history.add_clip(_write_clip(state / "clips", event, pcm, clock))
    return config, truth


def judge_all(config: Path, truth: dict[str, bool]) -> None:
    """Say of each event whether it was right."""
    path = Path(load_settings(config).state_dir) / "history" / "history.sqlite"
    with History.open_beside(path) as history:
        for number, (event_id, is_right) in enumerate(truth.items()):
            verdict: Verdict = "right" if is_right else "wrong"
            history.add_verdict(VerdictRecord(event_id, verdict, None, "ann", number))


def _messages(
    events: list[Event], clock: SampleClock, audio_end: int, model: str
) -> list[FeedMessage]:
    messages = []
    for seq, event in enumerate(events, 1):
        scored = clock.moment(min(event.at_sample, audio_end))
        body = EventMessage.of(
            event, clock, labels={}, audio_end=audio_end, scored=scored, model=model
        )
        stamp = Stamp("b1", seq, Moment(scored.wall_ns, scored.monotonic_ns), seq - 1)
        messages.append(FeedMessage.of(body, stamp))
    return messages


def _write_clip(folder: Path, event: Event, pcm: Pcm16, clock: SampleClock) -> ClipRecord:
    assert event.offset_sample is not None
    start = max(0, event.onset_sample - round(PRE_S * SAMPLE_RATE))
    stop = min(len(pcm), event.offset_sample + round(PRE_S * SAMPLE_RATE))
    path = folder / "porch" / f"{event.id}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, pcm[start:stop], SAMPLE_RATE, subtype="PCM_16")
    return ClipRecord(
        event.id, 0, f"porch/{event.id}.flac", "porch", event.epoch, start, stop,
        clock.moment(start).wall_ns, "flac", path.stat().st_size,
    )  # fmt: skip
