"""The maths of PPO against values worked out by hand, closed forms, and outside implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from tunemill import rlhf

YES, NO = True, False


def test_a_mask_counts_to_the_end_and_not_by_the_id() -> None:
    ids = torch.tensor([[5, 2, 2, 2], [2, 2, 2, 2], [7, 8, 9, 6]])  # 2 pads and ends
    assert rlhf.response_mask(ids, torch.tensor([2, 1, 4])).tolist() == [
        [YES, YES, NO, NO],
        [YES, NO, NO, NO],
        [YES, YES, YES, YES],
    ]


def test_log_probabilities_and_entropy_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 11, generator=generator) * 4
    ids = torch.randint(0, 11, (3, 4), generator=generator)
    for temperature in (1.0, 0.7):
        known = torch.distributions.Categorical(logits=logits.double() / temperature)
        assert rlhf.chosen_logprobs(logits, ids, temperature).double() == pytest.approx(known.log_prob(ids), abs=1e-5)
        assert rlhf.entropy(logits, temperature).double() == pytest.approx(known.entropy(), abs=1e-5)


def divergence(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor) -> rlhf.Divergence:
    k1, k3 = rlhf.response_divergences(logprobs, ref_logprobs, mask)
    return rlhf.Divergence.of(k1.tolist(), k3.tolist())


def test_estimated_divergence_tends_to_the_exact_one() -> None:
    """Of 40,000 responses of three tokens, drawn from one distribution and judged by another."""
    generator = torch.Generator().manual_seed(2)
    ours, theirs = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    exact = 3 * float((ours * (ours / theirs).log()).sum())  # 0.8247
    ids = torch.multinomial(ours, 120_000, replacement=True, generator=generator).view(-1, 3)
    found = divergence(ours.log()[ids], theirs.log()[ids], torch.ones_like(ids, dtype=torch.bool))
    assert found.mean == pytest.approx(exact, abs=4 * found.standard_error)
    assert found.standard_error < 0.01
    assert found.k3 == pytest.approx(exact, rel=0.03)


def test_divergence_counts_chosen_tokens_of_each_response_and_not_a_mean_over_tokens() -> None:
    gap = torch.tensor([[1.0, 2.0, 99.0], [0.5, float("nan"), float("inf")]])
    mask = torch.tensor([[YES, YES, NO], [YES, NO, NO]])
    found = divergence(gap, torch.zeros(2, 3), mask)
    assert found.mean == pytest.approx((3.0 + 0.5) / 2)
    assert found.standard_error == pytest.approx(1.25)  # of 3 and 0.5: sd 1.7678, over √2
    assert found.k3 == pytest.approx((math.exp(-1) + math.exp(-2) - 2 + 3 + math.exp(-0.5) - 1 + 0.5) / 2)
    alone = divergence(gap[:1], torch.zeros(1, 3), mask[:1])
    assert alone.mean == pytest.approx(3.0) and math.isnan(alone.standard_error)
    with pytest.raises(ValueError, match="no response"):
        divergence(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("mean", "error", "wrong"), [(0.0, 0.0, NO), (-0.5, 0.2, NO), (-0.9, 0.2, YES), (-0.5, math.nan, YES), (3, 0.1, NO)]
)
def test_a_divergence_far_below_zero_is_a_defect(mean: float, error: float, wrong: bool) -> None:
    assert rlhf.impossible(rlhf.Divergence(mean, error, 0.0, 500)) is wrong
    assert not rlhf.impossible(rlhf.Divergence(-0.05, 0.007, 0.01, 4))  # seven errors, but guessed from four responses
    assert rlhf.impossible(rlhf.Divergence(-0.05, 0.007, 0.01, 40))


def test_the_coefficient_is_steered_by_a_fifth_at_most() -> None:
    steered = rlhf.AdaptiveKL(0.1, 6.0, 10_000)
    assert steered.after(60.0, 256).coef == pytest.approx(0.1 * (1 + 0.2 * 256 / 10_000))
    assert steered.after(0.0, 256).coef == pytest.approx(0.1 * (1 - 0.2 * 256 / 10_000))
    assert steered.after(6.6, 500).coef == pytest.approx(0.1 * (1 + 0.1 * 0.05))
    assert steered.after(6.0, 500) == steered
    assert rlhf.FixedKL(0.1).after(60.0, 256).coef == 0.1


def test_scores_are_normalised_by_what_the_starting_policy_gets() -> None:
    scale = rlhf.Normalization.of([1.0, 2.0, 3.0, 4.0])
    assert scale.mean == 2.5 and scale.std == pytest.approx(1.2909944)
    found = scale(torch.tensor([2.5, 5.0, 1000.0, -1000.0, float("nan")])).tolist()
    assert found[:4] == pytest.approx([0.0, 1.9364917, 5.0, -5.0]) and math.isnan(found[4])


@pytest.mark.parametrize(
    ("scores", "why"),
    [([2.0, 2.0, 2.0], "all 3 scores are 2"), ([1.0], "two scores"), ([1.0, math.nan, math.inf], "2 of 3 scores")],
)
def test_scores_without_a_scale_are_refused(scores: list[float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rlhf.Normalization.of(scores)


def test_what_length_alone_says_is_a_line_within_prompts() -> None:
    tokens, prompts = [1, 7, 19, 3, 3, 31], ["a", "a", "a", "b", "b", "b"]
    wanted = [
        2.0 - 1.5 * math.log1p(each) + (40.0 if prompt == "b" else 0.0)
        for each, prompt in zip(tokens, prompts, strict=True)
    ]
    line = rlhf.LengthLine.fit(wanted, tokens, prompts)
    assert line.slope == pytest.approx(-1.5)
    assert line.log_tokens == pytest.approx(math.log(2 * 8 * 20 * 4 * 4 * 32) / 6)
    left = [score - line.says(each) for score, each in zip(wanted, tokens, strict=True)]
    assert left[:3] == pytest.approx([left[0]] * 3) and left[3:] == pytest.approx([left[0] + 40.0] * 3)
    assert sum(line.says(each) for each in tokens) == pytest.approx(0.0)
    assert line.error == pytest.approx(0.0, abs=1e-6)
    # As scipy has it, where there is one prompt.
    noisy = rlhf.LengthLine.fit([1.0, 0.5, 3.0, 2.0], [1, 2, 5, 9], [0] * 4)
    outside = scipy.stats.linregress(np.log1p([1, 2, 5, 9]), [1.0, 0.5, 3.0, 2.0])
    assert (noisy.slope, noisy.error) == pytest.approx((outside.slope, outside.stderr))
    # Hand-computed: one prompt, log(1 + tokens) of 0, ln 2, 2 ln 2; scores 1, 0, 5 → slope 2 / ln 2.
    assert rlhf.LengthLine.fit([1.0, 0.0, 5.0], [0, 1, 3], [0, 0, 0]).slope == pytest.approx(2.0 / math.log(2))


def test_no_line_where_answers_do_not_differ_in_length() -> None:
    for tokens, prompts in (([4, 4, 9, 9], [0, 0, 1, 1]), ([1, 2, 3], [0, 1, 2])):
        with pytest.raises(ValueError, match="all of one length"):
            rlhf.LengthLine.fit([1.0, 2.0, 3.0, 4.0][: len(tokens)], tokens, prompts)


def test_the_score_stands_on_the_token_that_ends_the_response() -> None:
    mask = torch.tensor([[YES, YES, YES, NO], [YES, NO, NO, NO], [YES, YES, YES, YES]])
    logprobs, ref = torch.full((3, 4), -1.0), torch.full((3, 4), -1.5)
    found = rlhf.token_rewards(torch.tensor([2.0, -1.0, 0.0]), logprobs, ref, mask, 0.2)
    assert found.tolist() == [
        pytest.approx([-0.1, -0.1, 1.9, 0.0]),
        pytest.approx([-1.1, 0.0, 0.0, 0.0]),
        pytest.approx([-0.1, -0.1, -0.1, -0.1]),
    ]


def test_advantages_worked_out_by_hand() -> None:
    """Rewards 0, 0, 1; values 0.5, 0.4, 0.8; γ = 0.9, λ = 0.5.

    δ_2 = 1 − 0.8 = 0.2; δ_1 = 0.9·0.8 − 0.4 = 0.32; δ_0 = 0.9·0.4 − 0.5 = −0.14.
    Â_2 = 0.2; Â_1 = 0.32 + 0.45·0.2 = 0.41; Â_0 = −0.14 + 0.45·0.41 = 0.0445.
    """
    rewards = torch.tensor([[0.0, 0.0, 1.0, 7.0], [1.0, 7.0, 7.0, 7.0]])
    values = torch.tensor([[0.5, 0.4, 0.8, 7.0], [0.25, float("nan"), 7.0, 7.0]])
    mask = torch.tensor([[YES, YES, YES, NO], [YES, NO, NO, NO]])
    found = rlhf.gae(rewards, values, mask, 0.9, 0.5)
    assert found.advantages[0].tolist() == pytest.approx([0.0445, 0.41, 0.2, 0.0])
    assert found.returns[0].tolist() == pytest.approx([0.5445, 0.81, 1.0, 0.0])
    assert found.advantages[1].tolist() == pytest.approx(
        [0.75, 0.0, 0.0, 0.0]
    )  # nothing is bootstrapped beyond the end


def test_advantages_at_the_ends_of_lambda() -> None:
    """λ = 1 is what followed less the value; λ = 0 is one step's error (Schulman et al. 2016, equations 17 and 18)."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    mask = torch.ones(2, 6, dtype=torch.bool)
    all_that_followed = torch.flip(torch.cumsum(torch.flip(rewards, [1]), 1), [1])
    assert rlhf.gae(rewards, values, mask, 1.0, 1.0).returns == pytest.approx(all_that_followed, abs=1e-5)
    following = torch.cat([values[:, 1:], torch.zeros(2, 1)], dim=1)
    found = rlhf.gae(rewards, values, mask, 1.0, 0.0).advantages
    assert found == pytest.approx(rewards + following - values, abs=1e-6)


