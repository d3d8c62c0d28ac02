"""llama.cpp, by its own benchmark programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deepseek.benchmark.peers.base import PeerSettings, missing
from deepseek.benchmark.peers.files import requantized
from deepseek.benchmark.peers.llama_build import (
    PEER,
    build_version,
    find_build,
    lacking,
    parse_batched,
    parse_bench,
    speculation_types,
)
from deepseek.benchmark.peers.llama_server import SPECULATION, decode_rate, server_program
from deepseek.benchmark.peers.python_peer import variant_title
from deepseek.benchmark.process import run_program
from deepseek.benchmark.scenarios import WITHOUT, Scenario
from deepseek.errors import BenchmarkError

TIMEOUT = 1800.0


class LlamaCpp:
    """llama.cpp as a :class:`deepseek.benchmark.peers.base.Peer`."""

    name = PEER
    variants: tuple[str, ...] = ("own", "q8_0")
    devices: tuple[str, ...] = ("cpu",)

    def available(self) -> str | None:
        build = find_build()
        return missing(self.name) if build is None else lacking(build)

    def default_variants(self, settings: PeerSettings) -> tuple[str, ...]:
        """The file itself; a Q8_0 one too, or alone, where ours runs in INT8."""
        if "int8" not in settings.our_dtypes:
            return ("own",)
        return ("q8_0",) if set(settings.our_dtypes) == {"int8"} else ("own", "q8_0")

    def open(self, variant: str, settings: PeerSettings) -> LlamaContender:
        if settings.model.suffix != ".gguf":
            raise BenchmarkError(f"llama.cpp reads GGUF files only, and {settings.model} is none.")
        build = find_build()
        if build is None:
            raise BenchmarkError(f"llama.cpp: {missing(self.name)}")
        return LlamaContender(build, variant, settings)


class LlamaContender:
    """llama.cpp with one file. Nothing stays alive between runs; each program warms up by itself."""

    warms_up = True

    def __init__(self, build: Path, variant: str, settings: PeerSettings) -> None:
        self._build = build
        self._file = settings.model if variant == "own" else requantized(settings, variant.upper())
        self._threads = str(settings.threads)
        self._repack = True
        self._kinds: list[str] = []
        self.name = f"llama.cpp {variant_title(variant, settings)}"
        self.version = build_version(build)
        self.note = ""
        self._probe()

    def _probe(self) -> None:
        """See that it runs at all. Builds by old compilers crash in their AMX kernels: those run without repacking."""
        try:
            self._bench("-p", "32", "-n", "1")
        except BenchmarkError as error:
            if "crashed" not in str(error):
                raise
            self._repack = False
            self._bench("-p", "32", "-n", "1")
            self.note = "this build crashes with its default flags; it ran without repacked weights, below its best"

    def flags(self, scenario: Scenario) -> str:
        common = f"-t {self._threads}{'' if self._repack else ' no repacking'}"
        if scenario.name == "speculation":
            return f"llama-server {common} best of --spec-type {', '.join(self._types())}"
        program = "llama-batched-bench" if scenario.name == "batch" else "llama-bench"
        return f"{program} {common} best of -fa on, off"

    def unsupported(self, scenario: Scenario) -> str | None:
        if scenario.name == "speculation" and server_program(self._build) is None:
            return f"{self._build} has no llama-server"
        return None

    def run(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Mapping[str, float]:
        match scenario.name:
            case "prefill":
                return self._best(scenario, "-p", str(scenario.prompt), "-n", "0")
            case "decode":
                return self._best(scenario, "-p", "0", "-n", str(scenario.output))
            case "context":
                return self._best(scenario, "-p", "0", "-n", str(scenario.output - 1), "-d", str(scenario.prompt))
            case "batch":
                return self._batch(scenario)
            case "speculation":
                return self._edit(scenario, prompts)
        raise BenchmarkError(f"llama.cpp has no program for the scenario {scenario.name!r}.")

    def close(self) -> None:
        """Nothing is alive."""

    def _bench(self, *arguments: str, flash: str = "on,off") -> list[Mapping[str, float]]:
        command: list[str | Path] = [
            self._build / "llama-bench",
            "-m",
            self._file,
            "-t",
            self._threads,
            "-r",
            "1",
            "-o",
            "json",
        ]
        options = ["-fa", flash, "--repack", "1" if self._repack else "0"]
        return parse_bench(run_program("llama-bench", [*command, *options, *arguments], TIMEOUT))

    def _best(self, scenario: Scenario, *arguments: str) -> Mapping[str, float]:
        name = scenario.figures[0]
        rates = {f"{name}, flash {int(test['flash_attn'])}": test["avg_ts"] for test in self._bench(*arguments)}
        return {name: max(rates.values()), **rates}

    def _batch(self, scenario: Scenario) -> Mapping[str, float]:
        cells = scenario.requests * (scenario.prompt + scenario.output)
        whole, decode = scenario.figures
        results: dict[str, float] = {}
        for flash in ("on", "off"):
            shape = f"-npp {scenario.prompt} -ntg {scenario.output} -npl {scenario.requests} -c {cells} -fa {flash}"
            options = ["-t", self._threads, *shape.split(), "--output-format", "jsonl"]
            if not self._repack:
                options.append("--no-repack")
            command: list[str | Path] = [self._build / "llama-batched-bench", "-m", self._file, *options]
            test = parse_batched(run_program("llama-batched-bench", command, TIMEOUT))
            rate = test["pl"] * test["tg"] / test["t"]
            results[f"{whole}, flash {int(flash == 'on')}"] = rate
            results[whole] = max(rate, results.get(whole, 0.0))
            results[decode] = max(test["speed_tg"], results.get(decode, 0.0))
        return results

    def _types(self) -> list[str]:
        """Labels of the kinds of speculation that this build knows."""
        if not self._kinds:
            known = speculation_types(
                run_program("llama-server", [self._build / "llama-server", "--help"], 60, both=True)
            )
            self._kinds = [label for label, options in SPECULATION.items() if not options or options[1] in known]
        return self._kinds

    def _edit(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Mapping[str, float]:
        context = max(len(prompt) for prompt in prompts) + scenario.output + 64
        command = [
            *(str(self._build / "llama-server"), "-m", str(self._file), "-t", self._threads, "-np", "1"),
            *("-c", str(context), "--no-ui"),
            *(() if self._repack else ("--no-repack",)),
        ]
        results: dict[str, float] = {}
        for label in self._types():
            rate = decode_rate([*command, *SPECULATION[label]], prompts, scenario.output)
            results[WITHOUT if label == "none" else f"edit_decode_tok_s, {label}"] = rate
        return {scenario.figures[0]: max(results.values()), **results}
