"""How likely a language model finds an answer: log-probabilities of completions, in batches, without generating anything.

What is scored is the completion's own tokens; the token that would end it is left out, as lm-evaluation-harness does
(Gao et al. 2021, `loglikelihood`). A model that was tuned on short answers ends more readily, and would seem to know more.

Nothing is computed twice, since most of what a benchmark asks is there many times:

- What questions begin with (worked examples, a chat template's system message) is read once for all of them; where tasks
  with other examples are asked together, once for each task.
- A question is read once for all its choices. The choices stand behind it in one row, side by side: each sees the question
  and itself, and has the positions it would have alone (as the token trees of Miao et al. 2023, SpecInfer).
- Choices that differ in their last token alone (A, B, C, D; Yes, No) need no pass: nothing reads that token.
- An encoder reads each question once.
- What a journal holds is not computed again.

A model that does not keep all its keys and values (a sliding window, a state) is given every pair apart.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill import journal, losses, models, packing, sampling
from tunemill.log import Log

if TYPE_CHECKING:
    import torch

Tokens = tuple[int, ...]


class Likelihood(NamedTuple):
    """What a model makes of one completion."""

    logprob: float
    """Sum over the completion's tokens of their log-probability, in nats."""
    tokens: int
    """How many there are."""
    greedy: bool = False
    """Whether each of them is the likeliest: what greedy decoding would give."""

    @property
    def mean(self) -> float:
        """Log-probability per token: what choices of unequal length are compared by."""
        return self.logprob / self.tokens


class Row(NamedTuple):
    """A question, and of its choices what a model has to read: all but each one's last token."""

    question: Tokens
    rests: tuple[Tokens, ...]
    """All different; a choice of one token leaves an empty one."""


class Shared(NamedTuple):
    """Texts that begin alike."""

    items: tuple[int, ...]
    length: int
    """Tokens that all of them begin with; fewer than the shortest has."""


class _Begun(NamedTuple):
    """What the questions of a group begin with; keys and values of it, computed once."""

    length: int
    """Tokens of each question."""
    known: int
    """Positions: the tokens, and a soft prompt before them."""
    cache: Any
    """One row; None where nothing is known."""


class _Logits(NamedTuple):
    """What a model says at the places that matter of one row."""

    logits: torch.Tensor
    """(n, V)"""
    places: list[list[int]]
    """For each of the row's rests, which of the n come before its tokens and before the token after it."""


def score(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[models.Prompt, str]],
    *,
    batch_tokens: int,
    batch_rows: int,
    kept: Path | None = None,
    log: Log | None = None,
) -> list[Likelihood]:
    """Log-probability of each completion after its prompt.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode, with an adapter or a soft prompt on it or without.
        tokenizer: with a padding token; its chat template, where it has one, makes the prompt.
        pairs: prompts (or conversations) and completions, as text.
        batch_tokens: see `score_tokens`.
        batch_rows: see `score_tokens`.
        kept: see `score_tokens`.
        log: see `score_tokens`.

    Returns:
        One for each pair, in their order.

    Raises:
        ValueError: a completion has no token.
    """
    prompts = {prompt: models.render_prompt(tokenizer, prompt) for prompt in dict.fromkeys(each for each, _ in pairs)}
    return score_tokens(
        model,
        [(prompts[prompt], _answer(tokenizer, completion)) for prompt, completion in pairs],
        pad=tokenizer.pad_token_id,
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        kept=kept,
        log=log,
    )


def score_tokens(
    model: Any,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad: int,
    batch_tokens: int,
    batch_rows: int,
    kept: Path | None = None,
    log: Log | None = None,
) -> list[Likelihood]:
    """Log-probability of each completion after its prompt, as token ids.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode, with an adapter or a soft prompt on it or without.
        requests: prompts and completions, none empty; equal ones are computed once.
        pad: id to pad with.
        batch_tokens: most tokens of a batch, padding and shared beginnings included; one longer pair is its own batch.
        batch_rows: most questions in a batch.
        kept: a journal of what was found, batch by batch, by content; one for each model. A killed evaluation goes on
            where it ends, with the same batches and so with the same numbers.
        log: told how many different requests are done.

    Returns:
        One for each request, in their order. Batches depend on the requests alone: the same ones give the same numbers.

    Raises:
        ValueError: a prompt or a completion has no token.
    """
    asked = [(tuple(prompt), tuple(completion)) for prompt, completion in requests]
    if any(not prompt or not completion for prompt, completion in asked):
        raise ValueError("a prompt or a completion has no token")
    if not asked:
        return []
    different = list(dict.fromkeys(asked))
    wanted: dict[Tokens, dict[Tokens, list[int]]] = {}  # question → all but the last token → last tokens
    for prompt, completion in different:
        wanted.setdefault(prompt, {}).setdefault(completion[:-1], []).append(completion[-1])
    log = log if log is not None else Log()
    found = _recovered(kept, different)
    log.start("scoring", len(different), "answer", first=len(found))
    for start, batches in _planned(model, wanted, batch_tokens, batch_rows):
        read: Callable[[Sequence[Row]], list[_Logits]] | None = None
        for batch in batches:
            if not (rows := _left(batch, wanted, found)):
                continue
            read = read if read is not None else _reader(model, start, pad)
            new: dict[tuple[Tokens, Tokens], Likelihood] = {}
            for row, logits in zip(rows, read(rows), strict=True):
                new |= _likelihoods(row, wanted[row.question], logits)
            new = {pair: each for pair, each in new.items() if pair not in found}
            if kept is not None:
                _keep(kept, new)
            found |= new
            log(len(found))
    return [found[each] for each in asked]


