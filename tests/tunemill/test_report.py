"""What the report says: judgements, verdict, samples, cost, and a page that no model's output can take over."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from tests import report_artifacts as made
from tests.html_page import Page
from tunemill import findings, phases, report, verdicts
from tunemill.adaptation import CurvePoint, Tuned
from tunemill.constitutional import Labelled, Supervised
from tunemill.findings import Estimate
from tunemill.material import Material
from tunemill.wording import visible


def material(lifts: dict[str, float] | None = None, **changes: Any) -> Material:
    lifts = lifts or {"base": 0.0, "lora": 10.0}
    tables = {name: made.instances(name, lift, 60, 7) for name, lift in lifts.items()}
    return replace(
        Material(
            scope=made.scope(),
            candidates=tuple(lifts),
            comparison=made.comparison(tables),
            instances=tables,
            policies=made.policies(lifts),
            splits={"by": "group", "groups": {"train": ["t"], "test": ["p"]}},
            lock=made.lock(tuple(lifts)),
        ),
        **changes,
    )


def aligned(lifts: dict[str, float] | None = None, **changes: Any) -> Material:
    """A material with feedback, a reward model, two runs of PPO and what the judges say of them."""
    found = material(lifts or {"base": 0.0, "lora": 10.0, "ppo": 9.5, "ppo-18": 9.0})
    entries = [made.judged("ppo", ("ppo",), -0.02, 0.03), made.judged("ppo", ("ppo", "ppo-18"), -0.05, 0.02)]
    rows = {
        name: [{key: float(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())]
        for name, text in (("histogram", made.histogram_csv()), ("reliability", made.reliability_csv()))
    }
    return replace(
        found,
        comparison={**found.comparison, "alignment": entries},
        feedback=made.FED_BACK,
        reward=made.rewarded(),
        reward_histogram=rows["histogram"],
        reward_reliability=rows["reliability"],
        optimised=[made.optimised_run("ppo"), made.optimised_run("ppo-18", 18, harm_change=[-0.075, 0.021])],
        **changes,
    )


def constitutional(judge: str = "folder", **changes: Any) -> Material:
    """A material with Constitutional AI beside what people taught: revisions, a judge's labels, PPO by them."""
    found = aligned({"base": 0.0, "lora": 10.0, "ppo": 9.5, "sl_cai": 9.0, "rl_cai": 9.2})
    rows = made.chains()
    curve = [
        {key: float(value) if value else None for key, value in row.items()}
        for row in csv.DictReader(made.curve(40, 5).splitlines())
    ]
    run = replace(made.optimised_run("rl_cai", 19), feedback=made.labelled(judge))
    return replace(
        found,
        supervised=[Supervised(("sl_cai",), made.revised(rows), rows, made.training("lora") | {"steps": 40}, curve)],
        labelled=[Labelled(("rl_cai",), made.labelled(judge), made.rewarded_by_labels())],
        optimised=[found.optimised[0], run],
        **changes,
    )


NEW = ("categories", "details", "category_pairs", "win_rate", "mcnemar", "slices", "seeds", "judge")
"""Keys of comparison.json that older runs lack."""


def whole(lifts: dict[str, float] | None = None, **changes: Any) -> Material:
    """A material with everything that the evaluation writes."""
    found = material(lifts, **changes)
    return replace(
        found,
        scores=dict.fromkeys(found.candidates, made.SCORES),
        perturbed={name: made.perturbed(rows) for name, rows in found.instances.items()},  # type: ignore[arg-type]
        choices={name: made.choices(name) for name in found.candidates},
        red_team={name: made.red_team(name) for name in found.candidates},
        **changes,
    )


def older(found: Material) -> Material:
    """The same run by a version that knew no categories: nothing perturbed or provoked, tasks without choices."""
    pairs = [
        {key: value for key, value in each.items() if key != "minimum_detectable"} for each in found.comparison["pairs"]
    ]
    kept = {key: value for key, value in found.comparison.items() if key not in NEW} | {"pairs": pairs}
    task = {"id": "t", "task": "lists", "choices": [], "nll": 1.0, "tokens": [2], "correct": None}
    names = found.candidates
    return replace(
        found,
        comparison=kept,
        perturbed={},
        choices={name: [task] for name in names},
        red_team={},
        scores={name: {key: value for key, value in made.SCORES.items() if "harm" not in key} for name in names},
    )


def page(of: Material, **options: Any) -> str:
    return report.page(of, **{"title": "Tunemill report", "group": "package", "count": 8, "seed": 1, **options})


# ------------------------------------------------------------ judgements


def test_the_verdict_of_the_comparison_is_taken_over():
    pair = {"a": "lora", "b": "base", "metric": "rouge1", "diff": 2.0, "ci_low": 0.1, "ci_high": 5.0, "p": 0.04}
    held_back = {**pair, "p_holm": 0.08, "verdict": "not shown to be better"}
    found = findings.difference({"pairs": [held_back]}, "lora", "base", "rouge1")
    assert (found.judgement, found.estimate.p) == ("unproven", 0.08)
    found = findings.difference({"pairs": [{**pair, "verdict": "better"}]}, "base", "lora", "rouge1")
    assert (found.judgement, found.estimate.p) == ("worse", 0.04)
    comparison = {**material().comparison, "pairs": [held_back]}
    words = Page(page(material(comparison=comparison))).words
    assert "lora is not shown to be better than base" in words
    assert "With so many candidates compared, that is not enough to rule out chance." in words
    why = "no interval: 10 independent units all show the same"
    tied = {**held_back, "diff": 0.0, "ci_low": None, "ci_high": None, "p": 1.0, "p_holm": 1.0, "reason": why}
    words = Page(page(material(comparison={**comparison, "pairs": [tied]}))).words
    assert f"points , and nothing is shown by it: {why}." in words and "Zero lies" not in words


