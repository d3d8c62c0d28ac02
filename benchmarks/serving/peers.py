"""Other servers with the same model file, for the same clients: llama.cpp's and vLLM's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.serving.server import HOST, ServerProcess, free_port, running
from deepseek.benchmark.peers.base import INSTALL_FOLDER, PeerSettings, configured, missing
from deepseek.benchmark.peers.files import exported, requantized
from deepseek.benchmark.peers.llama_build import find_build
from deepseek.errors import BenchmarkError

CONTEXT = 512
"""Tokens per request that a peer must hold."""


@contextlib.contextmanager
def llama_cpp(settings: PeerSettings, name: str) -> Iterator[ServerProcess]:
    """llama.cpp's own server, in Q8_0, with a slot for every request."""
    build = find_build()
    program = None if build is None else build / "llama-server"
    if program is None or not program.is_file():
        raise BenchmarkError(f"llama.cpp: {missing('llama-cpp')}")
    port = free_port()
    slots = settings.max_requests
    command = [
        *(str(program), "--model", str(requantized(settings, "Q8_0")), "--alias", name),
        *("--threads", str(settings.threads), "--parallel", str(slots), "--ctx-size", str(slots * CONTEXT)),
        *("--flash-attn", "on", "--no-webui", "--host", HOST, "--port", str(port)),
    ]
    with running("llama-server, Q8_0", command, port, ready="/health") as server:
        yield server


@contextlib.contextmanager
def vllm(settings: PeerSettings, name: str) -> Iterator[ServerProcess]:
    """vLLM's OpenAI server, in bfloat16: it multiplies no integers of this model on CPUs."""
    python = configured("vllm") or (INSTALL_FOLDER / "vllm/bin/python").absolute()
    if not python.is_file():
        raise BenchmarkError(f"vLLM: {missing('vllm')}")
    port = free_port()
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(_with_tokenizer(settings))),
        *("--served-model-name", name, "--dtype", "bfloat16", "--max-model-len", str(CONTEXT)),
        *("--max-num-seqs", str(settings.max_requests), "--no-enable-prefix-caching", "--disable-log-stats"),
        *("--uvicorn-log-level", "warning", "--host", HOST, "--port", str(port)),
    ]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    with running("vLLM, bf16", command, port, ready="/health", environment=environment) as server:
        yield server


def _with_tokenizer(settings: PeerSettings) -> Path:
    """The exported weights with a tokenizer beside them, which transformers reads from the GGUF file."""
    folder = exported("bf16", settings)
    if not (folder / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(settings.model.parent), gguf_file=settings.model.name)
        tokenizer.save_pretrained(folder)
    return folder


SERVERS: Mapping[str, Callable[[PeerSettings, str], contextlib.AbstractContextManager[ServerProcess]]] = {
    "llama.cpp": llama_cpp,
    "vllm": vllm,
}
