"""How OpenMP's threads wait for each other."""

from __future__ import annotations

import os

SPIN_COUNT = "20000"


def wait_politely() -> None:
    """Let OpenMP threads that wait for others spin for some microseconds and then sleep.

    A step has hundreds of short parallel regions. By default each ends with threads spinning for milliseconds; when
    another process wants one of the cores, they burn the time that the thread they wait for needs, and everything
    slows down many times over. Works only before torch is imported, since its OpenMP runtime reads the environment
    when it is loaded; a value that is set already is respected.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
