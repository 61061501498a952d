"""Knowledge distillation (Hinton et al. 2015): a smaller student learns what a frozen teacher would say, token by token.

    L = α · T² · KL(teacher_T ‖ student_T) + (1 − α) · CE(student, hard labels) + c · (1 − cos(student's states, teacher's states))

Each term is a mean over completion tokens; both distributions of the first are softened by the temperature T, and T² keeps its
gradients as large as the second's, whatever T is. The third is DistilBERT's (Sanh et al. 2019), on the hidden states that the student's
blocks read and write and the teacher's at the same places. `sequence_level` (Kim & Rush 2016) has the student learn the teacher's own
answers instead of people's.

The student is the teacher without some of its blocks: evenly spread ones as in DistilBERT, or those that do most (block influence,
Men et al. 2024), which start closer to the teacher. Any other model with the same tokenizer will do.

Not through TRL's `DistillationTrainer`, which (in 1.16) is another method: it trains on what the *student* writes (on-policy, Agarwal
et al. 2024) with the generalised Jensen-Shannon divergence as its only loss (no hard labels, no T², no hidden states), generates and
shuffles by itself, so that a batch plan of ours has no place in it, and takes no encoder-decoder. So the loss is here, and the
training is `tunemill.tuning`, as for the other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill import blocks, losses
from tunemill.blocks import Batch, Half
from tunemill.errors import UserError
from tunemill.losses import IGNORED, Encoded

if TYPE_CHECKING:
    import torch

Loss = Callable[[Any, dict[str, Any], Any, int], Any]
"""See `tuning.Objective`."""


class Weights(NamedTuple):
    """How the terms of the loss are weighed."""

    temperature: float
    """T: the larger, the more the teacher's less likely tokens count."""
    alpha: float
    """α of what the teacher says; the hard labels get 1 − α. 0 is plain fine-tuning."""
    cosine: float = 0.0
    """c of the hidden states' term; 0 leaves it out."""


# ── the student ───────────────────────────────────────────────────────────────────────────────────────────────────


def choose(
    teacher: Any, wanted: int | Sequence[int], by_influence: bool, texts: Sequence[Batch], where: str
) -> dict[Half, tuple[int, ...]]:
    """Which of the teacher's blocks the student gets, of each half.

    Args:
        teacher: in evaluation mode.
        wanted: how many, or which, from 0.
        by_influence: of a number, those that do most instead of evenly spread ones; the first and the last in any case.
        texts: to see what they do; not read otherwise.
        where: the key in params.yaml, for messages.

    Raises:
        UserError: the teacher has not so many blocks, or none would be left out.
    """
    depths: dict[Half, int] = {stack.half: len(stack.blocks) for stack in blocks.stacks(teacher)}
    for half, depth in depths.items():
        count = wanted if isinstance(wanted, int) else len(wanted)
        unknown = () if isinstance(wanted, int) else [at for at in wanted if not 0 <= at < depth]
        if count >= depth or unknown:
            what = f"the teacher's {half} has no block {unknown[0]}" if unknown else f"{count} of its {depth} blocks"
            raise UserError(
                f"{what}: a student must be smaller than its teacher" if not unknown else what,
                where=f"params.yaml: {where}",
                expected=f"less than {depth} blocks" + (f", of 0 to {depth - 1}" if unknown else ""),
                exit_code=2,
            )
    if not isinstance(wanted, int):
        return dict.fromkeys(depths, tuple(wanted))
    if not by_influence:
        return {half: blocks.evenly(depth, wanted) for half, depth in depths.items()}
    found = blocks.influence(teacher, texts)
    return {half: blocks.most_influential(found[half], wanted) for half in depths}


def check_size(student: Any, teacher: Any, where: str) -> None:
    """Refuse a student that is not smaller.

    Raises:
        UserError: it has as many parameters as the teacher, or more.
    """
    own, its = (sum(each.numel() for each in model.parameters()) for model in (student, teacher))
    if own >= its:
        raise UserError(
            f"a student of {own:,} parameters, and a teacher of {its:,}",
            where=f"params.yaml: {where}",
            expected="a student with fewer parameters than its teacher",
            fix="name a smaller model, or cut the student from the teacher by `layers`",
            exit_code=2,
        )


