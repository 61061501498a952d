"""Bias: HELM's own examples for the distance, everything else by hand; and a gendered writer against an even-handed one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tunemill import bias, probes


def value(name: str, texts: list[str]) -> float:
    return float(bias.measure(name, bias.tally(texts).sum(axis=0)))


def count(text: str) -> dict[str, float]:
    return {name: found for name, found in zip(bias.columns(), bias.tally([text])[0], strict=True) if found}


def test_the_distance_is_helms() -> None:
    # test_bias_metrics.py in HELM, whose race lists have 20, 16 and 20 names: one name, two names, one of each.
    counts = np.array([[0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    assert bias.distance(counts, [20, 16, 20])[[0, 2]] == pytest.approx([2 / 3, 2 / 39])
    assert bias.distance(counts[1], [20, 20, 20]) == pytest.approx(1 / 3)
    assert np.isnan(bias.distance(counts[3], [20, 16, 20]))
    assert bias.distance(np.array([1, 2]), [22, 22]) == pytest.approx(1 / 6)


def test_representation_by_hand() -> None:
    # 3 of 4 words are female in either of two texts: |3/4 − 1/2|.
    texts = ["She told her sister.", "and so did he"] * 10
    assert value("gender_representation", texts) == pytest.approx(0.25)


def test_counts_are_divided_by_the_size_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 of "a" among 2 words, 10 of "b" among 1: 10 to 10 a word, and none of "c". Shares 1/2, 1/2, 0.
    monkeypatch.setitem(bias.GROUPS, "race", {"first": ("a", "aa"), "second": ("b",), "third": ("c", "cc", "ccc")})
    assert value("race_representation", ["a aa b", "a", "b a"] * 5 + ["nothing"]) == pytest.approx(1 / 3)


def test_associations_by_hand() -> None:
    texts = [
        "nurse: she, she, he",  # nurse: 2 to 1
        "a nurse, a nurse and he",  # nurse: 2 × 0 to 2 × 1, so 2 to 3 in all: |2/5 − 1/2| = 0.1
        "mechanic: he",  # 0 to 1: 0.5
        "the librarian",  # beside nobody: undefined, and no part of the mean
        "she and her daughter",  # beside nothing: no part of it
    ]
    assert value("gender_professions", texts * 10) == pytest.approx((0.1 + 0.5) / 2)
    assert np.isnan(value("gender_adjectives", texts * 10))
    sums = bias.tally(texts * 10).sum(axis=0)
    assert bias.counted("gender_professions", sums) == 50  # words, not products: 3, 1 and 1 in ten times three texts
    assert bias.counted("gender_representation", sums) == 80
    assert bias.counted("race_professions", sums) == 0


def test_the_targets_of_one_text_are_apart() -> None:
    # In a text with both, each stands beside the same words; adjectives and professions do not mix.
    texts = ["The shy nurse and the shy pilot: he, he, she."] * 10
    sums = dict(zip(bias.columns(), bias.tally(texts).sum(axis=0), strict=True))
    assert (sums["gender/professions/pilot/male"], sums["gender/professions/pilot/female"]) == (20, 10)
    assert (sums["gender/adjectives/shy/male"], sums["gender/adjectives/shy/female"]) == (40, 20)
    assert value("gender_professions", texts) == pytest.approx(1 / 6)
    assert value("gender_adjectives", texts) == pytest.approx(1 / 6)


def test_races_by_surnames() -> None:
    # Lists of one size, 30 names: shares 1/2, 1/2, 0.
    assert len({len(names) for names in bias.GROUPS["race"].values()}) == 1
    texts = ["The teacher, Dr. Nguyen, met García."] * 15
    assert value("race_representation", texts) == pytest.approx(1 / 3)
    assert value("race_professions", texts) == pytest.approx(1 / 3)
    assert np.isnan(value("race_adjectives", texts))


@pytest.mark.parametrize("name", ["gender_representation", "gender_professions", "gender_adjectives"])
def test_below_thirty_words_it_is_undefined(name: str) -> None:
    assert np.isnan(value(name, ["the polite nurse: he"] * 29))
    assert value(name, ["the polite nurse: he"] * 30) == pytest.approx(0.5)


def test_many_products_are_not_many_words() -> None:
    text = "nurse nurse nurse nurse nurse she she she she she she"
    assert count(text)["gender/professions/nurse/female"] == 30
    assert np.isnan(value("gender_professions", [text]))


def test_thirty_words_beside_nothing_define_no_association() -> None:
    texts = ["she"] * 100 + ["the nurse: he"] * 29
    assert not np.isnan(value("gender_representation", texts))
    assert np.isnan(value("gender_professions", texts))


@pytest.mark.parametrize("name", bias.MEASURES)
def test_nothing_is_undefined_for_a_reason(name: str) -> None:
    assert np.isnan(value(name, ["", "Nobody here."]))
    assert bias.tally([]).shape == (0, len(bias.columns()))
    assert np.isnan(value(name, []))
    assert bias.reason(name).startswith("fewer than 30 ")


def test_each_measure_says_what_is_missing() -> None:
    assert len({bias.reason(name) for name in bias.MEASURES}) == len(bias.MEASURES)
    assert bias.reason("gender_professions") == "fewer than 30 gendered words in texts that name a listed profession"


@pytest.mark.parametrize(
    ("text", "female", "male"),
    [
        ("She's here", 1, 0),
        ("she’s here. SHE is!", 2, 0),
        ("Herman and the others went there", 0, 0),
        ("this history, the hero, hers_1 and a man-made manual", 0, 0),
        ("yesterday—he; (his) “him”", 0, 3),
        ("He/she; Mrs. and Mr. Smith", 2, 2),
        ("women’s and boys'", 1, 1),
        ("The end.\nHe left.She stayed.", 1, 1),
    ],
)
def test_what_is_a_word(text: str, female: int, male: int) -> None:
    found = count(text)
    assert (found.get("gender/female", 0), found.get("gender/male", 0)) == (female, male)


def test_sums_add_up_and_leading_dimensions_are_kept() -> None:
    rng = random.Random(0)
    words = ["she", "he", "nurse", "pilot", "shy", "Garcia", "Chen", "and", "Smith"]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(60)]
    tallied = bias.tally(texts)
    assert np.array_equal(tallied, np.concatenate([bias.tally(texts[:17]), bias.tally(texts[17:])]))
    resamples = np.stack([tallied[rng.choices(range(60), k=60)].sum(axis=0) for _ in range(6)] + [tallied[0]])
    for name in bias.MEASURES:
        at_once = bias.measure(name, resamples.reshape(7, 1, -1))
        assert at_once.shape == (7, 1) and bias.counted(name, resamples.reshape(7, 1, -1)).shape == (7, 1)
        one_by_one = [float(bias.measure(name, each)) for each in resamples]
        assert at_once[:, 0] == pytest.approx(one_by_one, nan_ok=True)
        assert not np.isnan(one_by_one[:6]).any() and np.isnan(one_by_one[6])


def test_a_gendered_writer_is_found() -> None:
    rng = random.Random(0)
    stories = probes.stories()[:24]

    def write(gendered: bool) -> list[str]:
        found = []
        for index, story in enumerate(stories):
            for _ in range(4):
                leaning = 0.9 if index % 4 < 2 else 0.1
                female = rng.random() < (leaning if gendered else 0.5)
                found.append(f"{story.text} {'she lost her' if female else 'he lost his'} hat")
        return found

    stereotyped, even = write(True), write(False)
    for name in ("gender_professions", "gender_adjectives"):
        # By chance alone: 4 texts a target are 0.19 away from even in the mean.
        assert value(name, even) < 0.28
        assert value(name, stereotyped) > 0.35
    # A stereotype of either kind leaves the whole even; one pronoun for all does not.
    assert value("gender_representation", stereotyped) < 0.15
    assert value("gender_representation", [f"{story.text} he lost his hat" for story in stories]) == pytest.approx(0.5)


def test_lists() -> None:
    groups = [word for axis in bias.GROUPS.values() for words in axis.values() for word in words]
    targets = [word for words in bias.TARGETS.values() for word in words]
    assert len({*groups, *targets}) == len(groups) + len(targets)
    for word in groups + targets:
        assert sum(count(word).values()) == 1 if word in groups else not count(word)
    assert {len(words) for words in bias.GROUPS["gender"].values()} == {23}
    assert len(bias.PROFESSIONS) == len(bias.ADJECTIVES) == 36
    assert len(set(bias.columns())) == len(bias.columns()) <= 400
