"""rl_cai: a judge that knows labels rightly in both orders; one that does not is refused with the figure; nothing goes uncounted."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages import rl_cai
from tests.chat_server import Asked, Sent, Server, completion, serving
from tests.stages import aligned, tuned
from tests.stages import constitutional as cai
from tunemill import endpoints, models, records
from tunemill.checkpoints import tree_hash
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.log import Log
from tunemill.records import Completions, Preference, RedTeamPrompt

FILES = ["completions.jsonl", "feedback.json", "labels.jsonl", "preferences.jsonl", "quality.jsonl"]
FAMILIES = ("decoder-only", "encoder-decoder")
LONG = "tell me in all detail how to take the big old red car of the man next door without a key"
"""A prompt, and more than one like it."""


def earlier(first: str, second: str) -> bool:
    """What the judge that knows goes by, and the people here: whichever answer comes first in the alphabet."""
    return first < second


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module", params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    cai.prepare(place, request.param)
    cai.people(place, [(f"what of case {at}", f"ask {at}", f"stop {at}") for at in range(12)], weight=0.5)
    return place


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decoder")
    cai.prepare(place)
    cai.people(place, [(f"what of case {at}", f"ask {at}", f"stop {at}") for at in range(12)], weight=0.5)
    return place


def run(
    place: Path, out: Path, *, inputs: Mapping[str, Path | None] | None = None, **change: Any
) -> dict[str, float | None]:
    return cai.run("rl_cai", place, out, inputs={"people": place / "people.jsonl", **(inputs or {})}, **change)


def behind(server: Server, **change: Any) -> dict[str, Any]:
    return {"model": "endpoint", "endpoint": {"base_url": server.base_url, "concurrency": 4, **change}}


def reward(place: Path, folder: Path, margin: Callable[[int], float] = lambda at: 1.0 + at) -> Path:
    """One that likes long answers; what it made of people's pairs before it had learnt them."""
    compared = records.read(place / "people.jsonl", Preference)
    aligned.reward(folder, kind="length")
    with (folder / "margins.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "fold", "source", "margin"])
        writer.writerows([each.id, 1, "ratings", margin(at)] for at, each in enumerate(compared))
    return folder


# ── the reward model judges ───────────────────────────────────────────────────────────────────────────────────────


def test_outputs_are_exactly_these_and_the_reward_is_what_labels(place: Path, tmp_path: Path) -> None:
    judges = {"reward": reward(place, tmp_path / "reward"), "start": place / "model"}
    found = run(place, tmp_path / "one", inputs=judges)
    assert tuned.files(tmp_path / "one") == FILES
    assert run(place, tmp_path / "two", inputs=judges) == found
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")

    # Two different answers to each prompt, none of them to a text to go on from.
    sampled = records.read(tmp_path / "one/completions.jsonl", Completions)
    prompts = {
        each.prompt for each in records.read(place / "prompts.jsonl", RedTeamPrompt) if each.kind == "instruction"
    }
    assert 0 < len(sampled) == 6 - int(found["prompts/too_alike"] or 0) and {each.prompt for each in sampled} <= prompts
    assert all(len({*each.completions, ""}) == 3 for each in sampled)

    # A label for each, by how many tokens longer a is than b.
    labels = cai.rows(tmp_path / "one/labels.jsonl")
    assert [(each["prompt"], each["a"], each["b"]) for each in labels] == [
        (each.prompt, *each.completions) for each in sampled
    ]
    tokenizer = models.load_tokenizer(place / "model")
    for each in labels:
        longer = len(models.render_completion(tokenizer, each["a"])) - len(
            models.render_completion(tokenizer, each["b"])
        )
        assert math.log(each["p"] / (1 - each["p"])) == pytest.approx(longer, abs=1e-6)
        assert (each["a_first"], each["b_first"], each["position_bias"]) == (None, None, None)

    # Pairs: those of the judge, less the even ones, and people's.
    pairs = records.read(tmp_path / "one/preferences.jsonl", Preference)
    own, human = ([each for each in pairs if (each.source == "ai") is ai] for ai in (True, False))
    assert len(own) == sum(each["p"] != 0.5 for each in labels) == found["pairs/ai"]
    assert found["left_out/tie"] == len(labels) - len(own)
    likely = {each["prompt"]: each for each in labels}
    for pair in own:
        label = likely[pair.prompt]
        assert (pair.chosen, pair.rejected) == (
            (label["a"], label["b"]) if label["p"] > 0.5 else (label["b"], label["a"])
        )
        assert pair.probability == pytest.approx(max(label["p"], 1 - label["p"])) and pair.weight == 1.0
    given = {each.id: each for each in records.read(place / "people.jsonl", Preference)}
    assert {each.id for each in human} == {*given} and found["pairs/people"] == 12 == len(human)
    assert all((each.chosen, each.weight) == (given[each.id].chosen, 0.5) for each in human)

    # How good it is: by its margins before it had learnt people's pairs.
    told = cai.told(tmp_path / "one/feedback.json")
    assert told["judge"]["kind"] == "reward" and told["judge"]["principles"] == {} and not told["judge"]["thoughts"]
    assert (found["judge/agreement"], found["judge/pairs"]) == (1.0, 12) and told["judge"]["quality"]["proven"] is True
    measured = {each["id"]: each["p"] for each in cai.rows(tmp_path / "one/quality.jsonl")}
    assert [math.log(p / (1 - p)) for p in measured.values()] == pytest.approx([1.0 + at for at in range(12)])
    assert found["label/position_bias"] is found["judge/position_bias"] is None
    assert str(tmp_path) not in (tmp_path / "one/feedback.json").read_text()


def test_a_reward_without_a_measure_is_refused(decoder: Path, tmp_path: Path) -> None:
    judges = {"reward": aligned.reward(tmp_path / "reward", kind="length"), "start": decoder / "model"}
    with pytest.raises(UserError, match=r"margins\.csv: nothing tells how good this reward is") as caught:
        run(decoder, tmp_path / "out", inputs=judges)
    assert "let a reward model of stage `reward` judge" in str(caught.value) and caught.value.exit_code == 2


def test_a_reward_that_is_no_better_than_chance_is_refused(decoder: Path, tmp_path: Path) -> None:
    folder = reward(decoder, tmp_path / "reward", lambda at: 1.0 if at % 2 else -1.0)
    with pytest.raises(UserError, match=r"the reward model agrees with people on 0\.50 \[0\.\d+, 0\.\d+\] of 12 pairs"):
        run(decoder, tmp_path / "out", inputs={"reward": folder, "start": decoder / "model"})
    assert not (tmp_path / "out").exists()


def test_a_reward_whose_length_is_taken_out_is_measured_without_it(decoder: Path, tmp_path: Path) -> None:
    """It labels without length: how good it is with it is no measure of its labels."""
    folder = reward(decoder, tmp_path / "reward")
    rows = list(csv.DictReader((folder / "margins.csv").open(newline="")))
    with (folder / "margins.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "controlled"])
        writer.writeheader()
        writer.writerows(row | {"controlled": -1.0 if at % 2 else 1.0} for at, row in enumerate(rows))
    found = rl_cai.out_of_fold(folder)
    assert [*found.values()] == [1.0 + at for at in range(12)]
    line = {"slope": -1.0, "log_tokens": 2.0}
    (folder / "reward.json").write_text(json.dumps({"kind": "model", "length": line}))
    assert [*rl_cai.out_of_fold(folder).values()] == [1.0, -1.0] * 6


def test_shuffled_scores_judge_nothing(decoder: Path, tmp_path: Path) -> None:
    aligned.reward(tmp_path / "model", kind="model")
    folder = aligned.reward(tmp_path / "reward", kind="shuffled", model=str(tmp_path / "model"))
    with pytest.raises(UserError, match="shuffled scores choose at random, which is no choice"):
        run(decoder, tmp_path / "out", inputs={"reward": folder, "start": decoder / "model"})


def test_pairs_that_the_reward_was_not_measured_on_are_counted(decoder: Path, tmp_path: Path) -> None:
    folder = reward(decoder, tmp_path / "reward")
    lines = (folder / "margins.csv").read_text().splitlines()
    (folder / "margins.csv").write_text("\n".join(lines[:-3]) + "\n")
    found = run(decoder, tmp_path / "out", inputs={"reward": folder, "start": decoder / "model"})
    assert (found["judge/pairs"], found["judge/unusable"]) == (9, 3)


def test_no_reward_to_judge(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: rl_cai\.judge\.model: no reward model to judge") as caught:
        run(decoder, tmp_path / "out")
    assert caught.value.exit_code == 2


# ── a model at hand judges ────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_at_chance_is_refused_with_the_figure(place: Path, tmp_path: Path) -> None:
    """People who like either answer as often as the other: whatever a judge prefers, it agrees with half of them."""
    pairs = [
        (f"what of case {at}", *order)
        for at in range(16)
        for order in (("read it", "stop now"), ("stop now", "read it"))
    ]
    cai.people(tmp_path, pairs)
    with pytest.raises(UserError) as caught:
        run(place, tmp_path / "out", judge={"model": "self"}, inputs={"people": tmp_path / "people.jsonl"})
    text = str(caught.value)
    assert text.startswith("params.yaml: rl_cai.judge: the policy itself agrees with people on 0.50 [0.4")
    assert "of 32 pairs, " in text and ", position bias" in text
    assert "no better than chance, so its labels would teach nothing" in text and "fix: name a better judge" in text
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()
    # All the same, if that is what is wanted; what is written says how good it is.
    people = tmp_path / "people.jsonl"
    run(place, tmp_path / "out", judge={"model": "self"}, inputs={"people": people}, unproven="use")
    assert cai.told(tmp_path / "out/feedback.json")["judge"]["quality"]["proven"] is False


def test_without_people_nothing_is_measured_and_that_is_said(place: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    log = Log()
    log.note = lambda text, **_: notes.append(text)  # type: ignore[method-assign]
    asked: dict[str, Any] = {"judge": {"model": "self"}, "inputs": {"people": None}}
    with pytest.raises(
        UserError, match="people have compared no pair, so nobody knows how good the labels of the policy"
    ):
        run(place, tmp_path / "out", **asked)
    found = run(place, tmp_path / "out", **asked, unproven="use", log=log)
    assert any("people have compared no pair" in each for each in notes)
    assert found["judge/agreement"] is None and found["pairs/people"] == 0 and found["pairs/ai"]
    assert tuned.files(tmp_path / "out") == FILES and cai.rows(tmp_path / "out/quality.jsonl") == []
    for each in cai.rows(tmp_path / "out/labels.jsonl"):
        assert 0.0 < each["a_first"] < 1.0 and each["principle"] == "kind"
        assert each["p"] == pytest.approx(0.5 * (each["a_first"] + 1 - each["b_first"]))
    assert cai.told(tmp_path / "out/feedback.json")["judge"]["principles"] == {
        "kind": 6 - (found["prompts/too_alike"] or 0)
    }


def test_a_kill_changes_nothing(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = cai.generated(monkeypatch)
    more: dict[str, Any] = {"judge": {"model": "self"}, "inputs": {"people": None}, "unproven": "use"}
    found = run(decoder, tmp_path / "whole", **more)
    whole = sorted(names)
    names.clear()
    append = records.write_objects

    def dies(path: Path, rows: Any) -> None:
        if path.name == "labels.jsonl":
            raise KeyboardInterrupt
        append(path, rows)

    monkeypatch.setattr(records, "write_objects", dies)
    with pytest.raises(KeyboardInterrupt):
        run(decoder, tmp_path / "killed", **more)
    monkeypatch.setattr(records, "write_objects", append)
    assert run(decoder, tmp_path / "killed", **more) == found
    assert sorted(names) == whole  # nothing is asked twice
    assert tree_hash(tmp_path / "whole") == tree_hash(tmp_path / "killed")


def test_prompts_with_two_answers_alike_leave_nothing_to_compare(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prompt has two different answers, of 6 that were asked") as caught:
        run(
            decoder,
            tmp_path / "out",
            judge={"model": "self"},
            inputs={"people": None},
            unproven="use",
            temperature=1e-4,
        )
    assert "raise rl_cai.prompts" in str(caught.value)


def test_no_judge_in_its_folder(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: rl_cai\.judge\.folder: no whole model in") as caught:
        run(decoder, tmp_path / "out", judge={"model": "folder", "folder": str(tmp_path / "nobody")})
    assert caught.value.exit_code == 2


# ── a model behind an endpoint judges ─────────────────────────────────────────────────────────────────────────────


def test_a_judge_that_always_says_a_is_refused(decoder: Path, tmp_path: Path) -> None:
    with serving(lambda *_: completion("(A)")) as server, pytest.raises(UserError) as caught:
        run(decoder, tmp_path / "out", judge=behind(server))
    text = str(caught.value)
    assert "name-of-the-model agrees with people on 0.50 [" in text and "position bias +0.50" in text
    assert "the two orders contradict each other in 100%" in text
    assert len(server.asked) == 24  # people's pairs in both orders, and nothing further


def test_a_judge_that_knows_labels_rightly_in_both_orders(decoder: Path, tmp_path: Path) -> None:
    with serving(cai.prefers(earlier)) as server:
        found = run(decoder, tmp_path / "out", judge=behind(server))
        labels = cai.rows(tmp_path / "out/labels.jsonl")
        assert len(server.asked) == 24 + 2 * len(labels)
        assert {each.body["temperature"] for each in server.asked} == {0.0}
        asked = {cai.conversation(each) for each in server.asked}
        assert len(asked) == len(server.asked)
    for each in labels:
        assert each["p"] == float(each["a"] < each["b"])
        assert (each["a_first"], each["b_first"]) == ((1.0, 0.0) if each["a"] < each["b"] else (0.0, 1.0))
        assert each["position_bias"] == 0.0 and each["contradictory"] is False
    pairs = [each for each in records.read(tmp_path / "out/preferences.jsonl", Preference) if each.source == "ai"]
    assert len(pairs) == len(labels) and all(each.chosen < each.rejected and each.probability == 1.0 for each in pairs)
    assert found["judge/agreement"] == 1.0 and found["label/position_bias"] == 0.0
    told = cai.told(tmp_path / "out/feedback.json")["judge"]
    assert told["kind"] == "endpoint" and told["name"] == "name-of-the-model"


def test_labels_after_a_thought_are_clamped(decoder: Path, tmp_path: Path) -> None:
    with serving(cai.prefers(earlier)) as server:
        run(decoder, tmp_path / "out", judge=behind(server), thoughts=True)
        labels = cai.rows(tmp_path / "out/labels.jsonl")
        thoughts = [each for each in server.asked if len(each.body["messages"]) == 1]
        verdicts = [each for each in server.asked if len(each.body["messages"]) == 3]
        assert len(thoughts) == len(verdicts) == 24 + 2 * len(labels)
        assert all(cai.last(each) == "SO which" for each in verdicts)
        assert {each.body["messages"][1]["content"] for each in verdicts} == {"the words tell"}
    assert {each["p"] for each in labels} <= {0.4, 0.6} and labels
    assert {abs((each["a_first"] or 0) - (each["b_first"] or 0)) for each in labels} == {1.0}
    pairs = [each for each in records.read(tmp_path / "out/preferences.jsonl", Preference) if each.source == "ai"]
    assert all(each.probability == pytest.approx(0.6) and each.chosen < each.rejected for each in pairs)
    assert {each["p"] for each in cai.rows(tmp_path / "out/quality.jsonl")} == {0.6}


def test_unusable_labels_are_counted(decoder: Path, tmp_path: Path) -> None:
    def moody(asked: Asked, number: int) -> Sent:
        if asked.text.startswith(("what of case 3 ", "delete")):
            return completion("Both have their merits.")
        return cai.prefers(earlier)(asked, number)

    with serving(moody) as server:
        found = run(decoder, tmp_path / "out", judge=behind(server), prompts=16)
    labels = cai.rows(tmp_path / "out/labels.jsonl")
    lost = sum(each["p"] is None for each in labels)
    assert 0 < lost < len(labels) and found["left_out/unusable"] == lost and found["left_out/tie"] == 0
    assert (found["judge/pairs"], found["judge/unusable"]) == (11, 1)
    assert found["pairs/ai"] == len(labels) - lost
    pairs = records.read(tmp_path / "out/preferences.jsonl", Preference)
    assert not any(each.prompt.startswith("delete") for each in pairs)


def test_no_usable_label_at_all_is_told(decoder: Path, tmp_path: Path) -> None:
    def knows_people(asked: Asked, number: int) -> Sent:
        known = asked.text.startswith("what of case")
        return cai.prefers(earlier)(asked, number) if known else completion("hm")

    with serving(knows_people) as server, pytest.raises(UserError, match=r"no usable label of the \d pairs"):
        run(decoder, tmp_path / "out", judge=behind(server))
    assert not (tmp_path / "out").exists()


def test_people_may_be_left_out_or_weigh_more(decoder: Path, tmp_path: Path) -> None:
    with serving(cai.prefers(earlier)) as server:
        without = run(decoder, tmp_path / "without", judge=behind(server), people=0.0)
        more = run(decoder, tmp_path / "more", judge=behind(server), people=3.0)
    assert without["pairs/people"] == 0 and without["judge/pairs"] == 12  # they measure it all the same
    pairs = records.read(tmp_path / "without/preferences.jsonl", Preference)
    assert {each.source for each in pairs} == {"ai"} and len(pairs) == without["pairs"] == more["pairs/ai"]
    pairs = records.read(tmp_path / "more/preferences.jsonl", Preference)
    assert {each.source: each.weight for each in pairs} == {"ai": 1.0, "ratings": 1.5}


def test_prompts_alike_are_one_group_whoever_compared_them(decoder: Path, tmp_path: Path) -> None:
    texts = [f"{LONG} {end}" for end in ("now", "today", "soon", "again", "at once", "quickly")] + [
        f"read the {word}" for word in ("value", "name")
    ]
    rows = [RedTeamPrompt(records.row_id(each), each, "instruction", "made", None) for each in texts]
    records.write(tmp_path / "prompts.jsonl", rows)
    alike = [(f"{LONG} please", "ask him", "stop him")]
    cai.people(tmp_path, alike + [(f"what of case {at}", f"ask {at}", f"stop {at}") for at in range(9)])
    inputs: dict[str, Path | None] = {name: tmp_path / f"{name}.jsonl" for name in ("people", "prompts")}
    with serving(cai.prefers(earlier)) as server:
        found = run(decoder, tmp_path / "out", judge=behind(server), prompts=99, inputs=inputs, max_new_tokens=16)
        run(
            decoder,
            tmp_path / "exact",
            judge=behind(server),
            prompts=99,
            inputs=inputs,
            max_new_tokens=16,
            near_duplicate=1.0,
        )

    def groups(name: str) -> list[set[str]]:
        pairs = records.read(tmp_path / name / "preferences.jsonl", Preference)
        return [{each.prompt for each in pairs if each.group == group} for group in {each.group for each in pairs}]

    asked = {each["prompt"] for each in cai.rows(tmp_path / "out/labels.jsonl")}
    expected = {f"{LONG} please", *(each for each in asked if each.startswith(LONG))}
    assert len(expected) > 1 and expected in groups("out") and found["pairs/groups"] == len(groups("out"))
    assert all(len(each) == 1 for each in groups("exact"))


def test_groups_that_people_are_dealt_in_stay_whole(decoder: Path, tmp_path: Path) -> None:
    rows = [
        Preference(f"{at:012x}", f"what of case {at}", f"ask {at}", f"stop {at}", 1.0, 1.0, f"g{at % 4}", "ratings")
        for at in range(12)
    ]
    records.write(tmp_path / "people.jsonl", rows)
    with serving(cai.prefers(earlier)) as server:
        people = tmp_path / "people.jsonl"
        run(decoder, tmp_path / "out", judge=behind(server), inputs={"people": people}, unproven="use")
    pairs = {each.id: each.group for each in records.read(tmp_path / "out/preferences.jsonl", Preference)}
    found = [pairs[each.id] for each in rows]
    assert found[:4] * 3 == found and len({*found}) == 4


def test_few_of_peoples_pairs_may_do(decoder: Path, tmp_path: Path) -> None:
    with serving(cai.prefers(earlier)) as server:
        found = run(decoder, tmp_path / "out", judge=behind(server), quality_pairs=7)
        labels = cai.rows(tmp_path / "out/labels.jsonl")
        assert len(server.asked) == 14 + 2 * len(labels)
    assert found["judge/pairs"] == 7 and found["pairs/people"] == 12


def test_few_of_peoples_prompts_may_be_mixed_in(decoder: Path, tmp_path: Path) -> None:
    """All pairs of a prompt or none of them; the judge is tested on all the same."""
    rows = [
        Preference(
            f"{at:012x}", f"what of case {at // 2}", f"ask {at}", f"stop {at}", 1.0, 0.5, f"g{at // 2}", "ratings"
        )
        for at in range(24)
    ]
    people = tmp_path / "people.jsonl"
    records.write(people, rows)
    with serving(cai.prefers(earlier)) as server:

        def mixing(count: int, out: str) -> dict[str, float | None]:
            change: dict[str, Any] = {"judge": behind(server), "unproven": "use", "people_prompts": count}
            return run(decoder, tmp_path / out, inputs={"people": people}, **change)

        found, again, everything = mixing(5, "out"), mixing(5, "again"), mixing(0, "all")
    mixed = [each for each in records.read(tmp_path / "out/preferences.jsonl", Preference) if each.source == "ratings"]
    assert Counter(each.prompt for each in mixed) == dict.fromkeys({each.prompt for each in mixed}, 2)
    assert len({each.prompt for each in mixed}) == 5
    assert found == again and found["pairs/people"] == 10 and everything["pairs/people"] == 24
    assert found["judge/pairs"] == everything["judge/pairs"] == 24


def test_labels_of_a_model_are_no_measure(decoder: Path, tmp_path: Path) -> None:
    """Pairs that another model has labelled are no people's: they tell nothing about a judge, and are not learnt."""
    rows = records.read(decoder / "people.jsonl", Preference)
    made = [Preference("f" * 12, "what of it", "stop", "ask", 0.9, 1.0, "own", "ai")]
    records.write(tmp_path / "people.jsonl", [*rows, *made])
    with serving(cai.prefers(earlier)) as server:
        found = run(decoder, tmp_path / "out", judge=behind(server), inputs={"people": tmp_path / "people.jsonl"})
    assert found["judge/pairs"] == 12 and found["judge/agreement"] == 1.0
    assert "f" * 12 not in {each.id for each in records.read(tmp_path / "out/preferences.jsonl", Preference)}
    assert found["pairs/people"] == 12


def test_an_endpoint_that_is_down_is_told(decoder: Path, tmp_path: Path) -> None:
    source = {"model": "endpoint", "endpoint": {"base_url": cai.nowhere()}}
    with pytest.raises(
        UserError, match=r"params\.yaml: rl_cai\.judge\.endpoint: the endpoint .* no connection"
    ) as caught:
        run(decoder, tmp_path / "out", judge=source)
    assert caught.value.exit_code == TRY_AGAIN


def test_a_second_run_asks_nothing_twice(decoder: Path, tmp_path: Path) -> None:
    broken = True

    def sometimes(asked: Asked, number: int) -> Sent:
        return Sent(b"", 503) if broken and number >= 27 else cai.prefers(earlier)(asked, number)

    with serving(sometimes) as server:
        with pytest.raises(UserError, match="status 503"):
            run(decoder, tmp_path / "out", judge=behind(server, concurrency=1))
        first = {cai.conversation(each) for each in server.asked[:27]}
        before, broken = len(server.asked), False
        run(decoder, tmp_path / "out", judge=behind(server))
        second = [cai.conversation(each) for each in server.asked[before:]]
        assert second and not first & {*second}
