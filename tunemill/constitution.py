"""A constitution: principles by which a model judges and mends its own answers, and how it is asked to (Bai et al. 2022).

The file is for its user to edit: principles, worked examples and templates, each checked when it is read. What is asked is a
conversation. A chain of critiques is the one that led to the answer, and goes on: critique request, critique, revision request,
revision (section 3.1). A comparison is a single question with two labels, "(A)" and "(B)" (section 4.1). Worked examples may stand
before either as turns of their own, so that roles are kept apart.

Which principle is asked is drawn anew for each critique and each comparison. The draw belongs to (seed, prompt, which draw) alone, and
not to the order of the prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import ConfigDict, Field, RootModel, ValidationInfo, field_validator

from tunemill import judging
from tunemill.errors import UserError, nearest
from tunemill.models import Conversation
from tunemill.params import Params, ParamsFile

Kind = Literal["red_team", "harmless", "task"]
"""What a prompt is: one that provokes harm, an everyday question, one of the use case."""
KINDS: tuple[Kind, ...] = get_args(Kind)

REQUESTS: dict[str, tuple[str, ...]] = {
    "critique": ("request",),
    "revision": ("request",),
    "comparison": judging.FIELDS,
    "thought": judging.FIELDS,
    "verdict": (),
}
"""Template → what it has a place for."""
_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")

Text = Field(min_length=1, pattern=r"\S")


class Principle(Params):
    """One principle."""

    prompts: tuple[Kind, ...] = Field(min_length=1)
    """Kinds of prompts that it is meant for: red_team, harmless, task."""
    critique: str = Text
    """Asks what is wrong with an answer."""
    revision: str = Text
    """Asks to mend it."""
    comparison: str = Text
    """Asks which of two answers is the better one."""


class Critique(Params):
    """A worked example of a critique and a revision."""

    principle: str
    """By whose requests it is asked."""
    prompt: str = Text
    """What was asked."""
    answer: str = Text
    """What was answered."""
    critique: str = Text
    """What is wrong with it."""
    revision: str = Text
    """The mended answer."""


class Comparison(Params):
    """A worked example of a comparison."""

    principle: str
    """By which it is compared."""
    prompt: str = Text
    """What was asked."""
    first: str = Text
    """The answer that stands first."""
    second: str = Text
    """The other one."""
    better: Literal["(A)", "(B)"]
    """Which is the better one: (A), the first, or (B), the second."""


class Examples(Params):
    """Worked examples, shown before questions whose prompt their principle is meant for."""

    critiques: tuple[Critique, ...]
    """Of critiques and revisions."""
    comparisons: tuple[Comparison, ...]
    """Of comparisons, (A) as often the better one as (B) for every kind of prompt."""


class Templates(Params):
    """How it is asked: texts with places in braces, all of which are needed and no others known."""

    critique: str
    """With {request}: the principle's critique."""
    revision: str
    """With {request}: the principle's revision."""
    comparison: str
    """With {prompt}, {first}, {second} and {criterion}, the principle's comparison; asks for (A) or (B)."""
    thought: str
    """With the same; asks to think first."""
    verdict: str
    """What is asked after the thought: (A) or (B)."""

    @field_validator(*REQUESTS)
    @classmethod
    def _places(cls, text: str, info: ValidationInfo) -> str:
        wanted, found = REQUESTS[str(info.field_name)], _PLACE.findall(text)
        if not text.strip():
            raise ValueError("a text")
        for place in found:
            if place not in wanted:
                near = nearest(place, wanted)
                raise ValueError(
                    f"no {{{place}}} in it"
                    + (f" ({{{near}}} is meant?)" if near else "")
                    + (", only " + ", ".join(f"{{{each}}}" for each in wanted) if wanted else "")
                )
        if missing := [each for each in wanted if each not in found]:
            raise ValueError("a text with " + ", ".join(f"{{{each}}}" for each in missing) + " in it")
        return text


class Constitution(Params):
    """A whole constitution."""

    principles: dict[str, Principle]
    """Name → principle, at least one."""
    examples: Examples
    """Worked examples."""
    templates: Templates
    """How it is asked."""

    def meant_for(self, kind: Kind) -> list[str]:
        """Names of the principles that are meant for a kind of prompt, in the file's order."""
        return [name for name, each in self.principles.items() if kind in each.prompts]


