"""What a run comes to in five lines, and the one sentence that each chapter of the report begins with.

Every line is made from the artifacts and says what they lack; none of it is praise. Pure, no I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from tunemill import adaptation, aligned, categories, compressed, constitutional, lineage, phases
from tunemill.findings import difference, estimate, metric
from tunemill.material import Material, reference
from tunemill.metrics import of_items
from tunemill.verdicts import Criterion, criteria, decision, decisive, verdict
from tunemill.wording import duration, number, plural, share, signed, size, visible


class Line(NamedTuple):
    """One line of the summary."""

    label: str
    text: str


def lines(material: Material, group: str) -> tuple[Line, ...]:
    """What was asked, what was decided, how much better it is, what it costs, what is not known.

    Args:
        material: the artifacts.
        group: what the data's groups are, in the singular.
    """
    return (
        Line("Asked", visible(str(material.scope["task"]))),
        Line("Verdict", _decided(material)),
        Line("Better by", _gained(material, group)),
        Line("Costs", _costs(material)),
        Line("Not known", _unknown(material)),
    )


# ── the five lines ────────────────────────────────────────────────────────────────────────────────────────────────


def _decided(material: Material) -> str:
    found, told = criteria(material), decision(material)
    least = decisive(found)
    count = f"{sum(each.outcome == 'met' for each in found)} of {plural(len(found), 'criterion')}"
    if told is None:
        if least is None:
            return "Nothing was promoted: stage promote did not run, and the scope names no criterion."
        return f"{_met(found)}{_narrow(least)}. Stage promote did not run, so nothing was promoted."
    name, _, is_promoted = told
    if least is None:
        return f"{name} is {'promoted' if is_promoted else 'refused'}: the scope names no criterion."
    if is_promoted:
        return f"{name} is promoted: {_met(found)}{_narrow(least)}."
    short = "" if least.shortfall is None else f", {least.said(least.shortfall).lstrip('+')} short"
    return f"{name} is refused with {count} met. Decisive: {least.name}, {least.measured} where {least.asked} was asked{short}."


def _met(found: list[Criterion]) -> str:
    met = sum(each.outcome == "met" for each in found)
    return (
        f"all {plural(met, 'criterion')} met"
        if met == len(found)
        else f"{met} of {plural(len(found), 'criterion')} met"
    )


def _narrow(least: Criterion) -> str:
    how = "most narrowly" if least.outcome == "met" else "not"
    return f", {how} {least.name}: {least.measured} where {least.asked} was asked"


def _gained(material: Material, group: str) -> str:
    told = verdict(material)
    who = told.leader
    name = metric(told.metric)
    own = estimate(material.comparison.get("candidates", {}).get(who, {}).get(told.metric))
    items = "" if not told.items else f" on {plural(told.items, 'held-out item')}"
    if told.items and told.groups and told.groups > 1:
        items += f" from {plural(told.groups, group)}"
    if who == told.reference:
        return f"{who} is the reference itself, at {number(own.value)} {name.unit} of {name.label}{items}: nothing else leads."
    gap = difference(material.comparison, who, told.reference, told.metric)
    if gap.estimate.value is None:
        return f"Not known: {gap.estimate.reason}."
    said = f"{signed(gap.estimate.value)} {name.unit} of {name.label} over {told.reference}"
    if gap.estimate.low is None or gap.estimate.high is None:
        said += f", without an interval ({gap.estimate.reason or 'none was computed'})"
    else:
        said += f" (95% interval {signed(gap.estimate.low)} to {signed(gap.estimate.high)})"
    shown = {"better": "", "worse": "; it is worse", "unproven": "; it is not shown to be better"}[gap.judgement]
    base = estimate(material.comparison.get("candidates", {}).get(told.reference, {}).get(told.metric))
    return f"{said}{items}: {number(own.value)} against {number(base.value)}{shown}."


def _costs(material: Material) -> str:
    who, said = verdict(material).leader, []
    small, own = compressed.compressed(material.compress), None
    if small and material.policies.get(who, "").startswith("artifacts/compress"):
        own = next((each for each in small.variants if each.is_advised), None)
    if small and own:
        said.append(f"{size(own.bytes)} on disk ({_times(own.bytes_ratio)} of {small.parent})")
        said.append(f"{number(own.decode.value)} tokens/s ({_times(own.decode_ratio.value)})")
        said.append(f"{size(own.memory)} of memory ({_times(own.memory_ratio)})")
    else:
        measured = (material.efficiency or {}).get("candidates", {}).get(who, {})
        stored = (material.plan or {}).get("store_bytes", {}).get((material.plan or {}).get("store_dtype"))
        if stored:
            said.append(f"{size(stored)} of base weights on disk")
        if measured.get("decode_ratio") is not None:
            said.append(f"writes at {measured['decode_ratio']:.2f}× the speed of {reference(material)}")
        if measured.get("memory_bytes"):
            said.append(f"{size(measured['memory_bytes'])} of memory in use")
    costs = phases.stage_costs(material)
    if costs:
        peak = max((each.memory for each in costs if each.memory), default=None)
        said.append(
            f"the whole run took {duration(phases.spent(costs))}" + (f" and at most {size(peak)}" if peak else "")
        )
    return f"{'; '.join(said)}." if said else "Neither speed, size nor time was measured."


def _times(ratio: float | None) -> str:
    return "—" if ratio is None else f"{ratio:.2f}×"


def _unknown(material: Material) -> str:
    told, said = verdict(material), []
    gap = difference(material.comparison, verdict(material).leader, told.reference, told.metric)
    if gap.detectable is not None:
        said.append(f"differences below {number(gap.detectable)} {metric(told.metric).unit} would usually be missed")
    if not material.comparison.get("seeds"):
        said.append("another training seed was not tried")
    rows = categories.table(material.comparison, material.candidates, told.reference)
    if rows and verdict(material).leader != told.reference:
        tally = categories.tally(rows, verdict(material).leader)
        if tally.unproven + tally.undefined:
            said.append(f"in {tally.unproven + tally.undefined} of {len(rows)} categories nothing is shown")
    if told.metric in ("rouge1", "rouge2", "rougeL", "bleu"):
        said.append("whether an output is true is not measured")
    text = "; ".join(said) or "what the limits at the end say"
    return f"{text[:1].upper()}{text[1:]}."


# ── the sentence of each chapter ──────────────────────────────────────────────────────────────────────────────────


def found(material: Material) -> dict[str, str]:
    """Chapter → what was found, in one sentence."""
    return {
        "verdict": _verdict(material),
        "data": _data(material),
        "model": _model(material),
        "adaptation": _adapted(material),
        "alignment": _aligned(material),
        "constitutional-ai": _constitutional(material),
        "evaluation": _evaluated(material),
        "compression": _compressed(material),
        "cost": _spent(material),
        "lineage": _lineage(material),
        "samples": _samples(material),
        "limits": _limits(material),
        "reproduce": "Equal inputs give equal bytes: what follows makes the artifacts, and this page, again.",
    }


def _verdict(material: Material) -> str:
    told, rules = decision(material), criteria(material)
    if told and told[1]:
        return told[1] if told[1].endswith(".") else f"{told[1]}."
    if not rules:
        return "The scope names no criterion, so nothing could be decided by one."
    text = _met(rules)
    return f"{text[:1].upper()}{text[1:]}; whether that promotes a candidate was not decided in this run."


def _data(material: Material) -> str:
    rows = material.splits.get("rows", {})
    if not rows:
        return "No counts of the splits were recorded."
    refused = sum(count for reasons in material.splits.get("quarantine", {}).values() for count in reasons.values())
    collected = sum(material.splits.get("collected", {}).values())
    parts = ", ".join(
        f"{number(rows[name], 0)} to {use}"
        for name, use in (("train", "train on"), ("validation", "choose by"), ("test", "test with"))
        if name in rows
    )
    of = f" of {number(collected, 0)} collected" if collected else ""
    were = "was" if refused == 1 else "were"
    return f"Examples: {parts}; {plural(refused, 'row')}{of} of all kinds {were} refused, each with its reason."


def _model(material: Material) -> str:
    tried = (material.decision or {}).get("candidates", ())
    chosen = next((each for each in tried if each.get("status") == "selected"), None)
    plan = material.plan
    said = "No base model was screened in this run"
    if chosen:
        said = f"{visible(str(chosen['name']))} was chosen out of {plural(len(tried), 'candidate')}"
    elif plan:
        said = "The base model was given"
    if plan:
        said += f": {number(plan['parameters'] / 1e6)} M parameters, {visible(str(plan['model']['license']))}"
    return f"{said}."


def methods(material: Material) -> list[adaptation.Method]:
    """A row for each way in which the model was made to fit the task."""
    return adaptation.methods(
        material.trainings,
        material.prompt,
        policies=material.policies,
        comparison=material.comparison,
        metric=material.scope["primary_metric"],
        reference=reference(material),
        timings=material.timings,
    )


def _adapted(material: Material) -> str:
    ways = [each for each in methods(material) if each.gain and each.gain.estimate.value is not None]
    name = metric(material.scope["primary_metric"])
    if not ways:
        return "Nothing was trained or prompted in this run that was then compared."
    sign = -1 if name.lower_is_better else 1
    top = max(ways, key=lambda each: sign * (each.gain.estimate.value or 0.0) if each.gain else 0.0)
    assert top.gain is not None
    low, high = top.gain.estimate.low, top.gain.estimate.high
    ends = "" if low is None or high is None else f" ({signed(low)} to {signed(high)})"
    took = "training nothing" if not top.trainable else f"training {share(top.share)} of the parameters"
    of = f"Of {plural(len(ways), 'way')} of adapting, {top.name} brings most" if len(ways) > 1 else f"{top.name} brings"
    return f"{of}: {signed(top.gain.estimate.value)} {name.unit} of {name.label}{ends}, {took}."


def _aligned(material: Material) -> str:
    told = [each for each in aligned.verdicts(material.comparison) if not each.is_control]
    alarms = sum(len(run.record.get("alarms") or ()) for run in material.optimised)
    raised = "no alarm of reward hacking was raised"
    if alarms:
        raised = f"{plural(alarms, 'alarm')} of reward hacking {'was' if alarms == 1 else 'were'} raised"
    watched = f"; {raised}" if material.optimised else ""
    if not told:
        return f"No judge has compared what was aligned with what it started from{watched}."
    words = {
        "better": "less harmful than",
        "worse": "more harmful than",
        "unproven": "not shown to be less harmful than",
    }
    said = ", ".join(f"{each.name} is {words[each.outcome]} {each.against}" for each in told if not each.is_part)
    return visible(f"{said or told[0].said}{watched}.")


def _constitutional(material: Material) -> str:
    said = []
    for each in material.supervised[:1]:
        kept, made = each.cai.get("revisions"), sum(one.revisions for one in constitutional.rounds(each.cai))
        if kept is not None and made:
            said.append(f"{number(kept, 0)} of {plural(made, 'revision')} were fit to learn from")
    for told in material.labelled[:1]:
        agreed = constitutional.agreement(told.feedback)
        said.append(f"of the judge’s labels: {agreed.verdict}")
    return visible(f"{'; '.join(said)}." if said else "What was revised and labelled is told below.")


def _evaluated(material: Material) -> str:
    told = verdict(material)
    who = told.leader
    rows = categories.table(material.comparison, material.candidates, told.reference)
    if not rows:
        return "Every candidate answered the same items; HELM’s categories were not measured in this run."
    if who == told.reference:
        return f"{who} was measured in {plural(len(rows), 'category')}; there is nobody to compare it with."
    tally = categories.tally(rows, who)
    rest = f", and {tally.undefined} could not be compared" if tally.undefined else ""
    return (
        f"Against {told.reference}, {who} is shown to be better in {tally.better} of {plural(len(rows), 'category')} "
        f"and worse in {tally.worse}; in {tally.unproven} no difference is shown{rest}."
    )


def _compressed(material: Material) -> str:
    small = compressed.compressed(material.compress)
    if small is None:
        return "Stage compress did not run: no smaller variant was made or measured."
    return small.reason if small.reason.endswith(".") else f"{small.reason}."


def _spent(material: Material) -> str:
    costs = phases.stage_costs(material)
    if not costs:
        return "No timings were kept."
    total = phases.spent(costs)
    limit = material.scope.get("constraints", {}).get("minutes")
    kept = (
        ""
        if limit is None
        else f", {'within' if total <= 60 * limit else 'more than'} the {number(limit, 0)} minutes allowed"
    )
    longest = max(phases.phases(material), key=lambda each: each.share)
    most = f"{longest.share:.0f}% of it went into the phase “{longest.sheet.name}”"
    return f"{duration(total)} over {plural(len(costs), 'stage')}{kept}; {most}."


def _lineage(material: Material) -> str:
    order = lineage.stage_order(material.lock or {}, material.candidates)
    if not order:
        return "No dvc.lock was given: the stages were run by hand, and no hash is known."
    return f"{plural(len(order), 'stage')}, every input and output known by its hash: equal hashes are equal bytes."


def _samples(material: Material) -> str:
    told = verdict(material)
    scored = of_items(told.metric)
    tables = {name: {row["id"]: row["scores"].get(scored) for row in rows} for name, rows in material.instances.items()}
    first, second = tables.get(told.leader, {}), tables.get(told.reference, {})
    pairs = [(first[key], second[key]) for key in first if first[key] is not None and second.get(key) is not None]
    if told.challenger is None or not pairs:
        return "Outputs as they came, chosen by a rule and not by taste."
    sign = -1 if metric(scored).lower_is_better else 1
    higher = sum(sign * (a - b) > 0 for a, b in pairs)
    lower = sum(sign * (a - b) < 0 for a, b in pairs)
    return (
        f"{told.leader} does better than {told.reference} on {higher} of {plural(len(pairs), 'test item')} "
        f"and worse on {lower}, by {metric(scored).label}."
    )


def _limits(material: Material) -> str:
    harms, limits = len(material.scope.get("harms") or ()), len(material.scope.get("limits") or ())
    named = f"{plural(limits, 'limit')} and {plural(harms, 'feared harm')}"
    return f"{named} were written down before anything was tried; this page adds what it cannot show."
