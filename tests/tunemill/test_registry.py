"""The registry on a real database: who becomes champion, what is refused, and that nothing is ever half-registered."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages import promoted
from tunemill import registry, tracking
from tunemill.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "api-summaries"
STRICT = [{**promoted.RULE, "at_least": 50.0}]
LOOSE = [{**promoted.RULE, "at_least": 0.5}]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: making its tables takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("empty")
    client = tracking.connect(folder)
    client.search_experiments()
    client.search_registered_models()
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a decision; not to be written to."""
    folder = tmp_path_factory.mktemp("decided")
    promoted.prepare(folder)
    for name in ("dvc.yaml", "pyproject.toml"):
        (folder / name).write_text("")
    before = Path.cwd()
    os.chdir(folder)
    try:
        promoted.decide(folder)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(tmp_path: Path, empty: Path, decided: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "checkout"
    shutil.copytree(decided, root)
    shutil.copy(empty, root / "mlflow.db")
    monkeypatch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    return root


def versions(root: Path) -> dict[str, dict[str, str]]:
    """Number → tags of every version."""
    found = tracking.connect(root).search_model_versions(f"name = '{MODEL}'")
    return {str(each.version): dict(each.tags) for each in found}


def aliases(root: Path) -> dict[str, str]:
    return {alias: str(each) for alias, each in tracking.connect(root).get_registered_model(MODEL).aliases.items()}


def retrained(root: Path, lift: float, weights: bytes, count: int = 60) -> None:
    """Another training, `lift` points above the level of the texts, and the decision about it."""
    promoted.prepare(root, {"base": 0.0, "lora": lift}, count, weights)
    promoted.decide(root)


def state(root: Path) -> dict[str, str]:
    """Every file of a checkout, by hash."""
    files = sorted(each for each in root.rglob("*") if each.is_file())
    return {each.relative_to(root).as_posix(): hashlib.md5(each.read_bytes()).hexdigest() for each in files}


def test_a_first_promotion_is_the_champion_with_its_whole_lineage(place: Path) -> None:
    plan, line = registry.register(place)
    assert (plan.outcome, plan.status) == ("champion", 0)
    assert line == f"{MODEL} version 1 is the champion: there was none before"
    assert aliases(place) == {"champion": "1"}
    [tags] = versions(place).values()
    decision = promoted.decision(place)
    assert tags["verdict"] == "promoted" and tags["candidate"] == "lora" and tags["parent_model"] == "some-model==1.2"
    for name in ("policy_hash", "base_hash", "test_hash"):
        assert tags[name] == decision[name]
    lock = json.loads((place / "dvc.lock").read_text())["stages"]
    assert tags["data_md5"] == lock["validate"]["outs"][0]["md5"]
    assert tags["code.commit"] == "unknown" and tags["code.dirty"] == "unknown"  # no git here
    stages = {each.removeprefix("stage.") for each in tags if each.startswith("stage.")}
    assert stages == {
        "collect",
        "validate",
        "scope",
        "select",
        "lora",
        "evaluate/lora",
        "efficiency",
        "compare",
        "promote",
    }
    client = tracking.connect(place)
    version = client.get_model_version(MODEL, "1")
    assert (
        version.description.startswith("# One-line summaries of API documentation")
        and "## Criteria" in version.description
    )
    assert len(version.description) <= registry.DESCRIPTION
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"test/rouge1": pytest.approx(decision["score"]["value"])}
    assert sorted(each.path for each in client.list_artifacts(version.run_id)) == [
        "README.md", "decision.json", "dvc.lock", "model", "params.yaml", "scores.jsonl",
    ]  # fmt: skip
    kept = Path(version.source.removeprefix("file://"))
    assert sorted(each.name for each in kept.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (kept / "adapter_model.safetensors").read_bytes() == b"adapter"
    assert (kept / "README.md").read_text() == (place / "artifacts/promote/README.md").read_text()


def test_the_commit_and_whether_its_code_was_changed_are_told(place: Path) -> None:
    (place / ".gitignore").write_text("/artifacts/\n/mlflow.db\n/mlartifacts/\n/work/\n/reports/\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    (place / "dvc.lock").write_text((place / "dvc.lock").read_text() + "\n")  # a result is no change of the code
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, text=True, capture_output=True).stdout.strip()
    assert registry._code(place) == (commit, "false")
    (place / "params.yaml").write_text((place / "params.yaml").read_text() + "\n")
    assert registry._code(place) == (commit, "true")


def test_the_same_again_is_no_new_version(place: Path) -> None:
    registry.register(place)
    before = versions(place), aliases(place), len(list((place / "mlartifacts").rglob("*")))
    plan, line = registry.register(place)
    assert (plan.outcome, plan.status) == ("already", 0)
    assert line == f"{MODEL} version 1 is the champion already: nothing has changed"
    assert (versions(place), aliases(place), len(list((place / "mlartifacts").rglob("*")))) == before


def test_a_stricter_criterion_refuses_and_a_looser_one_promotes_and_the_registry_shows_it(place: Path) -> None:
    promoted.decide(place, STRICT)
    plan, line = registry.register(place)
    assert (plan.outcome, plan.status) == ("refused", 3)
    assert line == (
        f"{MODEL} version 1 is refused: the criteria are not met, so no alias is given; there is no champion"
    )
    assert aliases(place) == {}
    promoted.decide(place, LOOSE)
    assert registry.register(place)[0].outcome == "champion"
    promoted.decide(place, STRICT)
    plan, line = registry.register(place)
    assert plan.outcome == "refused" and line.endswith("version 2 stays the champion")
    assert {number: tags["verdict"] for number, tags in versions(place).items()} == {"1": "refused", "2": "promoted"}
    assert aliases(place) == {"champion": "2"}
    described = tracking.connect(place).get_model_version(MODEL, "1").description
    assert (
        "lora is refused: 1 of 1 criteria not met. rouge1 of lora against base" in described
        and "missed by" in described
    )


def test_a_champion_is_replaced_by_what_is_not_worse_and_keeps_its_version(place: Path) -> None:
    registry.register(place)
    retrained(place, 12.0, b"better")
    plan, line = registry.register(place)
    assert plan.outcome == "champion" and line.startswith(
        f"{MODEL} version 2 is the champion, after version 1: rouge1 +"
    )
    assert "on the same 60 items: not worse by more than the margin of 1" in line
    found = versions(place)
    assert found["1"]["superseded"] == "2" and found["2"]["supersedes"] == "1" and "superseded" not in found["2"]
    assert aliases(place) == {"champion": "2"}

    retrained(place, 7.0, b"worse")
    plan, line = registry.register(place)
    assert (plan.outcome, plan.status) == ("challenger", 5)
    assert line.startswith(f"{MODEL} version 3 is the challenger: rouge1 −") and line.endswith(
        "worse by more than the margin of 1"
    )
    assert aliases(place) == {"champion": "2", "challenger": "3"}
    assert "superseded" not in versions(place)["2"]

    # With a wider margin it takes its place, and is no challenger any more.
    promoted.decide(place, champion_margin=20.0)
    plan, _ = registry.register(place)
    assert plan.outcome == "champion" and aliases(place) == {"champion": "4", "challenger": "3"}
    # What was champion before is champion again, with the version that it has.
    retrained(place, 12.0, b"better")
    plan, line = registry.register(place)
    assert plan.outcome == "champion" and line.startswith(f"{MODEL} version 2 is the champion, after version 4")
    found = versions(place)
    assert len(found) == 4 and found["4"]["superseded"] == "2" and "superseded" not in found["2"]


def test_a_challenger_that_becomes_champion_is_no_challenger(place: Path) -> None:
    registry.register(place)
    retrained(place, 10.0, b"another test set", count=48)
    assert registry.register(place)[0].outcome == "challenger"
    assert aliases(place) == {"champion": "1", "challenger": "2"}
    assert registry.register(place, force=True)[0].outcome == "champion"
    assert aliases(place) == {"champion": "2"}
    assert versions(place)["1"]["superseded"] == "2"


def test_other_test_items_are_not_compared(place: Path) -> None:
    registry.register(place)
    retrained(place, 30.0, b"another test set", count=48)
    plan, line = registry.register(place)
    assert (plan.outcome, plan.status) == ("challenger", 5)
    assert line == (
        f"{MODEL} version 2 is the challenger: version 1 was judged by other test items, which compares with nothing, so version 1"
        " stays the champion (--force, make promote FORCE=1)"
    )


def test_a_champion_whose_scores_are_gone_is_not_compared(place: Path) -> None:
    registry.register(place)
    shutil.rmtree(place / "mlartifacts")
    retrained(place, 12.0, b"better")
    plan, line = registry.register(place)
    assert plan.outcome == "challenger" and "the test scores of version 1 cannot be read" in line


def test_a_large_policy_is_listed_with_its_hashes(place: Path) -> None:
    promoted.decide(place, weights_mib=0.0)
    registry.register(place)
    client = tracking.connect(place)
    run_id = client.get_model_version(MODEL, "1").run_id
    assert sorted(each.path for each in client.list_artifacts(run_id, "model")) == [
        "model/README.md",
        "model/manifest.json",
    ]
    manifest = json.loads(Path(client.download_artifacts(run_id, "model/manifest.json")).read_text())
    assert [each["path"] for each in manifest["files"]] == [
        "artifacts/lora/adapter/adapter_config.json",
        "artifacts/lora/adapter/adapter_model.safetensors",
    ]
    assert manifest["files"][1]["md5"] == hashlib.md5(b"adapter").hexdigest()


def test_a_dry_run_says_what_would_be_and_writes_nothing(place: Path) -> None:
    before = state(place)
    assert registry.register(place, dry_run=True)[1] == (
        f"would be: {MODEL} version 1 is the champion: there was none before"
    )
    assert state(place) == before
    (place / "mlflow.db").rename(place.parent / "away.db")  # no database yet, and none after it
    assert registry.register(place, dry_run=True)[1].startswith(f"would be: {MODEL} version 1")
    assert versions(place) == {}
    (place.parent / "away.db").rename(place / "mlflow.db")
    registry.register(place)
    retrained(place, 2.5, b"worse")
    before = state(place)
    _, line = registry.register(place, dry_run=True)
    assert line.startswith(f"would be: {MODEL} version 2 is ") and state(place) == before
    promoted.decide(place, STRICT)
    before = state(place)
    assert registry.register(place, dry_run=True)[0].status == 3 and state(place) == before


STEPS = (
    "create_run",
    "log_artifact",
    "set_terminated",
    "create_registered_model",
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_step_is_mended_by_the_next_call(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    first = step == "create_registered_model"
    if not first:
        registry.register(place)
        retrained(place, 12.0, b"better")
    client = tracking.connect(place)
    real = getattr(type(client), step)

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        if after:
            real(self, *arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(client), step, killed)
        with pytest.raises(KeyboardInterrupt):
            registry.register(place)
    if not first:  # at any time there is a champion, and it is one of the two
        moved = step == "set_registered_model_alias" and after
        assert aliases(place)["champion"] == ("2" if moved else "1")
    plan, _ = registry.register(place)
    assert plan.status == 0
    newest = "1" if first else "2"
    assert aliases(place) == {"champion": newest} and [*sorted(versions(place))] == (["1"] if first else ["1", "2"])
    if not first:
        assert versions(place)["1"]["superseded"] == "2"
    runs = client.search_runs(
        [client.get_experiment_by_name(MODEL).experiment_id], "tags.`tunemill.stage` = 'registry'"
    )
    assert len(runs) == len(versions(place)) and {each.info.status for each in runs} == {"FINISHED"}


def test_an_alias_that_moved_without_its_tag_gets_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(place)
    retrained(place, 12.0, b"better")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.register(place)
    assert aliases(place) == {"champion": "2"} and "superseded" not in versions(place)["1"]
    assert registry.register(place)[0].outcome == "already"
    assert versions(place)["1"]["superseded"] == "2"


@pytest.mark.parametrize(
    ("uri", "told"),
    [("http://127.0.0.1:9", "Connection refused"), ("sqlite:///params.yaml/no.db", "params.yaml")],
)
def test_a_registry_that_is_away_is_told_and_the_next_call_registers(
    place: Path, monkeypatch: pytest.MonkeyPatch, uri: str, told: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=told) as caught:
            registry.register(place)
    assert caught.value.exit_code == registry.UNREACHABLE
    assert "make promote, which continues where this stopped" in str(caught.value)
    assert registry.register(place)[0].outcome == "champion"


def test_a_damaged_database_is_told(place: Path) -> None:
    (place / "mlflow.db").write_bytes(b"no database at all, but something else" * 100)
    with pytest.raises(UserError, match="file is not a database") as caught:
        registry.register(place)
    assert caught.value.exit_code == registry.UNREACHABLE


def test_a_recipe_registers_in_the_main_checkout(place: Path) -> None:
    workspace = place / "work/recipes/other"
    shutil.copytree(place, place.parent / "copy", ignore=shutil.ignore_patterns("mlflow.db"))
    (place / "work/recipes").mkdir(parents=True)
    (place.parent / "copy").rename(workspace)
    (place / "recipes").mkdir()
    (place / "recipes/other.yaml").write_text("")
    (place / "recipes/never.yaml").write_text("")
    assert registry._workspace("other") == Path.cwd() / "work/recipes/other"
    registry.register(workspace)
    assert aliases(place) == {"champion": "1"} and not (workspace / "mlflow.db").exists()
    with pytest.raises(UserError, match="this recipe has not run") as caught:
        registry._workspace("never")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="no recipe 'othr'"):
        registry._workspace("othr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": {"title": "another"}}, r"params.yaml:1: scope: it has changed since the decision was made"),
        ({"promote": {"candidate": "base"}}, r"params.yaml:1: promote: it has changed since"),
    ],
)
def test_a_decision_about_other_parameters_is_not_registered(place: Path, change: dict[str, Any], message: str) -> None:
    params = json.loads((place / "params.yaml").read_text())
    for section, values in change.items():
        params[section] |= values
    (place / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(UserError, match=message) as caught:
        registry.register(place)
    assert caught.value.exit_code == 2
    assert "make run, which decides anew" in str(caught.value)
    assert not (place / "mlartifacts").exists()


def test_weights_that_nobody_judged_are_not_registered(place: Path) -> None:
    promoted.decide(place)
    (place / "artifacts/lora/adapter/adapter_model.safetensors").write_bytes(b"trained since")
    with pytest.raises(UserError, match=r"the weights of 'lora' \(hash \w+\) are not those that were evaluated"):
        registry.register(place)
    assert versions(place) == {}


def test_nothing_to_register_is_told(place: Path) -> None:
    lock = json.loads((place / "dvc.lock").read_text())
    del lock["stages"]["promote"]
    (place / "dvc.lock").write_text(json.dumps(lock))
    with pytest.raises(UserError, match=r"dvc.lock: no stage 'promote'"):
        registry.register(place)
    shutil.rmtree(place / "artifacts/promote")
    with pytest.raises(UserError, match=r"decision.json: no decision to register") as caught:
        registry.register(place)
    assert caught.value.exit_code == 2


def command(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunemill.registry", *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TUNEMILL_TRACKING": "on", **environment},
        text=True,
        capture_output=True,
    )


def test_from_the_command_line(place: Path) -> None:
    done = command(place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "verdict    lora is promoted: all 2 criteria are met.\n"
        f"registry   {MODEL} version 1 is the champion: there was none before\n"
    )
    promoted.decide(place, STRICT)
    off = command(place, TUNEMILL_TRACKING="off")
    assert off.returncode == 3 and off.stdout.endswith("registry   nothing was registered: TUNEMILL_TRACKING=off\n")
    away = command(place, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert away.returncode == 4 and away.stderr.startswith("error: http://127.0.0.1:9: the registry cannot be reached")
