"""Judge: a language model says which of two answers is better, asked in both orders; off unless params say who judges.

    python -m stages.judge --evaluations artifacts/evaluate

Every candidate's answers stand against those of one of them, item by item (Zheng et al. 2023, "Judging LLM-as-a-judge").
A candidate wins an item where the judge prefers it over both orders (`tunemill.judging`); orders that contradict each other
make a tie, and how far the judge prefers whatever stands first is reported as its position bias. Equal answers are a tie that
nobody is asked about. Answers that name no label are counted as unusable, and their items left out of the win rate.

With an endpoint as the judge this stage reaches outside and reads a variable of the environment (the key), as no stage does beside
`collect`, `select`, and `evaluate` where benchmarks of a hub are named: because the user turned it on. Prompts and answers are
sent there. What an endpoint says may differ from run to run; a local judge always says the same.

Writes judge.json ({"model": null} where nobody judges) and judgements.jsonl, a row for each candidate and item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tunemill import checkpoints, endpoints, feedback, heldout, judging, models, records, statistics
from tunemill.errors import UserError
from tunemill.feedback import Answer
from tunemill.judging import Judgement
from tunemill.log import Log
from tunemill.params import Candidates, Params
from tunemill.runtime import Runtime, RuntimeParams, resolve, set_threads
from tunemill.stage import Metrics, main

LEVEL = 0.95


class Config(Params):
    """Who judges what."""

    model: Literal["none", "folder", "endpoint"]
    """Who judges: nobody, the model in `folder`, or the one behind `endpoint`."""
    folder: str = Field(min_length=1)
    """A whole model in the standard form; dvc.yaml depends on it."""
    endpoint: endpoints.Endpoint
    """A model behind an OpenAI-compatible endpoint."""
    against: str
    """The candidate that each of the others is compared with."""
    seed: int = Field(ge=0)
    """Of the choice of items and of the resamples."""
    items: int = Field(ge=0)
    """Test items to judge, every group with its share; 0 takes all."""
    criterion: str = Field(min_length=1)
    """What makes an answer the better one: `{criterion}` in the template."""
    template: judging.Template
    """The question, with `{prompt}`, `{first}`, `{second}` and `{criterion}`; it asks for (A) or (B)."""
    margin: float = Field(ge=0, lt=0.5)
    """A preference closer to one half than this is a tie."""
    metric: Literal["rouge1", "rouge2", "rougeL"]
    """How often the judge prefers the answer that has more of it is reported."""
    resamples: int = Field(ge=1000, le=1_000_000)
    """Bootstrap resamples."""
    min_groups: int = Field(ge=statistics.FEWEST)
    """Fewest groups whose resampling gives an interval to rely on; below, items are resampled."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a local judge's batch, padding included."""
    batch_rows: int = Field(ge=1)
    """Most questions in such a batch."""


