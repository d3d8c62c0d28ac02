"""Endpoints that fail, hang, answer nonsense or rate-limit: over HTTP, with the real SDKs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.eval.scripted import addition

from deepseek.errors import ConfigurationError, EvaluationError, SpendingCapError
from deepseek_eval.models.endpoint import EndpointModel
from deepseek_eval.models.spending import Spending
from deepseek_eval.task import Choose, Generate, Item, Measure, Message, Output

Reply = tuple[int, Any, dict[str, str]]


class Endpoint:
    """A server on this machine that replies as a function says."""

    def __init__(self, reply: Callable[[str, dict[str, Any]], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.busiest = self._busy = 0
        endpoint, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.bodies.append(body)
                    endpoint.times.append(time.monotonic())
                    endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                    endpoint._busy += 1
                    endpoint.busiest = max(endpoint.busiest, endpoint._busy)
                status, content, headers = reply(self.path, body)
                with lock:
                    endpoint._busy -= 1
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Serve = Callable[[Callable[[str, dict[str, Any]], Reply]], Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Endpoint] = []

    def start(reply: Callable[[str, dict[str, Any]], Reply]) -> Endpoint:
        servers.append(Endpoint(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def says(text: str | None, **usage: int) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": usage or {"prompt_tokens": 10, "completion_tokens": 5}}, {}


def question(name: str = "0", **more: Any) -> Item:
    return Item(id=name, prompt=(Message("user", f"question {name}"),), ask=Generate(max_tokens=7, **more))


def ask(model: EndpointModel, *items: Item) -> list[Output]:
    found = dict(model.answer(addition(), items))
    return [found[position] for position in range(len(items))]


def test_an_answer_with_its_tokens_and_cost(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint = serve(lambda path, body: says(f"{path} {body['messages'][0]['content']}"))
    model = EndpointModel("m", base_url=endpoint.url, price_in=1.0, price_out=4.0, seed=3)
    (output,) = ask(model, question(stop=("x",)))
    assert output.samples[0].text == "/v1/chat/completions question 0"
    assert (output.prompt_tokens, output.completion_tokens) == (10, 5)
    assert endpoint.headers[0]["authorization"] == "Bearer secret"
    assert output.cost == pytest.approx(30e-6) and model.spending.spent == pytest.approx(30e-6)
    assert output.seconds > 0
    (body,) = endpoint.bodies
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("m", 7, 0.0, ["x"])
    assert model.card.evidence == "re-run" and not model.card.likelihoods


def test_items_are_asked_in_parallel_but_not_too_many(serve: Serve) -> None:
    def reply(path: str, body: dict[str, Any]) -> Reply:
        time.sleep(0.05)
        return says(body["messages"][0]["content"])

    endpoint = serve(reply)
    outputs = ask(EndpointModel("m", base_url=endpoint.url, concurrency=3), *(question(str(i)) for i in range(9)))
    assert [one.samples[0].text for one in outputs] == [f"question {i}" for i in range(9)]
    assert endpoint.busiest == 3


def test_stop_strings_that_the_server_does_not_know_are_cut_here(serve: Serve) -> None:
    endpoint = serve(lambda path, body: says("one END two"))
    (output,) = ask(EndpointModel("m", base_url=endpoint.url), question(stop=("a", "b", "c", "d", "END")))
    assert output.samples[0].text == "one "
    assert len(endpoint.bodies[0]["stop"]) == 4


def test_failures_are_tried_again_and_then_counted(serve: Serve) -> None:
    tries = iter(range(10))
    endpoint = serve(lambda path, body: (500, {"error": "boom"}, {}) if next(tries) < 1 else says("late"))
    (output,) = ask(EndpointModel("m", base_url=endpoint.url, retries=2), question())
    assert output.samples[0].text == "late" and len(endpoint.bodies) == 2
    broken = serve(lambda path, body: (500, {"error": "boom"}, {}))
    (output,) = ask(EndpointModel("m", base_url=broken.url, retries=1), question())
    assert output.error.startswith("HTTP 500") and len(broken.bodies) == 2


def test_retry_after_is_kept_to(serve: Serve) -> None:
    tries = iter(range(10))
    limit = (429, {"error": "slow down"}, {"Retry-After": "2"})
    endpoint = serve(lambda path, body: limit if next(tries) == 0 else says("now"))
    (output,) = ask(EndpointModel("m", base_url=endpoint.url, retries=1), question())
    assert output.samples[0].text == "now"
    assert endpoint.times[1] - endpoint.times[0] >= 2  # its own wait would be below one second


def test_a_hanging_endpoint(serve: Serve) -> None:
    ended = threading.Event()

    def reply(path: str, body: dict[str, Any]) -> Reply:
        ended.wait(20)
        return says("too late")

    endpoint = serve(reply)
    started = time.monotonic()
    (output,) = ask(EndpointModel("m", base_url=endpoint.url, timeout=0.3, retries=0), question())
    ended.set()
    assert output.error == "no answer in time" and time.monotonic() - started < 5


@pytest.mark.parametrize(
    "nonsense",
    [
        "<html>gateway</html>",
        "",
        "[]",
        {"choices": []},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{}]},
        {"error": "oops"},
        {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}},
    ],
)
def test_nonsense_is_no_answer(serve: Serve, nonsense: Any) -> None:
    endpoint = serve(lambda path, body: (200, nonsense, {}))
    (output,) = ask(EndpointModel("m", base_url=endpoint.url), question())
    assert output.error.startswith("the answer makes no sense"), output
    assert not output.samples


def test_a_request_that_is_refused_is_not_repeated(serve: Serve) -> None:
    def reply(path: str, body: dict[str, Any]) -> Reply:
        long = body["messages"][0]["content"] == "question 1"
        return (400, {"error": {"message": "too long"}}, {}) if long else says("yes")

    endpoint = serve(reply)
    outputs = ask(EndpointModel("m", base_url=endpoint.url), question("0"), question("1"), question("2"))
    assert [one.error[:8] for one in outputs] == ["", "HTTP 400", ""]
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_name_ends_the_run(serve: Serve, status: int) -> None:
    endpoint = serve(lambda path, body: (status, {"error": {"message": "who are you?"}}, {}))
    model = EndpointModel("m", base_url=endpoint.url, concurrency=1)
    with pytest.raises(EvaluationError, match="who are you"):
        ask(model, *(question(str(i)) for i in range(50)))
    assert len(endpoint.bodies) == 1


def test_an_endpoint_that_is_gone_ends_the_run() -> None:
    model = EndpointModel("m", base_url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(EvaluationError, match="24 items in a row"):
        ask(model, *(question(str(i)) for i in range(100)))


def test_the_cap_is_never_passed(serve: Serve) -> None:
    endpoint = serve(lambda path, body: says("x", prompt_tokens=10, completion_tokens=7))
    model = EndpointModel("m", base_url=endpoint.url, price_in=0.0, price_out=1000.0, max_cost=0.0351, concurrency=4)
    answered = []
    with pytest.raises(SpendingCapError, match="max-cost"):
        for position, _ in model.answer(addition(), [question(str(i)) for i in range(50)]):
            answered.append(position)
    assert len(answered) == 5 == len(endpoint.bodies)
    assert model.spending.spent == pytest.approx(0.035)


def test_what_is_not_counted_costs_the_most_it_can() -> None:
    spending = Spending(1.0, 1.0, 1.0)
    with spending.reserve("abc", 7) as account:
        assert account.settle(None, None) == pytest.approx(10e-6)
        with pytest.raises(SpendingCapError), spending.reserve("", 1_000_000):
            pass
    with spending.reserve("", 999_990):
        pass


def test_leaving_early_ends_the_workers(serve: Serve) -> None:
    endpoint = serve(lambda path, body: says("x"))
    model = EndpointModel("m", base_url=endpoint.url, concurrency=2)
    answers = model.answer(addition(), [question(str(i)) for i in range(1000)])
    next(iter(answers))
    answers.close()  # type: ignore[attr-defined]
    asked = len(endpoint.bodies)
    time.sleep(0.2)
    assert len(endpoint.bodies) <= asked + 2 < 1000


def test_choices_are_asked_for_by_label(serve: Serve) -> None:
    endpoint = serve(lambda path, body: says("B"))
    model = EndpointModel("m", base_url=endpoint.url)
    choice = Item(id="0", prompt="The sky is", ask=Choose(continuations=(" green", " blue"), labels=("A", "B")))
    wordless = Item(id="1", prompt="x", ask=Choose(continuations=(" a", " b")))
    measure = Item(id="2", prompt="x", ask=Measure())
    labelled, refused, measured = ask(model, choice, wordless, measure)
    assert labelled.samples[0].text == "B"
    (body,) = endpoint.bodies
    assert "The sky is\n\nA. green\nB. blue" in body["messages"][0]["content"]
    assert "log-probabilities" in refused.error and "log-probabilities" in measured.error


def echo(path: str, body: dict[str, Any]) -> Reply:
    """A server that gives a token per character, the likelier the earlier in the alphabet."""
    text = body["prompt"] + "!"
    values = [None, *(-float(ord(char.lower()) - 96) for char in text[1:])]
    logprobs = {
        "tokens": list(text),
        "text_offset": list(range(len(text))),
        "token_logprobs": values,
        "top_logprobs": [None if value is None else {"a": -1.0} for value in values],
    }
    choice = {"text": text, "finish_reason": "length", "logprobs": logprobs}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": len(text) - 1, "completion_tokens": 1}}, {}


def test_likelihoods_where_the_server_echoes(serve: Serve) -> None:
    endpoint = serve(echo)
    model = EndpointModel("m", base_url=endpoint.url, api="completions")
    assert model.card.likelihoods
    choice = Item(id="0", prompt="x", ask=Choose(continuations=("abc", "aa")))
    measure = Item(id="1", prompt="zab", ask=Measure())
    chosen, measured = ask(model, choice, measure)
    assert [(one.logprob, one.tokens, one.greedy) for one in chosen.likelihoods] == [(-6, 3, False), (-2, 2, True)]
    assert [(one.logprob, one.tokens) for one in measured.likelihoods] == [(-3, 2)]  # nothing precedes the first


def test_completions_without_an_echo_are_asked_for_labels(serve: Serve) -> None:
    endpoint = serve(lambda path, body: (200, {"choices": [{"text": " B"}]}, {}))
    model = EndpointModel("m", base_url=endpoint.url, api="completions")
    assert not model.card.likelihoods
    choice = Item(id="0", prompt="x", ask=Choose(continuations=("abc", "aa"), labels=("A", "B")))
    assert ask(model, choice)[0].samples[0].text == " B"


def test_anthropic(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(path: str, body: dict[str, Any]) -> Reply:
        content = [{"type": "text", "text": path}, {"type": "tool_use", "name": "f", "input": {"a": 1}}]
        usage = {"input_tokens": 3, "output_tokens": 2}
        return 200, {"content": content, "stop_reason": "max_tokens", "usage": usage}, {}

    monkeypatch.setenv("MY_KEY", "secret")
    endpoint = serve(reply)
    base = endpoint.url.removesuffix("/v1")
    model = EndpointModel("claude", base_url=base, api="anthropic", api_key_env="MY_KEY")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    turns = (Message("system", "be brief"), Message("user", "hello"))
    (output,) = ask(model, Item(id="0", prompt=turns, ask=Generate(stop=("\n", "END"), tools=(tool,))))
    (body,) = endpoint.bodies
    assert output.samples[0].text == "/v1/messages" and output.samples[0].finish_reason == "length"
    assert output.samples[0].tool_calls[0].arguments == '{"a": 1}'
    assert body["system"] == "be brief" and body["stop_sequences"] == ["END"]
    assert body["tools"][0]["input_schema"] == {"type": "object"}
    assert "secret" in endpoint.headers[0].get("x-api-key", endpoint.headers[0].get("authorization", ""))
    assert "temperature" not in body


def test_fields_besides_the_usual_ones(serve: Serve) -> None:
    endpoint = serve(lambda path, body: says("x"))
    extra = {"temperature": None, "reasoning": {"effort": "low"}, "seed": 5}
    model = EndpointModel("m", base_url=endpoint.url, extra_body=extra, thinking_tokens=100)
    ask(model, question())
    (body,) = endpoint.bodies
    assert "temperature" not in body and body["reasoning"] == {"effort": "low"}
    assert body["seed"] == 5 and body["max_tokens"] == 107


@pytest.mark.parametrize(
    "settings",
    [
        {"api": "grpc"},
        {"base_url": "localhost:8000"},
        {"api_key_env": "NOT_SET_ANYWHERE"},
        {"concurrency": 0},
        {"timeout": 0},
        {"max_cost": 1.0},
        {"price_in": 1.0},
        {"price_in": -1.0, "price_out": 1.0},
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        EndpointModel("m", **{"base_url": "http://127.0.0.1:9/v1", **settings})
