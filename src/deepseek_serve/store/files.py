"""Files: a row in the database and a content on the disk. A row without content does not come to be: contents are first
in and last out, and a content that lost its row in a crash is swept up."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, func, or_, select

from deepseek_serve.errors import UNAVAILABLE, ApiError
from deepseek_serve.store.clock import Clock
from deepseek_serve.store.contents import Contents, PartialContent
from deepseek_serve.store.database import Database, as_struct
from deepseek_serve.store.errors import store_error
from deepseek_serve.store.schema import batches, files

T = TypeVar("T")
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
MAX_FILES = 10_000  # of one key
MAX_UPLOADS = 64  # at a time
MAX_UPLOADS_OF_KEY = 16
UPLOAD_RETRY = 2.0  # seconds
BATCH_LIFETIME = 30 * 86_400  # seconds that files of batches live if nobody says otherwise, as with OpenAI


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``files``, without what only the database needs."""

    id: str
    tenant: str
    created_at: int
    expires_at: int | None
    bytes: int
    filename: str
    purpose: str


class Page(msgspec.Struct, frozen=True):
    """What a list call asks for: at most ``limit`` objects behind the one named ``after``."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


class FileStore:
    """All tenants' files of this data directory.

    Args:
        quota: bytes that one tenant may store.
    """

    def __init__(
        self, database: Database, contents: Contents, disk: ThreadPoolExecutor, clock: Clock, *, quota: int
    ) -> None:
        self._database = database
        self._contents = contents
        self._disk = disk
        self._clock = clock
        self._quota = quota
        self._uploading: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Run what reads or writes contents where it stops nobody."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def path(self, file_id: str) -> Path:
        """Where the content of a file of ours lies."""
        return self._contents.path(file_id)

    async def new_content(self) -> PartialContent:
        return await self.on_disk(self._contents.new)

    async def room(self, tenant: str) -> int:
        """Bytes that the tenant may still store. Raises :class:`ApiError` 413 if there are none."""
        count, size = await self._database.read(lambda c: _stored(c, self._mine(tenant)))
        self._check_quota(count + 1, size + 1)
        return self._quota - size

    @contextlib.contextmanager
    def upload(self, tenant: str, room: int) -> Iterator[Callable[[int], None]]:
        """Account for bytes of an upload while it runs: the function it gives raises :class:`ApiError` 413 when all
        of the tenant's uploads together pass ``room``."""
        total = 0
        if self._uploads.total() >= MAX_UPLOADS or self._uploads[tenant] >= MAX_UPLOADS_OF_KEY:
            raise ApiError(
                503,
                f"{self._uploads[tenant]} files of this key are being uploaded, {self._uploads.total()} in all. "
                "Try again shortly.",
                type=UNAVAILABLE,
                code="server_is_overloaded",
                retry_after=UPLOAD_RETRY,
            )

        def account(size: int) -> None:
            nonlocal total
            total += size
            self._uploading[tenant] += size
            if self._uploading[tenant] > room:
                raise self._over_quota()

        self._uploads[tenant] += 1
        try:
            yield account
        finally:
            self._uploads[tenant] -= 1
            self._uploading[tenant] -= total
            if not self._uploads[tenant]:
                del self._uploads[tenant], self._uploading[tenant]

    async def add(
        self, tenant: str, content: PartialContent, *, filename: str, purpose: str, lifetime: int | None
    ) -> FileRecord:
        """Keep ``content``. Raises :class:`ApiError` 413 if the tenant's quota is used up, :class:`StoreError`."""
        record = self.record(tenant, content.size, filename=filename, purpose=purpose, lifetime=lifetime)

        def insert(connection: Connection) -> None:
            count, size = _stored(connection, self._mine(tenant))
            self._check_quota(count + 1, size + record.bytes)
            self.insert(connection, record)

        await self.on_disk(lambda: content.publish(record.id))
        try:
            await self._database.write(insert)
        except Exception:
            await self.on_disk(lambda: self._contents.remove(record.id))
            raise
        return record

    def record(
        self, tenant: str, size: int, *, filename: str, purpose: str, lifetime: int | None, file_id: str | None = None
    ) -> FileRecord:
        """A row to be; files of batches live :data:`BATCH_LIFETIME` if ``lifetime`` is None."""
        now = self._clock.now()
        if lifetime is None and purpose.startswith("batch"):
            lifetime = BATCH_LIFETIME
        return FileRecord(
            id=file_id or f"file-{secrets.token_hex(16)}",
            tenant=tenant,
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
            bytes=size,
            filename=filename,
            purpose=purpose,
        )

    def insert(self, connection: Connection, record: FileRecord) -> None:
        """Part of a writing transaction: the row of a content that is already in its place."""
        connection.execute(files.insert().values(**msgspec.structs.asdict(record), site=self._contents.site))

    async def get(self, tenant: str, file_id: str) -> FileRecord:
        """Raises :class:`ApiError` 404 if the tenant has no such file."""
        return await self._database.read(lambda connection: self.find(connection, tenant, file_id))

    def find(self, connection: Connection, tenant: str, file_id: str) -> FileRecord:
        """As :meth:`get`, within a transaction."""
        condition = [*self._mine(tenant), files.c.id == file_id]
        row = connection.execute(select(files).where(*condition)).one_or_none() if plain_id(file_id) else None
        if row is None:
            raise no_such("file", file_id)
        return as_struct(row, FileRecord)

    async def listed(self, tenant: str, page: Page, purpose: str | None = None) -> tuple[list[FileRecord], bool]:
        """A page of files, and whether there are more behind it."""

        def work(connection: Connection) -> tuple[list[FileRecord], bool]:
            conditions = self._mine(tenant)
            if purpose is not None:
                conditions.append(files.c.purpose == purpose)
            place: ColumnElement[int] = files.c.seq
            if page.after is not None:
                conditions.append(behind(connection, place, files.c.id, self._mine(tenant), page))
            query = select(files).where(*conditions).order_by(place.asc() if page.order == "asc" else place.desc())
            rows = connection.execute(query.limit(page.limit + 1)).all()
            return [as_struct(row, FileRecord) for row in rows[: page.limit]], len(rows) > page.limit

        return await self._database.read(work)

    async def delete(self, tenant: str, file_id: str) -> None:
        """Raises :class:`ApiError` 404 if there is none, 409 while a batch reads it."""

        def work(connection: Connection) -> None:
            self.find(connection, tenant, file_id)
            reader = connection.execute(
                select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.in_(UNFINISHED))
            ).scalar()
            if reader is not None:
                raise ApiError(
                    409,
                    f"The file {file_id!r} is the input of {reader!r}, which is at work. Cancel that batch first.",
                    code="file_in_use",
                    headers={"x-should-retry": "false"},
                )
            connection.execute(files.delete().where(files.c.id == file_id))

        await self._database.write(work)
        await self.on_disk(lambda: self._contents.remove(file_id))

    async def open(self, record: FileRecord) -> BinaryIO:
        """The content, to be read in a thread. Raises :class:`StoreError` if it is not there."""
        try:
            return await self.on_disk(lambda: self._contents.path(record.id).open("rb"))
        except OSError as error:
            raise store_error(error) or error from error

    async def sweep(self) -> int:
        """Remove expired files and contents without a row, if the clock is to be believed. Returns how many."""
        if not self._clock.may_delete():
            return 0
        busy = select(batches.c.input_file_id).where(batches.c.status.in_(UNFINISHED))
        here = files.c.site == self._contents.site

        def expire(connection: Connection) -> Sequence[str]:
            old = files.c.expires_at <= self._clock.now()
            gone = connection.execute(select(files.c.id).where(here, old, files.c.id.not_in(busy))).scalars().all()
            for start in range(0, len(gone), 500):
                connection.execute(files.delete().where(files.c.id.in_(gone[start : start + 500])))
            return gone

        def known(connection: Connection) -> set[str]:
            return set(connection.execute(select(files.c.id).where(here)).scalars())

        removed = set(await self._database.write(expire))
        aged = await self.on_disk(self._contents.aged)  # before the rows: what has one by now is none
        removed.update(set(aged) - await self._database.read(known))
        await self.on_disk(lambda: self._contents.remove_all(removed))
        return len(removed)

    def _mine(self, tenant: str) -> list[ColumnElement[bool]]:
        alive = or_(files.c.expires_at.is_(None), files.c.expires_at > self._clock.now())
        return [files.c.site == self._contents.site, files.c.tenant == tenant, alive]

    def _check_quota(self, count: int, size: int) -> None:
        if count > MAX_FILES or size > self._quota:
            raise self._over_quota()

    def _over_quota(self) -> ApiError:
        return ApiError(
            413,
            f"Your files would pass the limit of {MAX_FILES} files and {self._quota} bytes per key. "
            "Delete files that are no longer needed.",
            code="storage_quota_exceeded",
            headers={"connection": "close"},
        )


