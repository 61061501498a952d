"""Losses: what transformers computes over all positions, from the completions' window alone, for both families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunemill import losses, models, runtime
from tunemill.losses import Encoded

CPU = runtime.Runtime("cpu", "float32", 2)


def pairs(folder: Path, count: int) -> list[Encoded]:
    tokenizer = models.load_tokenizer(folder)
    return [
        Encoded(
            models.render_prompt(tokenizer, "read the " + "value " * (at % 7 + 1)),
            models.render_completion(tokenizer, "write the table " + "row " * (at % 3)),
        )
        for at in range(count)
    ]


def batch(model: Any, folder: Path, rows: list[Encoded]) -> dict[str, Any]:
    return losses.collate(rows, models.load_tokenizer(folder).pad_token_id, losses.start_token(model))


def test_loss_equals_transformers_own(either: Path) -> None:
    import torch

    model = models.load_base(either, CPU)
    rows = pairs(either, 5)
    inputs = batch(model, either, rows)
    with torch.no_grad():
        # The oracle shifts and averages by itself, over logits of every position, with the mask written out.
        given = {"input_ids": inputs["input_ids"], "labels": inputs["labels"]}
        if model.config.is_encoder_decoder:
            given["attention_mask"] = inputs["attention_mask"]
        else:
            width = inputs["input_ids"].shape[1]
            given["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        assert torch.allclose(losses.completion_loss(model, inputs), model(**given).loss, atol=1e-5)


def test_a_padded_batch_gives_what_its_rows_give_alone(either: Path) -> None:
    import torch

    model = models.load_base(either, CPU)
    rows = pairs(either, 7)
    with torch.no_grad():
        together = losses.completion_logprobs(model, batch(model, either, rows))
        alone = torch.cat([losses.completion_logprobs(model, batch(model, either, [row])) for row in rows])
        loss = losses.completion_loss(model, batch(model, either, rows), items=1)
    assert torch.allclose(together, alone, rtol=1e-5)
    assert torch.allclose(-together.sum(), loss, rtol=1e-5)


def test_no_logits_outside_the_completions_window(decoder: Path) -> None:
    model = models.load_base(decoder, CPU)
    rows = sorted(pairs(decoder, 6), key=len)[2:4]
    inputs = batch(model, decoder, rows)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0].shape[1]))
    losses.completion_loss(model, inputs)
    assert seen == [max(map(len, rows)) - min(len(row.prompt) for row in rows)]
    assert seen[0] < inputs["input_ids"].shape[1] / 2


def test_a_soft_prompt_shifts_the_window_and_not_the_loss(either: Path) -> None:
    import torch
    from peft import PromptTuningConfig, get_peft_model

    model = models.load_base(either, CPU)
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    torch.manual_seed(0)
    policy = get_peft_model(
        model, PromptTuningConfig(task_type=task, num_virtual_tokens=5, num_transformer_submodules=1)
    )
    rows = pairs(either, 4)
    soft = models.soft_prompt(policy)
    assert soft is not None
    assert soft.shape == (5, model.config.hidden_size)
    assert losses.virtual_tokens(policy) == 5
    with torch.no_grad():
        found = losses.completion_logprobs(policy, batch(model, either, rows), virtual_tokens=5)
        # The oracle: the soft prompt's embeddings and one row's by hand, without padding.
        for row, value in zip(rows, found, strict=True):
            embed = model.get_input_embeddings()
            tokens = row.prompt if model.config.is_encoder_decoder else row.prompt + row.completion
            embedded = torch.cat([soft, embed(torch.tensor(tokens))])[None]
            if model.config.is_encoder_decoder:
                logits = model(inputs_embeds=embedded, labels=torch.tensor([row.completion])).logits[0]
            else:
                logits = model(inputs_embeds=embedded).logits[0, -len(row.completion) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(row.completion)[:, None])
            assert torch.allclose(chosen.sum(), value, rtol=1e-5)
    assert losses.virtual_tokens(model) == 0
    assert models.soft_prompt(model) is None
