"""What a model costs before it is loaded: parameters, bytes, FLOPs and tokens, from its configuration alone.

No weights are needed. Parameters are counted on the meta device. The memory of a training step is not a formula but the step
itself, run on fake tensors (shapes and storages without data): what is alive at the worst moment is added up, so that every
architecture and every adapter plans itself, with its own attention kernel and its own saved tensors.

Beside it stands the rule of thumb for full FP32 training with Adam: 4 (weights) + 8 (two moments) + 4 (gradients) + about 8
(activations, temporaries) = 24 bytes per parameter, against 4 to store. It knows nothing of batch, length or vocabulary.

Sources: FLOPs, Kaplan et al. 2020 (2·N forward, 4·N backward for a token); compute-optimal training, Hoffmann et al. 2022
("Chinchilla", table 3); sharding, Rajbhandari et al. 2020 (ZeRO, figure 1); LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

Family = Literal["encoder-only", "decoder-only", "encoder-decoder"]
Sharding = Literal["ddp", "zero1", "zero2", "zero3", "fsdp"]
Kind = Literal["summarisation", "translation", "text-generation", "classification", "token-classification"]

FAMILIES: Mapping[Kind, tuple[Family, ...]] = {
    "summarisation": ("encoder-decoder", "decoder-only"),
    "translation": ("encoder-decoder", "decoder-only"),
    "text-generation": ("decoder-only",),
    "classification": ("encoder-only",),
    "token-classification": ("encoder-only",),
}
"""The families of models that fit a kind of task, the one made for it first."""

BYTES_PER_VALUE: Mapping[str, float] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "4-bit": 0.5}
"""To store a weight. 8- and 4-bit formats also keep scales: `QUANTISATION_BITS`."""

QUANTISATION_BITS = {"int8": 0.0, "4-bit": 0.127}
"""Bits per weight for the scales: NF4 in blocks of 64 with double quantisation (QLoRA, section 3)."""

RULE_OF_THUMB_BYTES = {"weights": 4, "adam_moments": 8, "gradients": 4, "activations_and_temporaries": 8}
"""Per parameter, full training in FP32 with Adam."""

PETAFLOP_DAY = 1e15 * 86_400
"""One petaFLOP/s for a day: 8.64e19 floating-point operations."""

TOKENS_PER_PARAMETER = 20
"""Compute-optimal training, as a rule (Hoffmann et al. 2022)."""

BUDGETS = (1, 10, 100, 1_000, 10_000)
"""petaFLOP/s-days to say the compute-optimal model of: from a GPU's fortnight to the largest of the paper's time."""

CHINCHILLA: tuple[tuple[float, float, float], ...] = (
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (280e9, 9.90e24, 5.9e12),
    (520e9, 3.43e25, 11.0e12),
    (1e12, 1.27e26, 21.2e12),
    (10e12, 1.30e28, 216.2e12),
)
"""(parameters, FLOPs, tokens) of compute-optimal models, as fitted by Hoffmann et al. 2022, table 3 (approach 1)."""


# ── number formats ────────────────────────────────────────────────────────────────────────────────────────────────


class Format(NamedTuple):
    """A number format; `exponent` and `fraction` are in bits, None for integers."""

    name: str
    bits: int
    exponent: int | None
    fraction: int | None
    bytes: float


def formats() -> list[Format]:
    """The number formats weights are kept in, floating-point ones as torch describes them."""
    import torch

    found = []
    for name in ("float32", "float16", "bfloat16"):
        info = torch.finfo(getattr(torch, name))
        fraction = round(-math.log2(info.eps))
        found.append(Format(name, info.bits, info.bits - 1 - fraction, fraction, info.bits / 8))
    return [*found, Format("int8", torch.iinfo(torch.int8).bits, None, None, 1.0), Format("4-bit", 4, None, None, 0.5)]


# ── parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


class Parameters(NamedTuple):
    """Parameter counts of a model; tied weights count once."""

    total: int
    parts: dict[str, int]


def family(config: Any) -> Family:
    """What kind of language model a configuration describes.

    Raises:
        ValueError: none that generates or fills in text.
    """
    from transformers.models.auto import modeling_auto as auto

    if config.is_encoder_decoder and type(config) in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return "encoder-decoder"
    named = " ".join(config.architectures or ())
    # BERT and its kin can be made to write, left to right; what their checkpoints were trained for says the architecture.
    writes = getattr(config, "is_decoder", False) or "CausalLM" in named or "LMHead" in named
    if type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING and not writes:
        return "encoder-only"
    if type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return "decoder-only"
    raise ValueError(f"{type(config).__name__} is no language model that transformers can build")


def skeleton(config: Any, dtype: str = "float32") -> Any:
    """A model without weights: its modules, on whatever device or mode is in force."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    kinds = {
        "encoder-only": AutoModelForMaskedLM,
        "decoder-only": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }
    model = kinds[family(config)].from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.tie_weights()
    if getattr(config, "scale_decoder_outputs", True) is False:
        # T5 1.1 and FLAN-T5 have an output head of their own. transformers calls every T5 tied, until it reads the weights.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def count_parameters(config: Any) -> Parameters:
    """Count a model's parameters from its configuration.

    Args:
        config: a transformers configuration.

    Returns:
        The total, and its parts: embedding, attention, mlp, norm, other.
    """
    import torch

    with torch.device("meta"):
        model = skeleton(config)
    parts = dict.fromkeys(("embedding", "attention", "mlp", "norm", "other"), 0)
    for name, parameter in model.named_parameters():  # shared tensors are named once
        parts[_part(name)] += parameter.numel()
    return Parameters(sum(parts.values()), parts)


