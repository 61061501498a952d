"""What a batch generates is what each prompt would generate alone, however it was padded, shared, dropped or halved."""

from __future__ import annotations

import copy
import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import models, sampling
from tunemill.log import Log
from tunemill.runtime import Runtime
from tunemill.sampling import Batch, Generation

LIMIT = 20


@pytest.fixture(scope="module")
def policy(decoder: Path) -> tuple[Any, Any]:
    model, tokenizer = models.load_policy(decoder, decoder, Runtime("cpu", "float32", 2))
    # Random weights hardly ever end a text: let frequent tokens end it, so that rows end at different times.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 420)]
    return model, tokenizer


@pytest.fixture(scope="module")
def prompts(policy: tuple[Any, Any]) -> list[list[int]]:
    lines = tiny_model.corpus(1)
    texts = [" ".join(lines[index : index + 1 + index % 4]) for index in range(17)]
    return [models.render_prompt(policy[1], f"Summarize in one line:\n\n{text}") for text in texts]


@pytest.fixture(scope="module")
def alone(policy: tuple[Any, Any], prompts: list[list[int]]) -> list[Generation]:
    """The oracle: transformers' own greedy search, one prompt at a time, no padding."""
    import torch

    model, tokenizer = policy
    found = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False)[0, len(prompt) :].tolist()
        ends = [index for index, token in enumerate(ids) if token in model.generation_config.eos_token_id]
        kept = ids[: ends[0] + 1] if ends else ids
        found.append(Generation(tokenizer.decode(kept, skip_special_tokens=True), len(kept), bool(ends)))
    return found


def answers(
    policy: tuple[Any, Any], prompts: list[list[int]], tokens: int = 10_000, rows: int = 8, **more: Any
) -> list[Generation]:
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, tokens, rows)
    found = {}
    for batch in sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, **more):
        found.update(zip(batch.items, batch.generations, strict=True))
    return [found[index] for index in sorted(found)]


def test_the_oracle_ends_some_texts_and_not_others(alone: list[Generation]) -> None:
    assert {each.finished for each in alone} == {True, False}
    assert len({each.tokens for each in alone}) > 4


@pytest.mark.parametrize(("tokens", "rows"), [(10_000, 32), (10_000, 5), (300, 32), (1, 1)])
def test_a_batch_gives_what_single_prompts_give(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation], tokens: int, rows: int
) -> None:
    assert answers(policy, prompts, tokens, rows) == alone


@pytest.mark.parametrize("leg", [1, 3, LIMIT, 100])
def test_dropping_ended_rows_changes_nothing(
    policy: tuple[Any, Any],
    prompts: list[list[int]],
    alone: list[Generation],
    leg: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "LEG", leg)
    assert answers(policy, prompts) == alone


@pytest.mark.parametrize("shortest", [1, 10_000])
def test_sharing_the_beginning_changes_nothing(
    policy: tuple[Any, Any],
    prompts: list[list[int]],
    alone: list[Generation],
    shortest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "PREFIX", shortest)
    assert sampling._shared_prefix(policy[0], None, prompts).length == (0 if shortest == 10_000 else 14)
    assert answers(policy, prompts) == alone


def test_prompts_that_are_equal_or_begin_one_another(policy: tuple[Any, Any], prompts: list[list[int]]) -> None:
    nested = [prompts[3], prompts[3], prompts[3][:-4], prompts[3][:12]]
    found = answers(policy, nested)
    assert found[0] == found[1]
    assert found == [answers(policy, [prompt])[0] for prompt in nested]


