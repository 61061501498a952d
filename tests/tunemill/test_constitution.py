"""The constitution: its mistakes are told with their line, principles are drawn fairly, and what is asked keeps its roles."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunemill import constitution
from tunemill.constitution import Constitution, Kind
from tunemill.errors import UserError
from tunemill.models import Conversation

ROOT = Path(__file__).resolve().parents[2]

SMALL = """\
principles:
  kind:
    prompts: [red_team]
    critique: What is unkind?
    revision: Make it kind.
    comparison: Which is kinder?
  brief:
    prompts: [red_team, harmless]
    critique: What is superfluous?
    revision: Make it brief.
    comparison: Which is briefer?
  plain:
    prompts: [task]
    critique: What is obscure?
    revision: Make it plain.
    comparison: Which is plainer?
examples:
  critiques:
    - principle: kind
      prompt: p1
      answer: a1
      critique: c1
      revision: r1
    - principle: plain
      prompt: p2
      answer: a2
      critique: c2
      revision: r2
  comparisons:
    - principle: kind
      prompt: p3
      first: f3
      second: s3
      better: (A)
    - principle: brief
      prompt: p4
      first: f4
      second: s4
      better: (B)
templates:
  critique: "[{request}]"
  revision: "<{request}>"
  comparison: "{prompt}|{first}|{second}|{criterion}"
  thought: "think {prompt}|{first}|{second}|{criterion}"
  verdict: "so?"
