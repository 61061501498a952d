"""Language models on disk: converting one into the standard form, and loading a policy (a whole model, or an adapter).

Standard form: one folder that plain `transformers` loads: safetensors weights, tokenizer, chat template. Code that a
checkpoint brings along is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunemill.checkpoints import write_json
from tunemill.errors import UserError
from tunemill.runtime import Runtime

ADAPTER = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds a PEFT adapter and no whole model."""
    return (folder / ADAPTER).is_file()


def load_base(folder: Path, runtime: Runtime) -> Any:
    """A causal language model in the runtime's number format, in evaluation mode.

    Raises:
        UserError: the folder holds no model that transformers can load.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=runtime.torch_dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"no causal language model in {folder}: {_first_line(error)}",
            expected="config.json and safetensors weights",
            fix="run the stage that writes it: dvc repro",
        ) from None
    return model.to(runtime.device).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, padding with a token that is not the end of a sequence."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    separate_padding(tokenizer)
    return tokenizer


def load_policy(policy: Path, base: Path, runtime: Runtime) -> tuple[Any, Any]:
    """A policy ready to generate: the model in evaluation mode and its tokenizer.

    Args:
        policy: a whole model's folder, or an adapter's.
        base: the model the adapter sits on; not read where `policy` is a whole model.
        runtime: device and number format.
    """
    if not is_adapter(policy):
        return load_base(policy, runtime), load_tokenizer(policy)
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(base, runtime), policy, is_trainable=False)
    return model.eval(), load_tokenizer(base)


def separate_padding(tokenizer: Any) -> None:
    """Make padding differ from the end of a sequence: where both are one token, masking pads would mask the end too.

    An existing special token is taken, so that the model's vocabulary stays as it is.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    spare = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    for name in ("<pad>", "<|endoftext|>", "<|finetune_right_pad_id|>", tokenizer.unk_token, *spare):
        if name is not None and name in spare:
            tokenizer.pad_token = name
            return
    raise UserError(
        "the tokenizer has no token to pad with but the end of a sequence",
        where=str(tokenizer.name_or_path),
        expected="a padding or unknown token",
        fix="set pad_token in the checkpoint's tokenizer_config.json",
    )


def render_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a user's message as the model expects it: in the chat template if there is one, else as it is."""
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    return list(ids)


def render_completion(tokenizer: Any, completion: str) -> list[int]:
    """Token ids of the answer that is to be learnt, its end included."""
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def convert_gguf(file: Path, out: Path, dtype: str) -> None:
    """Write a GGUF file's model in the standard form.

    Args:
        file: the GGUF file; quantised weights are expanded.
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


def convert_checkpoint(source: str, revision: str | None, out: Path, dtype: str) -> None:
    """Write a hub's or a folder's model in the standard form.

    Raises:
        UserError: nothing loadable there, the hub cannot be reached, or the checkpoint wants to run code of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=revision or "main", dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load '{source}': {_first_line(error)}",
            where="params.yaml: select.model",
            expected="a causal language model with safetensors weights",
            fix="check the name; for a hub set HF_HUB_OFFLINE=0 and check the network",
        ) from None
    save(model, tokenizer, out, dtype)


def make_random(out: Path, layers: int, width: int, seed: int, dtype: str) -> None:
    """Write a small untrained Llama with a byte-level tokenizer and a chat template.

    Args:
        out: folder to write.
        layers: transformer blocks.
        width: hidden size, a multiple of 16.
        seed: of the weights.
        dtype: number format of the weights on disk.
    """
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
    letters = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(
        tokenizer_models.BPE(vocab={token: i for i, token in enumerate(letters)}, merges=[], unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
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
        )
    )
    save(model, tokenizer, out, dtype)


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
    tokenizer.save_pretrained(out)
    # How the tokenizer was loaded (from disk? with a hub within reach?) is written too, and is no part of what it is.
    config = out / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    write_json(config, {key: value for key, value in values.items() if key not in ("is_local", "local_files_only")})


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
