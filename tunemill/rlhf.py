"""The maths of learning from human feedback: rewards, advantages, losses, divergences. Pure: tensors in, tensors out.

Sources: Schulman et al. 2016 (GAE) and 2017 (PPO); Ziegler et al. 2019 and Stiennon et al. 2020 (a KL penalty in every token's
reward, whitened advantages, an adaptive coefficient); Ouyang et al. 2022 (InstructGPT); Huang et al. 2024 ("The N+ implementation
details of RLHF with PPO"); Schulman 2020 ("Approximating KL divergence").

Shapes: B responses, padded on the right to T tokens, V words. `response_mask` is True on the tokens that the policy chose: those up
to and including the first that ends the text. It comes from the position of that token, never from `ids != pad`: the two may be one.
Index t is the token a_t everywhere: `logprobs[:, t]` is log π(a_t | what came before), `values[:, t]` the value of the state in which
a_t was chosen, and the reward for a_t is `rewards[:, t]`.

Deviations from the papers, all of them today's practice: rewards that a reward model gives are normalised once, by the starting
policy's own (`Normalization`), and not whitened in each batch; dropout is off; nothing is padded on the left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

CLIPPED_SCORE = 5.0
"""Largest normalised score, either way: one outlier must not decide an update."""

Reduce = Callable[["torch.Tensor"], "torch.Tensor"]
"""Adds a tensor up over all processes that compute one result together; the identity where there is one."""


def alone(sums: torch.Tensor) -> torch.Tensor:
    """The `Reduce` of a single process."""
    return sums


# ── Responses ───────────────────────────────────────────────────────────────────────────────────────────────────────


def response_mask(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which tokens were chosen.

    Args:
        ids: (B, T) of the responses, padded on the right.
        lengths: (B,) tokens of each, the one that ends it included.

    Returns:
        (B, T), True on chosen tokens.
    """
    import torch

    found: torch.Tensor = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return found


