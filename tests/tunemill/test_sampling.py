"""What a batch generates is what each prompt would generate alone, however it was padded, shared, dropped or halved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import models, sampling
from tunemill.runtime import Runtime
from tunemill.sampling import Batch, Generation

LIMIT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.build(path)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> tuple[Any, Any]:
    model, tokenizer = models.load_policy(folder, folder, Runtime("cpu", "float32", 2))
    # Random weights hardly ever end a text: let frequent tokens end it, so that rows end at different times.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 420)]
    return model, tokenizer


@pytest.fixture(scope="module")
def prompts(policy: tuple[Any, Any]) -> list[list[int]]:
    lines = tiny_model.corpus(1)
    texts = [" ".join(lines[index : index + 1 + index % 4]) for index in range(17)]
    return [models.render_prompt(policy[1], f"Summarize in one line:\n\n{text}") for text in texts]


@pytest.fixture(scope="module")
def alone(policy: tuple[Any, Any], prompts: list[list[int]]) -> list[Generation]:
    """The oracle: transformers' own greedy search, one prompt at a time, no padding."""
    import torch

    model, tokenizer = policy
    found = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False)[0, len(prompt) :].tolist()
        ends = [index for index, token in enumerate(ids) if token in model.generation_config.eos_token_id]
        kept = ids[: ends[0] + 1] if ends else ids
        found.append(Generation(tokenizer.decode(kept, skip_special_tokens=True), len(kept), bool(ends)))
    return found


def answers(
    policy: tuple[Any, Any], prompts: list[list[int]], tokens: int = 10_000, rows: int = 8, **more: Any
) -> list[Generation]:
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, tokens, rows)
    found = {}
    for batch in sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, **more):
        found.update(zip(batch.items, batch.generations, strict=True))
    return [found[index] for index in sorted(found)]


def test_the_oracle_ends_some_texts_and_not_others(alone: list[Generation]) -> None:
    assert {each.finished for each in alone} == {True, False}
    assert len({each.tokens for each in alone}) > 4


@pytest.mark.parametrize(("tokens", "rows"), [(10_000, 32), (10_000, 5), (300, 32), (1, 1)])
def test_a_batch_gives_what_single_prompts_give(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation], tokens: int, rows: int
) -> None:
    assert answers(policy, prompts, tokens, rows) == alone


@pytest.mark.parametrize("leg", [1, 3, LIMIT, 100])
def test_dropping_ended_rows_changes_nothing(
    policy: tuple[Any, Any],
    prompts: list[list[int]],
    alone: list[Generation],
    leg: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "LEG", leg)
    assert answers(policy, prompts) == alone


@pytest.mark.parametrize("shortest", [1, 10_000])
def test_sharing_the_beginning_changes_nothing(
    policy: tuple[Any, Any],
    prompts: list[list[int]],
    alone: list[Generation],
    shortest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "PREFIX", shortest)
    assert sampling._shared_prefix(policy[0], prompts).length == (0 if shortest == 10_000 else 14)
    assert answers(policy, prompts) == alone


def test_prompts_that_are_equal_or_begin_one_another(policy: tuple[Any, Any], prompts: list[list[int]]) -> None:
    nested = [prompts[3], prompts[3], prompts[3][:-4], prompts[3][:12]]
    found = answers(policy, nested)
    assert found[0] == found[1]
    assert found == [answers(policy, [prompt])[0] for prompt in nested]


