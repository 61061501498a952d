"""Evaluate: let one candidate answer the held-out prompts, and score every answer the same way.

    python -m stages.evaluate --policy artifacts/lora/adapter --base artifacts/select/model \
        --test artifacts/validate/test.jsonl --splits artifacts/validate/splits.json \
        --red-team artifacts/validate/red_team.jsonl --tasks artifacts/validate/tasks_test.jsonl --candidate lora

Generation is greedy, unless the policy brings a prompt.json (stage `prompt`) that says how it is to be decoded. A prediction
is everything the model wrote within the token limit, white space collapsed: nothing is cut away, so that a candidate which
prefaces its answer is not judged by the preface alone. Lines of a journal in `work` keep what was generated, batch by batch.

Other tasks than the one tuned for are not answered but scored: how likely the right answer is, and whether it is the most
likely one of its choices. `compare` reads from that what a candidate has forgotten. These prompts take the base's tokenizer
and chat template: a template that was made for the task tuned for is no part of what is asked here.

Writes instances.jsonl (one row for each test item, scores in points), red_team.jsonl, tasks.jsonl (where there are other
tasks) and scores.json; the same keys for every candidate, null with a reason where a value is undefined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import checkpoints, likelihood, metrics, models, records, sampling, statistics, toxicity
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Example, RedTeamPrompt, TaskItem
from tunemill.runtime import Runtime
from tunemill.sampling import Decoding, Generation
from tunemill.stage import Metrics, main

KINDS = ("instruction", "continuation")
KEPT = ("training.json", "curve.csv", "prompt.json")
"""What a policy brings along about how it was made: kept beside its scores, where the report finds it."""
BASELINES: dict[str, Callable[[str], str]] = {
    "lead-10-words": metrics.lead_words,
    "first-sentence": metrics.first_sentence,
}


class Config(Params):
    """What is generated and how."""

    seed: int = Field(ge=0)
    """Of the choice of test items and red-team prompts."""
    test_items: int = Field(ge=0)
    """Test items to score, every group with its share; 0 takes all."""
    red_team_items: int = Field(ge=0)
    """Red-team prompts to answer, every source with its share; 0 asks none."""
    task_items: int = Field(ge=0)
    """Questions of each other task to score; 0 asks none."""
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
    tasks: Path | None = None,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Answer, score and write everything under `out`."""
    # 1. The test set is the one that was fixed before training; of it, a fixed subset.
    examples = checked(test, splits)
    chosen = statistics.stratified(
        [each.id for each in examples], [each.group for each in examples], cfg.test_items, cfg.seed
    )
    examples = [examples[index] for index in chosen]
    attacks = records.read(red_team, RedTeamPrompt) if red_team is not None and cfg.red_team_items else []
    chosen = statistics.stratified(
        [each.id for each in attacks], [each.source for each in attacks], cfg.red_team_items, cfg.seed
    )
    attacks = [attacks[index] for index in chosen]
    questions = task_items(tasks, splits, cfg.task_items, cfg.seed) if tasks is not None else []

    # 2. Generate. Instructions are messages to the model; a text to continue is given as it stands.
    model, tokenizer = models.load_policy(policy, base, runtime)
    decoding = decoding_of(policy, Decoding(cfg.max_new_tokens))
    prompts = {
        "test": [models.render_prompt(tokenizer, each.prompt) for each in examples],
        "instruction": [models.render_prompt(tokenizer, each.prompt) for each in attacks if each.kind == "instruction"],
        "continuation": [list(tokenizer(each.prompt)["input_ids"]) for each in attacks if each.kind == "continuation"],
    }
    answers, halved = {}, 0
    for name, ids in prompts.items():
        answers[name], times = answer(cfg, model, tokenizer, decoding, name, ids, work / f"{name}.jsonl", log)
        halved += times

    # 3. How likely the right answers of other tasks are.
    judged = score_tasks(model, models.load_tokenizer(base), questions, cfg.batch_tokens, cfg.batch_rows, log)

    # 4. Score.
    instances = score(examples, answers["test"])
    provoked = [
        {"id": attack.id, "kind": attack.kind, "source": attack.source, "prompt": attack.prompt, **_answer(answered)}
        for kind in KINDS
        for attack, answered in zip([each for each in attacks if each.kind == kind], answers[kind], strict=True)
    ]
    for row, offence in zip(provoked, toxicity.offence([row["prediction"] for row in provoked]), strict=True):
        row["toxicity"] = offence
    flat = summary(instances, provoked) | task_summary(judged)

    # 5. Write.
    for name in KEPT:
        if (policy / name).is_file():
            checkpoints.write_text(out / name, (policy / name).read_text(encoding="utf-8"))
    records.write_objects(out / "instances.jsonl", instances)
    records.write_objects(out / "red_team.jsonl", provoked)
    if tasks is not None:
        records.write_objects(out / "tasks.jsonl", judged)
    weights = [policy] if policy == base or not models.is_adapter(policy) else [policy, base]
    checkpoints.write_json(
        out / "scores.json",
        {
            **flat,
            "n": len(instances),
            "halved_batches": halved,
            "decoding": decoding._asdict(),
            "policy_hash": policy_hash(weights),
            "trained_tasks": trained_tasks(policy),
            "reasons": {name: reason(name) for name, value in flat.items() if value is None},
            "bleu_signature": metrics.bleu_signature(),
            "rouge_scorer": metrics.rouge_name(),
            "offence_scorer": toxicity.offence_name(),
        },
    )
    return flat


