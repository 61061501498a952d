"""Generating text in batches: greedy or sampled, deterministic, without waste; decoder-only and encoder-decoder.

- Prompts are sorted by length and packed under a token budget, so there is little padding; the plan depends on the
  lengths alone, never on free memory. Where memory does run out, a batch is halved, and the caller is told.
- What all prompts begin with (a soft prompt, a chat template's system message, worked examples) is computed once.
- A prompt that stands there several times (several samples of it) is read once in each batch.
- An encoder reads each prompt once.
- Rows that have ended are dropped while the others go on.
- Where a text ends is found from the position of its first end token, never from padding: the two may be one token.
- A text ends where the logits are no numbers, as those of a model whose training diverged: there is nothing that it says.
- Sampling draws one number for each token from a stream that belongs to (seed, prompt): what comes out depends neither on
  the batch a prompt is in nor on where a run was resumed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill import journal, losses, models, packing
from tunemill.log import Log
from tunemill.runtime import out_of_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

LEG = 8
"""Tokens generated before ended rows are dropped."""
NUCLEUS = 1e-4
"""Tokens at least as likely are looked at first for those that together have probability p."""
PREFIX = 8
"""Shortest common beginning worth computing apart."""
READ = 4096
"""Most tokens of prompts that are read at once: more are no faster, and take memory."""


class Decoding(NamedTuple):
    """How tokens are chosen."""

    max_new_tokens: int
    """Most tokens of an answer."""
    temperature: float = 0.0
    """Logits are divided by it; 0 takes the likeliest token every time (greedy)."""
    top_k: int = 0
    """Only the k likeliest tokens may be drawn; 0 is off."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020); 1 is off."""


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
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    until: Sequence[str] = (),
    batches: Sequence[tuple[int, ...]],
    first: int = 0,
    seed: int = 0,
) -> Iterator[Batch]:
    """Generate for every batch of a plan, in its order: greedily, unless a temperature is given.

    Args:
        model: a language model of either family in evaluation mode; an adapter on one, a soft prompt's too.
        tokenizer: with a padding token.
        prompts: token ids of each prompt, none empty; all of them, whatever `first` is.
        max_new_tokens: most tokens to generate for each.
        temperature: see `Decoding`; `**decoding._asdict()` gives all four.
        top_k: see `Decoding`.
        top_p: see `Decoding`.
        until: texts that end an answer too; it is cut before the first of them.
        batches: from `plan`.
        first: how many batches were done before (a resumed run).
        seed: of what is drawn.

    Raises:
        ValueError: the model's adapter is a kind of prompt other than prompt tuning's.
    """
    for number, items, rows, halved in _written(
        model,
        tokenizer,
        prompts,
        Decoding(max_new_tokens, temperature, top_k, top_p),
        tuple(until),
        batches,
        first,
        [seed],
    ):
        found = []
        for ids, finished in rows:
            text = tokenizer.decode(ids, skip_special_tokens=True)
            cut = _before(text, until)
            found.append(Generation(cut, len(ids), finished or cut != text))
        yield Batch(number, items, tuple(found), halved)


def rollouts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    decoding: Decoding,
    batches: Sequence[tuple[int, ...]],
    seed: Sequence[int],
) -> Iterator[tuple[int, list[int], bool]]:
    """Sample from a policy that is being trained, as token ids: what is learnt from is exactly what was drawn.

    Args:
        model: see `generate`.
        tokenizer: see `generate`.
        prompts: see `generate`.
        decoding: how tokens are chosen.
        batches: from `plan`.
        seed: of what is drawn, beside the prompt's place.

    Yields:
        Which prompt; the ids up to and including the first that ends the text; whether there is such a one.
    """
    for _, items, rows, _ in _written(model, tokenizer, prompts, decoding, (), batches, 0, seed):
        for item, (ids, finished) in zip(items, rows, strict=True):
            yield item, ids, finished