def test_an_adapter_generates_in_batches_too(
    folder: Path, tmp_path: Path, prompts: list[list[int]], alone: list[Generation]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    runtime = Runtime("cpu", "float32", 2)
    torch.manual_seed(0)
    tuned = get_peft_model(
        models.load_base(folder, runtime),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    policy = models.load_policy(tmp_path / "adapter", folder, runtime)
    found = answers(policy, prompts[:6])
    assert found == [answers(policy, [prompt])[0] for prompt in prompts[:6]]
    assert [each.text for each in found] != [each.text for each in alone[:6]]


def test_a_checkpoints_own_settings_do_not_count(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "repetition_penalty": 9.0,
        "num_beams": 2,
    }.items():
        monkeypatch.setattr(policy[0].generation_config, name, value)
    assert answers(policy, prompts) == alone


def test_padding_with_the_end_token_ends_no_text(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation]
) -> None:
    model, tokenizer = policy[0], copy.deepcopy(policy[1])
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert answers((model, tokenizer), prompts) == alone


def test_where_a_text_ends() -> None:
    ends = frozenset({2})
    assert sampling.until_end([5, 6, 2, 2, 2], ends) == (3, True)  # padded with the end token: the first one counts
    assert sampling.until_end([2, 7], ends) == (1, True)
    assert sampling.until_end([5, 0, 6], ends) == (3, False)
    assert sampling.until_end([], ends) == (0, False)


def test_a_text_that_ends_at_once_is_empty(
    policy: tuple[Any, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy[0].generation_config, "eos_token_id", list(range(3, 1536)))
    found = answers(policy, prompts)
    assert {(each.tokens, each.finished) for each in found} == {(1, True)}


def test_the_plan_sorts_packs_and_keeps_everyone() -> None:
    lengths = [10, 50, 20, 50, 5, 30]
    assert sampling.plan(lengths, 10, 10_000, 3) == [(1, 3, 5), (2, 0, 4)]
    assert sampling.plan(lengths, 10, 120, 3) == [(1, 3), (5, 2, 0), (4,)]
    assert sampling.plan(lengths, 10, 1, 3) == [(1,), (3,), (5,), (2,), (0,), (4,)]  # too long for the budget: alone
    assert sampling.plan([], 10, 100, 3) == []
    for tokens in (60, 100, 130, 200):
        plan = sampling.plan(lengths, 10, tokens, 4)
        assert sorted(index for batch in plan for index in batch) == list(range(6))
        assert all(len(batch) == 1 or (max(lengths[i] for i in batch) + 10) * len(batch) <= tokens for batch in plan)


def test_padding_stands_behind_the_common_beginning() -> None:
    ids, mask = sampling.padded([[1, 2, 3, 4, 5], [1, 2, 6]], 0, 2, "cpu")
    assert ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 0, 0, 6]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]
    ids, mask = sampling.padded([[1, 2, 3], [7]], 0, 0, "cpu")
    assert ids.tolist() == [[1, 2, 3], [0, 0, 7]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_where_memory_runs_out_the_batch_is_halved_and_that_is_told(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = sampling._greedy, []

    def small(model: Any, tokenizer: Any, batch: list[Any], *rest: Any) -> Any:
        asked.append(len(batch))
        if len(batch) > 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …"
            )
        return whole(model, tokenizer, batch, *rest)

    monkeypatch.setattr(sampling, "_greedy", small)
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, 10_000, 9)
    found: list[Batch] = list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan))
    assert asked == [9, 5, 3, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2]
    assert [batch.halved for batch in found] == [3, 3]
    flat = {item: each for batch in found for item, each in zip(batch.items, batch.generations, strict=True)}
    assert [flat[index] for index in range(len(prompts))] == alone


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), RuntimeError("out of memory")])
def test_other_errors_and_a_single_prompt_that_does_not_fit_are_raised(
    policy: tuple[Any, Any], prompts: list[list[int]], error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(sampling, "_greedy", fail)
    batch = prompts[:4] if "shapes" in str(error) else prompts[:1]
    with pytest.raises(RuntimeError, match=str(error)):
        answers(policy, batch)


def test_a_resumed_run_gives_the_remaining_batches(policy: tuple[Any, Any], prompts: list[list[int]]) -> None:
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, 10_000, 5)
    everything = list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan))
    assert [batch.number for batch in everything] == [0, 1, 2, 3]
    assert list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, first=2)) == everything[2:]
    assert list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, first=4)) == []
