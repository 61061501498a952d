"""Which rows may be learnt from and tested on: the rules of the quarantine, near duplicates, and the split.

Nothing is dropped silently: every refused row has a reason and a detail. Near duplicates are found with MinHash and
locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998), and confirmed by their exact Jaccard similarity.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

REASONS = {
    "not_utf8": "the line is not UTF-8",
    "not_json": "the line is no JSON object",
    "not_csv": "the line does not fit the header",
    "missing_field": "a field is not there or null",
    "wrong_type": "a field has the wrong type",
    "empty": "a text is empty or blank",
    "wrong_role_order": "the messages do not alternate between user and assistant",
    "several_turns": "the conversation has more than one exchange",
    "completion_masked": "nothing is left to learn: no answer, or the prompt alone fills the context window",
    "too_long": "prompt and completion do not fit the context window",
    "bad_choices": "the choices are no list of different texts, or the answer is none of them",
    "bad_score": "a score is no number from 0 to 1",
    "personal_data": "an e-mail address",
    "secret": "a key, a token or a password",
    "duplicate": "the same row again in the same split",
    "near_duplicate": "nearly the same row again in the same split",
    "leak": "the same or nearly the same row is in another split",
}
"""Why a row is refused; a row that breaks several rules has the first of them."""

Split = Literal["train", "validation", "test"]


class Refusal(NamedTuple):
    """One of `REASONS`, and what exactly is wrong."""

    reason: str
    detail: str


class Conversation(NamedTuple):
    """What a chat of one exchange is as an example."""

    prompt: str
    completion: str


# --- rules for one row -----------------------------------------------------------------------------------------------


def check_texts(row: Mapping[str, Any], names: Sequence[str]) -> Refusal | None:
    """Every named field is there, is text, and says something."""
    for name in names:
        value = row.get(name)
        if value is None:
            return Refusal("missing_field", name)
        if not isinstance(value, str):
            return Refusal("wrong_type", f"{name} is {type(value).__name__}, not text")
        if not value.strip():
            return Refusal("empty", name)
    return None


def check_length(prompt: str, completion: str, context_tokens: int, bytes_per_token: float) -> Refusal | None:
    """Prompt and completion fit the context window, by an estimate that errs on the long side.

    Args:
        prompt: the prompt.
        completion: the completion.
        context_tokens: what the model can read at once.
        bytes_per_token: UTF-8 bytes that make a token; bytes and not characters, as one character of other scripts
            takes several tokens.
    """
    prompt_tokens = math.ceil(len(prompt.encode()) / bytes_per_token)
    tokens = prompt_tokens + math.ceil(len(completion.encode()) / bytes_per_token)
    if prompt_tokens >= context_tokens:
        return Refusal("completion_masked", f"the prompt alone has about {prompt_tokens} tokens of {context_tokens}")
    if tokens > context_tokens:
        return Refusal("too_long", f"about {tokens} tokens, and the context window has {context_tokens}")
    return None


def check_messages(messages: object) -> Conversation | Refusal:
    """A chat as an example: an optional system message, then user and assistant in turn; the last turn is learnt.

    Returns:
        The prompt and completion, or why there is none.
    """
    if not isinstance(messages, list) or not messages:
        return Refusal("wrong_type", "messages is no list of messages")
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return Refusal("wrong_type", f"message {number} is no object")
        if refusal := check_texts(message, ("role", "content")):
            return Refusal(refusal.reason, f"{refusal.detail} of message {number}")
        turns.append((message["role"], message["content"]))
    system = turns[0][1] if turns[0][0] == "system" else None
    exchange = turns[1:] if system is not None else turns
    for number, (role, _) in enumerate(exchange, start=2 if system is not None else 1):
        expected = ("user", "assistant")[(number - (2 if system is not None else 1)) % 2]
        if role != expected:
            return Refusal("wrong_role_order", f"message {number} is from '{role}', not from '{expected}'")
    if len(exchange) % 2:
        return Refusal("completion_masked", "no assistant message at the end")
    if not exchange:
        return Refusal("completion_masked", "only a system message")
    if len(exchange) > 2:
        return Refusal("several_turns", f"{len(exchange) // 2} exchanges; only one can be learnt")
    return Conversation("\n\n".join(text for text in (system, exchange[0][1]) if text), exchange[1][1])


def check_choices(value: object, completion: str) -> tuple[str, ...] | Refusal:
    """The answers of a multiple-choice question: at least two different texts, the right one among them.

    Args:
        value: the choices; None or an empty list where the answer is free, which gives ().
        completion: the right answer.
    """
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        return Refusal("bad_choices", f"choices is {type(value).__name__}, not a list")
    if any(not isinstance(each, str) or not each.strip() for each in value):
        return Refusal("bad_choices", "a choice is no text, or blank")
    if len(set(value)) < max(2, len(value)):
        return Refusal("bad_choices", "fewer than two choices, or one twice")
    if completion not in value:
        return Refusal("bad_choices", "the completion is none of the choices")
    return tuple(value)


def check_scores(value: object) -> tuple[float, ...] | Refusal:
    """Scores as numbers from 0 to 1; text is read as a number, a single value as a list of one."""
    values = value if isinstance(value, list) else [value]
    if value is None or not values:
        return Refusal("missing_field", "scores")
    scores = []
    for each in values:
        try:
            score = float(each)
        except (TypeError, ValueError):
            return Refusal("bad_score", f"{each!r} is no number")
        if isinstance(each, bool) or not 0 <= score <= 1:
            return Refusal("bad_score", f"{each!r} is not from 0 to 1")
        scores.append(score)
    return tuple(scores)


# --- personal data and secrets ---------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![\w.+%/:@-])(?P<user>[A-Za-z0-9][\w.+%-]*)@(?P<host>(?:[A-Za-z0-9-]+\.)+"
    # Two letters are a country's; the others are those in use, as `decorator@property.setter` is no address.
    r"(?:[A-Za-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|pro|dev|app|cloud|online|tech|email|academy|company))(?![\w@:/-])"
)
# RFC 2606 and RFC 6761 keep these for examples; nobody reads mail there.
_EXAMPLE_HOST = re.compile(
    r"(^|\.)(example|test|invalid|localhost|local)$|(^|\.)(example|domain|host|server|company)\.\w+$", re.IGNORECASE
)
_EXAMPLE_USER = re.compile(
    r"^(git|no-?reply|do-?not-?reply|user(name)?|name|you|your\.?(name|email)|me|foo|bar)$", re.IGNORECASE
)
# Not addresses but names of the SSH protocol: RFC 4251 has vendors write algorithms as `name@domain`.
_SSH_NAME = re.compile(r"@(lists\.)?(openssh|libssh|ssh|lysator|tinyssh|liu)\.(com|org|se)$", re.IGNORECASE)

_SECRETS = {
    "private key": re.compile(
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\n)*(?:Proc-Type|[A-Za-z0-9+/=]{12})"
    ),
    "AWS access key": re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    "GitHub token": re.compile(r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})(?!\w)"),
    "OpenAI or Anthropic key": re.compile(r"(?<![\w-])sk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}"),
    "Hugging Face token": re.compile(r"(?<!\w)hf_[A-Za-z0-9]{30,}(?!\w)"),
    "Google API key": re.compile(r"(?<!\w)AIza[A-Za-z0-9_-]{35}(?![\w-])"),
    "Slack token": re.compile(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "Stripe key": re.compile(r"(?<!\w)[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    "JSON web token": re.compile(r"(?<!\w)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
}
_ASSIGNED = re.compile(
    r"(?i)(?<![a-z])(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|auth[_-]?token|access[_-]?token|token|password|passwd)"
    r"[\"']?\s*[:=]\s*[\"']?(?P<value>[A-Za-z0-9+/_=.~-]{16,})"
)


def find_personal(text: str) -> Refusal | None:
    """The first e-mail address or secret in a text; those that are there as examples do not count."""
    for kind, pattern in _SECRETS.items():
        if any(not _looks_made_up(found.group()) for found in pattern.finditer(text)):
            # Never the secret itself: the quarantine is read by people and uploaded as an artifact.
            return Refusal("secret", kind)
    for found in _ASSIGNED.finditer(text):
        value = found["value"]
        random_looking = any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and _entropy(value) >= 3.3
        if random_looking and not _looks_made_up(value) and "." not in value.strip("."):
            return Refusal("secret", "a value assigned to a key, token or password")
    for found in _EMAIL.finditer(text):
        if _EXAMPLE_HOST.search(found["host"]) or _EXAMPLE_USER.match(found["user"]) or _SSH_NAME.search(found.group()):
            continue
        return Refusal("personal_data", f"an e-mail address at {found['host']}")
    return None


def _looks_made_up(value: str) -> bool:
    return (
        bool(re.search(r"example|your|xxx+|placeholder|\.\.\.|1234567|abcdef", value, re.IGNORECASE))
        or _entropy(value) < 2.5
    )


def _entropy(value: str) -> float:
    """Shannon entropy of a text's characters, in bits for each."""
    counts = Counter(value)
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())


