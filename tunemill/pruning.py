"""Pruning: weights, channels, heads and blocks that matter least are taken out of a tuned model.

**Unstructured**: single weights of the blocks' linear layers become zero; embeddings and the output head stay whole.

- `magnitude`: the smallest |W_ij|, compared within each matrix (the baseline of Sun et al. 2023; "uniform" of Zhu & Gupta 2017).
- `wanda`: the smallest |W_ij| · ‖X_j‖₂ (Sun et al. 2023, eq. 1), X_j being what input j was on calibration texts, compared within each
  output row, so that every row loses the same share. Block by block: a block is scored on what the *pruned* blocks before it write.

No speed is gained from zeros without kernels for sparse matrices, and none is claimed.

**Structured**: what is left is an ordinary smaller model, which plain transformers loads, because the configuration says all about its
shape. First whole blocks, those of least influence (Men et al. 2024); then, in each block that is left and block by block, groups of
attention heads (keys and values with the queries that read them) and feed-forward channels, as many everywhere, since a
configuration has one width for all. A channel's score is Wanda's for a column that goes as a whole, ‖W_:j‖₂ · ‖X_j‖₂, a head's
likewise ‖W_:g X_g‖: how far the block's output moves when this one alone is taken out. What those that go wrote is then put on those
that stay, as far as they foretell it on the calibration texts (least squares, as in OBC, Frantar & Alistarh 2022, for columns that go
together): with R what goes, S what stays, C = XᵀX,

    W_S ← W_S + W_R · C_RS · (C_SS + λ·I)⁻¹,  λ a tenth of C_SS's mean diagonal

**Recovery**: a low-rank update trained afterwards. On a pruned matrix it would fill the zeros again, and cutting them out once more
after training would leave another model than the one that was trained. So the update is masked while it is trained, W + M ∘ (α/r · B·A)
with M 0 where W is 0 (as SparsePEFT does, Muñoz et al. 2024): what is merged is exactly what was trained, with exactly the same zeros.
It costs a product of B and A for each layer and step.

Pure: models in, models out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunemill import blocks
from tunemill.blocks import Batch, Half, Visit
from tunemill.errors import UserError

if TYPE_CHECKING:
    import torch

Group = Literal["row", "matrix"]
"""What weights are compared within: an output row, or the whole matrix."""

MULTIPLE = 32
"""Feed-forward widths stay a multiple of it: vector units like it, and GGUF's blocks of 32 weights need it."""

DAMPING = 0.1
"""λ of the least squares, as a share of C_SS's mean diagonal. A hundredth, as GPTQ has it, fits a few thousand tokens too closely: with
2,500 of them, the default model's perplexity at 25% was 34.7 with a hundredth, 30.3 with a tenth and 31.0 with three tenths."""

CLOSE = 0.005
"""Share of the parameters by which blocks and heads alone may miss the sparsity that was asked for."""


class FeedForward(NamedTuple):
    """What a family calls its feed-forward layers."""

    up: tuple[str, ...]
    down: str
    width: str
    """The configuration's key of how many channels lie between them."""


class Attention(NamedTuple):
    """What a family calls its attention's layers."""

    query: str
    key: str
    value: str
    output: str


FEED_FORWARDS = (
    FeedForward(("gate_proj", "up_proj"), "down_proj", "intermediate_size"),  # Llama and most of its kin
    FeedForward(("wi_0", "wi_1"), "wo", "d_ff"),  # T5 1.1, FLAN-T5
    FeedForward(("wi",), "wo", "d_ff"),  # T5
)
ATTENTION = Attention("q_proj", "k_proj", "v_proj", "o_proj")


class Sparsity(NamedTuple):
    """Shares of zeros."""

    linears: float
    """Among the weights of the blocks' linear layers."""
    everything: float
    """Among all parameters, embeddings and output head included; tied ones count once."""


class Structure(NamedTuple):
    """How much of what goes."""

    layers: int
    """Whole blocks, in each half of an encoder-decoder."""
    groups: int
    """Groups of heads in each block that is left."""
    channels: int
    """Feed-forward channels in each block that is left."""
    share: float
    """Of the parameters of the blocks' linear layers, all together."""


