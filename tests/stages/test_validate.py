"""Validate: every planted defect is found, counted and quarantined with line and reason; clean rows all stay."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages import collect, validate
from tests.stages.evaluated import ids_hash
from tests.stages.test_collect import config, table
from tunemill import records
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.records import Example, HarmlessPrompt, Quarantined, Rating, RedTeamPrompt, TaskItem

ROOT = Path(__file__).parents[2]
WORDS = [
    f"{a}{b}"
    for a in ("ba", "ke", "li", "mo", "nu", "pra", "sto")
    for b in ("den", "gal", "mir", "tos", "ven", "zur", "nik")
]


def clean_rows(number: int, seed: int = 0, groups: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    rows = []
    for index in range(number):
        row = {
            "prompt": "Summarise: " + " ".join(generator.choices(WORDS, k=40)),
            "completion": " ".join(generator.choices(WORDS, k=6)),
        }
        rows.append({**row, "group": f"g{index % groups}"} if groups else row)
    return rows


def refused(share: float, **other: float) -> dict[str, float]:
    """The same share of every kind of row may be refused, and of some another one."""
    return dict.fromkeys(("examples", "ratings", "refusals", "red_team", "harmless", "tasks"), share) | other


def settings(**more: Any) -> validate.Config:
    held_out = {"groups": 3, "per_group": 20, "rows": 0.2}
    told = {
        "seed": 0,
        "context_tokens": 512,
        "bytes_per_token": 3.0,
        "near_duplicate": 0.7,
        "largest": 100,
        "refused": refused(0.5),
        "task_test": 4,
        "judge": 0.4,
        "red_team": {},
        "harmless": {},
        "test": held_out,
        "validation": {"groups": 2, "per_group": 20, "rows": 0.1},
    }
    return validate.Config.model_validate({**told, **more})


def run(folder: Path, cfg: validate.Config, examples: dict[str, Any], **more: Any) -> dict[str, float | None]:
    collect.run(config(folder / "in", examples, **more), out=folder / "collect", work=folder / "work", log=Log())
    (folder / "work").mkdir(exist_ok=True)
    return dict(validate.run(cfg, data=folder / "collect", out=folder / "out", work=folder / "work", log=Log()))


def test_planted_defects(tmp_path: Path) -> None:
    rows: list[Any] = clean_rows(60, groups=10)
    clean = [json.dumps(row) for row in rows]
    near = dict(rows[5], prompt=rows[5]["prompt"].replace(rows[5]["prompt"].split()[20], "changed", 1))
    address, key = "jane.doe@" + "gmail.com", "gh" + "p_a8Kd03jfQ7zLpX5sVb2NnM4cR9tYwE6uHgTq"
    planted: list[tuple[bytes, str, str]] = [
        (b'{"prompt": "no completion"}', "missing_field", "completion"),
        (b'{"prompt": "", "completion": "x"}', "empty", "prompt"),
        (b'{"prompt": "x", "completion": "  "}', "empty", "completion"),
        (b'{"prompt": 7, "completion": "x"}', "wrong_type", "prompt is int, not text"),
        (
            json.dumps({"prompt": "word " * 250, "completion": "word " * 100}).encode(),
            "too_long",
            "about 584 tokens, and the context window has 512",
        ),
        (
            json.dumps({"prompt": "word " * 400, "completion": "x"}).encode(),
            "completion_masked",
            "the prompt alone has about 667 tokens of 512",
        ),
        (b'{"prompt": "\xc3\x28", "completion": "x"}', "not_utf8", "byte 13 of the line is 0xc3"),
        (b'{"prompt": "x", "completion"', "not_json", "Expecting ':' delimiter at column 29"),
        (clean[3].encode(), "duplicate", f"the same as {tmp_path}/in/mine.jsonl:4"),
        (json.dumps(near).encode(), "near_duplicate", f"the same as {tmp_path}/in/mine.jsonl:6"),
        (
            json.dumps({"prompt": f"write to {address}", "completion": "x"}).encode(),
            "personal_data",
            "an e-mail address at gmail.com",
        ),
        (json.dumps({"prompt": "x", "completion": f"use {key}"}).encode(), "secret", "GitHub token"),
        (
            b'{"messages": [{"role": "assistant", "content": "x"}]}',
            "wrong_role_order",
            "message 1 is from 'assistant', not from 'user'",
        ),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "completion_masked", "no assistant message at the end"),
    ]
    # The same row in training and in test: in a group on the other side of the split.
    side = dict(zip((f"g{n}" for n in range(10)), _sides(10), strict=True))
    here, there = (next(row for row in rows if side[row["group"]] == name) for name in ("test", "train"))
    leak = dict(here, group=there["group"])
    place = f"{tmp_path}/in/mine.jsonl:{rows.index(here) + 1}"
    planted.append((json.dumps(leak).encode(), "leak", f"train row the same as {place} in test"))
    chat = {
        "messages": [{"role": "user", "content": "a chat row"}, {"role": "assistant", "content": "is an example"}],
        "group": "g1",
    }
    content = "\n".join([*clean, json.dumps(chat), ""]).encode() + b"\n".join(line for line, _, _ in planted) + b"\n"

    metrics = run(tmp_path, settings(), table(tmp_path / "in", "mine.jsonl", content))

    found = {row.line: row for row in records.read(tmp_path / "out" / "quarantine.jsonl", Quarantined)}
    for number, (_, reason, detail) in enumerate(planted, start=62):
        row = found.pop(number)
        assert (row.reason, row.source) == (reason, f"{tmp_path}/in/mine.jsonl"), row
        assert row.detail.endswith(detail), row
    assert not found
    kept = {name: records.read(tmp_path / "out" / f"{name}.jsonl", Example) for name in validate.SPLITS}
    prompts = Counter(row.prompt for part in kept.values() for row in part)
    assert prompts == Counter([row["prompt"] for row in rows] + ["a chat row"])
    counts = Counter(reason for _, reason, _ in planted)
    assert {
        name.removeprefix("quarantined/examples/"): n
        for name, n in metrics.items()
        if name.startswith("quarantined/examples/")
    } == counts
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert told["quarantine"]["examples"] == counts
    assert told["collected"]["examples"] == 61 + len(planted)
    assert told["test_ids_sha256"] == ids_hash(kept["test"])
    groups = {name: {row.group for row in part} for name, part in kept.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    # The suites were rendered.
    assert (tmp_path / "out" / "data_docs" / "index.html").is_file()


def _sides(groups: int) -> list[str]:
    from tunemill.quality import HeldOut, split

    names = [f"g{n}" for n in range(groups)]
    return list(split(names, names, HeldOut(2, 0.1), HeldOut(3, 0.2), 100, 0)[0])


def test_ones_own_pairs_without_groups(tmp_path: Path) -> None:
    metrics = run(tmp_path, settings(), table(tmp_path / "in", "mine.jsonl", clean_rows(50)))
    assert (metrics["rows/train"], metrics["rows/validation"], metrics["rows/test"]) == (35, 5, 10)
    rows = records.read(tmp_path / "out" / "test.jsonl", Example)
    assert all(row.group == records.row_id(row.prompt) and row.text is None for row in rows)
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert told["by"] == "row"
    assert told["groups"] == {"train": [], "validation": [], "test": []}
    assert len(records.read(tmp_path / "out" / "ratings.jsonl", Rating)) == 4
    assert len(records.read(tmp_path / "out" / "red_team.jsonl", RedTeamPrompt)) == 4


def test_answers_to_one_prompt_stay_on_one_side(tmp_path: Path) -> None:
    rows = clean_rows(120)
    for index, row in enumerate(rows):
        # Only white space differs between the prompts of a group of four.
        row["prompt"] = rows[index - index % 4]["prompt"] + " " * (index % 4)
    run(tmp_path, settings(near_duplicate=1), table(tmp_path / "in", "mine.jsonl", rows))
    kept = {name: records.read(tmp_path / "out" / f"{name}.jsonl", Example) for name in validate.SPLITS}
    assert {name: len(part) for name, part in kept.items()} == {"train": 84, "validation": 12, "test": 24}
    prompts = {name: {row.prompt.strip() for row in part} for name, part in kept.items()}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == 30
    for part in kept.values():
        assert set(Counter(row.group for row in part).values()) == {4}


def test_the_quarantine_keeps_no_secret_and_no_address(tmp_path: Path) -> None:
    address, key = "jane.doe@" + "gmail.com", "gh" + "p_a8Kd03jfQ7zLpX5sVb2NnM4cR9tYwE6uHgTq"
    planted: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "x", "completion": f"use {key}"}, "secret"),
        ({"prompt": f"write to {address}", "completion": "x"}, "personal_data"),
        ({"prompt": "x", "completion": "y", "text": f"use {key}"}, "secret"),
        ({"prompt": "x", "completion": "y", "text": f"write to {address}"}, "personal_data"),
        # Refused for something else before it is looked at.
        ({"prompt": f"{key} " + "word " * 400, "completion": "x"}, "completion_masked"),
        ({"messages": [{"role": "user", "content": address}]}, "completion_masked"),
        ({"prompt": 7, "completion": "y"}, "wrong_type"),
    ]
    rows = [*clean_rows(30), *(row for row, _ in planted)]
    ratings = [{"prompt": f"a{n}", "response": "b", "scores": [score]} for n, score in enumerate((0, 1, address))]
    ratings.append({"prompt": "c", "response": address, "scores": [1]})
    source = table(tmp_path / "in", "mine.jsonl", rows)
    run(tmp_path, settings(), source, ratings=table(tmp_path / "in", "s.jsonl", ratings))
    found = records.read(tmp_path / "out" / "quarantine.jsonl", Quarantined)
    assert [(row.line, row.reason) for row in found] == [
        *((number, reason) for number, (_, reason) in enumerate(planted, start=31)),
        (3, "bad_score"),
        (4, "personal_data"),
    ]
    assert [row.row for row in found if row.row] == [planted[-1][0]]
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".jsonl", ".json", ".html"):
            assert address not in path.read_text(), path
            assert key not in path.read_text(), path


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        source = table(tmp_path / "in", "mine.jsonl", clean_rows(40, groups=8))
        cfg = config(tmp_path / "in", source)
        collect.run(cfg, out=tmp_path / name / "collect", work=tmp_path / name, log=Log())
        validate.run(
            settings(), data=tmp_path / name / "collect", out=tmp_path / name / "out", work=tmp_path / name, log=Log()
        )
    assert tree_hash(tmp_path / "one" / "out") == tree_hash(tmp_path / "two" / "out")
    pages = "".join(path.read_text() for path in (tmp_path / "one" / "out" / "data_docs").rglob("*.html"))
    assert str(tmp_path) not in pages.replace(str(tmp_path / "in"), "")
    assert "web-assets" not in pages


def test_too_many_refused_rows_fail_with_a_table(tmp_path: Path) -> None:
    rows = [*clean_rows(17), {"prompt": "x"}, {"prompt": "y"}, {"prompt": "", "completion": "z"}]
    with pytest.raises(UserError) as error:
        run(
            tmp_path,
            settings(refused=refused(1.0, examples=0.1)),
            table(tmp_path / "in", "mine.jsonl", rows),
        )
    place = tmp_path / "in" / "mine.jsonl"
    assert str(error.value) == (
        "validate: 3 of 20 examples were refused (15.0%):\n"
        f"       2  missing_field     a field is not there or null; first: {place}:18\n"
        f"       1  empty             a text is empty or blank; first: {place}:20\n"
        "  expected: at most 10.0% (validate.refused.examples)\n"
        f"  fix: mend the rows listed in {tmp_path / 'work' / 'quarantine.jsonl'}, or raise the threshold"
    )
    assert len(records.read(tmp_path / "work" / "quarantine.jsonl", Quarantined)) == 3
    assert not (tmp_path / "out").exists()


def test_ratings_and_red_team_prompts_are_checked_too(tmp_path: Path) -> None:
    ratings = [
        {"prompt": "a", "response": "b", "scores": [0.5]},
        {"prompt": "a", "response": "b", "scores": [1]},
        {"prompt": "a", "response": "c", "scores": [2]},
        {"prompt": "a", "response": "d"},
    ]
    prompts = [{"prompt": "harm"}, {"prompt": "harm "}, {"prompt": " "}, {"prompt": "more"}]
    red_team = {"mine": {"kind": "instruction", "rows": table(tmp_path / "in", "r.jsonl", prompts)}}
    metrics = run(
        tmp_path,
        settings(refused=refused(0.0, ratings=0.75, red_team=0.5)),
        table(tmp_path / "in", "mine.jsonl", clean_rows(30)),
        ratings=table(tmp_path / "in", "s.jsonl", ratings),
        red_team=red_team,
    )
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert told["quarantine"]["ratings"] == {"bad_score": 1, "duplicate": 1, "missing_field": 1}
    assert told["quarantine"]["red_team"] == {"duplicate": 1, "empty": 1}
    assert metrics["rows/ratings"] == 1
    assert metrics["rows/red_team"] == 2


def test_ratings_are_parted_by_prompt_and_what_is_alike_stays_together(tmp_path: Path) -> None:
    generator = random.Random(5)
    asked = [" ".join(generator.choices(WORDS, k=12)) for _ in range(40)]
    # A chain of likeness: each differs from the one before by a word, and the ends have little in common.
    chain = [asked[0].split()]
    for place in (0, 11, 1, 10):
        chain.append([*chain[-1][:place], "other", *chain[-1][place + 1 :]])
    asked += [" ".join(words) for words in chain[1:]]
    ratings = [
        {"prompt": prompt + " " * number, "response": f"answer {number}", "scores": [number / 3]}
        for prompt in asked
        for number in range(3)
    ]
    generator.shuffle(ratings)
    run(
        tmp_path,
        settings(near_duplicate=0.6),
        table(tmp_path / "in", "mine.jsonl", clean_rows(30)),
        ratings=table(tmp_path / "in", "rated.jsonl", ratings),
    )
    parts = {
        name: records.read(tmp_path / "out" / f"{name}.jsonl", Rating)
        for name in ("ratings", "ratings_reward", "ratings_judge")
    }
    assert len(parts["ratings"]) == 132
    ids = {name: {row.id for row in part} for name, part in parts.items()}
    assert ids["ratings_reward"] | ids["ratings_judge"] == ids["ratings"]
    assert not ids["ratings_reward"] & ids["ratings_judge"]
    prompts = {name: {row.prompt.strip() for row in part} for name, part in parts.items()}
    assert not prompts["ratings_reward"] & prompts["ratings_judge"]
    assert len(prompts["ratings_judge"]) == round(0.4 * 44)
    alike = {" ".join(words) for words in chain}
    assert alike <= prompts["ratings_judge"] or alike <= prompts["ratings_reward"]
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    for name in ("ratings_reward", "ratings_judge"):
        assert told[f"{name}_ids_sha256"] == ids_hash(parts[name])
        assert told["rows"][name] == len(parts[name]) and told["rated_prompts"][name] == len(prompts[name])
    # The draw depends on the prompts, not on where they stand in the file.
    again = validate.part_ratings(parts["ratings"][::-1], 0.4, 0.6, seed=0)["ratings_judge"]
    assert {row.id for row in again} == ids["ratings_judge"]
    assert {row.id for row in validate.part_ratings(parts["ratings"], 0.4, 0.6, 1)["ratings_judge"]} != {
        row.id for row in again
    }
    pages = "".join(path.name for path in (tmp_path / "out" / "data_docs").rglob("ratings*"))
    assert "ratings_judge" in pages and "ratings_reward" in pages


def test_refusals_are_checked(tmp_path: Path) -> None:
    address = "jane.doe@" + "gmail.com"
    rows = [
        {"prompt": "a", "response": "No.", "refused": [1, 0, 1]},
        {"prompt": "a", "response": "Yes.", "refused": False},
        {"prompt": "b", "response": "No.", "refused": "1"},
        {"prompt": "b", "response": "No. ", "refused": 0},
        {"prompt": "c", "response": "No.", "refused": 2},
        {"prompt": "c", "response": "No way."},
        {"prompt": "c", "response": " ", "refused": 1},
        {"prompt": "c", "response": f"Ask {address}.", "refused": 1},
    ]
    metrics = run(
        tmp_path,
        settings(refused=refused(0.0, refusals=0.7)),
        table(tmp_path / "in", "mine.jsonl", clean_rows(30)),
        refusals=table(tmp_path / "in", "refusals.jsonl", rows),
    )
    found = records.read(tmp_path / "out" / "refusals.jsonl", records.Refusal)
    assert [(each.prompt, each.response) for each in found] == [("a", "No."), ("a", "Yes."), ("b", "No.")]
    assert [each.refused for each in found] == pytest.approx([2 / 3, 0, 1])
    bad = records.read(tmp_path / "out" / "quarantine.jsonl", Quarantined)
    assert [(row.line, row.reason, row.detail) for row in bad] == [
        (4, "duplicate", f"the same as {tmp_path}/in/refusals.jsonl:3"),
        (5, "bad_score", "2 is not from 0 to 1"),
        (6, "missing_field", "refused"),
        (7, "empty", "response"),
        (8, "personal_data", "an e-mail address at gmail.com"),
    ]
    assert (metrics["rows/refusals"], metrics["quarantined/refusals"]) == (3, 5)
    pages = "".join(path.name for path in (tmp_path / "out" / "data_docs").rglob("refusals*"))
    assert "refusals" in pages


def attack(prompt: str, source: str, kind: Any = "instruction") -> RedTeamPrompt:
    return RedTeamPrompt(records.row_id(prompt), prompt, kind, source, None)


def wording(count: int, seed: str) -> list[str]:
    """Prompts of twelve words, none of them like another."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=12)) for _ in range(count)]


