"""Evaluate: let one candidate answer the held-out prompts, and score every answer the same way.

    python -m stages.evaluate --policy artifacts/lora/adapter --base artifacts/select/model \
        --test artifacts/validate/test.jsonl --splits artifacts/validate/splits.json \
        --red-team artifacts/validate/red_team_test.jsonl --tasks artifacts/validate/tasks_test.jsonl \
        --harmless artifacts/validate/harmless_test.jsonl --train artifacts/validate/train.jsonl --harm artifacts/harm \
        --start artifacts/select/model --candidate lora

One pass: the model is loaded once and asked everything once; every metric reads the same answers. What is asked:

- the test items, greedily, unless the policy brings a prompt.json (stage `prompt`) that says how it is to be decoded. A
  prediction is everything the model wrote within the token limit, white space collapsed: nothing is cut away, so that a
  candidate which prefaces its answer is not judged by the preface alone;
- some of them again, perturbed (robustness and fairness, `tunemill.perturbations`): only where the perturbation changed
  something, since an unchanged prompt has its answer already;
- red-team prompts, several samples of each (toxicity, and what alignment has made of them: `tunemill.alignment`), and beginnings of
  texts about people, too (bias): sampled alike for all candidates. A prompt is read once for all its samples;
- harmless questions, as the red-team instructions are asked: who refuses these as well is evasive (`tunemill.helpfulness`);
- questions of other tasks, through lm-evaluation-harness: how likely the right answer is, and whether it is the most likely
  of its choices. `compare` reads from them accuracy, calibration and what tuning has made of other tasks. These prompts take
  the base's tokenizer and chat template: a template that was made for the task tuned for is no part of what is asked here;
- questions about people, as they are and perturbed (fairness).

The answers to red-team instructions are also read by the model `start` that all candidates were tuned from: how far they surprise it
tells nonsense that repeats nothing. It is the same reader for all, whatever a candidate's own base is.

Journals keep what was generated and scored, batch by batch, named by all that it depends on: weights, prompts, decoding, batches,
seed, machine, and the code that asks. A killed evaluation goes on there, and where only metrics have changed, or how many of one kind
are asked, nothing else is asked again.

Writes instances.jsonl (one row for each test item, scores in points), perturbed.jsonl, red_team.jsonl, harmless.jsonl, probes.jsonl,
people.jsonl, tasks.jsonl, generated.jsonl (what benchmarks had it write) and scores.json; the same keys for every candidate, null with
a reason where a value is undefined.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import (
    alignment,
    backbone,
    best_of,
    checkpoints,
    harness,
    heldout,
    helm,
    helpfulness,
    journal,
    likelihood,
    metrics,
    models,
    probes,
    questions,
    records,
    sampling,
    scoring,
    toxicity,
)
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Example
from tunemill.runtime import Runtime
from tunemill.sampling import Decoding, Generation
from tunemill.stage import Metrics, main

KEPT = (
    *("training.json", "curve.csv", "prompt.json"),
    *("ppo.json", "updates.csv", "monitor.csv", "samples.jsonl"),
    *("feedback.json", "reward.json", "reward_histogram.csv", "reward_reliability.csv"),
    *("cai.json", "chains.jsonl"),
)
"""What a policy brings along about how it was made: kept beside its scores, where the report finds it."""


class Config(Params):
    """What is generated and how."""

    seed: int = Field(ge=0)
    """Of the choice of items, and of what is sampled."""
    test_items: int | None = Field(ge=1)
    """Test items to score, every group with its share; null takes all, here and below."""
    perturbed_items: int | None = Field(ge=0)
    """How many of these are answered again, perturbed, for robustness and fairness; 0 none."""
    red_team_items: int | None = Field(ge=0)
    """Red-team prompts to answer, as many instructions as beginnings of texts, every source with its share; 0 asks none."""
    harmless_items: int | None = Field(ge=0)
    """Harmless questions to answer, every set with its share; 0 asks none."""
    probe_items: int | None = Field(ge=0)
    """Beginnings of texts about people to go on from, for bias; 0 asks none."""
    people_items: int | None = Field(ge=0)
    """Questions about people, for fairness; 0 asks none."""
    samples: int = Field(ge=1, le=100)
    """Answers to each red-team prompt and harmless question, the same number for all candidates."""
    probe_samples: int = Field(ge=1, le=100)
    """Texts that go on from each beginning."""
    temperature: float = Field(gt=0)
    """Of these samples."""
    top_p: float = Field(gt=0, le=1)
    """Of these samples: only the likeliest tokens that together have this probability."""
    sample_tokens: int = Field(ge=1, le=4096)
    """Most tokens of such a sample."""
    choice_items: int | None = Field(ge=0)
    """Questions of other tasks with choices, in all; every task has the share that takes as long to read. 0 asks none."""
    task_items: int | None = Field(ge=0)
    """Questions of each other task without choices; 0 asks none."""
    shots: int | None = Field(ge=0, le=20)
    """Worked examples before the questions of these further tasks; null leaves it to the task."""
    benchmarks: tuple[str, ...]
    """Further tasks of lm-evaluation-harness, by name: with a hub in reach, or of a folder of one's own."""
    benchmark_folder: str
    """Folder with task files of one's own (YAML and JSONL), as lm-evaluation-harness reads them: the stage's input `benchmarks`."""
    benchmark_items: int | None = Field(ge=1)
    """Questions of each of these further tasks; null takes all."""
    max_new_tokens: int = Field(ge=1, le=4096)
    """Most tokens of an answer, where the policy brings no decoding of its own."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch, padding and answers included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in a batch."""


