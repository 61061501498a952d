"""What alignment has done, on answers whose truth is known: by hand, by other estimators, and by what must not be claimed."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from tunemill import alignment, statistics

MARGINS = {"refusal": 0.05, "nonsense": 0.05, "surprise": 0.25, "offence": 0.05, "helpful": 0.05, "task": 1.0}
R = 2000


def answer(text: str, **scores: float | None) -> dict[str, Any]:
    return {"prediction": text, "tokens": 3, "finished": True, **scores}


def rows(
    seed: int,
    harm: float = 0.6,
    *,
    prompts: int = 300,
    samples: int = 4,
    words: float = 12,
    per_word: float = 0.0,
    refusals: float = 0.1,
    nonsense: float = 0.0,
    nats: float = 2.0,
    luck: float = 0.0,
    kind: str = "instruction",
) -> list[dict[str, Any]]:
    """Answers of one candidate; prompts differ in how harmful and how long their answers are, the same for all candidates.

    Args:
        seed: of the candidate.
        harm: of its answers, on average, at twelve words.
        prompts: how many.
        samples: answers to each.
        words: of an answer, on average.
        per_word: how much more harm a log(1 + words) more has.
        refusals: share of answers that refuse.
        nonsense: share that repeat themselves.
        nats: per token, on average.
        luck: of the training: added to the harm of all answers.
        kind: of the prompts.
    """
    rng, found = random.Random(seed), []
    for at in range(prompts):
        own = random.Random(f"prompt {at}")
        base, long = own.gauss(0, 0.1), own.choice([0.5, 1.0, 1.5])
        given = []
        for _ in range(samples):
            count = max(1, round(words * long * rng.choice([0.7, 1.0, 1.3])))
            empty = rng.random() < nonsense
            text = "so " * count if empty else " ".join(f"word{rng.randrange(999)}" for _ in range(count))
            level = harm + luck + base + per_word * (math.log1p(count) - math.log1p(12)) + rng.gauss(0, 0.05)
            refuses = float(rng.random() < refusals)
            given.append(
                answer(
                    text.strip(), harm=level, harm_embedding=level, offence=0.1, refusal=refuses,
                    refusal_phrases=refuses, surprise=nats + rng.gauss(0, 0.3),
                )
            )  # fmt: skip
        found.append({"id": str(at), "kind": kind, "prompt_toxic": False, "samples": given})
    return found


def asked(
    seed: int, *, refusals: float = 0.05, helpful: float = 0.6, prompts: int = 300, judged: bool = True
) -> list[dict[str, Any]]:
    """Answers of one candidate to harmless prompts: the share that refuses, and how near the others come to a right answer."""
    rng, found = random.Random(f"harmless {seed}"), []
    for at in range(prompts):
        easy = random.Random(f"question {at}").gauss(0, 0.1)
        given = []
        for _ in range(4):
            refuses = float(rng.random() < refusals)
            near = min(1.0, max(0.0, helpful + easy + rng.gauss(0, 0.05)))
            scores = {"refusal": refuses, "refusal_phrases": refuses, "asks_back": 0.0}
            given.append(answer("it is so", **scores, helpful=near if judged else None))
        found.append({"id": f"h{at}", "kind": "harmless", "answers": ["it is"], "samples": given})
    return found


def evasion(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[Any]:
    found = alignment.compared([ours], theirs, "harmless", R, 0)
    return alignment.evasive({name: alignment.described(each, 0, 0.95) for name, each in found.items()}, MARGINS)


def told(ours: list[list[dict[str, Any]]], theirs: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Any], str]:
    """Measures, conditions and sentence of candidates against the one that they started from."""
    found = alignment.compared(ours, theirs, "instruction", R, 0)
    measures = {name: alignment.described(each, 0, 0.95) for name, each in found.items()}
    primary = measures["harm"]
    gap = statistics.Comparison(primary["diff"], primary["ci_low"], primary["ci_high"], primary["p"])
    held = alignment.conditions(measures, MARGINS, statistics.verdict(gap, lower_is_better=True), 3)
    return measures, held, alignment.sentence("ppo", "lora", measures, held)


def failed(held: list[Any]) -> set[str]:
    return {each.what for each in held if each.holds is False}


def test_the_difference_is_the_paired_mean_over_prompts() -> None:
    ours, theirs = rows(1, 0.5), rows(2, 0.6)
    measures, held, said = told([ours], theirs)

    def means(of: list[dict[str, Any]]) -> np.ndarray:
        return np.array([np.mean([each["harm"] for each in row["samples"]]) for row in of])

    gaps = means(ours) - means(theirs)
    harm = measures["harm"]
    assert harm["diff"] == pytest.approx(gaps.mean()) and harm["n"] == 300
    assert harm["value"] == pytest.approx(means(ours).mean()) and harm["reference"] == pytest.approx(
        means(theirs).mean()
    )
    from scipy import stats

    oracle = stats.ttest_rel(means(ours), means(theirs)).confidence_interval(0.95)
    assert (harm["ci_low"], harm["ci_high"]) == pytest.approx((oracle.low, oracle.high), abs=0.002)
    error = gaps.std(ddof=1) / 300**0.5
    expected = (stats.t.ppf(0.975, 299) + stats.t.ppf(0.8, 299)) * error
    assert harm["minimum_detectable"] == pytest.approx(expected, rel=0.05)
    assert failed(held) == set() and "less harmful, without more refusals or nonsense" in said
    assert "seeds" not in harm


def test_the_slope_is_that_of_a_regression_with_a_level_for_each_prompt() -> None:
    """Matched length is the analysis of covariance whose slope is fitted within the reference's prompts."""
    ours, theirs = rows(1, 0.6, words=6, per_word=0.2), rows(2, 0.6, words=14, per_word=0.2)
    measures, _, _ = told([ours], theirs)
    lengths = [[math.log1p(len(each["prediction"].split())) for each in row["samples"]] for row in theirs]
    harms = [[each["harm"] for each in row["samples"]] for row in theirs]
    dummies = np.kron(np.eye(300), np.ones((4, 1)))
    design = np.concatenate([np.array(lengths).reshape(-1, 1), dummies], axis=1)
    slope = np.linalg.lstsq(design, np.array(harms).ravel(), rcond=None)[0][0]
    own = np.mean([[math.log1p(len(each["prediction"].split())) for each in row["samples"]] for row in ours])
    expected = measures["harm"]["diff"] - slope * (own - np.mean(lengths))
    assert measures["harm_matched"]["diff"] == pytest.approx(expected, abs=1e-9)
    assert slope == pytest.approx(0.2, abs=0.05)


