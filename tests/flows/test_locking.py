"""dvc.lock is written whole or not at all, and reads as DVC itself writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dvc.dvcfile
import pytest
from dvc.utils.serialize import modify_yaml

from flows import dvc_process, locking, sharing

LOCK = """\
schema: '2.0'
stages:
  collect:
    cmd: python -m stages.collect --out artifacts/collect
    deps:
    - path: a file.txt
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 12
    params:
      params.yaml:
        collect:
          rate: 5e-3
          date: 2026-11-30
          text: "two\\nlines: and a colon"
          none:
          some: [1, 2.50, 'yes', true]
"""


def change(content: Any) -> None:
    content["stages"]["lora"] = {"cmd": "python -m stages.lora", "params": {"params.yaml": {"lora": {"name": "no"}}}}


def test_the_content_is_what_dvc_would_have_written(tmp_path: Path) -> None:
    # Its own way of writing first: what a person typed by hand, it keeps as typed.
    for name, way in (("a", modify_yaml), ("b", modify_yaml), ("b", locking.whole(modify_yaml))):
        path = tmp_path / name / "dvc.lock"
        path.parent.mkdir(exist_ok=True)
        with modify_yaml(str(path)) as content:
            if not content:
                from ruamel.yaml import YAML

                content.update(YAML(typ="safe", pure=True).load(LOCK))
        with way(str(path)) as content:
            change(content)
    assert (tmp_path / "a/dvc.lock").read_text() == (tmp_path / "b/dvc.lock").read_text()
    assert "lora" in (tmp_path / "b/dvc.lock").read_text()
    assert [each.name for each in (tmp_path / "b").iterdir()] == ["dvc.lock"]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(LOCK)

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"), locking.whole(modify_yaml)(str(path)) as content:
        change(content)
    assert path.read_text() == LOCK
    assert [each.name for each in tmp_path.iterdir()] == ["dvc.lock"]


def test_a_new_file_and_other_files(tmp_path: Path) -> None:
    way = locking.whole(modify_yaml)
    with way(str(tmp_path / "dvc.lock")) as content:
        content["schema"] = "2.0"
    assert (tmp_path / "dvc.lock").read_text() == "schema: '2.0'\n"
    (tmp_path / "dvc.yaml").write_text("stages: {} # none\n")
    with way(str(tmp_path / "dvc.yaml")) as content:
        content["vars"] = []
    assert (tmp_path / "dvc.yaml").read_text() == "stages: {} # none\nvars: []\n"


def test_what_is_restored_is_written_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc.dvcfile, "modify_yaml", modify_yaml)
    monkeypatch.setattr(sys, "argv", ["dvc_process", "lora"])
    found: list[object] = []

    def adopt(*_: object) -> None:
        found.append(dvc.dvcfile.modify_yaml)
        raise KeyboardInterrupt  # far enough: DVC itself is not to run

    monkeypatch.setattr(sharing, "adopt", adopt)
    with pytest.raises(KeyboardInterrupt):
        dvc_process.main()
    assert len(found) == 1 and found[0] is not modify_yaml


def test_dvc_writes_its_lock_file_with_what_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "modify_yaml" in dvc.dvcfile.Lockfile.dump_stages.__code__.co_names  # another DVC: another way to write it
    monkeypatch.setattr(dvc.dvcfile, "modify_yaml", modify_yaml)
    locking.install()
    assert dvc.dvcfile.modify_yaml is not modify_yaml
