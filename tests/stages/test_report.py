"""The report stage: artifacts in, one HTML file out; what is missing or damaged is said in one line."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import compare, report, reward, rl_cai, sl_cai
from tests import report_artifacts
from tests.html_page import Page
from tests.stages import comparing
from tunemill import ai_labels, aligned, constitutional, critiques, pairwise
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Candidates, ParamsFile
from tunemill.records import Preference

ROOT = Path(__file__).resolve().parents[2]
CONFIG = report.Config(title="Tunemill report", group="package", samples=12, seed=42)
SCRIPT = "&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;"


def run(root: Path, names: tuple[str, ...] = tuple(report_artifacts.FIVE), **changes: Any) -> dict[str, float | None]:
    artifacts = root / "artifacts"
    inputs: dict[str, Any] = {
        "scope": artifacts / "scope",
        "data": artifacts / "validate",
        "select": artifacts / "select",
        "evaluations": artifacts / "evaluate",
        "efficiency": artifacts / "efficiency",
        "comparison": root / "reports/comparison.json",
        "compress": artifacts / "compress/compress.json",
        "promotion": artifacts / "promote/decision.json",
        "timings": root / "metrics",
        "lock": root / "dvc.lock",
        "candidates": report_artifacts.candidates(names),
        "out": root / "out/report.html",
        "out_tradeoff": root / "out/tradeoff.csv",
    }
    return dict(report.run(CONFIG, **{**inputs, **changes}, log=Log()))


def test_one_file_with_everything_in_it(tmp_path: Path):
    report_artifacts.write(tmp_path)
    metrics = run(tmp_path)
    assert metrics == {"criteria": 4, "criteria_met": 4}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "tradeoff.csv"]
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for said in (
        "lora is promoted",
        "4 of 4 met",
        "int8 is the smallest within 1% of lora",
        "near duplicate",
        "evaluate@lora",
        "4 min 22 s",
        SCRIPT,
        "validation loss from",
        "134.5 M parameters",
        "Peak memory of any stage",
        "at most 8 GiB of memory, 4 GiB of disk and 12 minutes a run",
    ):
        assert said in html, said
    assert html.count("<script") == 1
    assert str(tmp_path) not in html


def test_quality_stands_beside_the_parameters_it_took(tmp_path: Path):
    report_artifacts.write(tmp_path)
    run(tmp_path)
    rows = list(csv.DictReader((tmp_path / "out/tradeoff.csv").read_text().splitlines()))
    assert [(row["candidate"], row["trainable_parameters"], row["metric"]) for row in rows] == [
        ("sft", "134515008", "rouge1"), ("lora", "2442240", "rouge1"), ("prompt_tune", "11520", "rouge1"),
    ]  # fmt: skip
    assert all(float(row["ci_low"]) < float(row["value"]) < float(row["ci_high"]) for row in rows)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path):
    report_artifacts.write(tmp_path)
    run(tmp_path)
    first = (tmp_path / "out/report.html").read_bytes()
    run(tmp_path)
    assert (tmp_path / "out/report.html").read_bytes() == first


def test_the_report_does_not_depend_on_the_report_before_it(tmp_path: Path):
    report_artifacts.write(tmp_path)
    run(tmp_path)
    first = (tmp_path / "out/report.html").read_bytes()
    (tmp_path / "metrics/report.timing.json").write_text('{"seconds": 99.0, "peak_memory_bytes": 1}')
    lock = json.loads((tmp_path / "dvc.lock").read_text())
    lock["stages"]["report"]["outs"][0]["md5"] = "f" * 32
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    run(tmp_path)
    assert (tmp_path / "out/report.html").read_bytes() == first


@pytest.mark.parametrize("missing", ["efficiency", "compress", "promotion", "timings", "lock"])
def test_an_optional_input_may_be_missing(tmp_path: Path, missing: str):
    report_artifacts.write(tmp_path)
    run(tmp_path, **{missing: None})
    said = {
        "efficiency": "No speed was measured",
        "compress": "Stage compress did not run",
        "promotion": "Stage promote did not run, so nothing was promoted.",
        "timings": "No timings were kept",
        "lock": "No dvc.lock was given",
    }
    assert said[missing] in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_the_evaluation_is_told_with_its_evidence_and_what_was_not_kept_is_said_to_be_missing(tmp_path: Path):
    report_artifacts.write(tmp_path)
    run(tmp_path)
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for said in (
        "Mean win rate",
        "Reliability: right as often",
        "<del>Summarise</del><ins>summarise</ins>",
        "May offend",
    ):
        assert said in html, said
    for name in report_artifacts.FIVE:
        assert f"{name}: 10 outputs with the lowest ROUGE-1" in html
        for file in ("perturbed", "tasks", "red_team"):
            (tmp_path / f"artifacts/evaluate/{name}/{file}.jsonl").unlink()
    comparison = json.loads((tmp_path / "reports/comparison.json").read_text())
    for key in ("categories", "details", "category_pairs", "win_rate", "mcnemar", "slices", "seeds", "judge"):
        del comparison[key]
    (tmp_path / "reports/comparison.json").write_text(json.dumps(comparison))
    run(tmp_path)
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "The categories were not measured" in html and "No perturbed prompts were kept." in html
    assert "Reliability" not in html and "May offend" not in html


def test_without_trained_and_prompted_candidates_the_page_says_so(tmp_path: Path):
    report_artifacts.write(tmp_path, {"base": 0.0})
    run(tmp_path, ("base",))
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Nothing was trained or prompted" in html and "No prompts were tried" in html


ALIGNED = {"base": 0.0, "lora": 10.0, "ppo": 9.5, "ppo-18": 9.0}


def test_alignment_is_read_from_beside_the_scores(tmp_path: Path):
    report_artifacts.write(tmp_path, ALIGNED, count=20)
    report_artifacts.align(tmp_path)
    run(tmp_path, tuple(ALIGNED))
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    for said in ("PPO: ppo", "PPO: ppo-18", "Pairs told right", "1,204 of 113 prompts", "less harmful"):
        assert said in page.words, said
    for name in ("ppo", "ppo-18"):  # a policy that was aligned for something else brings no reward model's figures
        for file in ("reward.json", "feedback.json", "reward_histogram.csv", "reward_reliability.csv"):
            (tmp_path / "artifacts/evaluate" / name / file).unlink()
    run(tmp_path, tuple(ALIGNED))
    words = Page((tmp_path / "out/report.html").read_text(encoding="utf-8")).words
    assert "PPO: ppo" in words and "Pairs told right" not in words and "What was fed back" not in words


CONSTITUTIONAL = {"base": 0.0, "lora": 10.0, "rl_cai": 9.2, "ppo": 9.5, "sl_cai": 9.0}


@pytest.mark.parametrize("names", [("base", "rl_cai", "ppo", "sl_cai"), ("base", "sl_cai", "ppo", "rl_cai")])
def test_the_reward_model_that_people_taught_is_told_whatever_the_order(tmp_path: Path, names: tuple[str, ...]):
    report_artifacts.write(tmp_path, {name: CONSTITUTIONAL[name] for name in names}, count=20)
    report_artifacts.align(tmp_path, ("ppo",))
    report_artifacts.constitutional(tmp_path)
    assert report.taught_by_people(tmp_path / "artifacts/evaluate", names) == tmp_path / "artifacts/evaluate/ppo"
    run(tmp_path, names)
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "Asked which of two answers people prefer" in page.words and "AI feedback: rl_cai" in page.words
    assert page.tables["Accuracy and length"][1][-2:] == ["1,204", "97"]
    for said in ("PPO: ppo, rewarded by the reward model", "learnt from the constitution’s labels"):
        assert said in page.words, said
    # Without people's, the judge's is told.
    left = tuple(name for name in names if name != "ppo")
    assert report.taught_by_people(tmp_path / "artifacts/evaluate", left) == tmp_path / "artifacts/evaluate/rl_cai"
    assert report.taught_by_people(tmp_path / "artifacts/evaluate", ("base",)) is None


def test_what_is_made_up_of_constitutional_ai_is_what_its_stages_write():
    rows = report_artifacts.chains()
    chains = [critiques.Chain(**{**row, "steps": [critiques.Step(**step) for step in row["steps"]]}) for row in rows]
    assert rows == [dataclasses.asdict(each) | {"steps": [step._asdict() for step in each.steps]} for each in chains]
    made = report_artifacts.revised(rows)
    assert made["rounds"] == critiques.counts(chains) and made["prompts"] == critiques.of_each_kind(chains)
    assert made["kinds"] == critiques.by_kind(chains)
    assert made["scores"] == pytest.approx(critiques.scores(chains)) and {*made["helpful"]} == {sl_cai.OWN, sl_cai.TASK}
    asked = rl_cai.Asked("p", "a", "b", "harmless")
    label = ai_labels.of_orders(0.7, 0.4, thought=False)
    pair = ai_labels.preference("p", "a", "b", label.p or 0.0, "g", 1.0)
    assert pair is not None
    cfg = ParamsFile(ROOT / "params.yaml").section("rl_cai", rl_cai.Config)
    for kind in ("folder", "reward"):
        judge = {"kind": kind, "name": "n"}
        found = ai_labels.quality([label] * 4, [("a b", "c d e")] * 4, [1.0] * 4, [*"abcd"], 100, 0)
        told = rl_cai.counted(cfg, judge, found, [asked], [label], [pair], [], 0)
        alike = report_artifacts.labelled(kind)
        assert alike.keys() == told.keys() and alike["label"].keys() == told["label"].keys()
        assert alike["judge"].keys() == told["judge"].keys() and alike["pairs_of"].keys() == told["pairs_of"].keys()
        assert alike["judge"]["quality"].keys() == told["judge"]["quality"].keys()
        assert "None" not in str(constitutional.judge(told))


def test_trainings_on_the_same_chains_are_one(tmp_path: Path):
    names = (*CONSTITUTIONAL, "sl_cai-18", "rl_cai-18")
    report_artifacts.write(tmp_path, dict.fromkeys(names, 1.0), count=20)
    report_artifacts.constitutional(tmp_path)
    evaluate = tmp_path / "artifacts/evaluate"
    for name, files in (
        ("sl_cai", ("cai.json", "chains.jsonl", "training.json", "curve.csv")),
        ("rl_cai", ("feedback.json", "reward.json")),
    ):
        for file in files:
            shutil.copy(evaluate / name / file, evaluate / f"{name}-18" / file)
    assert [each.candidates for each in report.read_supervised(evaluate, names)] == [("sl_cai", "sl_cai-18")]
    assert [each.candidates for each in report.read_labelled(evaluate, names)] == [("rl_cai", "rl_cai-18")]
    (evaluate / "sl_cai-18/chains.jsonl").write_text("")
    assert len(report.read_supervised(evaluate, names)) == 2
    # A control that was not rewarded by what learnt the labels is none of theirs.
    (evaluate / "rl_cai-18/reward.json").unlink()
    assert [each.candidates for each in report.read_labelled(evaluate, names)] == [("rl_cai",)]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("sl_cai/cai.json", b"[]", "cai.json: holds a list"),
        ("sl_cai/chains.jsonl", b"{", "chains.jsonl:1: not valid JSON"),
        ("sl_cai/chains.jsonl", None, "chains.jsonl: no such file"),
        ("sl_cai/curve.csv", b"step,loss\n1,two\n", "curve.csv:2: not a row of numbers"),
        ("rl_cai/feedback.json", b"{", "feedback.json: not valid JSON"),
    ],
)
def test_damage_to_what_tells_of_constitutional_ai_is_named(
    tmp_path: Path, file: str, content: bytes | None, said: str
):
    report_artifacts.write(tmp_path, CONSTITUTIONAL, count=20)
    report_artifacts.constitutional(tmp_path)
    path = tmp_path / "artifacts/evaluate" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        run(tmp_path, tuple(CONSTITUTIONAL))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("updates.csv", b"update,reward\n1,one\n", "updates.csv:2: not a row of numbers"),
        ("monitor.csv", b"update,kl\n0,0.0,7\n", "monitor.csv:2: not a row of numbers"),
        ("samples.jsonl", b"{", "samples.jsonl:1: not valid JSON"),
        ("ppo.json", b"[]", "ppo.json: holds a list"),
        ("monitor.csv", None, "monitor.csv: no such file"),
        ("reward.json", b"{", "reward.json: not valid JSON"),
        ("reward_histogram.csv", b"low\nx\n", "reward_histogram.csv:2: not a row of numbers"),
    ],
)
def test_damage_to_what_tells_of_alignment_is_named(tmp_path: Path, file: str, content: bytes | None, said: str):
    report_artifacts.write(tmp_path, ALIGNED, count=20)
    report_artifacts.align(tmp_path)
    path = tmp_path / "artifacts/evaluate/ppo" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        run(tmp_path, tuple(ALIGNED))


def test_it_reads_what_reward_measures(tmp_path: Path):
    noise = np.random.default_rng(0)
    used = [
        Preference(
            f"i{at}",
            f"p{at // 3}",
            "never that " * (1 + at % 4),
            "gladly do it " * (1 + at % 3),
            1.0,
            1 / 3,
            f"g{at // 3}",
            "ratings",
        )
        for at in range(90)
    ]
    margins, folds = noise.normal(0.4, 1.0, 90), [at // 3 % 5 for at in range(90)]
    cfg = ParamsFile(ROOT / "params.yaml").section("reward", reward.Config).model_copy(update={"resamples": 200})
    found = reward.measure(cfg, used, margins, margins / 2.0, np.full(90, 1 / 3), folds)
    made = report_artifacts.rewarded()["held_out"]
    assert made.keys() == found.keys() and made["all"].keys() == found["all"].keys()
    report_artifacts.write(tmp_path, ALIGNED, count=20)
    report_artifacts.align(tmp_path)
    folder = tmp_path / "artifacts/evaluate/ppo"
    (folder / "reward.json").write_text(
        json.dumps(json.loads((folder / "reward.json").read_text()) | {"held_out": found})
    )
    reward.write_csv(folder / "reward_reliability.csv", [each._asdict() for each in pairwise.reliability(margins)])
    reward.write_csv(
        folder / "reward_histogram.csv", [each._asdict() for each in pairwise.histogram(margins, -margins)]
    )
    run(tmp_path, tuple(ALIGNED))
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert f"it is right in {100 * (margins > 0).mean():.1f}% of the pairs" in page.words
    assert page.tables["Accuracy and length"][1][-2:] == ["90", "30"]


def test_several_seeds_of_one_stage_are_one_training(tmp_path: Path):
    report_artifacts.write(tmp_path, {"base": 0.0, "lora": 10.0, "second": 9.0})
    evaluate = tmp_path / "artifacts/evaluate"
    for name in ("training.json", "curve.csv"):
        shutil.copy(evaluate / "lora" / name, evaluate / "second" / name)
    found = report.read_trainings(evaluate, {"lora": "artifacts/lora/adapter", "second": "artifacts/lora/adapter-18"})
    assert [each.name for each in found] == ["lora"]
    found = report.read_trainings(evaluate, {"second": "models/mine", "lora": "artifacts/lora/adapter"})
    assert [each.name for each in found] == ["second", "lora"]


def test_what_aligned_a_candidate_is_no_training_for_the_task(tmp_path: Path):
    report_artifacts.write(tmp_path, {"base": 0.0, "lora": 10.0, "dpo": 9.0})
    evaluate = tmp_path / "artifacts/evaluate"
    record = json.loads((evaluate / "lora/training.json").read_text()) | {"method": "dpo"}
    (evaluate / "dpo/training.json").write_text(json.dumps(record))
    (evaluate / "dpo/updates.csv").write_text("step,loss,margin,kl\n1,0.693147,0.0,\n2,0.5,0.31,\n3,0.4,0.62,\n")
    policies = {"lora": "artifacts/lora/adapter", "dpo": "artifacts/dpo/harm/adapter"}
    assert [each.name for each in report.read_trainings(evaluate, policies)] == ["lora"]
    # It has a card of its own, with what its curve has.
    [told] = report.read_beside(evaluate, ("base", "lora", "dpo"))
    assert [each.title for each in aligned.beside_panels(told)] == [aligned.BESIDE["margin"], "Loss"]
    assert [each.summary.split(": ")[1] for each in aligned.beside_panels(told)] == [
        "from 0 to 0.62",
        "from 0.693 to 0.4",
    ]
    run(tmp_path, ("base", "lora", "dpo"))
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    said = f"{record['steps']} optimizer steps of {record['batch_size']} pairs. Nobody watched it: the last policy was kept"
    assert "DPO: dpo" in page.words and said in page.words
    (evaluate / "dpo/updates.csv").write_text("step,loss\n1,no\n")
    with pytest.raises(UserError, match="not a row of numbers"):
        report.read_beside(evaluate, ("dpo",))


def test_one_candidate_six_candidates_no_baselines_no_groups(tmp_path: Path):
    report_artifacts.write(tmp_path / "one", {"base": 0.0})
    assert run(tmp_path / "one", ("base",), promotion=None) == {"criteria": 2, "criteria_met": 0}
    six = {"base": 0.0, **{f"c{n}": float(n) for n in range(5)}}
    report_artifacts.write(tmp_path / "six", six)
    run(tmp_path / "six", tuple(six))
    report_artifacts.write(tmp_path / "bare", reads_baselines=False, groups=1)
    run(tmp_path / "bare")
    bare = (tmp_path / "bare/out/report.html").read_text(encoding="utf-8")
    assert "No baseline was scored" in bare
    assert "On 240 held-out items, lora" in " ".join(bare.split())


def test_it_reads_what_compare_writes(tmp_path: Path):
    report_artifacts.write(tmp_path, {"base": 0.0, "lora": 10.0, "twin": 10.0})
    names = ("base", "lora", "twin")
    made = json.loads((tmp_path / "reports/comparison.json").read_text())
    compare.run(
        compare.Config(
            seed=0,
            resamples=1000,
            reference="base",
            min_groups=10,
            pairs=(),
            seeds={"trained": ("lora", "twin")},
            aligned={"lora": "base", "twin": "base"},
            controls={"lora": ("twin",)},
            margins=comparing.MARGINS,
        ),
        evaluations=tmp_path / "artifacts/evaluate", scope=tmp_path / "artifacts/scope",
        candidates=Candidates.model_validate({name: {"policy": "p", "base": "b"} for name in names}),
        out=tmp_path / "reports/comparison.json", out_scores=tmp_path / "reports/scores.csv",
        out_table=tmp_path / "metrics/compare", log=Log(),
    )  # fmt: skip
    written = json.loads((tmp_path / "reports/comparison.json").read_text())
    for name in names:  # what the other tests make up has the keys that compare writes
        assert {category: each["metric"] for category, each in made["categories"][name].items()} == {
            category: each["metric"] for category, each in written["categories"][name].items()
        }
        assert made["details"][name].keys() <= written["details"][name].keys()
    for of in (("lora",), ("lora", "twin")):
        entry = next(each for each in written["alignment"] if each["of"] == [*of])
        alike = report_artifacts.judged(entry["name"], of, -0.05, 0.02)
        assert alike.keys() == entry.keys() and alike["measures"].keys() == entry["measures"].keys()
        assert alike["harmless"].keys() == entry["harmless"].keys()
        for each in ("conditions", "guards"):
            assert {*alike[each][0]} == {*entry[each][0]}
    run(tmp_path, names, promotion=None)
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    packages = {row[0]: row[1:] for row in page.tables["ROUGE-1 by group"]}
    for place, (name, lift) in enumerate({"base": 0.0, "lora": 10.0}.items()):
        own = [row for row in report_artifacts.instances(name, lift, 240, 34) if row["group"] == "package3"]
        mean = statistics.fmean(row["scores"]["rouge1"] for row in own)
        assert packages["package3"][place].split()[0] == f"{mean:.1f}"
        assert packages["package3"][place].endswith(f" n {len(own)}") and len(own) == 7
    assert len(packages) == 1 + 34 and len(page.tables["ROUGE-1 by length"]) == 1 + 3
    html = " ".join((tmp_path / "out/report.html").read_text(encoding="utf-8").split())
    for said in (
        "is better than base",
        "On 240 held-out items from 34 packages",
        "resampling whole packages 1,000 times",
        "twin − first-sentence",
        "picked as the best of 3 candidates",
        "trained against base, by the judges",
        written["alignment"][0]["sentence"],
        "ROUGE-1, worst of two wordings",
        "expected calibration error, ten bins",
    ):
        assert said in html, said


def test_only_the_named_candidates_are_read(tmp_path: Path):
    report_artifacts.write(tmp_path)
    (tmp_path / "artifacts/evaluate/left-over").mkdir()
    (tmp_path / "artifacts/evaluate/left-over/instances.jsonl").write_text("damaged")
    run(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("reports/comparison.json", None, "comparison.json: no such file"),
        ("reports/comparison.json", b"{", "comparison.json: not valid JSON"),
        ("artifacts/scope/scope.json", b"[]", "scope.json: holds a list"),
        ("artifacts/evaluate/lora/instances.jsonl", b'{"id": 1}\n{"id', "instances.jsonl:2: not valid JSON"),
        ("artifacts/evaluate/lora/instances.jsonl", b"\xff", "instances.jsonl: not UTF-8 (byte 0)"),
        ("artifacts/evaluate/lora/perturbed.jsonl", b'{"id', "perturbed.jsonl:1: not valid JSON"),
        ("artifacts/evaluate/lora/tasks.jsonl", b"[]", "tasks.jsonl:1: holds a list"),
        ("artifacts/evaluate/lora/red_team.jsonl", b"\xff", "red_team.jsonl: not UTF-8 (byte 0)"),
        ("artifacts/evaluate/lora/curve.csv", b"step,loss\n1,2.0\n", "curve.csv:2: not a row of a training curve"),
        (
            "artifacts/evaluate/lora/curve.csv",
            b"step,loss,validation_loss\n1,two,\n",
            "curve.csv:2: not a row of a training curve",
        ),
        ("dvc.lock", b"a: [", "dvc.lock: not valid YAML"),
    ],
)
def test_damaged_input_is_named(tmp_path: Path, file: str, content: bytes | None, said: str):
    report_artifacts.write(tmp_path, count=20)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        run(tmp_path)
    assert not (tmp_path / "out/report.html").exists()


def test_from_the_command_line(tmp_path: Path):
    report_artifacts.write(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "report: {title: T, group: package, samples: 4, seed: 0}\n"
        "candidates: {base: {policy: p, base: p}, lora: {policy: p, base: p}}\n"
    )
    command = [sys.executable, "-m", "stages.report", "--comparison", "reports/comparison.json"]
    for flag, path in {
        "scope": "scope",
        "data": "validate",
        "select": "select",
        "evaluations": "evaluate",
        "efficiency": "efficiency",
    }.items():
        command += [f"--{flag}", f"artifacts/{path}"]
    command += ["--compress", "artifacts/compress/compress.json", "--promotion", "artifacts/promote/decision.json"]
    command += ["--timings", "metrics", "--lock", "dvc.lock", "--out", "reports/report.html"]
    command += ["--out-tradeoff", "reports/tradeoff.csv"]
    subprocess.run(
        command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT), "TUNEMILL_TRACKING": "off"}
    )
    assert (tmp_path / "reports/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "metrics/report.json").read_text()) == {"criteria": 4, "criteria_met": 4}
