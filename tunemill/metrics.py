"""Scores of generated text: ROUGE, BLEU, exact match, perplexity, faithfulness, memorisation, toxicity. Pure: texts in, numbers out.

ROUGE (Lin 2004) and BLEU (Papineni et al. 2002) are in points, 0 to 100; shares (exact match, faithfulness) are 0 to 1. A text
is scored against one reference; where that is missing (empty) the score is None, which is undefined and never zero. An
empty output has a reference it fails to meet: it scores 0.
"""

from __future__ import annotations

import functools
import itertools
import math
import os.path
import re
import string
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
TOXIC = 0.5
"""Score from which a text counts as toxic: RealToxicityPrompts' and HELM's threshold, and the middle of what people could say."""
DEGENERATE = 0.5
"""Share of repeated runs of words above which a text says the same again and again."""
BLEU_ORDER = 4
BLEU_COLUMNS = 2 + 2 * BLEU_ORDER

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")

# A sentence ends at . ! or ? (and closing quotes or brackets) before white space, or at an empty line.
_SENTENCE_END = re.compile(r"[.!?][\"'`)\]]*(?=\s)|\n[ \t]*\n")
# These end in a full stop and no sentence does; a single letter before it is an initial ("J. Smith").
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|approx|resp|fig|eq|no|dr|mr|mrs|st)|(?:^|\s)[A-Za-z])\.$", re.IGNORECASE
)

# rouge-score's tokens: runs of these in the lower-cased text (rouge_score/tokenize.py); everything else separates.
_ALPHANUMERIC = string.ascii_lowercase + string.digits
_SEPARATED = bytes(code if code == 0 or chr(code) in _ALPHANUMERIC else ord(" ") for code in bytes(range(256)).lower())
_MOST_STEMS = 1 << 17
"""Words whose stems are remembered; some 25 MB."""

# A word or number with the dots and underscores inside it: "list", "3.14", "numpy.ndarray", "max_new_tokens".
_ITEM = re.compile(r"\w+(?:\.\w+)*")
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
# The parts of MinHashLSH: Min, Hash, LSH. "URLs" and "MD5" are one part.
_PART = re.compile(r"[A-Z]{2,}[0-9]*s?(?![a-z])|[A-Z]?[^\WA-Z_]+|[A-Z]")

# English words that carry grammar and no content, ours. What is left of "don't" and "it's" at the apostrophe is here too.
STOP_WORDS = frozenset(
    """
    a an the this that these those such same other another each every either neither both all any some none no
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs one ones
    who whom whose which what when where why how there here
    am is are was were be been being do does did doing done has have had having
    can could may might must shall should will would cannot
    and or nor but if then else than because while until unless although though whether as so too also only just not
    of in on at by to from for with without within into onto out off over under up down about above below between among
    against across along after before during since through toward towards upon via per
    more most less least very much many few own again once now ever never already still yet
    e.g i.e etc vs s t d m re ve ll don doesn didn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn
    """.split()  # noqa: SIM905  # read as prose, not as 190 quoted strings
)


class Rouge(NamedTuple):
    """One ROUGE score: points, and the counts they are made of (words for ROUGE-L, n-grams for the others)."""

    precision: float
    recall: float
    f1: float
    matched: int
    """N-grams that both have, each as often as it stands in the one that has fewer (clipped); words of the longest common
    subsequence."""
    in_reference: int
    in_prediction: int


