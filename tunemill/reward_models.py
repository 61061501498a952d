"""Reward models: a low-rank adapter and a linear head, taught by pairs which of two answers to a prompt people prefer.

Bradley and Terry's (1952) model of preferences, as Stiennon et al. (2020) and Ouyang et al. (2022) train it: the first of two
answers is preferred with probability σ(r(x, y₁) − r(x, y₂)). So a reward is known only up to a function of the prompt, and has no
bias. It is linear in the hidden state after the last norm that has read the whole answer (`backbone.end_states`), as PPO reads it.

Decoder-only models are trained by TRL's `RewardTrainer` as what it wants, a sequence classifier with one label; encoder-decoders,
which it refuses, by transformers' `Trainer` with the same loss. Set up here is

- one set of weights: the classifier is made around the language model's own layers, so what was trained is there in the language
  model too, under the names that PPO knows, and a further training (another fold) needs no further model;
- soft labels, which TRL has not: where people disagree, the share of them that prefers the one (`rlhf.preference_loss`);
- every prompt counts the same: pairs are drawn by their weights, each as often as its weight says, give or take one;
- where an answer ends is no question: batches are padded with a token that stands in no text;
- the head's start. From zero it would spend a short training on what a regression finds at once: it begins as the best linear
  reward of the untrained model's states (`pairwise.fit`), and adapter and head go on from there, as Kumar et al. (2022, "Fine-tuning
  can distort pretrained features") advise: first the head, then all;
- checkpoints that are sealed with a manifest of hashes: training continues from the newest complete one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tunemill import backbone, checkpoints, losses, rlhf, sampling, tuning
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.records import Completions, Preference
from tunemill.runtime import Runtime, out_of_memory

NAME = "reward_head"
"""What the head is called in an encoder-decoder that is being trained; in a classifier transformers calls it `score`."""


class Head(torch.nn.Module):
    """A linear reward, computed in float32 whatever the states are in; PEFT trains a copy of it beside the adapter."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())
        """(H,)."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, H) → (…, 1)."""
        return backbone.linear(states, self.weight)[..., None]


class Pair(NamedTuple):
    """Two answers to a prompt, by their places among the rows; the first is preferred."""

    chosen: int
    rejected: int
    probability: float
    """Share of people who prefer it."""
    weight: float


class Data(NamedTuple):
    """Pairs as token ids."""

    rows: list[Encoded]
    """Each answer to each prompt once."""
    pairs: list[Pair]
    kept: list[int]
    """Of each pair, which of the preferences it is."""
    cut: int
    """Rows whose end was cut off."""
    left_out: dict[str, int]
    """Reason → preferences that are no pairs."""


class Settings(NamedTuple):
    """How a training goes."""

    steps: int
    batch_size: int
    """Pairs in a step."""
    learning_rate: float
    """Peak AdamW learning rate; linear to zero."""
    warmup_steps: int
    max_grad_norm: float
    checkpoint_steps: int


class Point(NamedTuple):
    """One step of a training."""

    step: int
    loss: float
    accuracy: float
    """Share of the step's pairs that are told right, before it."""
    learning_rate: float


# ── the data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def encode(tokenizer: Any, preferences: Sequence[Preference], max_tokens: int) -> Data:
    """Pairs as PPO will see them: the prompt in the chat template, the answer with its end.

    An answer that goes on beyond `max_tokens`, prompt included, is cut off there and has no end then: it was longer. (What the policy
    had to leave off at its own limit is read with one, see `rewards.ended`.)

    Args:
        tokenizer: of the policy.
        preferences: the pairs.
        max_tokens: longest row.
    """
    from tunemill.models import render_completion, render_prompt

    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    pairs: list[Pair] = []
    kept: list[int] = []
    cut: set[int] = set()
    left_out = {"prompt_too_long": 0, "same_when_cut": 0}
    for number, each in enumerate(preferences):
        prompt = render_prompt(tokenizer, each.prompt)
        room = max_tokens - len(prompt)
        if room < 1:
            left_out["prompt_too_long"] += 1
            continue
        whole = [render_completion(tokenizer, text) for text in (each.chosen, each.rejected)]
        chosen, rejected = (ids[:room] for ids in whole)
        if chosen == rejected:
            left_out["same_when_cut"] += 1
            continue
        places = [rows.setdefault((tuple(prompt), tuple(ids)), len(rows)) for ids in (chosen, rejected)]
        cut |= {place for place, ids in zip(places, whole, strict=True) if len(ids) > room}
        pairs.append(Pair(places[0], places[1], each.probability, each.weight))
        kept.append(number)
    encoded = [Encoded(list(prompt), list(ids)) for prompt, ids in rows]
    return Data(encoded, pairs, kept, len(cut), left_out)


