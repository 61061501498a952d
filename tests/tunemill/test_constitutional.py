"""How Constitutional AI is told: what follows from the figures and what does not, and which chains are read in full."""

from __future__ import annotations

from typing import Any

import pytest

from tests import report_artifacts as made
from tunemill import ai_labels, aligned, constitutional, critiques, statistics

CHAINS = made.chains()
CAI = made.revised(CHAINS)


def step(reason: str | None, before: float | None, after: float | None, text: str = "a revision") -> dict[str, Any]:
    return {
        "principle": "kind",
        "critique": "it is unkind",
        "revision": text,
        "reason": reason,
        "before": before,
        "after": after,
    }


def chain(*steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"id": "c", "kind": "red_team", "prompt": "p", "source": "s", "answer": "a", "steps": [*steps], **changes}


# ------------------------------------------------------------ critiques and revisions


def test_what_was_done_is_told_with_who_did_it():
    counted = {"revisions": 4, **dict.fromkeys(critiques.REASONS, 0)}
    cai = {
        "critic": {"kind": "endpoint", "name": "large", "base_url": "http://h/v1"},
        "picker": {"kind": "model", "shuffled": False},
        "prompts": {"red_team": 3, "task": 1},
        "rounds": [{**counted, "fit": 1, "not better": 3}, {**counted, "fit": 2, "copy": 1, "unfinished": 1}],
        "kinds": {"red_team": {"revisions": 6, "fit": 2}, "task": {"revisions": 2, "fit": 1}},
        "helpful": {"the model's own answers": 5, "the task's training pairs": 0},
        "scores": {"before": -1.256, "after": 0.5},
    }
    assert constitutional.summary(cai) == [
        ("Who criticised and revised", "large, behind an endpoint"),
        ("Who picked", "the reward model: only a revision that it likes better than what it revises was learnt from"),
        ("Prompts asked", "prompts that provoke harm 3, prompts of the use case 1"),
        (
            "Revisions fit to learn from",
            "3 of 8 (38%), in 2 rounds: 2 of 6 to prompts that provoke harm, 1 of 2 to prompts of the use case",
        ),
        (
            "Left out",
            "1 unfinished (it did not end within its limit); 1 copy (it is nearly the answer, the prompt or the critique over again); "
            "3 not better (who picked does not like it better than what it revises)",
        ),
        (
            "Score of what is fit",
            "−1.26 before, 0.50 after, on average. Those whose score did not rise were left out by this very score, so the rise shows "
            "nothing by itself",
        ),
        ("Learnt beside them", "5 of the model’s own answers"),
    ]
    assert constitutional.rounds(cai) == [
        (1, 4, 1, {"unfinished": 0, "copy": 0, "not better": 3}),
        (2, 4, 2, {"unfinished": 1, "copy": 1, "not better": 0}),
    ]


@pytest.mark.parametrize(
    ("critic", "said"),
    [
        ({"kind": "self", "name": "the policy itself"}, "the policy itself"),
        ({"kind": "folder", "name": "artifacts/select/model"}, "artifacts/select/model"),
        ({"kind": "hub", "name": "org/model@31b70e2"}, "org/model@31b70e2, of a hub"),
        (None, "not told"),
    ],
)
def test_who_criticised_is_named(critic: dict[str, str] | None, said: str):
    assert dict(constitutional.summary({**CAI, "critic": critic}))["Who criticised and revised"] == said


@pytest.mark.parametrize(
    ("picker", "said"),
    [
        (None, "nobody: what is fit by its words was learnt from, better or not"),
        ({"kind": "model", "length": {"slope": -1.0}}, "the reward model, less what it makes of length: only"),
        ({"kind": "length"}, "length alone, as a control: only"),
        ({"kind": "taste\u202e"}, "taste�: only"),
    ],
)
def test_who_picked_is_named(picker: dict[str, Any] | None, said: str):
    assert dict(constitutional.summary({**CAI, "picker": picker}))["Who picked"].startswith(said)


def test_no_score_is_made_up():
    none = {"before": None, "after": None}
    assert dict(constitutional.summary({**CAI, "picker": None, "scores": none}))["Score of what is fit"] == "not scored"
    assert "none is fit" in dict(constitutional.summary({**CAI, "scores": none}))["Score of what is fit"]


