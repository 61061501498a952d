"""Greedy answers of a shipped artifact by the library it is for, and nothing of this project: a program for another Python too.

python speak.py transformers|peft|llama_cpp FOLDER BASE ASKED.json > SAID.json

ASKED.json has `prompts`, `max_new_tokens` and `dtype`; what is written is a list of texts, white space collapsed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def by_transformers(folder: str, base: str, asked: dict[str, Any], adapter: bool) -> list[str]:
    """As the model card says."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = getattr(torch, asked["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(base if adapter else folder)
    model = AutoModelForCausalLM.from_pretrained(base if adapter else folder, dtype=dtype)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    said = []
    for prompt in asked["prompts"]:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.eval().generate(**ids, max_new_tokens=asked["max_new_tokens"], do_sample=False)
        said.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return said


def by_llama_cpp(folder: str, asked: dict[str, Any]) -> list[str]:
    """By llama-cpp-python, with the chat template that is in the file."""
    from llama_cpp import Llama

    model = Llama(str(Path(folder, "model.gguf")), n_ctx=2048, n_threads=2, verbose=False)
    said = []
    for prompt in asked["prompts"]:
        model.reset()
        told = model.create_chat_completion(
            [{"role": "user", "content": prompt}], temperature=0, max_tokens=asked["max_new_tokens"]
        )
        said.append(told["choices"][0]["message"]["content"])
    return said


if __name__ == "__main__":
    kind, folder, base, asked_file = sys.argv[1:]
    asked = json.loads(Path(asked_file).read_text(encoding="utf-8"))
    texts = by_llama_cpp(folder, asked) if kind == "llama_cpp" else by_transformers(folder, base, asked, kind == "peft")
    print(json.dumps([" ".join(text.split()) for text in texts]))
