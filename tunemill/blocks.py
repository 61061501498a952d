"""The blocks of a language model: where they are, how much each does, and a model that has fewer of them.

Decoder-only models have one stack of blocks, encoder-decoders two. Distillation and pruning work on them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunemill import losses, planning
from tunemill.errors import UserError
from tunemill.losses import Encoded

if TYPE_CHECKING:
    import torch

Half = Literal["encoder", "decoder"]

DECODER_COUNTS = ("num_decoder_layers", "decoder_layers")
"""What configurations of encoder-decoders call the number of the decoder's blocks."""


class Stack(NamedTuple):
    """The blocks of one half; a decoder-only model has a decoder alone."""

    half: Half
    path: str
    """Name of the list in the model: `model.layers`."""
    blocks: Any
    """The list itself."""


class Batch(NamedTuple):
    """Texts to look at a model with."""

    inputs: dict[str, torch.Tensor]
    """As `losses.collate` gives them."""
    masks: dict[Half, torch.Tensor]
    """Half → (B, T), True where a token of the text is; elsewhere is padding."""


class Visit(NamedTuple):
    """One block, with everything before it as it is now."""

    half: Half
    number: int
    block: Any
    observe: Callable[[Mapping[str, Any], Callable[[str, torch.Tensor], None]], None]
    """Given layers of the block by name, runs the texts through the block and tells (name, what the layer reads: (N, C)), N tokens
    of the texts at a time."""


