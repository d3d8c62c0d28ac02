"""The server's own process: how promptly its event loop turns, and how many files it may open."""

from __future__ import annotations

import asyncio
import logging
import time

from deepseek_serve.observability.histogram import Distribution

logger = logging.getLogger("deepseek.serve")

LAG_INTERVAL = 0.25  # seconds
ENOUGH_FILES = 1 << 20
FILES_BESIDE_SOCKETS = 256


async def watch_lag(distribution: Distribution) -> None:
    """Observe, until cancelled, by how many seconds the event loop wakes too late."""
    while True:
        due = time.monotonic() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        distribution.observe(max(0.0, time.monotonic() - due))


def raise_file_limit(connections: int) -> int:
    """Raise the soft limit on open files to the hard one, since each connection is one; returns the limit.

    ``connections`` is how many there may well be; a limit too low for them is a warning.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            logger.warning("the limit on open files stays %d: %s", soft, error)
        else:
            logger.info("raised the limit on open files from %d to %d", soft, wanted)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < connections + FILES_BESIDE_SOCKETS:
        logger.warning(
            "only %d files may be open, and %d answers may be in work: raise the hard limit (ulimit -Hn)",
            limit,
            connections,
        )
    return limit