def checked(test: Path, splits: Path) -> list[Example]:
    """The test rows, if they are those whose ids were hashed before training.

    Raises:
        UserError: they are not, or an id stands there twice.
    """
    examples = records.read(test, Example)
    _as_fixed([each.id for each in examples], test, splits, "test_ids_sha256")
    if not examples:
        raise UserError("no test items", where=str(test), expected="at least one", fix="validate.test in params.yaml")
    return examples


def _as_fixed(ids: Sequence[str], test: Path, splits: Path, key: str) -> None:
    """Check that the ids of `test` are those whose hash `splits` has under `key`, each once."""
    try:
        promised = json.loads(splits.read_text(encoding="utf-8"))[key]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UserError(
            f"no '{key}' in it",
            where=str(splits),
            expected="the splits.json that validate writes",
            fix="dvc repro validate",
        ) from None
    found = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    if found != promised or len(set(ids)) < len(ids):
        raise UserError(
            f"these are not the test items that were fixed before training (ids hash to {found[:12]}…)",
            where=str(test),
            expected=f"{str(promised)[:12]}…, as {splits} says",
            fix="leave the test split as validate wrote it: dvc repro validate",
        )


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


def score(examples: Sequence[Example], answers: Sequence[Generation]) -> list[dict[str, Any]]:
    """The rows of instances.jsonl."""
    references = [metrics.one_line(each.completion) for each in examples]
    predictions = [metrics.one_line(each.text) for each in answers]
    scores = metrics.rouge(references, predictions)
    offence = toxicity.offence(predictions)
    extracts = {
        name: [extract(each.text if each.text is not None else each.prompt) for each in examples]
        for name, extract in BASELINES.items()
    }
    extracted = {name: metrics.rouge(references, texts) for name, texts in extracts.items()}
    return [
        {
            "id": example.id,
            "group": example.group,
            "prompt": example.prompt,
            "reference": references[index],
            **_answer(answers[index]),
            "prediction": predictions[index],
            "scores": _points(scores[index]),
            "precision": _points(scores[index], "precision"),
            "recall": _points(scores[index], "recall"),
            "toxicity": offence[index],
            "baselines": {
                name: {"prediction": extracts[name][index], **_points(extracted[name][index])} for name in BASELINES
            },
        }
        for index, example in enumerate(examples)
    ]


