"""Every kind of checkpoint file loads to the same model; everything else is refused clearly."""

from __future__ import annotations

import json
import os
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
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.description import describe
from ast_stream.model.dims import AstDims, Normalization
from ast_stream.model.fbank import normalize
from ast_stream.model.hf_config import ACTIVATIONS
from ast_stream.model.metadata import FrameDecisions, Metadata
from ast_stream.model.tagger import Tagger
from ast_stream.model.torchaudio_guard import import_torchaudio
from ast_stream.model.weights import FRAME_HEAD, FRAMES, Schema, from_own

PARITY = 1e-4
W = "model.safetensors"
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
        logits: Tensor = checkpoint.build_model()(windows)
    return logits


def _windows(max_frames: int = TINY_DIMS.max_frames) -> Tensor:
    return torch.randn(2, max_frames, 128, generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
@pytest.mark.parametrize("file_name", FORMATS)
@pytest.mark.parametrize("schema", ["hub", "transformers", "original"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_schema_and_format_gives_the_same_model(
    saved: Path, file_name: str, schema: Schema, prefix: str
) -> None:
    expected = load_checkpoint(str(saved))
    tensors = {
        prefix + name: tensor.clone()
        for name, tensor in from_own(expected.state_dict, schema).items()
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


def test_a_checkpoint_with_a_frame_head_is_what_transformers_loads(tmp_path: Path) -> None:
    import_torchaudio()
    from transformers import ASTForAudioClassification

    original = tiny_checkpoint(
        3, frames=FrameDecisions(delay_s=0.2, onset_thresholds={"Bark": 0.7})
    )
    save_checkpoint(tmp_path, original, "fp16")
    theirs: Any = ASTForAudioClassification.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_checkpoint(str(tmp_path))
    with torch.inference_mode():
        expected = theirs(_windows()).logits
        clip_logits, frame_logits = ours.build_model().forward_frames(_windows())
    torch.testing.assert_close(clip_logits, expected, atol=PARITY, rtol=0)
    assert frame_logits.shape == (2, TINY_DIMS.n_time_patches, len(TINY_LABELS))
    assert ours.metadata.frames == original.metadata.frames
    for name in FRAME_HEAD:
        assert torch.equal(ours.state_dict[name], original.state_dict[name].half().float())


def test_the_frame_head_is_part_of_the_hash_and_of_the_number_of_weights(tmp_path: Path) -> None:
    with_head, without = tiny_checkpoint(0, frames=FrameDecisions()), tiny_checkpoint(0)
    assert torch.equal(_logits(with_head, _windows()), _logits(without, _windows()))
    assert with_head.hash != without.hash
    save_checkpoint(tmp_path, with_head)
    assert load_checkpoint(str(tmp_path)).hash == with_head.hash
    n_params = sum(tensor.numel() for tensor in with_head.state_dict.values())
    assert describe(str(tmp_path)).n_params == n_params


def test_writing_over_a_checkpoint_with_a_frame_head_leaves_none_of_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_checkpoint(0, frames=FrameDecisions()))
    save_checkpoint(tmp_path, tiny_checkpoint(1))
    assert load_checkpoint(str(tmp_path)).hash == tiny_checkpoint(1).hash
    assert not (tmp_path / FRAMES).exists()


def test_a_frame_head_that_does_not_fit_its_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = tiny_checkpoint(0, frames=FrameDecisions())
    save_checkpoint(tmp_path, whole)
    head = load_file(tmp_path / FRAMES)
    save_file({"frame_head.weight": head["frame_head.weight"]}, tmp_path / FRAMES)
    with pytest.raises(CheckpointError, match=r"expected frame_head\.weight and frame_head\.bias"):
        load_checkpoint(str(tmp_path))
    save_file(head | {"frame_head.bias": torch.zeros(5)}, tmp_path / FRAMES)
    with pytest.raises(
        CheckpointError, match=r"frame_head\.bias: expected shape \(3,\), got \(5,\)"
    ):
        load_checkpoint(str(tmp_path))
    (tmp_path / FRAMES).unlink()
    for load in (load_checkpoint, describe):
        with pytest.raises(CheckpointError, match=r"frames\.safetensors: cannot be read"):
            load(str(tmp_path))
    without = {name: whole.state_dict[name] for name in tiny_checkpoint(0).state_dict}
    with pytest.raises(CheckpointError, match="expected a frame head and 'frames' in its metadata"):
        save_checkpoint(tmp_path, replace(whole, state_dict=without))


def test_a_frame_head_that_the_metadata_does_not_know_is_refused(saved: Path) -> None:
    save_file({"frame_head.weight": torch.zeros(3, 64)}, saved / FRAMES)
    with pytest.raises(CheckpointError, match="remove the file to decide by windows"):
        load_checkpoint(str(saved))


def test_a_directory_written_by_transformers_loads(tmp_path: Path) -> None:
    import_torchaudio()
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config: Any = ASTConfig(  # type: ignore[call-arg]
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


def _of_transformers(directory: Path, **config: Any) -> Any:
    """A random model, as transformers writes it, and itself."""
    import_torchaudio()
    from transformers import ASTConfig, ASTForAudioClassification

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_length": 64,
        "num_labels": 5,
    }
    theirs: Any = ASTForAudioClassification(ASTConfig(**(sizes | config)))
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(directory)
    return theirs


HONOURED: dict[str, dict[str, Any]] = {
    **{f"hidden_act {name}": {"hidden_act": name} for name in ACTIVATIONS},
    "a large layer_norm_eps": {"layer_norm_eps": 0.1},
    "no qkv_bias": {"qkv_bias": False},
    "strides": {"frequency_stride": 8, "time_stride": 5},
    "patches of 8": {"patch_size": 8},
    "another length": {"max_length": 100},
    "dropout": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    "its own attention": {"attn_implementation": "eager"},
    "what a forward pass returns": {"output_hidden_states": True, "return_dict": True},
    "a regular head_dim": {"head_dim": 12},
    "many classes": {"num_labels": 600},
}


@pytest.mark.parametrize("option", HONOURED)
def test_what_a_configuration_asks_for_gives_the_logits_of_transformers(
    tmp_path: Path, option: str
) -> None:
    theirs = _of_transformers(tmp_path, **HONOURED[option])
    ours = load_checkpoint(str(tmp_path))
    windows = _windows(ours.dims.max_frames)
    with torch.inference_mode():
        expected = theirs(windows).logits
    torch.testing.assert_close(_logits(ours, windows), expected, atol=PARITY, rtol=0)


def test_a_model_of_one_class_out_of_all_scores_by_softmax(tmp_path: Path) -> None:
    theirs = _of_transformers(tmp_path, problem_type="single_label_classification")
    ours = load_checkpoint(str(tmp_path))
    assert ours.scoring == "softmax"
    windows = _windows(64)
    with torch.inference_mode():
        expected = theirs(windows).logits.softmax(dim=-1)
    tagger = Tagger(ours, device="cpu", precision="fp32", attention="math")
    scores = torch.from_numpy(tagger.window_scores(windows))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    save_checkpoint(tmp_path / "copy", ours)
    assert load_checkpoint(str(tmp_path / "copy")).hash == ours.hash


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_a_model_of_many_labels_scores_each_by_a_sigmoid(
    tmp_path: Path, problem_type: str | None
) -> None:
    theirs = _of_transformers(tmp_path, problem_type=problem_type)
    tagger = Tagger(load_checkpoint(str(tmp_path)), "cpu", "fp32", "math")
    with torch.inference_mode():
        expected = theirs(_windows(64)).logits.sigmoid()
    scores = torch.from_numpy(tagger.window_scores(_windows(64)))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = _of_transformers(tmp_path).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(str(tmp_path))
    with torch.inference_mode():
        expected = theirs.float()(_windows(64)).logits
    torch.testing.assert_close(_logits(ours, _windows(64)), expected, atol=PARITY, rtol=0)


def test_features_that_are_not_normalised_stay_as_they_are(tmp_path: Path) -> None:
    from transformers import ASTFeatureExtractor

    _of_transformers(tmp_path)
    extractor = ASTFeatureExtractor(max_length=64, do_normalize=False)
    extractor.save_pretrained(tmp_path)
    features = normalize(torch.tensor([1.0, -7.0]), load_checkpoint(str(tmp_path)).normalization)
    assert features.tolist() == [1.0, -7.0]


@pytest.mark.parametrize("shard_size", ["20KB", "5KB"])
def test_a_checkpoint_in_several_files_is_read_whole(tmp_path: Path, shard_size: str) -> None:
    theirs = _of_transformers(tmp_path)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    (tmp_path / W).unlink(missing_ok=True)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.inference_mode():
        expected = theirs(_windows(64)).logits
    for reference in (tmp_path, tmp_path / f"{W}.index.json"):
        ours = load_checkpoint(str(reference))
        torch.testing.assert_close(_logits(ours, _windows(64)), expected, atol=PARITY, rtol=0)
    assert describe(str(tmp_path)).n_params == sum(p.numel() for p in theirs.parameters())


def test_pickled_shards_are_read_whole(saved: Path) -> None:
    expected, tensors = load_checkpoint(str(saved)), load_file(saved / W)
    (saved / W).unlink()
    names = sorted(tensors)
    where = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(names)}
    for file in set(where.values()):
        torch.save({name: tensors[name] for name in names if where[name] == file}, saved / file)
    index = {"metadata": {}, "weight_map": where}
    (saved / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert load_checkpoint(str(saved)).hash == expected.hash


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


OPTIMIZER: dict[str, Any] = {"state": {}, "param_groups": []}
WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "torch.compile": lambda t: _prefixed(t, "_orig_mod."),
    "a compiled part": lambda t: {k.replace(".", "._orig_mod.", 1): v for k, v in t.items()},
    "DataParallel of a compiled model": lambda t: _prefixed(t, "module._orig_mod."),
    "FSDP": lambda t: _prefixed(t, "_fsdp_wrapped_module."),
    "Lightning": lambda t: {
        "state_dict": _prefixed(t, "model."),
        "epoch": 3,
        "optimizer_states": [OPTIMIZER],
    },
    "a training script": lambda t: {
        "epoch": 3,
        "model_state_dict": t,
        "optimizer": OPTIMIZER,
        "loss": 0.2,
    },
    "DeepSpeed": lambda t: {"module": _prefixed(t, "module.")},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_wraps_the_tensors_is_taken_off(saved: Path, wrapper: str) -> None:
    expected, tensors = load_checkpoint(str(saved)), load_file(saved / W)
    (saved / W).unlink()
    torch.save(WRAPPED[wrapper](tensors), saved / "last.ckpt")
    assert load_checkpoint(str(saved)).hash == expected.hash
    assert describe(str(saved)).labels == expected.labels


def test_a_description_says_what_the_checkpoint_is_without_its_weights(saved: Path) -> None:
    loaded, described = load_checkpoint(str(saved)), describe(str(saved))
    for name in ("dims", "labels", "normalization", "scoring", "metadata", "window_s", "origin"):
        assert getattr(described, name) == getattr(loaded, name)
    assert described.n_params == sum(tensor.numel() for tensor in loaded.state_dict.values())


def test_labels_lose_the_spaces_around_them(saved: Path) -> None:
    _edit(saved / "config.json", id2label={"0": "dog\r\n", "1": " cat", "2": "rain"})
    assert load_checkpoint(str(saved)).labels == ["dog", "cat", "rain"]


def test_labels_without_latin_letters_have_topics_of_their_own(saved: Path) -> None:
    _edit(saved / "config.json", id2label={"0": "狗叫", "1": "海浪", "2": "警笛"})
    assert load_checkpoint(str(saved)).labels == ["狗叫", "海浪", "警笛"]


def _original_file(path: Path, stride: int, max_frames: int) -> AstDims:
    dims = replace(
        TINY_DIMS, frequency_stride=stride, time_stride=stride, max_frames=max_frames, n_classes=5
    )
    torch.save(from_own(tiny_checkpoint(1, dims).state_dict, "original"), path)
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


HF = "audio_spectrogram_transformer."


def _nested(name: str) -> Callable[[Path], object]:
    text = '{"provenance": ' + "[" * 100_000 + "]" * 100_000 + "}"
    return lambda d: (d / name).write_text(text)


def _folder(name: str) -> Callable[[Path], object]:
    return lambda d: ((d / name).unlink(), (d / name).mkdir())


def _fifo(name: str) -> Callable[[Path], object]:
    return lambda d: ((d / name).unlink(), os.mkfifo(d / name))


def _lie(path: Path, *offsets: list[int]) -> None:
    """A safetensors file whose header does not fit what follows."""
    tensors = {
        f"t{n}": {"dtype": "F32", "shape": [1], "data_offsets": tensor}
        for n, tensor in enumerate(offsets)
    }
    header = json.dumps(tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def _double(path: Path) -> None:
    tensors = load_file(path)
    save_file(_prefixed(tensors, "model.") | _prefixed(_copied(tensors), "ema."), path)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _index(directory: Path, where: dict[str, str]) -> None:
    (directory / W).unlink()
    (directory / f"{W}.index.json").write_text(json.dumps({"weight_map": where}))


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
        lambda d: _edit(d / "config.json", hidden_act="xielu"),
        "hidden_act: expected 'gelu' or .*, got 'xielu'",
    ),
    "an activation that is no name": (
        lambda d: _edit(d / "config.json", hidden_act=["gelu"]),
        "hidden_act: expected 'gelu' or ",
    ),
    "heads of another width": (
        lambda d: _edit(d / "config.json", head_dim=16),
        "head_dim: expected 64, since that is hidden_size / num_attention_heads, got 16",
    ),
    "code of its own": (
        lambda d: _edit(d / "config.json", auto_map={"AutoModel": "model.Own"}),
        "auto_map: expected none, since code from a checkpoint is never run",
    ),
    "features of its own code": (
        lambda d: _edit(d / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "f.F"}),
        r"preprocessor_config\.json: auto_map: expected none",
    ),
    "another class": (
        lambda d: _edit(d / "config.json", architectures=["ASTWithConformer"]),
        r"architectures: expected \['ASTForAudioClassification'\], got \['ASTWithConformer'\]",
    ),
    "quantised weights": (
        lambda d: _edit(d / "config.json", quantization_config={"load_in_8bit": True}),
        "quantization_config: expected none, since only plain weights are read",
    ),
    "pruned heads": (
        lambda d: _edit(d / "config.json", pruned_heads={"0": [1]}),
        "pruned_heads: expected none",
    ),
    "a decoder": (
        lambda d: _edit(d / "config.json", is_decoder=True),
        "is_decoder: expected false",
    ),
    "a regression": (
        lambda d: _edit(d / "config.json", problem_type="regression"),
        "problem_type: expected 'multi_label_classification' or .*, got 'regression'",
    ),
    "mel bands that are not ours": (
        lambda d: _edit(d / "config.json", num_mel_bins=64),
        "num_mel_bins: expected 128, got 64",
    ),
    "a negative eps": (
        lambda d: _edit(d / "config.json", layer_norm_eps=-1),
        "layer_norm_eps: expected 0 or more",
    ),
    "a number of hundreds of digits": (
        lambda d: _edit(d / "config.json", layer_norm_eps=10**400),
        "layer_norm_eps: expected a finite number, got 1000",
    ),
    "a switch that is text": (
        lambda d: _edit(d / "config.json", qkv_bias="false"),
        "qkv_bias: expected true or false, got 'false'",
    ),
    "another extractor": (
        lambda d: _edit(d / "preprocessor_config.json", feature_extractor_type="Wav2Vec2"),
        "feature_extractor_type: expected 'ASTFeatureExtractor', got 'Wav2Vec2'",
    ),
    "features of two channels": (
        lambda d: _edit(d / "preprocessor_config.json", feature_size=2),
        "feature_size: expected 1, got 2",
    ),
    "a normalisation that is text": (
        lambda d: _edit(d / "preprocessor_config.json", do_normalize="no"),
        "do_normalize: expected true or false, got 'no'",
    ),
    "a mean that is not a number": (
        lambda d: _edit(d / "preprocessor_config.json", mean=float("nan")),
        "mean: expected a finite number, got nan",
    ),
    "a mean beyond any sound": (
        lambda d: _edit(d / "preprocessor_config.json", mean=1e300),
        r"mean: expected -1000 to 1000, got 1e\+300",
    ),
    "a spread beyond any sound": (
        lambda d: _edit(d / "preprocessor_config.json", std=1e-300),
        r"std: expected a number above 0, from 0\.001 to 1000, got 1e-300",
    ),
    "labels with one topic": (
        lambda d: _edit(d / "config.json", id2label={"0": "C", "1": "C++", "2": "Rust"}),
        r"got 'c' for both 'C' \(class 0\) and 'C\+\+' \(class 1\)",
    ),
    "a label twice": (
        lambda d: _edit(d / "config.json", id2label={"0": "狗", "1": "猫", "2": "狗"}),
        "expected different labels, got '狗' for classes 0 and 2",
    ),
    "a label without text": (
        lambda d: _edit(d / "config.json", id2label={"0": "a", "1": " ", "2": "c"}),
        "expected a name for class 1, got none",
    ),
    "a terminal escape in a label": (
        lambda d: _edit(d / "config.json", id2label={"0": "a", "1": "b\x1b[2J", "2": "c"}),
        r"printable text for class 1, got 'b\\x1b\[2J' with U\+001B",
    ),
    "half a character in a label": (
        lambda d: _edit(d / "config.json", id2label={"0": "a", "1": "b\ud83d", "2": "c"}),
        r"printable text for class 1, got 'b\\ud83d' with U\+D83D",
    ),
    "a gap among the indices": (
        lambda d: _edit(d / "config.json", id2label={"0": "a", "1": "b", "3": "c"}),
        "id2label: expected 3 names, 0 to 2, as the classifier has, got 3, none for 2",
    ),
    "an index twice": (
        lambda d: (d / "config.json").write_text('{"id2label": {"0": "a", "0": "b"}}'),
        r"config\.json: not valid JSON: the key '0' stands twice",
    ),
    "a label that is a list": (
        lambda d: _edit(d / "config.json", id2label={"0": "a", "1": ["b"], "2": "c"}),
        r"id2label\.1: expected a name, got \['b'\]",
    ),
    "an index that is a list": (
        lambda d: _edit(d / "config.json", id2label=None, label2id={"a": [0]}),
        r"label2id\.a: expected an index, got \[0\]",
    ),
    **{
        f"a nested {name}": (_nested(name), rf"{name}.*: .*(nested|recursion)")
        for name in ("config.json", "preprocessor_config.json", "ast_stream.json")
    },
    **{
        f"a folder for {name}": (_folder(name), rf"{name}: expected a file, got something else")
        for name in (W, "config.json", "preprocessor_config.json", "ast_stream.json")
    },
    **{
        f"a FIFO for {name}": (_fifo(name), rf"{name}: expected a file, got something else")
        for name in (W, "config.json", "preprocessor_config.json", "ast_stream.json")
    },
    "a text without end": (
        lambda d: os.truncate(d / "config.json", 1 << 40),
        r"config\.json: expected at most 32 MB, got 1099511627776 bytes",
    ),
    "a threshold of NaN": (
        lambda d: (d / "ast_stream.json").write_text('{"default_onset_threshold": NaN}'),
        r"ast_stream\.json: default_onset_threshold: ",
    ),
    "a rise time of ages": (
        lambda d: _edit(d / "ast_stream.json", rise_on_s={"Bark": 1e300}),
        r"ast_stream\.json: rise_on_s\.Bark: ",
    ),
    "a window of ages": (
        lambda d: _edit(d / "ast_stream.json", window_s=1e300),
        r"ast_stream\.json: window_s: ",
    ),
    "a hop of nothing": (
        lambda d: _edit(d / "ast_stream.json", hop_s=5e-324),
        r"ast_stream\.json: hop_s: ",
    ),
    "a header longer than the file": (
        lambda d: (d / W).write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
        "damaged or not a safetensors file",
    ),
    "tensors that overlap": (
        lambda d: _lie(d / W, [0, 4], [0, 4]),
        "damaged or not a safetensors file",
    ),
    "a tensor beyond the file": (
        lambda d: _lie(d / W, [0, 4], [4, 1 << 40]),
        "damaged or not a safetensors file",
    ),
    "an adapter": (
        lambda d: _replace_tensor(d / W, f"{HF}layernorm.lora_A.weight", torch.zeros(2)),
        "lora_A.weight: an adapter .* merge it",
    ),
    "two models": (lambda d: _double(d / W), r"got several, under 'ema\.' and 'model\.'"),
    "an index without a file": (
        lambda d: _index(d, {"a": "model-00001-of-00002.safetensors"}),
        r"model-00001-of-00002\.safetensors is missing beside it",
    ),
    "an index that leads away": (
        lambda d: _index(d, {"a": "../other/model.safetensors"}),
        "weight_map: a: expected the name of a file beside it, got '../other/model.safetensors'",
    ),
    "an index of nothing": (lambda d: _index(d, {}), "weight_map: expected file names by tensor"),
    "shards without an index": (
        lambda d: (
            shutil.copy(d / W, d / "model-00001-of-00002.safetensors"),
            (d / W).rename(d / "model-00002-of-00002.safetensors"),
        ),
        r"index\.json is missing: write it again with save_pretrained",
    ),
    "a lone adapter": (
        lambda d: ((d / "adapter_config.json").write_text("{}"), (d / W).unlink()),
        r"it holds an adapter \(PEFT\): .* merge_and_unload",
    ),
    "the state of a training": (
        lambda d: ((d / "optimizer.pt").write_bytes(b"x"), (d / W).unlink()),
        "got none; what is there is the state of a training",
    ),
    "checkpoints of a training": (
        lambda d: ((d / "checkpoint-500").mkdir(), (d / W).rename(d / "checkpoint-500" / W)),
        "the folders in it have some: checkpoint-500",
    ),
    "a model for another program": (
        lambda d: (d / W).rename(d / "model.onnx"),
        r"model\.onnx is a model for ONNX: write the model again",
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


@pytest.mark.slow
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
    "nothing inside": (lambda p: torch.save({"state_dict": {}}, p), "holds no tensors"),
    "two models": (
        lambda p: torch.save({"state_dict": {}, "model": {}}, p),
        "expected one model, got state_dict and model; write the one that is meant",
    ),
    "a sparse tensor": (
        lambda p: torch.save({"a": torch.eye(2).to_sparse()}, p),
        "a: expected plain numbers, got a tensor that is sparse",
    ),
    "a tensor without data": (
        lambda p: torch.save({"a": torch.zeros(2, device="meta")}, p),
        "a: expected plain numbers, got a tensor .* without data",
    ),
    "a program": (
        lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p),
        "a TorchScript program, which is not run",
    ),
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
