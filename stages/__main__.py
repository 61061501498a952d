"""Check every section of params.yaml and the graph of dvc.yaml before anything is started.

python -m stages --check
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunemill import alignment, constitution, helm, promotion
from tunemill.dependencies import module_of
from tunemill.endpoints import key_of
from tunemill.errors import UserError, nearest
from tunemill.params import AlignStart, Candidates, Extra, Launch, ParamsFile, StartFolder, Variants
from tunemill.sources import FileSource
from tunemill.stage import contract

BASELINES = ("lead-10-words", "first-sentence")
ADAPTERS = ("lora", "prompt_tune")
"""Stages whose result is used with the model that they started from, which `start` names."""
STARTED = ("prompt", "sft", *ADAPTERS)
"""Stages that start from the model that `start` names."""
TUNING = ("pretrain", "sft", *ADAPTERS, "ia3", "distill")
COMPRESSING = ("distill", "quantize", "prune")
"""Stages that make a smaller model, each run as the variant of its name says."""
OFF = ("ia3", "dpo", "kto", "grpo", "rloo")
"""Stages that are off by default and make an adapter of the model that their run names."""
BASES = dict.fromkeys(OFF, "model") | {"ppo": "policy"}
"""Stages that make an adapter of the model that their run names → the key that names it."""
PRINCIPLED = {"sl_cai": "critic", "rl_cai": "judge"}
"""Stages that go by a constitution → the key of the model that reads it."""
WEIGHED = {
    "ppo": "policy",
    "sl_cai": "model",
    "rl_cai": "start",
    **dict.fromkeys(("grpo", "rloo", "best_of"), "model"),
}
"""Stages that put a reward model on a model → the key of their runs that names the latter."""
RESULTS = {
    "select": "model",
    "prompt": "model",
    "pretrain": "model",
    "sft": "model",
    "feedback": "policy",
    "sl_cai": "model",
    "best_of": "model",
    **dict.fromkeys((*COMPRESSING, "compress"), "model"),
} | dict.fromkeys((*ADAPTERS, *OFF, "ppo"), "adapter")
"""Stage → what it calls the checkpoint that it writes; those of further seeds end in `-<seed>`."""

Keys = tuple[str | int, ...]


@dataclass
class Setup:
    """What is checked."""

    root: Path
    params: ParamsFile
    values: dict[str, Any] = field(default_factory=dict)
    """Section → its configuration, where it is valid."""
    outputs: list[str] = field(default_factory=list)
    """Folders under artifacts/ that stages write."""
    inputs: dict[str, list[str]] = field(default_factory=dict)
    """Stage that runs → what it reads under artifacts/, as far as that stands in dvc.yaml."""

    @property
    def candidates(self) -> dict[str, Any]:
        """Name → candidate."""
        return dict(self.values["candidates"].root) if "candidates" in self.values else {}

    @property
    def variants(self) -> dict[str, Any]:
        """Name → policy and base; none where the section is wrong."""
        return dict(self.values["variants"].root) if "variants" in self.values else {}

    def told(self, keys: Keys, what: str, *, expected: str = "", fix: str = "", known: Iterable[str] = ()) -> str:
        """A mistake in params.yaml, with its line; of `known` the nearest to the value is offered."""
        near = nearest(what.split("'")[1], known) if known else None
        line, dotted = self.params.line(keys), ".".join(map(str, keys))
        fix = f"did you mean '{near}'?" if near else fix
        return str(UserError(what, where=f"{self.params.path}:{line}: {dotted}", expected=expected, fix=fix))


def check(root: Path) -> list[str]:
    """Every mistake in params.yaml and dvc.yaml, as text; light imports only.

    Raises:
        UserError: one of the two cannot be read at all.
    """
    setup = Setup(root, ParamsFile(root / "params.yaml"))
    sections: dict[str, Any] = {
        "candidates": Candidates,
        "variants": Variants,
        "launch": Launch,
        "start": StartFolder,
        "extra": Extra,
    }
    sections["align_start"] = AlignStart
    faults = list(in_graph(setup, sections))
    for name, kind in sections.items():
        try:
            setup.values[name] = setup.params.section(name, kind)
        except UserError as error:
            faults.append(str(error))
    for name in setup.params.sections:
        if name not in sections:
            among = "one of " + ", ".join(sorted(sections))
            faults.append(
                setup.told((name,), f"unknown section '{name}'", expected=among, fix="remove it", known=sections)
            )
    looks = (
        in_launch,
        in_sources,
        in_shares,
        in_inputs,
        in_folders,
        in_rewards,
        in_variants,
        in_formats,
        in_constitutions,
        in_names,
        in_criteria,
        in_promotion,
        in_endpoints,
        in_mixtures,
        in_training,
    )
    for look in looks:
        faults += look(setup)
    return faults


def in_graph(setup: Setup, sections: dict[str, Any]) -> Iterator[str]:
    """Commands of dvc.yaml that do not fit their stage; `sections` and the set-up's outputs are filled in."""
    for name, stage in graph(setup.root / "dvc.yaml").items():
        body = stage.get("do", stage)
        made = [str(each if isinstance(each, str) else next(iter(each))) for each in body.get("outs", [])]
        names = runs_of(stage, setup.params) if "foreach" in stage else [""]
        setup.outputs += [
            each.replace("${key}", name) for name in names for each in made if each.startswith("artifacts/")
        ]
        if names:
            setup.inputs[name] = [
                each for each in map(str, body.get("deps", [])) if each.startswith("artifacts/") and "${" not in each
            ]
        command = str(body.get("cmd", ""))
        module = module_of(command)
        if module is None or module != f"stages.{name}":
            yield f"dvc.yaml: stages.{name}.cmd: expected it to run stages.{name}, as the stage is called"
            continue
        about = contract(importlib.import_module(module).run, name)
        sections |= about.params
        flags = {word.removeprefix("--").replace("-", "_") for word in command.split() if word.startswith("--")}
        known = {*about.inputs, *about.outputs, "candidate", "params", "metrics", "json"}
        for flag in sorted(flags - known):
            yield f"dvc.yaml: stages.{name}.cmd: the stage has no flag --{flag.replace('_', '-')}"
        needed = {key for key, kind in about.inputs.items() if kind == "one"} | set(about.outputs)
        for flag in sorted(needed - flags):
            yield f"dvc.yaml: stages.{name}.cmd: add --{flag.replace('_', '-')}"
        missing = set(about.params) - {str(each) for each in body.get("params", [])}
        if missing:
            yield f"dvc.yaml: stages.{name}.params: add {', '.join(sorted(missing))}, which its run depends on"