def like(prompt: str) -> str:
    """The same in other words, but for one of them."""
    return f"{prompt} now"


SHARES = {
    "adv": validate.RedTeamShare(monitor=10),
    "ask": validate.RedTeamShare(test=20),
    "text": validate.RedTeamShare(test=15),
}


def test_red_team_prompts_are_parted_and_what_is_alike_is_in_one_part_only(tmp_path: Path) -> None:
    adv, ask, bench, text = (wording(40, name) for name in ("adv", "ask", "bench", "text"))
    rated = wording(6, "rated")
    adv += [like(ask[0]), like(ask[1]), like(bench[0]), like(bench[1]), like(rated[0])]
    ask += [like(each) for each in ask[2:6]] + [like(rated[1])]
    bench += [like(rated[2])]
    prompts = [attack(each, name) for name, found in (("adv", adv), ("ask", ask), ("bench", bench)) for each in found]
    prompts += [attack(each, "text", "continuation") for each in [*text, like(rated[3])]]

    parts, left_out = validate.part_red_team(prompts, rated, SHARES, 0.6, seed=0)

    counts = {name: Counter(each.source for each in found) for name, found in parts.items()}
    assert counts["red_team_test"] == {"ask": 20, "bench": 40, "text": 15}  # not named: all of it is for the test
    assert counts["red_team_monitor"] == {"adv": 10}
    # Every prompt is in one part or counted.
    assert sum(map(len, parts.values())) + sum(left_out.values()) == len(prompts)
    side = {each.prompt: name for name, found in parts.items() for each in found}
    for each in (bench[0], bench[1], *(each for each in ask[:2] if side[each] == "red_team_test")):
        assert like(each) not in side
    for each in ask[2:6]:
        assert side[each] == side[like(each)]
    # What is like a rated prompt may be trained with, and never tested with or chosen by.
    assert side[like(rated[0])] == side[like(rated[1])] == "red_team_train"
    assert like(rated[2]) not in side and like(rated[3]) not in side
    assert left_out["like_rated"] == 1 and left_out["continuation"] == 26
    assert left_out["like_test"] + left_out["like_monitor"] >= 2
    assert all(each.kind == "instruction" for name in validate.RED_TEAM[:2] for each in parts[name])

    # No pair of parts shares near duplicates, by another count of them: Jaccard of word triples.
    def triples(prompt: str) -> set[tuple[str, ...]]:
        words = prompt.split()
        return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}

    def nearest(one: str, others: list[str]) -> float:
        return max(len(triples(one) & triples(each)) / len(triples(one) | triples(each)) for each in others)

    texts = {name: [each.prompt for each in found] for name, found in parts.items()}
    for one, other in (("red_team_test", "red_team_train"), ("red_team_test", "red_team_monitor")):
        assert max(nearest(each, texts[other]) for each in texts[one]) < 0.6
    assert max(nearest(each, texts["red_team_train"]) for each in texts["red_team_monitor"]) < 0.6
    for name in ("red_team_test", "red_team_monitor"):
        assert max(nearest(each, rated) for each in texts[name]) < 0.6

    # The draw depends on the prompts and the seed, not on where they stand.
    again, _ = validate.part_red_team(prompts[::-1], rated[::-1], SHARES, 0.6, seed=0)
    other, _ = validate.part_red_team(prompts, rated, SHARES, 0.6, seed=1)
    for name in validate.RED_TEAM:
        assert {each.id for each in again[name]} == {each.id for each in parts[name]}
    assert {each.id for each in other["red_team_monitor"]} != {each.id for each in parts["red_team_monitor"]}


