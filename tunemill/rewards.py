"""What a policy is rewarded for: a folder with a reward.json that says which kind it is.

    model        a reward model learnt from preferences (stage `reward` wrote the folder): the policy's own weights with an adapter
    classifier   a text classifier with a tokenizer of its own, as in the course's lab on detoxifying: the logit of one label, or of
                 its opposite
    offence      how little the classifier of alt-profanity-check finds to object to
    length       a control: the more tokens, the better. What PPO gains here, length alone explains
    shuffled     a control: the scores of a reward model, dealt out anew among the responses of a rollout. What PPO gains here, no
                 reward explains

Paths in a reward.json count from the folder it stands in. The controls and two examples are in recipes/rewards/.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationError, model_validator

from tunemill import backbone, checkpoints, losses, models, sampling, toxicity
from tunemill.errors import UserError
from tunemill.losses import Encoded
from tunemill.params import Params
from tunemill.rlhf import LengthLine
from tunemill.runtime import Runtime

if TYPE_CHECKING:
    import torch

Texts = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
"""Prompts and responses → a score for each; the more, the better."""

Rows = Callable[[Sequence[Encoded]], list[float]]
"""The same of prompts and responses as token ids: an end is among them where the response has one."""

Drawn = Callable[[Sequence[Encoded], Sequence[str], Sequence[str]], Sequence[float | None]]
"""The same of both: token ids, prompts and responses."""

ROWS = 16
"""Responses that a reward model reads at once."""


class Reward(NamedTuple):
    """What a policy is rewarded for."""

    kind: str
    """See the module."""
    model: Path | None
    """Folder of the reward model whose adapter scores; None where texts are scored."""
    texts: Texts | None
    """What scores texts; None where a reward model does, or where only their length counts."""
    shuffled: bool
    """Whether the scores are dealt out anew among the responses of a rollout."""
    line: LengthLine | None = None
    """Of a reward model: what is taken off its scores."""


class Length(Params):
    """A `LengthLine`, in a reward.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slope: float = Field(allow_inf_nan=False)
    log_tokens: float = Field(allow_inf_nan=False)


