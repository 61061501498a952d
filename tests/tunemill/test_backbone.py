"""One backbone, four roles: the reference is the policy at the start to the last bit, padding changes nothing, both families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunemill import backbone, losses, models, rlhf
from tunemill.backbone import Actors
from tunemill.errors import UserError
from tunemill.losses import Encoded
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)
ROWS = [
    Encoded([5, 6, 7, 8], [9, 10, 11, 2]),
    Encoded([5, 6], [12, 2]),
    Encoded([8, 6, 4, 30, 31], [40, 41, 42, 43, 2]),
]
FAMILIES = ("decoder-only", "encoder-decoder")


def adapter(rank: int = 4) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear")


def reward_folder(start: Path, folder: Path, seed: int = 5) -> Path:
    """A reward model as stage `reward` writes it, of random weights."""
    import safetensors.torch
    import torch

    from tunemill import tuning

    torch.manual_seed(seed)
    model = tuning.adapt(models.load_base(start, CPU), adapter(2), "reward")
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.3)
    tuning.save_adapter(model, folder / "adapter")
    head = torch.randn(backbone.width(model.config))
    safetensors.torch.save_file({"weight": head}, folder / "adapter" / backbone.HEAD)
    (folder / "reward.json").write_text('{"kind": "model"}')
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    models.make_random(folder, 2, 64, 0, "float32", request.param)
    return folder


@pytest.fixture(scope="module")
def actors(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Actors:
    reward = reward_folder(start, tmp_path_factory.mktemp("reward"))
    return backbone.share(start, reward, adapter(), CPU, detached=False)


def batch(actors: Actors, rows: list[Encoded] = ROWS, pad: int = 0) -> backbone.Batch:
    return backbone.collate(rows, pad, losses.start_token(actors))


def test_policy_and_reference_are_one_at_the_start(actors: Actors) -> None:
    import torch

    read = batch(actors)
    with torch.no_grad():
        with actors.role("policy") as model:
            policy = backbone.chosen(model, read, temperature=0.7)
        with actors.role("reference") as model:
            reference = backbone.chosen(model, read, temperature=0.7)
    assert torch.equal(policy.logprobs, reference.logprobs)  # not close: equal
    for found in rlhf.response_divergences(policy.logprobs, reference.logprobs, read.mask):
        assert found.tolist() == [0.0] * len(found)


def test_logprobs_are_those_of_a_full_pass_without_a_cache(start: Path, actors: Actors) -> None:
    import torch

    model = models.load_base(start, CPU)
    first = losses.start_token(model)
    with torch.no_grad(), actors.role("reference") as lm:
        found = backbone.chosen(lm, batch(actors), temperature=1.0)
        for at, row in enumerate(ROWS):
            if first is None:
                logits = model(torch.tensor([row.prompt + row.completion])).logits[0, len(row.prompt) - 1 : -1]
            else:
                logits = model(
                    input_ids=torch.tensor([row.prompt]),
                    decoder_input_ids=torch.tensor([[first, *row.completion[:-1]]]),
                ).logits[0]
            every = logits.log_softmax(-1)
            wanted = every.gather(1, torch.tensor(row.completion)[:, None])[:, 0]
            count = len(row.completion)
            assert torch.allclose(found.logprobs[at, :count], wanted, atol=3e-5)
            assert torch.allclose(found.entropy[at, :count], -(every.exp() * every).sum(-1), atol=3e-5)
            assert not found.logprobs[at, count:].any()


def test_generation_draws_with_the_probabilities_that_are_read(start: Path, actors: Actors) -> None:
    """The temperature, the offset and the decoder's start are right: what is drawn most often is what is read as likeliest."""
    import torch

    from tunemill import sampling

    tokenizer = models.load_tokenizer(start)
    prompt = models.render_prompt(tokenizer, "read the file")
    asked = [prompt] * 3000
    with actors.role("policy") as model:
        drawn = list(
            sampling.rollouts(
                model, tokenizer, asked, decoding=sampling.Decoding(1, 2.5), batches=[tuple(range(3000))], seed=[7]
            )
        )
        words = sorted({ids[0] for _, ids, _ in drawn})
        rows = [Encoded(prompt, [word]) for word in words]
        with torch.no_grad():
            chances = backbone.chosen(model, batch(actors, rows), temperature=2.5).logprobs[:, 0].exp()
    assert len(words) > 5
    for word, chance in zip(words, chances.tolist(), strict=True):
        share = sum(ids[0] == word for _, ids, _ in drawn) / 3000
        assert share == pytest.approx(chance, abs=5.0 * (chance * (1.0 - chance) / 3000) ** 0.5 + 1.5 / 3000)


