"""A real server on this machine that is down, slow, busy, wrong or rude: what is asked how often, and what it ends with."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.chat_server import KEY, VARIABLE, Asked, Sent, Server, completion, serving
from tunemill import endpoints, feedback
from tunemill.endpoints import Endpoint, Reply
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.log import Log
from tunemill.models import Conversation, Prompt

Answer = Callable[[Asked, int], Sent]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.01)


def endpoint(base_url: str, **change: object) -> Endpoint:
    values = {
        "base_url": base_url,
        "model": "some-model",
        "key_variable": "",
        "max_tokens": 8,
        "timeout_seconds": 5.0,
        "retries": 2,
        "concurrency": 3,
    }
    return Endpoint.model_validate(values | change)


def ask(
    server: Server, kept: Path, *questions: str, key: str | None = None, log: Log | None = None, **change: object
) -> list[Reply]:
    return endpoints.ask(
        endpoint(server.base_url, **change),
        key,
        questions or ("one", "two", "three"),
        alternatives=5,
        kept=kept / "answers.jsonl",
        where="judge.endpoint",
        title="ask",
        log=log or Log(),
    )


def echo(asked: Asked, number: int) -> Sent:
    return completion(asked.text.upper())


def test_each_question_is_asked_once_and_answered_in_its_place(tmp_path: Path) -> None:
    with serving(echo) as server:
        found = ask(server, tmp_path, "one", "two", "one")
        assert [each.text for each in found] == ["ONE", "TWO", "ONE"]
        assert sorted(each.text for each in server.asked) == ["one", "two"]
        again = ask(server, tmp_path, "two", "four")
        assert [each.text for each in again] == ["TWO", "FOUR"]
        assert len(server.asked) == 3
        ask(server, tmp_path, "two", model="another")  # not what this one was asked
        assert len(server.asked) == 4
    request = server.asked[0]
    assert request.path == "/v1/chat/completions" and "authorization" not in request.headers
    assert request.body == {
        "model": "some-model",
        "messages": [{"role": "user", "content": request.text}],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }


CONVERSATION: Conversation = (("user", "one"), ("assistant", "two"), ("user", "three"))


def drawn(server: Server, kept: Path, *questions: Prompt, temperature: float = 1.0, **change: object) -> list[Reply]:
    return endpoints.ask(
        endpoint(server.base_url, **change),
        None,
        questions,
        alternatives=0,
        temperature=temperature,
        kept=kept / "answers.jsonl",
        where="sl_cai.critic.endpoint",
        title="ask",
        log=Log(),
    )


def test_a_conversation_goes_out_turn_by_turn_and_is_asked_once(tmp_path: Path) -> None:
    def says(asked: Asked, number: int) -> Sent:
        return completion(" ".join(each["content"] for each in asked.body["messages"]))

    other: Conversation = (*CONVERSATION[:2], ("user", "four"))
    with serving(says) as server:
        for _ in range(2):
            found = drawn(server, tmp_path, CONVERSATION, "one", CONVERSATION, other)
            assert [each.text for each in found] == ["one two three", "one", "one two three", "one two four"]
        assert len(server.asked) == 3
    [long] = [each for each in server.asked if each.body["messages"][-1]["content"] == "three"]
    assert long.body["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert "logprobs" not in long.body and "top_logprobs" not in long.body


def test_what_was_drawn_at_another_temperature_is_no_answer(tmp_path: Path) -> None:
    with serving(lambda asked, number: completion(f"answer {number}")) as server:
        first = drawn(server, tmp_path, "one", temperature=1.0)
        assert drawn(server, tmp_path, "one", temperature=0.5) != first
        assert drawn(server, tmp_path, "one", temperature=1.0) == first
    assert [each.body["temperature"] for each in server.asked] == [1.0, 0.5]


@pytest.mark.parametrize(("reason", "finished"), [("length", False), ("stop", True), (None, True)])
def test_an_answer_that_was_cut_short_is_known_for_one_and_stays_so(
    tmp_path: Path, reason: str | None, finished: bool
) -> None:
    def says(asked: Asked, number: int) -> Sent:
        sent = completion("and so")
        sent.body["choices"][0] |= {"finish_reason": reason} if reason else {}
        return sent

    with serving(says) as server:
        assert [drawn(server, tmp_path, "one") for _ in range(2)] == [[Reply("and so", (), finished)]] * 2
    assert len(server.asked) == 1


def test_progress_counts_what_is_asked_and_not_what_the_journal_has_of_before(tmp_path: Path) -> None:
    steps: list[int] = []

    class Told(Log):
        def start(self, label: str, total: int, unit: str = "step", first: int = 0) -> None:
            steps.append(-total)

        def __call__(self, step: int, **values: float) -> None:
            steps.append(step)

    with serving(echo) as server:
        ask(server, tmp_path, "one", "two", "three", concurrency=1)
        ask(server, tmp_path, "four", "five", concurrency=1, log=Told())
    assert steps == [-2, 1, 2]


def test_never_more_on_their_way_than_told(tmp_path: Path) -> None:
    def slowly(asked: Asked, number: int) -> Sent:
        time.sleep(0.03)
        return completion("x")

    with serving(slowly) as server:
        ask(server, tmp_path, *map(str, range(20)), concurrency=3)
    assert server.busiest == 3 and len(server.asked) == 20


def test_log_probabilities_come_along_and_survive_the_journal(tmp_path: Path) -> None:
    tokens = [
        {"token": "(", "logprob": -0.01, "top_logprobs": []},
        {
            "token": "A",
            "logprob": math.log(0.6),
            "top_logprobs": [{"token": "A", "logprob": math.log(0.6)}, {"token": "B", "logprob": math.log(0.2)}],
        },
        {"token": ")", "logprob": -0.02},
    ]
    with serving(lambda *_: completion("(A)", tokens)) as server:
        for _ in range(2):
            [found] = ask(server, tmp_path, "which?")
            assert found.tokens[1].alternatives == (("A", math.log(0.6)), ("B", math.log(0.2)))
            assert found.tokens[0].alternatives == (("(", -0.01),)
        [answer] = feedback.by_endpoint(
            endpoint(server.base_url), None, ["which?"], kept=tmp_path / "answers.jsonl", where="", title="", log=Log()
        )
        assert answer.p == pytest.approx(0.75) and answer.said == "(A)"
        assert len(server.asked) == 1


def test_an_endpoint_that_refuses_log_probabilities_is_asked_without(tmp_path: Path) -> None:
    def picky(asked: Asked, number: int) -> Sent:
        return Sent({"error": {"message": "logprobs?"}}, 400) if "logprobs" in asked.body else completion("(B)")

    with serving(picky) as server:
        found = ask(server, tmp_path, *map(str, range(9)), concurrency=2)
    assert {each.text for each in found} == {"(B)"} and {each.tokens for each in found} == {()}
    assert len(server.asked) <= 9 + 2  # it is told once; who was on the way then finds out for itself


@pytest.mark.parametrize("told", ["NaN", "-Infinity", '"x"', "null"])
def test_log_probabilities_that_are_no_numbers_count_as_none(tmp_path: Path, told: str) -> None:
    body = b'{"choices":[{"message":{"content":"(A)"},"logprobs":{"content":[{"token":"(A)","logprob":%s}]}}]}'
    with serving(lambda *_: Sent(body % told.encode())) as server:
        [found] = ask(server, tmp_path, "which?")
    assert found.text == "(A)" and all(each.alternatives == () for each in found.tokens)


def test_busy_is_asked_again_and_not_before_it_said(tmp_path: Path) -> None:
    def busy(asked: Asked, number: int) -> Sent:
        return Sent({}, 429, {"retry-after": "1"}) if number == 0 else echo(asked, number)

    with serving(busy) as server:
        [found] = ask(server, tmp_path, "one")
        assert found.text == "ONE"
    first, second = server.asked
    assert 1.0 <= second.at - first.at < 3.0


def test_a_date_to_wait_for_is_a_number_of_seconds() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = endpoints._retry_after(date)
    assert found is not None and 28 < found <= 30
    assert [endpoints._retry_after(each) for each in ("2.5", "-1", "soon", "nan", None)] == [2.5, 0.0, None, None, None]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_by_itself_is_tried_again(tmp_path: Path, status: int) -> None:
    with serving(lambda asked, number: Sent(b"", status) if number < 2 else echo(asked, number)) as server:
        assert ask(server, tmp_path, "one")[0].text == "ONE"
    assert len(server.asked) == 3


def fault(server: Server, tmp_path: Path, key: str | None = None, **change: object) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(server, tmp_path, "one", key=key, **change)
    assert "params.yaml: judge.endpoint" in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "asked", "told", "code"),
    [
        (lambda *_: Sent(b"", 503), 3, "status 503", TRY_AGAIN),
        (lambda *_: Sent({}, 429, {"retry-after": "3600"}), 1, "asked again in 3600 s", TRY_AGAIN),
        (lambda *_: Sent(b"<html>hello</html>"), 3, "no chat completion", 1),
        (lambda *_: Sent({"choices": []}), 3, "no chat completion", 1),
        (lambda *_: Sent([1]), 3, "no chat completion", 1),
        (lambda *_: Sent({"choices": [{"message": {"content": [1]}}]}), 3, "no chat completion", 1),
        (lambda *_: Sent(b"[" * 100_000), 3, "no chat completion", 1),
        (lambda *_: Sent({"error": {"message": "no such model\n\x1b[2J"}}, 404), 1, "404): no such model  [2J", 1),
        (lambda *_: Sent({"error": f"bad {KEY}"}, 404), 1, "404): bad [key]", 1),
        (lambda *_: Sent({"error": {"message": "wrong key sk-0123*"}}, 401), 1, "refuses the key (status 401)", 1),
        (lambda *_: Sent(b"", 302, {"location": "http://127.0.0.1:9/"}), 1, "status 302", 1),
    ],
)
def test_faults_end_with_what_to_do(tmp_path: Path, answer: Answer, asked: int, told: str, code: int) -> None:
    with serving(answer) as server:
        error = fault(server, tmp_path, key=KEY)
    assert told in str(error) and error.exit_code == code
    assert "sk-0123" not in str(error) and error.__suppress_context__
    assert len(server.asked) == asked
    assert all(each.headers["authorization"] == f"Bearer {KEY}" for each in server.asked)


def test_down(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = fault(Server(f"http://127.0.0.1:{port}/v1"), tmp_path)
    assert "no connection (ConnectError)" in str(error) and error.exit_code == TRY_AGAIN


def test_slow(tmp_path: Path) -> None:
    def drip(asked: Asked, number: int) -> Sent:
        time.sleep(1.0)
        return echo(asked, number)

    began = time.monotonic()
    with serving(drip) as server:
        error = fault(server, tmp_path, timeout_seconds=0.1, retries=1)
        assert time.monotonic() - began < 0.9
    assert "no answer within 0.1 s" in str(error) and error.exit_code == TRY_AGAIN


def test_what_was_answered_before_it_failed_is_not_asked_again(tmp_path: Path) -> None:
    broken = True

    def sometimes(asked: Asked, number: int) -> Sent:
        return Sent(b"", 503) if broken and asked.text == "7" else echo(asked, number)

    questions = [str(number) for number in range(10)]
    with serving(sometimes) as server:
        with pytest.raises(UserError):
            ask(server, tmp_path, *questions, concurrency=1)
        broken = False
        assert [each.text for each in ask(server, tmp_path, *questions)] == questions
    assert sorted(server.answered) == questions


def test_a_key_that_is_repeated_is_struck_out(tmp_path: Path) -> None:
    with serving(lambda *_: completion(f"(A), your key is {KEY}")) as server:
        assert ask(server, tmp_path, "one", key=KEY)[0].text == "(A), your key is [key]"
    assert KEY not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize("content", ["", None, "word " * 5000, "\u2028{}\x00"])
def test_odd_words_are_words(tmp_path: Path, content: str | None) -> None:
    with serving(lambda *_: completion(content)) as server:
        assert [ask(server, tmp_path, "one")[0].text for _ in range(2)] == [content or ""] * 2
    assert len(server.asked) == 1


def test_the_key_comes_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = endpoint("http://127.0.0.1:1/v1", key_variable=VARIABLE)
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    assert endpoints.key_of(here, "judge.endpoint") == KEY
    assert endpoints.key_of(endpoint("http://127.0.0.1:1/v1"), "judge.endpoint") is None
    for value, told in (("", "is not set"), ("two words", "holds no key"), ("naïve", "holds no key")):
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(UserError, match=told) as caught:
            endpoints.key_of(here, "judge.endpoint")
        assert caught.value.exit_code == 2 and not (value and value in str(caught.value))


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host/v1", "http://", "http://user:word@host/v1", "https://host/v1?key=1", "http://h:x"],
)
def test_addresses_that_are_none_or_hold_secrets_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        endpoint(url)


def test_a_slash_at_the_end_is_no_difference() -> None:
    assert json.loads(endpoint("https://host/v1/").model_dump_json())["base_url"] == "https://host/v1"
