"""What a client is told when the store cannot do its work. Live generation never needs the store."""

from __future__ import annotations

import errno
import sqlite3

import sqlalchemy.exc

from deepseek_serve.errors import SERVER_ERROR, UNAVAILABLE, ApiError

RETRY_AFTER = 5.0  # seconds
SQLITE_FULL = 13
POSTGRES_FULL = "53100"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ApiError):
    """The store cannot do what was asked, through no fault of the client."""


class StoreUnavailableError(StoreError):
    """The database or the data directory cannot be used now (503).

    Attributes:
        reason: for the log; it may name hosts and users, so clients are not told.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            503,
            "The server's store of files, batches, responses and usage is not available. Try again later; requests "
            "that need none of them are not affected.",
            type=UNAVAILABLE,
            code="store_unavailable",
            retry_after=RETRY_AFTER,
        )
        self.reason = reason

    def __str__(self) -> str:
        return f"the store is not available: {self.reason}"


class StoreFullError(StoreError):
    """No room on the disk (507). Clients are told not to retry at once: it needs an operator."""

    def __init__(self) -> None:
        super().__init__(
            507,
            "The server's store has no room left. Delete files that are no longer needed, or tell its operator.",
            type=SERVER_ERROR,
            code="insufficient_storage",
            headers={"x-should-retry": "false"},
        )


def store_error(error: Exception) -> StoreError | None:
    """The :class:`StoreError` that a failure of database or disk stands for; None if it is a mistake of ours."""
    match error:
        case StoreError():
            return error
        case OSError():
            return StoreFullError() if error.errno in NO_ROOM else StoreUnavailableError(error.strerror or str(error))
        case sqlalchemy.exc.TimeoutError():
            return StoreUnavailableError("all connections to the database are busy")
        case sqlalchemy.exc.IntegrityError() | sqlalchemy.exc.ProgrammingError() | sqlalchemy.exc.DataError():
            return None
        case sqlalchemy.exc.DBAPIError():
            return _from_driver(error.orig)
        case sqlite3.Error():  # while a connection is set up
            return _from_driver(error)
        case _:
            return None


def _from_driver(error: BaseException | None) -> StoreError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == SQLITE_FULL or getattr(error, "sqlstate", "") == POSTGRES_FULL:
        return StoreFullError()
    first_line = str(error).strip().partition("\n")[0] or type(error).__name__
    return StoreUnavailableError(first_line.rstrip("."))
