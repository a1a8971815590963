"""Compare this program's model on a CPU with other engines: torchao, ONNX Runtime, OpenVINO.

    PYTHON scripts/compare_engines.py --recordings FOLDER [--model bundled|ast-base] [--batch 1 8]

PYTHON belongs to an environment of its own, that has these packages beside ast-stream (torchao,
onnx, onnxscript, onnxruntime, openvino, nncf); what is missing is left out. Only the model is
timed: normalised windows in, logits out. One round runs each way once, in turn; a figure is the
median, and ratios are medians of the ratios within a round. CPU time is that of all threads, which
says more on a machine that is busy; OMP_NUM_THREADS=1 gives all engines one thread. Scores are
compared with fp32.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ast_stream.benchmarks.model import AST_BASE, beginnings, random_base
from ast_stream.benchmarks.report import Spread, times_as_fast
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint
from ast_stream.model.runners import Precision, cpu_has_bf16, cpu_has_int8
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE

PACKAGES = ("torch", "torchao", "onnxruntime", "openvino", "nncf")
N_CALIBRATION = 16  # recordings that static quantization finds its scales by

Array = npt.NDArray[np.float32]
Run = Callable[[Array], Array]
Ways = Iterator[tuple[str, Run]]


def ours(checkpoint: Checkpoint) -> Ways:
    """Yield this program's precisions."""
    precisions: list[Precision] = ["fp32"]
    precisions += ["bf16"] if cpu_has_bf16() else []
    precisions += ["int8"] if cpu_has_int8() else []
    for precision in precisions:
        tagger = Tagger(checkpoint, "cpu", precision, use_frames=False)
        tagger.prepare(tagger.full_batch)

        def run(windows: Array, tagger: Tagger = tagger) -> Array:
            with torch.inference_mode():
                logits: Tensor = tagger._window_logits(torch.from_numpy(windows))
            found: Array = logits.numpy()
            return found

        yield f"ast-stream {precision}", run


def plain_model(checkpoint: Checkpoint) -> AudioSpectrogramTransformer:
    """Return the model in fp32, with the attention that exporters know."""
    model = copy.deepcopy(checkpoint.build_model())
    model.use_attention(F.scaled_dot_product_attention)
    return model


def torchao(checkpoint: Checkpoint, _windows: Array, _calibration: Array, _folder: Path) -> Ways:
    """Yield int8 by torchao, with scales for each token found as it comes, compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model: Any = plain_model(checkpoint)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    options: Any = {"freezing": True}
    for name, forward in (
        ("int8", model),
        ("int8 compiled", torch.compile(model, options=options)),
    ):

        def run(windows: Array, forward: Any = forward) -> Array:
            with torch.no_grad():
                found: Array = forward(torch.from_numpy(windows)).numpy()
            return found

        yield f"torchao {name}", run


def onnxruntime(checkpoint: Checkpoint, windows: Array, _calibration: Array, folder: Path) -> Ways:
    """Yield fp32, and int8 with scales for each tensor found as it comes."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, prepared, small = (folder / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
    example = torch.from_numpy(windows)
    torch.onnx.export(plain_model(checkpoint), (example,), str(plain), external_data=False)
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(small), weight_type=QuantType.QInt8, per_channel=True)
    for name, path in (("fp32", plain), ("int8, dynamic", small)):
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()

        def run(windows: Array, session: Any = session, entry: str = entry.name) -> Array:
            found: Array = session.run(None, {entry: windows})[0]
            return found

        yield f"ONNX Runtime {name}", run


def openvino(checkpoint: Checkpoint, windows: Array, calibration: Array, _folder: Path) -> Ways:
    """Yield fp32, bf16, and int8 with scales found by recordings beforehand (NNCF)."""
    import openvino as ov

    core = ov.Core()
    model = ov.convert_model(plain_model(checkpoint), example_input=torch.from_numpy(windows))
    model.reshape(list(windows.shape))

    def compiled(model: Any, precision: str) -> Run:
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        ready = core.compile_model(model, "CPU", hints)

        def run(windows: Array) -> Array:
            found: Array = ready(windows)[0].copy()
            return found

        return run

    yield "OpenVINO fp32", compiled(model, "f32")
    if cpu_has_bf16():
        yield "OpenVINO bf16", compiled(model, "bf16")
    n = len(windows)
    try:
        import nncf
    except ImportError:
        return
    if len(calibration) < n:
        return
    parts = [calibration[at : at + n] for at in range(0, len(calibration) - n + 1, n)]
    quantized = nncf.quantize(
        model, nncf.Dataset(parts), model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(parts),
    )  # fmt: skip
    yield "OpenVINO int8, static", compiled(quantized, "f32")
    if cpu_has_bf16():
        yield "OpenVINO int8, static, rest bf16", compiled(quantized, "bf16")


