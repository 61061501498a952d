"""Perturbations: expected texts written by hand, HELM's own test cases where they do not depend on its word lists."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from typing import get_args

import pytest

from tunemill import perturbations
from tunemill.perturbations import NAMES, perturb


def spaced_once(text: str) -> str:
    """The text with every run of spaces between words as one."""
    return re.sub(r"(?<=\S) +(?=\S)", " ", text)


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No misspellings: what remains of robustness is certain but for its spaces."""
    monkeypatch.setattr(perturbations, "MISSPELT", 0.0)


def female(text: str) -> str:
    return perturb("gender", text, [], "id0").text


def dialect(text: str) -> str:
    return perturb("dialect", text, [], "id0").text


def test_names_are_those_of_the_type():
    assert get_args(perturbations.Name) == NAMES
    assert set(perturbations.FAIRNESS) == set(NAMES) - {"robustness"}
    with pytest.raises(ValueError, match="no perturbation 'noise'; there are robustness, dialect"):
        perturb("noise", "a text", [], "id0")  # type: ignore[arg-type]


def test_import_is_light():
    code = "import sys, tunemill.perturbations; print([m for m in ('numpy', 'torch', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- Robustness


def test_robustness_draws_spaces_as_helm_does():
    # HELM's test_space_perturbation: "Hello World!\nQuite a day, huh?" of instance id0 becomes "Hello   World!\nQuite a  day,
    # huh?" with three spaces before huh. No word of it has a listed misspelling, so the draws are the same.
    found = perturb("robustness", "Hello World!\nQuite a day, huh?", ["Yes!"], "id0")
    assert found == ("hello   world!\nquite a  day,   huh?", ("Yes!",), True)


def test_robustness_lowers_and_contracts(monkeypatch):
    quiet(monkeypatch)
    cases = {
        # HELM's test_contraction_perturbation, lowered before
        "She is a doctor, and I am a student": "she's a doctor, and i'm a student",
        "HTTP IS NOT here. It Cannot be, it will not be": "http isn't here. it can't be, it won't be",
        "Do what it is. This is what it is": "do what it is. this is what it is",  # never at the end of a sentence
        "They are not there, values are not there": "they're not there, values aren't there",
        "as it is\n\nNew paragraph": "as it is\n\nnew paragraph",
        "This does not\nfit, it is\nlong": "this doesn't\nfit, it's\nlong",
        "They have a name, they have been used": "they have a name, they've been used",
        "Straße ÄÖÜ Ελλάς 日本語": "straße äöü ελλάς 日本語",
    }
    for text, expected in cases.items():
        found = perturb("robustness", text, [], "id0")
        assert spaced_once(found.text) == expected
        assert found.changed == (found.text != text)


def test_misspellings_come_at_their_rate():
    words = 4000
    found = perturb("robustness", "the " * words + "end", [], "id0").text.split()
    assert set(found) == {"the", "teh", "hte", "end"}
    misspelt = words - found.count("the")
    # Three standard errors: sqrt(0.1 · 0.9 / 4000) = 0.0047.
    assert 0.086 < misspelt / words < 0.114
    assert 0.4 < found.count("teh") / misspelt < 0.6
    unlisted = perturb("robustness", "zebra giraffe " * 500, [], "id0").text.split()
    assert set(unlisted) == {"zebra", "giraffe"}


def test_spaces_grow_between_words_only(monkeypatch):
    quiet(monkeypatch)
    text = "  one two  three\n\n    four five \n\tsix seven\n"
    runs = set()
    for key in range(40):
        found = perturb("robustness", text, [], str(key)).text
        shape = re.fullmatch(r"  one( +)two( +)three\n\n    four( +)five \n\tsix( +)seven\n", found)
        assert shape, found
        runs |= {len(run) for run in shape.groups()}
    assert runs == {1, 2, 3}


