"""Pruning: scores by hand, every row loses its share, blocks see pruned blocks, what is cut is loadable, zeros survive recovery."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tunemill import test_tuning as given
from tests.tunemill.test_blocks import ROWS, texts
from tests.tunemill.test_distillation import logits
from tunemill import blocks, losses, models, pruning, runtime, tuning
from tunemill.errors import UserError
from tunemill.log import Log

CPU = runtime.Runtime("cpu", "float32", 2)


def linears(model: Any) -> dict[str, Any]:
    return {
        f"{stack.path}.{at}.{name}": layer
        for stack in blocks.stacks(model)
        for at, block in enumerate(stack.blocks)
        for name, layer in blocks.linears(block).items()
    }


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wanda_by_hand() -> None:
    """Sun et al. 2023, figure 1: the smallest weight is not the least where its input is large."""
    import torch

    weight = torch.tensor([[4.0, 0.0, 1.0, -1.0], [3.0, -2.0, -1.0, -3.0], [-3.0, 1.0, 0.0, 2.0]])
    norms = torch.tensor([1.0, 2.0, 8.0, 3.0])
    scores = pruning.wanda_scores(weight, norms)
    assert scores.tolist() == [[4, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]
    assert pruning.least(scores, 0.5, "row").tolist() == [
        [False, True, False, True],
        [True, True, False, False],
        [False, True, True, False],
    ]
    # By magnitude within the matrix: six of twelve, the first of equals.
    gone = pruning.least(weight.abs(), 0.5, "matrix")
    assert gone.tolist() == [[False, True, True, True], [False, False, True, False], [False, True, True, False]]


def test_of_equal_scores_no_more_than_the_share_goes() -> None:
    import torch

    assert pruning.least(torch.ones(3, 8), 0.25, "row").sum(dim=1).tolist() == [2, 2, 2]
    assert int(pruning.least(torch.ones(3, 8), 0.25, "matrix").sum()) == 6


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_every_row_or_matrix_loses_its_share_and_nothing_else_changes(either: Path, sparsity: float) -> None:
    import torch

    for method in ("magnitude", "wanda"):
        model, before = models.load_base(either, CPU), models.load_base(either, CPU)
        done: list[int] = []
        pruning.prune_weights(model, method, sparsity, texts(model), done.append)  # type: ignore[arg-type]
        assert done == list(range(1, sum(len(each.blocks) for each in blocks.stacks(model)) + 1))
        pruned = linears(model)
        for name, layer in pruned.items():
            zeros = layer.weight.eq(0)
            if method == "wanda":
                assert {*zeros.sum(dim=1).tolist()} == {round(sparsity * layer.in_features)}, name
            else:
                assert int(zeros.sum()) == round(sparsity * zeros.numel()), name
            old = before.get_submodule(name).weight
            assert torch.equal(torch.where(zeros, old, layer.weight), old)
        for name, each in model.named_parameters():
            if name.removesuffix(".weight") not in pruned:
                assert torch.equal(each, before.get_parameter(name)), name
        found = pruning.sparsity_of(model)
        assert found.linears == pytest.approx(sparsity, abs=0.02)
        inner = sum(layer.weight.numel() for layer in pruned.values())
        every = sum(each.numel() for each in model.parameters())
        elsewhere = sum(
            int(each.eq(0).sum())
            for name, each in model.named_parameters()
            if name.removesuffix(".weight") not in pruned
        )  # the embedding of padding, for one
        assert found.everything == pytest.approx((found.linears * inner + elsewhere) / every, rel=1e-6)


def test_wanda_scores_a_block_by_what_the_pruned_blocks_before_it_write(decoder: Path) -> None:
    """The oracle: the first block pruned by hand, the second one scored on hooks of the whole model."""
    import torch

    model, oracle = models.load_base(decoder, CPU), models.load_base(decoder, CPU)
    pruning.prune_weights(model, "wanda", 0.5, texts(model))

    def scored(name: str) -> Any:
        squares = torch.zeros(oracle.get_submodule(name).in_features)

        def add(_: Any, read: Any) -> None:
            squares.add_(read[0][0].square().sum(0))

        hook = oracle.get_submodule(name).register_forward_pre_hook(add)
        with torch.no_grad():
            for row in ROWS:  # one at a time: no padding
                oracle(torch.tensor([row.prompt + row.completion]))
        hook.remove()
        return oracle.get_submodule(name).weight.detach().abs() * squares.sqrt()

    def zeros(scores: Any) -> Any:
        return scores <= scores.sort(dim=1).values[:, [scores.shape[1] // 2 - 1]]

    unpruned = zeros(scored("model.layers.1.self_attn.q_proj"))
    first = {name: scored(name) for name in linears(oracle) if name.startswith("model.layers.0.")}
    for name, scores in first.items():
        with torch.no_grad():
            oracle.get_submodule(name).weight[zeros(scores)] = 0
        assert torch.equal(oracle.get_submodule(name).weight, model.get_submodule(name).weight), name
    pruned = zeros(scored("model.layers.1.self_attn.q_proj"))
    found = model.get_submodule("model.layers.1.self_attn.q_proj").weight.eq(0)
    assert torch.equal(found, pruned)
    assert not torch.equal(found, unpruned)  # the order matters


def test_wanda_is_better_than_magnitude_where_inputs_differ(decoder: Path) -> None:
    """Inputs of very different sizes, which magnitude does not see: the pruned model's logits move less under Wanda."""
    import torch

    moved = []
    for method in ("wanda", "magnitude"):
        model = models.load_base(decoder, CPU)
        with torch.no_grad():
            for stack in blocks.stacks(model):
                for block in stack.blocks:
                    block.post_attention_layernorm.weight[::4] *= 30
                    block.mlp.gate_proj.weight[:, ::4] /= 30
                    block.mlp.up_proj.weight[:, ::4] /= 30
        ids = torch.tensor([ROWS[-1].prompt])
        with torch.no_grad():
            before = model(ids).logits
            pruning.prune_weights(model, method, 0.5, texts(model))  # type: ignore[arg-type]
            moved.append(float((model(ids).logits - before).norm()))
    assert moved[0] < 0.9 * moved[1], moved


