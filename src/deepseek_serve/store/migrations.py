"""From the schema that is there to the one this program needs. Forward only, in one transaction, one process at a time.

An empty database gets the newest schema at once; an older one goes through the steps between. A step is never changed
after it was released, so it spells its DDL out and does not use ``schema.py``, which moves on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, MetaData, inspect, select, text

from deepseek.errors import ConfigurationError
from deepseek_serve.store import schema

Step = Callable[[Connection], None]
LOCK = 0x6465657073656B  # number of PostgreSQL's advisory lock
VERSION = 2


def _owners_of_responses(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE deepseek_responses ADD COLUMN owner VARCHAR(64)"))
    connection.execute(text("CREATE INDEX deepseek_responses_by_owner ON deepseek_responses (owner)"))


STEPS: Mapping[int, Step] = {2: _owners_of_responses}  # version -> what leads to it from the version before


def migrate(
    connection: Connection,
    *,
    target: int = VERSION,
    steps: Mapping[int, Step] = STEPS,
    metadata: MetaData = schema.metadata,
) -> str:
    """Bring the schema to ``target`` within the caller's writing transaction; returns the database's random name.

    Raises :class:`ConfigurationError` if the database was written by a newer program.
    """
    if connection.dialect.name == "postgresql":  # SQLite's writing transactions exclude each other anyway
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    found = 0
    if inspect(connection).has_table(schema.version.name):
        found = connection.execute(select(schema.version.c.version)).scalar_one()
    if found > target:
        raise ConfigurationError(
            f"the database has schema version {found}, and this program knows versions up to {target}: it was used by "
            "a newer release. Upgrade this one, or choose another data directory or database."
        )
    if found == 0:
        metadata.create_all(connection)
        connection.execute(schema.version.insert().values(version=target, database_id=secrets.token_hex(16)))
    elif found < target:
        for number in range(found + 1, target + 1):
            steps[number](connection)
        connection.execute(schema.version.update().values(version=target))
    return str(connection.execute(select(schema.version.c.database_id)).scalar_one())
