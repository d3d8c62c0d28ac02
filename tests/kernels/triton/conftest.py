"""Without a GPU the kernels run on CPU tensors, in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    _patch_tensor = interpreter._patch_lang_tensor

    def _with_numbers(tensor, scope) -> None:
        """Triton 3.6 makes ``int`` of arrays of one element, which NumPy 2.4 no longer does."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _with_numbers
