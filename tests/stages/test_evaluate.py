"""The stage on a tiny model: exact files, equal keys for every candidate, faults, and a killed run that goes on."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stages.evaluate import Config, run
from tests import tiny_encoder, tiny_model
from tests.conftest import ROOT
from tests.stages import comparing
from tests.stages.evaluated import CONFIG, ids_hash
from tunemill import (
    best_of,
    embeddings,
    journal,
    likelihood,
    metrics,
    models,
    perturbations,
    prompting,
    records,
    sampling,
)
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.records import Example, HarmlessPrompt, RedTeamPrompt, TaskItem
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.build(path)
    return path


def examples(count: int = 20) -> list[Example]:
    lines = tiny_model.corpus(2)
    return [
        Example(
            id=records.row_id(lines[index], lines[-index - 5]),
            prompt=f"Summarize in one line:\n\n{lines[index]}",
            completion=lines[-index - 5],
            group=f"package{index % 4}",
            text=lines[index] if index else None,
            source=f"made:{index}",
        )
        for index in range(count)
    ]


def attacks() -> list[RedTeamPrompt]:
    sources = ["advbench", "harmbench", "realtoxicityprompts"]
    return [
        RedTeamPrompt(
            id=records.row_id(str(index)),
            prompt=f"Write attack number {index}",
            kind="continuation" if index % 3 == 2 else "instruction",
            source=sources[index % 3],
            toxic=None,
        )
        for index in range(15)
    ]


def inquiries() -> list[HarmlessPrompt]:
    answers = [("the water of the river", "bread"), (), ("we garden", "I have no comment")]
    return [
        HarmlessPrompt(records.row_id(f"ask {n}"), f"What is number {n}?", answers[n % 3], "truthfulqa")
        for n in range(9)
    ]


def write(folder: Path, rows: list[Example]) -> dict[str, Path]:
    records.write(folder / "test.jsonl", rows)
    records.write(folder / "red_team.jsonl", attacks())
    records.write(folder / "harmless.jsonl", inquiries())
    hashes = {"test_ids_sha256": ids_hash(rows), "red_team_test_ids_sha256": ids_hash(attacks())}
    hashes["harmless_test_ids_sha256"] = ids_hash(inquiries())
    (folder / "splits.json").write_text(json.dumps(hashes))
    return {name: folder / f"{name}.jsonl" for name in ("test", "red_team", "harmless")} | {
        "splits": folder / "splits.json"
    }


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    return write(tmp_path, examples())


def evaluated(
    model: Path, place: Path, data: dict[str, Any], cfg: Config = CONFIG, policy: Path | None = None
) -> dict[str, Any]:
    found = run(
        cfg, policy=policy or model, base=model, **data, out=place / "out", work=place / "work", runtime=CPU, log=Log()
    )
    return dict(found)


class Evaluated(NamedTuple):
    """An evaluation that several tests read; not to be written to."""

    out: Path
    work: Path
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The model itself, with CONFIG, on all examples."""
    place = tmp_path_factory.mktemp("plain")
    return Evaluated(place / "out", place / "work", evaluated(model, place, write(place, examples())))


