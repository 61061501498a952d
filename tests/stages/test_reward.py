"""reward: it learns what people prefer, says how sure that is beside its baselines, and refuses what teaches nothing."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from stages import reward
from tests import tiny_model
from tests.stages import tuned
from tunemill import backbone, checkpoints, journal, models, pairwise, records, reward_models, rewards
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.records import Completions, Preference
from tunemill.rlhf import LengthLine

GOOD, BAD = ("return", "read", "valid", "safe".upper()), ("delete", "raise", "invalid", "false")
PLAIN = ("value", "row", "file", "table", "index", "object", "string", "number")


def preferred(prompts: int = 16, each: int = 3, shuffled: bool = False) -> list[Preference]:
    """Pairs of answers of like words but for some that people like, and some that they do not."""
    generator = random.Random(f"{prompts}:{shuffled}")
    rows = []
    for number in range(prompts):
        for _ in range(each):
            texts = []
            for words in (GOOD, BAD):
                text = generator.choices(words, k=3) + generator.choices(PLAIN, k=generator.randint(2, 6))
                generator.shuffle(text)
                texts.append(" ".join(text))
            if shuffled:
                generator.shuffle(texts)
            prompt = f"what of table {number}"
            weight, group = 1 / each, f"group {number // 2}"
            rows.append(Preference(records.row_id(prompt, *texts), prompt, *texts, 1.0, weight, group, "ratings"))
    return rows


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("policy")
    if request.param == "decoder-only":
        tiny_model.build(place)
    else:
        models.make_random(place, 2, 32, 3, "float32", "encoder-decoder")
    return place


def config(**change: object) -> reward.Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("reward", reward.Config).model_dump()
    few = {"steps": 4, "fold_steps": 3, "checkpoint_steps": 2, "learning_rate": 3e-3, "resamples": 200}
    return reward.Config.model_validate(values | few | change)


SAMPLED = [
    Completions(
        f"{number:012x}",
        f"what of table {number}",
        ("value", "value row file", f"{'index ' * (4 + number)}read"),
        "own",
    )
    for number in range(6)
]
"""Answers of the starting policy."""


def run(
    policy: Path,
    place: Path,
    rows: list[Preference],
    name: str = "out",
    log: Log | None = None,
    sampled: list[Completions] = SAMPLED,
    **change: Any,
) -> Any:
    """The stage's metrics, and what it told in reward.json."""
    records.write(place / "preferences.jsonl", rows)
    records.write(place / "completions.jsonl", sampled)
    (place / f"work-{name}").mkdir(exist_ok=True)
    found = reward.run(
        config(**change),
        policy=policy,
        preferences=place / "preferences.jsonl",
        completions=place / "completions.jsonl",
        out=place / name,
        work=place / f"work-{name}",
        runtime=tuned.CPU,
        log=log or Log(),
    )
    return dict(found), json.loads((place / name / "reward.json").read_text())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_what_people_prefer(policy: Path, tmp_path: Path) -> None:
    rows = preferred()
    found, told = run(policy, tmp_path, rows)
    assert tuned.files(tmp_path / "out") == [
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/head.safetensors",
        "curve.csv",
        "folds.csv",
        "histogram.csv",
        "lengths.csv",
        "margins.csv",
        "reliability.csv",
        "reward.json",
    ]
    # On prompts that it did not learn from: far above chance, and above length, which tells nothing here.
    assert found["held_out/accuracy"] > 0.85 and found["held_out/accuracy_low"] > 0.6
    assert abs(found["held_out/accuracy_length"] - 0.5) < 0.2
    assert told["held_out"]["all"]["beats"]["length"] and found["held_out/less_length_low"] > 0
    assert found["held_out/nll"] < np.log(2)
    assert (told["pairs"], told["prompts"], told["groups"], told["cut"]) == (48, 16, 8, 0)
    assert told["constant"] is False

    # The baselines are those of the library on the same folds.
    folds = pairwise.deal([row.group for row in rows], 2, 17)
    texts = [[row.chosen for row in rows], [row.rejected for row in rows]]
    weights = np.array([row.weight for row in rows])
    ridge = pairwise.credit(pairwise.tfidf_margins(*texts, weights, folds))
    assert found["held_out/accuracy_response"] == pytest.approx(weights @ ridge / weights.sum())
    assert [row["pairs"] for row in table(tmp_path / "out/folds.csv")] == ["24", "24"]
    each = [float(row["accuracy"]) for row in table(tmp_path / "out/folds.csv")]
    assert np.mean(each) == pytest.approx(found["held_out/accuracy"], abs=1e-4)
    by_length = table(tmp_path / "out/lengths.csv")
    assert [row["preferred_is"] for row in by_length] == list(pairwise.BINS)
    assert sum(int(row["pairs"]) for row in by_length) == 48
    assert sum(int(row["pairs"]) for row in table(tmp_path / "out/reliability.csv")) == 48
    assert sum(int(row["chosen"]) for row in table(tmp_path / "out/histogram.csv")) == 48
    assert len(table(tmp_path / "out/curve.csv")) == 4

    # What PPO loads: the same score by the language model, the adapter and the head.
    runtime = tuned.CPU
    assert rewards.load(tmp_path / "out", runtime).kind == "model"
    backbone.check(tmp_path / "out", models.load_tokenizer(policy), policy)
    assert told["weights"] == backbone.weights(policy)


