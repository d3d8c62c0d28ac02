"""Batches: their state, and the results of lines until the output file is written.

A line's result and the batch's counts change in one transaction, and a line has one result at most: whatever ends the
process, a finished line is neither lost nor there twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from deepseek_serve.errors import ApiError
from deepseek_serve.store.clock import Clock
from deepseek_serve.store.contents import Contents
from deepseek_serve.store.database import Database, as_struct
from deepseek_serve.store.files import UNFINISHED, FileRecord, FileStore, Page, behind, no_such, plain_id
from deepseek_serve.store.schema import batch_lines, batches, files
from deepseek_serve.store.usage import Tokens

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
WINDOW = 24 * 3600  # seconds of the completion window "24h", the only one
MAX_UNFINISHED = 100  # batches of one key


class BatchProblem(msgspec.Struct, frozen=True):
    """Why a batch failed: one entry of ``errors.data``."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``batches``."""

    id: str
    tenant: str
    server: str
    status: BatchStatus
    endpoint: str
    completion_window: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    output_expires_after: int | None
    model: str | None
    metadata: dict[str, str] | None
    errors: list[BatchProblem] | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    total: int
    completed: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class LineResult(msgspec.Struct, frozen=True):
    """What came of one line.

    Attributes:
        line: its number in the input, from 1.
        ok: it goes to the output file; else to the error file.
        result: the JSON text that goes there.
    """

    line: int
    ok: bool
    result: str


