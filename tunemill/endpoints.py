"""Chat models behind an OpenAI-compatible endpoint (`POST <base_url>/chat/completions`): each question asked once.

Every answer goes into a journal under a hash of its question as soon as it is there, so that a run that was killed does not
ask (and pay) again. What may pass by itself is tried again a few times, later each time, and not before the endpoint's
`Retry-After`: no connection, no answer in time, 408, 429, 5xx. Then the run ends with `TRY_AGAIN`.

The key comes out of an environment variable and goes into a header. It is in no error, log, journal or answer: an endpoint
that repeats it is read with the key struck out, and redirections, which would carry it elsewhere, are not followed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tunemill import journal, models
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.log import Log
from tunemill.params import Params

if TYPE_CHECKING:
    import httpx

FIRST_WAIT = 1.0
"""Seconds before the first new try; twice as long before each further one."""
LONGEST_WAIT = 120.0
"""Most seconds to wait before a new try: who asks for more (`Retry-After`) is not waited for."""


class Endpoint(Params):
    """A model behind an endpoint."""

    base_url: str
    """Where it is, up to and without `/chat/completions`: `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    key_variable: str = Field(pattern=r"^([A-Z][A-Z0-9_]{0,63})?$")
    """Name of the environment variable that holds the key, never the key itself; empty sends none."""
    max_tokens: int = Field(ge=1, le=4096)
    """Longest answer, in tokens."""
    timeout_seconds: float = Field(gt=0, le=3600)
    """Longest wait for one answer."""
    retries: int = Field(ge=0, le=20)
    """New tries of one question that failed."""
    concurrency: int = Field(ge=1, le=256)
    """Questions on their way at a time."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        ours = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if not ours or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("http://host/path or https://host/path, without user, password and query")
        return url.rstrip("/")


class Token(NamedTuple):
    """One token of an answer, and what might have stood in its place."""

    text: str
    alternatives: tuple[tuple[str, float], ...]
    """(token, log-probability in nats) of the likeliest ones, the token itself among them."""


class Reply(NamedTuple):
    """What a model answered."""

    text: str
    tokens: tuple[Token, ...]
    """Empty where the endpoint gives no log-probabilities."""
    finished: bool = True
    """Whether it ended by itself, and not at `max_tokens`."""


@dataclass
class _Manners:
    """What the endpoint has asked for so far."""

    silent_until: float = 0.0
    """The event loop's time before which nothing is to be sent."""
    alternatives: bool = True
    """Whether log-probabilities are asked for; an endpoint may refuse that."""


def key_of(endpoint: Endpoint, where: str) -> str | None:
    """The key that the environment holds for an endpoint; None where it needs none.

    Args:
        endpoint: names the variable.
        where: the section of params.yaml the endpoint stands in, for the message.

    Raises:
        UserError: the variable is not set, or what it holds can be no key.
    """
    if not endpoint.key_variable:
        return None
    key = os.environ.get(endpoint.key_variable, "").strip()
    if key and all("!" <= character <= "~" for character in key):
        return key
    raise UserError(
        f"the environment variable {endpoint.key_variable} "
        + ("holds no key: it has spaces, line breaks or letters beyond ASCII" if key else "is not set"),
        where=f"params.yaml: {where}.key_variable",
        expected="the name of a variable that holds the endpoint's key",
        fix=f"export {endpoint.key_variable}=… before the run, or set key_variable to empty where no key is needed",
        exit_code=2,
    )


def ask(
    endpoint: Endpoint,
    key: str | None,
    questions: Sequence[models.Prompt],
    *,
    alternatives: int,
    temperature: float = 0.0,
    draw: int = 0,
    kept: Path,
    where: str,
    title: str,
    log: Log,
) -> list[Reply]:
    """Ask every question that the journal has no answer to, several at a time.

    Args:
        endpoint: whom to ask.
        key: from `key_of`.
        questions: user messages, or conversations; equal ones are asked once.
        alternatives: how many of the likeliest tokens to ask for at each place, with their log-probabilities; an endpoint
            that refuses that is asked without.
        temperature: of what is drawn; 0 is as good as always the same.
        draw: which draw it is: the same question is asked anew for another one.
        kept: the journal, one line for each answer.
        where: the section of params.yaml the endpoint stands in, for messages.
        title: what is being done, for the log.
        log: told of every answer.

    Returns:
        One reply for each question, in their order.

    Raises:
        UserError: the endpoint refuses, answers what is no chat completion, or (TRY_AGAIN) cannot be reached or is busy.
    """
    import asyncio

    names = {text: _name(endpoint, text, alternatives, temperature, draw) for text in questions}
    known = {entry["question"]: _kept_reply(entry) for entry in journal.recover(kept)}
    waiting = [text for text, name in names.items() if name not in known]
    done = len(names) - len(waiting)
    log.start(title, len(names), "question", first=done)

    def keep(text: models.Prompt, reply: Reply) -> None:
        nonlocal done
        journal.append(kept, {"question": names[text], **reply._asdict()})
        known[names[text]] = reply
        done += 1
        log(done)

    async def ask_all() -> None:
        import httpx

        room, manners = asyncio.Semaphore(endpoint.concurrency), _Manners()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=endpoint.concurrency)
        async with (
            httpx.AsyncClient(headers=headers, timeout=endpoint.timeout_seconds, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):

            async def one(text: models.Prompt) -> None:
                async with room:
                    found = await _answer(client, endpoint, key, text, alternatives, temperature, manners, where, log)
                    keep(text, found)

            for text in waiting:
                group.create_task(one(text))

    if waiting:
        try:
            asyncio.run(ask_all())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return [known[names[text]] for text in questions]


async def _answer(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    key: str | None,
    text: models.Prompt,
    alternatives: int,
    temperature: float,
    manners: _Manners,
    where: str,
    log: Log,
) -> Reply:
    """One question, as often as it takes."""
    import asyncio

    import httpx

    clock, fault = asyncio.get_running_loop().time, ""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": models.messages(text),
        "max_tokens": endpoint.max_tokens,
        "temperature": temperature,
    }
    tries = 0
    while tries <= endpoint.retries:
        while (silence := manners.silent_until - clock()) > 0:
            await asyncio.sleep(silence)
        asked = {"logprobs": True, "top_logprobs": alternatives} if alternatives and manners.alternatives else {}
        asked_to_wait = None
        try:
            async with asyncio.timeout(endpoint.timeout_seconds):  # of the whole answer; httpx counts from byte to byte
                response = await client.post(f"{endpoint.base_url}/chat/completions", json={**body, **asked})
        except (TimeoutError, httpx.TimeoutException):
            fault = f"no answer within {endpoint.timeout_seconds:g} s"
        except httpx.RequestError as error:
            fault = f"no connection ({type(error).__name__})"
        else:
            status = response.status_code
            if status == 200 and (reply := _reply(_content(response, key))) is not None:
                return reply
            if status in (400, 422) and asked:
                if manners.alternatives:
                    log.note("the endpoint gives no log-probabilities: what it says is taken as certain")
                manners.alternatives = False
                continue
            if status == 200:
                fault = "what it answers is no chat completion"
            elif status in (408, 429) or status >= 500:
                fault = f"status {status}"
                asked_to_wait = _retry_after(response.headers.get("retry-after"))
            else:
                raise _refused(endpoint, status, _content(response, key), where)
        if asked_to_wait is not None and asked_to_wait > LONGEST_WAIT:
            fault += f", and to be asked again in {asked_to_wait:.0f} s"
            break
        tries += 1
        if tries <= endpoint.retries:
            if asked_to_wait is not None:  # meant for all that are waiting, this one among them
                manners.silent_until = max(manners.silent_until, clock() + asked_to_wait)
            await asyncio.sleep(min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT))
    broken = fault.startswith("what it answers")
    raise UserError(
        f"the endpoint {endpoint.base_url} does not answer: {fault}",
        where=f"params.yaml: {where}",
        expected="an OpenAI-compatible endpoint" if broken else "an endpoint that answers",
        fix="check base_url: it ends before /chat/completions"
        if broken
        else "check that it is up, and run again: what was answered is kept",
        exit_code=1 if broken else TRY_AGAIN,
    )


def _refused(endpoint: Endpoint, status: int, content: Any, where: str) -> UserError:
    """What no further try would mend."""
    if status in (401, 403):
        return UserError(  # what it says is not repeated: some endpoints quote a part of the key
            f"the endpoint {endpoint.base_url} refuses the key (status {status})",
            where=f"params.yaml: {where}.key_variable",
            expected="a variable that holds a key for this model"
            if endpoint.key_variable
            else "a key, which this endpoint needs",
            fix="check the variable's value: export NAME=…, and key_variable: NAME",
        )
    said = content.get("error") if isinstance(content, dict) else None
    said = said.get("message") if isinstance(said, dict) else said
    quoted = "".join(each if each.isprintable() else " " for each in said)[:200] if isinstance(said, str) else ""
    return UserError(
        f"the endpoint {endpoint.base_url} refuses the question (status {status})" + (f": {quoted}" if quoted else ""),
        where=f"params.yaml: {where}",
        expected=f"a model '{endpoint.model}' that answers at {endpoint.base_url}/chat/completions",
        fix="check base_url and model",
    )


def _content(response: httpx.Response, key: str | None) -> Any:
    """A response's JSON with the key struck out, should it be in there; None where it is no JSON."""
    text = response.text.replace(key, "[key]") if key else response.text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _reply(content: Any) -> Reply | None:
    """The first choice of a chat completion; None where it is none."""
    try:
        choice = content["choices"][0]
        text = choice["message"]["content"] or ""  # None: it has refused, or thought until the tokens were used up
        said = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    finished = choice.get("finish_reason") in (None, "stop")  # not where it was cut off, by a limit or by a filter
    return Reply(text, _tokens(said), finished) if isinstance(text, str) else None


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """The tokens of an answer; none where they are not told in full."""
    try:
        return tuple(
            Token(
                str(each["token"]),
                tuple(
                    {
                        str(other["token"]): float(other["logprob"])
                        for other in [each, *(each.get("top_logprobs") or ())]
                        if math.isfinite(float(other["logprob"]))
                    }.items()
                ),
            )
            for each in logprobs["content"]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _kept_reply(entry: dict[str, Any]) -> Reply:
    return Reply(
        entry["text"],
        tuple(Token(text, tuple((other, value) for other, value in found)) for text, found in entry["tokens"]),
        entry.get("finished", True),  # journals of before it was told
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number, or the date to wait for (RFC 9110, section 10.2.3)."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _name(endpoint: Endpoint, text: models.Prompt, alternatives: int, temperature: float, draw: int) -> str:
    """What a question is called in the journal."""
    told = [endpoint.base_url, endpoint.model, endpoint.max_tokens, alternatives, temperature, draw, text]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()
