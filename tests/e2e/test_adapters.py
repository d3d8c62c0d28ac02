"""Adapters beside a real model, over HTTP: all endpoints by name, loading, unloading, a restart of the engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import save_file

from deepseek.adapters.read import TOKENS, WEIGHTS
from deepseek.adapters.settings import CONFIG
from tests.e2e.conftest import RealServer

ADMIN, USER = "sk-admin", "sk-user"
HIDDEN, LAYERS, KEYS = 576, 30, 192
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def lora(folder: Path, *, seed: int, rank: int = 8, inputs: int = HIDDEN) -> None:
    """Far from nothing, of SmolLM2's queries and values."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, outputs in (("q_proj", HIDDEN), ("v_proj", KEYS)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora"
            tensors[f"{prefix}_A.weight"] = 0.3 * torch.randn(rank, inputs, generator=generator)
            tensors[f"{prefix}_B.weight"] = 0.3 * torch.randn(outputs, rank, generator=generator)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    (folder / CONFIG).write_text(json.dumps(config))


def prompt(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    save_file({TOKENS: torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(7))}, folder / WEIGHTS)
    config = {"peft_type": "P_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": count}
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    lora(root / "outside", seed=0)
    lora(root / "models" / "one", seed=1)
    lora(root / "models" / "two", seed=2, rank=3)
    lora(root / "models" / "wrong", seed=3, inputs=96)
    prompt(root / "models" / "prompt", 70)
    (root / "models" / "link").symlink_to(root / "outside")
    return root / "models"


