"""The report in a real browser, opened from disk without a network: it fits, it is readable, no model output runs.

Needs a Chromium (`CHROMIUM` names one, else the usual names are tried); skipped without one, failed in CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stages import report
from tests import report_artifacts
from tunemill.log import Log

pytestmark = pytest.mark.e2e

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
  !each.closest('.scroll, .skip, .hidden, .prompt, details:not([open]) > :not(summary)') && !each.ownerSVGElement &&
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
        page.evaluate("document.querySelectorAll('#alignment details').forEach(each => each.open = true)")
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
def test_the_first_screen_answers_who_won_and_how_sure_that_is(opened: Any, width: int, height: int):
    page = opened("usual", width=width, height=height)
    assert page.locator("h1").inner_text() == "lora is better than base"
    for told in page.locator("h1, .lead").all():
        box = told.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height
    assert "95% interval" in page.locator(".lead").first.inner_text()
    assert "240 held-out items from 34 packages" in page.locator(".lead").first.inner_text()


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
    chains = page.locator("#alignment details.chain")
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
    assert page.title() != "owned" and page.locator("script, img").count() == 0
    # What turns the direction of writing is shown, and does not act.
    assert "�desrever�" in page.locator("#alignment .cai").inner_text()


def test_contents_lead_to_constitutional_ai(opened: Any):
    page = opened("constitutional")
    page.locator("nav a[href='#constitutional-ai']").click()
    assert page.locator("h3:target").inner_text() == "Constitutional AI"


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
    assert page.locator("script, img").count() == 0
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
