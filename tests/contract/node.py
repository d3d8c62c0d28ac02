"""The server that clients of others meet: a key for each limit, and room for a few answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from deepseek_serve.auth import ApiKey
from tests.serve.conftest import Server, running_server

KEY = "sk-contract"
OTHER_KEY = "sk-somebody-else"
ONE_A_MINUTE = "sk-one-a-minute"
MANY_A_MINUTE = "sk-many-a-minute"
ONE_AT_A_TIME = "sk-one-at-a-time"
FEW_TOKENS = "sk-few-tokens"
POOR = "sk-poor"
BODY_BYTES = 50_000
FILE_BYTES = 100_000
ROOM = 16  # answers at a time
OF_ONE_KEY = 14  # of them may be one key's: the others keep some room


@contextlib.contextmanager
def node() -> Iterator[Server]:
    keys = (
        ApiKey.of(KEY),
        ApiKey.of(OTHER_KEY),
        ApiKey.of(ONE_A_MINUTE, requests_per_minute=1),
        ApiKey.of(MANY_A_MINUTE, requests_per_minute=1000),
        ApiKey.of(ONE_AT_A_TIME, concurrency=1),
        ApiKey.of(FEW_TOKENS, tokens_per_minute=100),
        ApiKey.of(POOR, monthly_tokens=1),
    )
    with running_server(
        api_keys=keys, max_body_bytes=BODY_BYTES, max_file_bytes=FILE_BYTES, max_sequences=ROOM
    ) as server:
        yield server
