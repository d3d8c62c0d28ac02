"""What each key has used. Requests only add to counters in memory; a task writes them once a second."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from deepseek_serve.store.clock import Clock
from deepseek_serve.store.database import Database
from deepseek_serve.store.errors import StoreError
from deepseek_serve.store.schema import usage

logger = logging.getLogger("deepseek.serve")

HOUR = 3600
MAX_PENDING = 50_000  # rows (key, model, hour) that wait for a database that does not answer
WRITE_AT_ONCE = 500
MAX_MODEL = 255  # characters
Outcome = Literal["finished", "failed", "cancelled"]


class Tokens(msgspec.Struct, frozen=True):
    """Token counts of one or many answers; ``cached`` are among the prompt's, ``reasoning`` among the completion's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


class Spent(msgspec.Struct, frozen=True):
    """What was used in some time. ``errors`` and ``cancelled`` are among the ``requests``."""

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            *(a + b for a, b in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True))
        )


class UsageRow(msgspec.Struct, frozen=True):
    """What one key used of one model from ``start`` (Unix seconds) on, for an hour or for the bucket asked for."""

    tenant: str
    model: str
    start: int
    spent: Spent


Key = tuple[str, str, int]  # tenant, model, hour
COUNTERS = Spent.__struct_fields__


class UsageStore:
    """Counters per key, model and hour.

    Attributes:
        lost: requests that were never written, because the database did not answer for too long.
        failures: failed attempts to write.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._pending: dict[Key, Spent] = {}
        self._writing: dict[Key, Spent] = {}
        self.lost = 0
        self.failures = 0

    @property
    def waiting(self) -> int:
        """Rows in memory that are not yet in the database."""
        return len(self._pending) + len(self._writing)

    def add(self, tenant: str, model: str, tokens: Tokens, outcome: Outcome = "finished") -> None:
        """Count one request that has ended. Never waits and never fails."""
        spent = Spent(1, outcome == "failed", outcome == "cancelled", *msgspec.structs.astuple(tokens))
        name = model[:MAX_MODEL].encode("utf-8", "replace").decode()  # a folder's name need not be text
        self._add((tenant, name, self._clock.now() // HOUR * HOUR), spent)

    async def flush(self) -> bool:
        """Write what is in memory; False if the database does not take it, and then it stays there."""
        if self._writing or not self._pending:  # a flush is under way, or there is nothing
            return not self._writing
        self._writing, self._pending = self._pending, {}
        failed = True
        try:
            rows = list(self._writing.items())
            await self._database.write(lambda connection: _upsert(connection, rows))
            failed = False
        except StoreError as error:
            self.failures += 1
            if self.failures == 1 or self.failures % 60 == 0:
                logger.error("usage cannot be written (%d requests wait): %s", self._requests(), error)
        finally:
            written, self._writing = self._writing, {}
            if failed:
                for key, spent in written.items():
                    self._add(key, spent)
            elif self.failures:
                logger.info("usage is written again")
                self.failures = 0
        return not failed

    async def spent(self, tenant: str, since: int) -> Spent:
        """All of a key's use since the hour of ``since`` (Unix seconds), what is not yet written included.

        Raises :class:`StoreError`.
        """
        since = since // HOUR * HOUR
        sums = [func.coalesce(func.sum(usage.c[name]), 0) for name in COUNTERS]
        query = select(*sums).where(usage.c.tenant == tenant, usage.c.hour >= since)
        total = await self._database.read(lambda connection: Spent(*map(int, connection.execute(query).one())))
        for (name, _, hour), spent in self._in_memory():
            if name == tenant and hour >= since:
                total += spent
        return total

    async def rows(
        self, start: int, end: int, *, tenant: str | None, bucket: int, by_model: bool, limit: int = 100_000
    ) -> list[UsageRow]:
        """Sums per ``bucket`` seconds (whole hours), for hours in [start, end), ordered by time.

        Args:
            tenant: one key's; None for all.
            by_model: a row per model; else ``model`` is "".

        Raises :class:`StoreError`.
        """
        slot = (usage.c.hour - usage.c.hour % bucket).label("slot")
        groups = [slot, usage.c.tenant, *([usage.c.model] if by_model else [])]
        sums = [func.sum(usage.c[name]) for name in COUNTERS]
        query = select(*groups, *sums).where(usage.c.hour >= start, usage.c.hour < end)
        if tenant is not None:
            query = query.where(usage.c.tenant == tenant)
        query = query.group_by(*groups).order_by(*groups).limit(limit)
        found = await self._database.read(lambda connection: connection.execute(query).all())
        totals: dict[Key, Spent] = {}
        for row in found:
            values = tuple(row)
            model = values[2] if by_model else ""
            totals[values[1], model, int(values[0])] = Spent(*map(int, values[len(groups) :]))
        for (name, model, hour), spent in self._in_memory():
            if start <= hour < end and tenant in (None, name):
                key = (name, model if by_model else "", hour // bucket * bucket)
                totals[key] = totals.get(key, Spent()) + spent
        ordered = sorted(totals.items(), key=lambda item: (item[0][2], item[0][0], item[0][1]))
        return [UsageRow(name, model, start, spent) for (name, model, start), spent in ordered]

    def _add(self, key: Key, spent: Spent) -> None:
        if key not in self._pending and len(self._pending) >= MAX_PENDING:
            self.lost += spent.requests
            return
        self._pending[key] = self._pending.get(key, Spent()) + spent

    def _in_memory(self) -> Iterable[tuple[Key, Spent]]:
        return [*self._pending.items(), *self._writing.items()]

    def _requests(self) -> int:
        return sum(spent.requests for _, spent in self._in_memory())


def _upsert(connection: Connection, rows: list[tuple[Key, Spent]]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    ordered = sorted(rows)  # one order everywhere, so that two servers do not wait for each other's rows
    for begin in range(0, len(ordered), WRITE_AT_ONCE):
        values = [_values(key, spent) for key, spent in ordered[begin : begin + WRITE_AT_ONCE]]
        insert = dialect.insert(usage).values(values)
        sums = {name: usage.c[name] + insert.excluded[name] for name in COUNTERS}
        connection.execute(insert.on_conflict_do_update(index_elements=["tenant", "model", "hour"], set_=sums))


def _values(key: Key, spent: Spent) -> Mapping[str, Any]:
    tenant, model, hour = key
    return {"tenant": tenant, "model": model, "hour": hour, **msgspec.structs.asdict(spent)}
