"""How much memory keys and values may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from deepseek.errors import ConfigurationError

_SHARE = 0.5
_GPU_SHARE = 0.92
"""What recordings take, and memory that is free in pieces, is left."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def available_memory() -> int:
    """Bytes that can be allocated without swapping, inside the control group's limit where there is one."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = _CGROUP_LIMIT.read_text().strip(), _CGROUP_USED.read_text().strip()
    except OSError:
        return free
    return min(free, max(0, int(limit) - int(used))) if limit != "max" else free


def free_memory(device: str) -> int:
    """Bytes that can be allocated on ``device``: of a GPU its own, else this machine's."""
    if not device.startswith("cuda"):
        return available_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def cache_budget(device: str, step_bytes: int) -> int:
    """Bytes for keys and values: half of this machine's free memory, or what of a GPU's a step does not need."""
    if not device.startswith("cuda"):
        return int(available_memory() * _SHARE)
    return int(max(0, free_memory(device) - step_bytes) * _GPU_SHARE)


@dataclass(frozen=True, slots=True)
class PagePlan:
    """Pages in memory, and in a file beside it."""

    resident: int
    spilled: int = 0

    @property
    def total(self) -> int:
        return self.resident + self.spilled


@dataclass(frozen=True, slots=True)
class SpillPlan:
    """What may be spilled.

    Attributes:
        room: bytes of the file.
        each: bytes of a page that lie there when it is spilled.
        unit: memory and file have multiples of so many pages.
        least: pages that must be in memory.
    """

    room: int
    each: int
    unit: int
    least: int


def plan_pages(
    each: int,
    *,
    page_size: int,
    max_context: int,
    max_running: int,
    budget: int,
    spill: SpillPlan | None = None,
) -> PagePlan:
    """Pages of ``each`` bytes: what ``budget`` bytes hold and what is spilled, but never more than ``max_running`` full
    contexts need. What does not need the file does not get one.

    Of spilled pages a part stays in memory (an index), which is taken from the budget too.

    Raises ConfigurationError when not even one page fits, or with ``spill`` not its least number.
    """
    needed = -(-max_context // page_size) * max_running
    pages = min(budget // each, needed)
    if spill is not None and pages < needed:
        return _plan_spilled(each, budget, needed, page_size, spill)
    if pages < 1:
        raise ConfigurationError(
            f"the KV cache has room for {budget / 2**20:.0f} MiB, and one page of {page_size} tokens takes "
            f"{each / 2**20:.1f} MiB. Free some memory, choose a smaller model, or raise kv_cache_bytes."
        )
    return PagePlan(pages)


def _plan_spilled(each: int, room: int, needed: int, page_size: int, spill: SpillPlan) -> PagePlan:
    unit = spill.unit
    least = -(-spill.least // unit) * unit
    if room < least * each:
        raise ConfigurationError(
            f"the KV cache has room for {room / 2**20:.0f} MiB in memory, and with a spill file its least is "
            f"{least * each / 2**20:.0f} MiB: {least} pages of {page_size} tokens, which one step may write. Raise "
            "kv_cache_bytes, or lower max_running or max_batch_tokens."
        )
    spilled = min(spill.room // spill.each, needed - least)
    kept = each - spill.each
    if kept:
        spilled = min(spilled, (room - least * each) // kept)
    spilled = spilled // unit * unit
    resident = (room - spilled * kept) // each // unit * unit
    needed = -(-needed // unit) * unit
    if resident + spilled > needed:  # the index of pages that are not needed leaves room for more in memory
        resident = (room - needed * kept) // spill.each // unit * unit
        spilled = needed - resident
    return PagePlan(resident, spilled)
