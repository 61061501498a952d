"""What a task of lm-evaluation-harness would run as code: refused before anything of it is loaded.

A YAML file of a user's folder may name no function; the tasks that lm-eval brings may have functions of its own, but no metric that
would be fetched and run, neither by lm-eval nor by one of these functions.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunemill.errors import UserError


def check_file(path: Path) -> None:
    """Refuse a task file that cannot be read, or names code."""
    import yaml  # type: ignore[import-untyped]  # what lm-eval reads them with

    try:
        events = list(yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"not YAML: {' '.join(str(error).split())}", where=str(path), expected="a task of lm-eval"
        ) from None
    for event in events:
        if getattr(event, "tag", None) == "!function":
            raise UserError(
                f"!function {event.value} would run code",
                where=f"{path}:{event.start_mark.line + 1}",
                expected="templates and built-in metrics",
                fix="write what it computes into the data file",
            )


def _configs(name: str, index: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, configuration) of a task, or of all tasks of a group or a tag."""
    entry = index.get(name)
    if entry is None:
        return []
    config = entry.cfg or {}
    children: list[Any] = sorted(entry.tags) if entry.kind.name == "TAG" else []
    if entry.kind.name == "GROUP" and isinstance(config.get("task"), list):
        children = config["task"]
    own = [(name, config)] if entry.kind.name in ("TASK", "PY_TASK") else []
    return own + [each for child in children if child != name for each in _member_configs(child, index)]


def _member_configs(member: Any, index: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Those of a group's member: a name, a group or a task written out in place, or a name with what is changed of it."""
    if isinstance(member, str):
        return _configs(member, index)
    named = member.get("group") if member.get("group") in index else member.get("task")
    if isinstance(named, list):
        return [found for each in named for found in _member_configs(each, index)]
    changed = {key: value for key, value in member.items() if key not in ("group", "task")}
    return [(task, {**config, **changed}) for task, config in _configs(named, index) or [(str(named), {})]]


def check_metrics(name: str, index: Mapping[str, Any]) -> list[str]:
    """Refuse a task, or a group or tag with one in it, that has metrics which would be fetched as code.

    A function of lm-eval's own stands in a configuration as its path. Where results are such a function's (`process_results`), the
    names of metrics are its own, and lm-eval looks none of them up.

    Args:
        name: of a task, a group or a tag.
        index: of lm-eval's `TaskManager`.

    Returns:
        The names of the tasks.

    Raises:
        UserError: see above.
    """
    import lm_eval.api.metrics  # noqa: F401  # registers them
    from lm_eval.api.registry import metric_registry

    configs = _configs(name, index)
    for task, config in configs:
        for each in config.get("metric_list") or []:
            settings = each if isinstance(each, dict) else {"metric": each}
            metric = settings.get("metric")
            own = config.get("process_results") is not None or not isinstance(metric, str) or os.sep in metric
            if settings.get("hf_evaluate") or not (own or metric in metric_registry):
                raise _fetched(task, f"metric '{metric}'")
        for module, function in _functions(config):
            if _fetches(module, function):
                raise _fetched(task, f"a metric that {'/'.join(module.parts[-2:])} loads")
    return [task for task, _ in configs]


def _fetched(task: str, what: str) -> UserError:
    return UserError(
        f"{what} would be fetched and run as code",
        where=f"task {task}",
        expected="metrics of lm-eval's own: acc, acc_norm, exact_match, f1, bleu, perplexity, …",
    )


def _functions(config: Any) -> Iterator[tuple[Path, str]]:
    """(module, name) of every function of lm-eval's own that a configuration names."""
    if isinstance(config, str) and config.startswith(os.sep):
        folder, _, function = config.rpartition(os.sep)
        *module, name = function.split(".")
        path = f"{Path(folder, *module)}.py"
        if module and os.path.isfile(path):  # noqa: PTH113  # of a prompt, too long for a path, it says no
            yield Path(path), name
    elif isinstance(config, (dict, list)):
        for each in config.values() if isinstance(config, dict) else config:
            yield from _functions(each)


@functools.cache
def _fetches(module: Path, function: str) -> bool:
    """Whether importing a module and calling a function (or class) in it loads a metric of Hugging Face evaluate, which is code."""
    whole = ast.parse(module.read_text(encoding="utf-8"))
    loading = {"evaluate.load"}
    for each in ast.walk(whole):
        match each:
            case ast.Import(names=names):
                loading |= {f"{name.asname}.load" for name in names if name.name == "evaluate" and name.asname}
            case ast.ImportFrom(module="evaluate", names=names):
                loading |= {name.asname or name.name for name in names if name.name == "load"}
    within = {each.name: each for each in whole.body if isinstance(each, (ast.FunctionDef, ast.ClassDef))}
    reached = {function} & within.keys()
    left: list[ast.stmt] = [each for each in whole.body if not isinstance(each, (ast.FunctionDef, ast.ClassDef))]
    left += [within[each] for each in reached]
    while left:
        for part in ast.walk(left.pop()):
            if isinstance(part, ast.Call) and ast.unparse(part.func) in loading:
                return True
            if isinstance(part, ast.Name) and part.id in within and part.id not in reached:
                reached.add(part.id)
                left.append(within[part.id])
    return False
