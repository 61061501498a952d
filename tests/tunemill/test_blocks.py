"""Blocks: both families' are found, influence is the paper's, block by block each reads what was changed before, fewer is loadable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import blocks, losses, models, tuning
from tunemill.errors import UserError
from tunemill.losses import Encoded
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)
ROWS = [Encoded(list(range(20, 26 + 3 * at)), [40 + at] * (at % 3 + 1)) for at in range(6)]


def texts(model: Any, size: int = 4) -> list[blocks.Batch]:
    return blocks.batches(ROWS, 0, losses.start_token(model), size)


def test_the_blocks_of_both_families_are_found(either: Path) -> None:
    model = models.load_base(either, CPU)
    found = blocks.stacks(model)
    if model.config.is_encoder_decoder:
        assert [(each.half, each.path, len(each.blocks)) for each in found] == [
            ("encoder", "encoder.block", 2),
            ("decoder", "decoder.block", 2),
        ]
        assert len(blocks.linears(found[0].blocks[0])) == 4 + 3
        assert len(blocks.linears(found[1].blocks[0])) == 4 + 4 + 3
    else:
        assert [(each.half, each.path, len(each.blocks)) for each in found] == [("decoder", "model.layers", 4)]
        assert len(blocks.linears(found[0].blocks[0])) == 7


def test_gpt2s_layers_are_linear_layers_too() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=90))
    [stack] = blocks.stacks(model)
    found = blocks.linears(stack.blocks[0])
    assert {name: tuple(blocks.matrix(layer).shape) for name, layer in found.items()} == {
        "attn.c_attn": (96, 32),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (128, 32),
        "mlp.c_proj": (32, 128),
    }


def test_a_matrix_in_no_linear_layer_is_told() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=2, **sizes))
    with pytest.raises(UserError, match="MixtralDecoderLayer is a matrix in no linear layer"):
        blocks.linears(blocks.stacks(model)[0].blocks[0])


def test_influence_is_one_minus_the_cosine_over_real_tokens(either: Path) -> None:
    """The oracle: plain transformers' hidden states of each text by itself, without padding."""
    import torch

    model = models.load_base(either, CPU)
    found = blocks.influence(model, texts(model))
    start = losses.start_token(model)
    sums: dict[str, list[float]] = {half: [0.0] * len(each) for half, each in found.items()}
    tokens = dict.fromkeys(found, 0)
    with torch.no_grad():
        for row in ROWS:
            if start is None:
                out = model(torch.tensor([row.prompt + row.completion]), output_hidden_states=True)
                states = {"decoder": out.hidden_states}
            else:
                out = model(
                    torch.tensor([row.prompt]),
                    decoder_input_ids=torch.tensor([[start, *row.completion[:-1]]]),
                    output_hidden_states=True,
                )
                states = {"encoder": out.encoder_hidden_states, "decoder": out.decoder_hidden_states}
            for half, each in states.items():
                tokens[half] += each[0].shape[1]
                for at in range(len(sums[half]) - 1):  # what the last block writes is seen normalised alone
                    a, b = each[at][0].double(), each[at + 1][0].double()
                    sums[half][at] += float((1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).sum())
    for half, each in sums.items():
        for at in range(len(each) - 1):
            assert found[half][at] == pytest.approx(each[at] / tokens[half], rel=1e-4)  # type: ignore[index]
        assert 0 < found[half][-1] < 2  # type: ignore[index]


def test_a_block_that_does_nothing_has_no_influence(decoder: Path) -> None:
    import torch

    model = models.load_base(decoder, CPU)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_submodule(f"model.layers.2.{name}").weight.zero_()
    [found] = blocks.influence(model, texts(model)).values()
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert min(found[:2] + found[3:]) > 0.01
    assert blocks.most_influential(found, 3) == (0, 1, 3)
    # It is missed by nobody.
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        assert torch.allclose(
            blocks.with_blocks(model, {"decoder": [0, 1, 3]})(ids).logits, model(ids).logits, atol=1e-5
        )


def test_evenly_and_by_influence_keep_both_ends() -> None:
    assert blocks.evenly(30, 20)[0] == 0 and blocks.evenly(30, 20)[-1] == 29
    assert len({*blocks.evenly(30, 20)}) == 20
    assert blocks.evenly(12, 6) == (0, 2, 4, 7, 9, 11)
    assert blocks.evenly(4, 4) == (0, 1, 2, 3)
    assert blocks.most_influential([0.0, 0.3, 0.1, 0.2, 0.0], 3) == (0, 1, 4)
    for wrong in (1, 6):
        with pytest.raises(ValueError):
            blocks.evenly(5, wrong)
        with pytest.raises(ValueError):
            blocks.most_influential([0.1] * 5, wrong)


