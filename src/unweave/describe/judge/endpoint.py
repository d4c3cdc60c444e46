"""A language model behind an address, as OpenAI's chat completions are spoken by many servers.

1. An answer that is on disk is taken from there: a run that was cut off does not pay twice.
2. Questions go out no faster than allowed; a busy or silent server is asked again after a while, a
   refusal is final.
3. What is answered is read as text, at most so much of it; nothing that it says is followed. The
   key goes into one header, over an encrypted line or to this machine, and nowhere else.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from unweave.artifact.atomic import write_json
from unweave.artifact.hashing import sha256_of_json
from unweave.describe.vocabulary import visible
from unweave.errors import UserError

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses after which it is worth asking again."""
LONGEST_ANSWER = 1_000_000
"""Bytes read of an answer."""
LONGEST_WAIT = 60.0
"""Seconds waited before asking again, whatever the server wishes."""


class EndpointSettings(BaseModel):
    """Where the language model is and how it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["endpoint"] = "endpoint"
    """A server."""
    base_url: str = "https://api.openai.com/v1"
    """What `/chat/completions` is put after."""
    model: str = "gpt-4o-mini"
    """The model's name at the server."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; none for servers that want none."""
    timeout: PositiveFloat = 60.0
    """Seconds waited for an answer."""
    tries: PositiveInt = 5
    """Times that a question is asked before giving up."""
    per_minute: PositiveFloat = 500.0
    """Questions a minute at most."""
    at_once: PositiveInt = Field(default=8, le=64)
    """Questions under way at a time."""
    price_in: NonNegativeFloat = 0.0
    """Price of a million tokens of question, in whatever currency."""
    price_out: NonNegativeFloat = 0.0
    """Price of a million tokens of answer."""


class Message(NamedTuple):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Reply(NamedTuple):
    """What a server sent back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@runtime_checkable
class Transport(Protocol):
    """Whatever carries a question to a server."""

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Reply:
        """Post `body`.

        Raises:
            OSError: nothing came back.
        """
        ...


@dataclass
class Costs:
    """What has been asked for."""

    calls: int = 0
    """Questions that the server answered."""
    kept: int = 0
    """Questions whose answer was on disk."""
    again: int = 0
    """Times that a question had to be put again."""
    tokens_in: int = 0
    """Tokens of the questions answered, as the server counts them."""
    tokens_out: int = 0
    """Tokens of its answers."""
    price: float = 0.0
    """By the prices of the settings."""


class Endpoint:
    """A chat model; see the module."""

    def __init__(
        self,
        settings: EndpointSettings,
        store: Path,
        *,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Answers are kept in `store`.

        Raises:
            UserError: the address is none, the variable of the key is not set, or the key would
                go over an open line.
        """
        self.settings, self.costs = settings, Costs()
        self._store, self._transport = store, transport or _post
        self._sleep, self._clock = sleep, clock
        self._headers = {"Content-Type": "application/json"} | _authorised(settings)
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._lock, self._next = threading.Lock(), clock()

    def ask(self, messages: Sequence[Message], *, most_tokens: int) -> str:
        """The model's answer, from the disk where it has been asked before.

        Raises:
            UserError: the server refuses, or does not answer however often it is asked.
        """
        question = {
            "model": self.settings.model,
            "messages": [message._asdict() for message in messages],
            "max_tokens": most_tokens,
            "temperature": 0,
        }
        path = self._store / f"{sha256_of_json([self._url, question])}.json"
        if path.is_file():
            with self._lock:
                self.costs.kept += 1
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        answer, usage = self._asked(json.dumps(question).encode("utf-8"))
        self._count(usage)
        write_json(path, {"asked": question, "answer": answer, "usage": usage})
        return answer

    def _asked(self, body: bytes) -> tuple[str, dict[str, int]]:
        trouble = ""
        for attempt in range(self.settings.tries):
            self._take_turn()
            wait = min(2.0**attempt, LONGEST_WAIT)
            try:
                reply = self._transport(self._url, self._headers, body, self.settings.timeout)
            except OSError as error:
                trouble = type(error).__name__
            else:
                if reply.status == 200 and (read := _read(reply.body)) is not None:
                    return read
                trouble = f"status {reply.status}: {_shown(reply.body)}"
                if reply.status != 200 and reply.status not in AGAIN:
                    raise UserError(f"{self._url} refuses the question ({trouble})")
                wait = _wished(reply.headers, wait)
            if attempt + 1 < self.settings.tries:
                with self._lock:
                    self.costs.again += 1
                self._sleep(wait)
        raise UserError(
            f"{self._url} did not answer in {self.settings.tries} tries ({trouble}): run again "
            "later, what was answered is kept"
        )

    def _take_turn(self) -> None:
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + 60 / self.settings.per_minute
        if turn > now:
            self._sleep(turn - now)

    def _count(self, usage: Mapping[str, int]) -> None:
        with self._lock:
            costs, settings = self.costs, self.settings
            costs.calls += 1
            costs.tokens_in += usage["prompt_tokens"]
            costs.tokens_out += usage["completion_tokens"]
            costs.price += usage["prompt_tokens"] * settings.price_in / 1e6
            costs.price += usage["completion_tokens"] * settings.price_out / 1e6


def _authorised(settings: EndpointSettings) -> dict[str, str]:
    address = urlsplit(settings.base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"{settings.base_url!r} is no address of a server: begin it with https://")
    if settings.key_variable is None:
        return {}
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise UserError(
            f"The environment variable {settings.key_variable} is not set: put the key of "
            f"{address.hostname} there, or set key_variable to none for a server without"
        )
    if address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(
            f"The key would go to {address.hostname} over an open line: use https, or set "
            "key_variable to none"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"What {settings.key_variable} holds is no key: it has odd characters")
    return {"Authorization": f"Bearer {key}"}


class _Stay(HTTPRedirectHandler):
    """Follows nothing: the key is for one server."""

    def redirect_request(self, *_: object) -> None:
        return None


def _post(url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Reply:
    request = Request(url, data=body, headers=dict(headers), method="POST")
    try:
        with build_opener(_Stay).open(request, timeout=timeout) as answer:
            body = answer.read(LONGEST_ANSWER + 1)
            return Reply(answer.status, _plain(answer.headers.items()), body)
    except HTTPError as error:
        with error:
            body = error.read(LONGEST_ANSWER + 1)
            return Reply(error.code, _plain(error.headers.items()), body)
    except URLError as error:
        raise OSError(str(error.reason)) from error


def _plain(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _read(body: bytes) -> tuple[str, dict[str, int]] | None:
    """Answer and usage, or None where the body does not hold them."""
    if len(body) > LONGEST_ANSWER:
        return None
    try:
        said = json.loads(body)
        answer = said["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if not isinstance(answer, str):
        return None
    usage = said.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return answer, {n: c if isinstance(c := counted.get(n), int) and c >= 0 else 0 for n in names}


def _shown(body: bytes) -> str:
    return visible(body[:200].decode("utf-8", "replace"))


def _wished(headers: Mapping[str, str], otherwise: float) -> float:
    try:
        wish = float(headers.get("retry-after", ""))
    except ValueError:
        return otherwise
    return min(max(wish, 0.0), LONGEST_WAIT)
