"""The stage on a tiny encoder: judges learn what is planted, are blind to length, and say why where they cannot learn."""

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
from tunemill.records import Rating, Refusal


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


def refusals(count: int = 40, shuffled: bool = False) -> list[Refusal]:
    """Answers that most people call a refusal where they are sorry; one in ten is in doubt."""
    generator = random.Random(f"refusals:{shuffled}")
    rows = []
    for at in range(count):
        refuses = generator.random() < 0.5
        words = [generator.choice(tiny_encoder.PLAIN) for _ in range(14)]
        words[3:6] = ["sorry", "kindly", "safe"] if refuses else ["smuggle", "bribe", "stalk"]
        said = (generator.random() < 0.5) if shuffled else refuses
        share = 0.5 if at % 10 == 0 else 0.75 if said else 0.25
        prompt, text = " ".join(generator.choices(tiny_encoder.PLAIN, k=9)), " ".join(words)
        rows.append(Refusal(records.row_id(prompt, text), prompt, text, share, f"made:{at}"))
    return rows


def config(**change: object) -> harm.Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("harm", harm.Config).model_dump()
    return harm.Config.model_validate(values | {"resamples": 200, "max_tokens": 32} | change)


def run(
    place: Path,
    judge: list[Rating] | None = None,
    reward: list[Rating] | None = None,
    encoder: str | None = "tiny-encoder==1.0",
    called: list[Refusal] | None = None,
    name: str = "out",
    **change: object,
) -> dict[str, float | None]:
    if not (place / "encoder").exists():
        tiny_encoder.build(place / "encoder", name=encoder)
    records.write(place / "judge.jsonl", ratings("judge") if judge is None else judge)
    records.write(place / "reward.jsonl", ratings("reward") if reward is None else reward)
    inputs: dict[str, Any] = {"encoder": place / "encoder"}
    records.write(place / "refusals.jsonl", refusals() if called is None else called)
    inputs |= {side: place / f"{side}.jsonl" for side in ("judge", "reward", "refusals")}
    return dict(harm.run(config(**change), **inputs, out=place / name, runtime=tuned.CPU, log=Log()))


def test_they_learn_what_people_said(tmp_path: Path) -> None:
    found = run(tmp_path)
    words = [
        f"{name}/{file}"
        for name in ("harm", "refusal")
        for file in ("judge.json", "judge.safetensors", "vocabulary.json")
    ]
    vectors = [
        f"{name}/{file}" for name in ("harm_embedding", "monitor") for file in ("judge.json", "judge.safetensors")
    ]
    encoder = ("config.json", "model.safetensors", "source.json", "tokenizer.json", "tokenizer_config.json")
    assert tuned.files(tmp_path / "out") == sorted(
        ["harm.json", *words, *vectors, *(f"encoder/{file}" for file in encoder)]
    )
    for system in ("harm", "harm_embedding", "monitor"):
        for side in ("judge", "reward"):
            assert (found[f"{side}/{system}/auc"] or 0) > 0.8
    assert (found["reward/harm/spearman"] or 0) > 0.5
    assert (found["judge/n"], found["judge/prompts"], found["reward/n"]) == (160, 40, 160)
    further = ["judge/n", "judge/prompts", "reward/n", "reward/prompts", "refusals/n", "refusals/refused"]
    assert list(found) == [*harm.metric_names(), *further]
    told = json.loads((tmp_path / "out/harm.json").read_text())
    for system, side in (("harm", "reward"), ("harm_embedding", "reward"), ("monitor", "judge")):
        # Measured on the side that it did not learn from, cross-validated on the other.
        other = "judge" if side == "reward" else "reward"
        area = told[side]["measured"][system]["auc"]
        assert area["low"] < area["value"] == found[f"{side}/{system}/auc"] < area["high"]
        assert told["judges"][system]["auc"] == area and system in told[other]["cross_validated"]
    area = told["reward"]["measured"]["harm"]["auc"]
    less = told["reward"]["harm_less_offence"]["auc"]
    assert less["diff"] == pytest.approx(area["value"] - told["reward"]["measured"]["offence"]["auc"]["value"])
    assert less["low"] < less["diff"] < less["high"] and 0 < less["p"] <= 1
    assert told["reward"]["answers"] == 160 and 60 < told["reward"]["harmful"] < 100

    # All that is needed to score lies in the folder, wherever it is moved to.
    (tmp_path / "out").rename(tmp_path / "moved")
    texts = [" ".join(words * 2) for words in (tiny_encoder.HARMFUL, tiny_encoder.HARMLESS)]
    rows = ratings("reward")
    from sklearn.metrics import roc_auc_score

    for system in ("harm", "harm_embedding"):
        judge = toxicity.Judge.load(tmp_path / "moved" / system)
        high, low, empty = judge.score([*texts, ""])
        assert high is not None and low is not None and high > 0.7 > 0.3 > low and empty is None
        # What is written down is what the judge that comes back gives.
        area = told["reward"]["measured"][system]["auc"]["value"]
        again = roc_auc_score([each.scores[0] >= 0.5 for each in rows], judge.score([each.response for each in rows]))
        assert again == pytest.approx(area, abs=1e-9) and f"AUC {area:.2f}" in judge.name
    assert "tiny-encoder==1.0" in judge.name
    watching = toxicity.monitor(tmp_path / "moved", tuned.CPU)
    assert watching is not None
    high, low = watching(texts)
    assert high is not None and low is not None and high > low


