"""dpo and kto: what TRL computes is the loss of the paper on token ids of ours; a planted preference is learnt; kills cost nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.stages import aligned, tuned
from tunemill import checkpoints, models, policy_tuning, records
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.policy_tuning import Pair

BOTH = ("dpo", "kto")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    aligned.prepare(folder)
    return folder


def log_ratio(place: Path, adapter: Path, prompt: list[int], answer: list[int]) -> float:
    """log π(y|x) − log π_ref(y|x), by plain transformers and peft, one sequence at a time."""
    import torch
    from peft import PeftModel

    base = models.load_base(place / "model", tuned.CPU)
    policy = PeftModel.from_pretrained(base, adapter)

    def logprob() -> float:
        logits = policy(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())

    with torch.no_grad():
        own = logprob()
        with policy.disable_adapter():
            return own - logprob()


def drawn(place: Path, step: int, seed: int = 17) -> list[Pair]:
    """The pairs of a step, rendered as prompts and completions are everywhere, and not by TRL."""
    tokenizer = models.load_tokenizer(place / "model")
    found = [
        Pair(
            row.prompt,
            models.render_prompt(tokenizer, row.prompt),
            models.render_completion(tokenizer, row.chosen),
            models.render_completion(tokenizer, row.rejected),
            row.weight,
        )
        for row in records.read(place / "preferences.jsonl", records.Preference)
        if row.prompt != "read the long"
    ]
    order = policy_tuning.draw(found, 24, seed)
    return [found[at] for at in order[4 * (step - 1) : 4 * step]]


@pytest.mark.parametrize("stage", BOTH)
def test_the_loss_is_the_papers_on_our_token_ids(stage: str, place: Path, tmp_path: Path) -> None:
    """The third step's row of the curve against weights that were kept after the second."""
    aligned.run(stage, place, tmp_path / "out", steps=3, checkpoint_steps=1)
    first, _, third = aligned.curve(tmp_path / "out/adapter")
    assert (
        first["margin"] == first["chosen"] == first["rejected"] == 0.0
    )  # the reference is the policy at the start, exactly
    assert first["loss"] == pytest.approx(math.log(2) if stage == "dpo" else 0.5, abs=1e-6)
    adapter, beta = tmp_path / "out-work/adapter/checkpoint-2", 0.1
    pairs = drawn(place, 3)
    good = [log_ratio(place, adapter, each.prompt, each.chosen) for each in pairs]
    bad = [log_ratio(place, adapter, each.prompt, each.rejected) for each in pairs]
    margins = [beta * (one - other) for one, other in zip(good, bad, strict=True)]

    def sigmoid(value: float) -> float:
        return 1.0 / (1.0 + math.exp(-value))

    if stage == "dpo":
        loss = -sum(math.log(sigmoid(each)) for each in margins) / 4
    else:
        # Each answer beside the prompt of the next one: good ones first, then bad ones, the last beside the first prompt.
        prompts = [each.prompt for each in pairs] * 2
        answers = [each.chosen for each in pairs] + [each.rejected for each in pairs]
        apart = [log_ratio(place, adapter, prompt, answers[at - 1]) for at, prompt in enumerate(prompts)]
        z = max(0.0, sum(apart) / 8)
        assert third["kl"] == pytest.approx(z, abs=1e-3)
        loss = sum(1 - sigmoid(beta * (each - z)) for each in good) / 8
        loss += sum(1 - sigmoid(beta * (z - each)) for each in bad) / 8
    assert third["loss"] == pytest.approx(loss, rel=2e-3)
    assert third["margin"] == pytest.approx(sum(margins) / 4, rel=2e-3)
    assert third["chosen"] == pytest.approx(beta * sum(good) / 4, rel=5e-3)