class _Principles(RootModel[dict[str, Principle]]):
    """The section `principles`, checked by itself so that a mistake is told with its line."""

    model_config = ConfigDict(frozen=True)

    @field_validator("root")
    @classmethod
    def _some(cls, found: dict[str, Principle]) -> dict[str, Principle]:
        if not found:
            raise ValueError("at least one principle")
        return found


def read(path: Path) -> Constitution:
    """The constitution in a file.

    Raises:
        UserError: it is missing or no YAML, a request is missing or empty, a template lacks a place or has one too many, or an example
            names a principle that there is not.
    """
    if not path.is_file():
        raise UserError(
            "no constitution",
            where=str(path),
            expected="a YAML file with principles, examples and templates",
            fix="restore constitution.yaml, or correct the path under extra",
            exit_code=2,
        )
    file = ParamsFile(path)
    for name in file.sections:
        if name not in Constitution.model_fields:
            near = nearest(name, Constitution.model_fields)
            raise UserError(
                f"unknown section '{name}'",
                where=f"{path}:{file.line((name,))}: {name}",
                expected="principles, examples, templates",
                fix=f"did you mean '{near}'?" if near else "remove it",
                exit_code=2,
            )
    principles = file.section("principles", _Principles).root
    found = Constitution(
        principles=principles,
        examples=file.section("examples", Examples),
        templates=file.section("templates", Templates),
    )
    _check_examples(found, file)
    return found


def _check_examples(found: Constitution, file: ParamsFile) -> None:
    """Refuse examples of unknown principles, and labels of which one is the better one more often.

    Raises:
        UserError: see above.
    """
    shown: dict[str, Sequence[Critique | Comparison]] = {
        "critiques": found.examples.critiques,
        "comparisons": found.examples.comparisons,
    }
    for name, rows in shown.items():
        for at, each in enumerate(rows):
            if each.principle not in found.principles:
                near = nearest(each.principle, found.principles)
                raise UserError(
                    f"no principle '{each.principle}'",
                    where=f"{file.path}:{file.line(('examples', name, at, 'principle'))}: examples.{name}.{at}.principle",
                    expected="one of " + ", ".join(found.principles),
                    fix=f"did you mean '{near}'?" if near else "name another, or take the example out",
                    exit_code=2,
                )
    for kind in KINDS:
        labels = [
            judging.LABELS.index(each.better)
            for each in found.examples.comparisons
            if kind in found.principles[each.principle].prompts
        ]
        first, second = labels.count(0), labels.count(1)
        if abs(first - second) > 1:
            raise UserError(
                f"of the comparisons shown for {kind} prompts {first} have (A) for the better answer and {second} (B)",
                where=f"{file.path}:{file.line(('examples', 'comparisons'))}: examples.comparisons",
                expected="as many of the one as of the other, give or take one: a model would learn the letter",
                fix="swap first and second of one of them",
                exit_code=2,
            )


def needs(constitution: Constitution, kinds: Sequence[Kind], path: Path) -> None:
    """Refuse a constitution that says nothing about a kind of prompts that is to be asked.

    Raises:
        UserError: no principle is meant for one of them.
    """
    for kind in kinds:
        if not constitution.meant_for(kind):
            raise UserError(
                f"no principle for {kind} prompts",
                where=f"{path}: principles",
                expected=f"a principle with {kind} among its prompts",
                fix="add one, or ask no such prompts",
                exit_code=2,
            )


def draw(constitution: Constitution, kind: Kind, seed: int, prompt: str, number: int) -> str:
    """The name of a principle for a prompt, each with the same chance.

    Args:
        constitution: has one that is meant for `kind`.
        kind: of the prompt.
        seed: of the draw.
        prompt: what is asked.
        number: which draw it is for this prompt.
    """
    names = constitution.meant_for(kind)
    digest = hashlib.sha256(json.dumps([seed, number, prompt], ensure_ascii=False).encode()).digest()
    return names[int.from_bytes(digest[:8]) % len(names)]


