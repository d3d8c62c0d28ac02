"""Our engine in this process: thousands of items through one full batch, shared beginnings computed once."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from deepseek.constraints import Constraint
from deepseek.engine.events import GenerateRequest, ScoreRequest
from deepseek.errors import ConfigurationError, DeepSeekError, InvalidRequestError
from deepseek.hub.cache import file_sha256
from deepseek.hub.progress import Progress
from deepseek.hub.resolve import resolve
from deepseek.llm import LLM, Completion
from deepseek.runtime.output import TextDelta
from deepseek.sampling import SamplingParams
from deepseek.scoring import Forward, forwards
from deepseek.scoring import Score as Scored
from deepseek_eval.models.rendering import PLAIN_CHAT, PLAIN_STOP, plain_chat
from deepseek_eval.task import (
    Choose,
    Generate,
    Item,
    Likelihood,
    Measure,
    Message,
    ModelCard,
    Output,
    Prompt,
    Sample,
    Task,
    ToolCall,
)
from deepseek_serve.parsing.answer import AnswerParser
from deepseek_serve.parsing.detect import chat_format
from deepseek_serve.parsing.formats import Format, format_named
from deepseek_serve.parsing.prompting import with_tools

PAGE_SIZE = 16
"""Only whole pages are shared. Items and their choices differ after few tokens, so the least size shares most."""
_Request = GenerateRequest | ScoreRequest


@dataclass
class _Asked:
    """An item with the engine; ``forwards`` of one whose continuations are scored."""

    position: int
    item: Item
    forwards: list[Forward] = field(default_factory=list)
    parts: list[Completion | Scored | None] = field(default_factory=list)
    missing: int = 0
    prompt_tokens: int = 0
    started: float = 0.0


class EngineModel:
    """A model that :class:`deepseek.LLM` runs.

    Answers do not depend on what shares the batch, so that a resumed run is the same run: everything is seeded.

    Args:
        model: as :class:`deepseek.config.EngineConfig` has it.
        seed: of answers with a temperature.
        progress: hears of a download.
        **settings: further fields of EngineConfig.

    Raises:
        ConfigurationError: settings that cannot work, an encoder.
        HubError, CheckpointError: the model cannot be had or loaded.
    """

    def __init__(self, model: str, *, seed: int = 0, progress: Progress | None = None, **settings: Any) -> None:
        files = resolve(model, offline=bool(settings.get("offline")), progress=progress)
        settings = {"page_size": PAGE_SIZE, **settings}
        self._llm = LLM(model, seed=seed, **settings)
        if not self._llm.info.generates:
            raise ConfigurationError(f"{model} is an encoder: it continues no text that could be judged.")
        self._seed = seed
        self._calls_made = 0
        self._chats = self._llm.tokenizer.has_chat_template
        self._calls: Format | None = None
        self._shows_tools = False
        self._shown: frozenset[str] = frozenset()
        if self._chats:
            form = chat_format(self._llm.tokenizer, "auto", "auto")
            self._calls, self._shows_tools = form.calls or format_named("hermes"), form.shows_tools
            if self._calls is not None:
                self._shown = form.special.intersection(self._calls.marks.all + self._calls.words)
        self._card = ModelCard(
            name=files.name,
            kind="engine",
            evidence="re-run",
            details={**self._details(settings), "weights_sha256": weights_digest(files.path)},
        )

    @property
    def card(self) -> ModelCard:
        return self._card

    def close(self) -> None:
        del self._llm

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[tuple[int, Output]]:
        asked: dict[int, _Asked] = {}
        refused: list[tuple[int, Output]] = []
        self._calls_made += 1
        for name, result in self._llm.run(self._requests(items, asked, refused), shown=self._shown):
            yield from refused
            refused.clear()
            _, position, part = name.split(".")
            one = asked.get(int(position))
            if one is None:
                continue  # another part of it has failed
            if isinstance(result, DeepSeekError):
                del asked[one.position]
                yield one.position, Output(error=str(result), seconds=time.monotonic() - one.started)
                continue
            one.parts[int(part)] = result
            one.missing -= 1
            if not one.missing:
                del asked[one.position]
                yield one.position, self._output(one)
        yield from refused

    def _requests(
        self, items: Sequence[Item], asked: dict[int, _Asked], refused: list[tuple[int, Output]]
    ) -> Iterator[_Request]:
        """The requests of all items, made when the engine has room. Items that cannot be asked go to ``refused``."""
        for position, item in enumerate(items):
            one = _Asked(position, item, started=time.monotonic())
            try:
                requests = self._requests_of(one)
            except (InvalidRequestError, ConfigurationError) as error:
                refused.append((position, Output(error=str(error))))
                continue
            one.missing = len(requests)
            one.parts = [None] * len(requests)
            asked[position] = one
            yield from requests

    def _requests_of(self, one: _Asked) -> list[_Request]:
        ask, prompt, name = one.item.ask, one.item.prompt, f"{self._calls_made}.{one.position}"
        match ask:
            case Generate():
                tokens = self._prompt(prompt, ask.tools)
                one.prompt_tokens = len(tokens)
                return [
                    GenerateRequest(
                        f"{self._calls_made}.{one.position}.{part}", tokens, self._params(one.item, ask, part)
                    )
                    for part in range(ask.samples)
                ]
            case Choose():
                pairs = [self._pair(prompt, text) for text in ask.continuations]
            case Measure():
                text = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
                pairs = [(self._begin(), self._llm.tokenizer.encode(text, add_special_tokens=False))]
        if not all(after for _, after in pairs):
            raise InvalidRequestError("a continuation to score is empty.")
        one.forwards = forwards(pairs)
        one.prompt_tokens = sum(len(forward.before) + len(forward.after) for forward in one.forwards)
        return [
            ScoreRequest(
                f"{name}.{part}",
                forward.before + forward.after,
                len(forward.before),
                reproducible=True,
                alternatives=forward.alternatives,
            )
            for part, forward in enumerate(one.forwards)
        ]

    def _prompt(self, prompt: Prompt, tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        tokenizer = self._llm.tokenizer
        if isinstance(prompt, str) and not tools:
            return tokenizer.encode(prompt) or self._begin()
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if not self._chats:
            if tools:
                raise ConfigurationError("this model has no chat template, so it cannot be told of tools.")
            return tokenizer.encode(plain_chat(turns))
        messages: list[Mapping[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in turns]
        told = list(tools)
        if told and not self._shows_tools:
            assert self._calls is not None
            messages, told = with_tools(messages, told, self._calls), []
        return tokenizer.encode_chat(messages, tools=told or None)

    def _pair(self, prompt: Prompt, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of what is scored. Text is cut into tokens as a whole, and scored from the first
        token that the prompt alone has not; behind a chat template the continuation is the beginning of a turn."""
        tokenizer = self._llm.tokenizer
        if not isinstance(prompt, str) and self._chats:
            return self._prompt(prompt), tokenizer.encode_continuation(continuation.lstrip(" "))
        text = prompt if isinstance(prompt, str) else plain_chat(prompt)
        if not text:
            return self._begin(), tokenizer.encode(continuation, add_special_tokens=False)
        before, whole = tokenizer.encode(text), tokenizer.encode(text + continuation)
        same = next((i for i, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(before))
        return (whole[:same], whole[same:]) if same else (self._begin(), whole)

    def _begin(self) -> list[int]:
        """What stands before a text of nothing: the model's begin token, or the one that ends answers."""
        begin = self._llm.tokenizer.bos_token_id
        return [min(self._llm.tokenizer.eos_token_ids) if begin is None else begin]

    def _params(self, item: Item, ask: Generate, part: int) -> SamplingParams:
        chat_stop = (PLAIN_STOP,) if not isinstance(item.prompt, str) and not self._chats else ()
        return SamplingParams(
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            stop=tuple(dict.fromkeys((*ask.stop, *chat_stop))),
            seed=zlib.crc32(f"{self._seed}/{item.id}/{part}".encode()),
            constraint=None if ask.json_schema is None else Constraint.json_schema(ask.json_schema),
        )

    def _output(self, one: _Asked) -> Output:
        seconds = time.monotonic() - one.started
        ask = one.item.ask
        samples, generated = [], 0
        for part in one.parts:
            if isinstance(part, Completion):
                generated += len(part.token_ids)
                samples.append(self._sample(part, ask))
        return Output(
            samples=tuple(samples),
            likelihoods=_likelihoods(one),
            prompt_tokens=one.prompt_tokens,
            completion_tokens=generated,
            seconds=seconds,
        )

    def _sample(self, completion: Completion, ask: Generate | Choose | Measure) -> Sample:
        reason = completion.finish_reason or "stop"
        if not isinstance(ask, Generate) or not ask.tools or self._calls is None:
            return Sample(text=completion.text, finish_reason=reason)
        schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in ask.tools}
        piece = AnswerParser(None, self._calls.parser(schemas)).push(
            TextDelta(text=completion.text, finish_reason=completion.finish_reason or "stop")
        )
        return Sample(
            text=piece.content,
            finish_reason=reason,
            tool_calls=tuple(ToolCall(call.name or "", call.arguments) for call in piece.calls),
        )

    def _details(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        info, tokenizer = self._llm.info, self._llm.tokenizer
        templates = "\0".join(tokenizer.chat_templates)
        defaults = msgspec.structs.asdict(self._llm.config)
        return {
            "deepseek": version("deepseek-platform"),
            "architecture": info.architecture,
            "dtype": info.dtype,
            "max_context": info.max_context,
            "backends": sorted(set(info.backends.values())),
            "tokenizer_sha256": tokenizer.fingerprint(),
            "template_sha256": hashlib.sha256(templates.encode()).hexdigest() if self._chats else None,
            "chats": "chat template" if self._chats else PLAIN_CHAT,
            "settings": {name: defaults[name] for name in sorted(settings) if name != "offline"},
        }


def _likelihoods(one: _Asked) -> tuple[Likelihood, ...]:
    """Of the continuations of an item, in their order."""
    found: dict[int, Likelihood] = {}
    for forward, part in zip(one.forwards, one.parts, strict=False):  # an item that generates has no forwards
        assert isinstance(part, Scored)
        for place, scored in forward.by_place(part).items():
            found[place] = Likelihood(logprob=scored.total, tokens=len(scored.logprobs), greedy=scored.is_greedy)
    return tuple(found[place] for place in range(len(found)))


def weights_digest(path: Path) -> str:
    """SHA-256 of a ``.gguf`` file, or of the names and digests of a folder's weights and settings."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".json", ".gguf", ".jinja"):
            digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