# ── structured ────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(model: Any, sparsity: float, layers: int = 0, groups: int = 0) -> tuple[Any, pruning.Removed, float]:
    wanted = pruning.structure(model, sparsity, layers, groups, "prune.variants.x")
    small, removed = pruning.prune_structure(model, wanted, texts(model))
    return small, removed, wanted.share


@pytest.mark.parametrize(("layers", "groups"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_what_is_cut_is_what_plain_transformers_loads(decoder: Path, tmp_path: Path, layers: int, groups: int) -> None:
    import torch

    model = models.load_base(decoder, CPU)
    before = sum(each.weight.numel() for each in linears(model).values())
    small, removed, share = cut(model, 0.45, layers, groups)
    after = sum(each.weight.numel() for each in linears(small).values())
    assert 1 - after / before == pytest.approx(share, abs=1e-9)
    assert share == pytest.approx(0.45, abs=0.15)  # channels go by 32
    assert small.config.num_hidden_layers == 4 - layers
    assert small.config.num_key_value_heads == 2 - groups
    assert small.config.num_attention_heads == 4 - 2 * groups
    assert small.config.intermediate_size % 32 == 0
    assert len(removed.layers["decoder"]) == layers and not {0, 3} & {*removed.layers["decoder"]}
    assert all(len(each) == groups for each in removed.groups["decoder"])
    models.save(small, models.load_tokenizer(decoder), tmp_path / "small", "float32")
    again = models.load_base(tmp_path / "small", CPU)
    batch = texts(model)[0].inputs
    with torch.no_grad():
        ours, theirs = (losses.completion_logits(each, batch)[0] for each in (small, again))
    assert torch.equal(ours, theirs)
    text = again.generate(torch.tensor([ROWS[0].prompt]), max_new_tokens=4, do_sample=False)
    assert text.shape == (1, len(ROWS[0].prompt) + 4)


def test_what_contributes_nothing_is_taken_out_and_nothing_changes(decoder: Path) -> None:
    """Half of the channels and one group of heads of each block write nothing; each block's are others."""
    import torch

    model = models.load_base(decoder, CPU)
    generator = torch.Generator().manual_seed(3)
    idle: list[tuple[int, list[int]]] = []
    with torch.no_grad():
        for at, block in enumerate(blocks.stacks(model)[0].blocks):
            channels = sorted(torch.randperm(128, generator=generator)[:64].tolist())
            block.mlp.down_proj.weight[:, channels] = 0
            block.self_attn.o_proj.weight[:, (at % 2) * 32 : (at % 2) * 32 + 32] = 0  # 4 heads of 16, 2 of them a group
            idle.append((at % 2, channels))
        ids = torch.tensor([ROWS[-1].prompt + ROWS[-1].completion])
        before = model(ids).logits
        # Of 12,288 + 24,576 parameters a block's channels are 12,288, its group 6,144.
        small, removed, share = cut(model, 0.5, groups=1)
        assert share == 0.5
        assert torch.allclose(small(ids).logits, before, atol=1e-5)
    assert removed.groups["decoder"] == [[group] for group, _ in idle]
    assert removed.channels["decoder"] == [channels for _, channels in idle]
    assert small.config.intermediate_size == 64 and small.config.head_dim == 16


def test_damage_is_how_far_the_output_moves() -> None:
    import torch

    read, weight = logits(0, 50, 12), logits(1, 7, 12)
    for wide in (1, 3):
        found = pruning.damages(weight, read.T @ read, wide)
        assert len(found) == 12 // wide
        for at in range(12 // wide):
            without = weight.clone()
            without[:, at * wide : (at + 1) * wide] = 0
            moved = (read @ (weight - without).T).square().sum()
            assert torch.allclose(found[at], moved, rtol=1e-4)


def test_what_stays_takes_over_by_damped_least_squares() -> None:
    """The oracle: scikit-learn's ridge regression of what was lost on the inputs that stay."""
    import torch
    from sklearn.linear_model import Ridge

    read, weight = logits(0, 50, 12), logits(1, 7, 12)
    read[:, 3] = 2 * read[:, 5] - read[:, 8]  # known from those that stay
    gone, stays = [3, 10], [0, 1, 2, 4, 5, 6, 7, 8, 9, 11]
    damping = pruning.DAMPING * float(read[:, stays].square().sum(0).mean())
    lost = (read[:, gone] @ weight[:, gone].T).numpy()
    ridge = Ridge(alpha=damping, fit_intercept=False).fit(read[:, stays].numpy(), lost)
    found = weight.clone()
    pruning.take_over(found, read.T @ read, gone)
    assert torch.equal(found[:, gone], torch.zeros(7, 2))
    assert torch.allclose(found[:, stays], weight[:, stays] + torch.tensor(ridge.coef_, dtype=torch.float32), atol=1e-3)
    cut = weight.clone()
    cut[:, gone] = 0
    target = read @ weight.T
    assert (read @ found.T - target).square().sum() < 0.7 * (read @ cut.T - target).square().sum()


def test_taking_over_moves_the_model_less(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def cut_only(weight: Any, _: Any, gone: Any) -> None:
        weight[:, gone] = 0

    moved = []
    for replace in (None, cut_only):
        if replace is not None:
            monkeypatch.setattr(pruning, "take_over", replace)
        model = models.load_base(decoder, CPU)
        ids = torch.tensor([ROWS[-1].prompt])
        with torch.no_grad():
            before = model(ids).logits
            moved.append(float((cut(model, 0.35)[0](ids).logits - before).norm()))
    assert moved[0] < 0.9 * moved[1], moved


def test_an_encoder_decoder_is_cut_in_both_halves(encoder_decoder: Path, tmp_path: Path) -> None:
    import torch

    model = models.load_base(encoder_decoder, CPU)
    small, removed, _ = cut(model, 0.2)
    assert small.config.d_ff == 64 and {*removed.channels} == {"encoder", "decoder"}
    models.save(small, models.load_tokenizer(encoder_decoder), tmp_path / "small", "float32")
    again = models.load_base(tmp_path / "small", CPU)
    batch = texts(model)[0].inputs
    with torch.no_grad():
        ours, theirs = (losses.completion_logits(each, batch)[0] for each in (small, again))
    assert torch.equal(ours, theirs)


def test_biases_go_with_their_channels() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, mlp_bias=True, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith("bias"):
                each.normal_()
        for block in model.model.layers:
            block.mlp.down_proj.weight[:, :32] = 0
            block.self_attn.o_proj.weight[:, 16:] = 0
        ids = torch.tensor([ROWS[-1].prompt])
        before = model(ids).logits
        small, removed, _ = cut(model, 0.5, groups=1)
        assert torch.allclose(small(ids).logits, before, atol=1e-4)
    assert removed.groups["decoder"] == [[1], [1]]


@pytest.mark.parametrize(
    ("family", "sparsity", "layers", "groups", "told"),
    [
        ("decoder", 0.2, 3, 0, r"x\.layers: 3 of 4 blocks\n  expected: at most 2"),
        ("decoder", 0.2, 0, 2, r"x\.groups: 2 of 2 groups of heads\n  expected: at most 1"),
        ("decoder", 0.2, 1, 0, r"x\.sparsity: 1 blocks and 0 groups .* are 25\.0% of the parameters already"),
        ("decoder", 0.95, 0, 0, r"x\.sparsity: 95% would leave -?\d+ of 128 feed-forward channels"),
        ("decoder", 0.01, 0, 0, r"x\.sparsity: 1\.0% is less than the 32 feed-forward channels that are taken at once"),
        ("encoder_decoder", 0.2, 0, 1, r"x\.groups: T5ForConditionalGeneration cannot lose heads"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    family: str, sparsity: float, layers: int, groups: int, told: str, request: pytest.FixtureRequest
) -> None:
    model = models.load_base(request.getfixturevalue(family), CPU)
    with pytest.raises(UserError, match=told) as caught:
        pruning.structure(model, sparsity, layers, groups, "prune.variants.x")
    assert caught.value.exit_code == 2


def test_layers_called_otherwise_cannot_be_made_narrower() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=32, n_head=2, vocab_size=90))
    with pytest.raises(UserError, match="GPT2LMHeadModel has no feed-forward layers that can be made narrower"):
        pruning.structure(model, 0.4, 1, 0, "prune.variants.x")
    assert pruning.structure(model, 0.25, 1, 0, "prune.variants.x") == pruning.Structure(1, 0, 0, 0.25)


# ── recovery ──────────────────────────────────────────────────────────────────────────────────────────────────────


def recovering(folder: Path, work: Path, **values: Any) -> tuple[Any, tuning.Trained]:
    """(the pruned model, what was trained on it)."""

    def load() -> Any:
        runtime.seed_everything(5)
        model = models.load_trainable(folder, CPU)
        pruning.prune_weights(model, "wanda", 0.5, texts(model))
        return model

    def adapted() -> Any:
        return tuning.adapt(load(), pruning.keep_zeros(models.low_rank(4, 8, "all-linear")), "prune.recovery")

    cfg = tuning.Training.model_validate(given.CONFIG | values)
    tokenizer = models.load_tokenizer(folder)
    data = tuning.prepare(cfg, tokenizer, given.PAIRS, given.PAIRS[:8], "prune.recovery")
    return load(), tuning.train(adapted, tokenizer, data, cfg, 5, runtime=CPU, work=work, log=Log())


def test_a_recovered_model_has_exactly_the_same_zeros_and_is_what_was_trained(either: Path, tmp_path: Path) -> None:
    import torch

    pruned, found = recovering(either, tmp_path)
    batch = texts(pruned)[0].inputs
    validated = [point.validation_loss for point in found.points if point.validation_loss is not None]
    assert validated[-1] < validated[0] - 0.1  # it learns
    with torch.no_grad():
        trained = losses.completion_logits(found.policy.eval(), batch)[0]
        merged = found.policy.merge_and_unload()
        assert torch.allclose(losses.completion_logits(merged, batch)[0], trained, atol=1e-4)
    moved = 0
    for name, layer in linears(merged).items():
        old = pruned.get_submodule(name).weight
        assert torch.equal(layer.weight.eq(0), old.eq(0)), name
        moved += int((layer.weight != old).sum())
    assert moved > 0
    assert pruning.sparsity_of(merged) == pruning.sparsity_of(pruned)
    assert pruning.sparsity_of(merged.to(torch.bfloat16)) == pruning.sparsity_of(pruned)


def test_a_recovery_continued_from_a_checkpoint_ends_the_same(decoder: Path, tmp_path: Path) -> None:
    _, whole = recovering(decoder, tmp_path / "whole", steps=10)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    for each in (tmp_path / "other").glob("checkpoint-*"):
        if each.name != "checkpoint-8":
            shutil.rmtree(each)
    _, resumed = recovering(decoder, tmp_path / "other", steps=10)
    assert resumed.points == whole.points
    assert given.same_weights(resumed.policy, whole.policy)
