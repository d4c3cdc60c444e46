"""The endpoint: keys, patience, pace, costs, and what is kept; against servers of this process."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from unweave.describe.judge.endpoint import Endpoint, EndpointSettings, Message, Reply
from unweave.errors import UserError

ASKED = [Message("user", "hello")]


def answer(text: str, **usage: int) -> bytes:
    usage = usage or {"prompt_tokens": 10, "completion_tokens": 2}
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


class Server:
    """Replies of a list, one after the other; an error is raised instead."""

    def __init__(self, *replies) -> None:
        self.replies, self.seen = list(replies), []

    def __call__(self, url, headers, body, timeout):
        self.seen.append((url, dict(headers), json.loads(body), timeout))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Reply) else Reply(200, {}, reply)


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def endpoint(server, store, clock=None, **changes) -> Endpoint:
    clock = clock or Clock()
    settings = EndpointSettings(base_url="https://judge.test/v1", model="m", **changes)
    return Endpoint(settings, store, transport=server, sleep=clock.sleep, clock=clock)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")


def test_the_key_goes_into_one_header_and_is_kept_nowhere(tmp_path):
    server = Server(answer("hi"))
    assert endpoint(server, tmp_path).ask(ASKED, most_tokens=7) == "hi"
    url, headers, body, timeout = server.seen[0]
    assert url == "https://judge.test/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 7,
        "temperature": 0,
    }  # fmt: skip
    assert timeout == 60.0
    assert all("secret-key" not in path.read_text() for path in tmp_path.iterdir())


def test_what_was_answered_is_not_asked_again(tmp_path):
    one = endpoint(Server(answer("hi"), answer("other")), tmp_path)
    assert one.ask(ASKED, most_tokens=7) == "hi"
    again = endpoint(Server(), tmp_path)
    assert again.ask(ASKED, most_tokens=7) == "hi"
    assert (again.costs.calls, again.costs.kept) == (0, 1)
    assert one.ask(ASKED, most_tokens=8) == "other"


def test_a_busy_server_is_asked_again_when_it_wishes(tmp_path):
    clock = Clock()
    server = Server(
        Reply(429, {"retry-after": "7"}, b"slow down"), Reply(503, {}, b""), TimeoutError(),
        b"no json", answer("hi"),
    )  # fmt: skip
    one = endpoint(server, tmp_path, clock, per_minute=1e9)
    assert one.ask(ASKED, most_tokens=7) == "hi"
    waited = [seconds for seconds in clock.slept if seconds > 0.1]
    assert waited == [7.0, 2.0, 4.0, 8.0]
    assert one.costs.again == 4


def test_no_server_makes_one_wait_for_long(tmp_path):
    clock = Clock()
    server = Server(Reply(429, {"retry-after": "86400"}, b""), answer("hi"))
    endpoint(server, tmp_path, clock).ask(ASKED, most_tokens=7)
    assert max(clock.slept) == 60.0


def test_a_refusal_is_final_and_says_why_without_the_key(tmp_path):
    server = Server(Reply(401, {}, b'{"error": "bad key\x1b[2J"}'))
    with pytest.raises(UserError, match=r"refuses the question \(status 401") as error:
        endpoint(server, tmp_path).ask(ASKED, most_tokens=7)
    assert "\x1b" not in str(error.value)
    assert "secret-key" not in str(error.value)
    assert len(server.seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stays_silent_is_given_up(tmp_path):
    server = Server(*[ConnectionResetError()] * 3)
    with pytest.raises(UserError, match="did not answer in 3 tries"):
        endpoint(server, tmp_path, tries=3).ask(ASKED, most_tokens=7)
    assert len(server.seen) == 3


def test_an_endless_or_shapeless_answer_is_none(tmp_path):
    huge = answer("x" * 1_000_001)
    bad = [huge, b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}']
    with pytest.raises(UserError, match="did not answer"):
        endpoint(Server(*bad), tmp_path, tries=4).ask(ASKED, most_tokens=7)


def test_questions_go_out_no_faster_than_allowed(tmp_path):
    clock = Clock()
    one = endpoint(Server(*[answer("x")] * 4), tmp_path, clock, per_minute=30)
    for at in range(4):
        one.ask([Message("user", str(at))], most_tokens=7)
    assert clock.now == pytest.approx(6.0)


def test_costs_are_counted_by_what_the_server_says(tmp_path):
    server = Server(
        answer("a", prompt_tokens=1_000, completion_tokens=100), answer("b", prompt_tokens=-5)
    )
    one = endpoint(server, tmp_path, price_in=2.0, price_out=10.0)
    one.ask(ASKED, most_tokens=7)
    one.ask([Message("user", "more")], most_tokens=7)
    assert (one.costs.calls, one.costs.tokens_in, one.costs.tokens_out) == (2, 1_000, 100)
    assert one.costs.price == pytest.approx(0.003)


def test_a_key_is_asked_for_and_never_sent_in_the_open(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="over an open line"):
        Endpoint(EndpointSettings(base_url="http://judge.test/v1"), tmp_path)
    with pytest.raises(UserError, match="no address"):
        Endpoint(EndpointSettings(base_url="file:///etc"), tmp_path)
    Endpoint(EndpointSettings(base_url="http://judge.test/v1", key_variable=None), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "a\nb")
    with pytest.raises(UserError, match="odd characters"):
        Endpoint(EndpointSettings(), tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        Endpoint(EndpointSettings(), tmp_path)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        status, headers, body = self.server.replies.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served():
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    server.replies, server.keys = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_real_server_is_spoken_to_and_its_redirects_are_not_followed(served, tmp_path):
    served.replies += [
        (429, {"Retry-After": "0"}, b"{}"),
        (200, {}, answer("hi")),
        (302, {"Location": f"http://127.0.0.1:{served.server_port}/elsewhere"}, b""),
    ]
    settings = EndpointSettings(base_url=f"http://127.0.0.1:{served.server_port}/v1", tries=2)
    one = Endpoint(settings, tmp_path, sleep=lambda seconds: None)
    assert one.ask(ASKED, most_tokens=7) == "hi"
    with pytest.raises(UserError, match="status 302"):
        one.ask([Message("user", "more")], most_tokens=7)
    assert served.keys == ["Bearer secret-key"] * 3


def test_a_server_that_is_not_there_is_given_up(tmp_path):
    settings = EndpointSettings(base_url="http://127.0.0.1:9/v1", tries=2, timeout=2)
    with pytest.raises(UserError, match="did not answer in 2 tries"):
        Endpoint(settings, tmp_path, sleep=lambda seconds: None).ask(ASKED, most_tokens=7)
