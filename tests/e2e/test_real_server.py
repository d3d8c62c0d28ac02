"""What the README promises, on a real model through real clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import KEY, RealServer

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
CHINESE = {
    "model": "deepseek-v2.1",
    "messages": [{"role": "user", "content": "解释量子计算原理"}],
    "temperature": 0.7,
    "max_tokens": 500,
}


@pytest.fixture
def sdk(server: RealServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, http_client=httpx.Client(trust_env=False))


def test_the_request_of_the_readme_streams(server: RealServer) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = CHINESE | {"stream": True, "max_tokens": 40}
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120, trust_env=False
    ) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len("".join(c["choices"][0]["delta"].get("content", "") for c in chunks)) > 20
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_python_sdk(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="deepseek-v2.1", messages=PARIS, temperature=0, max_tokens=30)  # type: ignore[arg-type]
    assert "Paris" in (answer.choices[0].message.content or "")
    stream = sdk.chat.completions.create(
        model="deepseek-v2.1",
        messages=PARIS,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=30,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content
    completion = sdk.completions.create(model="deepseek-v2.1", prompt="1 2 3 4 5", temperature=0, max_tokens=6)
    assert "6" in completion.choices[0].text
    assert "smollm2" in str(sdk.models.list().data[0].model_dump()["root"]).lower()


def test_many_at_once_through_the_async_sdk(server: RealServer) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        answer = await client.chat.completions.create(
            model="deepseek-v2.1",
            messages=[{"role": "user", "content": f"Repeat the number {number}."}],
            temperature=0,
            max_tokens=12,
        )
        return answer.choices[0].message.content or ""

    async def all_of_them() -> list[str]:
        http = httpx.AsyncClient(trust_env=False, timeout=120)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, http_client=http) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(100, 112)))

    answers = asyncio.run(all_of_them())
    assert sum(str(number) in answer for number, answer in zip(range(100, 112), answers, strict=True)) >= 10


def test_wrong_key_and_wrong_model(server: RealServer, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="sk-wrong").models.list()
    with pytest.raises(openai.NotFoundError) as info:
        sdk.chat.completions.create(model="gpt-x", messages=PARIS)  # type: ignore[arg-type]
    assert info.value.code == "model_not_found"


def test_killing_the_engine_ends_the_stream_and_the_next_request_succeeds(
    server: RealServer, sdk: openai.OpenAI
) -> None:
    stream = sdk.chat.completions.create(
        model="deepseek-v2.1",
        messages=[{"role": "user", "content": "Write a very long story."}],
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    engines = [p for p in psutil.Process(server.process.pid).children() if "deepseek.runtime.worker" in p.cmdline()]
    assert len(engines) == 1
    engines[0].kill()
    with pytest.raises(openai.APIError, match="engine"):
        for _ in stream:
            pass
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = sdk.chat.completions.create(model="deepseek-v2.1", messages=PARIS, temperature=0, max_tokens=20)  # type: ignore[arg-type]
            break
        except openai.InternalServerError as error:
            assert error.status_code == 503
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert "Paris" in (answer.choices[0].message.content or "")


NODE_SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.BASE, apiKey: process.env.KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const answer = await client.chat.completions.create(
  { model: "deepseek-v2.1", messages, temperature: 0, max_tokens: 30 });
let text = "";
const stream = await client.chat.completions.create(
  { model: "deepseek-v2.1", messages, temperature: 0, max_tokens: 30, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
const failures = [];
for (const [key, model] of [["sk-wrong", "deepseek-v2.1"], [process.env.KEY, "gpt-x"]]) {
  try {
    await new OpenAI({ baseURL: process.env.BASE, apiKey: key, maxRetries: 0 })
      .chat.completions.create({ model, messages });
  } catch (error) { failures.push([error.status, error.code]); }
}
console.log(JSON.stringify({ answer: answer.choices[0].message.content, text, failures }));
"""


def test_npm_package(server: RealServer, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js is not installed")
    install = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "openai@7.57.0"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    if install.returncode:
        pytest.skip(f"the npm package cannot be had: {install.stderr.strip().splitlines()[-1:]}")
    script = tmp_path / "client.mjs"
    script.write_text(NODE_SCRIPT, encoding="utf-8")
    environment = {**os.environ, "BASE": f"{server.url}/v1", "KEY": KEY, "NO_PROXY": "127.0.0.1"}
    result = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert "Paris" in seen["answer"]
    assert seen["text"] == seen["answer"]
    assert seen["failures"] == [[401, "invalid_api_key"], [404, "model_not_found"]]


def test_a_batch_as_the_readme_runs_it(sdk: openai.OpenAI, tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    body = {"model": "deepseek-v2.1", "messages": PARIS, "temperature": 0, "max_tokens": 20}
    lines = [
        {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions", "body": body | {"max_tokens": 10 + i}}
        for i in range(12)
    ]
    source.write_text("\n".join(json.dumps(line) for line in lines))
    file = sdk.files.create(file=source, purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    live = sdk.chat.completions.create(model="deepseek-v2.1", messages=PARIS, temperature=0, max_tokens=21)  # type: ignore[arg-type]
    deadline = time.monotonic() + 120
    while batch.status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = sdk.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    output = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
    assert {line["custom_id"] for line in output} == {f"q{i}" for i in range(12)}
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in output}
    whole = live.choices[0].message.content or ""
    assert "Paris" in whole and all(whole.startswith(text) for text in texts.values())