class Description(Params):
    """A reward.json, as far as a reward is read from it; stage `reward` writes its figures beside."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["model", "classifier", "offence", "length", "shuffled"]
    """See the module."""
    model: str = "."
    """Folder of the classifier, or of the reward model that is shuffled."""
    label: str = ""
    """Of a classifier: the label whose logit is the reward."""
    sign: Literal[1, -1] = 1
    """Of a classifier: -1 where the label is what is not wanted."""
    length: Length | None = None
    """Of a reward model: what is taken off its scores, see `rlhf.LengthLine`; null: nothing."""

    @model_validator(mode="after")
    def _of_a_model(self) -> Description:
        if self.length is not None and self.kind != "model":
            raise ValueError("length is taken off the scores of a reward model alone (kind: model)")
        if self.kind != "classifier" and (self.sign != 1 or self.label):
            raise ValueError("label and sign are of a text classifier alone (kind: classifier)")
        return self


def describe(folder: Path) -> Description:
    """What a folder's reward.json says.

    Raises:
        UserError: there is none, or it has a mistake.
    """
    path = folder / "reward.json"
    try:
        return Description.model_validate_json(path.read_text(encoding="utf-8"), strict=True)
    except FileNotFoundError:
        raise UserError(
            f"no reward in {folder}",
            where=str(path),
            expected='a reward.json with its kind, like {"kind": "length"}',
            fix="dvc repro reward, or name one of recipes/rewards",
            exit_code=2,
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ").lower()
        raise UserError(
            f"{place}: {what}" if place else what,
            where=str(path),
            expected="kind: model, classifier, offence, length or shuffled" if place in ("", "kind") else "",
            exit_code=2,
        ) from None


def able_to_choose(reward: Reward, folder: Path) -> None:
    """Refuse a reward that could not tell one answer from another.

    Raises:
        UserError: its scores are dealt out at random, among the responses of a rollout.
    """
    if reward.shuffled:
        raise UserError(
            "shuffled scores choose at random, which is no choice",
            where=str(folder),
            expected="another kind of reward",
            fix="the control with shuffled scores is PPO's (recipes/align-controls.yaml)",
            exit_code=2,
        )


def learnt(folder: Path, told: Description) -> Description:
    """What the reward model that a folder is, or points at, says of itself: length is taken off its scores whoever names it.

    Raises:
        UserError: it points at what is no reward model.
    """
    model = folder / told.model
    if model.resolve() == folder.resolve() and told.kind == "model":
        return told
    found = describe(model)
    if found.kind != "model":
        raise UserError(
            f"a reward of kind {found.kind} where a reward model should be",
            where=str(model / "reward.json"),
            expected="kind: model, what stage `reward` writes",
            fix=f"name another folder as `model` in {folder / 'reward.json'}",
            exit_code=2,
        )
    return found


def load(folder: Path, runtime: Runtime) -> Reward:
    """The reward that a folder describes.

    Raises:
        UserError: there is no reward.json, it has a mistake, or names a label that its classifier does not know.
    """
    told = describe(folder)
    if told.kind in ("model", "shuffled"):
        model = (folder / told.model).resolve()
        length = learnt(folder, told).length
        line = LengthLine(length.slope, length.log_tokens) if length else None
        return Reward(told.kind, model, None, told.kind == "shuffled", line)
    if told.kind == "classifier":
        return Reward(
            told.kind, None, classifier((folder / told.model).resolve(), told.label, told.sign, runtime), False
        )
    return Reward(told.kind, None, inoffensive if told.kind == "offence" else None, False)


def inoffensive(_: Sequence[str], responses: Sequence[str]) -> list[float]:
    """One less the probability that a response is offensive; silence offends nobody, and pleases nobody: one half."""
    return [0.5 if each is None else 1.0 - each for each in toxicity.offence(responses)]


def classifier(folder: Path, label: str, sign: int, runtime: Runtime) -> Texts:
    """The logit of a text classifier's label for the response: not its probability, which hardly moves where it is sure.

    Args:
        folder: a sequence classifier that transformers loads, with its tokenizer.
        label: one of its labels.
        sign: -1 where the label is what is not wanted.
        runtime: the device to compute on.

    Raises:
        UserError: there is no such classifier or label.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no text classifier in {folder}: {str(error).strip().splitlines()[0]}",
            expected="config.json and safetensors weights of a sequence classifier, and its tokenizer",
            exit_code=2,
        ) from None
    known = {str(name): int(number) for number, name in model.config.id2label.items()}
    if label not in known:
        raise UserError(
            f"the classifier has no label '{label}'",
            where=str(folder),
            expected="one of " + ", ".join(known),
            exit_code=2,
        )
    model = model.to(runtime.device).eval()

    def score(_: Sequence[str], responses: Sequence[str]) -> list[float]:
        found: list[float] = []
        for at in range(0, len(responses), 16):
            read = tokenizer(
                list(responses[at : at + 16]), padding=True, truncation=True, max_length=512, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = model(**read.to(model.device)).logits  # (B, labels)
            found += (sign * logits[:, known[label]].float()).tolist()
        return found

    return score


def scorer(reward: Reward, start: Path, runtime: Runtime) -> Texts:
    """Whatever the kind of reward, what scores texts: responses that ended by themselves.

    Args:
        reward: of `load`; the scores of a shuffled one are not shuffled yet.
        start: folder of the starting policy: a reward model's adapter sits on it, and its tokenizer counts length.
        runtime: device and number format.

    Raises:
        UserError: a reward model does not fit the starting policy.
    """
    if reward.texts is not None:
        return reward.texts
    tokenizer, score = models.load_tokenizer(start), drawn(reward, start, runtime)

    def of_texts(prompts: Sequence[str], responses: Sequence[str]) -> Sequence[float | None]:
        asked = (models.render_prompt(tokenizer, each) for each in prompts)
        answered = (models.render_completion(tokenizer, each) for each in responses)
        return score([Encoded(*each) for each in zip(asked, answered, strict=True)], prompts, responses)

    return of_texts


def drawn(reward: Reward, start: Path, runtime: Runtime) -> Drawn:
    """Whatever the kind of reward, what scores responses as PPO does: where tokens are read, those that were drawn.

    Args:
        reward: see `scorer`.
        start: see `scorer`.
        runtime: see `scorer`.

    Raises:
        UserError: a reward model does not fit the starting policy.
    """
    if reward.model is not None:
        read = reader(reward.model, start, runtime, reward.line)
        return lambda rows, prompts, responses: read(rows)
    if reward.texts is not None:
        texts = reward.texts
        return lambda rows, prompts, responses: texts(prompts, responses)
    return lambda rows, prompts, responses: [float(len(each.completion)) for each in rows]


def reader(folder: Path, start: Path, runtime: Runtime, line: LengthLine | None = None) -> Rows:
    """A reward model by itself, on a copy of the starting policy's weights of its own: what scores token ids.

    Args:
        folder: of stage `reward`.
        start: folder of the starting policy.
        runtime: device and number format.
        line: what is taken off its scores; None: nothing.

    Raises:
        UserError: it was trained with another tokenizer, on other weights, or for a model of another width.
    """
    import torch
    from peft import PeftModel

    tokenizer = models.load_tokenizer(start)
    backbone.check(folder, tokenizer, start)
    base = models.load_base(start, runtime)
    head = backbone.read_head(folder, base.config).to(runtime.device)
    # Not merged: bfloat16 would round much of the adapter away.
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=False).eval().get_base_model()
    first, packed = losses.start_token(model), backbone.packable(model)
    ends = set(sampling.end_tokens(model, tokenizer))

    def score(rows: Sequence[Encoded]) -> list[float]:
        # Rows that begin alike, and are alike in length, are read together.
        order = sorted(range(len(rows)), key=lambda at: (len(rows[at].prompt), rows[at].prompt, len(rows[at]), at))
        found = [0.0] * len(rows)
        for at in range(0, len(order), ROWS):
            places = order[at : at + ROWS]
            whole = [ended(rows[place], bool(ends & {*rows[place].completion[-1:]}), tokenizer) for place in places]
            batch = backbone.collate(whole, tokenizer.pad_token_id, first, packed)
            with torch.inference_mode():
                states = backbone.end_states(model, batch.to(runtime.device))
            for place, row, value in zip(places, whole, backbone.linear(states, head).tolist(), strict=True):
                found[place] = value - (line.says(len(row.completion)) if line else 0.0)
        return found

    return score


