"""The stage on a tiny encoder: it learns what is planted, is blind to length, and says why where it cannot learn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from stages import harm
from tests import tiny_encoder
from tests.stages import tuned
from tunemill import checkpoints, records, toxicity
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.records import Rating


def ratings(
    side: str, count: int = 40, longest: int = 16, by_length: float = 0.0, shuffled: bool = False
) -> list[Rating]:
    """Four answers to each prompt; people score the share of harmful words in them, and also how long they are.

    Args:
        side: of the prompts.
        count: prompts.
        longest: words of the longest answer; the shortest has 12, or half as many.
        by_length: how much of the score is length.
        shuffled: scores have nothing to do with the answers.
    """
    generator = random.Random(f"{side}:{shuffled}")
    rows = []
    for at in range(count):
        for number in range(4):
            level, length = generator.random(), generator.random()
            text = " ".join(
                generator.choice(tiny_encoder.HARMFUL if generator.random() < level else tiny_encoder.HARMLESS)
                if generator.random() < 0.8
                else generator.choice(tiny_encoder.PLAIN)
                for _ in range(round(min(12, longest / 2) * (longest / min(12, longest / 2)) ** length))
            )
            said = generator.random() if shuffled else (1 - by_length) * level + by_length * length
            prompt = f"{side} asks for {at}"
            rows.append(Rating(records.row_id(prompt, text), prompt, text, (said, said), f"made:{at}:{number}"))
    return rows


def config(**change: object) -> harm.Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("harm", harm.Config).model_dump()
    return harm.Config.model_validate(values | {"resamples": 200, "max_tokens": 32} | change)


def run(
    place: Path,
    judge: list[Rating] | None = None,
    reward: list[Rating] | None = None,
    encoder: str | None = "tiny-encoder==1.0",
    name: str = "out",
    **change: object,
) -> dict[str, float | None]:
    if not (place / "encoder").exists():
        tiny_encoder.build(place / "encoder", name=encoder)
    records.write(place / "judge.jsonl", ratings("judge") if judge is None else judge)
    records.write(place / "reward.jsonl", ratings("reward") if reward is None else reward)
    inputs: dict[str, Any] = {"encoder": place / "encoder"}
    inputs |= {side: place / f"{side}.jsonl" for side in ("judge", "reward")}
    return dict(harm.run(config(**change), **inputs, out=place / name, runtime=tuned.CPU, log=Log()))


def test_it_learns_what_people_said(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert tuned.files(tmp_path / "out") == [
        "encoder/config.json",
        "encoder/model.safetensors",
        "encoder/source.json",
        "encoder/tokenizer.json",
        "encoder/tokenizer_config.json",
        "harm.json",
        "scorer.json",
        "scorer.safetensors",
    ]
    assert (found["reward/harm/auc"] or 0) > 0.8 and (found["judge/harm/auc"] or 0) > 0.8
    assert (found["reward/harm/spearman"] or 0) > 0.5
    assert (found["judge/n"], found["judge/prompts"], found["reward/n"]) == (160, 40, 160)
    assert list(found) == [*harm.metric_names(), "judge/n", "judge/prompts", "reward/n", "reward/prompts"]
    told = json.loads((tmp_path / "out/harm.json").read_text())
    area = told["reward"]["measured"]["harm"]["auc"]
    assert area["low"] < area["value"] == found["reward/harm/auc"] < area["high"]
    less = told["reward"]["harm_less_offence"]["auc"]
    assert less["diff"] == pytest.approx(area["value"] - told["reward"]["measured"]["offence"]["auc"]["value"])
    assert less["low"] < less["diff"] < less["high"] and 0 < less["p"] <= 1
    assert told["reward"]["answers"] == 160 and 60 < told["reward"]["harmful"] < 100

    # All that is needed to score lies in the folder, wherever it is moved to.
    (tmp_path / "out").rename(tmp_path / "moved")
    scorer = toxicity.HarmScorer.load(tmp_path / "moved")
    texts = [" ".join(words * 2) for words in (tiny_encoder.HARMFUL, tiny_encoder.HARMLESS)]
    high, low, empty = scorer.score([*texts, ""])
    assert high > 0.7 > 0.3 > low and empty is None
    assert "tiny-encoder==1.0" in scorer.name and f"AUC {area['value']:.2f}" in scorer.name
    # What is written down is what the scorer that comes back gives.
    from sklearn.metrics import roc_auc_score

    rows = ratings("reward")
    again = roc_auc_score([each.scores[0] >= 0.5 for each in rows], scorer.score([each.response for each in rows]))
    assert again == pytest.approx(area["value"], abs=1e-9)


def test_shuffled_scores_teach_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, judge=ratings("judge", shuffled=True), reward=ratings("reward", shuffled=True))
    for key in ("reward/harm/auc", "reward/harm_with_length/auc"):
        assert abs((found[key] or 0) - 0.5) < 0.1
    low, high = (found[f"reward/harm/auc_{end}"] for end in ("low", "high"))
    assert low is not None and high is not None and low < 0.5 < high


def test_length_is_taken_out(tmp_path: Path) -> None:
    """People find long answers harmful here, more than harmful words: only one of the regressions goes along."""
    judge, reward = (ratings(side, 80, longest=48, by_length=0.6) for side in ("judge", "reward"))
    found = run(tmp_path, judge=judge, reward=reward, max_tokens=64)
    assert (found["reward/length/auc"] or 0) > 0.75
    assert (found["reward/harm_with_length/spearman_length"] or 0) > 0.35
    assert abs(found["reward/harm/spearman_length"] or 1) < 0.15
    assert (found["reward/harm/auc_same_length"] or 0) > 0.75
    assert (found["reward/length/auc_same_length"] or 1) < 0.7


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path, name="one")
    run(tmp_path, name="two")
    assert checkpoints.tree_hash(tmp_path / "one") == checkpoints.tree_hash(tmp_path / "two")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"encoder": None}, "no encoder is named (collect.encoder in params.yaml)"),
        ({"judge": ratings("judge", 4)}, "4 rated prompts to learn from, at least 5 (harm.folds) are needed"),
        ({"judge": []}, "0 rated prompts to learn from, at least 5 (harm.folds) are needed"),
        (
            {"judge": [Rating("0" * 12, f"p{n}", f"walk {n}", (0.5,), "made") for n in range(9)]},
            "people gave all answers the same score",
        ),
    ],
)
def test_where_there_is_no_scorer_the_reason_is_written(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    found = run(tmp_path, **given)
    assert tuned.files(tmp_path / "out") == ["harm.json"]
    assert json.loads((tmp_path / "out/harm.json").read_text()) == {"reason": reason}
    assert toxicity.reason(tmp_path / "out") == reason
    assert {name for name, value in found.items() if value is None} == set(harm.metric_names())


def test_people_who_found_all_of_it_harmful_leave_the_area_undefined(tmp_path: Path) -> None:
    reward = [Rating("0" * 12, f"q{n}", f"kill {n}", (0.9,), "made") for n in range(4)]
    found = run(tmp_path, reward=reward)
    assert found["reward/harm/auc"] is None and found["reward/harm/spearman"] is None
    assert (found["judge/harm/auc"] or 0) > 0.8
    assert "AUC undefined" in toxicity.HarmScorer.load(tmp_path / "out").name


def test_a_prompt_on_both_sides_is_refused(tmp_path: Path) -> None:
    judge = ratings("judge")
    with pytest.raises(UserError, match="1 prompts are among those to learn from and among those to measure on"):
        run(tmp_path, judge=judge, reward=[*ratings("reward"), judge[0]])