def test_an_adapter_generates_in_batches_too(
    decoder: Path, tmp_path: Path, prompts: list[list[int]], alone: list[Generation]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    runtime = Runtime("cpu", "float32", 2)
    torch.manual_seed(0)
    tuned = get_peft_model(
        models.load_base(decoder, runtime),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    policy = models.load_policy(tmp_path / "adapter", decoder, runtime)
    found = answers(policy, prompts[:6])
    assert found == [answers(policy, [prompt])[0] for prompt in prompts[:6]]
    assert [each.text for each in found] != [each.text for each in alone[:6]]


def test_a_checkpoints_own_settings_do_not_count(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "repetition_penalty": 9.0,
        "num_beams": 2,
    }.items():
        monkeypatch.setattr(policy[0].generation_config, name, value)
    assert answers(policy, prompts) == alone


def test_padding_with_the_end_token_ends_no_text(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation]
) -> None:
    model, tokenizer = policy[0], copy.deepcopy(policy[1])
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert answers((model, tokenizer), prompts) == alone


def test_where_a_text_ends() -> None:
    ends = frozenset({2})
    assert sampling.until_end([5, 6, 2, 2, 2], ends) == (3, True)  # padded with the end token: the first one counts
    assert sampling.until_end([2, 7], ends) == (1, True)
    assert sampling.until_end([5, 0, 6], ends) == (3, False)
    assert sampling.until_end([], ends) == (0, False)


def test_a_text_that_ends_at_once_is_empty(
    policy: tuple[Any, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy[0].generation_config, "eos_token_id", list(range(3, 1536)))
    found = answers(policy, prompts)
    assert {(each.tokens, each.finished) for each in found} == {(1, True)}


def test_the_plan_sorts_packs_and_keeps_everyone() -> None:
    lengths = [10, 50, 20, 50, 5, 30]
    assert sampling.plan(lengths, 10, 10_000, 3) == [(1, 3, 5), (2, 0, 4)]
    assert sampling.plan(lengths, 10, 120, 3) == [(1, 3), (5, 2, 0), (4,)]
    assert sampling.plan(lengths, 10, 1, 3) == [(1,), (3,), (5,), (2,), (0,), (4,)]  # too long for the budget: alone
    assert sampling.plan([], 10, 100, 3) == []
    for tokens in (60, 100, 130, 200):
        plan = sampling.plan(lengths, 10, tokens, 4)
        assert sorted(index for batch in plan for index in batch) == list(range(6))
        assert all(len(batch) == 1 or (max(lengths[i] for i in batch) + 10) * len(batch) <= tokens for batch in plan)


def test_padding_stands_behind_the_common_beginning() -> None:
    ids, mask = sampling.padded([[1, 2, 3, 4, 5], [1, 2, 6]], 0, 2, "cpu")
    assert ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 0, 0, 6]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]
    ids, mask = sampling.padded([[1, 2, 3], [7]], 0, 0, "cpu")
    assert ids.tolist() == [[1, 2, 3], [0, 0, 7]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_where_memory_runs_out_the_batch_is_halved_and_that_is_told(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = sampling._decode, []

    def small(model: Any, tokenizer: Any, job: Any, *rest: Any) -> Any:
        asked.append(len(job.prompts))
        if len(job.prompts) > 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …"
            )
        return whole(model, tokenizer, job, *rest)

    monkeypatch.setattr(sampling, "_decode", small)
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, 10_000, 9)
    found: list[Batch] = list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan))
    assert asked == [9, 5, 3, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2]
    assert [batch.halved for batch in found] == [3, 3]
    flat = {item: each for batch in found for item, each in zip(batch.items, batch.generations, strict=True)}
    assert [flat[index] for index in range(len(prompts))] == alone


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), RuntimeError("out of memory")])
def test_other_errors_and_a_single_prompt_that_does_not_fit_are_raised(
    policy: tuple[Any, Any], prompts: list[list[int]], error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(sampling, "_decode", fail)
    batch = prompts[:4] if "shapes" in str(error) else prompts[:1]
    with pytest.raises(RuntimeError, match=str(error)):
        answers(policy, batch)


def test_a_resumed_run_gives_the_remaining_batches(policy: tuple[Any, Any], prompts: list[list[int]]) -> None:
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, 10_000, 5)
    everything = list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan))
    assert [batch.number for batch in everything] == [0, 1, 2, 3]
    assert list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, first=2)) == everything[2:]
    assert list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, first=4)) == []


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────────

WARM = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}


