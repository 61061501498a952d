"""GGUF, the file that llama.cpp runs: a decoder-only model of the Llama family with its tokenizer and chat template.

The `gguf` package writes the file and knows its block formats. What stands here is what llama.cpp's own `convert_hf_to_gguf.py` decides
for each architecture: the hyperparameters' names, the order of the rows of queries and keys, how a tokenizer splits text, and which
tensors keep more bits. Tensor for tensor the result is the same as that script's (benchmarks/compression.py compares).

Weight formats (block of 32 weights w, scale d in float16):
    Q8_0   d = max|w| / 127,         q = round(w / d) in [-127, 127]                    8.5 bits a weight
    Q4_0   d = (w of largest |w|) / -8,  q = round(w / d) + 8 in [0, 15]                4.5 bits
    Q4_1   d = (max w - min w) / 15, q = round((w - min w) / d), min w kept too         5 bits
In the 4-bit and 5-bit formats embeddings, which are the output head too where the two are tied, are Q8_0: errors there reach every
token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunemill.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

FILE = "model.gguf"
"""Name of the file in a model's folder."""

Type = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]

SMALL_BLOCKS = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Formats whose embeddings and head keep 8 bits."""


class Family(NamedTuple):
    """How llama.cpp names and reads a family of models."""

    architecture: str
    rotated: bool
    """Rows of queries and keys are in pairs (x₀, x₁), (x₂, x₃), … where transformers has halves: llama.cpp's NORM rope."""


FAMILIES = {
    "llama": Family("llama", rotated=True),
    "mistral": Family("llama", rotated=True),
    "qwen2": Family("qwen2", rotated=False),
    "qwen3": Family("qwen3", rotated=False),
}
"""`model_type` of a checkpoint's config.json → family."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {GPT2: "gpt-2", LLAMA3: "llama-bpe", QWEN2: "qwen2"}
"""Pattern that a tokenizer splits text by, before byte pairs are merged → llama.cpp's name of it."""


def family(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint.

    Args:
        config: its config.json.

    Raises:
        UserError: the exporter does not know it.
    """
    kind = str(config.get("model_type", "unknown"))
    if kind not in FAMILIES:
        raise UserError(
            f"no GGUF export of a model of the type '{kind}'",
            where="params.yaml: quantize.variants",
            expected="one of " + ", ".join(FAMILIES),
            fix="take the run out of extra.quantize and variants, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    return FAMILIES[kind]


def write(model: Any, tokenizer: Path, out: Path, kind: Type, name: str) -> None:
    """Write a model as one GGUF file, the same bytes for the same model.

    Args:
        model: a transformers model, decoder-only, floating-point weights.
        tokenizer: folder with tokenizer.json, tokenizer_config.json and, if it has one, chat_template.jinja.
        out: the file.
        kind: format of the matrices; vectors are float32.
        name: what the file says that it is.

    Raises:
        UserError: a family, a tokenizer or a width that llama.cpp has no name or no blocks for.
    """
    import gguf

    config = model.config.to_dict()
    known = family(config)
    written = gguf.GGUFWriter(out, known.architecture)
    written.add_name(name)
    _add_shape(written, config)
    written.add_file_type(_file_type(kind))
    written.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(written, tokenizer, int(config["vocab_size"]))
    names = gguf.get_tensor_name_map(_architecture(known), int(config["num_hidden_layers"]))
    for own, tensor in _tensors(model, config, known):
        found = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"llama.cpp has no name for the tensor '{own}'",
                where="params.yaml: quantize.variants",
                fix="take the run out of extra.quantize and variants, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
            )
        chosen = _format(found, tensor, kind)
        written.add_tensor(found, encode(tensor, chosen, own), raw_dtype=getattr(gguf.GGMLQuantizationType, chosen))
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


def encode(weights: np.ndarray, kind: str, name: str = "") -> np.ndarray:
    """Weights in one of GGUF's formats.

    Args:
        weights: (rows, columns) or (values,), float32.
        kind: the format.
        name: of the tensor, for the message.

    Returns:
        For a block format (rows, bytes), uint8.

    Raises:
        UserError: the rows are no whole number of blocks.
    """
    import gguf

    chosen = getattr(gguf.GGMLQuantizationType, kind)
    block, _ = gguf.GGML_QUANT_SIZES[chosen]
    if weights.shape[-1] % block:
        raise UserError(
            f"{kind} has blocks of {block} weights, and the rows of '{name}' have {weights.shape[-1]}",
            where="params.yaml: quantize.variants",
            expected=f"widths that {block} divides",
            fix="choose F16 or BF16",
        )
    blocks: np.ndarray = gguf.quants.quantize(weights, chosen)
    return blocks


def decode(weights: np.ndarray, kind: str) -> np.ndarray:
    """What `encode` leaves of the weights, float32."""
    import gguf

    expanded: np.ndarray = gguf.quants.dequantize(weights, getattr(gguf.GGMLQuantizationType, kind))
    return expanded


def formats(kind: Type, embedding: bool) -> str:
    """Format of a matrix in a file of the format `kind`: what maps tokens keeps eight bits."""
    return "Q8_0" if embedding and kind in SMALL_BLOCKS else kind


def _format(name: str, tensor: np.ndarray, kind: Type) -> str:
    if tensor.ndim == 1:
        return "F32"
    return formats(kind, name.startswith(("token_embd", "output.")))


def _architecture(known: Family) -> Any:
    import gguf

    return next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == known.architecture)


def _file_type(kind: Type) -> int:
    import gguf

    plain = {"F32": "ALL_F32"}
    return int(getattr(gguf.LlamaFileType, plain.get(kind, f"MOSTLY_{kind}")))


def _add_shape(written: Any, config: Mapping[str, Any]) -> None:
    """Hyperparameters, by llama.cpp's names."""
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(
            f"no GGUF export of rotary embeddings of the type '{rope['rope_type']}'",
            where="params.yaml: quantize.variants",
            expected="default",
            fix="take the run out of extra.quantize and variants, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    written.add_vocab_size(int(config["vocab_size"]))
    written.add_block_count(int(config["num_hidden_layers"]))
    written.add_context_length(int(config["max_position_embeddings"]))
    written.add_embedding_length(int(config["hidden_size"]))
    written.add_feed_forward_length(int(config["intermediate_size"]))
    written.add_head_count(heads)
    written.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    written.add_key_length(width)
    written.add_value_length(width)
    written.add_rope_dimension_count(width)
    written.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    written.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))


