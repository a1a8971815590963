"""The steps of `gpu_figures.py`, each run in a process of its own: prints its figures as JSON.

    .venv/bin/python scripts/gpu_steps.py STEP [--device cuda] [--small]

With `--small` a model of two layers stands for AST-base, and batches are few: to try the steps on a
CPU. A step that needs CUDA says so there.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gpu_bench import Bench, NeedsGpu
from torch import Tensor

from ast_stream.detect.detector import HOPS_AT_ONCE, Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Gap
from ast_stream.model.attention import measure_all
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.description import BUNDLED
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.model.fbank import LOOK_BACK, UNUSED_TAIL, Fbank, SlidingFbank
from ast_stream.model.float8 import Float8Linear, rounded
from ast_stream.model.graphs import BUCKETS, GraphRunner
from ast_stream.model.runners import Precision, dtype_of
from ast_stream.model.tagger import Tagger
from ast_stream.soundscape.scene import generate_scene
from ast_stream.soundscape.soundbank import Soundbank, generated_foregrounds
from ast_stream.training.config import Optimization
from ast_stream.training.finetune import new_model
from ast_stream.training.trainer import Trainer
from ast_stream.training.windows import WindowMixing, WindowSampler
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE

Figures = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "0" * 32
HOP_S = 1.0
KINDS = (  # of kernels, by what is in their names; the first that fits
    ("attention", r"attention|flash|fmha|sdpa|softmax|bmm"),
    ("convolution", r"conv|implicit|fprop"),
    ("products", r"gemm|cutlass|cublas|matmul|mm|linear|nvjet|xmma"),
    ("norm", r"norm"),
    ("gelu", r"gelu"),
    ("copies", r"copy|memcpy|memset|cat|fill"),
    ("elementwise", r"elementwise|add|mul"),
)


def facts(bench: Bench) -> Figures:
    """Return what the other figures depend on, and what torch warns of when a tagger is made."""
    found: Figures = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        found["device"] = properties.name
        found["memory_gb"] = round(properties.total_memory / 1e9, 1)
        found["capability"] = f"{properties.major}.{properties.minor}"
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit"]
        try:
            found["driver"] = subprocess.check_output([*query, "--format=csv,noheader"], text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            found["driver"] = str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tagger = Tagger(load_checkpoint(BUNDLED), bench.device.type)
    found |= {"precision": tagger.precision, "attention": tagger.attention}
    return found | {"warnings": sorted({str(each.message) for each in caught})}


def tests(bench: Bench) -> Figures:
    """Run the tests that need a GPU."""
    bench.needs_cuda()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command.append("tests/unit")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines() or [done.stderr[-500:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": done.returncode, "summary": lines[-1], "failed": failed}


def ceilings(bench: Bench) -> Figures:
    """Return what the device reaches in a large product and in a copy."""
    (width,) = bench.pick([8192], [512])
    dtype = dtype_of(bench.precision)
    matrix = torch.randn((width, width), device=bench.device).to(dtype)
    into = torch.empty_like(matrix)
    product_ms = bench.ms(lambda: torch.mm(matrix, matrix, out=into))
    copy_ms = bench.ms(lambda: into.copy_(matrix))
    n_bytes = 2 * matrix.numel() * matrix.element_size()
    return {
        "width": width,
        "tflops": round(2 * width**3 / product_ms / 1e9, 2),
        "copy_gb_s": round(n_bytes / copy_ms / 1e6, 1),
    }


def attention(bench: Bench) -> Figures:
    """Return time of a layer and error against math in fp32 of each kernel."""
    dims = bench.base().dims
    precisions: list[Precision] = ["fp32", "bf16"]
    if bench.device.type == "cuda":
        precisions.insert(1, "fp16")
    rows = [
        {"precision": precision, "windows": n_windows, **asdict(found)}
        for precision in precisions
        for n_windows in bench.pick([1, 8, 64], [1, 2])
        if n_windows < 64 or precision == "fp16"
        for found in measure_all(dims, n_windows, bench.device, dtype_of(precision))
    ]
    return {"rows": rows}


def correctness(bench: Bench) -> Figures:
    """Return how far a window's logits are apart: precisions, batches, places in them, repeats."""
    checkpoint = bench.base()
    windows = _windows(checkpoint.dims, max(bench.pick(BUCKETS, [1, 2, 4])))
    reference = Tagger(checkpoint, "cpu", "fp32", "math")
    few = windows[:4]
    expected = _logits(reference, few)
    figures: Figures = {"spread": float(expected.std()), "from_fp32_on_the_cpu": {}}
    precisions: list[Precision] = ["fp32", "bf16"]
    if bench.device.type == "cuda":
        precisions.insert(1, "fp16")
    for precision in precisions:
        found = _logits(Tagger(checkpoint, bench.device.type, precision), few)
        figures["from_fp32_on_the_cpu"][precision] = _apart(found, expected)
    tagger = Tagger(checkpoint, bench.device.type, bench.precision)
    alone = _logits(tagger, windows[:1])
    sizes = bench.pick(BUCKETS, [1, 2, 4])
    in_batches = {size: _logits(tagger, windows[:size]) for size in sizes}
    figures["first_window_by_batch"] = {n: _apart(v[:1], alone) for n, v in in_batches.items()}
    same = windows[:1].expand(max(sizes), -1, -1).contiguous()
    rows = _logits(tagger, same)
    figures["between_rows_of_a_batch"] = _apart(rows, rows[:1])
    repeats = [_logits(tagger, windows) for _repeat in range(20)]
    figures["equal_repeats"] = sum(bool(np.array_equal(each, repeats[0])) for each in repeats)
    poisoned = windows.clone()
    poisoned[1] = torch.nan
    found = _logits(tagger, poisoned)
    figures["nan_rows"] = np.flatnonzero(np.isnan(found).any(axis=1)).tolist()
    return figures