def test_the_same_input_gives_the_same_bytes_and_a_kill_changes_nothing(policy: Path, tmp_path: Path) -> None:
    rows = preferred(8, 2)
    whole, _ = run(policy, tmp_path, rows, "whole")

    def killed_at(phase: str, step: int) -> Log:
        """A log that is interrupted at a step of what is being done, or 0: at its beginning."""
        log = Log()
        begun: list[str] = []
        start = log.start

        def watch(label: str, *given: Any, **more: Any) -> None:
            begun.append(label)
            if label == phase and not step:
                raise KeyboardInterrupt
            start(label, *given, **more)

        def listen(now: int, _: dict[str, float]) -> None:
            if begun[-1] == phase and now == step:
                raise KeyboardInterrupt

        log.start, log.listener = watch, listen  # type: ignore[method-assign]
        return log

    phases = (("fold 1 of 2", 3), ("score fold 1", 0), ("length of answers, fold 1", 0), ("fold 2 of 2", 2))
    for phase, step in (*phases, ("training on all pairs", 3), ("length of answers", 0)):
        with pytest.raises(KeyboardInterrupt):
            run(policy, tmp_path, rows, "killed", killed_at(phase, step))
    assert [entry["fold"] for entry in journal.recover(tmp_path / "work-killed/folds.jsonl")] == [0, 1]
    again, _ = run(policy, tmp_path, rows, "killed")
    assert again == whole
    assert checkpoints.tree_hash(tmp_path / "whole") == checkpoints.tree_hash(tmp_path / "killed")


def test_preferences_without_a_rule_are_not_said_to_be_learnt(policy: Path, tmp_path: Path) -> None:
    found, told = run(policy, tmp_path, preferred(16, 2, shuffled=True))
    assert found["held_out/accuracy_low"] < 0.5 < found["held_out/accuracy_high"]
    assert not any(told["held_out"]["all"]["beats"].values())


def test_the_metrics_are_the_same_whatever_is_defined(policy: Path, tmp_path: Path) -> None:
    found, _ = run(policy, tmp_path, preferred(4, 1), steps=1, fold_steps=1)
    other, told = run(policy, tmp_path, preferred(8, 2), "other", steps=1, fold_steps=1)
    assert list(found) == list(other)
    assert found["held_out/accuracy_low"] is None  # two groups
    assert told["vocabulary"] == backbone.vocabulary(models.load_tokenizer(policy))


def test_what_people_said_is_measured_apart_from_a_models_labels(policy: Path, tmp_path: Path) -> None:
    """A model's labels, of every other pair, are soft and turn around what people would say."""
    rows = []
    for at, each in enumerate(preferred(8, 2)):
        if at % 2:
            texts, soft = (each.rejected, each.chosen), 0.6
            identifier = records.row_id(each.prompt, *texts)
            rows.append(Preference(identifier, each.prompt, *texts, soft, 0.25, each.group, "ai"))
        else:
            rows.append(each)
    found, _ = run(policy, tmp_path, rows)
    margins = table(tmp_path / "out/margins.csv")
    assert [each["id"] for each in margins] == [each.id for each in rows]
    assert [each["source"] for each in margins] == ["ratings", "ai"] * 8
    folds = pairwise.deal([each.group for each in rows], 2, 17)
    assert [int(each["fold"]) for each in margins] == [fold + 1 for fold in folds]
    right = [float(each["margin"]) > 0 for each in margins]
    assert all(each["controlled"] for each in margins)
    # How far it is calibrated is by what people said: a model's label says how sure it is, and not what is right.
    sure = [float(each["margin"]) for each in margins if each["source"] == "ratings"]
    assert found["held_out/nll"] == pytest.approx(sum(math.log1p(math.exp(-each)) for each in sure) / 8)
    assert sum(int(each["pairs"]) for each in table(tmp_path / "out/reliability.csv")) == 8
    # People's pairs weigh the same; a model's half of that.
    assert (found["held_out/people/pairs"], found["held_out/pairs"]) == (8, 16)
    assert found["held_out/people/accuracy"] == pytest.approx(sum(right[::2]) / 8)
    assert found["held_out/accuracy"] == pytest.approx((sum(right[::2]) * 0.5 + sum(right[1::2]) * 0.25) / 6)


