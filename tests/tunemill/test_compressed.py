"""Smaller variants: the table, the frontier, and the line of what may be lost."""

from __future__ import annotations

import re

import pytest

from tests import report_artifacts as made
from tunemill import compressed


def test_nothing_is_told_where_compress_did_not_run():
    assert compressed.compressed(None) is None and compressed.compressed({}) is None


def test_the_parent_comes_first_and_then_the_largest():
    told = compressed.compressed(made.compressed())
    assert told is not None
    assert [each.name for each in told.variants] == [
        "lora",
        "wanda",
        "shallow",
        "student",
        "int8-dynamic",
        "int8",
        "q4",
    ]
    assert [each.number for each in told.variants] == [*range(1, 8)]
    by_name = {each.name: each for each in told.variants}
    assert [name for name, each in by_name.items() if each.is_advised] == ["int8"]
    assert (by_name["q4"].judgement, by_name["int8"].judgement) == ("worse", "unproven")
    assert by_name["q4"].share.value == pytest.approx(91.7, abs=0.1)
    assert by_name["wanda"].sparsity == 0.5 and by_name["wanda"].sparsity_all == pytest.approx(0.395)


def test_the_frontier_is_a_stair_through_what_nothing_beats():
    told = compressed.compressed(made.compressed())
    assert told is not None
    size, speed = told.plots
    places = {each.variant.name: (each.x, each.y) for each in size.coins}
    q4, int8, lora = places["q4"], places["int8"], places["lora"]
    # To the right, quality rises only where the larger variant is reached.
    assert size.frontier == f"M{q4[0]:g} {q4[1]:g} H{int8[0]:g} V{int8[1]:g} H{lora[0]:g} V{lora[1]:g}"
    # To the right, quality falls as soon as the slower variant is left.
    assert re.fullmatch(r"M\S+ \S+( V\S+ H\S+){3}", speed.frontier)
    assert size.summary == "Quality against size. On the frontier: q4, int8, lora"
    assert speed.summary.endswith("lora, int8, int8-dynamic, q4")
    # int8 lies within what may be lost, its dynamic brother does not.
    assert size.tolerated is not None and places["int8"][1] < size.tolerated < places["int8-dynamic"][1]


def test_variants_of_which_nothing_was_measured_have_a_row_and_no_mark():
    told = compressed.compressed(made.unmeasured())
    assert told is not None
    assert len(told.variants) == 2 and all(not each.coins and not each.frontier for each in told.plots)
    assert told.plots[0].tolerated is None


def test_hidden_characters_are_shown():
    hostile = made.compressed()
    hostile["variants"]["int8"]["method"] = "\u202eevil\x1b"
    hostile["advice"]["reason"] = "\u202e"
    told = compressed.compressed(hostile)
    assert told is not None and told.reason == "�"
    assert next(each for each in told.variants if each.name == "int8").method == "�evil␛"