OTHERS = {engine.__name__: engine for engine in (torchao, onnxruntime, openvino)}


def in_batches(run: Run, windows: Array, batch: int) -> Array:
    """Return the logits of all windows, in batches of one size; the last are repeated for it."""
    padded = np.resize(windows, (-(-len(windows) // batch) * batch, *windows.shape[1:]))
    parts = [run(padded[at : at + batch]) for at in range(0, len(padded), batch)]
    return np.concatenate(parts)[: len(windows)]


def main() -> None:
    """Print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recordings", type=Path, required=True, help="their beginnings are scored"
    )
    parser.add_argument("--model", default="bundled", help=f"a checkpoint, or {AST_BASE}")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--at-most", type=int, default=100, help="recordings that are compared")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--calibrate", type=int, default=N_CALIBRATION,
        help="recordings that static scales are found by; 0: no static quantization",
    )  # fmt: skip
    parser.add_argument(
        "--engine", nargs="*", choices=OTHERS, default=list(OTHERS), help="these beside ours"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    checkpoint = random_base() if options.model == AST_BASE else load_checkpoint(options.model)
    front = Tagger(checkpoint, "cpu", "fp32", use_frames=False)
    n_samples = round(checkpoint.window_s * SAMPLE_RATE)
    waveforms = beginnings(options.recordings, n_samples, options.at_most + options.calibrate)
    windows = front.windows(torch.from_numpy(waveforms)).numpy()
    calibration, windows = windows[: options.calibrate], windows[options.calibrate :]
    print(", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    for batch in options.batch:
        _compare(checkpoint, windows, calibration, batch, options.rounds, options.engine)


def _compare(
    checkpoint: Checkpoint,
    windows: Array,
    calibration: Array,
    batch: int,
    n_rounds: int,
    engines: Sequence[str],
) -> None:
    ways = dict(ours(checkpoint))
    first = np.resize(windows, (batch, *windows.shape[1:]))
    with tempfile.TemporaryDirectory(prefix="ast-stream-engines-") as folder:
        for name in engines:
            engine, began_s = OTHERS[name], time.perf_counter()
            try:
                for way, run in engine(checkpoint, first, calibration, Path(folder)):
                    run(first)
                    ways[way] = run
            except Exception as error:  # of another's code, whatever it is
                reason = str(error).strip().split("\n")[0][:160]
                print(f"{name}: {type(error).__name__}: {reason}", file=sys.stderr)
            print(f"{name}: {time.perf_counter() - began_s:.0f} s", file=sys.stderr)
        scores = {n: 1 / (1 + np.exp(-in_batches(w, windows, batch))) for n, w in ways.items()}
        load = os.getloadavg()[0]
        wall, cpu = _seconds(list(ways.values()), first, n_rounds)
    expected = scores["ast-stream fp32"]
    print(
        f"\nbatch {batch}, {len(windows)} recordings, {n_rounds} rounds, load {load:.1f} before\n"
    )
    print("| way | ms | from | to | times as fast | CPU ms | times as cheap | difference | top 5 |")
    print(f"|---|{'---:|' * 8}")
    for (name, found), of_way, cpu_of_way in zip(scores.items(), wall, cpu, strict=True):
        ms, cpu_ms = (
            Spread.of([1000 * each / batch for each in seconds]) for seconds in (of_way, cpu_of_way)
        )
        pairs = zip(*(np.argsort(each)[:, -5:] for each in (expected, found)), strict=True)
        top_5 = np.mean([np.isin(theirs, own).mean() for theirs, own in pairs])
        print(
            f"| {name} | {ms.median:.2f} | {ms.low:.2f} | {ms.high:.2f} "
            f"| {times_as_fast(of_way, wall[0]):.2f} | {cpu_ms.median:.2f} "
            f"| {times_as_fast(cpu_of_way, cpu[0]):.2f} | {np.abs(found - expected).max():.1e} "
            f"| {top_5:.1%} |"
        )


def _seconds(
    runs: Sequence[Run], windows: Array, n_rounds: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the seconds of each run in each round, by the wall and of all threads' CPU time."""
    wall: list[list[float]] = [[] for _run in runs]
    cpu: list[list[float]] = [[] for _run in runs]
    for _round in range(n_rounds):
        for run, of_wall, of_cpu in zip(runs, wall, cpu, strict=True):
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            run(windows)
            of_wall.append(time.perf_counter() - began_s)
            of_cpu.append(time.process_time() - cpu_began_s)
    return wall, cpu


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main()