def run(
    cfg: Config,
    *,
    policy: Path,
    base: Path,
    test: Path,
    splits: Path,
    red_team: Path | None,
    harmless: Path | None = None,
    tasks: Path | None = None,
    train: Path | None = None,
    harm: Path | None = None,
    start: Path | None = None,
    benchmarks: Path | None = None,
    out: Path,
    work: Path,
    cache: Path | None = None,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Answer, score and write everything under `out`."""
    # 1. The test set is the one that was fixed before training; of it, and of everything else, a fixed subset.
    examples = heldout.subset(heldout.examples(test, splits), cfg.test_items, cfg.seed, "group")
    again = heldout.subset(examples, cfg.perturbed_items, cfg.seed, "group")
    attacks = heldout.red_team(red_team, splits) if red_team is not None and cfg.red_team_items != 0 else []
    attacks = heldout.attacks(attacks, cfg.red_team_items, cfg.seed)
    inquiries = heldout.harmless(harmless, splits) if harmless is not None and cfg.harmless_items != 0 else []
    inquiries = heldout.subset(inquiries, cfg.harmless_items, cfg.seed, "source")
    stories = probes.stories()[: cfg.probe_items]
    found = heldout.questions(tasks, splits) if tasks is not None else []
    asked = questions.choose(found, cfg.choice_items, cfg.task_items, cfg.seed)
    about_people = questions.people_variants(probes.people()[: cfg.people_items])
    places = {each.id: index for index, each in enumerate(examples)}
    variants = scoring.variants(examples, [places[each.id] for each in again])
    tasks_asked = [*harness.from_items(asked), *cfg.benchmarks]
    if cfg.benchmarks:  # a mistake in them is told before anything is generated
        harness.check(
            tasks_asked,
            folder=benchmarks,
            shots=cfg.shots,
            limit=cfg.benchmark_items,
            seed=cfg.seed,
            place=(cache or work) / "datasets",
        )

    # 2. Generate. Instructions are messages to the model; a text to continue is given as it stands.
    model, tokenizer = models.load_policy(policy, base, runtime)
    decoding = decoding_of(policy, Decoding(cfg.max_new_tokens))
    drawn = Decoding(cfg.sample_tokens, cfg.temperature, 0, cfg.top_p)
    changed = [index for index, each in enumerate(variants) if each.changed]
    weights = [policy] if policy == base or not models.is_adapter(policy) else [policy, base]
    named = policy_hash(weights)
    asker_hash = named if base in weights else checkpoints.tree_hash(base)
    batches = (cfg.batch_tokens, cfg.batch_rows)
    shelf = journal.Shelf(cache or work, named, asker_hash, dataclasses.asdict(runtime), *batches)
    halved = 0

    def answers(
        name: str, prompts: Sequence[list[int]], how: Decoding, samples: Sequence[int]
    ) -> list[list[Generation]]:
        nonlocal halved
        copies = [prompt for prompt, count in zip(prompts, samples, strict=True) for _ in range(count)]
        kept = shelf.of(name, copies, how._asdict(), cfg.seed)
        found, times = answer(cfg, model, tokenizer, how, name, copies, kept, log)
        halved += times
        left = iter(found)
        return [list(itertools.islice(left, count)) for count in samples]

    def message(text: str) -> list[int]:
        return models.render_prompt(tokenizer, text)

    def beginning(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    wanted = [*(each.prompt for each in examples), *(variants[index].prompt for index in changed)]
    plain = [each for (each,) in answers("test", [message(each) for each in wanted], decoding, [1] * len(wanted))]
    plain, anew = plain[: len(examples)], plain[len(examples) :]
    told = [each for each in attacks if each.kind == "instruction"]
    begun = [each for each in attacks if each.kind == "continuation"]
    tries = cfg.samples * best_of.number(policy)  # of n answers the best, where the policy says so
    replies = answers("instructions", [message(each.prompt) for each in told], drawn, [tries] * len(told))
    replies = best_of.pick(policy, tokenizer, [each.prompt for each in told], replies, shelf, runtime, log)
    helped = answers("harmless", [message(each.prompt) for each in inquiries], drawn, [tries] * len(inquiries))
    helped = best_of.pick(policy, tokenizer, [each.prompt for each in inquiries], helped, shelf, runtime, log)
    texts = [*(each.prompt for each in begun), *(each.text for each in stories)]
    counts = [cfg.samples] * len(begun) + [cfg.probe_samples] * len(stories)
    continued = answers("beginnings", [beginning(each) for each in texts], drawn, counts)
    replies, continued = replies + continued[: len(begun)], continued[len(begun) :]

    # 3. How likely the answers of other tasks are, and of questions about people.
    asker = models.load_tokenizer(base)
    log.note(f"scoring {len(asked)} questions of other tasks, and {len(about_people)} about people")

    def likelihoods(pairs: Sequence[tuple[str, str]]) -> list[likelihood.Likelihood]:
        kept = shelf.of("people", pairs)
        return likelihood.score(
            model, asker, pairs, batch_tokens=cfg.batch_tokens, batch_rows=cfg.batch_rows, kept=kept
        )

    own = None if benchmarks is None else checkpoints.tree_hash(benchmarks)
    further = [cfg.benchmarks, own, cfg.shots, cfg.benchmark_items, cfg.seed]
    found_out = harness.run(
        model,
        asker,
        tasks_asked,
        folder=benchmarks,
        shots=cfg.shots,
        limit=cfg.benchmark_items,
        seed=cfg.seed,
        chat=bool(asker.chat_template),
        batch_tokens=cfg.batch_tokens,
        batch_rows=cfg.batch_rows,
        kept=shelf.of("harness", [dataclasses.asdict(each) for each in asked], *further),
        log=log,
    )
    judged = questions.task_rows({name: each.rows for name, each in found_out.tasks.items()})
    written = [questions.defined(row) for each in found_out.tasks.values() for row in each.rows if "choices" not in row]
    people = questions.people_rows(about_people, likelihoods)

    # 4. How far the answers to instructions surprise the model that all candidates started from, and how far the policy has come
    # from the model that it sits on: of one answer to each instruction, which tells that mean well enough.
    surprise, reader = None, None
    if start is not None:
        start_hash = asker_hash if start == base else checkpoints.tree_hash(start)
        reader = model if start == policy and not models.is_adapter(policy) else models.load_base(start, runtime)
        pairs = [(each.prompt, reply.text) for each, found in zip(told, replies, strict=False) for reply in found]
        surprise = surprises(
            cfg, reader, models.load_tokenizer(start), pairs, shelf.of("start", start_hash, pairs), log
        )
        reader = reader if start == base else None
    given = [(each.prompt, found[0].text) for each, found in zip(told, replies, strict=False)]
    same = backbone.vocabulary(tokenizer) == backbone.vocabulary(asker)
    drift, stays = drifts(cfg, model, asker if same else None, policy, base, given, reader, shelf, runtime, log)
    del reader

    # 5. Score.
    scorers = toxicity.judges(harm, runtime)
    known = (
        metrics.training_index(each.completion for each in records.read(train, Example)) if train is not None else None
    )
    instances = scoring.instances(examples, plain, scorers, known)
    perturbed = scoring.perturbed(examples, instances, variants, dict(zip(changed, anew, strict=True)))
    if surprise is not None:
        nats = iter(surprise)
        surprised = [[next(nats) if at < len(told) else None for _ in own] for at, own in enumerate(replies)]
    provoked = scoring.provoked([*told, *begun], replies, scorers, surprised if surprise is not None else None, drift)
    safe = scoring.harmless(inquiries, helped, scorers, helpfulness.reader(harm, runtime) if helped else None)
    probed = [
        {"id": each.id, "probe": each.text, "samples": [one.text for one in found]}
        for each, found in zip(stories, continued, strict=True)
    ]
    figures = helm.figures(
        {"": helm.Evidence(instances, perturbed, people, judged, provoked, probed, written)},
        resamples=1,
        seed=cfg.seed,
        min_groups=1,
    )[""]
    # What is timed is timed by stage `efficiency`, and other tasks' metrics are lm-eval's own.
    figures = {name: figure for name, figure in figures.items() if not name.startswith(("efficiency/", "tasks/"))}
    flat = scoring.summary(instances) | scoring.task_summary(judged)
    flat |= {
        f"tasks/{name}/{key}": value for name, each in found_out.tasks.items() for key, value in each.metrics.items()
    }
    flat |= {f"tasks/{name}/{key}": value for name, own in found_out.groups.items() for key, value in own.items()}
    flat |= {name: None if figure.value != figure.value else figure.value for name, figure in figures.items()}
    aligned, unaligned = alignment.summary([*provoked, *safe])
    unaligned |= {alignment.DRIFT: stays} if stays else {}
    flat |= aligned

    # 6. Write.
    for name in KEPT:
        if (policy / name).is_file():
            checkpoints.write_text(out / name, (policy / name).read_text(encoding="utf-8"))
    rows = {
        "instances": instances,
        "perturbed": perturbed,
        "red_team": provoked,
        "harmless": safe,
        "probes": probed,
        "people": people,
        "tasks": judged,
        "generated": written,
    }
    for name, each_row in rows.items():
        records.write_objects(out / f"{name}.jsonl", each_row)
    checkpoints.write_json(
        out / "scores.json",
        {
            **flat,
            "n": len(instances),
            "halved_batches": halved,
            "decoding": decoding._asdict(),
            "sampling": {**drawn._asdict(), "samples": cfg.samples, "probe_samples": cfg.probe_samples},
            "policy_hash": named,
            "trained_tasks": trained_tasks(policy),
            "benchmarks": {
                name: {"n": each.n, "shots": each.shots, "version": each.version}
                for name, each in found_out.tasks.items()
            },
            "reasons": {
                name: figures[name].reason
                if name in figures
                else unaligned[name]
                if name in unaligned
                else reason(name, found_out.tasks)
                for name, value in flat.items()
                if value is None
            },
            "bleu_signature": metrics.bleu_signature(),
            "rouge_scorer": metrics.rouge_name(),
            **toxicity.names(harm),
        },
    )
    shelf.tidy()
    return flat


def decoding_of(policy: Path, default: Decoding) -> Decoding:
    """How a policy's text is decoded: as its prompt.json says, where it has one."""
    try:
        text = (policy / "prompt.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return default
    return Decoding(**json.loads(text)["decoding"])


def answer(
    cfg: Config,
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    name: str,
    prompts: Sequence[list[int]],
    kept: Path,
    log: Log,
) -> tuple[list[Generation], int]:
    """Generate for one set of prompts, going on where the journal `kept` ends.

    Returns:
        One answer for each prompt, and how often memory ran out and a batch was halved.

    Raises:
        UserError: a prompt is longer than the model's context.
    """
    longest, context = sampling.positions(model, max(map(len, prompts), default=0), decoding.max_new_tokens)
    if prompts and context is not None and longest > context:
        raise UserError(
            f"a prompt of set '{name}' needs {longest} tokens, answer included",
            expected=f"at most {context}, the model's context",
            fix="lower validate.context_tokens or evaluate.max_new_tokens in params.yaml",
        )
    return sampling.answers(
        model,
        tokenizer,
        prompts,
        decoding=decoding,
        batches=sampling.plan([*map(len, prompts)], decoding.max_new_tokens, cfg.batch_tokens, cfg.batch_rows),
        seed=cfg.seed,
        kept=kept,
        title=f"answer the {name} prompts",
        log=log,
    )


def surprises(
    cfg: Config, reader: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], kept: Path, log: Log
) -> list[float | None]:
    """Nats per token of each answer after its prompt; None of an empty one, and where the reader gives no number.

    Args:
        cfg: the batches.
        reader: the model that reads.
        tokenizer: its own, whoever wrote the answers.
        pairs: prompts and answers.
        kept: a journal, for one reader and these pairs.
        log: told how many are read.
    """
    asked = [at for at, (_, text) in enumerate(pairs) if text.strip()]
    log.note(f"reading {len(asked)} answers with the model that all candidates started from")
    found = likelihood.score(
        reader,
        tokenizer,
        [pairs[at] for at in asked],
        batch_tokens=cfg.batch_tokens,
        batch_rows=cfg.batch_rows,
        kept=kept,
        log=log,
    )
    nats: list[float | None] = [None] * len(pairs)
    for at, each in zip(asked, found, strict=True):
        nats[at] = -each.mean if math.isfinite(each.mean) else None
    return nats


def drifts(
    cfg: Config,
    model: Any,
    tokenizer: Any,
    policy: Path,
    base: Path,
    pairs: Sequence[tuple[str, str]],
    reader: Any | None,
    shelf: journal.Shelf,
    runtime: Runtime,
    log: Log,
) -> tuple[list[float | None], str]:
    """How much likelier each answer is for the policy than for the model it sits on, in nats: the mean estimates the divergence.

    Without bias only of answers drawn from the whole distribution (temperature 1, top_p 1); the end of an answer is not counted.

    Args:
        cfg: the batches.
        model: the policy.
        tokenizer: of both; None where they have not the same.
        policy: its folder.
        base: folder of the model that it sits on.
        pairs: instructions and the policy's answers.
        reader: the base, where it is loaded already.
        shelf: for what was read.
        runtime: device and number format.
        log: told how many are read.

    Returns:
        None of an empty answer, and where a model gives no number; and why there is none at all, or nothing.
    """
    nothing: list[float | None] = [None] * len(pairs)
    if policy == base:
        return nothing, "the policy is the model that it would be compared with"
    if (n := best_of.number(policy)) > 1:
        return nothing, f"nothing was trained: the best of {n} is at most {best_of.divergence(n):.2f} nats away"
    if tokenizer is None:
        return nothing, "the policy's tokenizer is not that of its base"
    asked = [at for at, (_, text) in enumerate(pairs) if text.strip()]
    if not asked:
        return nothing, ""
    log.note(f"reading {len(asked)} answers with the policy and with the model that it sits on")
    told = [pairs[at] for at in asked]

    def read(one: Any, name: str) -> list[likelihood.Likelihood]:
        return likelihood.score(
            one, tokenizer, told, batch_tokens=cfg.batch_tokens, batch_rows=cfg.batch_rows, kept=shelf.of(name, told)
        )

    own, theirs = (
        read(model, "drift"),
        read(models.load_base(base, runtime) if reader is None else reader, "drift_base"),
    )
    found = nothing
    for at, ours, other in zip(asked, own, theirs, strict=True):
        gap = ours.logprob - other.logprob
        found[at] = gap if math.isfinite(gap) else None
    return found, ""


def reason(name: str, tasks: Mapping[str, harness.TaskResult]) -> str:
    """Why a metric of the test items or of another task may be undefined."""
    if name.startswith("tasks/"):
        _, task, key = name.split("/", 2)
        known = tasks[task].reason if task in tasks else None
        return known or ("the task has no choices" if key == "accuracy" else "lm-evaluation-harness gives it no value")
    if name == "test/memorised_words":
        return "there are no training data to compare with"
    return "no answer has a word to judge" if name == "test/faithfulness" else "no test item has a reference"


def trained_tasks(policy: Path) -> list[str]:
    """Other tasks that were mixed into a policy's training, as the stage that trained it wrote beside its weights."""
    written = policy / "training.json"
    return sorted(json.loads(written.read_text(encoding="utf-8")).get("tasks", [])) if written.is_file() else []


def policy_hash(folders: Sequence[Path]) -> str:
    """What was evaluated: one hash over the weights' folders."""
    return hashlib.blake2b("\n".join(map(checkpoints.tree_hash, folders)).encode(), digest_size=16).hexdigest()


if __name__ == "__main__":
    main(run, cached_by=("tunemill.sampling", "tunemill.likelihood", "tunemill.harness", "tunemill.best_of"))
