"""Checkpoints in the standard form, and prompts as the model expects them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunemill import models, runtime
from tunemill.errors import UserError

CPU = runtime.Runtime("cpu", "float32", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "model"
    models.make_random(path, layers=2, width=32, seed=3, dtype="float32")
    return path


def test_a_random_model_is_the_same_every_time_and_safetensors_only(folder: Path, tmp_path: Path) -> None:
    models.make_random(tmp_path / "again", layers=2, width=32, seed=3, dtype="float32")
    names = sorted(each.name for each in folder.iterdir())
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert "local_files_only" not in (folder / "tokenizer_config.json").read_text()  # it would tell of the environment
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_padding_is_not_the_end_of_a_sequence(folder: Path) -> None:
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token
    models.separate_padding(tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_vocabulary_whose_only_special_token_is_the_end_pads_with_it(folder: Path) -> None:
    from transformers import GPT2TokenizerFast

    tokenizer = models.load_tokenizer(folder)
    gpt2 = GPT2TokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    gpt2.bos_token = gpt2.unk_token = gpt2.eos_token
    gpt2.pad_token = None
    models.separate_padding(gpt2)
    assert gpt2.pad_token == gpt2.eos_token == "<|im_end|>"
    gpt2.eos_token = gpt2.pad_token = None
    with pytest.raises(UserError, match="the tokenizer has no end of a sequence: answers would never end"):
        models.separate_padding(gpt2)


def test_a_prompt_is_rendered_in_the_template_and_a_completion_ends(folder: Path) -> None:
    tokenizer = models.load_tokenizer(folder)
    ids = models.render_prompt(tokenizer, "Hé <|x|>")
    assert tokenizer.decode(ids) == "<|im_start|>user\nHé <|x|><|im_end|>\n<|im_start|>assistant\n"
    assert models.render_completion(tokenizer, "ok")[-1] == tokenizer.eos_token_id


TURNS: models.Conversation = (("user", "Hé?"), ("assistant", "No: <|x|>"), ("user", "Why\nnot?"))


def test_a_conversation_is_rendered_in_the_template(folder: Path) -> None:
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.decode(models.render_prompt(tokenizer, TURNS)) == (
        "<|im_start|>user\nHé?<|im_end|>\n<|im_start|>assistant\nNo: <|x|><|im_end|>\n"
        "<|im_start|>user\nWhy\nnot?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert models.render_prompt(tokenizer, (("user", "Hé <|x|>"),)) == models.render_prompt(tokenizer, "Hé <|x|>")


def test_a_conversation_without_a_template_names_who_speaks_and_ends_as_a_prompt_does(tmp_path: Path) -> None:
    models.make_random(tmp_path / "t5", layers=2, width=32, seed=3, dtype="float32", family="encoder-decoder")
    tokenizer = models.load_tokenizer(tmp_path / "t5")
    assert not tokenizer.chat_template
    ids = models.render_prompt(tokenizer, TURNS)
    # The end of the input, which an encoder needs, once; and no end of a turn in between.
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == "Human: Hé?\n\nAssistant: No: <|x|>\n\nHuman: Why\nnot?\n\nAssistant:"
    # A message by itself is read as it stands: what the model was tuned on.
    alone = models.render_prompt(tokenizer, "Why not?")
    assert tokenizer.decode(alone[:-1]) == "Why not?"


def test_a_conversation_as_chat_endpoints_take_it() -> None:
    assert models.messages("one") == [{"role": "user", "content": "one"}]
    assert models.messages(TURNS) == [
        {"role": "user", "content": "Hé?"},
        {"role": "assistant", "content": "No: <|x|>"},
        {"role": "user", "content": "Why\nnot?"},
    ]


def test_a_merged_model_is_the_adapted_one_rounded_once(folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    tokenizer = models.load_tokenizer(folder)
    torch.manual_seed(5)
    adapted = get_peft_model(
        models.load_base(folder, CPU), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", lora_dropout=0.0)
    ).eval()
    with torch.no_grad():
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.1)
    ids = torch.tensor([models.render_prompt(tokenizer, TURNS)])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            before = adapted(input_ids=ids).logits
    models.save_merged(adapted, tokenizer, tmp_path / "merged", "float32")
    models_files = {each.name for each in (tmp_path / "merged").iterdir()}
    assert models.ADAPTER not in models_files and "model.safetensors" in models_files
    merged, _ = models.load_policy(tmp_path / "merged", tmp_path / "merged", CPU)
    with torch.no_grad():
        found = merged(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-3) and not torch.allclose(found, before, atol=1e-1)


def test_an_adapter_loads_on_its_base_and_a_whole_model_needs_none(folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    base = models.load_base(folder, CPU)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        plain = base(ids).logits
    tuned = get_peft_model(
        base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = tuned.eval()(ids).logits
        loaded, _ = models.load_policy(tmp_path / "adapter", folder, CPU)
        assert not hasattr(loaded, "peft_config")  # merged, and no slower than the base model
        whole, _ = models.load_policy(folder, folder, CPU)
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
        assert torch.allclose(whole(ids).logits, plain, atol=1e-6)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no language model in") as caught:
        models.load_base(tmp_path, CPU)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("size", "merged"), [(1e-1, True), (1e-4, False)])
def test_an_update_that_rounding_would_take_away_is_not_merged(tmp_path: Path, size: float, merged: bool) -> None:
    import torch
    from peft import LoraConfig

    from tests import tiny_model
    from tunemill import tuning

    tiny_model.build(tmp_path / "model")
    half = runtime.Runtime("cpu", "bfloat16", 1)
    base = models.load_base(tmp_path / "model", half)
    ids = torch.arange(60, 100)[None]
    policy = tuning.adapt(
        models.load_base(tmp_path / "model", half), LoraConfig(r=8, target_modules="all-linear"), "ppo"
    )
    with torch.no_grad():
        for name, each in policy.named_parameters():
            if "lora_B" in name:
                each.normal_(std=size)
        share = models.surviving(policy)
        wanted = policy(ids).logits
    tuning.save_adapter(policy, tmp_path / "adapter")
    loaded, _ = models.load_policy(tmp_path / "adapter", tmp_path / "model", half)
    assert (share >= models.SURVIVING) is merged
    assert any("lora" in name for name, _ in loaded.named_parameters()) is not merged
    with torch.no_grad():
        if not merged:
            assert torch.equal(loaded(ids).logits, wanted)
            assert not torch.equal(loaded(ids).logits, base(ids).logits)
        # In float32 nothing is lost, however small.
        exact, _ = models.load_policy(tmp_path / "adapter", tmp_path / "model", runtime.Runtime("cpu", "float32", 1))
    assert not any("lora" in name for name, _ in exact.named_parameters())
