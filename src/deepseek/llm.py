"""The offline API: the same engine as the server's, in this process and without sockets."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from deepseek.config import DEFAULT_MODEL, EngineConfig
from deepseek.embedding import check_dimensions, floats
from deepseek.engine.events import (
    INVALID_CONSTRAINT,
    AdapterInfo,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    GenerateRequest,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)
from deepseek.engine.grammar import check
from deepseek.errors import DeepSeekError, EngineError, InvalidRequestError
from deepseek.runtime.output import LogprobEntry, OutputAssembler, TextDelta
from deepseek.sampling import SamplingParams
from deepseek.scoring import Score, forwards
from deepseek.threads import wait_politely

if TYPE_CHECKING:
    from deepseek.engine.encoder import EncoderEngine
    from deepseek.engine.engine import Engine
    from deepseek.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


@dataclass
class Completion:
    """One answer.

    Attributes:
        text: the answer, without the stop string or end token.
        token_ids: the tokens of the text, without the end token.
        finish_reason: ``stop`` or ``length``.
        cached_tokens: prompt tokens found in the prefix cache.
        logprobs: one entry per token when asked for.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    logprobs: list[LogprobEntry] = field(default_factory=list)

    def add(self, event: TokenEvent, delta: TextDelta) -> None:
        """Append what an event brought."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.cached_tokens += event.cached_tokens
        self.finish_reason = delta.finish_reason or self.finish_reason


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    Attributes:
        prompt_tokens: length of the prompt.
        choices: ``params.n`` answers.
    """

    prompt_tokens: int
    choices: list[Completion]

    @property
    def text(self) -> str:
        """The first answer."""
        return self.choices[0].text


class _Asked(NamedTuple):
    """What a call says of how the model is to read."""

    attention: str | None
    attention_error: float | None
    question_tokens: int | None
    adapter: str | None


