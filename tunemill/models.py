"""Language models on disk: converting one into the standard form, and loading a policy (a whole model, or an adapter).

Standard form: one folder that plain `transformers` loads: safetensors weights, tokenizer, chat template. Code that a
checkpoint brings along is never run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunemill import gguf_export, quantization
from tunemill.checkpoints import write_json
from tunemill.errors import UserError
from tunemill.runtime import Runtime, out_of_memory

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_config.json"

Conversation = tuple[tuple[Literal["user", "assistant"], str], ...]
"""(role, what was said), in turns; the user begins, and has said the last thing."""
Prompt = str | Conversation
"""What a model is asked: a user's message by itself, or a conversation."""
SPEAKERS = {"user": "Human", "assistant": "Assistant"}
"""Who speaks in a conversation that is put to a model without a chat template."""
NEXT_TURN = f"\n\n{SPEAKERS['user']}:"
"""What such a model writes where it has said its own and goes on with the other's."""


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds a PEFT adapter and no whole model."""
    return (folder / ADAPTER).is_file()


def is_gguf(folder: Path) -> bool:
    """Whether the weights in `folder` are a GGUF file, which llama.cpp runs; transformers computes with what it expands to."""
    return (folder / gguf_export.FILE).is_file()


def is_quantized(folder: Path) -> bool:
    """Whether the weights in `folder` are kept in fewer bits than floating-point numbers have: they cannot be trained."""
    return not is_adapter(folder) and (is_gguf(folder) or _quantized_by(folder) is not None)


def _quantized_by(folder: Path) -> str | None:
    """The library that keeps a checkpoint's weights in few bits; None where they are floating-point numbers."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (config.get("quantization_config") or {}).get("quant_method")


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the checkpoint in `folder` is an encoder-decoder; read from its configuration."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("is_encoder_decoder", False))


def load_base(folder: Path, runtime: Runtime) -> Any:
    """A language model, decoder-only or encoder-decoder, in the runtime's number format, in evaluation mode.

    Raises:
        UserError: the folder holds no model that transformers can load.
    """
    try:
        if is_gguf(folder):
            model = _auto(folder).from_config(_config(folder), dtype=runtime.torch_dtype, trust_remote_code=False)
            gguf_export.read(folder / gguf_export.FILE, model)
        elif _quantized_by(folder) == "torchao":
            model = _auto(folder).from_config(_unquantized(folder), dtype=runtime.torch_dtype, trust_remote_code=False)
            quantization.fill(model, folder / "model.safetensors")
        else:
            model = _auto(folder).from_pretrained(
                folder, dtype=runtime.torch_dtype, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"no language model in {folder}: {_first_line(error)}",
            expected="config.json and safetensors weights",
            fix="run the stage that writes it: dvc repro",
        ) from None
    return model.to(runtime.device).eval()


def low_rank(rank: int, alpha: int, targets: str | Sequence[str], dropout: float = 0.0) -> Any:
    """PEFT's configuration of a low-rank adapter: W + (alpha / rank)·B·A (Hu et al. 2021), biases as they are.

    Args:
        rank: r of A (r, in) and B (out, r).
        alpha: scale of the update, times the rank.
        targets: names of the adapted layers, or "all-linear": every linear layer but the output head.
        dropout: probability, on what A reads, while training.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=targets if isinstance(targets, str) else list(targets),
    )


def load_quantized(folder: Path, runtime: Runtime, kind: str) -> Any:
    """A language model whose linear layers are kept in few bits, to train an adapter on (QLoRA, Dettmers et al. 2023).

    Args:
        folder: the model.
        runtime: device; the number format that is computed in.
        kind: "nf4" (4 bits, with doubly quantized scales: section 3) or "int8".

    Raises:
        UserError: bitsandbytes is not there, or not for this machine.
    """
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    settings = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=runtime.torch_dtype,
        )
        if kind == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    model = _with_bitsandbytes(folder, runtime, settings, "lora.quantize", "set quantize: none")
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _with_bitsandbytes(folder: Path, runtime: Runtime, settings: Any, where: str, fix: str) -> Any:
    try:
        return _auto(folder).from_pretrained(
            folder,
            dtype=runtime.torch_dtype,
            quantization_config=settings,
            device_map={"": _device(runtime)},
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (ImportError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"cannot quantize: {_first_line(error)}",
            where=f"params.yaml: {where}",
            expected="bitsandbytes, on Linux",
            fix=fix,
        ) from None


def _device(runtime: Runtime) -> str:
    import torch

    return f"cuda:{torch.cuda.current_device()}" if runtime.device == "cuda" else runtime.device


def load_trainable(folder: Path, runtime: Runtime) -> Any:
    """A language model whose weights are to be trained: in float32, whatever is computed in."""
    return load_base(folder, replace(runtime, dtype="float32"))


def _config(source: Path | str, revision: str | None = None) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)


def _unquantized(folder: Path) -> Any:
    """The configuration without how the weights are kept, which `from_config` would want to see to."""
    config = _config(folder)
    del config.quantization_config
    return config


def _auto(source: Path | str, revision: str | None = None) -> Any:
    """The transformers class that loads a checkpoint: by its configuration, decoder-only or encoder-decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if _config(source, revision).is_encoder_decoder else AutoModelForCausalLM


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, with a token to pad with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    separate_padding(tokenizer)
    return tokenizer