@pytest.mark.parametrize("role", ["value", "reward"])
def test_value_and_reward_do_not_see_padding(actors: Actors, role: backbone.Role) -> None:
    import torch

    with torch.no_grad(), actors.role(role) as model:
        together, other = batch(actors), batch(actors, pad=3)
        states, ends = backbone.chosen_states(model, together), backbone.end_states(model, together)
        assert torch.equal(ends, backbone.end_states(model, other))  # whatever the padding is
        for at, row in enumerate(ROWS):
            alone = batch(actors, [row])
            count = len(row.completion)
            assert torch.allclose(states[at, :count], backbone.chosen_states(model, alone)[0], atol=2e-5)
            assert torch.allclose(ends[at], backbone.end_states(model, alone)[0], atol=2e-5)


def test_states_stand_where_they_are_said_to(start: Path, actors: Actors) -> None:
    """The value is read before its token is, the reward after the last one: checked by changing that token."""
    import torch

    other = [ROWS[0], ROWS[1], Encoded(ROWS[2].prompt, [40, 41, 99, 43, 2])]
    with torch.no_grad(), actors.role("reward") as model:
        states, changed = (backbone.chosen_states(model, batch(actors, rows)) for rows in (ROWS, other))
        ends, ends_changed = (backbone.end_states(model, batch(actors, rows)) for rows in (ROWS, other))
    same = (states - changed).abs().amax(dim=-1)[2] < 1e-6
    assert same.tolist()[:5] == [True, True, True, False, False]  # the third token is known from the fourth state on
    assert not torch.allclose(ends[2], ends_changed[2])
    last = [ROWS[0], ROWS[1], Encoded(ROWS[2].prompt, [40, 41, 42, 43, 7])]
    with torch.no_grad(), actors.role("reward") as model:
        final = backbone.end_states(model, batch(actors, last))
    assert not torch.allclose(ends[2], final[2])  # the end token is read too


def test_value_starts_as_the_reward_and_has_its_own_gradient(actors: Actors) -> None:
    import torch

    read = batch(actors)
    with torch.no_grad():
        with actors.role("value") as model:
            value = backbone.chosen_states(model, read)
        with actors.role("reward") as model:
            reward = backbone.chosen_states(model, read)
        with actors.role("reference") as model:
            plain = backbone.chosen_states(model, read)
    assert torch.equal(value, reward)
    assert not torch.allclose(value, plain)
    assert not actors.value_head.any()
    for each in actors.parameters():
        each.grad = None
    with actors.role("value") as model:
        (backbone.chosen_states(model, read).sum() + actors.value_head.sum()).backward()
    assert all(each.grad is None for each in actors.policy_parameters())
    assert all(each.grad is not None for each in actors.value_parameters())
    with actors.role("policy") as model:
        backbone.chosen(model, read, temperature=1.0).logprobs.sum().backward()
    assert all(each.grad is not None for each in actors.policy_parameters())
    frozen = [
        each for name, each in actors.shared.named_parameters() if ".policy." not in name and ".value." not in name
    ]
    assert all(each.grad is None for each in frozen)
    ours = {id(each) for each in actors.parameters()}
    assert not any(id(each) in ours for each in frozen)


