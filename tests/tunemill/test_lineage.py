"""dvc.lock as a chain of hashes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Any

from tests import report_artifacts as made
from tunemill import lineage


def test_lineage_follows_the_data_and_leaves_out_this_stage_and_what_is_gone():
    steps = lineage.steps(made.lock(("base", "lora")), ("base", "lora"))
    names = [step.name for step in steps]
    assert set(names) == {
        "scope",
        "collect",
        "select",
        "validate",
        "prompt",
        "sft",
        "lora",
        "prompt_tune",
        "evaluate@base",
        "evaluate@lora",
        "compare",
        "efficiency",
    }
    for earlier, later in (
        ("scope", "select"),
        ("collect", "validate"),
        ("validate", "lora"),
        ("select", "lora"),
        ("lora", "evaluate@lora"),
        ("evaluate@base", "compare"),
        ("evaluate@lora", "efficiency"),
    ):
        assert names.index(earlier) < names.index(later)
    lora = steps[names.index("lora")]
    assert [each.path for each in lora.inputs] == ["artifacts/validate/train.jsonl", "artifacts/select/model"]
    assert re.fullmatch("[0-9a-f]{32}", lora.params) and re.fullmatch("[0-9a-f]{32}", lora.code)


def test_a_lock_with_leftovers_in_a_circle_still_gives_an_order():
    def stage(reads: str, writes: str) -> dict[str, Any]:
        return {"deps": [{"path": reads, "md5": "0"}], "outs": [{"path": writes, "md5": "1"}]}

    assert lineage.stage_order({"stages": {"b": stage("y", "x"), "a": stage("x", "y")}}, ()) == ["a", "b"]


def test_an_empty_lock_is_no_lineage():
    assert lineage.steps({}, ("base",)) == []
    assert lineage.output_bytes({}, ("base",)) is None


def drawn(**changes: Any) -> lineage.Graph:
    names = tuple(made.FIVE)
    told = {"policy": "artifacts/lora/adapter", "subject": "lora", **changes}
    found = lineage.graph(made.lock(names), names, **told)
    assert found is not None
    return found


def test_every_stage_is_drawn_below_what_it_reads_and_no_row_is_wider_than_a_phone():
    found = drawn()
    at = {node.title: node for node in found.nodes}
    assert "evaluate × 5" in at and not any(node.name.startswith("report") for node in found.nodes)
    assert at["collect"].y < at["validate"].y < at["lora"].y < at["evaluate × 5"].y < at["compare"].y
    rows = Counter(node.y for node in found.nodes)
    assert max(rows.values()) <= lineage.ACROSS
    assert len({(node.x, node.y) for node in found.nodes}) == len(found.nodes)
    assert found.height > max(node.y for node in found.nodes) + lineage.BOX


def test_the_way_of_a_model_goes_from_its_data_through_its_stage_to_the_comparison():
    found = drawn()
    assert [step.name for step in found.path] == [
        "collect",
        "scope",
        "select",
        "validate",
        "lora",
        "evaluate@lora",
        "compare",
    ]
    assert {node.title for node in found.nodes if node.on_path} == {
        "collect", "scope", "select", "validate", "lora", "evaluate × 5", "compare",
    }  # fmt: skip
    assert sum(on_path for _, on_path in found.edges) == 6
    assert found.edges == drawn().edges  # the same every time
    elsewhere = drawn(policy="models/mine", subject="mine")
    assert elsewhere.path == () and "mine came through none of them" in elsewhere.summary


def test_a_stage_tells_its_hashes():
    [node] = [node for node in drawn().nodes if node.title == "lora"]
    md5 = hashlib.md5(b"artifacts/lora", usedforsecurity=False).hexdigest()
    assert node.note == md5[:7] and f"wrote artifacts/lora {md5[:12]}" in node.said
    assert node.said.startswith("lora\nread artifacts/validate/train.jsonl ")


def test_a_run_of_a_stage_that_is_no_candidates_belongs_to_the_run_if_something_reads_it():
    lock = made.lock(("base", "ppo"))
    entry = lock["stages"]["lora"]
    kept = {"deps": entry["deps"], "outs": [{"path": "artifacts/ppo/harm/adapter", "md5": "0"}]}
    lock["stages"] |= {
        "ppo@harm": kept,
        "ppo@left-over": {**kept, "outs": [{"path": "artifacts/ppo/old/adapter", "md5": "1"}]},
    }
    names = {step.name for step in lineage.steps(lock, ("base", "ppo"))}
    assert "ppo@harm" in names and "ppo@left-over" not in names and "evaluate@gone" not in names
    assert lineage.is_live("ppo@harm", ("base",), {}) and not lineage.is_live("evaluate@gone", ("base",), {})


def test_without_a_lock_there_is_nothing_to_draw():
    assert lineage.graph({}, ("base",), "artifacts/select/model", "base") is None


def test_a_chain_is_what_led_to_some_files_and_no_more():
    lock = made.lock(("base", "lora"))
    assert lineage.chain(lock, ["artifacts/lora/adapter", "artifacts/select/model"]) == [
        "collect", "scope", "select", "validate", "lora",
    ]  # fmt: skip
    assert lineage.chain(lock, ["models/brought"]) == lineage.chain({}, ["artifacts/lora"]) == []
    # An entry that is left over from another graph, and holds the place of what was made since, is none of it.
    stages = {
        "reward": {"outs": [{"path": "artifacts/reward"}], "deps": [{"path": "artifacts/gone"}]},
        "reward@harm": {"outs": [{"path": "artifacts/reward/harm"}], "deps": []},
    }
    assert lineage.chain({"stages": stages}, ["artifacts/reward/harm"]) == ["reward@harm"]
