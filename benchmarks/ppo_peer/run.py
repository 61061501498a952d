"""PPO by `trl.experimental.ppo` of TRL 1.12.0, the last release that has it: the peer of `benchmarks/ppo.py`, which starts this.

    python benchmarks/ppo_peer/run.py --model POLICY --reward CLASSIFIER --prompts PROMPTS.jsonl [--lora]

Runs in an environment of its own (`requirements.txt` beside it) and needs nothing of this project. POLICY is a checkpoint of a
decoder-only model with its tokenizer; CLASSIFIER a sequence classifier with one label on the same vocabulary, which becomes both
the reward model and the first value model, as in TRL's own example; a line of PROMPTS is a list of token ids. Printed is one
line of JSON: peak memory of the process, seconds of each update (generation to last step; loading apart) by the clock and of
the processors, and for each update the mean reward, KL and lengths of the responses. Without `--lora` the trainer holds four
models (policy, reference, value, reward) and trains two; with it, policy and value are trained through LoRA and the reference
is the policy without its adapter: three models. Discount, λ, clipping, epochs and value coefficient are those that Tunemill's
loop runs with, and so are AdamW without weight decay, a learning rate that falls linearly to zero, whitened advantages and
rewards that are not. `--mean` and `--std` put the reward on a scale, as Tunemill does by the first rollout.

How the trainer differs from Tunemill's, as read in its source, `trl/experimental/ppo/ppo_trainer.py` of 1.12.0 unless named:

- log π_old is that of generation: the scores that `generate` collected, made by a forward pass with a cache (`generate`, 101-111;
  `train`, 702-703), while log π_ref and the new log-probabilities come from a whole pass over the padded rows (709-714, 820-823).
  So the ratio of the first minibatch is not exactly 1 and the KL of the first update not 0: rounding in float32, far more in
  bfloat16, where those of whole passes are rounded to bfloat16 (`trl/trainer/utils.py`, 512-520) and those of generation are
  not. The KL that it reports (882, 890) and penalises (773-775) is of that kind: a mean over sequences of the sum over tokens.
  The KL printed as `kl` here is of the same sampled tokens, with log-probabilities of policy and reference both recomputed, in
  float32 from their logits; this is done one row at a time, off the clock.
- The score is paid one position behind the token that ends the response, where the state after the end has a value of its own
  that is learnt (767-769, 777-779, 837); where the response was cut off, at its last token. Tunemill pays it at the last token,
  after which there is nothing. The mask of the responses itself covers the end token in both (727, 763-766).
- What is padding is told by `ids != pad` (99, 211 and `trl/experimental/utils.py`, 771): with a padding token that is also the
  end, as many tokenizers have it, the end would be cut off from every response, and a padding token that the policy happens to
  draw ends the response before it (727). Prompts are padded on the left to the longest of the batch, and positions counted from
  the first token that is no padding.
- The value model reads prompt and response whole, and gives a value to every position; so does the policy's head, of which only
  the response's logits are used (820-821): logits of B·(P + T)·V numbers are made in each step. It is a model of its own of which
  the body and the head are run (280, 291-294). In the rollout it, like the reference, sees whatever was generated (709-711,
  729-732), and the reward model the response cut behind its end (719-735).
- A minibatch is one forward pass: `per_device_train_batch_size` is set to the whole batch here, and `num_mini_batches` splits it.
  The other way, gradient accumulation, does not make smaller steps: `accelerator.accumulate` (810) counts micro-batches across
  minibatches, so that the optimizer steps once an epoch however many minibatches there are.
- Gradients are never clipped (848-850, `max_grad_norm` is not read), there is no entropy bonus, the KL coefficient is fixed,
  rewards are neither normalised nor clipped. The value's head begins as the reward's, Tunemill's at zero.
- `bf16` and `gradient_checkpointing`, both on by default, do nothing: the trainer makes an `Accelerator` without the one (460),
  and never calls the other. Number format and memory are those of the models that it is given.
- Whitening rewards needs minibatches of eight rows (472-475); it is off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GAMMA, LAMBDA, CLIP, VALUE_COEFFICIENT = 1.0, 0.95, 0.2, 0.1


class Clock:
    """Seconds of each update, without those in which this benchmark looks at something.

    Attributes:
        laps: (seconds by the clock, seconds of the processors) of each update.
    """

    def __init__(self) -> None:
        self.laps: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    @staticmethod
    def now() -> tuple[float, float]:
        """By the clock, and of the processors."""
        return time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Begin the first update."""
        self.began = self.now()

    def lap(self) -> None:
        """End an update and begin the next."""
        now = self.now()
        self.laps.append((now[0] - self.began[0], now[1] - self.began[1]))
        self.began = now

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """A time that belongs to no update."""
        began = self.now()
        yield
        now = self.now()
        self.began = (self.began[0] + now[0] - began[0], self.began[1] + now[1] - began[1])


