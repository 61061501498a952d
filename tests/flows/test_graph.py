"""The graph as the flow sees it, against dvc.yaml."""

from __future__ import annotations

import pytest

from flows import graph
from tests.flows.conftest import Toy
from tunemill.errors import UserError


def test_foreach_is_expanded_and_edges_follow_paths(toy: Toy) -> None:
    found = graph.read(toy.root)
    assert found.upstream == {
        "collect": (),
        "lora": ("collect",),
        "evaluate@base": ("collect",),
        "evaluate@lora": ("lora",),
        "efficiency": ("evaluate@base", "evaluate@lora"),
        "report": ("efficiency", "evaluate@base", "evaluate@lora"),
    }
    assert found.alone == {"efficiency"}
    order = list(found.stages)
    assert all(order.index(each) < order.index(name) for name, needs in found.upstream.items() for each in needs)


def test_a_candidate_that_is_added_needs_no_change_here(toy: Toy) -> None:
    toy.set("candidates:\n", "candidates:\n  more: {policy: artifacts/lora}\n")
    assert graph.read(toy.root).upstream["evaluate@more"] == ("lora",)


def test_until_keeps_what_the_stage_needs(toy: Toy) -> None:
    whole = graph.read(toy.root)
    assert set(whole.until("evaluate@lora").stages) == {"collect", "lora", "evaluate@lora"}
    assert set(whole.until("evaluate").stages) == {"collect", "lora", "evaluate@base", "evaluate@lora"}
    with pytest.raises(UserError, match="did you mean 'report'"):
        whole.until("raport")


def test_what_no_candidate_uses_is_not_needed(toy: Toy) -> None:
    whole = graph.read(toy.root)
    assert whole.needed() == whole
    toy.set("  lora: {policy: artifacts/lora}\n", "")
    assert set(graph.read(toy.root).needed().stages) == {"collect", "evaluate@base", "efficiency", "report"}


def test_unchanged_means_all_that_it_needs_too() -> None:
    found = graph.Graph({"a": (), "b": ("a",), "c": ("b",), "d": ("a",)})
    assert found.unchanged(frozenset({"b"})) == {"a", "d"}


def test_a_cycle_is_refused_in_words(toy: Toy) -> None:
    path = toy.root / "dvc.yaml"
    path.write_text(
        path.read_text().replace("    params: [collect]", "    deps: [artifacts/lora]\n    params: [collect]")
    )
    with pytest.raises(UserError, match="[Cc]yc"):
        graph.read(toy.root)


def test_a_mistake_in_dvc_yaml_is_told_with_its_file(toy: Toy) -> None:
    path = toy.root / "dvc.yaml"
    path.write_text(path.read_text().replace("foreach", "foreech"))
    with pytest.raises(UserError, match="dvc.yaml") as told:
        graph.read(toy.root)
    assert told.value.exit_code == 2