class Answered(NamedTuple):
    """Answers of the policy, to see what a reward makes of their length."""

    rows: list[Encoded]
    prompts: list[int]
    """Whose answer each is."""
    left_out: int
    """Prompts that leave no room for an answer."""

    @property
    def tokens(self) -> list[int]:
        """Of each answer, its end among them."""
        return [len(row.completion) for row in self.rows]

    @property
    def differ(self) -> bool:
        """Whether some prompt has answers of different lengths."""
        return len({*self.prompts}) < len({*zip(self.prompts, self.tokens, strict=True)})


def answered(tokenizer: Any, sampled: Sequence[Completions], max_tokens: int) -> Answered:
    """The policy's own answers, as a reward model reads them: what is too long is cut, and all have an end (`rewards.ended`)."""
    from tunemill.models import render_completion, render_prompt

    rows, prompts, left_out = [], [], 0
    for number, each in enumerate(sampled):
        prompt = render_prompt(tokenizer, each.prompt)
        room = max_tokens - len(prompt)
        left_out += room < 1
        for text in each.completions if room >= 1 else ():
            ids = render_completion(tokenizer, text)
            rows.append(Encoded(prompt, ids if len(ids) <= room else [*ids[: room - 1], ids[-1]]))
            prompts.append(number)
    return Answered(rows, prompts, left_out)


def fits(config: Any, rows: Sequence[Encoded]) -> None:
    """Refuse rows that are longer than the model has positions for.

    Raises:
        UserError: the longest is.
    """
    most = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, rows), default=0)
    if most is not None and longest > most:
        raise UserError(
            f"the longest answer with its prompt has {longest} tokens",
            where="params.yaml: reward.max_tokens",
            expected=f"at most {most}, the positions that the model has",
            fix=f"lower max_tokens to {most}: what is longer is cut, and counted",
            exit_code=2,
        )


