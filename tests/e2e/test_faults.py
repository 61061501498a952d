"""Mistakes and bad sources: one clear answer, nothing half-written, no traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e import checkout

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout.make(tmp_path_factory.mktemp("faults"))


def edited(place: Path, old: str, new: str) -> str:
    path = place / "params.yaml"
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new, 1), encoding="utf-8")
    return before


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "  learning_rate:",
            "  learning_rat:",
            ["pretrain.learning_rat: unknown key", "did you mean 'learning_rate'?"],
        ),
        ("  test_items: 24", "  test_items: many", ['evaluate.test_items: "many" is not allowed', "integer"]),
        (
            "  test_items: 24",
            "  test_items: -1",
            ["evaluate.test_items: -1 is not allowed", "greater than or equal to 1"],
        ),
        ("\ncompare:", "\ncompar:", ["section 'compare' is missing", "is 'compar' meant to be 'compare'?"]),
        ("against: base", "against: bas", ["'bas' is no candidate", "did you mean 'base'?"]),
        ("policy: artifacts/lora/adapter", "policy: artifacts/lore/adapter", ["is neither there nor made by a stage"]),
    ],
)
def test_a_wrong_params_file_is_answered_before_anything_starts(
    place: Path, old: str, new: str, told: list[str]
) -> None:
    before = edited(place, old, new)
    try:
        began = time.monotonic()
        checked = checkout.run(place, "python", "-m", "stages", "--check", check=False)
        answered = time.monotonic() - began
        ran = checkout.run(place, "make", "run", check=False)
    finally:
        (place / "params.yaml").write_text(before, encoding="utf-8")
    for done in (checked, ran):
        assert done.returncode == 2
        for each in ["params.yaml", *told]:
            assert each in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert answered < 10  # about a second on a quiet machine
    assert not (place / "artifacts").exists()


@pytest.mark.network
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sha256: &pyrit 84581036", "sha256: &pyrit 00000000", "are not those that were pinned"),
        ("package: pyrit", "package: no-such-package-as-this-one", "no-such-package-as-this-one"),
        ("absl-py==2.5.1", "absl-py==2.5.0", "absl-py"),
    ],
)
def test_a_source_that_is_not_as_pinned_leaves_nothing(place: Path, old: str, new: str, told: str) -> None:
    before = edited(place, old, new)
    try:
        done = checkout.run(place, "dvc", "repro", "collect", check=False)
    finally:
        (place / "params.yaml").write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (place / "artifacts/collect").exists()


def test_too_many_bad_rows_fail_the_stage_with_a_table(place: Path) -> None:
    before = edited(place, "refused: {examples: 0.1", "refused: {examples: 0.0001")
    try:
        done = checkout.run(place, "dvc", "repro", "validate", check=False)
    finally:
        (place / "params.yaml").write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert "near_duplicate" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (place / "artifacts/validate").exists()
