"""Proximal policy optimisation of a language model against a reward: the loop. Its maths is in `tunemill.rlhf`.

Schulman et al. 2017 (PPO); Ziegler et al. 2019, Stiennon et al. 2020 and Ouyang et al. 2022 (of language models, with a KL penalty
in every token's reward); Huang et al. 2024 ("The N+ implementation details of RLHF with PPO") for what the papers leave unsaid.
One update:

1. *Roll out*: the policy answers prompts, sampled from its whole distribution (no top-k, no top-p, no repetition penalty).
2. *Read*: policy, reference, value and reward read the answers. Log-probabilities are those of this forward pass, the same as in
   training, never those of generation, which rounds differently: so at the first step π / π_old is 1 and the KL divergence 0, exactly.
3. *Estimate*: the score, normalised, at the last token, −β · KL at every token; generalised advantages, whitened over the rollout.
4. *Learn*: some epochs over the rollout in minibatches, with clipped losses.

What is particular here: a rollout's responses are dealt into minibatches at random once, not anew in every epoch, and each is cut
into micro-batches, packed without padding where the model allows it (`tunemill.backbone`): so every pass computes a row in the same
company, and rounds alike; epochs shuffle the order of the minibatches. A loss is a mean over all tokens of its minibatch, over all
processes, so that micro-batches do not change the step, and processes only who is dealt together. All chance comes from (seed, update),
so a run that was killed goes on from its last checkpoint as if nothing had been.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tunemill import backbone, checkpoints, losses, monitoring, rewards, rlhf, sampling
from tunemill.backbone import Actors, Batch
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.monitoring import Alarm, Point
from tunemill.params import Params
from tunemill.rewards import Reward
from tunemill.runtime import Runtime
from tunemill.sampling import Decoding

if TYPE_CHECKING:
    import torch

MONITOR = 1_000_003
"""Takes the update's place in the seed of the monitor's answers: the same numbers are drawn every time."""
DEALT = 1_000_004
"""Follows the update in the seed of the deal into minibatches; an epoch's number stands there in that of their order."""


class KL(Params):
    """The penalty for leaving the starting policy."""

    coef: float = Field(ge=0)
    """β: what a nat costs, in standard deviations of the reward."""
    target: float | None = Field(gt=0)
    """Nats a response that β is steered towards (Ziegler et al. 2019); null keeps β as it is."""
    horizon: int = Field(ge=1)
    """Responses after which steering at full tilt has multiplied β by e^0.2."""
    limit: float = Field(gt=0)
    """Nats a response from which training stops, and the last good policy is taken."""


