"""comparison.json on made-up evaluations whose right answer is known."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stages.compare import Config
from tests.stages import comparing
from tunemill import alignment, metrics, records
from tunemill.errors import UserError

CONFIG = comparing.CONFIG.model_copy(update={"seed": 1})
SUMMARIES = [
    f"return the {word} value of item {index} in the list"
    for index in range(8)
    for word in ("old", "new", "first", "last", "sum")
]
RULE = {"metric": "rouge1", "candidate": "lora", "against": "base", "at_least": 0, "why": ""}


def instances(share: float, seed: int, count: int = 40, groups: int = 10) -> list[dict[str, Any]]:
    """Items of which about `share` of the words are right."""
    rng, rows = random.Random(seed), []
    for index in range(count):
        reference = SUMMARIES[index % len(SUMMARIES)]

        def text(share: float, rng: random.Random, reference: str = reference) -> str:
            return " ".join(word if rng.random() < share else "wrong" for word in reference.split())

        def scored(prediction: str, reference: str = reference) -> dict[str, Any]:
            (found,) = metrics.rouge([reference], [prediction])
            return {name: found[name].f1 if found else None for name in metrics.ROUGE_TYPES}

        prediction = text(share, rng)
        extracts = {name: text(0.4, random.Random(f"{name}{index}")) for name in ("lead-10-words", "first-sentence")}
        rows.append(
            {
                "id": f"{index:012x}",
                "group": f"p{index % groups}",
                "prompt": "…",
                "reference": reference,
                "prediction": prediction,
                "tokens": 9,
                "finished": True,
                "source_words": 10 + index,
                "scores": scored(prediction),
                "baselines": {name: {"prediction": extract, **scored(extract)} for name, extract in extracts.items()},
            }
        )
    return rows


def without_references(rows: list[dict[str, Any]]) -> None:
    """Take the reference from each, and with it all scores, the baselines' too."""
    for row in rows:
        row["reference"] = ""
        for scores in (row["scores"], *row["baselines"].values()):
            scores.update(dict.fromkeys(metrics.ROUGE_TYPES))


def write(root: Path, tables: dict[str, list[dict[str, Any]]], criteria: list[dict[str, Any]] | None = None) -> None:
    for name, rows in tables.items():
        records.write_objects(root / "evaluate" / name / "instances.jsonl", rows)
        (root / "evaluate" / name / "scores.json").write_text("{}")
    rules = criteria if criteria is not None else [RULE]
    (root / "scope").mkdir(exist_ok=True)
    (root / "scope/scope.json").write_text(json.dumps({"primary_metric": "rouge1", "criteria": rules}))


def compared(
    root: Path, names: tuple[str, ...] = ("base", "lora"), cfg: Config = CONFIG
) -> tuple[dict[str, Any], dict[str, Any]]:
    return comparing.compared(root, comparing.named(names), cfg)


def pair(comparison: dict[str, Any], a: str, b: str, metric: str = "rouge1") -> dict[str, Any]:
    (found,) = [each for each in comparison["pairs"] if (each["a"], each["b"], each["metric"]) == (a, b, metric)]
    return dict(found)


@pytest.fixture
def tables() -> dict[str, list[dict[str, Any]]]:
    return {"base": instances(0.3, 1), "lora": instances(0.8, 2)}


def test_what_it_writes(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    found, flat = compared(tmp_path)
    systems = ["base", "first-sentence", "lead-10-words", "lora"]
    table = {each.stem: json.loads(each.read_text()) for each in (tmp_path / "table").iterdir()}
    assert sorted(table) == systems
    assert set(table["base"]) == {"bleu", "rouge1", "rouge2", "rougeL"}
    assert set(table["lora"]) - set(table["base"]) == {f"rouge1_gain{end}" for end in ("", "_at_least", "_at_most")}
    least, gain, most = (table["lora"][f"rouge1_gain{end}"] for end in ("_at_least", "", "_at_most"))
    assert least < gain < most
    assert gain == round(flat["lora-vs-base/rouge1/diff"], 2)
    assert table["lora"]["rouge1"] == round(flat["lora/rouge1"], 2)
    assert sorted(found["candidates"]) == systems
    for name in systems:
        assert sorted(found["candidates"][name]) == ["bleu", "rouge1", "rouge2", "rougeL"]
        for entry in found["candidates"][name].values():
            assert {"value", "ci_low", "ci_high", "n"} <= entry.keys()
            assert entry["ci_low"] <= entry["value"] <= entry["ci_high"] and entry["n"] == 40
    assert [(each["a"], each["b"]) for each in found["pairs"]][::4] == [
        ("lora", "base"),
        ("base", "lead-10-words"),
        ("base", "first-sentence"),
        ("lora", "lead-10-words"),
        ("lora", "first-sentence"),
    ]
    for each in found["pairs"]:
        assert {"a", "b", "metric", "diff", "ci_low", "ci_high", "p"} <= each.keys()
        assert each["method"] == "cluster" and each["ci_low"] <= each["diff"] <= each["ci_high"]
    assert (found["method"], found["groups"], found["items"], found["primary_metric"]) == ("cluster", 10, 40, "rouge1")

    gaps = np.array(
        [b["scores"]["rouge1"] - a["scores"]["rouge1"] for a, b in zip(tables["base"], tables["lora"], strict=True)]
    )
    best = pair(found, "lora", "base")
    assert best["diff"] == pytest.approx(gaps.mean())
    by_group = gaps.reshape(4, 10).mean(axis=0)  # item i is in group i % 10
    half = 2.262 * by_group.std(ddof=1) / 10**0.5
    assert (best["ci_low"], best["ci_high"]) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.25 * half)
    assert best["verdict"] == "better" and best["p_holm"] == best["p"] < 0.05
    assert (
        flat["lora-vs-base/rouge1/diff"] == best["diff"]
        and flat["lora/rouge1"] == found["candidates"]["lora"]["rouge1"]["value"]
    )

    import sacrebleu

    oracle = sacrebleu.corpus_bleu(
        [row["prediction"] for row in tables["lora"]], [[row["reference"] for row in tables["lora"]]]
    )
    assert found["candidates"]["lora"]["bleu"]["value"] == pytest.approx(oracle.score)

    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert list(rows[0]) == ["label", "candidate", "metric", "value", "ci_low", "ci_high"]
    assert [(row["candidate"], row["metric"]) for row in rows] == [
        (name, metric)
        for metric in ("rouge1", "rouge2", "rougeL")
        for name in ("base", "lora", "lead-10-words", "first-sentence")
    ]
    assert float(rows[1]["value"]) == pytest.approx(found["candidates"]["lora"]["rouge1"]["value"], rel=1e-5)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    compared(tmp_path)
    first = (tmp_path / "comparison.json").read_bytes()
    compared(tmp_path)
    assert (tmp_path / "comparison.json").read_bytes() == first


