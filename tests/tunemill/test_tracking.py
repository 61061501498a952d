"""MLflow: one parent, one nested run for each stage, no ghosts after kills, light runs for what the cache restored."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunemill import tracking
from tunemill.params import Params


class Section(Params):
    """Parameters of a stage."""

    rate: float
    """A number."""
    names: tuple[str, ...]
    """A list."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: making its tables takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("empty")
    tracking.connect(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copy(empty, tmp_path / "mlflow.db")
    for name in ("dvc.yaml", "pyproject.toml"):
        (tmp_path / name).write_text("")
    (tmp_path / "params.yaml").write_text("scope: {name: trial}\n")
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def recorder(key: str = "k1", instance: str = "lora", candidate: str | None = None) -> tracking.Recorder:
    section = Section(rate=0.5, names=("x", "y"))
    return tracking.Recorder(
        instance, candidate, key, {instance.partition("@")[0]: section}, {"train": Path("train.jsonl")}, "trial"
    )


def runs(place: Path) -> list[Any]:
    client = tracking.connect(place)
    found = client.get_experiment_by_name("trial")
    assert found is not None
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def lifecycle(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    run_id = tracking.begin_lifecycle(place)
    monkeypatch.setenv(tracking.LIFECYCLE, run_id)
    return run_id


def test_a_stage_leaves_params_metrics_inputs_and_artifacts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = lifecycle(place, monkeypatch)
    (place / "out").mkdir()
    (place / "out/small.txt").write_text("small")
    (place / "out/large.bin").write_bytes(b"0" * (tracking.SMALL_FILE + 1))
    one = recorder()
    one.log(1, {"loss": 2.0})
    one.log(2, {"loss": 1.0})
    one.finish({"score": 3.5, "undefined": None}, {"seconds": 1.5, "device": "cpu"}, {"out": place / "out"})
    _, run = runs(place)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "stages.lora"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params == {"lora.rate": "0.5", "lora.names": '["x", "y"]'}
    measured = dict(run.data.metrics)
    assert math.isnan(measured.pop("undefined")) and measured == {"loss": 1.0, "score": 3.5, "system/seconds": 1.5}
    client = tracking.connect(place)
    assert [each.value for each in client.get_metric_history(run.info.run_id, "loss")] == [2.0, 1.0]
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["manifest.json", "small.txt"]
    manifest = json.loads(Path(client.download_artifacts(run.info.run_id, "manifest.json")).read_text())
    assert manifest["files"][0]["bytes"] == tracking.SMALL_FILE + 1
    (dataset,) = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert dataset.dataset.name.endswith("train.jsonl")
    assert len(dataset.dataset.digest) == 32


def test_twenty_kills_leave_one_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = lifecycle(place, monkeypatch)
    client = tracking.connect(place)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: None)
        for _ in range(20):
            # A kill: the run was opened and nobody closed it.
            recorder()._open(client, client.get_run(parent).info.experiment_id, parent)
    assert tracking.begin_lifecycle(place) == parent  # the lifecycle, too, is taken up again
    last = recorder()
    last.finish({"score": 1.0}, {}, {})
    tracking.finish_lifecycle(place, parent, "FINISHED")
    assert [(run.info.run_name, run.info.status) for run in runs(place)] == [
        ("lifecycle", "FINISHED"),
        ("stages.lora", "FINISHED"),
    ]


def test_another_key_is_another_run_and_a_failure_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle(place, monkeypatch)
    recorder("k1").fail(ValueError("no luck"))
    recorder("k2").fail(KeyboardInterrupt())
    told = [(run.info.status, run.data.tags.get("tunemill.reason")) for run in runs(place)[1:]]
    assert told == [("FAILED", "no luck"), ("KILLED", "KeyboardInterrupt")]


def test_rows_that_nobody_has_checked_are_named_and_not_stored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = lifecycle(place, monkeypatch)
    (place / "raw").mkdir()
    (place / "raw/ratings.jsonl").write_text('{"prompt": "my key is sk-4e2a"}\n')
    recorder("k1", "collect").finish({}, {}, {"out": place / "raw"})
    tracking.finish_lifecycle(place, parent, "FINISHED")
    _, run = runs(place)
    client = tracking.connect(place)
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["manifest.json"]
    assert not [
        each for each in (place / "mlartifacts").rglob("*") if each.is_file() and b"sk-4e2a" in each.read_bytes()
    ]


@pytest.mark.parametrize(
    ("line", "status"),
    [('{"status": "FAILED", "stages": []}\n', "FAILED"), ("", "RUNNING")],
    ids=["told", "left alone"],
)
def test_one_process_opens_a_lifecycle_and_closes_it_as_told(place: Path, line: str, status: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunemill.tracking", "follow"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        input=line,
        text=True,
        capture_output=True,
        check=True,
    )
    (run,) = runs(place)
    assert done.stdout == f"lifecycle {run.info.run_id}\n"
    assert run.info.status == status
    assert (place / tracking.OPEN).exists() == (status == "RUNNING")  # what was left alone the next run continues


def test_a_killed_run_with_other_parameters_is_no_ghost(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = lifecycle(place, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: None)
        client = tracking.connect(place)
        recorder("before")._open(client, client.get_run(parent).info.experiment_id, parent)
    assert (place / tracking.OPEN).read_text().strip() == parent
    recorder("after").finish({"score": 1.0}, {}, {})
    tracking.finish_lifecycle(place, parent, "FINISHED")
    assert not (place / tracking.OPEN).exists()
    told = [(run.data.tags.get("tunemill.key"), run.info.status) for run in runs(place)]
    assert told == [(None, "FINISHED"), ("after", "FINISHED")]


def test_a_parent_whose_dvc_was_killed_is_closed_by_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking.connect(place)
    experiment_id = tracking.experiment(client, place, "trial")
    tracking._new_parent(client, experiment_id, {"tunemill.dvc": "999999:1"}, "dvc repro")
    monkeypatch.setattr("tunemill.runtime.owners", lambda: [psutil.Process()])
    assert tracking._implicit_parent(client, experiment_id)
    assert [run.info.status for run in runs(place)] == ["KILLED", "RUNNING"]


def test_candidates_have_the_same_keys_and_are_logged_models(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = lifecycle(place, monkeypatch)
    # What is undefined for one is defined for the other, before `compare` and in it.
    measured = {"base": {"test/rouge1": 1.0, "bias/race": None}, "lora": {"test/rouge1": 2.0, "bias/race": 0.25}}
    for name, own in measured.items():
        recorder(name, f"evaluate@{name}", name).finish(own, {}, {})
    (place / "metrics").mkdir()
    (place / "metrics/efficiency.json").write_text('{"base/decode": 7, "lora/decode": 6, "seconds": 1}')
    (place / "metrics/compare.json").write_text(
        '{"n": 40, "base/helm/accuracy": 1.0, "lora/helm/accuracy": 2.0, "base/helm/bias": 0.5, "lora/helm/bias": null,'
        ' "lora-vs-base/rouge1/diff": 1.0, "forgetting/lora/nll_diff": 0.5}'
    )
    (place / "dvc.lock").write_text(
        "stages:\n  evaluate@base: {cmd: x, outs: [{path: a, md5: m1}]}\n"
        "  evaluate@lora: {cmd: x, outs: [{path: b, md5: m2}]}\n"
        "  efficiency: {cmd: x, outs: [{path: e, md5: m3}]}\n"
        "  compare: {cmd: x, outs: [{path: c, md5: m5}]}\n"
        "  evaluate@gone: {cmd: x, outs: [{path: g, md5: m4}]}\n"
    )
    # A candidate that params.yaml no longer names is left in dvc.lock: it is no part of this lifecycle.
    stages = ["evaluate@base", "evaluate@lora", "efficiency", "compare"]
    tracking.finish_lifecycle(place, parent, "FINISHED", stages)
    base, lora, *others = runs(place)[1:]
    assert [each.info.run_name for each in (base, lora, *others)] == [
        "base", "lora", "stages.efficiency", "stages.compare",
    ]  # fmt: skip
    expected = {
        "base": {"test/rouge1": 1.0, "bias/race": None, "efficiency/decode": 7.0}
        | {"compare/helm/accuracy": 1.0, "compare/helm/bias": 0.5},
        "lora": {"test/rouge1": 2.0, "bias/race": 0.25, "efficiency/decode": 6.0}
        | {"compare/helm/accuracy": 2.0, "compare/helm/bias": None},
    }
    for run in (base, lora):
        found = {name: None if math.isnan(value) else value for name, value in run.data.metrics.items()}
        assert found == expected[run.info.run_name]
    assert lora.data.tags["dvc.md5.b"] == "m2"
    models = tracking.connect(place).search_logged_models([base.info.experiment_id])
    assert {model.name for model in models} == {"base", "lora"}
    assert {metric.key for model in models for metric in model.metrics} == {"test/rouge1", "bias/race"}


def test_what_is_undefined_has_its_key_all_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle(place, monkeypatch)
    recorder("base", "evaluate@base", "base").finish({"test/rouge1": 1.0, "bias/race": None}, {}, {})
    (run,) = [each for each in runs(place) if each.info.run_name == "base"]
    assert run.data.metrics["test/rouge1"] == 1.0 and math.isnan(run.data.metrics["bias/race"])


def test_a_candidates_answers_are_a_table_and_are_logged_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle(place, monkeypatch)
    out = place / "out"
    out.mkdir()
    rows = [
        {"id": f"{n}", "group": "g", "prompt": "p", "reference": "r", "prediction": f"said {n}", "tokens": 3}
        | {"scores": {"rouge1": n, "rouge2": None}, "exact_match": float(n == 1), "quasi_exact_match": 0.5}
        | {"faithfulness": None if n == 2 else 0.25, "memorised_words": None, "offence": 0.1 * n}
        for n in range(3)
    ]
    (out / "instances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorder("base", "evaluate@base", "base").finish({"test/rouge1": 1.0}, {}, {"out": out})
    older = [{name: value for name, value in row.items() if name not in tracking.JUDGED} for row in rows]
    (out / "instances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in older))
    recorder("lora", "evaluate@lora", "lora").finish({"test/rouge1": 1.0}, {}, {"out": out})
    found = {each.info.run_name: each.info for each in runs(place)}
    client = tracking.connect(place)
    tracking.log_instances(client, found["base"].run_id, out / "instances.jsonl")  # a run that is taken up again
    tables = {
        name: client.load_table(found[name].experiment_id, tracking.TABLE, [found[name].run_id])
        for name in ("base", "lora")
    }
    assert list(tables["base"].columns) == list(tables["lora"].columns) == [
        "id", "group", "prompt", "reference", "prediction", "rouge1", "rouge2",
        "exact_match", "quasi_exact_match", "faithfulness", "memorised_words", "offence",
    ]  # fmt: skip
    shown = {name: [None if each != each else each for each in column] for name, column in tables["base"].items()}
    assert shown["prediction"] == ["said 0", "said 1", "said 2"] and shown["rouge1"] == [0, 1, 2]
    assert shown["exact_match"] == [0, 1, 0] and shown["quasi_exact_match"] == [0.5] * 3
    assert shown["faithfulness"] == [0.25, 0.25, None] and shown["memorised_words"] == shown["rouge2"] == [None] * 3
    assert shown["offence"] == pytest.approx([0, 0.1, 0.2])
    assert tables["lora"]["faithfulness"].isna().all()


def test_a_restored_stage_gets_a_light_run_that_names_its_origin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "metrics").mkdir()
    (place / "metrics/lora.json").write_text('{"score": 4.0}')
    (place / "dvc.lock").write_text(
        "stages:\n  lora: {cmd: x, params: {params.yaml: {lora: {rate: 0.5}}}, outs: [{path: a, md5: m1}]}\n"
    )
    first = lifecycle(place, monkeypatch)
    recorder().finish({"score": 4.0}, {}, {})
    tracking.finish_lifecycle(place, first, "FINISHED")
    second = tracking.begin_lifecycle(place)
    assert second != first
    tracking.finish_lifecycle(place, second, "FINISHED")
    _, original, _, light = runs(place)
    assert light.data.tags["cached_from"] == original.info.run_id
    assert light.data.metrics == {"score": 4.0}
    assert light.data.params == {"lora.rate": "0.5"}
    assert light.data.tags["mlflow.parentRunId"] == second


def test_the_database_is_the_main_checkouts(place: Path) -> None:
    workspace = place / "work/recipes/tiny"
    workspace.mkdir(parents=True)
    for name in ("dvc.yaml", "pyproject.toml"):
        (workspace / name).write_text("")
    assert tracking.home(workspace) == place
    assert tracking.home(place / "work") == place


def test_a_broken_database_warns_and_spares_the_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mlflow.db").write_bytes(b"no database")
    recorder().finish({"score": 1.0}, {}, {})
    assert "warning: MLflow did not record lora" in capsys.readouterr().err
