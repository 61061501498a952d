"""Benchmarks: lm-evaluation-harness' own numbers, from its own HFLM on the same model and tasks."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tests.tunemill.conftest import Kills
from tunemill import harness, likelihood, models, records, runtime, task_code
from tunemill.errors import UserError
from tunemill.log import Log

CPU = runtime.Runtime("cpu", "float32", 2)
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: data/train.jsonl, test: data/test.jsonl}}}}
test_split: test
fewshot_split: {split}
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: {choices}
doc_to_target: right
metadata: {{version: 2.0}}
metric_list:
- {{metric: acc, aggregation: mean, higher_is_better: true}}
- {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
TEST_ONLY = """
dataset_path: json
dataset_kwargs: {data_files: {test: data/test.jsonl}}
test_split: test"""
GENERATE = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{long[0]}}"
generation_kwargs: {until: [" the", "et"], max_gen_toks: 24, do_sample: false}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{story}}"
metric_list:
- {metric: word_perplexity}
- {metric: byte_perplexity}
- {metric: bits_per_byte}
"""
LAST = """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{long[1]}}"
metric_list:
- {metric: perplexity, aggregation: perplexity, higher_is_better: false}
- {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's tasks: YAML files, and data beside them."""
    root = tmp_path_factory.mktemp("tasks")
    rng, lines = random.Random(3), tiny_model.corpus(2)
    for split, count in (("train", 9), ("test", 12)):
        rows = []
        for at in range(count):
            words = " ".join(lines[at : at + 3]).split()
            rows.append(
                {
                    "id": f"{split}-{at}",
                    "question": " ".join(rng.sample(words, rng.randrange(4, 12))),
                    "short": ["yes", "no", "table", "file"],
                    "long": [" ".join(rng.sample(words, rng.randrange(1, 6))) for _ in range(3)],
                    "right": rng.randrange(3),
                    "story": " ".join(lines[at * 5 : at * 5 + (40 if at == 1 else 4)]),
                }
            )
        path = root / "data" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, choices, split in (("letters", "short", "train"), ("phrases", "long", "train"), ("same", "long", "test")):
        text = CHOICE.format(name=name, choices=choices, split=split)
        (root / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, text in (("words", GENERATE), ("rolling", ROLLING), ("last", LAST)):
        (root / f"{name}.yaml").write_text(f"task: {name}{TEST_ONLY}{text}", encoding="utf-8")
    (root / "both.yaml").write_text(
        "group: both\ntask: [letters, phrases]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n",
        encoding="utf-8",
    )
    return root


Asked = Callable[..., harness.Results]


@pytest.fixture
def policy(either: Path) -> tuple[Any, Any]:
    return models.load_base(either, CPU), models.load_tokenizer(either)


def ask(policy: tuple[Any, Any], tasks: Any, folder: Path | None, **settings: Any) -> harness.Results:
    """`run` with what the tests seldom change."""
    fixed: dict[str, Any] = {"shots": 0, "limit": None, "seed": 7, "chat": False, "batch_tokens": 6000, "batch_rows": 8}
    return harness.run(*policy, tasks, folder=folder, log=Log(), **(fixed | {"kept": None} | settings))


def theirs(
    policy: tuple[Any, Any], tasks: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Any:
    """What lm-eval's own command does: `simple_evaluate` with its HFLM."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(folder)  # it finds data files where it is run
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)  # seconds of asking about the machine
    chat = bool(settings.get("chat") and policy[1].chat_template)
    return evaluator.simple_evaluate(
        HFLM(pretrained=policy[0], tokenizer=policy[1], batch_size=4),
        tasks=tasks,
        num_fewshot=settings.get("shots", 0),
        limit=settings.get("limit"),
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_random_seed=7,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )


def agree(found: harness.Results, oracle: Any, chat: bool = False) -> float:
    """Equal prompts, metrics and answers; returns the largest difference of log-probabilities for a token.

    For a token, as rounding grows with the sum: an untrained model's answer of 20 tokens may have -900, 1e-7 of which is 1e-4.

    With a chat template, of what they differ by among a question's choices: HFLM counts the template's last newline with each.
    """
    assert found.tasks and all(result.n > 0 for result in found.tasks.values())
    furthest = 0.0
    for name, result in found.tasks.items():
        samples = oracle["samples"][name]
        assert len(samples) == len(result.rows) == result.n
        for row, sample in zip(result.rows, samples, strict=True):
            assert row["id"] == sample["doc"]["id"] and row["prompt"] == sample["arguments"][0][0]
            if "prediction" in row:
                assert row["prediction"] == sample["filtered_resps"][0]
                continue
            other = [each[0] if isinstance(each, tuple) else each for each in sample["filtered_resps"]]
            apart = [a - b for a, b in zip(row["logprobs"], other, strict=True)]
            if chat:
                assert min(apart) >= -1e-4
                apart = [each - apart[0] for each in apart]
            furthest = max(furthest, *(abs(off) / n for off, n in zip(apart, row["tokens"], strict=True)))
            assert row["scores"] == pytest.approx({key: sample[key] for key in row["scores"]}, rel=1e-5)
        reported = oracle["results"][name]
        for key, value in result.metrics.items():
            assert value == pytest.approx(reported[f"{key},none"], rel=1e-5)
        assert set(result.metrics) == {key.split(",")[0] for key in reported if ",none" in key and "stderr" not in key}
        assert result.version == str(oracle["versions"][name]) and result.shots == oracle["n-shot"][name]
    return furthest


@pytest.mark.parametrize(("shots", "chat"), [(0, False), (0, True), (5, False), (5, True)])
def test_choices_are_as_likely_as_lm_eval_finds_them(
    policy: tuple[Any, Any], folder: Path, shots: int, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["letters", "phrases", "same"]
    oracle = theirs(policy, tasks, folder, monkeypatch, shots=shots, chat=chat)
    found = ask(policy, tasks, folder, shots=shots, chat=chat)
    assert agree(found, oracle, chat and bool(policy[1].chat_template)) < 1e-4
    (first, *_) = found.tasks["letters"].rows
    assert first["choices"] == ["yes", "no", "table", "file"] and len(first["tokens"]) == 4
    assert [row["scores"]["acc"] for row in found.tasks["phrases"].rows] == [
        sample["acc"] for sample in oracle["samples"]["phrases"]
    ]


def test_texts_and_generations_are_as_lm_eval_finds_them(
    policy: tuple[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["last", "rolling"]
    if not policy[0].config.is_encoder_decoder:  # HFLM lets it write as many tokens more as its question has
        tasks.append("words")
    oracle = theirs(policy, tasks, folder, monkeypatch)
    found = ask(policy, tasks, folder)
    assert agree(found, oracle) < 1e-4
    if "words" in tasks:
        assert len({row["prediction"] for row in found.tasks["words"].rows}) > 6


def test_a_group_is_aggregated(policy: tuple[Any, Any], folder: Path) -> None:
    found = ask(policy, ["both"], folder, limit=5)
    accuracies = [found.tasks[name].metrics["acc"] for name in ("letters", "phrases")]
    assert None not in accuracies and found.groups["both"]["acc"] == pytest.approx(sum(accuracies) / 2)  # type: ignore[arg-type]
    assert {each.n for each in found.tasks.values()} == {5}


@pytest.fixture
def decoding(decoder: Path) -> tuple[Any, Any]:
    return models.load_base(decoder, CPU), models.load_tokenizer(decoder)


def test_questions_too_long_lose_their_beginning(
    decoding: tuple[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding[0].config, "max_position_embeddings", 70)
    for tasks, shots in ((["phrases"], 5), (["words", "rolling"], 0)):
        oracle = theirs(decoding, tasks, folder, monkeypatch, shots=shots)
        assert agree(ask(decoding, tasks, folder, shots=shots), oracle) < 1e-4


def test_a_tokenizer_that_begins_texts_does_so_once(
    decoding: tuple[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import processors

    tokenizer = decoding[1]
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A", special_tokens=[begin]
    )
    assert tokenizer("is it")["input_ids"][0] == begin[1]
    for chat in (False, True):  # the template writes it too
        oracle = theirs(decoding, ["phrases"], folder, monkeypatch, chat=chat)
        assert agree(ask(decoding, ["phrases"], folder, chat=chat), oracle, chat) < 1e-4


def test_a_killed_run_goes_on(decoding: tuple[Any, Any], folder: Path, tmp_path: Path, killed_after: Kills) -> None:
    tasks, kept = ["phrases", "words"], tmp_path / "work" / "said.jsonl"
    whole = ask(decoding, tasks, folder, batch_rows=3)
    written = killed_after(2, 7)  # while scoring, and while generating
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ask(decoding, tasks, folder, batch_rows=3, kept=kept)
    assert "scores" in written[1] and "texts" in written[6]
    passes: list[int] = []
    decoding[0].register_forward_pre_hook(lambda *_: passes.append(1))
    assert ask(decoding, tasks, folder, batch_rows=3, kept=kept) == whole
    assert passes
    passes.clear()
    assert ask(decoding, tasks, folder, batch_rows=3, kept=kept) == whole
    assert not passes


def test_sampled_answers_differ_and_come_again(decoding: tuple[Any, Any]) -> None:
    settings: dict[str, Any] = {"seed": 1, "batch_tokens": 900, "batch_rows": 3, "kept": None, "log": Log()}
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 40, "max_gen_toks": 12, "until": ["."]}
    requests: list[tuple[str, dict[str, Any]]] = [("read the value", sampled)] * 4 + [("read the value", {})]
    found = harness.generate(*decoding, requests, **settings)
    assert len(set(found[:4])) > 1 and not any("." in text for text in found[:4])
    assert found == harness.generate(*decoding, requests, **(settings | {"batch_rows": 8}))
    assert found != harness.generate(*decoding, requests, **(settings | {"seed": 2}))
    with pytest.raises(UserError, match="unknown setting 'num_beams'"):
        harness.generate(*decoding, [("read", {"num_beams": 4})], **settings)


def test_rows_of_ours_are_tasks(decoding: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    monkeypatch.chdir(tmp_path)

    def item(task: str, at: int, choices: tuple[str, ...]) -> records.TaskItem:
        return records.TaskItem(
            f"{task}-{at}", task, f"is {at} in {{{{ the list }}}}?\nAnswer:", "yes", choices, "here"
        )

    items = [item(task, at, choices) for task, choices in (("b", ("no", "yes")), ("a", ())) for at in range(4)]
    examples = [item("b", at, ("no", "yes")) for at in (11, 10, 12)]
    found = ask(decoding, harness.from_items(items, examples), None, shots=2, chat=True)
    assert list(found.tasks) == ["a", "b"] and {row["id"] for row in found.tasks["b"].rows} == {
        f"b-{at}" for at in range(4)
    }
    assert found.tasks["a"].shots == 0 and found.tasks["b"].shots == 2
    assert set(found.tasks["a"].metrics) == {"exact_match"} and set(found.tasks["b"].metrics) == {"acc", "acc_norm"}
    row = found.tasks["b"].rows[1]
    assert row["choices"] == ["no", "yes"] and row["right"] == 1 and row["prompt"].count("{{ the list }}") == 3
    assert row["prompt"].index("is 11 in") < row["prompt"].index("is 10 in") < row["prompt"].index("is 1 in")
    # The same question put by hand: worked examples as turns, the assistant's turn begun.
    ids = decoding[1](row["prompt"])["input_ids"]
    answer = decoding[1]("yes", add_special_tokens=False)["input_ids"]
    oracle = likelihood.score_tokens(decoding[0], [(ids, answer)], pad=0, batch_tokens=900, batch_rows=1)
    newline = likelihood.score_tokens(decoding[0], [(ids[:-1], ids[-1:])], pad=0, batch_tokens=900, batch_rows=1)
    assert row["logprobs"][1] == pytest.approx(oracle[0].logprob, abs=1e-4) and row["tokens"][1] == len(answer)
    assert newline[0].logprob < -1  # which lm-eval counts with the answer: a tiny model is not sure of it
    assert found.tasks["a"].rows[0]["choices"] == ["yes"] and len(found.tasks["a"].rows[0]["logprobs"]) == 1
    assert not (tmp_path / "home").exists() and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="some of its rows have choices"):
        harness.from_items([*items, item("b", 9, ())])


def test_data_sets_are_cached_beside_the_journal(
    decoding: tuple[Any, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    ask(decoding, ["letters"], folder, limit=2, kept=tmp_path / "work" / "said.jsonl")
    cache: Path = datasets.config.HF_DATASETS_CACHE
    assert cache.name == "home" and not cache.exists()
    assert list((tmp_path / "work" / "datasets").iterdir())


def test_log_probabilities_that_are_none_leave_metrics_undefined(decoding: tuple[Any, Any], folder: Path) -> None:
    import torch

    decoding[0].lm_head.register_forward_hook(lambda _, __, logits: torch.full_like(logits, torch.nan))
    found = ask(decoding, ["letters"], folder, limit=3).tasks["letters"]
    assert found.metrics == {"acc": None, "acc_norm": None} and found.reason is not None and "3 of 3" in found.reason


@pytest.fixture(scope="module")
def named() -> dict[str, Any]:
    """lm-eval's index over a few folders of its own tasks: all of them are ten thousand files."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    folders = ["glue", "super_glue", "mmlu/default", "mmlu/generative", "truthfulqa", "bigbench/multiple_choice"]
    folders += ["humaneval", "meqsum", "spanish_bench", "kobest"]
    index: dict[str, Any] = lm_eval.tasks.TaskManager(
        include_path=[own / each for each in folders], include_defaults=False
    ).task_index
    return index


SUPER_GLUE = ["boolq", "cb", "copa", "multirc", "record", "sglue_rte", "wic", "wsc"]
TRUTHFUL = ["truthfulqa_gen", "truthfulqa_mc1", "truthfulqa_mc2"]


def test_benchmarks_by_name_are_let_through(named: dict[str, Any]) -> None:
    # `em` of record and `bleu_max` of truthfulqa_gen are names that only these tasks know: nobody looks them up.
    assert sorted(task_code.check_metrics("super-glue-lm-eval-v1", named)) == SUPER_GLUE
    assert sorted(task_code.check_metrics("truthfulqa", named)) == TRUTHFUL
    glue = {"cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli"}
    assert set(task_code.check_metrics("glue", named)) == glue
    assert len(task_code.check_metrics("mmlu", named)) == len(task_code.check_metrics("mmlu_generative", named)) == 57
    assert len(task_code.check_metrics("bigbench_multiple_choice_a", named)) > 50
    assert task_code.check_metrics("copa_es", named) == [
        "copa_es"
    ]  # its module has a function that fetches one, and calls it not


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("humaneval", r"task humaneval: a metric that humaneval/utils\.py loads would be fetched and run as code"),
        ("meqsum", r"task meqsum: a metric that meqsum/utils\.py loads"),  # with results of its own
        ("xlsum_es", r"task xlsum_es: a metric that spanish_bench/utils\.py loads"),  # when its function is called
        ("kobest_wic", r"task kobest_wic: metric 'f1' would be fetched"),
    ],
)
def test_a_metric_that_is_fetched_as_code_is_refused_by_its_name(
    named: dict[str, Any], task: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        task_code.check_metrics(task, named)


def test_results_that_a_task_works_out_itself_are_reported(decoding: tuple[Any, Any]) -> None:
    import numpy as np

    def results(doc: dict[str, Any], found: list[tuple[float, bool]]) -> dict[str, Any]:
        chosen = int(np.argmax([logprob for logprob, _ in found]))
        return {"em": np.float32(chosen == doc["right"]), "chosen": chosen, "margin": found[0][0] - found[1][0]}

    items = [
        records.TaskItem(f"a-{at}", "a", f"is {at} in the list?\nAnswer:", "yes", ("no", "yes"), "here")
        for at in range(5)
    ]
    (task,) = harness.from_items(items)
    names = {"em": "mean", "chosen": lambda each: max(each) - min(each), "margin": "mean"}
    listed = [{"metric": name, "aggregation": by, "higher_is_better": True} for name, by in names.items()]
    found = ask(decoding, [task | {"process_results": results, "metric_list": listed}], None).tasks["a"]
    chosen = [int(row["logprobs"][1] > row["logprobs"][0]) for row in found.rows]
    assert [row["scores"]["em"] for row in found.rows] == chosen  # "yes" is right
    assert found.metrics["em"] == pytest.approx(sum(chosen) / 5)
    assert found.metrics["chosen"] == max(chosen) - min(chosen) and "chosen" not in found.rows[0]["scores"]
    margins = [row["logprobs"][0] - row["logprobs"][1] for row in found.rows]
    assert found.metrics["margin"] == pytest.approx(sum(margins) / 5)


def test_record_is_scored_as_lm_eval_scores_it(decoding: tuple[Any, Any], named: dict[str, Any]) -> None:
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    from tunemill import squad

    with squad.standing_in():
        task = load_yaml(named["record"].yaml_path)
    docs = [
        {
            "passage": f"The old {at} met Anna.\n@highlight\nIt rained",
            "query": f"@placeholder came at {at}",
            "entities": ["Anna", "the old man", "Old man", "Bob"],
            "answers": answers,
        }
        for at, answers in enumerate((["Anna"], ["the old man", "Old man"], ["Bob"], ["Anna", "Bob"]))
    ]
    rows = {"train": docs[:1], "validation": docs}
    own = {"custom_dataset": lambda **_: {split: Dataset.from_list(found) for split, found in rows.items()}}
    found = ask(decoding, [{key: value for key, value in task.items() if key != "dataset_path"} | own], None).tasks[
        "record"
    ]
    assert set(found.metrics) == {"em", "f1"} and found.n == 4
    exact = []
    for row, doc in zip(found.rows, docs, strict=True):
        chosen = sorted(doc["entities"])[row["logprobs"].index(max(row["logprobs"]))]
        exact.append(float(chosen in doc["answers"]))
    assert [row["scores"]["em"] for row in found.rows] == exact and found.metrics["em"] == sum(exact) / 4
    assert all(row["scores"]["f1"] >= row["scores"]["em"] for row in found.rows)


BROKEN: dict[str, tuple[str, str]] = {
    "code": ("task: code\nprocess_docs: !function own.process\n", r"code\.yaml:2: !function own\.process would run code"),
    "syntax": ("task: [\n", r"syntax\.yaml: not YAML"),
    "metric": (CHOICE.format(name="metric", choices="long", split="train") + "- {metric: stolen}\n", "'stolen' would be fetched"),
    "fields": (CHOICE.format(name="fields", choices="longest", split="train"), "task 'fields' cannot be made"),
    "file": (CHOICE.format(name="file", choices="long", split="train").replace("data/t", "t"), "no such data file: train.jsonl"),
    "shots": (CHOICE.format(name="shots", choices="long", split="train"), "12 worked examples wanted, 9 there"),
    "split": (CHOICE.format(name="split", choices="long", split="null"), "no split to take worked examples from"),
    "right": (CHOICE.format(name="right", choices='["a", "b"]', split="train"), r"question test-\d+: the right answer 2 is none"),
    "hub": (CHOICE.format(name="hub", choices="long", split="train").replace("_path: json", "_path: nobody/nothing"), "task 'hub'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_task_is_said(decoding: tuple[Any, Any], folder: Path, tmp_path: Path, name: str) -> None:
    text, message = BROKEN[name]
    (tmp_path / "data").symlink_to(folder / "data")
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        ask(decoding, [name], tmp_path, shots=12 if name == "shots" else 2)


def test_a_task_that_nobody_knows_or_that_is_out_of_reach(
    decoding: tuple[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    # lm-eval's own are ten thousand files: three of its folders stand for them.
    everything = lm_eval.tasks.TaskManager
    own = [Path(lm_eval.tasks.__file__).parent / name for name in ("truthfulqa", "super_glue", "ifeval")]
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda include_path=None, include_defaults=True: everything(
            include_path=own if include_defaults else include_path, include_defaults=False
        ),
    )
    with pytest.raises(UserError, match="no task 'leters'") as caught:
        ask(decoding, ["leters"], folder)
    assert "did you mean 'letters'?" in str(caught.value) and caught.value.exit_code == 2
    for name in ("super-glue-lm-eval-v1", "record", "truthfulqa"):
        with pytest.raises(UserError, match=f"the data of task '{name}' are out of reach") as caught:
            ask(decoding, [name], folder)
        assert "HF_HUB_OFFLINE=0" in str(caught.value)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(UserError, match="task 'ifeval' needs a package that is not there: .*langdetect"):
        ask(decoding, ["ifeval"], folder)