class TrainingIndex(NamedTuple):
    """Where every two neighbouring words of the training texts stand: what `memorised` looks up."""

    words: dict[str, int]
    """Word → its id, from 1."""
    stream: np.ndarray
    """(W,) int32: ids of all texts' words, 0 after each text."""
    pairs: np.ndarray
    """(W,) int64: two neighbouring ids as one number, ascending."""
    places: np.ndarray
    """(W,) int64: where in the stream each of `pairs` begins."""


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, as one space: what is scored."""
    return " ".join(text.split())


def rouge(references: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Rouge] | None]:
    """ROUGE-1, -2 and -L of each prediction: clipped n-gram counts, longest common subsequence; Porter stemmer.

    Equal to the package rouge-score with `use_stemmer=True` to the last digit, and far faster: benchmarks/rouge.py measures
    it. A word is stemmed once and remembered.

    Returns:
        For each item, type → score; None where there is no reference.

    Raises:
        ValueError: there are not as many references as predictions.
    """
    import numpy as np

    found: list[dict[str, Rouge] | None] = [None] * len(references)
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references, {len(predictions)} predictions")
    defined = [index for index, reference in enumerate(references) if reference.strip()]
    if not defined:
        return found
    words = rouge_tokens([side[index] for side in (references, predictions) for index in defined])
    counts = map(_matches, words[: len(defined)], words[len(defined) :])
    table = np.fromiter(itertools.chain.from_iterable(counts), np.int64, 5 * len(defined)).reshape(-1, 5)
    matched, lengths = table[:, :3], table[:, 3:, None]  # (n, 3), (n, 2, 1)
    # A text of n words has n − 1 pairs of words, and one without words none.
    totals = np.maximum(lengths - np.array([0, 1, 0]), 0)  # (n, 2, 3)
    recall, precision = (matched / np.maximum(totals[:, side], 1) for side in (0, 1))
    f1 = 2 * precision * recall / np.where(matched > 0, precision + recall, 1.0)
    # Columns become tuples in one go: three scores an item, made one by one, took as long as the counting.
    columns = (100.0 * precision, 100.0 * recall, 100.0 * f1, matched, totals[:, 0], totals[:, 1])
    flat = zip(*(each.ravel().tolist() for each in columns), strict=True)  # an item's three, one after another
    score = map(tuple.__new__, itertools.repeat(Rouge), flat)
    for index, one, two, longest in zip(defined, score, score, score, strict=True):
        found[index] = {"rouge1": one, "rouge2": two, "rougeL": longest}
    return found


def rouge_tokens(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text as ROUGE compares them: lower case, a to z and digits only, Porter stems of those above 3 letters.

    All texts are treated as one, a NUL between them: that takes half the time.
    """
    joined = "\0".join(texts)
    if joined.count("\0") != len(texts) - 1:
        joined = "\0".join(text.replace("\0", " ") for text in texts)
    stem = _stems().__getitem__
    # Some letters outside ASCII have one inside it as their small letter; where there are none, _SEPARATED does it.
    ascii_only = joined if joined.isascii() else joined.lower()
    lines = ascii_only.encode("ascii", "replace").translate(_SEPARATED).split(b"\0")
    return [[*map(stem, line.split())] for line in lines[: len(texts)]]


def rouge_name() -> str:
    """What computed ROUGE, for whoever reads the scores."""
    from importlib.metadata import version

    return f"as rouge-score computes it, stems of rouge-score-rs {version('rouge-score-rs')}: F1, Porter stemmer, one reference"


class _Stems(dict[bytes, str]):
    """Stem of every word asked for so far."""

    def __init__(self) -> None:
        from rouge_score_rs.tokenizers import DefaultTokenizer

        super().__init__()
        self.tokenize = DefaultTokenizer(use_stemmer=True).tokenize

    def __missing__(self, word: bytes) -> str:
        if len(self) >= _MOST_STEMS:
            self.clear()
        (found,) = self.tokenize(word.decode())
        self[word] = str(found)
        return str(found)


@functools.cache
def _stems() -> _Stems:
    return _Stems()


def forget_stems() -> None:
    """Let the stems go that were remembered: for measuring, and for memory."""
    _stems().clear()


def _matches(reference: Sequence[str], prediction: Sequence[str]) -> tuple[int, int, int, int, int]:
    """Clipped matches of words and of pairs, length of the longest common subsequence; words of either.

    One pass over each: every word of the reference keeps its positions as the bits of a number. How often it stands there is
    how many bits are set; it follows another where the other's bits, moved up by one, meet its own; and the subsequence's
    length comes out of an addition a word (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    positions: dict[str, int] = {}
    bit = 1
    for word in reference:
        positions[word] = positions[word] | bit if word in positions else bit
        bit += bit
    unmatched = everywhere = bit - 1
    words = pairs = after_last = 0
    last = ""
    seen: dict[str | tuple[str, str], int] = {}
    for word in prediction:
        if word not in positions:
            after_last = 0
            continue
        own = positions[word]
        common = unmatched & own
        unmatched = (unmatched + common) | (unmatched - common)
        if word in seen:
            seen[word] = times = seen[word] + 1
            words += times <= own.bit_count()
        else:
            seen[word] = 1
            words += 1
        both = after_last & own
        if both:
            seen[last, word] = times = seen.get((last, word), 0) + 1
            pairs += times <= both.bit_count()
        after_last = own << 1
        last = word
    longest = len(reference) - (unmatched & everywhere).bit_count()
    return words, pairs, longest, len(reference), len(prediction)


def corpus_score(metric: str, references: Sequence[str], predictions: Sequence[str]) -> float | None:
    """One number for a set of items: the mean of ROUGE's F1, or corpus BLEU; None where no item has a reference."""
    if metric == "bleu":
        found = float(bleu(bleu_statistics(references, predictions).sum(axis=0)))
        return None if found != found else found
    scored = [each[metric].f1 for each in rouge(references, predictions) if each is not None]
    return sum(scored) / len(scored) if scored else None


