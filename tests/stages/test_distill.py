"""distill: exactly these files, the same bytes every time and after a kill; what plain transformers loads; mistakes are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import distill
from tests import tiny_model
from tests.stages import tuned
from tunemill import blocks, checkpoints, losses, models, records
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

HALF: dict[str, Any] = {
    "layers": 3,
    "choose": "influence",
    "temperature": 2.0,
    "alpha": 0.7,
    "cosine": 0.0,
    "sequence_level": False,
}


ANSWERS = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "batch_tokens": 4000, "batch_rows": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distill")
    tuned.prepare(place)
    return place


@pytest.fixture(scope="module")
def taught(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learnt to end its answers."""
    made = tmp_path_factory.mktemp("taught")
    tuned.run("sft", place, made, "sft", steps=40, learning_rate=5e-3, store_dtype="float32", validation_items=0)
    return made / "sft/model"


def run(place: Path, out: Path, variant: dict[str, Any] | None = None, candidate: str = "small", **change: Any) -> Any:
    """Run the stage with the values of params.yaml, few steps and what `change` says; paths among it are its inputs."""
    values = ParamsFile(tuned.ROOT / "params.yaml").section("distill", distill.Config).model_dump()
    inputs = {name: change.pop(name) for name in ("policy", "base", "student", "work") if name in change}
    values |= tuned.SHORT | {"store_dtype": "float32", "variants": {"small": HALF | (variant or {})}} | change
    inputs.setdefault("work", out.with_name(f"{out.name}-work")).mkdir(exist_ok=True)
    return distill.run(
        distill.Config.model_validate(values),
        candidate=candidate,
        **{"policy": place / "model", "base": place / "model", "student": place / "model", **inputs},
        train=place / "train.jsonl",
        validation=place / "validation.jsonl",
        out=out,
        runtime=tuned.CPU,
        log=Log(),
    )


def test_outputs_are_exactly_these_and_the_same_every_time(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    metrics = run(place, tmp_path / "one", {"alpha": 1.0}, steps=12, learning_rate=3e-3)
    assert tuned.files(tmp_path / "one") == [
        "model/README.md",
        "model/chat_template.jinja",
        "model/config.json",
        "model/curve.csv",
        "model/distill.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/training.json",
    ]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "one/model")
    teacher = AutoModelForCausalLM.from_pretrained(place / "model")
    told = json.loads((tmp_path / "one/model/distill.json").read_text())
    assert student.config.num_hidden_layers == 3
    assert told["made_by"] == "distill" and told["layers"] == 3
    assert told["kept"]["decoder"][0] == 0 and told["kept"]["decoder"][-1] == 3
    assert told["parameters"] == sum(each.numel() for each in student.parameters()) == metrics["parameters"]
    assert told["teacher_parameters"] == sum(each.numel() for each in teacher.parameters())
    assert told["after"]["kl"] == metrics["kl/last"] < metrics["kl/first"] == told["before"]["kl"]
    assert {"perplexity/first", "perplexity/last", "perplexity/teacher"} <= metrics.keys()
    assert metrics["parameters/share"] == 1 and metrics["parameters/share_of_teacher"] < 1
    training = json.loads((tmp_path / "one/model/training.json").read_text())
    assert training["method"] == "distill"
    card = (tmp_path / "one/model/README.md").read_text()
    assert "distilled (Hinton et al. 2015, T 2, α 1) on the training pairs" in card
    run(place, tmp_path / "two", {"alpha": 1.0}, steps=12, learning_rate=3e-3)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


def test_a_killed_run_goes_on_and_ends_the_same(
    place: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"variant": {"sequence_level": True}, "policy": taught, "answers": ANSWERS}
    seal, sealed = checkpoints.seal, []
    run(place, tmp_path / "whole", **own)

    def dies(folder: Path) -> None:
        seal(folder)
        sealed.append(folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "seal", dies)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / "killed", **own)
    monkeypatch.setattr(checkpoints, "seal", seal)
    assert sealed == ["checkpoint-2"]
    assert (tmp_path / "killed-work/answers-0.jsonl").is_file()
    shutil.rmtree(tmp_path / "killed", ignore_errors=True)
    run(place, tmp_path / "killed", **own)
    assert tree_hash(tmp_path / "whole") == tree_hash(tmp_path / "killed")


def test_an_encoder_decoder_is_distilled_in_both_halves(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    tuned.prepare(tmp_path / "t5", "encoder-decoder")
    models.make_random(tmp_path / "t5/model", 4, 32, 3, "float32", "encoder-decoder")
    metrics = run(tmp_path / "t5", tmp_path / "out", {"cosine": 0.5}, max_tokens=120, steps=12, learning_rate=3e-3)
    assert metrics["kl/last"] < metrics["kl/first"]
    student = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out/model")
    assert [len(each.blocks) for each in blocks.stacks(student)] == [3, 3]


def test_an_adapter_teaches_as_the_merged_model(place: Path, tmp_path: Path) -> None:
    tuned.run("lora", place, tmp_path, "lora", learning_rate=0.1)
    run(place, tmp_path / "out", policy=tmp_path / "lora/adapter", base=place / "model", steps=1)
    merged, tokenizer = models.load_policy(tmp_path / "lora/adapter", place / "model", tuned.CPU)
    models.save(merged, tokenizer, tmp_path / "merged", "float32")
    run(place, tmp_path / "other", policy=tmp_path / "merged", base=tmp_path / "merged", steps=1)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("out", "other")]
    assert weights[0] == weights[1]


