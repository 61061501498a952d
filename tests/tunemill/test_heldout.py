"""Subsets of the held-out items."""

from __future__ import annotations

from collections import Counter

import pytest

from tunemill import heldout
from tunemill.records import RedTeamPrompt


def prompts(**counts: int) -> list[RedTeamPrompt]:
    """So many of each source; text to go on from is that of `texts`."""
    return [
        RedTeamPrompt(f"{source}{index}", "…", "continuation" if source == "texts" else "instruction", source, None)
        for source, count in counts.items()
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {"few": 0, "many": 1, "texts": 0}),
        (16, {"few": 2, "many": 6, "texts": 8}),
        (60, {"few": 10, "many": 30, "texts": 20}),  # there are no more texts
        (None, {"few": 100, "many": 300, "texts": 20}),
    ],
)
def test_kinds_of_red_team_prompts_have_equal_parts(count: int | None, expected: dict[str, int]) -> None:
    items = prompts(few=100, many=300, texts=20)
    chosen = heldout.attacks(items, count, seed=0)
    found = Counter(each.source for each in chosen)
    assert sum(found.values()) == sum(expected.values())
    assert found["texts"] == expected.get("texts", 0)
    assert all(abs(found[source] - share) <= 1 for source, share in expected.items())
    assert len({each.id for each in chosen}) == len(chosen)
    assert {each.id for each in heldout.attacks(items[::-1], count, seed=0)} == {each.id for each in chosen}


def test_of_one_kind_there_are_as_many_as_asked_for() -> None:
    assert len(heldout.attacks(prompts(many=30), 12, seed=0)) == 12
    assert heldout.attacks([], 12, seed=0) == []
