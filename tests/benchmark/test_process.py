"""Live workers: answers, refusals, deaths, time limits, and silence between questions."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepseek.benchmark.process import WorkerProcess, ending, run_program
from deepseek.errors import BenchmarkError

WORKER = """
    import json, sys, time
    for line in sys.stdin:
        question = json.loads(line)
        if question["op"] == "die":
            print("the last words", file=sys.stderr)
            sys.exit(3)
        if question["op"] == "sleep":
            time.sleep(60)
        print("no json" if question["op"] == "babble" else json.dumps(question["reply"]), flush=True)
"""


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess("the test worker", [sys.executable, "-c", textwrap.dedent(WORKER)])
    yield process
    process.close()


def test_questions_are_answered_in_turn_and_the_worker_stops_between(worker: WorkerProcess) -> None:
    long = list(range(50_000))
    assert worker.ask({"op": "echo", "reply": {"a": long}}, 30) == {"a": long}
    assert worker.ask({"op": "echo", "reply": {"b": 2}}, 30) == {"b": 2}
    child = psutil.Process(worker._process.pid)
    deadline = time.monotonic() + 30
    while child.status() != psutil.STATUS_STOPPED:  # the signal takes a moment
        assert time.monotonic() < deadline, "the worker was not stopped"
        time.sleep(0.01)
    worker.close()
    worker.close()
    assert not child.is_running()


@pytest.mark.parametrize(
    ("question", "timeout", "words"),
    [
        ({"op": "echo", "reply": {"error": "too big"}}, 30, "the test worker: too big"),
        ({"op": "echo", "reply": [1]}, 30, "instead of an object"),
        ({"op": "babble"}, 30, "instead of JSON"),
        ({"op": "die"}, 30, "ended with status 3: the last words"),
        ({"op": "sleep"}, 0.2, "did not answer within"),
    ],
)
def test_what_goes_wrong_is_said(
    worker: WorkerProcess, question: dict[str, object], timeout: float, words: str
) -> None:
    with pytest.raises(BenchmarkError, match=words):
        worker.ask(question, timeout)


def test_programs(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    assert run_program("it", [sys.executable, "-c", code], 30) == "out\n"
    assert run_program("it", [sys.executable, "-c", code], 30, both=True) == "out\nerr\n"
    with pytest.raises(BenchmarkError, match="it crashed with SIGSEGV"):
        run_program("it", [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], 30)
    with pytest.raises(BenchmarkError, match="did not end within"):
        run_program("it", [sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    with pytest.raises(BenchmarkError, match="cannot be started"):
        run_program("it", [tmp_path / "nothing"], 30)
    with pytest.raises(BenchmarkError, match="cannot be started"):
        WorkerProcess("it", [str(tmp_path / "nothing")])
    assert ending(4) == "ended with status 4"
