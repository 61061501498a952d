"""Supervised tuning on prompt-completion pairs, with the loss on the completion only, for every method and both families.

TRL's `SFTTrainer` trains decoder-only models, transformers' `Seq2SeqTrainer` encoder-decoders; set up here is what makes them
fast on a small machine, exact, and hard to break:

- Batches of rows of like length (little padding), logits for the completions' window only (`tunemill.losses`).
- The loss is a mean over all completion tokens of an optimizer step, however its rows are spread over micro-batches and
  processes: the same rows give the same step.
- Checkpoints are sealed with a manifest of hashes, and training continues from the newest complete one.
- Where memory runs out, micro-batches are made smaller and more; where a gradient is no number, training goes back to
  the last checkpoint with a lower learning rate, once. Both are recorded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from tunemill import checkpoints, losses
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.params import Params
from tunemill.runtime import Runtime, free_bytes, out_of_memory, release

LOWERED = 0.3
"""What the learning rate is multiplied by after a gradient that was no number."""


class Training(Params):
    """What every tuning stage has in its section."""

    learning_rate: float = Field(gt=0, le=10)
    """Peak AdamW learning rate."""
    warmup_steps: int = Field(ge=0)
    """Steps until the peak; afterwards linear to zero."""
    weight_decay: float = Field(ge=0, le=1)
    """AdamW weight decay."""
    max_grad_norm: float = Field(gt=0)
    """Gradients are clipped to this norm."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Pairs in one forward pass."""
    accumulation: int = Field(ge=1)
    """Forward passes in one optimizer step; batch_size x accumulation pairs, over all processes."""
    sharding: Literal["none", "fsdp"]
    """How several processes hold the model: none, each has all of it (DDP); fsdp, each has a part (FSDP2, ZeRO-3)."""
    recompute: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    max_tokens: int = Field(ge=16)
    """Longer pairs are left out of training (counted in the metrics)."""
    validation_items: int = Field(ge=0)
    """Pairs that the validation loss is measured on; 0 turns it off."""
    validation_steps: int = Field(ge=0)
    """Steps between two such measurements."""
    checkpoint_steps: int = Field(ge=1)
    """Steps between two checkpoints: what a kill can cost."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One training for each; the outputs of the first have the plain name, the others end in `-<seed>`."""


class Mixture(Params):
    """Other tasks to learn beside the one being tuned for (FLAN, Wei et al. 2022)."""

    tasks: tuple[str, ...]
    """Their names, of collect.tasks; none: the one task alone."""
    temperature: float = Field(gt=0)
    """1 draws tasks by their sizes, a large one all equally often (Raffel et al. 2020, section 3.5.2)."""
    cap: int = Field(ge=1)
    """No task counts as larger than this."""


class Data(NamedTuple):
    """Encoded pairs, checked."""

    train: list[Encoded]
    validation: list[Encoded]
    too_long: int
    """Training pairs left out."""
    tasks: tuple[str, ...] = ()
    """Other tasks that `train` has pairs of."""


class Point(NamedTuple):
    """One point of the training curve; `validation_loss` is None where it was not measured."""

    step: int
    loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    tokens: int


class Trained(NamedTuple):
    """What came out of a training."""

    policy: Any
    """The adapted model, on its device."""
    points: list[Point]
    """The training curve."""
    micro_batch: int
    """Pairs in one forward pass in the end: smaller than asked for where memory ran out."""
    learning_rate: float
    """The peak in the end: lower than asked for where a gradient was no number."""
    planned: dict[str, int]
    """Bytes that the process was to take at its peak, by what they are for, and their total."""


class Objective(NamedTuple):
    """Another loss than the cross-entropy of the completions."""

    loss: Callable[[Any, dict[str, Any], Any, int], Any]
    """(model, what `losses.collate` gives, number to divide the sum by, virtual tokens) → a scalar, as `losses.completion_loss`."""
    held: int = 0
    """Bytes of what it reads beside the model: a frozen teacher's."""


