"""A wrong params.yaml is answered with file, line, key, value, what is allowed and the nearest key."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from tunemill.errors import UserError
from tunemill.params import Candidates, Params, ParamsFile, named


class Inner(Params):
    """A nested part."""

    size: int = Field(ge=1)
    """How many."""


class Tuning(Params):
    """A section."""

    learning_rate: float = Field(gt=0, le=1)
    """Peak AdamW learning rate."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    inner: Inner
    """Something nested."""
    seeds: tuple[int, ...]
    """One training each."""


GOOD = "tuning:\n  learning_rate: 1e-4\n  steps: 3\n  inner: {size: 2}\n  seeds: [1, 2]\n"


def read(tmp_path: Path, text: str) -> ParamsFile:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return ParamsFile(path)


def problem(tmp_path: Path, text: str, section: str = "tuning") -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text).section(section, Tuning)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_good_values_are_typed_and_frozen(tmp_path: Path) -> None:
    tuning = read(tmp_path, GOOD).section("tuning", Tuning)
    assert tuning.learning_rate == 1e-4  # YAML 1.1 would read a string
    assert tuning.seeds == (1, 2)
    with pytest.raises(Exception, match="frozen"):
        tuning.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("learning_rate: 1e-4", "learning_rat: 1e-4"),
            "params.yaml:2: tuning.learning_rat: unknown key (value 0.0001)\n"
            "  expected: one of inner, learning_rate, seeds, steps\n  fix: did you mean 'learning_rate'?",
        ),
        (
            ("steps: 3", "steps: '3'"),
            'params.yaml:3: tuning.steps: "3" is not allowed\n'
            "  expected: input should be a valid integer: Optimiser steps.",
        ),
        (
            ("steps: 3", "steps: 0"),
            "params.yaml:3: tuning.steps: 0 is not allowed\n"
            "  expected: input should be greater than or equal to 1: Optimiser steps.",
        ),
        (
            ("{size: 2}", "{sise: 2, size: 2}"),
            "params.yaml:4: tuning.inner.sise: unknown key (value 2)\n  expected: one of size\n"
            "  fix: did you mean 'size'?",
        ),
        (
            ("[1, 2]", "[1, x]"),
            'params.yaml:5: tuning.seeds.1: "x" is not allowed\n  expected: input should be a valid integer',
        ),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    assert told in problem(tmp_path, GOOD.replace(*change))


def test_every_mistake_of_a_section_is_told_at_once(tmp_path: Path) -> None:
    text = problem(tmp_path, GOOD.replace("steps: 3", "steps: 0").replace("learning_rate: 1e-4", "learning_rate: 2"))
    assert "tuning.steps" in text
    assert "tuning.learning_rate" in text


def test_several_mistakes_begin_alike_and_a_misspelt_key_comes_before_the_missing_one(tmp_path: Path) -> None:
    text = problem(tmp_path, GOOD.replace("steps: 3", "stepz: 3").replace("learning_rate: 1e-4", "learning_rate: 2"))
    first, *others = f"error: {text}".split("\nerror: ")
    assert (
        first.startswith("error: params.yaml:3: tuning.stepz: unknown key (value 3)")
        and "did you mean 'steps'?" in first
    )
    assert [each.partition(": ")[2].partition(":")[0] for each in others] == ["tuning.learning_rate", "tuning.steps"]


def test_a_missing_key_and_a_missing_section(tmp_path: Path) -> None:
    text = problem(tmp_path, GOOD.replace("  steps: 3\n", ""))
    assert "tuning.steps: missing\n  expected: Optimiser steps." in text
    assert problem(tmp_path, GOOD.replace("tuning:", "tunin:")).startswith(
        "params.yaml: section 'tuning' is missing\n  expected: a section 'tuning:'\n"
        "  fix: is 'tunin' meant to be 'tuning'?"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2\n", "not valid YAML"),
        ("a: 1\na: 2\n", "not valid YAML"),
        ("- 1\n", "no sections"),
        ("", "no sections"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read(tmp_path, text)
    assert caught.value.exit_code == 2


def test_no_file_and_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        ParamsFile(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        ParamsFile(tmp_path / "latin.yaml")


def test_a_mistake_in_a_candidate_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"candidates\.lora\.polcy") as caught:
        read(tmp_path, "candidates:\n  lora: {polcy: a, base: b}\n").section("candidates", Candidates)
    assert "did you mean 'policy'?" in str(caught.value)


def test_a_wrong_file_answers_quickly_and_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("scop: {}\n", encoding="utf-8")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stages.scope", "--params", str(tmp_path / "params.yaml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "section 'scope' is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 15  # a second on a quiet machine; what matters is that no heavy import is in it


def test_reading_params_imports_nothing_heavy() -> None:
    heavy = "torch transformers mlflow trl peft datasets numpy pandas dvc prefect great_expectations"
    code = (
        "import sys, importlib\n"
        "for name in 'scope collect validate select lora evaluate efficiency compare report'.split():\n"
        "    importlib.import_module('stages.' + name)\n"
        f"print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Round(Params):
    """One kind."""

    shape: Literal["round"]
    radius: int = Field(ge=1)


class Square(Params):
    """The other."""

    shape: Literal["square"]
    side: int = Field(ge=1)


class Shapes(Params):
    """A section whose names are the user's."""

    known: dict[str, Annotated[Round | Square, Field(discriminator="shape")]]


def test_a_name_of_the_users_may_be_a_kind_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("shapes:\n  known:\n    round: {shape: square, side: 0}\n")
    with pytest.raises(UserError, match=r"params\.yaml:3: shapes\.known\.round\.side: 0 is not allowed"):
        ParamsFile(tmp_path / "params.yaml").section("shapes", Shapes)


def test_a_variant_is_found_by_its_name() -> None:
    assert named({"small": 1}, "small", "distill.variants") == 1
    with pytest.raises(UserError, match=r"distill\.variants: no variant 'smal'\n.*one of small\n.*'small'\?") as caught:
        named({"small": 1}, "smal", "distill.variants")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="expected: a variant of this name"):
        named({}, "small", "distill.variants")
