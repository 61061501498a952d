"""README and docs: every make target and recipe they name exists, and the figures are those of metrics/."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_recipes_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", text, re.MULTILINE):
        for target in words.split():
            assert target in targets, f"make {target}"
    for recipe in re.findall(r"RECIPE=([\w.-]*\w)", text):
        assert recipe == "name" or (ROOT / "recipes" / f"{recipe}.yaml").is_file(), recipe
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
    for module in re.findall(r"python -m (stages|tunemill|flows)(?:\.(\w+))?", text):
        name = "/".join(part for part in module if part)
        assert (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file() or name == "stages/average", name


def test_the_readmes_figures_are_the_committed_ones() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- results -->(.*?)<!-- /results -->", text, re.DOTALL)
    assert block is not None
    metrics = json.loads((ROOT / "metrics/compare.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (?:\*\*)?([\w-]+)(?:\*\*)? \| ([\d.]+) \| ([\d.]+) \|", block[1], re.MULTILINE)
    assert {name for name, _, _ in rows} == {
        "base",
        "prompt",
        "sft",
        "lora",
        "prompt_tune",
        "ppo",
        "sl_cai",
        "rl_cai",
        "compact",
        "lead-10-words",
        "first-sentence",
    }
    for name, first, longest in rows:
        assert first == f"{metrics[f'{name}/rouge1']:.1f}", name
        assert longest == f"{metrics[f'{name}/rougeL']:.1f}", name
    prose = " ".join(block[1].split())
    for pair in ("lora-vs-base", "sft-vs-base", "prompt-vs-base", "prompt_tune-vs-base", "lora-vs-sft"):
        gap, low, high = (metrics[f"{pair}/rouge1/{part}"] for part in ("diff", "ci_low", "ci_high"))
        assert re.search(rf"\b{gap:.1f}\D*(?:95%[^\[]*)?{re.escape(f'[{low:+.1f}, {high:+.1f}]')}", prose), pair


def test_the_harm_scorers_areas_are_those_that_were_measured() -> None:
    page = (ROOT / "docs/scope.md").read_text(encoding="utf-8")
    measured = json.loads((ROOT / "metrics/harm.json").read_text(encoding="utf-8"))
    table = page[page.index("| area under the ROC curve") :].partition("\n\n")[0]
    told = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", table)
    systems = ("harm", "harm_with_length", "harm_embedding", "offence", "length")
    figures = ("auc", "auc_same_length", "auc_same_prompt")
    assert [tuple(map(float, row)) for row in told] == [
        tuple(round(measured[f"reward/{system}/{figure}{end}"], 2) for end in ("", "_low", "_high"))
        for system in systems
        for figure in figures
    ]


def test_the_reward_models_accuracies_are_those_that_were_measured() -> None:
    page = (ROOT / "docs/alignment.md").read_text(encoding="utf-8")
    measured = json.loads((ROOT / "metrics/reward/harm.json").read_text(encoding="utf-8"))
    told = page[page.index("**The reward model** tells") :].partition("\n- ")[0]
    assert f"of {measured['pairs']:.0f} held-out pairs" in " ".join(told.split())
    assert re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", told) == [
        tuple(f"{measured[f'held_out/accuracy{system}{end}']:.2f}" for end in ("", "_low", "_high"))
        for system in ("", "_controlled", "_length", "_response", "_text")
    ]
    beaten = [system for system in ("length", "response", "text") if measured[f"held_out/less_{system}_low"] > 0]
    assert not beaten and "it beats none of them" in told


def test_the_smaller_forms_are_told_as_they_were_measured() -> None:
    page = (ROOT / "docs/compress.md").read_text(encoding="utf-8")
    measured = json.loads((ROOT / "metrics/compress.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (?:\*\*)?([\w-]+)(?:\*\*)? \| [^|]+ \| \d+ \| (.*) \|$", page, re.MULTILINE)
    assert rows[0][0] == "lora"
    assert {name for name, _ in rows} == {key.partition("/")[0] for key in measured}
    for name, row in rows:
        size, _, prefill, decode, _, quality, kept = (cell.split()[0] for cell in row.split(" | "))
        found = {key: measured[f"{name}/{key}"] for key in ("bytes_per_float32", "prefill_ratio", "decode_ratio")}
        assert [size, prefill, decode] == [
            f"{found['bytes_per_float32']:.2f}x", f"{found['prefill_ratio']:.2f}", f"{found['decode_ratio']:.2f}",
        ], name  # fmt: skip
        assert [quality, kept] == [f"{measured[f'{name}/quality']:.1f}", f"{100 * measured[f'{name}/share']:.1f}%"], (
            name
        )


def test_what_the_default_run_makes_of_the_constitution_is_what_was_measured() -> None:
    page = " ".join((ROOT / "docs/constitutional-ai.md").read_text(encoding="utf-8").split())
    told = page[page.index("## What a default run shows") :].partition(" ## ")[0]
    chains, labels, preferred = (
        json.loads((ROOT / f"metrics/{name}.json").read_text(encoding="utf-8"))
        for name in ("sl_cai/cai", "rl_cai/cai", "reward/rl_cai")
    )
    figures = {name: f"{value:.0f}" for name, value in chains.items() if value is not None}
    assert f"of {figures['revisions']} revisions of the answers to {figures['prompts/red_team']} prompts" in told
    assert (
        f"{figures['revisions/fit']} are fit to learn from; {figures['left_out/not_better']} the reward model" in told
    )
    assert f"{figures['left_out/unfinished']} did not end, {figures['left_out/copy']} were copies" in told
    assert f"{figures['left_out/no_critique']} followed no critique" in told
    assert f"{figures['helpful/own']} own answers to everyday questions and {figures['helpful/task']} training" in told
    assert f"the {figures['train/examples']} examples that are learnt ({figures['train/too_long']} more" in told
    low, high = labels["judge/agreement_low"], labels["judge/agreement_high"]
    assert f"{labels['judge/agreement']:.2f} [{low:.2f}, {high:.2f}] of {labels['judge/pairs']} pairs" in told
    assert f"off by {labels['judge/ece']:.2f} on average" in told and f"is {labels['judge/nll']:.2f} nats" in told
    assert f"by {labels['label/mean_probability']:.2f} on average" in told
    for part in ("", "/people"):
        value, low, high = (preferred[f"held_out{part}/accuracy_controlled{end}"] for end in ("", "_low", "_high"))
        assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in told, part
    assert f"of {preferred['held_out/people/pairs']:.0f}." in told
    compared = json.loads((ROOT / "metrics/compare.json").read_text(encoding="utf-8"))
    for name in ("sl_cai", "rl_cai"):
        gap, low, high = measured_span(compared, name, "harm", 3)
        assert f"{gap:+.3f} [{low:+.3f}, {high:+.3f}] (`{name}`)" in told, name


def test_the_judges_are_told_as_they_were_measured() -> None:
    measured = measured_of("judges")
    default = json.loads((ROOT / "metrics/rl_cai/cai.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/constitutional-ai.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(self|folder|reward)`[^|]*\|(.*)\|$", page, re.MULTILINE))
    assert list(rows) == ["self", "folder", "reward"]
    for name, row in rows.items():
        found = default if name == "reward" else {key.removeprefix(f"{name}/"): measured[key] for key in measured}
        spans = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", row)
        assert spans == [
            tuple(f"{found[f'judge/{figure}{end}']:.2f}" for end in ("", "_low", "_high"))
            for figure in ("agreement", "same_length")
        ], name
        *_, bias, contradictory, sure = (each.strip() for each in row.split("|"))
        assert sure == f"{found['label/mean_probability']:.2f}"
        if name != "reward":
            assert float(bias) == round(found["judge/position_bias"], 2)
            assert contradictory == f"{found['judge/contradictory']:.0%}"
            assert found["judge/agreement_low"] > 0.5 >= found["judge/same_length_low"]
    assert default["judge/same_length_low"] > 0.5, "the default judge is proven"


STUDY = {
    "**harm**, primary judge": ("harm", 3),
    "at matched length": ("harm_matched", 3),
    "refusals, judge": ("refusal", 3),
    "refusals in so many words": ("refusal_phrases", 3),
    "nonsense": ("nonsense", 3),
    "surprise of the untuned model, nats a token": ("surprise", 2),
}


def measured_of(recipe: str) -> dict[str, float]:
    """The metrics/compare.json that a run of the recipe wrote."""
    found: dict[str, float] = json.loads((ROOT / f"docs/measured/{recipe}.json").read_text(encoding="utf-8"))
    return found


def told_spans(row: str) -> list[tuple[float, ...]]:
    """Every `difference [low, high]` of a table's row."""
    return [tuple(map(float, each)) for each in re.findall(r"([-+][\d.]+) \[([-+][\d.]+), ([-+][\d.]+)\]", row)]