def encode(tokenizer: Any, prompt: models.Prompt, completion: str) -> losses.Encoded:
    """A pair as token ids: the prompt as the model expects it, the completion without its end.

    Raises:
        ValueError: the completion has no token.
    """
    return losses.Encoded(models.render_prompt(tokenizer, prompt), _answer(tokenizer, completion))


def best(means: Sequence[float]) -> int:
    """Which choice a model prefers: that of the highest log-probability per token, the first of several equal ones."""
    return max(range(len(means)), key=lambda index: (means[index], -index))


def alike(texts: Sequence[Sequence[int]]) -> list[Shared]:
    """Group texts by what they begin with, so that the fewest tokens are left to compute.

    Of the tree of all beginnings (as intervals of the sorted texts: Abouelhoda et al. 2004, section 3) those are taken that
    save most together; one counts only for what it saves beyond `packing.PASS`.

    Args:
        texts: as token ids, all different, none empty.

    Returns:
        Every text once. Those that share nothing worth it are a group of length 0.
    """
    order = sorted(range(len(texts)), key=lambda index: tuple(texts[index]))
    ordered = [list(texts[index]) for index in order]
    common = [len(os.path.commonprefix(pair)) for pair in itertools.pairwise(ordered)]
    # (first, after the last, length, what it saves), by place in the order
    chosen: list[tuple[int, int, int, int]] = []
    open_: list[tuple[int, int]] = [(0, 0)]  # (length, first), each within the one before
    for end, follows in enumerate([*common, 0], start=1):
        first = end - 1
        while open_[-1][0] > follows:  # what begins like this ends here
            length, first = open_.pop()
            # Of each text a token stays, since the logits after it are what is asked for; the shortest stands first.
            length = min(length, len(ordered[first]) - 1)
            saved = (end - first - 1) * length - packing.PASS
            within = next((at for at, each in enumerate(chosen) if each[0] >= first), len(chosen))
            if saved > sum(each[3] for each in chosen[within:]):
                chosen[within:] = [(first, end, length, saved)]
        if open_[-1][0] < follows:
            open_.append((follows, first))
    found = [Shared(tuple(order[first:end]), length) for first, end, length, _ in chosen]
    grouped = {item for each in found for item in each.items}
    alone = tuple(index for index in range(len(texts)) if index not in grouped)
    if not alone:
        return found
    # What is left may still begin alike, as with a chat template's system message.
    length = min(
        len(os.path.commonprefix([list(texts[index]) for index in alone])),
        *(len(texts[index]) - 1 for index in alone),
        1 << 30,
    )
    return [*found, Shared(alone, length if (len(alone) - 1) * length > packing.PASS else 0)]


def _answer(tokenizer: Any, completion: str) -> list[int]:
    answer = models.render_completion(tokenizer, completion)[:-1]
    if not answer:
        raise ValueError(f"the completion {completion!r} has no token")
    return answer