def forward(bench: Bench) -> Figures:
    """Return milliseconds by batch: by the tagger, and the model alone without graphs."""
    tagger = bench.tagger()
    rows = _forward_rows(bench, tagger)
    model, dtype = _model(tagger), dtype_of(bench.precision)
    largest = bench.pick([64], [4])[0]
    windows = _windows(tagger.dims, largest).to(bench.device, dtype)
    with torch.inference_mode():
        eager_ms = bench.ms(lambda: model(windows))
    return {"rows": rows, "without_graphs": {"windows": largest, "ms": round(eager_ms, 3)}}


def _forward_rows(bench: Bench, tagger: Tagger) -> list[Figures]:
    rows = []
    for size in bench.pick(BUCKETS, [1, 2, 4]):
        windows = _windows(tagger.dims, size).to(bench.device)
        bench.peak_gb()
        ms = bench.ms(partial(tagger.window_scores, windows))
        row: Figures = {"windows": size, "ms": round(ms, 3), "windows_s": round(1000 * size / ms)}
        rows.append(row | {"peak_gb": bench.peak_gb()})
    return rows


def float8(bench: Bench) -> Figures:
    """Return what layers take in fp8 beside fp16, rounding told apart; then the whole model."""
    dims = bench.base().dims
    width, wide = dims.hidden_size, dims.intermediate_size
    n_tokens = bench.pick([64], [1])[0] * dims.n_tokens
    rows = []
    shapes = {"qkv": (width, 3 * width), "proj": (width, width)}
    shapes |= {"fc1": (width, wide), "fc2": (wide, width)}
    faster: Any = torch.compile(rounded) if bench.device.type == "cuda" else rounded
    for name, (n_in, n_out) in shapes.items():
        torch.manual_seed(0)
        linear = torch.nn.Linear(n_in, n_out).to(bench.device, torch.float16)
        layer, tokens = Float8Linear(linear), torch.randn(n_tokens, n_in).to(linear.weight)
        with torch.inference_mode():
            row: Figures = {"layer": name, "tokens": n_tokens}
            row |= {
                way: round(bench.ms(partial(run, tokens)), 4)
                for way, run in (
                    ("fp16_ms", linear), ("fp8_ms", layer), ("rounding_ms", rounded),
                    ("compiled_rounding_ms", faster),
                )
            }  # fmt: skip
            row["apart"] = float((layer(tokens) - linear(tokens)).abs().max())
        rows.append(row)
    figures: Figures = {"layers": rows}
    if bench.device.type == "cuda":  # a tagger computes in fp8 on GPUs alone
        tagger, windows = bench.tagger("fp8"), _windows(dims, 64)
        plain = _logits(bench.tagger("fp16"), windows)
        figures["apart_from_fp16"] = _apart(_logits(tagger, windows), plain)
        figures["rows"] = _forward_rows(bench, tagger)
    return figures