def graph(path: Path) -> dict[str, Any]:
    """The stages of a dvc.yaml.

    Raises:
        UserError: it is no YAML, or has no stages.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(f"not valid YAML: {what}", where=f"{path}{line}", exit_code=2) from None
    stages = tree.get("stages") if isinstance(tree, Mapping) else None
    if not isinstance(stages, Mapping) or not all(isinstance(each, Mapping) for each in stages.values()):
        raise UserError("no stages", where=str(path), expected="stages: and a mapping for each", exit_code=2)
    return {str(name): dict(stage) for name, stage in stages.items()}


def runs_of(stage: dict[str, Any], params: ParamsFile) -> list[str]:
    """The names that a stage with `foreach: ${section.key}` runs once for each of."""
    section, *keys = str(stage["foreach"]).removeprefix("${").removesuffix("}").split(".")
    value = params.values(section) if section in params.sections else {}
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return [str(name) for name in value] if isinstance(value, Mapping) else []


# ── how the tuning stages are started ─────────────────────────────────────────────────────────────────────────────


def in_launch(setup: Setup) -> Iterator[str]:
    """A launcher that is not there."""
    if "launch" not in setup.values:
        return
    words = launcher(setup.values["launch"].root)
    # As in a stage's shell, but what is installed beside this Python counts even where that is not on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if words and shutil.which(words[0], path=path):
        return
    what = f"no program '{words[0]}'" if words else "no program"
    expected = "`python`, or `torchrun --standalone --nproc_per_node N`"
    known = ("python", "torchrun", "accelerate") if words else ()
    yield setup.told(("launch",), what, expected=expected, fix="set launch: python", known=known)


def launcher(launch: str) -> list[str]:
    """The words of `launch`, without the variables set before it; none where it cannot be read."""
    try:
        words = shlex.split(launch)
    except ValueError:  # a quotation mark that is never closed
        return []
    while words and "=" in words[0]:
        del words[0]
    return words


def processes(words: list[str]) -> int | None:
    """How many processes a launcher starts; None where only the machine that it runs on can say.

    `python` starts one; torchrun `--nproc_per_node` on each of `--nnodes`.
    """
    if not words:
        return None
    program = Path(words[0]).name
    if program.startswith("python") and "torch.distributed.run" not in words:
        return 1 if "-m" not in words else None
    if program != "torchrun" and not program.startswith("python"):
        return None
    total = 1
    for flag in ("--nproc_per_node", "--nnodes"):
        given = [each.replace("-", "_").replace("__", "--", 1) if each.startswith("--") else each for each in words]
        value = next(
            (
                each.partition("=")[2] if "=" in each else ([*words, ""])[at + 1]
                for at, each in enumerate(given)
                if each.partition("=")[0] == flag
            ),
            "1",
        )
        if not value.isdecimal():  # gpu, auto, 1:4
            return None
        total *= int(value)
    return total


# ── what must be there ────────────────────────────────────────────────────────────────────────────────────────────


def in_sources(setup: Setup) -> Iterator[str]:
    """Files and folders to read that are not there."""
    tables: dict[Keys, Any] = {}
    if "collect" in setup.values:
        cfg = setup.values["collect"]
        tables = {("collect", "examples"): cfg.examples, ("collect", "ratings"): cfg.ratings}
        if cfg.refusals is not None:
            tables["collect", "refusals"] = cfg.refusals
        tables |= {("collect", "red_team", name, "rows"): each.rows for name, each in cfg.red_team.items()}
        tables |= {("collect", "harmless", name): each for name, each in cfg.harmless.items()}
        tables |= {("collect", "tasks", name, "rows"): each.rows for name, each in cfg.tasks.items()}
    for keys, table in tables.items():
        if isinstance(table, FileSource) and not (setup.root / table.path).is_file():
            yield setup.told(
                (*keys, "path"),
                f"no file '{table.path}'",
                expected="a file, from the repository's root",
                fix="put it there, where git does not ignore it, or correct the path",
            )
    models: dict[Keys, Any] = {}
    if "collect" in setup.values and setup.values["collect"].encoder is not None:
        models["collect", "encoder"] = setup.values["collect"].encoder
    if "select" in setup.values:
        models |= {("select", "candidates", name): each for name, each in setup.values["select"].candidates.items()}
    for keys, model in models.items():
        if model.source == "folder" and not (setup.root / model.path / "config.json").is_file():
            yield setup.told(
                (*keys, "path"),
                f"no model in '{model.path}'",
                expected="a folder with config.json, safetensors weights and a tokenizer",
                fix="put it there, where git does not ignore it, or name it from the root of the file system",
            )


def in_shares(setup: Setup) -> Iterator[str]:
    """Sets of prompts that are to be split and are not collected."""
    if "collect" not in setup.values or "validate" not in setup.values:
        return
    for key, what in (("red_team", "red-team"), ("harmless", "harmless")):
        known = [*getattr(setup.values["collect"], key)]
        for name in getattr(setup.values["validate"], key):
            if name not in known:
                yield setup.told(
                    ("validate", key, name),
                    f"no {what} set '{name}'",
                    expected="one of " + ", ".join(known) if known else f"none: collect.{key} has no set",
                    fix=f"name sets as collect.{key} does, or take the entry out",
                    known=known,
                )


def in_inputs(setup: Setup) -> Iterator[str]:
    """What a stage reads and no stage makes: where a run under `extra` that it needs was taken out or renamed."""
    for name, read in setup.inputs.items():
        for path in read:
            if not any(path_under(path, each) or path_under(each, path) for each in setup.outputs):
                parts = Path(path).parts
                run = f"the run `extra.{parts[1]}.{parts[2]}`" if len(parts) > 2 else f"stage {parts[1]}"
                yield str(
                    UserError(
                        f"it reads '{path}', which no stage makes",
                        where=f"dvc.yaml: stages.{name}",
                        expected=run,
                        fix="put that back into params.yaml, or name what is there in dvc.yaml",
                        exit_code=2,
                    )
                )


def in_folders(setup: Setup) -> Iterator[str]:
    """Models that are neither there nor made, and adapters on another model than they were made for."""
    results = checkpoints(setup)
    named: dict[Keys, str] = {}
    if "start" in setup.values:
        named["start",] = setup.values["start"].root
    if "extra" in setup.values:
        for stage, runs in dict(setup.values["extra"]).items():
            named |= {
                ("extra", stage, name, key): path
                for name, run in runs.items()
                for key, path in dict(run).items()
                if key != "constitution"  # see in_constitutions
            }
    for name, candidate in setup.candidates.items():
        named |= {("candidates", name, key): getattr(candidate, key) for key in ("policy", "base")}
    adapted: dict[Keys, Any] = {("candidates", name): candidate for name, candidate in setup.candidates.items()}
    for name, variant in setup.variants.items():
        adapted["variants", name] = variant
        named |= {("variants", name, key): getattr(variant, key) for key in ("policy", "base")}
    if "align_start" in setup.values and "feedback" in used(setup):
        adapted["align_start",] = setup.values["align_start"]
        named |= {("align_start", key): getattr(adapted["align_start",], key) for key in ("policy", "base")}
    if "extra" in setup.values:
        for stage in COMPRESSING:
            adapted |= {("extra", stage, name): run for name, run in getattr(setup.values["extra"], stage).items()}
    if "distill" in setup.values:
        named["distill", "student"] = setup.values["distill"].student
    if "judge" in setup.values:
        named["judge", "folder"] = setup.values["judge"].folder
    for stage, key in PRINCIPLED.items():
        if stage in setup.values:
            named[stage, key, "folder"] = getattr(setup.values[stage], key).folder
    # What a run reads beside its model is any file or folder of a stage.
    read = {keys for keys in named if keys[0] == "extra" and keys[-1] not in ("model", "policy", "base", "start")}
    wrong = {
        keys
        for keys, path in named.items()
        if not any(path_under(path, each) for each in (setup.outputs if keys in read else results))
        and not (setup.root / path).exists()
    }
    for keys in [each for each in named if each in wrong]:
        yield setup.told(
            keys,
            f"'{named[keys]}' is neither there nor made by a stage",
            expected="a folder that is there, or one under " + ", ".join(results),
            known=results,
        )
    for at, candidate in adapted.items():
        if (*at, "base") in wrong:
            continue
        keys = origin(candidate.policy)
        if keys in named and keys not in wrong and candidate.base != named[keys]:
            yield setup.told(
                (*at, "base"),
                f"an adapter of {Path(candidate.policy).parts[1]} sits on '{named[keys]}', not on '{candidate.base}'",
                expected=f"the model that `{'.'.join(map(str, keys))}` names",
            )


def in_rewards(setup: Setup) -> Iterator[str]:
    """Reward models that are put on another model than they were trained on."""
    runs = dict(setup.values["extra"]) if "extra" in setup.values else {}
    trained = {f"artifacts/reward/{name}": run.policy for name, run in runs.get("reward", {}).items()}
    known = checkpoints(setup)  # of what is nowhere in_folders tells
    for stage, key in WEIGHED.items():
        for name, run in runs.get(stage, {}).items():
            made_on, put_on = trained.get(run.reward), getattr(run, key)
            if made_on not in (None, put_on) and any(path_under(put_on, each) for each in known):
                yield setup.told(
                    ("extra", stage, name, key),
                    f"the reward model {run.reward} sits on '{made_on}', not on '{put_on}'",
                    expected=f"the model that `extra.reward.{Path(run.reward).name}.policy` names",
                    fix="name that one, or the reward model of this one",
                )


def in_variants(setup: Setup) -> Iterator[str]:
    """Runs of stages that make a smaller model, and no variant that says how; a parent that is none of the variants."""
    if "compress" in setup.values and setup.variants and setup.values["compress"].parent not in setup.variants:
        yield setup.told(
            ("compress", "parent"),
            f"'{setup.values['compress'].parent}' is no variant",
            expected="one of " + ", ".join(setup.variants),
            fix="name another, or add it to `variants`",
            known=setup.variants,
        )
    elif "compress" in setup.values and setup.variants:
        parent = setup.variants[setup.values["compress"].parent]
        for name, candidate in setup.candidates.items():
            # Where nothing smaller is as good, the parent itself is taken, which may be an adapter.
            if candidate.policy == "artifacts/compress/model" and candidate.base != parent.base:
                yield setup.told(
                    ("candidates", name, "base"),
                    f"'{candidate.base}' is not the base of the variants' parent",
                    expected=f"{parent.base}, as variants.{setup.values['compress'].parent} has it",
                )
    runs = dict(setup.values["extra"]) if "extra" in setup.values else {}
    for stage in COMPRESSING:
        known = [*setup.values[stage].variants] if stage in setup.values else None
        for name in runs.get(stage, {}) if known is not None else ():
            if name not in known:
                yield setup.told(
                    ("extra", stage, name),
                    f"no variant '{name}'",
                    expected="one of " + ", ".join(known)
                    if known
                    else f"a variant of {stage}.variants, which has none",
                    fix=f"name it in {stage}.variants",
                    known=known,
                )


def in_formats(setup: Setup) -> Iterator[str]:
    """Files for llama.cpp that are asked of a model known to be an encoder-decoder; what a hub has, `select` finds out."""
    if not {"select", "quantize", "extra"} <= setup.values.keys():
        return
    families = [
        getattr(each, "family", None)
        or ("encoder-decoder" if getattr(each, "architecture", {}).get("is_encoder_decoder") else None)
        for each in setup.values["select"].candidates.values()
    ]
    if set(families) != {"encoder-decoder"}:
        return
    variants = setup.values["quantize"].variants
    for name in dict(setup.values["extra"]).get("quantize", {}):
        if name in variants and variants[name].method == "gguf":
            yield setup.told(
                ("extra", "quantize", name),
                f"'{name}' is a file for llama.cpp, and the model is an encoder-decoder",
                expected="another method of quantize.variants: a GGUF file is of a decoder-only model",
                fix="take it out here, and out of `variants`",
            )


def trained(settings: Any) -> Any:
    """What a stage's section says of its training: the section itself, or `recovery` in it."""
    return getattr(settings, "recovery", settings)