class BatchStore:
    """All tenants' batches of this data directory."""

    def __init__(self, database: Database, contents: Contents, file_store: FileStore, clock: Clock) -> None:
        self._database = database
        self._contents = contents
        self._files = file_store
        self._clock = clock

    # -- for clients --------------------------------------------------------------------------------------------

    async def create(
        self,
        tenant: str,
        *,
        server: str,
        endpoint: str,
        input_file_id: str,
        metadata: dict[str, str] | None,
        output_expires_after: int | None,
    ) -> BatchRecord:
        """A batch that waits for validation.

        Raises :class:`ApiError` 404 without such a file, 400 if it is not for batches, 429 with too many unfinished.
        """
        batch_id = f"batch_{secrets.token_hex(16)}"

        def work(connection: Connection) -> BatchRecord:
            source = self._files.find(connection, tenant, input_file_id)
            if source.purpose != "batch":
                raise ApiError(
                    400,
                    f"The purpose of the file {input_file_id!r} is {source.purpose!r}; a batch needs 'batch'.",
                    param="input_file_id",
                    code="invalid_purpose",
                )
            open_ones = select(batches.c.id).where(*self._mine(tenant), batches.c.status.in_(UNFINISHED))
            if len(connection.execute(open_ones.limit(MAX_UNFINISHED)).all()) >= MAX_UNFINISHED:
                raise ApiError(
                    429,
                    f"You have {MAX_UNFINISHED} unfinished batches; wait for one to end, or cancel one.",
                    code="rate_limit_exceeded",
                    headers={"x-should-retry": "false"},
                )
            now = self._clock.now()
            connection.execute(
                batches.insert().values(
                    id=batch_id,
                    site=self._contents.site,
                    tenant=tenant,
                    server=server,
                    status="validating",
                    endpoint=endpoint,
                    completion_window="24h",
                    input_file_id=input_file_id,
                    output_expires_after=output_expires_after,
                    metadata=None if metadata is None else _json(metadata),
                    created_at=now,
                    expires_at=now + WINDOW,
                )
            )
            return self._find(connection, tenant, batch_id)

        return await self._database.write(work)

    async def get(self, tenant: str, batch_id: str) -> BatchRecord:
        """Raises :class:`ApiError` 404 if the tenant has no such batch."""
        return await self._database.read(lambda connection: self._find(connection, tenant, batch_id))

    async def listed(self, tenant: str, page: Page) -> tuple[list[BatchRecord], bool]:
        """A page of batches, newest first, and whether there are more behind it."""

        def work(connection: Connection) -> tuple[list[BatchRecord], bool]:
            conditions = self._mine(tenant)
            if page.after is not None:
                conditions.append(behind(connection, batches.c.seq, batches.c.id, self._mine(tenant), page))
            query = select(batches).where(*conditions).order_by(batches.c.seq.desc()).limit(page.limit + 1)
            rows = connection.execute(query).all()
            return [as_struct(row, BatchRecord) for row in rows[: page.limit]], len(rows) > page.limit

        return await self._database.read(work)

    async def cancel(self, tenant: str, batch_id: str) -> BatchRecord:
        """Ask for its end. Raises :class:`ApiError` 404, or 409 if it has ended otherwise or is ending."""

        def work(connection: Connection) -> BatchRecord:
            record = self._find(connection, tenant, batch_id, lock=True)
            if record.status in ("cancelling", "cancelled"):
                return record
            if record.status not in ("validating", "in_progress"):
                raise ApiError(
                    409,
                    f"The batch {batch_id!r} is {record.status} and cannot be cancelled.",
                    code="batch_not_cancellable",
                    headers={"x-should-retry": "false"},
                )
            self._update(connection, batch_id, status="cancelling", cancelling_at=self._clock.now())
            return self._find(connection, tenant, batch_id)

        return await self._database.write(work)

    # -- for the runner -----------------------------------------------------------------------------------------

    async def unfinished(self, server: str, adopted: Sequence[str] = ()) -> list[BatchRecord]:
        """Batches that a server of this name has to work on, oldest first.

        Of the names in ``adopted``, only those that have to be brought to their end.
        """
        whose = or_(batches.c.server == server, and_(batches.c.server.in_(adopted), self._over()))
        here = batches.c.site == self._contents.site
        query = select(batches).where(here, whose, batches.c.status.in_(UNFINISHED)).order_by(batches.c.seq)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [as_struct(row, BatchRecord) for row in rows]

    async def waiting_for(self, *, exclude: Sequence[str]) -> list[str]:
        """Names of other servers whose batches have to be brought to their end."""
        here = (batches.c.site == self._contents.site, batches.c.server.not_in(exclude))
        query = select(batches.c.server).where(*here, batches.c.status.in_(UNFINISHED), self._over()).distinct()
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def start(self, batch_id: str, *, total: int, model: str) -> bool:
        """validating -> in_progress. False if it was cancelled meanwhile."""

        def work(connection: Connection) -> bool:
            values = {"status": "in_progress", "in_progress_at": self._clock.now(), "total": total, "model": model}
            return self._update(connection, batch_id, batches.c.status == "validating", **values)

        return await self._database.write(work)

    async def fail(self, batch_id: str, problems: Sequence[BatchProblem]) -> None:
        """The input cannot be processed. A batch that was cancelled meanwhile stays so."""

        def work(connection: Connection) -> None:
            changed = self._update(
                connection,
                batch_id,
                batches.c.status.in_(("validating", "in_progress")),
                status="failed",
                failed_at=self._clock.now(),
                errors=_json(list(problems)),
            )
            if changed:
                connection.execute(batch_lines.delete().where(batch_lines.c.batch_id == batch_id))

        await self._database.write(work)

    async def finished_lines(self, batch_id: str) -> set[int]:
        """Numbers of the lines that have a result."""
        query = select(batch_lines.c.line).where(batch_lines.c.batch_id == batch_id)
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def add_result(self, batch_id: str, result: LineResult, tokens: Tokens) -> None:
        """Keep what came of a line; once it is kept, another result of the same line is ignored."""

        def work(connection: Connection) -> None:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            insert = dialect.insert(batch_lines).values(batch_id=batch_id, **msgspec.structs.asdict(result))
            new = connection.execute(insert.on_conflict_do_nothing().returning(batch_lines.c.line)).scalar()
            if new is None:
                return
            column = batches.c.completed if result.ok else batches.c.failed
            counts = {column.name: column + 1} | {
                name: batches.c[name] + count for name, count in msgspec.structs.asdict(tokens).items()
            }
            if not self._update(connection, batch_id, batches.c.status.in_(("in_progress", "cancelling")), **counts):
                connection.execute(batch_lines.delete().where(batch_lines.c.batch_id == batch_id))

        await self._database.write(work)

    async def results(self, batch_id: str, *, after: int, limit: int) -> list[LineResult]:
        """Results of lines behind ``after``, in order."""
        query = select(batch_lines).where(batch_lines.c.batch_id == batch_id, batch_lines.c.line > after)
        rows = await self._database.read(
            lambda connection: connection.execute(query.order_by(batch_lines.c.line).limit(limit)).all()
        )
        return [LineResult(row.line, row.ok, row.result) for row in rows]

    async def finalizing(self, batch_id: str) -> bool:
        """in_progress -> finalizing. False if it was cancelled meanwhile."""
        return await self._database.write(
            lambda connection: self._update(
                connection,
                batch_id,
                batches.c.status == "in_progress",
                status="finalizing",
                finalizing_at=self._clock.now(),
            )
        )

    async def finish(
        self, batch_id: str, status: BatchStatus, output: FileRecord | None, errors: FileRecord | None
    ) -> None:
        """The last step: the files whose contents are in their places, the state, and the lines' rows, all at once.

        A batch that was cancelled while it expired is cancelled.
        """

        def work(connection: Connection) -> None:
            for record in (output, errors):
                if record is not None:
                    connection.execute(files.delete().where(files.c.id == record.id))
                    self._files.insert(connection, record)
            query = select(batches.c.status).where(batches.c.id == batch_id).with_for_update()
            end = "cancelled" if connection.execute(query).scalar_one() == "cancelling" else status
            self._update(
                connection,
                batch_id,
                status=end,
                output_file_id=output.id if output is not None else None,
                error_file_id=errors.id if errors is not None else None,
                **{f"{end}_at": self._clock.now()},
            )
            connection.execute(batch_lines.delete().where(batch_lines.c.batch_id == batch_id))

        await self._database.write(work)

    # -- inside of transactions ---------------------------------------------------------------------------------

    def _mine(self, tenant: str) -> list[ColumnElement[bool]]:
        return [batches.c.site == self._contents.site, batches.c.tenant == tenant]

    def _over(self) -> ColumnElement[bool]:
        return or_(batches.c.status == "cancelling", batches.c.expires_at <= self._clock.now())

    def _find(self, connection: Connection, tenant: str, batch_id: str, *, lock: bool = False) -> BatchRecord:
        query = select(batches).where(*self._mine(tenant), batches.c.id == batch_id)
        query = query.with_for_update() if lock else query  # of no effect in SQLite, and needless there
        row = connection.execute(query).one_or_none() if plain_id(batch_id) else None
        if row is None:
            raise no_such("batch", batch_id)
        return as_struct(row, BatchRecord)

    def _update(self, connection: Connection, batch_id: str, *conditions: ColumnElement[bool], **values: Any) -> bool:
        query = batches.update().where(batches.c.id == batch_id, *conditions).values(**values)
        return connection.execute(query).rowcount == 1


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
