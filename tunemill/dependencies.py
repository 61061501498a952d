"""Keep the code among dvc.yaml's dependencies true: a stage depends on its module and on what that imports.

    python -m tunemill.dependencies            write them (make deps)
    python -m tunemill.dependencies --check    fail when they differ (make check)

Imports are read from the source, those inside functions too. Left out is the edge that decides no result: how a stage
is started, logged and tracked, and how its parameters are read (DVC compares their values). A file that lies beside a
module under its name, or in a folder of its name (`report/page.html.j2`), belongs to it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from pathlib import Path
from typing import Any

EDGE = frozenset({"__init__", "stage", "warm", "tracking", "log", "errors", "params"})
"""Modules of the library that decide no result."""

PACKAGES = ("tunemill", "stages")


def imported(source: str) -> set[str]:
    """Dotted names that a module's source imports from this repository, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def code_of(root: Path, module: str) -> list[str]:
    """Files that `module` (dotted) consists of: itself, what it imports, and the files of the same name beside them."""
    seen: set[str] = set()
    waiting = [module]
    files: set[str] = set()
    while waiting:
        name = waiting.pop()
        path = root / (name.replace(".", "/") + ".py")
        if name in seen or path.stem in EDGE or not path.is_file():
            continue
        seen.add(name)
        files |= {
            each.relative_to(root).as_posix()
            for each in (*path.parent.glob(f"{path.stem}.*"), *path.with_suffix("").glob("*"))
            if each.is_file() and each.suffix not in (".pyc", ".pyi")
        }
        waiting += sorted(imported(path.read_text(encoding="utf-8")))
    return sorted(files)


def module_of(command: str) -> str | None:
    """The module that a stage's command runs."""
    found = re.search(r" -m (stages\.\w+)", command)
    return found.group(1) if found else None


def refresh(root: Path) -> tuple[str, str]:
    """dvc.yaml as it is and as it should be."""
    from ruamel.yaml import YAML

    path = root / "dvc.yaml"
    before = path.read_text(encoding="utf-8")
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 118
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree: Any = yaml.load(before)
    for stage in tree["stages"].values():
        body = stage.get("do", stage)
        module = module_of(str(body.get("cmd", "")))
        if module is None:
            continue
        deps = body["deps"]
        data = [each for each in deps if not str(each).startswith(tuple(f"{name}/" for name in PACKAGES))]
        wanted = [*code_of(root, module), *data]
        if list(deps) != wanted:
            deps[:] = wanted
            deps.fa.set_block_style()
    after = io.StringIO()
    yaml.dump(tree, after)
    return before, after.getvalue()


def main() -> int:
    """The command line; see the module's text."""
    before, after = refresh(Path.cwd())
    if before == after:
        print("dvc.yaml: code dependencies are true")
        return 0
    if "--check" in sys.argv[1:]:
        import difflib

        sys.stdout.writelines(
            difflib.unified_diff(
                before.splitlines(True), after.splitlines(True), "dvc.yaml", "dvc.yaml as the code has it"
            )
        )
        print("error: dvc.yaml: code dependencies differ from what the code imports\n  fix: make deps", file=sys.stderr)
        return 1
    Path("dvc.yaml").write_text(after, encoding="utf-8")
    print("dvc.yaml: code dependencies written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