def run(
    cfg: Config,
    *,
    evaluations: Path,
    candidates: Candidates,
    out: Path,
    work: Path,
    runtime: RuntimeParams,
    log: Log,
) -> Metrics:
    """Ask the judge about every candidate, and write everything under `out`."""
    if cfg.model == "none":
        log.note("off: judge.model is none")
        checkpoints.write_json(out / "judge.json", {"model": None})
        records.write_objects(out / "judgements.jsonl", [])
        return {}

    # 1. The same items of every candidate.
    others = [name for name in candidates.root if name != cfg.against]
    if cfg.against not in candidates.root or not others:
        raise UserError(
            f"'{cfg.against}' is no candidate" if others else "no candidate to compare it with",
            where="params.yaml: judge.against",
            expected="one of " + ", ".join(candidates.root) if others else "two candidates or more",
            exit_code=2,
        )
    rows = {
        name: [row for _, row in records.read_objects(evaluations / name / "instances.jsonl")]
        for name in candidates.root
    }
    heldout.same_items(rows, "group")
    first = rows[cfg.against]
    chosen = statistics.stratified([row["id"] for row in first], [row["group"] for row in first], cfg.items, cfg.seed)
    items = {name: [found[index] for index in chosen] for name, found in rows.items()}
    log.note(f"{len(chosen)} of {len(first)} items, {', '.join(others)} against {cfg.against}")

    # 2. Two questions for each item of each candidate: it stands first, it stands second. None where there is nothing to ask.
    questions = {
        name: [
            None if alike(a, b) else both_orders(cfg.template, cfg.criterion, a, b)
            for a, b in zip(items[name], items[cfg.against], strict=True)
        ]
        for name in others
    }

    # 3. Ask.
    prompts = [each for found in questions.values() for orders in found for each in orders or ()]
    judge, answered = ask(cfg, prompts, work, runtime, log)
    answers = dict(zip(prompts, answered, strict=True))

    # 4. Both orders make a judgement, the usable judgements a win rate with its interval.
    written: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    everything: list[tuple[Judgement, str]] = []
    grouped = len({row["group"] for row in items[cfg.against]}) >= cfg.min_groups
    for name in others:
        usable: list[tuple[Judgement, str, float | None]] = []
        asked: list[Answer] = []
        for a, b, orders in zip(items[name], items[cfg.against], questions[name], strict=True):
            told = [answers[each] for each in orders or ()]
            asked += told
            found = judged(told, cfg.margin)
            written.append(row_of(name, cfg.against, a, told, found))
            if found is not None:
                scores = [each["scores"][cfg.metric] for each in (a, b)]
                more = None if None in scores else scores[0] - scores[1]
                usable.append((found, a["group"] if grouped else a["id"], more))
        everything += [(found, group) for found, group, _ in usable]
        pairs.append({"a": name, "b": cfg.against, **summary(usable, asked, cfg.resamples, cfg.seed)})

    # 5. Holm's correction over the candidates, then the verdicts.
    for pair, p_holm in zip(pairs, statistics.holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = p_holm
        pair["verdict"] = verdict(pair)
        log.note(sentence(pair))

    # 6. The judge itself, over all it was asked.
    itself = judging.tally(
        [found for found, _ in everything],
        [group for _, group in everything],
        resamples=cfg.resamples,
        seed=cfg.seed,
        level=LEVEL,
    )
    masses = [each.mass for each in answered if each.mass is not None]
    overall = {
        "position_bias": itself.position_bias.value,
        "position_bias_low": itself.position_bias.low,
        "position_bias_high": itself.position_bias.high,
        "contradictory": itself.contradictory,
        "unusable": sum(each.p is None for each in answered) / len(answered) if answered else None,
        "label_mass": sum(masses) / len(masses) if masses else None,
    }
    checkpoints.write_json(
        out / "judge.json",
        {
            "model": judge,
            "against": cfg.against,
            "criterion": cfg.criterion,
            "items": len(chosen),
            "groups": len({row["group"] for row in items[cfg.against]}),
            "method": "cluster" if grouped else "item",
            "level": LEVEL,
            "margin": cfg.margin,
            "metric": cfg.metric,
            "resamples": cfg.resamples,
            "questions": len(prompts),
            **overall,
            "pairs": pairs,
        },
    )
    records.write_objects(out / "judgements.jsonl", written)
    return overall | {f"{pair['a']}/{key}": pair[key] for pair in pairs for key in NUMBERS}


def alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two answers are the same text."""
    return bool(a["prediction"] == b["prediction"])


def both_orders(template: str, criterion: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, str]:
    """The questions with a's answer first and with b's answer first."""
    one, two = (
        judging.fill(
            template, prompt=a["prompt"], first=first["prediction"], second=second["prediction"], criterion=criterion
        )
        for first, second in ((a, b), (b, a))
    )
    return one, two


def ask(
    cfg: Config, prompts: Sequence[str], work: Path, runtime: RuntimeParams, log: Log
) -> tuple[dict[str, Any], list[Answer]]:
    """(who the judge is, its answers).

    Raises:
        UserError: there is no whole model in the folder; the endpoint refuses or does not answer.
    """
    if cfg.model == "endpoint":
        key = endpoints.key_of(cfg.endpoint, "judge.endpoint")
        log.note(f"asking {cfg.endpoint.model} at {cfg.endpoint.base_url}: prompts and answers are sent there")
        told = feedback.by_endpoint(
            cfg.endpoint,
            key,
            prompts,
            kept=work / "answers.jsonl",
            where="judge.endpoint",
            title="ask the judge",
            log=log,
        )
        return {"kind": "endpoint", "name": cfg.endpoint.model, "base_url": cfg.endpoint.base_url}, told
    folder = Path(cfg.folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no whole model in '{folder}'",
            where="params.yaml: judge.folder",
            expected="a folder with config.json, safetensors weights and a tokenizer",
            fix="an adapter judges once it is merged into its model" if models.is_adapter(folder) else "",
            exit_code=2,
        )
    machine = local_runtime(runtime, work)
    fingerprint = checkpoints.tree_hash(folder)
    model, tokenizer = models.load_policy(folder, folder, machine)
    # Another model, or another machine, says something else: it has a journal of its own.
    name = hashlib.blake2b(f"{fingerprint} {machine}".encode(), digest_size=8).hexdigest()
    told = feedback.by_model(
        model,
        tokenizer,
        prompts,
        kept=work / f"answers-{name}.jsonl",
        batch_tokens=cfg.batch_tokens,
        batch_rows=cfg.batch_rows,
        log=log,
    )
    return {"kind": "folder", "name": cfg.folder, "hash": fingerprint}, told


def local_runtime(runtime: RuntimeParams, work: Path) -> Runtime:
    """Device and number format, found out only where a model runs here: that imports torch."""
    set_threads(runtime.threads)
    return resolve(runtime, work / "machine.json")


def judged(told: Sequence[Answer], margin: float) -> Judgement | None:
    """The judgement that two answers of the judge make; None where one is unusable. No answers: nothing to ask."""
    if not told:
        return judging.IDENTICAL
    a_first, b_first = (each.p for each in told)
    return None if a_first is None or b_first is None else judging.judgement(a_first, b_first, margin)


def row_of(
    name: str, against: str, item: Mapping[str, Any], told: Sequence[Answer], found: Judgement | None
) -> dict[str, Any]:
    """The row of judgements.jsonl."""
    a_first, b_first = told or (None, None)
    return {
        "id": item["id"],
        "group": item["group"],
        "a": name,
        "b": against,
        "outcome": found.outcome if found else None,
        "p": found.p if found else None,
        "a_first": a_first.p if a_first else None,
        "b_first": b_first.p if b_first else None,
        "position_bias": found.position_bias if found else None,
        "contradictory": found.contradictory if found else None,
        "identical": not told,
        "said": [each.said for each in told if each.said is not None],
    }


NUMBERS = (
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "p",
    "n",
    "wins",
    "ties",
    "losses",
    "identical",
    "position_bias",
    "contradictory",
    "unusable",
    "agreement",
    "agreement_n",
)
"""What of a pair goes among the metrics."""


def summary(
    usable: Sequence[tuple[Judgement, str, float | None]], asked: Sequence[Answer], resamples: int, seed: int
) -> dict[str, Any]:
    """One candidate's figures; null with a reason where one is undefined.

    Args:
        usable: (judgement, group, how much more of the metric the candidate has).
        asked: the judge's answers about this candidate.
        resamples: bootstrap resamples.
        seed: of the resamples.
    """
    found = [each for each, _, _ in usable]
    tally = judging.tally(found, [group for _, group, _ in usable], resamples=resamples, seed=seed, level=LEVEL)
    agreement, of = judging.agreement(found, [more for _, _, more in usable])
    reason = {}
    if tally.win_rate.value is None:
        reason = {"reason": "no item has two usable answers of the judge"}
    elif tally.win_rate.low is None:
        reason = {"reason": statistics.no_interval(tally.clusters)}
    return {
        "win_rate": tally.win_rate.value,
        "win_rate_low": tally.win_rate.low,
        "win_rate_high": tally.win_rate.high,
        "p": tally.p,
        "p_holm": None,
        "n": tally.n,
        "wins": tally.wins,
        "ties": tally.ties,
        "losses": tally.losses,
        "identical": tally.identical,
        "position_bias": tally.position_bias.value,
        "contradictory": tally.contradictory,
        "unusable": sum(each.p is None for each in asked) / len(asked) if asked else None,
        "agreement": agreement,
        "agreement_n": of,
        **reason,
    }


def verdict(pair: Mapping[str, Any]) -> statistics.Verdict:
    """What may be said of a against b: its win rate against one half."""
    low, high = (None if pair[end] is None else pair[end] - 0.5 for end in ("win_rate_low", "win_rate_high"))
    return statistics.verdict(statistics.Comparison(None, low, high, pair["p"]), pair["p_holm"], LEVEL)


def sentence(pair: Mapping[str, Any]) -> str:
    """One pair in words."""
    start = f"{pair['a']} against {pair['b']}: "
    if pair["win_rate"] is None:
        return start + str(pair["reason"])
    between = "" if pair["win_rate_low"] is None else f" [{pair['win_rate_low']:.0%}, {pair['win_rate_high']:.0%}]"
    return f"{start}wins {pair['win_rate']:.0%}{between} of {pair['n']} (ties half: {pair['ties']}), {pair['verdict']} to this judge"


if __name__ == "__main__":
    main(run)