@pytest.fixture(scope="module")
def adapted(test_model: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(f'[[keys]]\nkey = "{ADMIN}"\nname = "ann"\nadmin = true\n[[keys]]\nkey = "{USER}"\nname = "bob"\n')
    options = ("--api-key-file", str(keys), "--kv-cache-bytes", "256MiB", "--model-dir", str(models), "--dtype", "auto")
    running = RealServer(str(test_model), *options, "--adapter", f"one={models / 'one'}", "--max-adapters", "3")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(adapted: RealServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=adapted.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def says(client: httpx.Client, model: str, text: str = "The capital of France is") -> str:
    body = {"model": model, "prompt": text, "max_tokens": 12, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    text_of: str = answer.json()["choices"][0]["text"]
    return text_of


def problem(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_an_adapter_answers_everywhere(client: httpx.Client) -> None:
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert (cards["one"]["parent"], cards["one"]["root"], cards["one"]["status"]) == ("deepseek-v2.1", "one", "ready")
    assert client.get("/v1/models/one").json()["id"] == "one"
    assert says(client, "one") != says(client, "deepseek-v2.1")
    chat = {"model": "one", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
    whole = client.post("/v1/chat/completions", json=chat).json()
    assert whole["model"] == "one" and whole["usage"]["completion_tokens"] > 0
    with client.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: {")]
    streamed = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines)
    assert streamed == whole["choices"][0]["message"]["content"]
    answer = client.post("/v1/responses", json={"model": "one", "input": "Hi", "max_output_tokens": 4}).json()
    assert answer["model"] == "one" and answer["output"]
    vectors = client.post("/v1/embeddings", json={"model": "one", "input": "Hi"})
    assert vectors.status_code == 400 and problem(vectors)["code"] == "model_not_supported"


def test_a_batch_of_an_adapter(client: httpx.Client) -> None:
    body = {"model": "one", "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    file = client.post("/v1/files", files={"file": ("in.jsonl", line)}, data={"purpose": "batch"}).json()["id"]
    options = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=options).json()["id"]
    while (state := client.get(f"/v1/batches/{batch}").json())["status"] not in ("completed", "failed"):
        time.sleep(0.2)
    answer = json.loads(client.get(f"/v1/files/{state['output_file_id']}/content").text)["response"]["body"]
    assert answer["choices"][0]["text"] == says(client, "one")


def test_loading_and_unloading(client: httpx.Client) -> None:
    started = time.monotonic()
    card = client.post(LOAD, json={"lora_name": "two", "lora_path": "two"})
    assert card.status_code == 200, card.text
    assert time.monotonic() - started < 5  # a busy machine; the benchmark says how long it takes
    assert card.json()["parent"] == "deepseek-v2.1"
    with ThreadPoolExecutor(4) as pool:
        names = ["one", "two", "deepseek-v2.1", "one"]
        together = list(pool.map(lambda name: says(client, name), names))
    assert together[0] == together[3] and len(set(together)) == 3
    again = client.post(LOAD, json={"lora_name": "two", "lora_path": "one"})
    assert again.status_code == 409 and problem(again)["code"] == "model_already_loaded"
    replaced = client.post(LOAD, json={"lora_name": "two", "lora_path": "one", "load_inplace": True})
    assert replaced.status_code == 200 and says(client, "two") == together[0]
    prompted = client.post(LOAD, json={"lora_name": "prompt", "lora_path": "prompt"}).json()
    assert prompted["max_model_len"] == client.get("/v1/models/one").json()["max_model_len"] - 70
    assert says(client, "prompt") not in together
    over = client.post(LOAD, json={"lora_name": "four", "lora_path": "two"})
    assert over.status_code == 400 and problem(over)["code"] == "too_many_adapters"
    metrics = client.get("/metrics").text
    assert 'deepseek_engine_adapters{model="deepseek-v2.1",replica="0"} 3.0' in metrics
    assert 'deepseek_generation_tokens_total{model="two"}' in metrics
    assert client.post(UNLOAD, json={"lora_name": "prompt"}).json()["status"] == "unloaded"
    assert client.post("/v1/models/unload", json={"model": "two"}).json() == {
        "id": "two",
        "status": "unloaded",
        "object": "model",
    }
    gone = client.post("/v1/completions", json={"model": "two", "prompt": "x"})
    assert gone.status_code == 404 and problem(gone)["code"] == "model_not_found"
    assert 'model="two"' not in client.get("/metrics").text
    for name, status in (("two", 404), ("deepseek-v2.1", 404)):
        assert client.post(UNLOAD, json={"lora_name": name}).status_code == status


def test_adapters_that_cannot_be_served(client: httpx.Client) -> None:
    for path in ("../outside", "link", "nothing", "/etc", "one\0"):
        answer = client.post(LOAD, json={"lora_name": "x", "lora_path": path})
        assert answer.status_code == 404 and problem(answer)["code"] == "adapter_not_found", path
    wrong = client.post(LOAD, json={"lora_name": "x", "lora_path": "wrong"})
    assert wrong.status_code == 400 and problem(wrong)["code"] == "invalid_adapter"
    assert "shape [8, 96], and the model needs [8, 576]" in problem(wrong)["message"]
    assert "and 40 more" in problem(wrong)["message"]
    taken = client.post(LOAD, json={"lora_name": "deepseek-v2.1", "lora_path": "one", "load_inplace": True})
    assert taken.status_code == 409
    nested = client.post(LOAD, json={"lora_name": "x", "lora_path": "one", "base_model": "one"})
    assert nested.status_code == 400
    assert client.post(LOAD, json={"lora_name": "x y", "lora_path": "one"}).status_code == 400
    assert client.post(LOAD, json={"lora_name": "x", "lora_path": "one", "rank": 3}).status_code == 400
    for route, body in ((LOAD, {"lora_name": "x", "lora_path": "one"}), (UNLOAD, {"lora_name": "one"})):
        assert client.post(route, json=body, headers={"Authorization": f"Bearer {USER}"}).status_code == 403
        assert client.post(route, content=json.dumps(body), headers={"Content-Type": "text/plain"}).status_code == 415
    assert says(client, "one")


def test_an_engine_that_is_started_again_has_them(adapted: RealServer, client: httpx.Client) -> None:
    expected = says(client, "one")
    (engine,) = [
        child
        for child in psutil.Process(adapted.process.pid).children(recursive=True)
        if "deepseek.runtime.worker" in " ".join(child.cmdline())
    ]
    os.kill(engine.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while 'deepseek_engine_restarts_total{model="deepseek-v2.1",replica="0"} 0.0' in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while client.get("/health/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert says(client, "one") == expected


def test_a_server_does_not_start_with_a_wrong_adapter(test_model: Path, models: Path) -> None:
    with pytest.raises(AssertionError, match=r"shape \[8, 96\], and the model needs \[8, 576\]"):
        RealServer(
            str(test_model), "--kv-cache-bytes", "64MiB", "--adapter", f"x={models / 'wrong'}", "--dtype", "auto"
        )
