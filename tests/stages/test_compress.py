"""variant and compress on a tiny model: the same rows for all, quality beside the parent's, frontiers, the advised one copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import compress, quantize, variant
from tests.stages import tuned
from tunemill import models, records, sampling, serving
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile, Variants
from tunemill.profiling import Speed

SPEEDS = {"parent": 10.0, "int8": 4.0, "gguf": 19.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two smaller forms of it, and validation rows of several groups."""
    place = tmp_path_factory.mktemp("compress")
    tuned.prepare(place)
    models.make_random(place / "parent", 2, 64, 3, "float32")
    rows = [
        records.Example(
            id=f"{at:012x}", prompt=f"value {at}", completion=f"return the value of row {at}", group=f"g{at % 8}",
            text=None, source=f"made:{at}",
        )
        for at in range(24)
    ]  # fmt: skip
    records.write(place / "validation.jsonl", rows)
    values = ParamsFile(tuned.ROOT / "params.yaml").section("quantize", quantize.Config).model_dump()
    values |= {"variants": {"int8": {"method": "int8"}, "gguf": {"method": "gguf", "type": "Q8_0"}}}
    for name in ("int8", "gguf"):
        (place / f"work-{name}").mkdir()
        quantize.run(
            quantize.Config.model_validate(values), candidate=name, policy=place / "parent", base=place / "parent",
            train=place / "train.jsonl", validation=place / "validation.jsonl", out=place / name,
            work=place / f"work-{name}", runtime=tuned.CPU, log=Log(),
        )  # fmt: skip
    for name in SPEEDS:
        asked(place, place / "measured" / name, name)
    # The scores of a random model are nothing to compare: these are.
    for name, less in {"parent": 0.0, "int8": 0.1, "gguf": 0.2}.items():
        shutil.copytree(place / "measured" / name, place / "scored" / name)
        rows = [row for _, row in records.read_objects(place / "scored" / name / "rows.jsonl")]
        scored = [row | {"rouge1": 40.0 + at % 5 - less * (at % 3)} for at, row in enumerate(rows)]
        records.write_objects(place / "scored" / name / "rows.jsonl", scored)
    return place


def folder(place: Path, name: str) -> Path:
    return place / "parent" if name == "parent" else place / name / "model"


def asked(place: Path, out: Path, name: str, **change: Any) -> Any:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("variant", variant.Config).model_dump()
    values |= {"items": 16, "perplexity_items": 12, "max_new_tokens": 8} | change
    (work := place / f"work-{out.parent.name}-{name}").mkdir(exist_ok=True)
    return variant.run(
        variant.Config.model_validate(values), policy=folder(place, name), base=place / "parent",
        validation=place / "validation.jsonl", out=out, work=work, runtime=tuned.CPU, log=Log(),
    )  # fmt: skip


def run(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch, measured: Path | None = None, **change: Any
) -> dict[str, Any]:
    """With made-up speeds: what they are on this machine is another test's matter."""
    values = ParamsFile(tuned.ROOT / "params.yaml").section("compress", compress.Config).model_dump()
    values |= {
        "parent": "parent",
        "rounds": 3,
        "prompts": 2,
        "new_tokens": 2,
        "resamples": 500,
    } | change
    variants = {name: {"policy": str(folder(place, name)), "base": str(place / "parent")} for name in SPEEDS}

    def timed(*_: Any) -> Any:
        speeds = {
            name: [Speed(100.0 * at, 0.1, speed * at, 1.0, None) for at in (1, 2, 3)] for name, speed in SPEEDS.items()
        }
        return speeds, True

    monkeypatch.setattr(serving, "rounds", timed)
    monkeypatch.setattr(serving, "peak_memories", lambda *_: {"parent": 1000, "int8": 600, "gguf": 500})
    compress.run(
        compress.Config.model_validate(values), measured=measured or place / "scored", validation=place / "validation.jsonl",
        variants=Variants.model_validate(variants), out=out, runtime=tuned.CPU, log=Log(),
    )  # fmt: skip
    return dict(json.loads((out / "compress.json").read_text()))


def test_all_variants_are_asked_the_same_rows(place: Path) -> None:
    rows = {name: [row for _, row in records.read_objects(place / "measured" / name / "rows.jsonl")] for name in SPEEDS}
    assert len({tuple(row["id"] for row in each) for each in rows.values()}) == 1
    assert [len(each) for each in rows.values()] == [16] * 3
    assert len({row["group"] for row in rows["gguf"]}) == 8
    told = json.loads((place / "measured/gguf/variant.json").read_text())
    assert (told["made_by"], told["method"], told["runtime"]) == ("quantize", "GGUF Q8_0", "llama.cpp")
    parent = json.loads((place / "measured/parent/variant.json").read_text())
    assert (parent["made_by"], parent["sparsity"], told["sparsity"]) == (None, None, None)  # nobody pruned them
    assert told["parameters"] == parent["parameters"] and told["bytes"] < 0.5 * parent["bytes"]


