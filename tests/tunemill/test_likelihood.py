"""Likelihoods: what plain transformers gives one pair at a time, for both families and soft prompts, from fewer rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunemill import likelihood, models, runtime
from tunemill.likelihood import Likelihood

CPU = runtime.Runtime("cpu", "float32", 2)
PAIRS = [
    ("read the value of the table", "write the row"),
    ("is the list empty", "yes"),
    ("is the list empty", "no"),
    ("is the list empty", "it is not"),
    ("return " * 30, "a new list of the same length as the old one"),
    ("is the file open", "yes"),
    ("is the file open", "no"),
]


def by_hand(model: Any, tokenizer: Any, prompt: str, completion: str) -> Likelihood:
    """One pair without padding, windows or sharing: logits of every position."""
    import torch

    question = models.render_prompt(tokenizer, prompt)
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([question]), labels=torch.tensor([answer])).logits[0]
        else:
            logits = model(input_ids=torch.tensor([question + answer])).logits[0, len(question) - 1 : -1]
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
    return Likelihood(float(chosen.sum()), len(answer))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_equals_one_pair_at_a_time(either: Path, rows: int) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    found = likelihood.score(model, tokenizer, PAIRS, batch_tokens=10_000, batch_rows=rows)
    for each, (prompt, completion) in zip(found, PAIRS, strict=True):
        oracle = by_hand(model, tokenizer, prompt, completion)
        assert each.tokens == oracle.tokens
        assert each.logprob == pytest.approx(oracle.logprob, rel=1e-5)


def test_what_differs_in_the_last_token_alone_is_computed_once(either: Path) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True)
    letters = [("which one is it", letter) for letter in "ABCD"]
    assert all(len(likelihood.encode(tokenizer, *each).completion) == 1 for each in letters)
    found = likelihood.score(model, tokenizer, letters, batch_tokens=10_000, batch_rows=8)
    assert seen == [1]
    for each, pair in zip(found, letters, strict=True):
        assert each.logprob == pytest.approx(by_hand(model, tokenizer, *pair).logprob, rel=1e-5)
    assert len({each.logprob for each in found}) == 4


def test_batches_keep_to_their_budget(decoder: Path) -> None:
    model, tokenizer = models.load_base(decoder, CPU), models.load_tokenizer(decoder)
    seen: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True)
    pairs = [("read the value " * (at % 9 + 1), "of item " * (at % 3 + 1)) for at in range(30)]
    likelihood.score(model, tokenizer, pairs, batch_tokens=400, batch_rows=6)
    assert all(rows * width <= 400 and rows <= 6 for rows, width in seen)
    assert any(rows > 1 for rows, _ in seen)


def test_a_soft_prompt_stands_before_every_pair(either: Path) -> None:
    import torch
    from peft import PromptTuningConfig, get_peft_model

    base, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    plain = likelihood.score(base, tokenizer, PAIRS, batch_tokens=10_000, batch_rows=3)
    task = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    torch.manual_seed(0)
    policy = get_peft_model(
        base, PromptTuningConfig(task_type=task, num_virtual_tokens=5, num_transformer_submodules=1)
    ).eval()
    found = likelihood.score(policy, tokenizer, PAIRS, batch_tokens=10_000, batch_rows=3)
    soft, embed = models.soft_prompt(policy), base.get_input_embeddings()
    assert soft is not None
    for each, (prompt, completion), without in zip(found, PAIRS, plain, strict=True):
        encoded = likelihood.encode(tokenizer, prompt, completion)
        tokens = encoded.prompt if base.config.is_encoder_decoder else encoded.prompt + encoded.completion
        with torch.no_grad():
            embedded = torch.cat([soft, embed(torch.tensor(tokens))])[None]
            if base.config.is_encoder_decoder:
                logits = base(inputs_embeds=embedded, labels=torch.tensor([encoded.completion])).logits[0]
            else:
                logits = base(inputs_embeds=embedded).logits[0, -len(encoded.completion) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(encoded.completion)[:, None])
        assert each.logprob == pytest.approx(float(chosen.sum()), rel=1e-5)
        assert each.logprob != without.logprob


def test_the_best_choice_is_the_likeliest_token_by_token() -> None:
    assert likelihood.best([Likelihood(-2.0, 1), Likelihood(-3.0, 3), Likelihood(-4.0, 2)]) == 1
    assert likelihood.best([Likelihood(-2.0, 1), Likelihood(-4.0, 2)]) == 0


def test_nothing_to_score(decoder: Path) -> None:
    model, tokenizer = models.load_base(decoder, CPU), models.load_tokenizer(decoder)
    assert likelihood.score(model, tokenizer, [], batch_tokens=10, batch_rows=1) == []
    with pytest.raises(ValueError, match="has no token"):
        likelihood.score(model, tokenizer, [("why", "")], batch_tokens=10, batch_rows=1)
