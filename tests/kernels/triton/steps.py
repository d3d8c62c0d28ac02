"""Ragged batches over pages of 16 tokens, and caches whose unused slots are NaN."""

from __future__ import annotations

import torch

from deepseek.kernels import reference
from tests.kernels.cases import Ragged

# On a GPU the same tests run there.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

STEPS = {
    "one token": Ragged(((0, 1),), page=16),
    "decode": Ragged(((14, 1), (15, 1), (16, 1), (32, 1)), scattered=True, page=16),
    "few rows each": Ragged(((12, 3), (0, 16), (33, 15), (5, 2)), scattered=True, page=16),
    "prompts": Ragged(((0, 15), (0, 16), (0, 17), (0, 33)), page=16),
    "mixed": Ragged(((16, 1), (0, 17), (16, 17), (32, 1), (0, 15)), scattered=True, page=16),
    "pages of 32": Ragged(((31, 1), (20, 21), (32, 1)), scattered=True, page=32),
    "pages of 48": Ragged(((47, 1), (40, 21), (96, 1)), scattered=True, page=48),
}


def poisoned(case: Ragged, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``caches`` with NaN in the slots that no sequence uses: a kernel that reads too far shows."""
    layout = case.layout()
    used = {slot for i in range(layout.num_sequences) for slot in reference.context_slots(layout, i)}
    others = [slot for slot in range(case.slots) if slot not in used]
    for cache in caches:
        cache[others] = float("nan")
    return caches
