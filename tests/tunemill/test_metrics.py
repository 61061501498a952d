"""Scores against their outside oracles: rouge-score, sacrebleu's corpus BLEU, torch's cross-entropy; the rest by hand."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tunemill import metrics

WORDS = [
    "return",
    "returns",
    "returned",
    "the",
    "a",
    "list",
    "of",
    "lists",
    "running",
    "run",
    "value",
    "values",
    "Compute_2",
    "naïve",
    "3.14",
    "it's",
    "Größe",
    "…",
]


def pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 15))) for _ in range(2 * count)]
    return texts[:count], texts[count:]


AWKWARD = [
    "",
    "…",
    " \n",
    "İstanbul ISTANBUL ǅ ß ẞ ﬁnd",
    "dying lying skies sky news innings",  # irregular in NLTK's stemmer
    "a\0b a\0b",
    "x" * 70 + " " + "y " * 200,
    "same same same same other same same",
    "the K sign \u212a and a lone \ud800 surrogate",
    "one\u2028two\u00a0three\u200bfour five_six 7.8e-9",
]


def test_rouge_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    references, predictions = pairs(60)
    predictions[:3] = ["", "…", references[2]]
    every = [(reference, prediction) for reference in [*AWKWARD, *WORDS[:3]] for prediction in AWKWARD]
    references += [reference for reference, _ in every]
    predictions += [prediction for _, prediction in every]
    oracle = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    for reference, prediction, found in zip(
        references, predictions, metrics.rouge(references, predictions), strict=True
    ):
        if not reference.strip():
            assert found is None
            continue
        assert found is not None
        for name, score in oracle.score(reference, prediction).items():
            assert found[name][:3] == (
                100 * score.precision,
                100 * score.recall,
                100 * score.fmeasure,
            )  # to the last digit


@pytest.mark.parametrize("seed", range(8))
def test_rouge_counts_are_those_of_counting(seed: int) -> None:
    """Few words and long texts: every word repeats, and so do pairs; the counts are what rouge-score divides."""
    from rouge_score.rouge_scorer import RougeScorer, _lcs_table
    from rouge_score.tokenizers import DefaultTokenizer

    rng = random.Random(seed)
    vocabulary = WORDS[: rng.randint(2, len(WORDS))]
    references, predictions = (
        [" ".join(rng.choices(vocabulary, k=rng.randint(1, 90))) for _ in range(25)] for _ in range(2)
    )
    tokenize = DefaultTokenizer(use_stemmer=True).tokenize
    oracle = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    for reference, prediction, found in zip(
        references, predictions, metrics.rouge(references, predictions), strict=True
    ):
        assert found is not None
        ours, theirs = tokenize(prediction), tokenize(reference)
        for size, name in ((1, "rouge1"), (2, "rouge2")):
            given, wanted = (
                Counter(tuple(each[at : at + size]) for at in range(len(each) - size + 1)) for each in (ours, theirs)
            )
            assert found[name][3:] == ((given & wanted).total(), wanted.total(), given.total())
        if ours and theirs:
            assert found["rougeL"][3:] == (_lcs_table(theirs, ours)[-1][-1], len(theirs), len(ours))
        for name, score in oracle.score(reference, prediction).items():
            assert found[name][:3] == (100 * score.precision, 100 * score.recall, 100 * score.fmeasure)


def test_stems_that_were_remembered_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    references, predictions = pairs(20)
    metrics.forget_stems()
    first = metrics.rouge(references, predictions)
    assert metrics.rouge(references, predictions) == first
    monkeypatch.setattr(metrics, "_MOST_STEMS", 2)
    metrics.forget_stems()
    assert metrics.rouge(references, predictions) == first
    assert len(metrics._stems()) <= 2


def test_rouge_of_nothing() -> None:
    assert metrics.rouge([], []) == []
    assert metrics.rouge(["", " \n"], ["text", ""]) == [None, None]  # undefined, not zero
    (empty,) = metrics.rouge(["a reference"], [""])
    assert empty is not None and empty["rouge1"] == (0.0, 0.0, 0.0, 0, 2, 0) and empty["rouge2"].in_reference == 1
    assert metrics.rouge(["", "a b", ""], ["x", "a b", "y"])[1] is not None  # each score where its item stands
    with pytest.raises(ValueError, match="2 references, 1 predictions"):
        metrics.rouge(["a", "b"], ["a"])


def test_rouge_by_hand() -> None:
    # Reference "the cat sat on the mat", prediction "the cat the cat the": 3 of 5 words count ("the" is clipped at 2).
    (found,) = metrics.rouge(["the cat sat on the mat"], ["the cat the cat the"])
    assert found is not None
    assert found["rouge1"] == pytest.approx((60.0, 50.0, 100 * 6 / 11, 3, 6, 5))
    # Pairs: "the cat" stands once in the reference and counts once.
    assert found["rouge2"] == pytest.approx((25.0, 20.0, 100 * 2 / 9, 1, 5, 4))
    assert found["rougeL"].matched == 3  # the cat … the


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 40])
def test_bleu_is_that_of_sacrebleu(seed: int, count: int) -> None:
    import sacrebleu

    references, predictions = pairs(count, seed)
    predictions[0] = references[0] if seed == 0 else predictions[0]
    statistics = metrics.bleu_statistics(references, predictions)
    oracle = sacrebleu.corpus_bleu(predictions, [references])
    assert metrics.bleu(statistics.sum(axis=0)) == pytest.approx(oracle.score, abs=1e-9)


def test_bleu_of_resamples_is_that_of_the_resampled_texts() -> None:
    import sacrebleu

    references, predictions = pairs(25, 3)
    predictions[::4] = references[::4]
    statistics = metrics.bleu_statistics(references, predictions)
    drawn = np.random.default_rng(0).integers(25, size=(4, 25))
    found = metrics.bleu(statistics[drawn].sum(axis=1))  # all four at once
    for points, indices in zip(found, drawn, strict=True):
        oracle = sacrebleu.corpus_bleu([predictions[i] for i in indices], [[references[i] for i in indices]])
        assert points == pytest.approx(oracle.score, abs=1e-9)


@pytest.mark.parametrize(
    ("references", "predictions"),
    [
        (["one two three four"], [""]),
        (["one two three four", "five six"], ["", ""]),
        (["one two three four"], ["one two three"]),  # no run of four words
        (["one two three four five"], ["six seven eight nine ten"]),
        (["one"], ["one"]),
    ],
)
def test_bleu_at_the_edges_is_that_of_sacrebleu(references: list[str], predictions: list[str]) -> None:
    import sacrebleu

    oracle = sacrebleu.corpus_bleu(predictions, [references]).score
    found = metrics.bleu(metrics.bleu_statistics(references, predictions).sum(axis=0))
    assert found == pytest.approx(oracle, abs=1e-9)


def test_bleu_without_references_is_undefined() -> None:
    assert np.isnan(metrics.bleu(metrics.bleu_statistics(["", ""], ["a", "b"]).sum(axis=0)))
    assert np.isnan(metrics.bleu(metrics.bleu_statistics([], []).sum(axis=0)))


def test_the_signature_names_what_bleu_depends_on() -> None:
    signature = metrics.bleu_signature()
    for part in ("nrefs:1", "case:mixed", "eff:no", "tok:13a", "smooth:exp", "version:"):
        assert part in signature


@pytest.mark.parametrize(
    ("reference", "prediction", "exact", "quasi"),
    [
        ("Return the sum.", "Return the sum.", 1, 1),
        ("Return the sum.", "  Return the sum.\n", 1, 1),
        ("Return the sum.", "return a  SUM", 0, 1),
        ("Return the sum.", "Return the sums.", 0, 0),
        ("don't", "dont", 0, 1),
        ("theory", "ory", 0, 0),  # an article is a word
        ("an apple, a day", "apple day", 0, 1),
        ("“yes”", "yes", 0, 0),  # HELM's punctuation is ASCII's
        ("Return the sum.", "", 0, 0),
        ("Return the sum.", " ", 0, 0),
        ("A", "A.", 0, 1),
        ("A", "a", 0, 1),
        ("A", "the", 0, 0),  # HELM: 1
        ("A", "", 0, 0),
        ("A", "B", 0, 0),
        ("+", "+", 1, 1),
        ("+", "-", 0, 0),  # HELM: 1
        ("", "anything", None, None),
        (" ", "", None, None),
    ],
)
def test_exact_and_quasi_exact_match(reference: str, prediction: str, exact: float | None, quasi: float | None) -> None:
    assert metrics.exact_match([reference], [prediction]) == [exact]
    assert metrics.quasi_exact_match([reference], [prediction]) == [quasi]


def test_matches_refuse_columns_of_unequal_length() -> None:
    for match in (metrics.exact_match, metrics.quasi_exact_match):
        assert match([], []) == []
        with pytest.raises(ValueError, match="shorter"):
            match(["a", "b"], ["a"])


def test_perplexity_by_hand() -> None:
    # Three tokens, each one of eight equally likely ones: 3 bits a token; 9 bits over 6 bytes.
    assert metrics.perplexity(3 * math.log(1 / 8), 3) == pytest.approx(8.0, abs=1e-12)
    assert metrics.bits_per_byte(3 * math.log(1 / 8), 6) == pytest.approx(1.5, abs=1e-12)
    assert metrics.perplexity(0.0, 4) == 1.0


def test_perplexity_is_e_to_torch_s_cross_entropy(decoder: Path) -> None:
    import torch

    from tunemill import likelihood, models, runtime

    model, tokenizer = models.load_policy(decoder, decoder, runtime.Runtime("cpu", "float32", 2))
    texts = [("return the value", "the sum of a list"), ("open a file", "read every line")]
    found = likelihood.score(model, tokenizer, texts, batch_tokens=512, batch_rows=4)
    total, tokens = sum(each.logprob for each in found), sum(each.tokens for each in found)
    losses = []
    for prompt, completion in texts:
        given, answer = likelihood.encode(tokenizer, prompt, completion)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([given + answer])).logits[0]
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[len(given) - 1 : -1].double(), torch.tensor(answer), reduction="none"
            )
        )
    assert metrics.perplexity(total, tokens) == pytest.approx(math.exp(torch.cat(losses).mean().item()), rel=1e-5)


@pytest.mark.parametrize(("logprob", "size"), [(-1.0, 0), (float("nan"), 3), (-float("inf"), 3), (float("inf"), 3)])
def test_perplexity_of_what_is_no_number_is_undefined(logprob: float, size: int) -> None:
    assert metrics.perplexity(logprob, size) is None
    assert metrics.bits_per_byte(logprob, size) is None


def test_perplexity_beyond_floats_is_undefined() -> None:
    assert metrics.perplexity(-710.0, 1) is None


SOURCE = """tools.MinHashLSH(threshold, num_perm)

