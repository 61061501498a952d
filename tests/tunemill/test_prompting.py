"""Prompts as the model gets them: what is baked into a tokenizer says exactly what `render` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import models, prompting
from tunemill.records import Example

AWKWARD = [
    "Summarise {this} and {{that}}: {prompt}",
    "{% for x in y %}{{ x }}{# no comment #}{% endfor %}{% raw %}",
    "a 'single', a \"double\", a \\ backslash \\n, a\ttab",
    "two\nlines\n\n  indented\r\n",
    "é 😀 \u2028 \u0085 ü",
    "-%} %} }} {{- {%-",
    "}] %}",
    "x",
]
TEMPLATES = [
    "{prompt}",
    "{% if %} {{ '\"' }} {prompt}\n\\ {braces} {{prompt}}\n",
    "In one line:\n\n{prompt}\n\nSummary:",
    "{prompt} {prompt}",
]
SHOTS = list(zip(AWKWARD, reversed(AWKWARD), strict=True))


def tokenizer_with(chat: str, folder: Path) -> Any:
    if chat == "llama":
        tiny_model.build(folder)
        return models.load_tokenizer(folder)
    models.make_random(folder, 1, 16, 0, "float32", "decoder-only" if chat == "indented" else "encoder-decoder")
    tokenizer = models.load_tokenizer(folder)
    if chat == "indented":  # white space at the beginning that belongs to the text, and a system message of its own
        tokenizer.chat_template = (
            "\n  {% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n  {%- endif %}\n"
            + tokenizer.chat_template
            + "\n"
        )
    return tokenizer


@pytest.fixture(scope="module", params=["llama", "indented", "t5"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_with(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("prompt", AWKWARD)
def test_the_plain_template_without_shots_adds_nothing(tokenizer: Any, prompt: str) -> None:
    assert prompting.render(tokenizer, prompt) == models.render_prompt(tokenizer, prompt)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("count", [0, 1, len(SHOTS)])
def test_what_is_baked_in_says_the_same(tokenizer: Any, template: str, count: int, tmp_path: Path) -> None:
    baked = prompting.chat_template(tokenizer, template, SHOTS[:count])
    own, tokenizer.chat_template = tokenizer.chat_template, baked
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = own
    loaded = models.load_tokenizer(tmp_path)
    for prompt in AWKWARD:
        wanted = prompting.render(tokenizer, prompt, template=template, shots=SHOTS[:count])
        assert wanted == models.render_prompt(loaded, prompt)
        found = loaded.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        assert list(found["input_ids"]) == wanted


def test_shots_are_earlier_turns_of_a_chat(tokenizer: Any) -> None:
    ids = prompting.render(tokenizer, "c {}", template="Q: {prompt}", shots=[("a", "b")])
    text = tokenizer.decode(ids)
    if tokenizer.chat_template:
        turns = [("user", "Q: a"), ("assistant", "b"), ("user", "Q: c {}")]
        assert text.endswith(
            "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns) + ("<|im_start|>assistant\n")
        )
    else:
        assert text == "Q: a\nb\n\nQ: c {}\n<|im_end|>" and ids[-1] == tokenizer.eos_token_id


def test_longer_chats_keep_their_turns(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("llama", tmp_path)
    baked = prompting.chat_template(tokenizer, "Q: {prompt}", [("a", "b")])
    chat = [("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "z")]
    said = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in chat], chat_template=baked, tokenize=False
    )
    whole = [chat[0], ("user", "Q: a"), ("assistant", "b"), ("user", "Q: x"), chat[2], ("user", "Q: z")]
    assert said == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in whole)


def test_a_template_has_a_place_for_the_prompt(tokenizer: Any) -> None:
    for call in (
        lambda: prompting.render(tokenizer, "x", template="nothing"),
        lambda: prompting.chat_template(tokenizer, "{ prompt }"),
    ):
        with pytest.raises(ValueError, match="in the prompt's place"):
            call()


def rows(lengths: list[int], groups: int) -> list[Example]:
    return [
        Example(
            id=f"{at:012x}",
            prompt=f"prompt {at} " + "word " * length,
            completion=f"done {at}",
            group=f"g{at % groups}",
            text=None,
            source="made",
        )
        for at, length in enumerate(lengths)
    ]


def test_shots_are_short_spread_and_always_the_same(tokenizer: Any) -> None:
    given = rows([3, 900, 4, 5, 800, 6, 7, 3, 900, 5, 4, 2], 4)
    group = {(row.prompt, row.completion): row.group for row in given}
    for seed in range(5):
        chosen = prompting.choose_shots(tokenizer, given, 6, max_tokens=60, seed=seed)
        assert chosen == prompting.choose_shots(tokenizer, given[::-1], 6, max_tokens=60, seed=seed)
        assert len(set(chosen)) == 6 and all(len(prompt) < 200 for prompt, _ in chosen)
        assert len({group[each] for each in chosen[:4]}) == 4
        assert prompting.choose_shots(tokenizer, given, 2, max_tokens=60, seed=seed) == chosen[:2]
    assert len({prompting.choose_shots(tokenizer, given, 3, max_tokens=60, seed=seed) for seed in range(5)}) > 1
    assert prompting.choose_shots(tokenizer, given, 0, max_tokens=60, seed=0) == ()


def test_too_few_short_rows_are_told(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="1 of 3 rows have at most 60 tokens, 2 are needed"):
        prompting.choose_shots(tokenizer, rows([300, 2, 300], 3), 2, max_tokens=60, seed=0)
