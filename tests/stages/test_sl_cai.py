"""sl_cai: exactly these files, the same bytes whenever it was killed; what it writes is the merged model; failing critics are told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from stages import sl_cai
from tests.chat_server import Asked, Sent, completion, serving
from tests.stages import aligned, tuned
from tests.stages import constitutional as cai
from tunemill import critiques, endpoints, models, records, trainings
from tunemill.checkpoints import tree_hash
from tunemill.critiques import REASONS
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.log import Log
from tunemill.records import Example

FAMILIES = ("decoder-only", "encoder-decoder")
MODEL = [
    "README.md",
    "cai.json",
    "chains.jsonl",
    "config.json",
    "curve.csv",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
]
SELF = {"model": "self"}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.01)


def prepared(tmp_path_factory: pytest.TempPathFactory, family: str) -> Path:
    place = tmp_path_factory.mktemp(family)
    cai.prepare(place, family)
    return place


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory, FAMILIES[0])


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory, FAMILIES[1])


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is learnt: what is looked at stands in the chains."""
    monkeypatch.setattr(trainings, "each_seed", lambda *_, **__: {})


@pytest.fixture(params=["decoder", "encoder_decoder"])
def place(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def run(place: Path, out: Path, **change: Any) -> dict[str, float | None]:
    return cai.run("sl_cai", place, out, **({"critic": SELF} | change))


# ── what comes out ────────────────────────────────────────────────────────────────────────────────────────────────


def test_outputs_are_exactly_these_and_a_kill_changes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = cai.generated(monkeypatch)
    found = run(place, tmp_path / "whole")
    written, asked = [each for each in names if each.startswith("written-")], len(set(names))
    template = ["chat_template.jinja"] if (place / "model/chat_template.jinja").is_file() else []
    assert tuned.files(tmp_path / "whole") == [
        "chains.jsonl",
        "examples.jsonl",
        *sorted(f"model/{name}" for name in MODEL + template),
    ]
    assert asked == 6  # answers, helpful answers, and two rounds of critiques and revisions

    chains = cai.rows(tmp_path / "whole/chains.jsonl")
    assert [each["kind"] for each in chains] == ["red_team"] * 8 + ["harmless"] * 2 + ["task"] * 2
    answered = [each for each in chains if each["answer"]]
    assert answered and all(len(each["steps"]) == (2 if each["answer"] else 0) for each in chains)
    assert found["prompts/unanswered"] == 12 - len(answered)
    assert (tmp_path / "whole/model/chains.jsonl").read_bytes() == (tmp_path / "whole/chains.jsonl").read_bytes()
    fit = [step["revision"] for each in chains for step in each["steps"] if step["reason"] is None]
    assert fit and found["revisions/fit"] == len(fit) and found["revisions"] == 2 * len(answered)
    assert found["revisions"] == len(fit) + sum(found[f"left_out/{name.replace(' ', '_')}"] or 0 for name in REASONS)
    assert found["score/before"] is found["score/after"] is None

    examples = records.read(tmp_path / "whole/examples.jsonl", Example)
    assert [each.completion for each in examples[: len(fit)]] == fit
    assert {each.source for each in examples[: len(fit)]} <= {"revisions of made", "revisions of asked"} | {
        f"revisions of docs:{at}" for at in range(8)
    }
    helpful = examples[len(fit) :]
    assert [each.source for each in helpful] == [sl_cai.OWN] * int(found["helpful/own"] or 0) + [sl_cai.TASK] * 2
    assert not {each.prompt for each in helpful} & {each["prompt"] for each in chains}
    told = cai.told(tmp_path / "whole/model/cai.json")
    assert told["critic"] == {"kind": "self", "name": "the policy itself"} and told["picker"] is None
    assert told["prompts"] == {"red_team": 8, "harmless": 2, "task": 2}
    assert [each["revisions"] for each in told["rounds"]] == [len(answered)] * 2
    assert sum(each["fit"] for each in told["kinds"].values()) == told["revisions"] == len(fit)
    assert tmp_path.name not in (tmp_path / "whole/model/cai.json").read_text()

    # Killed again and again: nothing is generated twice, and the bytes are those of an undisturbed run.
    names.clear()
    for label in ("critiques, round 1", "revisions, round 2"):
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "killed", log=cai.killed_at(label))
        assert not (tmp_path / "killed").exists()
    log, steps = Log(), list[int]()

    def listen(now: int, _: dict[str, float]) -> None:
        steps.append(now)
        if now == 2:
            raise KeyboardInterrupt

    log.listener = listen
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / "killed", log=log)
    assert steps[-1] == 2 and not (tmp_path / "killed/model/model.safetensors").exists()
    again = run(place, tmp_path / "killed")
    assert again == found
    assert sorted(each for each in names if each.startswith("written-")) == sorted(written)
    assert tree_hash(tmp_path / "killed") == tree_hash(tmp_path / "whole")


