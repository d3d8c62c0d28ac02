"""Programs that misbehave in every way that the containment promises to stop."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deepseek.errors import ConfigurationError
from deepseek_eval.sandbox import MOST_OUTPUT, obstacle, run_program

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def test_a_program_that_ends_has_passed() -> None:
    outcome = run_program("import asyncio, math, re\nasyncio.run(asyncio.sleep(0))\nprint('é', math.gcd(12, 18))")
    assert outcome.passed and outcome.reason == ""
    assert outcome.stdout == "é 6\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\nassert x == 2, 'no'", "AssertionError: no (line 2)"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("def f():\n    return 1 / 0\nf()", "ZeroDivisionError: division by zero (line 2)"),
        ("import sys\nsys.exit(0)\nassert False", "left with exit code 0"),
        ("import os\nos._exit(0)\nassert False", "left with exit code 0"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("x = '\\ud800'\nraise ValueError(x)", "ValueError"),
        ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_why_a_program_failed(source: str, reason: str) -> None:
    outcome = run_program(source)
    assert not outcome.passed
    assert outcome.reason.startswith(reason)


@pytest.mark.parametrize("source", ["while True: pass", "import time\ntime.sleep(60)", "input()\nwhile True: pass"])
def test_loops_are_ended(source: str) -> None:
    started = time.monotonic()
    outcome = run_program(source, timeout=0.5)
    assert not outcome.passed
    assert outcome.reason in ("timeout", "EOFError: EOF when reading a line (line 1)")
    assert time.monotonic() - started < 3


def test_many_threads_share_the_processor_seconds() -> None:
    source = (
        "import threading\nthreads = [threading.Thread(target=lambda: [0 for _ in iter(int, 1)]) for _ in range(8)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]"
    )
    started = time.monotonic()
    assert run_program(source, timeout=1, memory_bytes=2**30).reason == "timeout"
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fork()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '1'])",
        "import os\nos.system('true') == 0 or 1 / 0",
        "import os, sys\nos.execv(sys.executable, ['python'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 0)",
        "import os, signal\nos.killpg(0, signal.SIGSTOP)",
        "import os\nos.setsid()",
    ],
)
def test_no_other_processes(source: str) -> None:
    outcome = run_program(source)
    assert not outcome.passed
    assert "PermissionError" in outcome.reason or "ZeroDivisionError" in outcome.reason


@pytest.mark.parametrize(
    "source",
    [
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 80))",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
    ],
)
def test_no_network(source: str) -> None:
    outcome = run_program(source)
    assert not outcome.passed
    assert "Errno 1]" in outcome.reason or "PermissionError" in outcome.reason or "gaierror" in outcome.reason


def test_files_outside_stay_as_they_are(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o644)
    for attempt in (
        f"open({str(victim)!r}, 'w')",
        f"open({str(victim)!r}, 'a')",
        f"import os\nos.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os\nos.truncate({str(victim)!r}, 0)",
        f"import os\nos.unlink({str(victim)!r})",
        f"import os\nos.chmod({str(victim)!r}, 0)",
        f"import os\nos.utime({str(victim)!r}, (0, 0))",
        f"import os\nos.rename({str(victim)!r}, {str(tmp_path / 'b')!r})",
        f"import os\nos.link({str(victim)!r}, 'mine')\nopen('mine', 'w')",
        f"import os\nos.symlink({str(victim)!r}, 'mine')\nopen('mine', 'w')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os\nos.mkdir({str(tmp_path / 'folder')!r})",
    ):
        outcome = run_program(attempt)
        assert not outcome.passed, attempt
        assert "PermissionError" in outcome.reason or "OSError" in outcome.reason, (attempt, outcome)
    assert victim.read_text() == "whole"
    assert victim.stat().st_mtime > 0 and victim.stat().st_mode & 0o777 == 0o644
    assert sorted(tmp_path.iterdir()) == [victim]


def test_what_others_own_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    for path in (tmp_path / "secret", Path("/etc/passwd"), Path("/proc/self/environ"), Path("/proc/1/cmdline")):
        outcome = run_program(f"print(open({str(path)!r}).read())")
        assert not outcome.passed and outcome.stdout == "", path


def test_the_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert "secret" not in run_program("import os\nprint(dict(os.environ))").stdout


def test_its_own_folder_is_written_and_gone_afterwards() -> None:
    outcome = run_program("import os\nopen('a', 'w').write('b')\nassert open('a').read() == 'b'\nprint(os.getcwd())")
    assert outcome.passed, outcome
    assert not Path(outcome.stdout.strip()).exists()


def test_memory_is_limited() -> None:
    assert run_program("x = bytearray(2**30)").reason.startswith("MemoryError")
    assert run_program("x = []\nwhile True: x.append(bytearray(2**20))").reason.startswith("MemoryError")
    assert run_program("import mmap\nmmap.mmap(-1, 2**30)").passed is False


def test_limits_cannot_be_raised() -> None:
    source = "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))"
    assert not run_program(source).passed


def test_floods_of_output_are_cut() -> None:
    for source in ("while True: print('x' * 1000)", "import sys\nwhile True: sys.stderr.write('y' * 1000)"):
        outcome = run_program(source)
        assert outcome.reason == "too much output"
        assert len(outcome.stdout) + len(outcome.stderr) <= MOST_OUTPUT


def test_floods_of_files_are_ended() -> None:
    source = "import itertools\nfor i in itertools.count(): open(f'{i}', 'wb').write(bytes(2**20))"
    assert run_program(source).reason == "too many files"
    assert not run_program("open('a', 'wb').write(bytes(2**23))").passed


def test_a_long_program_is_fed_whole() -> None:
    padding = "# " + "x" * 1_000_000 + "\n"
    assert run_program(padding + "print('end')").stdout == "end\n"


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"timeout": -1}, {"memory_bytes": 1}])
def test_impossible_limits(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        run_program("pass", **limits)