def _part(name: str) -> str:
    for part, marks in (
        ("norm", ("norm", "ln_")),
        ("embedding", ("embed", "wte", "wpe", "lm_head", "shared")),
        ("attention", ("attn", "attention")),
        ("mlp", ("mlp", "feed_forward", "ffn", "densereludense")),
    ):
        if any(mark in name.lower() for mark in marks):
            return part
    return "other"


def trainable_parameters(config: Any, method: Method) -> int:
    """Parameters that a method trains, counted on the model without weights, whatever its layers are.

    LoRA trains rank x (in + out) for each weight it adapts (Hu et al. 2021).
    """
    import torch

    with torch.device("meta"):
        policy = build(config, method)
    return sum(each.numel() for each in policy.parameters() if each.requires_grad)


def packed_parameters(config: Any) -> int:
    """Weights that bitsandbytes keeps in few bits: every matrix but the output head."""
    import torch

    with torch.device("meta"):
        return sum(each.weight.numel() for each in _pack(skeleton(config)))


def layers(config: Any) -> tuple[int, int]:
    """(layers of the encoder, layers of the decoder); a decoder-only model has no encoder."""
    if not config.is_encoder_decoder:
        return 0, int(config.num_hidden_layers)
    encoder = getattr(config, "encoder_layers", None) or config.num_hidden_layers
    named = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers"))
    return int(encoder), int(next((each for each in named if each), encoder))


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def store_bytes(parameters: int) -> dict[str, int]:
    """Bytes to store a model, for each number format, scales of quantised formats included."""
    return {
        name: math.ceil(parameters * (size + QUANTISATION_BITS.get(name, 0.0) / 8))
        for name, size in BYTES_PER_VALUE.items()
    }


def full_training_bytes(parameters: int) -> dict[str, int]:
    """The rule of thumb for full FP32 training with Adam, by purpose, and its total (24 bytes per parameter)."""
    table = {name: parameters * size for name, size in RULE_OF_THUMB_BYTES.items()}
    return {**table, "total": sum(table.values())}