def critique(
    constitution: Constitution, kind: Kind, principle: str, prompt: str, answer: str, shots: int | None = None
) -> Conversation:
    """Examples, prompt, answer, critique request: what is to come is the critique.

    Args:
        constitution: whose examples and words.
        kind: of the prompt; the examples of its principles are shown.
        principle: whose request.
        prompt: what was asked.
        answer: what was answered.
        shots: most examples to show; None: all.
    """
    request = constitution.principles[principle].critique
    return (
        *_worked(constitution, kind, shots),
        ("user", prompt),
        ("assistant", answer),
        ("user", _filled(constitution.templates.critique, request=request)),
    )


def revision(constitution: Constitution, asked: Conversation, principle: str, said: str) -> Conversation:
    """The conversation goes on with the critique and the revision request: what is to come is the revision.

    Args:
        constitution: whose words.
        asked: from `critique`.
        principle: whose request.
        said: the critique.
    """
    request = constitution.principles[principle].revision
    return (*asked, ("assistant", said), ("user", _filled(constitution.templates.revision, request=request)))


def comparison(
    constitution: Constitution,
    kind: Kind,
    principle: str,
    prompt: str,
    first: str,
    second: str,
    shots: int | None = None,
) -> Conversation:
    """Examples and the question which of two answers is the better one: what is to come is a label.

    Args:
        constitution: whose examples and words.
        kind: of the prompt; the examples of its principles are shown.
        principle: by which they are compared.
        prompt: what was asked.
        first: the answer labelled "(A)".
        second: the answer labelled "(B)".
        shots: most examples to show; None: all.
    """
    shown = [each for each in constitution.examples.comparisons if _is_for(constitution, each.principle, kind)]
    turns: list[tuple[Literal["user", "assistant"], str]] = []
    for each in shown[:shots]:
        question = _compared(constitution, "comparison", each.principle, each.prompt, each.first, each.second)
        turns += [("user", question), ("assistant", each.better)]
    return (*turns, ("user", _compared(constitution, "comparison", principle, prompt, first, second)))


def thought(constitution: Constitution, principle: str, prompt: str, first: str, second: str) -> Conversation:
    """The same question, to be thought about aloud first: what is to come is the thought. Without examples: nobody has thought in them.

    Args:
        constitution: whose words.
        principle: by which they are compared.
        prompt: what was asked.
        first: the answer labelled "(A)".
        second: the answer labelled "(B)".
    """
    return (("user", _compared(constitution, "thought", principle, prompt, first, second)),)


def verdict(constitution: Constitution, asked: Conversation, said: str) -> Conversation:
    """The thought, and the question which answer it is then: what is to come is a label.

    Args:
        constitution: whose words.
        asked: from `thought`.
        said: what was thought.
    """
    return (*asked, ("assistant", said), ("user", constitution.templates.verdict))


def _worked(constitution: Constitution, kind: Kind, shots: int | None) -> Conversation:
    shown = [each for each in constitution.examples.critiques if _is_for(constitution, each.principle, kind)]
    turns: list[tuple[Literal["user", "assistant"], str]] = []
    for each in shown[:shots]:
        own = constitution.principles[each.principle]
        turns += [
            ("user", each.prompt),
            ("assistant", each.answer),
            ("user", _filled(constitution.templates.critique, request=own.critique)),
            ("assistant", each.critique),
            ("user", _filled(constitution.templates.revision, request=own.revision)),
            ("assistant", each.revision),
        ]
    return tuple(turns)


def _is_for(constitution: Constitution, principle: str, kind: Kind) -> bool:
    return kind in constitution.principles[principle].prompts


def _compared(
    constitution: Constitution, template: Literal["comparison", "thought"], principle: str, *texts: str
) -> str:
    prompt, first, second = texts
    criterion = constitution.principles[principle].comparison
    text = getattr(constitution.templates, template)
    return _filled(text, prompt=prompt, first=first, second=second, criterion=criterion)


def _filled(template: str, **texts: str) -> str:
    """Every place filled at once: braces in what is filled in stand for themselves."""
    return _PLACE.sub(lambda place: texts[place[1]], template)
