"""From a chat request to its prompt, to what its answers must look like, and to who reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError
from deepseek.sampling import SamplingParams
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_serve.config import ServeConfig
from deepseek_serve.generation import check_constraint, off_loop
from deepseek_serve.models import ServedModel
from deepseek_serve.parsing import thinking
from deepseek_serve.parsing.answer import AnswerParser
from deepseek_serve.parsing.calls import Schemas
from deepseek_serve.parsing.detect import ChatFormat, chat_format, opens_thinking
from deepseek_serve.parsing.formats import Format
from deepseek_serve.parsing.grammar import call_grammar, needs_grammar
from deepseek_serve.parsing.prompting import with_calls_as_text, with_tools
from deepseek_serve.parsing.thinking import ThinkParser
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.protocol.tools import Tooling
from deepseek_serve.state import ServerState

_TURNED_OFF = {"enable_thinking": False, "thinking": False}


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """A chat as one model reads it, and how its answers are read.

    Attributes:
        tokens: ids.
        continues: the answers go on the last message.
        form: the format of the calls that may be made; None if none may.
        schemas: the functions that may be called.
        kept: the answers keep to a form, calls too.
        single: they may make one call only.
        thinks: the answers may begin with reasoning.
        opened: the prompt has begun it.
        special: spellings of the model's special tokens.
    """

    tokens: list[int]
    continues: bool
    form: Format | None
    schemas: Schemas
    kept: bool
    single: bool
    thinks: bool
    opened: bool
    special: frozenset[str]

    @property
    def shown(self) -> frozenset[str]:
        """Special tokens that those who read the answers must see."""
        marks = self.form.marks.all + self.form.words if self.form is not None else ()
        return self.special.intersection((*marks, *(thinking.MARKERS if self.thinks else ())))

    def parser(self) -> AnswerParser:
        """Reads one answer."""
        calls = None
        if self.form is not None:
            calls = self.form.parser(self.schemas, kept=self.kept, single=self.single)
        return AnswerParser(ThinkParser(opened=self.opened) if self.thinks else None, calls)

    def constraint(self, body: ChatRequest, tools: Tooling) -> Constraint | None:
        """The form that the answers must have. Raises :class:`InvalidRequestError` for forms that exclude each
        other."""
        asked = body.constraint()
        if self.form is None or (asked is None and not needs_grammar(tools)):
            return asked
        answer = None if asked is None else _schema_of(asked)
        try:
            return call_grammar(self.form, tools, self.special, answer=answer, thinks=self.thinks, opened=self.opened)
        except InvalidRequestError as error:
            raise _of_tools(error, tools.field) from error


def prompt_of(
    config: ServeConfig, model: ServedModel, tokenizer: Tokenizer, body: ChatRequest, tools: Tooling
) -> ChatPrompt:
    """The prompt of a chat that has been checked; takes milliseconds, so call it off the event loop.

    Raises :class:`InvalidRequestError` for what this model cannot do, :class:`ChatTemplateError`.
    """
    form = model.chat_format
    if form is None:
        form = model.chat_format = chat_format(tokenizer, config.tool_parser, config.reasoning_parser)
    messages, add_prompt, continues = body.conversation()
    described = [function.described() for function in tools.functions]
    calls = _format_of_calls(model, form, body, tools)
    whole = body.constraint() is not None and not tools.functions  # the answer has a form from its first character
    kwargs = (_TURNED_OFF if whole and form.variables else {}) | body.template_kwargs()
    told: Sequence[Any] = messages
    if calls is not None and not form.shows_calls:
        told = with_calls_as_text(told, calls)
    if calls is not None and tools.functions and not form.shows_tools:
        told, described = with_tools(told, described, calls), []
    tokens = tokenizer.encode_chat(
        told,
        add_generation_prompt=add_prompt,
        continue_final_message=continues,
        tools=described or None,
        template_kwargs=kwargs,
    )
    opened = form.thinks and opens_thinking(tokenizer, tokens)
    _check_thinking(model, form, body, opened=opened)
    return ChatPrompt(
        tokens=tokens,
        continues=continues,
        form=calls if tools.functions else None,
        schemas={function.name: function.schema_ for function in tools.functions},
        kept=body.constraint() is not None or tools.strict,
        single=tools.single,
        thinks=form.thinks and not whole,
        opened=opened,
        special=form.special,
    )


async def prompt_length(state: ServerState, chat: ChatRequest) -> int:
    """Tokens of a chat's prompt. Raises as :func:`prompt_of`, and an error that says 503 while there is no model."""
    model = state.model(chat.model)
    _, tokenizer = model.generating()
    prompt = await off_loop(state, lambda: prompt_of(state.config, model, tokenizer, chat, chat.tooling()))
    return len(prompt.tokens)


def _format_of_calls(model: ServedModel, form: ChatFormat, body: ChatRequest, tools: Tooling) -> Format | None:
    """The format of calls, None for a chat without any."""
    field = tools.field
    if not tools.functions:
        if form.shows_calls or not any(message.calls for message in body.messages):
            return None
        field = "messages"
    if form.calls is None:
        raise InvalidRequestError(
            f"The model '{model.name}' ({model.real_name}) cannot be given tools: its chat template has no format of "
            "calls that this server knows. Whoever runs the server can name one with --tool-parser.",
            param=field,
            code="unsupported_parameter",
        )
    return form.calls


def _check_thinking(model: ServedModel, form: ChatFormat, body: ChatRequest, *, opened: bool) -> None:
    field = "thinking" if body.thinking is not None else "reasoning_effort"
    if body.thinks and not form.thinks:
        raise InvalidFieldError(field, f"the model '{model.name}' does not think before it answers")
    if body.thinks is False and opened:
        raise InvalidFieldError(field, f"the model '{model.name}' always thinks before it answers")


def _schema_of(asked: Constraint) -> dict[str, Any]:
    """The schema of an answer that makes no calls."""
    if asked.kind == "json_object":
        return {"type": "object"}
    if asked.kind != "json_schema":
        raise InvalidFieldError("structured_outputs", "besides 'tools' an answer can only have the form of JSON")
    try:
        schema = json.loads(asked.source)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidFieldError("structured_outputs", "'json' is no JSON schema")
    return schema


def _of_tools(error: InvalidRequestError, field: str) -> InvalidRequestError:
    """An error of the form as a whole, told of the field whose schemas made it."""
    problem = str(error).removeprefix("Invalid response format: ")
    if problem == str(error):
        return error
    return InvalidRequestError(f"Invalid schema in '{field}': {problem}", param=field, code="invalid_value")


async def check_form(state: ServerState, body: ChatRequest, tools: Tooling, params: SamplingParams) -> None:
    """As :func:`check_constraint`; a schema of a tool that cannot be kept to is named. Raises
    :class:`InvalidRequestError`."""
    if params.constraint is None or not tools.functions:
        await check_constraint(state, body, params)
        return
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(state.checks, state.checker.check, params.constraint)
    except InvalidRequestError as problem:
        for field, constraint in _parts_of_form(body, tools):
            try:
                await loop.run_in_executor(state.checks, state.checker.check, constraint)
            except InvalidRequestError as error:
                raise _of_tools(error, field) from error
        raise _of_tools(problem, tools.field) from problem


def _parts_of_form(body: ChatRequest, tools: Tooling) -> Iterator[tuple[str, Constraint]]:
    """The fields that a form is made of."""
    for place, function in zip(tools.places, tools.functions, strict=True):
        if tools.mode == "required" or function.strict:
            yield f"{place}.parameters", Constraint.json_schema(function.schema_)
    asked = body.constraint()
    if asked is not None:
        yield "response_format", asked
