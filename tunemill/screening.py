"""Screening candidates for the base model: what can be known before any weights are fetched, and why one is refused.

Everything is read from the candidate's `config.json`, the names of its files and its licence. Nothing that comes with a
checkpoint is ever run: one that brings code of its own, or weights only as pickle (which can run code when read), is refused.
"""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tunemill import planning
from tunemill.errors import UserError
from tunemill.runtime import Runtime

Status = Literal["selected", "scored", "refused", "skipped"]


class UnreachableError(Exception):
    """The place a candidate lies at does not answer; the text says why."""


class Description(NamedTuple):
    """What a candidate says of itself."""

    config: Mapping[str, Any]
    """Its config.json."""
    files: tuple[str, ...] | None
    """Names of its files; None where they are known to be no pickle."""


class Limits(NamedTuple):
    """What the scope asks of a model."""

    kind: planning.Kind
    """The task."""
    licenses: tuple[str, ...]
    """Licences that are allowed."""
    memory_gib: float
    """Most memory that training and serving may take."""


class Verdict(NamedTuple):
    """What screening found out; what is not known is None."""

    refusal: str | None
    """Why the candidate is refused; None where it is not."""
    family: planning.Family | None = None
    parameters: int | None = None
    training_bytes: int | None = None
    """Of the process, for a step of the least demanding method."""
    serving_bytes: int | None = None
    """Of the process, answering one batch."""


def describe_hub(repo: str, revision: str, patience: float = 3.0) -> Description:
    """A hub's model: its configuration (a few kilobytes) and the names of its files.

    Args:
        repo: owner/name.
        revision: the commit.
        patience: seconds to wait for the hub's address to answer at all, before the hub's own client tries again and again.

    Raises:
        UnreachableError: no network, the hub is not allowed, or there is no such model.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from transformers import PreTrainedConfig

    offline = constants.HF_HUB_OFFLINE
    if not offline:
        _knock(constants.ENDPOINT, patience)
    try:
        config, _ = PreTrainedConfig.get_config_dict(repo, revision=revision)
        if offline:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
            files = [each.relative_to(folder).as_posix() for each in folder.rglob("*")]
        else:
            files = list(HfApi().list_repo_files(repo, revision=revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        if offline:
            raise UnreachableError(
                "not in the local cache, and the hub is not asked (HF_HUB_OFFLINE=0 allows it)"
            ) from None
        raise UnreachableError(f"the hub does not give it: {_first_line(error)}") from None
    return Description(config, tuple(sorted(files)))


def describe_folder(folder: Path) -> Description:
    """A checkpoint on this machine.

    Raises:
        UserError: no folder, or no config.json in it that can be read. Unlike a hub that does not answer, that does not pass by itself.
    """
    from transformers import PreTrainedConfig

    if not (folder / "config.json").is_file():
        raise UserError(
            "no config.json in it" if folder.is_dir() else "no such folder",
            where=str(folder),
            expected="a folder with config.json, safetensors weights and a tokenizer",
            fix="put it there, or correct its path under select.candidates in params.yaml",
            exit_code=2,
        )
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder)
    except OSError as error:
        raise UserError(_first_line(error), where=str(folder / "config.json"), exit_code=2) from None
    return Description(config, tuple(sorted(each.name for each in folder.iterdir())))


def configuration(values: Mapping[str, Any]) -> Any:
    """The transformers configuration that a config.json describes.

    Raises:
        ValueError: of a type that transformers does not know.
    """
    from transformers import AutoConfig

    given = dict(values)
    kind = given.pop("model_type", None)
    if not kind:
        raise ValueError("config.json names no model_type")
    try:
        return AutoConfig.for_model(kind, **given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"not a model that transformers knows: {_first_line(error)}") from None


def screen(found: Description, license_: str, limits: Limits, batch: planning.Batch, runtime: Runtime) -> Verdict:
    """Say whether a candidate may be tried: the cheap questions first.

    Args:
        found: what it says of itself.
        license_: its weights' licence.
        limits: what the scope asks for.
        batch: the batch that tuning and serving are planned for.
        runtime: the device and the number format to compute in.
    """
    if found.config.get("auto_map"):
        return Verdict("it brings code of its own (auto_map in config.json), which is never run")
    try:
        config = configuration(found.config)
        family = planning.family(config)
    except ValueError as error:
        return Verdict(str(error))
    fitting = planning.FAMILIES[limits.kind]
    if family not in fitting:
        return Verdict(f"{family}; {limits.kind} takes a model that is {' or '.join(fitting)}", family)
    if license_.lower() not in {each.lower() for each in limits.licenses}:
        allowed = ", ".join(limits.licenses)
        return Verdict(f"licence {license_}; scope.constraints.licenses allows {allowed}", family)
    if pickled := _only_pickle(found.files):
        return Verdict(
            f"weights only as pickle ({pickled}), and reading one can run any code; safetensors are needed", family
        )
    if family == "encoder-only":
        return Verdict("encoder-only; nothing here tunes or scores a model that writes no text", family)
    parameters = planning.count_parameters(config).total
    training = _least_training_bytes(config, batch, runtime)
    process = 0 if runtime.device == "cuda" else planning.PROCESS_BYTES
    serving = process + planning.serving_bytes(config, parameters, batch, runtime.dtype)
    verdict = Verdict(None, family, parameters, training, serving)
    if max(training, serving) > limits.memory_gib * 2**30:
        return verdict._replace(
            refusal=f"tuning it takes at least {training / 2**30:.1f} GiB and serving it {serving / 2**30:.1f}; "
            f"scope.constraints.memory_gib allows {limits.memory_gib:g}"
        )
    return verdict


def _least_training_bytes(config: Any, batch: planning.Batch, runtime: Runtime) -> int:
    """What the least demanding way to tune takes, activations computed again: what does not fit then, never fits.

    Prompt tuning trains least and keeps least; on a GPU an adapter on weights in 4 bits may take less.
    """
    ways = [planning.Method("prompt_tuning", virtual_tokens=1)]
    if runtime.device == "cuda":
        ways.append(planning.Method("qlora", rank=1))
    steps = [planning.step_memory(config, way, batch, runtime.dtype, recompute=True) for way in ways]
    return min(planning.process_bytes(step, runtime.device) for step in steps)


def _only_pickle(files: Sequence[str] | None) -> str | None:
    if files is None or any(name.endswith(".safetensors") for name in files):
        return None
    return next((name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))), "or none at all")


def _knock(endpoint: str, patience: float) -> None:
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies().get(address.scheme) or "ALL_PROXY" in os.environ or not address.hostname:
        return  # the proxy reaches it, or does not: the hub's client will say
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=patience).close()
    except OSError as error:
        raise UnreachableError(f"{address.hostname} does not answer: {error}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
