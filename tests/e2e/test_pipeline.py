"""The whole pipeline by `dvc repro`, and everything the README does with it afterwards."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.e2e import checkout
from tests.html_page import Page
from tunemill import tracking

pytestmark = pytest.mark.e2e

CANDIDATES = ("base", "prompt", "sft", "lora", "prompt_tune", "ppo", "sl_cai", "rl_cai", "compact")
CATEGORIES = ("accuracy", "calibration", "robustness", "fairness", "bias", "toxicity", "efficiency")
STAGES = (
    *("scope", "collect", "validate", "harm", "select", "prompt", "sft", "lora", "prompt_tune", "feedback"),
    *("compress", "efficiency", "judge", "compare", "promote", "report"),
)
SHRINKING = (
    *("distill@student", "quantize@int8", "quantize@gguf", "prune@narrow"),
    *(f"variant@{name}" for name in ("lora", "student", "int8", "gguf", "pruned")),
)
ALIGNING = ("reward@harm", "ppo@harm", "sl_cai@cai", "rl_cai@cai", "reward@rl_cai", "ppo@rl_cai")


def test_every_output_is_there(finished: Path) -> None:
    for name in (*STAGES, *(each.replace("@", "/") for each in (*ALIGNING, *SHRINKING)), "evaluate/prompt_tune"):
        measured = json.loads((finished / f"metrics/{name}.json").read_text())
        assert bool(measured) == (name != "judge"), name  # nobody judges by default
        assert json.loads((finished / f"metrics/{name}.timing.json").read_text())["seconds"] > 0
    comparison = json.loads((finished / "reports/comparison.json").read_text())
    assert {*CANDIDATES, "lead-10-words", "first-sentence"} <= set(comparison["candidates"])
    for metrics in comparison["candidates"].values():
        assert {"value", "ci_low", "ci_high", "n"} <= set(metrics["rouge1"])
    pair = next(
        each for each in comparison["pairs"] if (each["a"], each["b"], each["metric"]) == ("lora", "base", "rouge1")
    )
    assert pair["ci_low"] <= pair["diff"] <= pair["ci_high"]
    assert 0 <= pair["p"] <= 1
    assert "<html" in (finished / "reports/report.html").read_text()
    assert sorted(each.name for each in (finished / "work").iterdir() if each.is_dir()) == [
        "cache"
    ]  # the rest was finished


def test_a_second_repro_does_nothing(finished: Path) -> None:
    before = (finished / "dvc.lock").read_bytes()
    told = checkout.run(finished, "dvc", "repro").stdout
    assert "Data and pipelines are up to date." in told
    assert "Running stage" not in told
    assert (finished / "dvc.lock").read_bytes() == before


def test_a_stage_that_starts_cold_makes_the_same(finished: Path) -> None:
    before = checkout.locked(finished)
    told = checkout.run(
        finished, "dvc", "repro", "-f", "-s", "lora", "variant@lora", TUNEMILL_WARM="off", TUNEMILL_TRACKING="off"
    ).stdout
    assert told.count("Running stage") == 2
    assert checkout.locked(finished) == before


def test_mlflow_has_one_run_for_each_stage_and_candidate(finished: Path) -> None:
    runs = checkout.runs(finished)
    names = [run.info.run_name for run in runs]
    assert sorted(names) == sorted(
        [
            "dvc repro",
            *CANDIDATES,
            *(f"stages.{name}" for name in (*STAGES, *ALIGNING, *SHRINKING)),
        ]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if run.info.run_name == "dvc repro"]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run is not parent} == {parent.info.run_id}
    measured = [set(run.data.metrics) for run in runs if "candidate" in run.data.tags]
    assert len(measured) == len(CANDIDATES) and all(each == measured[0] for each in measured)
    assert "test/rouge1" in measured[0]
    client = tracking.connect(finished)
    tables = [
        json.loads(Path(client.download_artifacts(run.info.run_id, tracking.TABLE)).read_text())
        for run in runs
        if "candidate" in run.data.tags
    ]
    assert {*tracking.TEXTS, "rouge1", *tracking.JUDGED} <= set(tables[0]["columns"]) and tables[0]["data"]
    assert all(each["columns"] == tables[0]["columns"] for each in tables)
    tuned = next(run for run in runs if run.data.tags["tunemill.stage"] == "lora")
    assert {each.dataset.name for each in tuned.inputs.dataset_inputs} == {
        "validate/tasks_train.jsonl",
        "validate/train.jsonl",
        "validate/validation.jsonl",
    }
    assert tuned.data.params["lora.steps"] == "100"


def test_seven_categories_of_every_candidate_are_in_the_comparison_in_mlflow_and_in_the_report(finished: Path) -> None:
    found = json.loads((finished / "reports/comparison.json").read_text())["categories"]
    assert {name: set(told) for name, told in found.items()} == {name: {*CATEGORIES} for name in CANDIDATES}
    for told in found.values():
        assert all(each["value"] is not None or each["reason"] for each in told.values())
        # A few short answers of a tiny model name hardly anyone; everything else is measured of it, too.
        assert {category for category, each in told.items() if each["value"] is None} <= {"bias"}

    logged = {
        run.data.tags["candidate"]: run.data.metrics for run in checkout.runs(finished) if "candidate" in run.data.tags
    }
    for name, told in found.items():
        ours = {key: value for key, value in logged[name].items() if key.startswith("compare/helm/")}
        assert set(ours) == {f"compare/helm/{each}" for each in (*CATEGORIES, "win_rate")}
        for category, each in told.items():
            value = math.nan if each["value"] is None else each["value"]
            assert ours[f"compare/helm/{category}"] == pytest.approx(value, nan_ok=True)

    page = Page((finished / "reports/report.html").read_text(encoding="utf-8"))
    head, *rows = page.tables["Every candidate in seven categories"]
    assert [each.split()[0] for each in head] == ["Category", *CANDIDATES]
    titles = [each.capitalize() for each in CATEGORIES]
    assert [row[0].split()[0] for row in rows[:7]] == titles
    assert page.drawn["axis-name"] == titles
    marks = [told.partition(":")[0] for told in page.drawn["title"]]
    for row, category in zip(rows, CATEGORIES, strict=False):
        for name, cell in zip(CANDIDATES, row[1:], strict=True):
            each = found[name][category]
            assert cell.startswith(f"— {each['reason']}") if each["value"] is None else re.search(r"\d", cell)
            # A mark on the category's axis, with the value; or none, where it is undefined.
            assert marks.count(f"{name}, {category}") == (each["value"] is not None)


def test_outputs_name_no_machine(finished: Path) -> None:
    for path in [
        *finished.glob("artifacts/**/*.json"),
        *finished.glob("artifacts/**/*.html"),
        *finished.glob("reports/*"),
    ]:
        assert str(finished) not in path.read_text(encoding="utf-8"), path


def readme_commands() -> list[str]:
    text = (checkout.ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Trying things\n\n```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [line.split("#")[0].strip() for line in block.group(1).splitlines() if line.strip()]


@pytest.mark.timeout(1800)
def test_the_readmes_commands_run_as_written(lean: Path, tmp_path: Path) -> None:
    # The finished results arrive as a colleague's would: by git and a remote.
    place = tmp_path / "trying"
    checkout.run(tmp_path, "git", "clone", "-q", str(lean), str(place))
    shutil.copytree(lean / ".dvc/cache", place / ".dvc/cache", symlinks=True)
    checkout.run(place, "dvc", "checkout")
    commands = readme_commands()
    assert len(commands) >= 8
    told: dict[str, str] = {}
    with checkout.warmed(place) as warm:
        for command in commands:
            words = shlex.split(command.replace("/some/folder", str(tmp_path / "remote")))
            told[command] = checkout.run(place, *words, **warm).stdout
    assert "lora.learning_rate" in told["dvc params diff"]
    assert "0.0004" in told["dvc params diff"]
    assert re.search(r"metrics/compare/lora\.json +rouge1 ", told["dvc metrics diff"])
    page = (place / "dvc_plots/index.html").read_text()
    assert "Training curve" in page or "validation_loss" in page
    assert any((tmp_path / "remote").rglob("*"))
    shows = checkout.run(place, "dvc", "dag").stdout
    assert "evaluate@lora" in shows
    table = checkout.run(place, "dvc", "metrics", "show").stdout.splitlines()
    assert re.match(
        r"Path +bleu +rouge1 +rouge1_gain +rouge1_gain_at_least +rouge1_gain_at_most +rouge2 +rougeL", table[0]
    )
    assert [line.split()[0].split("/")[-1] for line in table[1:]] == [
        f"{name}.json" for name in sorted(["base", "lora", "first-sentence", "lead-10-words"])
    ]


def test_a_pull_restores_what_was_pushed(finished: Path, tmp_path: Path) -> None:
    checkout.run(finished, "dvc", "push", "-r", "elsewhere", check=False)
    checkout.run(finished, "dvc", "remote", "add", "-f", "elsewhere", str(tmp_path / "remote"))
    checkout.run(finished, "dvc", "push", "-r", "elsewhere")
    other = tmp_path / "other"
    other.mkdir()
    checkout.make(other, "tiny")
    shutil.copy(finished / "dvc.lock", other / "dvc.lock")
    shutil.copytree(finished / "metrics", other / "metrics")
    checkout.run(other, "dvc", "remote", "add", "elsewhere", str(tmp_path / "remote"))
    checkout.run(other, "dvc", "pull", "-r", "elsewhere")
    assert (other / "artifacts/lora/adapter/adapter_model.safetensors").is_file()
    assert "up to date" in checkout.run(other, "dvc", "repro").stdout
    checkout.run(finished, "dvc", "remote", "remove", "elsewhere")


def test_the_plots_read_what_the_stages_wrote(finished: Path) -> None:
    with (finished / "artifacts/lora/adapter/curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(101))
    assert all(row["loss"] for row in rows[1:])
    with (finished / "reports/scores.csv").open() as file:
        assert {"base", "lora"} <= {row["candidate"] for row in csv.DictReader(file)}