def test_every_field_may_be_missing():
    empty = dict.fromkeys(CAI)
    found = dict(constitutional.summary(empty))
    assert found["Revisions fit to learn from"] == "0 of 0, in 0 rounds" and found["Prompts asked"] == "—"
    assert "Left out" not in found and "None" not in str(found)
    assert constitutional.rounds(empty) == [] and constitutional.principles(empty, []) == []
    told = constitutional.Supervised(("sl_cai",), {}, [], {}, [])
    assert constitutional.tuned(told) == "Tuned on them for — steps of — pairs." and constitutional.curve(told) == []


def test_every_reason_of_the_stage_is_explained():
    assert tuple(constitutional.REASONS) == critiques.REASONS


def test_principles_are_counted_where_they_were_drawn():
    rows = [chain(step(None, 0, 1), step("copy", None, None)), chain(step("copy", None, None))]
    found = constitutional.principles({"constitution": {"kind": "Be kind.", "idle": "Say nothing."}}, rows)
    assert found == [("kind", "Be kind.", 3, 1), ("idle", "Say nothing.", 0, 0)]


def test_the_tuning_is_told_by_its_loss():
    curve = [{"step": float(at), "loss": 3.0 - 0.1 * at, "tokens": 900.0 * at} for at in range(1, 13)]
    told = constitutional.Supervised(("sl_cai", "sl_cai-18"), CAI, CHAINS, {"steps": 12, "batch_size": 8}, curve)
    # The mean of 2.7, …, 1.8 is 2.25.
    assert constitutional.tuned(told).startswith(
        "Tuned on them for 12 steps of 8 pairs; the loss was 2.90 at first and 2.25 in the end (mean of the last 10)."
    )
    assert constitutional.tuned(told).endswith("is sl_cai’s.")
    assert [each.title for each in constitutional.curve(told)] == ["Loss"]


# ------------------------------------------------------------ whole chains


def test_chains_are_chosen_by_a_rule():
    rows = [
        chain(step(None, -1.0, 0.0), step("copy", None, None), prompt="some"),
        # Left out at first: the second round scores the first answer.
        chain(step("not better", -2.0, -3.0), step(None, -2.0, 1.0), prompt="most"),
        chain(step("copy", None, None), step("empty", None, None), prompt="lost"),
        chain(step("copy", None, None), step("empty", None, None), prompt="lost as well"),
        chain(step(None, -1.0, 0.5), step(None, 0.5, 1.5), prompt="twice"),
    ]
    found = constitutional.examples(rows, 3, 0, {})
    assert [(each.why, each.prompt) for each in found[:2]] == [
        ("score rose most", "most"),
        ("most revisions left out", "lost"),
    ]
    assert [each.why for each in found[2:]] == ["random"] and found[2].prompt in ("some", "lost as well", "twice")
    assert found[0].rise == (-2.0, 1.0) and found[0].kept == 1
    by_prompt = {each.prompt: each for each in constitutional.examples(rows, 12, 0, {})}
    assert by_prompt["twice"].rise == (-1.0, 1.5) and by_prompt["lost"].rise is None
    assert len(by_prompt) == 5  # each once
    assert [each.why for each in constitutional.examples(rows, 1, 0, {})] == ["score rose most"]
    assert constitutional.examples([], 12, 0, {}) == [] and constitutional.examples(rows, 0, 0, {}) == []


def test_without_scores_and_without_losses_chains_are_drawn():
    rows = [chain(step(None, None, None), prompt=str(at)) for at in range(40)]
    found = constitutional.examples(rows, 12, 1, {})
    assert {each.why for each in found} == {"random"} and len({each.prompt for each in found}) == 12
    assert found == constitutional.examples(rows, 12, 1, {}) != constitutional.examples(rows, 12, 2, {})


def test_a_chain_is_whole_and_says_what_became_of_every_step():
    row = chain(step(None, -1.0, 0.5), step("unfinished", None, None, "it goes"), step("nobody knows", None, None))
    [found] = constitutional.examples([row], 12, 0, {"kind": "Be kind."})
    assert (found.kind, found.source, found.answer.text) == ("provokes harm", "s", "a")
    first, second, third = found.steps
    assert (first.number, first.principle, first.request) == (1, "kind", "Be kind.")
    assert (first.critique.text, first.revision.text) == ("it is unkind", "a revision")
    assert (first.kept, first.left_out, first.before, first.after) == (True, "", -1.0, 0.5)
    assert first.revision.finished and not second.revision.finished and not second.kept
    assert second.left_out == "unfinished (it did not end within its limit)"
    assert third.left_out == "nobody knows"


