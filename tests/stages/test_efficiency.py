"""The stage on a tiny model: what is measured, in turns, with the reference at one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.efficiency import Config, run
from tests import tiny_model
from tunemill import models, profiling, records, sampling, serving
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Candidates
from tunemill.profiling import Speed
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)
CONFIG = Config(seed=0, reference="base", rounds=3, prompts=2, new_tokens=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("efficiency")
    tiny_model.build(path / "model")
    adapted = get_peft_model(
        models.load_base(path / "model", CPU), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(path / "adapter")
    for name in ("base", "lora"):
        rows = [{"id": f"{i}", "group": f"g{i % 2}", "prompt": line} for i, line in enumerate(tiny_model.corpus()[:6])]
        records.write_objects(path / "evaluate" / name / "instances.jsonl", rows)
        (path / "evaluate" / name / "scores.json").write_text(json.dumps({"policy_hash": f"hash of {name}"}))
    return path


def candidates(root: Path) -> Candidates:
    base = str(root / "model")
    return Candidates.model_validate(
        {"base": {"policy": base, "base": base}, "lora": {"policy": str(root / "adapter"), "base": base}}
    )


def test_real_measurements(root: Path, tmp_path: Path) -> None:
    found = run(
        CONFIG, evaluations=root / "evaluate", candidates=candidates(root), out=tmp_path / "out", runtime=CPU, log=Log()
    )
    written = json.loads((tmp_path / "out/efficiency.json").read_text())
    assert sorted(written["candidates"]) == ["base", "lora"]
    for name, row in written["candidates"].items():
        assert sorted(row) == [
            "batch_decode_ratio",
            "batch_decode_tokens_per_second",
            "decode_ratio",
            "decode_tokens_per_second",
            "disk_bytes",
            "disk_ratio",
            "first_token_ratio",
            "first_token_seconds",
            "joules_per_token",
            "memory_bytes",
            "memory_ratio",
            "prefill_ratio",
            "prefill_tokens_per_second",
        ]
        energy = row.pop("joules_per_token")
        assert energy is None or energy > 0  # not every machine tells
        assert all(value > 0 for value in row.values())
        assert 50e6 < row["memory_bytes"] < 3e9  # a process with torch in it
        assert len(written["samples"][name]) == 3
        assert {key: found[f"{name}/{key}"] for key in row} == row
    base = written["candidates"]["base"]
    assert [base[key] for key in base if key.endswith("ratio")] == [1.0] * 6
    # Counted apart from the code: what a deployment copies.
    sizes = {
        name: sum((root / name / file).stat().st_size for file in files)
        for name, files in {
            "model": [each.name for each in (root / "model").iterdir() if each.name != "README.md"],
            "adapter": ["adapter_config.json", "adapter_model.safetensors"],
        }.items()
    }
    assert base["disk_bytes"] == sizes["model"]
    assert written["candidates"]["lora"]["disk_bytes"] == sizes["model"] + sizes["adapter"]
    assert written["evaluated"] == {"base": "hash of base", "lora": "hash of lora"}
    assert (written["device"], written["dtype"], written["prompts"]) == ("cpu", "float32", 2)


def test_what_does_not_fit_together_is_loaded_in_turn(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = models.load_policy

    def counted(policy: Path, *rest: Any) -> Any:
        loads.append(policy.name)
        return load(policy, *rest)

    monkeypatch.setattr(models, "load_policy", counted)
    monkeypatch.setattr(serving, "peak_memories", lambda folders, *_: dict.fromkeys(folders, 1))
    for name, free, order in (
        ("all", 2**34, ["model", "adapter"]), ("one", 100, ["model", "adapter"] * CONFIG.rounds),
    ):  # fmt: skip
        monkeypatch.setattr(serving, "free_bytes", lambda device, free=free: free)
        loads.clear()
        (tmp_path / name).mkdir()
        run(
            CONFIG, evaluations=root / "evaluate", candidates=candidates(root), out=tmp_path / name, runtime=CPU,
            log=Log(),
        )  # fmt: skip
        written = json.loads((tmp_path / name / "efficiency.json").read_text())
        assert (written["in_memory"], loads) == (name, order)
        assert [len(each) for each in written["samples"].values()] == [CONFIG.rounds] * 2


def test_turns_slow_rounds_and_ratios(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import stats

    # The machine gets three times as slow in one round: ratios within a round do not notice, nor does what stands for all rounds.
    turns: list[str] = []
    base = [
        Speed(999, 9, 999, 999, None),
        Speed(100, 1, 10, 40, 2.0),
        Speed(110, 0.9, 11, 44, 2.1),
        Speed(33, 3, 3, 12, 9.0),
        Speed(105, 0.95, 10.5, 42, 2.0),
        Speed(95, 1.05, 9.5, 38, 1.0),
    ]
    lora = [
        Speed(1, 1, 1, 1, None),
        Speed(50, 2, 8, 40, 1.0),
        Speed(55, 1.8, 9.9, 33, 1.0),
        Speed(16.5, 6, 2.4, 6, None),
        Speed(52.5, 1.9, 8.4, 33.6, 1.0),
        Speed(47.5, 2.1, 7.6, 26.6, 1.0),
    ]
    known: dict[int, str] = {}

    def measure(model: Any, *_: Any) -> Speed:
        known.setdefault(id(model), "lora" if known else "base")
        name = known[id(model)]
        turns.append(name)
        return (lora if name == "lora" else base)[turns.count(name) - 1]

    monkeypatch.setattr(profiling, "speed", measure)
    monkeypatch.setattr(serving, "peak_memories", lambda *_: {"base": 1000, "lora": 1500})
    cfg = CONFIG.model_copy(update={"rounds": 5})
    found = run(
        cfg, evaluations=root / "evaluate", candidates=candidates(root), out=tmp_path / "out", runtime=CPU, log=Log()
    )
    assert turns == ["base", "lora"] * 6
    # Without the fastest and the slowest of five.
    assert found["base/prefill_tokens_per_second"] == pytest.approx(stats.gmean([95, 100, 105]))
    assert found["lora/prefill_tokens_per_second"] == pytest.approx(stats.gmean([47.5, 50, 52.5]))
    assert found["lora/prefill_ratio"] == pytest.approx(0.5) and found["lora/first_token_ratio"] == pytest.approx(2.0)
    assert found["lora/decode_ratio"] == pytest.approx(0.8)  # 0.8 0.9 0.8 0.8 0.8
    assert found["lora/batch_decode_ratio"] == pytest.approx(stats.gmean([0.75, 0.7, 0.8]))  # and 1.0, 0.5
    assert found["lora/memory_ratio"] == 1.5
    assert found["base/joules_per_token"] == pytest.approx(stats.gmean([2.0, 2.1, 2.0]))
    assert found["lora/joules_per_token"] is None  # not told in every round


@pytest.fixture(scope="module")
def others(root: Path) -> Path:
    """An encoder-decoder, and a soft prompt for each family."""
    import torch
    from peft import PromptTuningConfig, get_peft_model

    models.make_random(root / "t5", 2, 32, 5, "float32", "encoder-decoder")
    for name, task in (("model", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")):
        config = PromptTuningConfig(task_type=task, num_virtual_tokens=3, num_transformer_submodules=1)
        torch.manual_seed(2)
        tuned = get_peft_model(models.load_base(root / name, CPU), config)
        tuned.save_pretrained(root / f"{name}-soft")
    return root


@pytest.mark.parametrize(
    ("policy", "base"), [("model", "model"), ("model-soft", "model"), ("t5", "t5"), ("t5-soft", "t5")]
)
def test_speed_decodes_what_greedy_search_does(others: Path, policy: str, base: str) -> None:
    import torch

    model, tokenizer = models.load_policy(others / policy, others / base, CPU)
    prompts = [models.render_prompt(tokenizer, line) for line in tiny_model.corpus()[:3]]
    plain, _ = sampling.bare(model)
    seq2seq = plain.config.is_encoder_decoder
    fed: list[torch.Tensor] = []

    def note(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        fed.append(named["decoder_input_ids" if seq2seq else "input_ids"])

    found, _ = profiling._prefill(model, prompts, tokenizer.pad_token_id)
    hook = plain.register_forward_pre_hook(note, with_kwargs=True)
    profiling._decode(model, found, 5)
    hook.remove()
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        alone = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
        )[0]
        assert torch.cat(fed, dim=1)[row].tolist() == alone[-5:].tolist()
    measured = profiling.speed(model, prompts, 2)
    assert all(value > 0 for value in measured[:4])
    assert measured.joules_per_token is None or measured.joules_per_token > 0  # not every machine tells


def test_a_batch_of_one_prompt_is_that_prompt_repeated(others: Path) -> None:
    import torch

    for policy, base in (("model-soft", "model"), ("t5-soft", "t5")):
        model, tokenizer = models.load_policy(others / policy, others / base, CPU)
        prompt = models.render_prompt(tokenizer, tiny_model.corpus()[0])
        read, _ = profiling._prefill(model, [prompt], tokenizer.pad_token_id)
        thrice = profiling._repeated(read, 3)
        again, _ = profiling._prefill(model, [prompt] * 3, tokenizer.pad_token_id)
        assert torch.allclose(thrice.logits, again.logits[:, -1:], atol=1e-5)
        assert thrice.given["attention_mask"].shape == again.given["attention_mask"].shape


def test_the_reference_must_be_a_candidate(root: Path, tmp_path: Path) -> None:
    cfg = CONFIG.model_copy(update={"reference": "nobody"})
    with pytest.raises(
        UserError, match="params.yaml: efficiency.reference: 'nobody' is no candidate\n  expected: one of base, lora"
    ):
        run(
            cfg,
            evaluations=root / "evaluate",
            candidates=candidates(root),
            out=tmp_path / "out",
            runtime=CPU,
            log=Log(),
        )
