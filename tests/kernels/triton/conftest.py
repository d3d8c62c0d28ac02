"""Without a GPU the kernels run on CPU tensors, in Triton's interpreter, which needs some help."""

from __future__ import annotations

import os
from importlib.util import find_spec

# The development tools bring Triton on Linux; elsewhere there is none.
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]

if find_spec("triton") and os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor
    _dot = interpreter.InterpreterBuilder.create_dot

    def _with_numbers(tensor, scope) -> None:
        """Triton 3.6 makes ``int`` of arrays of one element, which NumPy 2.4 no longer does."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _with_numbers

    def _wide(x):
        if x.dtype != tl.bfloat16:
            return x
        data = interpreter._convert_float(x.data, tl.bfloat16, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def _dot_of_bf16(self, a, b, *others):
        """Triton 3.6 keeps bf16 as the integers of its bits, and multiplies those."""
        return _dot(self, _wide(a), _wide(b), *others)

    interpreter.InterpreterBuilder.create_dot = _dot_of_bf16

    def _integer_to_float(self, source, to):
        """Triton 3.6 makes the bits of a bf16 of an integer's value."""
        if to.scalar != tl.bfloat16:
            return self.cast_impl(source, to)
        return self.cast_impl(self.cast_impl(source, tl.float32), to)

    interpreter.InterpreterBuilder.create_si_to_fp = _integer_to_float
