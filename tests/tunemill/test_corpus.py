"""The documentation corpus: what is read, what is left out, and that only what was installed is read."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import importlib.metadata
import inspect
from collections import Counter
from pathlib import Path

import pytest

from tunemill import corpus
from tunemill.errors import UserError

BODY = " ".join(f"word{number}" for number in range(40))
MODULE = f'''
class Client(object):
    """Talk to a server over the network.

    {BODY} client
    """

    def __init__(self, host, *, port=1, **more):
        pass

    def get(self, path, /, *args, retries=3):
        """Fetch one page
        from the server.

        {BODY} get

            indented
        """

    def _hidden(self):
        """Do something that nobody sees.

        {BODY}
        """

    @staticmethod
    async def close(cls_name):
        """Close every connection that is open.

        {BODY} close
        """

if True:
    def again():
        """Talk to a server over the network!

        {BODY} again
        """

def short(x):
    """Too short.

    {BODY}
    """

def doctest(x):
    """Show how it is used here.

    >>> doctest(1)
    {BODY}
    """

def directive(x):
    """Show what is not new.

    .. note:: {BODY}
    """

def bodiless(x):
    """Say one thing and nothing more."""
'''


def install(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """What an installer leaves behind, for a package that exists in this test only."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = []
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text)}\n")
    (info / "RECORD").write_text("".join(record))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    tests = {
        "tunemill_demo/tests/test_it.py": MODULE,
        "tunemill_demo/_vendor/other.py": MODULE,
        "tunemill_demo/skipped/a.py": MODULE,
    }
    install(
        folder, "tunemill-demo", "1.0+local", {"tunemill_demo/__init__.py": "", "tunemill_demo/net.py": MODULE, **tests}
    )
    monkeypatch.syspath_prepend(folder)
    return folder


def source(**more: object) -> corpus.DocsSource:
    told = {
        "source": "docs",
        "instruction": "Summarise.",
        "packages": ("tunemill_demo==1.0",),
        "skip": ("tunemill_demo/skipped/*",),
        "summary_words": {"least": 4, "most": 20},
        "body_words": {"least": 40, "most": 250},
        "per_package": 100,
        "processes": 1,
    }
    return corpus.DocsSource.model_validate({**told, **more})


def test_what_is_read_and_what_is_left_out(site: Path) -> None:
    found = corpus.read(source())
    assert [(pair.signature, pair.summary) for pair, _ in found.pairs] == [
        ("tunemill_demo.Client(host, *, port, **more)", "Talk to a server over the network."),
        ("tunemill_demo.Client.get(path, *args, retries)", "Fetch one page from the server."),
        ("tunemill_demo.Client.close(cls_name)", "Close every connection that is open."),
    ]
    assert found.pairs[1][0].body == f"{BODY} get\n\n    indented"
    assert found.pairs[1][0].line == 11
    assert found.pairs[1][0].path == "tunemill_demo/net.py"
    assert found.filtered == {
        "doctest, directive or table": 2,
        "no body": 1,
        "summary of another object": 1,
        "summary too short or too long": 1,
    }
    assert found.packages == {"tunemill_demo": 3}


def test_families_and_the_limit(site: Path) -> None:
    found = corpus.read(source(families={"demos": ("Tunemill.Demo", "not-listed")}, per_package=2))
    assert [(pair.name, family) for pair, family in found.pairs] == [("Client", "demos"), ("Client.get", "demos")]
    assert found.filtered["over per_package"] == 1


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (("tunemill_demo==2.0",), "the installed tunemill_demo is 1.0+local, but params.yaml lists 2.0"),
        (("tunemill-nowhere==2.0",), "the package tunemill-nowhere is not installed"),
    ],
)
def test_another_version_or_none(site: Path, packages: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        corpus.read(source(packages=packages))
    assert error.value.what == message
    assert packages[0] in error.value.expected


def test_a_file_that_was_edited_after_it_was_installed(site: Path) -> None:
    (site / "tunemill_demo" / "net.py").write_text(MODULE + "\n")
    with pytest.raises(UserError, match=r"net\.py differs from what tunemill_demo installed there"):
        corpus.read(source())


def test_names_twice() -> None:
    with pytest.raises(ValueError, match="packages names a-b twice"):
        source(packages=("a_b==1", "A-B==2"))
    with pytest.raises(ValueError, match="families names a twice"):
        source(families={"x": ("a",), "y": ("a",)})


def test_docstrings_are_as_python_shows_them() -> None:
    """Oracle: `inspect.getdoc` and `inspect.signature` of the same objects, imported."""
    packages = (f"oauthlib=={importlib.metadata.version('oauthlib')}",)
    wide = {"least": 1, "most": 10_000}
    found = corpus.read(source(packages=packages, summary_words=wide, body_words=wide))
    functions = 0
    for pair, _ in found.pairs:
        thing = importlib.import_module(pair.path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for part in pair.name.split("."):
            thing = getattr(thing, part)
        document = inspect.getdoc(thing)
        assert document is not None
        assert f"{pair.summary} {pair.body}".split() == document.split()
        assert document.endswith(pair.body)
        if inspect.isfunction(thing):
            functions += 1
            names = [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]
            shown = pair.signature.partition("(")[2].rstrip(")").replace("*", "").split(", ")
            assert [name for name in shown if name] == names
    assert functions >= 50


def test_processes_change_nothing() -> None:
    packages = tuple(f"{name}=={importlib.metadata.version(name)}" for name in ("anyio", "portalocker", "websockets"))
    alone, together = (corpus.read(source(packages=packages, processes=number)) for number in (1, 2))
    assert alone == together
    assert len(alone.pairs) > 50


def test_nothing_is_imported_or_run() -> None:
    tree = ast.parse('raise SystemExit\ndef f():\n    """A summary of four words.\n\n    ' + BODY + '\n    """')
    pairs = corpus.documented(tree, "p", "p/m.py", (4, 20, 40, 250), Counter())
    assert [pair.name for pair in pairs] == ["f"]