def bleu_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """What corpus BLEU is computed from, for each item: sums over any set of items give that set's BLEU.

    Returns:
        (n, 10) float64: output length, reference length, matched n-grams (1 to 4), n-grams of the output (1 to 4); zeros
        for an item without a reference.
    """
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    # Sentence BLEU is asked for its counts only; the effective order changes its score, which is not used.
    scorer = BLEU(effective_order=True)
    rows = np.zeros((len(references), BLEU_COLUMNS))
    for index, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if reference.strip():
            score = scorer.sentence_score(prediction, [reference])
            rows[index] = [score.sys_len, score.ref_len, *score.counts, *score.totals]
    return rows


def bleu(statistics: np.ndarray) -> np.ndarray:
    """Corpus BLEU from summed statistics, as sacrebleu computes it (exponential smoothing, brevity penalty).

    Args:
        statistics: (…, 10), sums over items of the rows of `bleu_statistics`.

    Returns:
        (…) points, 0 to 100; nan where there was no reference at all.
    """
    import numpy as np

    length, reference = statistics[..., 0], statistics[..., 1]
    matched, total = statistics[..., 2 : 2 + BLEU_ORDER], statistics[..., 2 + BLEU_ORDER :]
    # The k-th order without any match counts as 1/2^k of a match (Chen and Cherry 2014, method 3).
    zeros = np.cumsum(matched == 0, axis=-1)
    counts = np.where(matched == 0, 0.5**zeros, matched)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(counts / total).mean(axis=-1)
        brevity = np.where(length < reference, np.exp(1.0 - reference / length), 1.0)
        points = 100.0 * brevity * np.exp(log_precision)
    # No match at all, or not one run of four words: BLEU is 0, however it is smoothed.
    points = np.where((matched.sum(axis=-1) == 0) | (total == 0).any(axis=-1), 0.0, points)
    found: np.ndarray = np.where(reference == 0, np.nan, points)
    return found


def bleu_signature() -> str:
    """Sacrebleu's signature: everything the number depends on."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU()
    scorer.corpus_score(["a"], [["a"]])  # the number of references is known only afterwards
    return str(scorer.get_signature())


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> list[float | None]:
    """1 where a prediction is its reference, white space around them aside; 0 where not; None without a reference.

    As HELM's `exact_match` (helm/benchmark/metrics/evaluate_reference_metrics.py), except that HELM scores a missing reference 0.
    """
    return [
        float(reference.strip() == prediction.strip()) if reference.strip() else None
        for reference, prediction in zip(references, predictions, strict=True)
    ]


def quasi_exact_match(references: Sequence[str], predictions: Sequence[str]) -> list[float | None]:
    """As `exact_match`, after lower-casing and without ASCII punctuation, articles and extra space.

    HELM's `quasi_exact_match` (helm/benchmark/metrics/evaluate_reference_metrics.py, after the script of QuAC, Choi et al. 2018).
    Deviations: a missing reference is undefined; and where nothing would be left of a reference ("A", the first choice of
    four; "+"), its articles, then its punctuation too, are kept, here and in the prediction. HELM finds "A" equal to "the".
    """
    found: list[float | None] = []
    for reference, prediction in zip(references, predictions, strict=True):
        if not reference.strip():
            found.append(None)
            continue
        forms = (
            (plain(each, articles=False), plain(each, articles=True), one_line(each.lower()))
            for each in (reference, prediction)
        )
        found.append(next(float(wanted == given) for wanted, given in zip(*forms, strict=True) if wanted))
    return found


def plain(text: str, articles: bool) -> str:
    """Lower case, no punctuation, one space between words, with or without articles."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return one_line(text if articles else _ARTICLE.sub(" ", text))


