"""The worker asks the verifiers of its configuration, and refuses those of another checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pipeline import Body, pipeline, wait_for
from reviewed_box import EVERY_S, barks_at_everything, day

from ast_stream.detect import Detector
from ast_stream.detect.decision import Opinion
from ast_stream.detect.second_opinion import Embedding
from ast_stream.detect.verifiers import (
    LAYER,
    ClassVerifier,
    VerifiersDescription,
    VerifiersFile,
    event_vector,
)
from ast_stream.messages.event import Event
from ast_stream.model.checkpoint import save_checkpoint
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import ClassSettings, DetectionDefaults, DetectionSettings
from ast_stream.units import samples_to_seconds
from ast_stream.verdicts.fitting import Examples, fit_verifier

DETECTION = {"defaults": {"onset_threshold": 0.5, "confirm_s": 0.3, "hold_s": 0.5}}


class Everything:
    def __init__(self) -> None:
        self.heard: list[tuple[Event, npt.NDArray[np.float32]]] = []

    def concerns(self, index: int) -> bool:
        return index == 0

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        self.heard.append((begin, event_vector(embedding)))
        return Opinion()


def of_sound(onset_sample: int) -> int:
    return int((samples_to_seconds(onset_sample) - 3) // EVERY_S)


def fitted(tagger: Tagger) -> VerifiersFile:
    """Return a verifier of Bark that was fitted to a day of noise and tones."""
    pcm, is_noise = day(20, seed=5)
    everything = Everything()
    detection = DetectionSettings(
        defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.3, hold_s=0.5),
        classes={"siren": ClassSettings(enabled=False)},
    )
    detector = Detector(tagger, detection, hop_s=0.25, opinion=everything)
    detector.open("day", "0" * 32)
    detector.push("day", 0, pcm)
    detector.run()
    detector.flush("day")
    examples = Examples(
        np.array([vector for _, vector in everything.heard]),
        np.array([is_noise[of_sound(begin.onset_sample)] for begin, _ in everything.heard]),
        np.arange(len(everything.heard)),
    )
    verifier = fit_verifier("Bark", examples)
    entry = ClassVerifier(
        label="Bark", threshold=verifier.threshold, n_right=10, n_wrong=10, turned_off=10, lost=0
    )
    description = VerifiersDescription(
        checkpoint=tagger.hash, layer=LAYER, width=tagger.dims.hidden_size, classes=[entry]
    )
    biases = np.array([verifier.bias], np.float32)
    return VerifiersFile(description, verifier.weights[None], biases)


@pytest.mark.slow
def test_worker_withholds_what_is_not_believed_and_refuses_verifiers_of_others(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "model"
    save_checkpoint(checkpoint, barks_at_everything())
    tagger = Tagger(barks_at_everything(), "cpu", "fp32", "math")
    file = fitted(tagger)
    path = tmp_path / "verifiers.safetensors"
    file.write(path)
    pcm, is_noise = day(6, seed=8)
    source: dict[str, Body] = {"mic": {"type": "file", "pace": "fast"}}
    model = {"verifiers": {"file": str(path)}}
    with pipeline(checkpoint, source, model=model, detection=DETECTION) as run:
        run.write_audio(pcm)
        run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "worker")
        run.start_capture("mic")
        assert run.wait("capture-mic") == 0, run.log("capture-mic")
        n_tones = int((~is_noise).sum())  # the last sound is one
        wait_for(lambda: run.log("worker").count("withheld") == n_tones, "all events")
        assert run.stop("worker") == 0, run.log("worker")
        bodies = [body for topic, body in run.published() if "/bark/" in topic]
        begun = [of_sound(body["onset_sample"]) for body in bodies if body["type"] == "begin"]
        assert begun == [number for number, noise in enumerate(is_noise) if noise]
        assert all(0.5 < body["verifier_score"] <= 1 for body in bodies)

        other = replace(file, description=file.description.model_copy(update={"checkpoint": "x"}))
        other.write(path)
        run.start_worker()
        assert run.wait("worker") not in (0, 1)
        assert "expected verifiers of the checkpoint" in run.log("worker").splitlines()[-1]
