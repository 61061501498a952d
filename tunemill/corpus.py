"""Pairs of API documentation and its one-line summary, out of the docstrings of installed packages.

The packages are an explicit list with versions, so that another dependency of the project changes nothing. Files are
checked against the hashes their installer recorded, parsed with `ast` in two processes, and never imported. The first
paragraph of a docstring is the summary; the rest is the body:

    prompt      <instruction> ⏎⏎ package.qualified_name(parameters) ⏎⏎ <body>
    completion  <summary>
"""

from __future__ import annotations

import ast
import base64
import concurrent.futures
import fnmatch
import gc
import hashlib
import importlib.metadata
import inspect
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunemill.errors import UserError
from tunemill.params import Params


class WordRange(Params):
    """How many words a text may have."""

    least: int = Field(ge=1)
    """Fewest words."""
    most: int = Field(ge=1)
    """Most words."""

    @model_validator(mode="after")
    def _ordered(self) -> WordRange:
        if self.least > self.most:
            raise ValueError("least must not be above most")
        return self


class DocsSource(Params):
    """The documentation of installed packages."""

    source: Literal["docs"]
    instruction: str = Field(min_length=1)
    """What the model is told to do; the name and the body follow it."""
    packages: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!]+$")], ...] = Field(min_length=1)
    """The packages to read, as `name==version`: exactly what must be installed."""
    families: dict[str, tuple[str, ...]] = Field(default={})
    """Family → packages with common authors or code, kept on one side of a split, whether they are listed or not; any
    other package is its own family."""
    skip: tuple[str, ...] = ()
    """Paths to leave out, as `package/folder/*`, counted from the folder packages are installed in."""
    summary_words: WordRange
    """Words of a summary."""
    body_words: WordRange
    """Words of a body."""
    per_package: int = Field(ge=1)
    """At most this many pairs of one package, spread evenly over its files."""
    processes: int = Field(default=2, ge=1, le=64)
    """Processes to parse in; the result does not depend on it."""

    @model_validator(mode="after")
    def _named_once(self) -> DocsSource:
        named = {
            "packages": [each.split("==")[0] for each in self.packages],
            "families": [package for packages in self.families.values() for package in packages],
        }
        for key, names in named.items():
            if twice := sorted(name for name, count in Counter(map(_canonical, names)).items() if count > 1):
                raise ValueError(f"{key} names {', '.join(twice)} twice")
        return self

    @property
    def versions(self) -> dict[str, str]:
        """Package → version, in the order of names."""
        pairs = [each.split("==") for each in self.packages]
        return dict(sorted(pairs, key=lambda pair: _canonical(pair[0])))


def _canonical(package: str) -> str:
    """A package's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", package).lower()


@dataclass(frozen=True)
class Pair:
    """One documented function, method or class.

    Attributes:
        package: the distribution's name.
        path: the file, from the folder packages are installed in.
        line: where the definition begins.
        name: qualified name inside the file, like `Client.get`.
        signature: `package.qualified_name(parameters)`.
        summary: first paragraph, on one line.
        body: everything after it.
    """

    package: str
    path: str
    line: int
    name: str
    signature: str
    summary: str
    body: str


@dataclass(frozen=True)
class Corpus:
    """What `read` found.

    Attributes:
        pairs: (pair, family), in the order of packages, paths and lines.
        filtered: reason → documented objects left out for it.
        packages: package → pairs kept.
    """

    pairs: tuple[tuple[Pair, str], ...]
    filtered: dict[str, int]
    packages: dict[str, int]


# A doctest, an RST directive, a literal block or a table: text that is no prose, or reads differently once cut out.
_MARKUP = re.compile(r"^\s*>>> |^\s*\.\. |::\s*$|^\s*\+[-=+]{4,}|^\s*={3,}( +=+)*\s*$", re.MULTILINE)
_NOT_PUBLIC_CODE = re.compile(
    r"(^|/)(_?vendor(ed)?|_?third_?party|_?externals?|_?extern|tests?|_?testing|conftest\.py|test_[^/]*|[^/]*_pb2[^/]*)(/|$)"
)

_QUOTED = re.compile(rb"(\"\"\"|''')(.*?)\1", re.DOTALL)


def read(source: DocsSource) -> Corpus:
    """Read, parse and filter the documentation of every listed package.

    Raises:
        UserError: a package is not installed, has another version, or has a file that differs from what was installed.
    """
    files: list[tuple[str, str, Path, str]] = []
    for package, version in source.versions.items():
        files += _files(package, version, source.skip)

    # Interleaved by size, so that both processes have about the same to do.
    by_size = sorted(files, key=lambda file: -file[2].stat().st_size)
    parts = [by_size[start :: source.processes * 4] for start in range(source.processes * 4)]
    settings = (source.summary_words.least, source.summary_words.most, source.body_words.least, source.body_words.most)
    found: list[Pair] = []
    filtered: Counter[str] = Counter()
    # Spawned, not forked: the parent has threads. Each child ends itself when this process is gone.
    with concurrent.futures.ProcessPoolExecutor(
        source.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        for pairs, counts in pool.map(_parse_files, parts, [settings] * len(parts)):
            found += pairs
            filtered += counts
    found.sort(key=lambda pair: (_canonical(pair.package), pair.path, pair.line, pair.name))

    # A summary that serves several objects says too little about any of them: only the first keeps it.
    seen: set[str] = set()
    unique: dict[str, list[Pair]] = {}
    for pair in found:
        key = " ".join(re.findall(r"\w+", pair.summary.lower()))
        if key in seen:
            filtered["summary of another object"] += 1
        else:
            seen.add(key)
            unique.setdefault(pair.package, []).append(pair)
    family = {_canonical(package): name for name, packages in source.families.items() for package in packages}
    kept: list[tuple[Pair, str]] = []
    for package, pairs in unique.items():
        taken = _spread(pairs, source.per_package)
        filtered["over per_package"] += len(pairs) - len(taken)
        kept += [(pair, family.get(_canonical(package), package)) for pair in taken]
    counts = Counter(pair.package for pair, _ in kept)
    packages = {package: counts[package] for package in source.versions}
    return Corpus(tuple(kept), dict(sorted((+filtered).items())), packages)


def _spread(pairs: Sequence[Pair], most: int) -> list[Pair]:
    if len(pairs) <= most:
        return list(pairs)
    return [pairs[index * len(pairs) // most] for index in range(most)]


def _files(package: str, version: str, skip: Iterable[str]) -> list[tuple[str, str, Path, str]]:
    """(package, relative path, path, recorded sha256) of a package's own Python files."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the package {package} is not installed",
            expected=f"{package}=={version}",
            fix="make setup installs what requirements.lock names; or remove it from collect.examples.packages",
        ) from None
    # A local version (2.13.0+cpu) is the same source, built for another machine.
    if found.version.split("+")[0] != version:
        raise UserError(
            f"the installed {package} is {found.version}, but params.yaml lists {version}",
            expected=f"{package}=={version}, as the corpus depends on it",
            fix="make setup installs what requirements.lock names; or change the version in collect.examples.packages",
        )
    files = []
    for entry in found.files or ():
        path = entry.as_posix()
        if not path.endswith(".py") or path.startswith("..") or _NOT_PUBLIC_CODE.search(path):
            continue
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in skip):
            continue
        if entry.hash is None or entry.hash.mode != "sha256":
            raise UserError(f"{package} {version} records no sha256 for {path}", fix="install it from a wheel")
        files.append((package, path, Path(str(entry.locate())), entry.hash.value))
    if not files:
        raise UserError(
            f"{package} {version} has no Python files to read", fix="remove it from collect.examples.packages"
        )
    return sorted(files, key=lambda file: file[1])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Syntax trees have no cycles: looking for some takes a quarter of the time.
    gc.disable()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _parse_files(
    files: Sequence[tuple[str, str, Path, str]], settings: tuple[int, int, int, int]
) -> tuple[list[Pair], Counter[str]]:
    pairs: list[Pair] = []
    filtered: Counter[str] = Counter()
    for package, path, place, recorded in files:
        content = place.read_bytes()
        if base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode() != recorded:
            raise UserError(
                f"{place} differs from what {package} installed there",
                fix=f"python -m pip install --force-reinstall --no-deps {package}",
            )
        if not _may_document(content, settings):
            continue
        try:
            tree = ast.parse(content, filename=path)
        except (SyntaxError, ValueError):
            filtered["file this Python cannot parse"] += 1
            continue
        pairs += documented(tree, package, path, settings, filtered)
    return pairs, filtered


