"""What set-up prepares: Vega for plots, and Prefect's empty tables."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tunemill import prepare


def test_set_up_has_left_vega_and_prefects_tables_with_nothing_in_them() -> None:
    assert "window.vegaEmbed" in prepare.VEGA.read_text(encoding="utf-8") and prepare.VEGA.stat().st_size > 500_000
    with sqlite3.connect(f"file:{prepare.PREFECT_DATABASE}?mode=ro", uri=True) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        assert {"flow_run", "task_run", "log", "alembic_version"} <= tables
        assert {table for table in tables if database.execute(f"select count(*) from {table}").fetchone() != (0,)} <= {
            "alembic_version"
        }


def test_a_home_without_a_database_gets_the_prepared_one_and_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "PREFECT_DATABASE", tmp_path / "prepared.db")
    prepare.seed_prefect(tmp_path / "bare")  # nothing was prepared: Prefect makes its tables itself
    assert not (tmp_path / "bare").exists()
    (tmp_path / "prepared.db").write_bytes(b"tables")
    for _ in range(2):
        prepare.seed_prefect(tmp_path / "home")
        assert [each.name for each in (tmp_path / "home").iterdir()] == ["prefect.db"]
        assert (tmp_path / "home/prefect.db").read_bytes() == b"tables"
    (tmp_path / "home/prefect.db").write_bytes(b"its own")
    prepare.seed_prefect(tmp_path / "home")
    assert (tmp_path / "home/prefect.db").read_bytes() == b"its own"
