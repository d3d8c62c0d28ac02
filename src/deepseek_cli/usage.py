"""``deepseek usage``: what each key has used, for whoever runs the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.errors import ConfigurationError

if TYPE_CHECKING:
    from deepseek_serve.store.usage import UsageRow

DAY = 86_400


def usage(
    days: Annotated[int, typer.Option(min=1, max=3660, help="days until now, of UTC")] = 30,
    per_day: Annotated[bool, typer.Option("--per-day", help="a row per day, not one for all")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="the server's [default: $DEEPSEEK_DATA, else ~/.local/share/deepseek]")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(envvar="DEEPSEEK_DATABASE_URL", help="the server's, if it has one")
    ] = None,
) -> None:
    """Show requests and tokens per key and model. A running server's last second may be missing."""
    import asyncio
    import time

    from rich.console import Console
    from rich.table import Table

    today = int(time.time()) // DAY * DAY
    rows = asyncio.run(_rows(data_dir, database_url, today - (days - 1) * DAY, today + DAY))
    columns = ("requests", "errors", "cancelled", "prompt", "cached", "answers", "reasoning")
    table = Table(*(["day"] if per_day else []), "key", "model", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    for label, spent in _sums(rows, per_day):
        table.add_row(*label, *(f"{count:,}" for count in spent))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe gets whole lines
    console.print(table if rows else f"Nothing was used in the last {days} days.")


async def _rows(data_dir: Path | None, database_url: str | None, start: int, end: int) -> list[UsageRow]:
    from deepseek_serve.store.clock import Clock
    from deepseek_serve.store.database import Database, sqlite_url
    from deepseek_serve.store.store import DATABASE_FILE, default_data_dir
    from deepseek_serve.store.usage import UsageStore

    path = (data_dir or default_data_dir()).expanduser() / DATABASE_FILE
    if database_url is None and not path.exists():
        raise ConfigurationError(f"no server has kept anything at {path}. Name its --data-dir or --database-url.")
    database = Database(database_url or sqlite_url(path))
    try:
        await database.open()
        return await UsageStore(database, Clock()).rows(start, end, tenant=None, bucket=DAY, by_model=True)
    finally:
        await database.close()


def _sums(rows: list[UsageRow], per_day: bool) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    from datetime import UTC, datetime

    import msgspec

    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        day = [datetime.fromtimestamp(row.start, UTC).strftime("%Y-%m-%d")] if per_day else []
        label = (*day, row.tenant or "(no keys)", row.model)
        total = sums.setdefault(label, [0] * 7)
        for index, count in enumerate(msgspec.structs.astuple(row.spent)):
            total[index] += count
    return sorted((label, tuple(total)) for label, total in sums.items())
