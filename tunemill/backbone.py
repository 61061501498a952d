"""One frozen language model that plays policy, value, reward and reference, through adapters; and what each reads off it.

PPO needs four models of the same size (Ouyang et al. 2022, appendix C). Here they share one set of weights that nothing trains: a
low-rank adapter (Hu et al. 2021) each for policy, value and reward, and none for the reference, which is the starting policy. Memory
is one model and three adapters. `full` training has separate copies instead.

Both families of language models read the same `Batch`:

- decoder-only, padded: prompt and response are one sequence, padded on the right. A causal model never looks to the right, so no
  mask is needed. The state that chose the response's token t stands one position before it.
- decoder-only, packed: all rows are one sequence without padding, in which what rows begin with alike (a chat template's system
  message, a prompt that is answered several times) stands once. A mask lets each token see what it would have before it, and
  positions count from each row's beginning, so every row is read as if it were alone. With the default model and one answer to a
  prompt that saves a third of all tokens, with four half of them.
- encoder-decoder: the encoder reads the prompt with a mask, the decoder `[start] + response`. There is no offset: the state at
  position t chose token t. Whoever takes the decoder's start, which in T5 equals the padding, for a token of the response shifts all
  probabilities by one, and finds a negative KL divergence.

A response's value in a state and its reward are linear in the hidden state after the last norm: the value at the position that chose
a token, the reward at the position that has read the response's last one.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunemill import checkpoints, losses, models, rlhf, sampling
from tunemill.errors import UserError
from tunemill.losses import Encoded
from tunemill.runtime import Runtime

if TYPE_CHECKING:
    import torch

HEAD = "head.safetensors"
"""A reward model's head, beside its adapter: `weight`, (H,) in float32. It has no bias: Bradley-Terry leaves that open."""

Role = Literal["policy", "value", "reward", "reference"]


# ── What is read ────────────────────────────────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """Prompts and responses as a model reads them, and where in it what belongs to each response's tokens stands."""

    inputs: dict[str, torch.Tensor]
    """What the model is given."""
    ids: torch.Tensor
    """(B, R) responses, padded on the right."""
    mask: torch.Tensor
    """(B, R), True on tokens that were chosen."""
    chose: torch.Tensor
    """(B, R) position whose state chose each token; any position outside the mask."""
    end: torch.Tensor
    """(B,) position that has read the response's last token."""

    @property
    def packed(self) -> bool:
        """Whether all rows are one sequence, and positions are places in it."""
        return "position_ids" in self.inputs

    @property
    def tokens(self) -> int:
        """Tokens that a decoder reads, padding included."""
        return int(self.inputs.get("decoder_input_ids", self.inputs["input_ids"]).numel())

    def to(self, device: Any) -> Batch:
        """The same on another device."""
        inputs = {name: each.to(device) for name, each in self.inputs.items()}
        return Batch(inputs, *(each.to(device) for each in self[1:]))


def collate(rows: Sequence[Encoded], pad: int, start: int | None, packed: bool = False) -> Batch:
    """A batch of prompts and responses.

    Args:
        rows: none of them with an empty prompt or response.
        pad: any id; what it is changes nothing.
        start: the decoder's first token; None for a decoder-only model.
        packed: whether a decoder-only model is to read all rows as one sequence; see `packable`.
    """
    import torch

    lengths = torch.tensor([len(row.completion) for row in rows])
    ids = losses.right_padded([row.completion for row in rows], pad)  # (B, R)
    mask = rlhf.response_mask(ids, lengths)
    steps = torch.arange(ids.shape[1]).expand(ids.shape)
    if start is None and packed:
        inputs, chose, end = _packed(rows, ids.shape[1])
        return Batch(inputs, ids, mask, chose, end)
    if start is None:
        prompts = torch.tensor([len(row.prompt) for row in rows])
        last = prompts + lengths - 1
        chose = torch.minimum(prompts[:, None] - 1 + steps, last[:, None])
        inputs = {"input_ids": losses.right_padded([[*row.prompt, *row.completion] for row in rows], pad)}
        return Batch(inputs, ids, mask, chose, last)
    inputs = {
        "input_ids": losses.right_padded([row.prompt for row in rows], pad),
        "attention_mask": losses.right_padded([[1] * len(row.prompt) for row in rows], 0),
        "decoder_input_ids": losses.right_padded([[start, *row.completion] for row in rows], pad),
    }
    return Batch(inputs, ids, mask, steps.clone(), lengths.clone())


