"""llama.cpp behind a long context: its server with one model, keys and values of one type or another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepseek.benchmark.peers.base import PeerSettings, missing
from deepseek.benchmark.peers.files import requantized
from deepseek.benchmark.peers.llama_build import PEER, Timings, build_version, find_build
from deepseek.benchmark.peers.llama_server import long_context, server_program
from deepseek.errors import BenchmarkError

CACHE_TYPES = {"f16": 2.0, "q8_0": 34 / 32}
"""Types of keys and values, and the bytes that a number takes in each."""


class LlamaContext:
    """llama.cpp with the file that ours reads, or in Q8_0 where ours runs in INT8. Nothing stays alive between runs.

    Attributes:
        version: of llama.cpp.
        note: what a reader must know of how it ran, or empty.

    Raises:
        BenchmarkError: it is not there, or cannot read the model.
    """

    def __init__(self, settings: PeerSettings) -> None:
        build = find_build()
        if build is None:
            raise BenchmarkError(missing(PEER))
        if server_program(build) is None:
            raise BenchmarkError(f"{build} has no llama-server")
        if settings.model.suffix != ".gguf":
            raise BenchmarkError(f"llama.cpp reads GGUF files only, and {settings.model} is none.")
        self.version = build_version(build, "llama-server")
        self.note = ""
        self._program = build / "llama-server"
        self._file: Path = requantized(settings, "Q8_0") if settings.our_dtypes == ("int8",) else settings.model
        self._threads = settings.threads

    def run(
        self, prompt: Sequence[int], output: int, cache_type: str, timeout: float
    ) -> tuple[Timings, int | None, str]:
        """Times, peak memory and flags with one long prompt, flash attention, and keys and values in ``cache_type``.

        Builds by old compilers crash in their AMX kernels: those run without repacked weights.

        Raises BenchmarkError.
        """
        flags = ["-t", str(self._threads), "-np", "1", "-c", str(len(prompt) + output + 64), "-fa", "on"]
        flags += ["-ctk", cache_type, "-ctv", cache_type, *(["--no-repack"] if self.note else [])]
        command = [str(self._program), "-m", str(self._file), *flags, "--no-ui"]
        try:
            timings, peak = long_context(command, prompt, output, timeout)
        except BenchmarkError as error:
            if self.note or "crashed" not in str(error):
                raise
            self.note = "this build crashes with its default flags; it ran without repacked weights, below its best"
            return self.run(prompt, output, cache_type, timeout)
        return timings, peak, " ".join(flags)
