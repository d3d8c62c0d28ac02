"""The DeepSeek V2.1 model and its engine.

>>> from deepseek import LLM, SamplingParams
>>> llm = LLM("smollm2-135m-instruct")
>>> llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(max_tokens=32))[0].text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek.client import AsyncClient, Client
    from deepseek.constraints import Constraint
    from deepseek.errors import DeepSeekError
    from deepseek.llm import LLM, Completion, Generation
    from deepseek.sampling import SamplingParams
    from deepseek.scoring import Score

__version__ = "2.1.0.dev0"

_EXPORTS = {
    "AsyncClient": "deepseek.client",
    "Client": "deepseek.client",
    "LLM": "deepseek.llm",
    "Completion": "deepseek.llm",
    "Generation": "deepseek.llm",
    "Score": "deepseek.scoring",
    "Constraint": "deepseek.constraints",
    "SamplingParams": "deepseek.sampling",
    "DeepSeekError": "deepseek.errors",
}
__all__ = [
    "LLM",
    "AsyncClient",
    "Client",
    "Completion",
    "Constraint",
    "DeepSeekError",
    "Generation",
    "SamplingParams",
    "Score",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing this package stays cheap and free of torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