def profile(bench: Bench) -> Figures:
    """Return the time of the model's kernels by their kind, for a full batch."""
    tagger = bench.tagger()
    model = _model(tagger)
    windows = _windows(tagger.dims, bench.pick([64], [4])[0])
    windows = windows.to(bench.device, dtype_of(bench.precision))
    activity = torch.profiler.ProfilerActivity
    is_cuda = bench.device.type == "cuda"
    activities = [activity.CPU, *([activity.CUDA] if is_cuda else [])]
    with torch.inference_mode():
        model(windows)
        bench.synchronize()
        with torch.profiler.profile(activities=activities) as profiler:
            model(windows)
            bench.synchronize()
    ms: defaultdict[str, float] = defaultdict(float)
    kernels: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if is_cuda and event.device_type.name != "CUDA":
            continue  # an operator, whose kernels are listed by themselves
        own_us = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        ms[_kind(event.key)] += own_us / 1000
        kernels[event.key[:100]] += own_us / 1000
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:12]
    return {
        "windows": len(windows),
        "ms": {kind: round(took, 3) for kind, took in sorted(ms.items(), key=lambda i: -i[1])},
        "longest": {name: round(took, 3) for name, took in longest},
    }


def transformers(bench: Bench) -> Figures:
    """Return `ast-stream bench model` on AST-base."""
    model = ["--model", "bundled" if bench.is_small else "ast-base"]
    sizes = bench.pick([1, 2, 4, 8, 32], [1])
    batches = [word for size in sizes for word in ("--batch", str(size))]
    command = [
        sys.executable,
        "-m",
        "ast_stream.cli",
        "bench",
        "model",
        *model,
        *batches,
        "--eager",
    ]
    command += ["--device", bench.device.type, "--rounds", "2" if bench.is_small else "9", "--json"]
    report: Figures = json.loads(subprocess.check_output(command, cwd=ROOT))
    return {"rows": report["timings"]}


def tick(bench: Bench) -> Figures:
    """Return `ast-stream bench tick` on the bundled checkpoint, on the GPU if there is one."""
    sizes = [str(size) for size in bench.pick([64, 256, 1000], [2])]
    command = [sys.executable, "-m", "ast_stream.cli", "bench", "tick", "--hop", str(HOP_S)]
    command += [word for size in sizes for word in ("--streams", size)]
    command += ["--seconds", "1" if bench.is_small else "5", "--json"]
    report: Figures = json.loads(subprocess.check_output(command, cwd=ROOT))
    return {"rows": report["timings"]}


def training(bench: Bench) -> Figures:
    """Return milliseconds of a training step by precision, and whether losses stay finite."""
    labels = ("Siren", "Telephone dialing, DTMF")
    dims = replace(bench.base().dims, n_classes=len(labels))
    soundbank = Soundbank(labels, tuple(generated_foregrounds(0, labels, 4)), ())
    sampler = WindowSampler(soundbank, dims.max_frames * FRAME_SHIFT, WindowMixing())
    n_steps, batch = (3, 2) if bench.is_small else (12, 16)
    rows = []
    for precision in ("fp32", "bf16") if bench.device.type == "cpu" else ("fp32", "fp16"):
        optimization = Optimization(
            steps=n_steps, batch_size=batch, warmup_steps=2, report_every=1,
            save_every=n_steps + 1, evaluate_every=n_steps + 1, precision=precision,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="ast-stream-gpu-") as name:
            trainer = Trainer(
                new_model(dims, optimization), sampler, optimization, Path(name),
                AUDIOSET_NORMALIZATION, device=bench.device,
            )  # fmt: skip
            losses: list[float] = []
            ends_s = []
            for report in trainer.run():
                losses.append(float(report["loss"]))
                ends_s.append(time.perf_counter())
        ms = 1000 * float(np.median(np.diff(ends_s)))
        row: Figures = {"precision": precision, "batch": batch, "ms": round(ms, 2)}
        row |= {"losses": [round(losses[0], 4), round(losses[-1], 4)], "peak_gb": bench.peak_gb()}
        rows.append(row)
    return {"rows": rows}