def _add_tokenizer(written: Any, folder: Path, size: int) -> None:
    """Vocabulary, merges, special tokens, how text is split, chat template."""
    import gguf

    file = folder / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if told.get("model", {}).get("type") != "BPE":
        raise UserError(
            f"no GGUF export of the tokenizer in {folder.name}: it is no byte-level BPE",
            where="params.yaml: quantize.variants",
            fix="take the run out of extra.quantize and variants, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, number in told["model"]["vocab"].items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for added in told.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if (told.get("normalizer") or {}).get("type") not in (None, "NFC"):
        raise UserError(
            f"no GGUF export of this tokenizer: llama.cpp does not normalize text by {told['normalizer']['type']}",
            where="params.yaml: quantize.variants",
            fix="take the run out of extra.quantize and variants, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    written.add_tokenizer_model("gpt2")
    written.add_tokenizer_pre(split(told.get("pre_tokenizer") or {}))
    written.add_token_list(tokens)
    written.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token["bos"] = begins(folder)
    special.add_to_gguf(written, quiet=True)


def begins(folder: Path) -> bool:
    """Whether a text begins with a token that nobody wrote: where there is a chat template, that says what begins one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return not tokenizer.chat_template and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def split(told: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer splits text before it merges bytes.

    Args:
        told: `pre_tokenizer` of tokenizer.json.

    Raises:
        UserError: llama.cpp would split otherwise, and see other tokens.
    """
    parts = list(told.get("pretokenizers", [told] if told else []))
    digits = [part for part in parts if part.get("type") == "Digits" and part.get("individual_digits")]
    patterns = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    bytes_ = [part for part in parts if part.get("type") == "ByteLevel" and not part.get("add_prefix_space")]
    if len(bytes_) == 1 and len(parts) == len(digits) + len(patterns) + 1:
        pattern = GPT2 if bytes_[0].get("use_regex", True) else None
        if not patterns and pattern:
            return "smollm" if digits else SPLITS[pattern]
        if len(patterns) == 1 and not digits and not pattern and patterns[0] in SPLITS:
            return SPLITS[patterns[0]]
    raise UserError(
        "no GGUF export of this tokenizer: llama.cpp has no name for how it splits text",
        where="params.yaml: quantize.variants",
        expected="byte-level BPE that splits as GPT-2, SmolLM, Llama 3 or Qwen 2",
        fix="take the run out of extra.quantize and variants, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
    )


def _tensors(model: Any, config: Mapping[str, Any], known: Family) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its name in transformers, as llama.cpp wants it: float32, tied ones once."""
    tied = bool(config.get("tie_word_embeddings"))
    heads = int(config["num_attention_heads"])
    for name, tensor in model.state_dict().items():
        if tied and name.startswith("lm_head."):
            continue
        value = tensor.detach().float()
        if known.rotated and name.endswith(("q_proj.weight", "q_proj.bias")):
            value = in_pairs(value, heads)
        if known.rotated and name.endswith(("k_proj.weight", "k_proj.bias")):
            value = in_pairs(value, int(config.get("num_key_value_heads") or heads))
        yield name, value.numpy()


def read(file: Path, model: Any) -> None:
    """Give a model the weights of a file that `write` has written.

    Args:
        file: the GGUF file.
        model: a transformers model of its configuration, float32; its weights are overwritten.

    Raises:
        UserError: it cannot be read, or lacks a tensor.
    """
    import gguf
    import torch

    config = model.config
    known = family(config.to_dict())
    names = gguf.get_tensor_name_map(_architecture(known), config.num_hidden_layers)
    try:
        kept = {each.name: each for each in gguf.GGUFReader(file).tensors}
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"cannot read {file.name}: {error}",
            where=str(file),
            expected="a GGUF file",
            fix="run the stage that writes it again: dvc repro",
        ) from None
    for own, parameter in model.named_parameters():  # tied ones once
        stored = kept.get(names.get_name(own, try_suffixes=(".weight", ".bias")) or "")
        if stored is None:
            raise UserError(
                f"{file.name} has no tensor for '{own}'",
                where=str(file),
                fix="run the stage that writes it again: dvc repro",
            )
        shape = tuple(int(each) for each in reversed(stored.shape))
        value = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(shape).copy())
        if known.rotated and own.endswith(("q_proj.weight", "q_proj.bias")):
            value = in_halves(value, config.num_attention_heads)
        if known.rotated and own.endswith(("k_proj.weight", "k_proj.bias")):
            value = in_halves(value, config.num_key_value_heads or config.num_attention_heads)
        parameter.data.copy_(value)


def in_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `in_pairs`."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of queries or keys from halves to pairs.

    Rotary embeddings turn pairs of features. transformers turns feature i with i + width/2, llama.cpp 2i with 2i + 1.

    Args:
        rows: (heads * width, columns) or (heads * width,).
        heads: how many.
    """
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