def _written(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    until: tuple[str, ...],
    batches: Sequence[tuple[int, ...]],
    first: int,
    seed: Sequence[int],
) -> Iterator[tuple[int, tuple[int, ...], list[tuple[list[int], bool]], int]]:
    """For each batch its number, its items, each item's ids and whether they end the text, and how often it was halved."""
    import numpy as np

    model, soft = bare(model)
    prefix = _shared_prefix(model, soft, prompts)
    ends = end_tokens(model, tokenizer)
    for number, items in enumerate(batches[first:], start=first):
        draws = [np.random.default_rng([*seed, item]).random(decoding.max_new_tokens) for item in items]
        job = _Job([prompts[item] for item in items], draws, until)
        written, halved = _halving(model, tokenizer, job, prefix, ends, decoding)
        found = []
        for ids in written:
            length, finished = until_end(ids, ends)
            found.append((ids[:length], finished))
        yield number, items, found, halved


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    decoding: Decoding,
    until: Sequence[str] = (),
    batches: Sequence[tuple[int, ...]],
    seed: int,
    kept: Path,
    title: str,
    log: Log,
) -> tuple[list[Generation], int]:
    """Generate for a whole plan, going on where the journal `kept` ends.

    Args:
        model: see `generate`.
        tokenizer: see `generate`.
        prompts: see `generate`.
        decoding: how tokens are chosen.
        until: see `generate`.
        batches: from `plan`.
        seed: of what is drawn.
        kept: the journal, one line for each batch.
        title: what is being done, for the log.
        log: told of every batch.

    Returns:
        One answer for each prompt, and how often memory ran out and a batch was halved.

    Raises:
        RuntimeError: the journal is one of another plan.
    """
    done: list[Batch] = []
    for number, entry in enumerate(journal.recover(kept)):
        found = tuple(Generation(*each) for each in entry["generations"])
        done.append(Batch(entry["number"], tuple(entry["items"]), found, entry["halved"]))
        if number >= len(batches) or done[-1].number != number or done[-1].items != batches[number]:
            raise RuntimeError(f"{kept} belongs to another plan; delete it")
    total = sum(len(each.items) for each in done)
    if prompts:
        log.start(title, len(prompts), "prompt", first=total)
    if len(done) < len(batches):
        for batch in generate(
            model,
            tokenizer,
            prompts,
            **decoding._asdict(),
            until=until,
            batches=batches,
            first=len(done),
            seed=seed,
        ):
            journal.append(kept, batch._asdict())
            done.append(batch)
            total += len(batch.items)
            log(total)
    by_item = {item: answered for each in done for item, answered in zip(each.items, each.generations, strict=True)}
    return [by_item[index] for index in range(len(prompts))], sum(each.halved for each in done)


def bare(model: Any) -> tuple[Any, torch.Tensor | None]:
    """The model to run, and the soft prompt (V, H) that stands before its input; None without one.

    Raises:
        ValueError: the model's adapter is a kind of prompt other than prompt tuning's.
    """
    soft = models.soft_prompt(model)
    if soft is not None:
        return model.get_base_model(), soft.detach()
    if any(each.is_prompt_learning for each in getattr(model, "peft_config", {}).values()):
        raise ValueError(f"{type(model).__name__}: of learnt prompts only prompt tuning's can be generated with")
    return model, None


def positions(model: Any, prompt: int, new: int) -> tuple[int, int | None]:
    """(positions that a prompt and its answer take, the most this model has; None where it has no limit).

    Args:
        model: see `generate`. An encoder-decoder counts prompt and answer apart.
        prompt: tokens of the prompt.
        new: tokens of the answer.
    """
    prompt += losses.virtual_tokens(model)
    needed = max(prompt, new + 1) if model.config.is_encoder_decoder else prompt + new
    return needed, getattr(model.config, "max_position_embeddings", None)


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


