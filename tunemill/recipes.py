"""Recipes and overrides as workspaces: `work/recipes/<name>/` is a small checkout of its own with the merged params.yaml.

Nothing edits the user's params.yaml, and nothing is invisible to DVC: in the workspace `dvc repro`, `dvc params diff` and
everything else work by hand. Workspaces share the checkout's DVC cache, so what one has computed another restores.

A recipe is an overlay: it names only the parameters that differ. Mappings are merged key by key, everything else (lists
too) is replaced. Keys that params.yaml does not have are refused, except names of candidates.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunemill.checkpoints import write_text
from tunemill.errors import UserError, nearest
from tunemill.runtime import ownership

OPEN_SECTIONS = (
    "candidates",
    "extra.pretrain",
    "extra.ia3",
    "extra.reward",
    "extra.sl_cai",
    "extra.rl_cai",
    "extra.ppo",
    "extra.dpo",
    "extra.kto",
    "extra.grpo",
    "extra.rloo",
    "extra.best_of",
    "extra.distill",
    "extra.quantize",
    "extra.prune",
    "distill.variants",
    "quantize.variants",
    "prune.variants",
    "variants",
    "collect.red_team",
    "collect.harmless",
    "collect.tasks",
    "validate.red_team",
    "validate.harmless",
    "select.candidates",
    "compare.seeds",
    "compare.aligned",
    "compare.controls",
    "prompt.templates",
    "prompt.decodings",
)
"""Sections whose keys are names of the user's choosing; what a recipe names there is all there is."""

KINDS = ("source", "method")
"""Keys that say what other keys there are beside them."""

# What a run makes belongs to the workspace it was made in, and is never copied or swept away.
OWN = ("artifacts", "metrics", "reports", "work", "dvc.lock", ".dvc", "dvc_plots")
SKIPPED = (".venv", ".git", ".github", "mlflow.db", "mlartifacts")


def workspace(root: Path, recipe: str | None, overrides: Mapping[str, Any]) -> Path:
    """Where a run with this recipe and these overrides works: the checkout itself where there is neither.

    Raises:
        UserError: no such recipe, or a key that params.yaml does not have.
    """
    if not recipe and not overrides:
        return root
    nested = _nested(overrides)
    parts = [recipe] if recipe else []
    if nested:
        parts.append(hashlib.blake2b(json.dumps(nested, sort_keys=True).encode(), digest_size=4).hexdigest())
    overlays: list[tuple[Path, Mapping[str, Any] | None]] = ([(recipe_path(root, recipe), None)] if recipe else []) + (
        [(Path("overrides"), nested)] if nested else []
    )
    return materialise(root, "-".join(parts), overlays)


def recipe_path(root: Path, name: str) -> Path:
    """The file of a recipe.

    Raises:
        UserError: there is none of that name.
    """
    known = sorted(each.stem for each in (root / "recipes").glob("*.yaml"))
    if name not in known:
        near = nearest(name, known)
        raise UserError(
            f"no recipe '{name}'",
            where="recipes/",
            expected="one of " + ", ".join(known) if known else "a file NAME.yaml",
            fix=f"did you mean '{near}'?" if near else "",
            exit_code=2,
        )
    return root / "recipes" / f"{name}.yaml"


def materialise(root: Path, name: str, overlays: Sequence[tuple[Path, Mapping[str, Any] | None]]) -> Path:
    """Make or refresh the workspace `work/recipes/<name>/`; what runs have made in it stays.

    Args:
        root: the checkout.
        name: of the workspace.
        overlays: file and values, merged over params.yaml in this order; values of None are read from the file.

    Raises:
        UserError: an overlay names a key that is not there, or a run is at work in the workspace.
    """
    place = root / "work" / "recipes" / name
    parameters = merged(root / "params.yaml", overlays)
    # A run at work there must not find its code changed half-way.
    with ownership(place / "work" / "run.lock", f"the workspace work/recipes/{name}", patience=10.0):
        tracked = _files(root)
        kept = {Path("params.yaml"), *tracked}
        for file in _present(place):
            if file not in kept:
                (place / file).unlink()
        for file in tracked:
            if file != Path("params.yaml"):
                _copy(root / file, place / file)
        _write_if_new(place / "params.yaml", parameters)
        _share_cache(root, place)
    return place


