"""Stored responses, for clients that retrieve or continue them later."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, or_, select

from deepseek_serve.store.clock import Clock
from deepseek_serve.store.database import Database, as_struct
from deepseek_serve.store.files import no_such, plain_id
from deepseek_serve.store.schema import responses

UNFINISHED = ("queued", "in_progress")


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One stored response.

    Attributes:
        status: as in the API: queued, in_progress, completed, failed, cancelled, incomplete.
        previous_id: the response that it continues.
        body: the response object, JSON.
        input_items: what it answers, a JSON list.
        owner: the process that is at work on it; None when it has ended.
    """

    id: str
    tenant: str
    created_at: int
    expires_at: int | None
    model: str
    status: str
    previous_id: str | None
    body: str
    input_items: str
    owner: str | None = None


class ResponseStore:
    """All tenants' stored responses. Another tenant's are as if they were not there."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def add(self, record: ResponseRecord) -> None:
        """Store a new response. Raises :class:`StoreError`."""
        values = msgspec.structs.asdict(record)
        await self._database.write(lambda connection: connection.execute(responses.insert().values(**values)) and None)

    async def update(self, tenant: str, response_id: str, *, status: str, body: str) -> bool:
        """Replace state and body; False if it has been deleted, or has ended, meanwhile. Raises :class:`StoreError`."""
        values: dict[str, str | None] = {"status": status, "body": body}
        if status not in UNFINISHED:
            values["owner"] = None

        def work(connection: Connection) -> bool:
            mine = (*self._mine(tenant), responses.c.id == response_id, responses.c.status.in_(UNFINISHED))
            return connection.execute(responses.update().where(*mine).values(**values)).rowcount == 1

        return await self._database.write(work)

    async def get(self, tenant: str, response_id: str) -> ResponseRecord:
        """Raises :class:`ApiError` 404, :class:`StoreError`."""
        return await self._database.read(lambda connection: self._find(connection, tenant, response_id))

    async def chain(self, tenant: str, response_id: str, *, limit: int) -> list[ResponseRecord]:
        """The response and those before it, oldest first, at most ``limit``. Raises as :meth:`get`."""

        def work(connection: Connection) -> list[ResponseRecord]:
            found = [self._find(connection, tenant, response_id)]
            while found[-1].previous_id is not None and len(found) < limit:
                found.append(self._find(connection, tenant, found[-1].previous_id))
            return found[::-1]

        return await self._database.read(work)

    async def owners(self) -> list[str]:
        """The processes that have responses without an end. Raises :class:`StoreError`."""
        query = select(responses.c.owner).where(responses.c.owner.is_not(None)).distinct()
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def unfinished_ids(self, owner: str) -> set[str]:
        """The ids of :meth:`unfinished`."""
        query = select(responses.c.id).where(responses.c.owner == owner)
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def unfinished(self, owner: str) -> list[ResponseRecord]:
        """Responses of this process that no end is known of, oldest first. Raises :class:`StoreError`."""
        query = select(responses).where(responses.c.owner == owner).order_by(responses.c.seq)
        return await self._database.read(
            lambda connection: [as_struct(row, ResponseRecord) for row in connection.execute(query)]
        )

    async def delete(self, tenant: str, response_id: str) -> None:
        """Raises :class:`ApiError` 404, :class:`StoreError`."""

        def work(connection: Connection) -> None:
            self._find(connection, tenant, response_id)
            connection.execute(responses.delete().where(responses.c.id == response_id))

        await self._database.write(work)

    async def sweep(self) -> int:
        """Delete what has expired, if the clock is to be believed. Returns how many."""
        if not self._clock.may_delete():
            return 0
        query = responses.delete().where(responses.c.expires_at <= self._clock.now())
        return await self._database.write(lambda connection: int(connection.execute(query).rowcount))

    def _mine(self, tenant: str) -> list[ColumnElement[bool]]:
        alive = or_(responses.c.expires_at.is_(None), responses.c.expires_at > self._clock.now())
        return [responses.c.tenant == tenant, alive]

    def _find(self, connection: Connection, tenant: str, response_id: str) -> ResponseRecord:
        query = select(responses).where(*self._mine(tenant), responses.c.id == response_id)
        row = connection.execute(query).one_or_none() if plain_id(response_id) else None
        if row is None:
            raise no_such("response", response_id)
        return as_struct(row, ResponseRecord)
