"""Chat templates: a model's own Jinja2 program that turns messages into a prompt, rendered in a helper process.

The helper (``template_worker.py``) is started at the first use, compiles the template once, answers in well under a
millisecond, and ends with its parent. A rendering that loops or allocates without end costs the helper, not us.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deepseek.errors import ChatTemplateError
from deepseek.helper import Helper, HelperGoneError

_WORKER = Path(__file__).with_name("template_worker.py")


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use.

    Attributes:
        cpu_seconds: processor time.
        wall_seconds: time on the clock, for a machine so busy that processor time hardly passes.
        max_output: characters of the result.
        max_memory: bytes of address space of the helper process, everything included.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    max_output: int = 16 << 20
    max_memory: int = 768 << 20


class ChatTemplate:
    """A compiled chat template. Safe to use from several threads (renderings take turns)."""

    def __init__(self, source: str, limits: TemplateLimits | None = None) -> None:
        self.source = source
        self._limits = limits = limits or TemplateLimits()
        setup = msgspec.json.encode(
            {
                "template": source,
                "cpu_seconds": limits.cpu_seconds,
                "max_output": limits.max_output,
                "max_memory": limits.max_memory,
            }
        )
        self._helper = Helper([str(_WORKER)], setup, limits.wall_seconds)

    def render(self, context: Mapping[str, Any]) -> str:
        """The prompt for these variables (JSON values).

        Raises ChatTemplateError: the template is malformed (with its line), fails, calls ``raise_exception`` (with
        its message), runs too long or writes too much.
        """
        try:
            request = msgspec.json.encode(context)
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(f"the messages cannot be given to the chat template: {error}.") from error
        try:
            answer = self._helper.ask(request)
        except HelperGoneError as gone:
            raise ChatTemplateError(self._verdict(gone.status)) from None
        if "text" in answer:
            return str(answer["text"])
        raise ChatTemplateError(_describe(answer))

    def close(self) -> None:
        """End the helper process; the next rendering starts another."""
        self._helper.close()

    def _verdict(self, status: int | None) -> str:
        limits = self._limits
        if status == -signal.SIGPROF:
            return (
                f"the model's chat template ran longer than {limits.cpu_seconds:g} s and was stopped; "
                "it probably loops. Use another template, or /v1/completions with a prompt of your own."
            )
        if status is None:
            return f"the model's chat template gave no answer within {limits.wall_seconds:g} s and was stopped."
        return (
            f"the process that renders the chat template ended (status {status}), probably for want of memory; "
            f"it may use {limits.max_memory >> 20} MiB."
        )


def _describe(answer: Mapping[str, Any]) -> str:
    message, line = str(answer.get("message", "")), answer.get("line")
    place = f" at line {line}" if line else ""
    match answer.get("kind"):
        case "raised":
            return f"the model's chat template refuses these messages: {message}"
        case "malformed":
            return f"the model's chat template is malformed{place}: {message}"
        case "failed":
            return f"the model's chat template failed{place}: {message}"
        case _:
            return f"the model's chat template was stopped: {message}."
