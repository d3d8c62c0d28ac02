"""An engine process's log in the API process's log."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest

from deepseek.runtime import log_pipe
from deepseek.runtime.log_pipe import MAX_LINE, LogPipe
from tests.runtime.conftest import fake_client

pytestmark = pytest.mark.anyio

CHILD = """
import logging, os, sys
sys.path.insert(0, {path!r})
from deepseek.runtime.log_pipe import log_to_parent
log_to_parent("info")
logger = logging.getLogger("deepseek.worker")
{body}
"""


async def said(body: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records that a process with this program leaves."""
    source = str(log_pipe.__file__).partition("/deepseek/runtime")[0]
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    pipe = LogPipe("tiny")
    program = CHILD.format(path=source, body=body)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=pipe.writer, stderr=pipe.writer
    )
    await pipe.listen(process.pid)
    await process.wait()
    await pipe.close()
    records = [record for record in caplog.records if hasattr(record, "fields")]
    for record in records:
        assert record.fields == {"model": "tiny", "pid": process.pid}
    return records


async def test_records_keep_level_logger_time_and_exception(caplog: pytest.LogCaptureFixture) -> None:
    body = 'logger.info("ready for %s", "work")\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    logger.exception("no")'
    info, failure = await said(body, caplog)
    assert (info.levelno, info.name, info.getMessage()) == (logging.INFO, "deepseek.worker", "ready for work")
    assert info.exc_text is None
    assert failure.levelno == logging.ERROR and failure.exc_text is not None
    assert "ZeroDivisionError" in failure.exc_text and 0 < info.created <= failure.created


async def test_what_is_no_record_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    body = r"""
print("100% from a library\r", flush=True)
os.write(2, b"bytes \xff \x00\n")
os.write(2, b'{"level": 50}\n\n')
"""
    lines = await said(body, caplog)
    assert [line.getMessage() for line in lines] == ["100% from a library", "bytes \\xff \x00", '{"level": 50}']
    assert {(line.levelno, line.name) for line in lines} == {(logging.WARNING, "deepseek.engine.output")}


async def test_a_line_break_in_a_message_makes_no_second_record(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = await said('logger.warning("one\\n%s", "{\\"time\\": 1}\\n\\ud800 %d")', caplog)
    assert record.getMessage() == 'one\n{"time": 1}\n\\ud800 %d'


@pytest.mark.parametrize("length", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 5 * MAX_LINE])
async def test_long_lines_are_cut_and_nothing_is_lost(length: int, caplog: pytest.LogCaptureFixture) -> None:
    lines = await said(f'os.write(2, b"x" * {length}) and print("end", flush=True)', caplog)
    text = "".join(line.getMessage() for line in lines)
    assert text.count("x") == length and text.endswith("end")


async def test_last_words_of_a_crash_are_read(caplog: pytest.LogCaptureFixture) -> None:
    lines = await said('print("terminate called", file=sys.stderr, end="", flush=True)\nos.abort()', caplog)
    assert [line.getMessage() for line in lines] == ["terminate called"]


async def test_children_that_keep_the_pipe_do_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    body = 'import subprocess\nchild = subprocess.Popen(["sleep", "30"])\nprint(child.pid, flush=True)'
    async with asyncio.timeout(10):
        (line,) = await said(body, caplog)
    os.kill(int(line.getMessage()), 9)


async def test_pipes_of_ended_engines_are_closed() -> None:
    counts = []
    for _ in range(3):
        async with fake_client() as client:
            await client.start()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert counts[2] <= counts[0]
