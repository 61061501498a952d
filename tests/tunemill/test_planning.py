"""Planning: parameters and bytes from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tunemill import planning


def test_lora_arithmetic_of_a_512_by_64_weight() -> None:
    from transformers import LlamaConfig

    # 512 x 64 = 32,768 weights; rank 8 trains 8 x 64 + 512 x 8 = 4,608: 86% fewer.
    config = LlamaConfig(hidden_size=64, head_dim=128, num_attention_heads=4, num_hidden_layers=1, vocab_size=9)
    method = planning.Method("lora", rank=8, targets=("q_proj",))
    assert planning.trainable_parameters(config, method) == 4_608
    assert round(100 * (1 - 4_608 / (512 * 64))) == 86


def test_what_is_trained_is_counted_whatever_the_layers_are_called() -> None:
    from transformers import GPT2Config

    # GPT-2's matrices are no nn.Linear. In each layer: 32 → 96, 32 → 32, 32 → 128 and 128 → 32.
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=90)
    assert planning.trainable_parameters(config, planning.Method("lora", rank=4)) == 2 * 4 * (128 + 64 + 160 + 160)
    assert planning.trainable_parameters(config, planning.Method("prompt_tuning", virtual_tokens=5)) == 5 * 32
    assert planning.trainable_parameters(config, planning.Method("full")) == planning.count_parameters(config).total


def test_counts_equal_the_real_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    counted = planning.count_parameters(config)
    assert counted.total == sum(each.numel() for each in LlamaForCausalLM(config).parameters())
    # By hand: embedding 100 x 32; q and o 32 x 32, k and v 32 x 16; three of 32 x 64; norms of 32.
    assert counted.parts == {
        "embedding": 3_200,
        "attention": 2 * (2 * 1024 + 2 * 512),
        "mlp": 2 * 3 * 2048,
        "norm": 5 * 32,
        "other": 0,
    }


def test_smollm2_counts() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    assert planning.count_parameters(config).total == 134_515_008  # as its model card says


def test_rule_of_thumb_is_24_bytes_to_train_and_4_to_store() -> None:
    assert planning.full_training_bytes(10**9)["total"] == 24 * 10**9
    assert planning.store_bytes(10**9) == {
        "float32": 4 * 10**9,
        "float16": 2 * 10**9,
        "bfloat16": 2 * 10**9,
        "int8": 10**9,
        "4-bit": 515_875_000,  # 4.127 bits: NF4 with double quantisation, as the QLoRA paper counts
    }


def test_number_formats_as_ieee_and_brain_float_define_them() -> None:
    assert [tuple(each) for each in planning.formats()] == [
        ("float32", 32, 8, 23, 4.0),
        ("float16", 16, 5, 10, 2.0),
        ("bfloat16", 16, 8, 7, 2.0),
        ("int8", 8, None, None, 1.0),
        ("4-bit", 4, None, None, 0.5),
    ]


@pytest.mark.parametrize(
    ("sharding", "gigabytes"), [("ddp", 120.0), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9), ("fsdp", 1.9)]
)
def test_sharding_is_figure_1_of_the_zero_paper(sharding: planning.Sharding, gigabytes: float) -> None:
    # 7.5 billion parameters on 64 devices, mixed precision.
    state, host = planning.sharded(planning.mixed_precision_state(7.5e9), sharding, 64)
    assert round(state.total / 1e9, 1) == gigabytes
    assert host == 0


def test_offloading_moves_the_optimizer_to_the_host() -> None:
    state, host = planning.sharded(planning.mixed_precision_state(1e9), "zero2", 4, offload=True)
    assert (state.weights, state.gradients, state.optimizer, host) == (2e9, 0.5e9, 0.0, 3e9)


def test_chinchilla_by_the_rule_and_by_the_papers_table() -> None:
    assert planning.optimal_tokens(67e9) == 1.34e12
    for parameters, tokens in ((1e9, 20.2e9), (10e9, 205.1e9), (67e9, 1.5e12)):
        assert planning.fitted_tokens(parameters) == pytest.approx(tokens, rel=1e-9)
    assert 20.2e9 < planning.fitted_tokens(3e9) < 205.1e9
    with pytest.raises(ValueError, match="the table goes from 4e"):
        planning.fitted_tokens(1e8)
    # Chinchilla itself: 70B parameters and 1.4T tokens took Gopher's budget of 5.76e23 FLOPs.
    assert planning.optimal_parameters(5.76e23) == pytest.approx(70e9, rel=0.02)
    assert planning.training_flops(70e9, 1.4e12, "full") == pytest.approx(5.88e23)


def test_a_petaflop_day_is_what_gpt_3_took_3640_of() -> None:
    # Brown et al. 2020, table D.1: 174.6B parameters, 300B tokens, 3.14e23 FLOPs, 3.64e3 petaFLOP/s-days.
    flops = planning.training_flops(174.6e9, 300e9, "full")
    assert flops == pytest.approx(3.14e23, rel=0.002)
    assert planning.petaflop_days(flops) == pytest.approx(3.64e3, rel=0.002)


def test_the_cache_of_llama_2_7b_takes_half_a_mebibyte_for_a_token() -> None:
    from transformers import BartConfig, LlamaConfig, T5Config

    llama = LlamaConfig(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=32)
    assert planning.kv_cache_bytes(llama, 1, 1) == 2**19
    grouped = LlamaConfig(num_hidden_layers=80, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8)
    assert planning.kv_cache_bytes(grouped, 1, 1) == 2 * 80 * 8 * 128 * 2
    t5 = T5Config(num_layers=3, num_decoder_layers=5, d_kv=16, num_heads=4)
    assert planning.kv_cache_bytes(t5, 2, 7, 4) == 2 * 5 * 4 * 16 * 14 * 4
    bart = BartConfig(
        d_model=64, encoder_layers=2, decoder_layers=6, encoder_attention_heads=4, decoder_attention_heads=2
    )
    assert planning.kv_cache_bytes(bart, 1, 1) == 2 * 6 * 64 * 2
    assert [planning.layers(each) for each in (llama, t5, bart)] == [(0, 32), (3, 5), (2, 6)]


def test_families_are_recognised_from_the_configuration() -> None:
    from transformers import BertConfig, CLIPConfig, GPT2Config, T5Config

    assert planning.family(GPT2Config()) == "decoder-only"
    assert planning.family(T5Config()) == "encoder-decoder"
    assert planning.family(BertConfig(architectures=["BertForMaskedLM"])) == "encoder-only"
    assert planning.family(BertConfig(architectures=["BertLMHeadModel"], is_decoder=True)) == "decoder-only"
    with pytest.raises(ValueError, match="CLIPConfig is no language model"):
        planning.family(CLIPConfig())


# ------------------------------------------------------------ the memory of a step


def small() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


METHODS = [
    planning.Method("full"),
    planning.Method("lora", rank=4),
    planning.Method("prompt_tuning", virtual_tokens=5),
]


def t5() -> Any:
    from transformers import T5Config

    return T5Config(
        num_layers=2,
        d_model=32,
        d_ff=64,
        d_kv=16,
        num_heads=2,
        vocab_size=512,
        decoder_start_token_id=0,
        dropout_rate=0,
    )


@pytest.mark.parametrize("config", [small(), t5()], ids=["llama", "t5"])
@pytest.mark.parametrize("method", METHODS, ids=lambda each: each.name)
def test_a_step_on_tensors_without_data_is_the_real_step(method: planning.Method, config: Any) -> None:
    # The outside oracle: torch's own profiler, on real tensors, of the loss that training computes.
    from torch.profiler import ProfilerActivity, profile

    from tunemill import losses

    pairs = [losses.Encoded([7] * (36 - at), [9] * (12 - at % 2)) for at in range(4)]
    batch = planning.largest_batch([pairs], config.is_encoder_decoder)
    planned = planning.step_memory(config, method, batch)
    policy = planning.build(config, method)
    inputs = losses.collate(pairs, 0, losses.start_token(policy))
    soft = losses.virtual_tokens(policy)
    losses.completion_loss(policy, inputs, None, soft).backward()  # once before: nothing is made for the first time
    policy.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True, with_stack=True) as seen:
        losses.completion_loss(policy, inputs, None, soft).backward()
    now = peak = 0
    for event in seen.profiler.kineto_results.experimental_event_tree():
        for change in allocations(event):
            now += change
            peak = max(peak, now)
    step = planned.gradients + planned.logits + planned.activations
    assert step == pytest.approx(peak, rel=0.05)  # what a kernel takes for itself and gives back is not seen
    weights = sum(each.numel() * 4 for each in policy.parameters())
    trained = sum(each.numel() * 4 for each in policy.parameters() if each.requires_grad)
    assert (planned.weights, planned.optimizer) == (weights, 2 * trained)


def test_the_largest_batch_is_the_one_with_the_most_positions() -> None:
    short, long = [([1] * 9, [2] * 3), ([1] * 6, [2] * 5)], [([1] * 20, [2]), ([1] * 4, [2] * 2)]
    assert planning.largest_batch([short, long], encoder_decoder=False) == planning.Batch(2, 21, 2, window=17)
    assert planning.largest_batch([short], encoder_decoder=False) == planning.Batch(2, 12, 5, window=6)
    assert planning.largest_batch([short], encoder_decoder=True) == planning.Batch(2, 14, 5)


def allocations(event: Any) -> Iterator[int]:
    """Bytes taken and given back, in order of time."""
    from torch._C._profiler import _EventType

    found: list[tuple[int, int]] = []

    def walk(each: Any) -> None:
        if each.tag == _EventType.Allocation:
            found.append((each.start_time_ns, each.extra_fields.alloc_size))
        for child in each.children:
            walk(child)

    walk(event)
    yield from (size for _, size in sorted(found))


def test_more_rows_longer_rows_and_a_larger_vocabulary_cost_more() -> None:
    config = small()
    config.vocab_size = 5120  # so large that the worst moment is the loss's, as in every real model of this size
    lora = planning.Method("lora", rank=4)
    least = planning.step_memory(config, lora, planning.Batch(2, 32, 8))
    rows = planning.step_memory(config, lora, planning.Batch(4, 32, 8))
    longer = planning.step_memory(config, lora, planning.Batch(2, 64, 8))
    assert rows.activations == pytest.approx(2 * least.activations, rel=0.05)
    assert rows.logits == 2 * least.logits
    assert longer.logits == least.logits and longer.activations > 1.9 * least.activations
    config.vocab_size = 51200
    assert planning.step_memory(config, lora, planning.Batch(2, 32, 8)).logits == 10 * least.logits
    # Without the logits' FP32 copy: at least logits, log-probabilities and their gradient.
    assert least.logits >= 3 * 2 * 8 * 5120 * 4


def test_half_precision_saves_where_nothing_needs_the_precision() -> None:
    batch = planning.Batch(8, 64, 8)
    whole = planning.Method("full")
    single, half = (planning.step_memory(small(), whole, batch, each) for each in ("float32", "bfloat16"))
    assert half.weights == single.weights  # trained weights stay in float32
    assert half.activations < 0.8 * single.activations
    # Adapters stay in float32, and so does what they read: PEFT copies it for each adapted layer.
    lora = planning.Method("lora", rank=4)
    single, half = (planning.step_memory(small(), lora, batch, each) for each in ("float32", "bfloat16"))
    assert half.weights < 0.6 * single.weights
    assert half.optimizer == single.optimizer
    packed = planning.step_memory(small(), planning.Method("qlora", rank=4), batch)
    assert packed.weights < half.weights


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
@pytest.mark.parametrize(("kind", "kept"), [("nf4", "4-bit"), ("int8", "int8")])
def test_packed_weights_are_as_many_bytes_as_bitsandbytes_keeps(
    family: Literal["decoder-only", "encoder-decoder"], kind: str, kept: str, tmp_path: Path
) -> None:
    from peft import LoraConfig
    from transformers import AutoConfig

    from tunemill import models, runtime, trainings, tuning

    models.make_random(tmp_path, 2, 256, 1, "float32", family)
    base = models.load_quantized(tmp_path, runtime.Runtime("cpu", "bfloat16", 2), kind)
    policy = tuning.adapt(base, LoraConfig(r=4, target_modules="all-linear"), "lora")
    real = sum(each.numel() * each.element_size() for each in policy.parameters())
    for each in policy.parameters():
        if state := getattr(each, "quant_state", None):
            real += state.absmax.numel() * state.absmax.element_size() + 4 * state.state2.absmax.numel()
    config = AutoConfig.from_pretrained(tmp_path)
    config.scale_decoder_outputs = (
        True  # the random T5 has no head of its own, unlike the checkpoints it is modelled on
    )
    # Whichever layers the adapter is on, every matrix but the output head is packed.
    for adapter in (LoraConfig(r=4, target_modules="all-linear"), LoraConfig(r=1, target_modules=["q_proj", "q"])):
        planned = planning.tuning_memory(config, adapter, planning.Batch(2, 24, 8), "bfloat16", quantised=kept)
        own = planned.optimizer // 2  # of the adapter, in float32
        assert planned.weights - own == pytest.approx(real - 4 * trainings.counted(policy)[0], rel=1e-4)
    counted = planning.count_parameters(config).total
    assert trainings.counted(policy)[1] == counted  # not half of it, and without the adapter


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_deep_model_is_planned_by_shallow_ones(family: str, recompute: bool) -> None:
    from transformers import LlamaConfig, T5Config

    config: Any = (
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=4, vocab_size=300)
        if family == "decoder-only"
        else T5Config(d_model=32, d_ff=64, num_layers=12, num_heads=4, d_kv=8, vocab_size=300)
    )
    batch = planning.Batch(3, 40, 8)
    for method in planning.methods(planning.Assumptions(batch, 10, 4, 5, 8)).values():
        quantised = "4-bit" if method.name == "qlora" else None
        whole = planning.tuning_memory(
            config, planning.adapter(config, method), batch, "float32", recompute=recompute, quantised=quantised
        )
        found = planning.step_memory(config, method, batch, recompute=recompute)
        assert found.total == pytest.approx(whole.total, rel=1e-3), method.name


def test_layers_that_differ_are_all_planned() -> None:
    from transformers import LlamaConfig, T5Config

    assert planning._alike(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=12)) == 12
    assert planning._alike(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=6)) == 0  # few enough
    assert planning._alike(T5Config(d_model=32, d_ff=64, num_layers=12, num_decoder_layers=10)) == 0


def test_computing_activations_again_saves_most_of_them() -> None:
    adapter = planning.adapter(small(), planning.Method("lora", rank=4))
    kept, again = (
        planning.tuning_memory(small(), adapter, planning.Batch(8, 64, 8), "float32", recompute=recompute)
        for recompute in (False, True)
    )
    assert again.activations < 0.6 * kept.activations
    assert again.weights == kept.weights


def test_any_adapter_of_peft_can_be_planned() -> None:
    from peft import IA3Config

    planned = planning.tuning_memory(small(), IA3Config(), planning.Batch(2, 32, 8), "float32")
    # k and v are 32 wide, the MLP's inner layer 192, in each of 3 layers; two moments of 4 bytes.
    assert planned.optimizer == 2 * 4 * 3 * (32 + 32 + 192)


def test_the_process_is_more_than_its_tensors() -> None:
    step = planning.Memory(weights=500, optimizer=300, gradients=50, logits=50, activations=100)
    assert planning.process_bytes(step) == planning.PROCESS_BYTES + 800 + round(200 * planning.ALLOCATOR_SLACK)
    assert planning.process_bytes(step, "cuda") == 1000


@pytest.mark.parametrize("method", METHODS, ids=lambda each: each.name)
def test_other_architectures_plan_themselves(method: planning.Method) -> None:
    from transformers import BertConfig, GPT2Config, T5Config

    for config in (
        GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=9000, bos_token_id=0, eos_token_id=0),
        T5Config(num_layers=2, d_model=32, d_ff=64, d_kv=16, num_heads=2, vocab_size=9000, decoder_start_token_id=0),
    ):
        planned = planning.step_memory(config, method, planning.Batch(2, 24, 8))
        assert min(planned.weights, planned.optimizer, planned.activations) > 0
        # All weights of a small model: the worst moment is the optimizer's, when no logits are left.
        assert planned.logits > 0 or planned.gradients == planned.optimizer / 2
    with pytest.raises(ValueError, match="writes no completions"):
        planning.step_memory(BertConfig(architectures=["BertForMaskedLM"]), method, planning.Batch(2, 24, 8))


def test_the_table_says_everything_once() -> None:
    assumed = planning.Assumptions(planning.Batch(2, 24, 8), steps=10, rank=4, virtual_tokens=5, devices=4)
    planned = planning.plan(small(), assumed)
    text = planning.table(planned)
    assert text.splitlines()[0].startswith("0.2 M parameters: embedding 0.0 M, attention 0.0 M")
    for line in ("bfloat16      16         8         7      2", "zero3", "rule of thumb for full tuning, 24 bytes"):
        assert line in text
    # Bytes to train in each number format, and which one the parts are for.
    formats = {name: each["training_bytes"] for name, each in planned["methods"].items()}
    assert {name: sorted(each) for name, each in formats.items()} == {
        **{name: ["bfloat16", "float16", "float32"] for name in ("full", "lora", "prompt_tuning")},
        "qlora": ["4-bit", "int8"],
    }
    for name, each in planned["methods"].items():
        assert formats[name][each["dtype"]] == each["memory"]["total"]
        assert f"{name:<14} {each['dtype']}" in text
    assert formats["lora"]["bfloat16"] < formats["lora"]["float32"]
    assert formats["qlora"]["4-bit"] < formats["qlora"]["int8"]
    assert planned["methods"]["full"]["trainable_share"] == 1.0
    assert planned["methods"]["prompt_tuning"]["trainable_parameters"] == 5 * 64
    assert planned["compute_optimal"]["fitted_tokens"] is None  # smaller than the paper's table
    assert list(planned["methods"]) == ["full", "lora", "prompt_tuning", "qlora"]
    assert planned["methods"]["qlora"]["trainable_parameters"] == planned["methods"]["lora"]["trainable_parameters"]
    # The budget of Gopher and of Chinchilla, 5.76e23 FLOPs, is 6,667 petaFLOP/s-days.
    near = min(planned["budgets"], key=lambda each: abs(each["petaflop_days"] - 6_667))
    assert near["parameters"] == pytest.approx(70e9 * (near["petaflop_days"] / 6_667) ** 0.5, rel=0.02)