@pytest.mark.parametrize("stage", BOTH)
def test_it_learns_a_planted_preference(stage: str, place: Path, tmp_path: Path) -> None:
    metrics = aligned.run(stage, place, tmp_path / "out", learning_rate=2e-3, steps=12)
    assert metrics["pairs"] == 19 and metrics["prompts"] == 10 and metrics["too_long"] == 1
    assert metrics["margin/first"] == 0.0
    assert (metrics["margin/last"] or 0.0) > 1.0
    # It holds for words that were not among the pairs.
    tokenizer = models.load_tokenizer(place / "model")
    prompt = models.render_prompt(tokenizer, "read the context")
    ratios = [
        log_ratio(place, tmp_path / "out/adapter", prompt, models.render_completion(tokenizer, text))
        for text in ("return the context 0", "delete every context and stop all 0")
    ]
    assert ratios[0] - ratios[1] > 1.0
    assert tuned.files(tmp_path / "out") == [
        f"adapter/{name}"
        for name in ("README.md", "adapter_config.json", "adapter_model.safetensors", "training.json", "updates.csv")
    ]
    told = json.loads((tmp_path / "out/adapter/training.json").read_text())
    assert (told["method"], told["steps"], told["batch_size"], told["examples"]) == (stage, 12, 4, 19)
    assert str(tmp_path) not in (tmp_path / "out/adapter/adapter_config.json").read_text()
    # It is a candidate like any other.
    policy, _ = models.load_policy(tmp_path / "out/adapter", place / "model", tuned.CPU)
    assert policy.config.model_type == "llama"


@pytest.mark.slow
@pytest.mark.parametrize("stage", BOTH)
def test_a_killed_run_goes_on_to_the_same_bytes(stage: str, place: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 5:  # learnt, and not yet kept
            raise Killed

    aligned.run(stage, place, tmp_path / "whole", seeds=(3, 4))
    with pytest.raises(Killed):
        aligned.run(stage, place, tmp_path / "killed", seeds=(3, 4), log=Log(listener=kill))
    assert (checkpoints.newest(tmp_path / "killed-work/adapter") or Path()).name == "checkpoint-4"
    aligned.run(stage, place, tmp_path / "killed", seeds=(3, 4))
    assert checkpoints.tree_hash(tmp_path / "killed") == checkpoints.tree_hash(tmp_path / "whole")
    one, other = ((tmp_path / "whole" / name / "updates.csv").read_text() for name in ("adapter", "adapter-4"))
    assert one != other


@pytest.mark.slow
def test_several_forward_passes_make_the_same_step(place: Path, tmp_path: Path) -> None:
    for name, change in (("one", {"batch_size": 4}), ("two", {"batch_size": 2, "accumulation": 2})):
        aligned.run("dpo", place, tmp_path / name, **change)
    one, two = (aligned.curve(tmp_path / name / "adapter") for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)
        assert row["margin"] == pytest.approx(other["margin"], rel=1e-3, abs=1e-5)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ["dpo", "kto", "grpo", "rloo"])
def test_an_encoder_decoder_is_refused_and_told_what_works(stage: str, tmp_path: Path) -> None:
    aligned.prepare(tmp_path, "encoder-decoder")
    change: dict[str, Any] = {}
    if stage in ("grpo", "rloo"):
        change["reward"] = aligned.reward(tmp_path / "reward", kind="length")
    told = f"{stage.upper()} cannot align an encoder-decoder(?s:.*)align it with PPO, which takes both families"
    with pytest.raises(UserError, match=told):
        aligned.run(stage, tmp_path, tmp_path / "out", **change)


def test_pairs_that_are_all_too_long_are_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 20 pairs has at most 16 tokens(?s:.*)raise dpo\.max_tokens"):
        aligned.run("dpo", place, tmp_path / "out", max_tokens=16)


def test_a_gradient_that_is_no_number_stops_before_it_touches_the_weights(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the gradient of step \d is not finite(?s:.*)lower learning_rate"):
        aligned.run("dpo", place, tmp_path / "out", learning_rate=1e18, max_grad_norm=1e18)


def test_one_pair_at_a_time_is_too_few_for_kto(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        aligned.run("kto", place, tmp_path / "out", batch_size=1)
