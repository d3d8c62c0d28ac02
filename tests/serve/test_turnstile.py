"""A burst of requests begins a few per turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from deepseek_serve.turnstile import AT_A_TIME, Turnstile


class Recorder:
    """An application that notes in which turn of the loop each request began."""

    def __init__(self) -> None:
        self.turn = 0
        self.begun: list[tuple[str, int]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.append((scope["path"], self.turn))

    def count_turns(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.count_turns)


async def _nothing(*_: Any) -> Any:
    raise AssertionError("the recorder neither reads nor writes")


def _scope(path: str) -> dict[str, Any]:
    return {"type": "http", "path": path}


def test_a_burst_is_spread_over_turns_in_its_order_and_probes_overtake() -> None:
    async def run() -> Recorder:
        recorder = Recorder()
        turnstile = Turnstile(recorder, exempt=("/health/live",))
        asyncio.get_running_loop().call_soon(recorder.count_turns)
        burst = [asyncio.create_task(turnstile(_scope(f"/{i}"), _nothing, _nothing)) for i in range(101)]
        probe = asyncio.create_task(turnstile(_scope("/health/live"), _nothing, _nothing))
        await asyncio.gather(*burst, probe)
        return recorder

    recorder = asyncio.run(run())
    paths = [path for path, _ in recorder.begun]
    assert paths[0] == "/health/live"
    assert paths[1:] == [f"/{i}" for i in range(101)]
    per_turn: dict[int, int] = {}
    for path, turn in recorder.begun:
        if path != "/health/live":
            per_turn[turn] = per_turn.get(turn, 0) + 1
    assert max(per_turn.values()) <= AT_A_TIME
    assert len(per_turn) >= 101 // AT_A_TIME


def test_who_leaves_the_queue_takes_nobody_with_him() -> None:
    async def run() -> Recorder:
        recorder = Recorder()
        turnstile = Turnstile(recorder, exempt=())
        tasks = [asyncio.create_task(turnstile(_scope(f"/{i}"), _nothing, _nothing)) for i in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turnstile(_scope("/later"), _nothing, _nothing)
        return recorder

    begun = [path for path, _ in asyncio.run(run()).begun]
    assert begun[-1] == "/later"
    assert set(begun) >= {f"/{i}" for i in range(1, 20, 2)}