def test_the_parts_of_the_red_team_are_written_and_vouched_for(tmp_path: Path) -> None:
    adv, text = wording(30, "adv"), wording(12, "text")
    red_team = {
        "adv": {"kind": "instruction", "rows": table(tmp_path / "in", "a.jsonl", [{"prompt": each} for each in adv])},
        "text": {
            "kind": "continuation",
            "rows": table(tmp_path / "in", "t.jsonl", [{"prompt": each} for each in text]),
        },
    }
    ratings = [{"prompt": adv[0], "response": f"{n}", "scores": [0.5]} for n in range(4)]
    metrics = run(
        tmp_path,
        settings(red_team={"adv": {"test": 100, "monitor": 5}, "text": {"test": 5}}),
        table(tmp_path / "in", "mine.jsonl", clean_rows(30)),
        red_team=red_team,
        ratings=table(tmp_path / "in", "rated.jsonl", ratings),
    )
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    found = {name: records.read(tmp_path / "out" / f"{name}.jsonl", RedTeamPrompt) for name in validate.RED_TEAM}
    # The set has fewer than are asked for: the test takes what there is, but for the rated one.
    assert {name: len(part) for name, part in found.items()} == {
        "red_team_train": 1,
        "red_team_monitor": 0,
        "red_team_test": 34,
    }
    assert found["red_team_train"][0].prompt == adv[0]
    for name, part in found.items():
        assert told["rows"][name] == metrics[f"rows/{name}"] == len(part)
        assert told[f"{name}_ids_sha256"] == ids_hash(part)
    assert told["red_team"]["red_team_test"] == {"adv": 29, "text": 5}
    assert told["left_out"] == {"like_rated": 0, "like_test": 0, "like_monitor": 0, "continuation": 7}
    assert metrics["left_out/continuation"] == 7
    assert len(records.read(tmp_path / "out" / "red_team.jsonl", RedTeamPrompt)) == 42
    pages = "".join(path.name for path in (tmp_path / "out" / "data_docs").rglob("red_team*"))
    assert "red_team_train" in pages and "red_team_test" in pages and "red_team_monitor" not in pages


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            {"addv": {"test": 3}},
            "params.yaml: validate.red_team.addv: no red-team set 'addv'\n  expected: one of adv, text",
        ),
        ({"text": {"monitor": 3}}, "'text' has texts to go on from, which no checkpoint is chosen by"),
    ],
)
def test_mistakes_in_the_shares_of_the_red_team(shares: dict[str, Any], message: str) -> None:
    prompts = [attack("do harm", "adv"), attack("once upon", "text", "continuation")]
    asked = {name: validate.RedTeamShare.model_validate(share) for name, share in shares.items()}
    with pytest.raises(UserError) as error:
        validate.part_red_team(prompts, [], asked, None, 0)
    assert message in str(error.value) and error.value.exit_code == 2


