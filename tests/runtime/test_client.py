"""Requests through a real engine process: streams, cancellation, and what happens when the process fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable

import pytest

from deepseek.embedding import floats
from deepseek.engine.events import EmbedRequest, GenerateRequest, ScoreRequest, TokenEvent
from deepseek.errors import EngineDeadError, EngineError, EngineOverloadedError, EngineStartError, InvalidRequestError
from deepseek.runtime.client import EngineClient
from deepseek.sampling import SamplingParams
from tests.runtime.conftest import fake_client
from tests.runtime.fake_engine import ANSWER, EOS, VOCAB, vector_of


def request(name: str, text: str = "hi", **params: object) -> GenerateRequest:
    return GenerateRequest(name, list(text.encode()), SamplingParams(**params))  # type: ignore[arg-type]


async def collect(client: EngineClient, req: GenerateRequest) -> list[TokenEvent]:
    return [event async for event in client.generate(req)]


pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_stream_has_all_tokens_and_one_terminal_event() -> None:
    async with fake_client() as client:
        info = await client.start()
        assert info.model == "tiny-fake-1b"
        events = await collect(client, request("a"))
        assert bytes(e.token_id for e in events[:-1]).decode() == ANSWER
        assert [e.finish_reason for e in events].count(None) == len(events) - 1
        assert events[-1].token_id == EOS and events[-1].stop_token and events[-1].finish_reason == "stop"
        assert client.pending == 0


async def test_many_requests_at_once_do_not_mix() -> None:
    async with fake_client() as client:
        await client.start()
        texts = await asyncio.gather(*(collect(client, request(f"r{i}", "[seed]", seed=i)) for i in range(50)))
        assert [bytes(e.token_id for e in t[:-1]).decode() for t in texts] == [str(i) for i in range(50)]


async def test_score() -> None:
    async with fake_client() as client:
        await client.start()
        event = await client.score(ScoreRequest("s", [1, 2, 3, 4], 2))
        assert event.logprobs == [-0.5, -0.5]


async def test_embed() -> None:
    async with fake_client() as client:
        await client.start()
        event = await client.embed(EmbedRequest("e", list(b"a cat"), dimensions=4))
        assert floats(event.vector).tolist() == pytest.approx(vector_of("a cat", 4))
        with pytest.raises(EngineError, match="not finite"):
            await client.embed(EmbedRequest("bad", list(b"[nan]")))
        task = asyncio.create_task(client.embed(EmbedRequest("held", list(b"[long]"))))
        await until(lambda: client.stats is not None and client.stats.running == 1)
        task.cancel()
        await until(lambda: client.stats is not None and client.stats.cancelled == 1)
        assert client.pending == 0


async def test_closing_the_iterator_cancels_in_the_engine() -> None:
    async with fake_client() as client:
        await client.start()
        async with contextlib.aclosing(client.generate(request("a", "[long][slow]"))) as stream:
            async for _ in stream:
                break
        assert client.pending == 0
        await until(lambda: client.stats is not None and client.stats.cancelled == 1)
        assert client.stats is not None and client.stats.running == 0


async def test_a_refused_request_fails_alone() -> None:
    async with fake_client() as client:
        await client.start()
        bad = GenerateRequest("bad", [VOCAB + 5], SamplingParams())
        good, refused = await asyncio.gather(collect(client, request("good")), collect(client, bad))
        assert good[-1].finish_reason == "stop"
        assert len(refused) == 1 and refused[0].finish_reason == "error"
        assert refused[0].error_code == "invalid_request"
        with pytest.raises(InvalidRequestError, match="already running"):
            await asyncio.gather(*(collect(client, request("same", "[slow]")) for _ in range(2)))


async def test_a_message_that_does_not_decode_fails_alone() -> None:
    async with fake_client() as client:
        await client.start()
        forged = GenerateRequest("forged", [1], "not params")  # type: ignore[arg-type]
        events = await collect(client, forged)
        assert events[-1].finish_reason == "error" and "params" in str(events[-1].error)
        assert (await collect(client, request("b")))[-1].finish_reason == "stop"


@pytest.mark.parametrize("death", ["[die]", "[raise]"])
async def test_death_fails_requests_readably_and_the_engine_returns(death: str) -> None:
    async with fake_client() as client:
        await client.start()
        victim, bystander = await asyncio.gather(
            collect(client, request("v", death)), collect(client, request("b", "[long]"))
        )
        for events in (victim, bystander):
            assert events[-1].finish_reason == "error" and events[-1].error_code == "engine_dead"
            assert "engine process" in str(events[-1].error) and "again" in str(events[-1].error)
            assert sum(e.finish_reason is not None for e in events) == 1
        with pytest.raises(EngineOverloadedError) as error:
            await collect(client, request("too early"))
        assert error.value.retry_after > 0
        async with asyncio.timeout(10):
            await client.wait_ready()
        assert (await collect(client, request("next")))[-1].finish_reason == "stop"
        assert client.restarts == 1


async def test_hanging_engine_loses_readiness_then_is_replaced() -> None:
    async with fake_client(stale_after=0.5, hang_timeout=1.5) as client:
        await client.start()
        task = asyncio.create_task(collect(client, request("h", "[hang]")))
        await until(lambda: not client.responsive)
        assert client.state == "ready"
        events = await task
        assert "no progress" in str(events[-1].error)
        async with asyncio.timeout(10):
            await client.wait_ready()
        assert client.responsive


async def test_stopped_engine_is_replaced() -> None:
    async with fake_client(stopped_timeout=0.5) as client:
        await client.start()
        assert client.pid is not None
        before = client.pid
        task = asyncio.create_task(collect(client, request("s", "[long][slow]")))
        os.kill(before, signal.SIGSTOP)
        await until(lambda: not client.responsive)
        events = await task
        assert "stopped by a signal" in str(events[-1].error)
        async with asyncio.timeout(10):
            await client.wait_ready()
        assert client.pid != before
        assert (await collect(client, request("next")))[-1].finish_reason == "stop"


async def test_stopped_engine_loses_readiness_while_idle_and_regains_it() -> None:
    async with fake_client(stale_after=0.5) as client:
        await client.start()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        try:
            await until(lambda: not client.responsive)
        finally:
            os.kill(client.pid, signal.SIGCONT)
        await until(lambda: client.responsive)


async def test_progress_of_loading() -> None:
    async with fake_client("steps") as client:
        client.start_soon()
        await until(lambda: client.loading is not None and client.loading > (3, 20))
        assert client.state == "starting" and client.info is None
        await client.wait_ready()
        assert client.loading == (20, 20)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")
async def test_an_engine_keeps_to_its_processors() -> None:
    cpu = max(os.sched_getaffinity(0))
    async with fake_client(cpus=(cpu,)) as client:
        await client.start()
        assert client.pid is not None and os.sched_getaffinity(client.pid) == {cpu}
    async with fake_client() as client:
        await client.start()
        assert client.pid is not None and os.sched_getaffinity(client.pid) == os.sched_getaffinity(0)


async def test_start_error_carries_the_reason_and_is_not_retried() -> None:
    async with fake_client("broken") as client:
        with pytest.raises(EngineStartError, match="truncated: delete it"):
            await client.start()
        assert client.state == "failed" and client.restarts == 0
        with pytest.raises(EngineDeadError, match="truncated"):
            await collect(client, request("a"))


async def test_crash_loop_ends_in_failed() -> None:
    async with fake_client("crash", max_failures=3) as client:
        with pytest.raises(EngineStartError, match="exit code 3"):
            async with asyncio.timeout(20):
                await client.start()
        assert client.restarts == 2


async def test_load_that_takes_too_long_is_given_up() -> None:
    async with fake_client("sleep60", start_timeout=0.5, max_failures=1) as client:
        with pytest.raises(EngineStartError, match=r"did not load within 0\.5 s"):
            await client.start()


async def test_slow_reader_is_cut_off_and_not_buffered_without_end() -> None:
    async with fake_client(stream_buffer=50) as client:
        await client.start()
        async with contextlib.aclosing(client.generate(request("a", "[long]", max_tokens=2000))) as stream:
            first = await anext(stream)
            assert first.finish_reason is None
            await until(lambda: client.stats is not None and client.stats.cancelled == 1)
            rest = [event async for event in stream]
        assert rest[-1].error_code == "slow_reader"


async def test_stop_ends_the_process_and_its_requests() -> None:
    async with fake_client() as client:
        await client.start()
        pid = client.pid
        assert pid is not None
        task = asyncio.create_task(collect(client, request("a", "[long][slow]")))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await client.stop()
        assert time.monotonic() - started < 2
        assert (await task)[-1].error_code == "shutting_down"
        assert client.state == "stopped"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
