"""Peers that are Python packages: a worker script runs under the Python that has them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek.benchmark.engine import LOAD_TIMEOUT, time_in_worker
from deepseek.benchmark.peers.base import INSTALL_FOLDER, PeerSettings, configured, missing, variable
from deepseek.benchmark.peers.files import exported, requantized
from deepseek.benchmark.process import WorkerProcess, run_program
from deepseek.benchmark.scenarios import Scenario, figures
from deepseek.errors import BenchmarkError

SCRIPT = Path(__file__).parent / "scripts" / "peer_worker.py"


@dataclass(frozen=True)
class PythonPeer:
    """One Python package, as a :class:`deepseek.benchmark.peers.base.Peer`.

    Attributes:
        title: what tables call it.
        module: what its Python must be able to import.
        model_file: the path to give it, for a variant.
        defaults: its default variants.
        devices: where it can be compared.
    """

    name: str
    title: str
    module: str
    variants: tuple[str, ...]
    model_file: Callable[[str, PeerSettings], Path]
    defaults: Callable[[PeerSettings], tuple[str, ...]]
    devices: tuple[str, ...] = ("cpu",)

    def available(self) -> str | None:
        python = self._python()
        if python is None:
            return missing(self.name)
        check = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({self.module!r}) is None)"
        try:
            run_program(str(python), [python, "-c", check], 60)
        except BenchmarkError:
            return f"{python} cannot import {self.module}: correct {variable(self.name)} or run `make peer-{self.name}`"
        return None

    def default_variants(self, settings: PeerSettings) -> tuple[str, ...]:
        return self.defaults(settings)

    def open(self, variant: str, settings: PeerSettings) -> PythonContender:
        python = self._python()
        if python is None:
            raise BenchmarkError(f"{self.title}: {missing(self.name)}")
        return PythonContender(self, python, variant, settings)

    def _python(self) -> Path | None:
        chosen = configured(self.name)
        if chosen is not None:
            return chosen
        installed = (INSTALL_FOLDER / self.name / "bin" / "python").absolute()
        if installed.exists():
            return installed
        if self.name == "transformers" and importlib.util.find_spec("transformers"):
            return Path(sys.executable)
        return None


class PythonContender:
    """A live worker of a Python package."""

    warms_up = False

    def __init__(self, peer: PythonPeer, python: Path, variant: str, settings: PeerSettings) -> None:
        self.name = f"{peer.title} {variant_title(variant, settings)}"
        self.note = ""
        self._process = WorkerProcess(self.name, [str(python), str(SCRIPT), peer.name])
        question = {
            "op": "load",
            "model": str(peer.model_file(variant, settings)),
            "dtype": variant,
            "threads": settings.threads,
            "device": settings.device,
            "max_context": settings.max_context,
            "requests": settings.max_requests,
        }
        try:
            answer = self._process.ask(question, LOAD_TIMEOUT)
        except BaseException:
            self.close()
            raise
        self.version = str(answer["version"])
        self._flags = str(answer["flags"])

    def flags(self, scenario: Scenario) -> str:
        return self._flags

    def unsupported(self, scenario: Scenario) -> str | None:
        return "its speculation is not compared" if scenario.natural_end else None

    def run(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Mapping[str, float]:
        return figures(scenario, time_in_worker(self._process, scenario, prompts))

    def close(self) -> None:
        self._process.close()


def variant_title(variant: str, settings: PeerSettings) -> str:
    """``own`` by what the file's name says of its precision (``Q4_K_M``); others by themselves."""
    if variant != "own":
        return variant.upper() if variant.startswith("q") else variant
    parts = settings.model.stem.replace("-", ".").split(".")
    return next((part for part in parts if part[:1] in "QF" and part[1:2].isdigit()), "own file")


def openvino() -> PythonPeer:
    """OpenVINO GenAI: reads GGUF and converts its integers to its own."""
    return PythonPeer("openvino", "OpenVINO", "openvino_genai", ("own", "q8_0"), _gguf, lambda settings: ("own",))


def vllm() -> PythonPeer:
    """vLLM for CPUs: floats only, from the dequantized weights."""
    return PythonPeer("vllm", "vLLM", "vllm", ("fp32", "bf16"), exported, _best_float)


def transformers() -> PythonPeer:
    """Hugging Face transformers: floats only, from the dequantized weights; on a GPU with a static cache, whose steps
    it compiles."""
    return PythonPeer(
        "transformers", "transformers", "transformers", ("fp32", "bf16"), exported, _best_float, ("cpu", "cuda")
    )


def _best_float(settings: PeerSettings) -> tuple[str, ...]:
    fast = settings.device == "cuda" or {"amx_bf16", "avx512_bf16"} & settings.features
    return ("bf16",) if fast else ("fp32",)


def _gguf(variant: str, settings: PeerSettings) -> Path:
    if settings.model.suffix != ".gguf":
        raise BenchmarkError("OpenVINO is compared on GGUF files only.")
    return settings.model if variant == "own" else requantized(settings, "Q8_0")
