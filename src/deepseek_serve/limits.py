"""What one key may do: requests and tokens per minute, answers at a time, tokens per month; and how long a body may be.

Requests and tokens are counted in windows of one minute that begin with their first request, in memory or, for
several nodes together, in Redis (:mod:`limits`). Tokens are reserved when a request is let in, its prompts and what
its answers may grow to, and corrected when it has ended. A refused request takes nothing from the limit that refused
it.

While Redis cannot be reached each node counts by itself, which is logged and counted: limits protect the other keys,
so neither is everybody refused nor everything let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from starlette.requests import Request

from deepseek.errors import ConfigurationError
from deepseek_serve.admission import Stock
from deepseek_serve.auth import ApiKey
from deepseek_serve.errors import ApiError

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import FixedWindowRateLimiter

logger = logging.getLogger("deepseek.serve")

T = TypeVar("T")
MEMORY = "memory"
STORES = ("redis://", "rediss://")
PERIOD = 60  # seconds of a window
STORE_TIMEOUT = 1.0  # seconds for one question to Redis
STORE_PAUSE = 5.0  # seconds without Redis after it has failed
STORE_CONNECTIONS = 32
SILENCE = 60.0  # seconds without a byte of a body after which the client is given up


class Ledger(Protocol):
    """What each tenant has used this month."""

    async def tokens_this_month(self, tenant: str) -> int:
        """Prompt and answer tokens of this calendar month, UTC."""
        ...

    def add(self, tenant: str, tokens: int) -> None:
        """A request of the tenant's has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """A counter's state: its limit, what is used of it, and the seconds until it is 0 again."""

    limit: int
    used: int
    reset: float


class Windows:
    """Named counters of one minute. Made without an event loop, used within one.

    Attributes:
        failures: how often Redis failed.
    """

    def __init__(self, store: str = MEMORY) -> None:
        if store != MEMORY and not store.startswith(STORES):
            raise ConfigurationError(
                f"limits_store must be 'memory' or an address as redis://host:6379/0, not {store!r}."
            )
        if store != MEMORY and importlib.util.find_spec("redis") is None:
            raise ConfigurationError("limits in Redis need the package redis: pip install 'deepseek-platform[redis]'.")
        self.failures = 0
        self._store = store
        self._shared: FixedWindowRateLimiter | None = None
        self._own: FixedWindowRateLimiter | None = None
        self._shared_from = 0.0  # monotonic time before which Redis is left alone

    async def take(self, name: str, limit: int, amount: int) -> tuple[bool, Window]:
        """Count ``amount`` if it fits. Returns whether it does, and the window afterwards."""

        async def ask(limiter: FixedWindowRateLimiter) -> tuple[bool, Window]:
            window = await _look(limiter, name, limit)
            if window.used + amount > limit:
                return False, window
            item = _item(limit)
            if amount and not await limiter.hit(item, name, cost=amount):  # others were faster
                await limiter.hit(item, name, cost=-amount)
                return False, await _look(limiter, name, limit)
            return True, Window(limit, window.used + amount, window.reset)

        return await self._ask(ask)

    async def correct(self, name: str, limit: int, change: int) -> None:
        """Add ``change``, whether it fits or not."""

        async def ask(limiter: FixedWindowRateLimiter) -> None:
            await limiter.hit(_item(limit), name, cost=change)

        await self._ask(ask)

    async def _ask(self, question: Callable[[FixedWindowRateLimiter], Awaitable[T]]) -> T:
        """Ask Redis if there is one and it answers, else this node's memory."""
        from limits.errors import StorageError

        if self._store != MEMORY and time.monotonic() >= self._shared_from:
            try:
                async with asyncio.timeout(STORE_TIMEOUT):
                    return await question(self._shared_limiter())
            except (StorageError, OSError) as error:  # TimeoutError is an OSError
                self.failures += 1
                self._shared_from = time.monotonic() + STORE_PAUSE
                reason = str(error) or type(error).__name__
                logger.error("rate limits: Redis failed (%s); each node counts by itself meanwhile", reason)
        return await question(self._own_limiter())

    def _own_limiter(self) -> FixedWindowRateLimiter:
        if self._own is None:
            from limits.aio.storage import MemoryStorage
            from limits.aio.strategies import FixedWindowRateLimiter

            self._own = FixedWindowRateLimiter(MemoryStorage())
        return self._own

    def _shared_limiter(self) -> FixedWindowRateLimiter:
        if self._shared is None:
            from limits.aio.storage import RedisStorage
            from limits.aio.strategies import FixedWindowRateLimiter
            from redis.asyncio import BlockingConnectionPool

            pool = BlockingConnectionPool.from_url(
                self._store,
                max_connections=STORE_CONNECTIONS,
                timeout=STORE_TIMEOUT,
                socket_timeout=STORE_TIMEOUT,
                socket_connect_timeout=STORE_TIMEOUT,
            )
            storage = RedisStorage(
                f"async+{self._store}",
                wrap_exceptions=True,
                implementation="redispy",
                connection_pool=pool,  # type: ignore[arg-type]  # passed on to redis.asyncio.Redis
            )
            self._shared = FixedWindowRateLimiter(storage)
        return self._shared


