"""Tools of a chat: what a request says of them, in OpenAI's words and in their older form (``functions``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.strict import Strict

MAX_TOOLS = 128
MAX_CALLS = 128  # of one message
MAX_CALL_ID = 512
NAME = r"^[a-zA-Z0-9_-]{1,64}$"

Mode = Literal["none", "auto", "required"]


def _word_as_type(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _word_as_mode(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


class Function(Strict):
    """A function that the model may call. ``parameters`` is a JSON schema; without one there are no parameters."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_(self) -> dict[str, Any]:
        """The schema of the arguments."""
        if self.parameters:
            return self.parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}

    def described(self) -> dict[str, Any]:
        """What the chat template gets."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class Tool(Strict):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str = Field(pattern=NAME)


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class ToolChoice(Strict):
    """Which tools may or must be called: a word, a function, or some of the tools."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class FunctionChoice(Strict):
    """``function_call`` of the older form: a word or a function."""

    mode: Literal["none", "auto"] | None = None
    name: str | None = Field(default=None, pattern=NAME)


class CalledFunction(Strict):
    """A call that an earlier answer made; ``arguments`` is JSON text, as the model wrote it."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str


class CallOfMessage(Strict):
    """A tool call in a message from the assistant."""

    id: str = Field(min_length=1, max_length=MAX_CALL_ID)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # in what was put together from a stream

    def plain(self) -> dict[str, Any]:
        """What the chat template gets."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


ToolChoiceField = Annotated[ToolChoice, BeforeValidator(_word_as_type)]
FunctionChoiceField = Annotated[FunctionChoice, BeforeValidator(_word_as_mode)]


@dataclass(frozen=True)
class Tooling:
    """The tools of a request, whichever way it named them.

    Attributes:
        functions: those that may be called; empty if none may.
        mode: whether the model decides to call (``auto``) or must (``required``).
        single: at most one call.
        field: the request's field that named them.
        places: the place of each function, for errors.
    """

    functions: tuple[Function, ...] = ()
    mode: Mode = "none"
    single: bool = False
    field: str = "tools"
    places: tuple[str, ...] = ()

    @property
    def strict(self) -> bool:
        """Whether calls must keep to the schema of any of the functions."""
        return self.mode == "required" or any(function.strict for function in self.functions)


def tooling(
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    *,
    parallel: bool | None,
    field: str = "tools",
    choice_field: str = "tool_choice",
) -> Tooling:
    """What may be called. Raises :class:`InvalidRequestError` for a choice that the tools do not allow."""
    _check_names(tools, field)
    kind = choice.type if choice is not None else ("auto" if tools else "none")
    if choice is not None:
        _check_choice(choice, choice_field)
    if not tools and kind not in ("none", "auto"):
        raise _invalid(choice_field, f"'{kind}' is only allowed when '{field}' are given")
    if not tools or kind == "none":
        return Tooling()
    wanted: set[str] | None = None
    mode: Mode = "required" if kind in ("required", "function") else "auto"
    if choice is not None and choice.function is not None:
        wanted = {choice.function.name}
    elif choice is not None and choice.allowed_tools is not None:
        wanted, mode = {tool.function.name for tool in choice.allowed_tools.tools}, choice.allowed_tools.mode
    if unknown := sorted((wanted or set()) - {tool.function.name for tool in tools}):
        raise _invalid(choice_field, f"'{field}' have no function '{unknown[0]}'")
    chosen = [(i, tool.function) for i, tool in enumerate(tools) if wanted is None or tool.function.name in wanted]
    item = "" if field == "functions" else ".function"
    return Tooling(
        tuple(function for _, function in chosen),
        mode,
        parallel is False or kind == "function",
        field,
        tuple(f"{field}[{i}]{item}" for i, _ in chosen),
    )


def _check_names(tools: Sequence[Tool], field: str) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in seen:
            raise _invalid(f"{field}[{index}]", f"there are two functions '{tool.function.name}'")
        seen.add(tool.function.name)


def _check_choice(choice: ToolChoice, field: str) -> None:
    for name in ("function", "allowed_tools"):
        if (getattr(choice, name) is not None) != (choice.type == name):
            wanted = "is required" if choice.type == name else "is not allowed"
            raise _invalid(f"{field}.{name}", f"it {wanted} with type '{choice.type}'")


def _invalid(field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for '{field}': {problem}.", param=field, code="invalid_value")