def memory(which: str) -> int:
    """Bytes of this process: `VmHWM`, the most so far, or `VmRSS`, now (the most so far where the system does not tell)."""
    try:
        found = re.search(rf"^{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def logprobs(model: Any, ids: Any, context: int, pad: int, temperature: float) -> Any:
    """Of the response in one row, by a pass without a cache; (T,) in float32."""
    import torch

    here = (ids != pad).nonzero()[
        0, 0
    ]  # padding on the left is left out, and that on the right cannot be seen from before it
    logits = model(ids[None, here:], use_cache=False, logits_to_keep=len(ids) - context + 1).logits[0, :-1]
    wanted = ids[context:, None]
    return torch.log_softmax(logits.float() / temperature, dim=-1).gather(-1, wanted)[:, 0]


def watch(trainer: Any, clock: Clock, temperature: float) -> list[dict[str, Any]]:
    """Note lengths and KL of each rollout as it is made; the rows that are filled while training."""
    import torch
    from trl.experimental.ppo import ppo_trainer

    rows: list[dict[str, Any]] = []
    made, pad = ppo_trainer.batch_generation, trainer.processing_class.pad_token_id

    def noting(policy: Any, queries: Any, *rest: Any) -> Any:
        answered, scores = made(policy, queries, *rest)
        with clock.stopped(), torch.no_grad():
            context = queries.shape[1]
            padding = (answered[:, context:] == pad).int()
            lengths = (padding.cumsum(1) == 0).sum(1).tolist()  # as the trainer counts: before the first padding token
            divergences = []
            for ids, length in zip(answered, lengths, strict=True):
                given = (ids[: context + length], context, pad, temperature)
                own = logprobs(policy, *given)
                with trainer.null_ref_context():
                    theirs = logprobs(trainer.ref_model or policy, *given)
                divergences.append(float((own - theirs).sum()))
            ends = (answered[:, context:] == trainer.processing_class.eos_token_id).any(1)
            finished = float(ends.float().mean())
            rows.append({"kl": sum(divergences) / len(divergences), "lengths": lengths, "finished": finished})
            rows[-1]["tokens"] = sum(lengths) / len(lengths)
        return answered, scores

    ppo_trainer.batch_generation = noting
    return rows


def load(kind: Any, folder: Path, dtype: str, **more: Any) -> Any:
    """A model in the number format asked for."""
    import torch

    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), **more)


def adapted(model: Any, settings: Any) -> Any:
    """A value model of which only LoRA weights and the head are trained. The trainer has no way of its own to ask for this."""
    import torch

    model.add_adapter(settings)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name or name.startswith("score."))
        if "lora_" in name:
            weight.data = weight.data.to(torch.float32)  # as PEFT does for the policy's
    return model


def on_scale(reward: Any, mean: float, std: float) -> None:
    """Let a classifier give (score − mean) / std."""
    import torch

    head = torch.nn.Linear(reward.score.in_features, 1, dtype=reward.score.weight.dtype)
    with torch.no_grad():
        head.weight.copy_(reward.score.weight / std)
        head.bias.fill_(-mean / std)
    reward.score = head