@pytest.fixture(scope="module")
def asked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The same with questions of other tasks."""
    place = tmp_path_factory.mktemp("asked")
    return Evaluated(place / "out", place / "work", evaluated(model, place, with_tasks(write(place, examples()))))


def lines(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in records.read_objects(path)]


def test_what_it_writes(plain: Evaluated) -> None:
    out, found = plain.out, plain.metrics
    assert sorted(each.name for each in out.iterdir()) == [
        "generated.jsonl",
        "harmless.jsonl",
        "instances.jsonl",
        "people.jsonl",
        "perturbed.jsonl",
        "probes.jsonl",
        "red_team.jsonl",
        "scores.json",
        "tasks.jsonl",
    ]
    instances = lines(out / "instances.jsonl")
    assert len(instances) == 12
    assert Counter(row["group"] for row in instances) == {f"package{index}": 3 for index in range(4)}
    known = {each.id: each for each in examples()}
    for row in instances:
        assert sorted(row) == [
            "baselines",
            "exact_match",
            "faithfulness",
            "finished",
            "group",
            "id",
            "memorised_words",
            "offence",
            "precision",
            "prediction",
            "prompt",
            "quasi_exact_match",
            "recall",
            "reference",
            "scores",
            "source_words",
            "tokens",
        ]
        example = known[row["id"]]
        assert (row["prompt"], row["reference"]) == (example.prompt, example.completion)
        (oracle,) = metrics.rouge([row["reference"]], [row["prediction"]])
        assert oracle is not None and row["scores"] == {name: oracle[name].f1 for name in metrics.ROUGE_TYPES}
        assert row["baselines"]["first-sentence"]["prediction"] == metrics.first_sentence(
            example.text or example.prompt
        )
        assert row["baselines"]["lead-10-words"]["prediction"] == metrics.lead_words(example.text or example.prompt)
        assert 1 <= row["tokens"] <= 6 and "\n" not in row["prediction"]

    scores = json.loads((out / "scores.json").read_text())
    assert {name: scores[name] for name in found} == found
    assert scores["n"] == found["test/n"] == 12 and scores["halved_batches"] == 0
    assert set(scores["reasons"]) == {name for name, value in found.items() if value is None}
    drawn = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 0, "top_p": 0.9}
    assert scores["sampling"] == {**drawn, "samples": 2, "probe_samples": 2}
    assert scores["bleu_signature"] == metrics.bleu_signature()
    for name in metrics.ROUGE_TYPES:
        assert found[f"test/{name}"] == pytest.approx(sum(row["scores"][name] for row in instances) / 12)
        assert found[f"baseline/first-sentence/{name}"] == pytest.approx(
            sum(row["baselines"]["first-sentence"][name] for row in instances) / 12
        )
    provoked = lines(out / "red_team.jsonl")
    assert [row["kind"] for row in provoked] == ["instruction"] * 3 + ["continuation"] * 3
    assert all(len(row["samples"]) == 2 and row["prompt_toxic"] in (True, False) for row in provoked)
    means = [max(each["offence"] for each in row["samples"]) for row in provoked if row["kind"] == "instruction"]
    assert found["toxicity/instruction/offence_expected_maximum"] == pytest.approx(sum(means) / 3)
    again = lines(out / "perturbed.jsonl")
    assert [row["perturbation"] for row in again] == list(perturbations.NAMES) * 5
    by_id = {row["id"]: row for row in instances}
    for row in again:
        original = by_id[row["id"]]
        # One item has no text of its own: what is perturbed of it is the prompt without what all prompts begin with.
        text = original["prompt"].removeprefix("Summarize in one line:\n\n")
        assert known[row["id"]].text in (text, None)
        made = perturbations.perturb(row["perturbation"], text, [original["reference"]], row["id"])
        assert row["changed"] == made.changed == (row["prompt"] != original["prompt"]) and made.text in row["prompt"]
        assert row["reference"] == metrics.one_line(made.references[0])
        if not row["changed"]:
            assert row["prediction"] == original["prediction"]
    assert {row["changed"] for row in again} == {True, False}
    worst = [
        min(by_id[row["id"]]["scores"]["rouge1"], row["scores"]["rouge1"])
        for row in again
        if row["perturbation"] == "robustness"
    ]
    assert found["robustness/rouge1"] == pytest.approx(sum(worst) / 5)
    assert [len(row["samples"]) for row in lines(out / "probes.jsonl")] == [2] * 4
    people = lines(out / "people.jsonl")
    assert [row["perturbation"] for row in people] == [None, *perturbations.FAIRNESS] * 3
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_answers_are_read_by_the_model_that_all_started_from(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    found = evaluated(model, tmp_path / "with", {**data, "start": model})
    assert found.keys() == plain.metrics.keys() and plain.metrics["align/surprise"] is None
    rows = lines(tmp_path / "with/out/red_team.jsonl")
    for row in rows:
        for each in row["samples"]:
            assert (each["surprise"] is None) == (row["kind"] == "continuation" or not each["prediction"])
    # As they were written, white space included, the same as by hand.
    asked = [row for row in rows if row["kind"] == "instruction"]
    (kept,) = (tmp_path / "with/work").glob("instructions-*.jsonl")
    texts = {at: one[0] for entry in lines(kept) for at, one in zip(entry["items"], entry["generations"], strict=True)}
    for at, text in texts.items():
        row, sample = asked[at // 2], asked[at // 2]["samples"][at % 2]
        assert sample["prediction"] == text.strip()
        if sample["prediction"]:
            assert sample["surprise"] == pytest.approx(-by_hand(model, row["prompt"], text), abs=1e-3)
    own = [
        [each["surprise"] for each in row["samples"] if each["surprise"] is not None]
        for row in rows
        if row["kind"] == "instruction"
    ]
    means = [sum(each) / len(each) for each in own if each]
    assert found["align/surprise"] == pytest.approx(sum(means) / len(means))
    assert found["align/perplexity_base"] == pytest.approx(math.exp(found["align/surprise"]))
    # Nothing else depends on it, and another candidate is read by the same model.
    for name in ("instances", "probes"):
        assert (tmp_path / f"with/out/{name}.jsonl").read_bytes() == (plain.out / f"{name}.jsonl").read_bytes()
    tiny_model.build(tmp_path / "other", seed=9)
    other = evaluated(tmp_path / "other", tmp_path / "by", {**data, "start": model})
    itself = evaluated(tmp_path / "other", tmp_path / "self", {**data, "start": tmp_path / "other"})
    assert other["align/surprise"] != itself["align/surprise"]
    assert other["align/words"] == itself["align/words"] and other["align/nonsense"] == itself["align/nonsense"]


def test_how_far_a_policy_has_come_is_read_from_its_answers(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    assert plain.metrics["align/kl_base"] is None  # it is its own base
    told = json.loads((plain.out / "scores.json").read_text())
    assert told["reasons"]["align/kl_base"] == "the policy is the model that it would be compared with"
    tiny_model.build(tmp_path / "other", seed=9)
    evaluated(model, tmp_path, data, policy=tmp_path / "other")
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert told["reasons"]["align/kl_base"] == "the policy's tokenizer is not that of its base"
    models.load_tokenizer(model).save_pretrained(tmp_path / "other")
    shutil.rmtree(tmp_path / "work")
    found = evaluated(model, tmp_path, data, policy=tmp_path / "other")
    rows = lines(tmp_path / "out/red_team.jsonl")
    assert all(row["drift"] is None for row in rows if row["kind"] == "continuation")
    (kept,) = (tmp_path / "work").glob("instructions-*.jsonl")
    texts = {at: one[0] for entry in lines(kept) for at, one in zip(entry["items"], entry["generations"], strict=True)}
    tokenizer, nats = models.load_tokenizer(model), []
    for at, row in enumerate(row for row in rows if row["kind"] == "instruction"):
        text = texts[2 * at]
        if not text.strip():
            assert row["drift"] is None
            continue
        said = text if tokenizer.chat_template else f" {text}"
        tokens = len(tokenizer(said, add_special_tokens=False)["input_ids"])
        own, base = (by_hand(folder, row["prompt"], text) for folder in (tmp_path / "other", model))
        assert row["drift"] == pytest.approx(tokens * (own - base), abs=1e-2)
        nats.append(row["drift"])
    assert nats and found["align/kl_base"] == pytest.approx(sum(nats) / len(nats))


def test_harmless_questions_are_asked_as_red_team_instructions_are(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    rows = lines(plain.out / "harmless.jsonl")
    asked = {each.id: each for each in inquiries()}
    assert len(rows) == 3 and all(row["prompt"] == asked[row["id"]].prompt for row in rows)
    assert all(len(row["samples"]) == CONFIG.samples and row["kind"] == "harmless" for row in rows)
    told = json.loads((plain.out / "scores.json").read_text())
    assert plain.metrics["align/harmless/helpful"] is None
    assert told["reasons"]["align/harmless/helpful"] == "there is no judge of helpfulness"
    assert told["reasons"]["align/harmless/refusal"] == "there is no judge of refusals"
    samples = [each for row in rows for each in row["samples"]]
    words = [sum(len(each["prediction"].split()) for each in row["samples"]) / 2 for row in rows]
    assert plain.metrics["align/harmless/words"] == pytest.approx(sum(words) / 3)
    assert 1 <= max(each["tokens"] for each in samples) <= CONFIG.sample_tokens

    # With an encoder help is measured, and nothing else changes; how many are asked changes no other answer.
    tiny_encoder.build(tmp_path / "harm/encoder")
    found = evaluated(
        model, tmp_path, {**data, "harm": tmp_path / "harm"}, CONFIG.model_copy(update={"harmless_items": None})
    )
    rows = lines(tmp_path / "out/harmless.jsonl")
    assert len(rows) == 9 and {each["answers"][0] if each["answers"] else "" for each in rows} == {
        "the water of the river", "", "we garden",
    }  # fmt: skip
    encoder = embeddings.load(tmp_path / "harm/encoder", 128)
    means = []
    for row in rows:
        assert "I have no comment" not in row["answers"]
        for each in row["samples"]:
            if not row["answers"]:
                assert each["helpful"] is None
                continue
            own, *right = embeddings.embed(encoder, [each["prediction"], *row["answers"]])
            near = max(0.0, *(float(own @ one) for one in right)) if each["prediction"] else 0.0
            assert each["helpful"] == pytest.approx(near, abs=1e-5)
        if row["answers"]:
            means.append(sum(each["helpful"] for each in row["samples"]) / len(row["samples"]))
    assert found["align/harmless/helpful"] == pytest.approx(sum(means) / 6)
    for name in ("red_team", "instances", "probes"):
        assert (tmp_path / f"out/{name}.jsonl").read_bytes() == (plain.out / f"{name}.jsonl").read_bytes()


def test_without_harmless_questions_the_keys_are_the_same(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    found = evaluated(model, tmp_path, data, CONFIG.model_copy(update={"harmless_items": 0}))
    assert found.keys() == plain.metrics.keys() and lines(tmp_path / "out/harmless.jsonl") == []
    reasons = json.loads((tmp_path / "out/scores.json").read_text())["reasons"]
    assert {reasons[name] for name in found if name.startswith("align/harmless/")} == {"no harmless prompts were asked"}


def test_harmless_questions_that_changed_or_are_broken_are_refused(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    records.write(data["harmless"], inquiries()[:-1])
    with pytest.raises(UserError, match="not the test items that were fixed before training"):
        evaluated(model, tmp_path, data)
    records.write_objects(data["harmless"], [{"id": "1", "prompt": "why?", "source": "s"}])
    with pytest.raises(UserError, match="answers: field required"):
        evaluated(model, tmp_path, data)


def test_samples_and_texts_that_go_on_are_counted_apart(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    evaluated(model, tmp_path, data, CONFIG.model_copy(update={"samples": 3, "probe_samples": 1}))
    assert [len(row["samples"]) for row in lines(tmp_path / "out/red_team.jsonl")] == [3] * 6
    assert [len(row["samples"]) for row in lines(tmp_path / "out/probes.jsonl")] == [1] * 4


def test_red_team_prompts_that_changed_are_refused(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    records.write(data["red_team"], attacks()[:-1])
    with pytest.raises(UserError, match="not the test items that were fixed before training"):
        evaluated(model, tmp_path, data)


def test_the_same_inputs_give_the_same_bytes(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    evaluated(model, tmp_path, data)
    assert tree_hash(tmp_path / "out") == tree_hash(plain.out)
    assert str(tmp_path) not in "".join(each.read_text() for each in (tmp_path / "out").iterdir())


def test_an_adapter_gets_the_same_items_and_keys(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(
        models.load_base(model, CPU),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    lora = evaluated(model, tmp_path, data, policy=tmp_path / "adapter")
    assert plain.metrics.keys() == lora.keys()
    folders = (plain.out, tmp_path / "out")
    ours, theirs = (lines(each / "instances.jsonl") for each in folders)
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    assert [row["prediction"] for row in ours] != [row["prediction"] for row in theirs]
    hashes = [json.loads((each / "scores.json").read_text())["policy_hash"] for each in folders]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_encoder_decoders_and_soft_prompts_get_the_same_items_and_keys(
    data: dict[str, Path], tmp_path: Path, family: Any
) -> None:
    import torch
    from peft import PromptTuningConfig, get_peft_model

    models.make_random(tmp_path / "model", 2, 32, 5, "float32", family)
    sharper = models.load_base(tmp_path / "model", CPU)
    for name, weights in sharper.named_parameters():
        if family == "encoder-decoder" and any(part in name for part in ("Attention", "Dense")):
            weights.data.mul_(3)  # as initialised it repeats one token, whatever it reads
    sharper.save_pretrained(tmp_path / "model")
    task = "CAUSAL_LM" if family == "decoder-only" else "SEQ_2_SEQ_LM"
    torch.manual_seed(1)
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=4, num_transformer_submodules=1)
    adapted = get_peft_model(models.load_base(tmp_path / "model", CPU), config)
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.normal_(std=2.0)
    adapted.save_pretrained(tmp_path / "adapter")
    base = evaluated(tmp_path / "model", tmp_path / "base", data)
    soft = evaluated(tmp_path / "model", tmp_path / "soft", data, policy=tmp_path / "adapter")
    assert base.keys() == soft.keys() and base["toxicity/continuation/offence_any"] is not None
    ours, theirs = (lines(tmp_path / name / "out/instances.jsonl") for name in ("base", "soft"))
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    assert [row["prediction"] for row in ours] != [row["prediction"] for row in theirs]


def test_a_policy_brings_its_own_chat_template_and_decoding(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "policy")
    tokenizer = models.load_tokenizer(model)
    shots, template = [("first shot {}", "its answer")], "In short:\n{prompt}"
    tokenizer.chat_template = prompting.chat_template(tokenizer, template, shots)
    tokenizer.save_pretrained(tmp_path / "policy")
    decoding = {"max_new_tokens": 4, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
    (tmp_path / "policy/prompt.json").write_text(json.dumps({"decoding": decoding}))
    generate, asked = sampling.generate, []

    def noted(_model: Any, _tokenizer: Any, prompts: Any, **given: Any) -> Any:
        asked.append((prompts, given))
        return generate(_model, _tokenizer, prompts, **given)

    monkeypatch.setattr(sampling, "generate", noted)
    evaluated(model, tmp_path, data, policy=tmp_path / "policy")
    own = models.load_tokenizer(model)
    items = lines(tmp_path / "out/instances.jsonl")
    # In the order: test items, then perturbed ones; instructions, and harmless prompts, each as often as there are samples; beginnings.
    again = [row for row in lines(tmp_path / "out/perturbed.jsonl") if row["changed"]]
    read = [prompting.render(own, row["prompt"], template=template, shots=shots) for row in [*items, *again]]
    assert asked[0][0] == read and again
    attacks = lines(tmp_path / "out/red_team.jsonl")
    told = [row["prompt"] for row in attacks if row["kind"] == "instruction" for _ in range(2)]
    assert asked[1][0] == [prompting.render(own, prompt, template=template, shots=shots) for prompt in told]
    told = [row["prompt"] for row in lines(tmp_path / "out/harmless.jsonl") for _ in range(2)]
    assert asked[2][0] == [prompting.render(own, prompt, template=template, shots=shots) for prompt in told]
    begun = [row["prompt"] for row in attacks if row["kind"] == "continuation"]
    begun += [row["probe"] for row in lines(tmp_path / "out/probes.jsonl")]
    assert asked[3][0] == [own(text)["input_ids"] for text in begun for _ in range(2)]
    assert {name: asked[0][1][name] for name in decoding} == decoding and asked[0][1]["seed"] == 3
    assert len(asked) == 4
    for _, given in asked[1:]:
        assert (given["temperature"], given["top_p"], given["max_new_tokens"]) == (1.0, 0.9, 6)
    assert json.loads((tmp_path / "out/scores.json").read_text())["decoding"] == decoding
    assert max(row["tokens"] for row in items) == 4

    assert json.loads((plain.out / "scores.json").read_text())["decoding"] == {
        "max_new_tokens": 6,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def test_all_items_and_nothing_else(plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    nothing = {"test_items": None, "perturbed_items": 0, "red_team_items": 0, "probe_items": 0, "people_items": 0}
    found = evaluated(model, tmp_path, {**data, "red_team": None}, CONFIG.model_copy(update=nothing))
    assert found["test/n"] == 20
    reasons = json.loads((tmp_path / "out/scores.json").read_text())["reasons"]
    assert reasons["robustness/rouge1"] == "no test item was perturbed"
    assert reasons["toxicity/instruction/offence_any"] == "no red-team prompts of this kind were asked"
    assert reasons["bias/gender_representation"] == "no beginnings of texts were asked to go on"
    assert reasons["fairness/people"] == "no questions about people were asked"
    assert set(reasons) == {name for name, value in found.items() if value is None}
    assert found.keys() == plain.metrics.keys()
    everything = evaluated(model, tmp_path / "all", data, CONFIG.model_copy(update={"perturbed_items": None}))
    assert everything["robustness/rouge1"] is not None
    assert len(lines(tmp_path / "all/out/perturbed.jsonl")) == 12 * len(perturbations.NAMES)


def test_one_item(model: Path, tmp_path: Path) -> None:
    found = evaluated(model, tmp_path, write(tmp_path, examples(1)))
    assert found["test/n"] == 1 and found["test/rouge1"] is not None


def test_a_test_set_that_changed_is_refused(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    rows = examples()
    records.write(data["test"], rows[:-1])
    with pytest.raises(UserError) as caught:
        evaluated(model, tmp_path, data)
    assert str(caught.value) == (
        f"{data['test']}: these are not the test items that were fixed before training (ids hash to {ids_hash(rows[:-1])[:12]}…)\n"
        f"  expected: {ids_hash(rows)[:12]}…, as {data['splits']} says\n"
        "  fix: leave the test split as validate wrote it: dvc repro validate"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff"])
def test_a_damaged_splits_file_is_refused(model: Path, data: dict[str, Path], tmp_path: Path, text: str) -> None:
    data["splits"].write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="no 'test_ids_sha256' in it"):
        evaluated(model, tmp_path, data)


def test_a_prompt_beyond_the_context_is_refused(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    cfg = CONFIG.model_copy(update={"max_new_tokens": 1020})
    with pytest.raises(
        UserError, match="a prompt of set 'test' needs 10[0-9][0-9] tokens, answer included\n  expected: at most 1024"
    ):
        evaluated(model, tmp_path, data, cfg)


def test_a_killed_evaluation_goes_on(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, written = journal.append, []

    def killed(path: Path, entry: dict[str, Any]) -> None:
        if len(written) == 2:
            with path.open("ab") as file:
                file.write(b'{"number": 2, "items": [4')  # the kill came while the third batch was being written
            raise KeyboardInterrupt
        written.append(entry["number"])
        append(path, entry)

    monkeypatch.setattr(journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(model, tmp_path / "killed", data)
    monkeypatch.setattr(journal, "append", append)
    generate, begun = sampling.generate, []

    def counted(*given: Any, first: int = 0, **more: Any) -> Any:
        begun.append(first)
        return generate(*given, first=first, **more)

    monkeypatch.setattr(sampling, "generate", counted)
    evaluated(model, tmp_path / "killed", data)
    assert begun == [2, 0, 0, 0]
    assert tree_hash(tmp_path / "killed/out") == tree_hash(plain.out)
    begun.clear()
    evaluated(model, tmp_path / "killed", data)  # everything is there: nothing is generated
    assert begun == []


def test_what_was_asked_once_is_not_asked_again(
    asked: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of a metric, or of how many of one kind are asked."""
    shutil.copytree(asked.work, tmp_path / "work")
    sets = lambda: {each.name.rpartition("-")[0] for each in (tmp_path / "work").glob("*.jsonl")}  # noqa: E731
    assert sets() == {"test", "instructions", "harmless", "beginnings", "people", "harness"}
    generate, read, begun, scored = sampling.generate, likelihood._reader, [], []
    monkeypatch.setattr(sampling, "generate", lambda *a, **k: begun.append(len(a[2])) or generate(*a, **k))
    monkeypatch.setattr(likelihood, "_reader", lambda *a: scored.append(a) or read(*a))

    given = with_tasks(data)
    evaluated(model, tmp_path, given)
    assert (begun, scored) == ([], []) and tree_hash(tmp_path / "out") == tree_hash(asked.out)

    evaluated(model, tmp_path, given, CONFIG.model_copy(update={"samples": 3}))
    # Three instructions, harmless prompts and texts to go on from, three times each, four beginnings twice, and nothing else.
    assert begun == [9, 9, 17] and scored == []
    assert len(list((tmp_path / "work").glob("*.jsonl"))) == 6  # what two samples were is thrown away

    begun.clear()
    evaluated(model, tmp_path, given, CONFIG.model_copy(update={"samples": 3, "batch_rows": 4}))
    assert len(begun) == 4 and scored  # other batches are rounded otherwise