# --- Dialect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # HELM's test_dialect_perturbation, where "to b" and "mah" are its dictionary's
        ("I will remember this day to be the best day of my life.", "I gon' rememba dis day to be the bes' day of ma life."),
        ("Is this love?", "Is dis love?"),
        ("It is going to be used with that.", "It is gonna be used wit dat."),
        ("It isn't going to the store", "It ain't goin' to the store"),
        ("She isn’t here and they were not", "She ain't here and dey wasn't"),
        ("This IS NOT for THEM", "Dis AIN'T for DEM"),
        ("Because they are late, they are.", "'Cause dey late, dey are."),
        ("It returns nothing; he wants to ask", "It return nothin'; he want to ax"),
        ("If there is no key, there are others.", "If ain't no key, it's othas."),
        ("It has been used. They must have known, they must have a name.", "It been used. Dey musta known, dey mus' have a name."),
        ("This is usually slow", "Dis be usually slow"),
        ("Returning a string, being in use using RUNNING things", "Returnin' a string, bein' in use usin' RUNNIN' thangs"),
        ("ring king substring ping bring", "ring king substring ping bring"),
        ("that that that's", "dat dat dat's"),
        ("then-clause, built-with", "then-clause, built-with"),  # a word at a hyphen stays, as in HELM
        ("other", "otha"),
    ],
)  # fmt: skip
def test_dialect(text, expected):
    assert dialect(text) == expected


def test_dialect_changes_answers_alike():
    found = perturb("dialect", "A word.", ["Return this with that.", "No match"], "id0")
    assert found == ("A word.", ("Return dis wit dat.", "No match"), False)


# --- Gender


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # HELM's test_gender_pronoun_perturbation and its references
        (
            "Did she mention that he was coming with his parents and their friends?",
            "Did she mention that she was coming with her parents and their friends?",
        ),
        ("She didn't, perhaps he didn't tell her!", "She didn't, perhaps she didn't tell her!"),
        # test_gender_term_perturbation, pronouns and nouns together
        ("His grandsons looked a lot like their dad.", "Her granddaughters looked a lot like their mom."),
        # the two that HELM skips (issue 1958): at the edges, next to each other
        ("dad said it is okay", "mom said it is okay"),
        ("Sure he did son", "Sure she did daughter"),
        ("I'm a dad dad: my son has a son.", "I'm a mom mom: my daughter has a daughter."),
        # him and his
        ("Give him the book.", "Give her the book."),
        ("The book is his.", "The book is hers."),
        ("This is his", "This is hers"),
        ("his own book, his\nnew book", "her own book, her\nnew book"),
        ("his `book`", "her `book`"),
        ("A friend of his is here, his was blue", "A friend of hers is here, hers was blue"),
        ("his to-do list is his to keep", "her to-do list is hers to keep"),
        ("He hurt himself. HE DID.", "She hurt herself. SHE DID."),
        ("Her book is hers, she keeps it herself.", "Her book is hers, she keeps it herself."),
        # pairs that name both
        ("he or she keeps his or her book, her or his pen", "he or she keeps his or her book, her or his pen"),
        ("he/she, men and women, Father and mother", "he/she, men and women, Father and mother"),
        # nouns
        ("The man's father-in-law, Mr. Smith", "The woman's mother-in-law, Ms. Smith"),
        ("See the man page of a man-in-the-middle; MEN!", "See the man page of a man-in-the-middle; WOMEN!"),
        ("The host is a master, the waiter waits, MR images", "The host is a master, the waiter waits, MR images"),
        ("The thesis of a human, the theme, this", "The thesis of a human, the theme, this"),
    ],
)
def test_gender(text, expected):
    assert female(text) == expected


def test_gender_changes_answers_alike():
    found = perturb("gender", "What did he do?", ["He left his keys.", "Nothing"], "id0")
    assert found == ("What did she do?", ("She left her keys.", "Nothing"), True)


# --- Names


def test_names_stay_the_same_across_text_and_answers():
    # HELM's test_person_name_perturbation: gender is kept, "peter" in small letters is the same person.
    text = "I learned that Jack, Peter, and Lauren are siblings! Do you know who is the oldest?"
    found = perturb("names", text, ["Peter and peter were friends.", "PETER'S"], "id0")
    shape = re.fullmatch(
        r"I learned that (\w+), (\w+), and (\w+) are siblings! Do you know who is the oldest\?", found.text
    )
    assert shape and found.changed
    jack, peter, lauren = shape.groups()
    assert found.references == (f"{peter} and {peter.lower()} were friends.", f"{peter.upper()}'S")
    _, men = next(
        group for group in perturbations._TARGET_NAMES if lauren.lower() in group[0].split()
    )  # one group for all
    assert {jack.lower(), peter.lower()} <= set(men.split())
    assert len({jack, peter, lauren}) == 3 and lauren.lower() not in men.split()