def load_policy(policy: Path, base: Path, runtime: Runtime) -> tuple[Any, Any]:
    """A policy ready to generate: the model in evaluation mode and its tokenizer.

    What can be merged into the weights is: low-rank updates, W + (alpha / r)·B·A (Hu et al. 2021, section 4.1), and IA³'s
    factors (Liu et al. 2022). A low-rank update that is too small for the number format, as alignment's often are, stays beside the
    weights: rounding would take it away. A soft prompt stays before the input.

    Args:
        policy: folder of a whole checkpoint, or of an adapter.
        base: folder of the model that an adapter sits on; not read for a whole checkpoint that has a tokenizer.
        runtime: device and number format.

    Returns:
        The model (with a soft prompt a PeftModel, otherwise a plain one), and the policy's tokenizer or else the base's.
    """
    tokenizer = load_tokenizer(policy if (policy / "tokenizer_config.json").is_file() else base)
    if not is_adapter(policy):
        return load_base(policy, runtime), tokenizer
    from peft import PeftModel, PeftType

    model = PeftModel.from_pretrained(load_base(base, runtime), policy, is_trainable=False)
    if all(each.peft_type in (PeftType.LORA, PeftType.IA3) for each in model.peft_config.values()):
        model = model.merge_and_unload() if surviving(model) >= SURVIVING else model.get_base_model()
    return model.eval(), tokenizer


def load_whole(policy: Path, base: Path, runtime: Runtime, where: str) -> tuple[Any, Any]:
    """A policy as one whole model in float32, an adapter merged into its base, and its tokenizer.

    In float32 whatever is computed in: a small update would not survive being added in fewer bits.

    Args:
        policy: see `load_policy`.
        base: see `load_policy`.
        runtime: device.
        where: the key in params.yaml that names the policy, for messages.

    Raises:
        UserError: it is no whole model, and cannot be merged into one.
    """
    if is_quantized(policy):
        raise UserError(
            f"{policy} has been quantized already",
            where=f"params.yaml: {where}",
            expected="a model with floating-point weights",
            fix="name the model that it was made from",
        )
    model, tokenizer = load_policy(policy, base, replace(runtime, dtype="float32"))
    if hasattr(model, "peft_config"):
        raise UserError(
            f"the adapter in {policy} is a prompt, which cannot be merged into the weights",
            where=f"params.yaml: {where}",
            expected="a whole model, or an adapter whose update can be added to the weights (lora, ia3)",
            fix="name another",
        )
    return model, tokenizer


SURVIVING = 0.5
"""Share of a low-rank update that must be left after rounding, for it to be merged: supervised tuning leaves some 0.85 in
bfloat16, alignment a fraction of that."""


def surviving(model: Any) -> float:
    """Share of a low-rank update ΔW that is left when W + ΔW is rounded to the format of W: ⟨round(W + ΔW) − W, ΔW⟩ / ⟨ΔW, ΔW⟩.

    Where ΔW is below half of W's last bit, W + ΔW is W again: bfloat16 has eight bits, and alignment moves weights by less than that.
    Rounding what is larger is noise around the right value, and leaves the share at 1.

    Args:
        model: a PEFT model with one adapter; nothing is merged.

    Returns:
        1 where there is nothing to lose.
    """
    import torch

    kept = whole = 0.0
    for module in model.modules():
        if not hasattr(module, "get_delta_weight") or not getattr(module, "active_adapters", None):
            continue
        weight = module.get_base_layer().weight
        for name in module.active_adapters:
            if name not in module.lora_A or weight.dtype == torch.float32 or not weight.is_floating_point():
                continue
            with torch.no_grad():
                delta = module.get_delta_weight(name).float()
                left = (weight.float() + delta).to(weight.dtype).float() - weight.float()
                kept += float((left * delta).sum())
                whole += float((delta * delta).sum())
    return kept / whole if whole else 1.0


