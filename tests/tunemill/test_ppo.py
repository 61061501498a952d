"""The PPO loop: a policy learns, for both families; the first step is exact; kills cost nothing; what goes wrong is answered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
        ptx: Sequence[Encoded] = (),
        seed: int = 0,
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
            seed,
            judge=judge,
            ptx=ptx,
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
            # Four tokens of a ninth of the vocabulary, drawn evenly, are 4 log 9 = 8.8 nats from an even start; one and the same
            # answer always is 4 log 739 = 26 from there.
            "kl": KL(coef=0.1, target=None, horizon=1000, limit=16.0),
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
    (parts,) = ppo.deal(episodes, 1, 2, bench.tokenizer, actors, [0])
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


@pytest.mark.parametrize("minibatches", [1, 2])
def test_micro_batches_do_not_change_the_step(bench: Bench, tmp_path: Path, minibatches: int) -> None:
    one = bench.cfg.model_copy(update={"minibatches": minibatches, "epochs": 2, "updates": 2})
    curves = [
        bench.run(tmp_path / str(size), one.model_copy(update={"micro_batch": size})).state.curve for size in (1, 2, 6)
    ]
    for other in curves[1:]:
        for name in ("reward", "kl", "policy_loss", "value_loss", "gradient", "explained"):
            assert other[1][name] == pytest.approx(curves[0][1][name], rel=2e-3, abs=2e-5), name


def test_responses_are_dealt_into_minibatches_at_random(llama: Bench) -> None:
    actors = backbone.share(llama.start, None, adapter(8), CPU, detached=True)
    episodes = [ppo.Episode(at, Encoded(llama.prompts[at][1], [70 + at] * (1 + at % 3)), True) for at in range(12)]

    def dealt(minibatches: int, size: int, *seed: int) -> list[list[list[int]]]:
        found = ppo.deal(episodes, minibatches, size, llama.tokenizer, actors, seed)
        return [[part.rows.tolist() for part in group] for group in found]

    first = dealt(3, 2, 7, 1)
    assert [[len(part) for part in group] for group in first] == [[2, 2]] * 3
    sets = [sorted(each for part in group for each in part) for group in first]
    assert sorted(each for group in sets for each in group) == list(range(12))
    assert dealt(3, 2, 7, 1) == first
    # Whom a response is dealt with hangs on chance alone: not on the size of micro-batches, not on prompts or lengths.
    assert [sorted(each for part in group for each in part) for group in dealt(3, 4, 7, 1)] == sets
    others = {
        tuple(tuple(sorted(each for part in group for each in part)) for group in dealt(3, 2, 7, update))
        for update in range(9)
    }
    assert len(others) == 9


def test_an_update_takes_the_steps_that_it_says_each_clipped(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    norms: list[list[float]] = []
    plain = torch.optim.AdamW.step

    def step(self: Any, *given: Any, **more: Any) -> Any:
        groups = [
            [each.grad.flatten() for each in group["params"] if each.grad is not None] for group in self.param_groups
        ]
        norms.append([float(torch.cat(each).norm()) for each in groups])
        return plain(self, *given, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    cfg = bench.cfg.model_copy(update={"max_grad_norm": 0.01, "updates": 2, "epochs": 3, "minibatches": 3})
    state = bench.run(tmp_path, cfg).state
    assert len(norms) == 2 * 3 * 3
    assert all(each <= 0.01 * 1.001 for step in norms for each in step)
    assert (
        state.curve[0]["gradient"] > 0.02 and max(each for each, _ in norms) > 0.0099
    )  # it was larger, and was clipped


def test_what_a_rollout_teaches_by_hand(bench: Bench) -> None:
    """Scores normalised, dealt out anew, less the price of a missing end; the whole of it on the last token."""
    import torch

    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    logprobs, gap = torch.full((3, 3), -2.0), torch.tensor([[0.1, 0.0, 0.3], [0.2, 9.0, 9.0], [0.0, -0.1, 9.0]])
    values = torch.zeros(3, 3)
    found = ppo.Reading(mask, logprobs, logprobs - gap, values, values, torch.tensor([5.0, 1.0, 3.0]))
    told = [(3, True), (1, False), (2, True)]
    episodes = [ppo.Episode(0, Encoded([1], [7] * count), finished) for count, finished in told]
    cfg = bench.cfg.model_copy(update={"missing_eos_penalty": 0.5, "gamma": 1.0, "lam": 1.0})
    normal = rlhf.Normalization(3.0, 2.0)  # 1, −1, 0

    def returns(order: list[int] | None) -> list[float]:
        lesson = ppo.estimate(found, episodes, normal, 0.1, cfg, ppo.Team(CPU), order)
        kept = lesson.advantages[mask]
        assert float(kept.mean()) == pytest.approx(0.0, abs=1e-6) and float(kept.std(correction=0)) == pytest.approx(
            1.0, abs=1e-4
        )
        return lesson.returns[:, 0].tolist()

    # Undiscounted, the return of the first token is the score less β times the divergence of the whole response.
    assert returns(None) == pytest.approx([1.0 - 0.04, -1.0 - 0.5 - 0.02, 0.0 + 0.01], abs=1e-6)
    dealt = rewards.shuffle(torch.tensor([1.0, -1.0, 0.0]), [3, 4]).tolist()
    assert dealt != [1.0, -1.0, 0.0]
    assert returns([3, 4]) == pytest.approx([dealt[0] - 0.04, dealt[1] - 0.5 - 0.02, dealt[2] + 0.01], abs=1e-6)


def test_a_bonus_keeps_entropy_up(bench: Bench, tmp_path: Path) -> None:
    cfg = bench.cfg.model_copy(update={"updates": 5, "prompts": 24, "micro_batch": 24, "learning_rate": 1e-2})
    ends = [
        bench.run(tmp_path / f"{coef}", cfg.model_copy(update={"entropy_coef": coef})).state.curve[-1]["entropy"]
        for coef in (0.0, 1.0)
    ]
    assert ends[1] > ends[0]


def test_the_task_is_kept_in_mind(bench: Bench, tmp_path: Path) -> None:
    import torch

    from tunemill import losses, tuning

    pairs = [tuning.encode(bench.tokenizer, f"say {word}", f"{word} {word}") for word in WORDS[:4]]
    read = losses.collate(pairs, bench.tokenizer.pad_token_id, losses.start_token(models.load_base(bench.start, CPU)))

    def loss(coef: float) -> float:
        trained = bench.run(tmp_path / f"{coef}", bench.cfg.model_copy(update={"ptx_coef": coef}), ptx=pairs)
        with torch.no_grad(), trained.actors.role("policy") as model:
            return float(losses.completion_loss(model, read))

    assert loss(2.0) < loss(0.0) - 0.05


def test_each_prompt_may_be_answered_several_times(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts: list[Sequence[ppo.Episode]] = []
    plain = ppo.deal

    def deal(episodes: Sequence[ppo.Episode], *given: Any) -> Any:
        rollouts.append(episodes)
        return plain(episodes, *given)

    monkeypatch.setattr(ppo, "deal", deal)
    state = bench.run(tmp_path, bench.cfg.model_copy(update={"prompts": 2, "samples": 3, "updates": 2})).state
    assert len(state.curve) == 2
    learnt = [each for each in rollouts if len(each) == 6]
    assert len(learnt) == 2
    for episodes in learnt:
        prompts = [each.prompt for each in episodes]
        assert prompts == [prompts[0]] * 3 + [prompts[3]] * 3 and prompts[0] != prompts[3]
        assert len({tuple(each.row.completion) for each in episodes}) > 3  # drawn each by itself


def test_minibatches_that_are_not_whole_and_processes_without_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="6 x 1 responses of a rollout .* make no 4 equal minibatches"):
        Settings.model_validate({**SHORT.model_dump(), "minibatches": 4})
    ppo.shared_out(SHORT, 4, 3)
    with pytest.raises(UserError, match="4 processes share 6 responses of a rollout in 2 minibatches") as raised:
        ppo.shared_out(SHORT, 4, 4)
    assert "at least 8 responses" in str(raised.value)
    with pytest.raises(UserError, match="2 prompts to be monitored on"):
        ppo.shared_out(SHORT, 2, 3)


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
            "updates": 16,
            "epochs": 4,
            "minibatches": 1,
            "micro_batch": 128,
            "learning_rate": 1e-2,
            "monitor_items": 48,
            "monitor_updates": 8,
            "checkpoint_updates": 16,
        }
    )
    notes: list[str] = []

    told: dict[str, float] = {}

    class Listening(Log):
        def note(self, text: str, **_: object) -> None:
            notes.append(text)

    log = Listening(
        listener=lambda step, values: told.update({f"{name}@{step}": each for name, each in values.items()})
    )
    trained = llama.run(tmp_path, cfg, judge=judge, log=log)
    # What MLflow is told: everything that is watched, and the alarms by kind.
    for name in ("kl", "reward", "harm", "tokens", "repetition", "perplexity", "silent", "finished", "alarms"):
        assert {f"monitor/{name}@{step}" for step in (0, 8, 16)} <= told.keys(), name
    assert told["monitor/alarms@16"] == len(trained.state.alarms)
    assert told["monitor/alarms_harm@16"] == sum(each.kind == "harm" for each in trained.state.alarms) > 0
    assert "harm" in {each.kind for each in trained.state.alarms}
    assert any(each.startswith("ALARM at update 16, harm: the reward has risen") for each in notes)
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
    told: dict[str, float] = {}
    log = Log(listener=lambda step, values: told.update(values))
    # Of a further seed, with keys of its own.
    state = llama.run(tmp_path, cfg.model_copy(update={"seeds": (5, 0)}), log=log).state
    assert told["seed_0/monitor/alarms_divergence"] == 1.0
    assert "reward" not in told and "seed_0/reward" in told
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


def test_what_ends_a_training(llama: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ppo._Run(None, llama.tokenizer, Reward("test", None, None, False), SHORT, 0, Path(), CPU, ppo.Team(CPU))  # type: ignore[arg-type]
    assert run.astray({"kl": 1.0, "silent": 0.9}, 3) is None
    for row, kind in (
        ({"kl": math.nan, "silent": 0.0}, "divergence"),
        ({"kl": 41.0, "silent": 0.0}, "divergence"),
        ({"kl": 1.0, "silent": 1.0}, "silence"),
    ):
        raised = run.astray(row, 3)
        assert raised is not None and (raised.update, raised.kind) == (3, kind)

    # A policy whose probabilities are no numbers any more: what was kept before it is what is written.
    plain = ppo._Run.look

    def look(self: Any, monitored: Any, judge: Any, update: int) -> Any:
        point, answers = plain(self, monitored, judge, update)
        return (point._replace(kl=math.nan) if update else point), answers

    monkeypatch.setattr(ppo._Run, "look", look)
    trained = llama.run(tmp_path, SHORT)
    assert trained.state.stopped == "the policy's probabilities are no numbers after update 2"
    assert (trained.state.kept, trained.state.alarms[-1].kind) == (0, "divergence")
    assert not any(each.any() for name, each in trained.actors.shared.named_parameters() if "lora_B.policy" in name)


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
