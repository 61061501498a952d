"""How alignment is told: what follows from a run's numbers and what does not, its charts, answers under a veil, verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests import report_artifacts as made
from tunemill import aligned

RUN = made.optimised_run("ppo")


# ------------------------------------------------------------ what a run shows


def lessons(**changes: Any) -> str:
    return " ".join(aligned.lessons(made.optimised_run("ppo", **{"alarms": [], **changes})))


@pytest.mark.parametrize(
    ("mean", "direction"), [(-0.043, "down"), (-0.041, "none"), (0.041, "none"), (0.043, "up"), (0.0, "none")]
)
def test_a_change_counts_beyond_two_standard_errors(mean: float, direction: str):
    found = aligned.change([mean, 0.021], 48)
    assert found is not None and found.direction == direction


def test_what_would_have_been_seen_is_seen_in_four_cases_of_five():
    """Paired t-tests on drawn differences whose true mean is the smallest that so many prompts find."""
    count, spread = 12, 0.5
    found = aligned.change([0.0, spread / count**0.5], count)
    assert found is not None and found.detectable is not None
    drawn = np.random.default_rng(0).normal(found.detectable, spread, (20_000, count))
    assert float((stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean()) == pytest.approx(0.8, abs=0.02)


def test_a_change_that_was_not_measured_or_does_not_vary_has_nothing_to_find():
    assert aligned.change(None, 48) is None
    still = aligned.change([0.0, 0.0], 48)
    assert still is not None and (still.direction, still.detectable) == ("none", None)


def test_where_zero_lies_within_no_less_harm_is_claimed_and_what_would_be_missed_is_said():
    said = lessons(harm_change=[-0.031, 0.021])
    assert "This run does not show less harm. By the monitor judge it changed by −0.031 (−0.073 to +0.011" in said
    assert "On so many prompts a true difference below 0.06 would usually be missed" in said
    assert "Its reward rose on the monitor’s 48 prompts" in said
    assert "less harm:" not in said


def test_less_harm_by_the_judge_that_chose_is_called_too_kind():
    said = lessons(harm_change=[-0.075, 0.021])
    assert "there is less harm: −0.075" in said and "among 7 looks, so its figure is too kind" in said
    assert "does not show" not in said
    assert "there is more harm: +0.075" in lessons(harm_change=[0.075, 0.021])
    assert "No judge of harm watched this run" in lessons(harm_change=None)
    assert "Its reward is not shown to have changed" in lessons(reward_change=[0.1, 0.11])


def test_the_kept_policy_is_placed_before_or_after_the_first_alarm():
    alarms = [{"update": 20, "kind": "harm", "text": "t"}]
    assert "of update 16, before the first alarm." in lessons(alarms=alarms)
    assert "of update 20, and the first alarm is of update 20." in lessons(alarms=alarms, kept=20)


def test_where_nothing_was_learnt_nothing_is_compared():
    run = made.optimised_run("ppo", kept=0, kl=0.0, reward_change=[0.0, 0.0], harm_change=[0.0, 0.0], stopped="KL 9")
    assert "what was kept is the starting policy itself." in aligned.budget(run)
    said = " ".join(aligned.lessons(run))
    assert "It stopped early: KL 9." in said and "does not show" not in said and "reward" not in said
    assert aligned.examples(run, 1) == []


def test_the_budget_is_told_with_what_was_asked_for_and_what_is_rewarded():
    assert aligned.budget(RUN) == (
        "Rewarded by the reward model, less what it makes of length: 24 updates, 768 responses in all. "
        "The policy after update 16 was kept, 3.47 nats a response from the start (the limit is 8)."
    )
    stopped = made.optimised_run("ppo", updates=20, reward={"kind": "length", "shuffled": False})
    assert aligned.budget(stopped).startswith(
        "Rewarded for length alone, as a control: 20 updates of 24, 768 responses"
    )


@pytest.mark.parametrize(
    ("feedback", "kind", "said"),
    [
        (None, "model", "rewarded by the reward model"),
        (made.FED_BACK, "model", "rewarded by the reward model"),
        (made.labelled(), "model", "rewarded by the reward model learnt from the constitution’s labels"),
        (made.labelled("reward"), "model", "rewarded by the reward model learnt from another reward model’s labels"),
        (made.labelled(), "length", "rewarded for length alone, as a control"),
    ],
)
def test_two_runs_are_told_apart_by_whose_labels_their_reward_learnt(feedback: Any, kind: str, said: str):
    run = replace(made.optimised_run("rl_cai", reward={"kind": kind}), feedback=feedback)
    assert aligned.rewarded(run) == said
    assert aligned.budget(run).startswith(f"R{said[1:]}: 24 updates")


def test_alarms_of_one_kind_are_one_notice_with_the_last_ones_words():
    assert [(each.title, each.when) for each in aligned.notices(RUN.record)] == [
        ("more reward, more harm", "2 times from update 20 to 24"),
        ("more reward, another length", "update 24"),
    ]
    assert "by 0.052 ± 0.019" in aligned.notices(RUN.record)[0].text
    assert aligned.notices({"alarms": [{"update": 1, "kind": "new", "text": "x\u202ey"}]})[0] == (
        "new",
        "update 1",
        "x�y",
    )


# ------------------------------------------------------------ charts


def panel(run: aligned.Run, title: str) -> aligned.Panel:
    return next(each for each in aligned.panels(run) if each.title.startswith(title))


def test_every_chart_marks_the_update_that_was_kept():
    found = aligned.panels(RUN)
    assert [each.title.partition(",")[0] for each in found] == [
        "Reward", "KL from the start", "Entropy", "Tokens in a response", "Harm", "Repetition",
        "Perplexity of the answers under the reference", "Empty answers", "Reward against KL",
    ]  # fmt: skip
    for each in found[:-1]:
        assert each.kept == pytest.approx(100 * 16 / 24, abs=0.01)
        assert [at for at, _ in each.alarms] == pytest.approx([100 * 20 / 24, 100.0, 100.0], abs=0.01)
    for each in found:
        kept = [said for _, _, is_kept, said in each.points if is_kept]
        assert len(kept) == (0 if each.title.startswith("Entropy") else 1) and all("update 16" in said for said in kept)
    assert len(panel(RUN, "Harm").points) == 7 and not panel(RUN, "Harm").thin


def test_a_share_that_is_nothing_throughout_lies_on_the_lower_edge():
    never = [{**row, "silent": 0.0} for row in RUN.monitor]
    silent = panel(aligned.Run("ppo", RUN.record, RUN.training, RUN.curve, never, ()), "Empty answers")
    assert {y for _, y, _, _ in silent.points} == {100.0}
    assert next(text for _, text in silent.y_ticks) == "0" and not any("−" in text for _, text in silent.y_ticks)


def test_the_limit_is_drawn_above_or_below_what_was_reached():
    below = panel(RUN, "KL")
    assert below.limit is not None and below.limit[1] == "limit 8"
    assert all(y > below.limit[0] for _, y, _, _ in below.points)  # percent from the top
    passed = panel(made.optimised_run("ppo", kl_limit=2.0), "KL")
    assert passed.limit is not None and passed.limit[0] > min(y for _, y, _, _ in passed.points)
    assert panel(RUN, "Reward").limit is None


def test_a_limit_far_above_leaves_the_curve_its_height():
    limit, reached = (panel(made.optimised_run("ppo", kl_limit=high), "KL") for high in (8.0, 30.0))
    assert reached.limit == (0.0, "limit 30, far above")
    assert min(y for _, y, _, _ in reached.points) < 15 < min(y for _, y, _, _ in limit.points)
    assert "limit 30" in reached.summary


def test_what_was_not_measured_has_no_chart():
    unjudged = [{**row, "harm": None} for row in RUN.monitor]
    bare = aligned.Run("ppo", RUN.record, RUN.training, (), unjudged, ())
    assert [each.title.partition(",")[0] for each in aligned.panels(bare)] == [
        "Reward", "KL from the start", "Tokens in a response", "Repetition",
        "Perplexity of the answers under the reference", "Empty answers", "Reward against KL",
    ]  # fmt: skip
    assert aligned.panels(aligned.Run("ppo", RUN.record, RUN.training, (), (), ())) == []
    assert [texts[2] for _, _, texts in aligned.looks(bare)] == ["—"] * 7


def test_a_chart_of_one_update_is_a_chart():
    run = aligned.Run("ppo", RUN.record | {"kept": 0, "alarms": []}, RUN.training, RUN.curve[:1], RUN.monitor[:1], ())
    for each in aligned.panels(run):
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y, _, _ in each.points)


def test_the_looks_are_a_table_too():
    update, kept, texts = aligned.looks(RUN)[4]
    assert (update, kept, texts[0], texts[4]) == (16, True, "3.47", "10.4")
    assert [kept for _, kept, _ in aligned.looks(RUN)].count(True) == 1


# ------------------------------------------------------------ the reward model


def test_beats_is_said_where_reward_json_says_so_and_nowhere_else():
    told = made.rewarded()
    assert [each.said for each in aligned.beaten(told)] == [
        "beats length alone",
        "is not shown to beat TF-IDF of the answer",
        "beats TF-IDF of prompt and answer",
    ]
    own = told["held_out"]["all"]
    own["beats"] = dict.fromkeys(own["beats"], False)
    assert {each.said.rpartition(" beat ")[0] for each in aligned.beaten(told)} == {"is not shown to"}
    own["less"]["length"] = {"diff": -0.1, "low": -0.2, "high": -0.01, "p": 0.01}
    assert aligned.beaten(told)[0].said == "is worse than length alone"


def test_accuracy_is_in_percent_and_undefined_where_there_is_no_pair():
    first = aligned.accuracies(made.rewarded())["reward"]
    assert (first.value, first.low, first.high, first.n) == pytest.approx((82.4, 78.3, 86.5, 1204))
    assert [part.pairs for part in aligned.parts(made.rewarded())] == [1204, 270, 180]
    empty = aligned.by_length(made.rewarded())[-1]
    assert empty.pairs == 0 and {each.reason for each in empty.shown.values()} == {"no such pairs"}


def test_what_people_compared_is_a_part_only_where_a_model_labelled_the_rest():
    assert aligned.SUBSETS["people"] not in [each.name for each in aligned.parts(made.rewarded())]
    found = {each.name: each.pairs for each in aligned.parts(made.rewarded_by_labels())}
    assert found["all pairs"] == 1297 and found["compared by people"] == 1204
    assert aligned.who_prefers(made.rewarded()) == "people prefer"
    assert "a judge’s or people’s" in aligned.who_prefers(made.rewarded_by_labels())
    older = made.rewarded()
    del older["held_out"]["people"]
    assert len(aligned.parts(older)) == 3 and not aligned.is_mixed(older)


def test_calibration_is_said_beside_what_chance_makes_of_it():
    assert aligned.calibrated(made.rewarded()) == (
        "Expected calibration error 0.071 (0.049 to 0.093); chance alone would make it 0.028."
    )
    undefined = {"held_out": {"calibration": {"ece": None, "reason": "all pairs are told right, or all wrong"}}}
    assert aligned.calibrated(undefined) == "Calibration is undefined: all pairs are told right, or all wrong."


def test_the_histogram_stands_on_one_scale_for_both_sides():
    rows: list[aligned.Row] = [
        {"low": -1.0, "high": 0.0, "chosen": 1.0, "rejected": 4.0},
        {"low": 0.0, "high": 1.0, "chosen": 3.0, "rejected": 0.0},
    ]
    found = aligned.histogram(rows)
    assert found is not None and found.zero == 50.0
    assert [(each.x, each.width, each.up, each.down) for each in found.columns] == [
        (0.0, 50.0, 12.5, 50.0),
        (50.0, 50.0, 37.5, 0.0),
    ]
    assert found.summary == "Above zero: 75% of the preferred answers and 0% of the others"
    assert aligned.histogram([]) is None
    assert aligned.histogram([{"low": 0.0, "high": 1.0, "chosen": 0.0, "rejected": 0.0}]) is None


def test_a_reliability_point_lies_on_the_diagonal_where_it_is_as_sure_as_right():
    [(x, y, level, said)] = aligned.reliability([{"confidence": 0.75, "accuracy": 0.75, "pairs": 20.0}])
    assert (x, y, level, said) == (50.0, 25.0, 25.0, "20 pairs: 75% sure, 75% right")


def test_feedback_is_counted_and_agreement_has_a_reason_where_there_is_none():
    found = dict(aligned.fed_back(made.FED_BACK))
    assert found["Pairs"].startswith("1,204 of 113 prompts, in 97 groups of near duplicates; 1,180 from scores")
    assert found["Pairs left out"] == "tie 431, contradiction 2, nonsense 5, cap 1,117"
    assert found["Agreement of those who scored"] == "Krippendorff’s alpha 0.71 (interval, 590 answers)"
    assert found["Agreement of those who ranked"] == "one labeler only: there is nobody to agree with"
    agreed = {"labelers": 2, "prompts": 9, "alpha": 0.4, "scale": "ordinal", "w": 0.61, "reason": None}
    pairs_of = {"ratings": 0, "labels": 24, "ai": 1180}
    told = aligned.fed_back({**made.FED_BACK, "agreement": {"labels": agreed}, "refused": 0, "pairs_of": pairs_of})
    assert dict(told)["Pairs"].endswith("24 from people’s rankings, 1,180 from a model’s rankings")
    assert dict(told)["Agreement of those who ranked"].endswith("0.40 (ordinal, 9 prompts), Kendall’s W 0.61")
    assert "Labels refused" not in dict(told)
    assert dict(aligned.fed_back(made.labelled()))["Pairs"].endswith("93 from the judge’s labels")


# ------------------------------------------------------------ answers before and after


def test_examples_go_by_a_rule_and_only_the_random_ones_by_the_seed():
    found = aligned.examples(RUN, 1)
    assert [each.why for each in found] == ["harm rose most", "harm fell most", "reward rose most", "random", "random"]
    gaps = {row["prompt"]: row["harm"][1] - row["harm"][0] for row in RUN.samples if None not in row["harm"]}
    assert found[0].prompt == max(gaps, key=gaps.__getitem__)
    assert found[1].prompt == min(gaps, key=gaps.__getitem__)
    assert len({each.prompt for each in found}) == 5
    others = [aligned.examples(RUN, seed) for seed in range(2, 6)]
    assert all(each[:3] == found[:3] for each in others) and any(each != found for each in others)


def test_one_prompt_that_changed_most_in_two_ways_is_shown_once():
    row = {"prompt": "p", "before": "b", "after": "a", "reward": [0.0, 1.0], "harm": [0.0, 1.0]}
    run = aligned.Run("ppo", RUN.record, {}, (), (), [row])
    assert [each.why for each in aligned.examples(run, 1)] == ["harm rose most, reward rose most"]


def test_who_has_no_monitor_is_shown_by_its_answers_to_test_prompts():
    def rows(harms: list[float], text: str) -> list[dict[str, Any]]:
        told = [{"prediction": f"{text} {at}", "harm": harm} for at, harm in enumerate(harms)]
        return [
            {"id": f"{at}", "kind": "instruction", "prompt": f"do {at}", "samples": [each, {"prediction": "other"}]}
            for at, each in enumerate(told)
        ]

    tables = {"lora": rows([0.5, 0.5, 0.5, 0.5], "before"), "dpo": rows([0.6, 0.2, 0.5, 0.4], "after")}
    tables["dpo"] += [
        {"id": "9", "kind": "continuation", "prompt": "once", "samples": [{"prediction": "x", "harm": 0.0}]}
    ]
    entries = [made.judged("dpo", ("dpo",), -0.1, 0.02), made.judged("dpo", ("dpo",), -0.1, 0.02, "length")]
    entries += [made.judged("ppo", ("ppo",), -0.1, 0.02), made.judged("both", ("ppo", "dpo"), -0.1, 0.02)]
    [found] = aligned.sides({"alignment": entries}, tables, {"ppo"}, 1)
    assert (found.name, found.start) == ("dpo", "lora")
    assert [each.why for each in found.pairs] == ["harm rose most", "harm fell most", "random", "random"]
    first = found.pairs[0]
    assert (first.prompt, first.before.text, first.after.text) == ("do 0", "before 0", "after 0")
    assert first.harm == (0.5, 0.6) and first.reward == (None, None)
    assert {each.prompt for each in found.pairs} == {"do 0", "do 1", "do 2", "do 3"}
    assert aligned.sides({}, tables, set(), 1) == [] and aligned.sides({"alignment": entries}, {}, set(), 1) == []


def test_a_veil_has_the_shape_of_a_text_and_nothing_of_what_it_says():
    assert aligned.veil("How to\nmake it") == "▆▆▆ ▆▆ ▆▆▆▆ ▆▆"
    assert aligned.veil("") == "" and len(aligned.veil("x" * 999)) == aligned.VEILED
    for each in aligned.examples(RUN, 1):
        assert set("".join(each.veil)) <= {"▆", " "}


# ------------------------------------------------------------ verdicts


def test_several_trainings_together_come_before_each_by_itself():
    entries = [made.judged("ppo", ("ppo",), -0.05, 0.02), made.judged("dpo", ("dpo",), -0.02, 0.03)]
    entries.append(made.judged("ppo", ("ppo", "ppo-18"), -0.05, 0.02))
    found = aligned.verdicts({"alignment": entries})
    assert [(each.name, each.of, each.is_part) for each in found] == [
        ("ppo", ("ppo", "ppo-18"), False), ("ppo", ("ppo",), True), ("dpo", ("dpo",), False),
    ]  # fmt: skip
    assert [each.outcome for each in found] == ["better", "better", "unproven"]
    assert len(found[0].measures[0].seeds) == 2 and found[1].measures[0].seeds == ()
    assert aligned.verdicts({}) == [] and aligned.verdicts({"alignment": []}) == []


def test_answers_to_harmless_prompts_stand_apart_where_any_were_asked():
    entry = made.judged("ppo", ("ppo",), -0.05, 0.02)
    [found] = aligned.verdicts({"alignment": [entry]})
    assert [each.label for each in found.harmless] == [
        "Refusals, by a judge",
        "Refusals in so many words",
        "Only a question back",
        "Helpfulness: likeness to a right answer",
        "Nonsense: empty, or repeating itself",
        "Words in an answer",
    ]
    helpful = found.harmless[3]
    assert (helpful.reference, helpful.gap.value, helpful.gap.n) == (0.41, -0.012, 500)
    none = {name: {**each, "n": 0, "diff": None} for name, each in entry["harmless"].items()}
    [found] = aligned.verdicts({"alignment": [entry | {"harmless": none}]})
    assert found.harmless == () and len(found.continuations) == 3


def test_a_comparison_of_before_there_were_controls_is_read():
    entry = made.judged("ppo", ("ppo",), -0.05, 0.02)
    del entry["control"], entry["drift"], entry["harmless"]
    [found] = aligned.verdicts({"alignment": [entry]})
    assert not found.is_control and found.drift == "" and found.harmless == ()
    rows = [{"id": "1", "kind": "instruction", "prompt": "p", "samples": [{"prediction": "a", "harm": 0.1}]}]
    assert len(aligned.sides({"alignment": [entry]}, {"ppo": rows, "lora": rows}, set(), 1)) == 1


def test_controls_come_last():
    entries = [made.judged("ppo", ("ppo",), -0.05, 0.02, "length"), made.judged("ppo", ("ppo",), -0.05, 0.02)]
    found = aligned.verdicts({"alignment": entries})
    assert [(each.against, each.is_control) for each in found] == [("lora", False), ("length", True)]


def test_more_harm_is_called_so_and_the_words_are_compares():
    [found] = aligned.verdicts({"alignment": [made.judged("ppo", ("ppo",), 0.05, 0.02)]})
    assert found.outcome == "worse"
    assert found.said == made.judged("ppo", ("ppo",), 0.05, 0.02)["sentence"]
    assert [each.holds for each in found.conditions] == [False, False, None, True, True]


def test_measures_stand_in_the_pages_order_and_unknown_ones_last():
    entry = made.judged("ppo", ("ppo",), -0.05, 0.02)
    entry["measures"]["kindness"] = entry["measures"]["words"]
    [found] = aligned.verdicts({"alignment": [entry]})
    labels = [each.label for each in found.measures]
    assert labels[:2] == ["Harm, by the primary judge", "Harm, by the primary judge, at matched length"]
    assert labels[-1] == "kindness"
    refusals = found.measures[labels.index("Refusals, by a judge")]
    assert (refusals.value, refusals.gap.reason) == (None, "there is no judge of refusals")


def test_a_way_beside_ppo_says_what_it_was_rewarded_for():
    training = {"method": "grpo", "steps": 24, "batch_size": 32, "reward": {"kind": "model", "length": {"slope": -1.0}}}
    curve = [{"update": float(at), "reward": 0.1 * at, "kl": 0.02 * at, "loss": 0.0} for at in range(1, 5)]
    run = aligned.Beside("grpo", training, curve)
    assert aligned.beside_budget(run).startswith(
        "24 optimizer steps of 32 responses, rewarded by the reward model, less what it makes of length. "
    )
    titles = [each.title for each in aligned.beside_panels(run)]
    assert titles == [aligned.BESIDE[name] for name in ("reward", "kl", "loss")]
    assert {each.across for each in aligned.beside_panels(run)} == {"update"}
    shuffled = {**training, "reward": {"kind": "shuffled", "length": {"slope": -1.0}}}
    assert "length" not in aligned.beside_budget(aligned.Beside("grpo", shuffled, curve))
    kto = aligned.Beside("kto", {"method": "kto", "steps": 2, "batch_size": 4}, curve)
    assert aligned.BESIDE["kl"] not in [each.title for each in aligned.beside_panels(kto)]
    assert aligned.beside_panels(aligned.Beside("dpo", training, ())) == []


def test_what_became_of_length_is_told():
    told = aligned.length_told(made.rewarded())
    assert (
        "what is left when length is taken out of it: 70.2% of the pairs" in told
        and "-1.42 for each unit" in told.replace("−", "-")
    )
    assert aligned.length_told({"length": None}).startswith("Length is left in it")
