"""Benchmarks through lm-evaluation-harness (Gao et al. 2021), on this project's scorer and generator.

Tasks, prompts, worked examples, metrics and their numbers are lm-eval's own; only what asks the model is ours: `LanguageModel`
stands where its `HFLM` would, tokenises as that does (lm_eval/models/huggingface.py), and gives the same numbers sooner, since
`tunemill.likelihood` reads what questions and choices share once. Three kinds of task:

- Those lm-eval names (GLUE, SuperGLUE, MMLU, BIG-bench, TruthfulQA, …): their data come from a hub.
- A user's own: a YAML file in lm-eval's format and a JSONL file beside it.
- Rows of ours (`records.TaskItem`), in memory: `from_items`.

Deviations from `HFLM`: a soft prompt's positions count against the context; sampled answers come from a stream of their own for
each prompt (see `tunemill.sampling`), and top-k is off unless asked for; a chat template's last newline is no part of an answer
in the rows (`_row`); what `generation_kwargs` hold beyond `GENERATION` is refused, not passed on.

No code of a data set is run: `datasets` runs none, what a YAML file of a folder names as `!function` or `class` is refused, and
so are metrics that would be fetched as code, by lm-eval or by a function of its tasks. A YAML file's Jinja templates are
expressions all the same: run files you trust.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import numbers
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill import journal, likelihood, losses, sampling, squad, task_code
from tunemill.errors import UserError, nearest
from tunemill.log import Log
from tunemill.records import TaskItem

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
"""Settings of generation that a task may have."""


class TaskResult(NamedTuple):
    """What came out for one task."""

    metrics: dict[str, float | None]
    """As lm-eval reports them ("acc", "acc_norm", …; behind a filter "exact_match/strict-match"); None is undefined."""
    reason: str | None
    """Why metrics are undefined."""
    n: int
    """Questions asked."""
    shots: int
    """Worked examples before each."""
    version: str | None
    """Of the task."""
    rows: list[dict[str, Any]]
    """One for each question (and filter), see `_row`."""


class Results(NamedTuple):
    """What came out for all tasks."""

    tasks: dict[str, TaskResult]
    groups: dict[str, dict[str, float | None]]
    """Metrics of groups of tasks (MMLU's subjects together), as lm-eval aggregates them."""


def run(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | dict[str, Any]],
    *,
    folder: Path | None,
    shots: int | None,
    limit: int | None,
    seed: int,
    chat: bool,
    batch_tokens: int,
    batch_rows: int,
    kept: Path | None,
    log: Log,
) -> Results:
    """Ask a model the questions of some tasks.

    Args:
        model: decoder-only or encoder-decoder, in evaluation mode, with an adapter or a soft prompt on it or without.
        tokenizer: with a padding token.
        tasks: names that lm-eval knows, names or groups of YAML files in `folder`, or tasks of `from_items`.
        folder: where a user's tasks are; data files they name lie beside them.
        shots: worked examples before each question; None leaves it to the task, as does a task that says it has none.
        limit: most questions of each task, the first ones; None asks all.
        seed: of the choice of worked examples, and of what is drawn.
        chat: whether prompts are put in the tokenizer's chat template, where it has one: worked examples as turns.
        batch_tokens: most tokens of a batch, padding and answers included.
        batch_rows: most questions in a batch.
        kept: a journal of what the model said, one for each model: what is in it is not asked again. Data sets are cached
            beside it, in `datasets`; without one in a temporary folder.
        log: told what is done.

    Raises:
        UserError: a task that is not known, is out of reach, has too few worked examples, or would run code.
    """
    from lm_eval import evaluator

    # What it warns of (a number of shots that is not the task's own) is what was asked for.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    asker = language_model(
        model,
        tokenizer,
        seed=seed,
        chat=chat,
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        kept=kept,
        log=log,
    )
    with _datasets_under(None if kept is None else kept.parent / "datasets"):
        loaded = _ready(tasks, folder, shots, limit, seed)
        log.note(f"asking {', '.join(loaded['tasks'])}")
        try:
            found = evaluator.evaluate(
                lm=asker,
                task_dict=loaded,
                limit=limit,
                bootstrap_iters=0,  # intervals are ours
                log_samples=True,
                apply_chat_template=chat and bool(tokenizer.chat_template),
                fewshot_as_multiturn=True,
            )
        except ValueError as error:
            # The one mistake of a user that evaluate itself finds.
            if "marked as unsafe" not in str(error):
                raise
            raise UserError(
                f"{str(error).split(': ', 1)[-1].split(' which')[0]} runs code that the model writes", exit_code=2
            ) from None
        return Results(
            {name: _result(name, task, found, asker) for name, task in loaded["tasks"].items()},
            {name: _metrics(found["results"][name]) for name in loaded["groups"] if name in found["results"]},
        )


