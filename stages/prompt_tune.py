r"""Prompt tuning (Lester et al. 2021): learn a few embeddings before every prompt, the model itself frozen.

python -m stages.prompt_tune --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --model artifacts/select/model --out artifacts/prompt_tune

The soft prompt starts as the embeddings of a text that says what to do, or of random tokens of the vocabulary (section 3.2).
Encoder-decoders get it before the encoder's input alone, as in the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tunemill import trainings, tuning
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(tuning.Training):
    """How long the soft prompt is, what it starts as, and how it is trained."""

    virtual_tokens: int = Field(ge=1, le=1000)
    """Length of the soft prompt; 20 to 100 are usual."""
    initial: Literal["text", "vocabulary"]
    """It starts as the embeddings of `initial_text`, repeated to its length, or of random tokens of the vocabulary."""
    initial_text: str
    """What the model is to do, in words."""


def run(
    cfg: Config, *, train: Path, validation: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Tune soft prompts for `model` on `train`; write them, the curve and the counts under `out`."""
    from tunemill import models

    # 1. Encode, leaving out and counting what is too long.
    tokenizer = models.load_tokenizer(model)
    data = trainings.read(cfg, tokenizer, train, validation, "prompt_tune", log)

    def load(seed: int) -> Any:
        # 2. P ∈ ℝ^(virtual tokens × width) before the embedded prompt; nothing else is trained.
        policy = tuning.adapt(models.load_base(model, tuning.loading(cfg, runtime)), adapter(cfg), "prompt_tune")
        initialise(policy, tokenizer, cfg, seed)
        return policy

    # 3. Train, and save what plain peft loads.
    text = f"A soft prompt of {cfg.virtual_tokens} virtual tokens (Lester et al. 2021) for the model named above."
    kind = trainings.Kind("prompt_tuning", "Soft prompt", text)
    return trainings.each_seed(
        cfg, kind, load, tokenizer, data, model=model, out=out, work=work, runtime=runtime, log=log
    )


def adapter(cfg: Config) -> Any:
    """PEFT's configuration of the soft prompt."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(num_virtual_tokens=cfg.virtual_tokens, num_transformer_submodules=1)


def initialise(policy: Any, tokenizer: Any, cfg: Config, seed: int) -> None:
    """Set the soft prompt to embeddings that the model knows.

    Raises:
        UserError: the text has no tokens.
    """
    import torch

    from tunemill.models import soft_prompt

    soft = soft_prompt(policy)
    assert soft is not None, "a model with a soft prompt"
    if cfg.initial == "text":
        ids = tokenizer(cfg.initial_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(
                "no text", where="params.yaml: prompt_tune.initial_text", expected="a few words", exit_code=2
            )
        chosen = torch.tensor((ids * (cfg.virtual_tokens // len(ids) + 1))[: cfg.virtual_tokens])
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(tokenizer), (cfg.virtual_tokens,), generator=generator)
    with torch.no_grad():
        soft.copy_(policy.get_base_model().get_input_embeddings()(chosen.to(soft.device)))


if __name__ == "__main__":
    main(run, distributed=True)
