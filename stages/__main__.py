"""Check every section of params.yaml and the graph of dvc.yaml before anything is started.

python -m stages --check
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunemill.dependencies import module_of
from tunemill.errors import UserError, nearest
from tunemill.params import Candidates, Extra, Launch, ParamsFile, StartFolder
from tunemill.stage import contract

BASELINES = ("lead-10-words", "first-sentence")
ADAPTERS = ("lora", "prompt_tune")
"""Stages whose result is used with the model that they started from."""


def check(root: Path) -> list[str]:
    """Every mistake in params.yaml and dvc.yaml, as text; light imports only."""
    from ruamel.yaml import YAML

    faults: list[str] = []
    params = ParamsFile(root / "params.yaml")
    tree: Any = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text(encoding="utf-8"))
    sections: dict[str, Any] = {"candidates": Candidates, "launch": Launch, "start": StartFolder, "extra": Extra}
    outputs: list[str] = []
    for name, stage in tree["stages"].items():
        body = stage.get("do", stage)
        made = [str(each if isinstance(each, str) else next(iter(each))) for each in body.get("outs", [])]
        names = runs_of(stage, params) if "foreach" in stage else [""]
        outputs += [each.replace("${key}", name) for name in names for each in made if each.startswith("artifacts/")]
        module = module_of(str(body["cmd"]))
        if module is None or module != f"stages.{name}":
            faults.append(f"dvc.yaml: stages.{name}.cmd: expected it to run stages.{name}, as the stage is called")
            continue
        about = contract(importlib.import_module(module).run, name)
        sections |= about.params
        flags = {
            word.removeprefix("--").replace("-", "_") for word in str(body["cmd"]).split() if word.startswith("--")
        }
        known = {*about.inputs, *about.outputs, "candidate", "params", "metrics", "json"}
        faults += [
            f"dvc.yaml: stages.{name}.cmd: the stage has no flag --{flag.replace('_', '-')}"
            for flag in sorted(flags - known)
        ]
        needed = {key for key, kind in about.inputs.items() if kind == "one"} | set(about.outputs)
        faults += [f"dvc.yaml: stages.{name}.cmd: add --{flag.replace('_', '-')}" for flag in sorted(needed - flags)]
        missing = set(about.params) - {str(each) for each in body.get("params", [])}
        if missing:
            faults.append(f"dvc.yaml: stages.{name}.params: add {', '.join(sorted(missing))}, which its run depends on")
    values: dict[str, Any] = {}
    for name, kind in sections.items():
        try:
            values[name] = params.section(name, kind)
        except UserError as error:
            faults.append(str(error))
    for name in params.sections:
        if name not in sections:
            near = nearest(name, sections)
            faults.append(
                str(
                    UserError(
                        f"unknown section '{name}'",
                        where=f"{params.path}:{params.line((name,))}",
                        expected="one of " + ", ".join(sorted(sections)),
                        fix=f"did you mean '{near}'?" if near else "remove it",
                    )
                )
            )
    candidates: dict[str, Any] = values["candidates"].root if "candidates" in values else {}
    for name, candidate in candidates.items():
        for key in ("policy", "base"):
            path = getattr(candidate, key)
            if not any(path_under(path, out) for out in outputs) and not (root / path).exists():
                faults.append(
                    str(
                        UserError(
                            f"'{path}' is neither there nor made by a stage",
                            where=f"{params.path}:{params.line(('candidates', name, key))}: candidates.{name}.{key}",
                            expected="a folder under one of " + ", ".join(sorted(outputs)),
                        )
                    )
                )
        stage = next((each for each in ADAPTERS if path_under(candidate.policy, f"artifacts/{each}")), None)
        if stage and "start" in values and candidate.base != values["start"].root:
            faults.append(
                str(
                    UserError(
                        f"an adapter of {stage} sits on '{values['start'].root}', not on '{candidate.base}'",
                        where=f"{params.path}:{params.line(('candidates', name, 'base'))}: candidates.{name}.base",
                        expected="the model that `start` names",
                    )
                )
            )
    if "scope" in values and candidates:
        known = [*candidates, *BASELINES]
        for at, criterion in enumerate(values["scope"].criteria):
            for key in ("candidate", "against"):
                name = getattr(criterion, key)
                if name not in known:
                    line = params.line(("scope", "criteria", at, key))
                    near = nearest(name, known)
                    faults.append(
                        str(
                            UserError(
                                f"'{name}' is no candidate",
                                where=f"{params.path}:{line}: scope.criteria.{at}.{key}",
                                expected="one of " + ", ".join(known),
                                fix=f"did you mean '{near}'?" if near else "",
                            )
                        )
                    )
    return faults


def path_under(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(f"{folder}/")


def runs_of(stage: dict[str, Any], params: ParamsFile) -> list[str]:
    """The names that a stage with `foreach: ${section.key}` runs once for each of."""
    section, *keys = str(stage["foreach"]).removeprefix("${").removesuffix("}").split(".")
    value = params.values(section) if section in params.sections else {}
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return [str(name) for name in value] if isinstance(value, Mapping) else []


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
