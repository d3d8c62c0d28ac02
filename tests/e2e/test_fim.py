"""``suffix`` on real models: one that fills in the middle, and one that was not trained to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest

from deepseek.errors import HubError
from deepseek.hub.resolve import resolve
from tests.e2e.conftest import KEY, RealServer

CODER = "qwen2.5-coder-1.5b-instruct"
BEFORE = 'def fibonacci(n: int) -> int:\n    """The n-th number of 0, 1, 1, 2, 3, 5, ..."""\n'
BEHIND = "\n\n\nprint(fibonacci(10))\n"


def sdk(server: RealServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, http_client=openai.DefaultHttpxClient(trust_env=False)
    )


def test_a_model_without_the_tokens_says_so(server: RealServer) -> None:
    with pytest.raises(openai.BadRequestError, match="does not fill in the middle") as caught:
        sdk(server).completions.create(model="deepseek-v2.1", prompt="a", suffix="c")
    assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")


@pytest.fixture
def coder() -> Iterator[RealServer]:
    try:
        resolve(CODER, offline=True)
    except HubError as error:
        pytest.skip(f"{CODER} is not in the cache: {error}")
    running = RealServer(CODER, "--api-key", KEY, "--dtype", "auto", "--kv-cache-bytes", "512MiB")
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.slow
def test_a_function_gets_its_body(coder: RealServer) -> None:
    options = {"model": "deepseek-v2.1", "prompt": BEFORE, "suffix": BEHIND, "temperature": 0, "max_tokens": 128}
    choice = sdk(coder).completions.create(**options).choices[0]  # type: ignore[call-overload]
    assert choice.finish_reason == "stop"
    program = BEFORE + choice.text + BEHIND
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == ["55"], program + done.stderr
    stream = sdk(coder).completions.create(**options, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text