# --- the split -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """How much of the data one held-out split takes.

    Attributes:
        groups: groups, where rows have groups.
        rows: share of the rows, where they have none.
    """

    groups: int
    rows: float


def split(
    groups: Sequence[str | None], prompts: Sequence[str], validation: HeldOut, test: HeldOut, largest: int, seed: int
) -> tuple[list[Split], Literal["group", "row"]]:
    """Put every row on one side: whole groups where there are any, all rows of a prompt otherwise.

    Held-out groups are drawn at random from those with at most `largest` rows, so that a large group is spent on
    training; where too few are that small, the smallest of the others follow. At most two thirds of the groups are held
    out, at least one for each split.

    Without groups, rows with the same prompt stay together, as a model that has seen one answer knows the question;
    prompts are drawn at random, and one with more rows than are still wanted is learnt from.

    Args:
        groups: each row's group; None for a row of its own.
        prompts: each row's prompt, or what stands for it.
        validation: how much to tune on.
        test: how much to test on.
        largest: rows of the largest group to hold out.
        seed: of the draw.

    Returns:
        Each row's split, and whether groups or rows were split. Fewer than three groups cannot be, so rows are.
    """
    generator = random.Random(seed)
    sizes = Counter(group for group in groups if group is not None)
    if len(sizes) < 3:
        sizes = Counter(prompts)
        order = list(sizes)
        generator.shuffle(order)
        wanted: dict[Split, float] = {"test": test.rows, "validation": validation.rows}
        chosen: dict[str, Split] = {}
        for name, share in wanted.items():
            left = max(1, round(share * len(prompts)))
            free = [prompt for prompt in order if prompt not in chosen]
            # Where every prompt has more rows than are wanted, the smallest is held out.
            if free and min(sizes[prompt] for prompt in free) > left:
                chosen[min(free, key=sizes.__getitem__)] = name
                continue
            for prompt in free:
                if sizes[prompt] <= left:
                    chosen[prompt] = name
                    left -= sizes[prompt]
        return [chosen.get(prompt, "train") for prompt in prompts], "row"

    small = sorted(group for group, size in sizes.items() if size <= largest)
    generator.shuffle(small)
    candidates = small + sorted(sizes.keys() - set(small), key=lambda group: (sizes[group], group))
    asked = test.groups + validation.groups
    held_out = min(asked, max(2, len(sizes) * 2 // 3))
    in_test = min(held_out - 1, max(1, round(held_out * test.groups / asked)))
    side: dict[str | None, Split] = {None: "train"}
    for position, group in enumerate(candidates):
        side[group] = "test" if position < in_test else "validation" if position < held_out else "train"
    return [side[group] for group in groups], "group"


def hold_out(prompts: Sequence[str], most: int, seed: int) -> list[bool]:
    """Which rows of one task to test on: whole prompts drawn at random, half of the rows at most; True means held out.

    Args:
        prompts: each row's prompt; rows with the same one stay together.
        most: rows to hold out.
        seed: of the draw, which depends on the prompts and not on their order.
    """
    return take(prompts, min(most, len(prompts) // 2), seed)


def take(labels: Sequence[str], most: int, seed: int | str) -> list[bool]:
    """Which rows to take: whole labels drawn at random as long as they fit; True means taken.

    Args:
        labels: each row's label (a prompt, or a cluster of prompts); rows with the same one stay together.
        most: rows to take.
        seed: of the draw, which depends on the labels and not on their order.
    """
    sizes = Counter(labels)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    left = most
    chosen = set()
    for label in order:
        if sizes[label] <= left:
            chosen.add(label)
            left -= sizes[label]
    return [label in chosen for label in labels]


def cap_groups(groups: Sequence[str], most: int, seed: int) -> list[bool]:
    """Which rows to keep so that no group has more than `most`: a random draw in each group, True means kept."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    kept = [False] * len(groups)
    for group in sorted(members):
        chosen = members[group]
        if len(chosen) > most:
            chosen = random.Random(f"{seed}:{group}").sample(chosen, most)
        for index in chosen:
            kept[index] = True
    return kept


