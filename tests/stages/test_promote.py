"""The stage promote: exact files, the same bytes twice, what is refused, and a card that the hub's library reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import promote, report
from tests import report_artifacts
from tests.html_page import Page
from tests.stages import promoted, tuned
from tunemill.errors import UserError
from tunemill.log import Log

SECTIONS = [
    "Criteria", "Intended use", "Out of scope, harms and limits", "Training data", "How it was made", "Evaluation",
    "Seven categories (HELM)", "Speed, memory and size", "Time and energy", "How to load it", "How to make it again",
]  # fmt: skip
COMPRESS: dict[str, Any] = {
    "parent": "lora",
    "metric": "rouge1",
    "items": 40,
    "variants": {
        name: {
            "method": method,
            "bytes": size,
            "decode_ratio": {"value": speed, "ci_low": speed - 0.1, "ci_high": speed + 0.1},
            "perplexity": {"value": 12.0, "ci_low": 11.0, "ci_high": 13.0},
            "quality": {"value": 30.0, "ci_low": 25.0, "ci_high": 35.0},
            "difference": None if name == "lora" else {"diff": -0.2, "ci_low": -0.9, "ci_high": 0.5, "p": 0.5},
        }
        for name, method, size, speed in (
            ("lora", "none", 500_000_000, 1.0),
            ("int8", "int8 weights", 140_000_000, 1.9),
        )
    },
    "advice": {"variant": "int8", "reason": "int8 is the smallest within 1% of lora."},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage reads; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    promoted.prepare(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "checkout"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return root


def card(root: Path) -> str:
    return (root / "artifacts/promote/README.md").read_text(encoding="utf-8")


def test_it_writes_a_decision_a_card_and_the_scores(place: Path) -> None:
    assert promoted.decide(place) == {"criteria": 2, "criteria_met": 2, "promoted": 1}
    assert tuned.files(place / "artifacts/promote") == promoted.FILES
    found = promoted.decision(place)
    assert found["verdict"] == "promoted" and found["sentence"] == "lora is promoted: all 2 criteria are met."
    assert (found["candidate"], found["model"]) == ("lora", "api-summaries")
    assert (found["policy"], found["base"]) == ("artifacts/lora/adapter", "artifacts/select/model")
    assert found["base_model"] == "some-model==1.2" and found["license"] == "Apache-2.0"
    keys = {
        "metric",
        "candidate",
        "against",
        "at_least",
        "why",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "outcome",
        "shortfall",
    }
    assert all({*each} == keys | {"unit", "reason", "sentence"} for each in found["criteria"])
    rows = [json.loads(line) for line in (place / "artifacts/promote/scores.jsonl").read_text().splitlines()]
    answered = [
        json.loads(line) for line in (place / "artifacts/evaluate/lora/instances.jsonl").read_text().splitlines()
    ]
    assert rows == [{"id": each["id"], "group": each["group"], **each["scores"]} for each in answered]
    assert found["test_items"] == len(rows) and found["test_hash"] == promote.test_hash([row["id"] for row in rows])
    assert found["test_hash"] == promote.test_hash([row["id"] for row in reversed(rows)])


def test_the_same_inputs_give_the_same_bytes_and_no_path_of_this_machine(place: Path) -> None:
    promoted.decide(place)
    promoted.decide(place)  # with the dvc.lock that the first one left
    first = {name: (place / "artifacts/promote" / name).read_bytes() for name in promoted.FILES}
    promoted.decide(place)
    assert {name: (place / "artifacts/promote" / name).read_bytes() for name in promoted.FILES} == first
    for content in first.values():
        assert str(place).encode() not in content and b"/tmp" not in content


def test_the_card_is_made_of_the_facts(place: Path) -> None:
    promoted.decide(place)
    text = card(place)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    found = promoted.decision(place)
    scope = report_artifacts.scope()
    for said in (
        scope["task"], scope["audience"], *scope["harms"], *scope["limits"], found["policy_hash"], found["base_hash"],
        found["test_hash"], "some-model==1.2", "2,442,240 of 134,515,008 (1.82%)", "60 test items of 12 groups",
        "| `lora` | `artifacts/lora` ", "Energy and emissions of the training were not measured.",
        'PeftModel.from_pretrained(base, "artifacts/lora/adapter")', "| ROUGE-1 |",
    ):  # fmt: skip
        assert said in text, said
    value = found["score"]
    assert f"{value['value']:.1f} [{value['ci_low']:.1f}, {value['ci_high']:.1f}]" in text
    assert "| Size on disk, with an adapter's base | 266 MiB | 1.04× |" in text
    assert "None" not in text and "nan" not in text


def test_the_hubs_library_reads_the_cards_head(place: Path) -> None:
    from huggingface_hub import ModelCard

    promoted.decide(place, language=("en", "de"))
    data = ModelCard.load(place / "artifacts/promote/README.md").data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "some-model==1.2", "peft")
    assert (data.pipeline_tag, data.language, data.base_model_relation) == ("summarization", ["en", "de"], "adapter")
    assert data.tags == ["summarization", "lora", "promoted", "tunemill"]
    results = {each.metric_type: each for each in data.eval_results}
    score = promoted.decision(place)["score"]
    assert results["rouge1"].metric_value == pytest.approx(score["value"], abs=1e-4)
    assert results["rouge1"].metric_args["ci_low"] == pytest.approx(score["ci_low"], abs=1e-4)
    assert results["rouge1"].dataset_split == "test"


def test_a_refusal_is_a_result_and_names_what_failed(place: Path) -> None:
    rules = [{**promoted.RULE, "at_least": 50.0}, {**promoted.RULE, "metric": "disk_mib", "against": None}]
    rules[1] |= {"at_most": 200.0}
    del rules[1]["at_least"]
    assert promoted.decide(place, rules) == {"criteria": 2, "criteria_met": 0, "promoted": 0}
    found = promoted.decision(place)
    assert found["verdict"] == "refused"
    assert [each["outcome"] for each in found["criteria"]] == ["missed", "missed"]
    first, second = found["criteria"]
    assert first["shortfall"] == pytest.approx(50.0 - first["ci_low"]) and second["shortfall"] == pytest.approx(66.0)
    assert first["sentence"] in found["sentence"] and second["sentence"] in found["sentence"]
    assert second["sentence"] == "disk_mib of lora: 266 MiB (counted), at most 200 was asked: missed by 66 MiB"
    text = card(place)
    assert "should not be used for the task" in text and "- refused" in text and "missed by 66 MiB" in text


def test_a_whole_model_and_a_gguf_are_loaded_otherwise(place: Path) -> None:
    rules = [{**promoted.RULE, "candidate": "base", "against": None, "at_least": 1.0}]
    promoted.decide(place, rules, candidate="base")
    text = card(place)
    assert 'AutoModelForCausalLM.from_pretrained("artifacts/select/model")' in text and "peft" not in text
    assert "base_model_relation" not in text  # it is the base
    base = place / "artifacts/select/model"
    (base / "model.safetensors").rename(base / "model.gguf")
    promoted.evaluated(place, "base", base)
    promoted.decide(place, rules, candidate="base")
    assert "from llama_cpp import Llama" in card(place) and "library_name: llama.cpp" in card(place)


def test_optional_parts_may_be_missing(place: Path) -> None:
    promoted.decide(place, efficiency=None, timings=None, lock=None)
    text = card(place)
    assert "They were not measured." in text and "No timings were kept." in text and "No dvc.lock was given" in text
    (place / "compress").mkdir()
    (place / "compress/compress.json").write_text(json.dumps(COMPRESS))
    promoted.decide(place, compress=Path("compress"))
    text = card(place)
    assert "## Compression" in text and "int8 is the smallest within 1% of lora." in text
    assert (
        "| **int8** | int8 weights | 134 MiB | 1.9 [1.8, 2] | 12 [11, 13] | 30 [25, 35] | −0.2 [−0.9, +0.5] |" in text
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"metric": "rouge3"},
            r"params.yaml: scope.criteria.1.metric: nothing has measured 'rouge3'\n  expected: one of rouge1, .*\n  fix: did you mean"
            r" 'rougeL'\?",
        ),
        (
            {"metric": "tasks/mmlu/acc"},
            r"params.yaml: scope.criteria.1.metric: nothing has measured 'tasks/mmlu/acc'\n  expected: one of rouge1, ",
        ),
    ],
)
def test_a_metric_that_nothing_has_measured_is_told(place: Path, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        promoted.decide(place, [promoted.RULE, {**promoted.RULE, **rule}])
    assert caught.value.exit_code == 2
    assert not (place / "artifacts/promote").exists()


def test_weights_that_were_not_evaluated_are_not_promoted(place: Path) -> None:
    (place / "artifacts/lora/adapter/adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(
        UserError, match=r"artifacts/lora/adapter, artifacts/select/model: the weights of 'lora' \(hash"
    ):
        promoted.decide(place)


def test_a_candidate_that_there_is_not_is_told(place: Path) -> None:
    with pytest.raises(
        UserError, match=r"params.yaml: promote.candidate: 'lroa' is no candidate\n  expected: one of base, lora"
    ):
        promoted.decide(place, candidate="lroa")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("artifacts/scope/scope.json", None, "scope.json: no such file"),
        ("reports/comparison.json", b"{", "comparison.json: not valid JSON"),
        ("artifacts/select/plan.json", b"[]", "plan.json: holds a list"),
        ("dvc.lock", b"a: [", "dvc.lock: not valid YAML"),
        ("artifacts/efficiency/efficiency.json", b"\xff", "efficiency.json: not UTF-8"),
    ],
)
def test_damaged_input_is_named(place: Path, file: str, content: bytes | None, said: str) -> None:
    path = place / file
    path.unlink() if content is None else path.write_bytes(content)
    inputs = {"scope": Path("artifacts/scope"), "data": Path("artifacts/validate"), "select": Path("artifacts/select")}
    with pytest.raises(UserError, match=said):
        promote.run(
            promoted.CONFIG,
            **inputs,
            evaluations=Path("artifacts/evaluate"),
            efficiency=Path("artifacts/efficiency"),
            comparison=Path("reports/comparison.json"),
            timings=Path("metrics"),
            lock=Path("dvc.lock"),
            candidates=report_artifacts.candidates(promoted.TWO),
            out=Path("out"),
            log=Log(),
        )


def test_the_report_shows_what_was_decided(place: Path) -> None:
    promoted.decide(place, [{**promoted.RULE, "at_least": 50.0}])
    artifacts = place / "artifacts"
    inputs = {"scope": artifacts / "scope", "data": artifacts / "validate", "select": artifacts / "select"}
    metrics = report.run(
        report.Config(title="T", group="package", samples=4, seed=0),
        **inputs,
        evaluations=artifacts / "evaluate",
        efficiency=artifacts / "efficiency",
        comparison=place / "reports/comparison.json",
        promotion=artifacts / "promote/decision.json",
        timings=place / "metrics",
        lock=place / "dvc.lock",
        candidates=report_artifacts.candidates(promoted.TWO),
        out=place / "report.html",
        out_tradeoff=place / "tradeoff.csv",
        log=Log(),
    )
    assert metrics == {"criteria": 1, "criteria_met": 0}
    words = Page((place / "report.html").read_text(encoding="utf-8")).words
    assert promoted.decision(place)["sentence"] in words and "lora is refused" in words


def test_from_the_command_line(place: Path) -> None:
    params = {
        "promote": {"candidate": "lora", "model": None, "champion_margin": 1.0, "weights_mib": 64, "language": ["en"]},
        "candidates": report_artifacts.candidates(promoted.TWO).model_dump(),
    }
    (place / "params.yaml").write_text(json.dumps(params))
    flags = {
        "scope": "scope",
        "data": "validate",
        "select": "select",
        "evaluations": "evaluate",
        "efficiency": "efficiency",
    }
    command = [sys.executable, "-m", "stages.promote", "--comparison", "reports/comparison.json"]
    for flag, name in flags.items():
        command += [f"--{flag}", f"artifacts/{name}"]
    command += ["--timings", "metrics", "--lock", "dvc.lock"]
    done = subprocess.run(command, cwd=place, env=tuned.environment(), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "lora is promoted: all 2 criteria are met." in done.stderr
    assert json.loads((place / "metrics/promote.json").read_text()) == {"criteria": 2, "criteria_met": 2, "promoted": 1}
    params["promote"]["candidat"] = "lora"  # type: ignore[index]
    (place / "params.yaml").write_text(json.dumps(params))
    done = subprocess.run(command, cwd=place, env=tuned.environment(), text=True, capture_output=True)
    assert done.returncode == 2 and "promote.candidat: unknown key" in done.stderr
    assert "did you mean 'candidate'?" in done.stderr