def test_what_is_sampled_depends_on_seed_and_prompt_alone(policy: tuple[Any, Any], prompts: list[list[int]]) -> None:
    found = answers(policy, prompts, seed=5, **WARM)
    assert {each.finished for each in found} == {True, False}  # rows are dropped on the way
    for tokens, rows in ((10_000, 32), (300, 32), (1, 1)):
        assert answers(policy, prompts, tokens, rows, seed=5, **WARM) == found
    assert answers(policy, prompts, seed=6, **WARM) != found
    plan = sampling.plan([len(prompt) for prompt in prompts], LIMIT, 10_000, 5)
    batches = list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, seed=5, **WARM))
    resumed = list(sampling.generate(*policy, prompts, max_new_tokens=LIMIT, batches=plan, first=2, seed=5, **WARM))
    assert resumed == batches[2:]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.05), (0, 0.999), (7, 1.0), (40, 0.5), (10**6, 0.3)])
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 8.0])
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(
    top_k: int, top_p: float, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    monkeypatch.setattr(sampling, "NUCLEUS", 0.01)  # many rows need more
    logits = sharpness * torch.randn(6, 3000, generator=torch.Generator().manual_seed(1))
    theirs = logits.clone()
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    values, tokens = sampling._likeliest(logits, top_k, top_p)
    assert tokens is not None
    for row, drawable in zip(tokens, values.isfinite(), strict=True):
        assert bool((row[drawable].diff() > 0).all())
    ours = torch.full_like(logits, -torch.inf).scatter_reduce(1, tokens, values, "amax")
    assert bool(ours.isfinite().any(dim=1).all())  # something may be drawn in every row
    # Rounding may put the last token on one side or the other.
    differ = (ours.isfinite() != theirs.isfinite()).sum(dim=1)
    assert int(differ.max()) <= 1
    both = ours.isfinite() & theirs.isfinite()
    assert torch.equal(ours[both], theirs[both])


def test_a_row_without_numbers_disturbs_no_other() -> None:
    import torch

    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    alone, _ = sampling._likeliest(logits, 0, 0.9)
    logits[1] = torch.nan
    values, tokens = sampling._likeliest(logits, 0, 0.9)
    assert tokens is not None
    for row in (0, 2):
        drawable = values[row].isfinite()
        assert bool(drawable.any())
        assert torch.equal(values[row][drawable], logits[row][tokens[row][drawable]])
        assert torch.equal(values[row][drawable], alone[row][alone[row].isfinite()])


def test_a_row_without_numbers_ends_and_the_others_go_on() -> None:
    import torch

    logits = torch.randn(4, 200, generator=torch.Generator().manual_seed(1))
    logits[1], logits[2, 7], logits[3, 9] = torch.nan, torch.nan, torch.inf
    found = sampling._ending(frozenset({50, 3}))(None, logits.clone())
    assert torch.equal(found[[0, 3]], logits[[0, 3]])
    assert found[1:3].argmax(dim=-1).tolist() == [3, 3]
    assert (found[1:3].softmax(dim=-1)[:, 3] == 1.0).all()


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}])
def test_a_model_without_numbers_says_nothing(
    policy: tuple[Any, Any], prompts: list[list[int]], decoding: dict[str, Any]
) -> None:
    import torch

    damaged = copy.deepcopy(policy[0])
    with torch.no_grad():
        damaged.model.norm.weight.fill_(torch.nan)
    found = answers((damaged, policy[1]), prompts[:3], **decoding)
    assert found == [Generation("", 1, True)] * 3