def unused_token(tokenizer: Any, rows: Sequence[Encoded]) -> int:
    """A token to pad with that stands in no row: its own padding, or else any word that nobody uses."""
    used = {token for row in rows for token in (*row.prompt, *row.completion)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return int(tokenizer.pad_token_id)
    spare: int = min(set(tokenizer.get_vocab().values()) - used)
    return spare


def draw(weights: np.ndarray, count: int, seed: int) -> list[int]:
    """Which pairs to train on: each `count` times its share of the weights, give or take one, in random order.

    By systematic sampling (Madow 1949): one random start and equal steps through the weights, which lie in random order.

    Args:
        weights: (n,) above 0.
        count: how many to draw.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(weights))
    reached = np.cumsum(weights[order]) / weights.sum()
    places = np.minimum(np.searchsorted(reached, (random.random() + np.arange(count)) / count, "right"), len(order) - 1)
    found: list[int] = random.permutation(order[places]).tolist()
    return found


# ── what is trained ───────────────────────────────────────────────────────────────────────────────────────────────


class Trainee(NamedTuple):
    """A language model with an adapter and a head on it."""

    policy: Any
    """The PEFT model that is trained: of a sequence classifier around the language model, or of an encoder-decoder itself."""
    language_model: Any
    """Runs with the adapter while that is on."""
    name: str
    """Of the head in it."""

    @property
    def head(self) -> torch.Tensor:
        """(H,) as it is now."""
        module = getattr(self.policy.get_base_model(), self.name)
        weight: torch.Tensor = module.modules_to_save["default"].weight
        return weight.detach()

    def release(self) -> None:
        """Take adapter and head off: the language model is as it was."""
        self.policy.unload()
        if self.name == NAME:
            del self.language_model.reward_head


def attach(model: Any, adapter: Any, head: torch.Tensor) -> Trainee:
    """Put an adapter that changes nothing yet, and a head, on a language model.

    Args:
        model: decoder-only or encoder-decoder; its weights stay frozen.
        adapter: PEFT's configuration.
        head: (H,) to start from.

    Raises:
        UserError: the adapter does not fit the model, or transformers has no classifier for it.
    """
    from peft import TaskType

    adapter = copy.copy(adapter)
    if model.config.is_encoder_decoder:
        model.reward_head = Head(head)
        adapter.modules_to_save = [NAME]
        return Trainee(tuning.adapt(model, adapter, "reward"), model, NAME)
    adapter.modules_to_save = ["score"]
    return Trainee(tuning.adapt(classifier(model, head), adapter, "reward", task=TaskType.SEQ_CLS), model, "score")


def classifier(model: Any, head: torch.Tensor) -> Any:
    """A sequence classifier with one label around a decoder-only language model's own layers: no weight is there twice.

    Raises:
        UserError: transformers has none for this architecture.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # its own layers are thrown away
            found = AutoModelForSequenceClassification.from_config(config)
        if not hasattr(found, "score") or not hasattr(found, model.base_model_prefix):
            raise ValueError("its classifier is built otherwise")
    except ValueError:
        raise UserError(
            f"transformers has no sequence classifier of {model.config.model_type} to train as a reward model",
            where="reward",
            expected="a decoder-only model of a common architecture, or an encoder-decoder",
        ) from None
    setattr(found, model.base_model_prefix, model.base_model)
    found.score = Head(head).to(model.device)
    return found.eval()


def scores(trainee: Trainee, inputs: Any) -> torch.Tensor:
    """Rewards of a batch, (B,), with a gradient."""
    if trainee.name == NAME:
        batch = backbone.Batch(**inputs)
        states = backbone.end_states(trainee.language_model, batch)
        found: torch.Tensor = trainee.language_model.reward_head(states)[:, 0]
        return found
    found = trainee.policy(**inputs, use_cache=False).logits[:, 0]
    return found


def train(
    trainee: Trainee,
    tokenizer: Any,
    data: Data,
    pairs: Sequence[Pair],
    settings: Settings,
    seed: int,
    *,
    runtime: Runtime,
    work: Path,
    log: Log,
    title: str,
) -> list[Point]:
    """Teach adapter and head some pairs, continuing from the newest complete checkpoint under `work`.

    Args:
        trainee: from `attach`, always the same for one `work`.
        tokenizer: of the model.
        data: whose rows the pairs are of.
        pairs: to learn.
        settings: steps, batches, learning rate.
        seed: of the order of the pairs.
        runtime: device and number format.
        work: folder for checkpoints.
        log: progress.
        title: what is being done, for the log.

    Raises:
        UserError: memory runs out, or a gradient is no number.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    # 1. Which pairs make which step: drawn by weight, those of like length together.
    drawn = [
        pairs[at] for at in draw(np.array([pair.weight for pair in pairs]), settings.steps * settings.batch_size, seed)
    ]
    lengths = [max(len(data.rows[pair.chosen]), len(data.rows[pair.rejected])) for pair in drawn]
    plan = tuning.plan_batches(lengths, settings.batch_size, settings.steps, seed)
    rows = [
        # The names under which RewardTrainer takes token ids as they are.
        {
            "chosen_ids": [pair.chosen],
            "rejected_ids": [pair.rejected],
            "probability": pair.probability,
        }
        for batch in plan
        for pair in (drawn[at] for at in batch)
    ]
    pad, start = unused_token(tokenizer, data.rows), losses.start_token(trainee.language_model)

    def collate(given: Sequence[dict[str, Any]]) -> dict[str, Any]:
        both = [data.rows[row[name][0]] for name in ("chosen_ids", "rejected_ids") for row in given]
        batch = backbone.collate(both, pad, start)
        probability = torch.tensor([row["probability"] for row in given])
        if start is None:
            return {**batch.inputs, "probability": probability}
        return {**batch._asdict(), "probability": probability}

    # 2. Where to go on.
    curve = work / "curve.jsonl"
    resume = checkpoints.newest(work)
    first = int(resume.name.removeprefix("checkpoint-")) if resume else 0
    points = [point for point in _read_curve(curve) if point.step <= first]
    if len(points) < first:
        resume, first, points = None, 0, []  # weights without their curve: not what a checkpoint of ours looks like
    right: list[float] = []  # of the step that is being computed

    def loss(inputs: dict[str, Any]) -> torch.Tensor:
        given = dict(inputs)
        probability = given.pop("probability")
        chosen, rejected = scores(trainee, given).chunk(2)
        right.append(float(((chosen > rejected).float() + 0.5 * (chosen == rejected)).mean()))
        return rlhf.preference_loss(chosen, rejected, probability).mean()

    class Follow(TrainerCallback):  # type: ignore[misc]  # the hook that transformers offers; it holds no logic of its own
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if not tuning.finite(given["model"]):
                raise UserError(
                    f"the gradient of step {state.global_step + 1} is not finite",
                    where="reward",
                    expected="a loss that stays finite",
                    fix="lower reward.learning_rate or reward.max_grad_norm",
                )

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                accuracy = sum(right) / len(right)
                right.clear()
                points.append(Point(state.global_step, float(logs["loss"]), accuracy, float(logs["learning_rate"])))
                log(state.global_step, loss=points[-1].loss, accuracy=accuracy, learning_rate=points[-1].learning_rate)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoints.write_text(curve, "".join(json.dumps(point) + "\n" for point in points))
            checkpoints.seal(work / f"checkpoint-{state.global_step}")

    # 3. Train.
    trainer = _trainer(trainee, tokenizer, pad, Dataset.from_list(rows), collate, loss, settings, seed, runtime, work)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())
    log.start(title, settings.steps, "step", first)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"memory ran out with {settings.batch_size} pairs in a step",
            where="params.yaml: reward.batch_size",
            fix="lower it, or reward.max_tokens",
        ) from None
    trainee.policy.eval()
    return points


def _trainer(
    trainee: Trainee,
    tokenizer: Any,
    pad: int,
    dataset: Any,
    collate: Any,
    loss: Any,
    settings: Settings,
    seed: int,
    runtime: Runtime,
    work: Path,
) -> Any:
    """The library's trainer for the model's family, with this module's loss."""
    arguments: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": 0.0,
        "max_grad_norm": settings.max_grad_norm,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",  # the plan is the order
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "use_cpu": runtime.device == "cpu",
        "bf16": False,  # frozen weights are in the runtime's format already, adapter and head in float32
        "fp16": False,
        "activation_checkpointing": False,
        "seed": seed,
        "data_seed": seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": runtime.device == "cuda",
        "remove_unused_columns": False,
        "push_to_hub": False,
    }
    for module in trainee.policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # what is learnt is what is read off later
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    given: dict[str, Any] = {"processing_class": tokenizer, "train_dataset": dataset, "data_collator": collate}
    if trainee.name == NAME:
        from transformers import Trainer, TrainingArguments

        class PreferenceTrainer(Trainer):  # type: ignore[misc]  # the library's own way to another loss: override compute_loss
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                return loss(inputs)

        settled = TrainingArguments(**arguments)
        tuning.one_device(settled)
        return PreferenceTrainer(trainee.policy, args=settled, **given)
    from trl import RewardConfig, RewardTrainer

    class SoftRewardTrainer(RewardTrainer):  # type: ignore[misc]  # as above
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return loss(inputs)

    settled = RewardConfig(**arguments, max_length=None)
    tuning.one_device(settled)
    return SoftRewardTrainer(trainee.policy, args=settled, **given)