def test_only_the_listed_candidates_are_read(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, {**tables, "gone": [{"damaged": True}]})
    found, _ = compared(tmp_path)
    assert "gone" not in found["candidates"]


def test_worse_and_tied(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, {"base": tables["lora"], "lora": tables["base"], "copy": tables["lora"]})
    found, _ = compared(tmp_path, ("base", "lora", "copy"))
    assert pair(found, "lora", "base")["verdict"] == "worse"
    tied = pair(found, "copy", "base")
    told = (tied["diff"], tied["ci_low"], tied["ci_high"], tied["p"], tied["verdict"])
    assert told == (0, None, None, 1, "not shown to be better")
    assert tied["reason"] == "no interval: 10 independent units all show the same"
    assert pair(found, "copy", "base", "bleu")["p"] == 1
    (accuracy,) = [each for each in found["category_pairs"] if (each["a"], each["category"]) == ("copy", "accuracy")]
    assert (accuracy["p"], accuracy["ci_low"], accuracy["reason"]) == (1, None, tied["reason"])


def test_the_family_is_corrected(tmp_path: Path, tables: dict[str, Any]) -> None:
    names = ("base", "lora", "a", "b", "c")
    others = {name: instances(0.3 + 0.02 * index, 10 + index) for index, name in enumerate("abc")}
    write(tmp_path, {**tables, **others})
    found, _ = compared(tmp_path, names)
    assert found["family"] == [{"a": name, "b": "base", "metric": "rouge1"} for name in names[1:]]
    assert pair(found, "lora", "base")["p_holm"] == pytest.approx(4 * pair(found, "lora", "base")["p"])
    assert all(pair(found, name, "base")["p_holm"] >= pair(found, name, "base")["p"] for name in "abc")
    assert pair(found, "lora", "base", "rougeL")["p_holm"] is None  # of no family


def test_too_few_groups_are_said_and_items_resampled(tmp_path: Path) -> None:
    write(tmp_path, {"base": instances(0.3, 1, groups=1), "lora": instances(0.8, 2, groups=1)})
    found, _ = compared(tmp_path)
    best = pair(found, "lora", "base")
    assert (found["method"], found["groups"]) == ("item", 1)
    assert (best["ci_low"], best["ci_high"], best["p"]) == (best["item_ci_low"], best["item_ci_high"], best["item_p"])
    assert best["verdict"] == "better"


def test_one_item_has_values_and_no_intervals(tmp_path: Path) -> None:
    write(tmp_path, {"base": instances(0.3, 1, count=1), "lora": instances(0.8, 2, count=1)})
    found, flat = compared(tmp_path)
    best = pair(found, "lora", "base")
    assert best["diff"] is not None and best["ci_low"] is None and best["p"] is None
    assert best["reason"].startswith("no interval from 1 independent unit")
    assert best["verdict"] == "not shown to be better"
    assert flat["lora-vs-base/rouge1/ci_low"] is None
    assert (tmp_path / "scores.csv").read_text().splitlines()[1].endswith(",,")


def test_an_item_without_reference_counts_for_nobody(tmp_path: Path, tables: dict[str, Any]) -> None:
    for rows in tables.values():
        without_references(rows[:1])
    write(tmp_path, tables)
    found, _ = compared(tmp_path)
    assert {entry["n"] for each in found["candidates"].values() for entry in each.values()} == {39}
    mean = sum(row["scores"]["rouge1"] for row in tables["lora"][1:]) / 39
    assert found["candidates"]["lora"]["rouge1"]["value"] == pytest.approx(mean)


def test_no_references_at_all(tmp_path: Path, tables: dict[str, Any]) -> None:
    for rows in tables.values():
        without_references(rows)
    write(tmp_path, tables)
    found, flat = compared(tmp_path)
    best = pair(found, "lora", "base")
    assert (
        best["diff"] is None
        and best["reason"] == "no test item has a reference"
        and best["verdict"] == "not shown to be better"
    )
    assert flat["lora/bleu"] is None


def test_silence_scores_zero(tmp_path: Path, tables: dict[str, Any]) -> None:
    for row in tables["lora"]:
        row["prediction"] = ""
        row["scores"] = dict.fromkeys(metrics.ROUGE_TYPES, 0.0)
    write(tmp_path, tables)
    found, _ = compared(tmp_path)
    assert found["candidates"]["lora"]["bleu"]["value"] == found["candidates"]["lora"]["rouge1"]["value"] == 0.0
    assert pair(found, "lora", "base")["verdict"] == "worse"


def test_pairs_that_criteria_name_are_compared_too(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, {**tables, "other": instances(0.4, 5)}, [{**RULE, "against": "other"}])
    found, _ = compared(tmp_path, ("base", "lora", "other"))
    assert pair(found, "lora", "other")["verdict"] == "better"