def summary(instances: Sequence[dict[str, Any]], provoked: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The metrics: the same keys for every candidate, None where undefined."""
    references = [row["reference"] for row in instances]
    predictions = [row["prediction"] for row in instances]
    flat: dict[str, float | None] = {
        "test/n": len(instances),
        "test/bleu": corpus_bleu(references, predictions),
        "test/length_words": metrics.mean(len(text.split()) for text in predictions),
        "test/reference_words": metrics.mean(len(text.split()) for text in references),
        "test/tokens": metrics.mean(row["tokens"] for row in instances),
        "test/finished": metrics.share(row["finished"] for row in instances),
        "test/empty": metrics.share(not text for text in predictions),
        "toxicity/share": metrics.share(row["toxicity"] >= toxicity.TOXIC for row in instances),
    }
    for name in metrics.ROUGE_TYPES:
        flat[f"test/{name}"] = metrics.mean(row["scores"][name] for row in instances)
        flat[f"test/{name}_precision"] = metrics.mean(row["precision"][name] for row in instances)
        flat[f"test/{name}_recall"] = metrics.mean(row["recall"][name] for row in instances)
    for baseline in BASELINES:
        rows = [row["baselines"][baseline] for row in instances]
        flat |= {f"baseline/{baseline}/{name}": metrics.mean(row[name] for row in rows) for name in metrics.ROUGE_TYPES}
        flat[f"baseline/{baseline}/bleu"] = corpus_bleu(references, [row["prediction"] for row in rows])
    for kind in KINDS:
        rows = [row for row in provoked if row["kind"] == kind]
        flat[f"red_team/{kind}/n"] = len(rows)
        flat[f"red_team/{kind}/toxicity_share"] = metrics.share(row["toxicity"] >= toxicity.TOXIC for row in rows)
    return flat


def corpus_bleu(references: Sequence[str], predictions: Sequence[str]) -> float | None:
    """Corpus BLEU in points; None without any reference."""
    points = float(metrics.bleu(metrics.bleu_statistics(references, predictions).sum(axis=0)))
    return points if points == points else None


def reason(name: str) -> str:
    """Why a metric may be undefined."""
    if name.startswith("tasks/"):
        return "the task has no choices"
    return (
        "no red-team prompts of this kind were asked"
        if name.startswith("red_team/")
        else "no test item has a reference"
    )


def task_items(tasks: Path, splits: Path, count: int, seed: int) -> list[TaskItem]:
    """The questions to score: a fixed subset of `count` of every task, if they are those that were fixed before training."""
    items = records.read(tasks, TaskItem)
    _as_fixed([each.id for each in items], tasks, splits, "tasks_test_ids_sha256")
    chosen = []
    for task in sorted({each.task for each in items}) if count else []:
        own = [each for each in items if each.task == task]
        taken = statistics.stratified([each.id for each in own], [task] * len(own), count, seed)
        chosen += [own[index] for index in taken]
    return chosen


def score_tasks(
    model: Any, tokenizer: Any, items: Sequence[TaskItem], batch_tokens: int, batch_rows: int, log: Log
) -> list[dict[str, Any]]:
    """The rows of tasks.jsonl: negative log-likelihood per token of the right answer, and whether it is the likeliest choice."""
    if items:
        log.note(f"scoring {len(items)} questions of {len({each.task for each in items})} other tasks")
    pairs = [(each.prompt, answer) for each in items for answer in (each.choices or (each.completion,))]
    scored = iter(likelihood.score(model, tokenizer, pairs, batch_tokens=batch_tokens, batch_rows=batch_rows))
    rows = []
    for each in items:
        answers = each.choices or (each.completion,)
        found = [next(scored) for _ in answers]
        right = answers.index(each.completion)
        rows.append(
            {
                "id": each.id,
                "task": each.task,
                "nll": -found[right].mean,
                "tokens": found[right].tokens,
                "correct": likelihood.best(found) == right if each.choices else None,
            }
        )
    return rows


def task_summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The metrics of other tasks: means over their questions; no accuracy where a task has no choices."""
    flat: dict[str, float | None] = {}
    for task in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == task]
        flat[f"tasks/{task}/n"] = len(own)
        flat[f"tasks/{task}/nll"] = metrics.mean(row["nll"] for row in own)
        flat[f"tasks/{task}/accuracy"] = metrics.share(row["correct"] for row in own if row["correct"] is not None)
    return flat


def trained_tasks(policy: Path) -> list[str]:
    """Other tasks that were mixed into a policy's training, as the stage that trained it wrote beside its weights."""
    written = policy / "training.json"
    return sorted(json.loads(written.read_text(encoding="utf-8")).get("tasks", [])) if written.is_file() else []


def policy_hash(folders: Sequence[Path]) -> str:
    """What was evaluated: one hash over the weights' folders."""
    return hashlib.blake2b("\n".join(map(checkpoints.tree_hash, folders)).encode(), digest_size=16).hexdigest()


def _answer(answered: Generation) -> dict[str, Any]:
    return {"prediction": answered.text.strip(), "tokens": answered.tokens, "finished": answered.finished}


def _points(scores: dict[str, metrics.Rouge] | None, part: str = "f1") -> dict[str, float | None]:
    return {name: None if scores is None else getattr(scores[name], part) for name in metrics.ROUGE_TYPES}


if __name__ == "__main__":
    main(run)
