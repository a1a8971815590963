"""Decoders of the files of a checkpoint: JSON, tables, headers of tensors, pickles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from safetensors.numpy import save
from tiny_model import tiny_checkpoint

from ast_stream.detect.verifiers import ClassVerifier, VerifiersDescription, VerifiersFile
from ast_stream.errors import CheckpointError
from ast_stream.model.checkpoint import carry_attributions, load_checkpoint, save_checkpoint
from ast_stream.model.description import LABELS_CSV, describe
from ast_stream.model.hf_config import CONFIG, PREPROCESSOR
from ast_stream.model.metadata import METADATA, Golden, PlattScaling, read_metadata, write_metadata
from ast_stream.training.state import load_state

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    folder = scratch / "checkpoints"
    whole = folder / "whole"
    checkpoint = tiny_checkpoint(
        window_s=1.0, hop_s=0.5, onset_thresholds={"Bark": 0.5}, rise_on_s={"Bark": 0.2},
        score_maps={"Bark": PlattScaling(scale=1.5)}, background=["Background"],
        golden=Golden(recipe="chirps-1", seed=1, scores=[0.1, 0.2, 0.1]),
        provenance={"data": "none"},
    )  # fmt: skip
    save_checkpoint(whole, checkpoint)
    (whole / LABELS_CSV).write_text("index,mid,display_name\n0,/m/1,Bark\n1,/m/2,Siren\n2,/m/3,X\n")
    for name in (CONFIG, PREPROCESSOR, METADATA):
        yield Decoder(
            f"checkpoint: {name}", [((whole / name).read_bytes(),)], _file(whole, name), 0.15
        )
    labels = (whole / LABELS_CSV).read_bytes()
    config = json.loads((whole / CONFIG).read_bytes())
    bare = folder / "bare"
    shutil.copytree(whole, bare)
    (bare / METADATA).unlink()
    (bare / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if "label" not in k}))
    yield Decoder("checkpoint: label table", [(labels,)], _file(bare, LABELS_CSV), 0.15)
    header, tensors = _split((whole / _WEIGHTS).read_bytes())
    yield Decoder("checkpoint: header of tensors", [(header,)], _header(whole, tensors), 0.1)
    names = {name: _WEIGHTS for name in json.loads(header) if name != "__metadata__"}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": names}).encode()
    yield Decoder("checkpoint: index of parts", [(index,)], _index(folder, whole), 0.1)
    small = {name: tensor for name, tensor in list(checkpoint.state_dict.items())[:3]}
    pickled = folder / "small.bin"
    torch.save(small, pickled)
    torch.save(small, legacy := folder / "legacy.pth", _use_new_zipfile_serialization=False)
    seeds = [(pickled.read_bytes(),), (legacy.read_bytes(),)]
    yield Decoder("checkpoint: pickle", seeds, _pickle(folder), 0.05, _PICKLE_TOKENS)
    yield Decoder("state of a training", [(b"x" * 200,)], _training(folder), 0.05, _PICKLE_TOKENS)
    yield from _verifiers(folder)
    table = b"title,author,licence,source\nDog,Someone,CC0,https://example.org\n"
    yield Decoder("attributions", [(table,)], _attributions(folder), 0.1)


_PICKLE_TOKENS = (
    b"cos\nsystem\n(S'id'\ntR.", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"\x80\x02c", b"R.",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"QX\x07\0\0\0storage",
)  # fmt: skip


def _file(whole: Path, name: str) -> Callable[[Case], object]:
    """Describe a checkpoint with another file of a name."""
    folder = whole.with_name(f"{whole.name}-{name}")
    shutil.copytree(whole, folder)

    def decode(case: Case) -> object:
        (folder / name).write_bytes(case[0] if case else b"")
        found = describe(str(folder))
        if name == METADATA:
            metadata = read_metadata(folder)
            write_metadata(folder, metadata)
            if repr(read_metadata(folder)) != repr(metadata):  # NaN in what is free is not itself
                raise Broken("metadata does not come back as it was")
        return found

    return decode


def _verifiers(folder: Path) -> Iterator[Decoder]:
    """Yield decoders of a file of verifiers: as a whole, and of its description alone."""
    path = folder / "verifiers.safetensors"
    facts: dict[str, Any] = {
        "threshold": 0.4,
        "n_right": 20,
        "n_wrong": 12,
        "turned_off": 9,
        "lost": 1,
    }
    description = VerifiersDescription(
        checkpoint="sha256:00", layer="patches", width=4,
        classes=[ClassVerifier(label=label, **facts) for label in ("Bark", "Siren")],
        provenance={"fitted": "2026-11-20T10:00:00Z"},
    )  # fmt: skip
    weights = np.arange(8, dtype=np.float32).reshape(2, 4)
    VerifiersFile(description, weights, np.zeros(2, np.float32)).write(path)

    def decode(case: Case) -> object:
        path.write_bytes(case[0] if case else b"")
        file = VerifiersFile.read(path)
        file.write(path)
        if VerifiersFile.read(path).digest != file.digest:
            raise Broken("verifiers do not come back as they were")
        score = file.score(0, np.ones(file.description.width, np.float32))
        if not 0 <= score <= 1:
            raise Broken("a verifier's score is no probability", str(score))
        return file

    def describe_them(case: Case) -> object:
        said = case[0].decode(errors="replace") if case else ""
        tensors = {"weights": weights, "biases": np.zeros(2, np.float32)}
        return decode((save(tensors, {"ast_stream": said}),))

    header, _ = _split(path.read_bytes())
    said = json.loads(header)["__metadata__"]["ast_stream"].encode()
    yield Decoder("verifiers", [(path.read_bytes(),)], decode, 0.1)
    yield Decoder("verifiers: description", [(said,)], describe_them, 0.1)


def _split(content: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size], content[8 + size :]


def _header(whole: Path, tensors: bytes) -> Callable[[Case], object]:
    folder = whole.with_name("header")
    shutil.copytree(whole, folder)

    def decode(case: Case) -> object:
        header = case[0] if case else b""
        size = len(header) if len(header) % 7 else 2**63 + len(header)  # now and then a lie
        (folder / _WEIGHTS).write_bytes(size.to_bytes(8, "little") + header + tensors)
        try:
            found = describe(str(folder))
        except CheckpointError:
            load_checkpoint(str(folder))  # refuses, too
            raise Broken("what cannot be described can be loaded") from None
        return found, load_checkpoint(str(folder))

    return decode


def _index(folder: Path, whole: Path) -> Callable[[Case], object]:
    parts = folder / "parts"
    shutil.copytree(whole, parts)

    def decode(case: Case) -> object:
        (parts / _INDEX).write_bytes(case[0] if case else b"")
        return describe(str(parts / _INDEX))

    return decode


def _pickle(folder: Path) -> Callable[[Case], object]:
    path = folder / "other.bin"

    def decode(case: Case) -> object:
        path.write_bytes(case[0] if case else b"")
        from ast_stream.model.weights import read_tensors

        return read_tensors(path)

    return decode


def _training(folder: Path) -> Callable[[Case], object]:
    from ast_stream.training.state import STATE_FILE

    training = folder / "training"
    training.mkdir()

    def decode(case: Case) -> object:
        (training / STATE_FILE).write_bytes(case[0] if case else b"")
        return load_state(training, {})

    return decode


def _attributions(folder: Path) -> Callable[[Case], object]:
    source, target = folder / "theirs", folder / "ours"
    source.mkdir()
    target.mkdir()

    def decode(case: Case) -> object:
        (source / "ATTRIBUTIONS.csv").write_bytes(case[0] if case else b"")
        carry_attributions([source], target)
        return None

    return decode
