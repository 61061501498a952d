"""Reward models: what was trained is what the language model scores with, TRL's loss is ours, and soft labels are learnt as such."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel

from tests.stages import tuned
from tunemill import backbone, losses, models, reward_models
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.records import Preference
from tunemill.reward_models import Data, Settings, Trainee

FEW = Settings(steps=5, batch_size=4, learning_rate=1e-2, warmup_steps=0, max_grad_norm=1.0, checkpoint_steps=2)


def preference(number: int, chosen: str, rejected: str, probability: float = 1.0, weight: float = 1.0) -> Preference:
    return Preference(f"{number:012x}", f"prompt {number}", chosen, rejected, probability, weight, "g", "made")


MADE = [preference(at, f"return value {at}", f"delete the value {at} now, all of it") for at in range(10)]


def lora(rank: int = 4) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def started(folder: Path, made: list[Preference] = MADE, max_tokens: int = 200) -> tuple[Any, Any, Data, Trainee]:
    model, tokenizer = models.load_base(folder, tuned.CPU), models.load_tokenizer(folder)
    torch.manual_seed(0)
    head = 0.1 * torch.randn(backbone.width(model.config))
    data = reward_models.encode(tokenizer, made, max_tokens)
    return model, tokenizer, data, reward_models.attach(model, lora(), head)


def train(tokenizer: Any, data: Data, trainee: Trainee, work: Path, settings: Settings = FEW) -> list[Any]:
    return reward_models.train(
        trainee, tokenizer, data, data.pairs, settings, 0, runtime=tuned.CPU, work=work, log=Log(), title="training"
    )


def rewards(model: Any, head: torch.Tensor, data: Data, pad: int = 0) -> np.ndarray:
    found: np.ndarray = (
        reward_models.states(model, data.rows, pad, batch_tokens=300, title="read", log=Log()) @ head.numpy()
    )
    return found


def test_rows_are_what_ppo_will_see(either: Path) -> None:
    tokenizer = models.load_tokenizer(either)
    made = [*MADE[:2], preference(1, "return value 1", "another " * 30), preference(7, "a " * 90, "a " * 80)]
    data = reward_models.encode(tokenizer, made, 60)
    assert data.rows[0] == (
        models.render_prompt(tokenizer, "prompt 0"),
        models.render_completion(tokenizer, "return value 0"),
    )
    assert data.rows[0].completion[-1] == tokenizer.eos_token_id
    # The answer to prompt 1 is there once; what is longer is cut and has no end; two that are the same then are no pair.
    assert [pair[:2] for pair in data.pairs] == [(0, 1), (2, 3), (2, 4)] and data.kept == [0, 1, 2]
    assert data.cut == 1 and len(data.rows[4]) == 60 and data.rows[4].completion[-1] != tokenizer.eos_token_id
    assert data.left_out == {"prompt_too_long": 0, "same_when_cut": 1}
    assert reward_models.encode(tokenizer, MADE, 2).left_out["prompt_too_long"] == 10


def test_pairs_are_drawn_by_their_weights() -> None:
    weights = np.array([1.0, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.6])
    for count in (3, 30, 41):
        drawn = Counter(reward_models.draw(weights, count, seed=5))
        assert sum(drawn.values()) == count
        for at, weight in enumerate(weights):
            assert abs(drawn[at] - count * weight / weights.sum()) < 1
    assert (
        reward_models.draw(weights, 30, 5) == reward_models.draw(weights, 30, 5) != reward_models.draw(weights, 30, 6)
    )


def test_what_was_trained_is_what_the_language_model_scores_with(either: Path, tmp_path: Path) -> None:
    model, tokenizer, data, trainee = started(either)
    before = rewards(model, trainee.head, data)
    pad, start = reward_models.unused_token(tokenizer, data.rows), losses.start_token(model)
    points = train(tokenizer, data, trainee, tmp_path / "work")
    assert [point.step for point in points] == [1, 2, 3, 4, 5]
    assert points[-1].loss < points[0].loss
    batch = backbone.collate(data.rows, pad, start)
    with torch.no_grad():
        given = batch.inputs if start is None else batch._asdict()
        trained = reward_models.scores(trainee, given).numpy()
    assert np.abs(trained - before).max() > 0.1
    reward_models.save(trainee, tmp_path / "adapter")
    assert tuned.files(tmp_path / "adapter") == ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"]

    # Plain peft, on the language model's class: every weight finds its place, and none is missing.
    fresh = models.load_base(either, tuned.CPU)
    policy = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    head = backbone.read_head(tmp_path, fresh.config)
    loaded = {name: each for name, each in policy.named_parameters() if "lora_" in name}
    assert all(each.abs().sum() > 0 for name, each in loaded.items() if "lora_B" in name)
    for pads in (pad, 1):
        assert np.abs(rewards(policy.get_base_model(), head, data, pads) - trained).max() < 1e-5
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["task_type"] in (
        "CAUSAL_LM",
        "SEQ_2_SEQ_LM",
    )

    # One base for several trainings: without its adapter the model is as it was.
    trainee.release()
    again = reward_models.attach(model, lora(), torch.ones(backbone.width(model.config)))
    untouched = models.load_base(either, tuned.CPU)
    assert np.abs(rewards(model, again.head, data) - rewards(untouched, again.head, data)).max() == 0.0


def test_the_loss_is_trls(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first batch of TRL's own trainer, fed by TRL's own collator."""
    from trl import RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    _, tokenizer, data, trainee = started(decoder)
    ours = train(tokenizer, data, trainee, tmp_path / "work", FEW._replace(steps=1, batch_size=10))
    trainee.release()
    _, tokenizer, data, trainee = started(decoder)
    whole = [[*row.prompt, *row.completion] for row in data.rows]
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(
        [{"chosen_ids": whole[pair.chosen], "rejected_ids": whole[pair.rejected]} for pair in data.pairs]
    )
    made: list[Any] = []

    def watched(self: Any, model: Any, inputs: Any, **given: Any) -> Any:
        made.append(RewardTrainer.compute_loss(self, model, batch))
        return made[-1]

    real = reward_models._trainer

    def built(*given: Any) -> Any:
        trainer = real(*given)
        monkeypatch.setattr(type(trainer), "compute_loss", watched)
        return trainer

    monkeypatch.setattr(reward_models, "_trainer", built)
    with pytest.raises(ZeroDivisionError):  # our own accuracy was never computed
        train(tokenizer, data, trainee, tmp_path / "other", FEW._replace(steps=1, batch_size=10))
    assert ours[0].loss == pytest.approx(float(made[0].detach()), abs=1e-4)


