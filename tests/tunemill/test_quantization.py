"""int8 by hand, SmoothQuant by its equation, calibration, learning on while rounded, and plain transformers loading it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import losses, models, quantization
from tunemill.errors import UserError
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantization") / "model"
    tiny_model.build(place)
    return place


def pairs(folder: Path, count: int) -> list[losses.Encoded]:
    tokenizer = models.load_tokenizer(folder)
    return [
        losses.Encoded(models.render_prompt(tokenizer, line), models.render_completion(tokenizer, line))
        for line in tiny_model.corpus()[:count]
    ]


def logits(model: Any, row: losses.Encoded) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits.float()


def test_int8_rounds_every_row_by_its_largest_weight(folder: Path) -> None:
    import torch

    model = models.load_base(folder, CPU)
    before = {name: layer.weight.detach().clone() for name, layer in quantization.linears(model).items()}
    quantization.quantize_int8(model, "int8")
    for name, layer in quantization.linears(model).items():
        scale = before[name].abs().amax(dim=1, keepdim=True) / 127.5  # torchao's range is [-128, 127]
        assert layer.weight.qdata.dtype == torch.int8
        off = (layer.weight.dequantize() - before[name]).abs()
        assert bool((off <= 0.51 * scale).all()), name
    assert type(model.get_input_embeddings().weight.data).__name__ == "Int8Tensor"
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("method", "smooth"),
    [("int8", None), ("int8-dynamic", None), ("int8-dynamic", 0.5), ("int8-static", None), ("int8-static", 0.5)],
)
def test_plain_transformers_loads_it_and_says_the_same(
    folder: Path, tmp_path: Path, method: quantization.Method, smooth: float | None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = pairs(folder, 6)
    model = models.load_base(folder, CPU)
    exact = logits(model, rows[0])
    ranges = quantization.calibrate(model, rows)
    settings = quantization.quantize_int8(model, method, ranges, smooth)
    models.save_int8(model, models.load_tokenizer(folder), tmp_path / "model", settings)
    ours = logits(model, rows[0])
    assert torch.equal(logits(models.load_base(tmp_path / "model", CPU), rows[0]), ours)  # embeddings row by row
    if method != "int8-static":  # whose ranges transformers does not read (`quantization.fill`)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        assert torch.equal(ours, logits(plain, rows[0]))
    spread = float(exact.std())
    assert float((ours - exact).abs().mean()) < 0.1 * spread
    assert models.is_quantized(tmp_path / "model") and not models.is_quantized(folder)
    full = sum(each.numel() for each in models.load_base(folder, CPU).parameters()) * 4
    assert models.weight_bytes(tmp_path / "model") < 0.5 * full  # so narrow a model has much beside its weights


def test_smoothing_is_the_papers_equation_and_changes_nothing_before_rounding(folder: Path) -> None:
    import torch

    features, weight = torch.tensor([8.0, 0.5, 2.0]), torch.tensor([[1.0, -2.0, 0.5], [0.25, 4.0, -0.1]])
    found = quantization.smoothing(features, weight, 0.5)
    assert torch.allclose(found, torch.tensor([(8 / 1) ** 0.5, (0.5 / 4) ** 0.5, (2 / 0.5) ** 0.5]))
    assert torch.allclose(
        quantization.smoothing(features, weight, 0.75), features**0.75 / weight.abs().amax(dim=0) ** 0.25
    )
    given = torch.randn(5, 3)
    assert torch.allclose((given / found) @ (weight * found).T, given @ weight.T, atol=1e-6)
    assert torch.isfinite(quantization.smoothing(torch.zeros(3), torch.zeros(2, 3), 0.5)).all()


def test_an_outlying_feature_is_what_smoothquant_is_for(folder: Path) -> None:
    """One feature a hundred times the others: rounding activations loses the others, unless it is smoothed."""
    import torch

    rows = pairs(folder, 6)

    def off(smooth: float | None) -> float:
        model = models.load_base(folder, CPU)
        with torch.no_grad():  # the same function, with one input of a layer a hundred times as large
            block = model.model.layers[0]
            block.post_attention_layernorm.weight[3] *= 100
            for layer in (block.mlp.gate_proj, block.mlp.up_proj):
                layer.weight[:, 3] /= 100
        exact = logits(model, rows[0])
        quantization.quantize_int8(model, "int8-static", quantization.calibrate(model, rows), smooth)
        return float((logits(model, rows[0]) - exact).abs().mean())

    assert off(0.5) < 0.5 * off(None)


def test_calibration_sees_the_largest_and_needs_rows(folder: Path) -> None:
    rows = pairs(folder, 4)
    model = models.load_base(folder, CPU)
    one, all_ = quantization.calibrate(model, rows[:1]), quantization.calibrate(model, rows)
    assert set(one) == set(quantization.linears(model))
    for name, seen in one.items():
        assert bool((all_[name].features >= seen.features).all())
        assert all_[name].largest == float(all_[name].features.max())
    with pytest.raises(UserError, match=r"no rows to calibrate with") as told:
        quantization.calibrate(model, [])
    assert "quantize.calibration_items" in str(told.value) and "without calibration" in str(told.value)


def test_what_is_quantized_already_is_not_quantized_again(folder: Path) -> None:
    model = models.load_base(folder, CPU)
    quantization.quantize_int8(model, "int8")
    layer = next(iter(quantization.linears(model).values()))
    layer.weight.requires_grad_(False)
    import torch

    layer.weight = torch.nn.Parameter(layer.weight.qdata, requires_grad=False)
    with pytest.raises(UserError, match=r"weights that int8 does not support: torch.int8"):
        quantization.quantize_int8(model, "int8")


def test_int8_computes_in_the_format_that_is_asked_for_wherever_it_is_moved(folder: Path, tmp_path: Path) -> None:
    import torch

    model = models.load_base(folder, CPU)
    settings = quantization.quantize_int8(model, "int8")
    models.save_int8(model, models.load_tokenizer(folder), tmp_path / "model", settings)
    small = models.load_base(tmp_path / "model", Runtime("cpu", "bfloat16", 2))
    ids = torch.arange(5)[None]
    with torch.inference_mode():
        found = small(input_ids=ids, output_hidden_states=True)
    assert {each.dtype for each in (*found.hidden_states, found.logits)} == {torch.bfloat16}
    moved = small.to("meta")
    assert moved.get_input_embeddings()(ids.to("meta")).device.type == "meta"


def test_layers_that_are_no_linear_layers_are_told() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"layer 'transformer.h.0.attn.c_attn' \(Conv1D\) has weights that no method"):
        quantization.quantize_int8(model, "int8")


def test_rounded_weights_learn_and_come_back_as_plain_layers(folder: Path) -> None:
    import torch

    model = models.load_base(folder, CPU)
    kinds = [type(module) for module in model.modules()]
    exact = logits(model, pairs(folder, 1)[0])
    quantization.rounded(model, 4, 16)
    row = pairs(folder, 1)[0]
    assert float((logits(model, row) - exact).abs().max()) > 1e-3  # it rounds as it computes
    model.train()
    layer = next(iter(quantization.linears(model).values()))
    losses.completion_loss(model, losses.collate([row], 0, None)).backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.abs().sum() > 0)  # straight through the rounding
    with torch.no_grad():
        layer.weight += 0.25
    trained = layer.weight.detach().clone()
    quantization.unrounded(model).eval()
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(next(iter(quantization.linears(model).values())).weight, trained)
    with pytest.raises(UserError, match=r"which groups of 7 do not divide"):
        quantization.rounded(model, 4, 7)