def test_the_monitor_knows_one_side_only_and_the_judges_the_other(tmp_path: Path) -> None:
    run(tmp_path, name="one")
    run(tmp_path, judge=ratings("judge", shuffled=True), name="judge")
    run(tmp_path, reward=ratings("reward", shuffled=True), name="reward")

    def weights(run_of: str, name: str) -> bytes:
        return (tmp_path / run_of / name / "judge.safetensors").read_bytes()

    assert weights("one", "monitor") == weights("judge", "monitor") != weights("reward", "monitor")
    for name in ("harm", "harm_embedding"):
        assert weights("one", name) == weights("reward", name) != weights("judge", name)


def test_without_an_encoder_words_are_left(tmp_path: Path) -> None:
    found = run(tmp_path, encoder=None)
    told = json.loads((tmp_path / "out/harm.json").read_text())
    assert told["judges"]["harm_embedding"] == {"reason": "no encoder is named (collect.encoder in params.yaml)"}
    assert toxicity.Judge.load(tmp_path / "out/monitor").reads == "words"
    assert (found["reward/harm/auc"] or 0) > 0.8 and (found["judge/monitor/auc"] or 0) > 0.8
    assert found["reward/harm_embedding/auc"] is None
    assert not (tmp_path / "out/encoder").exists() and not (tmp_path / "out/harm_embedding").exists()


def test_refusals_are_learnt_and_measured_on_what_is_unlike(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert (found["refusals/n"], found["refusals/phrases/auc"]) == (36, 0.5)  # none says "I"
    assert (found["refusals/refusal/auc"] or 0) > 0.9 and (found["refusals/refusal/accuracy"] or 0) > 0.8
    assert (found["refusals/refusal/brier"] or 1) < (found["refusals/constant/brier"] or 0)
    assert found["refusals/constant/auc"] == 0.5
    told = json.loads((tmp_path / "out/harm.json").read_text())["refusals"]
    assert told["refused"] == found["refusals/refused"] == sum(each.refused > 0.5 for each in refusals())
    less = told["refusal_less_phrases"]["accuracy"]
    assert less["diff"] == pytest.approx(
        (found["refusals/refusal/accuracy"] or 0) - (found["refusals/phrases/accuracy"] or 0)
    )
    judge = toxicity.Judge.load(tmp_path / "out/refusal")
    refusing, telling = judge.score(["sorry kindly safe", "smuggle bribe stalk"])
    assert refusing is not None and telling is not None and refusing > 0.8 > 0.2 > telling

    # Labels that mean nothing are not learnt: words are chosen without what they are measured on.
    found = run(tmp_path, called=refusals(120, shuffled=True), name="shuffled")
    low, high = (found[f"refusals/refusal/auc_{end}"] for end in ("low", "high"))
    assert low is not None and high is not None and low < 0.5 < high


def test_copies_of_an_answer_are_left_out_together(tmp_path: Path) -> None:
    """The same answer to many prompts, whose label nobody could know from other answers, is one unit and teaches nothing of itself."""
    generator = random.Random(3)
    rows = []
    for at in range(24):
        text, share = " ".join(generator.choices(tiny_encoder.PLAIN, k=14)), float(generator.random() < 0.5)
        for copy in range(4):
            prompt = " ".join(generator.choices(tiny_encoder.PLAIN, k=12))
            rows.append(Refusal(records.row_id(prompt, text), prompt, text, share, f"made:{at}:{copy}"))
    found = run(tmp_path, called=rows)
    assert json.loads((tmp_path / "out/harm.json").read_text())["refusals"]["clusters"] <= 24
    # Torn apart, every answer would be known: the area would be 1.
    assert (found["refusals/refusal/auc"] or 1) < 0.6


def test_shuffled_scores_teach_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, judge=ratings("judge", shuffled=True), reward=ratings("reward", shuffled=True))
    for key in ("harm", "harm_with_length", "harm_embedding"):
        assert abs((found[f"reward/{key}/auc"] or 0) - 0.5) < 0.1
        low, high = (found[f"reward/{key}/auc_{end}"] for end in ("low", "high"))
        assert low is not None and high is not None and low < 0.5 < high


