"""Files and checkpoints are complete or not there, and damage is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunemill import checkpoints


def fill(text: str):
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "weights").write_text(text)
        (folder / "sub" / "state").write_text(text * 2)

    return write


def test_newest_takes_the_highest_number_that_is_complete(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        checkpoints.save(tmp_path, f"checkpoint-{number}", fill(str(number)))
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "sub" / "state").write_text("damaged")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-9"
    (tmp_path / "checkpoint-9" / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / checkpoints.MANIFEST).write_text('{"weights": ')
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "nowhere") is None


def test_a_failing_writer_leaves_no_checkpoint(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path, "checkpoint-1", write)
    assert checkpoints.newest(tmp_path) is None
    checkpoints.save(tmp_path, "checkpoint-1", fill("again"))
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-1"


def test_json_is_sorted_and_refuses_not_a_number(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "a" / "b.json", {"b": 1, "a": None})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "a": null,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        checkpoints.write_json(tmp_path / "a" / "b.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"a": None, "b": 1}
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["b.json"]


def test_tree_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    fill("1")(tmp_path / "x")
    first = checkpoints.tree_hash(tmp_path / "x")
    (tmp_path / "x" / "weights").rename(tmp_path / "x" / "weight")
    assert checkpoints.tree_hash(tmp_path / "x") != first
    (tmp_path / "x" / "weight").rename(tmp_path / "x" / "weights")
    assert checkpoints.tree_hash(tmp_path / "x") == first


def test_publish_replaces_a_folder_and_a_file(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    checkpoints.publish(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    (tmp_path / "one").write_text("1")
    checkpoints.publish(tmp_path / "one", tmp_path / "deep" / "two")
    assert (tmp_path / "deep" / "two").read_text() == "1"