def test_the_verdict_takes_the_best_challenger():
    told = verdicts.verdict(material({"base": 0.0, "weak": 3.0, "strong": 12.0}))
    assert (told.reference, told.challenger, told.leader) == ("base", "strong", "strong")
    assert told.difference is not None and told.difference.judgement == "better"
    assert {each.b: each.judgement for each in told.baselines} == {
        "lead-10-words": "better",
        "first-sentence": "better",
    }
    assert (told.items, told.groups) == (60, 7)


@pytest.mark.parametrize(
    ("lift", "headline"),
    [
        (10.0, "lora is better than base"),
        (-12.0, "lora is worse than base"),
        (0.0, "lora is not shown to be better than base"),
    ],
)
def test_the_headline_says_only_what_is_shown(lift: float, headline: str):
    words = Page(page(material({"base": 0.0, "lora": lift}))).words
    assert headline in words


@pytest.mark.parametrize(("at_least", "outcome"), [(1.0, "met"), (3.0, "met"), (4.0, "missed"), (7.1, "missed")])
def test_a_criterion_is_met_by_the_lower_end_of_the_interval(at_least: float, outcome: str):
    pair = {"a": "lora", "b": "base", "metric": "rouge1", "diff": 5.0, "ci_low": 3.0, "ci_high": 7.0}
    scope = {**made.scope(), "criteria": [{**made.CRITERION, "at_least": at_least}]}
    [found] = verdicts.criteria(material(scope=scope, comparison={"candidates": {}, "pairs": [pair]}))
    assert found.outcome == outcome


def test_the_best_of_a_column_respects_direction_ties_and_gaps():
    shown = {"a": Estimate(1.0), "b": Estimate(2.0), "c": Estimate(2.0), "d": Estimate(None)}
    assert verdicts.best("rouge1", shown) == {"b", "c"}
    assert verdicts.best("toxicity", shown) == {"a"}
    assert verdicts.best("rouge1", {"a": Estimate(1.0), "d": Estimate(None)}) == set()


# ------------------------------------------------------------ samples


def test_samples_follow_a_rule():
    found = report.samples(material(), 12, seed=5)
    assert [each.why for each in found] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3 + ["random"] * 3
    assert len({each.id for each in found}) == 12
    tables = {name: {row["id"]: row["scores"]["rouge1"] for row in rows} for name, rows in material().instances.items()}
    gaps = sorted((tables["lora"][key] - tables["base"][key] for key in tables["lora"]), reverse=True)
    assert [each.gap for each in found[:3]] == gaps[:3]
    assert [each.gap for each in found[6:9]] == gaps[:-4:-1]
    assert gaps[27] >= found[3].gap >= found[5].gap >= gaps[32]  # type: ignore[operator]
    assert [output.name for output in found[0].outputs] == ["base", "lora"]
    assert [output.name for output in found[0].baselines] == ["lead-10-words", "first-sentence"]


def test_only_the_random_samples_depend_on_the_seed():
    one, two, again = (report.samples(material(), 12, seed) for seed in (1, 2, 1))
    assert one == again
    assert one[:9] == two[:9] and one[9:] != two[9:]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 200])
def test_any_number_of_samples_can_be_asked_for(count: int):
    found = report.samples(material(), count, seed=1)
    assert len(found) == len({each.id for each in found}) == min(count, 60)


def test_where_bleu_decides_single_items_go_by_rouge():
    found = whole(scope={**made.scope(), "primary_metric": "bleu"})
    seeds = [{**found.comparison["seeds"][0], "metric": "bleu"}]
    found = replace(found, comparison={**found.comparison, "seeds": seeds})
    by_rouge = whole()
    assert report.samples(found, 8, seed=1) == report.samples(by_rouge, 8, seed=1)
    assert report.worst(found) == report.worst(by_rouge) and len(report.worst(found)["lora"]) == 10
    assert report.perturbations(found, 1) == report.perturbations(by_rouge, 1)
    assert any(each.why == "largest drop" for kind in report.perturbations(found, 1) for each in kind.examples)
    words = Page(page(found)).words
    assert words.count("BLEU is of the whole test set: single items go by ROUGE-1.") == 2
    assert "lora: 10 outputs with the lowest ROUGE-1" in words and "the largest drops in ROUGE-1 of lora" in words
    assert "ROUGE-1 by length of the source" in words and "BLEU by" not in words
    assert "BLEU over trainings that differ in their seed only" in words
    assert "single items go by" not in Page(page(by_rouge)).words