def test_samples_of_one_prompt_share_its_reading_and_differ(
    policy: tuple[Any, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [each for each in prompts[:6] for _ in range(4)]
    alone = answers(policy, copies, rows=1, seed=5, **WARM)
    read, forward = [], policy[0].forward

    @functools.wraps(forward)
    def counted(*args: Any, **given: Any) -> Any:
        read.append(tuple(given["input_ids"].shape))
        return forward(*args, **given)

    monkeypatch.setattr(policy[0], "forward", counted)
    for rows in (24, 10):  # a prompt's samples in one batch, and torn apart
        read.clear()
        assert answers(policy, copies, rows=rows, seed=5, **WARM) == alone
        long = sum(rows * width for rows, width in read if width > 1)
        assert long <= sum(map(len, prompts[:6])) + 6 * max(map(len, prompts[:6]))
    assert all(len({each.text for each in alone[at : at + 4]}) > 1 for at in range(0, 24, 4))
    # Greedy, all are one answer.
    monkeypatch.undo()
    found = answers(policy, copies, rows=24)
    assert found == [each for each in answers(policy, prompts[:6]) for _ in range(4)]


def test_a_low_temperature_and_a_single_candidate_are_greedy(
    policy: tuple[Any, Any], prompts: list[list[int]], alone: list[Generation]
) -> None:
    assert answers(policy, prompts, temperature=1e-6) == alone
    assert answers(policy, prompts, temperature=1.0, top_k=1) == alone
    assert answers(policy, prompts, temperature=1.0, top_p=1e-9) == alone


@pytest.mark.parametrize("change", [{}, {"top_k": 12}, {"top_p": 0.3}, {"temperature": 2.0, "top_k": 30, "top_p": 0.9}])
def test_tokens_come_as_often_as_transformers_own_sampling_would_draw_them(
    policy: tuple[Any, Any], prompts: list[list[int]], change: dict[str, Any]
) -> None:
    import torch
    from scipy.stats import chisquare

    model, tokenizer = policy
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | change
    # The oracle: the scores that transformers' sampling draws from, after its own temperature, top-k and top-p.
    torch.manual_seed(0)
    own = model.generate(
        torch.tensor([prompts[0]]),
        max_new_tokens=1,
        do_sample=True,
        output_scores=True,
        return_dict_in_generate=True,
        **given,
    )
    probabilities = own.scores[0][0].double().softmax(-1).numpy()
    count = 3000
    plan = sampling.plan([len(prompts[0])] * count, 1, 1_000_000, 500)
    drawn: list[int] = []
    halving = sampling._halving

    def noted(*job: Any) -> Any:
        found = halving(*job)
        drawn.extend(row[0] for row in found[0])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_halving", noted)
        list(sampling.generate(model, tokenizer, [prompts[0]] * count, max_new_tokens=1, batches=plan, seed=1, **given))
    seen = torch.tensor(drawn).bincount(minlength=len(probabilities)).numpy()
    assert len(drawn) == count and not seen[probabilities == 0].any()
    likely = probabilities * count >= 5
    rest = probabilities[~likely].sum() * count
    observed, expected = [*seen[likely]], [*(probabilities[likely] * count)]
    if rest > 0:
        observed, expected = [*observed, seen[~likely].sum()], [*expected, rest]
    assert chisquare(observed, expected).pvalue > 0.001


# ── encoder-decoders ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    models.make_random(path, 2, 32, 5, "float32", "encoder-decoder")
    # Weights three times as large: as initialised it repeats one token, whatever it reads.
    model = models.load_base(path, Runtime("cpu", "float32", 2))
    for name, weights in model.named_parameters():
        if any(part in name for part in ("Attention", "Dense")):
            weights.data.mul_(3)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> tuple[Any, Any]:
    model, tokenizer = models.load_policy(t5_folder, t5_folder, Runtime("cpu", "float32", 2))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 340)]
    return model, tokenizer


def t5_prompts(t5: tuple[Any, Any]) -> list[list[int]]:
    lines = tiny_model.corpus(1)
    return [
        models.render_prompt(t5[1], f"Summarize: {' '.join(lines[index : index + 1 + index % 3])}")
        for index in range(7)
    ]