def _before(text: str, until: Sequence[str]) -> str:
    """What stands before the first of some texts."""
    return text[: min((at for each in until if each and (at := text.find(each)) >= 0), default=len(text))]


def _over(tokenizer: Any, ids: Sequence[int], ends: frozenset[int], until: Sequence[str]) -> bool:
    """Whether nothing more is wanted of a row."""
    if until_end(ids, ends)[1] or not until:
        return until_end(ids, ends)[1]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return _before(text, until) != text


class _Prefix(NamedTuple):
    """What stands before every prompt and its common beginning; keys and values of both, computed once."""

    soft: torch.Tensor | None
    """Embeddings of the soft prompt, (V, H)."""
    length: int
    """Positions whose keys and values are known."""
    cache: Any
    """One row; None where nothing is known."""


class _Job(NamedTuple):
    """The prompts of a batch, or of a part of it."""

    prompts: list[Sequence[int]]
    draws: list[np.ndarray]
    """For each prompt one number in [0, 1) for each token."""
    until: tuple[str, ...]
    """Texts that end an answer."""


def _shared_prefix(model: Any, soft: torch.Tensor | None, prompts: Sequence[Sequence[int]]) -> _Prefix:
    if model.config.is_encoder_decoder or not plain_cache(model):  # an encoder looks both ways: nothing can be shared
        return _Prefix(soft, 0, None)
    # At least one token of each prompt stays, since its logits are what generation starts from.
    length = min(
        len(os.path.commonprefix([list(prompt) for prompt in prompts])), *(len(each) - 1 for each in prompts), 1 << 30
    )
    if len(prompts) < 2 or length < PREFIX:
        length = 0
    if soft is None and not length:
        return _Prefix(None, 0, None)
    cache = beginning(model, soft, prompts[0][:length])
    return _Prefix(soft, length + (0 if soft is None else len(soft)), cache)


def beginning(model: Any, soft: torch.Tensor | None, ids: Sequence[int]) -> Any:
    """Keys and values of what texts begin with: a cache of one row.

    Args:
        model: decoder-only, without its adapter.
        soft: embeddings of a soft prompt that stands before the tokens, (V, H).
        ids: the tokens; with a soft prompt there may be none.
    """
    import torch

    row = torch.tensor([list(ids)], dtype=torch.long, device=model.device)  # (1, T)
    given = {"input_ids": row} if soft is None else {"inputs_embeds": embedded(model, soft, row)}
    with torch.inference_mode():
        return model.base_model(**given, use_cache=True).past_key_values


def embedded(model: Any, soft: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Input embeddings with the soft prompt before them: (B, V + T, H).

    Args:
        model: without its adapter.
        soft: embeddings of the soft prompt, (V, H).
        ids: (B, T); T may be 0.
    """
    import torch

    with torch.inference_mode():
        tokens = model.get_input_embeddings()(ids)  # (B, T, H)
        return torch.cat([soft.to(tokens).expand(len(ids), -1, -1), tokens], dim=1)


def plain_cache(model: Any) -> bool:
    """Whether the model keeps all keys and values, so that rows can be taken out and beginnings shared."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def _halving(
    model: Any, tokenizer: Any, job: _Job, prefix: _Prefix, ends: frozenset[int], decoding: Decoding
) -> tuple[list[list[int]], int]:
    """Generate for one batch, in halves where memory runs out. Returns (ids of each row, times it was halved)."""
    import torch

    try:
        return _decode(model, tokenizer, job, prefix, ends, decoding), 0
    except (MemoryError, RuntimeError) as error:
        if len(job.prompts) == 1 or not out_of_memory(error):
            raise
    # Outside the handler: the error's traceback holds the tensors that did not fit.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(job.prompts) + 1) // 2
    halves = (
        _Job(job.prompts[:middle], job.draws[:middle], job.until),
        _Job(job.prompts[middle:], job.draws[middle:], job.until),
    )
    (left, before), (right, after) = (_halving(model, tokenizer, half, prefix, ends, decoding) for half in halves)
    return left + right, 1 + before + after


