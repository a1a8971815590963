"""What `ast-stream doctor` finds out about the model: where it computes, how right, how fast."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from ast_stream.cli.doctor_findings import Check, Status
from ast_stream.model.attention import Measurement, measure_all
from ast_stream.model.device import DTYPES, scoring_threads
from ast_stream.model.golden import golden_clip
from ast_stream.model.runners import BUCKETS
from ast_stream.model.selfcheck import self_check
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.model.torchaudio_guard import import_kaldi
from ast_stream.settings.schema import ModelSettings
from ast_stream.units import SAMPLE_RATE

MAX_FEATURE_ERROR = 1e-4  # after normalisation, against torchaudio
SPEED_REPEATS = 15
SPEED_LIMIT_S = 5.0  # of measuring; slow machines get fewer repeats


def load(model: ModelSettings) -> Tagger:
    """Return the tagger that the worker would use."""
    return load_tagger(
        model.checkpoint, model.device, model.precision, model.attention, model.window_s
    )


def check_model(tagger: Tagger) -> Iterator[Check]:
    """Yield what the model is and where it computes."""
    checkpoint = tagger.checkpoint
    n_params = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    facts: dict[str, Any] = {
        "checkpoint": checkpoint.origin,
        "hash": checkpoint.hash,
        "classes": len(tagger.labels),
        "params": n_params,
        "tokens": tagger.dims.n_tokens,
        "window_s": tagger.window_s,
    }
    text = (
        f"{checkpoint.origin}: {n_params / 1e6:.1f} M parameters, {len(tagger.labels)} classes, "
        f"window {tagger.window_s:g} s, {tagger.dims.n_tokens} tokens"
    )
    yield Check("model", "ok", text, facts)
    name = _device_name(tagger.device)
    facts = {"device": str(tagger.device), "device_name": name, "precision": tagger.precision}
    text = f"{tagger.device} ({name}), {tagger.precision}"
    if tagger.device.type == "cpu":
        facts["threads"] = scoring_threads(tagger.dims.gflop)
        text += f", {facts['threads']} of {torch.get_num_threads()} threads"
    yield Check("device", "ok", text, facts)


def check_attention(tagger: Tagger) -> Iterator[Check]:
    """Yield the attention in use, with speed and error of every candidate."""
    measurements = tagger.attention_choice.measurements
    if len(measurements) == 1:  # an explicit choice: look at the others, too
        dtype = DTYPES[tagger.precision]
        measurements = measure_all(tagger.dims, 1, tagger.device, dtype)
    facts = {"attention": tagger.attention, "candidates": [vars(found) for found in measurements]}
    text = f"{tagger.attention}, of {'; '.join(map(_measured, measurements))}"
    yield Check("attention", "ok", text, facts)


def check_features(tagger: Tagger) -> Iterator[Check]:
    """Yield how far the features are from torchaudio's."""
    clip = torch.from_numpy(golden_clip(0, SAMPLE_RATE))
    reference = import_kaldi().fbank(
        clip[None],
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=tagger.dims.n_mels,
        dither=0.0,
    )
    ours = tagger.fbank.frames(clip.to(tagger.device)).cpu()
    error = (ours - reference).abs().max().item() / (2 * tagger.normalization.std)
    status: Status = "ok" if error <= MAX_FEATURE_ERROR else "failed"
    text = f"{error:.1g} from torchaudio's, {MAX_FEATURE_ERROR:g} is allowed"
    yield Check("features", status, text, {"max_error": error, "allowed": MAX_FEATURE_ERROR})


def check_scores(tagger: Tagger) -> Iterator[Check]:
    """Yield the outcome of the self-check."""
    result = self_check(tagger)
    text = (
        f"differs by {result.max_error:.2g} from its {result.against} scores, "
        f"{result.tolerance:g} is allowed"
    )
    yield Check("self-check", "ok", text, vars(result))


def check_speed(tagger: Tagger) -> Iterator[Check]:
    """Yield milliseconds per window: one at a time and, on a GPU, in the largest batch."""
    for batch in (1,) if tagger.device.type == "cpu" else (1, BUCKETS[-1]):
        ms = median_ms(tagger, batch) / batch
        facts = {"batch": batch, "ms_per_window": ms, "windows_per_s": 1000 / ms}
        yield Check("speed", "ok", f"{ms:.2f} ms per window in batches of {batch}", facts)


def median_ms(tagger: Tagger, batch: int = 1) -> float:
    """Return the median of the milliseconds that `batch` windows take on this machine."""
    shape = (batch, tagger.n_input_frames, tagger.dims.n_mels)
    windows = torch.zeros(shape, device=tagger.device)
    tagger.window_scores(windows)  # the first one allocates, and captures graphs
    times_s: list[float] = []
    while len(times_s) < SPEED_REPEATS and sum(times_s) < SPEED_LIMIT_S:
        start = time.perf_counter()
        tagger.window_scores(windows)  # returns when the scores are back
        times_s.append(time.perf_counter() - start)
    return statistics.median(times_s) * 1000


def _measured(found: Measurement) -> str:
    if found.ms is None or found.max_error is None:
        return f"{found.name} unavailable: {found.problem}"
    text = f"{found.name} {found.ms:.2f} ms, error {found.max_error:.1g}"
    return f"{text} ({found.problem})" if found.problem else text


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name or platform.machine())