class State(NamedTuple):
    """Bytes of what a training run keeps between steps; without activations."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def mixed_precision_state(parameters: float) -> State:
    """Adam with 16-bit weights and gradients: 2 + 2 + 12 bytes (FP32 copy and two moments) (ZeRO, section 3.1)."""
    return State(2 * parameters, 2 * parameters, 12 * parameters)


def sharded(state: State, sharding: Sharding, devices: int, offload: bool = False) -> tuple[State, float]:
    """What each of several devices holds.

    Args:
        state: of one device that has everything.
        sharding: `ddp` copies all of it; `zero1` splits the optimizer's state, `zero2` the gradients too, `zero3` (and `fsdp`,
            which is the same) the weights as well (Rajbhandari et al. 2020, section 5).
        devices: how many.
        offload: the optimizer's state is kept in the host's memory.

    Returns:
        The state of one device, and the bytes on the host for each device.
    """
    split = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}[sharding]
    weights, gradients, optimizer = state
    found = State(
        weights / devices if split >= 3 else weights,
        gradients / devices if split >= 2 else gradients,
        optimizer / devices if split >= 1 else optimizer,
    )
    return (found._replace(optimizer=0.0), found.optimizer) if offload else (found, 0.0)


def kv_cache_bytes(config: Any, rows: int, tokens: int, value_bytes: float = 2) -> int:
    """Keys and values of every layer that generation keeps: 2 · layers · key-value heads · head width · rows · tokens.

    For an encoder-decoder, those of the decoder's own tokens; the encoder's are as many again for the input's tokens.
    """
    # BART and its kin name the heads of each half, and may give the decoder others than the encoder.
    all_heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // all_heads
    return int(2 * layers(config)[1] * heads * width * rows * tokens * value_bytes)


def serving_bytes(config: Any, parameters: int, batch: Batch, dtype: str = "float32") -> int:
    """Weights and the key-value cache of one batch: what answering takes, without the process itself."""
    value = BYTES_PER_VALUE[dtype]
    cache = kv_cache_bytes(config, batch.rows, batch.tokens, value)
    return store_bytes(parameters)[dtype] + cache * (2 if family(config) == "encoder-decoder" else 1)


# ── compute ───────────────────────────────────────────────────────────────────────────────────────────────────────


def training_flops(parameters: float, tokens: float, method: str) -> float:
    """Floating-point operations: 6·N·D with all weights trained; 4·N·D with an adapter (no gradient of frozen weights)."""
    return (6 if method == "full" else 4) * parameters * tokens


def petaflop_days(flops: float) -> float:
    """In petaFLOP/s-days: 8.64e19 operations each."""
    return flops / PETAFLOP_DAY


def optimal_tokens(parameters: float) -> float:
    """Tokens of compute-optimal pre-training by the rule: 20 for each parameter."""
    return TOKENS_PER_PARAMETER * parameters


def fitted_tokens(parameters: float) -> float:
    """The same by the paper's own fit (table 3, interpolated in logarithms), which asks for more beyond some 10B.

    Raises:
        ValueError: outside the table, 0.4B to 10T parameters.
    """
    sizes = [size for size, _, _ in CHINCHILLA]
    if not sizes[0] <= parameters <= sizes[-1]:
        raise ValueError(f"{parameters:.3g} parameters: the table goes from {sizes[0]:.3g} to {sizes[-1]:.3g}")
    (low, _, few), (high, _, many) = next(pair for pair in pairwise(CHINCHILLA) if parameters <= pair[1][0])
    share = math.log(parameters / low) / math.log(high / low)
    return few * float((many / few) ** share)


def optimal_parameters(flops: float) -> float:
    """Parameters of the compute-optimal model for a budget: C = 6·N·D with D = 20·N."""
    return math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))


# ── the memory of a training step ─────────────────────────────────────────────────────────────────────────────────


class Method(NamedTuple):
    """How a model is tuned."""

    name: Literal["full", "lora", "prompt_tuning", "qlora"]
    rank: int = 0
    """Of LoRA."""
    targets: str | tuple[str, ...] = "all-linear"
    """Layers that LoRA adapts."""
    virtual_tokens: int = 0
    """Of prompt tuning."""


class Batch(NamedTuple):
    """The largest batch of a training run."""

    rows: int
    tokens: int
    """Of the longest row, prompt and completion together; of an encoder-decoder the longest prompt and completion."""
    completion: int
    """Tokens of the longest completion."""
    window: int = 0
    """Positions that logits are computed for: from where the first completion begins to where the last ends. 0: as many as
    the longest completion has tokens, that is, all prompts are of one length."""


def largest_batch(batches: Iterable[Sequence[tuple[Sequence[int], Sequence[int]]]], encoder_decoder: bool) -> Batch:
    """The batch whose step takes most memory: the one with the most positions, padding included.

    Args:
        batches: of (prompt, completion) pairs, as token ids.
        encoder_decoder: whether prompt and completion are read apart.
    """
    found = []
    for pairs in batches:
        prompts, completions = [len(prompt) for prompt, _ in pairs], [len(completion) for _, completion in pairs]
        if encoder_decoder:
            found.append(Batch(len(pairs), max(prompts) + max(completions), max(completions)))
            continue
        width = max(len(prompt) + len(completion) for prompt, completion in pairs)
        found.append(Batch(len(pairs), width, max(completions), width - min(prompts)))
    return max(found, key=lambda each: (each.rows * each.tokens, each.rows * each.window))


class Memory(NamedTuple):
    """Bytes at the worst moment of a training step, by what they are for."""

    weights: int
    """Frozen or trained, adapters included."""
    optimizer: int
    """Adam's two moments."""
    gradients: int
    """Those that exist at that moment."""
    logits: int
    """Everything as wide as the vocabulary: logits, their FP32 copy, log-probabilities, their gradient."""
    activations: int
    """What the backward pass needs, and temporaries."""

    @property
    def total(self) -> int:
        """All of it, without the process itself (Python and libraries)."""
        return sum(self)


