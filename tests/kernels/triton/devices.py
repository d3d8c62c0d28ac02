"""Where the tests of Triton kernels run: on the GPU, else in the interpreter."""

from __future__ import annotations

from typing import Any

import torch
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_prepared: set[str] = set()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A kernel calls a function. Triton 3.6 puts its interpreter's versions of the language in place at each such call,
    which takes milliseconds and changes nothing after the first call of a module's functions."""
    if self.fn.__module__ not in _prepared:
        _prepared.add(self.fn.__module__)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call