def detector(bench: Bench) -> Figures:
    """Return how far the bundled model's events on the device are from those on the CPU."""
    pcm = generate_scene(3, 20.0 if bench.is_small else 120.0).pcm
    plain = _events(_bundled("cpu"), pcm, 1600)
    device = bench.device.type
    ways: dict[str, Callable[[], list[Event]]] = {
        "in blocks": lambda: _events(_bundled(device), pcm, 1600),
        "at once": lambda: _events(_bundled(device, HOPS_AT_ONCE), pcm, len(pcm)),
        "resumed": lambda: _resumed(lambda: _bundled(device, HOPS_AT_ONCE), pcm),
    }
    figures: Figures = {"messages": len(plain)}
    found = {name: way() for name, way in ways.items()}
    for name, events in found.items():
        figures[name] = _difference(events, plain)
    figures["at once from in blocks"] = _difference(found["at once"], found["in blocks"])
    with_gap = [_gapped(_bundled(each, HOPS_AT_ONCE), pcm) for each in ("cpu", device)]
    figures["with a gap"] = _difference(with_gap[1], with_gap[0])
    return figures


def streams(bench: Bench) -> Figures:
    """Return what a hop of many streams takes on AST-base, features and decisions included."""
    tagger = bench.tagger()
    began_s = time.perf_counter()
    tagger.prepare(tagger.full_batch)
    figures: Figures = {"prepare_s": round(time.perf_counter() - began_s, 2)}
    figures |= {"graphs_gb": bench.peak_gb(), "rows": []}
    for n_streams in bench.pick([1, 64, 1000], [1, 4]):
        for hops in (1, HOPS_AT_ONCE):
            figures["rows"].append(_hops(bench, tagger, n_streams, hops))
    return figures


def _hops(bench: Bench, tagger: Tagger, n_streams: int, hops: int) -> Figures:
    """Return what so many hops of each stream take, pushed at once."""
    live = Detector(tagger, hop_s=HOP_S, max_streams=n_streams, hops_at_once=hops)
    names = [f"s{number}" for number in range(n_streams)]
    pcm = generate_scene(1, hops * HOP_S).pcm[: hops * live.hop]
    for name in names:
        live.open(name, EPOCH)

    def push_and_run() -> float:
        for name in names:
            live.push(name, live.received(name), pcm)
        bench.synchronize()
        began_s = time.perf_counter()
        live.run()
        return 1000 * (time.perf_counter() - began_s)

    for _warm_up in range(2 + round(tagger.window_s / (hops * HOP_S))):
        push_and_run()
    bench.peak_gb()
    scored, took_ms = live.n_scored, [push_and_run() for _round in range(3)]
    n_windows = (live.n_scored - scored) / len(took_ms)
    ms = float(np.median(took_ms))
    row: Figures = {"streams": n_streams, "hops": hops, "ms": round(ms, 2)}
    row |= {"windows_s": round(1000 * n_windows / ms), "peak_gb": bench.peak_gb()}
    if live._runs_ahead:  # and what it took if no windows were begun while others are on their way
        live._runs_ahead = False
        row["one_after_the_other_ms"] = float(np.median([push_and_run() for _round in range(3)]))
        live._runs_ahead = True
    if bench.device.type == "cuda":
        row["synchronizations"] = _synchronizations(push_and_run)
    return row