def test_the_model_is_the_base_with_what_was_learnt_added(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    before: list[Any] = []
    save = models.save_merged

    def logits(model: Any, tokenizer: Any) -> torch.Tensor:
        ids = tokenizer("read the value of the row", return_tensors="pt")["input_ids"]
        more = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids, **more).logits
        return found

    def listen(model: Any, tokenizer: Any, out: Path, dtype: str) -> None:
        assert model.peft_config
        before.append(logits(model.eval(), tokenizer))
        with model.disable_adapter():
            before.append(logits(model, tokenizer))
        save(model, tokenizer, out, dtype)

    monkeypatch.setattr(models, "save_merged", listen)
    run(place, tmp_path / "out", rounds=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    encoder = cai.told(place / "model/config.json").get("is_encoder_decoder", False)
    family: Any = AutoModelForSeq2SeqLM if encoder else AutoModelForCausalLM
    loaded = logits(family.from_pretrained(tmp_path / "out/model").eval(), tokenizer)
    base = logits(family.from_pretrained(place / "model").eval(), tokenizer)
    adapted, plain = before
    assert torch.allclose(plain, base, atol=1e-5)
    assert torch.allclose(loaded, adapted, atol=2e-3)
    assert (loaded - base).abs().max() > 20 * (loaded - adapted).abs().max()


def test_several_seeds_learn_the_same_chains(decoder: Path, tmp_path: Path) -> None:
    run(decoder, tmp_path / "out", seeds=[17, 18], rounds=1)
    folders = sorted(each.name for each in (tmp_path / "out").iterdir() if each.is_dir())
    assert folders == ["model", "model-18"]
    one, other = (tmp_path / "out" / name for name in folders)
    assert tuned.files(one) == tuned.files(other)
    for name in ("chains.jsonl", "cai.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_another_critic_is_another_chain_with_the_same_answers(decoder: Path, tmp_path: Path, untaught: None) -> None:
    cai.ending(tmp_path / "critic", "encoder-decoder")
    run(decoder, tmp_path / "own", rounds=1)
    run(decoder, tmp_path / "other", rounds=1, critic={"model": "folder", "folder": str(tmp_path / "critic")})
    own, other = (cai.rows(tmp_path / name / "chains.jsonl") for name in ("own", "other"))
    assert [each["answer"] for each in own] == [each["answer"] for each in other]
    assert [each["steps"] for each in own] != [each["steps"] for each in other]
    assert cai.told(tmp_path / "other/model/cai.json")["critic"]["kind"] == "folder"


# ── who picks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_reward_picks(decoder: Path, tmp_path: Path, untaught: None) -> None:
    """One that likes long answers leaves in only what is longer than what it revises."""
    reward = aligned.reward(tmp_path / "reward", kind="length")
    found = run(decoder, tmp_path / "out", pick=True, inputs={"reward": reward})
    tokenizer = models.load_tokenizer(decoder / "model")
    steps = [critiques.Step(**step) for each in cai.rows(tmp_path / "out/chains.jsonl") for step in each["steps"]]
    judged = [each for each in steps if each.after is not None]
    assert {each.reason for each in judged} == {None, "not better"}
    for each in judged:
        assert each.before is not None and each.after is not None
        assert (each.reason is None) == (each.after > each.before)
        assert each.after == len(models.render_completion(tokenizer, each.revision))
    assert found["score/after"] is not None and found["score/before"] is not None
    assert found["score/after"] > found["score/before"]
    assert cai.told(tmp_path / "out/model/cai.json")["picker"] == {"kind": "length", "shuffled": False}


def test_shuffled_scores_pick_nothing(decoder: Path, tmp_path: Path, untaught: None) -> None:
    aligned.reward(tmp_path / "model", kind="model")
    reward = aligned.reward(tmp_path / "reward", kind="shuffled", model=str(tmp_path / "model"))
    with pytest.raises(UserError, match="shuffled scores choose at random, which is no choice"):
        run(decoder, tmp_path / "out", pick=True, inputs={"reward": reward})


def test_the_critic_is_shown_as_many_examples_as_asked(decoder: Path, tmp_path: Path, untaught: None) -> None:
    turns = {}
    for shots in (0, 1, None):
        with serving(lambda _, number: completion(f"say {number} times that it is so")) as server:
            run(
                decoder,
                tmp_path / str(shots),
                critic=behind(server.base_url),
                rounds=1,
                shots=shots,
                inputs={"constitution": tuned.ROOT / "constitution.yaml"},
            )
            turns[shots] = max(len(each.body["messages"]) for each in server.asked)
    assert turns[0] == 5  # prompt, answer, critique request, critique, revision request
    assert turns[1] == turns[0] + 6 and turns[None] >= turns[1]


def test_a_pick_without_a_reward_is_refused_before_anything_is_generated(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: sl_cai\.pick: nobody picks among the revisions") as caught:
        run(decoder, tmp_path / "out", pick=True)
    assert caught.value.exit_code == 2 and "set pick: false" in str(caught.value)
    assert not list((tmp_path / "out-work").iterdir())


def test_nothing_fit_to_learn_from_is_told_with_the_reasons(decoder: Path, tmp_path: Path) -> None:
    def copies(asked: Asked, number: int) -> Sent:
        critique = cai.last(asked).startswith("CRITIQUE")
        return completion("this is wrong in many ways" if critique else asked.text)

    with serving(copies) as server:
        source = {"model": "endpoint", "endpoint": {"base_url": server.base_url}}
        with pytest.raises(UserError) as caught:
            run(decoder, tmp_path / "out", critic=source, rounds=1)
    assert "params.yaml: sl_cai: none of the 12 revisions is fit to learn from: copy 12" in str(caught.value)
    assert "name a larger model as critic" in str(caught.value) and caught.value.exit_code == 1


# ── a critic that is not there ────────────────────────────────────────────────────────────────────────────────────


def test_no_critic_in_its_folder(decoder: Path, tmp_path: Path) -> None:
    source = {"model": "folder", "folder": str(tmp_path / "nobody")}
    with pytest.raises(UserError, match=r"params\.yaml: sl_cai\.critic\.folder: no whole model in") as caught:
        run(decoder, tmp_path / "out", critic=source)
    assert caught.value.exit_code == 2 and "config.json" in str(caught.value)


def test_a_policy_that_is_an_adapter_cannot_criticise_itself(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter gives feedback once it is merged into its model"):
        run(decoder, tmp_path / "out", inputs={"model": tmp_path / "adapter"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompts": {"red_team": 2, "harmless": 2, "task": 0}, "inputs": {"harmless": None}}, "no harmless prompts"),
        ({"prompts": {"red_team": 2, "harmless": 0, "task": 2}, "inputs": {"train": None}}, "no task prompts to ask"),
    ],
)
def test_prompts_that_are_not_there_are_missed(
    decoder: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        run(decoder, tmp_path / "out", **change)
    assert not list((tmp_path / "out-work").iterdir())


def test_a_mistake_in_the_constitution_is_told_before_anything_is_generated(
    decoder: Path, tmp_path: Path, untaught: None
) -> None:
    path = tmp_path / "constitution.yaml"
    path.write_text(cai.CONSTITUTION.replace("prompts: [harmless, task]", "prompts: [task]"))
    with pytest.raises(UserError, match="no principle for harmless prompts"):
        run(decoder, tmp_path / "out", inputs={"constitution": path})
    assert not list((tmp_path / "out-work").iterdir())
    run(
        decoder,
        tmp_path / "out",
        inputs={"constitution": path, "harmless": None},
        prompts={"red_team": 8, "harmless": 0, "task": 1},
        rounds=1,
    )


# ── behind an endpoint ────────────────────────────────────────────────────────────────────────────────────────────


def behind(base_url: str, **change: Any) -> dict[str, Any]:
    return {"model": "endpoint", "endpoint": {"base_url": base_url, **change}}


def test_an_endpoint_criticises_and_revises(decoder: Path, tmp_path: Path, untaught: None) -> None:
    with serving(cai.critic) as server:
        found = run(decoder, tmp_path / "one", critic=behind(server.base_url), critic_temperature=0.3)
        assert found["revisions/fit"] == 24 and len(server.asked) == 48
        assert {each.body["temperature"] for each in server.asked} == {0.3}
        assert {each.body["max_tokens"] for each in server.asked} == {8}  # as long as a critique or a revision may be
        assert not any("logprobs" in each.body for each in server.asked)
        for each in server.asked:
            roles = [message["role"] for message in each.body["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        # In another place of work everything is asked anew, and comes out the same.
        run(decoder, tmp_path / "two", critic=behind(server.base_url), critic_temperature=0.3)
        assert len(server.asked) == 96
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    told = cai.told(tmp_path / "one/model/cai.json")["critic"]
    assert told["kind"] == "endpoint" and told["name"] == "name-of-the-model"


def test_what_an_endpoint_cuts_short_is_left_out(decoder: Path, tmp_path: Path, untaught: None) -> None:
    def cut(asked: Asked, number: int) -> Sent:
        sent = cai.critic(asked, number)
        sent.body["choices"][0]["finish_reason"] = "length" if "delete" in asked.text else "stop"
        return sent

    with serving(cut) as server:
        run(decoder, tmp_path / "out", critic=behind(server.base_url), rounds=1)
    chains = cai.rows(tmp_path / "out/chains.jsonl")
    for each in chains:
        assert each["steps"][0]["reason"] == ("unfinished" if "delete" in each["prompt"] else None)
    assert {"delete" in each["prompt"] for each in chains} == {True, False}


def test_busy_now_and_then_is_asked_again(decoder: Path, tmp_path: Path, untaught: None) -> None:
    def busy(asked: Asked, number: int) -> Sent:
        return Sent({}, 429) if number % 3 == 0 else cai.critic(asked, number)

    with serving(busy) as server:
        found = run(decoder, tmp_path / "out", critic=behind(server.base_url, retries=2), rounds=1)
        assert found["revisions/fit"] == 12 and 24 + 12 <= len(server.asked) <= 24 + 13


def fails(decoder: Path, out: Path, source: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        run(decoder, out, critic=source, rounds=1)
    assert "params.yaml: sl_cai.critic.endpoint: the endpoint" in str(caught.value)
    assert not out.exists()
    return caught.value


def test_down(decoder: Path, tmp_path: Path) -> None:
    error = fails(decoder, tmp_path / "out", behind(cai.nowhere()))
    assert "no connection (ConnectError)" in str(error) and error.exit_code == TRY_AGAIN
    assert "what was answered is kept" in str(error)


def test_slow(decoder: Path, tmp_path: Path) -> None:
    def drip(asked: Asked, number: int) -> Sent:
        time.sleep(1.5)
        return cai.critic(asked, number)

    with serving(drip) as server:
        error = fails(decoder, tmp_path / "out", behind(server.base_url, timeout_seconds=0.4, retries=1))
        assert len(server.asked) <= 2
    assert "no answer within 0.4 s" in str(error) and error.exit_code == TRY_AGAIN


def test_nonsense(decoder: Path, tmp_path: Path) -> None:
    with serving(lambda *_: Sent(b"<html>welcome</html>")) as server:
        error = fails(decoder, tmp_path / "out", behind(server.base_url, retries=2))
        assert len(server.asked) == 3
    assert "what it answers is no chat completion" in str(error) and error.exit_code == 1


def test_a_second_run_asks_nothing_twice(decoder: Path, tmp_path: Path, untaught: None) -> None:
    broken = True

    def sometimes(asked: Asked, number: int) -> Sent:
        if broken and cai.last(asked).startswith("REVISE") and number > 17:
            return Sent(b"", 503)
        return cai.critic(asked, number)

    with serving(sometimes) as server:
        error = fails(decoder, tmp_path / "out", behind(server.base_url))
        assert "status 503" in str(error) and error.exit_code == TRY_AGAIN
        answered = {cai.conversation(each) for each in server.asked[:18]}
        assert len(answered) == 18 and len(server.asked) == 20
        broken = False
        run(decoder, tmp_path / "out", critic=behind(server.base_url), rounds=1)
        again = [cai.conversation(each) for each in server.asked[20:]]
        assert len(again) == 24 - 18 and not answered & {*again}
        before = len(server.asked)
        run(decoder, tmp_path / "other", critic=behind(server.base_url), rounds=1)
        assert len(server.asked) == before + 24
    assert tree_hash(tmp_path / "out") == tree_hash(tmp_path / "other")


def test_a_round_after_an_unfit_revision_is_another_try(decoder: Path, tmp_path: Path, untaught: None) -> None:
    """The same question as in the round before, at temperature 1: it is drawn anew, as a model at hand draws it."""

    def moody(asked: Asked, number: int) -> Sent:
        if cai.last(asked).startswith("CRITIQUE"):
            return cai.critic(asked, number)
        said = json.dumps(asked.body["messages"])
        tried.append(said)
        return completion("" if tried.count(said) == 1 else f"better read row {asked.text}")

    tried: list[str] = []
    with serving(moody) as server:
        found = run(decoder, tmp_path / "out", critic=behind(server.base_url), rounds=2)
    assert found["left_out/empty"] == 12 and found["revisions/fit"] == 12
