"""Five lines, and a sentence for each chapter: true, and with what is not known."""

from __future__ import annotations

from typing import Any

from tests import report_artifacts as made
from tests.tunemill.test_report import VARIANTS, aligned, constitutional, material, whole
from tunemill import report, summary
from tunemill.material import Material


def lines(of: Material) -> dict[str, str]:
    return dict(summary.lines(of, "package"))


def test_a_promotion_names_the_criterion_that_was_met_most_narrowly():
    told = lines(whole(made.FIVE, promotion=made.promoted()))
    assert list(told) == ["Asked", "Verdict", "Better by", "Costs", "Not known"]
    assert told["Asked"] == made.scope()["task"]
    assert told["Verdict"].startswith("lora is promoted: all 4 criteria met, most narrowly lora")


def test_a_refusal_names_the_criterion_and_by_how_much_it_is_missed():
    told = lines(whole(made.FIVE, promotion=made.promoted(refused=True)))
    assert told["Verdict"] == (
        "lora is refused with 2 of 4 criteria met. Decisive: lora over base on ROUGE-1, +10.2 (+8.1 to +12.3) where +9.0 points or "
        "more was asked, 0.9 short."
    )


def test_without_a_decision_nothing_is_called_promoted():
    told = lines(material())["Verdict"]
    assert told.endswith("Stage promote did not run, so nothing was promoted.") and "is promoted" not in told
    assert "names no criterion" in lines(material(scope={**made.scope(), "criteria": []}))["Verdict"]


def test_how_much_better_has_its_interval_items_and_verdict():
    told = lines(material())["Better by"]
    assert told.startswith("+") and "points of ROUGE-1 over base (95% interval +" in told
    assert "on 60 held-out items from 7 packages" in told
    assert "it is worse" in lines(material({"base": 0.0, "lora": -12.0}))["Better by"]
    assert "not shown to be better" in lines(material({"base": 0.0, "lora": 0.0}))["Better by"]
    assert "nothing else leads" in lines(material({"base": 0.0}))["Better by"]
    assert (
        lines(material(comparison={"candidates": {}, "pairs": []}))["Better by"]
        == "Not known: this pair was not compared."
    )


def test_costs_are_the_compact_variants_where_that_is_decided_on():
    names = {"base": 0.0, "lora": 10.0, "compact": 9.8}
    policies = {**made.policies(names), "compact": "artifacts/compress/model"}
    timings = {"lora": {"seconds": 600.0, "peak_memory_bytes": 2**30}}
    found = material(
        names, policies=policies, compress=made.compressed(), promotion=made.promoted("compact"), timings=timings
    )
    assert lines(found)["Costs"] == (
        "153 MiB on disk (0.30× of lora); 32.7 tokens/s (1.90×); 660 MiB of memory (0.60×); "
        "the whole run took 10 min 0 s and at most 1.00 GiB."
    )
    assert lines(material())["Costs"] == "Neither speed, size nor time was measured."


def test_what_is_not_known_is_said():
    told = lines(whole())["Not known"]
    assert "would usually be missed" in told and "whether an output is true is not measured" in told
    assert "seed" not in told  # several were tried
    comparison = {**material().comparison, "seeds": []}
    assert "another training seed was not tried" in lines(material(comparison=comparison))["Not known"]


def test_every_chapter_of_every_run_begins_with_a_whole_sentence():
    for name, found in VARIANTS.items():
        told: dict[str, Any] = summary.found(found)
        assert list(told) == list(report.CHAPTERS), name
        for chapter, sentence in told.items():
            assert sentence.endswith(".") and len(sentence) > 20 and "None" not in sentence, (name, chapter)


def test_the_sentences_say_what_was_found():
    told = summary.found(whole(made.FIVE, compress=made.compressed(), promotion=made.promoted()))
    assert told["verdict"] == "lora is promoted: all 4 criteria are met."
    assert told["compression"].startswith("int8 is the smallest within 1% of lora")
    assert "did not run" in summary.found(material())["compression"]
    assert "less harmful than lora" in summary.found(aligned())["alignment"]
    assert summary.found(aligned())["alignment"].endswith("alarms of reward hacking were raised.")
    assert "36 of 96 revisions were fit to learn from" in summary.found(constitutional())["constitutional-ai"]