def test_padding_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    rewards, values = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    mask = rlhf.response_mask(values, torch.tensor([5, 2, 4]))
    wide = [torch.cat([each, torch.full((3, 7), 9.0)], dim=1) for each in (rewards, values)]
    wider = torch.cat([mask, torch.zeros(3, 7, dtype=torch.bool)], dim=1)
    short, long = rlhf.gae(rewards, values, mask), rlhf.gae(*wide, wider)
    assert torch.equal(short.advantages, long.advantages[:, :5]) and not long.advantages[:, 5:].any()
    assert rlhf.whiten(long.advantages, wider)[:, :5] == pytest.approx(rlhf.whiten(short.advantages, mask), abs=1e-6)


def test_whitened_over_chosen_tokens_as_numpy_has_it_alone_and_in_parts() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(6, 4, generator=generator) * 3 + 100
    mask = rlhf.response_mask(values, torch.tensor([4, 1, 3, 2, 4, 4]))
    inside = values[mask].double().numpy()
    known = (inside - inside.mean()) / inside.std()
    whole = rlhf.whiten(values, mask)
    assert whole[mask].double().numpy() == pytest.approx(known, abs=1e-4) and not whole[~mask].any()

    # Two processes of three rows: what one of them would be told by the other is looked up in the whole.
    parts = []
    for rows in (slice(0, 3), slice(3, 6)):
        answers = iter(
            [
                torch.stack([mask.sum().float(), values[mask].sum()]),
                ((values[mask] - values[mask].mean()) ** 2).sum(),
            ]
        )
        parts.append(rlhf.whiten(values[rows], mask[rows], lambda _, told=answers: next(told)))
    assert torch.cat(parts) == pytest.approx(whole, abs=1e-4)