Inserts keys together with their min-hash into the index. Values default to 3.14 on CPUs; see json_dump() and IDs."""


@pytest.mark.parametrize(
    ("summary", "share"),
    [
        ("Insert a key into the index.", 1.0),  # other forms of the source's words
        ("Insert a key into the database.", 2 / 3),  # insert, key; not database
        ("Delete the graph.", 0.0),
        ("insert insert insert graph", 1 / 2),  # each word once
        ("Insert, INSERTS: inserted!", 1.0),
        ("tools.MinHashLSH", 1.0),  # as it is written
        ("minhashlsh", 1.0),  # whatever its case
        ("MinHash", 1.0),  # by its parts
        ("json.dump json_dump", 1.0),
        ("json.load", 0.0),  # one piece is missing
        ("num_perm of 3.14", 1.0),
        ("num_perm of 14.3", 1 / 2),  # a number as it is written, not its digits
        ("keys and 3", 1 / 2),
        ("It is what they don't.", None),  # function words only
        ("i.e. the", None),
        ("", None),
        ("... !", None),
        ("größe", 0.0),
    ],
)
def test_faithfulness_by_hand(summary: str, share: float | None) -> None:
    assert metrics.faithfulness(SOURCE, summary) == (share if share is None else pytest.approx(share))


def test_faithfulness_without_a_source_is_undefined() -> None:
    assert metrics.faithfulness(" ", "Insert a key.") is None
    assert metrics.faithfulness("…", "Insert a key.") == 0.0
    assert metrics.faithfulness("Die Größe der Liste", "größe") == 1.0


def test_the_instruction_is_no_source() -> None:
    prompts = [
        f"Write a summary.\n\nDef one: {text}\n\nSummary:" for text in ("open a file\nin text mode", "close it", "")
    ]
    assert metrics.sources(prompts) == ["Def one: open a file\nin text mode", "Def one: close it", "Def one: "]
    assert metrics.sources(prompts[:1] * 2) == prompts[:1] * 2
    assert metrics.sources(["one", "two"]) == ["one", "two"] and metrics.sources([]) == []
    assert metrics.sources(["same\n", "same\nx\nsame\n"]) == ["", "x\nsame\n"]  # begin and end do not overlap


def test_a_text_is_faithful_to_itself_and_not_to_another() -> None:
    sources = [
        f"{first} the {second}Thing of every_{third}"
        for first, second, third in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)
    ]
    for source in sources:
        assert metrics.faithfulness(source, source) == 1.0
        assert metrics.faithfulness("zebra", source) == 0.0


TRAINING = ["Return the sum of a list.", "Return the mean of the values", "", "sum"]


@pytest.mark.parametrize(
    ("summary", "run"),
    [
        ("Return the sum of a list.", 6),
        ("RETURN the sum, of (a) list", 6),  # case and punctuation do not count
        ("We return the mean of a list.", 4),
        ("the mean of the", 4),
        ("of the sum of the values", 3),  # "of the values", not "the sum of"
        ("sum", 1),
        ("values sum", 1),  # neighbours in the index, but of two texts
        ("sum sum", 1),
        ("list return", 1),  # nor does a run go on into the next text
        ("zebra crossing", 0),
        ("zebra the zebra", 1),
        ("", None),
        ("… !", None),
    ],
)
def test_memorised_by_hand(summary: str, run: int | None) -> None:
    assert metrics.memorised(summary, metrics.training_index(TRAINING)) == run


@pytest.mark.parametrize("seed", range(5))
def test_memorised_is_what_a_search_for_every_run_finds(seed: int) -> None:
    rng = random.Random(seed)
    words = list("abcde")
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 30))) for _ in range(20)]
    index = metrics.training_index(texts)
    for _ in range(60):
        summary = rng.choices([*words, "unseen"], k=rng.randint(1, 25))
        runs = [
            size
            for size in range(1, len(summary) + 1)
            for at in range(len(summary) - size + 1)
            if any(f" {' '.join(summary[at : at + size])} " in f" {text} " for text in texts)
        ]
        assert metrics.memorised(" ".join(summary), index) == max(runs, default=0)


def test_nothing_was_trained_on() -> None:
    for texts in ([], [""], ["", " "]):
        assert metrics.memorised("a summary", metrics.training_index(texts)) == 0


def test_eight_thousand_completions_are_indexed_in_a_moment() -> None:
    rng = random.Random(0)
    words = [f"word{index}" for index in range(9000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(5, 20))) for _ in range(8000)]
    began = time.process_time()
    index = metrics.training_index(texts)
    assert time.process_time() - began < 5  # a tenth of a second when nothing else runs
    assert sum(each.nbytes for each in index[1:]) < 4e6
    assert metrics.memorised(texts[4000], index) == len(texts[4000].split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the sum. Then stop.", "Return the sum."),
        ("Wraps at\nthe margin and\ngoes on. Next.", "Wraps at the margin and goes on."),
        ("Use e.g. a list, i.e. many things. Next.", "Use e.g. a list, i.e. many things."),
        ("See numpy.array for more. Next.", "See numpy.array for more."),
        ("Named after J. Smith et al. in 1990. Next.", "Named after J. Smith et al. in 1990."),
        ('He said "stop." And went.', 'He said "stop."'),
        ("A heading\n\nand a body. More.", "A heading"),
        ("What is it? A test!", "What is it?"),
        ("no end at all", "no end at all"),
        ("  \n\n  Leading space. x", "Leading space."),
        ("", ""),
        ("...", "..."),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert metrics.first_sentence(text) == sentence


def test_lead_words() -> None:
    assert metrics.lead_words("a b\nc  d e f g h i j k l") == "a b c d e f g h i j"
    assert metrics.lead_words("one two", 10) == "one two"
    assert metrics.lead_words("") == ""


def test_one_line() -> None:
    assert metrics.one_line("  a\n\tb\u00a0 c ") == "a b c"


def test_means_and_shares() -> None:
    assert metrics.mean([1.0, None, 3.0]) == 2.0
    assert metrics.mean([None]) is None and metrics.mean([]) is None
    assert metrics.share([True, False, False, True]) == 0.5
    assert metrics.share([]) is None


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert metrics.repetition("a b c d e") == 0.0
    assert metrics.repetition("") == metrics.repetition("a b c") == 0.0
    # a b c d, b c d a, c d a b, d a b c, a b c d: one of five is there again
    assert metrics.repetition("a b c d a b C d") == pytest.approx(1 / 5)
    assert metrics.repetition("no no no no no no") == pytest.approx(2 / 3)
    assert metrics.repetition("!!!!!!!!") == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("text", "nonsense"),
    [
        ("", True),
        ("?! ...", True),
        ("no no no no no no", True),
        ("the cat the cat the cat the cat the cat the cat", True),
        ("No.", False),
        ("I cannot help you with that, and I would not if I could.", False),
        ("da da da, da", False),
        ("日本語のテキスト", False),
    ],
)
def test_what_says_nothing(text: str, nonsense: bool) -> None:
    assert metrics.degenerate(text) == nonsense
