"""AI feedback: the probability of the label "(A)" against "(B)" after a prompt, by a model at hand or behind an endpoint.

Both ways keep every answer in a journal, so that a run that was killed goes on where it was. Equal prompts are asked once.
A model at hand scores both labels as whole strings and always has a probability, however little it would say either of its
own accord: `Answer.mass` tells that. An endpoint writes, and what it writes is read (`judging.read`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import endpoints, journal, judging, likelihood, sampling
from tunemill.endpoints import Endpoint
from tunemill.log import Log

ALTERNATIVES = 5
"""Likeliest tokens to ask an endpoint for: what every endpoint that gives any gives."""


class Answer(NamedTuple):
    """What a model makes of one prompt."""

    p: float | None
    """P of the label "(A)" against "(B)"; None where the answer is unusable."""
    said: str | None
    """An endpoint's words; None of a model at hand, which is not asked to write."""
    mass: float | None
    """Of a model at hand: probability that it begins with one of the labels at all."""


def by_model(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    name: str,
    kept: Path,
    batch_tokens: int,
    batch_rows: int,
    title: str,
    log: Log,
) -> list[Answer]:
    """Ask a model at hand.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode.
        tokenizer: with a padding token; its chat template, where it has one, makes the prompt.
        prompts: user messages.
        name: what model it is (a hash): the journal's answers of another one do not count.
        kept: the journal, one line for each batch.
        batch_tokens: most tokens of a batch, padding included.
        batch_rows: most rows in a batch; each prompt makes two, one for each label.
        title: what is being done, for the log.
        log: told of every batch.

    Returns:
        One answer for each prompt, in their order; unusable where the prompt is longer than the model's context. Batches
        depend on the prompts alone: the same prompts give the same numbers, killed in between or not.
    """
    unique = list(dict.fromkeys(prompts))
    lengths = [
        max(sum(map(len, likelihood.encode(tokenizer, prompt, label))) for label in judging.LABELS) for prompt in unique
    ]
    found: dict[str, Answer] = {}
    short = []
    for index, prompt in enumerate(unique):
        needed, context = sampling.positions(model, lengths[index], 0)
        if context is not None and needed > context:
            found[prompt] = Answer(None, None, None)
        else:
            short.append(index)
    if found:
        log.note(f"{len(found)} prompts are longer than the judge's context: unusable")
    known = {entry["batch"]: entry["logprobs"] for entry in journal.recover(kept)}
    log.start(title, len(unique), "prompt")
    batches = sampling.plan([lengths[index] for index in short], 0, batch_tokens // 2, max(1, batch_rows // 2))
    for batch in batches:
        texts = [unique[short[place]] for place in batch]
        key = hashlib.blake2b(json.dumps([name, texts]).encode(), digest_size=16).hexdigest()
        if key not in known:
            pairs = [(text, label) for text in texts for label in judging.LABELS]
            scored = likelihood.score(model, tokenizer, pairs, batch_tokens=batch_tokens, batch_rows=batch_rows)
            # A journal is JSON, which has no number for "not a number".
            logprobs = [each.logprob if math.isfinite(each.logprob) else None for each in scored]
            known[key] = [logprobs[at : at + 2] for at in range(0, len(logprobs), 2)]
            journal.append(kept, {"batch": key, "logprobs": known[key]})
        found |= {text: _answer(*each) for text, each in zip(texts, known[key], strict=True)}
        log(len(found))
    return [found[prompt] for prompt in prompts]


def _answer(first: float | None, second: float | None) -> Answer:
    if first is None or second is None:
        return Answer(None, None, None)
    return Answer(judging.probability(first, second), None, math.exp(first) + math.exp(second))


def by_endpoint(
    endpoint: Endpoint, key: str | None, prompts: Sequence[str], *, kept: Path, where: str, title: str, log: Log
) -> list[Answer]:
    """Ask a model behind an endpoint; see `endpoints.ask`.

    Returns:
        One answer for each prompt, in their order; unusable where it names no label, or both.
    """
    replies = endpoints.ask(
        endpoint, key, prompts, alternatives=ALTERNATIVES, kept=kept, where=where, title=title, log=log
    )
    return [Answer(judging.read(each.text, each.tokens), each.text, None) for each in replies]