class LLM:
    """A model in this process. For one thread at a time; many prompts go into one call, which batches them.

    Args:
        model: a local folder or ``.gguf`` file, a built-in name, or a Hugging Face repository id.
        progress: called with (tensors loaded, tensors in all) while weights load.
        **settings: any other field of :class:`deepseek.config.EngineConfig`.

    Raises:
        ConfigurationError, HubError, CheckpointError: the model cannot be loaded; the message says why.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> None:
        wait_politely()
        from deepseek.engine.load import load_engine

        self.config = EngineConfig(model=model, **settings)
        loaded = load_engine(self.config, progress)
        self.info: EngineInfo = loaded.info
        self.tokenizer: Tokenizer = loaded.tokenizer
        self._engine: Engine | EncoderEngine = loaded.engine
        self._next_id = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        attention: str | None = None,
        attention_error: float | None = None,
        question_tokens: int | None = None,
        adapter: str | None = None,
    ) -> list[Generation]:
        """Continue each prompt (text or token ids). Returns one :class:`Generation` per prompt, in order.

        Args:
            prompts: one or several.
            params: for all prompts, or one for each.
            attention, attention_error, question_tokens: as in :class:`deepseek.config.EngineConfig`, for this call.
            adapter: name of a loaded adapter that answers; None for the model alone.

        Raises:
            InvalidRequestError: a prompt or an option that cannot be served. Nothing is generated then.
            EngineError: the model failed on a prompt.
        """
        token_lists = [self._encode(prompt) for prompt in _as_prompts(prompts)]
        each = _params_of_each(params, len(token_lists))
        generations = [
            Generation(len(tokens), [Completion() for _ in range(own.n)])
            for tokens, own in zip(token_lists, each, strict=True)
        ]
        asked = _Asked(attention, attention_error, question_tokens, adapter)
        by_request = self._submit(token_lists, each, asked)
        for event, delta in self._deltas({name: each[prompt] for name, (prompt, _) in by_request.items()}):
            prompt, choice = by_request[event.request_id]
            generations[prompt].choices[choice].add(event, delta)
        return generations

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: Params = None,
        *,
        attention: str | None = None,
        attention_error: float | None = None,
        question_tokens: int | None = None,
        adapter: str | None = None,
    ) -> list[Generation]:
        """Answer a conversation, or each of several: rendered by the model's chat template, then :meth:`generate`."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        return self.generate(
            [self.tokenizer.encode_chat(c) for c in conversations],  # type: ignore[arg-type]
            params,
            attention=attention,
            attention_error=attention_error,
            question_tokens=question_tokens,
            adapter=adapter,
        )

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        attention: str | None = None,
        attention_error: float | None = None,
        question_tokens: int | None = None,
        adapter: str | None = None,
    ) -> Iterator[TextDelta]:
        """Answer one conversation piece by piece, as :meth:`chat`. Closing the iterator cancels the rest."""
        params = params or SamplingParams()
        if params.n != 1:
            raise InvalidRequestError("a stream has one answer; n must be 1.", param="n")
        asked = _Asked(attention, attention_error, question_tokens, adapter)
        by_request = self._submit([self.tokenizer.encode_chat(messages)], [params], asked)
        for _, delta in self._deltas(dict.fromkeys(by_request, params)):
            yield delta

    def score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        attention: str | None = None,
        attention_error: float | None = None,
        adapter: str | None = None,
    ) -> list[Score]:
        """Log-likelihood of each continuation after its context, all in one batch.

        Context and continuation are tokenized separately, so that a continuation's tokens do not depend on its
        context; an empty context counts as the model's begin token. Continuations that differ in their last token alone
        take one forward. ``attention``, ``attention_error`` and ``adapter`` are as in :meth:`generate`.

        Raises:
            InvalidRequestError: lists of unequal length, an empty continuation, or a text too long.
        """
        if len(contexts) != len(continuations):
            raise InvalidRequestError(
                f"score needs one continuation per context: {len(contexts)} and {len(continuations)}.",
                param="continuations",
            )
        pairs = [self._encode_pair(*pair) for pair in zip(contexts, continuations, strict=True)]
        asked = {self._new_id(): forward for forward in forwards(pairs)}
        self._add(
            [
                ScoreRequest(
                    name,
                    forward.before + forward.after,
                    len(forward.before),
                    attention=attention,
                    attention_error=attention_error,
                    adapter=adapter,
                    alternatives=forward.alternatives,
                )
                for name, forward in asked.items()
            ]
        )
        scored: dict[int, Score] = {}
        for event in self._events(set(asked)):
            if isinstance(event, ScoreEvent):
                own = asked[event.request_id]
                scored |= own.by_place(_score(own.after, own.alternatives, event))
            elif isinstance(event, TokenEvent):
                raise EngineError(event.error or "the engine failed")
        return [scored[place] for place in range(len(pairs))]

    def run(
        self, requests: Iterable[GenerateRequest | ScoreRequest], *, window: int = 256, shown: Collection[str] = ()
    ) -> Iterator[tuple[str, Completion | Score | DeepSeekError]]:
        """Results of any number of requests, with their ids, each as soon as it is there.

        ``requests`` is read as the work goes on: ``window`` of them are with the engine at a time, so that its batch is
        full until the last one. Their ids were never used before. ``shown`` are special tokens that are part of the
        answers' texts. A request that is refused or fails gives its error, and the others go on. Closing the iterator
        cancels what is left.
        """
        coming, live = iter(requests), dict[str, _Running]()
        try:
            while True:
                refused = None
                for request in islice(coming, window - len(live)):
                    try:
                        self._engine.add(request)
                    except InvalidRequestError as error:
                        refused = error
                        yield request.request_id, refused
                    else:
                        live[request.request_id] = _Running(request, self.tokenizer, shown)
                if not live and refused is None:
                    return
                for event in self._engine.step():
                    if event.request_id in live and (result := live[event.request_id].take(event)) is not None:
                        del live[event.request_id]
                        self._engine.cancel(event.request_id)  # one that a stop string ended goes on in the engine
                        yield event.request_id, result
        finally:
            self._cancel(list(live))

    def embed(self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None) -> list[array[float]]:
        """A vector of fp32 numbers for each text (or token ids), in order, pooled as :attr:`info` says.

        ``dimensions`` keeps the first so many, for models that were trained for that.

        Raises:
            InvalidRequestError: an empty or too long text, ``dimensions`` that the model does not have.
            EngineError: the model failed on a text.
        """
        made = self.info.embedding
        if made is None:
            raise InvalidRequestError(f"{self.info.model} makes no embeddings.", param="model")
        check_dimensions(made, dimensions)
        requests = [
            EmbedRequest(self._new_id(), self._encode(text), made.pooling, made.normalize, dimensions)
            for text in _as_prompts(texts)
        ]
        self._add(requests)
        vectors: dict[str, array[float]] = {}
        for event in self._events({request.request_id for request in requests}):
            if isinstance(event, EmbedEvent):
                vectors[event.request_id] = floats(event.vector)
            elif isinstance(event, TokenEvent):
                raise EngineError(event.error or "the engine failed")
        return [vectors[request.request_id] for request in requests]

    def load_adapter(self, name: str, folder: str) -> AdapterInfo:
        """Serve the adapter in ``folder``, as peft writes them, as ``name``; one of that name gives way.

        Raises AdapterError with everything that does not fit the model, InvalidRequestError for one too many.
        """
        return self._generating().load_adapter(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Serve it no more. Raises UnknownAdapterError."""
        self._generating().unload_adapter(name)

    def _generating(self) -> Engine:
        from deepseek.engine.engine import Engine

        if not isinstance(self._engine, Engine):
            raise InvalidRequestError(f"{self.info.model} is an encoder, and takes no adapters.", param="model")
        return self._engine

    def stats(self) -> EngineStats:
        """Queue, pages and counters of the engine."""
        return self._engine.stats()

    def _submit(
        self, token_lists: Sequence[list[int]], each: Sequence[SamplingParams], asked: _Asked
    ) -> dict[str, tuple[int, int]]:
        """Queue ``n`` requests per prompt; returns request id -> (prompt index, choice index)."""
        for constraint in {params.constraint for params in each}:
            if constraint is not None:
                check(constraint)
        by_request: dict[str, tuple[int, int]] = {}
        requests = []
        for index, (tokens, params) in enumerate(zip(token_lists, each, strict=True)):
            for choice in range(params.n):
                seed = None if params.seed is None else params.seed + choice
                name = self._new_id()
                by_request[name] = (index, choice)
                single = msgspec.structs.replace(params, n=1, seed=seed)
                requests.append(GenerateRequest(name, tokens, single, **asked._asdict()))
        self._add(requests)
        return by_request

    def _add(self, requests: Sequence[EngineRequest]) -> None:
        """Queue all requests or, if one of them is refused, none."""
        added = []
        try:
            for request in requests:
                self._engine.add(request)
                added.append(request.request_id)
        except InvalidRequestError:
            self._cancel(added)
            raise

    def _cancel(self, names: Sequence[str]) -> None:
        for name in names:
            self._engine.cancel(name)

    def _events(self, names: set[str]) -> Iterator[EngineEvent]:
        """Step until all of ``names`` ended; leaving early cancels the rest."""
        live = set(names)
        try:
            while live:
                for event in self._engine.step():
                    if event.request_id not in names:
                        continue
                    if not isinstance(event, TokenEvent) or event.finish_reason:
                        live.discard(event.request_id)
                    yield event
        finally:
            self._cancel(list(live))

    def _deltas(self, params: Mapping[str, SamplingParams]) -> Iterator[tuple[TokenEvent, TextDelta]]:
        """Events and their text of the requests that are named with their options."""
        assemblers = {name: OutputAssembler(self.tokenizer, own) for name, own in params.items()}
        for event in self._events(set(params)):
            assert isinstance(event, TokenEvent)
            assembler = assemblers[event.request_id]
            if event.finish_reason == "error" and not assembler.stopped:
                if event.error_code == INVALID_CONSTRAINT:
                    raise InvalidRequestError(event.error or "the constraint cannot be kept to", param="constraint")
                raise EngineError(event.error or "the engine failed")
            delta = assembler.push(event)
            if delta.stop_string is not None:
                self._engine.cancel(event.request_id)
            yield event, delta

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _encode_pair(self, context: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
        before = self._encode(context)
        after = (
            self.tokenizer.encode(continuation, add_special_tokens=False)
            if isinstance(continuation, str)
            else list(continuation)
        )
        if not after:
            raise InvalidRequestError("a continuation to score is empty.", param="continuations")
        if not before:
            begin = self.tokenizer.bos_token_id
            before = [min(self.tokenizer.eos_token_ids) if begin is None else begin]
        return before, after

    def _new_id(self) -> str:
        self._next_id += 1
        return str(self._next_id)


class _Running:
    """A request of :meth:`LLM.run`, and its result as far as it is there."""

    def __init__(self, request: GenerateRequest | ScoreRequest, tokenizer: Tokenizer, shown: Collection[str]) -> None:
        self._request = request
        self._completion = Completion()
        if isinstance(request, GenerateRequest):
            self._assembler = OutputAssembler(tokenizer, request.params, shown=shown)

    def take(self, event: EngineEvent) -> Completion | Score | DeepSeekError | None:
        """The result, if this event was the last that it needs."""
        if isinstance(event, ScoreEvent):
            assert isinstance(self._request, ScoreRequest)
            asked = self._request
            return _score(asked.tokens[asked.start :], asked.alternatives, event)
        assert isinstance(event, TokenEvent)
        if event.finish_reason == "error":
            message = event.error or "the engine failed"
            return (InvalidRequestError if event.error_code == INVALID_CONSTRAINT else EngineError)(message)
        self._completion.add(event, delta := self._assembler.push(event))
        return self._completion if delta.finish_reason else None


def _score(after: list[int], alternatives: Sequence[int], event: ScoreEvent) -> Score:
    return Score.of(after, event.logprobs, event.greedy, alternatives, event.alternatives)


def _params_of_each(params: Params, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequestError(f"there are {count} prompts and {len(params)} sampling params.", param="params")
    return list(params)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
