"""Fuzz one target, guided by coverage: `python -m tests.fuzz TARGET [--seconds N]`, or `make fuzz`.

An input that breaks a target is written to the current folder as ``crash-...``; give it as ``--input`` to see it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["deepseek", "deepseek_serve"]):
    from tests.fuzz.targets import TARGETS

MEMORY_MIB = 4096
INPUT_SECONDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--input", type=Path, help="run this one input and end")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    if arguments.input is not None:
        target.run(arguments.input.read_bytes())
        return
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        limits = [f"-max_total_time={arguments.seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"]
        atheris.Setup([sys.argv[0], corpus, *limits], target.run)
        atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