def _packed(rows: Sequence[Encoded], width: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """One sequence of all rows: what the model is given, `chose` and `end`.

    It is a tree of runs of tokens: what all prompts begin with, then each different prompt's rest, then each response.
    """
    import torch

    common = len(os.path.commonprefix([list(row.prompt) for row in rows]))
    ids: list[int] = list(rows[0].prompt[:common])
    depth = list(range(common))
    runs: list[tuple[int, int, tuple[int, ...]]] = [
        (0, common, ())
    ]  # first place, one past the last, runs it goes on from
    rests: dict[tuple[int, ...], int] = {}  # a prompt → the run with its rest
    chose = torch.zeros(len(rows), width, dtype=torch.long)
    end = torch.zeros(len(rows), dtype=torch.long)

    def add(tokens: Sequence[int], first: int, before: tuple[int, ...]) -> int:
        runs.append((len(ids), len(ids) + len(tokens), before))
        ids.extend(tokens)
        depth.extend(range(first, first + len(tokens)))
        return len(runs) - 1

    for at, row in enumerate(rows):
        prompt = tuple(row.prompt)
        if prompt not in rests:
            rests[prompt] = add(prompt[common:], common, (0,))
        rest = rests[prompt]
        own = runs[add(row.completion, len(prompt), (0, rest))]
        last = runs[rest][1] - 1 if len(prompt) > common else common - 1  # the prompt's last token chose the first one
        chose[at, : len(row.completion)] = torch.tensor([last, *range(own[0], own[1] - 1)])
        end[at] = own[1] - 1
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)  # (T, T), True where a token is looked at
    for first, past, before in runs:
        seen[first:past, first:past] = torch.ones(past - first, past - first, dtype=torch.bool).tril()
        for each in before:
            seen[first:past, runs[each][0] : runs[each][1]] = True
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": seen[None, None],
        "position_ids": torch.tensor([depth]),
    }
    return inputs, chose, end


def packable(model: Any) -> bool:
    """Whether a model can read rows as one sequence: it takes positions and a mask of all pairs of tokens, and sees all of them.

    Args:
        model: a plain language model.
    """
    return (
        not model.config.is_encoder_decoder
        and sampling.plain_cache(model)
        and model.config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(model.forward).parameters
    )


# ── What is read off ────────────────────────────────────────────────────────────────────────────────────────────────


class Chosen(NamedTuple):
    """What a policy makes of the tokens of responses."""

    logprobs: torch.Tensor
    """(B, R) in float32, 0 outside the mask."""
    entropy: torch.Tensor
    """(B, R) of the distributions that the tokens were drawn from, 0 outside the mask; carries no gradient unless asked for."""
    states: torch.Tensor | None
    """(B, R, H) the states that chose the tokens, where they were asked for."""


def chosen(
    model: Any, batch: Batch, *, temperature: float, states: bool = False, entropy_gradient: bool = False
) -> Chosen:
    """Log-probabilities of the responses' tokens by one forward pass without a cache.

    Args:
        model: a language model, decoder-only or encoder-decoder, on the batch's device.
        batch: from `collate`.
        temperature: that the tokens were drawn with.
        states: whether the hidden states are wanted too.
        entropy_gradient: whether the entropy is part of a loss.
    """
    import torch

    first, given = 0, _given(model, batch)
    row, column = batch.mask.nonzero(as_tuple=True)
    position = batch.chose[row, column]  # (N,) of N tokens in all
    if batch.packed:
        given["logits_to_keep"] = position
    elif "decoder_input_ids" not in given:  # logits only of the window that the responses lie in
        first = int(position.min())
        given["logits_to_keep"] = torch.arange(first, int(position.max()) + 1, device=batch.ids.device)
    found = model(**given, use_cache=False, output_hidden_states=states)
    logits = found.logits[0] if batch.packed else found.logits[row, position - first]  # (N, V)
    logprobs = torch.zeros(batch.ids.shape, device=batch.ids.device)
    spread = torch.zeros_like(logprobs)
    logprobs[row, column] = rlhf.chosen_logprobs(logits, batch.ids[row, column], temperature)
    with contextlib.nullcontext() if entropy_gradient else torch.no_grad():
        spread[row, column] = rlhf.entropy(logits, temperature)
    return Chosen(logprobs, spread, _at(_last(found), batch, batch.chose) if states else None)


def _given(model: Any, batch: Batch) -> dict[str, Any]:
    """What the model is given, the mask in the form that its attention takes."""
    import torch

    given: dict[str, Any] = dict(batch.inputs)
    if batch.packed and model.config._attn_implementation != "sdpa":  # added to the scores, where that takes either
        seen = given["attention_mask"]
        given["attention_mask"] = torch.zeros_like(seen, dtype=model.dtype).masked_fill(
            ~seen, torch.finfo(model.dtype).min
        )
    return given