class Removed(NamedTuple):
    """What went, by the numbers it had."""

    layers: dict[Half, list[int]]
    """Half → blocks."""
    groups: dict[Half, list[list[int]]]
    """Half → for each block that is left the groups of heads."""
    channels: dict[Half, list[list[int]]]
    """Half → for each block that is left the feed-forward channels."""


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def wanda_scores(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|W_ij| · ‖X_j‖₂ (Sun et al. 2023, eq. 1): (out, in), in float32.

    Args:
        weight: (out, in).
        norms: ‖X_j‖₂ of each input over all tokens, (in,).
    """
    return weight.float().abs() * norms


def least(scores: torch.Tensor, sparsity: float, within: Group) -> torch.Tensor:
    """Which weights go: True for the share `sparsity` with the smallest scores, within each row or in the whole.

    Of equal scores the first go, so each row (or the matrix) loses exactly its number, rounded to whole weights.

    Args:
        scores: (out, in).
        sparsity: share, between 0 and 1.
        within: what weights are compared with.
    """
    import torch

    table = scores if within == "row" else scores.reshape(1, -1)
    count = round(sparsity * table.shape[1])
    order = table.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(table, dtype=torch.bool).scatter_(1, order, True).view_as(scores)


def norms_of(visit: Visit, layers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """‖X_j‖₂ of what each layer reads, over all tokens of the texts: name → (in,)."""
    import torch

    squares: dict[str, torch.Tensor] = {}

    def tell(name: str, read: torch.Tensor) -> None:  # (N, in)
        more = read.double().square().sum(dim=0)
        squares[name] = squares[name] + more if name in squares else more

    visit.observe(layers, tell)
    return {name: torch.sqrt(each).float() for name, each in squares.items()}


# ── unstructured ──────────────────────────────────────────────────────────────────────────────────────────────────


def prune_weights(
    model: Any,
    method: Literal["magnitude", "wanda"],
    sparsity: float,
    texts: Sequence[Batch],
    each: Callable[[int], None] = lambda done: None,
) -> None:
    """Set the least of the blocks' linear weights to zero, in place.

    Args:
        model: in evaluation mode.
        method: how they are scored.
        sparsity: share of zeros in each matrix, of Wanda in each row.
        texts: to calibrate Wanda with; magnitude reads none.
        each: told of every block, how many are done.

    Raises:
        UserError: a block holds a matrix that is no linear layer's.
    """
    if method == "magnitude":
        everywhere = [block for stack in blocks.stacks(model) for block in stack.blocks]
        for done, block in enumerate(everywhere, start=1):
            for layer in blocks.linears(block).values():
                weight = blocks.matrix(layer)
                weight[least(weight.float().abs(), sparsity, "matrix")] = 0
            each(done)
        return
    for done, visit in enumerate(blocks.each_block(model, texts), start=1):
        found = blocks.linears(visit.block)
        norms = norms_of(visit, found)
        for name, layer in found.items():
            weight = blocks.matrix(layer)
            weight[least(wanda_scores(weight, norms[name]), sparsity, "row")] = 0
        each(done)


def sparsity_of(model: Any) -> Sparsity:
    """Count the zeros, in the number format that the model is in."""
    layers = [
        layer for stack in blocks.stacks(model) for block in stack.blocks for layer in blocks.linears(block).values()
    ]
    zeros, sizes = ([count(layer.weight) for layer in layers] for count in (_zeros, _size))
    everything = list(model.parameters())  # shared ones once
    return Sparsity(sum(zeros) / sum(sizes), sum(map(_zeros, everything)) / sum(map(_size, everything)))


def _zeros(weight: torch.Tensor) -> int:
    return int((weight == 0).sum())


def _size(weight: torch.Tensor) -> int:
    return weight.numel()


# ── structured ────────────────────────────────────────────────────────────────────────────────────────────────────


def structure(model: Any, sparsity: float, layers: int, groups: int, where: str) -> Structure:
    """How many feed-forward channels go beside whole blocks and groups of heads, so that `sparsity` of the parameters do.

    Args:
        model: as it is.
        sparsity: share of the parameters of the blocks' linear layers that is to go.
        layers: whole blocks, of each half.
        groups: groups of heads, of each block that is left.
        where: the variant's key in params.yaml, for messages.

    Raises:
        UserError: blocks and heads alone are more than that, something would have none left, or the configuration cannot say it.
    """
    halves = blocks.stacks(model)
    sizes = [[sum(map(_size, _weights(block))) for block in stack.blocks] for stack in halves]
    total, shallowest = sum(map(sum, sizes)), min(len(stack.blocks) for stack in halves)
    if layers > shallowest - 2:
        raise _too_much(
            f"{layers} of {shallowest} blocks", where, "layers", f"at most {shallowest - 2}: two stay at least"
        )
    left = [len(stack.blocks) - layers for stack in halves]
    gone = sum(layers * sum(each) / len(each) for each in sizes)  # the blocks of a half are alike
    if groups:
        for stack, number in zip(halves, left, strict=True):
            gone += number * groups * _group_size(model, stack.blocks[0], groups, where)
    channels, wanted = 0, sparsity * total - gone
    if wanted < -CLOSE * total:
        raise _too_much(
            f"{layers} blocks and {groups} groups of heads in each other are {gone / total:.1%} of the parameters already",
            where,
            "sparsity",
            f"at least {gone / total:.3f}, or fewer of them",
        )
    names = [_feed_forward(stack.blocks[0]) for stack in halves]
    if any(each is None for each in names):
        if wanted > CLOSE * total:
            raise UserError(
                f"{type(model).__name__} has no feed-forward layers that can be made narrower",
                where=f"params.yaml: {where}",
                expected="up and down projections of one width for all blocks, called as in Llama or T5",
                fix="take out whole blocks alone: as many `layers` as make the sparsity",
                exit_code=2,
            )
    elif wanted > 0:
        finest, width = _finest(halves, left) / MULTIPLE, min(_width(stack.blocks[0]) for stack in halves)
        kept = MULTIPLE * round((width - wanted / finest) / MULTIPLE)
        if kept < MULTIPLE:
            raise _too_much(
                f"{sparsity:.0%} would leave {width - wanted / finest:.0f} of {width} feed-forward channels",
                where,
                "sparsity",
                f"less, or more layers and groups: at least {MULTIPLE} channels stay",
            )
        channels = max(0, width - kept)
        gone += channels * finest
    if not layers and not groups and not channels:
        raise _too_much(
            f"{sparsity:.1%} is less than the {MULTIPLE} feed-forward channels that are taken at once",
            where,
            "sparsity",
            f"more, at least {_finest(halves, left) / 2 / total:.3f}",
        )
    return Structure(layers, groups, channels, gone / total)


def prune_structure(
    model: Any,
    wanted: Structure,
    texts: Sequence[Batch],
    each: Callable[[int], None] = lambda done: None,
) -> tuple[Any, Removed]:
    """Take whole blocks, groups of heads and feed-forward channels out.

    Args:
        model: in evaluation mode; its weights are changed.
        wanted: how many, from `structure`.
        texts: to see with what matters.
        each: told of every block that is left, how many are done.

    Returns:
        The smaller model, and what is missing in it.
    """
    removed = Removed({}, {}, {})
    # 1. Whole blocks: those of least influence, on the model as it is.
    halves = {stack.half: len(stack.blocks) for stack in blocks.stacks(model)}
    influences = blocks.influence(model, texts) if wanted.layers else {}
    kept = {
        half: blocks.most_influential(influences[half], depth - wanted.layers) if wanted.layers else tuple(range(depth))
        for half, depth in halves.items()
    }
    for half, depth in halves.items():
        removed.layers[half] = sorted({*range(depth)} - {*kept[half]})
        removed.groups[half], removed.channels[half] = [], []
    if wanted.layers:
        model = blocks.with_blocks(model, kept)
    if not wanted.groups and not wanted.channels:
        return model, removed

    # 2. Block by block: what moves a block's output least. Its outgoing weights become zero, which is the same as its absence,
    # after those that stay have taken over what they can.
    for done, visit in enumerate(blocks.each_block(model, texts), start=1):
        outgoing, heads = _outgoing(model, visit.block, wanted)
        products = products_of(visit, outgoing)
        for name, layer in outgoing.items():
            wide, count = (heads[name], wanted.groups) if name in heads else (1, wanted.channels)
            weight = blocks.matrix(layer)
            gone = sorted(damages(weight, products[name], wide).argsort(stable=True)[:count].tolist())
            take_over(weight, products[name], [at * wide + offset for at in gone for offset in range(wide)])
            (removed.groups if name in heads else removed.channels)[visit.half].append(gone)
        each(done)

    # 3. The same model without them.
    return narrowed(model, removed), removed


def products_of(visit: Visit, layers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """C = XᵀX of what each layer reads, over all tokens of the texts: name → (in, in)."""
    products: dict[str, torch.Tensor] = {}

    def tell(name: str, read: torch.Tensor) -> None:  # (N, in)
        more = read.float().T @ read.float()
        products[name] = products[name] + more if name in products else more

    visit.observe(layers, tell)
    return products


def damages(weight: torch.Tensor, products: torch.Tensor, wide: int) -> torch.Tensor:
    """How far a layer's output moves, summed over tokens, when one group of its inputs is taken out: ‖W_g X_g‖² = tr(W_g C_gg W_gᵀ).

    Args:
        weight: (out, in).
        products: C = XᵀX, (in, in).
        wide: inputs in a group, one after the other.

    Returns:
        One number for each group, (in / wide,).
    """
    import torch

    parts = [slice(at, at + wide) for at in range(0, weight.shape[1], wide)]
    if wide == 1:
        return weight.float().square().sum(dim=0) * products.diagonal()
    found = [((weight[:, part].float() @ products[part, part]) * weight[:, part].float()).sum() for part in parts]
    return torch.stack(found)


def take_over(weight: torch.Tensor, products: torch.Tensor, gone: Sequence[int]) -> None:
    """Take inputs out of a layer, in place, and put what they wrote on those that stay, as far as those foretell it.

    Least squares: the W_S nearest to the old output on the calibration texts, damped towards the old W_S. What wrote nothing leaves
    the others as they are.

    Args:
        weight: (out, in).
        products: C = XᵀX, (in, in).
        gone: inputs that go; their weights become zero.
    """
    import torch

    stays = _rest(weight.shape[1], gone, 1)
    own = products[stays][:, stays].double()  # C_SS
    own += DAMPING * own.diagonal().mean() * torch.eye(len(stays), dtype=own.dtype, device=own.device)
    wrote = weight[:, gone].double() @ products[gone][:, stays].double()  # W_R · C_RS
    more = torch.linalg.solve(own, wrote.T).T
    weight[:, stays] = (weight[:, stays].double() + more).to(weight.dtype)
    weight[:, gone] = 0


def narrowed(model: Any, removed: Removed) -> Any:
    """A model without some groups of heads and channels; its configuration says so.

    Args:
        model: left as it is.
        removed: groups and channels by their numbers, as many in every block; its blocks are those that are left already.
    """
    import torch

    config, weights = copy.deepcopy(model.config), dict(model.state_dict())
    for stack in blocks.stacks(model):
        for at, block in enumerate(stack.blocks):
            cuts: list[tuple[str, int, list[int]]] = []  # (layer, dimension, what stays)
            gone = removed.channels[stack.half][at] if removed.channels[stack.half] else []
            if gone:
                place, names = _found(block)
                stays = _rest(_width(block), gone, 1)
                cuts += [(place + name, 0, stays) for name in names.up] + [(place + names.down, 1, stays)]
                setattr(config, names.width, len(stays))
            gone = removed.groups[stack.half][at] if removed.groups[stack.half] else []
            if gone:
                place, width, ratio = _attention(block), _head_width(config), _ratio(model.config)
                own = _rest(model.config.num_key_value_heads, gone, width)
                asking = _rest(model.config.num_key_value_heads, gone, width * ratio)
                cuts += [(place + ATTENTION.key, 0, own), (place + ATTENTION.value, 0, own)]
                cuts += [(place + ATTENTION.query, 0, asking), (place + ATTENTION.output, 1, asking)]
                config.num_key_value_heads = len(own) // width
                config.num_attention_heads = ratio * config.num_key_value_heads
                config.head_dim = width  # no longer what the hidden size makes of the number of heads
            for name, dimension, stays in cuts:
                for kind in ("weight", "bias"):
                    key = f"{stack.path}.{at}.{name}.{kind}"
                    if key in weights and (kind == "weight" or dimension == 0):
                        weights[key] = weights[key].index_select(
                            dimension, torch.tensor(stays, device=weights[key].device)
                        )
    return blocks.rebuilt(model, config, weights)


def _rest(count: int, gone: Sequence[int], wide: int) -> list[int]:
    """Places that are left of `count` groups of `wide` each."""
    return [at * wide + offset for at in range(count) if at not in {*gone} for offset in range(wide)]


def _outgoing(model: Any, block: Any, wanted: Structure) -> tuple[dict[str, Any], dict[str, int]]:
    """The layers whose inputs are to go, by name, and of those that read heads how many inputs make a group."""
    layers, outgoing, heads = blocks.linears(block), {}, {}
    if wanted.channels:
        place, names = _found(block)
        outgoing[place + names.down] = layers[place + names.down]
    if wanted.groups:
        name = _attention(block) + ATTENTION.output
        outgoing[name], heads[name] = layers[name], _head_width(model.config) * _ratio(model.config)
    return outgoing, heads


def _weights(block: Any) -> Iterator[Any]:
    return (layer.weight for layer in blocks.linears(block).values())


def _feed_forward(block: Any) -> tuple[str, FeedForward] | None:
    """(name of the module that holds them with a dot, what they are called); None where there are none, or several."""
    import torch

    known = {name for name, each in block.named_modules() if isinstance(each, torch.nn.Linear)}
    for names in FEED_FORWARDS:
        places = [name.removesuffix(names.down) for name in known if name.rpartition(".")[2] == names.down]
        fitting = [place for place in places if all(place + each in known for each in names.up)]
        if len(fitting) == 1:
            return fitting[0], names
    return None


def _found(block: Any) -> tuple[str, FeedForward]:
    found = _feed_forward(block)
    assert found is not None  # `structure` has looked
    return found


def _width(block: Any) -> int:
    place, names = _found(block)
    return int(blocks.linears(block)[place + names.down].in_features)


def _finest(halves: Sequence[blocks.Stack], left: Sequence[int]) -> float:
    """Parameters of `MULTIPLE` channels in every block that is left; 0 where there are none that can go."""
    total = 0
    for stack, number in zip(halves, left, strict=True):
        if (found := _feed_forward(stack.blocks[0])) is None:
            return 0
        place, names = found
        layers = blocks.linears(stack.blocks[0])
        own = sum(layers[place + name].in_features for name in names.up) + layers[place + names.down].out_features
        total += number * own * MULTIPLE
    return total


def _attention(block: Any) -> str:
    """Name of the attention with a dot; empty where it is not of the kind that can be cut."""
    known = {*blocks.linears(block)}
    places = [name.removesuffix(ATTENTION.output) for name in known if name.rpartition(".")[2] == ATTENTION.output]
    fitting = [place for place in places if all(place + name in known for name in ATTENTION)]
    return fitting[0] if len(fitting) == 1 else ""


def _group_size(model: Any, block: Any, groups: int, where: str) -> int:
    """Parameters of a group of heads.

    Raises:
        UserError: none would be left, or the configuration cannot say how many heads there are.
    """
    config, place = model.config, _attention(block)
    if not place or getattr(config, "num_key_value_heads", None) is None:
        raise UserError(
            f"{type(model).__name__} cannot lose heads: its configuration and layers cannot say which are left",
            where=f"params.yaml: {where}.groups",
            expected="q_proj, k_proj, v_proj and o_proj, and num_key_value_heads in the configuration, as in Llama",
            fix="set groups: 0",
            exit_code=2,
        )
    if groups >= config.num_key_value_heads:
        raise _too_much(
            f"{groups} of {config.num_key_value_heads} groups of heads",
            where,
            "groups",
            f"at most {config.num_key_value_heads - 1}",
        )
    layers = blocks.linears(block)
    own = sum(layers[place + name].weight.numel() for name in ATTENTION)
    return int(own // config.num_key_value_heads)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _ratio(config: Any) -> int:
    return int(config.num_attention_heads // config.num_key_value_heads)


def _too_much(what: str, where: str, key: str, expected: str) -> UserError:
    return UserError(what, where=f"params.yaml: {where}.{key}", expected=expected, exit_code=2)


# ── recovery ──────────────────────────────────────────────────────────────────────────────────────────────────────


def keep_zeros(adapter: Any) -> Any:
    """Have a low-rank adapter update only weights that are not zero, while it is trained and when it is merged.

    Args:
        adapter: PEFT's configuration, without dropout; it is changed.

    Returns:
        The same, for `tuning.adapt`.
    """
    import torch
    from peft.tuners.lora import Linear
    from peft.utils.other import transpose
    from transformers.pytorch_utils import Conv1D

    class Masked(Linear):  # type: ignore[misc]  # PEFT's way to another layer of one's own
        def get_delta_weight(self, adapter: str) -> Any:
            # (α/r · B·A) where the weight is not zero: PEFT merges what this gives.
            return super().get_delta_weight(adapter) * self.get_base_layer().weight.ne(0)

        def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            if self.disable_adapters or self.merged:
                return super().forward(x, *args, **kwargs)
            base = self.get_base_layer()
            weight = base.weight + sum(self.get_delta_weight(name) for name in self.active_adapters)
            return torch.nn.functional.linear(x, transpose(weight, self.fan_in_fan_out), base.bias)

    adapter._register_custom_module({torch.nn.Linear: Masked, Conv1D: Masked})
    return adapter