def _planned(
    model: Any, wanted: dict[Tokens, dict[Tokens, list[int]]], tokens: int, rows: int
) -> list[tuple[Tokens, list[list[Row]]]]:
    """What is read, group by group: what its questions begin with, and its batches."""
    decoder, shares = not model.config.is_encoder_decoder, _shares(model)
    packed = shares and (not decoder or _takes_branches(model))

    def size(question: Tokens, rests: Iterable[Tokens]) -> int:
        # One row of a decoder-only model; of an encoder-decoder one for each choice, which sees the whole question.
        return sum(map(len, rests), len(question)) if decoder else sum(len(question) + 1 + len(rest) for rest in rests)

    questions = list(wanted)
    groups = alike(questions) if decoder and shares else [Shared(tuple(range(len(questions))), 0)]
    planned = []
    for group in groups:
        items: list[Row] = []
        for question in (questions[item] for item in group.items):
            together: tuple[Tokens, ...] = ()
            for rest in wanted[question]:
                if together and (not packed or size(question, (*together, rest)) > tokens):
                    items.append(Row(question, together))
                    together = ()
                together = (*together, rest)
            items.append(Row(question, together))
        batches = packing.plan([size(*row) for row in items], group.length, tokens, rows)
        planned.append((items[0].question[: group.length], [[items[at] for at in batch] for batch in batches]))
    # The longest first: what does not fit in memory fails at once.
    return sorted(planned, key=lambda each: -size(*each[1][0][0]))


def _shares(model: Any) -> bool:
    """Whether what is read can be shared: an encoder's states, or all keys and values; behind no learnt prompt but a soft one."""
    learnt = any(each.is_prompt_learning for each in getattr(model, "peft_config", {}).values())
    if learnt and models.soft_prompt(model) is None:
        return False
    return bool(model.config.is_encoder_decoder or sampling.plain_cache(model))


