"""prompt: the grid on a tiny model, the checkpoint that plain transformers loads, a killed run that goes on, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stages import prompt
from stages.prompt import Answered, Cell, Config
from tests import tiny_model
from tunemill import journal, metrics, models, prompting, records, sampling, statistics, templates
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.records import Example
from tunemill.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
CPU = Runtime("cpu", "float32", 2)
GREEDY = {"max_new_tokens": 6, "temperature": 0.0, "top_k": 0, "top_p": 1.0}
CONFIG: dict[str, Any] = {
    "seed": 1,
    "templates": {"plain": "{prompt}", "brief": "{prompt}\n\n{In} one 'line':"},
    "shots": [0, 2],
    "shot_tokens": 120,
    "decodings": {
        "greedy": GREEDY,
        "short": GREEDY | {"max_new_tokens": 3},
        "warm": GREEDY | {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    },
    "search": "stepwise",
    "max_cells": 12,
    "items": 8,
    "metric": "rouge1",
    "resamples": 1000,
    "batch_tokens": 10_000,
    "batch_rows": 4,
}


def rows(name: str, count: int) -> list[Example]:
    lines = tiny_model.corpus(4 if name == "train" else 5)
    return [
        Example(
            id=records.row_id(name, str(at)),
            prompt=f"Summarize in one line:\n\n{lines[at]}",
            completion=lines[-at - 5],
            group=f"package{at % 8}",
            text=None,
            source="made",
        )
        for at in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt")
    tiny_model.build(path / "model")
    models.make_random(path / "t5", 1, 32, 5, "float32", "encoder-decoder")
    records.write(path / "train.jsonl", rows("train", 20))
    records.write(path / "validation.jsonl", rows("validation", 12))
    return path


def run(place: Path, tmp_path: Path, name: str = "one", model: str = "model", **change: object) -> dict[str, Any]:
    (tmp_path / f"work-{name}").mkdir(exist_ok=True)
    return dict(
        prompt.run(
            Config.model_validate(CONFIG | change),
            train=place / "train.jsonl",
            validation=place / "validation.jsonl",
            model=place / model,
            out=tmp_path / name,
            work=tmp_path / f"work-{name}",
            runtime=CPU,
            log=Log(),
        )
    )


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_outputs_are_exactly_these_and_the_same_every_time(place: Path, tmp_path: Path) -> None:
    before = tree_hash(place / "model")
    found = run(place, tmp_path)
    files = sorted(
        each.relative_to(tmp_path / "one").as_posix() for each in (tmp_path / "one").rglob("*") if each.is_file()
    )
    assert files == [
        "grid.csv",
        "model/README.md",
        "model/chat_template.jinja",
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/prompt.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
    ]
    assert found == run(place, tmp_path, "two")
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    assert tree_hash(place / "model") == before  # linked weights, and nothing written through the links
    assert str(tmp_path) not in "".join(
        each.read_text() for each in (tmp_path / "one").rglob("*") if each.suffix in (".json", ".md", ".csv", ".jinja")
    )


def test_the_grid_says_what_every_cell_gave(place: Path, tmp_path: Path) -> None:
    found = run(place, tmp_path)
    with (tmp_path / "one/grid.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    told = written(tmp_path / "one/model/prompt.json")["found"]
    assert len(table) == len(told["cells"]) == found["cells"] == 2 * 2 + 2
    (chosen,) = [row for row in table if row["chosen"] == "True"]
    assert float(chosen["score"]) == max(float(row["score"]) for row in table) == found["validation/rouge1"]
    # The other decodings are tried on the best of the first ones alone.
    first = [row for row in table if row["decoding"] == "greedy"]
    best = max(first, key=lambda row: float(row["score"]))
    later = {(row["template"], row["shots"]) for row in table if row["decoding"] != "greedy"}
    assert later == {(best["template"], best["shots"])}
    # Each score again, from the journals.
    validation = {row.id: row for row in rows("validation", 12)}
    chosen_rows = statistics.stratified([*validation], [row.group for row in validation.values()], 8, 1)
    given = [list(validation.values())[index] for index in chosen_rows]
    for row in table:
        entries = journal.recover(tmp_path / f"work-one/{row['template']}-{row['shots']}-{row['decoding']}.jsonl")
        texts = {i: text for each in entries for i, (text, *_) in zip(each["items"], each["generations"], strict=True)}
        scores = metrics.rouge([each.completion for each in given], [texts[index] for index in range(8)])
        points = [each["rouge1"].f1 for each in scores if each]
        assert float(row["score"]) == pytest.approx(sum(points) / 8) and row["n"] == "8"
        if len(set(points)) > 1:
            assert float(row["ci_low"]) <= float(row["score"]) <= float(row["ci_high"])
        else:  # rows that all score the same tell nothing of others
            assert row["ci_low"] == row["ci_high"] == ""
    assert told["gain"]["diff"] == pytest.approx(found["validation/rouge1"] - found["validation/rouge1_plain"])
    assert told["plain"] == {"template": "plain", "shots": 0, "decoding": "greedy"}


def test_the_whole_grid(place: Path, tmp_path: Path) -> None:
    found = run(place, tmp_path, search="full", items=4)
    assert found["cells"] == 12 and found["validation/n"] == 4
    assert (
        len(
            {
                (row["template"], row["shots"], row["decoding"])
                for row in written(tmp_path / "one/model/prompt.json")["found"]["cells"]
            }
        )
        == 12
    )


@pytest.mark.parametrize("model", ["model", "t5"])
def test_plain_transformers_asks_and_answers_in_the_same_way(place: Path, tmp_path: Path, model: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    # Only one cell has shots and a template, and it is the only one.
    template = "Put {curly} text: {prompt}"
    run(place, tmp_path, model=model, templates={"only": template}, shots=[2], decodings={"greedy": GREEDY})
    folder = tmp_path / "one/model"
    loaded = (AutoModelForSeq2SeqLM if model == "t5" else AutoModelForCausalLM).from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = models.load_tokenizer(place / model)
    shots = prompting.choose_shots(own, rows("train", 20), 2, max_tokens=120, seed=1)
    told = written(folder / "prompt.json")
    assert told["template"] == {"name": "only", "text": template} and told["decoding"] == GREEDY
    assert [tuple(shot) for shot in told["shots"]] == list(shots)
    entries = journal.recover(tmp_path / "work-one/only-2-greedy.jsonl")
    texts = {i: text for each in entries for i, (text, *_) in zip(each["items"], each["generations"], strict=True)}
    validation = rows("validation", 12)
    chosen = statistics.stratified([row.id for row in validation], [row.group for row in validation], 8, 1)
    for at, index in enumerate(chosen[:3]):
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": validation[index].prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        wanted = prompting.render(own, validation[index].prompt, template=template, shots=shots)
        assert given["input_ids"][0].tolist() == wanted
        ids = loaded.generate(**given)[0]  # greedy and six tokens by generation_config.json
        ids = ids if model == "t5" else ids[len(wanted) :]
        assert isinstance(ids, torch.Tensor) and tokenizer.decode(ids, skip_special_tokens=True) == texts[at]


def test_a_sampled_decoding_is_the_default_of_the_checkpoint(place: Path, tmp_path: Path) -> None:
    warm = {"max_new_tokens": 5, "temperature": 0.7, "top_k": 9, "top_p": 0.8}
    run(place, tmp_path, templates={"plain": "{prompt}"}, shots=[0], decodings={"warm": warm}, items=2)
    settings = written(tmp_path / "one/model/generation_config.json")
    assert {name: settings[name] for name in warm} == warm and settings["do_sample"] is True
    assert settings["eos_token_id"] == 2  # what the model's own settings said stays


def test_what_all_prompts_of_a_cell_begin_with_is_read_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, fed = models.load_policy, []

    def watched(*given: Any) -> Any:
        policy, tokenizer = load(*given)
        policy.base_model.register_forward_pre_hook(
            lambda _, __, named: fed.append(named["input_ids"].shape), with_kwargs=True
        )
        return policy, tokenizer

    monkeypatch.setattr(models, "load_policy", watched)
    run(place, tmp_path, templates={"plain": "{prompt}"}, shots=[2], decodings={"one": GREEDY | {"max_new_tokens": 1}})
    own = models.load_tokenizer(place / "model")
    shots = prompting.choose_shots(own, rows("train", 20), 2, max_tokens=120, seed=1)
    longest = max(len(prompting.render(own, row.prompt, shots=shots)) for row in rows("validation", 12))
    shown = len(prompting.render(own, "", shots=shots)) - len(prompting.render(own, ""))
    assert fed[0][0] == 1 and fed[0][1] >= shown  # the demonstrations, once
    # Of each batch first all but the last token is read; the last ones are what generation starts from.
    assert [shape[0] for shape in fed[1:]] == [4, 4, 4, 4] and [shape[1] for shape in fed[2::2]] == [1, 1]
    assert all(shape[1] <= longest - fed[0][1] for shape in fed[1:])  # and then the prompts alone


def test_of_equal_cells_the_simpler_is_chosen_and_the_note_says_that_nothing_was_gained(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = sampling.generate

    def silent(*given: Any, **named: Any) -> Any:
        for batch in generate(*given, **named):
            yield batch._replace(generations=tuple(each._replace(text="") for each in batch.generations))

    monkeypatch.setattr(sampling, "generate", silent)
    found = run(place, tmp_path, shots=[2, 0], items=3)
    told = written(tmp_path / "one/model/prompt.json")["found"]
    assert found["shots"] == 0 and found["validation/rouge1_gain"] == 0.0
    assert told["chosen"]["template"] == "plain" and told["chosen"]["decoding"] == "greedy"
    assert told["note"] == (
        "The highest rouge1, but not shown to be better than the plain cell: template plain, 2 shots, decoding greedy."
    )


def test_better_is_said_only_where_it_is(place: Path) -> None:
    cfg = Config.model_validate(CONFIG)
    plain, best = Cell("plain", 0, "greedy"), Cell("brief", 2, "short")
    given = rows("validation", 12)
    for gain, verdict in (
        ([8.0, 10.0] * 6, "better"),
        ([-8.0, -10.0] * 6, "worse"),
        ([0.0] * 12, "not shown to be better"),
        ([30.0, -30.0] * 6, "not shown to be better"),
    ):
        found = {
            cell: Answered([], [20.0 + (each if cell == best else 0.0) for each in gain], 1.0, 0)
            for cell in (plain, best)
        }
        intervals, difference = prompt.estimates(cfg, given, [plain, best], found, best, plain)
        assert intervals[plain] == (20.0, None, None)
        assert difference.diff == pytest.approx(sum(gain) / 12) and statistics.verdict(difference) == verdict
    assert prompt.note(best, plain, "better", "rouge1").startswith("Better on the validation rows")
    assert prompt.note(plain, plain, "not shown to be better", "rouge1").startswith("No cell has a higher rouge1")


def test_a_killed_search_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place, tmp_path, "whole")
    append, count = journal.append, [0]

    def killed(path: Path, entry: dict[str, Any]) -> None:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        append(path, entry)

    monkeypatch.setattr(journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path, "killed")
    run(place, tmp_path, "killed")
    assert count[0] == 6 + 6 * 2 - 5  # 12 batches in all, 5 of them were done
    assert tree_hash(tmp_path / "killed") == tree_hash(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"templates": {"x": "no place"}},
            'templates.x: "no place" is not allowed\n  expected: a text with {prompt} in',
        ),
        ({"shots": [0, 7]}, "shots.1: 7 is not allowed"),
        ({"shots": [1, 1]}, "every number of shots once"),
        ({"max_cells": 5}, "a grid of at most max_cells = 5 cells, and this one has 6"),
        ({"search": "full", "max_cells": 11}, "a grid of at most max_cells = 11 cells, and this one has 12"),
        ({"decodings": {}}, "decodings: {} is not allowed"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({"prompt": CONFIG | change}))
    with pytest.raises(UserError) as caught:
        ParamsFile(path).section("prompt", Config)
    assert message in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decodings": {"long": GREEDY | {"max_new_tokens": 1000}}},
            r"prompt.shots: a prompt with template plain, 0 shots, decoding long needs 1\d\d\d tokens, answer included\n"
            "  expected: at most 1024, the model's context",
        ),
        ({"shot_tokens": 3}, "prompt.shot_tokens: 0 of 20 rows have at most 3 tokens, 2 are needed"),
    ],
)
def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(place, tmp_path, **change)
    assert caught.value.exit_code == 2 and not (tmp_path / "one").exists()


def test_the_default_grid_is_small_and_has_the_plain_cell_first() -> None:
    cfg = ParamsFile(ROOT / "params.yaml").section("prompt", Config)
    assert next(iter(cfg.templates.values())) == templates.PLAIN and cfg.shots[0] == 0
    assert len(cfg.templates) * len(cfg.shots) + len(cfg.decodings) - 1 <= 9 and cfg.items <= 48
