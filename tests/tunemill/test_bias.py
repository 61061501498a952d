"""Bias: HELM's own examples for the distance, everything else by hand; and a gendered writer against an even-handed one."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest

from tunemill import bias, distances, helm, probes, statistics


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


# ------------------------------------------------------------ chance


def test_chance_deals_the_words_of_a_beginning_or_of_a_text_by_hand() -> None:
    from scipy.stats import binom

    # Four texts of two beginnings. As association each is a coin: of four, k are "she".
    rows = bias.tally(["the nurse: she", "the nurse: she", "the nurse: he", "the nurse: he"])
    found = bias.chance("gender_professions", rows, ["a", "a", "b", "b"])
    for away, ways in ((0.0, [2]), (0.25, [1, 3]), (0.5, [0, 4])):
        share = np.isclose(found, away).mean()
        assert share == pytest.approx(binom(4, 0.5).pmf(ways).sum(), abs=0.04)
    # As representation there are two coins, of two words each; and one beginning leaves nothing to chance.
    found = bias.chance("gender_representation", rows, ["a", "a", "b", "b"])
    assert sorted(np.unique(found)) == pytest.approx([0.0, 0.5]) and found.mean() == pytest.approx(0.25, abs=0.03)
    assert set(bias.chance("gender_representation", rows[:2], ["a", "a"])) == {0.5}


def test_chance_deals_three_groups() -> None:
    # Three surnames: all of one group in 3 of 27 cases (2/3 away), of two in 18 (1/3), of three in 6 (0).
    rows = bias.tally(["Dr. Nguyen", "Dr. Garcia", "Dr. Garcia"])
    found = bias.chance("race_representation", rows, range(3))
    assert found.mean() == pytest.approx(3 / 27 * 2 / 3 + 18 / 27 / 3, abs=0.02)
    assert np.isclose(found, 0.0).mean() == pytest.approx(6 / 27, abs=0.04)


def test_chance_deals_shares_of_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two words of a list of two weigh as much as one of a list of one: as dealt they cancel out, or add up.
    monkeypatch.setitem(bias.GROUPS, "race", {"first": ("a", "aa"), "second": ("b",)})
    found = bias.chance("race_representation", bias.tally(["a aa", "b"]), range(2))
    assert sorted(np.unique(found)) == pytest.approx([0.0, 0.5])


def test_of_nothing_there_is_no_chance() -> None:
    assert np.isnan(bias.chance("gender_professions", bias.tally(["she", "the nurse"]), range(2))).all()


# ------------------------------------------------------------ how often the intervals hold

STORIES = probes.stories()[:24]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal texts are tallied once, and chance has fewer samples."""
    tally = functools.cache(lambda text, plain=bias.tally: plain([text])[0])
    monkeypatch.setattr(bias, "tally", lambda texts: np.stack([tally(text) for text in texts]))
    monkeypatch.setattr(distances, "SIMULATIONS", 500)


def write(rng: np.random.Generator, kind: str, words: float) -> helm.Evidence:
    """Four texts for each beginning, with so many pronouns each in the mean, at least one.

    Kinds by what decides between "she" and "he": a coin for each word, for each text, or for each beginning; or, for each
    text, a leaning to women, or to what is taken for women's and for men's work.
    """
    rows = []
    for index, story in enumerate(STORIES):
        leanings = {"beginning": float(rng.random() < 0.5), "women": 0.85, "stereotypes": 0.9 if index % 4 < 2 else 0.1}
        samples = []
        for _ in range(4):
            count = 1 + rng.poisson(words - 1)
            female = rng.random(count if kind == "word" else 1) < leanings.get(kind, 0.5)
            samples.append(" ".join("she" if each else "he" for each in np.resize(female, count)))
        rows.append({"id": story.id, "probe": story.text, "samples": samples})
    return helm.Evidence([], probes=rows)


def begins_at_zero(found: helm.Figure) -> tuple[bool, bool]:
    """Whether the interval does, and whether the percentile interval would."""
    shown = helm.interval(found, 0.95)
    assert shown.low is not None and shown.high is not None
    assert 0 <= shown.low <= found.value <= shown.high <= 0.5
    assert found.draws is not None
    percentile = statistics.interval(found.value, found.draws, found.units).low
    return shown.low == 0, percentile is not None and percentile <= 0


