"""scope: the use case written down as it was asked."""

from __future__ import annotations

import json
from pathlib import Path

from stages import scope
from tunemill.params import ParamsFile

ROOT = Path(__file__).resolve().parents[2]


def test_the_scope_is_written_as_asked(tmp_path: Path) -> None:
    file = ParamsFile(ROOT / "params.yaml")
    metrics = scope.run(file.section("scope", scope.Config), out=tmp_path / "scope")
    written = json.loads((tmp_path / "scope/scope.json").read_text())
    assert written == file.values("scope")
    asked = json.loads((tmp_path / "scope/requirements.json").read_text())
    assert asked == {name: written[name] for name in ("kind", "primary_metric", "constraints")}
    assert metrics == {"criteria": len(written["criteria"])}
