"""`params.yaml` → frozen, validated configuration.

A mistake names file, line, key, value, what is allowed and the nearest key.

Only light imports: a wrong file answers in about a second. YAML 1.2 as DVC reads it, so that `1e-4` is a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from tunemill.errors import UserError, nearest


class Params(BaseModel):
    """Configuration of one stage: frozen, every key known, every field documented by the text under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Candidate(Params):
    """One thing to evaluate."""

    policy: str
    """Folder of the checkpoint or adapter to evaluate."""
    base: str
    """Folder of the model an adapter sits on; the same folder where the policy is a whole model."""


class Candidates(RootModel[dict[str, Candidate]]):
    """What `evaluate`, `efficiency` and `compare` look at: name → checkpoint."""

    model_config = ConfigDict(frozen=True)


class Variants(RootModel[dict[str, Candidate]]):
    """What `variant` and `compress` look at: name → a form of the tuned model, the tuned model itself among them."""

    model_config = ConfigDict(frozen=True)


class Start(Params):
    """What one run of a stage that is off by default works on."""

    model: str
    """Folder of the model it starts from."""


class RawText(Start):
    """What one run of `pretrain` works on."""

    text: str
    """Documents: a JSONL file, or plain text with a blank line between them, a file or a folder of .txt files."""


class Rewarded(Params):
    """What one run works for."""

    reward: str
    """Folder with a reward.json: what stage `reward` writes, or one of recipes/rewards."""


class RewardedStart(Rewarded, Start):
    """What one run of a stage works for, and from."""


class Optimised(Rewarded):
    """What one run of `ppo` works for, and from."""

    policy: str
    """Folder of the model it starts from, which the reward model sits on too."""
    feedback: str
    """What is known of the feedback behind the reward, for the report: a feedback.json."""


class Taught(Params):
    """What one run of `reward` learns."""

    policy: str
    """Folder of the model that the reward model sits on."""
    preferences: str
    """Pairs of answers, as stages `feedback` and `rl_cai` write them: a JSONL file."""
    completions: str
    """The policy's own answers, to see what the reward makes of length: a JSONL file."""


class Constitutional(RewardedStart):
    """What one run of `sl_cai` works on; `reward` is the reward model that picks revisions."""

    constitution: str
    """The principles: a YAML file like constitution.yaml."""


class Labelled(Constitutional):
    """What one run of `rl_cai` works on; `reward` is the reward model that judges, unless another model does."""

    start: str
    """Folder of the model that the reward model sits on."""


class Preferred(Start):
    """What one run of a stage that learns from pairs works on."""

    preferences: str
    """Pairs of answers, as stage `feedback` writes them: a JSONL file."""


class Extra(Params):
    """Stages that run once for each entry, name → what it works on, and not at all without one."""

    pretrain: dict[str, RawText]
    """Runs of `pretrain`."""
    ia3: dict[str, Start]
    """Runs of `ia3`."""
    reward: dict[str, Taught]
    """Runs of `reward`."""
    sl_cai: dict[str, Constitutional]
    """Runs of `sl_cai`."""
    rl_cai: dict[str, Labelled]
    """Runs of `rl_cai`."""
    ppo: dict[str, Optimised]
    """Runs of `ppo`."""
    dpo: dict[str, Preferred]
    """Runs of `dpo`."""
    kto: dict[str, Preferred]
    """Runs of `kto`."""
    grpo: dict[str, RewardedStart]
    """Runs of `grpo`."""
    rloo: dict[str, RewardedStart]
    """Runs of `rloo`."""
    best_of: dict[str, RewardedStart]
    """Runs of `best_of`."""
    distill: dict[str, Candidate]
    """Runs of `distill`: the teacher, a variant of the same name in its section."""
    quantize: dict[str, Candidate]
    """Runs of `quantize`: what is quantized, a variant of the same name in its section."""
    prune: dict[str, Candidate]
    """Runs of `prune`: what is pruned, a variant of the same name in its section."""


class StartFolder(RootModel[str]):
    """The model that `prompt` and the tuning stages start from; dvc.yaml uses it."""

    model_config = ConfigDict(frozen=True)


class AlignStart(Candidate):
    """What alignment starts from, an adapter merged into its base: `feedback` writes it; dvc.yaml uses it."""


class Launch(RootModel[str]):
    """How the tuning stages are started: `python`, or a launcher that starts several processes; dvc.yaml uses it."""

    model_config = ConfigDict(frozen=True)


Section = TypeVar("Section", bound=BaseModel)


Variant = TypeVar("Variant")


def named(variants: Mapping[str, Variant], name: str, where: str) -> Variant:
    """What a section says of the run of this name.

    Args:
        variants: of the section.
        name: of the run under `extra`.
        where: the variants' key, for messages.

    Raises:
        UserError: it says nothing.
    """
    if name not in variants:
        near = nearest(name, variants)
        raise UserError(
            f"no variant '{name}'",
            where=f"params.yaml: {where}",
            expected="one of " + ", ".join(variants) if variants else "a variant of this name",
            fix=f"did you mean '{near}'?" if near else "add it there, or take the run out of `extra`",
            exit_code=2,
        )
    return variants[name]