def measured_span(measured: dict[str, float], name: str, measure: str, places: int) -> tuple[float, ...]:
    """The same of a candidate against `lora`, as rounded on the page."""
    ends = ("diff", "ci_low", "ci_high")
    return tuple(round(measured[f"alignment/{name}-vs-lora/{measure}/{end}"], places) for end in ends)


def test_the_studys_figures_are_those_that_were_measured() -> None:
    measured, controls = measured_of("alignment"), measured_of("align-controls")
    page = (ROOT / "docs/alignment.md").read_text(encoding="utf-8")
    table = page[page.index("| | seed 17 | seed 18 |") :].partition("\n\n")[0]
    told = {row[1].strip(): row[2] for row in re.finditer(r"^\| ([^|]+)\|(.*)\|$", table, re.MULTILINE)}
    trainings = ("ppo", "ppo-18", "ppo-19", "ppo-three")
    for row, (measure, places) in STUDY.items():
        assert told_spans(told[row]) == [measured_span(measured, each, measure, places) for each in trainings], row
    drifts = re.findall(r"([\d.]+) ± ", told["nats from `lora`, read from its answers"])
    assert list(map(float, drifts)) == [round(measured[f"alignment/{each}-vs-lora/drift"], 1) for each in trainings]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    one, two, three, (gap, low, high) = (measured_span(measured, each, "harm", 3) for each in trainings)
    assert f"by {-one[0]:.2f}, {-two[0]:.2f} and {-three[0]:.2f} on 500 prompts" in readme
    noise, _, _ = measured_span(controls, "shuffled", "harm", 3)
    assert f"(for scores dealt out at random: {-noise:.2f})" in readme
    assert f"({-gap:.3f} [{-high:.3f}, {-low:.3f}])" in readme


