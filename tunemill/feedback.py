"""AI feedback: the probability of the label "(A)" against "(B)" after a prompt, and texts, by a model at hand or behind an endpoint.

Both ways keep every answer in a journal, so that a run that was killed goes on where it was. Equal prompts are asked once.
A model at hand scores both labels as whole strings and always has a probability, however little it would say either of its
own accord: `Answer.mass` tells that. An endpoint writes, and what it writes is read (`judging.read`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from tunemill import checkpoints, endpoints, judging, likelihood, models, sampling
from tunemill.endpoints import Endpoint
from tunemill.errors import UserError
from tunemill.journal import Shelf
from tunemill.log import Log
from tunemill.models import Prompt
from tunemill.params import Params
from tunemill.runtime import Runtime
from tunemill.sampling import Decoding, Generation

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
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    kept: Path,
    batch_tokens: int,
    batch_rows: int,
    log: Log,
) -> list[Answer]:
    """Ask a model at hand.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode.
        tokenizer: with a padding token; its chat template, where it has one, makes the prompt.
        prompts: user messages, or conversations.
        kept: the journal of `likelihood.score_tokens`, one for each model.
        batch_tokens: most tokens of a batch, padding included.
        batch_rows: most questions in a batch.
        log: told of every batch.

    Returns:
        One answer for each prompt, in their order; unusable where the prompt is longer than the model's context. Batches
        depend on the prompts alone: the same prompts give the same numbers, killed in between or not.
    """
    different = list(dict.fromkeys(prompts))
    # Behind "Assistant:" a label stands apart, as it does in the examples.
    labels = {
        prompt: tuple(
            each if tokenizer.chat_template or isinstance(prompt, str) else f" {each}" for each in judging.LABELS
        )
        for prompt in different
    }
    label = max((likelihood.encode(tokenizer, "", f" {each}").completion for each in judging.LABELS), key=len)

    def fits(prompt: Prompt) -> bool:
        needed, context = sampling.positions(model, len(models.render_prompt(tokenizer, prompt)) + len(label), 0)
        return context is None or needed <= context

    short = [prompt for prompt in different if fits(prompt)]
    if len(short) < len(different):
        log.note(f"{len(different) - len(short)} prompts are longer than the judge's context: unusable")
    scored = likelihood.score(
        model,
        tokenizer,
        [(prompt, each) for prompt in short for each in labels[prompt]],
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
    endpoint: Endpoint,
    key: str | None,
    prompts: Sequence[Prompt],
    *,
    kept: Path,
    where: str,
    title: str,
    log: Log,
) -> list[Answer]:
    """Ask a model behind an endpoint; see `endpoints.ask`.

    Returns:
        One answer for each prompt, in their order; unusable where it names no label, or both.
    """
    replies = endpoints.ask(
        endpoint, key, prompts, alternatives=ALTERNATIVES, kept=kept, where=where, title=title, log=log
    )
    return [Answer(judging.read(each.text, each.tokens), each.text, None) for each in replies]


# ── who gives it ──────────────────────────────────────────────────────────────────────────────────────────────────


class Hub(Params):
    """A model on a hub, fetched when it is needed: safetensors weights, no code of its own."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """The repository, as owner/name."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """The commit: 40 hex digits."""


class Source(Params):
    """A model that gives feedback."""

    model: Literal["self", "folder", "hub", "endpoint"]
    """Who it is: the policy itself, the model in `folder`, the one of `hub`, or the one behind `endpoint`."""
    folder: str = Field(min_length=1)
    """A whole model in the standard form; dvc.yaml depends on it."""
    hub: Hub
    """A model on a hub."""
    endpoint: Endpoint
    """A model behind an OpenAI-compatible endpoint."""

    @property
    def itself(self) -> Source:
        """The same, where the policy is asked."""
        return self.model_copy(update={"model": "self"})


class Asking(NamedTuple):
    """How models are asked, whichever they are."""

    shelf: Shelf
    """For journals of what they say."""
    kept: Path
    """Folder that a hub's model is put into, and stays in."""
    batch_tokens: int
    """Most tokens of a batch of a model at hand, padding included."""
    batch_rows: int
    """Most questions in it."""
    runtime: Runtime
    """Device and number format."""
    log: Log
    """Progress."""


class Model(NamedTuple):
    """A model that gives feedback, ready to be asked."""

    told: dict[str, Any]
    """What is written down about it: its kind and name."""
    write: Callable[[Sequence[Prompt], Decoding, int, str], list[Generation]]
    """Conversations, decoding, seed and a title for the log → what comes next in each. An endpoint's own `max_tokens` limits it too;
    of a seed it knows only that another one is another draw."""
    choose: Callable[[Sequence[Prompt], str], list[Answer]]
    """Questions and a title for the log → the probability of the label "(A)"."""