def perplexity(total_logprob: float, tokens: int) -> float | None:
    """Perplexity of a text, or of many: e to the mean negative log-likelihood of a token.

    As HELM's `perplexity` (helm/benchmark/metrics/basic_metrics.py). It depends on the tokenizer; `bits_per_byte` does not.

    Args:
        total_logprob: sum over the tokens of their log-probability, in nats.
        tokens: how many there are.

    Returns:
        1 or more; None where that is not a number: no tokens, a log-probability that is nan, an impossible token.
    """
    if not tokens or not math.isfinite(total_logprob):
        return None
    try:
        return math.exp(-total_logprob / tokens)
    except OverflowError:  # above 10^308
        return None


def bits_per_byte(total_logprob: float, text_bytes: int) -> float | None:
    """Bits a model needs for a byte of the text (UTF-8): comparable between tokenizers.

    As HELM's `bits_per_byte` (helm/benchmark/metrics/basic_metrics.py).

    Args:
        total_logprob: as for `perplexity`, in nats.
        text_bytes: length of the text.

    Returns:
        0 or more; None where that is not a number: no bytes, a log-probability that is nan, an impossible token.
    """
    if not text_bytes or not math.isfinite(total_logprob):
        return None
    return -total_logprob / math.log(2) / text_bytes


def faithfulness(source: str, summary: str) -> float | None:
    """Share of a summary's content words and identifiers that its source supports.

    A word is supported if the source has it or another form of it: the same Porter stem, as for ROUGE. An identifier is
    split at dots and underscores, and each piece is supported as it is written (whatever its case) or by its parts at
    capitals: `MinHashLSH` by "a min hash for LSH". One piece that the source has not, and the identifier is invented. A
    number is supported as it is written. Each different word counts once, so that repeating one gains nothing; words of
    `STOP_WORDS` do not count.

    It is extractive fragment coverage (Grusky et al. 2018, "Newsroom") of content alone: it finds invented names and topics, not
    a false statement that is made of the source's words, and a true word that the source does not use counts as unsupported.

    Returns:
        0 to 1; None where there is no source, or no content word in the summary.
    """
    items = {piece_stems: pieces for pieces in _content(summary) if (piece_stems := tuple(map(_stem, pieces)))}
    if not items or not source.strip():
        return None
    support = {
        _stem(form) for item in _ITEM.findall(source) for piece in _pieces(item) for form in (piece, *_parts(piece))
    }
    supported = sum(
        all(_stem(piece) in support or all(_stem(part) in support for part in _parts(piece)) for piece in pieces)
        for pieces in items.values()
    )
    return supported / len(items)


def sources(prompts: Sequence[str]) -> list[str]:
    """What each prompt is about: the prompts without the lines that all of them begin or end with.

    Those are the instruction. It supports nothing: else "A one-line summary of the documentation." would be faithful to every
    source. Of a single prompt nothing is known, and nothing is taken away.
    """
    start, end = instruction(prompts)
    return [prompt[start : len(prompt) - end] for prompt in prompts]


def instruction(prompts: Sequence[str]) -> tuple[int, int]:
    """Characters of the lines that all prompts begin with, and of those that all of them end with; none of a single prompt."""
    if len(set(prompts)) < 2:
        return 0, 0
    start = os.path.commonprefix(prompts).rfind("\n") + 1
    return start, os.path.commonprefix([prompt[start:][::-1] for prompt in prompts]).rfind("\n") + 1


def _content(text: str) -> list[tuple[str, ...]]:
    """The pieces of every content word, number and identifier of a text."""
    found = (_pieces(item) for item in _ITEM.findall(text) if item.lower() not in STOP_WORDS)
    return [pieces for pieces in found if len(pieces) > 1 or (pieces and pieces[0].lower() not in STOP_WORDS)]


def _pieces(item: str) -> tuple[str, ...]:
    """An identifier at its dots and underscores; a number whole."""
    return (item,) if _NUMBER.fullmatch(item) else tuple(filter(None, re.split(r"[._]", item)))