def test_each_block_reads_what_was_changed_before_it(either: Path) -> None:
    """Nothing changed: inputs as in the whole model. A block silenced: what the next one reads is what that model reads."""
    import torch

    model = models.load_base(either, CPU)
    given = texts(model)

    def seen(change: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for visit in blocks.each_block(model, given):
            parts: list[Any] = []
            layers = blocks.linears(visit.block)
            for name in (next(iter(layers)), next((each for each in layers if "EncDec" in each and "k" in each), None)):
                if name is not None:
                    visit.observe({name: layers[name]}, lambda _, read, parts=parts: parts.append(read.clone()))
            found[f"{visit.half}.{visit.number}"] = torch.cat(parts)
            if change and visit.number == 0:
                with torch.no_grad():
                    for layer in layers.values():
                        layer.weight.zero_()
        return found

    def oracle() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stack in blocks.stacks(model):
            for number, block in enumerate(stack.blocks):
                parts: list[Any] = []
                layers = blocks.linears(block)
                for name in (
                    next(iter(layers)),
                    next((each for each in layers if "EncDec" in each and "k" in each), None),
                ):
                    if name is None:
                        continue
                    for batch in given:
                        mask = batch.masks["encoder" if "EncDec" in name else stack.half]
                        hook = layers[name].register_forward_pre_hook(
                            lambda _, read, mask=mask, parts=parts: parts.append(read[0][mask].clone())
                        )
                        with torch.no_grad():
                            blocks.read(model, batch)
                        hook.remove()
                found[f"{stack.half}.{number}"] = torch.cat(parts)
        return found

    before = oracle()
    unchanged = seen(change=False)
    assert before.keys() == unchanged.keys()
    for name, each in before.items():
        assert torch.allclose(each, unchanged[name], atol=1e-5), name
    changed = seen(change=True)
    after = oracle()
    for name, each in after.items():
        if not name.endswith(".0"):
            assert torch.allclose(each, changed[name], atol=1e-5), name
    assert not torch.allclose(before["decoder.1"], after["decoder.1"], atol=1e-3)


def test_a_model_with_some_blocks_is_what_plain_transformers_loads(either: Path, tmp_path: Path) -> None:
    import torch

    model = models.load_base(either, CPU)
    kept = {stack.half: [0, len(stack.blocks) - 1][: len(stack.blocks) - 1] for stack in blocks.stacks(model)}
    small = blocks.with_blocks(model, kept)
    gone = [
        stack.blocks[at]
        for stack in blocks.stacks(model)
        for at in range(len(stack.blocks))
        if at not in kept[stack.half]
    ]
    cut = sum(each.numel() for block in gone for each in block.parameters())
    assert sum(each.numel() for each in small.parameters()) == sum(each.numel() for each in model.parameters()) - cut
    models.save(small, models.load_tokenizer(either), tmp_path / "small", "float32")
    again = models.load_base(tmp_path / "small", CPU)
    batch = texts(model)[0].inputs
    with torch.no_grad():
        ours, theirs = (losses.completion_logits(each, batch)[0] for each in (small, again))
    assert torch.equal(ours, theirs)
    # The oracle: the big model's own forward with the list shortened by hand.
    for stack in blocks.stacks(model):
        place = model.get_submodule(stack.path.rpartition(".")[0])
        setattr(place, stack.path.rpartition(".")[2], torch.nn.ModuleList(stack.blocks[at] for at in kept[stack.half]))
        place.config.num_hidden_layers = len(kept[stack.half])
    with torch.no_grad():
        assert torch.equal(losses.completion_logits(model, batch)[0], theirs)


def test_what_a_configuration_says_of_each_layer_goes_with_it() -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )
    torch.manual_seed(0)
    small = blocks.with_blocks(Qwen2ForCausalLM(config).eval(), {"decoder": [0, 3]})
    assert small.config.layer_types == ["full_attention", "sliding_attention"]
    assert config.num_hidden_layers == 4


def test_an_output_head_of_its_own_stays_one(encoder_decoder: Path, tmp_path: Path) -> None:
    import torch

    model = models.load_base(encoder_decoder, CPU)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    small = blocks.with_blocks(model, {"encoder": [0], "decoder": [0]})
    assert torch.equal(small.lm_head.weight, model.lm_head.weight)
    assert torch.equal(small.get_input_embeddings().weight, model.get_input_embeddings().weight)
    models.save(small, models.load_tokenizer(encoder_decoder), tmp_path / "small", "float32")
    again = models.load_base(tmp_path / "small", CPU)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_what_the_first_block_holds_for_all_is_not_cut_off(encoder_decoder: Path) -> None:
    model = models.load_base(encoder_decoder, CPU)
    with pytest.raises(UserError, match="the encoder's block 0 holds what its other blocks use too"):
        blocks.with_blocks(model, {"encoder": [1], "decoder": [0, 1]})


def test_no_texts_are_refused(decoder: Path) -> None:
    with pytest.raises(UserError, match="no texts to calibrate with"):
        blocks.batches(tuning.spread([], 4), 0, None, 4)


def test_windows_that_see_no_further_are_kept() -> None:
    import torch

    model = tiny_model.forgetful(64)
    small = blocks.with_blocks(model, {"decoder": [0, 1]})
    ids = torch.arange(60)[None] % 64
    with torch.no_grad():
        assert torch.equal(small(ids).logits, model(ids).logits)