def plain(prompt: str, source: str) -> HarmlessPrompt:
    return HarmlessPrompt(records.row_id(prompt), prompt, (), source)


def test_harmless_questions_are_parted_and_what_is_alike_is_on_one_side() -> None:
    first, second, third = (wording(30, name) for name in ("first", "second", "third"))
    first += [like(each) for each in first[:10]]
    second += [like(first[20])]
    found = {"first": first, "second": second, "third": third}
    prompts = [plain(each, name) for name, own in found.items() for each in own]
    shares = {"first": 12, "second": 5, "third": None}

    sides = validate.part_harmless(prompts, shares, 0.6, seed=0)

    assert sum(map(len, sides.values())) == len(prompts)
    side = {each.prompt: name for name, own in sides.items() for each in own}
    assert all(side[each] == side[like(each)] for each in [*first[:10], first[20]])
    counts = Counter(each.source for each in sides["harmless_test"])
    # Beyond its share a set has only what is like another set's.
    assert (counts["first"], counts["third"]) == (12, 30) or side[first[20]] == "harmless_test"
    assert counts["first"] in (12, 13) and counts["second"] in (5, 6)
    # Of a set that is not named, and of null, all is for the test; 0 keeps none for it.
    alone = validate.part_harmless(prompts, {"first": 0, "second": 0}, 0.6, seed=0)
    assert {each.source for each in alone["harmless_test"]} == {"third"} and len(alone["harmless_test"]) == 30
    again = validate.part_harmless(prompts[::-1], shares, 0.6, seed=0)
    other = validate.part_harmless(prompts, shares, 0.6, seed=1)
    assert {each.id for each in again["harmless_test"]} == {each.id for each in sides["harmless_test"]}
    assert {each.id for each in other["harmless_test"]} != {each.id for each in sides["harmless_test"]}