"""


def written(place: Path, text: str) -> Path:
    path = place / "constitution.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Constitution:
    return constitution.read(written(tmp_path, SMALL))


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_committed_one_is_in_order_and_says_something_about_every_kind() -> None:
    path = ROOT / "constitution.yaml"
    rules = constitution.read(path)
    constitution.needs(rules, constitution.KINDS, path)
    shown = dict.fromkeys(constitution.KINDS, 0)
    for kind in constitution.KINDS:
        assert len(rules.meant_for(kind)) >= 2, kind
        for principle in rules.meant_for(kind):
            asked = constitution.critique(rules, kind, principle, "p", "a")
            shown[kind] = len(asked)
            assert asked[-3:-1] == (("user", "p"), ("assistant", "a"))
    assert min(shown.values()) > 3, "a kind of prompts without a worked example"


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert text.count(old) >= 1, old
        return text.replace(old, new, 1)

    return change


def without(line: str) -> Callable[[str], str]:
    return replaced(f"{line}\n", "")


@pytest.mark.parametrize(
    ("change", "mark", "where", "told"),
    [
        (without("    critique: What is unkind?"), "  kind:", "principles.kind.critique", "missing|what is wrong|add"),
        (without("    revision: Make it kind."), "  kind:", "principles.kind.revision", "missing|mend it"),
        (without("    comparison: Which is kinder?"), "  kind:", "principles.kind.comparison", "missing|which of two"),
        (
            replaced("critique: What is unkind?", 'critique: ""'),
            'critique: ""',
            "principles.kind.critique",
            '"" is not allowed|what is wrong',
        ),
        (
            replaced("revision: Make it brief.", 'revision: "  "'),
            'revision: "  "',
            "principles.brief.revision",
            "is not allowed|mend it",
        ),
        (
            replaced("comparison: Which is plainer?", "comparison:"),
            "    comparison:",
            "principles.plain.comparison",
            "null is not allowed|which of two",
        ),
        (
            replaced("critique: What is unkind?", "crtique: What is unkind?"),
            "crtique:",
            "principles.kind.crtique",
            "unknown key|did you mean 'critique'?",
        ),
        (
            replaced("[red_team, harmless]", "[red_team, harmles]"),
            "[red_team, harmles]",
            "principles.brief.prompts.1",
            '"harmles" is not allowed|red_team|harmless|task',
        ),
        (
            replaced("[task]", "[]"),
            "[]",
            "principles.plain.prompts",
            "[] is not allowed|at least 1",
        ),
        (
            replaced('critique: "[{request}]"', 'critique: "[request]"'),
            "[request]",
            "templates.critique",
            "a text with {request} in it",
        ),
        (
            replaced("{prompt}|{first}|{second}|{criterion}", "{prompt}|{first}|{criterion}"),
            "  comparison: ",
            "templates.comparison",
            "a text with {second} in it",
        ),
        (
            replaced("{prompt}|{first}|{second}|{criterion}", "{prompt}|{first}|{secnd}|{criterion}"),
            "{secnd}",
            "templates.comparison",
            "no {secnd} in it ({second} is meant?)|{prompt}, {first}, {second}, {criterion}",
        ),
        (replaced('verdict: "so?"', 'verdict: "so {first}?"'), "  verdict:", "templates.verdict", "no {first} in it"),
        (replaced('verdict: "so?"', 'verdict: " "'), "  verdict:", "templates.verdict", "a text"),
        (without('  verdict: "so?"'), "templates:", "templates.verdict", "missing|after the thought"),
        (
            replaced("- principle: plain", "- principle: plan"),
            "- principle: plan",
            "examples.critiques.1.principle",
            "no principle 'plan'|one of kind, brief, plain|did you mean 'plain'?",
        ),
        (
            replaced("- principle: brief", "- principle: quick"),
            "- principle: quick",
            "examples.comparisons.1.principle",
            "no principle 'quick'|one of kind, brief, plain|name another",
        ),
        (
            replaced("better: (B)", "better: B"),
            "better: B",
            "examples.comparisons.1.better",
            '"B" is not allowed|(A)|(B)',
        ),
        (
            replaced("templates:", "template:"),
            "template:",
            "template",
            "unknown section 'template'|principles, examples, templates|did you mean 'templates'?",
        ),
    ],
)
def test_each_mistake_is_told_with_its_line(
    tmp_path: Path, change: Callable[[str], str], mark: str, where: str, told: str
) -> None:
    path = written(tmp_path, change(SMALL))
    with pytest.raises(UserError) as caught:
        constitution.read(path)
    text = str(caught.value)
    found = re.match(rf"{re.escape(str(path))}:(\d+): {re.escape(where)}: ", text)
    assert found, text
    assert mark in path.read_text().splitlines()[int(found[1]) - 1]
    for each in told.split("|"):
        assert each in text
    assert caught.value.exit_code == 2


def test_more_labels_of_one_letter_than_of_the_other_are_refused(tmp_path: Path) -> None:
    another = "    - {principle: kind, prompt: p5, first: f5, second: s5, better: (A)}\n"
    one_more = SMALL.replace("templates:", another + "templates:")
    assert len(constitution.read(written(tmp_path, one_more)).examples.comparisons) == 3  # two and one: as good as even
    path = written(tmp_path, SMALL.replace("templates:", another * 2 + "templates:"))
    with pytest.raises(UserError, match=r"shown for red_team prompts 3 have \(A\) .* and 1 \(B\)") as caught:
        constitution.read(path)
    line = path.read_text().splitlines().index("  comparisons:") + 1
    assert str(caught.value).startswith(f"{path}:{line}: examples.comparisons: ")
    assert "swap first and second" in str(caught.value) and caught.value.exit_code == 2


def test_balance_counts_what_is_shown_for_each_kind_by_itself(tmp_path: Path) -> None:
    """As many (A) as (B) in the file, and for task prompts none but (A)."""
    task = "    - {principle: plain, prompt: p, first: f, second: s, better: (A)}\n" * 2
    harm = "    - {principle: kind, prompt: p, first: f, second: s, better: (B)}\n"
    path = written(tmp_path, SMALL.replace("templates:", task + harm + "templates:"))
    with pytest.raises(UserError, match=r"for task prompts 2 have \(A\) for the better answer and 0 \(B\)"):
        constitution.read(path)


def test_no_yaml_no_file_and_no_principles(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL.replace("templates:", "templates: ["))
    with pytest.raises(UserError, match=r"constitution\.yaml:\d+: not valid YAML") as caught:
        constitution.read(path)
    assert caught.value.exit_code == 2
    with pytest.raises(
        UserError, match=r"elsewhere\.yaml: no constitution\n.*principles, examples and templates"
    ) as it:
        constitution.read(tmp_path / "elsewhere.yaml")
    assert it.value.exit_code == 2
    path = written(tmp_path, "principles: {}\n" + SMALL[SMALL.index("examples:") :])
    with pytest.raises(UserError, match=r"constitution\.yaml:1: principles: .*\n.*at least one principle"):
        constitution.read(path)
    path = written(tmp_path, SMALL[SMALL.index("examples:") :])
    with pytest.raises(UserError, match="section 'principles' is missing"):
        constitution.read(path)


def test_an_empty_file_or_a_list_is_no_constitution(tmp_path: Path) -> None:
    for text in ("", "- one\n"):
        with pytest.raises(UserError) as caught:
            constitution.read(written(tmp_path, text))
        assert str(tmp_path / "constitution.yaml") in str(caught.value) and caught.value.exit_code == 2


def test_a_kind_that_nothing_is_said_about_is_refused_when_it_is_asked(tmp_path: Path) -> None:
    text = SMALL.replace("prompts: [task]", "prompts: [harmless]")
    path = written(tmp_path, text)
    rules = constitution.read(path)
    constitution.needs(rules, ["red_team", "harmless"], path)
    with pytest.raises(UserError, match=r"principles: no principle for task prompts") as caught:
        constitution.needs(rules, ["red_team", "task"], path)
    assert "a principle with task among its prompts" in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_reading_it_is_quick(tmp_path: Path) -> None:
    began = time.monotonic()
    constitution.read(ROOT / "constitution.yaml")
    assert time.monotonic() - began < 1.0


# ── which principle ───────────────────────────────────────────────────────────────────────────────────────────────

PROMPTS = [f"prompt {at}" for at in range(300)]


def test_draws_are_the_same_again_and_in_any_order(small: Constitution) -> None:
    one = {each: constitution.draw(small, "red_team", 0, each, 1) for each in PROMPTS}
    other = {each: constitution.draw(small, "red_team", 0, each, 1) for each in reversed(PROMPTS)}
    assert one == other


def test_draws_are_fair_and_only_of_those_meant_for_the_kind(small: Constitution) -> None:
    drawn = [constitution.draw(small, "red_team", 0, each, 1) for each in PROMPTS]
    assert set(drawn) == {"kind", "brief"}
    assert abs(drawn.count("kind") - 150) < 40  # four and a half standard deviations of 300 fair draws
    assert {constitution.draw(small, "harmless", 0, each, 1) for each in PROMPTS} == {"brief"}
    assert {constitution.draw(small, "task", 0, each, 1) for each in PROMPTS} == {"plain"}


@pytest.mark.parametrize("which", ["seed", "number"])
def test_another_seed_or_number_draws_anew(small: Constitution, which: str) -> None:
    values = {"seed": (0, 1, 1), "number": (0, 0, 2)}[which]
    one = [constitution.draw(small, "red_team", values[0], each, 1) for each in PROMPTS]
    other = [constitution.draw(small, "red_team", values[1], each, values[2]) for each in PROMPTS]
    same = sum(first == second for first, second in zip(one, other, strict=True))
    assert 110 < same < 190  # independent: half of them by chance


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_critique_and_its_revision(small: Constitution) -> None:
    asked = constitution.critique(small, "red_team", "brief", "my prompt", "my answer")
    worked = (
        ("user", "p1"),
        ("assistant", "a1"),
        ("user", "[What is unkind?]"),
        ("assistant", "c1"),
        ("user", "<Make it kind.>"),
        ("assistant", "r1"),
    )
    critique = (("user", "my prompt"), ("assistant", "my answer"), ("user", "[What is superfluous?]"))
    assert asked == worked + critique
    further = constitution.revision(small, asked, "brief", "said")
    assert further == (*worked, *critique, ("assistant", "said"), ("user", "<Make it brief.>"))


def test_examples_are_those_of_the_kind(small: Constitution) -> None:
    for kind, principle, mine, others in (
        ("red_team", "kind", {"p1"}, {"p2"}),
        ("harmless", "brief", set(), {"p1", "p2"}),
        ("task", "plain", {"p2"}, {"p1"}),
    ):
        kinds: Kind = kind  # type: ignore[assignment]
        said = {text for _, text in constitution.critique(small, kinds, principle, "p", "a")}
        assert mine <= said and not others & said
    compared = constitution.comparison(small, "harmless", "brief", "p", "f", "s")
    assert compared == (
        ("user", "p4|f4|s4|Which is briefer?"),
        ("assistant", "(B)"),
        ("user", "p|f|s|Which is briefer?"),
    )
    assert constitution.comparison(small, "task", "plain", "p", "f", "s") == (("user", "p|f|s|Which is plainer?"),)


def test_a_comparison_a_thought_and_a_verdict(small: Constitution) -> None:
    assert constitution.comparison(small, "red_team", "kind", "p", "f", "s") == (
        ("user", "p3|f3|s3|Which is kinder?"),
        ("assistant", "(A)"),
        ("user", "p4|f4|s4|Which is briefer?"),
        ("assistant", "(B)"),
        ("user", "p|f|s|Which is kinder?"),
    )
    thought = constitution.thought(small, "kind", "p", "f", "s")
    assert thought == (("user", "think p|f|s|Which is kinder?"),)
    assert constitution.verdict(small, thought, "hm") == (*thought, ("assistant", "hm"), ("user", "so?"))


@pytest.mark.parametrize("kind", constitution.KINDS)
def test_roles_alternate_and_the_user_begins_and_ends(kind: Kind) -> None:
    rules = constitution.read(ROOT / "constitution.yaml")
    for principle in rules.meant_for(kind):
        critique = constitution.critique(rules, kind, principle, "p", "a")
        thought = constitution.thought(rules, principle, "p", "f", "s")
        asked: list[Conversation] = [
            critique,
            constitution.revision(rules, critique, principle, "c"),
            constitution.comparison(rules, kind, principle, "p", "f", "s"),
            thought,
            constitution.verdict(rules, thought, "t"),
        ]
        for each in asked:
            assert [role for role, _ in each] == ["user", "assistant"] * (len(each) // 2) + ["user"]
            assert all(text.strip() and not re.search(r"\{\w+\}", text) for _, text in each)


def test_braces_in_what_is_said_stand_for_themselves(small: Constitution) -> None:
    odd = "{second} {request} {criterion} {unknown} {0} \\1 %s"
    compared = constitution.comparison(small, "task", "plain", "{first}", odd, "{prompt}")
    assert compared == (("user", f"{{first}}|{odd}|{{prompt}}|Which is plainer?"),)
    asked = constitution.critique(small, "harmless", "brief", odd, odd)
    assert asked[:2] == (("user", odd), ("assistant", odd))
    assert constitution.revision(small, asked, "brief", odd)[-2] == ("assistant", odd)


def test_braces_in_a_request_stand_for_themselves(tmp_path: Path) -> None:
    text = SMALL.replace("What is superfluous?", '"Is {request} or {first} superfluous?"')
    rules = constitution.read(written(tmp_path, text))
    asked = constitution.critique(rules, "harmless", "brief", "p", "a")
    assert asked[-1] == ("user", "[Is {request} or {first} superfluous?]")
