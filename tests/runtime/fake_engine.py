"""A scripted engine and a byte tokenizer: the process boundary and the server are tested without torch and weights.

A token is a byte; 256 ends an answer, 257 begins a prompt. Around a hole stand 258 and 259, and the letter Q plays
the file separator that ends what fills it. The prompt's text steers the engine:

``[long]``    an answer that goes on until ``max_tokens``; otherwise it is :data:`ANSWER`
``[slow]``    every step takes 20 ms
``[hang]``    steps never return
``[die]``     the process ends by SIGKILL after three tokens
``[raise]``   an exception escapes from the step after three tokens
``[nan]``     the request, and only it, fails after three tokens
``[seed]``    the answer is the request's seed
``[reading]`` the answer is the request's attention and attention_error
``[echo]``    the answer is what follows it in the last message

An embedding counts the text's bytes by their lowest three bits. ``[long]`` gives none until it is cancelled; ``[nan]``
and ``[die]`` fail at once.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import signal
import time
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepseek.attention.stats import AttentionStats
from deepseek.config import EngineConfig
from deepseek.engine.events import (
    EmbeddingInfo,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    EngineStats,
    GenerateRequest,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprobs,
)
from deepseek.errors import ChatTemplateError, CheckpointError, InvalidRequestError

ANSWER = "Hello, 世界! Quantum 👋 done."
EOS = 256
BOS = 257
VOCAB = 260
MAX_CONTEXT = 2048
DIMENSIONS = 8
ENCODER = "fake-encoder"


@dataclass
class Live:
    request: GenerateRequest
    text: str
    answer: bytes
    max_tokens: int
    done: int = 0
    cached: int = 0
    scheduled_at: float = field(default_factory=time.monotonic)


class FakeEngine:
    """Gives every live request its next byte in each step."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._events: list[EngineEvent] = []
        self._held: set[str] = set()
        self._seen: set[tuple[str, tuple[int, ...]]] = set()
        self.counts = dict.fromkeys(EngineStats.__struct_fields__, 0) | {"pages_total": 100, "pages_free": 100}
        del self.counts["attention"]
        self.sparse_rows = 0

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._events)

    def add(self, request: EngineRequest) -> None:
        if isinstance(request, ScoreRequest):
            scored = request.tokens[request.start :]
            self._events.append(ScoreEvent(request.request_id, [-0.5] * len(scored), [True] * len(scored)))
            return
        if isinstance(request, EmbedRequest):
            self._embed(request)
            return
        if any(not 0 <= token < VOCAB for token in request.prompt):
            raise InvalidRequestError("token id out of range", param="prompt")
        text = bytes(t for t in request.prompt if t < 256).decode("utf-8", "replace")
        answer = str(request.params.seed) if "[seed]" in text else ANSWER
        if "[reading]" in text:
            answer = f"{request.attention} {request.attention_error}"
        self.sparse_rows += len(request.prompt) * (request.attention == "sparse")
        if "[echo]" in (last := text.rpartition("<user>")[2]):
            answer = last.partition("[echo]")[2].partition("</><assistant>")[0]
        key = (request.cache_salt, tuple(request.prompt))
        cached = len(request.prompt) // 64 * 64 if key in self._seen else 0
        self._seen.add(key)
        room = MAX_CONTEXT - len(request.prompt)
        limit = min(request.params.max_tokens or room, room)
        self._live[request.request_id] = Live(request, text, answer.encode(), limit, cached=cached)
        self.counts["prompt_tokens"] += len(request.prompt)
        self.counts["cached_prompt_tokens"] += cached

    def _embed(self, request: EmbedRequest) -> None:
        text = bytes(t for t in request.tokens if t < 256).decode("utf-8", "replace")
        if "[die]" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "[long]" in text:
            self._held.add(request.request_id)
        elif "[nan]" in text:
            self._events.append(TokenEvent(request.request_id, finish_reason="error", error="a state was not finite"))
        else:
            vector = vector_of(text, request.dimensions)
            self._events.append(EmbedEvent(request.request_id, array("f", vector).tobytes(), 0, time.monotonic()))
            self.counts["finished"] += 1
            self.counts["prompt_tokens"] += len(request.tokens)

    def cancel(self, request_id: str) -> None:
        if request_id in self._held:
            self._held.remove(request_id)
            self.counts["cancelled"] += 1
            self._events.append(TokenEvent(request_id, finish_reason="cancelled"))
        if self._live.pop(request_id, None) is not None:
            self.counts["cancelled"] += 1
            self._events.append(TokenEvent(request_id, finish_reason="cancelled"))

    def step(self) -> list[EngineEvent]:
        events, self._events = self._events, []
        texts = [live.text for live in self._live.values()]
        if any("[hang]" in text for text in texts):
            time.sleep(10_000)
        if any("[slow]" in text for text in texts):
            time.sleep(0.02)
        for request_id, live in list(self._live.items()):
            events.append(self._next(request_id, live))
        self.counts["steps"] += 1
        return events

    def _next(self, request_id: str, live: Live) -> TokenEvent:
        if live.done == 3:
            if "[die]" in live.text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "[raise]" in live.text:
                raise RuntimeError("scripted failure")
            if "[nan]" in live.text:
                del self._live[request_id]
                self.counts["failed"] += 1
                return TokenEvent(request_id, finish_reason="error", error="the logits were not finite")
        params = live.request.params
        endless = "[long]" in live.text or params.ignore_eos
        end = live.done >= len(live.answer) and not endless
        token = EOS if end else live.answer[live.done % len(live.answer)]
        live.done += 1
        stop = token == EOS or token in params.stop_token_ids
        reason = "stop" if stop else "length" if live.done >= live.max_tokens else None
        if reason is not None:
            del self._live[request_id]
            self.counts["finished"] += 1
        self.counts["generated_tokens"] += 1
        logprobs = None
        if params.logprobs is not None:
            logprobs = TokenLogprobs(-0.25, [(token, -0.25), (ord("z"), -2.0), (0xE4, -3.0)][: params.logprobs])
        first = live.done == 1
        cached, scheduled_at = (live.cached, live.scheduled_at) if first else (0, 0.0)
        return TokenEvent(request_id, token, stop, logprobs, cached, reason, scheduled_at=scheduled_at)

    def stats(self) -> EngineStats:
        reading = AttentionStats(outputs=self.sparse_rows, estimated_error=0.5 * self.sparse_rows)
        return EngineStats(**self.counts | {"running": len(self._live) + len(self._held)}, attention=reading)


