"""Know how good a model is, and whether two differ.

>>> from deepseek_eval import evaluate
>>> evaluate("smollm2-135m-instruct", suite="core", output_dir="results")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_eval.compare import compare
    from deepseek_eval.run import evaluate

__all__ = ["compare", "evaluate"]


def __getattr__(name: str) -> Any:
    """Imported when asked for, because it is not light."""
    if name in __all__:
        from importlib import import_module

        module = import_module("deepseek_eval.run" if name == "evaluate" else "deepseek_eval.compare")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