class Diverged(Exception):  # an event that is handled, not an error that is shown
    """A gradient that is not finite, before it touched the weights."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the gradient of step {step} is not finite")
        self.step = step


# ── the data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(
    cfg: Training, tokenizer: Any, train: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]], section: str
) -> Data:
    """Encode the pairs, check that something can be learnt from them, and leave out what is too long.

    Args:
        cfg: of the stage.
        tokenizer: of the model.
        train: prompts and completions.
        validation: those that the curve is measured on, evenly thinned to `validation_items`.
        section: of params.yaml, for messages.

    Raises:
        UserError: no pair fits, every completion is empty, or prompt and tokenizer do not fit each other.
    """
    encoded = [encode(tokenizer, *pair) for pair in train]
    check(tokenizer, encoded)
    fitting = [row for row in encoded if len(row) <= cfg.max_tokens]
    if not fitting:
        raise UserError(
            f"none of the {len(encoded)} training pairs has at most {cfg.max_tokens} tokens",
            where=f"params.yaml: {section}.max_tokens",
            fix="raise it, or shorten the data",
        )
    kept = [row for row in (encode(tokenizer, *pair) for pair in validation) if len(row) <= cfg.max_tokens]
    return Data(fitting, spread(kept, cfg.validation_items), len(encoded) - len(fitting))


def mix(
    cfg: Training,
    mixture: Mixture,
    tokenizer: Any,
    data: Data,
    others: Mapping[str, Sequence[tuple[str, str]]],
    section: str,
) -> Data:
    """Mix other tasks into the training pairs: what is drawn, in random order, is exactly what the steps need.

    Args:
        cfg: of the stage.
        mixture: which tasks, and how often each.
        tokenizer: of the model.
        data: the task being tuned for.
        others: task → prompts and completions.
        section: of params.yaml, for messages.

    Raises:
        UserError: a task is not there, or all its pairs are too long.
    """
    if not mixture.tasks:
        return data
    from tunemill import mixtures

    rows = {"": data.train}  # the task itself has no name among the others
    for at, name in enumerate(mixture.tasks):
        where = f"params.yaml: {section}.mixture.tasks.{at}"
        if name not in others:
            raise UserError(
                f"no task '{name}'",
                where=where,
                expected="one of " + ", ".join(sorted(others)),
                fix="name it in collect.tasks",
                exit_code=2,
            )
        encoded = [encode(tokenizer, *pair) for pair in others[name]]
        rows[name] = [row for row in encoded if len(row) <= cfg.max_tokens]
        if not rows[name]:
            raise UserError(
                f"none of the {len(encoded)} pairs of '{name}' has at most {cfg.max_tokens} tokens",
                where=where,
                fix=f"raise {section}.max_tokens",
            )
    sizes = {name: len(each) for name, each in rows.items()}
    shares = mixtures.rates(sizes, mixture.temperature, mixture.cap)
    drawn = mixtures.draw(sizes, shares, cfg.steps * cfg.batch_size * cfg.accumulation, cfg.seeds[0])
    return data._replace(train=[rows[name][row] for name, row in drawn], tasks=mixture.tasks)


def encode(tokenizer: Any, prompt: str, completion: str) -> Encoded:
    """A pair as the policy will see it: the prompt in the chat template, the completion with its end."""
    from tunemill.models import render_completion, render_prompt

    return Encoded(render_prompt(tokenizer, prompt), render_completion(tokenizer, completion))


def check(tokenizer: Any, rows: Sequence[Encoded]) -> None:
    """Refuse what would train without a word and teach nothing, or the wrong thing.

    Raises:
        UserError: all labels would be masked, prompts begin twice, or the chat template does not fit the tokenizer.
    """
    where = f"tokenizer of {tokenizer.name_or_path}"
    if not any(len(row.completion) > 1 for row in rows):  # the end token alone
        raise UserError(
            f"every completion of the {len(rows)} training pairs is empty: all labels would be masked",
            where="the training pairs, as the tokenizer reads them",
            expected="completions with text",
            fix="look at the data's completion column",
        )
    begin = tokenizer.bos_token_id
    doubled = sum(row.prompt[:2] == [begin, begin] for row in rows) if begin is not None else 0
    if doubled:
        raise UserError(
            f"{doubled} of {len(rows)} prompts begin with {tokenizer.bos_token} twice",
            where=where,
            expected="one, from the chat template or from the tokenizer",
            fix="take it out of the chat template, or set add_bos_token to false in tokenizer_config.json",
        )
    if tokenizer.chat_template:
        _check_template(tokenizer, where)


def _check_template(tokenizer: Any, where: str) -> None:
    import re

    for mark in dict.fromkeys(re.findall(r"<\|[^|<>]+\|>|<(?:start|end)_of_turn>", str(tokenizer.chat_template))):
        if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) > 1:
            raise UserError(
                f"the chat template writes {mark}, which the tokenizer reads as ordinary letters",
                where=where,
                expected="a token of its own",
                fix="use the chat template that belongs to this tokenizer, or add the token to both",
            )
    asked = [{"role": "user", "content": "a"}]
    answered = [*asked, {"role": "assistant", "content": "b"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
    whole = tokenizer.apply_chat_template(answered, tokenize=True, return_dict=True)["input_ids"]
    prompt = prompt["input_ids"]
    # Some templates render an answered turn differently (without its thoughts): nothing to compare then.
    if whole[: len(prompt)] == prompt and tokenizer.eos_token_id not in whole[len(prompt) :]:
        written = tokenizer.decode(whole[len(prompt) :])
        raise UserError(
            f"the chat template ends an answer without {tokenizer.eos_token}: {written!r}",
            where=where,
            expected="the token that ends a text for the tokenizer",
            fix="set eos_token in tokenizer_config.json to what the template ends an answer with",
        )


def spread(rows: Sequence[Encoded], most: int) -> list[Encoded]:
    """At most `most` rows, evenly spaced: the first ones may all be of one kind."""
    if len(rows) <= most:
        return list(rows)
    return [rows[at * len(rows) // most] for at in range(most)]


def plan_batches(lengths: Sequence[int], batch_size: int, batches: int, seed: int, window: int = 16) -> list[list[int]]:
    """Choose which rows make each batch: rows of like length together, batches in random order.

    Rows are drawn without replacement until all were used, then anew. Within each `window` batches rows are sorted by
    length, and the batches of a window are shuffled, so that no length comes first or last.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch.
        batches: how many batches.
        seed: of the draw.
        window: batches sorted together; the larger, the less padding and the less chance.

    Returns:
        `batches` lists of `batch_size` row numbers.
    """
    import numpy as np

    if not lengths:
        raise ValueError("no rows to plan batches of")
    random = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < batches * batch_size:
        order += random.permutation(len(lengths)).tolist()
    order = order[: batches * batch_size]
    planned: list[list[int]] = []
    for first in range(0, len(order), window * batch_size):
        rows = sorted(order[first : first + window * batch_size], key=lambda row: (lengths[row], row))
        group = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        planned += [group[at] for at in random.permutation(len(group))]
    return planned


def micro_batches(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """(pairs in one forward pass of one process, forward passes in a step) that make the same step on several processes.

    Raises:
        UserError: the step's pairs cannot be shared out evenly.
    """
    pairs = batch_size * accumulation
    if pairs % processes:
        raise UserError(
            f"a step of {pairs} pairs (batch_size x accumulation) cannot be shared by {processes} processes",
            where="params.yaml: batch_size, accumulation",
            expected=f"a multiple of {processes}",
            exit_code=2,
        )
    share = pairs // processes
    micro = max(size for size in range(1, min(batch_size, share) + 1) if share % size == 0)
    return micro, share // micro


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def adapt(model: Any, adapter: Any, section: str, name: str = "default", task: Any = None) -> Any:
    """Put a PEFT adapter on a model whose own weights stay frozen.

    Args:
        model: the base.
        adapter: a PEFT configuration without a task type, which follows from the model.
        section: of params.yaml, for messages.
        name: of the adapter, among several.
        task: PEFT's task type of a model that is no language model.

    Raises:
        UserError: target modules match nothing or no layer that can be adapted, PEFT has no choice of its own where none are
            named, or a rank is above a layer's width.
    """
    import torch
    from peft import TaskType, get_peft_model

    adapter.task_type = task or (TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    names = sorted({name.rpartition(".")[2] for name in linear})
    targets = getattr(adapter, "target_modules", None)
    wanted = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    try:
        policy = get_peft_model(model, adapter, adapter_name=name)
    except ValueError as error:
        told = str(error)
        if "not found in the base model" in told or "No modules were targeted" in told:
            # PEFT reads a text as a regular expression of a layer's whole name, a list as the ends of names.
            pattern = isinstance(targets, str)
            what = (
                f"no layer's whole name matches the pattern '{wanted}'"
                if pattern
                else f"the model has no layer called {wanted}"
            )
            fix = f"put brackets around a layer's name: [{wanted}]" if pattern and wanted in names else ""
        elif "Please specify" in told:
            what, fix = f"PEFT has no choice of layers for {model.config.model_type}", "name some"
        elif "is not supported" in told:
            what, fix = f"among {wanted} is a layer that cannot be adapted", ""
        else:
            raise
        raise UserError(
            what,
            where=f"params.yaml: {section}.targets",
            # All linear layers by one word: of PEFT's methods LoRA alone takes it.
            expected=('"all-linear", or ' if hasattr(adapter, "r") else "") + "a list of " + ", ".join(names),
            fix=fix,
            exit_code=2,
        ) from None
    rank = getattr(adapter, "r", None)
    if rank is not None:
        for name, module in policy.named_modules():
            base = getattr(module, "base_layer", None)
            if isinstance(base, torch.nn.Linear) and rank > min(base.in_features, base.out_features):
                raise UserError(
                    f"rank {rank} is above the width of {name.rpartition('.')[2]}, {base.out_features} x {base.in_features}",
                    where=f"params.yaml: {section}.rank",
                    expected=f"at most {min(base.in_features, base.out_features)}; 4 to 32 do best",
                    exit_code=2,
                )
    return policy


def save_adapter(policy: Any, folder: Path, name: str = "default") -> None:
    """Write the adapter, one of several by its name; the same one always gives the same bytes, and plain peft loads it."""
    policy.save_pretrained(folder, selected_adapters=[name])
    if name != "default":  # PEFT makes a folder of it
        for file in (folder / name).iterdir():
            file.replace(folder / file.name)
        (folder / name).rmdir()
    settle(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a card with nothing but placeholders


def settle(folder: Path) -> None:
    """Make an adapter's configuration the same bytes wherever it was made."""
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    # PEFT writes sets in whatever order they come, and the path of the base on this machine.
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    values["base_model_name_or_path"] = None
    checkpoints.write_json(config, values)