def _decode(
    model: Any, tokenizer: Any, job: _Job, prefix: _Prefix, ends: frozenset[int], decoding: Decoding
) -> list[list[int]]:
    """The generated ids of each row; after a row's end token may stand anything."""
    import torch
    from transformers import GenerationConfig

    start = losses.start_token(model)
    # Rows that ask the same (several samples of one prompt) share what is read: it is read once, and copied.
    different = list(dict.fromkeys(map(tuple, job.prompts)))
    ids, given = _begun(model, tokenizer.pad_token_id, start, different, prefix)
    cache = None  # where it is not as simple as that, transformers' own
    if start is None and plain_cache(model):
        room = ids.shape[1] + decoding.max_new_tokens
        cache = _read(model, ids, given["attention_mask"], room, prefix)
    if len(different) < len(job.prompts):
        place = {prompt: at for at, prompt in enumerate(different)}
        keep = torch.tensor([place[tuple(prompt)] for prompt in job.prompts], device=model.device)
        ids, given = ids[keep], _rows(given, keep)
        if cache is not None:
            cache.batch_select_indices(keep)
    leg = LEG if _in_legs(model) else decoding.max_new_tokens
    rows = list(range(len(job.prompts)))
    written: list[list[int]] = [[] for _ in rows]
    for done in range(0, decoding.max_new_tokens, leg):
        config = GenerationConfig(
            max_new_tokens=min(leg, decoding.max_new_tokens - done),
            use_cache=True,
            return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(ends),
            decoder_start_token_id=start,
            # Said outright, since what is left open comes from the checkpoint and would differ between candidates.
            # Sampling is ours: transformers draws from one stream for all rows.
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
        )
        draws = [job.draws[row][done:] for row in rows]
        with torch.inference_mode():
            found = model.generate(
                **{"input_ids" if start is None else "decoder_input_ids": ids},
                **given,
                past_key_values=cache,
                generation_config=config,
                logits_processor=[
                    *([_ending(ends)] if ends else []),
                    *([_sampler(decoding, draws, ids.shape[1])] if decoding.temperature > 0 else []),
                ],
            )
        new = found.sequences[:, ids.shape[1] :]  # (rows left, up to leg)
        for row, tokens in zip(rows, new.tolist(), strict=True):
            written[row] += tokens
        left = [at for at, row in enumerate(rows) if not _over(tokenizer, written[row], ends, job.until)]
        if not left:
            break
        keep = torch.tensor(left, device=model.device)
        ids, cache = found.sequences[keep], found.past_key_values
        if start is None:
            given = {"attention_mask": torch.cat([given["attention_mask"], torch.ones_like(new)], dim=1)[keep]}
        else:
            given["attention_mask"] = given["attention_mask"][keep]
            given["encoder_outputs"] = type(given["encoder_outputs"])(given["encoder_outputs"][0][keep])
            # Without a mask as long as the ids, transformers reads all of them again behind the cache.
            given["decoder_attention_mask"] = torch.ones_like(ids)
        if len(left) < len(rows):
            cache.batch_select_indices(keep)
        rows = [rows[at] for at in left]
    return written


