"""A journal gives back every complete line, whatever a kill left behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunemill import journal


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    assert journal.recover(path) == []
    for number in range(3):
        journal.append(path, {"number": number, "text": "zwei\nZeilen \u2028 ✓"})
    assert journal.recover(path) == [{"number": number, "text": "zwei\nZeilen \u2028 ✓"} for number in range(3)]


@pytest.mark.parametrize(
    "damage", [b'{"number": 2, "te', b'{"number": 2}', b"\x00\x00\n", b"\xff\n{}\n", b"[1]\n", b"\n{}\n"]
)
def test_what_follows_the_last_complete_line_is_cut_off(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, {"number": 0})
    journal.append(path, {"number": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    assert journal.recover(path) == [{"number": 0}, {"number": 1}]
    assert path.read_bytes() == whole
    journal.append(path, {"number": 2})
    assert len(journal.recover(path)) == 3


def test_every_cut_gives_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for number in range(3):
        journal.append(path, {"number": number})
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert journal.recover(path) == [{"number": each} for each in range(content[:size].count(b"\n"))]


def test_a_shelf_names_journals_by_what_they_depend_on_and_keeps_those_that_were_taken(tmp_path: Path) -> None:
    first = journal.Shelf(tmp_path, "weights", {"rows": 4})
    for name, told in (("test", ["a"]), ("test", ["b"]), ("red_team", ["a"])):
        journal.append(first.of(name, told), {"name": name})
    assert len({*tmp_path.iterdir()}) == 3
    first.tidy()
    assert len({*tmp_path.iterdir()}) == 3

    again = journal.Shelf(tmp_path, "weights", {"rows": 4})
    assert journal.recover(again.of("test", ["a"])) == [{"name": "test"}]
    assert journal.recover(journal.Shelf(tmp_path, "other weights", {"rows": 4}).of("test", ["a"])) == []
    again.tidy()
    assert [*tmp_path.iterdir()] == [again.of("test", ["a"])]