def test_a_padding_that_ends_texts_changes_nothing(decoder: Path, tmp_path: Path) -> None:
    _, tokenizer, data, trainee = started(decoder)
    usual = train(tokenizer, data, trainee, tmp_path / "usual")
    _, tokenizer, data, trainee = started(decoder)
    tokenizer.pad_token = tokenizer.eos_token
    pad = reward_models.unused_token(tokenizer, data.rows)
    assert pad != tokenizer.eos_token_id and not any(pad in (*row.prompt, *row.completion) for row in data.rows)
    other = train(tokenizer, data, trainee, tmp_path / "other")
    assert [point.loss for point in other] == pytest.approx([point.loss for point in usual], abs=1e-6)


def test_soft_labels_are_learnt_as_probabilities(either: Path, tmp_path: Path) -> None:
    """Three of four people prefer the first: the margin goes to log 3 and stays there, where a hard label's would grow on."""
    settings = FEW._replace(steps=60, batch_size=1, checkpoint_steps=100)
    margins = []
    for probability in (0.75, 1.0):
        model, tokenizer, data, trainee = started(either, [preference(0, "return value", "delete it", probability)])
        train(tokenizer, data, trainee, tmp_path / str(probability), settings)
        chosen, rejected = rewards(model, trainee.head, data)
        margins.append(chosen - rejected)
    assert margins[0] == pytest.approx(math.log(3), abs=0.1)
    assert margins[1] > 2.5


def test_a_killed_training_goes_on_to_the_same_weights(either: Path, tmp_path: Path) -> None:
    def trained(name: str, kill: int | None) -> tuple[list[Any], torch.Tensor]:
        _, tokenizer, data, trainee = started(either)

        def listen(step: int, values: dict[str, float]) -> None:
            if step == kill:
                raise KeyboardInterrupt

        points = reward_models.train(
            trainee,
            tokenizer,
            data,
            data.pairs,
            FEW,
            0,
            runtime=tuned.CPU,
            work=tmp_path / name,
            log=Log(listener=listen),
            title="training",
        )
        return points, trainee.head

    whole, head = trained("whole", None)
    with pytest.raises(KeyboardInterrupt):
        trained("killed", 4)
    assert (tmp_path / "killed/checkpoint-2/manifest.json").is_file()
    again, resumed = trained("killed", None)
    assert again == whole
    assert torch.equal(head, resumed)


def test_gradients_that_are_no_numbers_are_refused(decoder: Path, tmp_path: Path) -> None:
    _, tokenizer, data, trainee = started(decoder)
    with torch.no_grad():
        trainee.language_model.base_model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the gradient of step 1 is not finite"):
        train(tokenizer, data, trainee, tmp_path / "work")


def test_positions_that_the_model_does_not_have_are_refused(decoder: Path) -> None:
    tokenizer = models.load_tokenizer(decoder)
    data = reward_models.encode(tokenizer, [preference(0, "a", "value " * 2000)], 2000)
    with pytest.raises(UserError, match=r"has 2000 tokens\n  expected: at most 1024"):
        reward_models.fits(models.load_base(decoder, tuned.CPU).config, data.rows)


def test_an_architecture_without_a_classifier_is_named(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("Unrecognized configuration class")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", refuse)
    with pytest.raises(UserError, match="no sequence classifier of llama"):
        started(decoder)
