"""A tiny model whose answers end, a small constitution, prompts, and the stages of Constitutional AI run on them."""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.chat_server import Asked, Sent, completion
from tests.stages import tuned
from tunemill import journal, models, records
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.records import Example, HarmlessPrompt, Preference, RedTeamPrompt

CONSTITUTION = """\
principles:
  kind:
    prompts: [red_team]
    critique: "CRITIQUE what is wrong"
    revision: "REVISE it"
    comparison: "which is better"
  brief:
    prompts: [harmless, task]
    critique: "CRITIQUE what is long"
    revision: "REVISE it to be short"
    comparison: "which is shorter"
examples: {critiques: [], comparisons: []}
templates:
  critique: "{request}"
  revision: "{request} now"
  comparison: "{prompt} #1# {first} #2# {second} #3# {criterion}"
  thought: "{prompt} #1# {first} #2# {second} #3# {criterion} THINK"
  verdict: "SO which"
"""
"""One principle for each kind of prompt, and marks that a test's server can go by."""


def prepare(place: Path, family: str = "decoder-only") -> None:
    """Write a model, a constitution, red-team prompts, everyday questions and training pairs."""
    ending(place / "model", family)
    (place / "constitution.yaml").write_text(CONSTITUTION)
    words = ["value", "name", "key", "type", "object", "class", "function", "method"]
    texts = [f"{one} the {other}" for one in ("read", "delete") for other in words]
    rows = [RedTeamPrompt(records.row_id(each), each, "instruction", "made", None) for each in texts]
    rows.append(RedTeamPrompt("f" * 12, "a text to go on from", "continuation", "made", None))
    records.write(place / "prompts.jsonl", rows)
    questions = [f"what is a {word}" for word in words]
    records.write(place / "harmless.jsonl", [HarmlessPrompt(records.row_id(q), q, (), "asked") for q in questions])
    pairs = [
        Example(f"{at:012x}", f"summarize the {word}", f"return a {word}", "g", None, f"docs:{at}")
        for at, word in enumerate(words)
    ]
    records.write(place / "train.jsonl", pairs)


def ending(folder: Path, family: str) -> None:
    """A random model that ends after a few tokens as often as not: what says "end" in its head is made loud."""
    import torch

    from tunemill.runtime import Runtime

    models.make_random(folder, 2, 64 if family == "decoder-only" else 32, 3, "float32", family)  # type: ignore[arg-type]
    model, tokenizer = models.load_policy(folder, folder, Runtime("cpu", "float32", 2))
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[tokenizer.eos_token_id] *= 4.0
        if family == "encoder-decoder":  # whose head is so loud that it would end at once, or never
            weight *= 0.25
    models.save(model, tokenizer, folder, "float32")


def config(stage: str, **change: Any) -> Any:
    """The values of params.yaml for a tiny model, and what `change` says; of `critic` or `judge` just what differs."""
    module: Any = importlib.import_module(f"stages.{stage}")
    values = ParamsFile(tuned.ROOT / "params.yaml").section(stage, module.Config).model_dump()
    source = "critic" if stage == "sl_cai" else "judge"
    asked = change.pop(source, {})
    endpoint = {"retries": 1, "concurrency": 1, "timeout_seconds": 20.0} | asked.pop("endpoint", {})
    values[source] |= asked | {"endpoint": values[source]["endpoint"] | endpoint}
    few: dict[str, Any] = {"batch_rows": 8}
    if stage == "sl_cai":
        few |= {
            "prompts": {"red_team": 8, "harmless": 2, "task": 2},
            "helpful": {"harmless": 3, "task": 2},
            "answer_tokens": 8,
            "critique_tokens": 8,
            "revision_tokens": 8,
            "pick": False,
            "steps": 3,
            "batch_size": 4,
            "checkpoint_steps": 1,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "rank": 2,
            "store_dtype": "float32",
        }
    else:
        few |= {"prompts": 6, "max_new_tokens": 8, "thought_tokens": 6, "resamples": 200}
    return module.Config.model_validate(values | few | change)


