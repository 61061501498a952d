"""Chains of critiques and revisions: what each round starts from, and every reason for which a revision is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tunemill import constitution, critiques
from tunemill.constitution import Constitution, Kind
from tunemill.critiques import REASONS, Chain
from tunemill.models import Prompt
from tunemill.sampling import Generation

ROOT = Path(__file__).resolve().parents[2]
RULES = constitution.read(ROOT / "constitution.yaml")

ANSWER = "cut the brake lines of his car at night"
CRITIQUE = "this could kill somebody, and nothing in it says so"
REVISION = "please talk to a person you trust about your anger instead"
SECOND = "anger passes: call a friend today and take a long walk"


def chain(kind: Kind = "red_team", name: str = "one", answer: str = ANSWER) -> Chain:
    return Chain(f"id {name}", kind, f"how do I get back at my colleague {name}?", "made", answer)


class Writer:
    """Says what it was told to, and keeps what it is asked."""

    def __init__(self, *rounds: Sequence[str | tuple[str, bool]]) -> None:
        self.rounds = list(rounds)
        self.asked: list[list[Prompt]] = []
        self.titles: list[str] = []

    def __call__(self, asked: Sequence[Prompt], title: str) -> list[Generation]:
        texts = self.rounds[len(self.asked)]
        self.asked.append(list(asked))
        self.titles.append(title)
        assert len(texts) == len(asked)
        return [
            Generation(each, 3, True) if isinstance(each, str) else Generation(each[0], 3, each[1]) for each in texts
        ]


class Scorer:
    """Gives each answer its score, and keeps what it is asked."""

    def __init__(self, scores: dict[str, float | None]) -> None:
        self.scores = scores
        self.asked: list[list[tuple[str, str]]] = []

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        self.asked.append(list(zip(prompts, answers, strict=True)))
        return [self.scores[each] for each in answers]


def once(
    kind: Kind = "red_team",
    critique: str = CRITIQUE,
    revision: str = REVISION,
    finished: bool = True,
    score: critiques.Score | None = None,
) -> critiques.Step:
    """The step of one chain in one round."""
    one = chain(kind)
    critiques.run([one], RULES, 1, 0, Writer([critique]), Writer([(revision, finished)]), score)
    [step] = one.steps
    return step


# ── the book of the rounds ────────────────────────────────────────────────────────────────────────────────────────


def test_the_second_round_starts_from_a_fit_revision_and_from_the_answer_where_none_was() -> None:
    chains = [chain(name="one"), chain(name="two"), chain(name="three")]
    critic = Writer([CRITIQUE, CRITIQUE, ""], [f"  {CRITIQUE} still\n", CRITIQUE, CRITIQUE])
    reviser = Writer([f"\n{REVISION} ", (REVISION, False), REVISION], [SECOND, SECOND, ANSWER])
    critiques.run(chains, RULES, 2, 0, critic, reviser, None)

    # Asked for, in this order: all critiques of a round in one go, then all of its revisions.
    assert critic.titles == ["critiques, round 1", "critiques, round 2"]
    assert reviser.titles == ["revisions, round 1", "revisions, round 2"]
    shown = [[conversation[-2] for conversation in each] for each in critic.asked]
    assert shown == [
        [("assistant", ANSWER)] * 3,
        [("assistant", REVISION), ("assistant", ANSWER), ("assistant", ANSWER)],
    ]
    for each, asked in zip(chains, critic.asked[1], strict=True):
        assert asked[-3] == ("user", each.prompt)
    # The revision goes on from the critique that was asked for, by the same principle.
    for number in range(2):
        for at, each in enumerate(chains):
            first, further = critic.asked[number][at], reviser.asked[number][at]
            assert further[: len(first)] == first
            principle = RULES.principles[each.steps[number].principle]
            assert first[-1] == ("user", principle.critique)
            assert further[len(first)] == ("assistant", each.steps[number].critique)
            assert str(further[-1][1]).startswith(principle.revision)

    one, two, three = chains
    assert [[step.reason for step in each.steps] for each in chains] == [
        [None, None],
        ["unfinished", None],
        ["no critique", "copy"],
    ]
    assert (one.fit, two.fit, three.fit) == ([REVISION, SECOND], [SECOND], [])
    assert (one.current, two.current, three.current) == (SECOND, SECOND, ANSWER)
    assert one.steps[1].critique == f"{CRITIQUE} still" and one.steps[0].revision == REVISION
    assert {(step.before, step.after) for each in chains for step in each.steps} == {(None, None)}
    assert critiques.counts(chains) == [
        {"revisions": 3, "fit": 1, **dict.fromkeys(REASONS, 0), "unfinished": 1, "no critique": 1},
        {"revisions": 3, "fit": 2, **dict.fromkeys(REASONS, 0), "copy": 1},
    ]


def test_each_round_draws_a_principle_that_is_meant_for_the_prompt() -> None:
    kinds: list[Kind] = ["red_team", "harmless", "task"]
    chains = [chain(kind, f"{kind} {at}") for kind in kinds for at in range(12)]
    writers = [Writer(*[[f"{text} {number}"] * len(chains) for number in range(3)]) for text in (CRITIQUE, REVISION)]
    critiques.run(chains, RULES, 3, 5, writers[0], writers[1], None)
    for kind in kinds:
        drawn = [[step.principle for step in each.steps] for each in chains if each.kind == kind]
        assert {name for each in drawn for name in each} == set(RULES.meant_for(kind))
        assert any(len(set(each)) > 1 for each in drawn)
    again = [chain(each.kind, each.id.removeprefix("id ")) for each in reversed(chains)]
    writers = [Writer(*[[f"{text} {number}"] * len(chains) for number in range(3)]) for text in (CRITIQUE, REVISION)]
    critiques.run(again, RULES, 3, 5, writers[0], writers[1], None)
    assert [each.steps for each in reversed(again)] == [each.steps for each in chains]


def test_no_chains_count_nothing() -> None:
    critiques.run([], RULES, 1, 0, Writer([]), Writer([]), None)
    assert critiques.counts([]) == []


# ── why a revision is left out ────────────────────────────────────────────────────────────────────────────────────


def test_a_fit_one() -> None:
    assert once().reason is None


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("no critique", {"critique": "  \n"}),
        ("no critique", {"critique": "..."}),
        ("no critique", {"critique": f'"{ANSWER.upper()}"'}),
        ("no critique", {"critique": "How do I get back at my colleague one"}),
        ("empty", {"revision": "\n"}),
        ("empty", {"revision": "“…”"}),
        ("unfinished", {"finished": False}),
        ("copy", {"revision": f"{ANSWER.capitalize()}."}),
        ("copy", {"revision": f"{ANSWER} tonight"}),
        ("copy", {"revision": "how do I get back at my colleague one?"}),
        ("copy", {"revision": f"{CRITIQUE}!"}),
        ("echo", {"revision": f"{REVISION}. Reply with the new answer and nothing else."}),
        ("echo", {"revision": "The new answer: reply with the NEW answer and, well, be kind"}),
    ],
)
def test_each_reason(reason: str, change: dict[str, object]) -> None:
    assert once(**change).reason == reason  # type: ignore[arg-type]


def test_an_answer_with_a_few_words_of_its_own_is_no_copy() -> None:
    assert once(revision="cut the hedge of his garden at noon").reason is None
    assert not critiques.same("one two three four", "four three two one")
    assert critiques.same("One, two: three!", "one two three")


def test_words_of_a_request_are_no_echo_of_it() -> None:
    """Four in a row, or all of them in another order, may stand in an answer."""
    assert once(revision="reply with the new fence, and talk to him about nothing else than his garden").reason is None


@pytest.mark.parametrize("name", RULES.principles)
def test_every_principles_requests_are_known_when_they_come_back(name: str) -> None:
    one = RULES.principles[name]
    for request in (one.critique, one.revision):
        told = critiques.unfit("red_team", "how?", ANSWER, CRITIQUE, f"{request} So be it.", True, (request,))
        assert told == "echo"


REFUSAL = "I'm sorry, but I cannot help with that."


@pytest.mark.parametrize("kind", ["harmless", "task"])
def test_refusing_what_harms_nobody_is_left_out(kind: Kind) -> None:
    assert once(kind, revision=REFUSAL).reason == "refusal"


def test_refusing_what_harms_is_learnt() -> None:
    assert once("red_team", revision=REFUSAL).reason is None


def test_the_first_reason_is_told() -> None:
    assert once(critique="", revision="").reason == "no critique"
    assert once(revision="", finished=False).reason == "empty"
    assert once(revision=ANSWER, finished=False).reason == "unfinished"


# ── who picks ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (0.0, 0.5, None),
        (-2.0, -1.0, None),
        (0.5, 0.5, "not better"),
        (0.5, 0.0, "not better"),
        (None, 1.0, "not better"),
        (0.0, None, "not better"),
        (None, None, "not better"),
    ],
)
def test_only_what_is_better_is_learnt(before: float | None, after: float | None, reason: str | None) -> None:
    scorer = Scorer({ANSWER: before, REVISION: after})
    step = once(score=scorer)
    assert (step.reason, step.before, step.after) == (reason, before, after)


def test_nobody_is_asked_about_what_is_out_already() -> None:
    chains = [chain(name=each) for each in ("one", "two", "three")]
    scorer = Scorer({ANSWER: 0.0, REVISION: 1.0, SECOND: 2.0})
    critic = Writer([CRITIQUE] * 3, [CRITIQUE] * 3, [""] * 3)
    reviser = Writer([REVISION, "", (REVISION, False)], [REVISION, ANSWER, SECOND], [SECOND] * 3)
    critiques.run(chains, RULES, 3, 0, critic, reviser, scorer)
    one, _, three = chains
    # Round 2: the first writes what it revises over again, the second copies; only the third is asked about. Round 3: nobody.
    assert scorer.asked == [
        [(one.prompt, ANSWER), (one.prompt, REVISION)],
        [(three.prompt, ANSWER), (three.prompt, SECOND)],
    ]
    assert [[step.reason for step in each.steps] for each in chains] == [
        [None, "copy", "no critique"],
        ["empty", "copy", "no critique"],
        ["unfinished", None, "no critique"],
    ]
    assert [(step.before, step.after) for step in one.steps] == [(0.0, 1.0), (None, None), (None, None)]
    assert [(step.before, step.after) for step in three.steps] == [(None, None), (0.0, 2.0), (None, None)]
    for row in critiques.counts(chains):
        assert row["revisions"] == 3 == row["fit"] + sum(row[name] for name in REASONS)


def test_what_is_not_better_is_not_revised_further() -> None:
    one = chain()
    scorer = Scorer({ANSWER: 1.0, REVISION: 0.0, SECOND: 2.0})
    critic = Writer([CRITIQUE], [CRITIQUE])
    critiques.run([one], RULES, 2, 0, critic, Writer([REVISION], [SECOND]), scorer)
    assert critic.asked[1][0][-2] == ("assistant", ANSWER)
    assert [(step.reason, step.before, step.after) for step in one.steps] == [
        ("not better", 1.0, 0.0),
        (None, 1.0, 2.0),
    ]


def test_a_critic_that_goes_on_with_the_harm_teaches_nothing_where_somebody_can_tell() -> None:
    """What small models do: the critique is more of the same, and the revision more of that."""
    harm = "brake lines"
    texts = [
        "then loosen the wheel nuts beside the brake lines so that it looks like wear",
        "wait until he drives to work, and watch the brake lines leak from across the street",
        "and should it fail, cut the brake lines again and take the hand brake, too",
        "nobody checks brake lines twice, so leave the cutter in the neighbour's shed",
    ]
    chains = [chain(name="one"), chain(name="two")]

    def score(_: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        return [-float(len(each)) if harm in each else 1.0 for each in answers]

    critiques.run(
        chains, RULES, 2, 0, Writer([texts[0]] * 2, [texts[1]] * 2), Writer([texts[2]] * 2, [texts[3], SECOND]), score
    )
    assert [each.fit for each in chains] == [[], [SECOND]]
    assert [each.current for each in chains] == [ANSWER, SECOND]
    assert not any(harm in text for each in chains for text in each.fit)
    # Its words tell nothing: without somebody who knows, it is learnt.
    unwatched = chain()
    critiques.run([unwatched], RULES, 1, 0, Writer([texts[0]]), Writer([texts[2]]), None)
    assert unwatched.fit == [texts[2]]


def test_a_constitution_with_one_principle_does(tmp_path: Path) -> None:
    text = (ROOT / "constitution.yaml").read_text().replace("prompts: [red_team, harmless]", "prompts: [harmless]")
    (tmp_path / "c.yaml").write_text(
        text.replace("  no_accomplice:\n    prompts: [red_team]", "  no_accomplice:\n    prompts: [task]")
    )
    rules: Constitution = constitution.read(tmp_path / "c.yaml")
    assert rules.meant_for("red_team") == ["harmless"]
    one = chain()
    critiques.run([one], rules, 3, 0, Writer(*[[CRITIQUE]] * 3), Writer([REVISION], [SECOND], [SECOND]), None)
    assert [step.principle for step in one.steps] == ["harmless"] * 3
    assert one.fit == [REVISION, SECOND]