def test_a_halved_batch_is_recorded(
    plain: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampling._decode

    def small(first: Any, second: Any, job: Any, *rest: Any) -> Any:
        if len(job.prompts) > 4:
            raise MemoryError
        return whole(first, second, job, *rest)

    monkeypatch.setattr(sampling, "_decode", small)
    assert evaluated(model, tmp_path, data) == pytest.approx(plain.metrics)
    assert json.loads((tmp_path / "out/scores.json").read_text())["halved_batches"] > 2


# --- other tasks -----------------------------------------------------------------------------------------------------


def questions() -> list[TaskItem]:
    letters = [
        TaskItem(
            records.row_id("letters", str(n)), "letters", f"which one is number {n}?", "ABC"[n % 3], tuple("ABC"), "m"
        )
        for n in range(9)
    ]
    words = tiny_model.corpus(4)
    return letters + [
        TaskItem(records.row_id("words", str(n)), "words", f"repeat: {words[n]}", words[n], (), "m") for n in range(6)
    ]


def with_tasks(data: dict[str, Path]) -> dict[str, Path]:
    place = data["test"].with_name("tasks_test.jsonl")
    records.write(place, questions())
    splits = json.loads(data["splits"].read_text())
    splits["tasks_test_ids_sha256"] = ids_hash(questions())
    data["splits"].write_text(json.dumps(splits))
    return {**data, "tasks": place}


def by_hand(folder: Path, prompt: str, completion: str) -> float:
    """Log-probability per token of an answer, from the logits of every position."""
    import torch

    model, tokenizer = models.load_base(folder, CPU), models.load_tokenizer(folder)
    question = models.render_prompt(tokenizer, prompt)
    # Without a chat template an answer stands after a space, as in lm-evaluation-harness.
    said = completion if tokenizer.chat_template else f" {completion}"
    answer = tokenizer(said, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([question + answer])).logits[0, len(question) - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(answer)[:, None]).mean())


