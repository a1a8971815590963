"""Models of a box: whole or not there, and the way back always open."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from reactive_model import save_reactive

from ast_stream.errors import WireError
from ast_stream.fleet.model_folder import (
    DamagedModelError,
    ModelFolder,
    describe_files,
    missing_pieces,
    write_piece,
)
from ast_stream.messages.rollout import CheckpointManifest, ManifestFile
from ast_stream.settings.chosen_model import chosen_model, folder_name, hash_of_folder
from ast_stream.settings.schema import Settings

MODEL = f"sha256:{64 * 'a'}"


def stored(folder: ModelFolder, source: Path, model: str = MODEL) -> CheckpointManifest:
    """Put a checkpoint into the folder as a follower does."""
    manifest = describe_files(source, model)
    place = folder.incoming(manifest.content)
    for file in manifest.files:
        content = (source / file.name).read_bytes()
        for index in missing_pieces(place, file):
            write_piece(place, file, index, content)
    folder.accept(manifest)
    return manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_bytes(b"{}")
    return folder


def test_a_model_is_put_together_and_checked(tmp_path: Path, source: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    manifest = stored(folder, source)
    assert folder.holds(manifest.content)
    assert folder.check(manifest.content) == manifest
    assert not list((folder.path / "incoming").iterdir())


def test_a_real_checkpoint_can_be_described(tmp_path: Path) -> None:
    save_reactive(tmp_path / "model")
    manifest = describe_files(tmp_path / "model", MODEL)
    assert "model.safetensors" in [file.name for file in manifest.files]
    assert CheckpointManifest.decode(manifest.encode(), manifest.content) == manifest


def test_two_checkpoints_with_the_same_weights_have_contents_of_their_own(source: Path) -> None:
    first = describe_files(source, MODEL)
    (source / "config.json").write_bytes(b'{"thresholds":1}')
    assert describe_files(source, MODEL).content != first.content


def test_only_what_a_checkpoint_is_made_of_is_sent(source: Path) -> None:
    for name in ("pytorch_model.bin", "state.pt", "run.py", "metrics.jsonl", ".hidden", "a.so"):
        (source / name).write_bytes(b"x")
    for name in ("ATTRIBUTIONS.csv", "README.md", "frames.safetensors"):
        (source / name).write_bytes(b"x")
    assert [file.name for file in describe_files(source, MODEL).files] == [
        "ATTRIBUTIONS.csv",
        "README.md",
        "config.json",
        "frames.safetensors",
        "model.safetensors",
    ]
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected weights as model\.safetensors, got none"):
        describe_files(source, MODEL)


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "", "a\n", "x" * 200, "a.unfinished"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    body = {"v": 1, "model": MODEL, "files": [_file(name, digest)]}
    with pytest.raises(WireError):
        CheckpointManifest.from_json(body, "manifest")


def _file(name: str, digest: str) -> dict[str, object]:
    return {"name": name, "bytes": 0, "sha256": digest, "pieces": []}


def test_a_manifest_that_is_not_the_one_asked_for_is_refused(source: Path) -> None:
    manifest = describe_files(source, MODEL)
    with pytest.raises(WireError, match="is damaged, or not the one that was asked for"):
        CheckpointManifest.decode(manifest.encode() + b" ", manifest.content)


def test_a_damaged_piece_is_never_written(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    file = ManifestFile(name="a.json", size=5, digest=digest, pieces=[digest])
    with pytest.raises(DamagedModelError, match=r"a\.json: piece 0 is damaged"):
        write_piece(tmp_path, file, 0, b"wrong")
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("damage", ["other", "missing", "one too many", "link", "longer"])
def test_what_is_not_what_it_was_is_noticed(tmp_path: Path, source: Path, damage: str) -> None:
    folder = ModelFolder(tmp_path / "models")
    manifest = stored(folder, source)
    weights = folder.path_of(manifest.content) / "model.safetensors"
    match damage:
        case "other":
            weights.write_bytes(b"weighed")
        case "missing":
            weights.unlink()
        case "one too many":
            (weights.parent / "extra.py").touch()
        case "link":
            weights.rename(tmp_path / "elsewhere")
            weights.symlink_to(tmp_path / "elsewhere")
        case "longer":
            weights.write_bytes(b"weights and more")
    with pytest.raises(DamagedModelError):
        folder.check(manifest.content)


def test_a_kill_between_the_pieces_costs_only_the_missing_ones(
    tmp_path: Path, source: Path
) -> None:
    folder = ModelFolder(tmp_path / "models")
    manifest = describe_files(source, MODEL)
    place = folder.incoming(manifest.content)
    config, weights = manifest.files
    write_piece(place, config, 0, b"{}")
    again = ModelFolder(tmp_path / "models").incoming(manifest.content)
    assert missing_pieces(again, config) == []
    assert missing_pieces(again, weights) == [0]


def test_links_say_what_is_in_use_and_what_was(tmp_path: Path, source: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    first = stored(folder, source).content
    (source / "config.json").write_bytes(b"{ }")
    second = stored(folder, source).content
    assert (folder.current, folder.previous) == (None, None)
    folder.activate(first)
    assert (folder.current, folder.previous) == (first, None)
    folder.activate(second)
    assert (folder.current, folder.previous) == (second, first)
    folder.restore(first)
    assert folder.current == first
    folder.activate(None)
    assert [folder.current, folder.previous] == [None, first]


def test_two_old_models_are_kept(tmp_path: Path, source: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    contents = []
    for number in range(5):
        (source / "config.json").write_bytes(b"{}" + b" " * number)
        contents.append(stored(folder, source).content)
        os.utime(folder.path_of(contents[-1]), (number, number))
        folder.activate(contents[-1])
        folder.purge()
    assert [folder.holds(content) for content in contents] == [False, False, True, True, True]


def test_a_model_in_use_is_never_forgotten(tmp_path: Path, source: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    content = stored(folder, source).content
    folder.activate(content)
    folder.forget(content)
    assert folder.holds(content)


def test_links_that_are_none_of_ours_choose_nothing(tmp_path: Path, source: Path) -> None:
    settings = Settings.model_validate(
        {
            "streams": [{"name": "a", "source": {"type": "scene"}}],
            "state_dir": str(tmp_path),
            "fleet": {"models": {"follow": True}},
            "forward": [{"name": "c", "type": "nats", "servers": ["nats://a"]}],
        }
    )
    folder = ModelFolder(tmp_path / "models")
    assert chosen_model(settings) is None
    content = stored(folder, source).content
    folder.activate(content)
    assert chosen_model(settings) == folder.path_of(content)
    for target in ("/etc", "../..", folder_name(MODEL), "incoming"):
        (folder.path / "current").unlink()
        (folder.path / "current").symlink_to(target)
        assert chosen_model(settings) is None


def test_names_of_folders_stand_for_hashes() -> None:
    assert hash_of_folder(folder_name(MODEL)) == MODEL
    assert hash_of_folder("sha256-aa") is None