def _read(model: Any, ids: torch.Tensor, mask: torch.Tensor, room: int, prefix: _Prefix) -> Any:
    """Read all but the last token of each prompt; that one's logits are what generation starts from.

    Prompts of like length are read together, whatever batch they go on in: what is read costs by the token, padding
    included, while of what is written a token costs the less the more rows there are.

    Args:
        model: decoder-only, without its adapter.
        ids: (B, T), aligned at their ends.
        mask: (B, T), 1 is a token.
        room: most positions there will be.
        prefix: what all prompts begin with.

    Returns:
        A cache of B rows and T - 1 positions, padding included.
    """
    import torch

    from tunemill import caches

    rows, width = len(ids), ids.shape[1] - 1
    lengths = (mask.sum(dim=1) - 1).tolist()
    if max(lengths) == prefix.length:
        return caches.roomy(model, rows, room, prefix.cache)
    parts = []
    for chosen in packing.plan(lengths, prefix.length, max(READ, max(lengths)), rows):
        longest = lengths[chosen[0]]
        whole = len(chosen) == rows and longest == width
        index = torch.tensor(sorted(chosen), device=ids.device)
        first = prefix.length + width - longest  # of the columns that none of these pads
        seen = torch.cat([mask[index, : prefix.length], mask[index, first:-1]], dim=1)  # (b, longest)
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
        cache = caches.roomy(model, len(chosen), room if whole else longest, prefix.cache)
        with torch.inference_mode():
            # Without the head: nobody reads these logits, and of a frozen head torch would copy the weights for each row.
            model.base_model(
                input_ids=ids[index, first:-1],
                attention_mask=seen,
                position_ids=positions[:, prefix.length :],
                past_key_values=cache,
                use_cache=True,
            )
        if whole:
            return cache
        parts.append((sorted(chosen), cache))
    return caches.gathered(model, parts, rows, width, room, prefix.cache)


def _rows(given: dict[str, Any], keep: torch.Tensor) -> dict[str, Any]:
    """Some rows, or the same ones several times, of what generation starts from."""
    found = {name: each[keep] for name, each in given.items() if name != "encoder_outputs"}
    if "encoder_outputs" in given:
        found["encoder_outputs"] = type(given["encoder_outputs"])(given["encoder_outputs"][0][keep])
    return found


def _in_legs(model: Any) -> bool:
    """Whether generation can be broken off and go on without ended rows."""
    # What a checkpoint forces at the beginning or the end of a text would be forced at those of a leg.
    forced = ("forced_bos_token_id", "forced_eos_token_id", "begin_suppress_tokens")
    return plain_cache(model) and not any(getattr(model.generation_config, name, None) is not None for name in forced)


def _begun(
    model: Any, pad: int, start: int | None, prompts: Sequence[Sequence[int]], prefix: _Prefix
) -> tuple[torch.Tensor, dict[str, Any]]:
    """What generation starts from: the ids to go on from, (B, T), and what else the model is given with them."""
    import torch

    if start is not None:
        given = encoder_inputs(model, prompts, pad, prefix.soft)
        with torch.inference_mode():
            encoded = model.get_encoder()(**given, return_dict=True)
        starts = torch.full((len(prompts), 1), start, device=model.device)
        return starts, {"attention_mask": given["attention_mask"], "encoder_outputs": encoded}
    virtual = 0 if prefix.soft is None else len(prefix.soft)
    # Any id stands for a token of the soft prompt: its keys and values are known, or its embedding is given.
    ids, mask = padded([[*[pad] * virtual, *prompt] for prompt in prompts], pad, prefix.length, model.device)
    if prefix.soft is None or prefix.cache is not None:
        return ids, {"attention_mask": mask}
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(ids)  # (B, T, H)
        for row, prompt in enumerate(prompts):
            first = ids.shape[1] - len(prompt) - virtual
            embeds[row, first : first + virtual] = prefix.soft.to(embeds)
    return ids, {"attention_mask": mask, "inputs_embeds": embeds}