def _takes_branches(model: Any) -> bool:
    """Whether a model can be told for each position which others it sees, and where it stands."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    named = inspect.signature(inner.forward).parameters
    told = "position_ids" in named and not getattr(model.config, "alibi", False)
    return told and model.config._attn_implementation in ("sdpa", "eager")


def _reader(model: Any, start: Tokens, pad: int) -> Callable[[Sequence[Row]], list[_Logits]]:
    """What reads the batches of a group; what its questions begin with has then been read."""
    if not _shares(model):
        return lambda rows: _apart(model, rows, pad)
    inner, soft = sampling.bare(model)
    if (first := losses.start_token(inner)) is not None:
        return lambda rows: _encoded(inner, soft, first, rows, pad)
    begun = _Begun(0, 0, None)
    if start or soft is not None:
        known = len(start) + (0 if soft is None else len(soft))
        begun = _Begun(len(start), known, sampling.beginning(inner, soft, start))
    return lambda rows: _behind(inner, begun, rows, pad)


def _behind(model: Any, begun: _Begun, rows: Sequence[Row], pad: int) -> list[_Logits]:
    """Questions behind what they begin with, the choices of each side by side in its row."""
    import torch

    from tunemill import caches

    asked = [len(row.question) - begun.length for row in rows]  # columns of each question, the choices follow
    ids = _right_padded(
        [[*row.question[begun.length :], *itertools.chain(*row.rests)] for row in rows], pad, model.device
    )
    ends = [width + sum(map(len, row.rests)) for width, row in zip(asked, rows, strict=True)]
    columns = sorted(set().union(*(range(width - 1, end) for width, end in zip(asked, ends, strict=True))))
    given: dict[str, Any] = {"use_cache": False}
    if begun.cache is not None:
        room = begun.known + ids.shape[1]
        given = {"use_cache": True, "past_key_values": caches.roomy(model, len(rows), room, begun.cache)}
    if any(sum(map(bool, row.rests)) > 1 for row in rows):
        given |= _branches(rows, asked, begun.known, ids.shape[1], model)
    with torch.inference_mode():
        logits = model(
            input_ids=ids, logits_to_keep=torch.tensor(columns, device=model.device), **given
        ).logits  # (B, K, V)
    found = []
    for row, width, end, each in zip(rows, asked, ends, logits, strict=True):
        first = columns.index(width - 1)
        places, after = [], 1  # place 0 is the question's last token
        for rest in row.rests:
            places.append([0, *range(after, after + len(rest))])
            after += len(rest)
        found.append(_Logits(each[first : first + 1 + end - width], places))
    return found


def _branches(rows: Sequence[Row], asked: Sequence[int], known: int, width: int, model: Any) -> dict[str, torch.Tensor]:
    """Positions (B, T), and for each what is added to its attention to all others, (B, 1, T, known + T): 0 or the least."""
    import torch

    sees = torch.ones(width, known + width, dtype=torch.bool).tril(known).repeat(len(rows), 1, 1)
    positions = torch.arange(known, known + width).repeat(len(rows), 1)
    for row, (question, rests) in enumerate(zip(asked, (each.rests for each in rows), strict=True)):
        first = question
        for rest in rests:
            end = first + len(rest)
            sees[row, first:end, known + question : known + first] = False  # other choices
            positions[row, first:end] = torch.arange(known + question, known + question + len(rest))
            first = end
    mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)
    return {"position_ids": positions.to(model.device), "attention_mask": mask[:, None].to(model.device)}


def _encoded(model: Any, soft: torch.Tensor | None, start: int, rows: Sequence[Row], pad: int) -> list[_Logits]:
    """An encoder reads each question once, a decoder each choice."""
    import torch

    given = sampling.encoder_inputs(model, [row.question for row in rows], pad, soft)
    owner = torch.tensor([at for at, row in enumerate(rows) for _ in row.rests], device=model.device)
    ids = _right_padded([[start, *rest] for row in rows for rest in row.rests], pad, model.device)
    with torch.inference_mode():
        states = model.get_encoder()(**given, return_dict=True)
        logits = model(
            encoder_outputs=type(states)(states[0][owner]),
            attention_mask=given["attention_mask"][owner],
            decoder_input_ids=ids,
            use_cache=False,
        ).logits  # (N, K, V)
    width, first, found = ids.shape[1], 0, []
    for row in rows:
        places = [list(range(at * width, at * width + len(rest) + 1)) for at, rest in enumerate(row.rests)]
        found.append(_Logits(logits[first : first + len(row.rests)].flatten(0, 1), places))
        first += len(row.rests)
    return found


def _apart(model: Any, rows: Sequence[Row], pad: int) -> list[_Logits]:
    """Every pair a row of its own, nothing shared; each row has one rest."""
    import torch

    # The label of a last token only marks its place.
    pairs = [losses.Encoded(list(row.question), [*row.rests[0], pad]) for row in rows]
    inputs = losses.collate(pairs, pad, losses.start_token(model))
    inputs = {name: each.to(model.device) for name, each in inputs.items()}
    with torch.inference_mode():
        logits, labels = losses.completion_logits(model, inputs, losses.virtual_tokens(model))  # (B, K, V), (B, K)
    return [
        _Logits(each[places.ne(losses.IGNORED)], [list(range(len(row.rests[0]) + 1))])
        for row, each, places in zip(rows, logits, labels, strict=True)
    ]


def _right_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> torch.Tensor:
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)


def _left(
    batch: Sequence[Row], wanted: dict[Tokens, dict[Tokens, list[int]]], found: dict[tuple[Tokens, Tokens], Likelihood]
) -> list[Row]:
    """What of a batch is not known yet."""
    rows = []
    for question, rests in batch:
        lasts = wanted[question]
        left = tuple(rest for rest in rests if any((question, (*rest, last)) not in found for last in lasts[rest]))
        if left:
            rows.append(Row(question, left))
    return rows


def _requests(row: Row, lasts: dict[Tokens, list[int]]) -> Iterator[tuple[Tokens, Tokens]]:
    """The pairs that a row answers."""
    return ((row.question, (*rest, last)) for rest in row.rests for last in lasts[rest])


def _likelihoods(row: Row, lasts: dict[Tokens, list[int]], found: _Logits) -> dict[tuple[Tokens, Tokens], Likelihood]:
    import torch

    logprobs = found.logits.float().log_softmax(dim=-1)  # (n, V)
    likeliest = logprobs.argmax(dim=-1).tolist()
    pairs = list(_requests(row, lasts))
    where = [each for rest, each in zip(row.rests, found.places, strict=True) for _ in lasts[rest]]
    at = torch.tensor([place for each in where for place in each], device=logprobs.device)
    tokens = torch.tensor([token for _, completion in pairs for token in completion], device=logprobs.device)
    chosen = iter(logprobs[at, tokens].tolist())
    return {
        pair: Likelihood(
            math.fsum(next(chosen) for _ in pair[1]),
            len(pair[1]),
            all(likeliest[place] == token for place, token in zip(places, pair[1], strict=True)),
        )
        for pair, places in zip(pairs, where, strict=True)
    }


def _recovered(kept: Path | None, asked: Sequence[tuple[Tokens, Tokens]]) -> dict[tuple[Tokens, Tokens], Likelihood]:
    """What a journal holds of what is asked."""
    if kept is None:
        return {}
    held: dict[str, list[Any]] = {}
    for entry in journal.recover(kept):
        held |= entry.get("scores", {})
    names = {each: _name(each) for each in asked}
    return {
        each: Likelihood(float(held[name][0]), held[name][1], held[name][2])
        for each, name in names.items()
        if name in held
    }


def _keep(kept: Path, new: dict[tuple[Tokens, Tokens], Likelihood]) -> None:
    # JSON has no number for what is not finite.
    journal.append(
        kept, {"scores": {_name(pair): [repr(each.logprob), each.tokens, each.greedy] for pair, each in new.items()}}
    )


def _name(pair: tuple[Tokens, Tokens]) -> str:
    """24 hexadecimal digits that depend on the pair's tokens."""
    return hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:24]