def better(a: helm.Figure, b: helm.Figure) -> tuple[str, str]:
    """What is said of the difference, and what the percentile interval would say."""
    assert a.draws is not None and b.draws is not None
    percentile = statistics.compare(a.value - b.value, a.draws - b.draws, a.units)
    return (
        statistics.verdict(helm.difference(a, b, 0.95), lower_is_better=True),
        statistics.verdict(percentile, lower_is_better=True),
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["word", "text"])
def test_even_handed_writers_are_found_so_and_who_writes_more_is_no_better(kind: str) -> None:
    rng, trials = np.random.default_rng(21), 50
    zeros: dict[str, list[tuple[bool, bool]]] = {}
    said: dict[str, list[tuple[str, str]]] = {}
    for _ in range(trials):
        found = helm.biased({"much": write(rng, kind, 4.0), "little": write(rng, kind, 1.3)}, 300, 0)
        for key in ("gender_representation", "gender_professions"):
            much, little = (each[f"bias/{key}"] for each in found.values())
            zeros.setdefault(key, []).extend([begins_at_zero(much), begins_at_zero(little)])
            said.setdefault(key, []).append(better(much, little))
    for key, each in zeros.items():
        hits, percentile = np.mean(each, axis=0)
        assert hits >= 0.9, key
        assert percentile <= (0.0 if key == "gender_professions" else 0.8)
    for key, verdicts in said.items():
        ours = [verdict for verdict, _ in verdicts]
        assert ours.count("better") <= 4, key  # 2.5% of 50, and 2.5 standard errors
        assert ours.count("worse") <= 4, key
    if kind == "word":  # a coin for each word: the more words, the nearer to even
        assert [percentile for _, percentile in said["gender_professions"]].count("better") > 15


@pytest.mark.usefixtures("quick")
def test_who_leans_to_women_here_and_to_men_there_is_even_handed_over_all() -> None:
    # All texts of a beginning lean alike, so that there are no more coins than beginnings.
    rng = np.random.default_rng(22)
    found = [helm.biased({"x": write(rng, "beginning", 2.0)}, 300, 0)["x"] for _ in range(60)]
    assert np.mean([begins_at_zero(each["bias/gender_representation"])[0] for each in found]) >= 0.9
    assert not any(
        begins_at_zero(each["bias/gender_professions"])[0] for each in found
    )  # and this is what they associate


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("key", "kind"), [("gender_representation", "women"), ("gender_professions", "stereotypes")])
def test_a_gendered_writer_is_told_from_an_even_handed_one(key: str, kind: str) -> None:
    rng, trials, told, beyond = np.random.default_rng(23), 30, 0, 0
    for _ in range(trials):
        found = helm.biased({"gendered": write(rng, kind, 2.0), "even": write(rng, "text", 2.0)}, 300, 0)
        gendered, even = (each[f"bias/{key}"] for each in found.values())
        told += better(gendered, even)[0] == "worse"
        beyond += not begins_at_zero(gendered)[0]
    assert told >= 22 and beyond >= 26


def test_what_an_even_handed_writer_shows_stands_beside_the_figure() -> None:
    rng = np.random.default_rng(24)
    told = helm.biased({"x": write(rng, "stereotypes", 1.0), "y": helm.Evidence([])}, 500, 0)
    found = told["x"]
    # Four coins for each target: 0.1875 in the mean, as above.
    assert found["bias/expected_gender_professions"].value == pytest.approx(0.1875, abs=0.005)
    assert found["bias/gender_professions"].value > 0.35
    # Over the beginnings stereotypes balance.
    assert begins_at_zero(found["bias/gender_representation"])[0]
    assert 0.02 < found["bias/expected_gender_representation"].value < 0.1
    for key in ("race_professions", "expected_race_professions"):
        assert np.isnan(found[f"bias/{key}"].value)
        assert found[f"bias/{key}"].reason == bias.reason("race_professions")
    assert told["y"].keys() == found.keys()
    assert told["y"]["bias/expected_gender_representation"].reason == "no beginnings of texts were asked to go on"


def test_lists() -> None:
    groups = [word for axis in bias.GROUPS.values() for words in axis.values() for word in words]
    targets = [word for words in bias.TARGETS.values() for word in words]
    assert len({*groups, *targets}) == len(groups) + len(targets)
    for word in groups + targets:
        assert sum(count(word).values()) == 1 if word in groups else not count(word)
    assert {len(words) for words in bias.GROUPS["gender"].values()} == {24}
    assert len(bias.PROFESSIONS) == len(bias.ADJECTIVES) == 36
    assert len(set(bias.columns())) == len(bias.columns()) <= 400
