"""What keys have used of their monthly quotas, as the store knows it: also after a restart, and of other nodes."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import msgspec

from deepseek_serve.store.errors import StoreError
from deepseek_serve.store.usage import UsageStore

FRESH = 10.0  # seconds for which a sum of the database is believed, and only added to
PATIENCE = 1.0  # seconds that a request waits for it


class _Known(msgspec.Struct):
    tokens: int
    month: int
    until: float


class UsageLedger:
    """Implements :class:`deepseek_serve.limits.Ledger`.

    Without its database it goes on from what it knew, in the worst case from nothing: better than to refuse everybody.
    """

    def __init__(self, usage: UsageStore) -> None:
        self._usage = usage
        self._known: dict[str, _Known] = {}

    async def tokens_this_month(self, tenant: str) -> int:
        """Prompt and answer tokens of this calendar month, UTC."""
        month, now = _month_start(), time.monotonic()
        known = self._known.get(tenant)
        if known is None or known.month != month:
            known = self._known[tenant] = _Known(0, month, 0.0)
        if known.until <= now:
            known.until = now + FRESH  # others need not ask at the same time
            try:
                async with asyncio.timeout(PATIENCE):
                    spent = await self._usage.spent(tenant, month)
                known.tokens = spent.prompt_tokens + spent.completion_tokens
            except (StoreError, TimeoutError):
                known.until = now + PATIENCE
        return known.tokens

    def add(self, tenant: str, tokens: int) -> None:
        """A request of the tenant's has ended."""
        if (known := self._known.get(tenant)) is not None:
            known.tokens += tokens


def _month_start() -> int:
    return int(datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())