# --- duplicates ------------------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """A text without its white space's form: what exact duplicates share."""
    return " ".join(text.split())


class Repeat(NamedTuple):
    """A row that repeats an earlier one."""

    of: int
    exact: bool
    similarity: float


def find_repeats(
    texts: Sequence[str], first: Sequence[int], jaccard: float | None, shingle_words: int = 3, permutations: int = 128
) -> dict[int, Repeat]:
    """Rows that are the same, or nearly the same, as a row that comes before them in `first`.

    Args:
        texts: what is compared.
        first: indices in the order in which rows are kept; the first of several alike stays.
        jaccard: similarity from which two rows are near duplicates: shared shingles over all shingles, 0–1. None: only
            exact duplicates.
        shingle_words: words of a shingle.
        permutations: hash functions of a MinHash; more find more of the pairs close to the threshold.

    Returns:
        index of the repeating row → what it repeats.
    """
    repeats: dict[int, Repeat] = {}
    by_text: dict[str, int] = {}
    for index in first:
        text = normalised(texts[index])
        if text in by_text:
            repeats[index] = Repeat(by_text[text], True, 1.0)
        else:
            by_text[text] = index
    if jaccard is None:
        return repeats

    left = [index for index in first if index not in repeats]
    shingles = dict(zip(left, _shingles([texts[index] for index in left], shingle_words), strict=True))
    index_of = _index(jaccard, permutations)
    for index in left:
        own = shingles[index]
        if not own:
            continue
        sketch = _sketch(own, permutations)
        alike = [(_jaccard(own, shingles[other]), -other) for other in index_of.query(sketch)]
        similarity, other = max(alike, default=(0.0, 0))
        if similarity >= jaccard:
            repeats[index] = Repeat(-other, False, similarity)
        else:
            index_of.insert(index, sketch)
    return repeats