PROCESS_BYTES = 484 * 2**20
"""Python with torch, transformers, peft and trl imported, before any model: measured, as resident memory."""

ALLOCATOR_SLACK = 1.35
"""What malloc takes for each byte of tensors that come and go, holes between them included. Measured on glibc 2.36 with
`runtime.TIGHT_MALLOC`, tuning SmolLM2-135M with all weights, LoRA and a soft prompt: 1.38, 1.32 and 1.37."""


def process_bytes(memory: Memory, device: str = "cpu") -> int:
    """What the operating system (or, on a GPU, the device) sees of a step: the number to compare with peak memory.

    Args:
        memory: from `step_memory`.
        device: on "cuda", peak memory is measured as allocated by tensors, and no process is counted.
    """
    if device == "cuda":
        return memory.total
    lasting = memory.weights + memory.optimizer
    return PROCESS_BYTES + lasting + round(ALLOCATOR_SLACK * (memory.total - lasting))


def step_memory(
    config: Any, method: Method, batch: Batch, dtype: str = "float32", *, recompute: bool = False
) -> Memory:
    """The memory of one training step of a method with AdamW: see `tuning_memory`.

    Args:
        config: a transformers configuration.
        method: how the model is tuned.
        batch: the largest batch.
        dtype: number format to compute in. Weights that are trained are kept in float32, QLoRA's frozen matrices in 4 bits.
        recompute: activations are computed again in the backward pass instead of being kept.
    """
    quantised = "4-bit" if method.name == "qlora" else None

    def planned(shape: Any) -> Memory:
        return tuning_memory(shape, adapter(shape, method), batch, dtype, recompute=recompute, quantised=quantised)

    # With frozen weights the worst moment is the beginning of the backward pass, however many layers there are: each adds the
    # same. With trained ones it moves, as gradients pile up while activations go.
    if method.name == "full" or not (layers := _alike(config)):
        return planned(config)
    few, more = (planned(with_layers(config, each)) for each in SHALLOW)
    steps = (layers - SHALLOW[0]) / (SHALLOW[1] - SHALLOW[0])
    return Memory(*(round(low + steps * (high - low)) for low, high in zip(few, more, strict=True)))