def merged(base: Path, overlays: Sequence[tuple[Path, Mapping[str, Any] | None]]) -> str:
    """params.yaml with overlays merged in, as text; its comments stay.

    Raises:
        UserError: an overlay names a key that is not there.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="rt")
    yaml.width, yaml.preserve_quotes = 4096, True
    tree = yaml.load(base.read_text(encoding="utf-8"))
    for path, values in overlays:
        if values is None:
            try:
                values = YAML(typ="rt").load(path.read_text(encoding="utf-8")) or {}
            except YAMLError as error:
                raise UserError(
                    f"not valid YAML: {getattr(error, 'problem', error)}", where=str(path), exit_code=2
                ) from None
        if not isinstance(values, Mapping):
            raise UserError("no sections", where=str(path), expected="an overlay of params.yaml", exit_code=2)
        _merge(tree, values, path, ())
    from io import StringIO

    text = StringIO()
    yaml.dump(tree, text)
    return text.getvalue()


def _merge(tree: Any, overlay: Mapping[str, Any], where: Path, above: tuple[str, ...]) -> None:
    for key, value in overlay.items():
        dotted = ".".join((*above, str(key)))
        is_name = any(".".join(above[:depth]) in OPEN_SECTIONS for depth in range(1, len(above) + 1))
        if key not in tree and not is_name:
            line = overlay.lc.data[key][0] + 1 if hasattr(overlay, "lc") and key in overlay.lc.data else None
            near = nearest(str(key), map(str, tree))
            raise UserError(
                "params.yaml has no such key",
                where=f"{where}:{line}: {dotted}" if line else f"{where}: {dotted}",
                expected="one of " + ", ".join(map(str, tree)),
                fix=f"did you mean '{near}'?" if near else "",
                exit_code=2,
            )
        if (
            isinstance(value, Mapping)
            and isinstance(tree.get(key), Mapping)
            # Another kind of source or pruning has other keys: what names one stands for itself.
            and not any(kind in value and value[kind] != tree[key].get(kind, value[kind]) for kind in KINDS)
        ):
            if dotted in OPEN_SECTIONS:
                # Candidates of a recipe are all there are: those of params.yaml may not even exist there.
                for name in [each for each in tree[key] if each not in value]:
                    del tree[key][name]
            _merge(tree[key], value, where, (*above, str(key)))
        else:
            tree[key] = value


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"lora.steps": 10}` and `{"lora": {"steps": 10}}` are the same."""
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        *above, last = str(key).split(".")
        inner = nested
        for each in above:
            inner = inner.setdefault(each, {})
        if isinstance(value, Mapping):
            inner.setdefault(last, {}).update(_nested(value))
        else:
            inner[last] = value
    return nested


def _files(root: Path) -> list[Path]:
    """Files of the checkout that git tracks, or would track; without git, all but what runs make."""
    listed = (
        subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
        )
        if shutil.which("git") and (root / ".git").exists()
        else None
    )
    if listed is not None and listed.returncode == 0:
        found = [Path(os.fsdecode(each)) for each in listed.stdout.split(b"\0") if each]
    else:
        found = [path.relative_to(root) for path in _walk(root)]
    return sorted(
        {each for each in found if each.parts[0] not in (*OWN, *SKIPPED) and (root / each).is_file()}
        | _dvc_ignore(root)
    )


def _dvc_ignore(root: Path) -> set[Path]:
    return {Path(".dvcignore")} if (root / ".dvcignore").is_file() else set()


def _present(place: Path) -> list[Path]:
    """Files that an earlier call put into the workspace."""
    return [each.relative_to(place) for each in _walk(place)]


def _walk(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        top = Path(folder) == root
        folders[:] = [each for each in folders if each != "__pycache__" and not (top and each in (*OWN, *SKIPPED))]
        found += [Path(folder, each) for each in files if not (top and each in (*OWN, *SKIPPED))]
    return found


def _copy(source: Path, target: Path) -> None:
    """Copy unless equal: times that stay let DVC skip hashing the file again."""
    if target.is_file():
        new, old = source.stat(), target.stat()
        if (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def _write_if_new(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _share_cache(root: Path, place: Path) -> None:
    """A DVC repository of its own, with the checkout's cache, remotes and links.

    It needs no git: the checkout's git ignores work/, and DVC refuses outputs that git ignores.
    """
    folder = place / ".dvc"
    folder.mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    for name in ("config", "config.local"):
        source = root / ".dvc" / name
        text = source.read_text(encoding="utf-8") if source.is_file() else ""
        if name == "config.local":
            text += f"[core]\n    no_scm = true\n[cache]\n    dir = {root / '.dvc' / 'cache'}\n"
        _write_if_new(folder / name, text)
    for template in sorted((root / ".dvc" / "plots").glob("*")):
        _write_if_new(folder / "plots" / template.name, template.read_text(encoding="utf-8"))
