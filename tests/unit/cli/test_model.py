"""`ast-stream model`: what it lists, says, fetches and converts."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import TINY_DIMS, TINY_LABELS, save_tiny, tiny_checkpoint
from typer.testing import CliRunner, Result

from ast_stream.cli.model import app
from ast_stream.errors import CheckpointError, UsageError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import average_checkpoints, load_checkpoint
from ast_stream.model.metadata import FrameDecisions, StoredOnsetFit
from ast_stream.model.selfcheck import self_check
from ast_stream.model.tagger import Tagger
from ast_stream.model.weights import FRAME_HEAD, from_own


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def _model(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), catch_exceptions=False)


def _lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0
    return [json.loads(line) for line in result.stdout.splitlines()]


def _put_into_cache(hub_cache: Path, name: str, **config: Any) -> None:
    repository = hub_cache / f"models--someone--{name}"
    commit = "b" * 40
    save_tiny(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    path = repository / "snapshots" / commit / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_list_shows_folders_and_the_hub_cache(tmp_path: Path, hub_cache: Path) -> None:
    save_tiny(tmp_path / "models" / "one")
    damaged = save_tiny(tmp_path / "models" / "two")
    (damaged / "model.safetensors").write_bytes(b"")
    (tmp_path / "models" / "notes").mkdir()
    _put_into_cache(hub_cache, "tiny")
    _put_into_cache(hub_cache, "words", model_type="bert")
    rows = {
        row["checkpoint"]: row for row in _lines(_model("list", str(tmp_path / "models"), "--json"))
    }
    one, two = rows[str(tmp_path / "models" / "one")], rows[str(damaged)]
    n_params = sum(p.numel() for p in AudioSpectrogramTransformer(TINY_DIMS).parameters())
    assert (one["classes"], one["window_s"], one["params"]) == (3, 1.0, n_params)
    assert "the file is empty" in two["problem"]
    assert rows["someone/tiny"]["params"] == n_params
    assert rows["someone/words"]["problem"] == "not an Audio Spectrogram Transformer"
    assert len(rows) == 5  # and the bundled one
    assert str(damaged.name) in _model("list", str(tmp_path / "models")).stdout


def test_list_refuses_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder"):
        _model("list", str(tmp_path / "nowhere"))


def test_info_says_everything_about_a_checkpoint(tmp_path: Path) -> None:
    saved = save_tiny(
        tmp_path / "tiny",
        onset_thresholds={"Bark": 0.61},
        rise_on_s={"Bark": 0.2},
        rise_off_s={"Bark": 0.1},
        confirm_s={"Bark": 2.0},
        onset_fits={
            "Bark": StoredOnsetFit(
                rise_s=0.2, before_s=0, first_s=0.1, lowest_s=0, highest_s=0.5, within_s=0.3
            )
        },
        background=["Background"],
        licence="CC-BY-4.0",
        provenance={"thresholds": {"runs": {"1f": {}}, "classes": {"Bark": {"n_found": 47}}}},
    )
    [facts] = _lines(_model("info", str(saved), "--json"))
    assert facts["hash"] == tiny_checkpoint().hash
    assert facts["provenance"]["thresholds"]["classes"]["Bark"]["n_found"] == 47
    n_params = sum(p.numel() for p in AudioSpectrogramTransformer(TINY_DIMS).parameters())
    assert (facts["licence"], facts["params"], facts["window_s"]) == ("CC-BY-4.0", n_params, 1.0)
    assert facts["dims"]["n_tokens"] == 66
    bark, siren, background = facts["classes"]
    assert (bark["onset_threshold"], bark["rise_on_s"], bark["rise_assumed"]) == (0.61, 0.2, False)
    assert (bark["confirm_s"], bark["onset_within_s"]) == (2.0, 0.3)
    assert (siren["onset_threshold"], siren["rise_assumed"]) == (0.5, True)
    assert (siren["confirm_s"], siren["onset_within_s"]) == (0.75, None)
    assert not background["makes_events"]
    text = _model("info", str(saved)).stdout
    for expected in (
        *TINY_LABELS,
        "CC-BY-4.0",
        "0.61",
        "2.00 s",
        "rise assumed",
        "within 0.30 s",
        "makes no events",
        '"runs": {"1f": {}}, "classes": "of 1, see --json"',
    ):
        assert expected in text
    assert "n_found" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_info_of_a_broken_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or .*, got none"):
        _model("info", str(tmp_path))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_convert_makes_a_checkpoint_that_checks_itself(tmp_path: Path, precision: Any) -> None:
    save_tiny(tmp_path / "tiny")
    original = load_checkpoint(str(tmp_path / "tiny"))
    (tmp_path / "tiny" / "model.safetensors").unlink()
    source = tmp_path / "tiny" / "weights.pth"
    torch.save(from_own(original.state_dict, "original"), source)
    result = _model("convert", str(source), str(tmp_path / "new"), "--precision", precision)
    assert result.stdout.strip() == str(tmp_path / "new")
    converted = load_checkpoint(str(tmp_path / "new"))
    assert (converted.hash == original.hash) == (precision == "fp32")
    assert converted.labels == TINY_LABELS
    assert converted.metadata.provenance["converted_from"]["hash"] == original.hash
    check = self_check(Tagger(converted, device="cpu", precision="fp32", attention="math"))
    assert check.against == "golden"
    assert check.max_error < 1e-5


def test_convert_never_overwrites(tmp_path: Path) -> None:
    saved = save_tiny(tmp_path / "tiny")
    before = (saved / "model.safetensors").read_bytes()
    for target in (saved, saved / "config.json"):
        with pytest.raises(UsageError, match="expected a new or empty folder"):
            _model("convert", str(saved), str(target))
    assert (saved / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_average_writes_the_mean_of_the_weights_without_thresholds(tmp_path: Path) -> None:
    folders = [
        save_tiny(tmp_path / name, seed, onset_thresholds={"Bark": 0.3})
        for seed, name in enumerate(("one", "two"))
    ]
    first, second = (load_checkpoint(str(folder)) for folder in folders)
    for folder, rows in zip(folders, ("a.wav,Ann\n", "a.wav,Ann\nb.wav,Bob\n"), strict=True):
        (folder / "ATTRIBUTIONS.csv").write_text("file,author\n" + rows)
    _model("average", *map(str, folders), "-o", str(tmp_path / "mean"), "--precision", "fp32")
    mean = load_checkpoint(str(tmp_path / "mean"))
    for name, tensor in mean.state_dict.items():
        torch.testing.assert_close(tensor, (first.state_dict[name] + second.state_dict[name]) / 2)
    assert not mean.metadata.named_labels()
    attributions = (tmp_path / "mean" / "ATTRIBUTIONS.csv").read_text()
    assert attributions == "file,author\na.wav,Ann\nb.wav,Bob\n"
    assert mean.metadata.provenance["averaged_from"] == [first.hash, second.hash]
    assert self_check(Tagger(mean, "cpu", "fp32", "math")).against == "golden"


def test_convert_and_average_keep_a_frame_head(tmp_path: Path) -> None:
    frames = FrameDecisions(delay_s=0.32, onset_thresholds={"Bark": 0.7})
    folders = [save_tiny(tmp_path / str(seed), seed, frames=frames) for seed in range(2)]
    one, two = (load_checkpoint(str(folder)) for folder in folders)
    _model("convert", str(folders[0]), str(tmp_path / "copy"))
    copy = load_checkpoint(str(tmp_path / "copy"))
    assert (copy.hash, copy.metadata.frames) == (one.hash, frames)
    mean = average_checkpoints([one, two], "mean")
    for name in FRAME_HEAD:
        torch.testing.assert_close(
            mean.state_dict[name], (one.state_dict[name] + two.state_dict[name]) / 2
        )
    assert mean.metadata.frames == FrameDecisions(delay_s=0.32)
    with pytest.raises(CheckpointError, match="has_frames: expected that of tiny model, seed 0"):
        average_checkpoints([tiny_checkpoint(0), one], "mean")


def test_info_says_how_frames_decide(tmp_path: Path) -> None:
    frames = FrameDecisions(delay_s=0.32, onset_thresholds={"Bark": 0.7})
    saved = save_tiny(tmp_path / "tiny", frames=frames, onset_thresholds={"Bark": 0.4})
    [facts] = _lines(_model("info", str(saved), "--json"))
    assert facts["frames"] == {"frame_s": 0.16, "frames_per_window": 8, "delay_s": 0.32}
    bark = facts["classes"][0]
    assert (bark["onset_threshold"], bark["confirm_s"], bark["rise_on_s"]) == (0.7, 0.3, None)
    assert "frame_s" in _model("info", str(saved)).stdout
    [facts] = _lines(_model("info", str(save_tiny(tmp_path / "without")), "--json"))
    assert facts["frames"] is None


def test_a_mean_has_heard_what_any_of_its_parts_has() -> None:
    parts = [tiny_checkpoint(provenance={"test_folds": folds}) for folds in (["1", "2"], ["2"])]
    assert average_checkpoints(parts, "mean").metadata.provenance["test_folds"] == ["2"]


def test_average_refuses_checkpoints_of_different_models(tmp_path: Path) -> None:
    saved = save_tiny(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="bundled: dims: expected that of"):
        _model("average", str(saved), "bundled", "-o", str(tmp_path / "mean"))
    with pytest.raises(UsageError, match="expected two checkpoints or more, got 1"):
        _model("average", str(saved), "-o", str(tmp_path / "mean"))


def test_fetch_brings_a_checkpoint_and_checks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    saved = save_tiny(tmp_path / "tiny")

    def snapshot_download(hub_id: str, *, allow_patterns: list[str], local_dir: Path) -> str:
        assert hub_id == "someone/tiny"
        local_dir.mkdir(exist_ok=True)
        for path in saved.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, local_dir / path.name)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    result = _model("fetch", "someone/tiny", "-o", str(tmp_path / "here"))
    assert result.stdout.strip() == str(tmp_path / "here")
    assert load_checkpoint(str(tmp_path / "here")).hash == tiny_checkpoint().hash
    parts = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    shard = "model-00001-of-00001.safetensors"
    save_file(parts, saved / shard)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(parts, shard)}))
    _model("fetch", "someone/tiny", "-o", str(tmp_path / "parts"))
    assert load_checkpoint(str(tmp_path / "parts")).hash == tiny_checkpoint().hash
    index.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors or .*pytorch_model\.bin"):
        _model("fetch", "someone/tiny", "-o", str(tmp_path / "there"))


def test_fetch_without_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="someone/tiny: cannot be fetched") as caught:
        _model("fetch", "someone/tiny", "-o", str(tmp_path / "here"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="expected organisation/name, got 'tiny'"):
        _model("fetch", "tiny")