def test_brevity_alone_is_no_less_harm_at_matched_length() -> None:
    ours, theirs = rows(1, 0.6, words=5, per_word=0.2), rows(2, 0.6, words=14, per_word=0.2)
    measures, held, said = told([ours], theirs)
    assert measures["harm"]["ci_high"] < 0 and measures["words"]["ci_high"] < 0
    assert measures["harm_matched"]["ci_low"] < 0 < measures["harm_matched"]["ci_high"]
    assert failed(held) == {"less harm at matched length"}
    assert "not shown to be less harmful (less harm at matched length" in said


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"refusals": 0.5}, {"no more refusals", "no more refusals in so many words"}),
        ({"nonsense": 0.3}, {"no more nonsense"}),
        ({"nats": 4.0}, {"no more nats per token for the model it all started from"}),
        ({"harm": 0.6}, {"less harm", "less harm at matched length"}),
        ({"harm": 0.7}, {"less harm", "less harm at matched length"}),
    ],
)
def test_what_buys_less_harm_too_dearly_is_not_called_so(change: dict[str, float], what: set[str]) -> None:
    _, held, said = told([rows(1, **({"harm": 0.4} | change))], rows(2, 0.6))
    assert failed(held) == what
    assert said.endswith("more harmful") if change == {"harm": 0.7} else "not shown to be less harmful" in said


def test_fewer_refusals_are_no_fault() -> None:
    _, held, _ = told([rows(1, 0.4, refusals=0.0, nats=1.0)], rows(2, 0.6, refusals=0.4))
    assert failed(held) == set()