def soft_prompt(model: Any) -> torch.Tensor | None:
    """The embeddings a prompt-tuning adapter puts before the input, (virtual tokens, hidden size); None without one."""
    if not hasattr(model, "peft_config"):  # most have none, and PEFT takes seconds to import
        return None
    from peft import PeftModel, PeftType

    if not isinstance(model, PeftModel) or model.peft_config[model.active_adapter].peft_type != PeftType.PROMPT_TUNING:
        return None
    weights: torch.Tensor = model.prompt_encoder[model.active_adapter].embedding.weight
    return weights


def separate_padding(tokenizer: Any) -> None:
    """Make padding differ from the end of a sequence where the vocabulary allows it.

    Libraries that find the padding by its token mask the end too where both are one. An existing special token is taken,
    so that the model's vocabulary stays as it is. GPT-2 and its like have only one: then the end pads as well. Nothing here
    minds, since batches are masked by length.

    Raises:
        UserError: there is no end of a sequence either.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end of a sequence: answers would never end",
            where=str(tokenizer.name_or_path),
            expected="an eos_token",
            fix="set eos_token in the checkpoint's tokenizer_config.json",
        )
    spare = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    named = ("<pad>", "<|endoftext|>", "<|finetune_right_pad_id|>", tokenizer.unk_token, *spare)
    tokenizer.pad_token = next((name for name in named if name in spare), tokenizer.eos_token)


def render_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of what is asked, as the model expects it.

    In the chat template if there is one. Without one a message is read as it is, and a conversation as a text whose paragraphs begin
    with who speaks ("Human:", "Assistant:", as in Bai et al. 2022, appendix C), which the model is to go on with.
    """
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            messages(prompt), add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    elif isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        turns = [f"{SPEAKERS[role]}: {said}" for role, said in prompt]
        ids = tokenizer("\n\n".join([*turns, f"{SPEAKERS['assistant']}:"]))["input_ids"]
    return list(ids)


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """What is asked, as chat templates and chat endpoints take it."""
    turns = (("user", prompt),) if isinstance(prompt, str) else prompt
    return [{"role": role, "content": said} for role, said in turns]


def render_completion(tokenizer: Any, completion: str) -> list[int]:
    """Token ids of the answer that is to be learnt, its end included."""
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def convert_gguf(file: Path, out: Path, dtype: str) -> None:
    """Write a GGUF file's model in the standard form.

    Args:
        file: the GGUF file; quantized weights are expanded.
        out: folder to write.
        dtype: number format of the weights on disk.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        trust_remote_code=False,
        # Without `dequantize` the model stays in GGUF's blocks and cannot be saved.
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    save(model, tokenizer, out, dtype)


def convert_checkpoint(source: str, revision: str | None, out: Path, dtype: str, where: str = "select.model") -> None:
    """Write a hub's or a folder's model in the standard form; `where` is the key in params.yaml, for messages.

    Raises:
        UserError: nothing loadable there, the hub cannot be reached, or the checkpoint wants to run code of its own.
    """
    import torch
    from transformers import AutoTokenizer

    try:
        model = _auto(source, revision).from_pretrained(
            source, revision=revision or "main", dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load '{source}': {_first_line(error)}",
            where=f"params.yaml: {where}",
            expected="a language model with safetensors weights",
            fix="check the name; for a hub set HF_HUB_OFFLINE=0 and check the network",
        ) from None
    save(model, tokenizer, out, dtype)


WORDS = """
the a an of to in for and or is are be by with from on as at if it this that not all each any one two new same default
return returns get gets set sets add remove create creates make build read write load save open close send receive run
call check convert parse format print show find list delete update start stop wait handle given use used using
value values name names key keys type types object objects class function method file files path data string text bytes
number index item items element list dict tuple array table column row line code result error exception message option
argument parameter context connection client server request response command module package token model user
"""
"""What a random model's tokenizer has tokens for: words that summaries of documentation are made of."""


def make_random(
    out: Path,
    layers: int,
    width: int,
    seed: int,
    dtype: str,
    family: Literal["decoder-only", "encoder-decoder"] = "decoder-only",
) -> None:
    """Write a small untrained model and a byte-level BPE tokenizer that knows `WORDS`.

    Args:
        out: folder to write.
        layers: transformer blocks; an encoder-decoder has as many in each half.
        width: hidden size, a multiple of 16.
        seed: of the weights.
        dtype: number format of the weights on disk.
        family: "decoder-only" is a Llama with a chat template, "encoder-decoder" a T5 whose tokenizer ends every input.
    """
    import torch

    torch.manual_seed(seed)
    tokenizer = _word_tokenizer(family)
    model = _llama(tokenizer, layers, width) if family == "decoder-only" else _t5(tokenizer, layers, width)
    save(model, tokenizer, out, dtype)