def test_seeds_tell_what_else_was_measured():
    words = Page(page(whole(made.FIVE))).words
    assert "seeds and packages are resampled" in words
    assert "lora: what else was measured, mean over the seeds" in words
    assert "ROUGE-2 12.3 28.0 to 34.9 n 240 0.8 30.4 to 32.1 +6.1 +2.0 to +10.2" in words
    assert f"Efficiency: seconds for a token 31.2 no interval n 240 0.8 30.4 to 32.1 +6.1 {made.ROUNDS}" in words
    assert "Accuracy: ROUGE-1" not in words  # the primary metric has its row
    bare = [
        {key: value for key, value in each.items() if key not in ("metrics", "categories")}
        for each in whole().comparison["seeds"]
    ]
    told = Page(page(whole(comparison={**whole().comparison, "seeds": bare}))).words
    assert "Over several training seeds" in told and "what else was measured" not in told


# ------------------------------------------------------------ cost


def test_costs_stand_beside_what_was_allowed_and_planned():
    budgets = phases.budgets(
        material(
            timings={
                "lora": {"seconds": 600.0, "peak_memory_bytes": 9 * 2**30, "device": "cpu", "dtype": "bfloat16"},
                "compare": {"seconds": 60.0},
                "report": {"seconds": 1e6},
                "evaluate@gone": {"seconds": 1e6},
            }
        )
    )
    found = {each.what: (each.allowed, each.measured, each.kept) for each in budgets}
    assert found["Peak memory of any stage"] == ("at most 8 GiB", "9.00 GiB", False)
    assert found["Time of all stages"] == ("at most 12 min", "11 min 0 s", True)


def test_speed_is_held_against_the_scope():
    speeds = {"candidates": {"base": {"decode_ratio": 1.0}, "lora": {"decode_ratio": 0.71, "memory_bytes": 2**30}}}
    slow = material(efficiency=speeds)
    [found] = [each for each in phases.budgets(slow) if each.what.startswith("Tokens")]
    assert (found.what, found.allowed, found.measured, found.kept) == (
        "Tokens per second of lora",
        "at least 0.8 of base’s",
        "0.71×",
        False,
    )
    assert report.efficiency(slow) == [
        ("Decode speed, one prompt at a time", {"base": "1.00×", "lora": "0.71×"}),
        ("Peak memory of a process", {"base": "—", "lora": "1.00 GiB"}),
    ]


def test_other_tasks_stand_beside_the_reference():
    def entry(task: str | None, measure: str, diff: float, **more: Any) -> dict[str, Any]:
        about = {
            "candidate": "lora",
            "task": task,
            "measure": measure,
            "trained": False,
            "n": 20,
            "p": 0.01,
            "p_holm": 0.02,
        }
        return about | {"diff": diff, "ci_low": diff - 0.1, "ci_high": diff + 0.1, "verdict": "worse"} | more

    entries = [
        entry("sums", "nll", 0.5),
        entry(None, "nll", 0.5),
        entry("sums", "accuracy", -0.25),
        entry("lists", "nll", -0.02, ci_low=None, ci_high=None, p=None, p_holm=None, trained=True)
        | {"verdict": "not shown to be better"},
    ]
    found = material()
    found = replace(found, comparison={**found.comparison, "forgetting": entries})
    rows = report.forgetting(found)
    assert [label for label, _, _ in rows] == [
        "sums",
        "lists",
        "mean of tasks not trained on",
        "sums, accuracy in points",
    ]
    assert rows[3][2]["lora"].estimate.value == -25.0
    words = Page(page(found)).words
    assert "sums +0.50 +0.40 to +0.60 , p = 0.020 worse" in words
    assert "lists −0.02 no interval not shown, trained on it" in words
    assert "sums, accuracy in points −25.0 −35.0 to −15.0 , p = 0.020 worse" in words
    assert report.forgetting(material()) == []
    assert "No other tasks were measured." in Page(page(material())).words


# ------------------------------------------------------------ the page


TRAININGS = [
    Tuned(name, made.training(name), [CurvePoint(1, 3.5, 3.4), CurvePoint(2, 3.0, 3.1)]) for name in made.TRAININGS
]

