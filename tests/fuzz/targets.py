"""What is fuzzed. A target takes bytes, and either works, or raises what it says it raises; anything else is a bug."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pydantic

from deepseek.errors import ChatTemplateError, CheckpointError, ConfigurationError, InvalidRequestError, TokenizerError
from deepseek.hub.gguf_checkpoint import GGUFCheckpoint
from deepseek.hub.gguf_file import GGUFFile
from deepseek.hub.safetensors_checkpoint import SafetensorsCheckpoint
from deepseek.tokenizer.chat_template import ChatTemplate, TemplateLimits
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_serve.errors import api_error
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.protocol.completions import CompletionRequest
from deepseek_serve.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from tests.tokenizer import tiny

VOCAB = 1000
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Target:
    """One reader of bytes.

    Attributes:
        run: the reader with its promises checked.
        seeds: inputs it takes, from which others are made.
        slow: one input costs milliseconds and more.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    slow: bool = False


def read_gguf(data: bytes) -> None:
    """A GGUF file's header, tensors and tokenizer: CheckpointError, TokenizerError or a refusal of the architecture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        try:
            file = GGUFFile(path)
        except CheckpointError:
            return
        try:
            for tensor in file.tensors.values():
                assert len(file.data(tensor)) <= len(data)
        finally:
            file.close()
        for read in (GGUFCheckpoint, load_tokenizer):
            try:
                read(path)
            except (CheckpointError, TokenizerError, ConfigurationError):
                continue


def read_safetensors(data: bytes) -> None:
    """A safetensors file, every tensor of it."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (Path(folder) / "model.safetensors").write_bytes(data)
        try:
            checkpoint = SafetensorsCheckpoint(folder)
        except (CheckpointError, ConfigurationError):
            return
        for name, shape in checkpoint.shapes.items():
            try:
                assert checkpoint.load(name, torch.float32).shape == torch.Size(shape)
            except (CheckpointError, ConfigurationError):
                continue
        checkpoint.close()


def read_tokenizer_json(data: bytes) -> None:
    """A folder's tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_bytes(data)
        try:
            tokenizer = load_tokenizer(Path(folder))
        except TokenizerError:
            return
        with contextlib.suppress(TokenizerError):
            _round_trip(tokenizer, "a b\u00e9")


@cache
def _tokenizers() -> list[Tokenizer]:
    return [tiny.build(tiny.byte_level()), tiny.build(tiny.sentencepiece())]


def tokenize(data: bytes) -> None:
    """Any text: nothing is lost, and no text of a user becomes a special token."""
    text = data.decode("utf-8", "replace")
    for tokenizer in _tokenizers():
        _round_trip(tokenizer, text)
        tokenizer.encode(text, parse_special=True)


def _round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids)
    stream = tokenizer.stream()
    assert "".join([stream.push(token) for token in ids]) + stream.finish() == whole


def render_template(data: bytes) -> None:
    """A chat template from a model of unknown origin."""
    limits = TemplateLimits(cpu_seconds=0.2, wall_seconds=5.0, max_output=1 << 16)
    template = ChatTemplate(data.decode("utf-8", "replace"), limits)
    try:
        assert len(template.render({"messages": MESSAGES, "add_generation_prompt": True})) <= limits.max_output
    except ChatTemplateError:
        pass
    finally:
        template.close()


def validate_request(data: bytes) -> None:
    """A request body: understood, or refused with a client error that names no inside of ours."""
    for model in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        try:
            body = model.model_validate_json(data)
            if isinstance(body, ChatRequest):
                body.conversation()
                body.sampling(max_tokens=body.token_limit(), logprobs=body.logprob_count(), vocab_size=VOCAB)
            elif isinstance(body, CompletionRequest):
                body.check()
                body.prompts()
                body.sampling(max_tokens=body.token_limit(), logprobs=body.logprobs, vocab_size=VOCAB)
        except (pydantic.ValidationError, InvalidRequestError) as error:
            answer = api_error(error)
            assert 400 <= answer.status < 500
            json.loads(answer.encode())


def _gguf_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        for name, value in tiny.byte_level().items():
            if isinstance(value, list):
                writer.add_array(name, value)
            elif isinstance(value, int):
                writer.add_uint32(name, value)
            else:
                writer.add_string(name, value)
        writer.add_tensor("token_embd.weight", np.zeros((32, 8), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [path.read_bytes()]


def _safetensors_seeds() -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return [struct.pack("<Q", len(text)) + text + bytes(32)]


def _tokenizer_seeds() -> list[bytes]:
    from tests.tokenizer.test_from_folder import byte_level_backend, sentencepiece_backend

    return [byte_level_backend().to_str().encode(), sentencepiece_backend("first").to_str().encode()]


def _request_seeds() -> list[bytes]:
    chat = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "t"}]},
            {"role": "assistant", "content": "p", "prefix": True},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x", "y"],
        "logit_bias": {"5": -100, "6": 1.5},
        "logprobs": True,
        "top_logprobs": 3,
        "n": 2,
        "seed": 7,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = {"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2, "echo": True, "best_of": 1}
    ids = {"model": "m", "prompt": [[1, 2], [3]], "stop": "z", "user_id": "u"}
    return [json.dumps(body).encode() for body in (chat, text, ids, {"tokens": [1, 2]}, {"prompt": "text"})]


TARGETS: Mapping[str, Target] = {
    "gguf": Target(read_gguf, _gguf_seeds),
    "safetensors": Target(read_safetensors, _safetensors_seeds),
    "tokenizer-json": Target(read_tokenizer_json, _tokenizer_seeds, slow=True),
    "tokenizer": Target(
        tokenize, lambda: ["Hello <|im_start|> w\u00f6rld \U0001f600 <s>[TOOL]\u2581".encode(), b"\xff\xfe\x00"]
    ),
    "template": Target(render_template, lambda: [tiny.CHATML.encode(), b"{{ raise_exception('no') }}"], slow=True),
    "request": Target(validate_request, _request_seeds),
}

if __name__ == "__main__":
    print("\n".join(TARGETS))
