"""In-context learning (Brown et al. 2020): a prompt in a template, worked examples before it, and both baked into a tokenizer.

Worked examples ("shots") are earlier turns of the chat where the tokenizer has a chat template. Without one they are text:
prompt, newline, completion, empty line; and then the prompt in question and a newline.

A template is filled in by replacing every `{prompt}`; other braces stand for themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemill import cards
from tunemill.templates import FIELD, PLAIN, checked, fill

if TYPE_CHECKING:
    from tunemill.records import Example
    from tunemill.sampling import Decoding

Shot = tuple[str, str]
"""A worked example: its prompt and its completion."""


def render(tokenizer: Any, prompt: str, *, template: str = PLAIN, shots: Sequence[Shot] = ()) -> list[int]:
    """Token ids of a filled-in template with worked examples before it, ready to be answered.

    Args:
        tokenizer: with or without a chat template; special tokens of its own (T5's end) are added.
        prompt: what is asked.
        template: text around every prompt, those of the shots included.
        shots: prompts and completions, the first one first.
    """
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            _turns(prompt, template, shots), add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    else:
        before = "".join(f"{fill(template, each)}\n{completion}\n\n" for each, completion in shots)
        ids = tokenizer(before + fill(template, prompt) + ("\n" if shots else ""))["input_ids"]
    return list(ids)


def _turns(prompt: str, template: str, shots: Sequence[Shot]) -> list[dict[str, str]]:
    turns = []
    for each, completion in shots:
        turns.append({"role": "user", "content": fill(template, each)})
        turns.append({"role": "assistant", "content": completion})
    return [*turns, {"role": "user", "content": fill(template, prompt)}]


def choose_shots(
    tokenizer: Any, rows: Sequence[Example], count: int, *, max_tokens: int, seed: int
) -> tuple[Shot, ...]:
    """Draw worked examples: short ones, each from another group while there are groups left.

    Fewer shots are the first of more, so that cells of a grid differ in their number alone.

    Args:
        tokenizer: counts the tokens.
        rows: training rows.
        count: how many.
        max_tokens: most tokens of one, prompt and completion together.
        seed: of the choice, which depends on the rows' ids and not on their order.

    Raises:
        ValueError: fewer rows than that are short enough.
    """
    waiting = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\0{row.id}".encode()).digest())
    chosen: list[Example] = []
    while len(chosen) < count and waiting:
        groups, later = set(), []  # one of each group, then from the beginning again
        for row in waiting:
            if len(chosen) == count or row.group in groups:
                later.append(row)
            elif _tokens(tokenizer, row) <= max_tokens:
                chosen.append(row)
                groups.add(row.group)
        waiting = later
    if len(chosen) < count:
        raise ValueError(f"{len(chosen)} of {len(rows)} rows have at most {max_tokens} tokens, {count} are needed")
    return tuple((row.prompt, row.completion) for row in chosen)


def _tokens(tokenizer: Any, row: Example) -> int:
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (row.prompt, row.completion))


def chat_template(tokenizer: Any, template: str = PLAIN, shots: Sequence[Shot] = ()) -> str:
    """A Jinja chat template that does by itself what `render` does with `template` and `shots`.

    `tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)` then gives the ids of
    `render`. In a longer chat the shots stand before the first user's message, and the template is around each of them.

    Args:
        tokenizer: as it came; its own chat template, if any, goes on after the turns have been put in.
        template: see `render`.
        shots: see `render`.

    Raises:
        ValueError: the template has no place for the prompt, or this tokenizer's special tokens cannot be written as text.
    """
    checked(template)
    shown = [turn for turn in _turns("", template, shots)[:-1] if shots]
    # Text stands in string literals only, where Jinja's own marks mean nothing.
    preamble = (
        f"{{%- set tunemill = namespace(turns=[], shots={_literal(shown)}, around={_literal(template.split(FIELD))}) %}}\n"
        "{%- for message in messages %}\n"
        "{%- if message['role'] == 'user' %}\n"
        "{%- set asked = {'role': 'user', 'content': tunemill.around | join(message['content'])} %}\n"
        "{%- set tunemill.turns = tunemill.turns + tunemill.shots + [asked] %}\n"
        "{%- set tunemill.shots = [] %}\n"
        "{%- else %}\n"
        "{%- set tunemill.turns = tunemill.turns + [message] %}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
    )
    if tokenizer.chat_template:
        # The newline is eaten together with the tag (`trim_blocks`): what follows stands at the beginning of a line, as before.
        return preamble + "{%- set messages = tunemill.turns %}\n" + str(tokenizer.get_chat_template())
    before, after = _special_tokens(tokenizer)
    baked = preamble + (
        f"{{{{- {_literal(before)} }}}}\n"
        "{%- for turn in tunemill.turns %}\n"
        "{{- turn['content'] }}\n"
        "{%- if not loop.last or tunemill.turns | length > 1 %}\n"
        r"{{- '\n\n' if turn['role'] == 'assistant' else '\n' }}"
        "\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        f"{{{{- {_literal(after)} }}}}"
    )
    probe = "What is it?"
    found = tokenizer.apply_chat_template([{"role": "user", "content": probe}], chat_template=baked, return_dict=True)
    if list(found["input_ids"]) != render(tokenizer, probe, template=template, shots=shots):
        raise ValueError(f"{type(tokenizer).__name__}: its special tokens {before + after!r} cannot be written as text")
    return baked


def _literal(value: Any) -> str:
    """A Jinja literal: JSON's escapes mean the same there, and beyond ASCII none are needed."""
    return json.dumps(value, ensure_ascii=False)


def _special_tokens(tokenizer: Any) -> tuple[str, str]:
    """What the tokenizer puts before and after every text, as text: a chat template has to write it out."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    before, after = whole[:at], whole[at + len(bare) :]
    return "".join(tokenizer.convert_ids_to_tokens(before)), "".join(tokenizer.convert_ids_to_tokens(after))


# ── a checkpoint that asks in this way by itself ──────────────────────────────────────────────────────────────────


def write_policy(
    model: Path, out: Path, tokenizer: Any, template: str, shots: Sequence[Shot], decoding: Decoding
) -> None:
    """Write a folder that plain transformers loads: the model's weights, template and shots in the tokenizer, the decoding.

    Args:
        model: folder of the model; its weights are linked, or copied where the file system cannot.
        out: folder to write.
        tokenizer: the model's, as it came.
        template: see `render`.
        shots: see `render`.
        decoding: becomes the default of `model.generate`.
    """
    import copy

    from transformers import GenerationConfig

    from tunemill import models

    out.mkdir(parents=True, exist_ok=True)
    baked = copy.deepcopy(tokenizer)
    baked.chat_template = chat_template(tokenizer, template, shots)
    models.save_tokenizer(baked, out)
    if (model / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(model)
    else:
        from transformers import AutoConfig

        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model, trust_remote_code=False))
    settings.max_length, settings.max_new_tokens = None, decoding.max_new_tokens
    settings.do_sample = decoding.temperature > 0
    if settings.do_sample:
        settings.temperature, settings.top_k, settings.top_p = decoding[1:]
    else:
        settings.temperature = settings.top_k = settings.top_p = None
    settings.save_pretrained(out)
    told = {"training.json", "curve.csv", "prompt.json"}  # of how the model was made, not of how it is asked
    for file in sorted(model.iterdir()):
        if not file.is_file() or file.name in told or (out / file.name).exists():
            continue
        try:
            os.link(file.resolve(), out / file.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, out / file.name)


def card(
    model: Path, encoder_decoder: bool, template: str, decoding: Decoding, shots: int, score: Mapping[str, Any]
) -> str:
    """The model card of such a folder, in Markdown.

    Args:
        model: folder of the model that is asked, whose card tells name and licence.
        encoder_decoder: the model's family.
        template: see `render`.
        decoding: see `write_policy`.
        shots: number of worked examples.
        score: what stage `prompt` measured: metric, n, groups, chosen, gain and note.
    """
    kind = "Seq2SeqLM" if encoder_decoder else "CausalLM"
    known = cards.inherited(model)
    answer = "ids[0]" if encoder_decoder else 'ids[0, given["input_ids"].shape[1] :]'
    chosen = score["chosen"]
    between = "" if chosen["ci_low"] is None else f" (95% interval {chosen['ci_low']:.1f} to {chosen['ci_high']:.1f})"
    how = (
        f"sampling at temperature {decoding.temperature:g}, top_k {decoding.top_k}, top_p {decoding.top_p:g}"
        if decoding.temperature > 0
        else "greedy"
    )
    quoted = "\n".join(f"    {line}".rstrip() for line in template.split("\n"))
    head = cards.head({**known, "library_name": "transformers", "pipeline_tag": cards.tag(encoder_decoder)})
    return f"""{head}
# A prompted model

The weights are those of the model it was made from, untouched, and so is their licence. What was chosen is how to ask: a
template, {shots} worked example{"" if shots == 1 else "s"}, and how answers are decoded.

Template:

{quoted}

Decoding: {how}, at most {decoding.max_new_tokens} tokens. The worked examples are rows of the training data and stand in
`prompt.json`. All of it is in the chat template and in `generation_config.json`:

```python
from transformers import AutoModelFor{kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelFor{kind}.from_pretrained(folder)
given = tokenizer.apply_chat_template(
    [{{"role": "user", "content": prompt}}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
ids = model.generate(**given)
print(tokenizer.decode({answer}, skip_special_tokens=True))
```

Measured: {score["metric"]} {chosen["score"]:.1f}{between} on {score["n"]} validation rows of {score["groups"]} groups. {score["note"]}
The choice was made on these rows, so the score flatters; the evaluation on the test rows does not.
"""
