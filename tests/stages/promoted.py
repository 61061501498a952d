"""A checkout with made-up artifacts in which the stage `promote` decides, and the registry finds what it reads."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages import promote
from tests import report_artifacts
from tunemill import checkpoints
from tunemill.log import Log

CONFIG = promote.Config(candidate="lora", model=None, champion_margin=1.0, weights_mib=64, language=("en",))
RULE = report_artifacts.CRITERION
TWO = {"base": 0.0, "lora": 10.0}
CARD = "---\nlicense: Apache-2.0\nbase_model: some-model==1.2\n---\n\n# A card\n"
FILES = ["README.md", "decision.json", "scores.jsonl"]


def prepare(root: Path, lifts: Mapping[str, float] = TWO, count: int = 60, weights: bytes = b"adapter") -> None:
    """Write what the stage reads: everything that the report reads, and the weights of two candidates.

    Args:
        root: the checkout.
        lifts: candidate → points of ROUGE-1 above the level of the texts.
        count: test items.
        weights: of the adapter.
    """
    report_artifacts.write(root, dict(lifts), count=count, groups=12)
    shutil.rmtree(root / "artifacts/promote")  # what these tests make themselves
    base, adapter = root / "artifacts/select/model", root / "artifacts/lora/adapter"
    for folder, files in (
        (base, {"config.json": b"{}", "model.safetensors": b"base", "README.md": CARD.encode()}),
        (adapter, {"adapter_config.json": b"{}", "adapter_model.safetensors": weights, "README.md": CARD.encode()}),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    (root / "artifacts/efficiency/efficiency.json").write_text(json.dumps(efficiency(lifts)))
    evaluated(root, "lora", adapter, base)
    evaluated(root, "base", base)


def efficiency(names: Iterable[str]) -> dict[str, Any]:
    """efficiency.json as the stage writes it: five rounds, the second candidate at about 0.9 times the first one's speed."""
    wobble = (1.0, 0.97, 1.04, 1.01, 0.99)
    samples = {
        name: [
            {
                "decode_tokens_per_second": 20.0 * each * 0.9**at,
                "batch_decode_tokens_per_second": 40.0 * each * 0.9**at * (1 + 0.01 * number),
                "prefill_tokens_per_second": 400.0 * each,
                "first_token_seconds": 0.3 / each * (1 + 0.02 * number * at),
                "joules_per_token": None,
            }
            for number, each in enumerate(wobble if at == 0 else reversed(wobble))
        ]
        for at, name in enumerate(names)
    }
    table = {
        name: {
            **{field: sum(row[field] for row in rows) / len(rows) for field in rows[0] if rows[0][field]},
            "joules_per_token": None,
            "memory_bytes": (1000 + at) * 2**20,
            "disk_bytes": (256 + 10 * at) * 2**20,
        }
        for at, (name, rows) in enumerate(samples.items())
    }
    about = {"reference": "base", "rounds": 5, "device": "cpu", "dtype": "float32", "threads": 2}
    return {"candidates": table, "samples": samples, **about}


def evaluated(root: Path, name: str, *folders: Path) -> None:
    """Say that these weights are what was evaluated."""
    path = root / f"artifacts/evaluate/{name}/scores.json"
    scores = json.loads(path.read_text())
    text = "\n".join(map(checkpoints.tree_hash, folders))
    scores["policy_hash"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps(scores))


def decide(root: Path, rules: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, float | None]:
    """Run the stage in `root`, which must be the working directory, and leave params.yaml and dvc.lock as DVC would.

    Args:
        root: the checkout.
        rules: the scope's criteria, where they are others than the made-up ones.
        changes: of the section `promote`, and of the stage's inputs.
    """
    scope = report_artifacts.scope()
    scope |= {"criteria": rules} if rules is not None else {}
    (root / "artifacts/scope/scope.json").write_text(json.dumps(scope))
    cfg = CONFIG.model_copy(update={key: value for key, value in changes.items() if key in promote.Config.model_fields})
    names = [each.name for each in (root / "artifacts/evaluate").iterdir()]
    candidates = report_artifacts.candidates(sorted(names))
    inputs: dict[str, Any] = {
        "scope": Path("artifacts/scope"),
        "data": Path("artifacts/validate"),
        "select": Path("artifacts/select"),
        "evaluations": Path("artifacts/evaluate"),
        "efficiency": Path("artifacts/efficiency"),
        "comparison": Path("reports/comparison.json"),
        "timings": Path("metrics"),
        "lock": Path("dvc.lock"),
        "candidates": candidates,
        "out": Path("artifacts/promote"),
    }
    inputs |= {key: value for key, value in changes.items() if key in inputs or key == "compress"}
    found = promote.run(cfg, **inputs, log=Log())
    params = {"scope": scope, "promote": cfg.model_dump(mode="json"), "candidates": candidates.model_dump(mode="json")}
    (root / "params.yaml").write_text(json.dumps(params))  # JSON is YAML
    lock = json.loads((root / "dvc.lock").read_text())
    lock["stages"]["scope"]["params"] = {"params.yaml": {"scope": scope}}
    lock["stages"]["promote"] = {
        "cmd": "python -m stages.promote",
        "deps": [{"path": "reports/comparison.json", "md5": "c0"}],
        "params": {"params.yaml": {name: params[name] for name in ("promote", "candidates")}},
        "outs": [{"path": "artifacts/promote", "md5": "p0.dir"}],
    }
    (root / "dvc.lock").write_text(json.dumps(lock))
    return dict(found)


def decision(root: Path) -> dict[str, Any]:
    """decision.json."""
    found: dict[str, Any] = json.loads((root / "artifacts/promote/decision.json").read_text(encoding="utf-8"))
    return found