def _synchronizations(run: Callable[[], object]) -> int:
    """Return how often the host waits for the GPU, as torch counts it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def features(bench: Bench) -> Figures:
    """Return milliseconds of a hop's features of many streams, and how far the CPU's are."""
    base = bench.base()
    hop, rows = round(HOP_S * SAMPLE_RATE), []
    for n_streams in bench.pick([1, 64, 1000, 1001], [1, 3]):
        generator = np.random.default_rng(0)
        shape = (n_streams, hop + LOOK_BACK - UNUSED_TAIL)
        pcm = generator.normal(0, 3000, shape).astype(np.int16)
        slots, ends = np.arange(n_streams), np.full(n_streams, hop)
        frames = {}
        for device in {torch.device("cpu"), bench.device}:
            sliding = SlidingFbank(
                Fbank(device), base.normalization, hop=hop, n_window_frames=base.dims.max_frames,
                n_input_frames=base.dims.max_frames, max_hops=1, device=device,
            )  # fmt: skip
            sliding.grow(n_streams)
            frames[device] = sliding.push(slots, pcm, ends).cpu().numpy()
            if device == bench.device:
                ms = bench.ms(partial(sliding.push, slots, pcm, ends))
        error = _apart(frames[bench.device], frames[torch.device("cpu")])
        rows.append({"streams": n_streams, "ms": round(ms, 3), "from_the_cpu": error})
    return {"rows": rows}


def compiled(bench: Bench) -> Figures:
    """Return what torch.compile makes of the model, beside it as it is."""
    bench.needs_cuda()
    tagger = bench.tagger()
    model: Any = _model(tagger)
    windows = _windows(tagger.dims, 64).to(bench.device, dtype_of(bench.precision))
    faster = torch.compile(model)
    with torch.inference_mode():
        began_s = time.perf_counter()
        error = (faster(windows) - model(windows)).abs().max().item()
        compile_s = time.perf_counter() - began_s
        ways = {"as it is": bench.ms(lambda: model(windows))}
        ways["compiled"] = bench.ms(lambda: faster(windows))
    ms = {name: round(took, 3) for name, took in ways.items()}
    return {"windows": 64, "ms": ms, "compile_s": round(compile_s, 1), "apart": error}


STEPS: dict[str, Callable[[Bench], Figures]] = {
    step.__name__: step
    for step in (
        facts, tests, ceilings, correctness, attention, forward, float8, profile, transformers,
        detector, streams, tick, features, compiled, training,
    )
}  # fmt: skip


def _model(tagger: Tagger) -> Any:
    """Return the tagger's model as it is computed, without graphs."""
    runner: Any = tagger._runner
    assert isinstance(runner, GraphRunner) or tagger.device.type == "cpu"
    return runner._model


def _kind(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS if re.search(words, name)), "other")


def _windows(dims: AstDims, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((n, dims.max_frames, dims.n_mels), generator=generator) / 2


def _logits(tagger: Tagger, windows: Tensor) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        logits: Tensor = tagger._window_logits(windows.to(tagger.device))
    return cast(npt.NDArray[np.float32], logits.float().cpu().numpy())


def _apart(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max())


def _bundled(device: str, hops_at_once: int | None = None) -> Detector:
    precision: Precision = "fp32" if device == "cpu" else "fp16"
    return Detector(Tagger(load_checkpoint(BUNDLED), device, precision), hops_at_once=hops_at_once)


def _pieces(pcm: Pcm16, size: int, begin: int = 0) -> Iterator[tuple[int, Pcm16]]:
    for start in range(begin, len(pcm), size):
        yield start, pcm[start : start + size]


def _events(live: Detector, pcm: Pcm16, size: int) -> list[Event]:
    live.open("s", EPOCH)
    events = []
    for start, piece in _pieces(pcm, size):
        live.push("s", start, piece)
        events += live.run()
    return events + live.flush("s")


def _resumed(make: Callable[[], Detector], pcm: Pcm16) -> list[Event]:
    """Return the events of a run that ends in the middle and goes on in another detector."""
    first, second, half = make(), make(), len(pcm) // 2
    first.open("s", EPOCH)
    first.push("s", 0, pcm[:half])
    events = first.run()
    state = first.export("s")
    start = first.context_needed(state)
    second.resume("s", EPOCH, start, state)
    second.push("s", start, pcm[start:])
    return events + second.run() + second.flush("s")


def _gapped(live: Detector, pcm: Pcm16) -> list[Event]:
    half, lost = len(pcm) // 2, SAMPLE_RATE
    live.open("s", EPOCH)
    live.push("s", 0, pcm[:half])
    events = live.run() + live.gap(Gap("s", EPOCH, half, lost, "overflow"))
    live.push("s", half + lost, pcm[half + lost :])
    return events + live.run() + live.flush("s")


def _difference(found: list[Event], expected: list[Event]) -> Figures:
    """Return how many begin and end alike, and how far their scores and onsets are apart."""
    ours, theirs = (
        {(e.type, e.id): e for e in events if e.type != "update"} for events in (found, expected)
    )
    pairs = [(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    scores = [abs(one.score - other.score) for one, other in pairs]
    onsets = [abs(one.onset_sample - other.onset_sample) / SAMPLE_RATE for one, other in pairs]
    return {
        "in_both": len(pairs),
        "only_here": len(ours) - len(pairs),
        "only_there": len(theirs) - len(pairs),
        "score": max(scores, default=0.0),
        "onset_s": max(onsets, default=0.0),
    }


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    bench = Bench(torch.device(options.device), options.small)
    try:
        figures = STEPS[options.step](bench)
    except NeedsGpu:
        figures = {"needs": "a GPU"}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
