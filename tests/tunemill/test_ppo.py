"""The PPO loop: a policy learns, for both families; the first step is exact; kills cost nothing; what goes wrong is answered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tunemill.test_backbone import adapter, reward_folder
from tunemill import backbone, checkpoints, models, ppo, rewards, rlhf
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.ppo import KL, Settings
from tunemill.rewards import Reward
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 1)
SHORT = Settings(
    mode="adapters",
    rank=8,
    alpha=16,
    targets="all-linear",
    value="detached",
    prompts=6,
    samples=1,
    max_prompt_tokens=100,
    response_tokens=5,
    temperature=1.0,
    rollout_tokens=10_000,
    updates=3,
    epochs=2,
    minibatches=2,
    micro_batch=2,
    learning_rate=3e-3,
    value_learning_rate=3e-3,
    warmup_updates=0,
    max_grad_norm=1.0,
    gamma=1.0,
    lam=0.95,
    cliprange=0.2,
    cliprange_value=0.2,
    value_coef=0.1,
    entropy_coef=0.0,
    kl=KL(coef=0.02, target=None, horizon=1000, limit=40.0),
    missing_eos_penalty=0.0,
    ptx_coef=0.0,
    monitor_items=4,
    monitor_updates=2,
    checkpoint_updates=1,
    seeds=(0,),
)
WORDS = [
    "the",
    "of",
    "to",
    "in",
    "for",
    "and",
    "or",
    "is",
    "are",
    "be",
    "by",
    "with",
    "from",
    "on",
    "as",
    "at",
    "if",
    "it",
    "this",
]


def class_share(tokenizer: Any) -> rewards.Texts:
    """A synthetic reward: how many of a response's tokens are of a class that every ninth is of."""

    def score(_: Sequence[str], responses: Sequence[str]) -> list[float]:
        told = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in responses]
        return [sum(token % 9 == 0 for token in ids) / max(1, len(ids)) for ids in told]

    return score


