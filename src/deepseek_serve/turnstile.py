"""Requests that come all at once begin a few at a time, so that the event loop turns between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

AT_A_TIME = 4


class Turnstile:
    """Lets :data:`AT_A_TIME` requests begin per turn of the event loop, in the order of their coming.

    A request's beginning (its JSON, its validation, its refusal) takes a fraction of a millisecond, and the loop would
    run all beginnings that are ready, thousands after a burst, before it looks at a socket again. Streams that run and
    probes of the ``exempt`` paths would wait for all of them; so they wait for a few.
    """

    def __init__(self, app: ASGIApp, exempt: Collection[str]) -> None:
        self._app = app
        self._exempt = frozenset(exempt)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._exempt:
            await self._turn()
        await self._app(scope, receive, send)

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._release, loop)
        mine = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        let = 0
        while self._waiting and let < AT_A_TIME:
            future = self._waiting.popleft()
            if not future.done():  # cancelled while it waited
                future.set_result(None)
                let += 1
        self._turning = bool(self._waiting)
        if self._turning:
            loop.call_soon(self._release, loop)
