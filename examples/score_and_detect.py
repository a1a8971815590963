"""Scores and events of a recording, step by step; each part can be run on its own as a cell.

python examples/score_and_detect.py night.flac     # 16 kHz mono; without a file, a generated scene
"""

# %% Load the bundled checkpoint; a directory, a file or a hub id will do as well.
import sys

import numpy as np
import soundfile

from ast_stream import load_tagger
from ast_stream.detect import Detector
from ast_stream.settings.detection import DetectionSettings
from ast_stream.soundscape.scene import generate_scene

SAMPLE_RATE = 16_000
BLOCK = 1_600  # samples; any size gives the same events

tagger = load_tagger("bundled", device="cpu", precision="fp32")
print(f"{len(tagger.labels)} classes, windows of {tagger.window_s:g} s")

# %% Read the sound as int16, which is what microphones deliver.
if len(sys.argv) > 1:
    pcm, rate = soundfile.read(sys.argv[1], dtype="int16")
    assert rate == SAMPLE_RATE, f"expected {SAMPLE_RATE} Hz, got {rate}"
    assert pcm.ndim == 1, "expected one channel"
else:
    pcm = generate_scene(seed=1, duration_s=20.0).pcm

# %% Score one window: which classes are heard in the first seconds?
window = pcm[: round(tagger.window_s * SAMPLE_RATE)].astype(np.float32) / 32_768
scores = tagger.scores(window)[0]
for index in np.argsort(scores)[::-1][:3]:
    print(f"{scores[index]:.2f}  {tagger.labels[index]}")

# %% Detect events: the same object serves live streams, `scan` and the tests.
detector = Detector(tagger, DetectionSettings(), hop_s=tagger.hop_s)
detector.open("kitchen", epoch="00000001")
events = []
for start in range(0, len(pcm), BLOCK):
    detector.push("kitchen", start, pcm[start : start + BLOCK])
    events += detector.run()
events += detector.flush("kitchen")
for event in events:
    if event.type == "end":
        assert event.offset_sample is not None
        onset_s, offset_s = event.onset_sample / SAMPLE_RATE, event.offset_sample / SAMPLE_RATE
        print(f"{onset_s:6.2f} s to {offset_s:6.2f} s  {event.label}")