def open_source(source: Source, policy: Path, where: str, asking: Asking) -> Model:
    """The model that a source names.

    Args:
        source: who it is.
        policy: folder of the policy, who may be asked itself.
        where: the section of params.yaml that it stands in, for messages.
        asking: how it is asked.

    Raises:
        UserError: there is no whole model, the hub cannot be reached, or the endpoint's key is missing.
    """
    shelf, kept, batch_tokens, batch_rows, runtime, log = asking
    if source.model == "endpoint":
        return _behind(source.endpoint, f"{where}.endpoint", shelf, log)
    if source.model == "hub":
        folder = kept / "hub" / f"{source.hub.revision}-{runtime.dtype}"
        if not (folder / "config.json").is_file():
            partial = folder.with_name(f".{folder.name}")
            models.convert_checkpoint(source.hub.repo, source.hub.revision, partial, runtime.dtype, f"{where}.hub")
            partial.replace(folder)
        told = {"kind": "hub", "name": f"{source.hub.repo}@{source.hub.revision[:7]}"}
    else:
        folder = policy if source.model == "self" else Path(source.folder)
        told = {"kind": source.model, "name": "the policy itself" if source.model == "self" else source.folder}
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no whole model in '{folder}'",
            where=str(folder) if source.model == "self" else f"params.yaml: {where}.folder",
            expected="a folder with config.json, safetensors weights and a tokenizer",
            fix="an adapter gives feedback once it is merged into its model" if models.is_adapter(folder) else "",
            exit_code=2,
        )
    model, tokenizer = models.load_policy(folder, folder, runtime)
    weights = checkpoints.tree_hash(folder)

    def write(asked: Sequence[Prompt], decoding: Decoding, seed: int, title: str) -> list[Generation]:
        ids = [models.render_prompt(tokenizer, each) for each in asked]
        longest = max(map(len, ids), default=0)
        needed, context = sampling.positions(model, longest, decoding.max_new_tokens)
        if context is not None and needed > context:
            raise UserError(
                f"{title}: the longest conversation has {longest} tokens, and {decoding.max_new_tokens} may follow",
                where=f"params.yaml: {where}",
                expected=f"at most {context} together, what the model can read at once",
                fix="shorten the constitution's examples, or name a model with a longer context",
            )
        batches = sampling.plan([*map(len, ids)], decoding.max_new_tokens, batch_tokens, batch_rows)
        # A model without a chat template would go on with the other's next turn.
        until = () if tokenizer.chat_template or all(isinstance(each, str) for each in asked) else (models.NEXT_TURN,)
        kept = shelf.of("written", weights, ids, decoding._asdict(), until, batches, seed)
        found, _ = sampling.answers(
            model,
            tokenizer,
            ids,
            decoding=decoding,
            until=until,
            batches=batches,
            seed=seed,
            kept=kept,
            title=title,
            log=log,
        )
        return found

    def choose(asked: Sequence[Prompt], title: str) -> list[Answer]:
        log.note(f"{title}: {len(set(asked))} questions")
        # What a batch holds rounds what comes out of it: other questions are another journal.
        kept = shelf.of("labels", weights, asked, batch_tokens, batch_rows)
        return by_model(model, tokenizer, asked, kept=kept, batch_tokens=batch_tokens, batch_rows=batch_rows, log=log)

    return Model(told, write, choose)


def _behind(endpoint: Endpoint, where: str, shelf: Shelf, log: Log) -> Model:
    """The model behind an endpoint."""
    key = endpoints.key_of(endpoint, where)
    # Paid for, and of no machine's making: whatever else changes, what was answered is not asked again.
    kept = shelf.folder / "endpoint.jsonl"
    shelf.taken.add(kept)
    log.note(f"asking {endpoint.model} at {endpoint.base_url}: prompts and answers are sent there")

    def write(asked: Sequence[Prompt], decoding: Decoding, seed: int, title: str) -> list[Generation]:
        brief = endpoint.model_copy(update={"max_tokens": min(endpoint.max_tokens, decoding.max_new_tokens)})
        replies = endpoints.ask(
            brief,
            key,
            asked,
            alternatives=0,
            temperature=decoding.temperature,
            draw=seed,
            kept=kept,
            where=where,
            title=title,
            log=log,
        )
        return [Generation(each.text, 0, each.finished) for each in replies]

    def choose(asked: Sequence[Prompt], title: str) -> list[Answer]:
        return by_endpoint(endpoint, key, asked, kept=kept, where=where, title=title, log=log)

    return Model({"kind": "endpoint", "name": endpoint.model, "base_url": endpoint.base_url}, write, choose)