def chosen_logprobs(logits: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each chosen token under the distribution that it was drawn from.

    Args:
        logits: (…, V) at the positions that predict `ids`.
        ids: (…).
        temperature: what the logits were divided by when the tokens were drawn; the same for policy and reference.

    Returns:
        (…) in float32.
    """
    import torch

    scaled = logits.float() / temperature
    picked = scaled.gather(-1, ids[..., None]).squeeze(-1)
    found: torch.Tensor = picked - torch.logsumexp(scaled, dim=-1)
    return found


def entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Entropy in nats of each distribution: logits (…, V) → (…), in float32."""
    import torch

    scaled = logits.float() / temperature
    found: torch.Tensor = torch.logsumexp(scaled, dim=-1) - (scaled.softmax(dim=-1) * scaled).sum(dim=-1)
    return found


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the places where `mask` is True, all rows together: a scalar. Of none it is 0, with a gradient of 0."""
    kept = mask.to(values.dtype)
    # What stands outside the mask may be no number, and nan · 0 is nan.
    found: torch.Tensor = values.masked_fill(~mask, 0.0).sum() / kept.sum().clamp(min=1.0)
    return found


# ── How far from the reference ──────────────────────────────────────────────────────────────────────────────────────


class Divergence(NamedTuple):
    """KL(π ‖ π_ref) of whole responses, estimated from the responses themselves."""

    mean: float
    """Over responses of the sum over tokens, in nats: the k1 estimator of Schulman (2020), unbiased."""
    standard_error: float
    """Of that mean; nan of one response."""
    k3: float
    """The same by his k3, (e^-d − 1) + d for each token with d = log π − log π_ref: never negative, less noisy."""
    responses: int
    """How many it is estimated from."""

    @classmethod
    def of(cls, k1: Sequence[float], k3: Sequence[float]) -> Divergence:
        """The mean over responses.

        Args:
            k1: of each response, as `response_divergences` has it.
            k3: the same.

        Raises:
            ValueError: there is no response.
        """
        if not k1:
            raise ValueError("no response to estimate a divergence from")
        count, mean = len(k1), math.fsum(k1) / len(k1)
        variance = math.fsum((each - mean) ** 2 for each in k1) / (count - 1) if count > 1 else math.nan
        return cls(mean, math.sqrt(variance / count), math.fsum(k3) / count, count)


def response_divergences(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimates of the divergence from single responses: two times (B,), sums over chosen tokens of k1 and of k3, in nats.

    Args:
        logprobs: (B, T) under the policy that drew them.
        ref_logprobs: (B, T) under the reference.
        mask: (B, T), True on chosen tokens.
    """
    gap = (logprobs - ref_logprobs).float().masked_fill(~mask, 0.0)
    return gap.sum(dim=1), (gap.neg().exp() - 1.0 + gap).sum(dim=1)


def impossible(found: Divergence, errors: float = 4.0) -> bool:
    """Whether the divergence lies further below 0 than chance would put it.

    No policy is closer to the reference than the reference itself. A mean so far below 0 tells of a defect: probabilities that are
    not those the tokens were drawn with (a wrong temperature, a filter, an offset of one), as the decoder start of an
    encoder-decoder shifts them. Rounding alone, with nothing to estimate an error from, is let pass.

    Args:
        found: of `Divergence.of`.
        errors: how many standard errors are too many where there are many responses; of few the standard error is itself a guess, and
            as many more are let pass as Student's t has it.
    """
    from scipy.stats import norm, t

    error = found.standard_error
    if math.isnan(error):
        return found.mean < -1e-3
    return found.mean < -1e-3 and found.mean < -float(t.isf(norm.sf(errors), found.responses - 1)) * error


class FixedKL(NamedTuple):
    """A coefficient of the KL penalty that stays as it is."""

    coef: float

    def after(self, divergence: float, episodes: int) -> FixedKL:
        """The coefficient for the next rollout: the same."""
        return self


class AdaptiveKL(NamedTuple):
    """A coefficient of the KL penalty that is steered towards a target (Ziegler et al. 2019, section 2.2)."""

    coef: float
    target: float
    """Nats a response."""
    horizon: int
    """Responses after which an error of 1/5 has multiplied the coefficient by about e^(1/5)."""

    def after(self, divergence: float, episodes: int) -> AdaptiveKL:
        """The coefficient for the next rollout, after one of so many responses: β · (1 + clip(KL/target − 1, ±0.2) · n / horizon)."""
        error = min(max(divergence / self.target - 1.0, -0.2), 0.2)
        return self._replace(coef=self.coef * (1.0 + error * episodes / self.horizon))


# ── Rewards and advantages ──────────────────────────────────────────────────────────────────────────────────────────


class Normalization(NamedTuple):
    """Scale of a reward model's scores, measured once on the starting policy's responses and frozen.

    Bradley–Terry leaves a score's zero open, and its scale is the reward model's own; with both fixed a KL coefficient means the
    same for every reward model.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Normalization:
        """Measure it.

        Raises:
            ValueError: the scores are fewer than two, all the same, or no numbers: there is nothing to learn from.
        """
        if not all(math.isfinite(each) for each in scores):
            raise ValueError(
                f"{sum(not math.isfinite(each) for each in scores)} of {len(scores)} scores are no numbers"
            )
        if len(scores) < 2:
            raise ValueError("a scale takes two scores at least")
        mean = math.fsum(scores) / len(scores)
        std = math.sqrt(math.fsum((each - mean) ** 2 for each in scores) / (len(scores) - 1))
        if std <= 1e-6 * max(1.0, abs(mean)):
            raise ValueError(f"all {len(scores)} scores are {mean:g}")
        return cls(mean, std)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """(score − mean) / std, at most `CLIPPED_SCORE` either way; what is no number stays none."""
        return ((scores - self.mean) / self.std).clamp(-CLIPPED_SCORE, CLIPPED_SCORE)


class LengthLine(NamedTuple):
    """What a reward model's score says of an answer's length alone, and is taken off it: slope · (log(1 + tokens) − log_tokens).

    Where people mostly prefer the shorter answer, so does a reward model, and PPO would shorten answers before all else. The line is
    the least-squares one through the starting policy's own answers (`fit`), so that among them the reward no longer follows length
    (the idea of Huang et al. 2024, "Post-hoc Reward Calibration: A Case Study on Length Bias", with one line in place of their
    locally weighted ones).
    """

    slope: float
    """Score for each unit of log(1 + tokens)."""
    log_tokens: float
    """Mean of log(1 + tokens) over the answers it was fitted to: there nothing is taken off."""
    error: float = math.nan
    """Standard error of the slope; nan where the answers are too few, or unknown."""

    def says(self, tokens: int) -> float:
        """What is taken off the score of an answer of so many tokens, its end among them."""
        return self.slope * (math.log1p(tokens) - self.log_tokens)

    @classmethod
    def fit(cls, scores: Sequence[float], tokens: Sequence[int], prompts: Sequence[object]) -> LengthLine:
        """The least-squares line within prompts: what one prompt's answers are worth more than another's is no matter of length.

        Args:
            scores: of the answers.
            tokens: of each answer, its end among them.
            prompts: whose answer each is.

        Raises:
            ValueError: no prompt has answers of different lengths.
        """
        logs = [math.log1p(each) for each in tokens]
        sums: dict[object, tuple[float, float, int]] = {}
        for prompt, score, log in zip(prompts, scores, logs, strict=True):
            a, b, count = sums.get(prompt, (0.0, 0.0, 0))
            sums[prompt] = a + score, b + log, count + 1
        within = []  # each answer against the mean of its prompt
        for prompt, score, log in zip(prompts, scores, logs, strict=True):
            a, b, count = sums[prompt]
            within.append((score - a / count, log - b / count))
        spread = math.fsum(log**2 for _, log in within)
        if spread <= 1e-9 * len(within):
            raise ValueError("the answers to each prompt are all of one length")
        slope = math.fsum(score * log for score, log in within) / spread
        left, free = math.fsum((score - slope * log) ** 2 for score, log in within), len(within) - len(sums) - 1
        return cls(slope, math.fsum(logs) / len(logs), math.sqrt(left / free / spread) if free > 0 else math.nan)


def token_rewards(
    scores: torch.Tensor, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """The reward of every token: −β · (log π_old − log π_ref), and on the last one the response's score besides.

    Args:
        scores: (B,) normalised, penalties included.
        logprobs: (B, T) under the policy that drew the tokens.
        ref_logprobs: (B, T) under the reference.
        mask: (B, T), True on chosen tokens: at least the first of each row.
        kl_coef: β.

    Returns:
        (B, T), 0 outside the mask.
    """
    import torch

    rewards = (-kl_coef * (logprobs - ref_logprobs)).masked_fill(~mask, 0.0)
    last = mask.sum(dim=1) - 1  # (B,)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return rewards


class Advantages(NamedTuple):
    """What `gae` finds."""

    advantages: torch.Tensor
    """(B, T), 0 outside the mask; not whitened."""
    returns: torch.Tensor
    """(B, T) advantages + values: what the value function is to learn."""


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    Â_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t. After the last chosen token the value is 0: the text is over, or was cut
    off there, and what would have followed is not guessed at.

    Args:
        rewards: (B, T) of `token_rewards`.
        values: (B, T) of the states that the tokens were chosen in.
        mask: (B, T), True on chosen tokens.
        gamma: discount.
        lam: 1 takes all that followed as it was, 0 trusts the value function.
    """
    import torch

    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    following = following_value = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = (delta + gamma * lam * following).masked_fill(~mask[:, t], 0.0)
        following_value = values[:, t]
        advantages[:, t] = following
    return Advantages(advantages, advantages + values)


def whiten(values: torch.Tensor, mask: torch.Tensor, reduce: Reduce = alone) -> torch.Tensor:
    """To mean 0 and variance 1 over the chosen tokens of the whole rollout.

    Args:
        values: (B, T).
        mask: (B, T), True on chosen tokens.
        reduce: sums over the processes that share the rollout.

    Returns:
        (B, T), 0 outside the mask.
    """
    import torch

    kept = mask.to(values.dtype)
    inside = values.masked_fill(~mask, 0.0)
    count, total = reduce(torch.stack([kept.sum(), inside.sum()]))
    mean = total / count.clamp(min=1.0)
    # In two passes: a mean of squares less a squared mean cancels.
    away = (inside - mean).masked_fill(~mask, 0.0)
    squares = reduce((away**2).sum())
    found: torch.Tensor = away * torch.rsqrt(squares / count.clamp(min=1.0) + 1e-8)
    return found


# ── PPO ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class PolicyLoss(NamedTuple):
    """The clipped policy loss, and what tells whether the steps are too large."""

    loss: torch.Tensor
    clipped: float
    """Share of tokens whose gradient the clip took away."""
    divergence: float
    """From the policy that drew the tokens, in nats a token (k3): how far the epochs over one rollout have gone."""
    ratio: float
    """Mean of π / π_old; 1 at the first step."""


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> PolicyLoss:
    """−mean min(ρ Â, clip(ρ, 1 ± ε) Â) with ρ = π / π_old, over chosen tokens (Schulman et al. 2017, equation 7).

    Args:
        logprobs: (B, T) under the policy, with a gradient.
        old_logprobs: (B, T) under the policy that drew the tokens, computed by the same forward pass as `logprobs`.
        advantages: (B, T) whitened.
        mask: (B, T), True on chosen tokens.
        cliprange: ε.
    """
    import torch

    gap = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    ratio = gap.exp()
    plain, held = ratio * advantages, ratio.clamp(1.0 - cliprange, 1.0 + cliprange) * advantages
    with torch.no_grad():
        clipped = float(masked_mean((held < plain).to(ratio.dtype), mask))
        gone = float(masked_mean(ratio - 1.0 - gap, mask))
        mean = float(masked_mean(ratio, mask))
    return PolicyLoss(-masked_mean(torch.minimum(plain, held), mask), clipped, gone, mean)


class ValueLoss(NamedTuple):
    """The clipped value loss."""

    loss: torch.Tensor
    clipped: float
    """Share of tokens where the clipped error is the larger."""


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> ValueLoss:
    """½ mean max((V − R)², (clip(V, V_old ± ε) − R)²) over chosen tokens.

    Args:
        values: (B, T), with a gradient.
        old_values: (B, T) at the time of the rollout.
        returns: (B, T) of `gae`.
        mask: (B, T), True on chosen tokens.
        cliprange: ε.
    """
    import torch

    held = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    plain, limited = (values - returns) ** 2, (held - returns) ** 2
    with torch.no_grad():
        clipped = float(masked_mean((limited > plain).to(values.dtype), mask))
    return ValueLoss(0.5 * masked_mean(torch.maximum(plain, limited), mask), clipped)


# ── Preferences ─────────────────────────────────────────────────────────────────────────────────────────────────────


def preference_loss(first: torch.Tensor, second: torch.Tensor, p: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Bradley–Terry with soft labels: −[p log σ(Δ) + (1 − p) log σ(−Δ)], Δ = r(x, first) − r(x, second): (N,).

    Args:
        first: (N,) scores.
        second: (N,) scores of the other response to the same prompt.
        p: how likely it is that the first is preferred; 1 is the hard label of Stiennon et al. (2020).
    """
    import torch

    gap = (first - second).float()
    logsigmoid = torch.nn.functional.logsigmoid
    found: torch.Tensor = -(p * logsigmoid(gap) + (1.0 - p) * logsigmoid(-gap))
    return found
