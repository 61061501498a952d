"""dvc.lock as a chain of hashes."""

from __future__ import annotations

import re
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