def _may_document(content: bytes, settings: tuple[int, int, int, int]) -> bool:
    """Whether a file has a quoted text long enough to pass: parsing takes a thousand times as long as looking."""
    return any(
        settings[2] <= len(found.group(2).split()) and b"\n" in found.group(2) for found in _QUOTED.finditer(content)
    )


def documented(
    tree: ast.Module, package: str, path: str, settings: tuple[int, int, int, int], filtered: Counter[str]
) -> list[Pair]:
    """Public functions, methods and classes of a module whose docstring passes the filters.

    Args:
        tree: the parsed module.
        package: distribution it belongs to.
        path: its path, from the folder packages are installed in.
        settings: fewest and most words of a summary, fewest and most words of a body.
        filtered: counts what is left out, by reason.
    """
    import_name = path.split("/")[0].removesuffix(".py")
    pairs: list[Pair] = []

    def visit(body: Iterable[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.If, ast.Try)):
                visit(node.body, prefix)
                continue
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            name = f"{prefix}{node.name}"
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                summary, text = split_docstring(docstring)
                reason = refused(summary, text, settings)
                if reason is None:
                    signature = f"{import_name}.{name}({', '.join(_parameters(node))})"
                    pairs.append(Pair(package, path, node.lineno, name, signature, summary, text))
                else:
                    filtered[reason] += 1
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{name}.")

    visit(tree.body, "")
    return pairs


def split_docstring(docstring: str) -> tuple[str, str]:
    """(first paragraph on one line, the rest with its indentation removed)."""
    paragraphs = re.split(r"\n[ \t]*\n", inspect.cleandoc(docstring), maxsplit=1)
    summary = " ".join(paragraphs[0].split())
    body = paragraphs[1].strip("\n") if len(paragraphs) > 1 else ""
    return summary, "\n".join(line.rstrip() for line in body.splitlines())


def refused(summary: str, body: str, settings: tuple[int, int, int, int]) -> str | None:
    """Why a pair is no example of the task, or None where it is one."""
    summary_least, summary_most, body_least, body_most = settings
    if not body:
        return "no body"
    if not summary_least <= len(summary.split()) <= summary_most:
        return "summary too short or too long"
    if not body_least <= len(body.split()) <= body_most:
        return "body too short or too long"
    if _MARKUP.search(body) or _MARKUP.search(summary):
        return "doctest, directive or table"
    if summary.endswith(":") or not summary[0].isalpha():
        return "summary is no sentence"
    return None


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[str]:
    """Names of the parameters, without `self` and `cls`; a class has those of its __init__."""
    if isinstance(node, ast.ClassDef):
        inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        return _parameters(inits[0]) if inits else []
    given = node.args
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    if names and names[0] in ("self", "cls"):
        names = names[1:]
    if given.vararg:
        names.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        names.append("*")
    names += [each.arg for each in given.kwonlyargs]
    if given.kwarg:
        names.append(f"**{given.kwarg.arg}")
    return names