def _read_curve(path: Path) -> list[Point]:
    if not path.is_file():
        return []
    return [Point(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


# ── what comes out ────────────────────────────────────────────────────────────────────────────────────────────────


def states(model: Any, rows: Sequence[Encoded], pad: int, *, batch_tokens: int, title: str, log: Log) -> np.ndarray:
    """The hidden states that have read the whole answers, as PPO reads them: (n, H) in float32.

    Args:
        model: the language model, with or without an adapter.
        rows: prompts and answers.
        pad: any id.
        batch_tokens: most tokens of a batch, padding included.
        title: what is being done, for the log.
        log: told of every batch.
    """
    start = losses.start_token(model)
    found = np.zeros((len(rows), backbone.width(model.config)), dtype=np.float32)
    log.start(title, len(rows), "answer")
    done = 0
    for items in sampling.plan([len(row) for row in rows], 0, batch_tokens, len(rows)):
        batch = backbone.collate([rows[item] for item in items], pad, start).to(model.device)
        with torch.inference_mode():
            found[list(items)] = backbone.end_states(model, batch).float().cpu().numpy()
        done += len(items)
        log(done)
    return found


def save(trainee: Trainee, folder: Path) -> None:
    """Write adapter and head, for the language model that PPO loads; the same ones always give the same bytes.

    Raises:
        UserError: the classifier calls its layers by other names than the language model.
    """
    import safetensors.torch
    from peft import TaskType, get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(trainee.policy.peft_config["default"])
    config.task_type = TaskType.SEQ_2_SEQ_LM if trainee.name == NAME else TaskType.CAUSAL_LM
    config.modules_to_save, config.inference_mode = None, True
    config.save_pretrained(folder)
    tuning.settle(folder)
    known = dict(trainee.language_model.named_modules())
    weights = {}
    for name, each in get_peft_model_state_dict(trainee.policy).items():
        layer, _, _ = name.removeprefix("base_model.model.").partition(".lora_")
        if layer == f"{trainee.name}.weight":
            continue
        if layer not in known:
            raise UserError(
                f"the language model has no layer {layer}, which its classifier has",
                where="reward",
                expected="an architecture whose two models share the names of their layers",
            )
        weights[name] = each.contiguous().cpu()
    safetensors.torch.save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    safetensors.torch.save_file({"weight": trainee.head.float().cpu().contiguous()}, folder / backbone.HEAD)