def _item(limit: int) -> RateLimitItem:
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(limit, namespace="deepseek")


async def _look(limiter: FixedWindowRateLimiter, name: str, limit: int) -> Window:
    item = _item(limit)
    stats = await limiter.get_window_stats(item, name)
    reset = stats.reset_time - time.time()
    if reset > PERIOD + 1:  # the clock was set back: the window would last as much longer
        await limiter.clear(item, name)
        return Window(limit, 0, PERIOD)
    used = limit - stats.remaining
    return Window(limit, max(used, 0), max(reset, 0.0) if used > 0 else PERIOD)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens counted in advance."""

    name: str
    limit: int
    tokens: int
    until: float  # monotonic time at which the window ends


class Limits:
    """The limits of all keys of one server.

    Attributes:
        windows: the counters.
        ledger: what is used of monthly quotas.
        refusals: why how many requests were refused.
    """

    def __init__(self, store: str, ledger: Ledger) -> None:
        self.windows = Windows(store)
        self.ledger = ledger
        self.refusals: Counter[str] = Counter()
        self._answers: dict[str, Stock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, request: Request, key: ApiKey) -> None:
        """Count a request, and leave what its answer's headers say about limits in ``request.state.headers``.

        Only what asks for work counts: a GET is free. Raises :class:`ApiError` 429 beyond the key's requests per
        minute, 402 when its quota is used up.
        """
        counts = request.method == "POST"
        headers: dict[str, str] = {}
        request.state.headers = headers
        if key.requests_per_minute is not None:
            name = f"requests:{key.tenant}"
            fits, window = await self.windows.take(name, key.requests_per_minute, int(counts))
            _show(headers, "requests", window)
            if not fits:
                raise self._reached(key, "requests", "requests per min (RPM)", window, 1)
        if key.tokens_per_minute is not None:
            _, window = await self.windows.take(f"tokens:{key.tenant}", key.tokens_per_minute, 0)
            _show(headers, "tokens", window)
        if counts:
            await self.check_quota(key)

    async def check_quota(self, key: ApiKey) -> None:
        """Raises :class:`ApiError` 402 when the key's quota is used up."""
        if key.monthly_tokens is None:
            return
        used = await self.ledger.tokens_this_month(key.tenant)
        if used >= key.monthly_tokens:
            self.refusals["quota"] += 1
            raise ApiError(
                402,
                f"You exceeded your current quota: API key '{key.tenant}' has used {used} of its "
                f"{key.monthly_tokens} tokens of this month. Ask the operator of this server for more.",
                type="insufficient_quota",
                code="insufficient_quota",
                headers={"x-should-retry": "false"},
            )

    @contextlib.contextmanager
    def answers(self, key: ApiKey, count: int) -> Iterator[None]:
        """Hold ``count`` of the answers that a key may have in work. Raises :class:`ApiError` 429."""
        if key.concurrency is None:
            yield
            return
        stock = self._answers.setdefault(key.tenant, Stock(key.concurrency))
        if missing := stock.missing(count):
            window = Window(key.concurrency, stock.in_use, stock.wait_for(missing))
            raise self._reached(key, "concurrency", "answers at a time", window, count)
        entered = stock.enter(count)
        try:
            yield
        finally:
            stock.leave(count, entered)

    async def reserve(self, request: Request, key: ApiKey, tokens: int) -> Reservation | None:
        """Count tokens of a request in advance; None for a key without such a limit. Raises :class:`ApiError` 429."""
        if key.tokens_per_minute is None:
            return None
        name = f"tokens:{key.tenant}"
        fits, window = await self.windows.take(name, key.tokens_per_minute, tokens)
        _show(request.state.headers, "tokens", window)
        if not fits:
            raise self._reached(key, "tokens", "tokens per min (TPM)", window, tokens)
        return Reservation(name, key.tokens_per_minute, tokens, time.monotonic() + window.reset)

    def settle(self, key: ApiKey, reservation: Reservation | None, tokens: int) -> None:
        """A request has ended and used ``tokens``: correct what was reserved. Tokens reserved in a window that is over
        are not given back to a later one."""
        if tokens:
            self.ledger.add(key.tenant, tokens)
        if reservation is None:
            return
        change = tokens - reservation.tokens
        over = time.monotonic() >= reservation.until - 1.0  # Redis tells the rest of a window in whole seconds
        if change > 0 or (change < 0 and not over):
            task = asyncio.create_task(self.windows.correct(reservation.name, reservation.limit, change))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _reached(self, key: ApiKey, kind: str, what: str, window: Window, requested: int) -> ApiError:
        """The 429 of a limit, in OpenAI's words."""
        self.refusals[kind] += 1
        where = f"for API key '{key.tenant}' on {what}: Limit {window.limit}"
        if requested > window.limit:
            things = "answers" if kind == "concurrency" else kind
            return ApiError(
                429,
                f"Request too large {where}, Requested {requested}. Ask for fewer {things}: sending the same request "
                "again cannot succeed.",
                type=kind,
                code="rate_limit_exceeded",
                headers={"x-should-retry": "false"},
            )
        return ApiError(
            429,
            f"Rate limit reached {where}, Used {window.used}, Requested {requested}. "
            f"Please try again in {duration(window.reset)}.",
            type=kind,
            code="rate_limit_exceeded",
            retry_after=window.reset,
        )


def duration(seconds: float) -> str:
    """``12ms``, ``1s``, ``6m0s``, as OpenAI writes durations; never less than the truth."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


def _show(headers: dict[str, str], kind: str, window: Window) -> None:
    headers[f"x-ratelimit-limit-{kind}"] = str(window.limit)
    headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, window.limit - window.used))
    headers[f"x-ratelimit-reset-{kind}"] = duration(window.reset if window.used else 0.0)


async def body_parts(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises :class:`ApiError` 408 for a client who stops sending."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                part = await anext(stream, None)
        except TimeoutError:
            message = f"Nothing was received for {SILENCE:g} seconds."
            raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
        if part is None:
            return
        yield part


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises :class:`ApiError` 413 as soon as it is known to be longer than ``limit`` bytes, 408."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    parts, size = [], 0
    async for part in body_parts(request):
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
    return b"".join(parts)


def too_large(limit: int) -> ApiError:
    """413; the connection is closed, since the rest of the body is not read."""
    message = f"The request body is too large: at most {limit} bytes."
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})