class Settings(Params):
    """What PPO has in its section."""

    mode: Literal["adapters", "full"]
    """adapters: one frozen model, a low-rank adapter each for policy, value and reward; full: copies of their own."""
    rank: int = Field(ge=1, le=256)
    """Of the policy's adapter."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""
    value: Literal["adapter", "detached"]
    """adapter: the value has weights of its own; detached: a head on the policy's states, whose gradient ends there."""
    prompts: int = Field(ge=1)
    """Prompts of a rollout."""
    samples: int = Field(ge=1)
    """Responses to each."""
    max_prompt_tokens: int = Field(ge=1)
    """Longer prompts are left out, and counted."""
    response_tokens: int = Field(ge=1)
    """Most tokens of a response."""
    temperature: float = Field(gt=0)
    """Responses are drawn with; policy and reference are read with it too."""
    rollout_tokens: int = Field(ge=1)
    """Most tokens of a batch that is sampled, prompts and padding included."""
    updates: int = Field(ge=1)
    """Rollouts to learn from."""
    epochs: int = Field(ge=1)
    """Passes over each."""
    minibatches: int = Field(ge=1)
    """Optimizer steps in each pass; they share the responses evenly."""
    micro_batch: int = Field(ge=1)
    """Responses in one forward pass; a smaller one takes less memory, and the step stays the same."""
    learning_rate: float = Field(gt=0)
    """Peak AdamW learning rate of the policy; 1e-5 to 1e-4 for adapters, 1e-6 to 5e-6 for all weights."""
    value_learning_rate: float = Field(gt=0)
    """The same of the value."""
    warmup_updates: int = Field(ge=0)
    """Updates until the peak; afterwards linear to zero."""
    max_grad_norm: float = Field(gt=0)
    """Gradients of policy and value, each for itself, are clipped to this norm."""
    gamma: float = Field(gt=0, le=1)
    """Discount of a later token's reward."""
    lam: float = Field(ge=0, le=1)
    """λ of generalised advantage estimation."""
    cliprange: float = Field(gt=0)
    """ε of the policy loss."""
    cliprange_value: float = Field(gt=0)
    """ε of the value loss."""
    value_coef: float = Field(ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(ge=0)
    """Weight of the entropy bonus."""
    kl: KL
    """The penalty for leaving the starting policy, and where it ends."""
    missing_eos_penalty: float = Field(ge=0)
    """Taken off the normalised score of a response that did not end within `response_tokens`."""
    ptx_coef: float = Field(ge=0)
    """γ of PPO-ptx: weight of the loss on the task's own training pairs, against forgetting it (Ouyang et al. 2022); 0: none."""
    monitor_items: int = Field(ge=2)
    """Prompts that the policy is monitored on."""
    monitor_updates: int = Field(ge=1)
    """Updates between two looks."""
    checkpoint_updates: int = Field(ge=1)
    """Updates between two checkpoints: what a kill can cost."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One training for each; the outputs of the first have the plain name, the others end in `-<seed>`."""

    @model_validator(mode="after")
    def _whole_minibatches(self) -> Settings:
        if self.prompts * self.samples % self.minibatches:
            raise ValueError(
                f"{self.prompts} x {self.samples} responses of a rollout (prompts x samples) make no {self.minibatches} "
                "equal minibatches"
            )
        return self


class Diverged(Exception):  # an event that is handled, not an error that is shown
    """A gradient that is not finite, before it touched the weights."""


# ── 1. Roll out ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Episode(NamedTuple):
    """A prompt and what the policy answered."""

    prompt: int
    """Which prompt."""
    row: Encoded
    """Ids of both; the response's up to and including the first that ends it."""
    finished: bool
    """Whether one does."""


def choose(count: int, wanted: int, seed: int, update: int) -> list[int]:
    """The prompts of an update, counted from 1: without replacement until all were used, then anew in another order."""
    import numpy as np

    first, found = (update - 1) * wanted, []
    for place in range(first, first + wanted):
        order = np.random.default_rng([seed, place // count]).permutation(count)
        found.append(int(order[place % count]))
    return found


def roll_out(
    actors: Actors,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[int],
    cfg: Settings,
    seed: Sequence[int],
    runtime: Runtime,
) -> list[Episode]:
    """Let the policy answer.

    Args:
        actors: the policy among them.
        tokenizer: its tokenizer.
        prompts: token ids of all prompts.
        chosen: which of them to answer; one several times is answered several times.
        cfg: how long, at what temperature.
        seed: of what is drawn.
        runtime: of several processes each answers its share.

    Returns:
        This process's episodes, in the order of `chosen`.
    """
    asked = [prompts[each] for each in chosen]
    mine = list(range(runtime.rank, len(asked), runtime.processes))
    decoding = Decoding(cfg.response_tokens, cfg.temperature)
    plan = sampling.plan(
        [len(asked[place]) for place in mine], cfg.response_tokens, cfg.rollout_tokens, max(1, len(mine))
    )
    batches = [tuple(mine[each] for each in batch) for batch in plan]
    with actors.role("policy") as policy, _computing(cfg, runtime):
        found = {
            place: Episode(chosen[place], Encoded(list(asked[place]), ids), finished)
            for place, ids, finished in sampling.rollouts(
                policy, tokenizer, asked, decoding=decoding, batches=batches, seed=seed
            )
        }
    return [found[place] for place in mine]


# ── 2. Read ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reading(NamedTuple):
    """What the four roles make of a rollout of N responses, the longest with R tokens; rows as in the rollout."""

    mask: torch.Tensor
    """(N, R), True on chosen tokens."""
    logprobs: torch.Tensor
    """(N, R) under the policy that drew them."""
    ref_logprobs: torch.Tensor
    """(N, R) under the starting policy."""
    entropy: torch.Tensor
    """(N, R) of the policy."""
    values: torch.Tensor
    """(N, R)."""
    scores: torch.Tensor
    """(N,) of the reward, raw."""


class Piece(NamedTuple):
    """A micro-batch."""

    rows: torch.Tensor
    """(B,) which responses of the rollout."""
    batch: Batch
    ended: Batch
    """The same as a reward model reads it: with an end after each response that was cut off (`rewards.ended`)."""


Minibatch = list[Piece]
"""What one optimizer step learns from."""


def deal(
    episodes: Sequence[Episode], minibatches: int, size: int, tokenizer: Any, actors: Actors, seed: Sequence[int]
) -> list[Minibatch]:
    """Deal the responses into minibatches at random, and cut these into micro-batches, which have the same rows in every pass.

    Args:
        episodes: the rollout.
        minibatches: how many, of equal size or nearly so.
        size: most responses of a micro-batch; in one are those of like length, or where they are packed those of one prompt.
        tokenizer: its padding.
        actors: the policy among them.
        seed: of the deal.
    """
    import numpy as np
    import torch

    with actors.role("policy") as policy:
        start, packed = losses.start_token(policy), backbone.packable(policy)
    device = actors.device

    def piece(part: Sequence[int]) -> Piece:
        batch = backbone.collate([episodes[each].row for each in part], tokenizer.pad_token_id, start, packed).to(
            device
        )
        ended = batch
        if not all(episodes[each].finished for each in part):
            whole = [rewards.ended(episodes[each].row, episodes[each].finished, tokenizer) for each in part]
            ended = backbone.collate(whole, tokenizer.pad_token_id, start, packed).to(device)
        return Piece(torch.tensor(part, device=device), batch, ended)

    def alike(each: int) -> tuple[list[int] | int, int]:
        return (episodes[each].row.prompt if packed else len(episodes[each].row)), each

    shuffled = np.random.default_rng(seed).permutation(len(episodes))
    found = []
    for group in np.array_split(shuffled, minibatches):
        order = sorted(map(int, group), key=alike)
        found.append([piece(order[at : at + size]) for at in range(0, len(order), size)])
    return found


def read(
    actors: Actors,
    episodes: Sequence[Episode],
    parts: Sequence[Piece],
    texts: tuple[Sequence[str], Sequence[str]],
    reward: Reward,
    cfg: Settings,
    runtime: Runtime,
    where: Path,
) -> Reading:
    """Let all roles read a rollout, without a gradient.

    Args:
        actors: the roles.
        episodes: the rollout.
        parts: its micro-batches.
        texts: prompts and responses as text.
        reward: what scores them.
        cfg: the temperature.
        runtime: the number format.
        where: folder of the reward, for messages.

    Raises:
        UserError: a score is no number.
    """
    import torch

    size = (len(episodes), max(len(each.row.completion) for each in episodes))
    device = actors.device
    zeros = {name: torch.zeros(size, device=device) for name in ("logprobs", "ref_logprobs", "entropy", "values")}
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    scores = torch.zeros(size[0], device=device)
    with torch.no_grad(), _computing(cfg, runtime):
        for part in parts:
            width = part.batch.ids.shape[1]
            with actors.role("policy") as policy:
                own = backbone.chosen(policy, part.batch, temperature=cfg.temperature, states=actors.detached)
            with actors.role("reference") as reference:
                start = backbone.chosen(reference, part.batch, temperature=cfg.temperature)
            found = {"logprobs": own.logprobs, "ref_logprobs": start.logprobs, "entropy": own.entropy}
            found["values"] = _values(actors, part.batch, own.states)
            for name, each in found.items():
                zeros[name][part.rows, :width] = each
            mask[part.rows, :width] = part.batch.mask
            if reward.model is not None:
                assert actors.reward_head is not None
                with actors.role("reward") as scorer:
                    scores[part.rows] = backbone.linear(backbone.end_states(scorer, part.ended), actors.reward_head)
    if reward.model is None:
        lengths = [float(len(each.row.completion)) for each in episodes]
        told = lengths if reward.texts is None else reward.texts(*texts)
        scores = torch.tensor(rewards.checked(told, texts[1], where), device=device)
    else:
        rewards.checked(scores.tolist(), texts[1], where)
        if reward.line is not None:
            tokens = [len(each.row.completion) + (not each.finished) for each in episodes]
            scores = scores - torch.tensor([reward.line.says(each) for each in tokens], device=device)
    return Reading(mask, zeros["logprobs"], zeros["ref_logprobs"], zeros["entropy"], zeros["values"], scores)


def _values(actors: Actors, batch: Batch, policy_states: torch.Tensor | None) -> torch.Tensor:
    """(B, R) values of the states that the tokens were chosen in."""
    if actors.detached:
        assert policy_states is not None
        return backbone.linear(policy_states.detach(), actors.value_head).masked_fill(~batch.mask, 0.0)
    with actors.role("value") as model:
        return backbone.linear(backbone.chosen_states(model, batch), actors.value_head).masked_fill(~batch.mask, 0.0)


# ── 3. Estimate ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Estimate(NamedTuple):
    """What a rollout teaches."""

    advantages: torch.Tensor
    """(N, R) whitened over the rollout of all processes."""
    returns: torch.Tensor
    """(N, R) that the value is to learn."""


def estimate(
    found: Reading,
    episodes: Sequence[Episode],
    normal: rlhf.Normalization,
    kl_coef: float,
    cfg: Settings,
    team: Team,
    order: Sequence[int] | None,
) -> Estimate:
    """Rewards of every token, advantages and returns.

    Args:
        found: what was read.
        episodes: which of the responses ended.
        normal: the scale of the scores.
        kl_coef: β.
        cfg: γ, λ and the penalty for not ending.
        team: over whose tokens advantages are whitened.
        order: seed by which scores are dealt out anew (a control); None leaves them where they belong.
    """
    import torch

    scores = normal(found.scores)
    if order is not None:
        scores = rewards.shuffle(scores, order)
    # After normalisation: the penalty is in the units of the score, whatever the reward model's are.
    finished = torch.tensor([each.finished for each in episodes], device=scores.device)
    scores = scores - cfg.missing_eos_penalty * (~finished).float()
    dealt = rlhf.token_rewards(scores, found.logprobs, found.ref_logprobs, found.mask, kl_coef)
    advantages, returns = rlhf.gae(dealt, found.values, found.mask, cfg.gamma, cfg.lam)
    return Estimate(rlhf.whiten(advantages, found.mask, team.sum), returns)


# ── 4. Learn ────────────────────────────────────────────────────────────────────────────────────────────────────────


def learn(
    actors: Actors,
    optimizer: Any,
    dealt: Sequence[Minibatch],
    found: Reading,
    lesson: Estimate,
    cfg: Settings,
    seed: Sequence[int],
    team: Team,
    runtime: Runtime,
    ptx: Callable[[int], dict[str, Any]] | None,
) -> dict[str, float]:
    """Some epochs over a rollout; what was seen on the way, means over all optimizer steps.

    Args:
        actors: policy and value are moved.
        optimizer: of their parameters.
        dealt: the rollout, in minibatches.
        found: what was read of it.
        lesson: what it teaches.
        cfg: epochs, clips and coefficients.
        seed: of the order of the minibatches.
        team: the processes that learn together.
        runtime: the number format.
        ptx: which step → a batch of the task's own pairs to learn beside; None without.

    Raises:
        Diverged: a gradient is not finite; the weights are as they were before it.
    """
    import numpy as np
    import torch

    policy, value = actors.policy_parameters(), actors.value_parameters()
    seen: list[dict[str, float]] = []
    for epoch in range(cfg.epochs):
        for place in np.random.default_rng([*seed, epoch]).permutation(len(dealt)):
            chosen = dealt[place]
            tokens = team.sum(torch.tensor(float(sum(int(part.batch.mask.sum()) for part in chosen))))
            optimizer.zero_grad(set_to_none=True)
            sums = torch.zeros(len(SEEN))
            for part in chosen:
                share = float(part.batch.mask.sum() / tokens)
                told = _backward(actors, part, found, lesson, cfg, share, runtime)
                sums += share * torch.tensor([told[name] for name in SEEN])
            if ptx is not None:
                with actors.role("policy") as model, _computing(cfg, runtime):
                    loss = losses.completion_loss(model, ptx(len(seen)))
                    (cfg.ptx_coef * loss / runtime.processes).backward()
            team.sum_gradients([*policy, *value])
            norms = [float(torch.nn.utils.clip_grad_norm_(each, cfg.max_grad_norm)) for each in (policy, value)]
            if not all(map(math.isfinite, norms)):
                raise Diverged
            optimizer.step()
            means = dict(zip(SEEN, team.sum(sums).tolist(), strict=True))
            seen.append({**means, "gradient": norms[0], "value_gradient": norms[1]})
    return {
        **{name: math.fsum(each[name] for each in seen) / len(seen) for name in seen[0]},
        "first_step_kl": seen[0]["step_kl"],
    }


SEEN = ("policy_loss", "value_loss", "ratio", "clipped", "value_clipped", "step_kl")
"""What `_backward` tells of a micro-batch."""


def _backward(
    actors: Actors, part: Piece, found: Reading, lesson: Estimate, cfg: Settings, share: float, runtime: Runtime
) -> dict[str, float]:
    """Add a micro-batch's share to the gradients."""
    batch, width = part.batch, part.batch.ids.shape[1]

    def of(every: torch.Tensor) -> torch.Tensor:
        return every[part.rows, :width]

    with actors.role("policy") as model, _computing(cfg, runtime):
        new = backbone.chosen(
            model,
            batch,
            temperature=cfg.temperature,
            states=actors.detached,
            entropy_gradient=cfg.entropy_coef > 0,
        )
        policy = rlhf.policy_loss(new.logprobs, of(found.logprobs), of(lesson.advantages), batch.mask, cfg.cliprange)
        loss = policy.loss
        if cfg.entropy_coef:
            loss = loss - cfg.entropy_coef * rlhf.masked_mean(new.entropy, batch.mask)
        (share * loss).backward()  # type: ignore[no-untyped-call]
    states = new.states.detach() if new.states is not None else None
    with _computing(cfg, runtime):
        values = _values(actors, batch, states)
        value = rlhf.value_loss(values, of(found.values), of(lesson.returns), batch.mask, cfg.cliprange_value)
        (share * cfg.value_coef * value.loss).backward()  # type: ignore[no-untyped-call]
    return {
        "policy_loss": float(policy.loss.detach()),
        "value_loss": float(value.loss.detach()),
        "ratio": policy.ratio,
        "clipped": policy.clipped,
        "value_clipped": value.clipped,
        "step_kl": policy.divergence,
    }


@contextlib.contextmanager
def _computing(cfg: Settings, runtime: Runtime) -> Any:
    """The number format: of adapters that of the frozen weights; of all weights autocast, since they are in float32."""
    import torch

    if cfg.mode == "full" and runtime.dtype != "float32":
        with torch.autocast(runtime.device, dtype=runtime.torch_dtype):
            yield
    else:
        yield


# ── Together ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Team:
    """The processes that compute one result together, through accelerate; one alone is a team too."""

    def __init__(self, runtime: Runtime) -> None:
        """Join the others.

        Raises:
            RuntimeError: accelerate sees other processes than were started.
        """
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=runtime.device == "cpu")
        self.size = self.accelerator.num_processes
        if self.size != runtime.processes:
            raise RuntimeError(f"accelerate sees {self.size} processes, {runtime.processes} were started")

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up over all processes."""
        if self.size == 1:
            return values
        found: torch.Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum").to(values.device)
        return found

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """Everybody's values, in the order of the processes."""
        if self.size == 1:
            return list(values)
        from accelerate.utils import gather_object

        return list(gather_object(list(values)))

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add gradients up over all processes, in one message for each number format."""
        import torch

        if self.size == 1:
            return
        for each in parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        for dtype in sorted({each.dtype for each in parameters}, key=str):
            own = [each.grad for each in parameters if each.dtype == dtype and each.grad is not None]
            flat, first = self.sum(torch.cat([grad.reshape(-1) for grad in own])), 0
            for grad in own:
                grad.copy_(flat[first : first + grad.numel()].view_as(grad))
                first += grad.numel()


@dataclass
class State:
    """All that a run is, beside its weights: what a checkpoint keeps."""

    update: int = 0
    """Updates that are done."""
    kl_coef: float = 0.0
    normal: tuple[float, float] | None = None
    """Mean and standard deviation of the scores of the first rollout, which the starting policy wrote."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One row for each update."""
    points: list[Point] = field(default_factory=list)
    """What the monitor saw."""
    alarms: list[Alarm] = field(default_factory=list)
    answers: dict[int, list[str]] = field(default_factory=dict)
    """Update → the policy's answers to the monitor's prompts: of the start and of the policy to keep."""
    kept: int = 0
    """The update whose policy is to be kept."""
    stopped: str | None = None
    """Why training ended early."""

    @classmethod
    def read(cls, path: Path) -> State:
        """What `write` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        told["normal"] = None if told["normal"] is None else (told["normal"][0], told["normal"][1])
        told["points"] = [
            Point._make(tuple(part) if isinstance(part, list) else part for part in each) for each in told["points"]
        ]
        told["alarms"] = [Alarm(*each) for each in told["alarms"]]
        told["answers"] = {int(update): texts for update, texts in told["answers"].items()}
        return cls(**told)

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        checkpoints.write_json(path, {name: getattr(self, name) for name in self.__dataclass_fields__})


class Trained(NamedTuple):
    """What came out of a run; the policy is the one to keep."""

    actors: Actors
    state: State


def optimise(
    actors: Actors,
    tokenizer: Any,
    prompts: Sequence[tuple[str, list[int]]],
    monitored: Sequence[tuple[str, list[int]]],
    reward: Reward,
    cfg: Settings,
    seed: int,
    *,
    judge: Callable[[Sequence[str]], Sequence[float | None]] | None,
    ptx: Sequence[Encoded],
    where: Path,
    runtime: Runtime,
    work: Path,
    log: Log,
) -> Trained:
    """Run PPO, continuing from the newest complete checkpoint under `work`.

    Args:
        actors: from `backbone.share` or `separate`, at the start.
        tokenizer: of the policy.
        prompts: text and ids of each training prompt.
        monitored: the same of those that the policy is monitored on.
        reward: what is to rise.
        cfg: how.
        seed: of prompts, responses and minibatches.
        judge: the monitor judge of harm; None without.
        ptx: the task's own pairs, for `ptx_coef`.
        where: folder of the reward, for messages.
        runtime: device, number format, processes.
        work: folder for checkpoints.
        log: progress.

    Raises:
        UserError: the reward gives no number, or always the same; there are too many processes.
        RuntimeError: the KL divergence is negative beyond chance: a defect.
    """
    import torch

    team = Team(runtime)
    shared_out(cfg, len(monitored), team.size)
    run = _Run(actors, tokenizer, reward, cfg, seed, where, runtime, team)
    policy, value = actors.policy_parameters(), actors.value_parameters()
    optimizer = torch.optim.AdamW(
        [{"params": policy, "lr": cfg.learning_rate}, {"params": value, "lr": cfg.value_learning_rate}],
        weight_decay=0.0,
    )
    state = State(kl_coef=cfg.kl.coef)
    kept = [each.detach().to("cpu", copy=True) for each in policy]
    resumed = checkpoints.newest(work)
    if resumed is not None:
        state = State.read(resumed / "state.json")
        _restore(resumed, actors, optimizer, kept)
    log.start(f"PPO, seed {seed}", cfg.updates, "update", first=state.update)

    def report(**values: float) -> None:
        """Log what was measured after so many updates; further seeds have keys of their own."""
        prefix = "" if seed == cfg.seeds[0] else f"seed_{seed}/"
        log(state.update, **{prefix + name: value for name, value in values.items()})

    def alarm(raised: Alarm, stop: bool = False) -> None:
        """Say it in the log, count it for MLflow, keep it for the report; and stop."""
        state.alarms.append(raised)
        state.stopped = raised.text if stop else state.stopped
        ending = f"; training stops, and update {state.kept}'s policy is kept" if stop else ""
        log.note(f"ALARM at update {raised.update}, {raised.kind}: {raised.text}{ending}")
        alike = sum(each.kind == raised.kind for each in state.alarms)
        report(**{"monitor/alarms": float(len(state.alarms)), f"monitor/alarms_{raised.kind}": float(alike)})

    def look() -> None:
        """Let the policy answer the monitor's prompts; keep it if it is the best."""
        nonlocal kept
        point, answers = run.look(monitored, judge, state.update)
        if not math.isfinite(point.kl):
            text = f"the policy's probabilities are no numbers after update {state.update}"
            alarm(Alarm(state.update, "divergence", text), stop=True)
            return
        state.points.append(point)
        for each in monitoring.alarms(state.points[0], point):
            alarm(each)
        if monitoring.best(state.points, cfg.kl.limit).update == state.update:
            state.kept = state.update
            state.answers = {0: state.answers.get(0, answers), state.update: answers}
            kept = [each.detach().to("cpu", copy=True) for each in policy]
        seen = {name: each for name, each in monitored_at(point).items() if each is not None}
        report(
            **{f"monitor/{name}": each for name, each in seen.items()}, **{"monitor/alarms": float(len(state.alarms))}
        )

    if not state.points:
        look()
    while state.update < cfg.updates and state.stopped is None:
        began = time.perf_counter()
        update = state.update + 1
        # 1–2. Roll out, and let all roles read it.
        chosen = [each for each in choose(len(prompts), cfg.prompts, seed, update) for _ in range(cfg.samples)]
        episodes, dealt, found = run.rollout(prompts, chosen, [seed, update], cfg.minibatches)
        rolled = time.perf_counter()
        row = run.seen(episodes, found) | {"kl_coef": state.kl_coef}
        if state.normal is None:
            state.normal = run.normal(found)
        astray = run.astray(row, update)
        if astray is not None:
            alarm(astray, stop=True)
            break
        # 3–4. Estimate, and learn.
        order = [seed, update] if reward.shuffled else None
        lesson = estimate(found, episodes, rlhf.Normalization(*state.normal), state.kl_coef, cfg, team, order)
        row |= run.explained(found, lesson)
        for group, peak in zip(optimizer.param_groups, (cfg.learning_rate, cfg.value_learning_rate), strict=True):
            group["lr"] = peak * rate(update, cfg.warmup_updates, cfg.updates)
        task = _task_batches(ptx, cfg, seed, update, tokenizer, actors, runtime) if cfg.ptx_coef else None
        try:
            row |= learn(actors, optimizer, dealt, found, lesson, cfg, [seed, update], team, runtime, task)
        except Diverged:
            alarm(Alarm(update, "gradient", f"the gradient of update {update} is not finite"), stop=True)
            break
        state.kl_coef = controller(cfg, state.kl_coef).after(row["kl"], len(chosen)).coef
        state.update = update
        state.curve.append({"update": update, **row})
        log.measure(
            **{
                "rollout_seconds": round(log.measured.get("rollout_seconds", 0.0) + rolled - began, 3),
                "learn_seconds": round(log.measured.get("learn_seconds", 0.0) + time.perf_counter() - rolled, 3),
            }
        )
        report(**{name: row[name] for name in SHOWN})
        if update % cfg.monitor_updates == 0 or update == cfg.updates:
            look()
        if update % cfg.checkpoint_updates == 0 or update == cfg.updates:
            if runtime.rank == 0:
                checkpoints.save(
                    work, f"checkpoint-{update}", lambda folder: _keep(folder, state, actors, optimizer, kept)
                )
                _forget(work, update)
            team.accelerator.wait_for_everyone()
    with torch.no_grad():
        for each, good in zip(policy, kept, strict=True):
            each.copy_(good)
    return Trained(actors, state)


def shared_out(cfg: Settings, monitored: int, processes: int) -> None:
    """Check that there is something to do for every process, in every minibatch.

    Raises:
        UserError: there is not.
    """
    responses = cfg.prompts * cfg.samples
    if responses // processes < cfg.minibatches or monitored < processes:
        raise UserError(
            f"{processes} processes share {responses} responses of a rollout in {cfg.minibatches} minibatches, and "
            f"{monitored} prompts to be monitored on: some would have none",
            where="params.yaml: ppo",
            expected=f"at least {processes * cfg.minibatches} responses (prompts x samples), and {processes} monitor_items",
            fix="raise ppo.prompts or ppo.monitor_items, or start fewer processes (params.yaml: launch)",
            exit_code=2,
        )


SHOWN = ("reward", "kl", "kl_coef", "entropy", "tokens", "finished", "clipped", "step_kl", "value_loss", "explained")
"""What is logged of every update."""


def rate(update: int, warmup: int, updates: int) -> float:
    """Share of the peak learning rate at an update, counted from 1: linear up, then linear to zero."""
    if update <= warmup:
        return update / warmup
    return (updates - update + 1) / max(1, updates - warmup)


def controller(cfg: Settings, coef: float) -> rlhf.FixedKL | rlhf.AdaptiveKL:
    """What steers β."""
    if cfg.kl.target is None:
        return rlhf.FixedKL(coef)
    return rlhf.AdaptiveKL(coef, cfg.kl.target, cfg.kl.horizon)


class _Run(NamedTuple):
    """What stays the same in all updates of a run."""

    actors: Actors
    tokenizer: Any
    reward: Reward
    cfg: Settings
    seed: int
    where: Path
    runtime: Runtime
    team: Team

    def rollout(
        self, prompts: Sequence[tuple[str, list[int]]], chosen: Sequence[int], seed: Sequence[int], minibatches: int = 1
    ) -> tuple[list[Episode], list[Minibatch], Reading]:
        """Steps 1 and 2."""
        ids = [each for _, each in prompts]
        episodes = roll_out(self.actors, self.tokenizer, ids, chosen, self.cfg, seed, self.runtime)
        chance = [*seed, DEALT, self.runtime.rank]  # every process deals its own responses, and not all alike
        dealt = deal(episodes, minibatches, self.cfg.micro_batch, self.tokenizer, self.actors, chance)
        parts = [part for group in dealt for part in group]
        texts = [prompts[each.prompt][0] for each in episodes], self.written(episodes)
        found = read(self.actors, episodes, parts, texts, self.reward, self.cfg, self.runtime, self.where)
        return episodes, dealt, found

    def written(self, episodes: Sequence[Episode]) -> list[str]:
        """The responses as text."""
        return [str(self.tokenizer.decode(each.row.completion, skip_special_tokens=True)) for each in episodes]

    def normal(self, found: Reading) -> tuple[float, float]:
        """The scale of the reward's scores, from the first rollout.

        Raises:
            UserError: they are all the same.
        """
        try:
            return rlhf.Normalization.of(self.team.gather(found.scores.tolist()))
        except ValueError as error:
            raise UserError(
                f"nothing can be learnt from this reward: {error}",
                where=str(self.where),
                expected="scores that differ between the starting policy's responses",
                fix="train the reward for longer (params.yaml: reward), or sample with a higher ppo.temperature",
            ) from None

    def seen(self, episodes: Sequence[Episode], found: Reading) -> dict[str, float]:
        """What a rollout tells, over all processes.

        Raises:
            RuntimeError: the KL divergence is negative beyond chance.
        """
        k1, k3 = rlhf.response_divergences(found.logprobs, found.ref_logprobs, found.mask)
        told = self.team.gather(
            [
                {
                    "score": float(score),
                    "kl": float(kl),
                    "k3": float(other),
                    "entropy": float(entropy),
                    "tokens": len(each.row.completion),
                    "finished": each.finished,
                    "silent": not text.strip(),
                    "repetition": monitoring.repetition(each.row.completion),
                }
                for each, text, score, kl, other, entropy in zip(
                    episodes,
                    self.written(episodes),
                    found.scores,
                    k1,
                    k3,
                    found.entropy.sum(dim=1),
                    strict=True,
                )
            ]
        )
        count, tokens = len(told), sum(each["tokens"] for each in told)
        divergence = rlhf.Divergence.of([each["kl"] for each in told], [each["k3"] for each in told])
        kl, error, *_ = divergence
        if rlhf.impossible(divergence):
            raise RuntimeError(
                f"the KL divergence from the starting policy is {kl:.3g} ± {error:.2g} nats, and none is negative: the "
                "probabilities are not those that the responses were drawn with"
            )
        return {
            "reward": math.fsum(each["score"] for each in told) / count,
            "kl": kl,
            "kl_error": error if count > 1 else 0.0,
            "k3": divergence.k3,
            "entropy": math.fsum(each["entropy"] for each in told) / tokens,
            "tokens": tokens / count,
            "finished": sum(each["finished"] for each in told) / count,
            "silent": sum(each["silent"] for each in told) / count,
            "repetition": math.fsum(each["repetition"] for each in told) / count,
        }

    def astray(self, row: dict[str, float], update: int) -> Alarm | None:
        """Why training must not go on; None where it may.

        Raises:
            UserError: the starting policy already says nothing at all.
        """
        if not math.isfinite(row["kl"]) or row["kl"] > self.cfg.kl.limit:
            text = f"KL divergence {row['kl']:.3g} nats a response, the limit is {self.cfg.kl.limit:g} (ppo.kl.limit)"
            return Alarm(update, "divergence", text)
        if row["silent"] < 1.0:
            return None
        if update == 1:
            raise UserError(
                "every response of the starting policy is empty: there is nothing to reward",
                where="the policy that PPO starts from",
                expected="a policy that answers",
                fix="look at artifacts/feedback/completions.jsonl; align another policy (params.yaml: align)",
            )
        return Alarm(update, "silence", "every response is empty")

    def explained(self, found: Reading, lesson: Estimate) -> dict[str, float]:
        """Share of the returns' variance that the values explain: 1 is all, below 0 worse than their mean."""
        import torch

        kept = found.mask
        returns, errors = lesson.returns[kept], (lesson.returns - found.values)[kept]
        one = torch.ones((), device=returns.device)
        n, s, e, ss, ee = self.team.sum(
            torch.stack([one * len(returns), returns.sum(), errors.sum(), (returns**2).sum(), (errors**2).sum()])
        ).tolist()
        spread, left = ss / n - (s / n) ** 2, ee / n - (e / n) ** 2
        return {"explained": 1.0 - left / spread if spread > 1e-12 else 0.0, "returns": s / n}

    def look(
        self,
        monitored: Sequence[tuple[str, list[int]]],
        judge: Callable[[Sequence[str]], Sequence[float | None]] | None,
        update: int,
    ) -> tuple[Point, list[str]]:
        """The policy's answers to the monitor's prompts, drawn with the same numbers every time."""
        places = list(range(len(monitored)))
        episodes, _, found = self.rollout(monitored, places, [self.seed, MONITOR])
        texts = self.written(episodes)
        harms = judge(texts) if judge is not None else [None] * len(texts)
        k1, _ = rlhf.response_divergences(found.logprobs, found.ref_logprobs, found.mask)
        told = self.team.gather(
            list(
                zip(
                    [each.prompt for each in episodes],
                    k1.tolist(),
                    found.scores.tolist(),
                    [None if each is None else float(each) for each in harms],
                    [len(each.row.completion) for each in episodes],
                    [monitoring.repetition(each.row.completion) for each in episodes],
                    found.ref_logprobs.sum(dim=1).tolist(),
                    [each.finished for each in episodes],
                    texts,
                    strict=True,
                )
            )
        )
        _, kl, scores, judged, lengths, again, surprise, finished, answers = zip(
            *sorted(told, key=lambda each: each[0]), strict=True
        )
        point = Point(
            update,
            math.fsum(kl) / len(kl),
            tuple(scores),
            tuple(judged),
            tuple(lengths),
            tuple(again),
            math.exp(min(50.0, -math.fsum(surprise) / sum(lengths))),
            sum(not each.strip() for each in answers) / len(answers),
            sum(finished) / len(finished),
        )
        return point, list(answers)


def _task_batches(
    pairs: Sequence[Encoded], cfg: Settings, seed: int, update: int, tokenizer: Any, actors: Actors, runtime: Runtime
) -> Callable[[int], dict[str, Any]]:
    """Which step of an update → a batch of the task's own pairs."""
    import numpy as np

    def batch(step: int) -> dict[str, Any]:
        random = np.random.default_rng([seed, update, step, runtime.rank])
        rows = [pairs[each] for each in random.choice(len(pairs), min(cfg.micro_batch, len(pairs)), replace=False)]
        found = losses.collate(rows, tokenizer.pad_token_id, losses.start_token(actors))
        return {name: each.to(actors.device) for name, each in found.items()}

    return batch


# ── What a kill does not lose ───────────────────────────────────────────────────────────────────────────────────────


def _keep(folder: Path, state: State, actors: Actors, optimizer: Any, kept: Sequence[torch.Tensor]) -> None:
    """Write a checkpoint: weights, optimizer, and all else there is."""
    import safetensors.torch

    tensors = {f"parameter.{at}": each.detach() for at, each in enumerate(actors.parameters())}
    tensors |= {f"kept.{at}": each for at, each in enumerate(kept)}
    for at, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{at}.{name}": each for name, each in moments.items()}
    safetensors.torch.save_file(
        {name: each.contiguous().cpu() for name, each in tensors.items()}, folder / "tensors.safetensors"
    )
    state.write(folder / "state.json")


def _restore(folder: Path, actors: Actors, optimizer: Any, kept: Sequence[torch.Tensor]) -> None:
    """Read a checkpoint back."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
    with torch.no_grad():
        for name, own in (("parameter", actors.parameters()), ("kept", kept)):
            for at, each in enumerate(own):
                each.copy_(tensors[f"{name}.{at}"])
    moments: dict[int, dict[str, Any]] = {}
    for key, moment in tensors.items():
        if key.startswith("optimizer."):
            _, number, what = key.split(".")
            moments.setdefault(int(number), {})[what] = moment
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _forget(work: Path, update: int) -> None:
    """Delete the checkpoints before this one."""
    for each in work.glob("checkpoint-*"):
        if each.name != f"checkpoint-{update}":
            shutil.rmtree(each)


# ── What is written down ────────────────────────────────────────────────────────────────────────────────────────────


def updates_csv(state: State) -> str:
    """The training curve: one line for each update."""
    return _csv([{name: each[name] for name in COLUMNS} for each in state.curve])


COLUMNS = (
    *("update", "reward", "kl", "kl_error", "k3", "kl_coef", "entropy", "tokens", "finished", "silent", "repetition"),
    *(
        "returns",
        "explained",
        "policy_loss",
        "value_loss",
        "ratio",
        "clipped",
        "value_clipped",
        "step_kl",
        "first_step_kl",
    ),
    *("gradient", "value_gradient"),
)
"""Of updates.csv, in its order."""


def monitor_csv(state: State) -> str:
    """What the monitor saw: one line for each look."""
    return _csv([{"update": each.update, **monitored_at(each)} for each in state.points])


def monitored_at(point: Point) -> dict[str, float | None]:
    """Everything that the monitor watches, as it stood at one look: means over its prompts."""
    return {
        "kl": point.kl,
        "reward": monitoring.mean(point.rewards),
        "harm": monitoring.mean(point.harms),
        "tokens": monitoring.mean(point.lengths),
        "repetition": monitoring.mean(point.repetitions),
        "perplexity": point.perplexity,
        "silent": point.silent,
        "finished": point.finished,
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["update"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: "" if each is None else round(each, 6) if isinstance(each, float) else each
                for name, each in row.items()
            }
        )
    return text.getvalue()
