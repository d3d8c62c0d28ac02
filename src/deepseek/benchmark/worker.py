"""Our engine as a benchmark worker: `python -m deepseek.benchmark.worker` (see :mod:`deepseek.benchmark.process`).

Questions, each with an ``op``: ``load`` (the fields of an EngineConfig), ``run`` (prompts as token ids), ``fill``
(decode behind repeated keys and values), ``chat`` (texts to token ids), ``memory``, ``bandwidth``, ``export`` (the
weights as a Hugging Face folder for other engines).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from deepseek.attention.policy import policy_of
from deepseek.attention.stats import AttentionStats
from deepseek.benchmark.process import peak_memory
from deepseek.config import EngineConfig
from deepseek.engine.events import GenerateRequest, TokenEvent
from deepseek.errors import BenchmarkError, DeepSeekError
from deepseek.sampling import SamplingParams
from deepseek.threads import wait_politely

if TYPE_CHECKING:
    from deepseek.engine.encoder import EncoderEngine
    from deepseek.engine.engine import Engine
    from deepseek.engine.load import LoadedEngine


class Worker:
    """Answers questions about one engine."""

    def __init__(self) -> None:
        self._loaded: LoadedEngine | None = None
        self._config = EngineConfig()
        self._count = 0

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one question. Raises DeepSeekError."""
        match message.get("op"):
            case "load":
                return self._load(message["config"])
            case "run":
                return self._run(message["prompts"], message["output"], ignore_eos=message["ignore_eos"])
            case "chat":
                return {"prompts": [self._chat(text) for text in message["texts"]]}
            case "fill":
                return self._fill(message["beginning"], message["tokens"], message["output"])
            case "memory":
                return {"peak_memory_bytes": peak_memory()}
            case "bandwidth":
                return {"bandwidth": _bandwidth(message["threads"], message["device"])}
            case "export":
                return _export(Path(message["model"]), message["dtype"], Path(message["folder"]))
        raise BenchmarkError(f"unknown question {message.get('op')!r}.")

    @property
    def loaded(self) -> LoadedEngine:
        """Raises BenchmarkError before an engine is loaded."""
        if self._loaded is None:
            raise BenchmarkError("no engine is loaded.")
        return self._loaded

    def _load(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        from deepseek.engine.load import load_engine

        self._config = msgspec.convert(settings, EngineConfig)
        self._loaded = load_engine(self._config)
        info = msgspec.to_builtins(self._loaded.info)
        assert isinstance(info, dict)
        return {**info, **cache_sizes(self._loaded.engine)}

    def _run(self, prompts: list[list[int]], output: int, *, ignore_eos: bool) -> dict[str, Any]:
        """Send all prompts at once and read the clock after every step. ``read`` is what sparse attention did since all
        had their first token."""
        engine = self.loaded.engine
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=ignore_eos)
        for prompt in prompts:
            self._count += 1
            engine.add(GenerateRequest(f"bench-{self._count}", prompt, params))
        start = time.perf_counter()
        first: dict[str, float] = {}
        times: list[float] = []
        counted = engine.stats().attention
        while engine.has_work:
            prefilling = len(first) < len(prompts)
            events = engine.step()
            now = time.perf_counter() - start
            for event in events:
                if not isinstance(event, TokenEvent) or event.token_id is None:
                    raise BenchmarkError(f"a request failed: {getattr(event, 'error', None)}")
                first.setdefault(event.request_id, now)
                times.append(now)
            if prefilling:
                counted = engine.stats().attention
        begun = max(first.values())
        return {
            "first": begun,
            "total": times[-1],
            "tokens": len(times),
            "after": sum(moment > begun for moment in times),
            "read": difference(counted, engine.stats().attention),
        }

    def _fill(self, beginning: list[int], tokens: int, output: int) -> dict[str, Any]:
        """Decode ``output`` tokens behind ``tokens``, of which ``beginning`` is computed and then repeated. ``read`` is
        what sparse attention did decoding."""
        from deepseek.benchmark.filled import decode_filled
        from deepseek.engine.engine import Engine

        engine = self.loaded.engine
        if not isinstance(engine, Engine):
            raise BenchmarkError("an encoder does not decode.")
        on_gpu = self._config.device != "cpu"
        policy = policy_of(self._config.attention, self._config.attention_error, on_gpu=on_gpu)
        counted = engine.stats().attention
        seconds = decode_filled(engine.model, engine.cache, beginning, tokens, output, engine.page_size, policy)
        return {"seconds": seconds, "tokens": output, "read": difference(counted, engine.stats().attention)}

    def _chat(self, text: str) -> list[int]:
        tokenizer = self.loaded.tokenizer
        if tokenizer.has_chat_template:
            return tokenizer.encode_chat([{"role": "user", "content": text}])
        return tokenizer.encode(text)


def cache_sizes(engine: Engine | EncoderEngine) -> dict[str, int]:
    """Numbers in a token's keys and values, bytes that they take, and those of the index per page, over all layers."""
    from deepseek.engine.engine import Engine

    if not isinstance(engine, Engine):
        return {"kv_token_elements": 0, "kv_token_bytes": 0, "index_page_bytes": 0}
    index = engine.model.index_page_bytes()
    page = engine.model.page_bytes(engine.page_size)
    return {
        "kv_token_elements": sum(spec.elements for spec in engine.model.cache_specs),
        "kv_token_bytes": (page - index) // engine.page_size,
        "index_page_bytes": index,
    }


def difference(before: AttentionStats, after: AttentionStats) -> dict[str, float]:
    """What was counted between two moments."""
    return {field.name: getattr(after, field.name) - getattr(before, field.name) for field in fields(AttentionStats)}


def _bandwidth(threads: int | None, device: str) -> float:
    import torch

    if device != "cpu":
        from deepseek.benchmark.gpu_rates import copy_bandwidth

        return copy_bandwidth(device)
    from deepseek.machine import measure_bandwidth

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return measure_bandwidth()


def _export(model: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """Write the dequantized weights of ``model`` as config.json and safetensors, for engines that read only those."""
    import torch
    from safetensors.torch import save_file

    from deepseek.hub.open import open_checkpoint

    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    checkpoint = open_checkpoint(model)
    try:
        tied = bool(checkpoint.config.get("tie_word_embeddings"))
        names = [name for name in checkpoint.shapes if not (tied and name == "lm_head.weight")]
        tensors = {name: checkpoint.load(name, torch_dtype).contiguous() for name in names}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {**checkpoint.config, "torch_dtype": str(torch_dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    finally:
        checkpoint.close()
    return {"folder": str(folder)}


def main(questions: IO[str], replies: IO[str]) -> None:
    """Answer every line of ``questions`` with one line."""
    worker = Worker()
    for line in questions:
        try:
            reply = worker.answer(json.loads(line))
        except DeepSeekError as error:
            reply = {"error": str(error), "kind": type(error).__name__}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    wait_politely()
    # Only replies may go to standard output: what libraries print there goes to standard error.
    reply_stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.stdin, reply_stream)
