"""Second opinions: asked when an event is about to begin, the same live, resumed and scanned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detector_events import EPOCH, blocks, events_of
from reactive_model import framed_checkpoint, tones_and_noise
from safetensors.numpy import save_file

from ast_stream.detect import Detector
from ast_stream.detect.decision import Opinion
from ast_stream.detect.second_opinion import Embedding
from ast_stream.detect.state import DetectorState
from ast_stream.detect.verifiers import (
    LAYER,
    ClassVerifier,
    Verifiers,
    VerifiersDescription,
    VerifiersFile,
    check_checkpoint,
    event_vector,
    load_verifiers,
)
from ast_stream.errors import StartupError
from ast_stream.messages.event import Event
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.settings.model import ModelSettings, VerifierSettings
from ast_stream.units import SAMPLE_RATE

DETECTION = DetectionSettings(
    defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.3, hold_s=0.5)
)
HOP_S = 0.25


class Everything:
    """Remembers what it is asked about and lets everything pass."""

    def __init__(self) -> None:
        self.heard: dict[str, tuple[Event, Embedding]] = {}

    def concerns(self, index: int) -> bool:
        return True

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        self.heard[begin.id] = begin, embedding
        return Opinion()


@pytest.fixture(scope="module")
def framed() -> Tagger:
    return Tagger(framed_checkpoint(), "cpu", "fp32", "math")


@pytest.fixture(scope="module", params=["windows", "frames"])
def model(request: pytest.FixtureRequest, tagger: Tagger, framed: Tagger) -> Tagger:
    return tagger if request.param == "windows" else framed


def halving(model: Tagger) -> VerifiersFile:
    """Return verifiers of all classes but one that believe about half of a recording's events."""
    everything = Everything()
    events_of(Detector(model, DETECTION, hop_s=HOP_S, opinion=everything), tones_and_noise(12.0))
    heard = Counter(begin.label for begin, _ in everything.heard.values())
    labels = [label for label, _ in heard.most_common()][:-1]
    vectors = [
        event_vector(its) for begin, its in everything.heard.values() if begin.label in labels
    ]
    weights = np.random.default_rng(0).normal(size=model.dims.hidden_size).astype(np.float32)
    logits = np.sort(np.stack(vectors) @ weights)
    middle = logits[len(logits) // 2 - 1 :][:2].mean()
    return VerifiersFile(
        description(model, labels),
        np.stack([weights] * len(labels)),
        np.full(len(labels), -middle, np.float32),
    )


def description(model: Tagger, labels: list[str], **changed: object) -> VerifiersDescription:
    counts = {"n_right": 10, "n_wrong": 10, "turned_off": 8, "lost": 0}
    classes = [ClassVerifier(label=label, threshold=0.5, **counts) for label in labels]
    known = {
        "checkpoint": model.hash,
        "layer": LAYER,
        "width": model.dims.hidden_size,
        "classes": classes,
    }
    return VerifiersDescription(**known | changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def file(model: Tagger) -> VerifiersFile:
    return halving(model)


def detector(
    model: Tagger, file: VerifiersFile, *, is_tag_only: bool = False, hops_at_once: int = 1
) -> Detector:
    opinion = Verifiers(file, model.labels, is_tag_only=is_tag_only)
    return Detector(model, DETECTION, hop_s=HOP_S, opinion=opinion, hops_at_once=hops_at_once)


def labels_of(file: VerifiersFile) -> list[str]:
    return [one.label for one in file.description.classes]


def without_scores(events: list[Event]) -> list[Event]:
    return [replace(event, verifier_score=None) for event in events]


def test_events_that_are_not_believed_do_not_come_out_and_all_others_do(
    model: Tagger, file: VerifiersFile
) -> None:
    pcm = tones_and_noise(16.0)
    plain = events_of(Detector(model, DETECTION, hop_s=HOP_S), pcm)
    tagged = events_of(detector(model, file, is_tag_only=True), pcm)
    assert without_scores(tagged) == plain
    of_event: dict[str, set[float | None]] = {}
    for event in tagged:
        of_event.setdefault(event.id, set()).add(event.verifier_score)
        assert (event.verifier_score is None) == (event.label not in labels_of(file))
    assert all(len(scores) == 1 for scores in of_event.values())  # begin, updates and end alike
    believed = {id for id, (score,) in of_event.items() if score is None or score >= 0.5}
    asked = Verifiers(file, model.labels, is_tag_only=False)
    dropping = Detector(model, DETECTION, hop_s=HOP_S, opinion=asked)
    told = events_of(dropping, pcm)
    assert told == [event for event in tagged if event.id in believed]
    assert 0 < dropping.withheld.total() == len(of_event) - len(believed)


@pytest.mark.parametrize(("size", "hops_at_once"), [(333, 1), (200_000, 1), (16_000, 5)])
def test_opinions_are_the_same_however_the_audio_comes(
    model: Tagger, file: VerifiersFile, size: int, hops_at_once: int
) -> None:
    pcm = tones_and_noise(8.0)
    expected = events_of(detector(model, file), pcm)
    assert events_of(detector(model, file, hops_at_once=hops_at_once), pcm, size) == expected


@pytest.mark.parametrize("resumed_at_s", [3.0, 4.4, 6.1])
def test_a_resumed_stream_withholds_what_it_would_have_withheld(
    model: Tagger, file: VerifiersFile, resumed_at_s: float
) -> None:
    pcm = tones_and_noise(8.0)
    expected = events_of(detector(model, file), pcm)
    first = detector(model, file)
    first.open("mic", EPOCH)
    events = []
    until = round(resumed_at_s * SAMPLE_RATE)
    for start, block in blocks(pcm[:until], 1600):
        first.push("mic", start, block)
        events += first.run()
    state = DetectorState.model_validate_json(first.export("mic").model_dump_json())
    second = detector(model, file)
    again = second.context_needed(state)
    second.resume("mic", EPOCH, again, state)
    for start, block in blocks(pcm[again:], 1600, again):
        second.push("mic", start, block)
        events += second.run()
    assert events + second.flush("mic") == expected


def test_an_event_stays_withheld_after_a_kill(framed: Tagger) -> None:
    pcm = np.concatenate([tones_and_noise(6.0)] * 2)
    file = halving(framed)
    nothing = replace(file, biases=np.full_like(file.biases, -1e4))
    first = detector(framed, nothing)
    first.open("mic", EPOCH)
    for start, block in blocks(pcm, 1600):
        first.push("mic", start, block)
        first.run()
        state = first.export("mic")
        if any(one.is_withheld for one in state.classes.values()):
            break
    else:
        pytest.fail("nothing was withheld")
    withheld = {index for index, one in state.classes.items() if one.is_withheld}
    second = detector(framed, nothing)
    again = second.context_needed(state)
    second.resume("mic", EPOCH, again, DetectorState.model_validate_json(state.model_dump_json()))
    assert {event.index for event in second.open_events("mic")}.isdisjoint(withheld)
    assert not [event for event in second.end_events("mic", "gap") if event.index in withheld]


def test_streams_beside_each_other_have_the_opinions_that_each_has_alone(
    framed: Tagger,
) -> None:
    file = halving(framed)
    recordings = {f"mic{seed}": tones_and_noise(6.0, seed) for seed in (1, 2)}
    together = detector(framed, file)
    for stream in recordings:
        together.open(stream, EPOCH)
    told: list[Event] = []
    for start in range(0, 6 * SAMPLE_RATE, 4_000):
        for stream, pcm in recordings.items():
            together.push(stream, start, pcm[start : start + 4_000])
        told += together.run()
    for stream in recordings:
        told += together.flush(stream)
    for stream, pcm in recordings.items():
        alone = events_of(detector(framed, file), pcm, stream=stream)
        assert [one for one in told if one.stream == stream] == alone


def test_only_events_that_begin_cost_something(framed: Tagger) -> None:
    asked: Counter[str] = Counter()

    class Counting(Tagger):
        def embedding(self, window):  # type: ignore[no-untyped-def]
            asked["embeddings"] += 1
            return super().embedding(window)

    model = Counting(framed_checkpoint(), "cpu", "fp32", "math")
    pcm = tones_and_noise(12.0)
    events_of(Detector(model, DETECTION, hop_s=HOP_S), pcm)
    assert not asked
    file = halving(model)
    asked.clear()
    some = Verifiers(file, model.labels, is_tag_only=True)
    events = events_of(Detector(model, DETECTION, hop_s=HOP_S, opinion=some), pcm)
    begins = [one for one in events if one.type == "begin" and one.label in some.labels]
    assert asked["embeddings"] == len(begins) > 0


def test_the_patches_of_an_event_are_those_since_its_onset(framed: Tagger) -> None:
    everything = Everything()
    events_of(Detector(framed, DETECTION, hop_s=HOP_S, opinion=everything), tones_and_noise(12.0))
    dims = framed.dims
    for begin, embedding in everything.heard.values():
        assert embedding.whole.shape == (dims.hidden_size,)
        assert embedding.patches.shape == (dims.n_time_patches, dims.hidden_size)
        assert 0 <= embedding.first < embedding.stop <= dims.n_time_patches
        since = (begin.at_sample - begin.onset_sample) / (dims.time_stride * 160)
        assert embedding.stop - embedding.first == pytest.approx(max(1, since), abs=1.01)


# -- files


def test_a_file_of_verifiers_reads_as_it_was_written(tmp_path: Path, framed: Tagger) -> None:
    file, path = halving(framed), tmp_path / "verifiers.safetensors"
    file.write(path)
    settings = ModelSettings(verifiers=VerifierSettings(file=str(path)))
    loaded = load_verifiers(settings, framed.hash, framed.labels)
    assert loaded is not None
    assert loaded.file.description == file.description
    vector = np.ones(framed.dims.hidden_size, np.float32)
    assert loaded.file.score(0, vector) == file.score(0, vector)
    assert load_verifiers(ModelSettings(), framed.hash, framed.labels) is None


def test_verifiers_of_another_checkpoint_are_refused(tmp_path: Path, framed: Tagger) -> None:
    other = description(framed, [framed.labels[0]], checkpoint="sha256:other")
    with pytest.raises(
        StartupError, match=r"expected verifiers of the .*, got those of sha256:other"
    ):
        check_checkpoint(other, tmp_path, framed.hash, framed.labels)
    layer = description(framed, [framed.labels[0]], layer="first")
    with pytest.raises(StartupError, match="expected verifiers of the layer"):
        check_checkpoint(layer, tmp_path, framed.hash, framed.labels)
    unknown = description(framed, ["Yodel"])
    with pytest.raises(StartupError, match="the model has no class 'Yodel'"):
        check_checkpoint(unknown, tmp_path, framed.hash, framed.labels)


@pytest.mark.parametrize(
    "content", [None, b"", b"\x00" * 64, b"not safetensors", "other", "shape", "folder"]
)
def test_a_file_that_is_none_is_refused_in_one_sentence(
    tmp_path: Path, framed: Tagger, content: bytes | str | None
) -> None:
    path = tmp_path / "verifiers.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "other":
        save_file({"weights": np.zeros((1, 2), np.float32)}, path)
    elif content == "shape":
        replace(halving(framed), weights=np.zeros((1, 3), np.float32)).write(path)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(StartupError, match=r"verifiers: .*verifiers\.safetensors: ") as refused:
        VerifiersFile.read(path)
    assert "\n" not in str(refused.value)