class ParamsFile:
    """One params file: its values, and the line every key stands in."""

    def __init__(self, path: Path) -> None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                "no such file",
                where=str(path),
                expected="the pipeline's parameters",
                fix="run from the repository's root, or pass --params FILE",
                exit_code=2,
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 (byte {error.start})", where=str(path), exit_code=2) from None
        try:
            loaded = YAML(typ="rt").load(text)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            what = getattr(error, "problem", None) or str(error)
            raise UserError(f"not valid YAML: {what}", where=f"{path}{line}", exit_code=2) from None
        if not isinstance(loaded, dict):
            raise UserError("no sections", where=str(path), expected="one section per stage", exit_code=2)
        self._tree = loaded

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in the file's order."""
        return tuple(str(name) for name in self._tree)

    def values(self, section: str) -> Any:
        """The plain values of one section.

        Raises:
            UserError: the section is missing.
        """
        if section not in self._tree:
            near = nearest(section, self.sections)
            raise UserError(
                f"section '{section}' is missing",
                where=str(self.path),
                expected=f"a section '{section}:'",
                fix=f"is '{near}' meant to be '{section}'?" if near else "restore it from the repository",
                exit_code=2,
            )
        return _plain(self._tree[section])

    def line(self, keys: tuple[str | int, ...]) -> int | None:
        """Line (from 1) of the deepest of `keys` that the file has."""
        node: Any = self._tree
        found: int | None = None
        for key in keys:
            try:
                position = node.lc.data[key]
                found = position[0] + 1
                node = node[key]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return found

    def section(self, name: str, kind: type[Section]) -> Section:
        """One section as a validated configuration.

        Raises:
            UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
        """
        values = self.values(name)
        try:
            # JSON mode with strict types: "5" is no number, but a list is a tuple and a string a path.
            return kind.model_validate_json(json.dumps(values if values is not None else {}), strict=True)
        except ValidationError as error:
            # An unknown key comes first: a misspelt one is missing under its right name too, and here is the cause.
            rank = {"extra_forbidden": 0, "missing": 2}
            found = sorted(error.errors(), key=lambda each: rank.get(each["type"], 1))
            problems = [self._explain(name, kind, item) for item in found]
        if len(problems) == 1:
            raise problems[0]
        # Who shows an error writes "error: " before it: each of several begins alike.
        raise UserError("\nerror: ".join(map(str, problems)), exit_code=2)

    def _explain(self, name: str, kind: type[BaseModel], error: Any) -> UserError:
        # Pydantic puts the names of union members and validators into `loc`; only keys of the file are shown.
        loc, node, kinds = error["loc"], self._tree[name], [kind]
        keys: list[str | int] = [name]
        for key in loc:
            there = isinstance(node, dict) and key in node
            if there or not any(_is_tag(each, key) for each in kinds):
                keys.append(key)
                node = node[key] if there or (isinstance(node, list) and key in range(len(node))) else None
            # A name of the user's may be a tag too: that it is in the file tells them apart, and it leaves all kinds.
            if not there or any(issubclass(each, RootModel) or key in each.model_fields for each in kinds):
                kinds = _step(kinds, key)
        line = self.line(tuple(keys))
        dotted = ".".join(map(str, keys))
        where = f"{self.path}:{line}: {dotted}" if line else f"{self.path}: {dotted}"
        value = json.dumps(error.get("input"), default=str)
        value = value if len(value) <= 80 else value[:77] + "..."
        if error["type"] == "extra_forbidden":
            known = _fields_at(kind, error["loc"][:-1])
            near = nearest(str(error["loc"][-1]), known)
            return UserError(
                f"unknown key (value {value})",
                where=where,
                expected="one of " + ", ".join(sorted(known)),
                fix=f"did you mean '{near}'?" if near else "remove it",
                exit_code=2,
            )
        if error["type"] == "missing":
            field = _field_at(kind, error["loc"])
            return UserError("missing", where=where, expected=_describe(field), fix="add the key", exit_code=2)
        field = _field_at(kind, error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        expected = f"{message[:1].lower()}{message[1:]}"
        described = _describe(field)
        return UserError(
            f"{value} is not allowed",
            where=where,
            expected=f"{expected}: {described}" if described else expected,
            exit_code=2,
        )


def _plain(node: Any) -> Any:
    """Ruamel's annotated containers and numbers as plain Python values."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configuration types an annotation mentions, through Optional, dict, tuple and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in getattr(annotation, "__args__", ()):
        found += _models_in(part)
    return found


def _walk(kind: type[BaseModel], loc: tuple[str | int, ...]) -> list[type[BaseModel]]:
    kinds = [kind]
    for key in loc:
        kinds = _step(kinds, key)
    return kinds


def _step(kinds: list[type[BaseModel]], key: str | int) -> list[type[BaseModel]]:
    """What may stand under a key, of what may stand here."""
    below: list[type[BaseModel]] = []
    for each in kinds:
        if issubclass(each, RootModel):
            below += _models_in(each.model_fields["root"].annotation)
        elif key in each.model_fields:
            below += _models_in(each.model_fields[str(key)].annotation)
    # A key that is no field is an entry of a dict, a list index, or a union's tag, which leaves one kind.
    return below or [each for each in kinds if _is_tag(each, key)] or kinds


def _is_tag(kind: type[BaseModel], key: str | int) -> bool:
    """Whether a discriminated union knows `kind` by this value (`source: wheel`); what is a field's name is that field."""
    return key not in kind.model_fields and any(
        get_origin(field.annotation) is Literal and key in get_args(field.annotation)
        for field in kind.model_fields.values()
    )


def _fields_at(kind: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    return [name for each in _walk(kind, loc) for name in each.model_fields]


def _field_at(kind: type[BaseModel], loc: tuple[str | int, ...]) -> Any:
    for each in _walk(kind, loc[:-1]):
        field = each.model_fields.get(str(loc[-1])) if loc else None
        if field is not None:
            return field
    return None


def _describe(field: Any) -> str:
    return " ".join((field.description or "").split()) if field is not None else ""
