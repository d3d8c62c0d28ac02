"""What endpoints are sent and what they answer, for each kind of API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from deepseek_eval.models.rendering import PLAIN_STOP, as_messages, plain_chat
from deepseek_eval.task import Generate, Likelihood, Message, Prompt, Sample, ToolCall

Body = dict[str, Any]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of an endpoint; tokens are None where it does not count them."""

    sample: Sample
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Dialect(Protocol):
    """One kind of API.

    Attributes:
        resource: attributes of the SDK's client that lead to ``create``.
    """

    resource: tuple[str, ...]

    def body(self, model: str, prompt: Prompt, ask: Generate, seed: int) -> Body:
        """A request's body."""
        ...

    def read(self, answer: Any) -> Answer:
        """An answer's meaning. Raises msgspec.ValidationError if it has not the form that was agreed on."""
        ...


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _Call(msgspec.Struct):
    function: _Function


class _ChatMessage(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _ChatChoice(msgspec.Struct):
    message: _ChatMessage
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _ChatAnswer(msgspec.Struct):
    choices: list[_ChatChoice]
    usage: _Usage | None = None


class ChatDialect:
    """OpenAI's ``/chat/completions``.

    Args:
        length_field: how the limit of an answer is called; OpenAI's own models want ``max_completion_tokens``.
    """

    resource: tuple[str, ...] = ("chat", "completions")

    def __init__(self, length_field: str = "max_tokens") -> None:
        self._length = length_field

    def body(self, model: str, prompt: Prompt, ask: Generate, seed: int) -> Body:
        body: Body = {
            "model": model,
            "messages": as_messages(prompt),
            self._length: ask.max_tokens,
            "temperature": ask.temperature,
            "seed": seed,
        }
        if ask.stop:
            body["stop"] = list(ask.stop[:4])
        if ask.json_schema is not None:
            form = {"name": "answer", "schema": ask.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if ask.tools:
            body["tools"] = list(ask.tools)
        return body

    def read(self, answer: Any) -> Answer:
        found = msgspec.convert(answer, _ChatAnswer)
        choice = _first(found.choices)
        calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ())
        usage = found.usage or _Usage()
        return Answer(
            sample=Sample(
                text=choice.message.content or "", finish_reason=choice.finish_reason or "stop", tool_calls=calls
            ),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None]
    text_offset: list[int]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None = None


class _TextChoice(msgspec.Struct):
    text: str
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _TextAnswer(msgspec.Struct):
    choices: list[_TextChoice]
    usage: _Usage | None = None


class CompletionDialect:
    """OpenAI's older ``/completions``: text is continued as it is."""

    resource: tuple[str, ...] = ("completions",)

    def body(self, model: str, prompt: Prompt, ask: Generate, seed: int) -> Body:
        stops = list(ask.stop) if isinstance(prompt, str) else [*ask.stop, PLAIN_STOP]
        body: Body = {
            "model": model,
            "prompt": prompt if isinstance(prompt, str) else plain_chat(prompt),
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": seed,
        }
        return {**body, "stop": stops[:4]} if stops else body

    def read(self, answer: Any) -> Answer:
        found = msgspec.convert(answer, _TextAnswer)
        choice, usage = _first(found.choices), found.usage or _Usage()
        return Answer(
            sample=Sample(text=choice.text, finish_reason=choice.finish_reason or "stop"),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    def likelihood_body(self, model: str, text: str) -> Body:
        """Asks for the log-probabilities of a text itself. One token is generated, which some servers insist on."""
        return {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}

    def read_likelihood(self, answer: Any, start: int, end: int) -> tuple[Likelihood, int | None]:
        """(of the characters from ``start`` to ``end``, tokens of the prompt). Raises msgspec.ValidationError where
        there is none."""
        found = msgspec.convert(answer, _TextAnswer)
        logprobs = _first(found.choices).logprobs
        if logprobs is None:
            raise msgspec.ValidationError("the answer has no log-probabilities")
        offsets = logprobs.text_offset
        if not len(offsets) == len(logprobs.token_logprobs) == len(logprobs.tokens) or not offsets:
            raise msgspec.ValidationError("the answer's log-probabilities have different lengths")
        base = offsets[0]
        ends = [*offsets[1:], offsets[-1] + len(logprobs.tokens[-1])]
        inside = [
            i
            for i, (first, last) in enumerate(zip(offsets, ends, strict=True))
            if last - base > start and first - base < end and logprobs.token_logprobs[i] is not None
        ]
        if not inside:
            raise msgspec.ValidationError("the answer does not echo the text that was sent")
        values = [logprobs.token_logprobs[i] or 0.0 for i in inside]
        tops = logprobs.top_logprobs
        greedy = tops is not None and all(
            value >= max((tops[i] or {}).values(), default=0.0) - 1e-9 for i, value in zip(inside, values, strict=True)
        )
        usage = found.usage or _Usage()
        return Likelihood(logprob=sum(values), tokens=len(values), greedy=greedy), usage.prompt_tokens


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class _AnthropicUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _AnthropicAnswer(msgspec.Struct):
    content: list[_Block]
    stop_reason: str | None = None
    usage: _AnthropicUsage | None = None


class AnthropicDialect:
    """Anthropic's ``/v1/messages``. It takes no seed, and since version 2026-10-21 of the API no temperature."""

    resource: tuple[str, ...] = ("messages",)

    def body(self, model: str, prompt: Prompt, ask: Generate, seed: int) -> Body:
        turns: Sequence[Message] = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
        body: Body = {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns if turn.role != "system"],
            "max_tokens": ask.max_tokens,
        }
        stops = [stop for stop in ask.stop if stop.strip()]  # it refuses those of white space
        if stops:
            body["stop_sequences"] = stops
        if system:
            body["system"] = system
        if ask.tools:
            body["tools"] = [_anthropic_tool(tool["function"]) for tool in ask.tools]
        return body

    def read(self, answer: Any) -> Answer:
        found = msgspec.convert(answer, _AnthropicAnswer)
        usage = found.usage or _AnthropicUsage()
        reason = found.stop_reason or "end_turn"
        return Answer(
            sample=Sample(
                text="".join(block.text for block in found.content if block.type == "text"),
                finish_reason={"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}.get(reason, reason),
                tool_calls=tuple(
                    ToolCall(block.name, json.dumps(block.input, ensure_ascii=False))
                    for block in found.content
                    if block.type == "tool_use"
                ),
            ),
            prompt_tokens=usage.input_tokens,
            completion_tokens=usage.output_tokens,
        )


def _anthropic_tool(function: Mapping[str, Any]) -> Body:
    return {
        "name": function["name"],
        "description": function.get("description", ""),
        "input_schema": function.get("parameters", {"type": "object", "properties": {}}),
    }


def _first(choices: list[Any]) -> Any:
    if not choices:
        raise msgspec.ValidationError("the answer has no choices")
    return choices[0]