def plain(policy: tuple[Any, Any], prompts: list[list[int]], **more: Any) -> list[Generation]:
    """The oracle: the model's (or PEFT's) own generate, one prompt at a time."""
    import torch

    model, tokenizer = policy
    ends, found = sampling.end_tokens(model, tokenizer), []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        row = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False, **more
        )[0].tolist()
        if model.config.is_encoder_decoder:
            assert row[0] == tokenizer.pad_token_id == model.config.decoder_start_token_id
            row = row[1:]
        elif row[: len(prompt)] == prompt:
            row = row[len(prompt) :]
        length, finished = sampling.until_end(row, ends)
        found.append(Generation(tokenizer.decode(row[:length], skip_special_tokens=True), length, finished))
    return found


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_an_encoder_decoder_in_batches_gives_what_single_prompts_give(t5: tuple[Any, Any], rows: int) -> None:
    prompts = t5_prompts(t5)
    alone = plain(t5, prompts)
    assert {each.finished for each in alone} == {True, False} and len({each.text for each in alone}) > 3
    assert answers(t5, prompts, rows=rows) == alone


def test_an_encoder_reads_each_prompt_once(t5: tuple[Any, Any]) -> None:
    prompts, read = t5_prompts(t5), []
    hook = (
        t5[0]
        .get_encoder()
        .register_forward_pre_hook(
            lambda _, __, given: read.append(int(given["attention_mask"].sum())), with_kwargs=True
        )
    )
    answers(t5, prompts, rows=4)
    hook.remove()
    assert len(read) == 2 and sum(read) == sum(map(len, prompts))


def test_tokens_that_a_checkpoint_forces_are_forced_once(t5: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t5[0].generation_config, "forced_bos_token_id", 77)
    monkeypatch.setattr(t5[0].generation_config, "forced_eos_token_id", 2)
    prompts = t5_prompts(t5)
    assert answers(t5, prompts) == plain(t5, prompts)


def test_an_encoder_reads_a_prompt_once_for_all_its_samples(t5: tuple[Any, Any]) -> None:
    prompts, read = t5_prompts(t5)[:4], []
    twice = [each for each in prompts for _ in range(3)]
    hook = (
        t5[0]
        .get_encoder()
        .register_forward_pre_hook(lambda _, __, given: read.append(len(given["attention_mask"])), with_kwargs=True)
    )
    found = answers(t5, twice, rows=12, seed=1, **WARM)
    hook.remove()
    assert read == [4]
    assert found == answers(t5, twice, rows=1, seed=1, **WARM)


def test_an_encoder_decoder_samples(t5: tuple[Any, Any]) -> None:
    prompts = t5_prompts(t5)
    found = answers(t5, prompts, seed=1, **WARM)
    assert answers(t5, prompts, rows=1, seed=1, **WARM) == found != answers(t5, prompts)


# ── soft prompts ──────────────────────────────────────────────────────────────────────────────────────────────────


def soft(folder: Path, place: Path, task: str, virtual: int = 5) -> tuple[Any, Any]:
    """A prompt-tuning adapter, saved and loaded again."""
    import torch
    from peft import PromptTuningConfig, get_peft_model

    runtime = Runtime("cpu", "float32", 2)
    torch.manual_seed(3)
    config = PromptTuningConfig(
        task_type=task, num_virtual_tokens=virtual, prompt_tuning_init="RANDOM", num_transformer_submodules=1
    )
    tuned = get_peft_model(models.load_base(folder, runtime), config)
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.normal_(std=0.5)
    tuned.save_pretrained(place)
    model, tokenizer = models.load_policy(place, folder, runtime)
    ends = [tokenizer.eos_token_id, *(range(300, 420) if task == "CAUSAL_LM" else range(300, 340))]
    model.get_base_model().generation_config.eos_token_id = ends
    return model, tokenizer


@pytest.mark.parametrize("shortest", [1, 10_000])
def test_a_soft_prompt_gives_in_batches_what_peft_gives_alone(
    decoder: Path, tmp_path: Path, prompts: list[list[int]], alone: list[Generation], shortest: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sampling, "PREFIX", shortest)
    policy = soft(decoder, tmp_path, "CAUSAL_LM")
    wanted = plain(policy, prompts)
    assert wanted != alone and {each.finished for each in wanted} == {True, False}
    assert answers(policy, prompts) == wanted
    assert answers(policy, prompts, rows=1) == wanted
    assert answers(policy, prompts[:1]) == wanted[:1]  # nothing is shared by one prompt