def vector_of(text: str, dimensions: int | None = None) -> list[float]:
    """Of length 1."""
    counts = [0.0] * DIMENSIONS
    for byte in text.encode():
        counts[byte % DIMENSIONS] += 1.0
    counts = counts[:dimensions]
    length = math.hypot(*counts) or 1.0
    return [count / length for count in counts]


@dataclass(frozen=True)
class Loaded:
    engine: FakeEngine
    info: EngineInfo


def load(config: EngineConfig, progress: Callable[[int, int], None]) -> Loaded:
    """The engine factory. ``DEEPSEEK_FAKE_LOAD`` in the environment, or the model file's name, scripts the loading;
    ``DEEPSEEK_FAKE_LIMIT`` is the reason of the context's limit."""
    script = os.environ.get("DEEPSEEK_FAKE_LOAD", "") or Path(config.model).stem
    if script == "broken":
        raise CheckpointError("model.gguf is truncated: delete it and pull it again.")
    if script == "crash":
        os._exit(3)
    if script.startswith("sleep"):
        time.sleep(float(script.removeprefix("sleep")))
    if script == "steps":
        for done in range(1, 21):
            progress(done, 20)
            time.sleep(0.1)
    encoder = config.model == ENCODER
    info = EngineInfo(
        model=ENCODER if encoder else "tiny-fake-1b",
        architecture="FakeForCausalLM",
        vocab_size=VOCAB,
        max_context=64 if encoder else MAX_CONTEXT,
        dtype="float32",
        kv_cache_bytes=2**20,
        kv_cache_tokens=8192,
        weights_bytes=2**20,
        load_seconds=0.1,
        backends={},
        embedding=EmbeddingInfo(dimensions=DIMENSIONS, pooling="mean", shorter=() if encoder else (2, 4)),
        sparse=config.attention != "dense" and not encoder,
        context_limit=os.environ.get("DEEPSEEK_FAKE_LIMIT", "model"),  # type: ignore[arg-type]
        generates=not encoder,
    )
    return Loaded(FakeEngine(), info)


@dataclass
class FakeDetokenizer:
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    @property
    def pending(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if token_id < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeTokenizer:
    """Bytes, with the interface of ``deepseek.tokenizer.tokenizer.Tokenizer``."""

    vocab_size = VOCAB
    bos_token_id: int | None = BOS
    eos_token_ids = frozenset({EOS})
    has_chat_template = True
    chat_templates = ("<tool_call> <think> enable_thinking",)
    special_ids = frozenset({EOS, BOS})

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    fim_end_ids = frozenset({258, 259, ord("Q")})

    def encode_fim(self, before: str | Sequence[int], behind: str) -> list[int]:
        start = before.encode() if isinstance(before, str) else before
        return [BOS, *start, 258, *behind.encode(), 259]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Any = None,
        template_kwargs: Any = None,
    ) -> str:
        if any("[template]" in (m["content"] or "") for m in messages):
            raise ChatTemplateError("the template refuses this conversation")
        calls = {id(m): json.dumps(m["tool_calls"]) for m in messages if m.get("tool_calls")}
        text = "<tools>" + json.dumps(tools) + "</>" if tools else ""
        text += "".join(f"<{m['role']}>{m['content'] or ''}{calls.get(id(m), '')}</>" for m in messages)
        if continue_final_message:
            return text.removesuffix("</>")
        opened = "<think>" if (template_kwargs or {}).get("enable_thinking") else ""
        return text + ("<assistant>" + opened) * add_generation_prompt

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Any = None,
        template_kwargs: Any = None,
    ) -> list[int]:
        text = self.render_chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            template_kwargs=template_kwargs,
        )
        return self.encode(text, add_special_tokens=False)

    def stream(
        self, *, skip_special_tokens: bool = True, continues_text: bool = False, shown: Collection[str] = ()
    ) -> FakeDetokenizer:
        return FakeDetokenizer()