def tuning_memory(
    config: Any, adapter: Any, batch: Batch, dtype: str, *, recompute: bool = False, quantised: str | None = None
) -> Memory:
    """The memory of one training step with AdamW, by running it on fake tensors.

    Args:
        config: a transformers configuration.
        adapter: a PEFT configuration; None tunes all weights.
        batch: the largest batch of one forward pass.
        dtype: number format to compute in. Frozen weights are kept in it; those that are trained in float32.
        recompute: activations are computed again in the backward pass instead of being kept.
        quantised: the frozen matrices are kept in this format, "4-bit" or "int8" (QLoRA): all but the output head. What is
            left, embedding and norms, is in float32 then, as PEFT prepares a model for it.

    Returns:
        What is alive at the worst moment: in the forward pass, the backward pass, or the optimizer's step.

    Raises:
        ValueError: encoder-only models are not tuned here.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    if family(config) == "encoder-only":
        raise ValueError("an encoder-only model writes no completions")
    mixed = (adapter is None or quantised is not None) and dtype != "float32"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = skeleton(config, "float32" if adapter is None else dtype)
        packed = _pack(model) if quantised else []
        policy = _adapted(model, config, adapter)
    with FakeTensorMode(), torch.autocast("cpu", getattr(torch, dtype), enabled=mixed):
        _place(policy)
        policy.train()
        if recompute:
            # The state of the random numbers is data, which there is none of.
            policy.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            if adapter is not None:
                policy.enable_input_require_grads()
        parameters = list(policy.parameters())
        trainable = [each for each in parameters if each.requires_grad]
        weights = sum(each.numel() * each.element_size() for each in parameters)
        if quantised:
            weights -= sum(each.weight.numel() * each.weight.element_size() for each in packed)
            weights += store_bytes(sum(each.weight.numel() for each in packed))[quantised]
        with _unpacked(), alive(config.vocab_size) as storages:
            loss = _loss(policy, config, getattr(adapter, "num_virtual_tokens", None) or 0, batch)
            loss.backward()
            del loss
            kept = {storages.current(each.grad) for each in trainable if each.grad is not None}
            gradients = sum(storages.lives[each].size for each in kept)
    optimizer = 2 * sum(4 * each.numel() for each in trainable)
    peak = storages.at_peak()
    rest = [storages.lives[each] for each in peak if each not in kept]
    found = Memory(
        weights=weights,
        optimizer=optimizer,
        gradients=sum(storages.lives[each].size for each in peak if each in kept),
        logits=sum(each.size for each in rest if each.wide),
        activations=sum(each.size for each in rest if not each.wide),
    )
    # AdamW goes through the weights one by one, with two temporaries of the largest one's size.
    stepping = Memory(weights, optimizer, gradients, 0, 2 * max(4 * each.numel() for each in trainable))
    return max(found, stepping, key=lambda each: each.total)


def _pack(model: Any) -> list[Any]:
    """Make of a model, on the meta device, what bitsandbytes and `prepare_model_for_kbit_training` make of it.

    Returns:
        The layers that stand for packed ones. Their matrices are as large as what they are expanded to.
    """
    import torch
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    class Expanded(torch.autograd.Function):
        """A product with a matrix that is expanded for it and dropped, forward and backward."""

        @staticmethod
        def forward(context: Any, given: Any, weight: Any) -> Any:
            context.save_for_backward(weight)
            return (given.to(weight.dtype) @ torch.empty_like(weight).T).to(given.dtype)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            (weight,) = context.saved_tensors
            return (gradient.to(weight.dtype) @ torch.empty_like(weight)).to(gradient.dtype), None

    class Packed(torch.nn.Linear):
        def forward(self, given: Any) -> Any:
            product = Expanded.apply(given, self.weight)  # type: ignore[no-untyped-call]
            return product if self.bias is None else product + self.bias.to(product.dtype)

    kept = get_keys_to_not_convert(model) + list(model._keep_in_fp32_modules or ())
    packed = []
    for name, module in list(model.named_modules()):
        if not (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) or not should_convert_module(name, kept):
            continue
        inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        packed.append(Packed(inputs, outputs, module.bias is not None, dtype=module.weight.dtype))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, packed[-1])
    matrices = {id(each.weight) for each in packed}
    for each in model.parameters():
        if id(each) not in matrices:
            each.data = each.data.float()
    return packed


def _place(model: Any) -> None:
    """Move a model from the meta device to the one in force; what is tied stays tied."""
    import torch

    placed: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in placed:
                    fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    placed[id(tensor)] = torch.nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
                table[name] = placed[id(tensor)]
    # PEFT keeps the numbers of its virtual tokens beside its modules.
    numbers = getattr(model, "prompt_tokens", {})
    numbers.update({name: torch.zeros(each.shape, dtype=each.dtype) for name, each in numbers.items()})


def build(config: Any, method: Method, dtype: str = "float32") -> Any:
    """An untrained model as a method tunes it: all weights, or an adapter on frozen ones; random on a real device."""
    return _adapted(skeleton(config, dtype), config, adapter(config, method))


def adapter(config: Any, method: Method) -> Any:
    """PEFT's configuration of a method's adapter; None where all weights are tuned."""
    from peft import LoraConfig, PromptTuningConfig

    if method.name == "full":
        return None
    if method.name == "prompt_tuning":
        # One soft prompt, before the encoder's input where there is one (Lester et al. 2021).
        return PromptTuningConfig(num_virtual_tokens=method.virtual_tokens, num_transformer_submodules=1)
    targets = method.targets if isinstance(method.targets, str) else list(method.targets)
    return LoraConfig(r=method.rank, target_modules=targets)


def _adapted(model: Any, config: Any, adapter: Any) -> Any:
    import copy

    from peft import TaskType, get_peft_model

    if adapter is None:
        return model
    adapter = copy.deepcopy(adapter)
    adapter.task_type = TaskType.SEQ_2_SEQ_LM if family(config) == "encoder-decoder" else TaskType.CAUSAL_LM
    return get_peft_model(model, adapter)


def _loss(policy: Any, config: Any, soft: int, batch: Batch) -> Any:
    """As `losses.completion_loss`, with every row as long as the longest; shapes only, so no value may steer it."""
    import torch

    rows, tokens, completion, window = batch._replace(window=batch.window or batch.completion)
    if family(config) == "encoder-decoder":
        window = completion
        ids = torch.zeros((rows, tokens - completion), dtype=torch.long)  # (B, S)
        targets = torch.zeros((rows, completion), dtype=torch.long)  # (B, K)
        mask = torch.ones_like(ids)
        logits = policy(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, use_cache=False).logits
    else:
        ids = torch.zeros((rows, tokens), dtype=torch.long)  # (B, T)
        kept = torch.arange(tokens - window, tokens) + soft - 1  # (K,)
        logits = policy(input_ids=ids, logits_to_keep=kept, use_cache=False).logits  # (B, K, V)
    wanted = torch.arange(rows * completion)  # stands for the choice of positions that carry loss, which copies
    chosen = logits.view(rows * window, -1)[wanted].float()  # (B·completion, V)
    return torch.nn.functional.cross_entropy(chosen, torch.zeros_like(wanted), reduction="sum") / completion


@contextlib.contextmanager
def _unpacked() -> Iterator[None]:
    """Each row is one sample. transformers reads the positions to see it, and fake tensors have none to read.

    Left alone it would plan for packed rows: with a mask, so without the attention kernel that needs none.
    """
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    reads = getattr(masking_utils, name)
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, reads)


SHALLOW = (2, 4)
"""Layers of the models that a deeper one is planned by."""
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
"""What configurations call the number of layers, in each half of an encoder-decoder."""


def _alike(config: Any) -> int:
    """The number of layers, where there are many and each is like the others; 0 otherwise."""
    counts = {int(value) for name in LAYER_COUNTS if (value := getattr(config, name, None)) is not None}
    if len(counts) != 1 or (layers := counts.pop()) <= 2 * SHALLOW[1]:
        return 0
    few, more, all_of_them = (count_parameters(with_layers(config, each)).total for each in (*SHALLOW, layers))
    steps = (layers - SHALLOW[0]) / (SHALLOW[1] - SHALLOW[0])
    return layers if few + steps * (more - few) == all_of_them else 0


def with_layers(config: Any, layers: int) -> Any:
    """The same configuration with another number of layers, in each half of an encoder-decoder."""
    import copy

    changed = copy.deepcopy(config)
    for name in LAYER_COUNTS:
        if getattr(changed, name, None) is not None:
            setattr(changed, name, layers)
    if getattr(changed, "layer_types", None):
        changed.layer_types = changed.layer_types[:layers]
    return changed


# ── what is alive, storage by storage ─────────────────────────────────────────────────────────────────────────────


@dataclass
class Life:
    """One storage, from the operation that made it to the one after which nothing held it."""

    size: int
    """Bytes."""
    wide: bool
    """Whether its last dimension is the vocabulary's."""
    made: int
    gone: int | None = None