def train(arguments: argparse.Namespace, out: str) -> dict[str, Any]:
    """Run the updates; what was measured."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
        set_seed,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise SystemExit("the trainer needs a padding token that is not the end of a text (see --help)")
    policy = load(AutoModelForCausalLM, arguments.model, arguments.dtype)
    # What the trainer does not say comes from here, the padding behind the end of a response among it.
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    value, reward = (
        load(AutoModelForSequenceClassification, arguments.reward, arguments.dtype, num_labels=1) for _ in range(2)
    )
    lora = None
    if arguments.lora:
        from peft import LoraConfig, TaskType

        targets = arguments.targets[0] if arguments.targets == ["all-linear"] else arguments.targets
        shape = {"r": arguments.rank, "lora_alpha": arguments.alpha, "target_modules": targets}
        lora = LoraConfig(task_type=TaskType.CAUSAL_LM, **shape)
        value = adapted(value, LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=[], **shape))
    for model in (reward, value):
        on_scale(model, arguments.mean, arguments.std)
    clock, said = Clock(), []

    class Notes(TrainerCallback):  # type: ignore[misc]
        """Takes the time and what the trainer reports."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.lap()

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float], **____: Any) -> None:
            said.append(logs)

    settings = PPOConfig(
        output_dir=out,
        seed=arguments.seed,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        logging_steps=1,
        # One device batch, split into minibatches: see above.
        per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=arguments.minibatches,
        num_ppo_epochs=arguments.epochs,
        total_episodes=arguments.updates * arguments.batch,
        local_rollout_forward_batch_size=arguments.batch,
        response_length=arguments.response,
        stop_token="eos",
        temperature=arguments.temperature,
        missing_eos_penalty=arguments.missing_eos_penalty,
        learning_rate=arguments.lr,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        kl_coef=arguments.kl_coef,
        kl_estimator="k1",
        gamma=GAMMA,
        lam=LAMBDA,
        cliprange=CLIP,
        cliprange_value=CLIP,
        vf_coef=VALUE_COEFFICIENT,
        whiten_rewards=False,
        bf16=False,
        gradient_checkpointing=False,
    )
    prompts = [json.loads(line) for line in arguments.prompts.read_text().splitlines() if line.strip()]
    if len(prompts) < arguments.batch:
        raise SystemExit(f"{arguments.prompts} has {len(prompts)} prompts: a batch takes {arguments.batch}")
    trainer = PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # a copy that the trainer makes, or the policy without its adapter
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=lora,
        callbacks=[Notes()],
    )
    del policy, value, reward
    updates, loaded = watch(trainer, clock, arguments.temperature), memory("VmRSS")
    trainer.train()
    reports = [row for row in said if "objective/kl" in row]
    for row, report in zip(updates, reports, strict=True):
        scores = report["objective/scores"] + (arguments.missing_eos_penalty or 0.0) * (1.0 - row["finished"])
        row |= {"reward": arguments.mean + arguments.std * scores, "kl_reported": report["objective/kl"]}
        row |= {"ratio": report["val/ratio"], "clipped": report["policy/clipfrac_avg"]}
    trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    return {
        "peak_bytes": memory("VmHWM"),
        "loaded_bytes": loaded,
        "trained_parameters": trained,
        "seconds": [by_clock for by_clock, _ in clock.laps],
        "cpu_seconds": [of_processors for _, of_processors in clock.laps],
        "updates": updates,
    }


def options(description: str) -> argparse.ArgumentParser:
    """What both sides are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of the starting policy")
    parser.add_argument("--reward", type=Path, required=True, help="the reward model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON Lines: token ids of a prompt in each")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="prompts, and responses, of an update")
    parser.add_argument("--response", type=int, default=32, help="most tokens of a response")
    parser.add_argument("--epochs", type=int, default=4, help="passes over each rollout")
    parser.add_argument("--minibatches", type=int, default=2, help="steps of a pass")
    parser.add_argument("--lora", action="store_true", help="train LoRA weights instead of full copies")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--targets", nargs="+", default=["all-linear"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all models' weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--missing-eos-penalty", type=float, default=None)
    return parser


def main() -> int:
    """Train and print one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--mean", type=float, default=0.0, help="what is taken off every score")
    parser.add_argument(
        "--std", type=float, default=1.0, help="what every score is divided by; rewards are printed without both"
    )
    arguments = parser.parse_args()
    # Set before torch is imported: OpenMP reads it once.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        found = train(arguments, out)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