def states(model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states after the last norm, of every position that is read: (B, T, H); of packed rows (1, T, H)."""
    if "decoder_input_ids" in batch.inputs:
        return _last(model(**batch.inputs, use_cache=False, output_hidden_states=True))
    # The model below the head: logits would cost more than all else here.
    found: torch.Tensor = model.base_model(**_given(model, batch), use_cache=False).last_hidden_state
    return found


def chosen_states(model: Any, batch: Batch) -> torch.Tensor:
    """The states that chose the responses' tokens: (B, R, H)."""
    return _at(states(model, batch), batch, batch.chose)


def end_states(model: Any, batch: Batch) -> torch.Tensor:
    """The states that have read the whole responses: (B, H)."""
    return _at(states(model, batch), batch, batch.end[:, None])[:, 0]


def _last(found: Any) -> torch.Tensor:
    layers = found.decoder_hidden_states if "decoder_hidden_states" in found else found.hidden_states
    last: torch.Tensor = layers[-1]
    return last


def _at(every: torch.Tensor, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
    """Of (B, T, H), or (1, T, H) of packed rows, the states at (B, R) positions: (B, R, H)."""
    if batch.packed:
        return every[0][positions]
    return every.gather(1, positions[..., None].expand(-1, -1, every.shape[2]))


def linear(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Head · state in float32: (…, H) and (H,) → (…)."""
    found: torch.Tensor = states.float() @ head
    return found


# ── Who is who ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Actors:
    """The four roles, whether they share one model or each has its own.

    Attributes:
        shared: the PEFT model whose adapters are named like the roles; None where each role has a model of its own.
        separate: role → its own model; empty where they share one.
        value_head: (H,) float32, what the value is learnt with.
        reward_head: (H,) float32; None where the reward is no model.
        detached: the value is read off the policy's states, and its gradient ends there.
    """

    shared: Any
    separate: Mapping[Role, Any]
    value_head: torch.Tensor
    reward_head: torch.Tensor | None
    detached: bool
    config: Any = field(init=False)
    """The language model's configuration."""

    def __post_init__(self) -> None:
        self.config = (self.separate["policy"] if self.shared is None else self.shared).config

    @contextlib.contextmanager
    def role(self, name: Role) -> Iterator[Any]:
        """The plain language model, playing one role while the body runs."""
        if self.shared is None:
            yield self.separate[name]
        elif name == "reference":
            with self.shared.disable_adapter():
                yield self.shared.get_base_model()
        else:
            self.shared.set_adapter(name, inference_mode=name == "reward")
            yield self.shared.get_base_model()

    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """What the policy's gradient moves."""
        if self.shared is None:
            return list(self.separate["policy"].parameters())
        return [each for name, each in self.shared.named_parameters() if ".policy." in name]

    def value_parameters(self) -> list[torch.nn.Parameter]:
        """What the value's gradient moves: the head, and unless it is detached an adapter (or a model) of its own."""
        import torch

        assert isinstance(self.value_head, torch.nn.Parameter)
        if self.detached:
            return [self.value_head]
        if self.shared is None:
            return [self.value_head, *self.separate["value"].parameters()]
        return [self.value_head, *(each for name, each in self.shared.named_parameters() if ".value." in name)]

    def parameters(self) -> list[torch.nn.Parameter]:
        """All that is trained."""
        return [*self.policy_parameters(), *self.value_parameters()]

    @property
    def device(self) -> Any:
        """Where the models are."""
        return (self.separate["policy"] if self.shared is None else self.shared).device


def share(start: Path, reward: Path | None, adapter: Any, runtime: Runtime, *, detached: bool) -> Actors:
    """One frozen model with an adapter for each role.

    The policy's adapter starts as no change at all, so that policy and reference are one at the first step, to the last bit. The
    value's starts as the reward's (Ouyang et al. 2022, appendix C.4), with a head of zeros.

    Args:
        start: folder of the starting policy, a whole model.
        reward: folder of stage `reward`; None where the reward is no model.
        adapter: PEFT's configuration of the policy's adapter; of the value's too where there is no reward model.
        runtime: device and number format.
        detached: see `Actors`.

    Raises:
        UserError: the reward model does not fit the policy.
    """
    import torch

    from tunemill import tuning

    base = models.load_base(start, runtime)
    shared = tuning.adapt(base, adapter, "ppo", "policy")
    head = None
    if reward is not None:
        head = load_reward(shared, reward, "reward").to(runtime.device)
    if not detached:
        shared.add_adapter("value", shared.peft_config["reward" if reward is not None else "policy"])
        if reward is not None:
            weights = dict(shared.named_parameters())
            with torch.no_grad():
                for name, each in weights.items():
                    if ".value." in name:
                        each.copy_(weights[name.replace(".value.", ".reward.")])
    zeros = torch.zeros(width(base.config), device=runtime.device)
    shared.eval()  # no dropout: what is learnt from is what was drawn
    return Actors(shared, {}, torch.nn.Parameter(zeros), head, detached)


def separate(start: Path, reward: Path | None, runtime: Runtime, *, detached: bool) -> Actors:
    """Four models of their own, policy and value trained in full, in float32 whatever is computed in.

    Args:
        start: see `share`.
        reward: see `share`.
        runtime: see `share`.
        detached: see `share`.

    Raises:
        UserError: the reward model does not fit the policy.
    """
    import torch
    from peft import PeftModel

    found: dict[Role, Any] = {
        "policy": models.load_trainable(start, runtime),
        "reference": models.load_trainable(start, runtime),
    }
    head = None
    if reward is not None:
        scorer = models.load_trainable(start, runtime)
        head = read_head(reward, scorer.config).to(runtime.device)
        found["reward"] = PeftModel.from_pretrained(scorer, reward / "adapter").merge_and_unload()
    if not detached:
        if reward is None:
            found["value"] = models.load_trainable(start, runtime)
        else:
            copy = PeftModel.from_pretrained(models.load_trainable(start, runtime), reward / "adapter")
            found["value"] = copy.merge_and_unload()
    for role, model in found.items():
        model.eval().requires_grad_(role in ("policy", "value"))
    zeros = torch.zeros(width(found["policy"].config), device=runtime.device)
    return Actors(None, found, torch.nn.Parameter(zeros), head, detached)


def width(config: Any) -> int:
    """Size of a hidden state."""
    return int(getattr(config, "hidden_size", None) or config.d_model)


# ── Reward models ───────────────────────────────────────────────────────────────────────────────────────────────────


def load_reward(shared: Any, folder: Path, name: str) -> torch.Tensor:
    """Put a reward model's adapter on a PEFT model; its head is returned, (H,) in float32.

    Args:
        shared: the PEFT model, on the weights that the reward was trained on.
        folder: of stage `reward`: `adapter/` with the head in it.
        name: of the adapter.

    Raises:
        UserError: it is none, or one for another model.
    """
    head = read_head(folder, shared.config)
    shared.load_adapter(folder / "adapter", adapter_name=name, is_trainable=False)
    return head


def read_head(folder: Path, config: Any) -> torch.Tensor:
    """The head of the reward model in `folder`: (H,) in float32.

    Raises:
        UserError: there is none, or it is of another width than the language model.
    """
    import safetensors.torch

    path = folder / "adapter" / HEAD
    if not path.is_file():
        raise UserError(
            f"no reward model in {folder}",
            expected=f"adapter/ with a LoRA adapter of the starting policy and {HEAD}",
            fix="run the stage that writes it: dvc repro reward",
        )
    head: torch.Tensor = safetensors.torch.load_file(path)["weight"].float()
    if head.shape != (width(config),):
        raise UserError(
            f"the reward model's head has {head.numel()} weights, a state of the policy has {width(config)}",
            where=str(path),
            expected="a reward model trained on the same starting policy",
            fix="dvc repro reward",
        )
    return head


def check(folder: Path, tokenizer: Any, start: Path) -> None:
    """Refuse a reward model that was trained with another tokenizer, where the same ids would mean other words, or on other weights.

    Args:
        folder: of stage `reward`.
        tokenizer: of the starting policy.
        start: folder of the starting policy, a whole model.

    Raises:
        UserError: it was.
    """
    try:
        told = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        told = {}
    if told.get("vocabulary") not in (None, vocabulary(tokenizer)):
        raise UserError(
            "the reward model was trained with another tokenizer than the starting policy has",
            where=str(folder),
            expected="a reward model trained on the same starting policy",
            fix="dvc repro reward; a classifier with a tokenizer of its own is a reward of kind classifier (docs/alignment.md)",
        )
    if told.get("weights") not in (None, weights(start)):
        raise UserError(
            f"the reward model was trained on other weights than those of {start}: its scores would mean nothing there",
            where=str(folder),
            expected="a reward model trained on the same model, which extra.reward names as its policy",
            fix="name that model, or train a reward model on this one: another entry of extra.reward",
        )


def weights(folder: Path) -> str:
    """BLAKE2b-128 of a model's weights, in hex; stage `reward` keeps in reward.json which those are that it sits on."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name}\0{checkpoints.file_hash(file)}\n".encode())
    return digest.hexdigest()


def vocabulary(tokenizer: Any) -> str:
    """12 hexadecimal digits that say which id means what; stage `reward` keeps them in reward.json."""
    told = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda each: each[1]))
    return hashlib.sha256(told.encode()).hexdigest()[:12]
