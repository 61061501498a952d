"""Perturbations of a text that should not change how well a model does: HELM's robustness and fairness.

Liang et al. 2022, "Holistic Evaluation of Language Models" (arXiv 2211.09110), sections 4.5 and 4.6; code: crfm-helm,
`src/helm/benchmark/augmentations/`, run as `run_expander.py` does for the canonical set: robustness is `mild_mix`, fairness is
dialect, gender pronouns and first names, each with probability 1. Pure: texts in, texts out.

As in HELM the random numbers come from `Random(instance id)`, fresh for every perturbation, and a replaced word's capitals are
kept. Deviations for all of them, those of each are in its function:

- Code is left as it is (HELM changes it): fenced, indented and doctest blocks, backticks, calls, identifiers with `_`, `.` or
  inner capitals, URLs, paths, options, placeholders, one word in straight quotes, the names of parameters at the head of a line.
- The word lists are our own and far shorter than HELM's, which come from Wikipedia, Ziems et al. and Caliskan et al.
- Words at the edge of a text and words next to each other are replaced; HELM's patterns miss them (its issue 1958).
- Given are the text and the answers; the caller's instructions around the text are never perturbed (as in HELM).
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

Name = Literal["robustness", "dialect", "gender", "names"]
NAMES: tuple[Name, ...] = get_args(Name)
FAIRNESS: tuple[Name, ...] = ("dialect", "gender", "names")
MISSPELT = 0.1
"""Probability that a word with a known misspelling gets it."""
MOST_SPACES = 3


class Perturbed(NamedTuple):
    """An instance after a perturbation."""

    text: str
    references: tuple[str, ...]
    """The answers (a reference, or choices), in the given order, changed where the perturbation changes answers."""
    changed: bool
    """Whether `text` differs from the original; changed answers alone do not count (as in HELM's `data_augmenter.py`)."""


def perturb(name: Name, text: str, references: Sequence[str], key: str) -> Perturbed:
    """One perturbation of an instance's text and, for the fairness perturbations, of its answers.

    Robustness leaves the answers alone: nobody should have to write broken text (HELM's `mild_mix_perturbation.py`). The three
    of fairness change them in the same way as the text, as in HELM, where all three set `should_perturb_references`.

    Args:
        name: which.
        text: what the model is asked about.
        references: the answers.
        key: the instance's id: the same key and texts give the same result, whatever was perturbed before.

    Raises:
        ValueError: no such perturbation.
    """
    if name == "robustness":
        found = [roughen(text, random.Random(key)), *references]
    elif name == "dialect":
        found = [speak_dialect(each) for each in (text, *references)]
    elif name == "gender":
        found = [make_female(each) for each in (text, *references)]
    elif name == "names":
        found = rename([text, *references], random.Random(key))
    else:
        raise ValueError(f"no perturbation {name!r}; there are {', '.join(NAMES)}")
    return Perturbed(found[0], tuple(found[1:]), found[0] != text)


def roughen(text: str, rng: random.Random) -> str:
    """Robustness, HELM's `mild_mix_perturbation.py`: lower case, contractions, misspellings, spaces, in this order.

    The parts are `lowercase_perturbation.py`, `contraction_expansion_perturbation.py`, `misspelling_perturbation.py` (p = 0.1
    for each listed word, then one of its misspellings) and `space_perturbation.py` (each run of spaces becomes 1 to 3).

    Deviations: only spaces between two words of a line change, so that indentation and paragraphs survive (HELM changes
    every run); "have" is contracted only before a participle ("they've been", never "they've a name"), "it will not" to "it
    won't" (HELM: "it'll not"); a contraction may be followed by a line break as well as by a space, since documentation is
    wrapped.
    """

    def misspell(match: re.Match[str]) -> str:
        return rng.choice(_misspellings()[match[0]]) if rng.random() < MISSPELT else match[0]

    masked, hidden = _mask(text)
    masked = masked.lower()
    masked = _pattern(_contractions, r"(?=[ \n]\S)").sub(lambda match: _contractions()[_plain(match[0])][0], masked)
    masked = _pattern(_misspellings).sub(misspell, masked)
    masked = re.sub(r"(?<=\S) +(?=\S)", lambda _: " " * rng.randint(1, MOST_SPACES), masked)
    return _unmask(masked, hidden)


def speak_dialect(text: str) -> str:
    """Fairness, HELM's `dialect_perturbation.py`: Standard American English to African American English, p = 1.

    HELM replaces words by the dictionary of VALUE (Ziems et al. 2022, arXiv 2204.03031). Here: pronunciation spellings (this
    → dis, never → neva, just → jus', -ing → -in'), reductions (going to → gonna) and grammar (ain't, habitual be, no
    copula, no third-person -s, was for were, existential it).

    Deviations: one variant for each word (HELM draws one of several), so that text and answers agree; phrases and the endings
    -ing and -s besides words. As in HELM's own example the, to and of stay, and a word that touches a hyphen stays.
    """

    def replace(match: re.Match[str]) -> str:
        word = _plain(match[0])
        if word in _dialect():
            return _match_case(match[0], _dialect()[word][0])
        # "string", "ping": no ending, where no vowel stands before it.
        if word.endswith(_NOT_ENDINGS) or not re.search("[aeiouy]", word[:-3]):
            return match[0]
        return match[0][:-1] + "'"

    masked, hidden = _mask(text)
    pattern = _pattern(_dialect, edge=r"[\w-]", more="[a-z]+ing")
    return _unmask(pattern.sub(replace, masked), hidden)


def make_female(text: str) -> str:
    """Fairness, HELM's `gender_perturbation.py`: male words to female ones, p = 1, neutral and female words stay.

    "his" becomes "hers" where it stands alone ("the fault is his.") and "her" before a noun; HELM always takes "her".

    Deviations: HELM's canonical set runs the mode "pronouns" only; here nouns (its mode "terms", without words that are
    technical terms: waiter, host, master, actor) change too. A pair that already names both ("he or she", "men and women",
    "his/her") stays; in HELM it becomes "she or she". "man page", "man-in-the-middle" and the like stay.
    """

    def replace(match: re.Match[str]) -> str:
        word = match[0].lower()
        female = "hers" if word == "his" and _stands_alone(masked, match.end()) else _female()[word][0]
        before = re.search(r"(\w+) (?:and|or) $", masked[max(0, match.start() - 40) : match.start()])
        after = re.match(r" (?:and|or) (\w+)", masked[match.end() : match.end() + 40])
        partners = {_female()[word][0], "hers"} if word == "his" else {female}
        if any(found and found[1].lower() in partners for found in (before, after)):
            return match[0]
        # Magnetic resonance is no mister.
        if match[0] == "MR" or (word in ("man", "men") and _NO_MAN.match(masked, match.end())):
            return match[0]
        return _match_case(match[0], female)

    masked, hidden = _mask(text)
    return _unmask(_pattern(_female).sub(replace, masked), hidden)


def rename(texts: Sequence[str], rng: random.Random) -> list[str]:
    """Fairness, HELM's `person_name_perturbation.py`: first names typical of one group to names of another, p = 1.

    Source: names typical of White Americans, from general knowledge and not from a survey (HELM's are those of Caliskan et al.
    2017). A name keeps its gender, and becomes the same name in all texts of an instance, whatever its capitals.

    Deviations: the target is one of three groups (Black, Hispanic, Asian American), one for the whole instance; HELM's is
    always Black American. Two names never become one, nor a name that is there already (HELM draws with replacement), as
    long as there are names left; the draw does not depend on the order of the texts. Names that are words of technical
    English as well (Mark, Bill, Will, Grace, Max) are not listed, some (Jack, Tom) count only with a capital.

    Args:
        texts: an instance's text and its answers.
        rng: decides the group and the names.
    """
    hidden_texts = [_mask(text) for text in texts]
    pattern = _pattern(_source_names)
    present = {word.lower() for masked, _ in hidden_texts for word in re.findall(r"\w+", masked)}
    found = {match.lower() for masked, _ in hidden_texts for match in pattern.findall(masked) if not _is_word(match)}
    if not found:
        return list(texts)
    group = rng.choice(_TARGET_NAMES)
    new_names: dict[str, str] = {}
    for known, pool in zip(_SOURCE_NAMES, group, strict=True):
        free = [name for name in pool.split() if name not in present] or pool.split()
        rng.shuffle(free)
        new_names |= zip(sorted(found & set(known.split())), itertools.cycle(free), strict=False)

    def replace(match: re.Match[str]) -> str:
        return match[0] if _is_word(match[0]) else _match_case(match[0], new_names[match[0].lower()])

    return [_unmask(pattern.sub(replace, masked), hidden) for masked, hidden in hidden_texts]


# --- What is code -------------------------------------------------------------------------------------------------------

# Of the private use area: no letter, no space, never a listed word. Where a text has it, it is hidden too.
_HIDDEN = "\ue000"

_INLINE = re.compile(
    r"""
      \ue000
    | (?: :[\w:+.-]+: )? (?P<ticks>`+) (?: (?!\n[ \t]*\n) [^`] | (?!(?P=ticks)(?!`)) ` )+ (?P=ticks) (?!`) _{0,2}
    | ^[ \t]* :[a-zA-Z]+ [^:`\n]* : (?=\s|\Z)                                       # :param name:
    | ^[ \t]* \.\.[ ] [\w:-]+ ::                                                 # .. note::
    | ^[ \t]* \*{0,2}\w+ (?: ,[ ]\*{0,2}\w+ )* [ ]:[ ] [^\n]* $                  # name : type
    | ^[ \t]+ (?: [-*•][ ] )? \*{0,2}[a-z_]\w* (?: [ ]?\( (?: [^()\n] | \([^()\n]*\) )* \) )? : (?=\s)  # name (type):
    | ^ (?: [-*•][ ] )? \*{0,2}[a-z_]\w* [ ]\( (?: [^()\n] | \([^()\n]*\) )* \) : (?=\s)
    | \b [a-zA-Z][\w+.-]* :// [^\s<>"')\]]+
    | \$? \{ [^{}\n]* \}  |  < [^<>\s] [^<>\n]* >  |  % (?: \(\w+\) )? [sdrfx] \b
    | (?<!\w) (?P<quote>["']) [^\s"'`]+ (?P=quote) (?!\w)
    | [\w.]* \w \( (?: [^()\n] | \( [^()\n]* \) )* \)  |  [\w.]* \w \[ [^\[\]\n]* \]
    | (?P<word> [^\s()\[\],;"'`“”‘’—–\ue000]+ )
    """,
    re.VERBOSE | re.MULTILINE,
)
# A word is code when it has one of these: a_b, a.b, .b, a/b, a\b, a=b, a@b, a:b, aB, ABcd, -x, --x, $x.
_CODE_WORD = re.compile(r"\w_|_\w|\w\.\w|^\.\w|[/\\=@]|\w:+\w|[a-z\d][A-Z]|[A-Z]{2}[a-z]{2}|^--?[a-zA-Z]|^\$\w")
_CODE_LINE = re.compile(
    r"\s*(?:[@#$<{}\[\]]|import\b|from \S+ import\b|(?:def|class|return|for|with|if|async|await)\b.*[:)]$"
    r"|[\w.\[\]\"', ]+ [-+*/|]?= \S|[\w.]+\(|[\w.]+=\S)"
)
_CODE_DIRECTIVE = re.compile(r"\s*\.\. (?:code|code-block|sourcecode|parsed-literal|math|prompt|testcode)::")


def _mask(text: str) -> tuple[str, list[str]]:
    """The text with one character in place of each stretch of code, and these stretches in order."""
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        if match["word"] is not None and not _CODE_WORD.search(match[0]):
            return match[0]
        hidden.append(match[0])
        return _HIDDEN

    pieces: list[str] = []
    at = 0
    for start, end in _code_blocks(text):
        pieces += [_INLINE.sub(hide, text[at:start]), _HIDDEN]
        hidden.append(text[start:end])
        at = end
    return "".join([*pieces, _INLINE.sub(hide, text[at:])]), hidden


def _unmask(masked: str, hidden: Sequence[str]) -> str:
    """The code back in its place."""
    stretches = iter(hidden)
    return re.sub(_HIDDEN, lambda _: next(stretches), masked)


def _code_blocks(text: str) -> Iterator[tuple[int, int]]:
    """Where whole lines are code: start and end of each block, in order; the last line's end is not part of it."""
    lines = text.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    at = 0
    while at < len(lines):
        first, end = _code_block(lines, at)
        at = max(end, at + 1)
        while end > first and not lines[end - 1].strip():
            end -= 1
        if end > first:
            yield starts[first], starts[end - 1] + len(lines[end - 1].rstrip("\r\n"))


def _code_block(lines: Sequence[str], at: int) -> tuple[int, int]:
    """The block of code that line `at` is or introduces: its first line and the line behind it, the same where there is none.

    Fenced blocks (to the end if never closed), doctests up to an empty line, lines with a shell prompt, and what is indented
    below a line that ends in `::` or is a code directive. Indented below a line that ends in one colon is code only where at
    least half of its lines look like it: documentation indents its prose too (`Args:`).
    """
    line = lines[at].rstrip()
    fence = re.match(r"\s*(`{3,}|~{3,})[^`]*$", line)
    if fence:
        closed = _first(lines, at + 1, lambda each: bool(re.fullmatch(rf"\s*{fence[1]}[`~]*\s*", each)))
        return at, min(closed + 1, len(lines))
    if line.lstrip().startswith(">>>"):
        return at, _first(lines, at, lambda each: not each.strip())
    if re.match(r"\s*\$ \S", line):
        return at, at + 1
    directive = re.match(r"\s*\.\. ", line)
    if line.endswith(":") or _CODE_DIRECTIVE.match(line):
        first = _first(lines, at + 1, lambda each: bool(each.strip()))
        end = _first(lines, first, lambda each: bool(each.strip()) and _indent(each) <= _indent(line))
        looks = [bool(_CODE_LINE.match(each.rstrip())) for each in lines[first:end] if each.strip()]
        literal = _CODE_DIRECTIVE.match(line) or (line.endswith("::") and not directive)
        if looks and (literal or 2 * sum(looks) >= len(looks)):
            return first, end
    return at, at


def _first(lines: Sequence[str], start: int, wanted: Callable[[str], bool]) -> int:
    """Index of the first wanted line from `start` on; their number where there is none."""
    return next((index for index in range(start, len(lines)) if wanted(lines[index])), len(lines))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


# --- Finding words ------------------------------------------------------------------------------------------------------

_PARTICIPLE = r"(?= (?:been|had|done|gone|got|made|set|[a-z]+(?:ed|en|wn))\b)"
_NO_MAN = re.compile(r"[ -](?:pages?|in-the-middle|made|hours?|days?|months?|years?|power)\b", re.IGNORECASE)
# Behind a "his" that stands for its noun: words that begin no noun phrase ("his is", "his and mine", "his to keep").
_AFTER_HIS = """
is are was were be been has have had does did do and or but nor than to of in on at by for from with as if when while because that
which who too also either alone instead not yet so since until before after
"""
# -ing that is no ending.
_NOT_ENDINGS = ("string", "spring", "sibling", "ceiling", "sterling", "beijing", "boeing", "viking", "darling")


def _stands_alone(text: str, end: int) -> bool:
    """Whether the "his" that ends here has no noun behind it; code counts as a noun."""
    behind = re.match(rf"\s+({_HIDDEN}|[\w-]+)", text[end:])
    return behind is None or behind[1].lower() in _AFTER_HIS.split()


def _is_word(name: str) -> bool:
    """Whether this is a word rather than a name, for lack of a capital."""
    return name in _NAMES_WITH_CAPITAL.split()


def _match_case(source: str, target: str) -> str:
    """`target` with the capitals of `source`: all, the first letter's, or none. HELM: `match_case` in `common/general.py`."""
    letters = [character for character in source if character.isalpha()]
    if len(letters) > 1 and all(letter.isupper() for letter in letters):
        return target.upper()
    if letters[0].isupper():
        first = next(index for index, character in enumerate(target) if character.isalpha())
        return target[:first] + target[first].upper() + target[first + 1 :]
    return target


def _plain(word: str) -> str:
    """As the lexicons write it: lower case, a straight apostrophe."""
    return word.lower().replace("’", "'")


@functools.cache
def _pattern(
    lexicon: Callable[[], dict[str, tuple[str, ...]]], ahead: str = "", edge: str = r"\w", more: str = ""
) -> re.Pattern[str]:
    """What finds a lexicon's words, the longest first.

    Args:
        lexicon: gives it.
        ahead: what must follow each word.
        edge: what must not touch it.
        more: a further pattern.
    """
    words = []
    for word in sorted(lexicon(), key=lambda each: (-len(each), each)):
        follows = ""
        if word.endswith(" have"):
            follows = _PARTICIPLE
        elif word.endswith((" are", " is", "'re")):
            follows = r"(?=[ \n]\S)"  # a copula goes or shrinks only where something follows it
        elif word.endswith((" will", " would")):
            follows = r"(?! not\b)"  # "it won't", not "it'll not"
        words.append(re.escape(word).replace("'", "['’]") + follows)
    return re.compile(
        rf"(?<!{edge})(?:{'|'.join([*words, *([more] if more else [])])})(?!{edge}){ahead}", re.IGNORECASE
    )


def _read(lexicon: str) -> dict[str, tuple[str, ...]]:
    """A lexicon as written below: `word: form, form; word: form`."""
    entries = (entry.partition(": ") for entry in " ".join(lexicon.split()).rstrip(";").split("; "))
    return {word: tuple(forms.split(", ")) for word, _, forms in entries}


@functools.cache
def _contractions() -> dict[str, tuple[str, ...]]:
    return _read(_CONTRACTIONS)


@functools.cache
def _misspellings() -> dict[str, tuple[str, ...]]:
    return _read(_MISSPELLINGS)


@functools.cache
def _female() -> dict[str, tuple[str, ...]]:
    return _read(_GENDER)


@functools.cache
def _dialect() -> dict[str, tuple[str, ...]]:
    verbs = {f"{subject} {verb}s": (f"{subject} {verb}",) for subject in ("he", "she", "it") for verb in _VERBS.split()}
    return verbs | _read(_DIALECT)


@functools.cache
def _source_names() -> dict[str, tuple[str, ...]]:
    return {name: () for names in _SOURCE_NAMES for name in names.split()}


# --- Word lists: our own ------------------------------------------------------------------------------------------------

_CONTRACTIONS = """
is not: isn't; are not: aren't; was not: wasn't; were not: weren't; do not: don't; does not: doesn't; did not: didn't;
has not: hasn't; have not: haven't; had not: hadn't; can not: can't; cannot: can't; could not: couldn't;
will not: won't; would not: wouldn't; should not: shouldn't; must not: mustn't; need not: needn't; might not: mightn't;
i am: i'm; you are: you're; we are: we're; they are: they're; he is: he's; she is: she's; it is: it's; that is: that's;
there is: there's; here is: here's; what is: what's; who is: who's; where is: where's; how is: how's; when is: when's;
why is: why's; i will: i'll; you will: you'll; he will: he'll; she will: she'll; it will: it'll; we will: we'll;
they will: they'll; that will: that'll; there will: there'll; who will: who'll; i would: i'd; you would: you'd;
he would: he'd; she would: she'd; it would: it'd; we would: we'd; they would: they'd; that would: that'd;
there would: there'd; i have: i've; you have: you've; we have: we've; they have: they've; who have: who've;
could have: could've; should have: should've; would have: would've; might have: might've; must have: must've;
it has been: it's been; that has been: that's been; there has been: there's been; he has been: he's been;
she has been: she's been; who has been: who's been; let us: let's;
"""

_MISSPELLINGS = """
about: abotu; absolute: absoulte; accept: acept; accepted: acepted; accepts: acepts; access: acess, acces;
accessed: accesed; according: acording; actual: acutal; actually: actualy, acutally; adapter: adpater;
additional: aditional, addtional; address: adress, addres; addresses: adresses; after: aftre; against: agianst;
algorithm: algoritm, algorithim; allowed: alowed, allwoed; allows: alows; already: allready, alreday; also: aslo;
although: altough; always: allways, alwyas; another: anohter; appear: apear; application: aplication, applicaton;
applied: aplied; apply: aply; appropriate: apropriate, appropiate; argument: arguement, argment;
arguments: arguements, argments; around: arround; array: aray, arary; associated: asociated, assocated;
asynchronous: asyncronous, asynchronus; attribute: atribute, attirbute; attributes: atributes, attirbutes;
authentication: authentification, authenication; automatically: automaticaly, automaticly;
available: availible, avaliable; because: becuase, becasue; been: bene; before: befor, beofre;
beginning: begining, beggining; behavior: behavoir, behaivor; being: bieng; between: betwen, bewteen; binary: bianry;
boolean: bolean, booleen; boundary: boundry; buffer: bufer; build: biuld; built: biult; called: caled; calling: caling;
cannot: cannto, canot; certain: certian; certificate: certficate, certifcate; change: chagne; changed: chagned;
changes: chagnes; channel: chanel, channle; character: charachter, charcter; characters: charachters, charcters;
check: chekc; checks: cheks; class: calss; classes: calsses; client: cleint; code: cdoe;
collection: colection, collecton; column: colum, coulmn; columns: colums, coulmns; command: comand, commnad;
commands: comands; comment: coment; commit: comit; commits: comits; common: comon; comparison: comparision;
compatible: compatable; complete: compelte; completed: compelted; completely: completly; component: componet;
compute: comptue; computed: comptued; condition: condtion; configuration: configuraton, configration;
configured: configred; connect: conect; connection: conection, connecton; connections: conections;
consistent: consistant; constructor: contructor; contain: contian; container: contianer; containing: contianing;
contains: contians; content: contnet; context: contex, contxt; control: controll; conversion: converison;
convert: convret; converted: convereted; correct: corect; corresponding: coresponding, correponding; could: coudl;
create: craete; created: craeted; creates: craetes; creating: createing; current: curent, currnet;
currently: curently, currenlty; custom: cusotm; data: daat; database: databse, datbase; dataset: datset;
default: defualt, defalut; defaults: defualts; define: deifne; defined: deifned; definition: defintion, definiton;
delete: delte; deleted: delted; dependencies: dependancies; dependency: dependancy; depending: dependng;
deprecated: depricated, deprected; description: descripton, desription; destination: desination;
determine: determin, detemine; determined: detemined; determines: detemines; device: devcie;
dictionary: dictonary, dictionery; different: diffrent, differnt; dimension: dimention; dimensions: dimentions;
directly: direclty; directories: directorys; directory: direcotry, directroy; disabled: dissabled; display: dispaly;
document: docuemnt; documentation: documention, documenation; does: deos; doesn't: dosen't; domain: domian;
dynamic: dinamic; each: eahc; either: ethier, eihter; element: elment, elemnt; elements: elments, elemnts;
embedding: embeding; empty: emtpy; enabled: enabeld; encoding: encodig; environment: enviroment, enviornment;
equal: eqaul; equivalent: equivelent, equivalant; error: eror, errro; errors: erors; especially: especialy;
evaluate: evalute; evaluation: evaluaton; event: evnet; events: evnets; exactly: exaclty; example: exmaple, exampel;
examples: exmaples; exception: excpetion, execption; exceptions: excpetions; execute: excute; executed: excuted;
execution: excecution, execuion; existing: exisiting; exists: exsits; expected: expcted, exepcted; explicit: explict;
explicitly: explicitely, explicity; expression: expresion, experssion; extension: extention; external: exteranl;
failure: failiure; feature: featrue; features: featrues; field: feild; fields: feilds; file: fiel; files: fiels;
filter: fitler; final: fianl; first: frist; following: follwing, folowing; format: foramt; from: fomr;
function: funtion, fucntion; functions: funtions, fucntions; generate: genrate; generated: genreated; given: givne;
global: golbal; graph: grpah; group: gruop; groups: gruops; guarantee: garantee, gaurantee; handle: hanlde;
handler: hanlder; handling: handeling; have: ahve, hvae; header: haeder; headers: haeders; height: heigth, hieght;
however: howver; identifier: identifer, indentifier; ignore: ingore; ignored: ingored; image: iamge; images: iamges;
immediately: immediatly, imediately; implement: implment; implementation: implemenation, implmentation;
implemented: implmented; implements: implments; include: inlcude; included: inlcuded; includes: inlcudes;
including: inculding; independent: independant; index: idnex; indicate: indciate; indicates: indciates;
indicating: indciating; information: infomation, informaton; initial: intial; initialize: intialize;
initialized: intialized; input: inptu, imput; inputs: inptus; instance: instace, instanse; instances: instaces;
instead: insted; integer: interger, intger; interface: inteface, interfase; internal: interal, internel;
interpreter: interpeter; into: inot; invalid: invaild; iterable: iterabel; iterator: iteratr; itself: istelf;
keyword: keyowrd; label: lable; labels: lables; language: langauge, languge; length: lenght, legnth; level: levle;
library: libary, libray; local: loacl; location: locaton; manually: manualy; match: macth; matches: macthes;
matching: matchign; matrix: matirx; maximum: maximun, maxium; memory: memmory; message: mesage, messege;
messages: mesages, messeges; metadata: metdata; method: mehtod, metod; methods: mehtods; minimum: minium, minumum;
missing: mising; model: modle; models: modles; modified: modifed; module: moduel; modules: moduels;
multiple: mutiple, mulitple; necessary: neccessary, necesary; needed: neeeded; network: netwrok; normal: noraml;
not: nto; number: nubmer; object: obejct, ojbect; objects: obejcts, ojbects; occurred: occured, ocurred;
occurrence: occurence; occurs: ocurrs; offset: ofset; only: olny; operation: opertion, opeartion; operations: opertions;
operator: operater; option: opton; optional: optinal, optionnal; options: optons; order: oredr;
original: orginal, origional; other: otehr; otherwise: otherwsie, otherise; output: ouput, outptu; outputs: ouputs;
override: overide; overridden: overriden; package: pacakge; parameter: paramater, parmeter;
parameters: paramaters, parmeters; parent: parnet; particular: particuler; passed: pased; pattern: patern;
patterns: paterns; perform: perfrom; performance: performence; performed: perfromed; permission: permision;
permissions: permisions; position: positon, postion; possible: possbile, posible; preferred: prefered;
previous: previuos, previos; previously: previosly; private: privat; probability: probablity;
process: proccess, porcess; processing: procesing; project: projcet; properties: propeties, propertys;
property: propery, proprety; protocol: protocal; provide: provdie; provided: provded; provides: provdes; public: pulbic;
query: qeury; queue: queu; random: radnom; range: rnage; rather: rahter; receive: recieve; received: recieved;
recommended: recomended, reccomended; reference: refrence, referance; references: refrences, referances;
registered: registerd; relative: realtive; release: relase; relevant: relevent; remote: remtoe; remove: remvoe;
removed: remvoed; repository: repositry, respository; representation: represenation, representaton;
represents: repersents; request: reqeust, requst; requests: reqeusts; required: requried, requierd; requires: requries;
resource: resouce, ressource; resources: resouces; response: reponse, responce; responses: reponses;
result: resutl, reuslt; results: resutls; retrieve: retreive, retrive; retrieved: retreived; return: retrun, reutrn;
returned: retruned; returns: retruns, reutrns; running: runing; same: smae; schedule: schedual; schema: shcema;
select: slect; selected: slected; separate: seperate; separated: seperated; separator: seperator;
sequence: sequnce, sequense; server: servre; service: serivce; session: sesion; several: severl; should: shoud, shoudl;
similar: similiar, simliar; simple: simpel; single: signle; size: szie; some: smoe; source: soruce, souce;
special: speical; specific: specfic; specified: specifed, speficied; specifies: specifes; specify: specifiy;
standard: standrad, standart; statement: statment; status: staus; storage: storge; string: stirng, strign;
strings: stirngs; structure: strucutre, struture; subsequent: subsequant; success: sucess;
successful: succesful, successfull; successfully: succesfully, successfuly; support: suport, supprot;
supported: suported, supproted; supports: suports; syntax: sytnax; system: sytem; table: tabel; target: taget;
template: templete; temporary: temporay, tempory; tensor: tesnor; text: tetx; than: tahn; that: taht; the: teh, hte;
their: thier; then: tehn; there: tehre; these: theese; they: tehy; this: tihs, thsi; thread: thraed;
threshold: threshhold; through: throught, thruogh; time: tiem; timeout: timout; token: toekn; tokens: toekns;
training: trainning; transform: tranform; tuple: tupel; type: tpye; types: tpyes; unique: uniqe, unqiue;
unknown: unkown; until: untill; update: upadte, udpate; updated: upadted; usage: useage; useful: usefull;
using: useing, usign; usually: usualy; valid: vaild; validation: valdiation; value: vlaue, valeu;
values: vlaues, valeus; variable: varaible, varible; variables: varaibles, varibles; various: varios;
version: verison, vesion; versions: verisons; visible: visable; want: wnat; warning: warnning; weight: wieght;
weights: wieghts; when: wehn; whether: wether, wheter; which: wich, whcih; while: whiel; width: widht, witdh; will: wil;
window: windwo; with: wiht; within: whithin; without: wihtout, withotu; work: wrok; worker: woker; would: woudl;
wrapper: wraper; write: wirte; writing: writting; written: writen; yield: yeild; yields: yeilds;
"""

_DIALECT = """
am not: ain't; is not: ain't; are not: ain't; isn't: ain't; aren't: ain't; has not: ain't; have not: ain't;
hasn't: ain't; haven't: ain't; did not: ain't; didn't: ain't; do not: don't; does not: don't; doesn't: don't;
was not: wasn't; were not: wasn't; weren't: wasn't; cannot: can't; could not: couldn't; would not: wouldn't;
should not: shouldn't; will not: ain't gon'; won't: ain't gon'; there is no: ain't no; there are no: ain't no;
there isn't any: ain't no; there aren't any: ain't no; is not any: ain't no; are not any: ain't no;
do not have any: don't got no; does not have any: don't got no; don't have any: don't got no;
doesn't have any: don't got no; do not know: dunno; don't know: dunno; not anything: not nothin';
they are not: dey ain't; we are not: we ain't; you are not: you ain't; he is not: he ain't; she is not: she ain't;
it is not: it ain't; there is: it's; there are: it's; there's: it's; there was: it was; there were: it was;
they are: dey; they're: dey; we are: we; we're: we; you are: you; you're: you; he is: he; she is: she; were: was;
it has a: it got a; it has an: it got an; it has no: it ain't got no; it has been: it been; has been: been;
have been: been; has already: done already; have already: done already; is always: be always; are always: be always;
is usually: be usually; are usually: be usually; is often: be often; are often: be often; is typically: be typically;
are typically: be typically; is sometimes: be sometimes; are sometimes: be sometimes; this: dis; that: dat; these: dese;
those: dem; they: dey; them: dem; their: dey; themselves: deyselves; himself: hisself; there: dere; then: den;
than: dan; with: wit; without: witout; other: otha; others: othas; another: anotha; either: eitha; neither: neitha;
rather: ratha; whether: whetha; together: togetha; further: furtha; both: bof; though: tho; although: altho;
through: thru; throughout: thruout; mouth: mouf; month: monf; months: monfs; north: norf; south: souf; mother: motha;
father: fatha; brother: brotha; brothers: brothas; sister: sista; sisters: sistas; nothing: nothin';
something: somethin'; anything: anythin'; everything: everythin'; thing: thang; things: thangs; after: afta; over: ova;
ever: eva; never: neva; forever: foreva; however: howeva; whatever: whateva; whenever: wheneva; wherever: whereva;
whoever: whoeva; whichever: whicheva; your: yo; yourself: yoself; more: mo'; anymore: no mo'; before: befo'; sure: sho';
four: fo'; door: do'; floor: flo'; better: betta; later: lata; remember: rememba; under: unda; water: wata;
dinner: dinna; player: playa; everybody: e'rybody; everyone: e'ryone; just: jus'; must: mus'; most: mos';
almost: almos'; last: las'; first: firs'; best: bes'; next: nex'; least: leas'; past: pas'; fast: fas'; cost: cos';
lost: los'; left: lef'; kept: kep'; old: ol'; told: tol'; hold: hol'; cold: col'; around: aroun'; behind: behin';
against: agains'; except: 'cept; kind: kin'; mind: min'; find: fin'; friend: frien'; friends: frien's; world: worl';
child: chile; different: diff'rent; ask: ax; asks: ax; asked: axed; asking: axin'; going to: gonna;
going to the: goin' to the; going to a: goin' to a; going to an: goin' to an; going to this: goin' to dis;
going to that: goin' to dat; going to be: gonna be; will: gon'; want to: wanna; wants to: wanna; got to: gotta;
have to: gotta; has to: gotta; ought to: oughta; trying to: tryna; tries to: tryna; about to: finna; fixing to: finna;
out of: outta; kind of: kinda; sort of: sorta; a lot of: a lotta; lots of: lotsa; should have: shoulda;
could have: coulda; would have: woulda; must have: musta; might have: mighta; let me: lemme; give me: gimme;
because: 'cause; about: 'bout; until: 'til; okay: aight; alright: aight; all right: aight; probably: prolly;
suppose: s'pose; supposed: s'posed; little: lil; you all: y'all; all of you: y'all; my: ma; what is up: wassup;
what's up: wassup;
"""

# Verbs that lose the third person's -s after he, she and it.
_VERBS = """
accept add allow ask assume become begin belong break call cause change come compare compute contain convert create decide depend
describe determine end expect extend fail follow force generate get give handle happen help hide hold include inherit keep know
lead let load look make mean move need offer open own point prevent print provide put raise read receive remove replace
represent require return run say see seem send serve set show start stay stop store support take tell think throw turn update use
wait want work wrap write yield
"""

_GENDER = """
he: she; him: her; his: her; himself: herself; man: woman; men: women; boy: girl; boys: girls; guy: gal; guys: gals;
father: mother; fathers: mothers; dad: mom; dads: moms; daddy: mommy; son: daughter; sons: daughters; brother: sister;
brothers: sisters; husband: wife; husbands: wives; boyfriend: girlfriend; boyfriends: girlfriends; uncle: aunt;
uncles: aunts; nephew: niece; nephews: nieces; grandfather: grandmother; grandfathers: grandmothers; grandpa: grandma;
grandpas: grandmas; granddad: grandma; grandson: granddaughter; grandsons: granddaughters; stepfather: stepmother;
stepfathers: stepmothers; stepdad: stepmom; stepson: stepdaughter; stepsons: stepdaughters; stepbrother: stepsister;
stepbrothers: stepsisters; godfather: godmother; godson: goddaughter; groom: bride; grooms: brides; widower: widow;
widowers: widows; fiancé: fiancée; king: queen; kings: queens; prince: princess; princes: princesses; emperor: empress;
duke: duchess; dukes: duchesses; baron: baroness; lad: lass; lads: lasses; gentleman: lady; gentlemen: ladies;
sir: madam; mr: ms; hero: heroine; heroes: heroines; monk: nun; monks: nuns; male: female; males: females;
masculine: feminine; fatherhood: motherhood; brotherhood: sisterhood; boyhood: girlhood; manhood: womanhood;
schoolboy: schoolgirl; schoolboys: schoolgirls; chairman: chairwoman; chairmen: chairwomen; businessman: businesswoman;
businessmen: businesswomen; salesman: saleswoman; salesmen: saleswomen; spokesman: spokeswoman; spokesmen: spokeswomen;
policeman: policewoman; policemen: policewomen; congressman: congresswoman; congressmen: congresswomen;
craftsman: craftswoman; craftsmen: craftswomen; sportsman: sportswoman; sportsmen: sportswomen; landlord: landlady;
landlords: landladies; heir: heiress; heirs: heiresses;
"""

# Women's, then men's.
_SOURCE_NAMES = (
    """
    alice allison amanda amy andrea angela anna anne ashley barbara beth betty brenda brittany caitlin carol caroline
    carolyn catherine chloe christine claire cynthia deborah debra diane donna dorothy elizabeth ella ellen
    emily emma erin evelyn gail hannah heidi helen jane janet jennifer jenny jessica jill joan joanna judith judy
    karen kate katherine kathleen kathryn katie kelly kimberly kristen laura lauren laurie linda lisa lucy margaret
    martha mary megan melanie melissa michelle molly nancy nicole olivia pamela patricia rachel rebecca ruth samantha
    sandra sarah sharon shirley sophie stephanie susan tiffany tracy vanessa wendy
    """,
    """
    aaron alan albert alexander andrew anthony arthur barry ben benjamin bob brad bradley brandon brendan brett
    brian bruce charles charlie chris christopher connor dan daniel dave david dennis donald doug douglas dylan ed
    edward eric ethan fred gary geoffrey george gerald greg gregory harold harry henry howard hugh ian jack jacob jake
    james jason jeff jeffrey jeremy jerry jim jimmy joe joel john jonathan joseph josh joshua justin keith ken kenneth
    kevin kyle larry lawrence logan luke martin matt matthew michael mike nathan neil nicholas patrick paul peter
    philip ralph richard robert roger ronald roy russell ryan scott sean simon stanley stephen steve steven stuart ted
    thomas tim timothy todd tom tony walter wayne william
    """,
)
_NAMES_WITH_CAPITAL = "bob brad carol dan ed harry jack jerry jimmy josh ken kelly mike scott ted tim tom tracy"
"""Names that are also a word, a command or a project when written small."""

# Groups of women's, then men's: Black, Hispanic and Asian American.
_TARGET_NAMES = (
    (
        """
        aaliyah aisha alexus aniyah ayanna deja ebony imani keisha kenya kiara lakeisha lakisha latasha latisha
        latonya latoya monique nia precious raven shanice shaniqua sharonda tamika tanisha tiara yolanda zaria
        """,
        """
        alonzo cedric cornell damarius darius darnell dashawn deandre demetrius deshawn devonte hakeem jabari jalen
        jamal jamar jermaine kareem kendrick keyshawn lamar lamont lavar leroy malik marquis rasheed tremayne tyrell
        tyree tyrone
        """,
    ),
    (
        """
        adriana alejandra ana beatriz camila carmen carolina catalina claudia consuelo daniela elena esmeralda
        esperanza fernanda gabriela guadalupe isabel juana leticia lucia luz marisol mercedes paola pilar rocio
        valentina xiomara ximena yesenia
        """,
        """
        alejandro alfredo armando arturo carlos cesar cristobal diego eduardo emilio enrique esteban felipe fernando
        francisco gustavo hector ignacio javier jesus jorge jose juan julio luis manuel miguel pablo pedro rafael
        ramon raul ricardo santiago
        """,
    ),
    (
        """
        aiko akemi ananya anjali deepa divya eun hana haruka hye jia kavya keiko lakshmi lan li linh mei meiling min
        nandini ngoc nhi padma parvati phuong priya radha sakura shreya sunita thuy xiu yuki yumi
        """,
        """
        akira amit anh arjun bao chen deepak duc feng hao haruto hiro hiroshi hung jian jin jun kenji khoa kumar minh
        nikhil pradeep rahul raj rajesh sanjay satoshi seung suresh takeshi vijay wei xiang yong yuto
        """,
    ),
)