def ended(row: Encoded, finished: bool, tokenizer: Any) -> Encoded:
    """A response as a reward model knows responses: with an end.

    People rated whole answers, so of one that was cut off a reward model's last state says above all that it was cut off: PPO would
    learn to be brief, and nothing else. Not to have ended has a price of its own (`ppo.missing_eos_penalty`).

    Args:
        row: prompt and response.
        finished: whether its last token ends the text.
        tokenizer: whose end is put after it where it does not.
    """
    return row if finished else Encoded(row.prompt, [*row.completion, tokenizer.eos_token_id])


def shuffle(scores: torch.Tensor, seed: Sequence[int]) -> torch.Tensor:
    """The same scores, each some other response's: (B,)."""
    import numpy as np
    import torch

    order = np.random.default_rng([*seed]).permutation(len(scores))
    return scores[torch.from_numpy(order).to(scores.device)]


def checked(scores: Sequence[float | None], responses: Sequence[str], where: Path) -> list[float]:
    """Scores that are numbers.

    Args:
        scores: of responses.
        responses: the texts.
        where: folder of the reward.

    Raises:
        UserError: one is none: nothing can be learnt from it, and leaving it out would reward what makes a reward fail.
    """
    wrong = [at for at, each in enumerate(scores) if each is None or not math.isfinite(each)]
    if wrong:
        raise UserError(
            f"the reward of {len(wrong)} of {len(scores)} responses is no number; the first: '{responses[wrong[0]][:80]}'",
            where=str(where),
            expected="a finite score for every response, the empty one too",
            fix="train the reward anew (dvc repro reward), at a lower learning rate",
        )
    return [float(each) for each in scores if each is not None]


def carry(folder: Path, out: Path) -> None:
    """Copy a reward with all that its reward.json points at, so that it means the same in another place.

    Args:
        folder: with a reward.json; not of a shuffled one.
        out: to be made.

    Raises:
        UserError: there is no reward.json, or it has a mistake.
    """
    told = describe(folder)
    said = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    source = folder / told.model
    if told.kind == "model":
        said |= {"model": ".", "length": length.model_dump() if (length := learnt(folder, told).length) else None}
        shutil.copytree(source / "adapter", out / "adapter", copy_function=shutil.copyfile)
    elif told.kind == "classifier":
        said["model"] = "classifier"
        shutil.copytree(source, out / said["model"], copy_function=shutil.copyfile)
    checkpoints.write_json(out / "reward.json", said)


def told(reward: Reward) -> dict[str, Any]:
    """What is written down about it."""
    line = reward.line
    length = {"length": {"slope": line.slope, "log_tokens": line.log_tokens}} if line else {}
    return {"kind": reward.kind, "shuffled": reward.shuffled, **length}