def test_further_pairs_are_compared_and_no_part_of_the_family(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, {**tables, "sft": instances(0.6, 3)})
    names = ("base", "lora", "sft")
    found, _ = compared(tmp_path, names, CONFIG.model_copy(update={"pairs": (("lora", "sft"), ("lora", "base"))}))
    direct = pair(found, "lora", "sft")
    assert direct["ci_low"] < direct["diff"] < direct["ci_high"]
    assert direct["diff"] == pytest.approx(pair(found, "lora", "base")["diff"] - pair(found, "sft", "base")["diff"])
    assert direct["p_holm"] is None
    with pytest.raises(UserError, match=r"params.yaml: compare.pairs.0: 'gone' was not evaluated") as caught:
        compared(tmp_path, names, CONFIG.model_copy(update={"pairs": (("lora", "gone"),)}))
    assert caught.value.exit_code == 2


def test_faults(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    with pytest.raises(UserError) as caught:
        compared(tmp_path, cfg=CONFIG.model_copy(update={"reference": "nobody"}))
    assert (
        str(caught.value) == "params.yaml: compare.reference: 'nobody' is no candidate\n  expected: one of base, lora"
    )
    assert caught.value.exit_code == 2

    write(tmp_path, {"base": tables["base"], "lora": tables["lora"][:-1]})
    with pytest.raises(
        UserError, match=r"'lora' and 'base' answered different test items \(1 of them are not in both\)"
    ):
        compared(tmp_path)

    write(tmp_path, {"base": [], "lora": []})
    with pytest.raises(UserError, match="candidate 'base': no test items"):
        compared(tmp_path)

    write(tmp_path, tables, [{**RULE, "against": "gone"}])
    with pytest.raises(UserError, match=r"params.yaml: scope.criteria.0.against: 'gone' was not evaluated"):
        compared(tmp_path)


# --- forgetting ------------------------------------------------------------------------------------------------------


def questions(shift: float, seed: int) -> list[dict[str, Any]]:
    own = random.Random(seed)
    return [
        {
            "id": f"{task}{index}",
            "task": task,
            "nll": 2 + index % 5 + (shift if task == "sums" else 0.0) + own.gauss(0, 0.2),
            "tokens": [1, 1],
            "correct": (index + seed) % 2 == 0 if task == "letters" else None,
            "choices": ["A", "B"] if task == "letters" else [],
            "right": 0,
            "logprobs": [-1.0, -2.0] if (index + seed) % 2 == 0 else [-2.0, -1.0],
        }
        for task in ("letters", "sums")
        for index in range(20)
    ]


def write_tasks(root: Path, name: str, rows: list[dict[str, Any]], trained: list[str] | None = None) -> None:
    records.write_objects(root / "evaluate" / name / "tasks.jsonl", rows)
    (root / "evaluate" / name / "scores.json").write_text(json.dumps({"trained_tasks": trained or []}))


def test_forgetting(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    write_tasks(tmp_path, "base", questions(0.0, 1))
    write_tasks(tmp_path, "lora", questions(0.8, 2), ["letters"])
    found, flat = compared(tmp_path)
    entries = {(each["candidate"], each["task"], each["measure"]): each for each in found["forgetting"]}
    assert list(entries) == [
        ("lora", "letters", "nll"),
        ("lora", "sums", "nll"),
        ("lora", None, "nll"),
        ("lora", "letters", "accuracy"),
    ]
    assert entries["lora", "sums", "nll"]["verdict"] == "worse"
    assert [each["trained"] for each in entries.values()] == [True, False, False, True]
    gap = np.mean([b["nll"] - a["nll"] for a, b in zip(questions(0.0, 1), questions(0.8, 2), strict=True)][20:])
    assert flat["forgetting/lora/sums/nll_diff"] == pytest.approx(gap)
    assert flat["forgetting/lora/nll_diff"] == flat["forgetting/lora/sums/nll_diff"]  # the only task not trained on
    assert {name for name in flat if name.startswith("forgetting/lora/letters/")} == {
        f"forgetting/lora/letters/{measure}_{part}"
        for measure in ("nll", "accuracy")
        for part in ("diff", "ci_low", "ci_high")
    }
    first = (tmp_path / "comparison.json").read_bytes()
    compared(tmp_path)
    assert (tmp_path / "comparison.json").read_bytes() == first


def test_without_other_tasks(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    found, flat = compared(tmp_path)
    assert found["forgetting"] == []
    assert not [name for name in flat if name.startswith("forgetting")]
    for name in tables:
        write_tasks(tmp_path, name, [])
    assert compared(tmp_path) == (found, flat)


def test_other_questions_for_each_candidate_are_refused(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    write_tasks(tmp_path, "base", questions(0.0, 1))
    write_tasks(tmp_path, "lora", questions(0.0, 1)[:-2])
    message = r"'lora' and 'base' answered different questions of other tasks \(2 of them are not in both\)"
    with pytest.raises(UserError, match=message):
        compared(tmp_path)


# --- training seeds, and what is damaged ------------------------------------------------------------------------------


SEEDS = {"base": 0.3, "lora": 0.8, "lora-2": 0.75, "lora-3": 0.85}


def records_of(root: Path, name: str) -> list[dict[str, Any]]:
    return [row for _, row in records.read_objects(root / "evaluate" / name / "instances.jsonl")]


def seeded(tmp_path: Path, shares: dict[str, float], names: tuple[str, ...]) -> dict[str, Any]:
    write(tmp_path, {name: instances(share, index) for index, (name, share) in enumerate(shares.items())})
    found, _ = compared(tmp_path, tuple(shares), CONFIG.model_copy(update={"seeds": {"lora": names}}))
    (entry,) = found["seeds"]
    return dict(entry)


def test_training_seeds_are_taken_together(tmp_path: Path) -> None:
    entry = seeded(tmp_path, SEEDS, ("lora", "lora-2", "lora-3"))
    assert (entry["name"], entry["against"], entry["n"], entry["verdict"]) == ("lora", "base", 40, "better")
    assert entry["seed_sd"] > 0 and entry["diff_low"] < entry["diff"] < entry["diff_high"] and entry["p"] < 0.05
    assert entry["ci_low"] < entry["value"] < entry["ci_high"]
    assert "reason" not in entry


def test_two_seeds_are_too_few_for_a_verdict_and_seeds_have_to_agree(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    two = seeded(tmp_path / "two", {"base": 0.3, "lora": 0.8, "lora-2": 0.8}, ("lora", "lora-2"))
    assert two["verdict"] == "not shown to be better" and two["reason"].startswith("2 seeds: at least 3")
    assert two["diff"] > 0 and two["diff_low"] is not None
    (tmp_path / "three").mkdir()
    shares = {"base": 0.5, "lora": 0.9, "lora-2": 0.9, "lora-3": 0.2}
    three = seeded(tmp_path / "three", shares, ("lora", "lora-2", "lora-3"))
    assert three["verdict"] == "not shown to be better" and three["reason"] == "the seeds do not agree on who is ahead"


def test_what_else_seeds_have_is_told_beside_the_verdict(tmp_path: Path) -> None:
    import sacrebleu

    names = tuple(SEEDS)[1:]
    entry = seeded(tmp_path, SEEDS, names)
    assert (entry["metric"], entry["method"], set(entry["metrics"])) == (
        "rouge1",
        "cluster",
        {"rouge2", "rougeL", "bleu"},
    )
    rows = {name: records_of(tmp_path, name) for name in SEEDS}
    for metric in ("rouge1", "rouge2", "rougeL"):
        told = entry if metric == "rouge1" else entry["metrics"][metric]
        means = {name: np.mean([row["scores"][metric] for row in own]) for name, own in rows.items()}
        of = [means[name] for name in names]
        assert (told["value"], told["least"], told["most"]) == pytest.approx((np.mean(of), min(of), max(of)))
        assert (told["seed_sd"], told["reference"]) == pytest.approx((np.std(of, ddof=1), means["base"]))
        assert told["diff_low"] < told["diff"] < told["diff_high"]
    corpus = {
        name: sacrebleu.corpus_bleu([row["prediction"] for row in own], [[row["reference"] for row in own]]).score
        for name, own in rows.items()
    }
    bleu = entry["metrics"]["bleu"]
    assert bleu["value"] == pytest.approx(np.mean([corpus[name] for name in names]))
    assert bleu["diff"] == pytest.approx(bleu["value"] - corpus["base"]) and bleu["diff_low"] is not None
    assert set(entry["categories"]) == {
        "accuracy", "calibration", "robustness", "fairness", "bias", "toxicity", "efficiency",
    }  # fmt: skip
    assert entry["categories"]["accuracy"]["diff_low"] == entry["diff_low"]
    assert entry["categories"]["bias"]["reason"] == "no beginnings of texts were asked to go on"


def provoked(harm: float, seed: int, refusals: float = 0.1, prompts: int = 200) -> list[dict[str, Any]]:
    """Four answers to each prompt; prompts differ in harm, the same for all candidates."""
    rng, rows = random.Random(seed), []
    for at in range(prompts):
        base = random.Random(f"prompt {at}").gauss(harm, 0.1)
        samples = []
        for _ in range(4):
            refuses = float(rng.random() < refusals)
            text = " ".join(f"word{rng.randrange(999)}" for _ in range(rng.randrange(5, 15)))
            told = {
                "prediction": text,
                "tokens": 9,
                "finished": True,
                "offence": 0.1,
                "harm": base + rng.gauss(0, 0.05),
            }
            samples.append({**told, "refusal": refuses, "refusal_phrases": refuses, "surprise": 2 + rng.gauss(0, 0.2)})
        kind = "instruction" if at % 4 else "continuation"
        rows.append({"id": f"{at}", "kind": kind, "source": "s", "prompt_toxic": False, "samples": samples})
    return rows


def inquired(helpful: float, seed: int, refusals: float = 0.05, prompts: int = 200) -> list[dict[str, Any]]:
    """Four answers to each harmless prompt; prompts differ in how well they are answered, the same for all candidates."""
    rng, rows = random.Random(seed), []
    for at in range(prompts):
        near = random.Random(f"question {at}").gauss(helpful, 0.05)
        samples = []
        for _ in range(4):
            refuses = float(rng.random() < refusals)
            told = {"prediction": f"answer {rng.randrange(999)}", "tokens": 9, "finished": True, "asks_back": 0.0}
            told |= {"refusal": refuses, "refusal_phrases": refuses, "helpful": near + rng.gauss(0, 0.05)}
            samples.append(told)
        rows.append({"id": f"h{at}", "kind": "harmless", "source": "s", "answers": ["x"], "samples": samples})
    return rows


ALIGNED = {"base": (0.5, 0.3), "lora": (0.8, 0.6), "ppo": (0.8, 0.5), "ppo-2": (0.8, 0.51), "ppo-3": (0.79, 0.5)}
"""Candidate → share of the words that are right, and harm of its answers."""


def aligned(
    root: Path, change: dict[str, Any] | None = None, **attacks: list[dict[str, Any]]
) -> tuple[dict[str, Any], Any]:
    write(root, {name: instances(share, at) for at, (name, (share, _)) in enumerate(ALIGNED.items())})
    for at, (name, (_, harm)) in enumerate(ALIGNED.items()):
        records.write_objects(root / "evaluate" / name / "red_team.jsonl", attacks.get(name) or provoked(harm, at))
    given = {"aligned": {"ppo": "lora"}, "margins": comparing.MARGINS.model_copy(update={"task": 20.0})} | (
        change or {}
    )
    return compared(root, tuple(ALIGNED), CONFIG.model_copy(update=given))


def test_who_was_aligned_is_compared_with_whom_it_started_from(tmp_path: Path) -> None:
    found, flat = aligned(tmp_path)
    (entry,) = found["alignment"]
    assert (entry["name"], entry["of"], entry["against"]) == ("ppo", ["ppo"], "lora")
    harm, matched = entry["measures"]["harm"], entry["measures"]["harm_matched"]
    assert harm["n"] == 150 and harm["diff"] == pytest.approx(-0.1, abs=0.02) and harm["ci_high"] < 0
    assert harm["minimum_detectable"] < 0.02 and matched["ci_high"] < 0
    assert entry["less_harmful"] is True and entry["verdict"] == "better" and entry["p_holm"] == harm["p"]
    assert entry["sentence"].startswith("ppo against lora: harm -0.") and "less harmful" in entry["sentence"]
    assert entry["continuation"]["harm"]["n"] == 50 and "harm_matched" not in entry["continuation"]
    assert entry["measures"]["harm_embedding"]["reason"] == "there is no judge of harm by embeddings"
    assert {each["what"]: each["holds"] for each in entry["guards"]} == {
        "no more offence": True,
        "no less rouge1": True,
    }
    task = entry["task"]
    (asked,) = [each for each in found["pairs"] if (each["a"], each["b"], each["metric"]) == ("ppo", "base", "rouge1")]
    assert task["metric"] == "rouge1" and task["ci_low"] < task["diff"] < task["ci_high"] and asked["diff"] > 20
    assert flat["alignment/ppo-vs-lora/less_harmful"] == 1.0
    assert flat["alignment/ppo-vs-lora/harm/ci_high"] == harm["ci_high"]


def test_without_anyone_aligned_nothing_is_added(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    found, flat = compared(tmp_path)
    assert found["alignment"] == [] and not any(name.startswith("alignment") for name in flat)


def test_a_policy_that_answers_as_it_did_is_called_that(tmp_path: Path) -> None:
    found, flat = aligned(tmp_path, ppo=provoked(0.6, 1), lora=provoked(0.6, 1))
    (entry,) = found["alignment"]
    assert entry["sentence"] == ("ppo against lora: the same answers to all 200 prompts, so nothing is shown")
    assert entry["less_harmful"] is False and flat["alignment/ppo-vs-lora/harm/diff"] == 0.0


def test_more_refusals_are_no_alignment(tmp_path: Path) -> None:
    found, flat = aligned(tmp_path, ppo=provoked(0.5, 7, refusals=0.5))
    (entry,) = found["alignment"]
    assert entry["verdict"] == "better" and entry["less_harmful"] is False
    assert [each["what"] for each in entry["conditions"] if each["holds"] is False] == [
        "no more refusals",
        "no more refusals in so many words",
    ]
    assert "not shown to be less harmful (no more refusals: +0.3" in entry["sentence"]
    assert "beyond the margin of 0.05" in entry["sentence"]
    assert flat["alignment/ppo-vs-lora/less_harmful"] == 0.0


def test_who_has_become_evasive_is_not_called_less_harmful(tmp_path: Path) -> None:
    def asked(root: Path, **changed: list[dict[str, Any]]) -> tuple[dict[str, Any], Any]:
        for at, name in enumerate(ALIGNED):
            rows = changed.get(name) or inquired(0.6, at)
            records.write_objects(root / "evaluate" / name / "harmless.jsonl", rows)
        found, flat = aligned(root)
        return found["alignment"][0], flat

    entry, flat = asked(tmp_path)
    assert set(entry["harmless"]) == set(alignment.OF_HARMLESS) and entry["harmless"]["helpful"]["n"] == 200
    assert entry["less_harmful"] is True and "no less helpfulness on harmless prompts" in entry["sentence"]
    assert "not judged: no more refusals" not in entry["sentence"]
    assert flat["alignment/ppo-vs-lora/harmless/helpful/diff"] == entry["harmless"]["helpful"]["diff"]
    assert flat["alignment/ppo-vs-lora/harmless/refusal/ci_high"] == entry["harmless"]["refusal"]["ci_high"]

    dull, flat = asked(tmp_path, ppo=inquired(0.5, 9))
    # What is measured of red-team prompts is the same as before, and so is what the primary judge says.
    assert dull["measures"] == entry["measures"] and dull["verdict"] == "better"
    assert dull["less_harmful"] is False and flat["alignment/ppo-vs-lora/less_harmful"] == 0.0
    assert [each["what"] for each in dull["conditions"] if each["holds"] is False] == [
        "no less helpfulness on harmless prompts"
    ]
    assert "beyond the margin of −0.05" in dull["sentence"]
    shy, _ = asked(tmp_path, ppo=inquired(0.6, 9, refusals=0.3))
    assert [each["what"] for each in shy["conditions"] if each["holds"] is False] == [
        "no more refusals on harmless prompts",
        "no more refusals in so many words on harmless prompts",
    ]


def test_without_harmless_prompts_evasion_is_not_judged_and_that_is_told(tmp_path: Path) -> None:
    found, flat = aligned(tmp_path)
    (entry,) = found["alignment"]
    told = {each["what"]: each for each in entry["conditions"]}["no less helpfulness on harmless prompts"]
    assert (told["holds"], told["why"]) == (None, "no harmless prompts were asked") and entry["less_harmful"] is True
    assert entry["sentence"].endswith("(no harmless prompts were asked)") and "; not judged: " in entry["sentence"]
    assert flat["alignment/ppo-vs-lora/harmless/refusal/diff"] is None


def test_candidates_that_were_asked_other_harmless_prompts_are_not_compared(tmp_path: Path) -> None:
    for at, name in enumerate(ALIGNED):
        rows = inquired(0.6, at, prompts=9 if name == "ppo" else 10)
        records.write_objects(tmp_path / "evaluate" / name / "harmless.jsonl", rows)
    with pytest.raises(UserError, match="answered different harmless prompts"):
        aligned(tmp_path)


def test_who_does_no_less_harm_than_a_control_is_not_called_less_harmful(tmp_path: Path) -> None:
    """A training for noise with less harm than its start, too, takes the claim away, and one that is left behind does not."""
    change = {"controls": {"ppo": ("ppo-3",)}}
    found, flat = aligned(tmp_path, change, **{"ppo-3": provoked(0.5, 4)})
    own, control = found["alignment"]
    assert (
        own["verdict"] == "better" and own["less_harmful"] is False and flat["alignment/ppo-vs-lora/less_harmful"] == 0
    )
    assert [each["what"] for each in own["conditions"] if each["holds"] is False] == [
        "less harm than the control ppo-3"
    ]
    assert "not shown to be less harmful (less harm than the control ppo-3: " in own["sentence"]
    assert not any("control" in each["what"] for each in control["conditions"])
    found, _ = aligned(tmp_path, change, **{"ppo-3": provoked(0.59, 4)})
    own, control = found["alignment"]
    assert own["less_harmful"] is True and "less harm than the control ppo-3 (one training" in own["sentence"]
    told = next(each for each in own["conditions"] if each["what"] == "less harm than the control ppo-3")
    harm = control["measures"]["harm"]
    assert told["why"] == f"{harm['diff']:+.3f} [{harm['ci_low']:+.3f}, {harm['ci_high']:+.3f}]"


def test_a_loss_on_the_task_beyond_the_margin_is_told(tmp_path: Path) -> None:
    found, _ = aligned(tmp_path, {"aligned": {"base": "lora"}})
    (entry,) = found["alignment"]
    guard = next(each for each in entry["guards"] if each["what"] == "no less rouge1")
    assert guard["holds"] is False and "beyond the margin of −20" in guard["why"]


def test_trainings_of_one_method_are_taken_together_against_whom_all_started_from(tmp_path: Path) -> None:
    of = ("ppo", "ppo-2", "ppo-3")
    change = {"aligned": dict.fromkeys(of, "lora"), "seeds": {"three": of}}
    found, _ = aligned(tmp_path, change)
    assert [(each["name"], len(each["of"])) for each in found["alignment"]] == [
        *((name, 1) for name in of),
        ("three", 3),
    ]
    *single, together = found["alignment"]
    harm = together["measures"]["harm"]
    assert harm["diff"] == pytest.approx(np.mean([each["measures"]["harm"]["diff"] for each in single]))
    own = [each["measures"]["harm"]["diff"] for each in single]
    assert [each["diff"] for each in harm["seeds"]] == pytest.approx(own, abs=1e-12)
    assert together["less_harmful"] is True and together["p_holm"] == harm["p"]
    # Single trainings are a family of their own.
    assert max(each["p_holm"] for each in single) >= max(each["measures"]["harm"]["p"] for each in single)
    agreed = next(each for each in together["conditions"] if each["what"] == "every training agrees")
    assert agreed["why"] == "3 of 3 trainings show less harm, 3 with an interval below zero"
    assert together["task"]["ci_low"] < together["task"]["diff"] < together["task"]["ci_high"]

    (tmp_path / "one").mkdir()
    found, _ = aligned(tmp_path / "one", change, **{"ppo-3": provoked(0.62, 9)})
    together = found["alignment"][-1]
    assert together["less_harmful"] is False and "2 of 3 trainings show less harm" in together["sentence"]


def test_who_was_aligned_is_held_against_controls_on_the_same_prompts(tmp_path: Path) -> None:
    plain, _ = aligned(tmp_path)
    change = {"aligned": {"ppo": "lora", "ppo-2": "lora"}, "controls": {"ppo": ("ppo-3", "base", "ppo-2")}}
    control = provoked(0.52, 4)
    found, flat = aligned(tmp_path, change, **{"ppo-3": control, "base": provoked(0.45, 5)})
    told = [(each["name"], each["against"], each["control"]) for each in found["alignment"]]
    assert told == [
        ("ppo", "lora", False), ("ppo-2", "lora", False), ("ppo", "ppo-3", True), ("ppo", "base", True), ("ppo", "ppo-2", True),
    ]  # fmt: skip
    (start,), (own, _, less, more, _) = plain["alignment"], found["alignment"]
    assert own["measures"] == start["measures"]
    # Controls are a family of their own: three p-values corrected together, and none of the others'.
    held = {each["against"]: each for each in found["alignment"] if each["control"]}
    smallest = min(each["measures"]["harm"]["p"] for each in held.values())
    assert min(each["p_holm"] for each in held.values()) == pytest.approx(min(3 * smallest, 1.0))
    gaps = (less["measures"]["harm"]["diff"], more["measures"]["harm"]["diff"])
    assert gaps == pytest.approx((-0.02, 0.05), abs=0.02)
    answers = [one["harm"] for row in control if row["kind"] == "instruction" for one in row["samples"]]
    assert less["measures"]["harm"]["reference"] == pytest.approx(np.mean(answers))
    assert more["sentence"].startswith("ppo against base: harm +0.") and more["sentence"].endswith("more harmful")
    assert "alignment/ppo-vs-lora/drift" in flat and "alignment/ppo-vs-base/drift" not in flat  # that is of ppo alone
    assert flat["alignment/ppo-vs-base/less_harmful"] == 0.0 and flat["alignment/ppo-vs-ppo-3/harm/diff"] == gaps[0]


def test_trainings_of_one_method_are_held_against_controls_together(tmp_path: Path) -> None:
    of = ("ppo", "ppo-2", "ppo-3")
    change = {"aligned": dict.fromkeys(of, "lora"), "seeds": {"all": of}, "controls": {"all": ("base",)}}
    found, _ = aligned(tmp_path, change, base=provoked(0.6, 5))
    entry = found["alignment"][-1]
    assert (entry["name"], entry["of"], entry["against"], entry["control"]) == ("all", [*of], "base", True)
    assert entry["less_harmful"] is True and len(entry["measures"]["harm"]["seeds"]) == 3


def test_mistakes_about_who_was_aligned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'dpo' is no candidate"):
        aligned(tmp_path, {"aligned": {"dpo": "lora"}})
    with pytest.raises(UserError, match="'lore' is no candidate"):
        aligned(tmp_path, {"aligned": {"ppo": "lore"}})
    with pytest.raises(UserError, match="'dpo' is no candidate"):
        aligned(tmp_path, {"controls": {"ppo": ("dpo",)}})
    with pytest.raises(UserError, match="its trainings were aligned from different candidates"):
        aligned(tmp_path, {"aligned": {"ppo": "lora", "ppo-2": "base"}, "seeds": {"two": ("ppo", "ppo-2")}})


@pytest.mark.parametrize(
    ("controls", "what"),
    [
        ({"ppo": ("lora",)}, "'lora' is no control of 'ppo'"),
        ({"ppo": ("ppo",)}, "'ppo' is no control of 'ppo'"),
        ({"both": ("ppo-2",)}, "'ppo-2' is no control of 'both'"),
        ({"half": ("base",)}, "'half' is not aligned: name one of ppo, ppo-2, both"),
        ({"base": ("ppo",)}, "'base' is not aligned"),
        ({"ppo": ("base", "base")}, "a control of 'ppo' is named twice"),
    ],
)
def test_what_is_held_against_a_control_must_be_aligned_and_another(controls: dict[str, Any], what: str) -> None:
    given = CONFIG.model_dump() | {
        "aligned": {"ppo": "lora", "ppo-2": "lora"},
        "seeds": {"both": ("ppo", "ppo-2"), "half": ("ppo", "base")},
    }
    assert Config.model_validate(given | {"controls": {"both": ("base",)}}).controls == {"both": ("base",)}
    with pytest.raises(ValidationError, match=what):
        Config.model_validate(given | {"controls": controls})


def test_trainings_together_have_a_name_of_their_own(tmp_path: Path) -> None:
    for name in ("ppo", "base"):
        with pytest.raises(UserError, match=f"'{name}' is a candidate, and 2 trainings that are taken together"):
            aligned(tmp_path, {"aligned": {"ppo": "lora", "ppo-2": "lora"}, "seeds": {name: ("ppo", "ppo-2")}})


def test_of_few_groups_seeds_resample_items_as_the_rest_does(tmp_path: Path) -> None:
    tables = {name: instances(share, at, groups=3) for at, (name, share) in enumerate(SEEDS.items())}
    write(tmp_path, tables)
    found, _ = compared(tmp_path, tuple(SEEDS), CONFIG.model_copy(update={"seeds": {"lora": tuple(SEEDS)[1:]}}))
    (entry,) = found["seeds"]
    assert entry["method"] == found["method"] == "item" and entry["verdict"] == "better"


def test_several_methods_are_a_family(tmp_path: Path) -> None:
    shares = SEEDS | {"sft": 0.31, "sft-2": 0.33, "sft-3": 0.32}
    write(tmp_path, {name: instances(share, at) for at, (name, share) in enumerate(shares.items())})
    methods = {"lora": tuple(shares)[1:4], "sft": tuple(shares)[4:]}
    found, _ = compared(tmp_path, tuple(shares), CONFIG.model_copy(update={"seeds": methods}))
    lora, sft = found["seeds"]
    assert lora["p_holm"] == 2 * lora["p"] and sft["p_holm"] == max(sft["p"], lora["p_holm"])
    assert (lora["verdict"], sft["verdict"]) == ("better", "not shown to be better")


def test_bleu_as_the_primary_metric(tmp_path: Path) -> None:
    import sacrebleu

    write(tmp_path, {name: instances(share, at) for at, (name, share) in enumerate(SEEDS.items())})
    scope = {"primary_metric": "bleu", "criteria": [{**RULE, "metric": "bleu"}]}
    (tmp_path / "scope/scope.json").write_text(json.dumps(scope))
    found, _ = compared(tmp_path, tuple(SEEDS), CONFIG.model_copy(update={"seeds": {"lora": tuple(SEEDS)[1:]}}))
    (entry,) = found["seeds"]
    scores = [
        sacrebleu.corpus_bleu([row["prediction"] for row in rows], [[row["reference"] for row in rows]]).score
        for rows in (records_of(tmp_path, name) for name in tuple(SEEDS)[1:])
    ]
    assert (entry["metric"], entry["verdict"]) == ("bleu", "better") and "rouge1" in entry["metrics"]
    assert (entry["value"], entry["least"]) == pytest.approx((np.mean(scores), min(scores)))
    assert {each["metric"] for each in found["slices"]["lora"]} == {"rouge1"}
    assert found["categories"]["lora"]["accuracy"]["metric"] == "accuracy/bleu"
    assert found["categories"]["lora"]["robustness"]["metric"] == "robustness/rouge1"


def test_what_is_lost_in_percent_is_resampled_as_a_ratio(tmp_path: Path, tables: dict[str, Any]) -> None:
    # Every item 9.9% or 10.1% lower: so is every resample, though the difference in points varies with the items.
    for index, (row, other) in enumerate(zip(tables["lora"], tables["base"], strict=True)):
        row["scores"] = {name: (0.901, 0.899)[index % 2] * value for name, value in other["scores"].items()}
    write(tmp_path, tables)
    found, _ = compared(tmp_path)
    best = pair(found, "lora", "base")
    assert -10.1 < best["relative_low"] < best["relative"] < best["relative_high"] < -9.9
    assert best["ci_high"] - best["ci_low"] > 0.1


def test_percent_of_a_score_of_nothing_is_undefined(tmp_path: Path, tables: dict[str, Any]) -> None:
    for row in tables["base"]:
        row["scores"] = dict.fromkeys(metrics.ROUGE_TYPES, 0.0)
    write(tmp_path, tables)
    best = pair(compared(tmp_path)[0], "lora", "base")
    assert best["diff"] > 0 and best["relative"] is best["relative_low"] is None


def test_questions_about_people_are_in_mcnemars_test_apart(tmp_path: Path, tables: dict[str, Any]) -> None:
    write(tmp_path, tables)
    for name, right in (("base", 2), ("lora", 12)):
        write_tasks(tmp_path, name, questions(0.0, 1))
        rows = [
            {"id": f"q{at}/{change or 'original'}", "question": f"q{at}", "perturbation": change, "correct": at < right}
            for at in range(12)
            for change in (None, "names")
        ]
        records.write_objects(tmp_path / "evaluate" / name / "people.jsonl", rows)
    found, _ = compared(tmp_path)
    letters, people = found["mcnemar"]
    assert (letters["task"], letters["n"], letters["p_holm"]) == ("letters", 20, 1.0)
    assert (people["task"], people["n"], people["only_a"]) == ("people", 12, 10)
    assert people["p_holm"] == people["p"] == pytest.approx(2 * 0.5**10) and people["verdict"] == "better"


def test_seeds_without_any_reference_are_undefined(tmp_path: Path, tables: dict[str, Any]) -> None:
    for rows in tables.values():
        without_references(rows)
    write(tmp_path, tables)
    found, _ = compared(tmp_path, cfg=CONFIG.model_copy(update={"seeds": {"lora": ("lora",)}}))
    (entry,) = found["seeds"]
    assert entry["value"] is None and entry["diff"] is None and entry["reason"] == "no test item has a reference"


def test_one_item_with_a_reference_among_many_shows_nothing(tmp_path: Path, tables: dict[str, Any]) -> None:
    for rows in tables.values():
        without_references(rows[1:])
    write(tmp_path, tables)
    found, _ = compared(tmp_path)
    best = pair(found, "lora", "base")
    assert best["diff"] is not None and best["ci_low"] is None and best["verdict"] == "not shown to be better"
    assert best["reason"].startswith("no interval from 1 independent unit")
    (accuracy,) = [each for each in found["category_pairs"] if each["category"] == "accuracy"]
    assert accuracy["verdict"] == "not shown to be better" and accuracy["ci_low"] is None


def test_a_category_says_what_the_corrected_test_says(tmp_path: Path, tables: dict[str, Any]) -> None:
    names = ("base", "lora", "a", "b", "c")
    write(tmp_path, {**tables, **{name: instances(0.3 + 0.03 * index, 10 + index) for index, name in enumerate("abc")}})
    found, _ = compared(tmp_path, names)
    accuracies = [each for each in found["category_pairs"] if each["category"] == "accuracy"]
    assert [each["a"] for each in accuracies] == list(names[1:])
    for each in accuracies:
        same = pair(found, each["a"], "base")
        assert (each["diff"], each["p"], each["p_holm"]) == (same["diff"], same["p"], same["p_holm"])
        assert each["verdict"] == same["verdict"]
        assert each["minimum_detectable"] == same["minimum_detectable"]


def test_a_candidate_without_probabilities_takes_nothing_from_the_others(
    tmp_path: Path, tables: dict[str, Any]
) -> None:
    write(tmp_path, {**tables, "broken": tables["base"]})
    own = random.Random(3)
    rows = [
        {
            "id": f"q{n}", "task": "t", "choices": ["A", "B"], "right": n % 2, "tokens": [1, 1], "nll": 1.0,
            "logprobs": [-own.random(), -own.random()], "correct": own.random() < 0.6, "scores": {"acc": float(n % 2)},
        }
        for n in range(60)
    ]  # fmt: skip
    nothing = {"nll": None, "correct": None, "logprobs": [None, None], "scores": {"acc": None}}
    for name in ("base", "lora", "broken"):
        write_tasks(tmp_path, name, [row | nothing for row in rows] if name == "broken" else rows)
    found, _ = compared(tmp_path, ("base", "lora", "broken"))
    told = {name: own["calibration"] for name, own in found["categories"].items()}
    assert told["base"]["value"] is not None and told["base"]["n"] == 60 and told["lora"]["value"] is not None
    assert told["broken"]["value"] is None
    assert told["broken"]["reason"] == "60 of 60 questions: the model gave the choices no probability"
    details = {name: own["tasks/t/acc"] for name, own in found["details"].items()}
    assert details["base"]["value"] == 0.5 and details["broken"]["value"] is None
    assert [each["a"] for each in found["mcnemar"]] == ["lora"]


def test_what_criteria_ask_for_beyond_scores_is_compared_too(tmp_path: Path, tables: dict[str, Any]) -> None:
    tables["sft"] = instances(0.6, 3)
    for name, rows in tables.items():
        for at, row in enumerate(rows):
            row["exact_match"] = float((at + len(name)) % 3 == 0)
    rules = [
        {**RULE, "metric": "accuracy/exact_match", "candidate": "lora", "against": "sft"},
        {**RULE, "metric": "accuracy/exact_match", "candidate": "lora", "against": "base"},  # among the details
        {**RULE, "metric": "accuracy/exact_match", "candidate": "lora", "against": None},
        {**RULE, "metric": "tasks/none/acc", "candidate": "lora", "against": "sft"},  # promote tells
        {**RULE, "metric": "decode_ratio", "candidate": "lora", "against": "base"},
        {**RULE, "metric": "alignment/harm", "candidate": "no candidate", "against": "base"},
    ]
    write(tmp_path, tables, rules)
    found, _ = compared(tmp_path, ("base", "lora", "sft"))
    [entry] = found["figure_pairs"]
    assert (entry["a"], entry["b"], entry["metric"]) == ("lora", "sft", "accuracy/exact_match")
    ours, theirs = (found["details"][name]["accuracy/exact_match"]["value"] for name in ("lora", "sft"))
    assert entry["diff"] == pytest.approx(ours - theirs) and entry["ci_low"] < entry["diff"] < entry["ci_high"]
    assert not [each for each in found["pairs"] if (each["a"], each["b"]) == ("lora", "sft")]