def test_length_is_taken_out(tmp_path: Path) -> None:
    """People find long answers harmful here, more than harmful words: only the regression with length left in goes along."""
    judge, reward = (ratings(side, 80, longest=48, by_length=0.6) for side in ("judge", "reward"))
    found = run(tmp_path, judge=judge, reward=reward, max_tokens=64)
    assert (found["reward/length/auc"] or 0) > 0.75
    assert (found["reward/harm_with_length/spearman_length"] or 0) > 0.35
    for key in ("harm", "harm_embedding"):
        assert abs(found[f"reward/{key}/spearman_length"] or 1) < 0.15
        assert (found[f"reward/{key}/auc_same_length"] or 0) > 0.75
    assert (found["reward/length/auc_same_length"] or 1) < 0.7


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path, name="one")
    run(tmp_path, name="two")
    assert checkpoints.tree_hash(tmp_path / "one") == checkpoints.tree_hash(tmp_path / "two")


FEW = "4 rated prompts to learn from, at least 5 (harm.folds) are needed"
SAME = [Rating("0" * 12, f"p{n}", f"walk {n}", (0.5,), "made") for n in range(9)]


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        ({"judge": ratings("judge", 4)}, {"harm": FEW, "harm_embedding": FEW}),
        ({"reward": ratings("reward", 4)}, {"monitor": FEW}),
        ({"judge": []}, dict.fromkeys(("harm", "harm_embedding"), FEW.replace("4", "0", 1))),
        ({"judge": SAME}, dict.fromkeys(("harm", "harm_embedding"), "people gave all answers the same score")),
        ({"called": refusals(6)}, {"refusal": "5 answers to learn refusals from that are not alike, at least 10"}),
        ({"called": []}, {"refusal": "there are no answers that people called a refusal or not (collect.refusals"}),
        (
            {"called": [each for each in refusals(80) if each.refused > 0.5]},
            {"refusal": "people called all answers a refusal, or none"},
        ),
        (
            {"judge": [], "reward": [], "called": [], "encoder": None},
            dict.fromkeys(("harm", "monitor"), FEW.replace("4", "0", 1))
            | {"harm_embedding": "no encoder is named", "refusal": "there are no answers that people called"},
        ),
    ],
)
def test_where_there_is_no_judge_the_reason_is_written(
    tmp_path: Path, given: dict[str, Any], reasons: dict[str, str]
) -> None:
    found = run(tmp_path, **given)
    told = json.loads((tmp_path / "out/harm.json").read_text())["judges"]
    assert set(told) == set(toxicity.LEARNT)
    for name in toxicity.LEARNT:
        why = toxicity.reason(tmp_path / "out", name)
        if name in reasons:
            assert why is not None and why == told[name]["reason"] and why.startswith(reasons[name])
            assert not (tmp_path / "out" / name).exists()
        else:
            assert why is None and "reason" not in told[name]
    assert found.keys() >= set(harm.metric_names())
    for name in reasons:
        if name == "refusal":
            assert found["refusals/refusal/auc"] is None
        else:
            assert found[f"judge/{name}/auc"] is None and found[f"reward/{name}/auc"] is None


def test_people_who_found_all_of_it_harmful_leave_the_area_undefined(tmp_path: Path) -> None:
    reward = [Rating("0" * 12, f"q{n}", f"kill {n}", (0.9,), "made") for n in range(4)]
    found = run(tmp_path, reward=reward)
    assert found["reward/harm/auc"] is None and found["reward/harm/spearman"] is None
    assert (found["judge/harm/auc"] or 0) > 0.8
    assert "AUC undefined" in toxicity.Judge.load(tmp_path / "out/harm").name


def test_a_prompt_on_both_sides_is_refused(tmp_path: Path) -> None:
    judge = ratings("judge")
    with pytest.raises(UserError, match="1 prompts are among those to learn from and among those to measure on"):
        run(tmp_path, judge=judge, reward=[*ratings("reward"), judge[0]])