def test_llama_cpps_answers_are_those_of_the_weights_it_has(place: Path) -> None:
    """The model computed with in transformers from what the file expands to says the same, but where two tokens are as likely."""
    rows = [row for _, row in records.read_objects(place / "measured/gguf/rows.jsonl")]
    by_id = {each.id: each for each in records.read(place / "validation.jsonl", records.Example)}
    model, tokenizer = models.load_policy(place / "gguf/model", place / "parent", tuned.CPU)
    prompts = [models.render_prompt(tokenizer, by_id[row["id"]].prompt) for row in rows]
    (batch,) = sampling.generate(model, tokenizer, prompts, max_new_tokens=8, batches=[tuple(range(len(prompts)))])
    same = [" ".join(each.text.split()) == row["prediction"] for each, row in zip(batch.generations, rows, strict=True)]
    assert sum(same) >= 0.8 * len(same)


def test_a_killed_variant_goes_on_and_says_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood = variant.likelihood

    def killed(model: Any, row: Any) -> Any:
        if killed.left == 0:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        killed.left -= 1  # type: ignore[attr-defined]
        return likelihood(model, row)

    killed.left = 5  # type: ignore[attr-defined]
    monkeypatch.setattr(variant, "likelihood", killed)
    with pytest.raises(KeyboardInterrupt):
        asked(place, place / "again/gguf", "gguf")
    killed.left = 7  # type: ignore[attr-defined]  # the rest, and no more
    asked(place, place / "again/gguf", "gguf")
    assert tree_hash(place / "again/gguf") == tree_hash(place / "measured/gguf")


def test_the_smallest_that_is_as_good_and_fast_is_taken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(place, tmp_path / "out", monkeypatch)
    table = found["variants"]
    assert found["parent"] == "parent" and table.keys() == SPEEDS.keys()
    assert table["gguf"]["decode_ratio"]["value"] == pytest.approx(1.9)
    assert table["int8"]["decode_ratio"]["value"] == pytest.approx(0.4)
    assert table["parent"]["difference"] == {"diff": 0.0, "ci_low": None, "ci_high": None, "p": 1.0}
    assert table["parent"]["made_by"] == "parent" and table["gguf"]["made_by"] == "quantize"
    assert table["gguf"]["memory_ratio"] == 0.5
    assert 0.9 < table["gguf"]["perplexity_ratio"]["value"] < 1.1
    assert table["gguf"]["quality"]["value"] == pytest.approx(table["parent"]["quality"]["value"] - 0.1875)
    assert table["gguf"]["share"]["value"] == pytest.approx(1 - 0.1875 / table["parent"]["quality"]["value"])
    assert [table[name]["on_frontier"] for name in SPEEDS] == [
        {"bytes": True, "decode": True},
        {"bytes": True, "decode": False},
        {"bytes": table["gguf"]["bytes"] < table["int8"]["bytes"], "decode": True},
    ]  # fmt: skip
    assert (
        found["advice"]["variant"] == "gguf"
        and "the smallest measured within 1% of the best quality that writes" in found["advice"]["reason"]
    )
    assert tree_hash(tmp_path / "out/model") == tree_hash(place / "gguf/model")
    # Nothing is fast enough: the smallest, whatever its speed.
    slow = run(place, tmp_path / "slow", monkeypatch, slowest=50.0)
    assert slow["advice"]["variant"] == min(table, key=lambda name: (table[name]["bytes"], name))
    assert "though none of these is one that writes at least 50 times as fast as parent" in slow["advice"]["reason"]
    # A parent that has no word right is no measure of anything.
    for name in SPEEDS:
        rows = [row | {"rouge1": 0.0} for _, row in records.read_objects(place / "scored" / name / "rows.jsonl")]
        records.write_objects(tmp_path / "nothing" / name / "rows.jsonl", rows)
        for file in ("likelihoods.jsonl", "variant.json"):
            shutil.copy(place / "scored" / name / file, tmp_path / "nothing" / name / file)
    nothing = run(place, tmp_path / "zero", monkeypatch, measured=tmp_path / "nothing")
    assert nothing["variants"]["gguf"]["share"]["value"] is None and nothing["advice"]["variant"] == "gguf"


def test_real_measurements(place: Path, tmp_path: Path) -> None:
    folders = {name: (folder(place, name), place / "parent") for name in SPEEDS}
    speeds, together = serving.rounds(folders, tuned.CPU, ["value 1", "value 2"], 2, 2, Log())
    assert together and {name: len(each) for name, each in speeds.items()} == dict.fromkeys(SPEEDS, 2)
    assert all(value > 0 for each in speeds.values() for speed in each for value in speed[:4])


def test_mistakes_are_told(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'nobody' is no variant") as told:
        run(place, tmp_path / "one", monkeypatch, parent="nobody")
    assert "params.yaml: compress.parent" in str(told.value) and "parent, int8, gguf" in str(told.value)
    asked(place, place / "fewer/int8", "int8", items=8)
    (place / "other").mkdir()
    for name in SPEEDS:
        source = place / ("fewer" if name == "int8" else "measured") / name
        (place / "other" / name).symlink_to(source)
    values = ParamsFile(tuned.ROOT / "params.yaml").section("compress", compress.Config).model_dump() | {
        "parent": "parent"
    }
    variants = {name: {"policy": str(folder(place, name)), "base": str(place / "parent")} for name in SPEEDS}
    with pytest.raises(UserError, match="'int8' and 'parent' have answered other rows"):
        compress.run(
            compress.Config.model_validate(values), measured=place / "other", validation=place / "validation.jsonl",
            variants=Variants.model_validate(variants), out=tmp_path / "two", runtime=tuned.CPU, log=Log(),
        )  # fmt: skip