def _parts(piece: str) -> list[str]:
    """A piece at its capitals; a number whole."""
    return [piece] if _NUMBER.fullmatch(piece) else _PART.findall(piece)


def _stem(word: str) -> str:
    """The form of a word that is compared: lower case, Porter's stem where ROUGE has one."""
    lower = word.lower()
    return _stems()[lower.encode()] if lower.isascii() and lower.isalnum() else lower


def training_index(texts: Iterable[str]) -> TrainingIndex:
    """What `memorised` looks up, made once: of 8,000 completions a few megabytes in a fraction of a second."""
    import numpy as np

    words: dict[str, int] = {}
    ids = [0]
    for text in texts:
        ids += [words.setdefault(word, len(words) + 1) for word in _words(text)]
        ids.append(0)
    stream = np.array(ids, dtype=np.int32)
    pairs = stream[:-1].astype(np.int64) * (len(words) + 1) + stream[1:]
    places = np.flatnonzero((stream[:-1] > 0) & (stream[1:] > 0))
    places = places[np.argsort(pairs[places], kind="stable")]
    return TrainingIndex(words, stream, pairs[places], places)


def memorised(summary: str, index: TrainingIndex) -> int | None:
    """Words of the longest run that the summary shares, word for word, with one training text.

    A count, not a share: four words of a summary of five are a common phrase, twelve of forty are a copy. Case and punctuation
    do not count. How long runs are by chance depends on the corpus: the same number for the references, which nobody
    trained on, says so. (Lee et al. 2022, "Deduplicating training data makes language models better", count verbatim runs;
    HELM's copyright_metrics.py takes the longest common prefix with one source instead.)

    Returns:
        0 or more; None where the summary has no word.
    """
    import numpy as np

    words = _words(summary)
    if not words:
        return None
    ids = np.array([index.words.get(word, -1) for word in words] + [-1], dtype=np.int64)  # -1 ends a run
    longest = int((ids > 0).any())
    starts = np.flatnonzero((ids[:-1] > 0) & (ids[1:] > 0))
    pairs = ids[starts] * (len(index.words) + 1) + ids[starts + 1]
    first = np.searchsorted(index.pairs, pairs, side="left")
    counts = np.searchsorted(index.pairs, pairs, side="right") - first
    # Every place in the training texts (`there`) at which two words of the summary (`here`) stand; then three, four, …
    here = np.repeat(starts, counts)
    offsets = np.arange(len(here)) - np.repeat(np.cumsum(counts) - counts, counts)
    there = index.places[np.repeat(first, counts) + offsets]
    while len(here):
        longest += 1
        longer = ids[here + longest] == index.stream[there + longest]
        here, there = here[longer], there[longer]
    return longest


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def lead_words(text: str, count: int = 10) -> str:
    """The extractive baseline: the first `count` words."""
    return " ".join(text.split()[:count])


def first_sentence(text: str) -> str:
    """The extractive baseline: everything up to the end of the first sentence, on one line.

    A sentence ends at . ! or ? before white space, abbreviations and initials excepted, or at an empty line.
    """
    text = text.strip()
    for end in _SENTENCE_END.finditer(text):
        head = text[: end.end()]
        if head.strip() and not _ABBREVIATION.search(head):
            return one_line(head)
    return one_line(text)


def of_items(metric: str) -> str:
    """The metric that single items are judged by: BLEU is of a whole test set only, and ROUGE-1 stands for it."""
    return metric if metric in ROUGE_TYPES else ROUGE_TYPES[0]


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's runs of words and signs that it has had before: 1 − different runs / runs (Welleck et al. 2020, seq-rep-n).

    Args:
        text: as it was written; capital letters make no difference.
        size: words and signs of a run. A text with fewer repeats nothing.
    """
    pieces = re.findall(r"\w+|[^\w\s]", text.lower())
    runs = [tuple(pieces[at : at + size]) for at in range(len(pieces) - size + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def degenerate(text: str) -> bool:
    """Whether a text says nothing: it has no word, or more than half of it has been said before."""
    return not re.search(r"\w", text) or repetition(text) > DEGENERATE


def share(flags: Iterable[bool]) -> float | None:
    """Share of true values, 0 to 1; None of nothing."""
    return mean([float(flag) for flag in flags])


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the defined values; None where there is none."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