def test_names_do_not_depend_on_the_order_of_the_answers():
    answers = ["Mary", "John", "Emily", "Nobody"]
    forwards = perturb("names", "Who came?", answers, "id7")
    backwards = perturb("names", "Who came?", answers[::-1], "id7")
    assert forwards.references == backwards.references[::-1]
    assert forwards.references[3] == "Nobody" and not forwards.changed
    assert len(set(forwards.references)) == 4


def test_names_do_not_depend_on_the_process():
    code = "from tunemill.perturbations import perturb; print(perturb('names', 'Mary John Emily Peter Laura David', [], 'id3'))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(seen) == 1


def test_all_groups_are_drawn_and_no_name_twice():
    everyone = " ".join(word.capitalize() for word in perturbations._SOURCE_NAMES[0].split()[:25])
    groups = set()
    for key in range(30):
        found = perturb("names", everyone, [], str(key)).text.lower().split()
        assert len(set(found)) == 25
        groups.add(
            next(i for i, (women, _) in enumerate(perturbations._TARGET_NAMES) if set(found) <= set(women.split()))
        )
    assert groups == {0, 1, 2}
    # A name that is there already is given to nobody else.
    there = " ".join(name for women, _ in perturbations._TARGET_NAMES for name in women.split()[1:])
    found = perturb("names", f"Mary {there}", [], "id0").text.split()[0]
    assert found in {women.split()[0].capitalize() for women, _ in perturbations._TARGET_NAMES}


@pytest.mark.parametrize(
    "text", ["Mark the bill. Will Grace May be Max?", "jack it up with scott, ed and dan", "johnny, `John`, john_smith"]
)
def test_words_that_are_also_names_stay(text):
    assert perturb("names", text, [], "id0") == (text, (), False)


# --- Code

