"""What stages have written, read again: JSON, dvc.lock, timings. A missing or damaged file is told by its name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError

AGAIN = "run the stage that makes it again: dvc repro"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg}", where=str(path), fix=AGAIN) from None
    if not isinstance(value, dict):
        raise UserError(f"holds a {type(value).__name__}", where=str(path), expected="a JSON object", fix=AGAIN)
    return value


def read_lock(path: Path) -> dict[str, Any]:
    """DVC's record of what every stage read and wrote.

    Raises:
        UserError: the file is missing, or no YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(read_text(path))
    except YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=str(path), fix="dvc repro") from None
    return value if isinstance(value, dict) else {}


def read_timings(folder: Path) -> dict[str, dict[str, Any]]:
    """Stage → seconds and peak memory; `evaluate/base.timing.json` is stage `evaluate@base`.

    Raises:
        UserError: one is damaged.
    """
    return {
        "@".join(path.relative_to(folder).with_name(path.name.removesuffix(".timing.json")).parts): read_json(path)
        for path in sorted(folder.rglob("*.timing.json"))
    }


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
        UserError: the file is missing, or is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("no such file", where=str(path), fix=AGAIN) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", where=str(path), fix=AGAIN) from None


def evaluated(name: str, told: str, policy: Path, base: Path) -> None:
    """See that a candidate's weights are still those that were evaluated.

    Args:
        name: of the candidate.
        told: `policy_hash` of its evaluation.
        policy: its folder.
        base: folder of the model that an adapter sits on.

    Raises:
        UserError: they are not.
    """
    both = (policy / "adapter_config.json").is_file() and policy != base
    folders = [policy, base] if both else [policy]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"the weights of '{name}' are not there", where=str(folder), fix="make them again: dvc repro"
            )
    hashes = "\n".join(tree_hash(folder) for folder in folders)
    found = hashlib.blake2b(hashes.encode(), digest_size=16).hexdigest()
    if found != told:
        raise UserError(
            f"the weights of '{name}' (hash {found}) are not those that were evaluated ({told})",
            where=", ".join(map(str, folders)),
            fix="evaluate what is there, or restore what was: dvc repro",
        )
