"""The tables. Times are Unix seconds; JSON documents are text, since nothing in them is ever searched.

``site`` is the data directory that has a file's contents: servers with directories of their own may share a database.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()
_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up INTEGER keys only

version = Table(
    "deepseek_schema",
    metadata,
    Column("version", Integer, nullable=False),
    Column("database_id", String(32), nullable=False),  # names the folder of its files' contents
)

files = Table(
    "deepseek_files",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("site", String(32), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("bytes", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Index("deepseek_files_by_tenant", "site", "tenant", "seq"),
    sqlite_autoincrement=True,
)

batches = Table(
    "deepseek_batches",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("site", String(32), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("server", String(64), nullable=False),  # which servers may run it: those of the same model
    Column("status", String(16), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("output_expires_after", BigInteger),
    Column("model", Text),
    Column("metadata", Text),
    Column("errors", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("total", BigInteger, nullable=False, default=0),
    Column("completed", BigInteger, nullable=False, default=0),
    Column("failed", BigInteger, nullable=False, default=0),
    Column("prompt_tokens", BigInteger, nullable=False, default=0),
    Column("cached_tokens", BigInteger, nullable=False, default=0),
    Column("completion_tokens", BigInteger, nullable=False, default=0),
    Column("reasoning_tokens", BigInteger, nullable=False, default=0),
    Index("deepseek_batches_by_tenant", "site", "tenant", "seq"),
    Index("deepseek_batches_by_status", "site", "status"),
    sqlite_autoincrement=True,
)

batch_lines = Table(  # lines that are done, of batches that are not
    "deepseek_batch_lines",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    Column("ok", Boolean, nullable=False),
    Column("result", Text, nullable=False),
)

responses = Table(
    "deepseek_responses",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("model", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("previous_id", String(64)),
    Column("body", Text, nullable=False),
    Column("input_items", Text, nullable=False),
    Column("owner", String(64)),  # the process that is at work on it; null when it has ended
    Index("deepseek_responses_by_expiry", "expires_at"),
    Index("deepseek_responses_by_owner", "owner"),
    sqlite_autoincrement=True,
)

usage = Table(  # one row per key, model and hour
    "deepseek_usage",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Index("deepseek_usage_by_hour", "hour"),
)
