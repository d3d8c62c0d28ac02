from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from deepseek.runtime.supervisor import RestartPolicy, RuntimeOptions
from tests.runtime.conftest import TESTS

ORPHAN = """
import asyncio, sys
from runtime.conftest import fake_client
async def main():
    async with fake_client() as client:
        await client.start()
        print(client.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def test_backoff_grows_to_its_cap_and_then_gives_up() -> None:
    policy = RestartPolicy(RuntimeOptions(max_failures=6, first_backoff=1.0, max_backoff=3.0))
    assert [policy.after_end(served=False, ready_seconds=0) for _ in range(6)] == [0.0, 1.0, 2.0, 3.0, 3.0, None]


def test_a_served_token_or_a_healthy_minute_forgives() -> None:
    policy = RestartPolicy(RuntimeOptions(max_failures=2))
    assert policy.after_end(served=False, ready_seconds=1) == 0.0
    assert policy.after_end(served=True, ready_seconds=1) == 0.0
    assert policy.after_end(served=False, ready_seconds=61) == 0.0
    assert policy.after_end(served=False, ready_seconds=1) is None


def test_engine_ends_when_its_parent_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + 5
    while _running(engine):
        assert time.monotonic() < deadline, "the engine outlived its parent"
        time.sleep(0.05)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