def clusters(texts: Sequence[str], jaccard: float | None, shingle_words: int = 3, permutations: int = 128) -> list[int]:
    """Which texts are alike, directly or through others: what a split may not tear apart.

    Unlike in `find_repeats` every text is kept, so likeness is followed on: where a is like b and b like c, all three are
    one cluster, alike or not as a and c may be.

    Args:
        texts: what is compared.
        jaccard: similarity from which two texts are near duplicates; None: only exact duplicates.
        shingle_words: words of a shingle.
        permutations: hash functions of a MinHash.

    Returns:
        Each text's cluster, named by the index of its first member.
    """
    first: dict[str, int] = {}
    above = [first.setdefault(normalised(text), index) for index, text in enumerate(texts)]

    def root(index: int) -> int:
        while above[index] != index:
            index = above[index]
        return index

    if jaccard is not None:
        left = list(first.values())
        shingles = dict(zip(left, _shingles([texts[index] for index in left], shingle_words), strict=True))
        index_of = _index(jaccard, permutations)
        for index in left:
            if not shingles[index]:
                continue
            sketch = _sketch(shingles[index], permutations)
            for other in index_of.query(sketch):
                if _jaccard(shingles[index], shingles[other]) >= jaccard:
                    low, high = sorted((root(index), root(other)))
                    above[high] = low
            index_of.insert(index, sketch)
    return [root(index) for index in range(len(texts))]


def joined(*clusterings: Sequence[int]) -> list[int]:
    """Which rows are in one cluster by any of several clusterings, directly or through others.

    Args:
        clusterings: each names every row's cluster by the index of its first member, as `clusters` does.

    Returns:
        The same of them all together.
    """
    above = list(range(len(clusterings[0])))

    def root(index: int) -> int:
        while above[index] != index:
            index = above[index]
        return index

    for clustering in clusterings:
        for index, first in enumerate(clustering):
            low, high = sorted((root(index), root(first)))
            above[high] = low
    return [root(index) for index in range(len(above))]


def _index(jaccard: float, permutations: int) -> Any:
    """Finds sketches that may be alike: by a lower threshold than asked, as what it finds is compared exactly."""
    from datasketch import MinHashLSH

    # More weight on missing none.
    return MinHashLSH(threshold=0.8 * jaccard, num_perm=permutations, weights=(0.1, 0.9))


def _sketch(shingles: set[str], permutations: int) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=permutations, seed=1, hashfunc=_crc)
    sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return sketch


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


def _shingles(texts: Sequence[str], words: int) -> list[set[str]]:
    """Runs of `words` words, without those of a template: runs that over a fifth of the texts have."""
    every = []
    for text in texts:
        tokens = re.findall(r"\w+", text.lower())
        every.append(
            {" ".join(tokens[start : start + words]) for start in range(max(1, len(tokens) - words + 1))} - {""}
        )
    if len(texts) >= 20:
        counts = Counter(shingle for shingles in every for shingle in shingles)
        template = {shingle for shingle, count in counts.items() if count > len(texts) / 5}
        every = [shingles - template for shingles in every]
    return every