def test_the_first_step_has_ratio_one_and_the_gradient_of_reinforce() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0], [0.5, 9.0]])
    mask = torch.tensor([[YES, YES], [YES, NO]])
    found = rlhf.policy_loss(logprobs, logprobs.detach().clone(), advantages, mask, 0.2)
    assert (found.ratio, found.clipped, found.divergence) == (1.0, 0.0, 0.0)
    assert found.loss.item() == pytest.approx(-(1.0 - 2.0 + 0.5) / 3)
    found.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [pytest.approx([-1 / 3, 2 / 3]), pytest.approx([-0.5 / 3, 0.0])]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # far enough in the right direction: nothing more is gained
        (1.5, -1.0, 1.5, 1.5),  # too likely, and bad: pulled back
        (0.5, 1.0, -0.5, -0.5),  # too unlikely, and good: pulled back
        (0.5, -1.0, 0.8, 0.0),
        (1.1, 1.0, -1.1, -1.1),
    ],
)
def test_the_clip_takes_the_gradient_only_where_the_step_went_too_far(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = rlhf.policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.tensor([[YES]]), 0.2)
    assert found.loss.item() == pytest.approx(loss) and found.clipped == float(slope == 0.0)
    found.loss.backward()
    assert logprobs.grad is not None and float(logprobs.grad) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("value", "old", "goal", "loss", "clipped"),
    [
        (1.0, 0.9, 2.0, 0.5, 0.0),  # within the range: ½ (1 − 2)²
        (1.5, 0.0, 2.0, 0.5 * 1.8**2, 1.0),  # went too far towards the goal: the old value + 0.2 counts
        (-1.0, 0.0, 2.0, 0.5 * 9.0, 0.0),  # went away from it: the plain error is the larger
    ],
)
def test_the_value_loss_is_the_larger_error(value: float, old: float, goal: float, loss: float, clipped: float) -> None:
    values = torch.tensor([[value, 7.0]])
    found = rlhf.value_loss(
        values, torch.tensor([[old, 0.0]]), torch.tensor([[goal, 0.0]]), torch.tensor([[YES, NO]]), 0.2
    )
    assert found.loss.item() == pytest.approx(loss) and found.clipped == clipped