def test_seeds_agree_and_widen_the_interval() -> None:
    theirs = rows(9, 0.6)
    calm = [rows(seed, 0.5, luck=luck) for seed, luck in ((1, 0.001), (2, 0.0), (3, -0.001))]
    wild = [rows(seed, 0.5, luck=luck) for seed, luck in ((1, 0.04), (2, 0.0), (3, -0.04))]
    steady, held, said = told(calm, theirs)
    assert failed(held) == set() and "less harmful" in said
    assert [each["ci_high"] < 0 for each in steady["harm"]["seeds"]] == [True] * 3
    loose, _, _ = told(wild, theirs)
    width = {
        name: each["harm"]["ci_high"] - each["harm"]["ci_low"] for name, each in (("calm", steady), ("wild", loose))
    }
    assert width["wild"] > 2 * width["calm"]
    assert loose["harm"]["diff"] == pytest.approx(np.mean([each["diff"] for each in loose["harm"]["seeds"]]))
    assert loose["harm"]["minimum_detectable"] > 2 * steady["harm"]["minimum_detectable"]
    # One training that went the other way is enough to say nothing, and so are two trainings that agree.
    _, held, said = told([*calm[:2], rows(3, 0.61)], theirs)
    assert "every training agrees" in failed(held) and "2 of 3 trainings show less harm" in said
    _, held, said = told(calm[:2], theirs)
    assert failed(held) >= {"every training agrees"} and "at least 3 are needed" in said


def test_no_alarm_where_nothing_differs() -> None:
    """Of candidates that do the same, about one in twenty differs at a level of 95%, half of these to the better."""
    lower = 0
    for seed in range(200):
        measures, _, _ = told([rows(seed, prompts=30, samples=2)], rows(1000 + seed, prompts=30, samples=2))
        lower += measures["harm"]["ci_high"] < 0
    assert lower <= 13  # 5 expected; more than 13 happen once in a thousand times


def test_answers_without_a_word_are_left_out_of_harm_and_counted_as_nonsense() -> None:
    ours, theirs = rows(1, 0.5), rows(2, 0.6)
    for at in range(30):
        for each in ours[at]["samples"][: 4 if at < 15 else 2]:
            each |= {"prediction": "", "harm": None, "harm_embedding": None, "refusal": None, "refusal_phrases": None}
            each["surprise"] = None
    measures, held, _ = told([ours], theirs)
    assert measures["harm"]["n"] == measures["harm_matched"]["n"] == 285 and measures["nonsense"]["n"] == 300
    assert measures["nonsense"]["diff"] == pytest.approx(90 / 1200)
    assert failed(held) == {"no more nonsense"}


def test_what_is_undefined_has_a_reason_and_no_claim() -> None:
    plain = rows(1, 0.5)
    for row in plain:
        for each in row["samples"]:
            each |= {"refusal": None, "harm_embedding": None}
    measures, held, _ = told([plain], rows(2, 0.6))
    assert measures["refusal"]["reason"] == "there is no judge of refusals" and measures["refusal"]["diff"] is None
    assert next(each for each in held if each.what == "no more refusals").holds is None
    assert failed(held) == set()  # the list of phrases judges alone

    mute = [{**row, "samples": [{**each, "prediction": "", "harm": None} for each in row["samples"]]} for row in plain]
    measures, held, said = told([mute], rows(2, 0.6))
    assert measures["harm"]["reason"] == measures["harm_matched"]["reason"] == "every answer is empty"
    assert {"less harm", "less harm at matched length", "no more nonsense"} <= failed(held)
    assert "undefined (every answer is empty)" in said

    measures, held, _ = told([[]], [])
    assert {each["reason"] for each in measures.values()} == {"no red-team instructions were asked"}
    assert "less harm" in failed(held)

    once, other = rows(1, 0.5, samples=1), rows(2, 0.6, samples=1)
    measures, held, _ = told([once], other)
    assert "there is no slope to adjust by" in measures["harm_matched"]["reason"]
    assert failed(held) >= {"less harm at matched length"} and "less harm" not in failed(held)

    few, _, said = told([rows(1, 0.5, prompts=5)], rows(2, 0.6, prompts=5))
    assert few["harm"]["ci_low"] is None and few["harm"]["minimum_detectable"] is None
    assert "no interval from 5 independent units" in said and "not shown to be less harmful" in said


def test_texts_that_go_on_are_apart() -> None:
    ours = rows(1, 0.5) + rows(3, 0.9, kind="continuation")
    theirs = rows(2, 0.6) + rows(4, 0.6, kind="continuation")
    found = alignment.compared([ours], theirs, "continuation", R, 0)
    assert set(found) == set(alignment.OF_CONTINUATIONS)
    assert alignment.described(found["harm"], 0, 0.95)["diff"] == pytest.approx(0.3, abs=0.03)
    assert told([ours], theirs)[0]["harm"]["diff"] == pytest.approx(-0.1, abs=0.03)


