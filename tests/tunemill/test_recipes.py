"""Recipes and overrides become workspaces; the user's params.yaml is never touched."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import Toy, toy  # noqa: F401 - the fixture
from tunemill import recipes, runtime
from tunemill.errors import UserError

BASE = """\
# Data.
collect:
  sources: [a, b] # pinned
  limit: 100
# Tuning.
lora:
  rate: 8e-4 # peak
  targets: {q: true, v: true}
candidates:
  base: {policy: artifacts/select}
  lora: {policy: artifacts/lora}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "params.yaml"
    path.write_text(BASE)
    return path


def overlay(base: Path, text: str) -> str:
    path = base.parent / "recipes" / "mine.yaml"
    path.write_text(text)
    return recipes.merged(base, [(path, None)])


def test_mappings_merge_the_rest_is_replaced_and_comments_stay(base: Path) -> None:
    assert overlay(base, "lora: {rate: 1e-3, targets: {v: false}}\ncollect: {sources: [c]}\n") == (
        BASE.replace("8e-4", "1e-3").replace("v: true", "v: false").replace("[a, b] # pinned", "[c]    # pinned")
    )


def test_candidates_of_a_recipe_are_all_there_are(base: Path) -> None:
    text = overlay(base, "candidates: {base: {policy: x}, wide: {policy: y}}\n")
    assert text.endswith("candidates:\n  base: {policy: x}\n  wide: {policy: y}\n")


def test_an_unknown_key_is_refused_with_line_and_nearest(base: Path) -> None:
    with pytest.raises(UserError) as told:
        overlay(base, "# mine\nlora:\n  rat: 1\n")
    assert str(told.value) == (
        f"{base.parent}/recipes/mine.yaml:3: lora.rat: params.yaml has no such key\n"
        "  expected: one of rate, targets\n  fix: did you mean 'rate'?"
    )
    assert told.value.exit_code == 2


@pytest.mark.parametrize(("text", "what"), [("- a\n", "no sections"), ("a: [\n", "not valid YAML")])
def test_what_is_no_overlay_is_refused(base: Path, text: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        overlay(base, text)


def test_an_unknown_recipe_names_the_nearest(base: Path) -> None:
    (base.parent / "recipes" / "tiny.yaml").write_text("{}")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        recipes.workspace(base.parent, "tyni", {})


def test_without_recipe_and_overrides_the_checkout_itself_is_used(base: Path) -> None:
    assert recipes.workspace(base.parent, None, {}) == base.parent


def test_both_ways_to_write_an_override_are_one_workspace(toy: Toy) -> None:  # noqa: F811
    dotted = recipes.workspace(toy.root, "slow", {"lora.exit": 1})
    nested = recipes.workspace(toy.root, "slow", {"lora": {"exit": 1}})
    assert dotted == nested != recipes.workspace(toy.root, "slow", {"lora.exit": 2})
    assert "exit: 1" in (dotted / "params.yaml").read_text()
    assert "seconds: 300 # of sleep" in (dotted / "params.yaml").read_text()
    assert (toy.root / "params.yaml").read_text().count("seconds: 300") == 0


def test_a_refresh_follows_the_checkout_and_keeps_what_runs_made(toy: Toy) -> None:  # noqa: F811
    (toy.root / "stages" / "old.py").write_text("")
    place = recipes.workspace(toy.root, "slow", {})
    for made in ("artifacts/lora/adapter", "metrics/lora.json", "work/x", "dvc.lock", "reports/report.html"):
        (place / made).parent.mkdir(parents=True, exist_ok=True)
        (place / made).write_text("made")
    (toy.root / "stages" / "old.py").unlink()
    (toy.root / "stages" / "new.py").write_text("new")
    kept = (place / "stages" / "toy.py").stat().st_mtime_ns
    recipes.workspace(toy.root, "slow", {})
    assert not (place / "stages" / "old.py").exists()
    assert (place / "stages" / "new.py").read_text() == "new"
    assert (place / "stages" / "toy.py").stat().st_mtime_ns == kept
    for made in ("artifacts/lora/adapter", "metrics/lora.json", "work/x", "dvc.lock", "reports/report.html"):
        assert (place / made).read_text() == "made"
    assert not (place / "work.log").exists()  # git ignores it


@pytest.mark.slow
def test_dvc_works_by_hand_in_a_workspace_and_shares_the_checkouts_cache(toy: Toy) -> None:  # noqa: F811
    def dvc(place: Path, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=place, env=toy.environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    place = recipes.workspace(toy.root, None, {"lora.exit": 0})
    dvc(place, "repro", "collect")
    assert "up to date" in dvc(place, "status", "collect")
    assert not (place / ".dvc" / "cache").exists()
    assert toy.ran == []  # the checkout has not run it; what is done in the workspace is in the cache of both
    made = (place / "artifacts" / "collect").read_bytes()
    cached = [path.read_bytes() for path in (toy.root / ".dvc" / "cache").rglob("*") if path.is_file()]
    assert made in cached
    (place / "artifacts" / "collect").unlink()
    dvc(place, "checkout", "collect")
    assert (place / "artifacts" / "collect").read_bytes() == made


def test_a_workspace_that_a_run_holds_is_left_as_it_is(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    place = recipes.workspace(toy.root, "slow", {})
    (toy.root / "stages" / "new.py").write_text("new")
    impatient = functools.partial(runtime.ownership, patience=0.0)
    monkeypatch.setattr(recipes, "ownership", lambda path, what, patience: impatient(path, what))
    with (
        runtime.ownership(place / "work" / "run.lock", "the run"),
        pytest.raises(UserError, match="the workspace work/recipes/slow is held by process"),
    ):
        recipes.workspace(toy.root, "slow", {})
    assert not (place / "stages" / "new.py").exists()


def test_a_variant_of_another_method_stands_for_itself(tmp_path: Path) -> None:
    from tunemill.params import ParamsFile

    other = {"method": "structured", "sparsity": 0.3, "layers": 2, "groups": 0, "recover": False}
    overlay = {"prune": {"variants": {"wanda": other, "magnitude": {"method": "magnitude", "sparsity": 0.4}}}}
    params = Path(__file__).resolve().parents[2] / "params.yaml"
    (tmp_path / "params.yaml").write_text(recipes.merged(params, [(Path("overrides"), overlay)]))
    found = ParamsFile(tmp_path / "params.yaml").values("prune")["variants"]
    assert found == {"wanda": other, "magnitude": {"method": "magnitude", "sparsity": 0.4, "recover": True}}
