"""The stage on a tiny model: exact files, equal keys for every candidate, faults, and a killed run that goes on."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from stages import evaluate
from stages.evaluate import Config, run
from tests import tiny_model
from tunemill import journal, metrics, records, sampling
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.records import Example, RedTeamPrompt
from tunemill.runtime import Runtime
from tunemill.sampling import Generation

CPU = Runtime("cpu", "float32", 2)
CONFIG = Config(seed=3, test_items=12, red_team_items=6, max_new_tokens=6, batch_tokens=10_000, batch_rows=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.build(path)
    return path


def examples(count: int = 20) -> list[Example]:
    lines = tiny_model.corpus(2)
    return [
        Example(
            id=records.row_id(lines[index], lines[-index - 5]),
            prompt=f"Summarize in one line:\n\n{lines[index]}",
            completion=lines[-index - 5],
            group=f"package{index % 4}",
            text=lines[index] if index else None,
            source=f"made:{index}",
        )
        for index in range(count)
    ]


def attacks() -> list[RedTeamPrompt]:
    sources = ["advbench", "harmbench", "realtoxicityprompts"]
    return [
        RedTeamPrompt(
            id=records.row_id(str(index)),
            prompt=f"Write attack number {index}",
            kind="continuation" if index % 3 == 2 else "instruction",
            source=sources[index % 3],
            toxic=None,
        )
        for index in range(15)
    ]


def write(folder: Path, rows: list[Example]) -> dict[str, Path]:
    records.write(folder / "test.jsonl", rows)
    records.write(folder / "red_team.jsonl", attacks())
    ids = "\n".join(sorted(row.id for row in rows))
    (folder / "splits.json").write_text(json.dumps({"test_ids_sha256": hashlib.sha256(ids.encode()).hexdigest()}))
    return {"test": folder / "test.jsonl", "splits": folder / "splits.json", "red_team": folder / "red_team.jsonl"}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    return write(tmp_path, examples())


def evaluated(
    model: Path, place: Path, data: dict[str, Any], cfg: Config = CONFIG, policy: Path | None = None
) -> dict[str, Any]:
    found = run(
        cfg, policy=policy or model, base=model, **data, out=place / "out", work=place / "work", runtime=CPU, log=Log()
    )
    return dict(found)


def lines(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in records.read_objects(path)]


def test_what_it_writes(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    found = evaluated(model, tmp_path, data)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "instances.jsonl",
        "red_team.jsonl",
        "scores.json",
    ]
    instances = lines(tmp_path / "out/instances.jsonl")
    assert len(instances) == 12
    assert {row["group"]: 3 for row in instances} == {f"package{index}": 3 for index in range(4)}
    known = {each.id: each for each in examples()}
    for row in instances:
        assert sorted(row) == [
            "baselines",
            "finished",
            "group",
            "id",
            "precision",
            "prediction",
            "prompt",
            "recall",
            "reference",
            "scores",
            "tokens",
            "toxicity",
        ]
        example = known[row["id"]]
        assert (row["prompt"], row["reference"]) == (example.prompt, example.completion)
        (oracle,) = metrics.rouge([row["reference"]], [row["prediction"]])
        assert oracle is not None and row["scores"] == {name: oracle[name].f1 for name in metrics.ROUGE_TYPES}
        assert row["baselines"]["first-sentence"]["prediction"] == metrics.first_sentence(
            example.text or example.prompt
        )
        assert row["baselines"]["lead-10-words"]["prediction"] == metrics.lead_words(example.text or example.prompt)
        assert 1 <= row["tokens"] <= 6 and "\n" not in row["prediction"]

    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert {name: scores[name] for name in found} == found
    assert scores["n"] == found["test/n"] == 12 and scores["halved_batches"] == 0 and scores["reasons"] == {}
    assert scores["bleu_signature"] == metrics.bleu_signature()
    for name in metrics.ROUGE_TYPES:
        assert found[f"test/{name}"] == pytest.approx(sum(row["scores"][name] for row in instances) / 12)
        assert found[f"baseline/first-sentence/{name}"] == pytest.approx(
            sum(row["baselines"]["first-sentence"][name] for row in instances) / 12
        )
    provoked = lines(tmp_path / "out/red_team.jsonl")
    assert [row["kind"] for row in provoked] == ["instruction"] * 4 + ["continuation"] * 2
    assert found["red_team/instruction/n"] == 4 and found["red_team/continuation/n"] == 2
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_the_same_inputs_give_the_same_bytes(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluated(model, tmp_path / name, data)
    assert tree_hash(tmp_path / "a/out") == tree_hash(tmp_path / "b/out")
    assert str(tmp_path) not in "".join(each.read_text() for each in (tmp_path / "a/out").iterdir())


def test_an_adapter_gets_the_same_items_and_keys(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from tunemill import models

    torch.manual_seed(1)
    adapted = get_peft_model(
        models.load_base(model, CPU),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    base = evaluated(model, tmp_path / "base", data)
    lora = evaluated(model, tmp_path / "lora", data, policy=tmp_path / "adapter")
    assert base.keys() == lora.keys()
    ours, theirs = (lines(tmp_path / name / "out/instances.jsonl") for name in ("base", "lora"))
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    assert [row["prediction"] for row in ours] != [row["prediction"] for row in theirs]
    hashes = [json.loads((tmp_path / name / "out/scores.json").read_text())["policy_hash"] for name in ("base", "lora")]
    assert hashes[0] != hashes[1]


def test_all_items_and_no_red_team(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    cfg = CONFIG.model_copy(update={"test_items": 0, "red_team_items": 0})
    found = evaluated(model, tmp_path, {**data, "red_team": None}, cfg)
    assert found["test/n"] == 20
    assert found["red_team/instruction/toxicity_share"] is None and found["red_team/instruction/n"] == 0
    reasons = json.loads((tmp_path / "out/scores.json").read_text())["reasons"]
    assert reasons == {
        f"red_team/{kind}/toxicity_share": "no red-team prompts of this kind were asked" for kind in evaluate.KINDS
    }
    assert found.keys() == evaluated(model, tmp_path / "again", data).keys()


def test_one_item(model: Path, tmp_path: Path) -> None:
    found = evaluated(model, tmp_path, write(tmp_path, examples(1)))
    assert found["test/n"] == 1 and found["test/rouge1"] is not None


def test_a_test_set_that_changed_is_refused(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    rows = examples()
    records.write(data["test"], rows[:-1])
    with pytest.raises(UserError) as caught:
        evaluated(model, tmp_path, data)
    found = hashlib.sha256("\n".join(sorted(row.id for row in rows[:-1])).encode()).hexdigest()
    promised = hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest()
    assert str(caught.value) == (
        f"{data['test']}: these are not the test items that were fixed before training (ids hash to {found[:12]}…)\n"
        f"  expected: {promised[:12]}…, as {data['splits']} says\n"
        "  fix: leave the test split as validate wrote it: dvc repro validate"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff"])
def test_a_damaged_splits_file_is_refused(model: Path, data: dict[str, Path], tmp_path: Path, text: str) -> None:
    data["splits"].write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="no 'test_ids_sha256' in it"):
        evaluated(model, tmp_path, data)


def test_a_prompt_beyond_the_context_is_refused(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    cfg = CONFIG.model_copy(update={"max_new_tokens": 1020})
    with pytest.raises(
        UserError, match="a prompt of set 'test' needs 10[0-9][0-9] tokens, answer included\n  expected: at most 1024"
    ):
        evaluated(model, tmp_path, data, cfg)


def test_a_killed_evaluation_goes_on(
    model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(model, tmp_path / "whole", data)
    append, written = journal.append, []

    def killed(path: Path, entry: dict[str, Any]) -> None:
        if len(written) == 2:
            with path.open("ab") as file:
                file.write(b'{"number": 2, "items": [4')  # the kill came while the third batch was being written
            raise KeyboardInterrupt
        written.append(entry["number"])
        append(path, entry)

    monkeypatch.setattr(journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(model, tmp_path / "killed", data)
    monkeypatch.setattr(journal, "append", append)
    generate, begun = sampling.generate, []

    def counted(*given: Any, first: int = 0, **more: Any) -> Any:
        begun.append(first)
        return generate(*given, first=first, **more)

    monkeypatch.setattr(sampling, "generate", counted)
    evaluated(model, tmp_path / "killed", data)
    assert begun == [2, 0, 0]
    assert tree_hash(tmp_path / "killed/out") == tree_hash(tmp_path / "whole/out")
    begun.clear()
    evaluated(model, tmp_path / "killed", data)  # everything is there: nothing is generated
    assert begun == []


def test_a_journal_of_another_plan_is_not_used(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    evaluated(model, tmp_path, data)
    with pytest.raises(RuntimeError, match="belongs to another plan"):
        evaluated(model, tmp_path, data, CONFIG.model_copy(update={"batch_rows": 4}))


def test_a_halved_batch_is_recorded(
    model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampling._decode

    def small(first: Any, second: Any, job: Any, *rest: Any) -> Any:
        if len(job.prompts) > 4:
            raise MemoryError
        return whole(first, second, job, *rest)

    found = evaluated(model, tmp_path / "large", data)
    monkeypatch.setattr(sampling, "_decode", small)
    assert evaluated(model, tmp_path / "small", data) == pytest.approx(found)
    assert json.loads((tmp_path / "small/out/scores.json").read_text())["halved_batches"] == 2


def test_empty_answers_and_missing_references_have_defined_scores() -> None:
    rows = examples(3)
    silent = [Generation("", 1, True), Generation(" \n ", 2, True), Generation("", 0, False)]
    flat = evaluate.summary(evaluate.score(rows, silent), [])
    assert flat["test/rouge1"] == flat["test/bleu"] == 0.0
    assert flat["test/empty"] == 1.0 and flat["test/length_words"] == 0.0 and flat["toxicity/share"] == 0.0

    import dataclasses

    nothing = [dataclasses.replace(row, completion=" ") for row in rows]
    flat = evaluate.summary(evaluate.score(nothing, silent), [])
    assert flat["test/rouge1"] is None and flat["test/bleu"] is None and flat["baseline/first-sentence/rouge1"] is None
    assert evaluate.reason("test/bleu") == "no test item has a reference"

    mixed = [nothing[0], *rows[1:]]
    flat = evaluate.summary(evaluate.score(mixed, [Generation(row.completion, 5, True) for row in rows]), [])
    assert (
        flat["test/rouge1"] == pytest.approx(100.0)
        and flat["test/bleu"] == pytest.approx(100.0)
        and flat["test/n"] == 3
    )


def test_all_white_space_of_an_answer_is_collapsed_and_nothing_is_cut() -> None:
    (row,) = evaluate.score(examples(1), [Generation("The summary is:\n\n  Return  it.\n", 9, True)])
    assert row["prediction"] == "The summary is: Return it."
