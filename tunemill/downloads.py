"""The figures behind the page's plots and tables, as CSV inside the page itself: links that need no network and no script.

Pure, no I/O.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from tunemill import compressed, lineage, phases, verdicts
from tunemill.findings import Estimate, Json
from tunemill.material import Material

UNTOUCHED = ",:;@/=+$!*()'-._~"
"""Characters of a CSV that a URL may carry as they are; everything else is escaped."""


class Download(NamedTuple):
    """A file that a link carries."""

    name: str
    about: str
    rows: int
    href: str


def download(name: str, about: str, rows: Iterable[Mapping[str, Any]]) -> Download | None:
    """Rows as a CSV file in a link; None where there are no rows.

    Args:
        name: of the file.
        about: what is in it, in words.
        rows: column → value; the columns are those of the first row, and None is an empty field.
    """
    table = list(rows)
    if not table:
        return None
    return Download(name, about, len(table), "data:text/csv;charset=utf-8," + quote(to_csv(table), safe=UNTOUCHED))


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV as RFC 4180 has it, but with plain line ends; floats with six digits that say something."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


# ── the figures of a run ───────────────────────────────────────────────────────────────────────────────────────────────


def files(material: Material) -> dict[str, Download]:
    """Key → the figures behind a part of the page."""
    told = material.comparison
    small = compressed.compressed(material.compress)
    told_variants = small.variants if small else ()
    found = {
        "criteria": download(
            "criteria.csv", "the scope’s criteria", (_criterion(each) for each in verdicts.criteria(material))
        ),
        "scores": download(
            "scores.csv",
            "every candidate’s and baseline’s value of every metric",
            (
                {"candidate": name, "metric": each, **_ends(entry, "value")}
                for name, scores in told.get("candidates", {}).items()
                for each, entry in scores.items()
            ),
        ),
        "differences": download(
            "differences.csv",
            "every paired difference",
            (
                {"a": pair["a"], "b": pair["b"], "metric": pair["metric"], **_ends(pair, "diff")}
                | {key: pair.get(key) for key in ("p", "p_holm", "minimum_detectable", "verdict")}
                for pair in told.get("pairs", ())
            ),
        ),
        "categories": download(
            "categories.csv",
            "every candidate in HELM’s categories",
            (
                {"candidate": name, "category": each, "metric": entry["metric"], **_ends(entry, "value")}
                for name, entries in (told.get("categories") or {}).items()
                for each, entry in entries.items()
            ),
        ),
        "curves": download(
            "training-curves.csv",
            "loss by step of every training",
            (
                {"stage": each.name, "step": at.step, "loss": at.loss, "validation_loss": at.validation_loss}
                for each in material.trainings
                for at in each.curve
            ),
        ),
        "updates": download("ppo-updates.csv", "every update of PPO", _of_runs(material, "curve")),
        "monitor": download("ppo-monitor.csv", "every look of the monitor", _of_runs(material, "monitor")),
        "variants": download("variants.csv", "every smaller variant and its parent", map(_variant, told_variants)),
        "costs": download(
            "stages.csv",
            "time and peak memory of every stage",
            (
                {"stage": each.name, "seconds": each.seconds, "peak_memory_bytes": each.memory, "machine": each.machine}
                for each in phases.stage_costs(material)
            ),
        ),
        "lineage": download(
            "lineage.csv",
            "every stage’s inputs and outputs by hash",
            (
                {"stage": step.name, "what": what, "path": each.path, "hash": each.hash}
                for step in lineage.steps(material.lock or {}, material.candidates)
                for what, things in (("read", step.inputs), ("wrote", step.outputs))
                for each in things
            ),
        ),
    }
    return {name: each for name, each in found.items() if each is not None}


def _ends(entry: Json, key: str) -> dict[str, Any]:
    return {each: entry.get(each) for each in (key, "ci_low", "ci_high", "n")}


def _criterion(of: verdicts.Criterion) -> dict[str, Any]:
    return {
        "criterion": of.name,
        "at_least": None if of.is_most else of.threshold,
        "at_most": of.threshold if of.is_most else None,
        "value": of.shown.value,
        "ci_low": of.shown.low,
        "ci_high": of.shown.high,
        "outcome": of.outcome,
        "shortfall": of.shortfall,
        "unit": of.unit,
    }


def _variant(of: compressed.Variant) -> dict[str, Any]:
    found: dict[str, Any] = {
        "variant": of.name, "made_by": of.made_by, "method": of.method, "runtime": of.runtime, "bytes": of.bytes,
        "parameters": of.parameters, "sparsity": of.sparsity, "memory_bytes": of.memory,
    }  # fmt: skip
    for name in ("decode", "decode_ratio", "prefill", "prefill_ratio", "perplexity", "perplexity_ratio", "quality"):
        shown: Estimate = getattr(of, name)
        found |= {name: shown.value, f"{name}_low": shown.low, f"{name}_high": shown.high}
    return found | {f"frontier_{axis}": lies for axis, lies in of.frontier.items()}


def _of_runs(material: Material, table: str) -> list[dict[str, Any]]:
    # Runs may have measured different things: every column, in the order in which it first comes up.
    rows = [{"candidate": run.candidate, **row} for run in material.optimised for row in getattr(run, table)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column) for column in columns} for row in rows]