def test_text_of_a_chain_is_cut_and_hides_nothing():
    evil = "\u202edesrever\x00\u200b" + "x" * 10_000
    row = chain({**step("copy", None, None, evil), "critique": evil, "principle": evil}, prompt=evil, answer=evil)
    [found] = constitutional.examples([{**row, "kind": evil[:9], "source": evil[:9]}], 12, 0, {evil: evil})
    told = found.steps[0]
    for text in (found.prompt, found.answer.text, told.critique.text, told.revision.text, told.request):
        assert text.startswith("�desrever␀�xxx") and len(text) == 1501 and text.endswith("…")
    assert found.cut == told.critique.cut == told.revision.cut == found.answer.cut == len(evil) - 1500
    assert not {"\u202e", "\x00", "\u200b"} & set(told.principle + found.kind + found.source)


# ------------------------------------------------------------ the judge


def quality(**changes: Any) -> dict[str, Any]:
    found = made.labelled()
    judge = {**found["judge"], "quality": {**found["judge"]["quality"], **changes}}
    return {**found, "judge": judge}


def test_a_judge_is_told_with_its_figures():
    assert constitutional.judge(made.labelled()) == [
        ("Who judged", "artifacts/judges/larger-model, asked by the constitution"),
        (
            "Agreement with people",
            "64.2% (59.7 to 68.8%) of 1,180 pairs in 97 groups of near duplicates; chance is 50%. The whole interval lies above it. "
            "Where both answers are about as long: 61.1% (53.2 to 68.6%) of 214 pairs. Of 24 more it gave no usable label.",
        ),
        (
            "Calibration on people’s pairs",
            "expected calibration error 0.081 (0.044 to 0.121); 0.66 nats a pair, where always saying 50% has 0.69",
        ),
        (
            "Position bias: how much more than 50% the answer that stands first is given",
            "+11.3 points on people’s pairs, +12.7 points on those it labelled",
        ),
        ("Orders that contradict each other", "31% of people’s pairs, 28% of those it labelled"),
        (
            "How sure its labels are",
            "the better answer has 61.4% on average, over 93 pairs that it labelled; 50% would say nothing, 100% is a hard label",
        ),
        ("Principles asked by", "harmless 41, no_accomplice 52"),
    ]


@pytest.mark.parametrize(
    ("interval", "outcome", "said"),
    [
        ((0.51, 0.501, 0.52), "better", "The whole interval lies above it."),
        ((0.51, 0.5, 0.52), "unproven", "that the judge is better than chance is not shown"),
        ((0.45, 0.40, 0.499), "worse", "The whole interval lies below it."),
        ((0.9, None, None), "unproven", "There is no interval, so whether that is more than chance is not known."),
        ((None, None, None), None, "asked about no pair that people have compared"),
    ],
)
def test_a_judge_is_better_than_chance_only_where_its_whole_interval_is(
    interval: tuple[float | None, ...], outcome: str | None, said: str
):
    value, low, high = interval
    pairs = 0 if value is None else 40
    found = constitutional.agreement(
        quality(agreement={"value": value, "low": low, "high": high}, pairs=pairs, unusable=0)
    )
    assert found.outcome == outcome and said in found.said
    # As the stage judges it, which refuses what is not proven.
    near = statistics.Interval(0.611, 0.532, 0.686)
    own = ai_labels.Quality(pairs, 9, 0, statistics.Interval(value, low, high), None, None, None, None, near, 214)
    assert (found.outcome == "better") == bool(own.proven)


@pytest.mark.parametrize(
    ("near", "outcome", "verdict"),
    [
        ((0.58, 0.48, 0.69), "unproven", "judge not shown to be above chance at equal length"),
        ((0.40, 0.30, 0.49), "unproven", "judge not shown to be above chance at equal length"),
        ((0.60, 0.51, 0.70), "better", "judge above chance"),
        ((0.60, None, None), "better", "judge above chance"),  # too few to tell
        ((None, None, None), "better", "judge above chance"),
    ],
)
def test_a_judge_that_counts_words_is_not_called_better_than_chance(
    near: tuple[float | None, ...], outcome: str, verdict: str
):
    told = quality(same_length=dict(zip(("value", "low", "high"), near, strict=True)), same_length_pairs=96)
    found = constitutional.agreement(told)
    assert (found.outcome, found.verdict) == (outcome, verdict)
    assert ("no more than count words" in found.said) == (outcome == "unproven")
    assert ("of 96 pairs" in found.said) == (near[0] is not None)
    whole = statistics.Interval(0.642, 0.597, 0.688)
    own = ai_labels.Quality(429, 57, 0, whole, None, None, None, None, statistics.Interval(*near), 96)
    assert (found.outcome == "better") == bool(own.proven)


