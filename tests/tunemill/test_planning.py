"""Planning: parameters and bytes from the configuration alone."""

from __future__ import annotations

from tunemill import planning


def test_lora_arithmetic_of_a_512_by_64_weight() -> None:
    # 512 x 64 = 32,768 weights; rank 8 trains 8 x 64 + 512 x 8 = 4,608: 86% fewer.
    assert planning.lora_parameters([(512, 64)], 8) == 4_608
    assert round(100 * (1 - 4_608 / (512 * 64))) == 86


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
    }


def test_adapters_keep_gradients_and_moments_for_themselves_only() -> None:
    table = planning.adapter_training_bytes(1000, 10, 2)
    assert table["total"] == 2000 + 40 + 40 + 80