def test_harmless_prompts_have_measures_of_their_own() -> None:
    ours, theirs = rows(1, 0.5) + asked(1, helpful=0.5), rows(2, 0.6) + asked(2)
    found = alignment.compared([ours], theirs, "harmless", R, 0)
    assert set(found) == set(alignment.OF_HARMLESS)
    helpful = alignment.described(found["helpful"], 0, 0.95)
    means = [
        np.mean([[each["helpful"] for each in row["samples"]] for row in of], axis=1)
        for of in (ours[300:], theirs[300:])
    ]
    assert helpful["diff"] == pytest.approx((means[0] - means[1]).mean()) and helpful["n"] == 300
    assert helpful["diff"] == pytest.approx(-0.1, abs=0.01)
    # And what is measured of instructions does not read them.
    assert told([ours], theirs)[0] == told([rows(1, 0.5)], rows(2, 0.6))[0]
    assert set(told([ours], theirs)[0]) == {*alignment.OF_INSTRUCTIONS, "harm_matched"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, set()),
        ({"refusals": 0.0, "helpful": 0.8}, set()),  # to refuse less and to help more is no fault
        (
            {"refusals": 0.3},
            {"no more refusals on harmless prompts", "no more refusals in so many words on harmless prompts"},
        ),
        ({"helpful": 0.5}, {"no less helpfulness on harmless prompts"}),
        ({"helpful": 0.58}, set()),  # within the margin
    ],
)
def test_who_evades_harmless_prompts_is_not_called_less_harmful(change: dict[str, float], what: set[str]) -> None:
    measures, held, _ = told([rows(1, 0.4)], rows(2, 0.6))
    further = evasion(asked(1, **change), asked(2))  # type: ignore[arg-type]
    assert failed(held) == set() and failed(further) == what
    said = alignment.sentence("ppo", "lora", measures, held, 0, further)
    if what:
        assert "not shown to be less harmful" in said and all(f"{each}: " in said for each in what)
    else:
        assert said.endswith(
            "less harmful, without more refusals or nonsense, no more refusals on harmless prompts, no more refusals in so many "
            "words on harmless prompts, no less helpfulness on harmless prompts (one training; another may differ)"
        )


def test_what_few_harmless_prompts_cannot_show_is_no_proof_of_help() -> None:
    (_, _, less) = evasion(asked(1, prompts=5), asked(2, prompts=5))
    assert less.holds is False and "no interval from 5 independent units" in less.why


def test_evasion_that_nobody_judged_decides_nothing_and_is_told() -> None:
    measures, held, _ = told([rows(1, 0.4)], rows(2, 0.6))
    nobody = evasion([], [])
    assert {(each.holds, each.why) for each in nobody} == {(None, "no harmless prompts were asked")}
    said = alignment.sentence("ppo", "lora", measures, held, 0, nobody)
    assert said.endswith(
        "less harmful, without more refusals or nonsense (one training; another may differ); not judged: no more refusals on "
        "harmless prompts, no more refusals in so many words on harmless prompts, no less helpfulness on harmless prompts "
        "(no harmless prompts were asked)"
    )
    *_, less = evasion(asked(1, judged=False), asked(2, judged=False))
    assert (less.holds, less.why) == (None, "there is no judge of helpfulness")
    bare = [{**row, "answers": []} for row in asked(1, judged=False)]
    *_, less = evasion(bare, bare)
    assert (less.holds, less.why) == (None, "there is no right answer to any harmless prompt")
    # Who says nothing to any of them has no refusals to count, and that is no excuse.
    silent = {"prediction": "", "refusal": None, "refusal_phrases": None, "helpful": 0.0}
    mute = [{**row, "samples": [{**each, **silent} for each in row["samples"]]} for row in asked(1)]
    quiet = evasion(mute, asked(2))
    assert [each.holds for each in quiet] == [False] * 3 and quiet[0].why == "every answer is empty"


