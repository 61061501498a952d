"""Rows survive a round trip, and a damaged file is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunemill import records
from tunemill.errors import UserError
from tunemill.records import Completions, Example, Quarantined, Rating, RedTeamPrompt

ROWS = [
    Example("0123456789ab", "a prompt \u2028 with a line separator", "ünïcode\n", "group", None, "file:1"),
    Rating("0123456789ab", "prompt", "response", (0.0, 0.25, 1.0), "file:1"),
    RedTeamPrompt("0123456789ab", "prompt", "continuation", "set", None),
    Completions("0123456789ab", "prompt", ("one", "", "one"), "set"),
    Quarantined("file", 3, "empty", "prompt", {"prompt": "", "scores": [1, None]}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_come_back_as_they_were(
    tmp_path: Path, row: Example | Rating | RedTeamPrompt | Completions | Quarantined
) -> None:
    records.write(tmp_path / "rows.jsonl", [row, row])
    assert records.read(tmp_path / "rows.jsonl", type(row)) == [row, row]
    assert len((tmp_path / "rows.jsonl").read_bytes().split(b"\n")) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1"}', "rows.jsonl:2: prompt: field required"),
        (
            '{"id": 1, "prompt": "p", "response": "r", "scores": [0.5], "source": "s"}',
            "rows.jsonl:2: id: input should be a valid string",
        ),
        (
            '{"id": "1", "prompt": "p", "response": "r", "scores": [], "source": "s", "more": 1}',
            "rows.jsonl:2: unknown field 'more'",
        ),
        ("[]", "rows.jsonl:2: not a JSON object"),
        ("{", "rows.jsonl: not JSON Lines"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"id": "1", "prompt": "p", "response": "r", "scores": [0.5], "source": "s"}'
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError) as error:
        records.read(tmp_path / "rows.jsonl", Rating)
    assert message in str(error.value)


def test_an_id_knows_where_a_text_ends() -> None:
    assert records.row_id("ab", "c") != records.row_id("a", "bc")
    assert len(records.row_id("a")) == 12
    assert records.row_id("a") == records.row_id("a")