def no_such(kind: str, object_id: str) -> ApiError:
    """404, the same whether it never was or is another tenant's."""
    return ApiError(404, f"No such {kind} object: {object_id[:100]!r}.", param="id", code=f"{kind}_not_found")


def plain_id(text: str) -> bool:
    """Whether ``text`` can be an id at all; other text is not brought before the database."""
    return len(text) <= 64 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def behind(
    connection: Connection,
    place: ColumnElement[int],
    id_column: ColumnElement[str],
    mine: Sequence[ColumnElement[bool]],
    page: Page,
) -> ColumnElement[bool]:
    """The condition that a row comes after ``page.after``. Raises :class:`ApiError` 400 if the cursor names nothing."""
    after = page.after or ""
    seq = connection.execute(select(place).where(*mine, id_column == after)).scalar() if plain_id(after) else None
    if seq is None:
        raise ApiError(400, f"There is no object {after[:100]!r} to list after.", param="after", code="invalid_value")
    return place > seq if page.order == "asc" else place < seq


def _stored(connection: Connection, mine: Sequence[ColumnElement[bool]]) -> tuple[int, int]:
    count, size = connection.execute(
        select(func.count(), func.coalesce(func.sum(files.c.bytes), 0)).select_from(files).where(*mine)
    ).one()
    return count, int(size)