def checkpoints(setup: Setup) -> list[str]:
    """Everything that stages make and others may read: checkpoints by name, anything else by its folder."""
    found = []
    for out in sorted(setup.outputs):
        stage = Path(out).parts[1]
        if stage not in RESULTS or (stage in TUNING and stage not in setup.values):
            found.append(out)
            continue
        settings = setup.values.get(stage)
        result = "model" if getattr(settings, "mode", None) == "full" else RESULTS[stage]
        found += [
            f"{out}/{result}",
            *(f"{out}/{result}-{seed}" for seed in getattr(trained(settings), "seeds", (0,))[1:]),
        ]
    return found


def origin(policy: str) -> Keys:
    """The key that names the model which an adapter was made on; none for what is no adapter of a stage."""
    if any(path_under(policy, f"artifacts/{each}") for each in ADAPTERS):
        return ("start",)
    parts = Path(policy).parts
    made = parts[:1] == ("artifacts",) and len(parts) > 3 and parts[1] in BASES and parts[3].startswith("adapter")
    return ("extra", parts[1], parts[2], BASES[parts[1]]) if made else ()


def path_under(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(f"{folder}/")


def in_constitutions(setup: Setup) -> Iterator[str]:
    """Constitutions with a mistake, or that say nothing about prompts which are to be asked."""
    runs = dict(setup.values["extra"]) if "extra" in setup.values else {}
    asked: dict[Path, set[constitution.Kind]] = {}
    for stage in PRINCIPLED:
        counts = setup.values[stage].prompts if stage == "sl_cai" and stage in setup.values else None
        kinds = [kind for kind in constitution.KINDS if (getattr(counts, kind) if counts else kind == "red_team")]
        for run in runs.get(stage, {}).values():
            asked.setdefault(setup.root / run.constitution, set()).update(kinds)
    for path in asked:
        try:
            constitution.needs(constitution.read(path), sorted(asked[path]), path)
        except UserError as error:
            yield str(error)


# ── names of candidates and tasks ─────────────────────────────────────────────────────────────────────────────────


def in_names(setup: Setup) -> Iterator[str]:
    """Names of candidates that there are not: in the criteria, the comparisons and the references."""
    candidates = [*setup.candidates]
    if not candidates:
        return
    either = [*candidates, *BASELINES]
    named: dict[Keys, tuple[str, list[str]]] = {}
    if "scope" in setup.values:
        for at, criterion in enumerate(setup.values["scope"].criteria):
            # Of alignment the pairs count, and of what else baselines are not measured by, in_criteria tells.
            for key in ("candidate", "against") if not criterion.metric.startswith(promotion.ALIGNMENT) else ():
                if getattr(criterion, key) is not None:
                    named["scope", "criteria", at, key] = getattr(criterion, key), either
    for stage in ("compare", "efficiency"):
        if stage in setup.values:
            named[stage, "reference"] = setup.values[stage].reference, candidates
    if "judge" in setup.values and setup.values["judge"].model != "none":
        named["judge", "against"] = setup.values["judge"].against, candidates
    if "compare" in setup.values:
        for at, pair in enumerate(setup.values["compare"].pairs):
            for place, name in enumerate(pair):
                named["compare", "pairs", at, place] = name, either
        for method, trained in setup.values["compare"].seeds.items():
            for at, name in enumerate(trained):
                named["compare", "seeds", method, at] = name, candidates
        for name, start in setup.values["compare"].aligned.items():
            # The line of a key is that of its value.
            named["compare", "aligned", name] = (name if name not in candidates else start), candidates
        for name, controls in setup.values["compare"].controls.items():
            for at, control in enumerate(controls):
                named["compare", "controls", name, at] = control, candidates
        aligned = setup.values["compare"].aligned
        for method, trained in setup.values["compare"].seeds.items():
            if method in candidates and len(trained) > 1 and {*trained} <= {*aligned}:
                yield setup.told(
                    ("compare", "seeds", method),
                    f"'{method}' is a candidate, and trainings that are taken together want a name of their own",
                    fix=f"call them {method}-{len(trained)}",
                )
    for keys, (name, known) in named.items():
        if name not in known:
            yield setup.told(
                keys,
                f"'{name}' is no candidate",
                expected="one of " + ", ".join(known),
                fix="name another, or take the entry out",
                known=known,
            )


def in_criteria(setup: Setup) -> Iterator[str]:
    """Criteria that nothing could ever be measured for: their metric, or the pair that they compare."""
    if "scope" not in setup.values or not setup.candidates:
        return
    metrics = criteria_metrics()
    for at, criterion in enumerate(setup.values["scope"].criteria):
        keys: Keys = ("scope", "criteria", at)
        metric, name, against = criterion.metric, criterion.candidate, criterion.against
        if metric not in metrics and not metric.startswith("tasks/"):
            some = f"one of {', '.join((*promotion.SCORES, *promotion.RATIOS, promotion.DISK))}, or a figure of"
            yield setup.told(
                (*keys, "metric"),
                f"unknown metric '{metric}'",
                expected=f"{some} alignment/, forgetting/ or HELM's categories ({', '.join(helm.CATEGORIES)})",
                fix="docs/promote.md lists them",
                known=metrics,
            )
            continue
        if metric not in promotion.SCORES:
            for key in [each for each in ("candidate", "against") if getattr(criterion, each) in BASELINES]:
                yield setup.told(
                    (*keys, key),
                    f"'{getattr(criterion, key)}' is copied text: {metric} is not measured of it",
                    expected=f"a candidate; baselines have {', '.join(promotion.SCORES)}",
                )
        if name == against:
            yield setup.told((*keys, "against"), f"'{name}' is compared with itself", expected="another one, or null")
        elif against is None and metric in (*promotion.RATIOS, *promotion.FORGETTING):
            yield setup.told(
                (*keys, "against"), f"{metric} is always measured against a candidate", expected="its name"
            )
        if "compare" not in setup.values:
            continue
        compare = setup.values["compare"]
        if metric in promotion.FORGETTING and against not in (None, compare.reference):
            yield setup.told(
                (*keys, "against"),
                f"{metric} is measured against '{compare.reference}', not against '{against}'",
                expected=f"{compare.reference}, which compare.reference names",
            )
        if metric.startswith(promotion.ALIGNMENT):
            pairs = aligned_pairs(compare)
            if (name, against) not in pairs:
                known = "; ".join(f"{one} against {other}" for one, other in pairs)
                yield setup.told(
                    keys,
                    f"no answers to red-team prompts of '{name}' are compared with those of '{against or 'nobody'}'",
                    expected=f"one of: {known}" if known else "a pair of compare.aligned, which has none",
                    fix="name that, or add the pair to compare.aligned or compare.controls",
                )


def criteria_metrics() -> list[str]:
    """Every metric that a criterion may name and that can be known before anything is measured: benchmarks' cannot."""
    aligned = [f"{promotion.ALIGNMENT}{name}" for name in (*alignment.OF_INSTRUCTIONS, alignment.MATCHED)]
    for kind in alignment.KINDS[1:]:
        aligned += [f"{promotion.ALIGNMENT}{kind}/{name}" for name in alignment.OF_KIND[kind]]
    return [*promotion.SCORES, *promotion.RATIOS, promotion.DISK, *helm.keys(), *aligned, *promotion.FORGETTING]


def aligned_pairs(compare: Any) -> list[tuple[str, str]]:
    """Whose answers to red-team prompts are compared with whose: candidates, and methods of several training seeds."""
    starts = dict(compare.aligned)
    for method, of in compare.seeds.items():
        if len(of) > 1 and {*of} <= {*starts}:
            starts[method] = starts[of[0]]
    return [*starts.items(), *((name, each) for name, found in compare.controls.items() for each in found)]


def in_promotion(setup: Setup) -> Iterator[str]:
    """A candidate to promote that there is not, or that no criterion says anything about."""
    if "promote" not in setup.values or not setup.candidates:
        return
    name = setup.values["promote"].candidate
    if name not in setup.candidates:
        yield setup.told(
            ("promote", "candidate"),
            f"'{name}' is no candidate",
            expected="one of " + ", ".join(setup.candidates),
            fix="name another",
            known=setup.candidates,
        )
    elif "scope" in setup.values and "compare" in setup.values:
        # A method of several training seeds stands for each of them.
        seeds = setup.values["compare"].seeds
        about = {
            each for rule in setup.values["scope"].criteria for each in (rule.candidate, *seeds.get(rule.candidate, ()))
        }
        if name not in about:
            yield setup.told(
                ("promote", "candidate"),
                f"no criterion is about '{name}', so nothing would decide whether it is promoted",
                expected="one of " + ", ".join(each for each in setup.candidates if each in about),
                fix="name that, or add a criterion to scope.criteria",
            )


def in_endpoints(setup: Setup) -> Iterator[str]:
    """A key for an endpoint that is not there: known now, and not when everything before it has run."""
    runs = dict(setup.values["extra"]) if "extra" in setup.values else {}
    asked: dict[Keys, Any] = {("judge",): setup.values["judge"]} if "judge" in setup.values else {}
    for stage, key in PRINCIPLED.items():
        if stage in setup.values and runs.get(stage):
            asked[stage, key] = getattr(setup.values[stage], key)
    for keys, source in asked.items():
        if source.model != "endpoint":
            continue
        try:
            key_of(source.endpoint, ".".join(map(str, (*keys, "endpoint"))))
        except UserError as error:
            at = (*keys, "endpoint", "key_variable")
            yield setup.told(at, error.what, expected=error.expected, fix=error.fix)


def in_mixtures(setup: Setup) -> Iterator[str]:
    """Tasks to mix in that are not collected."""
    if "collect" not in setup.values:
        return
    known = [*setup.values["collect"].tasks]
    for stage in TUNING:
        mixture = getattr(setup.values.get(stage), "mixture", None)
        for at, name in enumerate(mixture.tasks if mixture else ()):
            if name not in known:
                yield setup.told(
                    (stage, "mixture", "tasks", at),
                    f"no task '{name}'",
                    expected="one of " + ", ".join(known) if known else "a task of collect.tasks, which has none",
                    fix="name it in collect.tasks",
                    known=known,
                )


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


def in_training(setup: Setup) -> Iterator[str]:
    """What a tuning stage that a candidate uses would refuse when it starts."""
    stages = [each for each in (*TUNING, *OFF, "sl_cai", "prune") if each in used(setup) and each in setup.values]
    number = processes(launcher(setup.values["launch"].root)) if "launch" in setup.values else None
    if stages and "runtime" in setup.values and setup.values["runtime"].dtype == "float16":
        yield setup.told(
            ("runtime", "dtype"),
            "float16 cannot be trained in: gradients underflow without loss scaling",
            expected="auto, float32 or bfloat16",
        )
    for stage in [each for each in stages if each in TUNING] if number else []:
        cfg = setup.values[stage]
        if cfg.sharding == "fsdp" and number == 1:
            yield setup.told(
                (stage, "sharding"),
                "one process has nobody to share the model with",
                expected="none",
                fix="set sharding: none, or start several processes: launch: torchrun --nproc_per_node 2",
            )
        pairs = cfg.batch_size * cfg.accumulation
        if number and pairs % number:
            yield setup.told(
                (stage, "batch_size"),
                f"a step of {pairs} pairs (batch_size x accumulation) cannot be shared by {number} processes",
                expected=f"a multiple of {number}",
            )


def used(setup: Setup) -> set[str]:
    """The stages that a candidate uses, directly or through the model that a stage starts from."""
    waiting = [path for each in setup.candidates.values() for path in (each.policy, each.base)]
    runs = dict(setup.values["extra"]) if "extra" in setup.values else {}
    found: set[str] = set()
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        parts = Path(path).parts
        if path in seen or parts[:1] != ("artifacts",) or len(parts) < 2:
            continue
        seen.add(path)
        found.add(parts[1])
        if parts[1] in STARTED and "start" in setup.values:
            waiting.append(setup.values["start"].root)
        if parts[1] == "feedback" and "align_start" in setup.values:
            waiting += dict(setup.values["align_start"]).values()
        if parts[1] == "compress":
            waiting += [each for variant in setup.variants.values() for each in (variant.policy, variant.base)]
        run = runs.get(parts[1], {}).get(parts[2]) if len(parts) > 2 else None
        waiting += dict(run).values() if run is not None else []
        if run is not None and parts[1] in PRINCIPLED and parts[1] in setup.values:
            waiting.append(getattr(setup.values[parts[1]], PRINCIPLED[parts[1]]).folder)
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stages", description="Check params.yaml and dvc.yaml.")
    parser.add_argument("--check", action="store_true", required=True, help="check, and start nothing")
    parser.parse_args()
    try:
        faults = check(Path())
    except UserError as error:
        faults = [str(error)]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        return 2
    print("params.yaml and dvc.yaml are in order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
