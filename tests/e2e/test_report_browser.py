"""The report in a real browser, opened from disk without a network: it fits, it is readable, no model output runs.

Needs a Chromium (`CHROMIUM` names one, else the usual names are tried); skipped without one, failed in CI.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stages import report
from tests import report_artifacts
from tunemill.log import Log

pytestmark = pytest.mark.e2e

UNDECIDED = ("little", "aligned", "constitutional")
"""Reports of runs in which promote did not run."""
WIDTHS = (360, 390, 640, 768, 1024, 1280, 1600)

# Relative luminance and contrast as WCAG 2.2 defines them, of every text against the background it stands on.
CONTRAST = """() => {
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const style = getComputedStyle(node), found = parse(style.backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
      if (style.backgroundImage !== 'none') return parse(style.backgroundImage.match(/rgb[^)]*\\)/g).at(-1));
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement, style = getComputedStyle(parent);
    if (!node.data.trim() || parent.closest('title, .hidden, details:not([open]) > :not(summary)')) continue;
    const ink = parent.closest('svg') ? style.fill : style.color;
    const [light, dark] = [luminance(parse(ink)), luminance(behind(parent))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) poor.push([node.data.trim().slice(0, 40), parent.className, Math.round(ratio * 100) / 100]);
  }
  return poor;
}"""

# What sticks out to the right of the page, except inside boxes that scroll on purpose.
OVERFLOW = """() => [...document.querySelectorAll('body *')].filter(each =>
  !each.closest('.scroll, .skip, .hidden, .prompt, .commands, details:not([open]) > :not(summary)') && !each.ownerSVGElement &&
  each.getBoundingClientRect().width > 0 &&
  each.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
).map(each => each.tagName + '.' + (each.className.baseVal ?? each.className))"""

# Labels of one axis that run into each other.
COLLISIONS = """() => [...document.querySelectorAll('.axis, .frame > svg')].flatMap(axis => {
  const boxes = [...axis.querySelectorAll('text')].map(each => each.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
  ).map(() => axis.outerHTML.slice(0, 80)));
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports to look at: the usual one, one with little in it, with a lot, of a model that was aligned, and by a constitution."""
    six = {
        "base": 0.0,
        "prompt-tuned_with_a_name_that_does_not_end_anywhere_soon": 4.0,
        **{f"lora-r{n}": 2.0 * n for n in (2, 4, 8, 16)},
    }
    variants: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
        "usual": (report_artifacts.FIVE, {}),
        "little": ({"base": 0.0}, {"reads_baselines": False, "groups": 1, "count": 20}),
        "much": (six, {}),
        "aligned": ({"base": 0.0, "lora": 10.0, "ppo": 9.5, "ppo-18": 9.0}, {"count": 40}),
        "constitutional": ({"base": 0.0, "lora": 10.0, "rl_cai": 9.2, "ppo": 9.5, "sl_cai": 9.0}, {"count": 40}),
    }
    found = {}
    for name, (lifts, options) in variants.items():
        root = tmp_path_factory.mktemp(name)
        report_artifacts.write(root, lifts, **options)
        if name == "aligned":
            report_artifacts.align(root)
        if name == "much":
            decided = report_artifacts.promoted("lora-r16", refused=True)
            (root / "artifacts/promote/decision.json").write_text(json.dumps(decided))
        if name == "constitutional":
            report_artifacts.align(root, ("ppo",))
            report_artifacts.constitutional(root)
        little, artifacts = name == "little", root / "artifacts"
        found[name] = root / "report.html"
        report.run(
            report.Config(title="Tunemill report", group="package", samples=12, seed=42),
            scope=artifacts / "scope",
            data=artifacts / "validate",
            select=artifacts / "select",
            evaluations=artifacts / "evaluate",
            efficiency=None if little else artifacts / "efficiency",
            comparison=root / "reports/comparison.json",
            compress=None if little else artifacts / "compress/compress.json",
            promotion=None if name in UNDECIDED else artifacts / "promote/decision.json",
            timings=None if little else root / "metrics",
            lock=None if little else root / "dvc.lock",
            candidates=report_artifacts.candidates(lifts),
            out=found[name],
            out_tradeoff=root / "tradeoff.csv",
            log=Log(),
        )
    return found


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """A function that opens a report, and afterwards fails on any request, error or blocked resource."""
    complaints: list[str] = []
    contexts = []

    def visit(name: str, width: int = 1280, scheme: str = "light", height: int = 800) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None
        )
        page.goto(pages[name].as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("name", ["usual", "little", "much", "aligned", "constitutional"])
def test_it_fits_every_width(opened: Any, name: str):
    page = opened(name)
    if name in ("aligned", "constitutional"):
        page.evaluate("document.querySelectorAll('main details').forEach(each => each.open = true)")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert page.evaluate(OVERFLOW) == [], width
        assert page.evaluate(COLLISIONS) == [], width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: Any, scheme: str):
    for name in ("usual", "much", "aligned", "constitutional"):
        page = opened(name, scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_is_the_run_in_five_lines(opened: Any, width: int, height: int):
    page = opened("usual", width=width, height=height)
    assert page.locator("h1").inner_text() == "lora is promoted"
    lines = page.locator(".lines > div").all()
    assert [each.locator("dt").inner_text() for each in lines] == [
        "Asked",
        "Verdict",
        "Better by",
        "Costs",
        "Not known",
    ]
    for told in (page.locator("h1"), *lines):
        box = told.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height
    assert "95% interval" in lines[2].inner_text()
    assert "240 held-out items from 34 packages" in lines[2].inner_text()
    assert opened("much").locator("h1").inner_text() == "lora-r16 is refused"
    assert opened("aligned").locator("h1").inner_text() == "ppo is better than base"


def test_curves_are_told_apart_without_colour(opened: Any):
    page = opened("usual")
    dashes = page.evaluate(
        "[...document.querySelectorAll('path.curve')].map(each => getComputedStyle(each).strokeDasharray)"
    )
    assert len(dashes) == 2 * len(set(dashes)) == 2 * len(report_artifacts.TRAININGS)  # in the legend and in the chart
    markers = page.evaluate("[...document.querySelectorAll('.legend path.dot')].map(each => each.getAttribute('d'))")
    assert len(set(markers)) == len(report_artifacts.TRAININGS)


def test_categories_are_told_apart_without_colour(opened: Any):
    page = opened("usual")
    coins = page.locator("#categories .legend .coin-number").all_text_contents()
    assert coins == [str(number) for number in range(1, len(report_artifacts.FIVE) + 1)]
    drawn = page.locator(".profile .coin-number").all_text_contents()
    assert len(drawn) == 7 * len(coins) - 1  # bias is undefined for one
    ranks = page.locator(".heat .rank").all_text_contents()
    assert len(ranks) == len(drawn) and set(ranks) >= {"1st", "5th", "= 1st"}
    shades = page.evaluate(
        "[0, 1, 2, 3, 4].map(n => getComputedStyle(document.querySelector('.heat .h' + n)).backgroundColor)"
    )
    assert len(set(shades)) == 5


def test_what_may_offend_is_folded_until_a_key_opens_it(opened: Any):
    page = opened("usual", width=390)
    page.locator("#evaluation details:has(.provoked) > summary").click()
    hidden = page.locator("details.offensive").first
    assert not hidden.locator("dl").is_visible()
    hidden.locator("summary").focus()
    page.keyboard.press("Enter")
    assert hidden.locator("dl").is_visible()


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_answers_before_and_after_are_blurred_until_they_are_clicked_or_a_key_opens_them(opened: Any, how: str):
    page = opened("aligned", width=1280 if how == "click" else 390)
    veiled = page.locator("#alignment details.veiled").first
    summary, veil, text = veiled.locator("summary"), veiled.locator(".veil").first, veiled.locator("dl")
    assert summary.inner_text().startswith("⚠ May contain harmful text: show")
    assert veil.is_visible() and "blur" in veil.evaluate("each => getComputedStyle(each).filter")
    assert set("".join(veiled.locator(".veil").all_inner_texts())) <= {"▆", " "}
    assert not text.is_visible() and "Provoking" not in veiled.inner_text()
    if how == "click":
        veil.click()
    else:
        summary.focus()
        page.keyboard.press(how)
    assert text.is_visible() and not veil.is_visible()
    assert "Provoking prompt" in text.inner_text() and "After" in text.inner_text()
    # At one moment: the page may still scroll.
    before, after = veiled.evaluate(
        "each => [...each.querySelectorAll('dl > div:not(.asked)')].map(side => side.getBoundingClientRect().toJSON())"
    )
    if how == "click":  # side by side where there is room
        assert before["top"] == after["top"] and before["left"] < after["left"]
    else:
        assert before["left"] == after["left"] and before["top"] < after["top"]
    summary.focus()
    page.keyboard.press("Enter")
    assert veil.is_visible() and not text.is_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_chains_of_critiques_and_revisions_open_one_by_one(opened: Any, width: int):
    page = opened("constitutional", width=width)
    chains = page.locator("#constitutional-ai details.chain")
    assert chains.count() == 12
    assert [each.evaluate("each => each.open") for each in chains.all()] == [True] + [False] * 11
    warning = page.get_by_role("note").filter(has_text="Harmful language")
    assert warning.bounding_box()["y"] < chains.first.bounding_box()["y"]
    for at in range(12):
        chain = chains.nth(at)
        if at:
            assert not chain.locator("dl").first.is_visible()
            chain.locator("summary").focus()
            page.keyboard.press("Enter")
        assert chain.locator("dl.turn").count() == 8
        assert all(each.is_visible() for each in chain.locator("dl.turn").all())
        assert "Round 1" in chain.inner_text() and "Round 2" in chain.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOW) == []
    assert page.title() != "owned" and page.locator("img").count() == 0
    # What turns the direction of writing is shown, and does not act.
    assert "�desrever�" in page.locator("#constitutional-ai .cai").inner_text()


def test_contents_lead_to_constitutional_ai(opened: Any):
    page = opened("constitutional")
    page.locator("nav a[href='#constitutional-ai']").click()
    assert page.locator("section:target h2").inner_text() == "Constitutional AI"


def test_every_curve_of_ppo_is_drawn_with_its_marks_inside_its_frame(opened: Any):
    page = opened("aligned")
    run = page.locator("#alignment .multiples").first
    titles = run.locator("h4").all_inner_texts()
    assert [each.partition(",")[0] for each in titles] == [
        "Reward", "KL from the start", "Entropy", "Tokens in a response", "Harm",
        "Repetition", "Perplexity of the answers under the reference", "Empty answers", "Reward against KL",
    ]  # fmt: skip
    assert run.locator(".limitline").count() == 1 and run.locator(".limit-name").text_content() == "limit 8"
    assert run.locator(".keptline").count() == 8 and run.locator(".look.kept").count() == 8
    assert run.locator(".alarm-mark").count() == 8 * 3
    outside = run.evaluate(
        "run => [...run.querySelectorAll('svg[role=img]')].flatMap(chart => { const frame = chart.getBoundingClientRect();"
        " return [...chart.querySelectorAll('path, circle, .limit-name')].filter(each => { const box = each.getBoundingClientRect();"
        " return box.left < frame.left - 8 || box.right > frame.right + 8 || box.top < frame.top - 8 || box.bottom > frame.bottom; })"
        ".map(each => each.outerHTML.slice(0, 60)); })"
    )
    assert outside == []


def test_outputs_of_a_model_are_text(opened: Any):
    page = opened("usual")
    assert page.title() == "Tunemill report: One-line summaries of API documentation"
    assert page.locator("img").count() == 0
    assert page.evaluate("document.scripts.length") == 1
    assert page.get_by_text(report_artifacts.SCRIPT).count() > 0


def test_the_policy_blocks_what_is_not_there(browser: Any, pages: dict[str, Path], tmp_path: Path):
    broken_into = tmp_path / "report.html"
    html = pages["usual"].read_text(encoding="utf-8")
    broken_into.write_text(
        html.replace("</main>", f"{report_artifacts.SCRIPT}<p style='color: red' id='red'>x</p></main>")
    )
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(broken_into.as_uri())
    assert page.title() != "owned"
    assert page.evaluate("getComputedStyle(document.getElementById('red')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in each for each in said)
    page.close()


def test_contents_lead_to_sections_and_prompts_open(opened: Any):
    page = opened("usual")
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    sample = page.locator("#samples article.sample").first
    assert not sample.locator(".prompt").is_visible()
    sample.locator("summary").click()
    assert sample.locator(".prompt").is_visible()


def test_a_hash_is_short_and_selects_whole(opened: Any):
    page = opened("usual")
    page.locator("#lineage details > summary").click()
    first = page.locator(".lineage .hash").first
    whole = first.get_attribute("title")
    assert len(whole) >= 32
    assert first.bounding_box()["width"] < 90
    first.click()
    assert page.evaluate("getSelection().toString().trim()") == whole


def test_assistive_technology_finds_its_way(opened: Any):
    page = opened("usual", width=390)
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(each => +each.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.evaluate("[...document.querySelectorAll('table')].every(each => each.caption?.textContent.trim())")
    assert page.evaluate(
        "[...document.querySelectorAll('svg:not(svg svg)')].every(each =>"
        " each.closest('[aria-hidden=true]') || each.getAttribute('aria-label'))"
    )
    page.evaluate("document.querySelectorAll('main details').forEach(each => each.open = true)")
    # Tables that are laid out as blocks on a small screen stay tables.
    assert page.get_by_role("row").count() > 20


@pytest.mark.parametrize("name", ["usual", "aligned", "constitutional"])
def test_it_prints_on_white_paper(opened: Any, tmp_path: Path, name: str):
    page = opened(name, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"
    assert page.evaluate(CONTRAST) == []
    assert page.pdf(path=tmp_path / "report.pdf", format="A4").startswith(b"%PDF")


# ── what the script adds ──────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_script_everything_is_there(browser: Any, pages: dict[str, Path]):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    page.goto(pages["usual"].as_uri())
    assert page.locator("#contents a").first.is_visible()  # beside the text, though nothing opened it
    assert not page.locator("#theme").is_visible() and not page.locator("#unfold").is_visible()
    for told in (
        "int8 is the smallest within 1% of lora",
        "lora is promoted: all 4 criteria are met",
        "From the data to lora",
    ):
        assert page.get_by_text(told).first.is_visible(), told
    page.locator("details.more-samples > summary").click()
    assert page.locator("#samples article.sample").nth(8).is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert not page.locator("#contents a").first.is_visible()
    page.locator("#contents > summary").click()
    assert page.locator("#contents a").first.is_visible()
    context.close()


@pytest.mark.parametrize("scripted", [True, False])
def test_the_figures_behind_the_page_are_files(browser: Any, pages: dict[str, Path], tmp_path: Path, scripted: bool):
    context = browser.new_context(java_script_enabled=scripted, accept_downloads=True, offline=True)
    page = context.new_page()
    page.goto(pages["usual"].as_uri())
    for name, columns in (
        ("variants.csv", "variant,made_by,method,runtime,bytes"),
        ("scores.csv", "candidate,metric,value"),
    ):
        with page.expect_download() as found:
            page.locator(f"#reproduce .downloads a[download='{name}']").click()
        assert found.value.suggested_filename == name
        found.value.save_as(tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.startswith(columns)
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "variants.csv").read_text().splitlines())}
    assert list(rows["q4"].values())[3:5] == ["llama.cpp", "92000000"] and len(rows) == len(report_artifacts.VARIANTS)
    context.close()


def test_a_mark_tells_its_figures_at_the_pointer_and_by_arrow_keys(opened: Any):
    page = opened("usual")
    chart, tip = page.locator("#compression .pareto svg[role=img]").first, page.locator("#tip")
    assert not tip.is_visible()
    chart.locator("[data-tip]").first.hover()
    assert tip.inner_text().startswith("lora: 513 MiB, ROUGE-1 36.2 (33.6 to 38.8)")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    chart.focus()
    told = []
    for _ in report_artifacts.VARIANTS:
        page.keyboard.press("ArrowRight")
        told.append(tip.inner_text().partition(":")[0])
        assert page.locator("#said").inner_text().startswith(told[-1])
    assert sorted(told) == sorted(report_artifacts.VARIANTS)
    page.keyboard.press("ArrowRight")  # and round again
    assert tip.inner_text().partition(":")[0] == told[0]
    page.locator("#compression h2").click()
    assert not tip.is_visible()


def test_a_stage_of_the_drawing_tells_its_hashes_and_leads_to_its_row(opened: Any):
    for width in (1280, 390):
        page = opened("usual", width=width)
        node = page.locator(".node[href='#stage-lora']")
        node.focus()
        said = page.locator("#tip").inner_text()
        assert said.startswith("lora\nread artifacts/validate/train.jsonl ") and "wrote artifacts/lora " in said
        page.keyboard.press("Enter")
        row = page.locator("#stage-lora")
        assert row.is_visible() and page.url.endswith("#stage-lora")
        frame = page.locator("svg.graph").bounding_box()
        for box in [each.bounding_box() for each in page.locator(".node rect").all()]:
            assert frame["x"] - 1 <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1


def test_a_legend_switches_its_series(opened: Any):
    page = opened("usual")
    figure = page.locator("#compression figure")
    entry = figure.get_by_role("button", name="q4")
    entry.focus()
    page.keyboard.press("Space")
    assert entry.get_attribute("aria-pressed") == "false"
    assert figure.locator("g.off").count() == 2  # in both plots
    entry.click()
    assert figure.locator("g.off").count() == 0


def test_a_table_is_sorted_by_numbers_with_what_is_undefined_last(opened: Any):
    page = opened("usual")
    table = page.locator("table.variants")

    def names() -> list[str]:
        return table.locator("tbody th").evaluate_all("all => all.map(each => each.firstChild.data.trim())")

    sizes = {name: entry[3] for name, entry in report_artifacts.VARIANTS.items()}
    head = table.locator("thead th", has_text="Size")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [sizes[name] for name in names()] == sorted(sizes.values(), reverse=True)
    head.locator("button").click()
    assert [sizes[name] for name in names()] == sorted(sizes.values())
    table.locator("thead th", has_text="To lora").locator("button").click()
    assert names()[0] == "int8" and names()[-1] == "lora"  # the parent has no difference to itself
    assert head.get_attribute("aria-sort") is None


def test_colours_can_be_switched_and_keep_their_contrast(opened: Any):
    page = opened("usual", scheme="dark")
    button = page.locator("#theme")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    button.click()
    assert button.inner_text() == "Colours: light" and page.evaluate(background) != dark
    assert page.evaluate(CONTRAST) == []
    button.click()
    assert button.inner_text() == "Colours: dark" and page.evaluate(background) == dark
    button.click()
    assert button.inner_text() == "Colours: as the system"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Any):
    page = opened("usual")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "(() => { const each = document.activeElement, style = getComputedStyle(each);"
                " return [each.tagName.toLowerCase(), style.outlineStyle !== 'none' || each.closest('.node') !== null]; })().join()"
            )
        )
    assert {each.split(",")[1] for each in seen} == {"true"}
    assert {each.split(",")[0] for each in seen} >= {"a", "button", "summary", "div", "svg"}
    # What is wider than its box can be reached, and so scrolled, by keyboard.
    assert page.evaluate("[...document.querySelectorAll('.scroll, pre')].every(each => each.tabIndex === 0)")


def test_all_folds_open_at_once_but_not_what_may_offend(opened: Any):
    page = opened("aligned")
    page.locator("#unfold").click()
    assert page.locator("main details:not([open]):not(.offensive, .veiled)").count() == 0
    assert page.locator("main details:is(.offensive, .veiled)[open]").count() == 0
    page.locator("#unfold").click()
    assert page.locator("main details[open]").count() == 0


def test_contents_follow_the_reader(opened: Any):
    page = opened("usual", width=390, height=844)
    assert not page.locator("#contents a").first.is_visible()
    page.locator("#contents > summary").click()
    page.locator("#contents a", has_text="Compression").click()
    page.locator("#contents a[aria-current]", has_text="Compression").wait_for(state="attached")
    assert not page.locator("#contents a").first.is_visible()  # closed again, out of the way
    assert page.locator("#contents .here").inner_text() == "Compression"
    assert page.locator("#compression h2").bounding_box()["y"] >= page.locator(".contents").bounding_box()["height"] - 1


def test_paper_has_what_is_folded_and_not_what_may_offend(opened: Any):
    page = opened("aligned", width=690)
    page.emulate_media(media="print")
    height = "each => each.getBoundingClientRect().height"
    assert page.locator("table.costs").evaluate(height) > 100
    assert page.locator("#alignment details.veiled dl").first.evaluate(height) == 0
    assert page.locator("details.offensive dl").first.evaluate(height) == 0
    assert not page.locator(".contents").is_visible() and not page.locator(".download").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 690


def test_the_page_is_small_enough_to_mail(pages: dict[str, Path]):
    assert all(path.stat().st_size < 1024**2 for path in pages.values())
