"""Know how good a model is, and whether two differ.

>>> from deepseek_eval import evaluate
>>> evaluate("smollm2-135m-instruct", suite="core", output_dir="results")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_eval.compare import Comparison, compare
    from deepseek_eval.results import Results
    from deepseek_eval.run import evaluate

_EXPORTS = {
    "Comparison": "deepseek_eval.compare",
    "Results": "deepseek_eval.results",
    "compare": "deepseek_eval.compare",
    "evaluate": "deepseek_eval.run",
}
__all__ = ["Comparison", "Results", "compare", "evaluate"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing this package stays cheap and free of torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