class Storages:
    """The storages that operations made while they were followed."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.clock = 0
        self._now = 0
        self._worst, self._when = 0, 0
        self._open: dict[int, int] = {}

    def at_peak(self) -> list[int]:
        """Which lives are there at the worst moment."""
        at = self._when
        return [n for n, each in enumerate(self.lives) if each.made <= at and (each.gone is None or each.gone > at)]

    def current(self, tensor: Any) -> int:
        """Which life a tensor's storage is."""
        return self._open[_key(tensor)]

    def knows(self, tensor: Any) -> bool:
        """Whether the tensor's storage was made while operations were followed, and is still there."""
        return _key(tensor) in self._open

    def add(self, tensor: Any, wide: int, in_place: bool = False) -> None:
        """Begin the life of a tensor's storage, unless it is known.

        Args:
            tensor: what an operation made.
            wide: size of the last dimension that marks logits and their kin.
            in_place: on real tensors it would be one of the operands, which nothing needs any more.
        """
        if self.knows(tensor):
            return
        storage = tensor.untyped_storage()
        self._open[_key(tensor)] = len(self.lives)
        self.lives.append(Life(storage.nbytes(), tensor.dim() > 0 and tensor.shape[-1] == wide, self.clock))
        self._now += storage.nbytes()
        if self._now > self._worst and not in_place:
            self._worst, self._when = self._now, self.clock
        weakref.finalize(storage, self._end, _key(tensor))

    def _end(self, key: int) -> None:
        life = self.lives[self._open.pop(key)]
        life.gone = self.clock
        self._now -= life.size