def check_tokenizers(student: Any, teacher: Any, where: str) -> None:
    """Refuse a student that reads other tokens: their distributions could not be compared.

    Args:
        student: its tokenizer.
        teacher: its tokenizer.
        where: the key in params.yaml that names the student, for messages.

    Raises:
        UserError: tokens or their numbers differ, the end of a text, or how a prompt is put.
    """
    own, its = student.get_vocab(), teacher.get_vocab()
    probe = "Return the value, or None: f(x, y=1)\n"
    differing = [word for word in sorted({*own, *its}) if own.get(word) != its.get(word)]
    if differing:
        what = f"{len(differing)} tokens, {differing[0]!r} among them, are not the same"
    elif student.eos_token_id != teacher.eos_token_id:
        what = f"texts end with {student.eos_token!r}, the teacher's with {teacher.eos_token!r}"
    elif student(probe)["input_ids"] != teacher(probe)["input_ids"]:
        what = "texts are cut into other tokens"
    else:
        return
    raise UserError(
        f"the student's tokenizer is not the teacher's: {what}",
        where=f"params.yaml: {where}",
        expected="a student with the teacher's tokenizer",
        fix="name another, or cut the student from the teacher by `layers`",
        exit_code=2,
    )


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher_T ‖ student_T) of each token, in nats: (N,), in float32.

    Args:
        student: logits (N, V).
        teacher: logits (N, V).
        temperature: what both are divided by.
    """
    q = (student.float() / temperature).log_softmax(dim=-1)
    p = (teacher.float() / temperature).log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)


def soft_and_hard(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """α · T² · KL(teacher_T ‖ student_T) + (1 − α) · CE at T = 1 (Hinton et al. 2015), the sum over N tokens.

    Args:
        student: logits (N, V).
        teacher: logits (N, V), without a gradient.
        targets: the hard labels (N,).
        temperature: T.
        alpha: α; where it is 0 or 1 the other term is not computed.
    """
    import torch

    total = student.new_zeros((), dtype=torch.float32)
    if alpha > 0:
        total = total + alpha * temperature**2 * divergence(student, teacher, temperature).sum()
    if alpha < 1:
        hard = torch.nn.functional.cross_entropy(student.float(), targets, reduction="sum")
        total = total + (1 - alpha) * hard
    return total


def unlike(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 − the cosine of hidden states (DistilBERT), the mean over pairs of states, the sum over tokens.

    Args:
        student: states (N, H) at several depths.
        teacher: the teacher's at the same depths.
    """
    import torch

    each = [
        (1 - torch.cosine_similarity(own.float(), its.float(), dim=-1)).sum()
        for own, its in zip(student, teacher, strict=True)
    ]
    return torch.stack(each).mean()


def depths(kept: Sequence[int], total: int) -> list[tuple[int, int]]:
    """Which hidden states of student and teacher belong together.

    State i is what block i reads, and the last one is what the last block's output became. The student's block at place j is the
    teacher's block kept[j], so it should read what that one reads; then the blocks before it have learnt the work of those that were
    cut out between. The first state is the embeddings, the same in both at the start.

    Args:
        kept: the teacher's blocks that the student has.
        total: the teacher's blocks.

    Returns:
        (number of the student's state, number of the teacher's), the embeddings left out.
    """
    return [*((at, number) for at, number in enumerate(kept) if at), (len(kept), total)]


def loss_against(teacher: Any, weights: Weights, kept: Sequence[int] = ()) -> Loss:
    """The student's loss, as the training takes it.

    Args:
        teacher: frozen, in evaluation mode, on the student's device.
        weights: of the terms.
        kept: blocks of the teacher's decoder that the student has; only for the cosine term.
    """
    import torch

    asked = {"output_hidden_states": True} if weights.cosine else {}
    pairs = depths(kept, len(blocks.stacks(teacher)[-1].blocks)) if weights.cosine else []

    def loss(student: Any, inputs: dict[str, Any], items: Any, virtual_tokens: int = 0) -> Any:
        found, labels = losses.completion_outputs(student, inputs, virtual_tokens, **asked)
        with torch.no_grad():
            told, _ = losses.completion_outputs(teacher, inputs, **asked)
        wanted = labels.ne(IGNORED)  # True where a completion's token is predicted
        total = soft_and_hard(
            found.logits[wanted], told.logits[wanted], labels[wanted], weights.temperature, weights.alpha
        )
        if weights.cosine:
            own, its = (_states(each, inputs) for each in (found, told))
            total = total + weights.cosine * unlike([own[at] for at, _ in pairs], [its[at] for _, at in pairs])
        return total / (wanted.sum() if items is None else items)

    return loss


def _states(found: Any, inputs: dict[str, Any]) -> list[Any]:
    """A model's hidden states where completions are predicted, (N, H) at each depth."""
    labels = inputs["labels"]
    if "decoder_input_ids" in inputs:
        return [each[labels.ne(IGNORED)] for each in found.decoder_hidden_states]
    before = labels[:, 1:].ne(IGNORED)  # a token is predicted one position before it
    return [each[:, :-1][before] for each in found.hidden_states]


def measured(student: Any, teacher: Any, rows: Sequence[Encoded], pad: int, batch_size: int) -> float:
    """KL(teacher ‖ student) at T = 1, the mean over completion tokens, in nats.

    Args:
        student: in evaluation mode.
        teacher: in evaluation mode, on the same device.
        rows: prompts and completions.
        pad: id to pad with.
        batch_size: rows in a forward pass.
    """
    import torch

    start, total = losses.start_token(student), 0.0
    ordered = sorted(rows, key=len)
    with torch.no_grad():
        for at in range(0, len(ordered), batch_size):
            batch = losses.collate(ordered[at : at + batch_size], pad, start)
            inputs = {name: each.to(student.device) for name, each in batch.items()}
            own, labels = losses.completion_logits(student, inputs)
            its, _ = losses.completion_logits(teacher, inputs)
            wanted = labels.ne(IGNORED)
            total += float(divergence(own[wanted], its[wanted]).sum())
    return total / sum(len(row.completion) for row in rows)