def test_labels_of_a_model_alone_leave_what_people_say_undefined(policy: Path, tmp_path: Path) -> None:
    rows = [Preference(**{**vars(each), "source": "ai", "probability": 0.8}) for each in preferred(4, 2)]
    found, _ = run(policy, tmp_path, rows, steps=1, fold_steps=1)
    assert found["held_out/people/pairs"] == 0 and found["held_out/people/accuracy"] is None
    people, _ = run(policy, tmp_path, preferred(4, 2), "people", steps=1, fold_steps=1)
    assert [*people] == [*found] and people["held_out/people/pairs"] == 8
    assert people["held_out/people/accuracy"] == people["held_out/accuracy"]


def test_what_is_too_long_is_cut_and_counted(policy: Path, tmp_path: Path) -> None:
    rows = preferred(4, 2)
    long = Preference("f" * 12, rows[0].prompt, "value " * 80, "value " * 90, 1.0, 0.3, rows[0].group, "ratings")
    found, told = run(policy, tmp_path, [*rows, long], max_tokens=60, steps=1, fold_steps=1)
    assert found["left_out/same_when_cut"] == 1 and told["pairs"] == 8


def test_pairs_that_nothing_can_be_learnt_from_are_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pair of answers to learn from\n"):
        run(policy, tmp_path, [])
    with pytest.raises(UserError, match="no pair of answers to learn from: prompt_too_long 6"):
        run(
            policy,
            tmp_path,
            [row.__class__(**{**vars(row), "prompt": "x " * 60}) for row in preferred(3, 2)],
            max_tokens=16,
        )
    with pytest.raises(UserError, match=r"1 groups of prompts cannot be dealt into 2 folds"):
        run(policy, tmp_path, preferred(2, 2))
    with pytest.raises(UserError, match="the model has no layer called nothing"):
        run(policy, tmp_path, preferred(4, 1), targets=["nothing"])


def test_a_policy_that_is_no_number_is_refused(policy: Path, tmp_path: Path) -> None:
    import torch

    model, tokenizer = models.load_policy(policy, policy, tuned.CPU)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    models.save(model, tokenizer, tmp_path / "broken", "float32")
    with pytest.raises(UserError, match="the states of the starting policy are no numbers"):
        run(tmp_path / "broken", tmp_path, preferred(4, 1))