def test_the_teachers_own_answers_are_learnt(place: Path, taught: Path, tmp_path: Path) -> None:
    """Against the teacher's greedy answers by plain transformers; α is 0, so that nothing else is learnt from."""
    import torch
    from transformers import AutoModelForCausalLM

    seen: list[list[int]] = []
    real = losses.collate

    def watched(pairs: Any, pad: int, start: int | None) -> Any:
        seen.extend([*row.prompt, -1, *row.completion] for row in pairs)
        return real(pairs, pad, start)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(losses, "collate", watched)
        metrics = run(
            place,
            tmp_path / "out",
            {"sequence_level": True, "alpha": 0.0},
            policy=taught,
            answers=ANSWERS,
            validation_items=0,
        )
    teacher, tokenizer = AutoModelForCausalLM.from_pretrained(taught), models.load_tokenizer(taught)
    finished = 0
    for row in records.read(place / "train.jsonl", records.Example):
        prompt = models.render_prompt(tokenizer, row.prompt)
        if len(prompt) > 100:
            continue
        written = teacher.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        if tokenizer.eos_token_id in written:
            finished += 1
            text = tokenizer.decode(written[: written.index(tokenizer.eos_token_id)], skip_special_tokens=True)
            if [*prompt, -1, *models.render_completion(tokenizer, text)] in seen:
                finished += 1000
    # Every answer that is learnt is one of those; which rows are asked depends on how many the steps need.
    assert finished // 1000 == metrics["train/examples"] > 8
    told = json.loads((tmp_path / "out/model/distill.json").read_text())
    assert told["sequence_level"] and told["unfinished_answers"] == metrics["answers/unfinished"]
    assert told["before"]["kl"] is None
    assert "on the teacher's own answers" in (tmp_path / "out/model/README.md").read_text()


def test_a_teacher_that_never_ends_is_told(place: Path, tmp_path: Path) -> None:
    answers = ANSWERS | {"max_new_tokens": 1}
    with pytest.raises(
        UserError, match=r"answers\.max_new_tokens: the teacher finishes none of 16 answers within 1 tok"
    ):
        run(place, tmp_path / "out", {"sequence_level": True}, answers=answers)


def test_another_model_is_a_student_where_it_reads_the_same_tokens(place: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(place / "model")
    small = blocks.with_blocks(models.load_base(place / "model", tuned.CPU), {"decoder": [0, 2]})
    models.save(small, tokenizer, tmp_path / "small", "float32")
    metrics = run(place, tmp_path / "out", {"layers": None}, student=tmp_path / "small")
    told = json.loads((tmp_path / "out/model/distill.json").read_text())
    assert told["kept"] == {} and told["parameters"] == metrics["parameters"]
    models.make_random(tmp_path / "other", 2, 32, 0, "float32")
    with pytest.raises(UserError, match=r"distill\.student: the student's tokenizer is not the teacher's"):
        run(place, tmp_path / "none", {"layers": None}, student=tmp_path / "other")
    with pytest.raises(UserError, match=r"distill\.student: a student of 246,336 parameters, and a teacher of 246,336"):
        run(place, tmp_path / "none", {"layers": None}, student=place / "model")


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"layers": 4}, r"variants\.small\.layers: 4 of its 4 blocks: a student must be smaller"),
        ({"layers": (0, 7)}, r"variants\.small\.layers: the teacher's decoder has no block 7"),
    ],
)
def test_layers_that_the_teacher_has_not_are_refused(
    variant: dict[str, Any], told: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        run(place, tmp_path / "out", variant)


def test_a_run_without_its_variant_is_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"distill\.variants: no variant 'smal'\n.*one of small\n.*did you mean 'small'"
    ):
        run(place, tmp_path / "out", candidate="smal")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers": 1}, "at least 2, the first and the last"),
        ({"layers": (2, 1)}, "ascending, each once"),
        ({"layers": ()}, "ascending, each once"),
        ({"layers": None, "cosine": 1.0}, "0 where `layers` is null"),
        ({"alpha": 1.5}, "less than or equal to 1"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        distill.Variant.model_validate(HALF | change)


def test_runs_of_blocks_are_short() -> None:
    assert distill.listed((0, 1, 2, 5, 7, 8)) == "0–2, 5, 7–8"


def test_rows_that_are_all_too_long_are_refused(tmp_path: Path) -> None:
    tiny_model.build(tmp_path / "model")
    row = records.Example(id="0" * 12, prompt="long " * 400, completion="x", group="all", text=None, source="made")
    for name in ("train", "validation"):
        records.write(tmp_path / f"{name}.jsonl", [row])
    with pytest.raises(UserError, match=r"distill\.max_tokens"):
        run(tmp_path, tmp_path / "out")