def test_a_soft_prompt_and_what_prompts_begin_with_are_read_once(
    decoder: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    model, tokenizer = soft(decoder, tmp_path, "CAUSAL_LM")
    read: list[int] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        fed = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        read.append(fed.shape[:2].numel())

    hook = model.get_base_model().base_model.register_forward_pre_hook(note, with_kwargs=True)
    list(
        sampling.generate(
            model, tokenizer, prompts, max_new_tokens=1, batches=sampling.plan([*map(len, prompts)], 1, 9999, 4)
        )
    )
    hook.remove()
    assert read[0] == 5 + 14  # the soft prompt and the common beginning
    assert sum(read[1:]) == sum((max(map(len, group)) - 14) * len(group) for group in _groups(prompts, 4))


def _groups(prompts: list[list[int]], rows: int) -> list[list[list[int]]]:
    ordered = sorted(prompts, key=len, reverse=True)
    return [ordered[at : at + rows] for at in range(0, len(ordered), rows)]


def test_a_soft_prompt_on_a_model_that_forgets_what_is_far_away(tmp_path: Path, decoder: Path, prompts: Any) -> None:
    shutil.copytree(decoder, tmp_path / "model")
    tiny_model.forgetful(1536).save_pretrained(tmp_path / "model")
    policy = soft(tmp_path / "model", tmp_path / "adapter", "CAUSAL_LM")
    assert answers(policy, prompts[:6]) == plain(policy, prompts[:6])


def test_a_soft_prompt_before_an_encoder(t5_folder: Path, t5: tuple[Any, Any], tmp_path: Path) -> None:
    policy = soft(t5_folder, tmp_path, "SEQ_2_SEQ_LM")
    prompts = t5_prompts(t5)
    wanted = plain(policy, prompts)
    assert wanted != plain(t5, prompts)
    assert answers(policy, prompts) == wanted
    assert answers(policy, prompts, rows=1) == wanted


def test_positions_are_counted_with_the_soft_prompt(
    decoder: Path, t5_folder: Path, t5: tuple[Any, Any], tmp_path: Path
) -> None:
    assert sampling.positions(soft(decoder, tmp_path, "CAUSAL_LM")[0], 100, 20) == (125, 1024)
    assert sampling.positions(t5[0], 100, 20) == (100, None) and sampling.positions(t5[0], 10, 20) == (21, None)


def test_a_text_that_ends_an_answer_is_cut_and_nothing_more_is_generated(either: Path) -> None:
    model, tokenizer = models.load_base(either, Runtime("cpu", "float32", 2)), models.load_tokenizer(either)
    prompts = [models.render_prompt(tokenizer, text) for text in ("read the value", "is the list empty or full")]
    asked: dict[str, Any] = {"max_new_tokens": 48, "batches": [(0, 1)]}
    (whole,) = sampling.generate(model, tokenizer, prompts, **asked)
    texts = [each.text for each in whole.generations]
    stops = [text[len(text) // 3 :][:3] for text in texts if text]
    assert stops
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    (cut,) = sampling.generate(model, tokenizer, prompts, **asked, until=["", *stops])
    for each, text in zip(cut.generations, texts, strict=True):
        assert each.text == min((text.split(stop)[0] for stop in stops), key=len)
        assert each.finished or each.text == text
    assert len(passes) < 48 or not all(texts)


def test_a_journal_of_another_plan_is_refused(
    policy: tuple[Any, Any], prompts: list[list[int]], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"decoding": sampling.Decoding(4), "seed": 0, "title": "answer", "log": Log()}
    lengths = [len(each) for each in prompts]
    for rows in (8, 8):
        batches = sampling.plan(lengths, 4, 10_000, rows)
        sampling.answers(*policy, prompts, batches=batches, kept=tmp_path / "kept.jsonl", **given)
    with pytest.raises(RuntimeError, match=r"kept\.jsonl belongs to another plan; delete it"):
        sampling.answers(
            *policy, prompts, batches=sampling.plan(lengths, 4, 10_000, 5), kept=tmp_path / "kept.jsonl", **given
        )
