"""Every kind of checkpoint file loads to the same model; everything else is refused clearly."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import TINY_DIMS, TINY_LABELS, save_tiny, tiny_checkpoint
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model import key_schemas
from ast_stream.model.ast import AstDims
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.fbank import Normalization
from ast_stream.model.metadata import Metadata
from ast_stream.model.torchaudio_guard import import_torchaudio

PARITY = 1e-4
Write = Callable[[dict[str, Tensor], Path], object]


def _save_legacy(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


FORMATS: dict[str, Write] = {
    "model.safetensors": save_file,
    "pytorch_model.bin": torch.save,
    "audioset.pth": torch.save,
    "legacy.pt": _save_legacy,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def _logits(checkpoint: Checkpoint, windows: Tensor) -> Tensor:
    with torch.inference_mode():
        return checkpoint.build_model()(windows)


def _windows(max_frames: int = TINY_DIMS.max_frames) -> Tensor:
    return torch.randn(2, max_frames, 128, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("file_name", FORMATS)
@pytest.mark.parametrize("schema", ["hub", "transformers", "original"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_schema_and_format_gives_the_same_model(
    saved: Path, file_name: str, schema: key_schemas.Schema, prefix: str
) -> None:
    expected = load_checkpoint(str(saved))
    tensors = {
        prefix + name: tensor.clone()
        for name, tensor in key_schemas.from_own(expected.state_dict, schema).items()
    }
    if schema == "original":  # the ImageNet classifiers that those files still carry
        tensors[f"{prefix}v.head.weight"] = torch.zeros(10, 64)
        tensors[f"{prefix}v.head_dist.bias"] = torch.zeros(10)
    (saved / "model.safetensors").unlink()
    FORMATS[file_name](tensors, saved / file_name)
    for reference in (saved, saved / file_name):
        loaded = load_checkpoint(str(reference))
        assert loaded.hash == expected.hash
        assert loaded.dims == expected.dims == TINY_DIMS
        assert torch.equal(_logits(loaded, _windows()), _logits(expected, _windows()))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saved_checkpoint_is_what_transformers_loads(tmp_path: Path, precision: Any) -> None:
    import_torchaudio()
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    original = replace(tiny_checkpoint(3), normalization=Normalization(-5.0, 4.0))
    save_checkpoint(tmp_path, original, precision)
    theirs: Any = ASTForAudioClassification.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_checkpoint(str(tmp_path))
    with torch.inference_mode():
        expected = theirs(_windows()).logits
    torch.testing.assert_close(_logits(ours, _windows()), expected, atol=PARITY, rtol=0)
    assert theirs.config.id2label == dict(enumerate(TINY_LABELS))
    extractor: Any = ASTFeatureExtractor.from_pretrained(tmp_path)
    assert (extractor.mean, extractor.std, extractor.max_length) == (-5.0, 4.0, 128)


def test_a_directory_written_by_transformers_loads(tmp_path: Path) -> None:
    import_torchaudio()
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=128,
        num_labels=35,
    )
    theirs: Any = ASTForAudioClassification(config)
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=128, mean=-6.845978, std=5.5654526).save_pretrained(tmp_path)
    ours = load_checkpoint(str(tmp_path))
    with torch.inference_mode():
        expected = theirs(_windows()).logits
    torch.testing.assert_close(_logits(ours, _windows()), expected, atol=PARITY, rtol=0)
    assert ours.labels[:2] == ["LABEL_0", "LABEL_1"]
    assert ours.normalization == Normalization(-6.845978, 5.5654526)
    assert ours.window_s == 1.0


def _original_file(path: Path, stride: int, max_frames: int) -> AstDims:
    dims = replace(
        TINY_DIMS, frequency_stride=stride, time_stride=stride, max_frames=max_frames, n_classes=5
    )
    torch.save(key_schemas.from_own(tiny_checkpoint(1, dims).state_dict, "original"), path)
    return replace(dims, layer_norm_eps=1e-6, head_layer_norm_eps=1e-5)


@pytest.mark.parametrize(
    ("stride", "max_frames", "window_s", "mean"),
    [
        (10, 1024, 10.0, -4.2677393),
        (12, 1024, 10.0, -4.2677393),
        (14, 1024, 10.0, -4.2677393),
        (16, 1024, 10.0, -4.2677393),
        (10, 512, 5.0, -6.6268077),
        (10, 128, 1.0, -6.845978),
    ],
)
def test_sizes_of_a_lone_original_file_are_inferred(
    tmp_path: Path, stride: int, max_frames: int, window_s: float, mean: float
) -> None:
    dims = _original_file(tmp_path / "model.pth", stride, max_frames)
    loaded = load_checkpoint(str(tmp_path / "model.pth"))
    assert loaded.dims == dims
    assert loaded.window_s == window_s
    assert loaded.normalization.mean == mean
    assert loaded.labels == [f"class_{index:03d}" for index in range(5)]


def test_labels_beside_an_original_file_are_used(tmp_path: Path) -> None:
    _original_file(tmp_path / "model.pth", 10, 128)
    rows = [
        '4,/m/4,"Male speech, man speaking"',
        *(f"{index},/m/{index},L{index}" for index in range(4)),
    ]
    (tmp_path / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *rows]))
    assert load_checkpoint(str(tmp_path)).labels == [
        "L0",
        "L1",
        "L2",
        "L3",
        "Male speech, man speaking",
    ]


def test_an_original_file_of_unknown_stride_asks_for_a_config(tmp_path: Path) -> None:
    _original_file(tmp_path / "model.pth", 11, 1024)
    with pytest.raises(CheckpointError, match=r"cannot tell stride.*config\.json"):
        load_checkpoint(str(tmp_path / "model.pth"))


def test_a_flattened_original_file_is_refused(tmp_path: Path) -> None:
    _original_file(tmp_path / "model.pth", 10, 128)
    tensors = torch.load(tmp_path / "model.pth")
    torch.save(tensors | {"v.pos_embed": tensors["v.pos_embed"].flatten()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="pos_embed: expected 3 dimensions, got 1"):
        load_checkpoint(str(tmp_path / "model.pth"))


def test_odd_types_of_label_tables_are_read(saved: Path) -> None:
    _edit(saved / "config.json", id2label={"0": 5, "1": 6, "2": 7})
    assert load_checkpoint(str(saved)).labels == ["5", "6", "7"]
    _edit(saved / "config.json", id2label=None, label2id={"a": "0", "b": "2", "c": "1"})
    assert load_checkpoint(str(saved)).labels == ["a", "c", "b"]
    _edit(saved / "config.json", id2label=None, label2id=None)
    assert load_checkpoint(str(saved)).labels == ["class_000", "class_001", "class_002"]


def test_metadata_survives_saving(tmp_path: Path) -> None:
    metadata = Metadata(
        window_s=1.0,
        hop_s=0.25,
        onset_thresholds={"Bark": 0.7},
        rise_on_s={"Bark": 0.2},
        rise_off_s={"Bark": 0.1},
        background=["Background"],
        provenance={"clips": ["a", "b"]},
    )
    save_checkpoint(tmp_path, replace(tiny_checkpoint(), metadata=metadata))
    loaded = load_checkpoint(str(tmp_path)).metadata
    assert loaded == metadata
    assert (loaded.onset_threshold("Bark"), loaded.onset_threshold("Siren")) == (0.7, 0.5)
    assert loaded.rise("Bark", 1.0) == (0.2, 0.1, False, 0.05)
    assert loaded.rise("Siren", 1.0) == (0.25, 0.25, True, 0.0625)
    assert loaded.rise("Siren", 10.0) == (0.5, 0.5, True, 0.125)


def test_all_files_of_a_checkpoint_have_the_same_readers(saved: Path) -> None:
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1
    assert not list(saved.glob(".*"))


def test_half_precision_storage_keeps_the_labels_and_changes_the_hash(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    save_checkpoint(tmp_path / "half", checkpoint, "fp16")
    save_checkpoint(tmp_path / "full", checkpoint, "fp32")
    half, full = (load_checkpoint(str(tmp_path / name)) for name in ("half", "full"))
    assert full.hash == checkpoint.hash != half.hash
    assert half.state_dict["norm.weight"].dtype == torch.float32
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_hub_id_is_taken_from_the_cache_when_offline(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    repository = tmp_path / "cache" / "models--someone--tiny-ast"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = load_checkpoint("someone/tiny-ast")
    assert loaded.hash == tiny_checkpoint().hash
    assert loaded.origin == "someone/tiny-ast"
    with pytest.raises(CheckpointError, match="someone/else: cannot be fetched"):
        load_checkpoint("someone/else")


def test_a_hub_id_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'ast-stream\[hub\]'"):
        load_checkpoint("someone/tiny-ast")


# --- what is refused -----------------------------------------------------------------------------


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def _replace_tensor(path: Path, name: str, tensor: Tensor) -> None:
    save_file(load_file(path) | {name: tensor}, path)


W = "model.safetensors"
HF = "audio_spectrogram_transformer."
QUERY = f"{HF}encoder.layer.1.attention.attention.query.weight"

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing tensor": (
        lambda d: _drop(d / W, QUERY),
        rf"missing tensors: {QUERY}$",
    ),
    "an extra tensor": (
        lambda d: _replace_tensor(d / W, "decoder.weight", torch.zeros(1)),
        r"unexpected tensors: decoder\.weight$",
    ),
    "a wrong shape": (
        lambda d: _replace_tensor(d / W, f"{HF}layernorm.weight", torch.zeros(63)),
        r"layernorm\.weight: expected shape \(64,\), got \(63,\)",
    ),
    "position embeddings of another window": (
        lambda d: (
            _edit(d / "config.json", max_length=256)
            or _edit(d / "preprocessor_config.json", max_length=256)
        ),
        r"position_embeddings: expected shape \(1, 130, 64\), got \(1, 66, 64\)",
    ),
    "parts that cannot be joined": (
        lambda d: _replace_tensor(d / W, QUERY, torch.zeros(64, 63)),
        r"shapes do not fit each other: .*query\.weight \(64, 63\)",
    ),
    "a scalar tensor": (
        lambda d: _replace_tensor(d / W, "classifier.dense.weight", torch.tensor(1.0)),
        r"classifier\.dense\.weight",
    ),
    "whole numbers": (
        lambda d: _replace_tensor(d / W, f"{HF}layernorm.weight", torch.zeros(64).int()),
        r"layernorm\.weight: expected floating point numbers, got torch\.int32",
    ),
    "a classifier without classes": (
        lambda d: _replace_tensor(d / W, "classifier.dense.weight", torch.zeros(0, 64)),
        r"classifier\.dense\.weight: expected floating point numbers, got .* shape \(0, 64\)",
    ),
    "a weight that is not finite": (
        lambda d: _replace_tensor(d / W, f"{HF}layernorm.bias", torch.full((64,), torch.nan)),
        r"layernorm\.bias: has values that are not finite",
    ),
    "a truncated file": (
        lambda d: (d / W).write_bytes((d / W).read_bytes()[:-10]),
        "damaged or not a safetensors file",
    ),
    "an empty file": (lambda d: (d / W).write_bytes(b""), "the file is empty"),
    "another model": (
        lambda d: _edit(d / "config.json", model_type="wav2vec2"),
        r"model_type: expected 'audio-spectrogram-transformer', got 'wav2vec2'",
    ),
    "tensors of another model": (
        lambda d: save_file({"encoder.weight": torch.zeros(2)}, d / W),
        r"expected the tensors of an Audio Spectrogram Transformer, got encoder\.weight",
    ),
    "a bare model": (
        lambda d: save_file(
            {name.removeprefix(HF): tensor for name, tensor in load_file(d / W).items()}, d / W
        ),
        "expected an AST with a classifier",
    ),
    "another number of layers": (
        lambda d: _edit(d / "config.json", num_hidden_layers=12),
        r"num_hidden_layers: expected 2 as in .*, got 12",
    ),
    "heads that do not divide": (
        lambda d: _edit(d / "config.json", num_attention_heads=7),
        "multiple of n_heads=7",
    ),
    "a size that is text": (
        lambda d: _edit(d / "config.json", hidden_size="64"),
        "hidden_size: expected a whole number, got '64'",
    ),
    "an absurd size": (
        lambda d: _edit(d / "config.json", max_length=10**12),
        "max_frames: expected 1 to 1048576",
    ),
    "another activation": (
        lambda d: _edit(d / "config.json", hidden_act="relu"),
        "hidden_act: expected 'gelu', got 'relu'",
    ),
    "too few labels": (
        lambda d: _edit(d / "config.json", id2label={"0": "a"}),
        "id2label: expected 3 names, 0 to 2, as the classifier has, got 1",
    ),
    "a config that is no JSON": (
        lambda d: (d / "config.json").write_text("{"),
        r"config\.json: not valid JSON",
    ),
    "another sample rate": (
        lambda d: _edit(d / "preprocessor_config.json", sampling_rate=32000),
        "sampling_rate: expected 16000, got 32000",
    ),
    "a spread of zero": (
        lambda d: _edit(d / "preprocessor_config.json", std=0.0),
        "std: expected a number above 0",
    ),
    "an unknown key in the metadata": (
        lambda d: _edit(d / "ast_stream.json", windows=1),
        r"ast_stream\.json: windows: ",
    ),
    "a threshold for a class it does not have": (
        lambda d: _edit(d / "ast_stream.json", onset_thresholds={"Meow": 0.5}),
        "'Meow' is no label of this model",
    ),
    "too long a trained window": (
        lambda d: _edit(d / "ast_stream.json", window_s=2.0),
        "window_s: expected at most 128 frames",
    ),
    "golden scores of another model": (
        lambda d: _edit(
            d / "ast_stream.json", golden={"recipe": "chirps-1", "seed": 0, "scores": [0.5]}
        ),
        r"golden\.scores: expected 3 scores, got 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_directory_is_refused_in_one_sentence(saved: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    spoil(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(str(saved))
    assert "\n" not in str(caught.value)


class _NotATensor:
    pass


PICKLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an object": (lambda p: torch.save({"a": _NotATensor()}, p), "pickle with other objects"),
    "a module": (lambda p: torch.save(torch.nn.Linear(2, 2), p), "pickle with other objects"),
    "a list": (lambda p: torch.save([torch.zeros(2)], p), "expected tensors by name, got list"),
    "numbers": (lambda p: torch.save({"epoch": 3}, p), "got int under 'epoch'"),
    "nested": (lambda p: torch.save({"state_dict": {}}, p), "got dict under 'state_dict'"),
    "nothing": (lambda p: torch.save({}, p), "holds no tensors"),
    "an optimizer": (
        lambda p: torch.save(
            torch.optim.Adam([torch.zeros(1, requires_grad=True)]).state_dict(), p
        ),
        "expected a model's tensors, got an optimizer's state",
    ),
    "text": (lambda p: p.write_text("hello"), "damaged or not a torch file"),
    "a page": (lambda p: p.write_text("<!doctype html>" * 90), "torch"),
    "an empty file": (lambda p: p.write_bytes(b""), "the file is empty"),
    "half a file": (
        lambda p: (torch.save({"a": torch.zeros(99)}, p), p.write_bytes(p.read_bytes()[:400])),
        "damaged or not a torch file",
    ),
}


@pytest.mark.parametrize("content", PICKLES)
def test_a_bad_pickle_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    write, message = PICKLES[content]
    write(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(str(tmp_path / "model.pth"))
    assert "\n" not in str(caught.value)


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        load_checkpoint(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors.*, got none"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"expected a file ending in .*, got '\.txt'"):
        load_checkpoint(str(tmp_path / "notes.txt"))


def test_weights_beyond_half_precision_are_not_saved_as_such(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    large = {**checkpoint.state_dict, "norm.weight": torch.full((64,), 1e6)}
    with pytest.raises(CheckpointError, match="beyond the range of fp16"):
        save_checkpoint(tmp_path, replace(checkpoint, state_dict=large), "fp16")
    assert not (tmp_path / W).exists()


def test_a_full_disk_is_one_sentence_and_leaves_the_old_checkpoint(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    save_checkpoint(tmp_path, tiny_checkpoint(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("small_files")
    other = replace(tiny_checkpoint(2), labels=["Glass", "Rain", "Background"])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be written"):
        save_checkpoint(tmp_path, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
