"""Every rule finds what it is for and spares the rest; near duplicates agree with a comparison of all pairs."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from tunemill import quality
from tunemill.quality import Conversation, HeldOut, Refusal

# Put together here, so that no scanner takes the test for a leak.
SECRETS = [
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA",
    "AK" + "IAQ3EGPRTVMZ7KLWHB",
    "gh" + "p_" + "a8Kd03jfQ7zLpX5sVb2NnM4cR9tYwE6uHgTq",
    "sk" + "-proj-" + "a8Kd03jfQ7zLpX5sVb2NnM4c",
    "hf" + "_" + "aKdjfQzLpXsVbNnMcRtYwEuHgTqWzPoIuK",
    "xo" + "xb-" + "2039485761-8372615094",
    "password = " + "'tr0ub4dor&3xq9Lk2vB7n'".replace("&", ""),
    "api_key: " + "9f8Kd03jfQ7zLpX5sVb2",
]
PROMPTS = [f"p{number}" for number in range(1000)]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_found_and_not_repeated(text: str) -> None:
    refusal = quality.find_personal(f"use {text} here")
    assert refusal is not None
    assert refusal.reason == "secret"
    assert text[-12:] not in refusal.detail


@pytest.mark.parametrize(
    "text", ["write to jane.doe@gmail.com.", "<max@uni-muenchen.de>", "mailto: a+b@mail.company-name.co.uk"]
)
def test_addresses_are_found(text: str) -> None:
    refusal = quality.find_personal(text)
    assert refusal is not None
    assert refusal.reason == "personal_data"
    assert "jane" not in refusal.detail


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com",
        "you@host.invalid",
        "git@github.com:owner/name.git",
        "ssh://git@gitlab.com/x",
        "a @decorator.name",
        "hmac-sha2-256-etm@openssh.com",
        "https://user:pw@proxy.net:80",
        "matrix @ vector.T",
        "x@property.setter",
        "token: the bearer token to send",
        "password=None",
        "api_key: str",
        "token = os.environ['HF_TOKEN_FOR_TESTS_1']",
        "secret_key='your-secret-key-goes-here-1'",
        "access_key: AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN PRIVATE KEY----- marks the start",
        "risk-averse-and-long-enough-to-look-like-one",
        "access_token=xxxxxxxxxxxxxxxxxxxxxxxx",
        "token = tokenizer.convert_tokens_to_ids",
    ],
)
def test_examples_and_prose_are_no_leaks(text: str) -> None:
    assert quality.find_personal(text) is None


def test_texts_and_lengths() -> None:
    names = ("prompt", "completion")
    assert quality.check_texts({"prompt": "a", "completion": "b"}, names) is None
    assert quality.check_texts({"prompt": "a"}, names) == Refusal("missing_field", "completion")
    assert quality.check_texts({"prompt": "a", "completion": None}, names) == Refusal("missing_field", "completion")
    assert quality.check_texts({"prompt": " \n", "completion": "b"}, names) == Refusal("empty", "prompt")
    assert quality.check_texts({"prompt": 3, "completion": "b"}, names) == Refusal(
        "wrong_type", "prompt is int, not text"
    )
    assert quality.check_length("p" * 40, "c" * 40, 20, 4.0) is None
    assert quality.check_length("p" * 41, "c" * 40, 20, 4.0) == Refusal(
        "too_long", "about 21 tokens, and the context window has 20"
    )
    masked = quality.check_length("p" * 80, "c", 20, 4.0)
    assert masked == Refusal("completion_masked", "the prompt alone has about 20 tokens of 20")
    assert quality.check_length("漢" * 20, "c", 20, 3.0) is not None


def chat(*turns: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn} for turn in turns]


@pytest.mark.parametrize(
    ("messages", "result"),
    [
        (chat("u", "a"), Conversation("u", "a")),
        (chat("s", "u", "a"), Conversation("s\n\nu", "a")),
        (chat("a", "u"), Refusal("wrong_role_order", "message 1 is from 'assistant', not from 'user'")),
        (chat("u", "u", "a"), Refusal("wrong_role_order", "message 2 is from 'user', not from 'assistant'")),
        (chat("s", "s", "u", "a"), Refusal("wrong_role_order", "message 2 is from 'system', not from 'user'")),
        (chat("u", "t"), Refusal("wrong_role_order", "message 2 is from 'tool', not from 'assistant'")),
        (chat("u", "a", "s"), Refusal("wrong_role_order", "message 3 is from 'system', not from 'user'")),
        (chat("u"), Refusal("completion_masked", "no assistant message at the end")),
        (chat("s"), Refusal("completion_masked", "only a system message")),
        (chat("u", "a", "u", "a"), Refusal("several_turns", "2 exchanges; only one can be learnt")),
        ([], Refusal("wrong_type", "messages is no list of messages")),
        ([{"role": "user"}], Refusal("missing_field", "content of message 1")),
        (["hello"], Refusal("wrong_type", "message 1 is no object")),
    ],
)
def test_chats(messages: object, result: object) -> None:
    assert quality.check_messages(messages) == result


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (["0", "0.75"], (0.0, 0.75)),
        (0.5, (0.5,)),
        ("1", (1.0,)),
        (None, Refusal("missing_field", "scores")),
        ([], Refusal("missing_field", "scores")),
        ("high", Refusal("bad_score", "'high' is no number")),
        ([1.5], Refusal("bad_score", "1.5 is not from 0 to 1")),
        ("nan", Refusal("bad_score", "'nan' is not from 0 to 1")),
        (True, Refusal("bad_score", "True is not from 0 to 1")),
    ],
)
def test_scores(value: object, result: object) -> None:
    assert quality.check_scores(value) == result


def test_repeats_agree_with_comparing_all_pairs() -> None:
    generator = random.Random(5)
    vocabulary = [f"w{number}" for number in range(400)]
    texts = []
    for _ in range(60):
        words = generator.choices(vocabulary, k=60)
        texts.append(" ".join(words))
        for changes in (0, 1, 3, 12):
            copy = list(words)
            for position in generator.sample(range(60), changes):
                copy[position] = generator.choice(vocabulary)
            texts.append(" ".join(copy))
    order = list(range(len(texts)))
    generator.shuffle(order)
    found = quality.find_repeats(texts, order, 0.7)

    def jaccard(one: str, two: str) -> float:
        sets = [{tuple(text.split()[at : at + 3]) for at in range(len(text.split()) - 2)} for text in (one, two)]
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    expected: set[int] = set()
    kept: list[int] = []
    for index in order:
        if any(jaccard(texts[index], texts[other]) >= 0.7 for other in kept):
            expected.add(index)
        else:
            kept.append(index)
    assert found.keys() == expected
    assert 120 <= len(expected) <= 180
    for index, repeat in found.items():
        assert repeat.exact == (texts[index] == texts[repeat.of])
        assert repeat.exact or repeat.of in kept


def test_what_all_texts_share_makes_none_of_them_alike() -> None:
    template = "Translate the following sentence from English into French and answer with the translation only please: "
    words = ["cat", "dog", "sun", "sea", "sky", "ice", "oak", "owl", "red", "sad", "ten", "tea"]
    texts = [template + " ".join(pair) for pair in itertools.permutations(words, 2)]
    assert quality.find_repeats(texts, range(len(texts)), 0.7) == {}
    assert quality.find_repeats([*texts, texts[3] + " \n"], range(len(texts) + 1), 0.7).keys() == {len(texts)}


def test_only_exact_repeats_where_asked() -> None:
    assert quality.find_repeats(["a b c d", "a  b c d", "a b c e"], [2, 1, 0], None) == {
        0: quality.Repeat(1, True, 1.0)
    }


def test_groups_stay_together_and_large_ones_are_learnt_from() -> None:
    groups = ["large"] * 500 + [f"g{number}" for number in range(40) for _ in range(10)] + [None, None]
    sides, by = quality.split(groups, PROMPTS[: len(groups)], HeldOut(5, 0.1), HeldOut(12, 0.2), 100, seed=1)
    of_group = {
        group: {side for side, each in zip(sides, groups, strict=True) if each == group} for group in set(groups)
    }
    assert by == "group"
    assert all(len(found) == 1 for found in of_group.values())
    assert of_group["large"] == of_group[None] == {"train"}
    assert Counter(next(iter(found)) for found in of_group.values()) == {"test": 12, "validation": 5, "train": 25}
    assert quality.split(groups, PROMPTS[: len(groups)], HeldOut(5, 0.1), HeldOut(12, 0.2), 100, seed=1)[0] == sides
    assert quality.split(groups, PROMPTS[: len(groups)], HeldOut(5, 0.1), HeldOut(12, 0.2), 100, seed=2)[0] != sides


@pytest.mark.parametrize("number", [3, 4, 5, 8])
def test_few_groups_leave_something_for_each_split(number: int) -> None:
    groups = [f"g{at % number}" for at in range(90)]
    sides, by = quality.split(groups, PROMPTS[:90], HeldOut(10, 0.1), HeldOut(36, 0.2), 1, seed=0)
    assert by == "group"
    assert set(sides) == {"train", "validation", "test"}


def test_rows_are_split_where_there_are_no_groups() -> None:
    for groups in ([None] * 100, ["all"] * 100):
        sides, by = quality.split(groups, PROMPTS[: len(groups)], HeldOut(5, 0.1), HeldOut(12, 0.2), 100, seed=1)
        assert by == "row"
        assert Counter(sides) == {"train": 70, "validation": 10, "test": 20}


def test_rows_with_the_same_prompt_stay_on_one_side() -> None:
    prompts = [f"p{number % 30}" for number in range(90)] + ["often"] * 60
    for seed in range(5):
        sides, by = quality.split([None] * 150, prompts, HeldOut(5, 0.1), HeldOut(12, 0.2), 100, seed)
        assert by == "row"
        assert Counter(sides) == {"train": 105, "validation": 15, "test": 30}
        assert len(set(zip(prompts, sides, strict=True))) == 31
        assert sides[-1] == "train"


def test_few_prompts_leave_something_for_each_split() -> None:
    prompts = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    sides, _ = quality.split([None] * 100, prompts, HeldOut(5, 0.05), HeldOut(12, 0.1), 100, seed=0)
    assert dict(zip(prompts, sides, strict=True)) == {"a": "train", "b": "validation", "c": "test"}


def test_cap() -> None:
    groups = ["a"] * 50 + ["b"] * 3
    kept = quality.cap_groups(groups, 20, seed=0)
    assert Counter(group for group, stays in zip(groups, kept, strict=True) if stays) == {"a": 20, "b": 3}
    assert quality.cap_groups(groups, 20, seed=0) == kept != quality.cap_groups(groups, 20, seed=1)


def test_clusters_follow_likeness_on() -> None:
    generator = random.Random(8)
    words = [f"w{number}" for number in range(400)]
    texts = []
    for _ in range(30):
        texts.append(" ".join(generator.choices(words, k=20)))
        for _ in range(generator.randrange(4)):
            changed = texts[-1].split()
            changed[generator.randrange(20)] = generator.choice(words)
            texts.append(" ".join(changed))
    texts += [f" {texts[3]}\n", "", "", "a b"]

    # By hand: every pair, then whatever can be reached.
    shingles = [{tuple(each.split()[at : at + 3]) for at in range(max(1, len(each.split()) - 2))} for each in texts]
    expected = list(range(len(texts)))
    for one, other in itertools.combinations(range(len(texts)), 2):
        union = shingles[one] | shingles[other]
        same = quality.normalised(texts[one]) == quality.normalised(texts[other])
        if same or len(shingles[one] & shingles[other]) / len(union) >= 0.7:
            low, high = sorted((expected[one], expected[other]))
            expected = [low if each == high else each for each in expected]
    assert quality.clusters(texts, 0.7) == expected
    assert len(set(expected)) < 40
    exact = quality.clusters(texts, None)
    assert len(set(exact)) == len({quality.normalised(each) for each in texts})
    assert quality.clusters([], 0.7) == []


def test_clusters_of_several_kinds_are_joined() -> None:
    assert quality.joined([0, 0, 2, 3, 4], [0, 1, 1, 3, 3]) == [0, 0, 0, 3, 3]
    assert quality.joined([0, 1, 2]) == [0, 1, 2]


def test_whole_labels_are_taken_as_long_as_they_fit() -> None:
    labels = ["a", "a", "a", "b", "c", "c", "d"]
    for seed in range(20):
        taken = quality.take(labels, 4, seed)
        for name in "abcd":
            assert len({mask for label, mask in zip(labels, taken, strict=True) if label == name}) == 1
        assert 3 <= sum(taken) <= 4
        assert quality.take(labels[::-1], 4, seed) == taken[::-1]
    assert quality.take(labels, 7, 0) == [True] * 7 and quality.take(labels, 0, 0) == [False] * 7