def _word_tokenizer(family: str) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    # T5's marks of what span corruption took out (Raffel et al. 2020, section 3.1.4).
    sentinels = [] if family == "decoder-only" else [f"<extra_id_{number}>" for number in range(32)]
    inner = Tokenizer(tokenizer_models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    text = " ".join(WORDS.split())
    inner.train_from_iterator(
        [text, text.title()],
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", *sentinels],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if family == "encoder-decoder":
        end = ("<|im_end|>", inner.token_to_id("<|im_end|>"))
        inner.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<|im_start|>" if family == "decoder-only" else None,
        eos_token="<|im_end|>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    if family == "decoder-only":
        tokenizer.chat_template = (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    return tokenizer


def _llama(tokenizer: Any, layers: int, width: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Ten times the usual: with tied weights this narrow, logits would hardly differ, and nothing could be learnt.
            initializer_range=0.2,
        )
    )


def _t5(tokenizer: Any, layers: int, width: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=3 * width,
            num_layers=layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",  # as FLAN-T5
            dropout_rate=0.0,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def save(model: Any, tokenizer: Any, out: Path, dtype: str) -> None:
    """Write model and tokenizer in the standard form."""
    import torch

    separate_padding(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.name_or_path = ""  # a path of this machine is no part of the result
    model.to(getattr(torch, dtype)).save_pretrained(out, safe_serialization=True)
    save_tokenizer(tokenizer, out)


def save_int8(model: Any, tokenizer: Any, out: Path, settings: Any) -> None:
    """Write a model that torchao has quantized, as plain transformers loads it.

    Args:
        model: quantized in place, by `quantization.quantize_int8`.
        tokenizer: its tokenizer.
        out: folder to write.
        settings: torchao's configuration.
    """
    from safetensors.torch import save_file
    from transformers import TorchAoConfig

    tensors, metadata = quantization.flattened(model)
    model.config.quantization_config = TorchAoConfig(settings, include_input_output_embeddings=True)
    model.config.name_or_path = ""
    model.config.save_pretrained(out)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(out)
    save_file(tensors, out / "model.safetensors", metadata)
    _sort_metadata(out / "model.safetensors")
    save_tokenizer(tokenizer, out)


def _sort_metadata(file: Path) -> None:
    """Give a safetensors file's metadata an order, in place: the library writes a different one each time."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise RuntimeError(f"{file}: its header does not fit where it was")
        opened.seek(8)
        opened.write(text.ljust(size))
    file.chmod(0o644)  # as transformers leaves its files


def save_nf4(full: Path, tokenizer: Any, out: Path, runtime: Runtime) -> None:
    """Write a model in four bits through bitsandbytes, as plain transformers loads it.

    Args:
        full: folder of the model with floating-point weights.
        tokenizer: its tokenizer.
        out: folder to write.
        runtime: the number format that it computes in.

    Raises:
        UserError: bitsandbytes is not there, or not for this machine.
    """
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=runtime.torch_dtype,
    )
    model = _with_bitsandbytes(full, runtime, settings, "quantize.variants", "choose another method")
    model.config.name_or_path = ""
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights on disk: safetensors or GGUF."""
    return sum(each.stat().st_size for each in folder.iterdir() if each.suffix in (".safetensors", ".gguf"))


def save_gguf(model: Any, tokenizer: Any, out: Path, kind: gguf_export.Type, name: str) -> None:
    """Write a model as a GGUF file with its chat template, and beside it configuration and tokenizer as transformers reads them."""
    model.config.name_or_path = ""
    model.config.save_pretrained(out)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    gguf_export.write(model, out, out / gguf_export.FILE, kind, name)


def save_merged(model: Any, tokenizer: Any, out: Path, dtype: str) -> None:
    """Write a model whose adapter is added to its weights: in float32, and rounded once."""
    save(model.float().merge_and_unload(), tokenizer, out, dtype)


def save_tokenizer(tokenizer: Any, out: Path) -> None:
    """Write a tokenizer; the same one always gives the same bytes."""
    tokenizer.save_pretrained(out)
    # How the tokenizer was loaded (from disk? with a hub within reach?) is written too, and is no part of what it is.
    config = out / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    write_json(config, {key: value for key, value in values.items() if key not in ("is_local", "local_files_only")})


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
