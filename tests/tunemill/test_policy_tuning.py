"""What the ways to align without PPO have in common: how pairs are drawn, and which budgets make no whole steps."""

from __future__ import annotations

from collections import Counter

import pytest

from stages import grpo
from tests.stages import tuned
from tunemill import policy_tuning
from tunemill.errors import UserError
from tunemill.params import ParamsFile
from tunemill.policy_tuning import Pair
from tunemill.runtime import Runtime


def pairs(*sizes: int, weights: dict[int, float] | None = None) -> list[Pair]:
    """So many pairs of each prompt, which weigh one together unless told otherwise."""
    found = [Pair(f"prompt {at}", [at], [1], [2], 1.0 / size) for at, size in enumerate(sizes) for _ in range(size)]
    return [each._replace(weight=(weights or {}).get(at, each.weight)) for at, each in enumerate(found)]


def test_a_round_asks_every_prompt_once_however_many_pairs_it_has() -> None:
    some = pairs(1, 52, 3, 10)
    drawn = policy_tuning.draw(some, 4 * 300, seed=3)
    for at in range(0, len(drawn), 4):
        assert sorted(some[each].asked for each in drawn[at : at + 4]) == [f"prompt {number}" for number in range(4)]
    counts = Counter(drawn)
    assert set(counts) == set(range(66))  # none is forgotten
    assert counts[0] == 300
    # Each of the three pairs of a prompt is drawn in a third of the rounds, but for chance (five standard deviations).
    for each in range(53, 56):
        assert abs(counts[each] - 100) < 5 * (300 * (1 / 3) * (2 / 3)) ** 0.5


def test_a_pair_is_drawn_as_often_as_its_weight_says() -> None:
    some = pairs(2, 1, weights={0: 3.0, 1: 1.0, 2: 2.0})
    counts = Counter(policy_tuning.draw(some, 6000, seed=0))
    for at, share in enumerate((3 / 6, 1 / 6, 2 / 6)):
        assert counts[at] / 6000 == pytest.approx(share, abs=0.03)


def test_a_draw_is_its_seeds_and_goes_on_as_it_began() -> None:
    some = pairs(1, 2, 3)
    assert policy_tuning.draw(some, 50, 7) == policy_tuning.draw(some, 50, 7)
    assert policy_tuning.draw(some, 50, 7)[:20] == policy_tuning.draw(some, 20, 7)
    assert policy_tuning.draw(some, 50, 7) != policy_tuning.draw(some, 50, 8)


def test_a_rollout_that_makes_no_equal_minibatches_is_refused() -> None:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("grpo", grpo.Config).model_dump()
    with pytest.raises(ValueError, match="3 x 4 responses of a rollout .* make no 5 equal minibatches"):
        grpo.Config.model_validate(values | {"minibatches": 5})


def test_micro_batches_fill_a_step_whatever_they_are_asked_to_be() -> None:
    cfg = grpo.Config.model_validate(
        ParamsFile(tuned.ROOT / "params.yaml").section("grpo", grpo.Config).model_dump()
        | {"prompts": 6, "samples": 4, "minibatches": 2, "micro_batch": 5}
    )
    assert policy_tuning.micro_batches(cfg, Runtime("cpu", "float32", 1)) == (4, 3)
    assert policy_tuning.micro_batches(cfg, Runtime("cpu", "float32", 1, processes=2)) == (3, 2)
    with pytest.raises(UserError, match="a minibatch of 12 responses .* cannot be shared by 5 processes"):
        policy_tuning.micro_batches(cfg, Runtime("cpu", "float32", 1, processes=5))


def test_small_numbers_of_a_curve_are_kept() -> None:
    text = policy_tuning.updates_csv([{"step": 1, "loss": 0.123456789, "learning_rate": 1.23456e-5, "kl": 0.0}])
    assert text == "step,loss,learning_rate,kl\n1,0.123457,1.235e-05,0.0\n"