class Bench:
    """A model, prompts, and PPO on them."""

    def __init__(self, start: Path) -> None:
        self.start = start
        self.tokenizer = models.load_tokenizer(start)
        # An untrained T5 repeats itself: at temperature 1 there is little to choose from.
        self.cfg = SHORT.model_copy(update={"temperature": 3.0 if models.is_encoder_decoder(start) else 1.0})
        self.prompts = [
            (text, models.render_prompt(self.tokenizer, text))
            for text in (f"{one} {other}" for one in WORDS for other in WORDS)
        ]

    def run(
        self,
        work: Path,
        cfg: Settings | None = None,
        *,
        reward: Reward | Callable[..., Sequence[float | None]] | None = None,
        folder: Path | None = None,
        judge: Callable[[Sequence[str]], Sequence[float | None]] | None = None,
        log: Log | None = None,
    ) -> ppo.Trained:
        import torch

        torch.manual_seed(0)
        cfg = cfg or self.cfg
        if not isinstance(reward, Reward):
            reward = Reward("test", folder, None if folder else reward or class_share(self.tokenizer), False)
        detached = cfg.value == "detached"
        actors = (
            backbone.separate(self.start, reward.model, CPU, detached=detached)
            if cfg.mode == "full"
            else backbone.share(self.start, reward.model, adapter(8), CPU, detached=detached)
        )
        return ppo.optimise(
            actors,
            self.tokenizer,
            self.prompts[cfg.monitor_items :],
            self.prompts[: cfg.monitor_items],
            reward,
            cfg,
            0,
            judge=judge,
            ptx=[],
            where=folder or Path("reward"),
            runtime=CPU,
            work=work,
            log=log or Log(),
        )


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp(request.param)
    models.make_random(folder, 2, 64, 0, "float32", request.param)
    return Bench(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("llama")
    models.make_random(folder, 2, 64, 0, "float32", "decoder-only")
    return Bench(folder)


# ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_policy_learns_several_times_the_reward_within_the_limit(bench: Bench, tmp_path: Path) -> None:
    cfg = bench.cfg.model_copy(
        update={
            "prompts": 128,
            "response_tokens": 4,
            "updates": 35,
            "epochs": 4,
            "minibatches": 1,
            "micro_batch": 128,
            "learning_rate": 1e-2,
            "value_learning_rate": 1e-2,
            "monitor_items": 32,
            "monitor_updates": 35,
            "checkpoint_updates": 35,
        }
    )
    state = bench.run(tmp_path, cfg).state
    assert state.stopped is None
    first, last = state.curve[0], state.curve[-1]
    assert last["reward"] > 3.0 * first["reward"] > 0.0
    start, end = state.points[0], state.points[-1]
    assert sum(end.rewards) > 3.0 * sum(start.rewards)  # on prompts that it did not learn on, too
    assert 0.0 < last["kl"] < cfg.kl.limit
    assert last["entropy"] < first["entropy"]


def test_the_first_step_is_exact(bench: Bench, tmp_path: Path) -> None:
    state = bench.run(tmp_path).state
    first = state.curve[0]
    assert (first["kl"], first["k3"]) == (0.0, 0.0)
    assert first["first_step_kl"] == 0.0  # every ratio is 1, exactly
    assert state.curve[1]["kl"] != 0.0
    assert state.curve[1]["first_step_kl"] == 0.0  # of every later rollout, too
    assert state.points[0].kl == 0.0


def test_learning_a_reward_model_with_a_value_of_its_own(bench: Bench, tmp_path: Path) -> None:
    folder = reward_folder(bench.start, tmp_path / "reward")
    cfg = bench.cfg.model_copy(update={"value": "adapter", "updates": 2})
    trained = bench.run(tmp_path / "work", cfg, folder=folder)
    assert len(trained.state.curve) == 2
    assert len({each["reward"] for each in trained.state.curve}) == 2
    assert trained.actors.value_head.abs().max() > 0.0


def test_what_was_cut_off_is_scored_as_if_it_ended_there(bench: Bench, tmp_path: Path) -> None:
    """People rated whole answers: a reward model must not tell by the missing end what it thinks of an answer."""
    folder = reward_folder(bench.start, tmp_path / "reward")
    actors = backbone.share(bench.start, folder, adapter(8), CPU, detached=True)
    responses = ([261, 70, 90], [261, 70, 90, bench.tokenizer.eos_token_id], [80])
    told = zip(responses, (False, True, False), strict=True)
    episodes = [ppo.Episode(0, Encoded(bench.prompts[0][1], ids), finished) for ids, finished in told]
    parts = ppo.pieces(episodes, 2, bench.tokenizer, actors)
    texts = (["a"] * 3, ["b"] * 3)
    found = ppo.read(actors, episodes, parts, texts, Reward("model", folder, None, False), bench.cfg, CPU, folder)
    assert found.mask.sum(dim=1).tolist() == [3, 4, 1]  # nothing but what was drawn is learnt from
    alone = rewards.reader(folder, bench.start, CPU)(
        [Encoded(each.row.prompt, each.row.completion) for each in episodes]
    )
    assert found.scores.tolist() == pytest.approx(alone, rel=1e-3, abs=1e-3)
    assert alone[0] == pytest.approx(alone[1], abs=1e-6) and abs(alone[0] - alone[2]) > 1e-3
    # And what length alone says is taken off: of the second and the third, as many tokens as of the first, and two less.
    line = rlhf.LengthLine(3.0, 0.5)
    without = ppo.read(
        actors, episodes, parts, texts, Reward("model", folder, None, False, line), bench.cfg, CPU, folder
    )
    off = [before - after for before, after in zip(found.scores.tolist(), without.scores.tolist(), strict=True)]
    assert off == pytest.approx([line.says(4), line.says(4), line.says(2)], abs=1e-5)


def test_training_all_weights(bench: Bench, tmp_path: Path) -> None:
    folder = reward_folder(bench.start, tmp_path / "reward")
    cfg = bench.cfg.model_copy(update={"mode": "full", "value": "adapter", "updates": 2, "learning_rate": 1e-3})
    state = bench.run(tmp_path / "work", cfg, folder=folder).state
    assert state.curve[0]["kl"] == 0.0
    assert state.curve[0]["first_step_kl"] == 0.0
    assert state.curve[1]["kl"] != 0.0


def test_micro_batches_do_not_change_the_step(llama: Bench, tmp_path: Path) -> None:
    one = SHORT.model_copy(update={"minibatches": 1, "epochs": 1, "updates": 2, "micro_batch": 6})
    curves = [
        llama.run(tmp_path / str(size), one.model_copy(update={"micro_batch": size})).state.curve for size in (1, 3, 6)
    ]
    for other in curves[1:]:
        for name in ("reward", "kl", "policy_loss", "value_loss", "gradient", "explained"):
            assert other[1][name] == pytest.approx(curves[0][1][name], rel=2e-3, abs=2e-5), name


# ── continuing ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_run_goes_on_to_the_same_numbers(bench: Bench, tmp_path: Path) -> None:
    import torch

    cfg = bench.cfg.model_copy(update={"updates": 4, "kl": KL(coef=0.05, target=0.5, horizon=60, limit=40.0)})
    whole = bench.run(tmp_path / "whole", cfg)
    assert len({each["kl_coef"] for each in whole.state.curve}) > 1  # β is steered, so it is part of what must survive

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 3 and "reward" in values:  # the third update is learnt, and not yet kept
            raise Killed

    with pytest.raises(Killed):
        bench.run(tmp_path / "killed", cfg, log=Log(listener=kill))
    assert [each.name for each in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = bench.run(tmp_path / "killed", cfg)
    assert resumed.state == whole.state
    for one, other in zip(whole.actors.parameters(), resumed.actors.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_damaged_checkpoint_is_passed_over(llama: Bench, tmp_path: Path) -> None:
    whole = llama.run(tmp_path)
    tensors = tmp_path / "checkpoint-3" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    assert checkpoints.newest(tmp_path) is None
    assert llama.run(tmp_path).state == whole.state


# ── guards ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reward_that_can_be_gamed_trips_the_alarm(llama: Bench, tmp_path: Path) -> None:
    """The judge hates what the reward loves."""
    score = class_share(llama.tokenizer)

    def judge(texts: Sequence[str]) -> list[float | None]:
        return [float(each) for each in score(texts, texts) if each is not None]

    cfg = SHORT.model_copy(
        update={
            "prompts": 128,
            "response_tokens": 4,
            "updates": 10,
            "epochs": 4,
            "minibatches": 1,
            "micro_batch": 128,
            "learning_rate": 1e-2,
            "monitor_items": 48,
            "monitor_updates": 5,
            "checkpoint_updates": 10,
        }
    )
    notes: list[str] = []

    class Listening(Log):
        def note(self, text: str, **_: object) -> None:
            notes.append(text)

    trained = llama.run(tmp_path, cfg, judge=judge, log=Listening())
    assert "harm" in {each.kind for each in trained.state.alarms}
    assert any(each.startswith("ALARM at update 10, harm: the reward has risen") for each in notes)
    assert trained.state.kept == 0  # and what is kept is the start
    assert set(trained.state.answers) == {0}
    assert not any(each.any() for name, each in trained.actors.shared.named_parameters() if "lora_B.policy" in name)


def test_a_divergence_past_the_limit_stops_and_keeps_the_last_good_policy(llama: Bench, tmp_path: Path) -> None:
    cfg = SHORT.model_copy(
        update={
            "updates": 20,
            "learning_rate": 3e-2,
            "max_grad_norm": 100.0,
            "kl": KL(coef=0.0, target=None, horizon=1, limit=1.5),
            "monitor_updates": 1,
        }
    )
    state = llama.run(tmp_path, cfg).state
    assert state.stopped is not None
    assert "the limit is 1.5" in state.stopped
    assert state.update < 20
    assert state.alarms[-1].kind == "divergence"
    kept = next(each for each in state.points if each.update == state.kept)
    assert kept.kl <= 1.5


def test_gradients_that_are_no_numbers_stop_before_they_touch_the_weights(llama: Bench, tmp_path: Path) -> None:
    cfg = SHORT.model_copy(update={"value_coef": 1e38, "epochs": 1, "minibatches": 1})

    def huge(_: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float(len(each)) for each in responses]

    trained = llama.run(tmp_path, cfg.model_copy(update={"gamma": 1.0, "cliprange_value": 1e30}), reward=huge)
    assert trained.state.stopped is not None
    assert trained.state.alarms[-1].kind == "gradient"
    assert all(bool(each.isfinite().all()) for each in trained.actors.parameters())


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (1.0, "nothing can be learnt from this reward: all 6 scores are 1"),
        (math.nan, "the reward of 4 of 4 responses is no number"),
        (math.inf, "the reward of 4 of 4 responses is no number"),
        (None, "the reward of 4 of 4 responses is no number"),
    ],
)
def test_a_reward_that_says_nothing_is_refused(llama: Bench, tmp_path: Path, score: float | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        llama.run(tmp_path, reward=lambda _, responses: [score] * len(responses))


def test_a_policy_that_says_nothing_is_refused(tmp_path: Path) -> None:
    """Every answer is its end token, at once."""
    import torch

    models.make_random(tmp_path / "model", 2, 64, 0, "float32")
    tokenizer = models.load_tokenizer(tmp_path / "model")
    model = models.load_base(tmp_path / "model", CPU)
    model.generation_config.eos_token_id = list(range(len(tokenizer)))  # whatever it says ends the text
    model.save_pretrained(tmp_path / "model")
    bench = Bench(tmp_path / "model")
    real = bench.tokenizer.decode
    bench.tokenizer.decode = lambda ids, **given: "" if len(ids) <= 1 else real(ids, **given)
    with pytest.raises(UserError, match="every response of the starting policy is empty"):
        bench.run(tmp_path / "work", reward=lambda _, responses: [float(at) for at in range(len(responses))])
    assert torch.is_tensor(model.lm_head.weight)


def test_probabilities_that_are_not_those_drawn_with_are_a_defect(llama: Bench, tmp_path: Path) -> None:
    """A reference that was read at an offset of one, as a decoder start that is taken for a token gives."""
    import torch

    from tunemill.ppo import Reading

    run = ppo._Run(None, llama.tokenizer, Reward("test", None, None, False), SHORT, 0, Path(), CPU, ppo.Team(CPU))  # type: ignore[arg-type]
    row = backbone.Encoded([1], [5, 6, 7])
    episodes = [ppo.Episode(0, row, False)] * 8
    mask = torch.ones(8, 3, dtype=torch.bool)
    shifted = Reading(mask, -torch.rand(8, 3) - 3.0, -torch.rand(8, 3), mask.float(), mask.float(), torch.zeros(8))
    with pytest.raises(RuntimeError, match="none is negative"):
        run.seen(episodes, shifted)


# ── controls ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shuffled_scores_are_the_same_scores_elsewhere(llama: Bench, tmp_path: Path) -> None:
    import torch

    scores = torch.arange(20.0)
    dealt = rewards.shuffle(scores, [3, 1])
    assert sorted(dealt.tolist()) == scores.tolist()
    assert not torch.equal(dealt, scores)
    assert torch.equal(dealt, rewards.shuffle(scores, [3, 1]))
    plain = llama.run(tmp_path / "plain").state
    control = llama.run(tmp_path / "control", reward=Reward("shuffled", None, class_share(llama.tokenizer), True)).state
    assert control.curve[0]["reward"] == plain.curve[0]["reward"]  # what is told is the reward, not what was dealt
    assert control.curve[0]["policy_loss"] != plain.curve[0]["policy_loss"]


def test_prompts_are_all_used_before_one_comes_again() -> None:
    drawn = [each for update in range(1, 6) for each in ppo.choose(10, 4, 3, update)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_the_learning_rate_rises_and_falls() -> None:
    assert [round(ppo.rate(update, 2, 6), 3) for update in range(1, 7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert ppo.rate(1, 0, 1) == 1.0
