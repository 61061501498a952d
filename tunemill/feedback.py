"""AI feedback: the probability of the label "(A)" against "(B)" after a prompt, by a model at hand or behind an endpoint.

Both ways keep every answer in a journal, so that a run that was killed goes on where it was. Equal prompts are asked once.
A model at hand scores both labels as whole strings and always has a probability, however little it would say either of its
own accord: `Answer.mass` tells that. An endpoint writes, and what it writes is read (`judging.read`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import endpoints, judging, likelihood, models, sampling
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


UNUSABLE = Answer(None, None, None)


def by_model(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, kept: Path, batch_tokens: int, batch_rows: int, log: Log
) -> list[Answer]:
    """Ask a model at hand.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode.
        tokenizer: with a padding token; its chat template, where it has one, makes the prompt.
        prompts: user messages.
        kept: the journal of `likelihood.score_tokens`, one for each model.
        batch_tokens: most tokens of a batch, padding included.
        batch_rows: most questions in a batch.
        log: told of every batch.

    Returns:
        One answer for each prompt, in their order; unusable where the prompt is longer than the model's context. Batches
        depend on the prompts alone: the same prompts give the same numbers, killed in between or not.
    """
    different = list(dict.fromkeys(prompts))
    label = max((likelihood.encode(tokenizer, "", each).completion for each in judging.LABELS), key=len)

    def fits(prompt: str) -> bool:
        needed, context = sampling.positions(model, len(models.render_prompt(tokenizer, prompt)) + len(label), 0)
        return context is None or needed <= context

    short = [prompt for prompt in different if fits(prompt)]
    if len(short) < len(different):
        log.note(f"{len(different) - len(short)} prompts are longer than the judge's context: unusable")
    scored = likelihood.score(
        model,
        tokenizer,
        [(prompt, each) for prompt in short for each in judging.LABELS],
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        kept=kept,
        log=log,
    )
    found = {
        prompt: _answer(first.logprob, second.logprob)
        for prompt, first, second in zip(short, scored[::2], scored[1::2], strict=True)
    }
    return [found.get(prompt, UNUSABLE) for prompt in prompts]


def _answer(first: float, second: float) -> Answer:
    if not (math.isfinite(first) and math.isfinite(second)):
        return UNUSABLE
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