def test_harmless_questions_are_checked_written_and_vouched_for(tmp_path: Path) -> None:
    address = "jane.doe@" + "gmail.com"
    good: list[dict[str, Any]] = [{"prompt": each, "answers": ["so", "and so"]} for each in wording(12, "plain")]
    good += [{"prompt": "no answer is known"}, {"prompt": "one alone", "answers": "this"}]
    planted: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": "  "}, "empty", "prompt"),
        ({"answers": ["a"]}, "missing_field", "prompt"),
        ({"prompt": "p", "answers": ["a", ""]}, "empty", "answers"),
        ({"prompt": "p", "answers": [1]}, "wrong_type", "an answer is int, not text"),
        ({"prompt": "p", "answers": [f"write to {address}"]}, "personal_data", "an e-mail address at gmail.com"),
        ({"prompt": f"{good[0]['prompt']} "}, "duplicate", "asked.jsonl:1"),
    ]
    rows = [*good, *(row for row, _, _ in planted)]
    metrics = run(
        tmp_path,
        settings(harmless={"mine": 5}, refused=refused(0.0, harmless=0.3)),
        table(tmp_path / "in", "mine.jsonl", clean_rows(30)),
        harmless={"mine": table(tmp_path / "in", "asked.jsonl", rows)},
    )
    found = records.read(tmp_path / "out" / "quarantine.jsonl", Quarantined)
    assert len(found) == len(planted)
    for number, (row, (_, reason, detail)) in enumerate(zip(found, planted, strict=True), start=15):
        assert (row.line, row.reason) == (number, reason) and row.detail.endswith(detail), row
    train, test = (
        records.read(tmp_path / "out" / f"harmless_{name}.jsonl", HarmlessPrompt) for name in ("train", "test")
    )
    assert (len(train), len(test)) == (9, 5)
    by_prompt = {each.prompt: each for each in (*train, *test)}
    assert by_prompt["no answer is known"].answers == () and by_prompt["one alone"].answers == ("this",)
    assert by_prompt[good[0]["prompt"]] == HarmlessPrompt(
        records.row_id(good[0]["prompt"]), good[0]["prompt"], ("so", "and so"), "mine"
    )
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    for name, part in (("harmless_train", train), ("harmless_test", test)):
        assert told["rows"][name] == metrics[f"rows/{name}"] == len(part)
        assert told[f"{name}_ids_sha256"] == ids_hash(part)
        assert told["harmless"][name] == {"mine": len(part)}
    assert told["collected"]["harmless"] == 20 and metrics["quarantined/harmless"] == 6
    pages = "".join(path.read_text() for path in (tmp_path / "out" / "data_docs").rglob("*.html"))
    assert "harmless_test" in pages and "empty_answers" in pages


