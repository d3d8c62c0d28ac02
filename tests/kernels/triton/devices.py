"""Where the tests of Triton kernels run: on the GPU, else in the interpreter."""

from __future__ import annotations

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
