"""The grammar of answers that call functions: in the model's own format, with arguments that keep to their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError
from deepseek_serve.parsing import thinking
from deepseek_serve.parsing.formats import Format
from deepseek_serve.parsing.xml_grammar import ANY, SHARED, parameter_rules
from deepseek_serve.protocol.tools import Tooling

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_TEXT = r"/(.|\n)*/"
_GAP = r"/[ \n]{0,4}/"  # between reasoning and what follows


def needs_grammar(tools: Tooling) -> bool:
    """Whether the calls must be kept to something: that there is one, their schemas, or that there is only one."""
    return bool(tools.functions) and (tools.single or tools.strict)


def call_grammar(
    form: Format,
    tools: Tooling,
    special: Collection[str],
    *,
    answer: dict[str, Any] | None = None,
    thinks: bool = False,
    opened: bool = False,
) -> Constraint:
    """Answers that make calls; those that make none may be any text, or JSON of one schema.

    Args:
        special: the spellings of the model's special tokens.
        answer: schema of an answer without calls; None allows any text.
        thinks: the answer may begin with reasoning.
        opened: the prompt has begun it, so it does.

    Raises :class:`InvalidRequestError` for what cannot be a grammar.
    """
    builder = _Builder(form, tools, special)
    forced = tools.mode == "required"
    if forced:
        start = builder.calls()
    elif answer is not None:
        if form.marks.bare:  # the beginnings of both are one lexeme to llguidance
            raise InvalidRequestError(
                "'response_format' is not possible together with 'tools' for this model, whose calls are plain JSON.",
                param="response_format",
                code="invalid_value",
            )
        start = f"({builder.calls()} | answer)"
        builder.schemas["answer"] = answer
    else:
        start = builder.calls_in_text()
    if thinks and (forced or answer is not None):
        start = builder.after_thinking(start, opened=opened)
    lines = [f"start: {start}", *builder.rules]
    first = form.marks.bare or answer is not None
    return Constraint.grammar("\n".join(lines), schemas=builder.schemas, json_after=form.json_after, json_first=first)


class _Builder:
    """Rules of one grammar, in llguidance's dialect of Lark.

    Attributes:
        rules: but for ``start`` and those of schemas.
        schemas: rule -> schema of the JSON that it derives.
    """

    def __init__(self, form: Format, tools: Tooling, special: Collection[str]) -> None:
        self._form = form
        self._single = tools.single
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self.rules: list[str] = []
        self.schemas: dict[str, Any] = {}
        exact = tools.mode == "required"
        self._heads: list[tuple[str, str, str]] = []  # text around the arguments, and their rule
        for index, function in enumerate(tools.functions):
            before, _, after = form.call(function.name, "\0").partition("\0")
            rule = f"arguments_{index}"
            self._heads.append((before, self._arguments(rule, function.schema_, exact or function.strict), after))
        if form.elements:
            self.rules += SHARED

    def _arguments(self, rule: str, schema: dict[str, Any], kept: bool | None) -> str:
        """The rule for arguments, which keep to the schema or are any."""
        if not self._form.elements:
            self.schemas[rule] = schema if kept else _ANY_OBJECT
            return rule
        if not kept:
            return ANY
        rules, schemas = parameter_rules(rule, schema)
        self.rules += rules
        self.schemas |= schemas
        return rule

    def calls(self) -> str:
        """One call, or several."""
        form = self._form
        self.rules.append("call: " + self._alternatives(""))
        more = "" if self._single else f" ({self._spell(form.between)} call)*"
        return f"{self._spell(form.before)} call{more} {self._spell(form.after)}".strip()

    def calls_in_text(self) -> str:
        """Any text, and calls wherever the format's mark of a call stands."""
        form = self._form
        if form.marks.bare:
            self.rules.append(r"TEXT: /[^{ \t\r\n](.|\n)*/")
            return f"{self.calls()} | TEXT"
        mark = form.before or form.marks.begin
        self.rules.append(f"TEXT: {_TEXT}")
        self._until("head", mark)
        if form.before:
            self.rules.append("call: " + self._alternatives(""))
            more = "" if self._single else f" ({self._spell(form.between)} call)*"
            return f"head call{more} {self._spell(form.after)} | TEXT"
        self.rules.append("call: " + self._alternatives(mark))
        return "head call | TEXT" if self._single else "(head call)* TEXT"

    def after_thinking(self, start: str, *, opened: bool) -> str:
        """``start`` behind reasoning."""
        self.rules.append(f"GAP: {_GAP}")
        if f"TEXT: {_TEXT}" not in self.rules:
            self.rules.append(f"TEXT: {_TEXT}")
        self._until("thoughts", thinking.END)
        if opened:
            return f"thoughts GAP {start}"
        return f"({self._spell(thinking.BEGIN)} thoughts GAP)? {start}"

    def _until(self, rule: str, mark: str) -> None:
        """A rule for text up to a mark."""
        if self._special.fullmatch(mark):
            self.rules.append(f"{rule}: TEXT {mark}")
        else:
            self.rules.append(f"{rule}[lazy]: {_TEXT} {_quote(mark)}")

    def _alternatives(self, opened: str) -> str:
        """The calls of all functions, without the mark that has been read already."""
        return " | ".join(
            f"{self._spell(before.removeprefix(opened))} {rule} {self._spell(after)}"
            for before, rule, after in self._heads
        )

    def _spell(self, text: str) -> str:
        """Text as Lark writes it: strings, and special tokens by their names."""
        parts, start = [], 0
        for found in self._special.finditer(text):
            parts += [_quote(text[start : found.start()]), found[0]]
            start = found.end()
        return " ".join(part for part in [*parts, _quote(text[start:])] if part)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