def test_a_constant_reward_is_said_to_be_one(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where adapter and head do not move from zero: half of all pairs, and nothing to calibrate."""
    monkeypatch.setattr(pairwise, "fit", lambda gaps, *_: np.zeros(gaps.shape[1]))
    found, told = run(policy, tmp_path, preferred(16, 1), learning_rate=1e-30, steps=1, fold_steps=1)
    assert told["constant"] is True and found["constant"] == 1.0
    assert found["held_out/accuracy"] == found["held_out/accuracy_controlled"] == 0.5 and found["held_out/ece"] is None
    assert found["held_out/nll"] == pytest.approx(np.log(2))


def test_length_is_taken_out_by_the_policys_own_answers(policy: Path, tmp_path: Path) -> None:
    """Within a prompt, what the reward says of the policy's answers no longer follows their length; without the line it does."""
    rows, scores = preferred(), {}
    texts = [(each.prompt, text) for each in SAMPLED for text in each.completions]
    tokenizer = models.load_tokenizer(policy)
    tokens = [len(models.render_completion(tokenizer, text)) for _, text in texts]
    for control in (False, True):
        name = f"control-{control}"
        found, told = run(policy, tmp_path, rows, name, length_control=control)
        own = rewards.load(tmp_path / name, tuned.CPU)
        scores[control] = rewards.scorer(own, policy, tuned.CPU)(*zip(*texts, strict=True))
        assert (own.line is not None) is control
        assert found["length/slope"] == (own.line.slope if own.line else None)
        assert ("controlled" in told["held_out"]["all"]["accuracy"]) is control
        assert (found["held_out/accuracy_controlled"] is not None) is control
        assert set(told["held_out"]["all"]["beats"]) == set(reward.BASELINES)
    line = LengthLine.fit(scores[True], tokens, [prompt for prompt, _ in texts])
    before = LengthLine.fit(scores[False], tokens, [prompt for prompt, _ in texts])
    assert abs(before.slope) > 0.05 and abs(line.slope) < 0.02 * abs(before.slope) + 1e-3
    assert 0 <= told["length"]["slope_error"] < 10 and (told["length"]["answers"], told["length"]["prompts"]) == (18, 6)
    columns = table(tmp_path / "control-True/lengths.csv")[0]
    assert "controlled" in columns and "controlled" not in table(tmp_path / "control-False/lengths.csv")[0]


def test_people_who_like_short_answers_and_nothing_else_are_not_followed(policy: Path, tmp_path: Path) -> None:
    """With length in it the reward tells their pairs; without, it tells about as much as chance."""
    rows = []
    for number in range(24):
        words = ["value", "row", "file", "table", "index", "object", "string", "number"]
        texts = [" ".join(random.Random(f"{number}{size}").choices(words, k=size)) for size in (3, 12)]
        prompt = f"what of table {number} in file {number // 3}"
        identifier = records.row_id(prompt, *texts)
        rows.append(Preference(identifier, prompt, *texts, 1.0, 1.0, f"group {number}", "ratings"))
    sampled = [
        Completions(f"{number:012x}", row.prompt, (row.chosen, row.rejected, f"{row.chosen} {row.chosen}"), "own")
        for number, row in enumerate(rows)
    ]
    found, _ = run(policy, tmp_path, rows, sampled=sampled)
    assert found["held_out/accuracy"] > 0.9 and found["length/slope"] < 0.0
    assert found["held_out/accuracy_controlled"] < 0.75


def test_answers_that_are_too_long_are_cut_and_keep_an_end(policy: Path) -> None:
    tokenizer = models.load_tokenizer(policy)
    prompt = len(models.render_prompt(tokenizer, "what of table 1"))
    [item] = [Completions("0" * 12, "what of table 1", ("value", "value row " * 40), "own")]
    long = Completions("1" * 12, "what of table 1 " * 40, ("value",), "own")
    found = reward_models.answered(tokenizer, [item, long], prompt + 8)
    ends = {row.completion[-1] for row in found.rows}
    assert len(ends) == 1 and found.tokens == [len(found.rows[0].completion), 8] and found.differ
    assert (found.prompts, found.left_out) == ([0, 0], 1)


def test_no_answers_to_tell_length_by_are_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no answers of the starting policy") as told:
        run(policy, tmp_path, preferred(4, 1), sampled=[])
    assert "raise feedback.prompts" in str(told.value)
    run(policy, tmp_path, preferred(4, 1), sampled=[], length_control=False, steps=1, fold_steps=1)


def test_length_that_cannot_be_told_is_left_in_and_said(policy: Path, tmp_path: Path) -> None:
    sampled = [Completions("0" * 12, "what of table 1", ("value", "value"), "own")]
    notes: list[str] = []
    log = Log()
    log.note = notes.append  # type: ignore[method-assign, assignment]
    found, told = run(policy, tmp_path, preferred(4, 1), sampled=sampled, log=log, steps=1, fold_steps=1)
    assert told["length"] is None and found["length/slope"] is None and found["held_out/accuracy_controlled"] is None
    assert any("length is NOT taken out of the reward" in each for each in notes)


def test_balanced_pairs_teach_nothing_of_length(policy: Path, tmp_path: Path) -> None:
    """People like the short answer three times in four, and say nothing else: with balanced weights, that is no reason to."""
    rows = []
    for number in range(24):
        short, long = "read the value", "read the value of the row and of the table"
        chosen, rejected = (long, short) if number % 4 == 0 else (short, long)
        prompt = f"what of table {number} in file {number // 3}"
        identifier = records.row_id(prompt, chosen, rejected)
        rows.append(Preference(identifier, prompt, chosen, rejected, 1.0, 1.0, f"group {number}", "ratings"))

    def margin(balance: bool) -> float:
        """How much better the kept model likes the short answer, at the weights that it starts from."""
        name = f"balanced-{balance}"
        _, told = run(policy, tmp_path, rows, name, balance_lengths=balance, steps=1, fold_steps=1, learning_rate=1e-9)
        assert told["training"]["balance_lengths"] is balance
        head = safetensors.torch.load_file(tmp_path / name / "adapter" / backbone.HEAD)["weight"].numpy()
        model, tokenizer = models.load_base(policy, tuned.CPU), models.load_tokenizer(policy)
        data = reward_models.encode(tokenizer, rows, 256)
        states = reward_models.states(model, data.rows, tokenizer.pad_token_id, batch_tokens=4096, title="", log=Log())
        scores = states @ head
        gaps = [scores[pair.chosen] - scores[pair.rejected] for pair in data.pairs]
        sides = [[gap for number, gap in enumerate(gaps) if (number % 4 == 0) == longer] for longer in (False, True)]
        return float(np.mean(sides[0]) - np.mean(sides[1])) / 2.0

    as_they_are, balanced = margin(False), margin(True)
    assert as_they_are > 0.3 and abs(balanced) < as_they_are / 4