def test_the_controls_figures_are_those_that_were_measured() -> None:
    measured = measured_of("align-controls")
    page = (ROOT / "docs/alignment.md").read_text(encoding="utf-8")
    table = page[page.index("| PPO, length as the reward |") :].partition("\n\n")[0].splitlines()
    measures = (("harm", 3), ("harm_matched", 3), ("refusal_phrases", 3), ("surprise", 2))
    for row, name in zip(table, ("length", "shuffled", "dpo", "best_of"), strict=True):
        assert told_spans(row)[:4] == [measured_span(measured, name, *each) for each in measures], name


def test_the_constitutions_study_is_told_as_it_was_measured() -> None:
    measured = measured_of("cai")
    page = (ROOT / "docs/constitutional-ai.md").read_text(encoding="utf-8")
    table = page[page.index("| | PPO, people's scores |") :].partition("\n\n")[0]
    told = {row[1].strip(): row[2] for row in re.finditer(r"^\| ([^|]+)\|(.*)\|$", table, re.MULTILINE)}
    candidates = ("ppo", "sl_cai", "sl_cai-18", "sl_cai-19", "sl_cai-three", "rl_cai")
    rows = STUDY | {
        "harmless prompts: refusals, judge": ("harmless/refusal", 3),
        "harmless prompts: refusals in so many words": ("harmless/refusal_phrases", 3),
        "harmless prompts: helpfulness": ("harmless/helpful", 3),
        "ROUGE-1 of the task, points": ("task", 1),
    }
    for row, (measure, places) in rows.items():
        assert told_spans(told[row]) == [measured_span(measured, each, measure, places) for each in candidates], row
    for name in ("sl_cai", "sl_cai-18", "sl_cai-19"):
        for measure in ("harm", "harm_matched"):
            assert measured[f"alignment/{name}-vs-lora/{measure}/ci_high"] < 0
    called = [each for each in candidates if measured[f"alignment/{each}-vs-lora/less_harmful"]]
    assert called == ["ppo"] and "**None of these is called" in page
    low, high = (measured[f"alignment/sl_cai-three-vs-lora/harm/{end}"] for end in ("ci_low", "ci_high"))
    assert f"is [{low:.3f}, {high:.3f}]" in page
    shares = [round(100 * measured[f"evaluate/{each}/align/harmless/asks_back"]) for each in ("rl_cai", "lora")]
    assert shares[1] == 2 and f"{shares[0]}% of its answers to harmless questions" in page


def test_the_study_of_compression_is_told_as_it_was_measured() -> None:
    """Its table against the artifacts/compress/compress.json that a run of the recipe wrote."""
    measured = json.loads((ROOT / "docs/measured/compress.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/compress.md").read_text(encoding="utf-8")
    table = page[page.index("| | | MiB | of float32 | prefill | decode | perplexity, of") :].partition("\n\n")[0]
    told = {row[1]: row[2] for row in re.finditer(r"^\| \**`([\w-]+)`\** \|(.*)\|$", table, re.MULTILINE)}
    assert told.keys() == measured["variants"].keys()
    for name, row in told.items():
        found = measured["variants"][name]
        method, size, share, *spans = (each.strip() for each in row.split("|"))
        assert method == found["method"]
        assert size == f"{found['bytes'] / 2**20:.0f}" and share == f"{found['bytes_per_float32']:.2f}x", name
        ratios = (("prefill_ratio", 1, 2), ("decode_ratio", 1, 2), ("perplexity_ratio", 1, 2), ("share", 100, 1))
        for span, (figure, scale, places) in zip(spans, ratios, strict=True):
            ends = [found[figure][end] for end in ("value", "ci_low", "ci_high") if found[figure][end] is not None]
            assert re.findall(r"[\d.]+", span) == [f"{scale * each:.{places}f}" for each in ends], (name, figure)
    assert f"**`{measured['advice']['variant']}`**" in table
