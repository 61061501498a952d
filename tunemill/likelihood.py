"""How likely a language model finds an answer: log-probabilities of completions, in batches, without generating anything.

What is scored is the completion's own tokens; the token that would end it is left out, as lm-evaluation-harness does
(Gao et al. 2021, `loglikelihood`). A model that was tuned on short answers ends more readily, and would seem to know more.

Choices that differ in their last token alone (A, B, C, D; Yes, No) are read off one forward pass: nothing reads that token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tunemill import losses, models, sampling


class Likelihood(NamedTuple):
    """What a model makes of one completion."""

    logprob: float
    """Sum over the completion's tokens of their log-probability, in nats."""
    tokens: int
    """How many there are."""

    @property
    def mean(self) -> float:
        """Log-probability per token: what choices of unequal length are compared by."""
        return self.logprob / self.tokens


def score(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], *, batch_tokens: int, batch_rows: int
) -> list[Likelihood]:
    """Log-probability of each completion after its prompt.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode, with an adapter or a soft prompt on it or without.
        tokenizer: with a padding token; its chat template, where it has one, makes the prompt.
        pairs: prompts and completions, as text.
        batch_tokens: most tokens of a batch, padding included; a single longer pair is a batch of its own.
        batch_rows: most rows in a batch.

    Returns:
        One for each pair, in their order. Batches depend on lengths alone: the same pairs give the same numbers.

    Raises:
        ValueError: a completion has no token.
    """
    import torch

    encoded = [encode(tokenizer, prompt, completion) for prompt, completion in pairs]
    alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for index, (prompt, completion) in enumerate(encoded):
        alike.setdefault((tuple(prompt), tuple(completion[:-1])), []).append(index)
    rows = list(alike.values())  # the pairs of each row
    start, virtual_tokens = losses.start_token(model), losses.virtual_tokens(model)
    found: dict[int, Likelihood] = {}
    for batch in sampling.plan([len(encoded[row[0]]) for row in rows], 0, batch_tokens, batch_rows):
        inputs = losses.collate([encoded[rows[at][0]] for at in batch], tokenizer.pad_token_id, start)
        inputs = {name: each.to(model.device) for name, each in inputs.items()}
        with torch.inference_mode():
            logits, labels = losses.completion_logits(model, inputs, virtual_tokens)  # (B, K, V), (B, K)
        for at, row_logits, row_labels in zip(batch, logits, labels, strict=True):
            logprobs = row_logits[row_labels.ne(losses.IGNORED)].float().log_softmax(dim=-1)  # (tokens, V)
            for index in rows[at]:
                tokens = torch.tensor(encoded[index].completion, device=logprobs.device)
                total = float(logprobs.gather(1, tokens[:, None]).sum())
                found[index] = Likelihood(total, len(tokens))
    return [found[index] for index in range(len(pairs))]


def encode(tokenizer: Any, prompt: str, completion: str) -> losses.Encoded:
    """A pair as token ids: the prompt as the model expects it, the completion without its end.

    Raises:
        ValueError: the completion has no token.
    """
    answer = models.render_completion(tokenizer, completion)[:-1]
    if not answer:
        raise ValueError(f"the completion {completion!r} has no token")
    return losses.Encoded(models.render_prompt(tokenizer, prompt), answer)


def best(choices: Sequence[Likelihood]) -> int:
    """Which choice a model prefers: that of the highest log-probability per token, the first of several equal ones."""
    return max(range(len(choices)), key=lambda index: (choices[index].mean, -index))
