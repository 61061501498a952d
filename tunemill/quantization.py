"""Weights, and activations, in eight or four bits: through torchao and bitsandbytes, with what they need to know of the activations.

    int8          a weight w of an output row is round(w / s), s = max|w| / 127 of the row; activations as they are
    int8-dynamic  activations too, with s of each token when it comes
    int8-static   activations too, with one s for a layer, measured beforehand on calibration rows
    nf4           four bits on a grid of normal quantiles, blocks of 64 (Dettmers et al. 2023)

SmoothQuant (Xiao et al. 2023, equation 4) moves what is difficult about activations into the weights: feature j of a layer's input is
divided by s_j = max|X_j|^α / max|W_j|^(1-α), column j of its weight multiplied by it. Here the division stays a factor of the layer
(torchao's `act_pre_scale`), so that it works for every architecture; the paper folds it into the layer before.

The embeddings, which are the output head too where the two are tied, are int8 by rows in all int8 methods: in a small model they are a
fifth of the weights. Their activations, and the head's, are never quantized.

Quantisation-aware training rounds the weights in every forward pass and passes gradients through as if it had not (torchao's
`QATConfig`): the weights settle where rounding costs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunemill import losses
from tunemill.errors import UserError
from tunemill.losses import Encoded

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Method = Literal["int8", "int8-dynamic", "int8-static", "nf4", "gguf"]

NAMES = {
    "int8": "int8 weights",
    "int8-dynamic": "int8 weights and activations",
    "int8-static": "int8 weights and activations, calibrated",
    "nf4": "4-bit weights (NF4)",
}
"""Method → what people call it."""

CALIBRATED = ("int8-static",)
"""Methods that always need calibration rows; with SmoothQuant int8-dynamic does as well."""

LEAST = 1e-5
"""Smallest scale: a feature that never moved keeps its own."""


class Range(NamedTuple):
    """What a linear layer was given on the calibration rows."""

    largest: float
    """max|X|."""
    features: torch.Tensor
    """max|X_j| of each input feature, (in,)."""


def linears(model: Any) -> dict[str, Any]:
    """The linear layers inside the blocks: all but the output head.

    Raises:
        UserError: there are other layers with matrices.
    """
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        known = isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
        if not known and any(each.ndim > 1 for each in module.parameters(recurse=False)):
            raise UserError(
                f"layer '{name}' ({type(module).__name__}) has weights that no method here rounds",
                where="params.yaml: quantize.variants",
                expected="a model of linear layers and embeddings",
                fix="choose the method gguf, or take the run out of extra.quantize and variants",
            )
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def calibrate(model: Any, rows: Sequence[Encoded]) -> dict[str, Range]:
    """What every linear layer is given when the model reads some pairs.

    Args:
        model: in evaluation mode, of either family; floating-point weights.
        rows: pairs, each read alone.

    Returns:
        Name of the layer → range.

    Raises:
        UserError: there is nothing to calibrate with.
    """
    import torch

    if not rows:
        raise UserError(
            "no rows to calibrate with",
            where="params.yaml: quantize.calibration_items",
            expected="at least one training pair within max_tokens",
            fix="raise calibration_items or qat.max_tokens, or choose a method without calibration: int8, nf4, gguf",
        )
    found: dict[str, torch.Tensor] = {}
    hooks = []
    for name, layer in linears(model).items():

        def look(_: Any, given: Any, name: str = name) -> None:
            largest = given[0].detach().float().abs().reshape(-1, given[0].shape[-1]).amax(dim=0)
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        hooks.append(layer.register_forward_pre_hook(look))
    try:
        with torch.inference_mode():
            for row in rows:
                batch = losses.collate([row], 0, losses.start_token(model))
                losses.completion_logits(model, {name: each.to(model.device) for name, each in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Range(float(largest.max()), largest.clone()) for name, largest in found.items()}


def smoothing(features: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """SmoothQuant's s_j, (in,): what feature j is divided by, and column j of the weight multiplied by.

    Args:
        features: max|X_j|, (in,).
        weight: (out, in).
        alpha: how much of the difficulty goes to the weights; 0.5 shares it.
    """
    columns = weight.detach().float().abs().amax(dim=0).clamp(min=LEAST)
    return (features.float().clamp(min=LEAST) ** alpha / columns ** (1 - alpha)).clamp(min=LEAST)


def quantize_int8(
    model: Any, method: Method, ranges: Mapping[str, Range] | None = None, smooth: float | None = None
) -> Any:
    """Quantize a model in place, and note in its configuration how it is to be loaded.

    Args:
        model: float32, in evaluation mode.
        method: one of the int8 methods.
        ranges: of the activations, where the method or SmoothQuant needs them.
        smooth: SmoothQuant's α; None is without.

    Returns:
        The torchao configuration, for config.json.

    Raises:
        UserError: a layer that the method does not support.
    """
    import torch
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8StaticActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        PerTensor,
        quantize_,
    )

    weights = Int8WeightOnlyConfig(set_inductor_config=False)
    dynamic = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    settings: dict[str, Any] = {"int8": weights, "int8-dynamic": dynamic, "int8-static": dynamic}
    for name, layer in linears(model).items():
        if not layer.weight.is_floating_point() or layer.weight.ndim != 2:
            raise UserError(
                f"layer '{name}' has weights that {method} does not support: {layer.weight.dtype}, {layer.weight.ndim} dimensions",
                where="params.yaml: quantize.variants",
                expected="a matrix of floating-point weights",
                fix="start from a model that has not been quantized",
            )
        chosen = settings[method]
        scale = None
        largest = 0.0
        if ranges is not None and (smooth is not None or method == "int8-static"):
            seen = ranges[name]
            largest = seen.largest
            if smooth is not None:
                scale = smoothing(seen.features.to(layer.weight.device), layer.weight, smooth)
                layer.weight.data.mul_(scale)
                largest = float((seen.features.cpu() / scale.cpu()).max())
        if method == "int8-static":
            step = torch.full((1, 1, 1), max(largest, LEAST) / 127, dtype=torch.float32)
            chosen = Int8StaticActivationInt8WeightConfig(
                act_quant_scale=step, granularity=[PerTensor(), PerRow()], set_inductor_config=False, version=1
            )
        quantize_(layer, chosen, filter_fn=lambda *_: True)
        if scale is not None:
            layer.weight.act_pre_scale = 1 / scale
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    shared = [module for module in model.modules() if getattr(module, "weight", None) is embedding.weight]
    quantize_(embedding, weights, filter_fn=lambda *_: True)
    for module in shared:
        module.weight = embedding.weight
    if head is not None and head.weight is not embedding.weight:
        quantize_(head, weights, filter_fn=lambda *_: True)
    return settings[method]


def rounded(model: Any, bits: Literal[4, 8], group: int) -> Any:
    """Let the linear layers round their weights as they compute, and pass gradients through (QAT), until `unrounded`.

    Args:
        model: float32; its weights are trained as they are.
        bits: of the grid; 4 in groups of `group` weights, 8 by rows.
        group: weights that share a scale.

    Raises:
        UserError: groups do not divide a layer's rows.
    """
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    own = linears(model)
    for name, layer in own.items():
        if bits == 4 and layer.weight.shape[-1] % group:
            raise UserError(
                f"layer '{name}' has rows of {layer.weight.shape[-1]} weights, which groups of {group} do not divide",
                where="params.yaml: quantize.variants",
                fix="leave qat off for this model",
            )
    grid = (
        IntxFakeQuantizeConfig(torch.int4, group_size=group, is_symmetric=True)  # type: ignore[attr-defined]
        if bits == 4
        else IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
    )
    quantize_(model, QATConfig(weight_config=grid, step="prepare"), filter_fn=lambda _, name: name in own)
    return model


def unrounded(model: Any) -> Any:
    """The model with plain layers again, and the weights that it has learnt."""
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    for name, layer in list(model.named_modules()):
        if isinstance(layer, FakeQuantizedLinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.to_linear())
    return model


def fill(model: Any, file: Path) -> None:
    """Give a model the weights that `flattened` has taken apart.

    `from_pretrained` does the same, but for one thing: in transformers 5.23 it does not know static ranges of activations.

    Args:
        model: of the same configuration; its weights are replaced.
        file: safetensors.
    """
    import torch
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        state, _ = unflatten_tensor_state_dict({name: opened.get_tensor(name) for name in opened.keys()}, metadata)  # noqa: SIM118
    number = next(iter(model.parameters())).dtype
    plain = {name: value.to(number) if type(value) is torch.Tensor else value for name, value in state.items()}
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    model.load_state_dict(plain, strict=False, assign=True)
    for names in tied.values():
        first, *others = sorted(names, key=lambda name: name not in plain)
        for name in others:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, model.get_parameter(first))
    exact_rows(model, number)


def exact_rows(model: Any, number: torch.dtype) -> None:
    """Let int8 embeddings expand the rows that are read alone, in the format that is computed in.

    In float32 these are torchao's numbers, which expands all rows each time, and to float32 whatever the rest computes in.
    """
    import torch
    from torchao.quantization import Int8Tensor

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and isinstance(module.weight.data, Int8Tensor):

            def rows(ids: torch.Tensor, module: Any = module) -> Any:
                kept = module.weight  # wherever it has been moved to since
                return (kept.qdata[ids].to(kept.scale.dtype) * kept.scale[ids]).to(number)

            module.forward = rows  # type: ignore[method-assign, assignment]


def flattened(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A quantized model's tensors and metadata as safetensors takes them, tied ones once.

    (transformers writes a tied pair twice, since it looks for shared memory after torchao has taken the tensors apart.)
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    once = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    state = {name: value for name, value in model.state_dict().items() if name not in again}
    tensors, metadata = flatten_tensor_state_dict(state)
    return dict(sorted(tensors.items())), {**dict(sorted(metadata.items())), "format": "pt"}