def _key(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)  # an address: unique among what is alive


@contextlib.contextmanager
def alive(wide: int) -> Iterator[Storages]:
    """Follow the storages of all tensors that operations make while the body runs.

    Args:
        wide: size of the last dimension that marks logits and their kin.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    found = Storages()

    class Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's way to see every operation
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if (
                function.namespace == "prim"
            ):  # questions, such as which device: two in three calls, and they make nothing
                return function(*args, **(kwargs or {}))
            found.clock += 1
            before = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
            # Autograd adds gradients up in place, but not while someone watches.
            in_place = function is torch.ops.aten.add.Tensor and not torch.is_grad_enabled()
            made = function(*args, **(kwargs or {}))
            for each in tree_leaves(made):
                # A view of a weight is no new storage, and no storage of ours.
                if isinstance(each, torch.Tensor) and _key(each) not in before:
                    found.add(each, wide, in_place)
            found.clock += 1  # what goes from now on was still there with what was made
            return made

    with Follow():  # type: ignore[no-untyped-call]
        yield found


# ── the plan ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Assumptions(NamedTuple):
    """What a plan is made for."""

    batch: Batch
    """The largest batch of tuning."""
    steps: int
    """Optimiser steps."""
    rank: int
    """Of LoRA on all linear layers."""
    virtual_tokens: int
    """Of prompt tuning."""
    devices: int
    """That full tuning may be sharded over."""


def methods(assumed: Assumptions) -> dict[str, Method]:
    """Every way to tune that is planned, by name."""
    return {
        "full": Method("full"),
        "lora": Method("lora", rank=assumed.rank),
        "prompt_tuning": Method("prompt_tuning", virtual_tokens=assumed.virtual_tokens),
        "qlora": Method("qlora", rank=assumed.rank),
    }


def plan(config: Any, assumed: Assumptions) -> dict[str, Any]:
    """Everything above for one model, as plain numbers: bytes, FLOPs, tokens.

    Args:
        config: a transformers configuration.
        assumed: batch, steps, adapter sizes, devices.

    Returns:
        What `artifacts/select/plan.json` holds beside the model's description.
    """
    counted = count_parameters(config)
    n, tokens = counted.total, assumed.steps * assumed.batch.rows * assumed.batch.tokens
    tuned = {}
    if family(config) != "encoder-only":
        for name, method in methods(assumed).items():
            # What QLoRA computes in is 16 bits; the format is that of the frozen matrices.
            kept, dtype = ("4-bit", "bfloat16") if name == "qlora" else ("float32", "float32")
            memory = step_memory(config, method, assumed.batch, dtype)
            totals = {kept: memory.total}
            if name == "qlora":  # the same step
                packed = packed_parameters(config)
                totals["int8"] = memory.total + store_bytes(packed)["int8"] - store_bytes(packed)["4-bit"]
            else:
                half = step_memory(config, method, assumed.batch, "bfloat16").total
                totals |= {"float16": half, "bfloat16": half}
            trainable = trainable_parameters(config, method)
            tuned[name] = {
                "trainable_parameters": trainable,
                "trainable_share": trainable / n,
                "dtype": kept,
                "memory": {**memory._asdict(), "total": memory.total},
                "training_bytes": totals,
                "flops": training_flops(n, tokens, name),
            }
    state = mixed_precision_state(n)
    strategies: tuple[Sharding, ...] = ("ddp", "zero1", "zero2", "zero3")
    return {
        "parameters": n,
        "parts": counted.parts,
        "formats": [each._asdict() for each in formats()],
        "store_bytes": store_bytes(n),
        "rule_of_thumb_bytes": full_training_bytes(n),
        "assumed": {**assumed._asdict(), "batch": assumed.batch._asdict(), "tokens": tokens},
        "methods": tuned,
        "sharded": {
            "devices": assumed.devices,
            "bytes_per_device": {each: round(sharded(state, each, assumed.devices)[0].total) for each in strategies},
            "offloaded_bytes_per_device": round(sharded(state, "zero3", assumed.devices, offload=True)[0].total),
        },
        "kv_cache_bytes_per_token": kv_cache_bytes(config, 1, 1),
        "compute_optimal": {
            "tokens": optimal_tokens(n),
            "flops": training_flops(n, optimal_tokens(n), "full"),
            "petaflop_days": petaflop_days(training_flops(n, optimal_tokens(n), "full")),
            "fitted_tokens": fitted_tokens(n) if CHINCHILLA[0][0] <= n <= CHINCHILLA[-1][0] else None,
        },
        "budgets": [
            {
                "petaflop_days": days,
                "parameters": optimal_parameters(days * PETAFLOP_DAY),
                "tokens": optimal_tokens(optimal_parameters(days * PETAFLOP_DAY)),
            }
            for days in BUDGETS
        ],
    }


def table(planned: Mapping[str, Any]) -> str:
    """A plan as text, for a terminal."""
    assumed, n = planned["assumed"], planned["parameters"]
    batch, optimal = assumed["batch"], planned["compute_optimal"]
    lines = [
        f"{n / 1e6:,.1f} M parameters: "
        + ", ".join(f"{part} {count / 1e6:,.1f} M" for part, count in planned["parts"].items() if count),
        "",
        f"{'to store':<10} {'bits':>5} {'exponent':>9} {'fraction':>9} {'bytes':>6} {'MiB':>9}",
    ]
    for each in planned["formats"]:
        bits = ["–" if each[part] is None else each[part] for part in ("exponent", "fraction")]
        size = planned["store_bytes"][each["name"]] / 2**20
        lines.append(
            f"{each['name']:<10} {each['bits']:>5} {bits[0]:>9} {bits[1]:>9} {each['bytes']:>6g} {size:>9,.0f}"
        )
    columns = ("weights", "optimizer", "gradients", "logits", "activations", "total")
    lines += [
        "",
        f"to tune, batches of {batch['rows']} rows of {batch['tokens']} tokens, {batch['completion']} of them completion;"
        " MiB at the worst moment, the process itself apart",
        f"{'method':<14} {'format':<8} {'trainable':>12} {'share':>8} "
        + " ".join(f"{each:>11}" for each in columns)
        + f" {'FLOPs':>9}",
    ]
    for name, each in planned["methods"].items():
        sizes = " ".join(f"{each['memory'][column] / 2**20:>11,.0f}" for column in columns)
        trained = f"{each['trainable_parameters']:>12,} {each['trainable_share']:>8.2%}"
        lines.append(f"{name:<14} {each['dtype']:<8} {trained} {sizes} {each['flops']:>9.2e}")
    kinds = ("float32", "float16", "bfloat16", "int8", "4-bit")
    lines += [
        "",
        "the same in total for each number format: of what computes, weights that are trained staying in FP32; of QLoRA's"
        " frozen matrices",
        f"{'method':<14} " + " ".join(f"{kind:>9}" for kind in kinds),
    ]
    for name, each in planned["methods"].items():
        totals = [each["training_bytes"].get(kind) for kind in kinds]
        lines.append(
            f"{name:<14} " + " ".join("        –" if size is None else f"{size / 2**20:>9,.0f}" for size in totals)
        )
    rule = planned["rule_of_thumb_bytes"]["total"]
    lines.append(f"rule of thumb for full tuning, 24 bytes for each parameter: {rule / 2**20:,.0f} MiB")
    shards = planned["sharded"]
    lines += [
        "",
        f"full tuning in mixed precision on {shards['devices']} devices, MiB on each without activations: "
        + ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in shards["bytes_per_device"].items())
        + f", zero3 with the optimizer on the host {shards['offloaded_bytes_per_device'] / 2**20:,.0f}",
        f"keys and values of one token in 16 bits: {planned['kv_cache_bytes_per_token'] / 2**10:,.1f} KiB",
        f"compute-optimal pre-training: {optimal['tokens']:.2e} tokens (20 for each parameter), {optimal['flops']:.2e} FLOPs,"
        f" {optimal['petaflop_days']:.2g} petaFLOP/s-days"
        + (f"; by the paper's own fit {optimal['fitted_tokens']:.2e} tokens" if optimal["fitted_tokens"] else ""),
        "models for a budget: "
        + ", ".join(
            f"{each['petaflop_days']:,} petaFLOP/s-days {each['parameters']:.1e} ({each['tokens']:.1e} tokens)"
            for each in planned["budgets"]
        ),
    ]
    return "\n".join(lines)
