from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.conftest import MODEL
from tests.serve.test_errors import error_of


def test_a_prompt_is_read_as_completions_read_it(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": MODEL, "prompt": "hé"}).json()
    used = http.post("/v1/completions", json={"model": MODEL, "prompt": "hé"}).json()["usage"]["prompt_tokens"]
    assert answer["count"] == len(answer["tokens"]) == used
    assert answer["max_model_len"] == 2048
    bare = http.post("/tokenize", json={"prompt": "hé", "add_special_tokens": False, "return_token_strs": True}).json()
    assert bare["tokens"] == list("hé".encode())
    assert bare["token_strs"] == ["h", "\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    "extra", [{}, {"add_generation_prompt": False}, {"continue_final_message": True}], ids=["ask", "bare", "continue"]
)
def test_messages_are_read_as_chat_reads_them(http: httpx.Client, extra: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
    answer = http.post("/tokenize", json={"messages": messages} | extra).json()
    chat = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages} | extra).json()
    assert answer["count"] == chat["usage"]["prompt_tokens"]


def test_there_and_back(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": "量子 👋", "add_special_tokens": False}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "量子 👋"}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "wish": 1}, 400, "wish"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [260]}, 400, "tokens"),
        ("/detokenize", {"tokens": ["1"]}, 400, "tokens[0]"),
        ("/detokenize", {}, 400, "tokens"),
    ],
)
def test_what_cannot_be_read_is_named(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    assert error_of(http.post(path, json=body), status)["param"] == param