def _ending(ends: frozenset[int]) -> Callable[[Any, Any], Any]:
    """A logits processor that ends each row whose logits are no numbers.

    Greedy search would take the first token of the vocabulary for the likeliest, again and again, and that is a word in some models:
    an answer would be scored, and found harmless, that no model gave.
    """
    import torch

    def end(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        lost = logits.amax(dim=-1).isnan()  # (B,); the largest of anything and nan is nan
        if not bool(lost.any()):
            return logits
        ended = torch.full_like(logits, -torch.inf)
        ended[:, min(ends)] = 0.0
        return torch.where(lost[:, None], ended, logits)

    return end


def _sampler(decoding: Decoding, draws: Sequence[np.ndarray], width: int) -> Callable[[Any, Any], Any]:
    """A logits processor that leaves one token of each row, drawn by inverting the distribution's cumulative sum.

    Args:
        decoding: with a temperature above 0.
        draws: for each row one number in [0, 1) for each token to come.
        width: positions there were before the first of them.
    """
    import numpy as np
    import torch

    uniform = torch.from_numpy(np.stack(list(draws)))  # (B, tokens)

    def draw(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        values, tokens = _likeliest(logits / decoding.temperature, decoding.top_k, decoding.top_p)  # (B, K)
        precise = torch.float32 if logits.device.type == "mps" else torch.float64
        cumulative = values.to(precise).softmax(dim=-1).cumsum(dim=-1)
        wanted = uniform[:, ids.shape[1] - width].to(cumulative) * cumulative[:, -1]
        # The first token whose sum exceeds the number: one of probability 0 never does so first.
        place = torch.searchsorted(cumulative, wanted[:, None], right=True).clamp(max=values.shape[1] - 1)
        token = place if tokens is None else tokens.gather(1, place)
        return torch.full_like(logits, -torch.inf).scatter(1, token, 0.0)

    return draw


def _likeliest(logits: torch.Tensor, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens that may be drawn: the k likeliest, and of these the likeliest that together have probability p.

    Returns:
        Logits (B, K), -inf where a token may not be drawn, and its id (B, K), ascending; None for the ids where all may be.
    """
    tokens = None
    if top_k:
        tokens = logits.topk(min(top_k, logits.shape[1]), dim=-1).indices.sort(dim=-1).values
        logits = logits.gather(1, tokens)
    if top_p < 1.0:
        logits, nucleus = _nucleus(logits, top_p)
        tokens = nucleus if tokens is None else tokens.gather(1, nucleus)
    return logits, tokens


def _nucleus(logits: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest columns that together have probability p.

    The same as transformers' own, without sorting the whole vocabulary, which would take longer than the model.

    Returns:
        Logits (B, K), -inf where a column is not among them, and which column that is (B, K), ascending.
    """
    import torch

    rows, columns = logits.shape
    everything = logits.logsumexp(dim=-1, keepdim=True)  # (B, 1)
    # Those below the last of these have less than 1 - p together, so the others are enough.
    for least in (NUCLEUS, (1.0 - top_p) / columns):
        row, column = (~(logits < everything + math.log(least))).nonzero(as_tuple=True)
        count = row.bincount(minlength=rows)
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        shape = (rows, int(count.max()))
        values, chosen = logits.new_full(shape, -torch.inf), column.new_zeros(shape)
        values[row, place], chosen[row, place] = logits[row, column], column
        ordered, order = values.sort(dim=-1, descending=True)
        chances = (ordered - everything).exp()
        reached = chances.cumsum(dim=-1)
        if bool((chances.sum(dim=-1) >= top_p).all()):
            break
    return values.scatter(1, order, ordered.masked_fill(reached - chances >= top_p, -torch.inf)), chosen


def encoder_inputs(
    model: Any, prompts: Sequence[Sequence[int]], pad: int, soft: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """What an encoder reads, padded on the right: ids or, behind a soft prompt, embeddings; and a mask (1 is a token)."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts], device=model.device)
    virtual = 0 if soft is None else len(soft)
    lengths = torch.tensor([virtual + len(prompt) for prompt in prompts], device=model.device)
    mask = (torch.arange(virtual + width, device=model.device) < lengths[:, None]).long()  # (B, V + S)
    return {"attention_mask": mask} | (
        {"input_ids": ids} if soft is None else {"inputs_embeds": embedded(model, soft, ids)}
    )


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