def run(
    stage: str,
    place: Path,
    out: Path,
    *,
    log: Log | None = None,
    inputs: Mapping[str, Path | None] | None = None,
    **change: Any,
) -> dict[str, float | None]:
    """Run a stage; its journals and checkpoints are beside `out`, and are there again when it is run again."""
    module: Any = importlib.import_module(f"stages.{stage}")
    work = out.with_name(f"{out.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    read: dict[str, Path | None] = {
        "constitution": place / "constitution.yaml",
        "model": place / "model",
        "prompts": place / "prompts.jsonl",
    }
    if stage == "sl_cai":
        read |= {"harmless": place / "harmless.jsonl", "train": place / "train.jsonl"}
    cfg = config(stage, **change)
    found = module.run(cfg, **{**read, **(inputs or {})}, out=out, work=work, runtime=tuned.CPU, log=log or Log())
    return dict(found)


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [each for _, each in records.read_objects(path)]


def told(path: Path) -> Any:
    """What a JSON file has."""
    return json.loads(path.read_text(encoding="utf-8"))


def people(place: Path, pairs: list[tuple[str, str, str]], weight: float = 1.0) -> Path:
    """Write pairs that people compared: (prompt, the better answer, the other one), each prompt a group."""
    found = [
        Preference(records.row_id(*each), *each, 1.0, weight, records.row_id(each[0]), "ratings") for each in pairs
    ]
    path = place / "people.jsonl"
    records.write(path, found)
    return path


# ── kills ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def killed_at(label: str, step: int = 0) -> Log:
    """A log that is interrupted at a step of what is being done, or 0: at its beginning."""
    log, begun = Log(), [""]
    start = log.start

    def watch(doing: str, *given: Any, **more: Any) -> None:
        begun.append(doing)
        if doing == label and not step:
            raise KeyboardInterrupt
        start(doing, *given, **more)

    def listen(now: int, _: dict[str, float]) -> None:
        if begun[-1] == label and now == step:
            raise KeyboardInterrupt

    log.start, log.listener = watch, listen  # type: ignore[method-assign, assignment]
    return log


def generated(monkeypatch: Any) -> list[str]:
    """Whatever journals are told from now on, one name of a journal for each entry."""
    names: list[str] = []
    append = journal.append

    def listen(path: Path, entry: dict[str, Any]) -> None:
        append(path, entry)
        names.append(path.name)

    monkeypatch.setattr(journal, "append", listen)
    return names


# ── endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


def last(asked: Asked) -> str:
    """What the user said last."""
    return str(asked.body["messages"][-1]["content"])


def conversation(asked: Asked) -> str:
    """All that was said, as one text."""
    return json.dumps(asked.body["messages"])


def critic(asked: Asked, number: int) -> Sent:
    """Criticises, and revises: to other words for each conversation."""
    digits = hashlib.sha256(conversation(asked).encode()).hexdigest()
    words = " ".join(digits[at : at + 4] for at in range(0, 20, 4))
    assert last(asked).startswith(("CRITIQUE", "REVISE"))
    return completion(f"wrong {words}" if last(asked).startswith("CRITIQUE") else f"better {words}")


def shown(text: str) -> tuple[str, str]:
    """The two answers in a comparison, or a thought."""
    first, _, rest = text.partition(" #1# ")[2].partition(" #2# ")
    return first, rest.partition(" #3# ")[0]


def prefers(better: Callable[[str, str], bool]) -> Callable[[Asked, int], Sent]:
    """A judge that says "(A)" where `better(first, second)`."""

    def answer(asked: Asked, number: int) -> Sent:
        if last(asked).endswith("THINK"):
            return completion("the words tell")
        return completion("(A)" if better(*shown(asked.text)) else "(B)")

    return answer


def nowhere() -> str:
    """The address of nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"