def test_harmless_questions_that_are_refused_too_often_or_shares_of_none_fail(tmp_path: Path) -> None:
    rows = [{"prompt": "x"}, {"question": "y"}]  # a column that was not named
    mine = {"mine": table(tmp_path / "in", "asked.jsonl", rows)}
    source = table(tmp_path / "in", "mine.jsonl", clean_rows(30))
    with pytest.raises(UserError, match=r"1 of 2 harmless were refused \(50.0%\)"):
        run(tmp_path / "many", settings(refused=refused(0.0, harmless=0.4)), source, harmless=mine)
    with pytest.raises(UserError, match="no harmless set 'mien'") as error:
        run(tmp_path / "none", settings(harmless={"mien": 3}), source, harmless=mine)
    assert "validate.harmless.mien" in str(error.value) and error.value.exit_code == 2
    metrics = run(tmp_path / "without", settings(), source, harmless={})
    assert (metrics["rows/harmless_train"], metrics["rows/harmless_test"]) == (0, 0)


def test_other_tasks_are_checked_and_split(tmp_path: Path) -> None:
    good = [{"prompt": f"is {n} even?", "completion": ("yes", "no")[n % 2]} for n in range(20)]
    address = "jane.doe@" + "gmail.com"
    planted: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": "is 3.5 even?", "completion": "neither"}, "bad_choices", "the completion is none of the choices"),
        ({"prompt": "no answer"}, "missing_field", "completion"),
        ({"prompt": "is it?", "completion": ["yes"]}, "wrong_type", "completion is list, not text"),
        ({"prompt": f"who is {address}?", "completion": "yes"}, "personal_data", "an e-mail address at gmail.com"),
        (
            {"prompt": "word " * 400, "completion": "yes"},
            "completion_masked",
            "the prompt alone has about 667 tokens of 512",
        ),
        ({"prompt": "is it?", "completion": "a", "choices": ["a", "a"]}, "bad_choices", "fewer than two choices"),
        ({"prompt": "is it?", "completion": "a", "choices": "ab"}, "bad_choices", "choices is str, not a list"),
        ({"prompt": "is it?", "completion": "a", "choices": ["a", " "]}, "bad_choices", "a choice is no text"),
        (good[4], "duplicate", "even.jsonl:5"),
    ]
    chats = [
        {
            "input": [{"role": "system", "content": "Count."}, {"role": "user", "content": f"{n} + 1"}],
            "ideal": f"{n + 1}",
        }
        for n in range(7)
    ]
    chats.append({"input": [{"role": "user", "content": "is 2 even?"}], "ideal": "yes"})  # a question of the first task
    chats.append({"input": [{"role": "assistant", "content": "?"}], "ideal": "1"})
    rows = [*good, *(row for row, _, _ in planted)]
    tasks = {
        "parity": {"choices": ["yes", "no"], "rows": table(tmp_path / "in", "even.jsonl", rows)},
        "sums": {
            "rows": table(tmp_path / "in", "sums.jsonl", chats)
            | {"columns": {"messages": "input", "completion": "ideal"}}
        },
    }
    source = table(tmp_path / "in", "mine.jsonl", clean_rows(30))
    metrics = run(
        tmp_path,
        settings(),
        source,
        tasks=tasks,
    )

    found = records.read(tmp_path / "out" / "quarantine.jsonl", Quarantined)
    assert len(found) == len(planted) + 2
    for row, (_, reason, detail) in zip(found, planted, strict=False):
        assert row.reason == reason and detail in row.detail, row
    assert [(row.line, row.reason) for row in found[len(planted) :]] == [(8, "duplicate"), (9, "wrong_role_order")]
    assert found[-2].detail == f"the same as {tmp_path}/in/even.jsonl:3"

    train, test = (records.read(tmp_path / "out" / f"tasks_{name}.jsonl", TaskItem) for name in ("train", "test"))
    # Four of each task are held out, and of the smaller one half of its seven rows, rounded down.
    assert Counter(item.task for item in test) == {"parity": 4, "sums": 3}
    assert Counter(item.task for item in train) == {"parity": 16, "sums": 4}
    assert not {item.prompt for item in train} & {item.prompt for item in test}
    by_prompt = {item.prompt: item for item in (*train, *test)}
    assert by_prompt["is 3 even?"].choices == ("yes", "no") and by_prompt["is 3 even?"].completion == "no"
    sums = by_prompt["Count.\n\n3 + 1"]
    assert (sums.completion, sums.choices, sums.source) == ("4", (), f"{tmp_path}/in/sums.jsonl:4")
    told = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert told["tasks_test_ids_sha256"] == ids_hash(test)
    assert told["tasks"] == {"tasks_train": {"parity": 16, "sums": 4}, "tasks_test": {"parity": 4, "sums": 3}}
    assert (told["rows"]["tasks_train"], told["rows"]["tasks_test"]) == (20, 7)
    assert (metrics["rows/tasks_train"], metrics["rows/tasks_test"]) == (20, 7)
    assert metrics["quarantined/tasks/bad_choices"] == 4
    pages = "".join(path.read_text() for path in (tmp_path / "out" / "data_docs").rglob("*.html"))
    assert "tasks_test" in pages and "answers_among_choices" in pages


