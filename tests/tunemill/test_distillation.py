"""Distillation: the loss is the paper's by an outside computation, teacher and student alike give none, and it learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tunemill import test_tuning as given
from tunemill import blocks, checkpoints, distillation, losses, models, runtime, tuning
from tunemill.distillation import Weights
from tunemill.errors import UserError
from tunemill.log import Log

CPU = runtime.Runtime("cpu", "float32", 2)


def logits(seed: int, rows: int = 5, width: int = 7) -> Any:
    import torch

    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_torchs_kl_and_cross_entropy(temperature: float, alpha: float) -> None:
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

    student, teacher, targets = logits(0), logits(1), torch.tensor([0, 3, 6, 2, 2])
    soft = kl_div(log_softmax(student / temperature, -1), softmax(teacher / temperature, -1), reduction="sum")
    hard = cross_entropy(student, targets, reduction="sum")
    found = distillation.soft_and_hard(student, teacher, targets, temperature, alpha)
    assert torch.allclose(found, alpha * temperature**2 * soft + (1 - alpha) * hard, rtol=1e-5)


def test_divergence_of_two_coins_by_hand() -> None:
    import math

    import torch

    # Odds 3:1 and 1:1: KL = ¾·ln(¾ / ½) + ¼·ln(¼ / ½).
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation.divergence(student, teacher)) == pytest.approx(expected, rel=1e-6)
    # T = 2 makes odds of √3:1.
    p = math.sqrt(3) / (1 + math.sqrt(3))
    softened = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(distillation.divergence(student, teacher, 2.0)) == pytest.approx(softened, rel=1e-5)


def test_gradients_are_as_large_whatever_the_temperature() -> None:
    """Hinton et al. 2015: they scale as 1/T² in the softened term, so T² keeps them; at high T they are (z − v) / V."""
    import torch

    teacher, targets = logits(1) / 3, torch.zeros(5, dtype=torch.long)
    sizes = []
    for temperature in (1.0, 4.0, 20.0):
        student = (logits(0) / 3).requires_grad_(True)
        distillation.soft_and_hard(student, teacher, targets, temperature, 1.0).backward()
        sizes.append(float(student.grad.norm()))  # type: ignore[union-attr]
    assert max(sizes) / min(sizes) < 2
    student = (logits(0) / 3).requires_grad_(True)
    distillation.soft_and_hard(student, teacher, targets, 500.0, 1.0).backward()
    apart = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert torch.allclose(student.grad, apart.detach() / 7, atol=1e-3)  # type: ignore[arg-type]


def batch_of(folder: Path, pairs: Any = None) -> tuple[Any, dict[str, Any]]:
    model, tokenizer = models.load_base(folder, CPU), models.load_tokenizer(folder)
    rows = [tuning.encode(tokenizer, *pair) for pair in (pairs or given.PAIRS[:5])]
    return model, losses.collate(rows, tokenizer.pad_token_id, losses.start_token(model))


def test_a_teacher_that_is_its_own_student_teaches_nothing(either: Path) -> None:
    import torch

    teacher, inputs = batch_of(either)
    loss = distillation.loss_against(teacher, Weights(2.0, 1.0))
    depth = len(blocks.stacks(teacher)[-1].blocks)
    every = distillation.loss_against(teacher, Weights(2.0, 1.0, 1.0), range(depth))
    with torch.no_grad():
        assert float(loss(teacher, inputs, None)) == pytest.approx(0, abs=1e-6)
        assert float(every(teacher, inputs, None)) == pytest.approx(0, abs=1e-5)
    tokenizer = models.load_tokenizer(either)
    rows = [tuning.encode(tokenizer, *pair) for pair in given.PAIRS[:5]]
    assert distillation.measured(teacher, teacher, rows, tokenizer.pad_token_id, 2) == pytest.approx(0, abs=1e-6)


def test_alpha_0_is_fine_tuning(either: Path) -> None:
    import torch

    teacher, inputs = batch_of(either)
    student = small(teacher)
    loss = distillation.loss_against(teacher, Weights(3.0, 0.0))
    with torch.no_grad():
        assert torch.equal(loss(student, inputs, 7), losses.completion_loss(student, inputs, 7))
        assert torch.allclose(loss(student, inputs, None), losses.completion_loss(student, inputs))


def small(teacher: Any) -> Any:
    kept = {each.half: (0, len(each.blocks) - 1)[: len(each.blocks) - 1] for each in blocks.stacks(teacher)}
    return blocks.with_blocks(teacher, kept)


def test_padding_and_prompts_do_not_matter(either: Path) -> None:
    """All rows in one batch cost what each costs by itself: tokens without loss, padding among them, count nothing."""
    import torch

    teacher, inputs = batch_of(either)
    student = small(teacher)
    kept = (0,) if teacher.config.is_encoder_decoder else (0, 3)
    loss = distillation.loss_against(teacher, Weights(2.0, 0.5, 0.7), kept)
    with torch.no_grad():
        together = float(loss(student, inputs, 1))
        alone = [float(loss(student, batch_of(either, [pair])[1], 1)) for pair in given.PAIRS[:5]]
        assert together == pytest.approx(sum(alone), rel=1e-4)
        # Another token where padding is changes nothing.
        longest = inputs["labels"].shape[1] - 1
        padded = inputs["labels"][:, -1] == losses.IGNORED
        assert bool(padded.any())
        name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][padded, longest] = 77
        assert float(loss(student, changed, 1)) == pytest.approx(together, rel=1e-5)


def test_hidden_states_that_belong_together() -> None:
    # Of six blocks the student has 0, 2 and 5: what its block 1 reads is what the teacher's block 2 reads; then 5; then the end.
    assert distillation.depths((0, 2, 5), 6) == [(1, 2), (2, 5), (3, 6)]
    assert distillation.depths((0, 1), 2) == [(1, 1), (2, 2)]


def test_the_cosine_term_is_torchs(decoder: Path) -> None:
    import torch

    teacher, inputs = batch_of(decoder, given.PAIRS[:1])
    student = small(teacher)
    with_it, without = (distillation.loss_against(teacher, Weights(1.0, 0.5, c), (0, 3)) for c in (0.8, 0.0))
    with torch.no_grad():
        term = float(with_it(student, inputs, 1)) - float(without(student, inputs, 1))
        own, its = (model(inputs["input_ids"], output_hidden_states=True).hidden_states for model in (student, teacher))
        carries = inputs["labels"][0].ne(losses.IGNORED).nonzero().flatten() - 1
        expected = sum(
            float(torch.nn.CosineEmbeddingLoss(reduction="sum")(own[a][0, carries], its[b][0, carries], torch.ones(1)))
            for a, b in ((1, 3), (2, 4))
        )
    assert term == pytest.approx(0.8 * expected / 2, rel=1e-4)


def test_students_that_are_not_smaller_are_refused(decoder: Path) -> None:
    teacher = models.load_base(decoder, CPU)
    with pytest.raises(UserError, match=r"distill\.student: a student of 246,336 parameters, and a teacher of 246,336"):
        distillation.check_size(teacher, teacher, "distill.student")
    distillation.check_size(small(teacher), teacher, "x")
    for wanted, told in (
        (4, "4 of its 4 blocks: a student must be smaller than its teacher"),
        ((0, 1, 2, 3), "4 of its 4 blocks"),
        ((0, 4), "the teacher's decoder has no block 4"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            distillation.choose(teacher, wanted, False, [], "distill.variants.x.layers")
        assert caught.value.exit_code == 2
    assert distillation.choose(teacher, 3, False, [], "x") == {"decoder": blocks.evenly(4, 3)}
    assert distillation.choose(teacher, (0, 2), False, [], "x") == {"decoder": (0, 2)}


def test_another_tokenizer_is_refused(decoder: Path, encoder_decoder: Path) -> None:
    own = models.load_tokenizer(decoder)
    distillation.check_tokenizers(own, models.load_tokenizer(decoder), "x")
    with pytest.raises(
        UserError, match=r"distill\.student: the student's tokenizer is not the teacher's: \d+ tokens, "
    ):
        distillation.check_tokenizers(models.load_tokenizer(encoder_decoder), own, "distill.student")
    other = models.load_tokenizer(decoder)
    other.eos_token = other.bos_token
    with pytest.raises(UserError, match=r"texts end with '<\|im_start\|>', the teacher's with '<\|im_end\|>'"):
        distillation.check_tokenizers(other, own, "x")


def distil(folder: Path, work: Path, cosine: float = 0.0, **values: Any) -> tuple[Any, Any, Any]:
    """(teacher, what the student was, what was trained)."""
    cfg = tuning.Training.model_validate(given.CONFIG | {"learning_rate": 3e-3} | values)
    tokenizer, teacher = models.load_tokenizer(folder), models.load_base(folder, CPU).requires_grad_(False)
    data = tuning.prepare(cfg, tokenizer, given.PAIRS, given.PAIRS[:8], "distill")

    def load() -> Any:
        return small(teacher).requires_grad_(True)

    kept = (0,) if teacher.config.is_encoder_decoder else (0, 3)
    objective = tuning.Objective(distillation.loss_against(teacher, Weights(2.0, 0.9, cosine), kept), held=1000)
    found = tuning.train(load, tokenizer, data, cfg, 5, runtime=CPU, work=work, log=Log(), objective=objective)
    return teacher, load(), found


@pytest.mark.parametrize("cosine", [0.0, 0.5])
def test_the_student_comes_closer_to_its_teacher(either: Path, cosine: float, tmp_path: Path) -> None:
    teacher, before, found = distil(either, tmp_path, cosine, steps=24)
    tokenizer = models.load_tokenizer(either)
    rows = [tuning.encode(tokenizer, *pair) for pair in given.PAIRS[:8]]
    pad = tokenizer.pad_token_id
    start, end = (distillation.measured(each.eval(), teacher, rows, pad, 4) for each in (before, found.policy))
    assert end < 0.6 * start, (start, end)
    plain = tuning.plan_memory(before, [rows], tuning.Training.model_validate(given.CONFIG), CPU)
    held = tuning.plan_memory(before, [rows], tuning.Training.model_validate(given.CONFIG), CPU, 1000)
    assert held["total"] == plain["total"] + 1000


def test_a_run_continued_from_a_checkpoint_ends_the_same(decoder: Path, tmp_path: Path) -> None:
    _, _, whole = distil(decoder, tmp_path / "whole", steps=10)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    for each in (tmp_path / "other").glob("checkpoint-*"):
        if each.name != "checkpoint-8":
            shutil.rmtree(each)
    assert checkpoints.newest(tmp_path / "other") is not None
    _, _, resumed = distil(decoder, tmp_path / "other", steps=10)
    assert resumed.points == whole.points
    assert given.same_weights(resumed.policy, whole.policy)
