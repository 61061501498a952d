"""grpo and rloo: they answer and score as PPO does, learn a synthetic reward, and a kill costs nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.stages import aligned, tuned
from tests.tunemill.test_backbone import reward_folder
from tests.tunemill.test_ppo import class_share
from tunemill import checkpoints, models, ppo, rewards, rlhf, sampling
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.rewards import Reward

BOTH = ("grpo", "rloo")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    aligned.prepare(folder)
    reward_folder(folder / "model", folder / "reward")
    return folder


@pytest.fixture
def share(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A reward that can be learnt: the share of tokens of a class that every ninth is of."""
    texts = class_share(models.load_tokenizer(place / "model"))
    monkeypatch.setattr(rewards, "load", lambda folder, runtime: Reward("test", None, texts, False))
    return {"reward": place / "reward"}


def first_rollout(place: Path, prompts: int, samples: int) -> tuple[list[Encoded], list[bool], list[float]]:
    """What the starting policy answers in the first update to PPO's prompts, its ends, and the reward model's raw scores."""
    tokenizer = models.load_tokenizer(place / "model")
    words = ["value", "name", "key", "type", "object", "class", "function", "method", "file", "path"]
    asked = [f"{one} the {other}" for one in ("read", "write", "delete") for other in words]
    chosen = [asked[at] for at in ppo.choose(len(asked), prompts, 17, 1) for _ in range(samples)]
    ids = [models.render_prompt(tokenizer, each) for each in chosen]
    model = models.load_base(place / "model", tuned.CPU)
    batches = sampling.plan([*map(len, ids)], 5, 16000, len(ids))
    found = {
        at: (Encoded(ids[at], answer), ended)
        for at, answer, ended in sampling.rollouts(
            model, tokenizer, ids, decoding=sampling.Decoding(5, 1.0), batches=batches, seed=[17, 1, 0]
        )
    }
    rows, ends = zip(*(found[at] for at in range(len(ids))), strict=True)
    return list(rows), list(ends), rewards.reader(place / "reward", place / "model", tuned.CPU)(rows)


@pytest.mark.parametrize("stage", BOTH)
def test_it_answers_and_scores_as_ppo_does(stage: str, place: Path, tmp_path: Path) -> None:
    metrics = aligned.run(stage, place, tmp_path / "out", reward=place / "reward", missing_eos_penalty=0.5, epochs=1)
    assert metrics["prompts/left_out"] == 1  # the text to go on from is no instruction; the long one is too long
    rows, ends, scores = first_rollout(place, 4, 3)
    told = json.loads((tmp_path / "out/adapter/training.json").read_text())
    normal = rlhf.Normalization.of(scores)
    assert told["normalization"] == pytest.approx(list(normal), rel=1e-4)
    assert told["reward"] == {"kind": "model", "shuffled": False}
    first, *others = aligned.curve(tmp_path / "out/adapter")
    assert first["reward"] == pytest.approx(normal.mean, rel=1e-4)
    # Scores have mean 0 after normalisation (none is clipped here), then the penalty comes.
    assert max(abs(each - normal.mean) / normal.std for each in scores) < rlhf.CLIPPED_SCORE
    assert first["normalized"] == pytest.approx(-0.5 * (1 - sum(ends) / len(ends)), abs=1e-4)
    assert first["tokens"] == pytest.approx(sum(len(each.completion) for each in rows) / len(rows))
    assert first["finished"] == pytest.approx(sum(ends) / len(ends))
    assert first["kl"] == 0.0  # the policy is the reference, exactly
    assert all(each["kl"] != 0.0 for each in others)
    assert len(others) == 3
    assert (told["method"], told["steps"], told["examples"]) == (stage, 4, 48)
    assert tuned.files(tmp_path / "out") == [
        f"adapter/{name}"
        for name in ("README.md", "adapter_config.json", "adapter_model.safetensors", "training.json", "updates.csv")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stage", BOTH)
def test_a_policy_learns_a_synthetic_reward(stage: str, place: Path, share: dict[str, Any], tmp_path: Path) -> None:
    many = {"prompts": 16, "samples": 8, "response_tokens": 4, "micro_batch": 128, "updates": 20, "epochs": 1}
    metrics = aligned.run(stage, place, tmp_path / "out", **share, **many, learning_rate=1e-2, kl_coef=0.0)
    assert (metrics["reward/last"] or 0.0) > 2.0 * (metrics["reward/first"] or 1.0)
    assert metrics["kl"] is None  # without a penalty TRL does not compute it


@pytest.mark.slow
@pytest.mark.parametrize("stage", BOTH)
def test_a_killed_run_goes_on_to_the_same_bytes(stage: str, place: Path, share: dict[str, Any], tmp_path: Path) -> None:
    """Minibatches among them: what was drawn is dealt out at random by TRL."""

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 3:  # learnt, and not yet kept
            raise Killed

    change = {**share, "minibatches": 2, "micro_batch": 3}
    aligned.run(stage, place, tmp_path / "whole", **change)
    with pytest.raises(Killed):
        aligned.run(stage, place, tmp_path / "killed", **change, log=Log(listener=kill))
    work = tmp_path / "killed-work/adapter"
    assert (checkpoints.newest(work) or Path()).name == "checkpoint-8"  # two updates of two passes over two minibatches
    aligned.run(stage, place, tmp_path / "killed", **change)
    assert checkpoints.tree_hash(tmp_path / "killed") == checkpoints.tree_hash(tmp_path / "whole")


def test_shuffled_scores_are_told_as_they_are_and_learnt_from_as_they_were_dealt(place: Path, tmp_path: Path) -> None:
    control = aligned.reward(tmp_path / "control", kind="shuffled", model=str(place / "reward"))
    for name, folder in (("plain", place / "reward"), ("control", control)):
        aligned.run("rloo", place, tmp_path / name, reward=folder, updates=1)
    plain, dealt = (aligned.curve(tmp_path / name / "adapter")[0] for name in ("plain", "control"))
    assert plain["reward"] == dealt["reward"]
    one, other = (
        checkpoints.file_hash(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("plain", "control")
    )
    assert one != other


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (1.0, "nothing can be learnt from this reward: all 12 scores are 1"),
        (None, "the reward of 12 of 12 responses is no number"),
        (float("nan"), "the reward of 12 of 12 responses is no number"),
    ],
)
def test_a_reward_that_says_nothing_is_refused(
    score: float | None, told: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def texts(_: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        return [score] * len(responses)

    monkeypatch.setattr(rewards, "load", lambda folder, runtime: Reward("test", None, texts, False))
    with pytest.raises(UserError, match=told):
        aligned.run("grpo", place, tmp_path / "out", reward=place / "reward")


def test_prompts_that_are_all_too_long_are_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 31 instructions has at most 2 tokens(?s:.*)raise grpo\.max_prompt"):
        aligned.run("grpo", place, tmp_path / "out", reward=place / "reward", max_prompt_tokens=2)