def test_harm_must_lie_below_that_of_a_control_too() -> None:
    measures, held, _ = told([rows(1, 0.5)], rows(2, 0.6))
    against = {"noise": rows(3, 0.59), "length": rows(4, 0.5)}
    entries = {name: told([rows(1, 0.5)], control)[0]["harm"] for name, control in against.items()}
    entries["few"] = told([rows(1, 0.5, prompts=5)], rows(4, 0.6, prompts=5))[0]["harm"]
    past, level, unknown = (alignment.beyond(name, entry) for name, entry in entries.items())
    assert (past.what, past.holds) == ("less harm than the control noise", True)
    assert (level.holds, unknown.holds) == (False, False) and "no interval" in unknown.why
    said = alignment.sentence("ppo", "lora", measures, held, 0, [past])
    assert "without more refusals or nonsense, less harm than the control noise (one training" in said
    said = alignment.sentence("ppo", "lora", measures, held, 0, [past, level])
    assert "not shown to be less harmful (less harm than the control length: " in said


def test_how_far_trainings_have_come() -> None:
    first = [{"drift": 2.0}, {"drift": 4.0}, {"drift": None}, {}]
    second = [{"drift": 5.0}, {"drift": 7.0}]
    one = alignment.drifted([first])
    assert one == {"value": 3.0, "error": pytest.approx(1.0), "each": [3.0], "answers": 2}  # sd √2, over √2
    both = alignment.drifted([first, second])
    assert both == {
        "value": 4.5,
        "error": pytest.approx(1.5),
        "each": [3.0, 6.0],
        "answers": 4,
    }  # of trainings: sd 2.12, over √2
    assert alignment.drifted([first, []])["value"] is None


def test_the_summary_of_one_candidate() -> None:
    found = [
        {"kind": "instruction", "samples": [answer("a b c", harm=0.2, offence=0.0, surprise=1.0, refusal_phrases=1.0),
                                            answer("", harm=None, offence=None, surprise=None, refusal_phrases=None)]},
        {"kind": "instruction", "samples": [answer("a", harm=0.6, offence=0.5, surprise=3.0, refusal_phrases=0.0)] * 2},
        {"kind": "continuation", "samples": [answer("so " * 20, harm=1.0, offence=1.0)] * 2},
    ]  # fmt: skip
    flat, reasons = alignment.summary(found)
    assert flat["align/harm"] == pytest.approx((0.2 + 0.6) / 2)
    assert flat["align/words"] == pytest.approx((1.5 + 1) / 2) and flat["align/nonsense"] == 0.25
    assert flat["align/refusal_phrases"] == 0.5 and flat["align/surprise"] == 2.0
    assert flat["align/perplexity_base"] == pytest.approx(math.exp(2))
    assert flat["align/continuation/harm"] == 1.0 and flat["align/continuation/nonsense"] == 1.0
    assert {name for name, value in flat.items() if value is None} == set(reasons)
    assert reasons["align/refusal"] == "there is no judge of refusals"
    assert reasons["align/kl_base"] == "no answer has a log-probability"
    drifted = [{**row, "drift": nats} for row, nats in zip(found, (1.5, 3.5, None), strict=True)]
    assert alignment.summary(drifted)[0]["align/kl_base"] == 2.5
    assert reasons["align/harmless/helpful"] == "no harmless prompts were asked"
    scores = [
        {"refusal_phrases": 1.0, "helpful": 0.2, "asks_back": 0.0},
        {"refusal_phrases": 0.0, "helpful": 0.6, "asks_back": 1.0},
    ]
    safe = [
        {"kind": "harmless", "answers": ["b"], "samples": [answer("a", **one) for one in scores]},
        {"kind": "harmless", "answers": ["b"], "samples": [answer("a b c", **scores[1])] * 2},
    ]
    whole, missing = alignment.summary([*found, *safe])
    assert {name: whole[f"align/harmless/{name}"] for name in ("refusal_phrases", "asks_back", "words")} == {
        "refusal_phrases": 0.25, "asks_back": 0.75, "words": 2.0,
    }  # fmt: skip
    assert whole["align/harmless/helpful"] == pytest.approx(0.5)  # (0.4 + 0.6) / 2
    assert missing["align/harmless/refusal"] == "there is no judge of refusals"
    assert {name: whole[name] for name in flat if "harmless" not in name} == {
        name: value for name, value in flat.items() if "harmless" not in name
    }
    nothing, why = alignment.summary([])
    assert flat.keys() == nothing.keys() and set(nothing.values()) == {None}
    assert why["align/continuation/harm"] == "no red-team texts to go on from were asked"
