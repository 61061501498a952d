r"""Best of n: of n answers of the starting policy the one that the reward likes best; off by default.

python -m stages.best_of --candidate harm --reward artifacts/reward/harm --model artifacts/feedback/policy --out artifacts/best_of/harm

The control that every way of optimising a reward is held against (Gao et al. 2023): no training, only choice, so what it gains the
reward knows, and nothing has been gamed on the way. Red-team instructions and harmless prompts are answered so (`tunemill.best_of`); on
everything else the policy is the starting one, greedy as that. It takes both families of models, and any reward but a shuffled one.

Writes model/, a whole checkpoint with best_of.json and the reward.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import Field

from tunemill import backbone, best_of, cards, models, rewards
from tunemill.params import Params
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(Params):
    """How many."""

    n: int = Field(ge=2, le=1024)
    """Answers to choose among; each costs as much as the one that is given."""


def run(cfg: Config, *, reward: Path, model: Path, out: Path, runtime: Runtime) -> Metrics:
    """Write the policy in `model` as one that gives the best of n answers."""
    # 1. A reward that can choose, and fits the model.
    wanted = rewards.load(reward, runtime)
    rewards.able_to_choose(wanted, reward)
    if wanted.model is not None:
        backbone.check(wanted.model, models.load_tokenizer(model), model)

    # 2. The policy: the model as it is, and who chooses.
    folder = out / "model"
    shutil.copytree(model, folder, copy_function=shutil.copyfile)
    best_of.write(folder, cfg.n, reward)
    text = (
        f"The model named above; of {cfg.n} answers to an instruction the one is given that the reward '{wanted.kind}' likes best "
        "(best of n, Stiennon et al. 2020). Plain transformers loads the model, and draws one answer."
    )
    bound = best_of.divergence(cfg.n)
    facts: dict[str, object] = {
        "answers to choose among": cfg.n,
        "KL divergence": f"at most {bound:.2f} nats a response",
    }
    cards.write(folder, "Best of n", model, text, facts, models.is_encoder_decoder(model))
    return {"n": cfg.n, "kl_bound": bound}


if __name__ == "__main__":
    main(run)