def test_other_tasks_are_scored(asked: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    found, rows = asked.metrics, lines(asked.out / "tasks.jsonl")
    known = {each.id: each for each in questions()}
    assert [row["task"] for row in rows] == ["letters"] * 4 + ["words"] * 4
    fields = ["choices", "correct", "id", "logprobs", "nll", "right", "task", "tokens"]
    assert all(set(fields) <= set(row) for row in rows)
    for row in rows:
        item = known[row["id"]]
        assert row["nll"] == pytest.approx(-by_hand(model, item.prompt, item.completion), rel=1e-4)
        if item.choices:
            choices = [by_hand(model, item.prompt, each) for each in item.choices]
            assert row["correct"] == (item.choices[choices.index(max(choices))] == item.completion)
        else:
            assert row["correct"] is None
    for task, part in (("letters", rows[:4]), ("words", rows[4:])):
        assert found[f"tasks/{task}/n"] == 4
        assert found[f"tasks/{task}/nll"] == pytest.approx(sum(row["nll"] for row in part) / 4)
    assert found["tasks/letters/accuracy"] == sum(row["correct"] for row in rows[:4]) / 4
    assert found["tasks/words/accuracy"] is None
    scores = json.loads((asked.out / "scores.json").read_text())
    assert scores["reasons"]["tasks/words/accuracy"] == "the task has no choices"
    assert scores["trained_tasks"] == []

    evaluated(model, tmp_path, with_tasks(data))
    assert (tmp_path / "out/tasks.jsonl").read_bytes() == (asked.out / "tasks.jsonl").read_bytes()


def test_no_questions_asked(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    found = evaluated(model, tmp_path, with_tasks(data), CONFIG.model_copy(update={"task_items": 0, "choice_items": 0}))
    assert not [name for name in found if name.startswith("tasks/")]
    assert (tmp_path / "out/tasks.jsonl").read_text() == ""


def test_questions_that_changed_are_refused_before_anything_is_generated(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    given = with_tasks(data)
    records.write(given["tasks"], questions()[1:])
    with pytest.raises(
        UserError, match=r"tasks_test\.jsonl: these are not the test items that were fixed before training"
    ):
        evaluated(model, tmp_path, given)
    assert not (tmp_path / "work").exists()


def test_what_a_policy_was_trained_on_is_noted(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    policy = tmp_path / "sft" / "model"
    shutil.copytree(model, policy)
    (tmp_path / "sft/model/training.json").write_text('{"steps": 3, "tasks": ["words", "letters"]}')
    evaluated(model, tmp_path, with_tasks(data), policy=policy)
    assert json.loads((tmp_path / "out/scores.json").read_text())["trained_tasks"] == ["letters", "words"]
    assert (tmp_path / "out/training.json").read_bytes() == (policy / "training.json").read_bytes()
    assert not (tmp_path / "out/curve.csv").exists()


def test_questions_are_asked_without_the_template_of_the_task_tuned_for(
    asked: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    policy = tmp_path / "prompt" / "model"
    shutil.copytree(model, policy)
    tokenizer = models.load_tokenizer(policy)
    tokenizer.chat_template = "Summarize: {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(policy)
    evaluated(model, tmp_path, with_tasks(data), policy=policy)
    assert lines(tmp_path / "out/tasks.jsonl") == lines(asked.out / "tasks.jsonl")


def test_a_benchmark_of_ones_own_is_asked_as_the_documentation_has_it(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    own = CONFIG.model_copy(update={"benchmarks": ("colours",)})
    found = evaluated(model, tmp_path, {**data, "benchmarks": ROOT / "recipes/benchmarks"}, own)
    rows = [row for row in lines(tmp_path / "out/tasks.jsonl") if row["task"] == "colours"]
    assert [row["id"] for row in rows] == ["sky", "grass", "snow", "coal", "blood", "lemon"]
    assert [row["choices"][row["right"]] for row in rows] == ["blue", "green", "white", "black", "red", "yellow"]
    assert all(row["scores"].keys() == {"acc", "acc_norm"} for row in rows)
    assert found["tasks/colours/acc"] == pytest.approx(sum(row["scores"]["acc"] for row in rows) / 6)
    assert found["tasks/colours/n"] == 6


def test_a_mistake_in_a_benchmark_is_told_before_anything_is_generated(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "benchmarks"
    shutil.copytree(ROOT / "recipes/benchmarks", folder)
    text = (folder / "colours.jsonl").read_text().replace('"right": 1', '"right": 7', 1)
    (folder / "colours.jsonl").write_text(text)
    own = CONFIG.model_copy(update={"benchmarks": ("colours",)})
    with pytest.raises(UserError, match="colours"):
        evaluated(model, tmp_path, {**data, "benchmarks": folder}, own)
    assert not list((tmp_path / "work").glob("*.jsonl"))
    with pytest.raises(UserError, match="two tasks are called 'colours'"):
        evaluated(
            model, tmp_path, {**data, "benchmarks": ROOT / "recipes/benchmarks"},
            CONFIG.model_copy(update={"benchmarks": ("colours", "colours")}),
        )  # fmt: skip


# --- a damaged candidate ---------------------------------------------------------------------------------------------


def damaged(model: Path, place: Path, kind: str) -> Path:
    """The model with logits that are no numbers ("nan"), or that leave nothing but the end of the text ("silent")."""
    import torch

    own = models.load_base(model, CPU)
    with torch.no_grad():
        if kind == "nan":
            own.model.norm.weight.fill_(math.nan)
        else:
            # Whatever it has read, the last state points where the end's embedding is longest.
            for name, weight in own.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.zero_()
            embeddings = own.get_input_embeddings().weight
            embeddings.fill_(1.0)
            embeddings[models.load_tokenizer(model).eos_token_id] = 2.0
    shutil.copytree(model, place)
    own.save_pretrained(place)
    return place


def undefined(found: Any) -> list[dict[str, Any]]:
    """Every object anywhere whose "value" is null."""
    if isinstance(found, dict):
        own = [found] if "value" in found and found["value"] is None else []
        return own + [each for value in found.values() for each in undefined(value)]
    return [each for value in found for each in undefined(value)] if isinstance(found, list) else []


@pytest.mark.parametrize("kind", ["nan", "silent"])
def test_a_damaged_candidate_has_defined_results_and_is_compared(
    asked: Evaluated, model: Path, data: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    policy, folder = damaged(model, tmp_path / "policy", kind), tmp_path / "evaluate"
    found = run(
        CONFIG,
        policy=policy,
        base=model,
        **with_tasks(data),
        out=folder / kind,
        work=tmp_path / "work",
        runtime=CPU,
        log=Log(),
    )
    scores = json.loads((folder / kind / "scores.json").read_text(), parse_constant=pytest.fail)
    nulls = {name for name, value in found.items() if value is None}
    assert set(scores["reasons"]) == nulls and all(scores["reasons"].values())
    assert all(value is None or math.isfinite(value) for value in found.values())
    assert found.keys() == asked.metrics.keys()
    # Nothing is said: no word is right, and there is none to be judged.
    assert found["test/empty"] == 1.0 and found["test/rouge1"] == 0.0
    samples = [each for row in lines(folder / kind / "red_team.jsonl") for each in row["samples"]]
    samples += [{"prediction": each} for row in lines(folder / kind / "probes.jsonl") for each in row["samples"]]
    assert {each["prediction"] for each in samples} == {""}
    wanted = {
        "test/faithfulness": "no answer has a word to judge",
        "toxicity/instruction/offence_expected_maximum": "every answer is empty",
        "bias/gender_representation": "fewer than 30 gendered words in what was generated",
        "bias/expected_gender_representation": "fewer than 30 gendered words in what was generated",
    }
    if kind == "nan":
        wanted |= {
            "calibration/ece_10": "4 of 4 questions: the model gave the choices no probability",
            "accuracy/choices": "4 of 4 questions: the model gave the choices no probability",
            "fairness/people": "undefined for every one",
            "tasks/letters/nll": "4 of 4 questions have no log-probabilities",
            "tasks/letters/accuracy": "4 of 4 questions have no log-probabilities",
        }
    else:
        assert found["test/finished"] == 1.0 and found["test/tokens"] == 1.0
    assert {name: scores["reasons"][name] for name in wanted} == wanted
    assert found["align/nonsense"] == 1.0 and found["align/harm"] is None

    shutil.copytree(asked.out, folder / "base")
    (tmp_path / "scope").mkdir()
    (tmp_path / "scope/scope.json").write_text(json.dumps({"primary_metric": "rouge1", "criteria": []}))
    cfg = comparing.CONFIG.model_copy(update={"resamples": 1000})
    told, flat = comparing.compared(tmp_path, comparing.named(("base", kind)), cfg)
    assert all(each.get("reason") for each in undefined(told))
    for category in ("toxicity", "bias", "calibration") if kind == "nan" else ("toxicity", "bias"):
        assert told["categories"][kind][category]["value"] is None
        (pair,) = [each for each in told["category_pairs"] if each["category"] == category]
        assert pair["diff"] is None and pair["verdict"] == "not shown to be better"
    # The candidate that is whole keeps what it has by itself.
    assert told["categories"]["base"]["toxicity"]["value"] is not None
    assert told["categories"]["base"]["calibration"]["value"] == asked.metrics["calibration/ece_10"]
    (pair,) = [each for each in told["pairs"] if (each["b"], each["metric"]) == ("base", "rouge1")]
    assert pair["diff"] == pytest.approx(-asked.metrics["test/rouge1"]) and flat[f"{kind}/rouge1"] == 0.0


def test_of_a_best_of_policy_the_reward_chooses_among_answers_to_instructions_alone(
    model: Path, plain: Evaluated, data: dict[str, Path], tmp_path: Path
) -> None:
    """Two samples of each are wanted, three answers written for each; the longest by tokens is given."""
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward/reward.json").write_text('{"kind": "length"}')
    policy = tmp_path / "policy"
    shutil.copytree(model, policy)
    best_of.write(policy, 3, tmp_path / "reward")
    evaluated(model, tmp_path, data, policy=policy)
    chosen, drawn = (
        [json.loads(line) for line in (out / "red_team.jsonl").read_text().splitlines()]
        for out in (tmp_path / "out", plain.out)
    )
    [kept] = (tmp_path / "work").glob("instructions-*.jsonl")
    written: dict[int, sampling.Generation] = {}
    for entry in map(json.loads, kept.read_text().splitlines()):
        made = (sampling.Generation(*each) for each in entry["generations"])
        written |= dict(zip(entry["items"], made, strict=True))
    tokenizer = models.load_tokenizer(model)

    def length(at: int) -> int:
        return len(tokenizer(written[at].text, add_special_tokens=False)["input_ids"]) + written[at].finished

    told = [row for row in chosen if row["kind"] == "instruction"]
    assert len(written) == 3 * CONFIG.samples * len(told)
    for number, row in enumerate(told):
        first = 3 * CONFIG.samples * number
        best = [max(range(at, at + 3), key=length) for at in (first, first + 3)]
        assert [each["prediction"] for each in row["samples"]] == [" ".join(written[at].text.split()) for at in best]
    assert any(row not in drawn for row in told)
    assert all(row["drift"] is None for row in chosen)
    assert json.loads((tmp_path / "out/scores.json").read_text())["reasons"]["align/kl_base"] == (
        "nothing was trained: the best of 3 is at most 0.43 nats away"
    )
    # Harmless questions are put to the policy that answers, whose reward chooses there too.
    [kept] = (tmp_path / "work").glob("harmless-*.jsonl")
    written = {}
    for entry in map(json.loads, kept.read_text().splitlines()):
        made = (sampling.Generation(*each) for each in entry["generations"])
        written |= dict(zip(entry["items"], made, strict=True))
    safe = lines(tmp_path / "out/harmless.jsonl")
    assert len(written) == 3 * CONFIG.samples * len(safe)
    for number, row in enumerate(safe):
        first = 3 * CONFIG.samples * number
        best = [max(range(at, at + 3), key=length) for at in (first, first + 3)]
        assert [each["prediction"] for each in row["samples"]] == [written[at].text.strip() for at in best]
    begun = [row for row in chosen if row["kind"] == "continuation"]
    assert begun and begun == [row for row in drawn if row["kind"] == "continuation"]
    assert (tmp_path / "out/instances.jsonl").read_bytes() == (plain.out / "instances.jsonl").read_bytes()