def stacks(model: Any) -> list[Stack]:
    """Find the blocks: the outermost lists that are as long as the configuration says the model is deep.

    Raises:
        UserError: there is no such list, or more than one in a half.
    """
    import torch

    halves: dict[Half, Any] = {"decoder": model}
    if model.config.is_encoder_decoder:
        halves = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    depths = dict(zip(("encoder", "decoder"), planning.layers(model.config), strict=True))
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for half, part in halves.items():
        lists = {
            name: each
            for name, each in part.named_modules()
            if isinstance(each, torch.nn.ModuleList) and len(each) == depths[half] and len({*map(type, each)}) == 1
        }
        outermost = [each for name, each in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
        if len(outermost) != 1:
            raise UserError(
                f"cannot tell which are the blocks of {type(model).__name__}",
                where=f"its {half}",
                expected=f"one list of {depths[half]} blocks of one kind",
            )
        found.append(Stack(half, names[id(outermost[0])], outermost[0]))
    return found


def linears(block: Any) -> dict[str, Any]:
    """The linear layers of a block by name, GPT-2's kind among them.

    Raises:
        UserError: the block has a matrix that no linear layer holds (experts, for one), which would be passed over.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    found = {name: each for name, each in block.named_modules() if isinstance(each, (torch.nn.Linear, Conv1D)) and name}
    known = {id(each.weight) for each in found.values()}
    known |= {id(each.weight) for each in block.modules() if isinstance(each, torch.nn.Embedding)}
    for name, each in block.named_parameters():
        if each.dim() > 1 and id(each) not in known:
            raise UserError(
                f"{name} of {type(block).__name__} is a matrix in no linear layer",
                where="the model's blocks",
                expected="linear layers",
                fix="such a model cannot be pruned here",
            )
    return found


def matrix(layer: Any) -> torch.Tensor:
    """A linear layer's weight as (out, in), of GPT-2's kind too: a view, to read and to write."""
    import torch

    weight: torch.Tensor = layer.weight.detach()
    return weight if isinstance(layer, torch.nn.Linear) else weight.T


# ── texts to look with ────────────────────────────────────────────────────────────────────────────────────────────


def batches(rows: Sequence[Encoded], pad: int, start: int | None, size: int) -> list[Batch]:
    """Put texts of like length together.

    Args:
        rows: prompts and completions.
        pad: id to pad with.
        start: the decoder's first token; None for a decoder-only model.
        size: most rows of a batch.

    Raises:
        UserError: there is no text.
    """
    import torch

    if not rows:
        raise UserError(
            "no texts to calibrate with",
            where="calibration_items",
            expected="rows of the training split",
            fix="raise it, or look at the data",
            exit_code=2,
        )
    ordered, found = sorted(rows, key=len), []
    for at in range(0, len(ordered), size):
        inputs = losses.collate(ordered[at : at + size], pad, start)
        if start is None:
            lengths = torch.tensor([len(row) for row in ordered[at : at + size]])
            places = torch.arange(inputs["input_ids"].shape[1])
            masks: dict[Half, torch.Tensor] = {"decoder": places < lengths[:, None]}
        else:
            masks = {"encoder": inputs["attention_mask"].bool(), "decoder": inputs["labels"].ne(losses.IGNORED)}
        found.append(Batch(inputs, masks))
    return found


def read(model: Any, batch: Batch) -> None:
    """Run a batch through the model, for what hooks see."""
    given: dict[str, Any] = {name: each.to(model.device) for name, each in batch.inputs.items() if name != "labels"}
    if not model.config.is_encoder_decoder:
        given["logits_to_keep"] = 1  # nobody looks at them
    model(**given, use_cache=False)


# ── how much each does ────────────────────────────────────────────────────────────────────────────────────────────


def influence(model: Any, texts: Sequence[Batch]) -> dict[Half, list[float]]:
    """Block influence (Men et al. 2024, ShortGPT): 1 − the mean cosine of what a block reads and what it writes, over tokens.

    Args:
        model: in evaluation mode.
        texts: to look with.

    Returns:
        Half → one number for each block, 0 where it changes no direction.
    """
    import torch

    found: dict[Half, list[float]] = {}
    with torch.no_grad():
        for stack in stacks(model):
            totals, tokens = [0.0] * len(stack.blocks), 0
            for batch in texts:
                mask = batch.masks[stack.half].to(model.device)
                hooks = [
                    block.register_forward_hook(functools.partial(_turned, totals, at, mask), with_kwargs=True)
                    for at, block in enumerate(stack.blocks)
                ]
                read(model, batch)
                for each in hooks:
                    each.remove()
                tokens += int(mask.sum())
            found[stack.half] = [total / tokens for total in totals]
    return found


def _turned(totals: list[float], at: int, mask: Any, _: Any, given: Any, named: Any, out: Any) -> None:
    import torch

    before, after = (each[mask].float() for each in (_hidden(given, named), _first(out)))
    totals[at] += float((1 - torch.cosine_similarity(before, after, dim=-1)).sum())


def evenly(total: int, count: int) -> tuple[int, ...]:
    """`count` of `total` blocks, evenly spread, the first and the last among them."""
    if not 2 <= count <= total:
        raise ValueError(f"{count} of {total} blocks")
    return tuple(round(at * (total - 1) / (count - 1)) for at in range(count))


def most_influential(influences: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` blocks that do most, in their order; the first and the last stay, whatever they do."""
    total = len(influences)
    if not 2 <= count <= total:
        raise ValueError(f"{count} of {total} blocks")
    inner = sorted(range(1, total - 1), key=lambda at: (-influences[at], at))[: count - 2]
    return (0, *sorted(inner), total - 1)


# ── block by block ────────────────────────────────────────────────────────────────────────────────────────────────


def each_block(model: Any, texts: Sequence[Batch]) -> Iterator[Visit]:
    """Go through the blocks in the order in which they are computed; each reads what those before it write *now*.

    Between two blocks the caller may change the one it was given (prune it): what the next one observes comes from the changed
    one. The texts go through the model once for each half, and through each block once for each look and once for the next.

    Args:
        model: in evaluation mode; changed by the caller.
        texts: to look with.
    """
    import torch

    for stack in stacks(model):
        with torch.no_grad():
            known = _recorded(model, stack, texts)
        for number, block in enumerate(stack.blocks):
            yield Visit(stack.half, number, block, functools.partial(_observe, block, number, stack.half, texts, known))
            with torch.no_grad():
                known.states[:] = [_through(block, number, at, known) for at in range(len(texts))]


class _Recorded(NamedTuple):
    """What the blocks of a stack are given, of each batch."""

    states: list[Any]
    """What the next block reads."""
    calls: list[list[Any]]
    """What else each block is given: by place, None where even the states come by name, and by name."""
    encoded: list[Any]
    """What the encoder wrote, for the decoder of an encoder-decoder."""


def _through(block: Any, number: int, at: int, known: _Recorded) -> Any:
    given, named = known.calls[at][number]
    if given is None:
        return _first(block(**named, hidden_states=known.states[at]))
    return _first(block(known.states[at], *given, **named))


def _observe(
    block: Any,
    number: int,
    half: Half,
    texts: Sequence[Batch],
    known: _Recorded,
    layers: Mapping[str, Any],
    tell: Callable[[str, Any], None],
) -> None:
    """See `Visit.observe`."""
    import torch

    for at, batch in enumerate(texts):
        hooks = [
            layer.register_forward_pre_hook(functools.partial(_tell, name, half, batch, known.encoded[at], tell))
            for name, layer in layers.items()
        ]
        with torch.no_grad():
            _through(block, number, at, known)
        for each in hooks:
            each.remove()


def _tell(
    name: str, half: Half, batch: Batch, encoded: Any, tell: Callable[[str, Any], None], _: Any, given: Any
) -> None:
    mask = batch.masks["encoder" if given[0] is encoded else half]  # cross-attention reads what the encoder wrote
    tell(name, given[0][mask.to(given[0].device)])


def _recorded(model: Any, stack: Stack, texts: Sequence[Batch]) -> _Recorded:
    """What a stack is given: the model reads all texts once."""
    known = _Recorded([], [], [])
    for batch in texts:
        given_to: list[Any] = []
        wrote: list[Any] = [None]
        hooks = [
            block.register_forward_pre_hook(functools.partial(_note, known.states, given_to), with_kwargs=True)
            for block in stack.blocks
        ]
        if model.config.is_encoder_decoder and stack.half == "decoder":
            hooks.append(model.get_encoder().register_forward_hook(functools.partial(_keep, wrote)))
        read(model, batch)
        for each in hooks:
            each.remove()
        known.calls.append(given_to)
        known.encoded.append(wrote[0])
    return known


def _note(states: list[Any], given_to: list[Any], _: Any, given: Any, named: Any) -> None:
    if not given_to:  # the first block
        states.append(_hidden(given, named))
    rest = {name: each for name, each in named.items() if name != "hidden_states"}
    given_to.append((given[1:] if given else None, rest))


def _keep(wrote: list[Any], _: Any, __: Any, out: Any) -> None:
    wrote[0] = _first(out)


def _hidden(given: Any, named: Any) -> Any:
    return given[0] if given else named["hidden_states"]


def _first(out: Any) -> Any:
    import torch

    return out if isinstance(out, torch.Tensor) else out[0]


# ── a model with fewer ────────────────────────────────────────────────────────────────────────────────────────────


def with_blocks(model: Any, kept: Mapping[Half, Sequence[int]]) -> Any:
    """A model with some of the blocks, their weights copied; its configuration says how many.

    Args:
        model: left as it is.
        kept: half → numbers of the blocks that stay, ascending.

    Raises:
        UserError: the first block holds something that the others share, and is not among them.
    """
    config, weights = copy.deepcopy(model.config), model.state_dict()
    for stack in stacks(model):
        chosen = list(kept[stack.half])
        if _names(stack.blocks[0]) != _names(stack.blocks[chosen[0]]):
            raise UserError(
                f"the {stack.half}'s block 0 holds what its other blocks use too",
                where=type(model).__name__,
                expected="layers with 0 among them",
                exit_code=2,
            )
        for old in range(len(stack.blocks)):
            inside = f"{stack.path}.{old}."
            moved = {name: weights.pop(name) for name in list(weights) if name.startswith(inside)}
            if old in chosen:
                place = f"{stack.path}.{chosen.index(old)}."
                # Those that come later are still under their old names, and these are taken apart already.
                weights |= {f"\0{place}{name.removeprefix(inside)}": each for name, each in moved.items()}
        if not config.is_encoder_decoder:
            for name, value in vars(config).items():
                if "layer" in name and isinstance(value, list) and len(value) == len(stack.blocks):
                    setattr(config, name, [value[at] for at in chosen])  # layer_types and its like
    weights = {name.removeprefix("\0"): each for name, each in weights.items()}
    if config.is_encoder_decoder:
        config.num_hidden_layers = len(kept["encoder"])
        for name in DECODER_COUNTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, len(kept["decoder"]))
    else:
        config.num_hidden_layers = len(kept["decoder"])
    return rebuilt(model, config, weights)


