"""Tuning: little padding, every method learns in both families, a killed run ends the same, faults are mended and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import checkpoints, losses, models, runtime, trainings, tuning
from tunemill.errors import UserError
from tunemill.log import Log

CPU = runtime.Runtime("cpu", "float32", 2)
CONFIG: dict[str, Any] = {
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "steps": 12,
    "batch_size": 4,
    "accumulation": 1,
    "sharding": "none",
    "recompute": False,
    "max_tokens": 200,
    "validation_items": 4,
    "validation_steps": 4,
    "checkpoint_steps": 4,
    "seeds": [5],
}
PAIRS = [("read the " + "value " * (at % 7 + 1), "write the table " + "row " * (at % 3)) for at in range(24)]


def lora(model: Any) -> Any:
    from peft import LoraConfig

    return tuning.adapt(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear"), "lora")


def soft(model: Any) -> Any:
    from peft import PromptTuningConfig

    return tuning.adapt(model, PromptTuningConfig(num_virtual_tokens=6, num_transformer_submodules=1), "prompt_tune")


def train(
    folder: Path, work: Path, change: Callable[[Any], Any] = lora, log: Log | None = None, **values: Any
) -> tuning.Trained:
    cfg = tuning.Training.model_validate(CONFIG | values)
    tokenizer = models.load_tokenizer(folder)

    def load() -> Any:
        runtime.seed_everything(5)
        return change(models.load_trainable(folder, CPU))

    data = tuning.prepare(cfg, tokenizer, PAIRS, PAIRS[:8], "lora")
    return tuning.train(load, tokenizer, data, cfg, 5, runtime=CPU, work=work, log=log or Log())


def same_weights(one: Any, other: Any) -> bool:
    import torch

    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_plan_uses_every_row_once_before_any_twice_and_pads_little() -> None:
    lengths = [(at * 37) % 200 + 10 for at in range(64)]
    plan = tuning.plan_batches(lengths, 8, 8, seed=3)
    assert sorted(row for batch in plan for row in batch) == list(range(64))
    padded = sum(max(lengths[row] for row in batch) * 8 for batch in plan)
    in_order = sum(max(lengths[at : at + 8]) * 8 for at in range(0, 64, 8))
    assert padded < 1.15 * sum(lengths) < in_order
    assert tuning.plan_batches(lengths, 8, 8, seed=3) == plan
    assert tuning.plan_batches(lengths, 8, 8, seed=4) != plan
    again = [row for batch in tuning.plan_batches(lengths, 8, 12, seed=3) for row in batch]
    assert {again.count(row) for row in range(64)} == {1, 2}


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize(
    ("change", "rate"), [(lambda model: model, 1e-3), (lora, 1e-2), (soft, 0.3)], ids=["full", "lora", "soft prompt"]
)
def test_every_method_learns_in_both_families(
    family: str, change: Callable[[Any], Any], rate: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = train(request.getfixturevalue(family), tmp_path, change, learning_rate=rate)
    validated = [point.validation_loss for point in found.points if point.validation_loss is not None]
    assert len(validated) == 4  # before the first step, then every four
    assert validated[-1] < validated[0] - 0.1
    lines = trainings.curve_csv(found.points).splitlines()
    assert lines[0] == "step,loss,validation_loss,learning_rate,tokens"
    assert len(lines) == 1 + 13
    assert lines[1].startswith("0,,")


def test_an_adapter_starts_as_the_base(decoder: Path) -> None:
    import torch

    base = models.load_base(decoder, CPU)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(ids).logits
        after = lora(base).eval()(ids).logits
    assert torch.equal(before, after)


def test_a_run_continued_from_a_checkpoint_ends_the_same(decoder: Path, tmp_path: Path) -> None:
    whole = train(decoder, tmp_path / "whole", steps=10)
    # What a kill after step 9 leaves: complete checkpoints at 4 and 8, the last one damaged.
    (tmp_path / "killed").mkdir()
    train(decoder, tmp_path / "killed", steps=10)
    assert (tmp_path / "killed/checkpoint-8" / checkpoints.MANIFEST).is_file()
    shutil.rmtree(tmp_path / "killed/checkpoint-10", ignore_errors=True)
    (tmp_path / "killed/checkpoint-8/optimizer.pt").write_bytes(b"torn")
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    for each in (tmp_path / "other").glob("checkpoint-*"):
        if each.name != "checkpoint-8":
            shutil.rmtree(each)
    resumed = train(decoder, tmp_path / "other", steps=10)
    assert resumed.points == whole.points
    assert same_weights(resumed.policy, whole.policy)
    assert checkpoints.newest(tmp_path / "killed") is None  # the torn one is passed over; two are kept at most


def test_the_same_pairs_make_the_same_step_however_they_are_spread(decoder: Path, tmp_path: Path) -> None:
    import torch

    whole = train(decoder, tmp_path / "one", lambda model: model, batch_size=4, accumulation=1)
    spread = train(decoder, tmp_path / "two", lambda model: model, batch_size=2, accumulation=2)
    # Batches are planned by `batch_size`, so the pairs differ; in micro-batches of one plan they do not.
    assert len(whole.points) == len(spread.points)
    cfg = tuning.Training.model_validate(CONFIG)
    data = tuning.prepare(cfg, models.load_tokenizer(decoder), PAIRS, [], "lora")
    arguments = (models.load_tokenizer(decoder), data, cfg, 5)
    _, points, _ = tuning._attempt(
        lambda: models.load_trainable(decoder, CPU),
        *arguments,
        2,
        2,
        1e-2,
        runtime=CPU,
        work=tmp_path / "three",
        log=Log(),
    )
    _, oracle, _ = tuning._attempt(
        lambda: models.load_trainable(decoder, CPU),
        *arguments,
        4,
        1,
        1e-2,
        runtime=CPU,
        work=tmp_path / "four",
        log=Log(),
    )
    for a, b in zip(points, oracle, strict=True):
        assert torch.isclose(torch.tensor(a.loss), torch.tensor(b.loss), rtol=1e-4), (a, b)


def test_out_of_memory_makes_smaller_batches_and_the_same_steps(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(decoder, tmp_path / "whole", lambda model: model)
    real, seen = losses.completion_loss, []

    def scarce(model: Any, inputs: Any, *rest: Any) -> Any:
        rows = len(inputs["input_ids"])
        seen.append(rows)
        if rows > 2 and len(seen) > 5:  # as when a later batch is longer
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return real(model, inputs, *rest)

    monkeypatch.setattr(losses, "completion_loss", scarce)
    told: list[str] = []
    log = Log()
    monkeypatch.setattr(log, "note", told.append)
    found = train(decoder, tmp_path / "scarce", lambda model: model, log=log)
    assert seen[:6] == [4] * 6
    assert set(seen[6:]) == {2}
    assert len(seen) == 6 + 2 * 8  # from the checkpoint at step 4 on, two forward passes for each of eight steps
    assert found.micro_batch == 2
    assert told[0].startswith("memory at the peak, as planned: ")
    assert events(told) == ["out of memory with 4 pairs in a forward pass: 2 now, the step as large as before"]
    assert [point.step for point in found.points] == [point.step for point in whole.points]
    assert log.measured["training_seconds"] > 0  # of the loop that went to the end, as if it had gone all the way
    for ours, theirs in zip(found.points, whole.points, strict=True):
        assert ours.tokens == theirs.tokens
        assert (ours.loss or 0.0) == pytest.approx(theirs.loss or 0.0, rel=1e-3)
    # Killed and started again: it remembers.
    assert json.loads((tmp_path / "scarce/recovered.json").read_text())["batch_size"] == 2

    monkeypatch.setattr(losses, "completion_loss", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(UserError, match="memory ran out with one pair"):
        train(decoder, tmp_path / "none", lambda model: model)


def test_a_gradient_that_is_no_number_goes_back_once_and_then_fails(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    real = losses.completion_loss
    calls: list[int] = []
    monkeypatch.setattr(losses, "completion_loss", lambda *given: _once(real, calls, 6, *given))
    told: list[str] = []
    log = Log()
    monkeypatch.setattr(log, "note", told.append)
    found = train(decoder, tmp_path / "once", log=log)
    assert events(told) == ["the gradient of step 6 is not finite: back to step 4, learning rate 0.003"]
    assert found.learning_rate == pytest.approx(0.003)
    assert len(calls) == 6 + 8  # stopped at the step itself; steps 5 to 12 again
    assert all(bool(torch.isfinite(each).all()) for each in found.policy.parameters())
    rates = {point.step: point.learning_rate for point in found.points if point.learning_rate is not None}
    assert rates[4] == pytest.approx(0.01 * 9 / 10)
    assert all(rates[step] == pytest.approx(0.003 * (13 - step) / 10) for step in range(5, 13)), rates

    monkeypatch.setattr(losses, "completion_loss", lambda *given: real(*given) * float("nan"))
    with pytest.raises(UserError, match="the gradient of step 1 is not finite, at the lowered learning rate 0.003 too"):
        train(decoder, tmp_path / "always")


def events(told: list[str]) -> list[str]:
    """What happened, without what was planned before it."""
    return [each for each in told if "as planned" not in each]


def _once(real: Callable[..., Any], calls: list[int], at: int, *given: Any) -> Any:
    calls.append(1)
    found = real(*given)
    return found * float("nan") if len(calls) == at else found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_modules": ["query"]}, r"the model has no layer called query(.|\n)*q_proj, up_proj, v_proj"),
        (
            {"target_modules": "q_proj"},
            r"lora\.targets: no layer's whole name matches the pattern 'q_proj'(.|\n)*around a layer's name: \[q_proj\]",
        ),
        ({"target_modules": r".*\.query"}, r"no layer's whole name matches the pattern '\.\*\\\.query'\n.*all-linear"),
        ({"target_modules": ["norm"]}, r"among norm is a layer that cannot be adapted"),
        ({"r": 33, "target_modules": ["k_proj"]}, r"rank 33 is above the width of k_proj, 32 x 64"),
    ],
)
def test_adapters_that_fit_no_layer_are_refused(decoder: Path, change: dict[str, Any], message: str) -> None:
    from peft import LoraConfig

    with pytest.raises(UserError, match=message) as caught:
        tuning.adapt(models.load_base(decoder, CPU), LoraConfig(**change), "lora")
    assert caught.value.exit_code == 2


def test_a_pattern_adapts_the_layers_it_matches(decoder: Path) -> None:
    from peft import LoraConfig

    policy = tuning.adapt(models.load_base(decoder, CPU), LoraConfig(target_modules=r".*\.[qv]_proj"), "lora")
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in policy.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_an_architecture_that_peft_has_no_choice_for_is_told() -> None:
    from peft import IA3Config
    from transformers import CohereConfig, CohereForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CohereForCausalLM(CohereConfig(vocab_size=32, **sizes))
    message = (
        r"ia3\.targets: PEFT has no choice of layers for cohere\n  expected: a list of .*q_proj.*\n  fix: name some"
    )
    with pytest.raises(UserError, match=message) as caught:
        tuning.adapt(model, IA3Config(), "ia3")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("change", "virtual"), [(lambda model: model, 0), (soft, 6)], ids=["full", "soft prompt"])
def test_pairs_longer_than_the_models_positions_are_refused(
    change: Callable[[Any], Any], virtual: int, decoder: Path, tmp_path: Path
) -> None:
    longest = max(len(tuning.encode(models.load_tokenizer(decoder), *pair)) for pair in PAIRS) + virtual

    def with_positions(number: int) -> Callable[[Any], Any]:
        def load(model: Any) -> Any:
            model.config.max_position_embeddings = number
            return change(model)

        return load

    train(decoder, tmp_path / "fits", with_positions(longest), steps=1)
    told = (
        f"max_tokens: the longest training pair has {longest} tokens(.|\n)*lower max_tokens to {longest - 1 - virtual}"
    )
    with pytest.raises(UserError, match=told):
        train(decoder, tmp_path / "long", with_positions(longest - 1), steps=1)


def test_one_of_several_processes_that_runs_out_of_memory_says_what_to_do(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tuning.Training.model_validate(CONFIG)
    tokenizer = models.load_tokenizer(decoder)
    data = tuning.prepare(cfg, tokenizer, PAIRS, [], "sft")
    two = runtime.Runtime("cpu", "float32", 1, processes=2)
    monkeypatch.setattr(tuning, "_attempt", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    for size, told in (
        (4, "2 pairs in(.|\n)*smaller batch_size with a larger accumulation"),
        (2, "1 pair in(.|\n)*fsdp"),
    ):
        given = cfg.model_copy(update={"batch_size": size})
        with pytest.raises(UserError, match=f"memory ran out with {told}") as caught:
            tuning.train(lambda: None, tokenizer, data, given, 5, runtime=two, work=tmp_path, log=Log())
        assert caught.value.exit_code == 1


def test_data_that_teaches_nothing_is_refused(decoder: Path) -> None:
    cfg = tuning.Training.model_validate(CONFIG)
    tokenizer = models.load_tokenizer(decoder)
    with pytest.raises(
        UserError, match="every completion of the 2 training pairs is empty: all labels would be masked"
    ):
        tuning.prepare(cfg, tokenizer, [("read", ""), ("write", "")], [], "lora")
    with pytest.raises(UserError, match="none of the 24 training pairs has at most 16 tokens"):
        tuning.prepare(cfg.model_copy(update={"max_tokens": 16}), tokenizer, [(f"{'w ' * 40}", "x y")] * 24, [], "lora")


def test_other_tasks_are_mixed_in_by_their_shares(decoder: Path) -> None:
    cfg = tuning.Training.model_validate(CONFIG | {"steps": 50})
    tokenizer = models.load_tokenizer(decoder)
    data = tuning.prepare(cfg, tokenizer, PAIRS, [], "sft")
    others = {"colours": [("name a colour", "red")] * 6, "long": [("x " * 500, "y")]}
    mixture = tuning.Mixture(tasks=("colours",), temperature=1.0, cap=100)
    mixed = tuning.mix(cfg, mixture, tokenizer, data, others, "sft")
    assert len(mixed.train) == 200  # 50 steps of 4
    colour = tuning.encode(tokenizer, "name a colour", "red")
    assert 0.12 < sum(row == colour for row in mixed.train) / 200 < 0.28  # 6 of 30 rows
    assert mixed.tasks == ("colours",)
    assert tuning.mix(cfg, mixture, tokenizer, data, others, "sft") == mixed
    assert tuning.mix(cfg, mixture.model_copy(update={"tasks": ()}), tokenizer, data, {}, "sft") is data
    for name, message in (("shapes", "no task 'shapes'"), ("long", "none of the 1 pairs of 'long' has at most 200")):
        with pytest.raises(UserError, match=message):
            tuning.mix(cfg, mixture.model_copy(update={"tasks": (name,)}), tokenizer, data, others, "sft")


def test_templates_that_do_not_fit_the_tokenizer_are_refused(decoder: Path) -> None:
    cfg = tuning.Training.model_validate(CONFIG)

    def with_template(template: str) -> Any:
        tokenizer = models.load_tokenizer(decoder)
        tokenizer.chat_template = template
        return tokenizer

    plain = tiny_model.CHAT_TEMPLATE
    for template, message in (
        (plain.replace("im_", "turn_"), r"writes <\|turn_start\|>, which the tokenizer reads as ordinary letters"),
        ("{{ bos_token }}" + plain, r"24 of 24 prompts begin with <\|im_start\|> twice"),
        (plain.replace("<|im_end|>", ""), r"ends an answer without <\|im_end\|>"),
    ):
        with pytest.raises(UserError, match=message):
            tuning.prepare(cfg, with_template(template), PAIRS, [], "lora")


def test_a_step_is_shared_evenly_or_not_at_all() -> None:
    assert tuning.micro_batches(8, 1, 1) == (8, 1)
    assert tuning.micro_batches(8, 1, 2) == (4, 1)
    assert tuning.micro_batches(8, 4, 2) == (8, 2)
    assert tuning.micro_batches(6, 1, 2) == (3, 1)
    with pytest.raises(UserError, match="a step of 9 pairs .* cannot be shared by 2 processes"):
        tuning.micro_batches(9, 1, 2)


def test_spread_is_even() -> None:
    rows = [tuning.Encoded([at], [0]) for at in range(10)]
    assert [row.prompt[0] for row in tuning.spread(rows, 4)] == [0, 2, 5, 7]
    assert tuning.spread(rows, 99) == rows