def test_separate_models_play_the_same_roles(start: Path, actors: Actors, tmp_path: Path) -> None:
    import torch

    reward = reward_folder(start, tmp_path)
    shared = backbone.share(start, reward, adapter(), CPU, detached=False)
    apart = backbone.separate(start, reward, CPU, detached=False)
    read = batch(actors)
    assert shared.reward_head is not None
    with torch.no_grad():
        for role in ("policy", "reference", "value", "reward"):
            with shared.role(role) as one, apart.role(role) as other:
                assert torch.allclose(backbone.states(one, read), backbone.states(other, read), atol=5e-5), role
    assert sum(each.numel() for each in apart.policy_parameters()) == sum(
        each.numel() for each in models.load_base(start, CPU).parameters()
    )


def test_a_reward_model_with_another_tokenizer_is_refused(start: Path, tmp_path: Path) -> None:
    from tests import tiny_model

    reward = reward_folder(start, tmp_path / "reward")
    tokenizer = models.load_tokenizer(start)
    backbone.check(reward, tokenizer, start)  # it says nothing of its tokenizer: its shape is all that can be checked
    (reward / "reward.json").write_text(f'{{"kind": "model", "vocabulary": "{backbone.vocabulary(tokenizer)}"}}')
    backbone.check(reward, tokenizer, start)
    tiny_model.build(tmp_path / "other")
    with pytest.raises(UserError, match="another tokenizer"):
        backbone.check(reward, models.load_tokenizer(tmp_path / "other"), start)


def test_a_reward_model_of_another_width_is_refused(start: Path, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    reward = reward_folder(start, tmp_path / "reward")
    safetensors.torch.save_file({"weight": torch.zeros(48)}, reward / "adapter" / backbone.HEAD)
    with pytest.raises(UserError, match="48 weights, a state of the policy has 64"):
        backbone.share(start, reward, adapter(), CPU, detached=False)
    with pytest.raises(UserError, match="no reward model"):
        backbone.share(start, tmp_path, adapter(), CPU, detached=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma"])
def test_packed_rows_are_read_as_if_each_were_alone(family: str, attention: str) -> None:
    """Rows share a beginning, some a whole prompt; one prompt is the beginning itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    if family == "gpt2":
        sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **sizes), attn_implementation=attention
    ).eval()
    assert backbone.packable(model)
    shared = [3, 4, 5, 6]
    rows = [
        Encoded([*shared, 7, 8], [9, 10, 11, 2]),
        Encoded([*shared, 7, 8], [12, 2]),
        Encoded([*shared, 20, 21, 22], [13]),
        Encoded(shared, [14, 15, 2]),
        Encoded([*shared, 7, 8], [16, 17, 18, 19, 2]),
    ]
    padded, packed = (backbone.collate(rows, 0, None, each) for each in (False, True))
    assert packed.tokens == 4 + 2 + 3 + 4 + 2 + 1 + 3 + 5
    assert padded.tokens == 5 * 11
    with torch.no_grad():
        one, other = (backbone.chosen(model, each, temperature=0.8, states=True) for each in (padded, packed))
        assert torch.allclose(one.logprobs, other.logprobs, atol=1e-5)
        assert torch.allclose(one.entropy, other.entropy, atol=1e-5)
        assert one.states is not None
        assert other.states is not None
        assert torch.allclose(one.states[padded.mask], other.states[packed.mask], atol=1e-5)
        assert torch.allclose(
            backbone.chosen_states(model, padded)[padded.mask],
            backbone.chosen_states(model, packed)[packed.mask],
            atol=1e-5,
        )
        assert torch.allclose(backbone.end_states(model, padded), backbone.end_states(model, packed), atol=1e-5)


def test_what_cannot_be_packed_is_padded(start: Path) -> None:
    from tests import tiny_model

    model = models.load_base(start, CPU)
    assert backbone.packable(model) is not model.config.is_encoder_decoder
    assert not backbone.packable(
        tiny_model.forgetful(100)
    )  # it sees sixteen tokens back: a mask of pairs would hide that
