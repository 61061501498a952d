"""A user's own pairs, on any topic, replace the corpus by one entry of params.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.e2e import checkout

pytestmark = pytest.mark.e2e

DISHES = ["soup", "bread", "stew", "salad", "pie", "curry", "porridge", "omelette", "dumplings", "noodles"]
PLACES = ["a village by the sea", "the mountains", "an old harbour town", "the plains", "a river delta"]
ACTS = ["boil the water slowly", "chop the onions", "knead the dough", "roast the spices", "peel the roots"]


def pairs() -> list[dict[str, str]]:
    rows = []
    for at in range(150):
        dish, place, act = DISHES[at % 10], PLACES[at % 5 - at % 3], ACTS[(at * 7) % 5]
        rows.append(
            {
                "prompt": f"Name dish number {at}.\n\nIn {place} people {act} {at % 11 + 2} times before noon, and then they "
                f"add {at * 13 % 97} grams of salt, {at * 31 % 89} leaves, and cook {dish} for {at * 17 % 83} minutes.",
                "completion": f"{dish.capitalize()} number {at} with {at * 31 % 89} leaves",
            }
        )
    return rows


def test_own_jsonl_runs_through_the_whole_pipeline(tmp_path: Path) -> None:
    place = checkout.make(tmp_path, more=checkout.FEW)
    (place / "dishes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    yaml = YAML()
    params = yaml.load((place / "params.yaml").read_text())
    params["collect"]["examples"] = {"source": "file", "path": "dishes.jsonl", "sha256": ""}
    with (place / "params.yaml").open("w") as file:
        yaml.dump(params, file)

    # The error says what to paste.
    refused = checkout.run(place, "dvc", "repro", "collect", check=False)
    assert refused.returncode != 0
    import hashlib

    right = hashlib.sha256((place / "dishes.jsonl").read_bytes()).hexdigest()
    assert right in refused.stdout + refused.stderr
    params["collect"]["examples"]["sha256"] = right
    with (place / "params.yaml").open("w") as file:
        yaml.dump(params, file)

    with checkout.warmed(place) as warm:
        checkout.run(place, "dvc", "repro", "report", **warm)
    comparison = json.loads((place / "reports/comparison.json").read_text())
    assert comparison["candidates"]["lora"]["rouge1"]["n"] >= 20
    assert "dish" in (place / "artifacts/evaluate/lora/instances.jsonl").read_text()
    assert "<html" in (place / "reports/report.html").read_text()