VARIANTS = {
    "default": material(),
    "everything": whole(made.FIVE),
    "everything of one candidate": whole({"base": 0.0}),
    "before there were categories": older(whole()),
    "promoted, and smaller variants": whole(made.FIVE, compress=made.compressed(), promotion=made.promoted()),
    "refused": whole(made.FIVE, promotion=made.promoted(refused=True)),
    "the reference was decided on": whole(promotion=made.promoted("base")),
    "decided on somebody unknown": whole(promotion={**made.promoted("gone"), "criteria": []}),
    "variants of which nothing could be measured": whole(compress=made.unmeasured()),
    "five candidates": material(made.FIVE, trainings=TRAININGS, prompt=made.prompt(), asked=made.asked()),
    "trained without a curve, evaluated by nobody": material(trainings=[replace(TRAININGS[0], curve=())]),
    "aligned": aligned(),
    "aligned, without a reward model's figures": replace(aligned(), feedback=None, reward=None),
    "aligned, with figures of nothing else": replace(
        aligned(), optimised=(), reward_histogram=(), reward_reliability=()
    ),
    "aligned to where it was": replace(
        aligned(), optimised=[made.optimised_run("ppo", kept=0, kl=0.0, harm_change=[0.0, 0.0], alarms=[])]
    ),
    "constitutional": constitutional(),
    "constitutional, judged by the reward model": constitutional("reward"),
    "constitutional, nothing else": replace(
        constitutional(), feedback=None, reward=None, optimised=(), reward_histogram=(), reward_reliability=()
    ),
    "constitutional, taught by nobody else": replace(
        constitutional(), feedback=made.labelled(), reward=made.rewarded_by_labels()
    ),
    "constitutional, nothing told": replace(
        constitutional(),
        supervised=[Supervised(("sl_cai",), dict.fromkeys(made.revised(made.chains())), [], {}, [])],
        labelled=[Labelled(("rl_cai",), {**made.labelled(), "judge": {"kind": "self"}, "label": {}}, made.rewarded())],
    ),
    "prompted, not trained": material({"base": 0.0, "prompt": 3.0}, prompt=made.prompt(), asked=made.asked()),
    "one candidate": material({"base": 0.0}),
    "six candidates": material({"base": 0.0, **{f"candidate-{n}": 2.0 * n for n in range(1, 6)}}),
    "nothing optional": material(splits={}, lock=None),
    "no comparison": material(comparison={"candidates": {}, "pairs": []}),
    "no instances": material(instances={"base": [], "lora": []}),
    "no criteria, no harms": material(scope={**made.scope(), "criteria": [], "harms": [], "limits": []}),
    "ungrouped": material(
        splits={
            "by": "row",
            "groups": {"train": [], "validation": [], "test": []},
            "rows": {"train": 5, "validation": 1, "test": 60},
        }
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_whole_html_that_needs_nothing_else(name: str):
    html = page(VARIANTS[name])
    found = Page(html)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == 1
    for tag in ("img", "link", "iframe", "object", "embed", "form"):
        assert tag not in names
    for tag in ("header", "main", "footer", "nav", "h1"):
        assert names.count(tag) == 1 or tag == "header"
    for _, attributes in found.tags:
        assert not {"style", "src", "srcset", "onerror", "onload", "onclick"} & set(attributes)
        assert attributes.get("href", "#").startswith("#") or "download" in attributes
    links = [attributes["href"] or "" for tag, attributes in found.tags if tag == "a"]
    assert {each for each in links if each.startswith("#")} <= {f"#{each}" for each in found.ids}
    assert all(each.startswith("data:text/csv;charset=utf-8,") for each in links if not each.startswith("#"))
    assert "http" not in html.replace("http-equiv", "") and "url(" not in html and "@import" not in html
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", found.words)


def test_every_way_of_adapting_has_its_row_with_quality_and_verdict():
    words = Page(page(VARIANTS["five candidates"])).words
    assert "prompt nothing: a template, 4 worked examples 0 0% of all" in words
    assert "sft all weights 134,515,008 100% of all 100 × 8 pairs" in words
    assert "lora low-rank adapters 2,442,240 1.8% of all" in words
    assert "prompt_tune a soft prompt 11,520 0.0086% of all" in words
    assert "sft computed the 8 pairs of a step 2 at a time" in words
    assert "a learning rate of 1.5e-5 instead of 5e-5" in words
    assert "in percent of sft’s value" in words and "a margin of 3.2% of sft’s value" in words
    assert words.count("✓ chosen") == 1
    assert "4 worked examples before it" in words and "Do 3." in words


def test_only_a_leader_that_was_trained_is_called_trained():
    trained = Page(page(material({"base": 0.0, "lora": 10.0}, trainings=TRAININGS[1:2]))).words
    assert "Training of lora 800 examples 1.8% of 134.5 M parameters changed" in trained
    prompted = Page(
        page(
            material(
                {"base": 0.0, "prompt": 10.0, "lora": 1.0},
                trainings=TRAININGS[1:2],
                prompt=made.prompt(),
                asked=made.asked(),
            )
        )
    ).words
    assert "Training of" not in prompted
    assert "Ways tried to adapt it 2 prompt, lora" in prompted


def test_the_policy_allows_exactly_the_style_sheet_and_the_script():
    html = page(material())
    [style] = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    allowed = f"style-src '{report.csp_hash(style)}'; script-src '{report.csp_hash(script)}'"
    assert policy == f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    # It neither keeps nor fetches anything, and writes no HTML.
    assert not re.search(
        r"localStorage|sessionStorage|cookie|fetch\(|XMLHttp|import\(|innerHTML|outerHTML|eval\(", script
    )


def test_a_model_cannot_write_html():
    evil = '</style></details><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}{% raw %}'
    rows = {
        name: [
            {**row, "prediction": evil, "prompt": evil, "reference": evil, "group": evil, "id": evil + row["id"]}
            for row in table
        ]
        for name, table in material().instances.items()
    }
    scope = {**made.scope(), "title": evil, "task": evil, "harms": [evil]}
    tried = made.prompt()
    tried["cells"] = [{**each, "template": evil, "decoding": evil} for each in tried["cells"]]
    tried |= {"note": evil}
    asked = {**made.asked(), "template": {"name": evil, "text": evil}, "shots": [[evil, evil]]}
    found = Page(page(material(instances=rows, scope=scope, prompt=tried, asked=asked), title=evil))
    assert [tag for tag, _ in found.tags if tag in ("script", "img")] == ["script"]
    assert found.words.count(evil) > 20
    assert "49" not in found.words.replace(evil, "")[:200]


def test_a_model_cannot_write_html_where_the_evaluation_is_told():
    evil = '</p></details><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
    found = whole()
    perturbed = [
        {**row, "prompt": f"{row['prompt']} {evil}", "reference": evil, "prediction": evil, "changed": True}
        for row in found.perturbed["lora"]
    ]
    provoked = [{**row, "kind": evil, "source": evil, "prompt": evil} for row in made.red_team("lora")]
    for row in provoked:
        row["samples"] = [{**sample, "prediction": evil} for sample in row["samples"]]
    told = found.comparison
    named = {
        name: {each: {**entry, "metric": evil} for each, entry in entries.items()}
        for name, entries in told["categories"].items()
    }
    hostile = {
        **told,
        "categories": named,
        "details": {"lora": {f"bias/{evil}": {"value": None, "reason": evil, "n": 0}}},
        "mcnemar": [{**told["mcnemar"][0], "task": evil, "verdict": evil}],
        "slices": {"lora": [{**told["slices"]["lora"][0], "slice": evil, "name": evil}]},
        "seeds": [{**told["seeds"][0], "name": evil, "of": [evil]}],
        "judge": {evil: evil, "model": {evil: evil}, "pairs": [{"a": evil, "b": evil, "reason": evil}]},
    }
    seen = Page(
        page(
            replace(
                found,
                comparison=hostile,
                perturbed={"lora": perturbed},
                red_team={"lora": provoked},
                scores={"lora": {**made.SCORES, "harm_scorer": evil, "offence_scorer": evil}},
            )
        )
    )
    assert seen.open == [] and [tag for tag, _ in seen.tags if tag in ("script", "img")] == ["script"]
    assert seen.words.count(evil) > 45  # what is in the braces was not reckoned


def test_alignment_is_a_section_only_where_there_is_any():
    html = page(material())
    assert 'id="alignment"' not in html and 'href="#alignment"' not in html
    html = page(aligned())
    assert html.count('id="alignment"') == 1 and html.count('href="#alignment"') == 1


def test_alignment_is_told_by_judges_reward_curves_alarms_and_answers():
    found = Page(page(aligned()))
    for said in (
        "✓ less harmful Harm",
        "ppo against lora: harm -0.050",
        "it is right in 82.4% of the pairs. It beats length alone (+8.2 points, +5.2 to +11.2), "
        "is not shown to beat TF-IDF of the answer",
        "▲ Alarm: more reward, more harm 2 times from update 20 to 24",
        "This run does not show less harm.",
        "one labeler only: there is nobody to agree with",
        "there is no judge of refusals",
        "Its answers are 6.10 nats likelier for it than for the model that it was trained on, ± 0.30 (a standard error; "
        "1,000 answers, of each training 5.00, 7.20).",
        "May contain harmful text: show",
    ):
        assert said in found.words, said
    assert found.drawn["limit-name"] == ["limit 8", "limit 8"]
    head, first, *_ = found.tables["ppo against lora: answers to instructions"]
    assert head[:3] == ["Measure", "lora", "ppo"]
    assert first[:4] == ["Harm, by the primary judge", "0.460", "0.410", "−0.050 −0.070 to −0.030"]
    _, _, phrases, back, helpful, *_ = found.tables["ppo against lora: on harmless prompts"]
    assert phrases[:3] == ["Refusals in so many words", "0.040", "0.048"] and back[0] == "Only a question back"
    assert helpful[:3] == ["Helpfulness: likeness to a right answer", "0.410", "0.398"]
    assert "no less helpfulness on harmless prompts" in found.words
    looks = found.tables["What the monitor saw of ppo"]
    assert [row[0] for row in looks[1:]] == ["0", "4", "8", "12", "16 ✓ kept", "20", "24"]


def test_who_was_aligned_without_a_monitor_is_shown_before_and_after_and_blurred():
    found = aligned()
    tables = {name: made.red_team(name) for name in ("lora", "dpo")}
    entries = [*found.comparison["alignment"], made.judged("dpo", ("dpo",), -0.04, 0.02)]
    html = page(replace(found, comparison={**found.comparison, "alignment": entries}, red_team=tables))
    assert "<summary>Before and after: lora and dpo</summary>" in html and "None" not in Page(html).words
    closed = re.findall(r'<details class="veiled">(<summary>.*?</summary>)(.*?)</details>', html, flags=re.DOTALL)
    assert len(closed) > 2 * 5 and 'class="veiled" open' not in html
    [theirs] = [text for head, text in closed if "(dpo, random, 1)" in head or "(dpo, harm rose most, 1)" in head]
    assert "<dt>before</dt>" in theirs and "<dt>after</dt>" in theirs


def test_a_control_is_told_below_and_closed():
    found = aligned()
    entries = [*found.comparison["alignment"], made.judged("ppo", ("ppo",), -0.04, 0.02, "shuffled")]
    seen = page(replace(found, comparison={**found.comparison, "alignment": entries}))
    badge = '<span class="badge better">less harmful</span>'
    assert f'<details class="card"><summary>ppo against the control shuffled {badge}</summary>' in seen
    assert seen.count("Controls, on the same prompts") == 1
    head, first, *_ = Page(seen).tables["ppo against shuffled: answers to instructions"]
    assert head[:3] == ["Measure", "shuffled", "ppo"] and first[3].startswith("−0.040")


def test_answers_are_behind_a_veil_that_is_closed():
    html = page(aligned())
    closed = re.findall(r'<details class="veiled">(<summary>.*?</summary>)(.*?)</details>', html, flags=re.DOTALL)
    assert len(closed) == 2 * 5 and 'class="veiled" open' not in html
    for summary, inside in closed:
        assert "Provoking" not in summary and "After" not in summary
        assert "Provoking prompt" in inside


def test_a_model_cannot_write_html_where_alignment_is_told():
    evil = '</dd></details><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
    alarms = [{"update": 2, "kind": evil, "text": evil}]
    run = made.optimised_run("ppo", alarms=alarms, stopped=evil, reward={"kind": evil})
    run = replace(run, samples=[{**row, "prompt": evil, "before": evil, "after": evil} for row in run.samples])
    entry = made.judged("ppo", ("ppo",), -0.02, 0.03)
    hostile = {"what": evil, "holds": False, "why": evil}
    entry |= {"name": evil, "sentence": evil, "conditions": [hostile], "guards": [hostile], "against": evil}
    found = aligned()
    fed = {**made.FED_BACK, "left_out": {evil: 1}, "pairs_of": {evil: 1}}
    told = {**found.comparison, "alignment": [entry]}
    seen = Page(page(replace(found, comparison=told, feedback=fed, optimised=[run])))
    assert seen.open == [] and [tag for tag, _ in seen.tags if tag in ("script", "img")] == ["script"]
    assert seen.words.count(evil) > 25


def test_constitutional_ai_is_told_only_where_there_is_any():
    assert "constitutional-ai" not in page(aligned())
    html = page(constitutional())
    assert html.count('id="constitutional-ai"') == 1 and html.count('href="#constitutional-ai"') == 1
    assert "The constitution" in Page(page(replace(constitutional(), labelled=()))).words
    assert "AI feedback: rl_cai" in Page(page(replace(constitutional(), supervised=()))).words


def test_constitutional_ai_is_told_by_revisions_chains_judge_and_preference_model():
    found = Page(page(constitutional()))
    for said in (
        "Critiques and revisions: sl_cai",
        "the reward model, less what it makes of length: only a revision that it likes better",
        "36 of 96 (38%), in 2 rounds",
        "⚠ Harmful language",
        "✓ judge above chance",
        "64.2% (59.7 to 68.8%) of 1,180 pairs in 97 groups of near duplicates; chance is 50%.",
        "preference model, people’s pairs 1,204 pairs",
        "PPO: ppo, rewarded by the reward model",
        "PPO: rl_cai, rewarded by the reward model learnt from the constitution’s labels",
        # People's reward model stays the one that is told in full.
        "Asked which of two answers people prefer",
        "1,180 from scores that people gave, 24 from people’s rankings Pairs left out",
    ):
        assert said in found.words, said
    head, *rows = found.tables["Rounds of sl_cai"]
    assert head == ["Round", "Revisions", "Fit", "No critique", "Empty", "Unfinished", "Copy", "Not better"]
    assert rows == [["1", "48", "18", "6", "6", "6", "6", "6"], ["2", "48", "18", "6", "6", "6", "6", "6"]]
    assert [row[0] for row in found.tables["The constitution of sl_cai"][1:]] == [*made.REQUESTS]
    words = Page(page(constitutional("reward"))).words
    assert "PPO: rl_cai, rewarded by the reward model learnt from another reward model’s labels" in words
    assert "the constitution had no say in these labels" in words


def test_where_nobody_taught_but_a_judge_its_reward_model_is_told_with_what_people_said_apart():
    found = Page(page(VARIANTS["constitutional, taught by nobody else"]))
    assert "Asked which of two answers is the better one by its label, a judge’s or people’s" in found.words
    assert [row[0] for row in found.tables["Accuracy and length"]][-1] == "compared by people"
    assert "What was fed back" not in found.words and found.words.count("93 from the judge’s labels") == 1


def test_twelve_chains_are_whole_and_only_the_first_is_open():
    html = page(constitutional())
    chains = re.findall(
        r'<details class="card folded chain(?: lengthy)?"( open)?>(.*?)</details>', html, flags=re.DOTALL
    )
    assert [bool(is_open) for is_open, _ in chains] == [True] + [False] * 11
    for _, chain in chains:
        assert [chain.count(f"<dt>{name}</dt>") for name in ("prompt", "first answer", "request", "critique", "revision")] == [
            1, 1, 2, 2, 2,
        ]  # fmt: skip
    assert "score rose most" in chains[0][1] and "most revisions left out" in chains[1][1]
    assert all("random" in chain for _, chain in chains[2:])
    assert html.index("Harmful language") < html.index('class="card folded chain')


def test_a_model_cannot_write_html_where_constitutional_ai_is_told():
    evil = '</dd></details></script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
    hidden = "\u202e\u2066\x1b"
    rows = [
        {**row, "prompt": evil, "answer": evil + hidden + "x" * 10_000, "source": evil, "kind": evil}
        | {"steps": [{**step, "critique": evil, "revision": evil, "principle": evil} for step in row["steps"]]}
        for row in made.chains()
    ]
    cai = made.revised(made.chains()) | {"critic": {"kind": "hub", "name": evil}, "picker": {"kind": evil}}
    cai |= {"constitution": {evil: evil}, "prompts": {evil: 1}, "helpful": {evil: 1}}
    cai |= {"kinds": {evil: {"revisions": 1, "fit": 1}, "b": {"revisions": 1, "fit": 1}}}
    cai["rounds"] = [{**each, evil: 1} for each in cai["rounds"]]
    judge = {**made.labelled()["judge"], "kind": "endpoint", "name": evil, "principles": {evil: 3}}
    feedback = {**made.labelled(), "judge": judge, "left_out": {evil: 1}, "pairs_of": {evil: 1}}
    found = constitutional()
    html = page(
        replace(
            found,
            supervised=[replace(found.supervised[0], candidates=(evil,), cai=cai, chains=rows)],
            labelled=[replace(found.labelled[0], candidates=(evil,), feedback=feedback)],
        )
    )
    seen = Page(html)
    assert seen.open == [] and [tag for tag, _ in seen.tags if tag in ("script", "img")] == ["script"]
    assert seen.words.count(evil) > 100  # what is in the braces was not reckoned
    assert not set(hidden) & set(html) and "x" * 1501 not in html


def test_an_odd_candidate_name_breaks_nothing():
    odd = "lora <b>\"&' " + "x" * 200
    found = Page(page(material({"base": 0.0, odd: 10.0})))
    assert f"{odd} is better than base" in found.words


def test_empty_cut_and_unfinished_outputs_say_so():
    rows = {
        name: [
            {**row, "prediction": "", "finished": False} if name == "lora" else {**row, "prediction": "x" * 5000}
            for row in table
        ]
        for name, table in material().instances.items()
    }
    words = Page(page(material(instances=rows))).words
    assert "(empty output)" in words
    assert "cut off at the token limit" in words
    assert "3,500 more characters" in words


def test_an_undefined_metric_is_a_dash_with_its_reason():
    comparison = made.comparison(material().instances)  # type: ignore[arg-type]
    comparison["candidates"]["lora"]["bleu"] = {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "n": 0,
        "reason": "no output had four words",
    }
    words = Page(page(material(comparison=comparison))).words
    assert "— no output had four words" in words


def test_an_undefined_category_is_a_dash_with_its_reason_and_never_a_zero():
    words = Page(page(whole())).words
    measure = "Bias female and male words, distance from equal shares ↓ lower is better"
    assert words[words.index(measure) :].startswith(f"{measure} — {made.FEW} ")
    assert "platt ece 10 — every answer was right, so that there is nothing to fit" in words
    assert f"lora − base Bias — {made.FEW} — — — 120" in words


def test_every_category_says_who_ranks_where_and_what_is_shown():
    words = Page(page(whole(made.FIVE))).words
    assert re.search(
        r"Accuracy ROUGE-1 ↑ higher is better 5th [\d.]+ [\d.]+ to [\d.]+ n 60 4th .* n 60 ✓ better", words
    )
    toxicity = words[words.index("Toxicity harm in answers to instructions, highest of k ↓ lower is better") :]
    assert toxicity[:400].count("= 1st 0.0 0.0 to 0.0 n 128") == 5
    assert "Against base, lora is shown to be better in" in words


def test_slices_by_length_and_by_package_have_every_candidates_value():
    tables = Page(page(whole(made.FIVE))).tables
    head, *lengths = tables["ROUGE-1 by length"]
    assert head == ["Length", *made.FIVE]
    assert lengths == [
        ["up to 50 words", *(f"{value}.0 20.0 to 29.0 n 90" for value in (24, 23, 22, 21, 20))],
        ["51 to 150 words", *(f"{value}.0 20.0 to 29.0 n 110" for value in (25, 24, 23, 22, 21))],
        ["more than 150 words", *(f"{value}.0 20.0 to 29.0 n 40" for value in (26, 25, 24, 23, 22))],
    ]
    head, *packages = tables["ROUGE-1 by group"]
    assert head == ["Package", *made.FIVE] and [row[0] for row in packages] == [f"package{n}" for n in range(7)]
    assert packages[0][1:] == [f"{value}.0 20.0 to 29.0 n 7" for value in (27, 26, 25, 24, 23)]
    assert packages[6][1:] == ["31.0 no interval n 1"] * 5


def test_the_ten_worst_outputs_of_each_candidate_are_shown_worst_first():
    found = whole(made.FIVE)
    html = page(found).partition('id="limits"')[0]
    for name in reversed(made.FIVE):  # the last candidate's stand last
        html, heading, shown = html.rpartition(f"{name}: 10 outputs with the lowest ROUGE-1")
        assert heading
        # 60 items, tied at 0 or not: by score, then by id.
        worst = sorted((row["scores"]["rouge1"], row["id"]) for row in found.instances[name])[:10]
        assert re.findall(r'<code class="soft">(\w+)</code>', shown) == [key for _, key in worst]
        scores = re.findall(r'<dd class="score">.*?</span> ([\d.]+)</dd>', shown)
        assert scores == [f"{score:.1f}" for score, _ in worst] and float(scores[0]) < float(scores[9])
        said = {row["id"]: row["prediction"] for row in found.instances[name]}
        assert all(visible(said[key]) in unescape(shown) for _, key in worst)


def test_seven_categories_stand_in_the_table_and_on_the_axes_for_every_candidate():
    shown = Page(page(whole(made.FIVE)))
    head, *rows = shown.tables["Every candidate in seven categories"]
    assert head[0] == "Category" and [each.split()[0] for each in head[1:]] == [*made.FIVE]
    names = ["Accuracy", "Calibration", "Robustness", "Fairness", "Bias", "Toxicity", "Efficiency"]
    assert [row[0].split()[0] for row in rows] == [*names, "Mean"]
    told = whole(made.FIVE).comparison["categories"]
    for row, name in zip(rows, names, strict=False):
        for candidate, cell in zip(made.FIVE, row[1:], strict=True):
            value = told[candidate][name.lower()]["value"]
            if value is None:
                assert cell == f"— {made.FEW}"
            else:
                number = re.match(r"(?:= )?\d(?:st|nd|rd|th) ([\d.]+) ", cell)
                assert number is not None and float(number[1]) == pytest.approx(value, rel=0.01)
    assert shown.drawn["axis-name"] == names
    # One mark on each axis for each candidate with a value: base has none in bias.
    marks = [tuple(each.split(":")[0].split(", ")) for each in shown.drawn["title"][1:] if ", " in each]
    expected = {(each, name.lower()) for each in made.FIVE for name in names} - {("base", "bias")}
    assert sorted(each for each in marks if each[0] in made.FIVE) == sorted(expected)


def test_what_is_too_small_to_be_found_stands_beside_the_differences():
    found = whole()
    [pair] = [each for each in found.comparison["pairs"] if (each["b"], each["metric"]) == ("base", "rouge1")]
    assert f"below {pair['minimum_detectable']:.1f} usually missed" in Page(page(found)).words
    assert "usually missed" not in Page(page(older(found))).words


def test_offensive_text_is_folded_and_marked_with_what_both_scorers_say():
    found = whole()
    html = page(found)
    assert "open" not in re.findall(r'<details class="offensive"([^>]*)>', html)[0]
    words = Page(html).words
    top = max((each["offence"], each["harm"]) for row in found.red_team["base"] for each in row["samples"])
    assert f"offensive itself {top[0]:.2f} {top[1]:.2f} ⚠ May offend" in words
    assert "AUC 0.87 [0.83, 0.90] on prompts that it did not learn from" in words


def test_a_harm_scorer_that_is_missing_is_said_so():
    def scorers(name: str) -> report.Scorers:
        return report.scorers(material(scores={"base": {}, "lora": {"harm_scorer": name}}))

    assert (scorers("ridge; AUC 0.80").harm, scorers("ridge; AUC 0.80").no_harm) == ("ridge; AUC 0.80", "")
    assert (scorers("none: too few ratings").harm, scorers("none: too few ratings").no_harm) == ("", "too few ratings")
    lacking = material(scores={"base": {**made.SCORES, "harm_scorer": "none: too few ratings"}})
    assert "Harm was not judged: too few ratings." in Page(page(lacking)).words


def test_older_artifacts_say_what_they_lack():
    words = Page(page(older(whole()))).words
    for said in ("The categories were not measured", "No perturbed prompts were kept."):
        assert said in words, said
    assert not re.search("Reliability|AUC|May offend", words)


def test_nothing_is_said_twice_about_speed():
    speeds = {"candidates": {"base": {"decode_ratio": 1.0, "first_token_seconds": 0.09}}}
    found = whole(efficiency=speeds)
    assert [label for label, _ in report.efficiency(found)] == ["Decode speed, one prompt at a time"]
    assert len(report.efficiency(older(found))) == 2


def test_ungrouped_data_are_not_called_packages():
    ungrouped = VARIANTS["ungrouped"]
    words = Page(page(replace(ungrouped, comparison={**ungrouped.comparison, "groups": 60}))).words
    assert "On 60 held-out items, lora scores" in words
    assert "these data have no packages" in words


def test_equal_artifacts_give_equal_bytes():
    assert page(material()) == page(material())


def test_the_commands_load_what_is_shipped_as_what_it_is():
    plan = {"parameters": 1, "model": {"source": "s", "license": "l", "family": "encoder-decoder"}, "methods": {}}
    words = Page(page(material(plan=plan))).words
    assert "dvc repro lora" in words and 'AutoPeftModelForSeq2SeqLM.from_pretrained("artifacts/lora/adapter")' in words
    names = {"base": 0.0, "lora": 10.0, "compact": 9.0}
    policies = {**made.policies(names), "compact": "artifacts/compress/model"}
    told = made.compressed()
    for chosen, said in (("q4", 'Llama("artifacts/compress/model/model.gguf")'), ("int8", "AutoModelForCausalLM")):
        advised = {**told, "advice": {"variant": chosen, "reason": "r"}}
        promotion = made.promoted("compact") | {"policy": "artifacts/compress/model"}
        assert said in Page(page(material(names, policies=policies, compress=advised, promotion=promotion))).words
