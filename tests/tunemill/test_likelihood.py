"""Likelihoods: what plain transformers gives one pair at a time, for both families and soft prompts, from fewer tokens."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tests.tunemill.conftest import Kills
from tunemill import journal, likelihood, models, packing, runtime
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
    return Likelihood(float(chosen.sum()), len(answer), logits.argmax(-1).tolist() == answer)


def passes(model: Any) -> list[tuple[int, int]]:
    """Rows and width of every pass of a model (of its decoder) from now on."""
    seen: list[tuple[int, int]] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        seen.append(tuple(given["decoder_input_ids" if "decoder_input_ids" in given else "input_ids"].shape))

    # Below the head: what is only remembered is read without one.
    body = model if model.config.is_encoder_decoder else model.base_model
    body.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_equals_one_pair_at_a_time(either: Path, rows: int) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    found = likelihood.score(model, tokenizer, PAIRS, batch_tokens=10_000, batch_rows=rows)
    for each, (prompt, completion) in zip(found, PAIRS, strict=True):
        oracle = by_hand(model, tokenizer, prompt, completion)
        assert (each.tokens, each.greedy) == (oracle.tokens, oracle.greedy)
        assert each.logprob == pytest.approx(oracle.logprob, rel=1e-5)


def test_what_differs_in_the_last_token_alone_is_computed_once(either: Path) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    seen = passes(model)
    letters = [("which one is it", letter) for letter in "ABCD"]
    assert all(len(likelihood.encode(tokenizer, *each).completion) == 1 for each in letters)
    found = likelihood.score(model, tokenizer, letters, batch_tokens=10_000, batch_rows=8)
    assert [rows for rows, _ in seen] == [1]
    for each, pair in zip(found, letters, strict=True):
        assert each.logprob == pytest.approx(by_hand(model, tokenizer, *pair).logprob, rel=1e-5)
    assert len({each.logprob for each in found}) == 4


def test_batches_keep_to_their_budget(either: Path) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    seen = passes(model)
    pairs = [("read the value " * (at % 9 + 1), "of item " * (at % 3 + 1) + "now") for at in range(30)]
    likelihood.score(model, tokenizer, pairs, batch_tokens=400, batch_rows=6)
    assert all(rows * width <= 400 for rows, width in seen)
    assert any(rows > 1 for rows, _ in seen)


def test_a_question_is_read_once_for_all_its_choices(decoder: Path) -> None:
    model, tokenizer = models.load_base(decoder, CPU), models.load_tokenizer(decoder)
    choices = ["a new list", "the old list of items", "none", "nothing at all", "a new tuple"]
    pairs = [("return " * 20 + word, each) for word in ("now", "then") for each in choices]
    encoded = [likelihood.encode(tokenizer, *pair) for pair in pairs]
    rests = {(tuple(each.prompt), tuple(each.completion[:-1])) for each in encoded}
    whole = sum(len(question) for question in {tuple(each.prompt) for each in encoded})
    seen = passes(model)
    found = likelihood.score(model, tokenizer, pairs, batch_tokens=10_000, batch_rows=1)
    assert sum(rows * width for rows, width in seen) == whole + sum(len(rest) for _, rest in rests)
    # No room for all choices in one row: they are spread over several, and the numbers stay.
    apart = likelihood.score(model, tokenizer, pairs, batch_tokens=len(encoded[0].prompt) + 4, batch_rows=1)
    assert len(seen) > 4
    for each, other, pair in zip(found, apart, pairs, strict=True):
        oracle = by_hand(model, tokenizer, *pair)
        assert each.logprob == pytest.approx(oracle.logprob, abs=1e-4)
        assert other.logprob == pytest.approx(oracle.logprob, abs=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_questions_begin_with_is_read_once_for_each_task(decoder: Path, attention: str) -> None:
    model, tokenizer = models.load_base(decoder, CPU), models.load_tokenizer(decoder)
    model.set_attn_implementation(attention)
    examples = {"lists": "the list is empty yes " * 30, "files": "open the file and read " * 30}
    pairs = [
        (f"{text} is item {number} there", choice)
        for text in examples.values()
        for number in range(4)
        for choice in ("it is", "it is not there", "no")
    ]
    alone = [by_hand(model, tokenizer, *pair) for pair in pairs]
    seen = passes(model)
    found = likelihood.score(model, tokenizer, pairs, batch_tokens=10_000, batch_rows=100)
    assert len(seen) == 4  # of each task what is shared, and one batch
    assert [rows for rows, _ in seen] == [1, 4, 1, 4]
    assert seen[1][1] < 30 < 100 < seen[0][1]
    for each, oracle in zip(found, alone, strict=True):
        assert each.logprob == pytest.approx(oracle.logprob, abs=1e-4) and each.greedy == oracle.greedy
    # Whatever is asked beside it, a pair has its number.
    for pair, each in list(zip(pairs, found, strict=True))[::17]:
        (again,) = likelihood.score(model, tokenizer, [pair], batch_tokens=10_000, batch_rows=100)
        assert again.logprob == pytest.approx(each.logprob, abs=1e-4)


def test_a_model_that_forgets_is_given_every_pair_apart(decoder: Path) -> None:
    tokenizer = models.load_tokenizer(decoder)
    model = tiny_model.forgetful(len(tokenizer))
    pairs = [("return " * 40 + word, each) for word in ("now", "then") for each in ("a new list", "an item", "yes")]
    found = likelihood.score(model, tokenizer, pairs, batch_tokens=10_000, batch_rows=4)
    for each, pair in zip(found, pairs, strict=True):
        assert each.logprob == pytest.approx(by_hand(model, tokenizer, *pair).logprob, abs=1e-4)


def test_greedy_is_what_greedy_decoding_gives(either: Path) -> None:
    import torch

    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    prompt = models.render_prompt(tokenizer, "read the value of the table")
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    likeliest = ids[0, -5:].tolist()
    other = [*likeliest[:4], likeliest[4] + 1 if likeliest[4] < 100 else likeliest[4] - 1]
    found = likelihood.score_tokens(
        model,
        [(prompt, likeliest), (prompt, other), (prompt, likeliest[:2]), (prompt, other[3:])],
        pad=tokenizer.pad_token_id,
        batch_tokens=1000,
        batch_rows=4,
    )
    assert [each.greedy for each in found[:3]] == [True, False, True] and found[0].tokens == 5


def test_a_killed_scoring_goes_on_and_gives_the_same_bits(either: Path, tmp_path: Path, killed_after: Kills) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    pairs = [("read the value " * (at % 9 + 1), "of item " * (at % 3 + 1)) for at in range(20)] + PAIRS
    asked = {"batch_tokens": 400, "batch_rows": 3}
    whole = likelihood.score(model, tokenizer, pairs, **asked)
    kept = tmp_path / "work" / "scores.jsonl"
    killed_after(3)
    with pytest.raises(KeyboardInterrupt):
        likelihood.score(model, tokenizer, pairs, **asked, kept=kept)
    seen = passes(model)
    assert likelihood.score(model, tokenizer, pairs, **asked, kept=kept) == whole
    left = len(seen)
    assert left > 0
    # All of it is there now: nothing is computed, whatever the order, the batches and what stands beside it.
    assert likelihood.score(model, tokenizer, pairs[::-1], batch_tokens=90, batch_rows=1, kept=kept) == whole[::-1]
    assert len(seen) == left
    likelihood.score(model, tokenizer, [*pairs, ("is the list empty", "perhaps it is")], **asked, kept=kept)
    assert len(seen) > left
    names = [name for entry in journal.recover(kept) for name in entry["scores"]]
    assert len(names) == len(set(names)) == len(set(pairs)) + 1


def test_what_is_not_finite_is_kept_as_it_is(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, tokenizer = models.load_base(decoder, CPU), models.load_tokenizer(decoder)
    model.lm_head.register_forward_hook(lambda _, __, logits: torch.full_like(logits, torch.nan))
    asked: Any = {"batch_tokens": 400, "batch_rows": 3, "kept": tmp_path / "scores.jsonl"}
    for _ in range(2):
        found = likelihood.score(model, tokenizer, PAIRS[:1], **asked)
        assert found[0].logprob != found[0].logprob and not found[0].greedy


def cheapest(texts: Sequence[Sequence[int]], length: int = 0) -> int:
    """Most tokens that sharing can save: every node of the tree of beginnings is taken, or its children are."""
    length = len(os.path.commonprefix([list(each) for each in texts]))
    usable = min(length, *(len(each) - 1 for each in texts))
    whole = max(0, (len(texts) - 1) * usable - packing.PASS)
    parts: dict[Any, list[Sequence[int]]] = {}
    for each in texts:
        parts.setdefault(each[length] if len(each) > length else None, []).append(each)
    return max(whole, sum(cheapest(part) for part in parts.values() if len(part) > 1))


@pytest.mark.parametrize("seed", range(8))
def test_texts_are_grouped_so_that_most_is_saved(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(packing, "PASS", rng.choice([0, 5, 40]))
    stems = [[rng.randrange(3) for _ in range(rng.randrange(1, 30))] for _ in range(5)]
    stems += [stem + [rng.randrange(3) for _ in range(9)] for stem in stems]
    texts = sorted({(*rng.choice(stems), *(rng.randrange(3) for _ in range(rng.randrange(1, 8)))) for _ in range(40)})
    rng.shuffle(texts)
    groups = likelihood.alike(texts)
    assert sorted(item for each in groups for item in each.items) == list(range(len(texts)))
    saved = 0
    for each in groups:
        first = texts[each.items[0]][: each.length]
        assert all(texts[item][: each.length] == first and len(texts[item]) > each.length for item in each.items)
        saved += (len(each.items) - 1) * each.length - (packing.PASS if each.length else 0)
    assert saved == cheapest(texts)


def test_texts_that_go_on_one_from_another_are_no_trouble() -> None:
    texts = [[1] * (length + 1) for length in range(3000)]
    groups = likelihood.alike(texts)
    assert sum(len(each.items) for each in groups) == 3000 and len(groups) > 1


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
    assert likelihood.best([-2.0, -1.0, -2.0]) == 1
    assert likelihood.best([-2.0, -2.0]) == 0


def test_nothing_to_score(either: Path) -> None:
    model, tokenizer = models.load_base(either, CPU), models.load_tokenizer(either)
    assert likelihood.score(model, tokenizer, [], batch_tokens=10, batch_rows=1) == []
    with pytest.raises(ValueError, match="has no token"):
        likelihood.score(model, tokenizer, [("why", "")], batch_tokens=10, batch_rows=1)
