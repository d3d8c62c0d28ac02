"""How much memory keys and values may take."""

from __future__ import annotations

from pathlib import Path

import psutil

from deepseek.errors import ConfigurationError

_SHARE = 0.5
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


def plan_pages(
    each: int,
    *,
    page_size: int,
    max_context: int,
    max_running: int,
    budget: int | None,
) -> int:
    """Number of pages of ``each`` bytes: what ``budget`` bytes hold, or half of the free memory when it is None, but
    never more than ``max_running`` full contexts need. Raises ConfigurationError when not even one page fits."""
    room = int(available_memory() * _SHARE) if budget is None else budget
    needed = -(-max_context // page_size) * max_running
    pages = min(room // each, needed)
    if pages < 1:
        raise ConfigurationError(
            f"the KV cache has room for {room / 2**20:.0f} MiB, and one page of {page_size} tokens takes "
            f"{each / 2**20:.1f} MiB. Free some memory, choose a smaller model, or raise kv_cache_bytes."
        )
    return pages