def from_items(items: Sequence[TaskItem], examples: Sequence[TaskItem] = ()) -> list[dict[str, Any]]:
    """Rows of ours as tasks for `run`, in memory; the questions keep their ids.

    A row without choices is a question with one: how likely is the right answer? Its metric is `exact_match`, whether greedy
    decoding would give it.

    Args:
        items: the questions, of one task or several.
        examples: the worked examples, as many of the first ones as `run` is asked for, the same for every question; a task
            that has none of them is asked without.

    Raises:
        ValueError: a task in which some rows have choices and some have none, or a right answer that is no choice.
    """
    found: list[dict[str, Any]] = []
    for task in sorted({each.task for each in items}):
        own = [each for each in items if each.task == task]
        worked = [each for each in examples if each.task == task]
        if len({bool(each.choices) for each in (*own, *worked)}) > 1:
            raise ValueError(f"task {task}: some of its rows have choices, some have none")
        metrics = ("acc", "acc_norm") if own[0].choices else ("exact_match",)
        splits = {"test": own} | ({"train": worked} if worked else {})
        source: dict[str, Any] = {"num_fewshot": 0}
        if worked:
            # The first ones for every question, as in MMLU: what all questions begin with is read once.
            source = {"training_split": "train", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
        found.append(
            source
            | {
                "task": task,
                "custom_dataset": _in_memory({name: [_doc(each) for each in rows] for name, rows in splits.items()}),
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "prompt",
                "doc_to_choice": "choices",
                "doc_to_target": "right",
                "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
            }
        )
    return found


def _doc(item: TaskItem) -> dict[str, Any]:
    choices = list(item.choices or (item.completion,))
    return {"id": item.id, "prompt": item.prompt, "choices": choices, "right": choices.index(item.completion)}


def _in_memory(splits: dict[str, list[dict[str, Any]]]) -> Any:
    def load_splits(**_: Any) -> Any:
        from datasets import Dataset

        return {name: Dataset.from_list(rows) for name, rows in splits.items()}

    return load_splits


def check(
    tasks: Sequence[str | dict[str, Any]],
    *,
    folder: Path | None,
    shots: int | None,
    limit: int | None,
    seed: int,
    place: Path,
) -> None:
    """Find every mistake in tasks that can be found without a model; the arguments are those of `run`.

    Args:
        tasks: see `run`.
        folder: see `run`.
        shots: see `run`.
        limit: see `run`.
        seed: see `run`.
        place: where data sets are cached.

    Raises:
        UserError: see `run`.
    """
    with _datasets_under(place):
        _ready(tasks, folder, shots, limit, seed)


def _ready(
    tasks: Sequence[str | dict[str, Any]], folder: Path | None, shots: int | None, limit: int | None, seed: int
) -> dict[str, Any]:
    loaded = load(tasks, folder)
    for name, task in loaded["tasks"].items():
        _prepare(name, task, shots, seed)
        _check_answers(name, task, limit)
    return loaded


# ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(tasks: Sequence[str | dict[str, Any]], folder: Path | None) -> dict[str, Any]:
    """Tasks with their data, as `lm_eval.evaluator.evaluate` takes them: {"tasks": …, "groups": …}.

    Raises:
        UserError: see `run`.
    """
    from lm_eval.tasks import TaskManager

    local = TaskManager(include_path=None if folder is None else str(folder), include_defaults=False)
    for path in sorted(folder.rglob("*.yaml")) if folder is not None else []:
        task_code.check_file(path)
    for entry in local.task_index.values():
        if entry.yaml_path is not None and entry.cfg is not None:
            # As it was read, no function among it; and its data where the file is, not where the command is run.
            entry.cfg, entry.yaml_path = _beside(entry.cfg, entry.yaml_path), None
    found: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for spec in tasks:
        name = spec if isinstance(spec, str) else str(spec["task"])
        manager = local
        if isinstance(spec, str) and spec not in local.task_index:
            manager = _named()
            if spec not in manager.task_index:
                raise _unknown(spec, folder, [*local.task_index, *manager.task_index])
        if isinstance(spec, str):
            task_code.check_metrics(name, manager.task_index)
        try:
            with squad.standing_in():
                loaded = manager.load([spec])
        except Exception as error:
            # `datasets` and its hub raise a dozen unrelated types for "not there" and "no network", lm-eval for the rest.
            raise _out_of_reach(name, error, manager is not local) from error
        for part, values in found.items():
            for each, value in loaded.get(part, {}).items():
                if any(each in known_names for known_names in found.values()):
                    raise UserError(
                        f"two tasks are called '{each}'",
                        where=f"task {name}",
                        expected="one name for each task and each group",
                        fix="rename yours, or take one out: evaluate.benchmarks, collect.tasks",
                        exit_code=2,
                    )
                values[each] = value
    return found


@functools.cache
def _named() -> Any:
    """The tasks that lm-eval knows by name, read once: they are some ten thousand files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _beside(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A task's configuration with the data files it names found beside its file."""
    settings = dict(config.get("dataset_kwargs") or {})

    def found(name: str) -> str:
        if "://" in name or Path(name).is_absolute():
            return name
        if not list(path.parent.glob(name)):
            raise UserError(f"no such data file: {name}", where=str(path), expected=f"a file in {path.parent}")
        return str(path.parent / name)

    match settings.get("data_files"):
        case str(name):
            settings["data_files"] = found(name)
        case list(names):
            settings["data_files"] = [found(name) for name in names]
        case dict(splits):
            settings["data_files"] = {
                split: found(names) if isinstance(names, str) else [found(name) for name in names]
                for split, names in splits.items()
            }
    return {**config, "dataset_kwargs": settings} if settings else dict(config)


def _unknown(name: str, folder: Path | None, known: Sequence[str]) -> UserError:
    likely = nearest(name, known)
    return UserError(
        f"no task '{name}'",
        expected=f"a task of lm-eval{f', or of a YAML file in {folder}' if folder is not None else ''}",
        fix=f"did you mean '{likely}'?" if likely else "lm_eval ls tasks lists lm-eval's own",
        exit_code=2,
    )


def _out_of_reach(name: str, error: Exception, named: bool) -> UserError:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    if not named:
        return UserError(f"task '{name}' cannot be made: {why}", expected="fields that its templates name")
    if isinstance(error, ImportError):
        return UserError(
            f"task '{name}' needs a package that is not there: {why}", fix="install it, or take another task"
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    return UserError(
        f"the data of task '{name}' are out of reach: {why}",
        expected="a hub, or the data in the cache",
        fix=f"{'set HF_HUB_OFFLINE=0 and check' if offline else 'check'} the network, or take tasks of local files",
    )


def _prepare(name: str, task: Task, shots: int | None, seed: int) -> None:
    """What lm-eval's `simple_evaluate` sets; and whether there are worked examples enough."""
    own = task.get_config("num_fewshot")
    if shots is not None and own != 0:
        task.set_config("num_fewshot", shots)
    elif own is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(seed)
    wanted, sampler = task.get_config("num_fewshot"), getattr(task, "sampler", None)
    if not wanted or sampler is None or task.OUTPUT_TYPE == "loglikelihood_rolling":
        return
    source = task.get_config("fewshot_config")
    if source.split is None and source.samples is None and not (task.has_training_docs() or task.has_validation_docs()):
        # lm-eval would take them from the questions themselves, the one that is asked among them.
        raise UserError("no split to take worked examples from", where=f"task {name}", fix="fewshot_split, or shots: 0")
    there = len(sampler.df) - (source.split is not None and source.split == task.get_config("test_split"))
    if wanted > there:
        raise UserError(f"{wanted} worked examples wanted, {there} there", where=f"task {name}", fix="fewer shots")


def _check_answers(name: str, task: Task, limit: int | None) -> None:
    """Whether every right answer is one of the choices, before a model is asked anything."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for at, doc in task.doc_iterator(limit=limit):
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        _right(name, _id(doc, at), task.doc_to_choice(doc), target)
    source, sampler = task.get_config("fewshot_config"), getattr(task, "sampler", None)
    for at, doc in enumerate(sampler.df if sampler is not None and task.get_config("num_fewshot") else []):
        target = task.doc_to_target(doc, source.doc_to_target)
        if source.doc_to_choice and isinstance(target, int) and not task.multiple_input:
            _right(name, _id(doc, at), task.doc_to_choice(doc, source.doc_to_choice), target)


@contextlib.contextmanager
def _datasets_under(folder: Path | None) -> Iterator[None]:
    """Keep what `datasets` caches in a folder, for a time; in a temporary one if None."""
    from datasets import config

    before = config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH
    with contextlib.ExitStack() as stack:
        root = folder if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH = root, root / "downloads"
        try:
            yield
        finally:
            config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH = before


# ── What came out ───────────────────────────────────────────────────────────────────────────────────────────────────


def _result(name: str, task: Task, found: Mapping[str, Any], asker: Any) -> TaskResult:
    rows = [_row(name, task, sample, asker) for sample in found["samples"][name]]
    metrics = _metrics(found["results"][name])
    undefined = sum(any(math.isnan(each) for each in row.get("logprobs", ())) for row in rows)
    reason = None
    if undefined:  # lm-eval takes what is no number for the likeliest
        metrics, reason = dict.fromkeys(metrics), f"{undefined} of {len(rows)} questions have no log-probabilities"
    version = found["versions"].get(name)
    return TaskResult(
        metrics,
        reason,
        int(found["n-samples"][name]["effective"]),
        int(found["n-shot"][name]),
        None if version is None else str(version),
        rows,
    )


def _metrics(reported: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics without lm-eval's own standard errors; the filter is named where there is one."""
    found: dict[str, float | None] = {}
    for key, value in reported.items():
        name, comma, by = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        number = float(value) if isinstance(value, numbers.Real) else math.nan
        found[_key(name, by)] = number if math.isfinite(number) else None
    return found


def _key(metric: str, by: str) -> str:
    """A metric's name, with its filter where there is one."""
    return metric if by == "none" else f"{metric}/{by}"


def _row(name: str, task: Task, sample: Mapping[str, Any], asker: Any) -> dict[str, Any]:
    """One question and what the model made of it.

    Returns:
        id, task, prompt (its last context in full), scores (lm-eval's of this question, of metrics that are means over
        questions). Where there are choices (a right answer alone is one): choices, right (its index, or several), logprobs
        and tokens (of each choice as it was scored, the delimiter with it, a chat template's end without). Of perplexities
        logprobs and tokens. Where text was generated: reference, prediction, filter.
    """
    from lm_eval.api.metrics import mean

    doc, asked, aggregation = sample["doc"], sample["arguments"], task.aggregation()
    row: dict[str, Any] = {
        "id": _id(doc, sample["doc_id"]),
        "task": name,
        "prompt": asked[0][0],
        "scores": {
            _key(key, sample["filter"]): float(sample[key])
            for key in sample["metrics"]
            if aggregation.get(key) is mean and isinstance(sample[key], numbers.Real)
        },
    }
    if task.OUTPUT_TYPE == "generate_until":
        (prediction, *_) = sample["filtered_resps"]
        return row | {"reference": sample["target"], "prediction": prediction, "filter": sample["filter"]}
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return row | {"logprobs": list(sample["filtered_resps"]), "tokens": [asker.counts[tuple(asked[0])]]}
    if task.OUTPUT_TYPE == "loglikelihood":
        choices: list[str] = [asked[0][1]]
        right: int | list[int] = 0
    else:
        choices = list(task.doc_to_choice(doc))
        right = _right(name, row["id"], choices, task.doc_to_text(doc) if task.multiple_input else sample["target"])
    answers = sample["filtered_resps"][: len(choices)]  # with acc_mutual_info those without a context follow
    pairs = [tuple(each[:2]) for each in asked[: len(choices)]]
    # lm-eval counts the newline that ends a chat template with every answer. It is the same for all of them, and every model is sure
    # of it: as one of two tokens it would halve the confidence in an answer of one letter.
    template = [asker.template.get(pair, (0, 0.0)) for pair in pairs]
    return row | {
        "choices": choices,
        "right": right,
        "logprobs": [float(each[0]) - own for each, (_, own) in zip(answers, template, strict=True)],
        "tokens": [asker.counts[pair] - own for pair, (own, _) in zip(pairs, template, strict=True)],
    }


def _id(doc: Any, at: int) -> str:
    """What the data call a question, or else its place among them."""
    known = doc.get("id") if isinstance(doc, dict) else None
    return str(at if known is None else known)


def _right(task: str, item: str, choices: Sequence[str], target: Any) -> int | list[int]:
    """The index of the right choice; of several, all.

    Raises:
        UserError: it is none of the choices; lm-eval would count the question as answered wrongly.
    """
    if isinstance(target, list):
        return [_one(task, item, choices, each) for each in target]
    return _one(task, item, choices, target)


def _one(task: str, item: str, choices: Sequence[str], target: Any) -> int:
    if isinstance(target, str) and target in choices:
        return choices.index(target)
    if isinstance(target, int) and 0 <= target < len(choices):
        return target
    raise UserError(
        f"the right answer {target!r} is none of the {len(choices)} choices", where=f"task {task}, question {item}"
    )


# ── The model ───────────────────────────────────────────────────────────────────────────────────────────────────────


def language_model(
    model: Any,
    tokenizer: Any,
    *,
    seed: int,
    chat: bool,
    batch_tokens: int,
    batch_rows: int,
    kept: Path | None,
    log: Log,
) -> Any:
    """A model as lm-eval asks one: an `lm_eval.api.model.LM`; the arguments are those of `run`."""
    from lm_eval.api.model import LM

    class LanguageModel(LM):  # type: ignore[misc]  # what lm-eval takes; its import costs half a second
        """Answers lm-eval's three kinds of request."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.counts: dict[tuple[str, ...], int] = {}
            """Tokens that were scored, by what lm-eval asked: (context, continuation), or (text,)."""
            self.template: dict[tuple[str, ...], tuple[int, float]] = {}
            """How many of them are white space that ends a chat template, and the log-probability of that."""

        @property
        def tokenizer_name(self) -> str:
            return str(tokenizer.name_or_path)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return chatted(tokenizer, chat_history, add_generation_prompt)

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            asked = [each.args[:2] for each in requests]
            pairs = [truncated(model, tokenizer, *pair) for pair in encode_pairs(model, tokenizer, asked)]
            self.counts |= {pair: len(answer) for pair, (_, answer) in zip(asked, pairs, strict=True)}
            begun = {pair: own for pair, each in zip(asked, pairs, strict=True) if (own := self._begun(pair[0], *each))}
            found = self._scored([*pairs, *begun.values()])
            self.template |= {
                pair: (len(own[1]), each.logprob)
                for (pair, own), each in zip(begun.items(), found[len(pairs) :], strict=True)
            }
            return [(each.logprob, each.greedy) for each in found[: len(pairs)]]

        def _begun(self, context: str, known: list[int], answer: list[int]) -> tuple[list[int], list[int]] | None:
            """The white space that ends a chat template, where it has tokens of its own before an answer's."""
            if not chat or model.config.is_encoder_decoder or context == context.rstrip():
                return None
            own = _ids(tokenizer, [context])[context]
            count = len(own) - len(known)
            return (known, answer[:count]) if 0 < count < len(answer) and [*known, *answer][: len(own)] == own else None

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            texts = [each.args[0] for each in requests]
            split = [windows(model, tokenizer, text) for text in texts]
            self.counts |= {
                (text,): sum(len(answer) for _, answer in own) for text, own in zip(texts, split, strict=True)
            }
            scored = iter(self._scored([pair for own in split for pair in own]))
            return [math.fsum(next(scored).logprob for _ in own) for own in split]

        def generate_until(self, requests: list[Instance]) -> list[str]:
            return generate(
                model,
                tokenizer,
                [(each.args[0], each.args[1]) for each in requests],
                seed=seed,
                batch_tokens=batch_tokens,
                batch_rows=batch_rows,
                kept=kept,
                log=log,
            )

        def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[likelihood.Likelihood]:
            return likelihood.score_tokens(
                model,
                pairs,
                pad=tokenizer.pad_token_id,
                batch_tokens=batch_tokens,
                batch_rows=batch_rows,
                kept=kept,
                log=log,
            )

    return LanguageModel()


def chatted(tokenizer: Any, history: Sequence[dict[str, str]], begun: bool) -> str:
    """Messages in the tokenizer's chat template; without the system's where it takes none, as `HFLM.apply_chat_template`.

    Args:
        tokenizer: with a chat template.
        history: role and content of each message.
        begun: whether the assistant's turn is begun; otherwise the last message is one, and goes on.
    """
    from jinja2 import TemplateError

    def rendered(messages: Sequence[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=begun, continue_final_message=not begun
            )
        )

    try:
        return rendered(history)
    except TemplateError:
        return rendered([each for each in history if each["role"] != "system"])


def encode_pairs(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations as token ids, as lm_eval/api/model.py (`TemplateLM`) makes them.

    White space that ends a context belongs to the continuation. Decoder-only: both are encoded together, and cut where the
    context ends when it is encoded alone. An empty context is the first token of a text (or its end).
    """
    moved = []
    for context, continuation in pairs:
        bare = context.rstrip()
        moved.append((bare, context[len(bare) :] + continuation) if context else ("", continuation))
    causal = not model.config.is_encoder_decoder
    whole = _ids(tokenizer, [before + after if causal else before for before, after in moved if before])
    contexts = _ids(tokenizer, [before for before, _ in moved if before])
    alone = _ids(tokenizer, [after for before, after in moved if not (before and causal)], special=False)
    first = _first_token(tokenizer)
    found = []
    for (context, _), (before, after) in zip(pairs, moved, strict=True):
        if not context:
            ids = alone[after]
            found.append((ids[:1], ids[1:]) if ids and ids[0] == first else ([first], ids))
        elif causal:
            found.append((contexts[before], whole[before + after][len(contexts[before]) :]))
        else:
            found.append((contexts[before], alone[after]))
    return found


def truncated(model: Any, tokenizer: Any, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
    """What fits of a pair into the model's positions: the context loses its beginning.

    Raises:
        UserError: the continuation alone does not fit.
    """
    room = positions(model, tokenizer)
    if len(continuation) > room:
        raise UserError(f"an answer of {len(continuation)} tokens, and the model has {room} positions")
    if model.config.is_encoder_decoder:
        return context[-room:], continuation
    # The last token is not read.
    return context[-(room + 1 - len(continuation)) :], continuation


def windows(model: Any, tokenizer: Any, text: str) -> list[tuple[list[int], list[int]]]:
    """A text as pairs that fit into the model's positions, each token in one continuation (as `HFLM`)."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    return [
        make_disjoint_window(each)
        for each in get_rolling_token_windows(
            token_list=_ids(tokenizer, [text])[text],
            prefix_token=_first_token(tokenizer),
            max_seq_len=positions(model, tokenizer),
            context_len=1,
        )
    ]


def positions(model: Any, tokenizer: Any) -> int:
    """Tokens that a decoder-only model takes behind its soft prompt, or an encoder; as `HFLM.max_length`."""
    from lm_eval.models.utils import resolve_max_length

    room = int(resolve_max_length(model.config, tokenizer))
    return room if model.config.is_encoder_decoder else room - losses.virtual_tokens(model)


def generate(
    model: Any,
    tokenizer: Any,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    seed: int,
    batch_tokens: int,
    batch_rows: int,
    kept: Path | None,
    log: Log,
) -> list[str]:
    """Answers to contexts, each with lm-eval's `generation_kwargs`.

    Returns:
        One for each request, cut before what ends it. Equal greedy requests are answered once.

    Raises:
        UserError: a setting that is not known, or no room for a context.
    """
    held: dict[str, str] = {}
    for entry in journal.recover(kept) if kept is not None else []:
        held |= entry.get("texts", {})
    ways: dict[str, list[int]] = {}
    for index, (_, settings) in enumerate(requests):
        ways.setdefault(json.dumps(dict(settings), sort_keys=True), []).append(index)
    names: dict[int, str] = {}
    for way, items in ways.items():
        decoding, until = _decoding(json.loads(way))
        room = positions(model, tokenizer) - (0 if model.config.is_encoder_decoder else decoding.max_new_tokens)
        if room <= 0:
            raise UserError(f"answers of {decoding.max_new_tokens} tokens leave the model no room for a question")
        ids = _ids(tokenizer, [requests[index][0] for index in items])
        prompts = [ids[requests[index][0]][-room:] for index in items]
        for at, index in enumerate(items):
            drawn = [seed, at] if decoding.temperature > 0 else []
            names[index] = _name([prompts[at], way, *drawn])
        # Of greedy answers to one prompt the first is asked for; of sampled ones each has its own name.
        asked = list({names[index]: at for at, index in reversed(list(enumerate(items)))}.values())
        plan = sampling.plan([len(prompts[at]) for at in asked], decoding.max_new_tokens, batch_tokens, batch_rows)
        batches = [tuple(asked[at] for at in batch) for batch in plan]
        left = [batch for batch in batches if any(names[items[at]] not in held for at in batch)]
        log.start("answering", len(asked), "prompt", first=len(asked) - sum(map(len, left)))
        done = len(asked) - sum(map(len, left))
        for batch in sampling.generate(
            model, tokenizer, prompts, **decoding._asdict(), until=until, batches=left, seed=seed
        ):
            new = {names[items[at]]: each.text for at, each in zip(batch.items, batch.generations, strict=True)}
            if kept is not None:
                journal.append(kept, {"texts": new})
            held |= new
            done += len(batch.items)
            log(done)
    return [held[names[index]] for index in range(len(requests))]


def _decoding(settings: Mapping[str, Any]) -> tuple[sampling.Decoding, list[str]]:
    """lm-eval's settings as ours, and what ends an answer."""
    from lm_eval.models.utils import normalize_gen_kwargs

    given = normalize_gen_kwargs(dict(settings))
    if unknown := sorted(set(given) - set(GENERATION)):
        raise UserError(
            f"unknown setting '{unknown[0]}'", where="generation_kwargs", expected=", ".join(GENERATION), exit_code=2
        )
    temperature = float(given.get("temperature", 0.0)) if given["do_sample"] else 0.0
    decoding = sampling.Decoding(
        given["max_gen_toks"], temperature, int(given.get("top_k", 0)), float(given.get("top_p", 1.0))
    )
    return decoding, given["until"]


def _ids(tokenizer: Any, texts: Sequence[str], special: bool | None = None) -> dict[str, list[int]]:
    """Token ids of texts, each once; special tokens as the tokenizer has them, unless the text begins with one already."""
    first = tokenizer.decode(_first_token(tokenizer))
    found: dict[str, list[int]] = {}
    different = list(dict.fromkeys(texts))
    for plain in (True, False):
        own = [text for text in different if (special is None and not text.startswith(first)) == plain]
        if own:
            ids = tokenizer(own, **({} if plain else {"add_special_tokens": bool(special)}))["input_ids"]
            found |= zip(own, map(list, ids), strict=True)
    return found


def _first_token(tokenizer: Any) -> int:
    """What a text begins behind: the tokenizer's first token, or its end."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(token)


def _name(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
