"""From a constraint to a grammar that llguidance compiles within limits. Imports no torch.

A constraint comes from a client, so it is untrusted. llguidance counts the work of compiling and of each step, and
gives up at :func:`limits`; it parses recursively, so that what nests is counted here, and compiled on a stack that has
room.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from deepseek.constraints import Constraint, invalid
from deepseek.engine.bounded_schema import JsonLimits, bounded_schema
from deepseek.engine.json_limits import EmbeddedJsonPosition, JsonPosition

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

T = TypeVar("T")

WHITESPACE = r"[ \t]|\r?\n[ \t]{0,32}"
"""Between the parts of JSON at most one space, or one new line and its indentation."""

# "oneOf" is matched as "anyOf": that exactly one alternative fits is not enforced.
_OPTIONS = {"whitespace_pattern": WHITESPACE, "coerce_one_of": True}

MAX_RULES = 1000
_STACK_BYTES = 64 << 20  # a chain of 1000 rules or references needs less than a tenth
_LOCK = threading.Lock()  # the size of new threads' stacks is a global setting

# What may hold a "<" that names no token; the longest match at each place.
_LARK_PIECES = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|\#[^\n]*|/(?:\\.|[^/\\\n])+/|<([^<>\s\[\]]+)>')
# They need a token back, or make the grammar's position irreversible, which drafts rely on.
_LARK_UNSUPPORTED = re.compile(r"\[[^\]]*\b(max_tokens|temperature|stop)\b")
_LARK_RULE = re.compile(r"^\s*[!?]?[A-Za-z_][\w\-]*[^\n\"/]*:", re.MULTILINE)


@dataclass(frozen=True)
class Grammar:
    """What llguidance compiles; where an answer begins, for the limits of JSON that it cannot express."""

    text: str
    start: JsonPosition | EmbeddedJsonPosition | None = None


def limits() -> LLParserLimits:
    """How much work a grammar may cause. With these, hostile grammars end within seconds, and masks in milliseconds."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=1000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def check(constraint: Constraint) -> None:
    """Raise :class:`InvalidRequestError` with what is wrong in a constraint, whatever the vocabulary."""
    with_room(lambda: _check(constraint))


def _check(constraint: Constraint) -> None:
    from llguidance import LLMatcher, LLTokenizer

    if constraint.kind == "grammar" and not constraint.schemas:
        # Special tokens differ between vocabularies: here any name will do.
        problem = LLMatcher.validate_grammar(to_grammar(constraint, None).text, None, limits=limits())
        if problem:
            raise invalid(_readable(problem))
        return
    matcher = compile_matcher(LLTokenizer("byte"), to_grammar(constraint, frozenset()).text)
    matcher.compute_bitmask()  # a grammar that derives nothing shows only here
    if matcher.is_error():
        raise invalid(_readable(matcher.get_error()))


def compile_matcher(tokenizer: Any, grammar: str) -> LLMatcher:
    """A matcher at the beginning of an answer. Raises :class:`InvalidRequestError` for a grammar that is wrong or too
    large."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if matcher.is_error():
        raise invalid(_readable(matcher.get_error()))
    return matcher


def to_grammar(constraint: Constraint, special_tokens: Collection[str] | None) -> Grammar:
    """The constraint as llguidance reads it. Raises :class:`InvalidRequestError` for what is malformed.

    Args:
        special_tokens: the spellings of the vocabulary's special tokens. What a grammar names and is none of them is
            matched as text. None takes every name for a special token.
    """
    from llguidance import LLMatcher

    source = constraint.source
    if "\x00" in source:
        raise invalid("it holds a NUL character.")
    try:
        (source + constraint.schemas).encode()
    except UnicodeEncodeError:
        raise invalid("it holds a lone surrogate, which is not valid Unicode.") from None
    match constraint.kind:
        case "json_object":
            return _json_grammar({"type": "object"})
        case "json_schema":
            return _json_grammar(_parse(source))
        case "regex":
            return Grammar(LLMatcher.grammar_from_regex(source))
        case "choice":
            return Grammar(_choice_grammar(_parse(source)))
        case "grammar":
            return _grammar(constraint, special_tokens)


def with_room(function: Callable[[], T]) -> T:
    """The result of ``function``, called on a stack large enough for what :data:`MAX_RULES` lets nest."""
    result: list[T] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    with _LOCK:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=call, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _json_grammar(schema: Any) -> Grammar:
    from llguidance import LLMatcher

    bounded, json_limits = bounded_schema(schema)
    try:
        text = LLMatcher.grammar_from_json_schema(json.dumps(bounded), overrides=_OPTIONS)  # type: ignore[arg-type]
    except ValueError as error:
        raise invalid(f"{error}.") from None
    return Grammar(text, JsonPosition(json_limits))


def _grammar(constraint: Constraint, special_tokens: Collection[str] | None) -> Grammar:
    """A client's own grammar, or one with rules that derive JSON."""
    text = _lark_grammar(constraint.source, special_tokens)
    limits_of_all = JsonLimits()
    for rule, schema in _parse(constraint.schemas or "{}").items():
        bounded, json_limits = bounded_schema(schema)
        limits_of_all = limits_of_all.union(json_limits)
        text += f"\n{rule}: %json {json.dumps({**bounded, 'x-guidance': _OPTIONS})}"
    marker, first = constraint.json_after, constraint.json_first
    if marker is None and not first:
        return Grammar(text)
    encoded = None if marker is None else marker.encode()
    return Grammar(text, EmbeddedJsonPosition(limits_of_all, encoded, first=first))


def _choice_grammar(choices: Any) -> str:
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise invalid("'choice' must be a list of at least one non-empty string.")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _lark_grammar(source: str, special_tokens: Collection[str] | None) -> str:
    if source.lstrip().startswith("{"):
        raise invalid("a grammar must be in Lark syntax, with a rule 'start'.")
    if len(_LARK_RULE.findall(source)) > MAX_RULES:
        raise invalid(f"the grammar has more than {MAX_RULES} rules.")
    if found := _LARK_UNSUPPORTED.search(_LARK_PIECES.sub("", source)):
        raise invalid(f"the grammar uses '{found[1]}', which is not supported.")

    def piece(found: re.Match[str]) -> str:
        if found[1] is None or special_tokens is None or found[0] in special_tokens:
            return found[0]
        return json.dumps(found[0], ensure_ascii=False)

    return _LARK_PIECES.sub(piece, source)


def _parse(source: str) -> Any:
    try:
        return json.loads(source)
    except RecursionError:
        raise invalid("it is nested too deeply.") from None
    except ValueError as error:
        raise invalid(f"it is not JSON: {error}.") from None


def _readable(problem: str) -> str:
    """llguidance's message without its notes for developers."""
    text = problem.replace("<non-verbose/>", "").strip()
    if text.startswith("NoExtension"):
        text = "nothing can satisfy it"
    return f"{text[:500]}."
