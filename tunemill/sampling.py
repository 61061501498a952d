"""Generating text in batches: greedy, deterministic, without waste.

- Prompts are sorted by length and packed under a token budget, so there is little padding; the plan depends on the
  lengths alone, never on free memory. Where memory does run out, a batch is halved, and the caller is told.
- What all prompts begin with (a chat template's system message, the instruction) is computed once.
- Rows that have ended are dropped while the others go on.
- Where a text ends is found from the position of its first end token, never from padding: the two may be one token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill.runtime import out_of_memory

if TYPE_CHECKING:
    import torch

LEG = 8
"""Tokens generated before ended rows are dropped."""
PREFIX = 8
"""Shortest common beginning worth computing apart."""


class Generation(NamedTuple):
    """What came out for one prompt."""

    text: str
    """Decoded, special tokens left out."""
    tokens: int
    """Tokens generated, the end token included."""
    finished: bool
    """Whether the model ended by itself, within the limit."""


class Batch(NamedTuple):
    """What came out for one batch of the plan."""

    number: int
    """Which batch of the plan."""
    items: tuple[int, ...]
    """Which prompts, by index."""
    generations: tuple[Generation, ...]
    """One for each item."""
    halved: int
    """How often memory ran out and a part of the batch was cut in two; 0 in the ordinary case."""


def plan(lengths: Sequence[int], max_new_tokens: int, tokens: int, rows: int) -> list[tuple[int, ...]]:
    """Sort prompts into batches of similar length, the longest first (what does not fit in memory fails at once).

    Args:
        lengths: tokens of each prompt.
        max_new_tokens: most tokens to generate for each.
        tokens: most tokens of a batch, padding and generated ones included; a single longer prompt is a batch of its own.
        rows: most prompts in a batch.

    Returns:
        Indices of the prompts in each batch; every index once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        width = lengths[batches[-1][0]] + max_new_tokens if batches else 0
        if batches and len(batches[-1]) < rows and (len(batches[-1]) + 1) * width <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return [tuple(batch) for batch in batches]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batches: Sequence[tuple[int, ...]],
    first: int = 0,
) -> Iterator[Batch]:
    """Generate greedily for every batch of a plan, in its order.

    Args:
        model: a causal language model in evaluation mode (an adapter on one as well).
        tokenizer: with a padding token.
        prompts: token ids of each prompt, none empty; all of them, whatever `first` is.
        max_new_tokens: most tokens to generate for each.
        batches: from `plan`.
        first: how many batches were done before (a resumed run).
    """
    prefix = _shared_prefix(model, prompts)
    ends = end_tokens(model, tokenizer)
    for number, items in enumerate(batches[first:], start=first):
        ids, halved = _halving(model, tokenizer, [prompts[item] for item in items], prefix, ends, max_new_tokens)
        found = []
        for row in ids:
            length, finished = until_end(row, ends)
            found.append(Generation(tokenizer.decode(row[:length], skip_special_tokens=True), length, finished))
        yield Batch(number, items, tuple(found), halved)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text: the tokenizer's, and those the checkpoint's generation settings name."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    named = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*named, tokenizer.eos_token_id) if token is not None)


def until_end(ids: Sequence[int], ends: frozenset[int]) -> tuple[int, bool]:
    """(tokens up to and including the first end token, whether there is one)."""
    for position, token in enumerate(ids):
        if token in ends:
            return position + 1, True
    return len(ids), False


class _Prefix(NamedTuple):
    """The common beginning of all prompts and its keys and values, computed once."""

    length: int
    cache: Any
    """One row; None where there is no common beginning worth it."""


def _shared_prefix(model: Any, prompts: Sequence[Sequence[int]]) -> _Prefix:
    import torch

    # At least one token of each prompt stays, since its logits are what generation starts from.
    length = min(
        len(os.path.commonprefix([list(prompt) for prompt in prompts])), *(len(each) - 1 for each in prompts), 1 << 30
    )
    if len(prompts) < 2 or length < PREFIX or not _plain_cache(model):
        return _Prefix(0, None)
    ids = torch.tensor([list(prompts[0][:length])], device=model.device)  # (1, length)
    with torch.inference_mode():
        return _Prefix(length, model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)


def _plain_cache(model: Any) -> bool:
    """Whether the model keeps all keys and values, so that rows can be taken out and beginnings shared."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def _halving(
    model: Any, tokenizer: Any, prompts: list[Sequence[int]], prefix: _Prefix, ends: frozenset[int], max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """Generate for one batch, in halves where memory runs out. Returns (ids of each row, times it was halved)."""
    import torch

    try:
        return _greedy(model, tokenizer, prompts, prefix, ends, max_new_tokens), 0
    except (MemoryError, RuntimeError) as error:
        if len(prompts) == 1 or not out_of_memory(error):
            raise
    # Outside the handler: the error's traceback holds the tensors that did not fit.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(prompts) + 1) // 2
    left, before = _halving(model, tokenizer, prompts[:middle], prefix, ends, max_new_tokens)
    right, after = _halving(model, tokenizer, prompts[middle:], prefix, ends, max_new_tokens)
    return left + right, 1 + before + after


def _greedy(
    model: Any, tokenizer: Any, prompts: list[Sequence[int]], prefix: _Prefix, ends: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    """The generated ids of each row; after a row's end token may stand anything."""
    import torch
    from transformers import GenerationConfig

    ids, mask = padded(prompts, tokenizer.pad_token_id, prefix.length, model.device)
    cache = _repeat(prefix.cache, len(prompts)) if prefix.cache is not None else None
    leg = LEG if _plain_cache(model) else max_new_tokens
    rows = list(range(len(prompts)))
    written: list[list[int]] = [[] for _ in prompts]
    for done in range(0, max_new_tokens, leg):
        config = GenerationConfig(
            max_new_tokens=min(leg, max_new_tokens - done),
            use_cache=True,
            return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(ends),
            # Said outright, since what is left open comes from the checkpoint and would differ between candidates.
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
        )
        with torch.inference_mode():
            found = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config)
        new = found.sequences[:, ids.shape[1] :]  # (rows left, up to leg)
        for row, tokens in zip(rows, new.tolist(), strict=True):
            written[row] += tokens
        left = [at for at, row in enumerate(rows) if not until_end(written[row], ends)[1]]
        if not left:
            break
        keep = torch.tensor(left, device=model.device)
        ids, cache = found.sequences[keep], found.past_key_values
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)[keep]
        if len(left) < len(rows):
            cache.batch_select_indices(keep)
        rows = [rows[at] for at in left]
    return written


def padded(prompts: Sequence[Sequence[int]], pad: int, prefix: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as one tensor, aligned at their ends; padding follows the common beginning.

    Args:
        prompts: token ids.
        pad: what to pad with.
        prefix: tokens that all of them begin with, whose keys and values are known.
        device: where to put them.

    Returns:
        ids and mask (1 is a token, 0 padding), both (B, T). Positions count tokens, so padding shifts none.
    """
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        rest = len(prompt) - prefix
        ids[row, :prefix] = torch.tensor(prompt[:prefix])
        ids[row, width - rest :] = torch.tensor(prompt[prefix:])
        mask[row, :prefix] = mask[row, width - rest :] = 1
    return ids.to(device), mask.to(device)


def _repeat(cache: Any, rows: int) -> Any:
    import copy

    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(rows)
    return repeated