# ── the training ──────────────────────────────────────────────────────────────────────────────────────────────────


def train(
    load: Callable[[], Any],
    tokenizer: Any,
    data: Data,
    cfg: Training,
    seed: int,
    *,
    runtime: Runtime,
    work: Path,
    log: Log,
    objective: Objective | None = None,
) -> Trained:
    """Train a model, continuing from the newest complete checkpoint under `work`.

    Args:
        load: gives the model with what is to be trained, always the same: it is called again after a fault.
        tokenizer: its tokenizer.
        data: from `prepare`.
        cfg: steps, batches, learning rate.
        seed: of the order of the rows.
        runtime: device and number format.
        work: folder for checkpoints.
        log: progress.
        objective: what is minimised; the cross-entropy of the completions if left out.

    Raises:
        UserError: one pair does not fit into memory (of several processes: what they were given does not), a pair is longer
            than the model has positions, or training diverges at the lower learning rate too.
    """
    if runtime.dtype == "float16":
        raise UserError(
            "float16 cannot be trained in: gradients underflow without loss scaling",
            where="params.yaml: runtime.dtype",
            expected="auto, float32 or bfloat16",
            exit_code=2,
        )
    if cfg.sharding == "fsdp" and runtime.processes == 1:
        raise UserError(
            "one process has nobody to share the model with",
            where="params.yaml: sharding",
            expected="none",
            fix="set sharding: none, or start several processes: launch: torchrun --nproc_per_node 2",
            exit_code=2,
        )
    release()  # what an earlier training of this process has left
    note = work / "recovered.json"  # survives a kill, as the checkpoints do
    state = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    limit, rate = state.get("batch_size", cfg.batch_size), state.get("learning_rate", cfg.learning_rate)
    while True:
        micro, accumulation = micro_batches(limit, cfg.batch_size * cfg.accumulation // limit, runtime.processes)
        try:
            policy, points, planned = _attempt(
                load,
                tokenizer,
                data,
                cfg,
                seed,
                micro,
                accumulation,
                rate,
                runtime=runtime,
                work=work,
                log=log,
                objective=objective,
            )
            return Trained(policy, points, micro, rate, planned)
        except Diverged as fault:
            resumed = checkpoints.newest(work)
            last = f"step {resumed.name.removeprefix('checkpoint-')}" if resumed else "the start"
            if rate < cfg.learning_rate:
                raise UserError(
                    f"{fault}, at the lowered learning rate {rate:.3g} too",
                    where="training",
                    expected="a loss that stays finite",
                    fix=f"lower learning_rate well below {rate:.3g} or max_grad_norm, and look at the data",
                ) from None
            rate *= LOWERED
            log.note(f"{fault}: back to {last}, learning rate {rate:.3g}")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if runtime.processes > 1:  # one of them cannot change the batches of the others, which wait for it
                pairs = f"{micro} pair{'' if micro == 1 else 's'}"
                smaller = (
                    "set a smaller batch_size with a larger accumulation (the step stays as large), or recompute: true"
                )
                raise UserError(
                    f"memory ran out with {pairs} in a forward pass of one of {runtime.processes} processes",
                    where="training",
                    fix=smaller if micro > 1 else "set recompute: true or sharding: fsdp, or lower max_tokens",
                ) from None
            if micro == 1:
                raise UserError(
                    "memory ran out with one pair in a forward pass",
                    where="training",
                    fix="set recompute: true, lower max_tokens, or tune an adapter instead of all weights",
                ) from None
            limit = max(size for size in range(1, micro // 2 + 1) if (cfg.batch_size * cfg.accumulation) % size == 0)
            log.note(f"out of memory with {micro} pairs in a forward pass: {limit} now, the step as large as before")
        # Outside the handlers: the error's traceback holds the tensors that did not fit.
        if runtime.rank == 0:
            checkpoints.write_json(note, {"batch_size": limit, "learning_rate": rate})
        release()


def _fits(model: Any, rows: Sequence[Encoded]) -> None:
    """Refuse pairs that are longer than the model has positions for.

    Raises:
        UserError: the longest is. Learned positions would end in an index error, computed ones in nonsense.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None:
        return
    virtual = losses.virtual_tokens(model)
    if model.config.is_encoder_decoder:
        longest = max(max(len(row.prompt) + virtual, len(row.completion)) for row in rows)
    else:
        longest = max(map(len, rows)) + virtual
    if longest > most:
        told = f", {virtual} virtual ones included" if virtual else ""
        raise UserError(
            f"the longest training pair has {longest} tokens{told}",
            where="params.yaml: max_tokens",
            expected=f"at most {most}, the positions that the model has",
            fix=f"lower max_tokens to {most - virtual}: longer pairs are left out, and counted",
            exit_code=2,
        )


def _attempt(
    load: Callable[[], Any],
    tokenizer: Any,
    data: Data,
    cfg: Training,
    seed: int,
    micro: int,
    accumulation: int,
    learning_rate: float,
    *,
    runtime: Runtime,
    work: Path,
    log: Log,
    objective: Objective | None = None,
) -> tuple[Any, list[Point], dict[str, int]]:
    """Train from the newest checkpoint to the end, or to the fault."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    # 1. Which rows make which step: the plan is the order.
    pairs = cfg.batch_size * cfg.accumulation
    plan = plan_batches([len(row) for row in data.train], cfg.batch_size, cfg.steps * cfg.accumulation, seed)
    steps = [
        [data.train[row] for batch in plan[at : at + cfg.accumulation] for row in batch]
        for at in range(0, len(plan), cfg.accumulation)
    ]
    rows = [{**row._asdict(), "items": sum(len(each.completion) for each in step)} for step in steps for row in step]
    tokens_until = [0]
    for step in steps:
        tokens_until.append(tokens_until[-1] + sum(map(len, step)))
    assert len(rows) == pairs * cfg.steps

    # 2. What it will take, and where to go on.
    model = load()
    _fits(model, [*data.train, *data.validation])
    forward = [step[at : at + micro] for step in steps for at in range(0, pairs, micro)]
    planned = plan_memory(model, forward, cfg, runtime, objective.held if objective else 0)
    _say(planned, runtime, log)
    curve_file = work / "curve.jsonl"
    resume = checkpoints.newest(work)
    first = int(resume.name.removeprefix("checkpoint-")) if resume else 0
    points = [point for point in _read_curve(curve_file) if point.step <= first]
    if resume and max((point.step for point in points if point.loss is not None), default=0) < first:
        resume, first, points = None, 0, []  # weights without their curve: not what a checkpoint of ours looks like
    start, virtual = losses.start_token(model), losses.virtual_tokens(model)
    began = apart = 0.0  # when the loop began, and what the passes over validation pairs took
    validating = bool(data.validation) and cfg.validation_steps > 0

    class Follow(TrainerCallback):  # type: ignore[misc]  # the hook that transformers offers; it holds no logic of its own
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            nonlocal began
            began = _now(runtime)
            if learning_rate != cfg.learning_rate:  # a checkpoint brings the old one back
                scheduler = getattr(given["lr_scheduler"], "scheduler", given["lr_scheduler"])
                scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
                for group, shape in zip(given["optimizer"].param_groups, scheduler.lr_lambdas, strict=True):
                    group["initial_lr"], group["lr"] = learning_rate, learning_rate * shape(scheduler.last_epoch)
                scheduler._last_lr = [group["lr"] for group in given["optimizer"].param_groups]
            if validating and state.global_step == 0:
                self.validate(given["model"], 0)
            if cfg.sharding == "fsdp" and not _sharded(given["model"]):
                raise RuntimeError("accelerate was asked to shard the model and did not")

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if not finite(given["model"]):
                raise Diverged(state.global_step + 1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            step, logs = state.global_step, logs or {}
            if "loss" in logs:
                point = Point(step, float(logs["loss"]), None, float(logs["learning_rate"]), tokens_until[step])
                points.append(point)
                log(step, loss=point.loss or 0.0, learning_rate=point.learning_rate or 0.0, tokens=float(point.tokens))

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if validating and (state.global_step % cfg.validation_steps == 0 or state.global_step == cfg.steps):
                self.validate(given["model"], state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            barrier()  # every process has written its part
            if runtime.rank == 0:
                _write_curve(curve_file, points)
                checkpoints.seal(work / f"checkpoint-{state.global_step}")
            barrier()

        def validate(self, policy: Any, step: int) -> None:
            nonlocal apart
            stopped = _now(runtime)
            loss = validation_loss(policy, data.validation, cfg.batch_size, tokenizer.pad_token_id)
            apart += _now(runtime) - stopped
            points.append(Point(step, None, loss, None, tokens_until[step]))
            log(step, validation_loss=loss)

    def collate(given: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch = losses.collate(
            [Encoded(row["prompt"], row["completion"]) for row in given], tokenizer.pad_token_id, start
        )
        return {**batch, "items": torch.tensor([given[0]["items"]])}

    # 3. Train.
    trainer = _trainer(
        model,
        tokenizer,
        Dataset.from_list(rows),
        collate,
        virtual,
        cfg,
        seed,
        micro,
        accumulation,
        learning_rate,
        runtime,
        work,
        objective,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())
    log.start("training", cfg.steps, "step", first)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if first < cfg.steps and "training_seconds" not in log.measured:  # of several seeds the first one's
        seconds = _now(runtime) - began - apart
        # Where it was continued, as long as all steps would have taken at the speed of the last ones.
        log.measure(training_seconds=round(seconds * cfg.steps / (cfg.steps - first), 3))
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return (_gathered(policy, load()) if cfg.sharding == "fsdp" else policy), points, planned


def _trainer(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    collate: Any,
    virtual: int,
    cfg: Training,
    seed: int,
    micro: int,
    accumulation: int,
    learning_rate: float,
    runtime: Runtime,
    work: Path,
    objective: Objective | None,
) -> Any:
    """The library's trainer for the model's family, with this module's loss or another."""
    processes = runtime.processes
    arguments: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": cfg.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": learning_rate,
        "warmup_steps": cfg.warmup_steps,
        "weight_decay": cfg.weight_decay,
        "max_grad_norm": cfg.max_grad_norm,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",  # the plan is the order
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": cfg.checkpoint_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "use_cpu": runtime.device == "cpu",
        "ddp_backend": "gloo" if processes > 1 and runtime.device == "cpu" else None,
        # Weights that are trained stay in float32: a 16-bit one would swallow small updates.
        "bf16": runtime.dtype == "bfloat16" and next(model.parameters()).dtype.itemsize == 4,
        "fp16": False,
        "activation_checkpointing": cfg.recompute,
        "seed": seed,
        "data_seed": seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": runtime.device == "cuda",
        "remove_unused_columns": False,
        "push_to_hub": False,
    }
    given: dict[str, Any] = {"processing_class": tokenizer, "train_dataset": dataset, "data_collator": collate}

    def loss(policy: Any, inputs: Any) -> Any:
        items = inputs["items"][0]
        # Gradients are averaged over processes, and the loss is a mean over the tokens of all of them.
        minimised = objective.loss if objective else losses.completion_loss
        return minimised(policy, inputs, items, virtual) * processes

    if cfg.sharding == "fsdp":
        arguments |= {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "state_dict_type": "SHARDED_STATE_DICT",
                "activation_checkpointing": cfg.recompute,
            },
            "activation_checkpointing": False,
        }
    if model.config.is_encoder_decoder:
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        class PairTrainer(Seq2SeqTrainer):  # type: ignore[misc]  # the libraries' own way to another loss: override compute_loss
            loss_is_scaled_for_ga = True

            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                return loss(model, inputs)

        settings = Seq2SeqTrainingArguments(**arguments)
        one_device(settings)
        return _sharding(PairTrainer(model, args=settings, **given), cfg, runtime)
    from trl import SFTConfig, SFTTrainer

    class CompletionTrainer(SFTTrainer):  # type: ignore[misc]  # as above
        loss_is_scaled_for_ga = True

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return loss(model, inputs)

    settings = SFTConfig(
        **arguments,
        max_length=None,
        packing=False,
        completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    one_device(settings)
    return _sharding(CompletionTrainer(model, args=settings, **given), cfg, runtime)


def _sharding(trainer: Any, cfg: Training, runtime: Runtime) -> Any:
    """Make FSDP2 shard on a CPU too: accelerate would copy the model there, without a word; its sharding itself works."""
    if cfg.sharding == "fsdp" and runtime.device == "cpu":
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        state = trainer.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        trainer.is_fsdp_enabled = True
    return trainer


def _sharded(model: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(each, DTensor) for each in model.parameters())


def _gathered(sharded: Any, fresh: Any) -> Any:
    """The trained weights, whole again on every process, in a model that is not sharded and lies on the host."""
    from torch.distributed.tensor import DTensor

    weights = {
        name.replace("_checkpoint_wrapped_module.", ""): (
            each.full_tensor() if isinstance(each, DTensor) else each
        ).cpu()
        for name, each in sharded.state_dict().items()
    }
    fresh.load_state_dict(weights)
    return fresh


def one_device(arguments: Any) -> None:
    """Make a trainer use one device of several."""
    _ = arguments.device  # reading it counts the devices
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would be wrapped in DataParallel, which changes the batches


def loading(cfg: Training, runtime: Runtime) -> Runtime:
    """Where a model is loaded that is to be trained: on the host where it is sharded, else on the device.

    FSDP2 moves a layer to the GPU as it shards it, so no GPU ever holds the whole; neither does it when it is gathered.
    """
    return replace(runtime, device="cpu") if cfg.sharding == "fsdp" else runtime


def validation_loss(policy: Any, rows: Sequence[Encoded], batch_size: int, pad: int) -> float:
    """Mean cross-entropy of all completion tokens of `rows`, in nats."""
    import torch

    start, virtual = losses.start_token(policy), losses.virtual_tokens(policy)
    ordered = sorted(rows, key=len)
    total, was_training = 0.0, policy.training
    policy.eval()
    with torch.no_grad():
        for at in range(0, len(ordered), batch_size):
            batch = losses.collate(ordered[at : at + batch_size], pad, start)
            inputs = {name: each.to(policy.device) for name, each in batch.items()}
            total -= float(losses.completion_logprobs(policy, inputs, virtual).sum())
    policy.train(was_training)
    return total / sum(len(row.completion) for row in rows)


def finite(model: Any) -> bool:
    """Whether all gradients are numbers."""
    import torch

    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Of sharded gradients each process has a part; the norm is of them all.
    return bool((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).isfinite())


def _now(runtime: Runtime) -> float:
    if runtime.device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def barrier() -> None:
    """Wait for the other processes, where there are any."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def plan_memory(
    policy: Any, batches: Sequence[Sequence[Encoded]], cfg: Training, runtime: Runtime, held: int = 0
) -> dict[str, int]:
    """Plan the peak memory of a training from the shapes of model, adapter and largest batch (`tunemill.planning`).

    Args:
        policy: the model with its adapter; only its configuration is looked at.
        batches: of the forward passes of one process.
        cfg: whether activations are recomputed and the model is sharded.
        runtime: device, number format, processes.
        held: bytes of weights beside those of the model.

    Returns:
        Bytes by what they are for: weights, optimizer, gradients, logits, activations, what malloc leaves unused
        (allocator), Python and its libraries (process); and their total.
    """
    from tunemill import planning

    adapter = next(iter(policy.peft_config.values())) if hasattr(policy, "peft_config") else None
    bare = policy.get_base_model() if adapter is not None else policy
    quantised = (
        "4-bit"
        if getattr(bare, "is_loaded_in_4bit", False)
        else "int8"
        if getattr(bare, "is_loaded_in_8bit", False)
        else None
    )
    batch = planning.largest_batch(batches, bare.config.is_encoder_decoder)
    memory = planning.tuning_memory(
        bare.config, adapter, batch, runtime.dtype, recompute=cfg.recompute, quantised=quantised
    )
    if cfg.sharding == "fsdp":  # each process keeps its part of what does not depend on the batch
        part = {name: -(-getattr(memory, name) // runtime.processes) for name in ("weights", "optimizer", "gradients")}
        memory = memory._replace(**part)
    memory = memory._replace(weights=memory.weights + held)
    total = planning.process_bytes(memory, runtime.device)
    process = planning.PROCESS_BYTES if runtime.device != "cuda" else 0
    return {**memory._asdict(), "allocator": total - process - memory.total, "process": process, "total": total}


def _say(planned: Mapping[str, int], runtime: Runtime, log: Log) -> None:
    """Say what memory a training will take, and whether that much is free."""
    total, free, whose = planned["total"], free_bytes(runtime.device), "the GPU"
    if runtime.device == "cuda":
        import torch

        free += torch.cuda.memory_allocated()  # the model is there already
    else:
        import psutil

        free, whose = free + psutil.Process().memory_info().rss, "this machine"  # this process has some of it already
    text = f"memory at the peak, as planned: {total / 2**30:.1f} GiB"
    if total > free:
        text += f"; {whose} has {free / 2**30:.1f} GiB free: set recompute: true or a smaller batch_size"
    log.note(text)


def _write_curve(path: Path, points: Sequence[Point]) -> None:
    checkpoints.write_text(path, "".join(json.dumps(point) + "\n" for point in points))


def _read_curve(path: Path) -> list[Point]:
    if not path.is_file():
        return []
    return [Point(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