def test_too_many_refused_questions_fail(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": "y"}]
    tasks = {"mine": {"rows": table(tmp_path / "in", "t.jsonl", rows)}}
    cfg = settings(refused=refused(0.0, tasks=0.4))
    with pytest.raises(UserError, match=r"1 of 2 tasks were refused \(50.0%\)"):
        run(tmp_path, cfg, table(tmp_path / "in", "mine.jsonl", clean_rows(30)), tasks=tasks)


def test_no_other_tasks(tmp_path: Path) -> None:
    metrics = run(tmp_path, settings(), table(tmp_path / "in", "mine.jsonl", clean_rows(30)), tasks={})
    assert (metrics["rows/tasks_train"], metrics["rows/tasks_test"], metrics["quarantined_share/tasks"]) == (0, 0, 0)
    assert (tmp_path / "out" / "tasks_test.jsonl").read_text() == ""


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the train split is empty"):
        run(tmp_path, settings(), table(tmp_path / "in", "mine.jsonl", clean_rows(2)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_good_rows_of_the_default_corpus_are_kept(tmp_path: Path) -> None:
    """200 rows were read and judged good by hand; at most two of them may be refused, and the split is as promised."""
    from tunemill import corpus, sources

    file = ParamsFile(ROOT / "params.yaml")
    docs = file.section("collect", collect.Config).examples
    assert isinstance(docs, corpus.DocsSource)
    rows = [{**raw.fields, "source": raw.source, "line": raw.line} for raw in sources.read(docs, tmp_path)]
    good = set(json.loads((ROOT / "tests" / "data" / "good_rows.json").read_text()))

    def name(row: dict[str, Any]) -> str:
        package, _, path = row["source"].partition(":")
        return f"{package.partition('==')[0]}:{path}:{row['name']}"

    assert len(good) == 200
    assert good <= {name(row) for row in rows}
    data = tmp_path / "collect"
    collect.run(config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", [])), out=data, work=tmp_path, log=Log())
    records.write_objects(data / "examples.jsonl", rows)
    # The red-team prompts and the harmless questions are not the default's, nor are their shares.
    asked = file.section("validate", validate.Config).model_copy(update={"red_team": {}, "harmless": {}})
    metrics = validate.run(asked, data=data, out=tmp_path / "out", work=tmp_path, log=Log())
    refused = records.read(tmp_path / "out" / "quarantine.jsonl", Quarantined)
    names = {(row["source"], row["line"]): name(row) for row in rows}
    assert sum(names.get((row.source, row.line)) in good for row in refused) <= 2

    kept = records.read(tmp_path / "out" / "test.jsonl", Example)
    packages = {row.source.partition("==")[0] for row in kept}
    assert len(packages) >= 30
    assert len(kept) >= 300
    assert max(Counter(row.group for row in kept).values()) <= 20
    assert (metrics["groups/test"] or 0) >= 30