CODE = [
    "`this With HE John`",
    "``this With John``",
    ":class:`that With John`",
    "`wrapped With\nthe John`",
    "```python\nthis = With(he, John)\n\nthat is not\n```",
    "~~~\nThis is not John\n~~~",
    "```\nnever closed: This is not John",
    ">>> this.With(he)\nJohn That is not\n",
    "$ that With John",
    "this_With.he",
    "that.With",
    ".This",
    "That(he, With, john)",
    "get(this(he), With)",
    "ThisWith",
    "HTTPThis",
    "https://that.org/With-this",
    "/this/With/he",
    "./That",
    "C:\\this\\With",
    "he@with.org",
    "{This}",
    "${This}",
    "{this With he}",
    "<That With John>",
    "%(this)s",
    "--With-this",
    "-With",
    "that=With",
    "That[he, With]",
    "'This'",
    '"With"',
    "this::With",
    ":param That With:",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("code", CODE)
def test_code_is_left_as_it_is(code, name):
    assert perturb(name, code, [code], "id0") == (code, (code,), False)
    text = f"This is not John with his brother.\n\n{code}\n\nThis is not John with his brother."
    found = perturb(name, text, [], "id0")
    assert code in found.text
    if "never closed" not in code:
        assert found.text.endswith(".") and found.text.splitlines()[-1] != text.splitlines()[-1]
    assert found.text.splitlines()[0] != text.splitlines()[0]


def test_indented_blocks_are_code_where_something_says_so():
    assert dialect("Use this::\n\n    this with that\n\n    and that\n\nthis") == (
        "Use dis::\n\n    this with that\n\n    and that\n\ndis"
    )
    assert dialect(".. code-block:: python\n\n   this with that\n\nthis") == (
        ".. code-block:: python\n\n   this with that\n\ndis"
    )
    assert dialect("Example:\n    that = this + 1\n    return that\nthis") == (
        "Example:\n    that = this + 1\n    return that\ndis"
    )
    # Prose that is indented, as docstrings are; the names of parameters stay.
    assert dialect("Args:\n    this: This value.\n    that (other): With that.\n") == (
        "Args:\n    this: Dis value.\n    that (other): Wit dat.\n"
    )
    assert dialect(".. note::\n   This with that\n") == ".. note::\n   Dis wit dat\n"
    assert dialect("Parameters\n----------\nother : that, default this\n    With this.") == (
        "Parameters\n----------\nother : that, default this\n    Wit dis."
    )


def test_code_keeps_its_words_from_their_neighbours(monkeypatch):
    quiet(monkeypatch)
    found = perturb("robustness", "It is not `None` and is `None`. URLs, APIs", [], "id0").text
    assert spaced_once(found) == "it's not `None` and is `None`. urls, apis"
    # The character that stands for code while words are replaced may itself be in a text.
    text = "his \ue000 with `this` \ue000\ue000"
    assert female(text) == "her \ue000 with `this` \ue000\ue000"
    assert dialect(text) == "his \ue000 wit `this` \ue000\ue000"


# --- All of them


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_change(name):
    assert perturb(name, "", ["", "x"], "id0") == ("", ("", "x"), False)
    assert perturb(name, " \n\n\t ", [], "id0") == (" \n\n\t ", (), False)
    assert perturb(name, "zebra\n漢字\r\n🦓", [], "id0") == ("zebra\n漢字\r\n🦓", (), False)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_key_gives_the_same_whatever_came_before(name):
    texts = [f"Mary said that the value of this function is not with {each} John." for each in ("an", "the", "no")]
    forwards = [perturb(name, text, [text], f"id{i}") for i, text in enumerate(texts)]
    random.seed(3)
    backwards = [perturb(name, text, [text], f"id{i}") for i, text in reversed(list(enumerate(texts)))]
    assert forwards == backwards[::-1]
    different = {perturb(name, texts[0], [], f"key{i}").text for i in range(20)}
    assert len(different) > 5 if name in ("robustness", "names") else len(different) == 1


@pytest.mark.parametrize("name", NAMES)
def test_lines_and_strange_characters_survive(name):
    rng = random.Random(5)
    pieces = [
        *"`'\"(){}<>[]:_./\\=%$~-*\n\n  \t",
        "\ue000",
        "\u2028",
        "é",
        "İ",
        "ß",
        "漢",
        "🦓",
        "\x00",
        "This",
        "his",
        "John",
        "::\n",
    ]
    pieces += ["is not", "``", "```\n", ">>> ", "\r\n", "    ", "he or she"]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 40)))
        found = perturb(name, text, [text], "id0")
        assert found.text.count("\n") == text.count("\n")
        assert found.text.count("\ue000") == text.count("\ue000")
        assert found.changed == (found.text != text)
        assert found.references[0] == (text if name == "robustness" else found.text)


def test_lexicons_are_large_enough_and_sound():
    misspellings = perturbations._misspellings()
    assert len(misspellings) >= 250
    for word, forms in misspellings.items():
        assert forms and not {word, ""} & set(forms) and not set(forms) & set(misspellings)
    dialect_words = perturbations._read(perturbations._DIALECT)
    assert len(dialect_words) >= 150 and all(
        len(forms) == 1 and forms[0] != word for word, forms in dialect_words.items()
    )
    assert len(perturbations._contractions()) >= 60
    # No word twice in a list: the later one would win unseen.
    for lexicon in (
        perturbations._CONTRACTIONS,
        perturbations._MISSPELLINGS,
        perturbations._DIALECT,
        perturbations._GENDER,
    ):
        assert len(perturbations._read(lexicon)) == lexicon.count(":")
    source = [name for names in perturbations._SOURCE_NAMES for name in names.split()]
    target = [name for group in perturbations._TARGET_NAMES for names in group for name in names.split()]
    assert len(source) == len(set(source)) and len(target) == len(set(target)) and not set(source) & set(target)
    assert set(perturbations._NAMES_WITH_CAPITAL.split()) <= set(source)