def rebuilt(model: Any, config: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """A model of another shape: what plain transformers makes of the configuration, with these weights.

    Args:
        model: whose generation settings, number format and device it gets.
        config: says everything about its shape.
        weights: by their names in the new model.

    Raises:
        ValueError: the configuration does not describe these weights.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        fresh = planning.skeleton(config, str(model.dtype).removeprefix("torch."))
    head, words = fresh.get_output_embeddings(), fresh.get_input_embeddings()
    if _tied(model) and not _tied(
        fresh
    ):  # transformers learns only from the weights whether a T5 has a head of its own
        head.weight = words.weight
    elif _tied(fresh) and not _tied(model):
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    shapes = {name: each.shape for name, each in fresh.state_dict().items()}
    if shapes != {name: each.shape for name, each in weights.items()}:
        odd = sorted(
            {name for name in {*shapes, *weights} if shapes.get(name) != getattr(weights.get(name), "shape", None)}
        )
        raise ValueError(f"the configuration of {type(model).__name__} does not describe {', '.join(odd[:3])}")
    fresh.load_state_dict(weights)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    fresh.config.name_or_path = model.config.name_or_path
    return fresh.to(model.device).eval()


def _tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _names(block: Any) -> set[str]:
    return {name for name, _ in block.named_parameters()}