def test_nothing_chosen_costs_nothing() -> None:
    logprobs = torch.full((2, 3), float("nan"), requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    found = rlhf.policy_loss(logprobs, torch.zeros(2, 3), torch.zeros(2, 3), mask, 0.2)
    found.loss.backward()
    assert found.loss.item() == 0.0 and logprobs.grad is not None and not logprobs.grad.nan_to_num(nan=7.0).any()


def test_preference_losses_worked_out_by_hand() -> None:
    """σ(ln 3) = 3/4: a hard label costs −ln ¾, a soft one of 0.6 −(0.6 ln ¾ + 0.4 ln ¼); of equal scores any costs ln 2."""
    first, second = torch.tensor([math.log(3.0), 1.0]), torch.tensor([0.0, 1.0])
    assert rlhf.preference_loss(first, second).tolist() == pytest.approx([0.2876821, 0.6931472])
    assert rlhf.preference_loss(first, second, torch.tensor([0.6, 0.1])).tolist() == pytest.approx(
        [0.7271270, 0.6931472]
    )
    far: Any = rlhf.preference_loss(torch.tensor([-1000.0]), torch.tensor([0.0]))
    assert float(far) == pytest.approx(1000.0)


def test_a_soft_label_is_learnt_as_its_own_probability() -> None:
    gap = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([gap], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = rlhf.preference_loss(gap, torch.zeros(1), 0.8).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(torch.sigmoid(gap.detach())) == pytest.approx(0.8, abs=1e-4)