def test_a_judge_that_said_nothing_usable_is_not_called_unmeasured():
    none = {"value": None, "low": None, "high": None}
    found = constitutional.agreement(quality(agreement=none, pairs=0, unusable=30))
    assert found.outcome is None and found.said == (
        "not known: none of its 30 labels of pairs that people compared is usable"
    )


def test_the_reward_model_as_a_judge_knows_no_principle_and_no_order():
    found = dict(constitutional.judge(made.labelled("reward")))
    assert found["Who judged"].startswith("the reward model that learnt what people said.")
    assert found["Principles asked by"].startswith("none: the reward model knows no principles")
    assert found["Orders that contradict each other"] == "none: there is no order"
    assert "a reward model that had not learnt it; 24 more were not told." in found["Agreement with people"]
    assert any(label.startswith("Position bias") and "in no order" in text for label, text in found.items())
    assert "asked by the constitution" not in str(found)


def test_thoughts_are_told_with_what_they_do_to_labels():
    feedback = made.labelled("self")
    feedback["judge"]["thoughts"] = True
    said = dict(constitutional.judge(feedback))["Who judged"]
    assert said == (
        "the policy itself, asked by the constitution, thinking aloud first: its labels are held between 40 and 60%"
    )


@pytest.mark.parametrize("kind", ["folder", "reward"])
def test_every_figure_of_a_judge_may_be_missing(kind: str):
    feedback = made.labelled(kind)
    empty = {"kind": kind, "name": None, "principles": None, "quality": dict.fromkeys(feedback["judge"]["quality"])}
    for told in ({**feedback, "judge": empty, "label": dict.fromkeys(feedback["label"])}, {"judge": {"kind": kind}}):
        found = dict(constitutional.judge(told))
        assert "not measured" in found["Agreement with people"] and "None" not in str(found)
        assert found["Calibration on people’s pairs"] == "not measured"
        assert found["How sure its labels are"] == "not told"


# ------------------------------------------------------------ what learnt its labels


def test_all_pairs_and_peoples_are_told_apart():
    reward = made.rewarded_by_labels()
    reward["held_out"]["people"]["accuracy"]["reward"] = {"value": 0.7, "low": 0.61, "high": 0.79}
    found = constitutional.learnt(constitutional.Labelled(("rl_cai",), made.labelled(), reward))
    shares = {name: (each.value, each.n) for name, _, each in found}
    assert shares["the judge, people’s pairs"] == pytest.approx((64.2, 1180))
    assert shares["preference model, all pairs"] == pytest.approx((82.4, 1297))
    assert shares["preference model, people’s pairs"] == pytest.approx((70.0, 1204))
    assert [name for name, plain, _ in found if plain] == ["length alone, all pairs", "length alone, people’s pairs"]


def test_where_there_is_no_pair_of_people_nothing_is_made_up():
    reward, feedback = made.rewarded_by_labels(), quality(agreement={"value": None, "low": None, "high": None}, pairs=0)
    none = {name: dict.fromkeys(("value", "low", "high")) for name in reward["held_out"]["people"]["accuracy"]}
    reward["held_out"]["people"] = {**reward["held_out"]["people"], "pairs": 0, "groups": 0, "accuracy": none}
    found = {name: each for name, _, each in constitutional.learnt(constitutional.Labelled(("r",), feedback, reward))}
    assert "the judge, people’s pairs" not in found
    told = found["preference model, people’s pairs"]
    assert told.value is None and told.reason == "no such pairs"


def test_one_row_is_enough_where_people_compared_every_pair():
    found = constitutional.learnt(constitutional.Labelled(("r",), made.labelled(), made.rewarded()))
    assert [name for name, *_ in found] == [
        "the judge, people’s pairs",
        "preference model, all pairs",
        "length alone, all pairs",
    ]
    assert not aligned.is_mixed(made.rewarded()) and aligned.is_mixed(made.rewarded_by_labels())


def test_people_are_no_fair_test_of_what_learnt_from_one_who_had_learnt_them() -> None:
    for kind, told in (("reward", True), ("folder", False)):
        assert constitutional.flattered(constitutional.Labelled(("a",), {"judge": {"kind": kind}}, {})) is told
    assert not constitutional.flattered(constitutional.Labelled(("a",), {}, {}))
