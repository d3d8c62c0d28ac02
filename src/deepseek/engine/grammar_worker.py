"""Checks constraints, in a process of its own that the kernel ends when a check takes too long.

Started by :mod:`deepseek.engine.constraint_checker`; the protocol is that of :mod:`deepseek.helper`. The first frame is
the limits, then each is a constraint.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import struct
import sys
from typing import BinaryIO

import msgspec

from deepseek.constraints import Constraint
from deepseek.engine.grammar import check
from deepseek.errors import InvalidRequestError

_LENGTH = struct.Struct("<I")


class CheckLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one check may use.

    Attributes:
        cpu_seconds: processor time.
        wall_seconds: time on the clock.
        max_memory: bytes of address space of the process, everything included.
    """

    cpu_seconds: float = 1.5
    wall_seconds: float = 15.0
    max_memory: int = 1 << 30


def _read(stream: BinaryIO) -> bytes:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:  # the parent is gone
        sys.exit(0)
    return stream.read(_LENGTH.unpack(header)[0])


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    limits = msgspec.json.decode(_read(source), type=CheckLimits)
    import llguidance  # noqa: F401 - loaded before the first check is timed

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError):  # macOS knows the limit but may not set it; the timer remains
        resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        constraint = msgspec.json.decode(_read(source), type=Constraint)
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)  # SIGPROF's default action ends the process
        problem = None
        try:
            check(constraint)
        except InvalidRequestError as error:
            problem = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = msgspec.json.encode({"problem": problem})
        sink.write(_LENGTH.pack(len(data)) + data)
        sink.flush()


if __name__ == "__main__":
    main()
