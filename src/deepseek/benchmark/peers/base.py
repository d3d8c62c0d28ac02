"""What a peer is, and where it is found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deepseek.benchmark.scenarios import Scenario

INSTALL_FOLDER = Path(".venv-peers")
"""Where `make peer-...` puts virtual environments, below the current folder."""


@dataclass(frozen=True)
class PeerSettings:
    """What every contender of a run shares.

    Attributes:
        model: the model's ``.gguf`` file, or folder of safetensors.
        threads: CPU threads.
        max_context: tokens per request that the scenarios need.
        max_requests: requests at once that they need.
        our_dtypes: precisions that ours runs in; a peer's default variants are chosen to match.
        features: the processor's instruction sets that matter (``amx_bf16``).
        cache: folder for model files made for a peer.
        device: where all run, ``cpu`` or ``cuda``.
    """

    model: Path
    threads: int
    max_context: int
    max_requests: int
    our_dtypes: tuple[str, ...]
    features: frozenset[str]
    cache: Path
    device: str = "cpu"


class Contender(Protocol):
    """An engine, ours or a peer's, with a model in one precision, ready to run.

    Attributes:
        name: unique in a run, as the table shows it.
        version: of the engine.
        note: what a reader must know of how it ran, or empty.
        warms_up: whether each run warms up by itself, so that no unmeasured round is needed.
    """

    name: str
    note: str
    warms_up: bool

    @property
    def version(self) -> str: ...

    def flags(self, scenario: Scenario) -> str:
        """The options it runs this scenario with."""
        ...

    def unsupported(self, scenario: Scenario) -> str | None:
        """Why it cannot do this, or None."""
        ...

    def run(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Mapping[str, float]:
        """The scenario's figures, and any others with names of their own. Raises BenchmarkError."""
        ...

    def close(self) -> None:
        """Free everything. Safe to call twice."""
        ...


class Peer(Protocol):
    """Another engine, installed or not.

    Attributes:
        name: as the command line knows it.
        variants: precisions it can run in; ``own`` is the model file as it is.
        devices: where it can be compared.
    """

    @property
    def name(self) -> str: ...

    @property
    def variants(self) -> tuple[str, ...]: ...

    @property
    def devices(self) -> tuple[str, ...]: ...

    def available(self) -> str | None:
        """None, or why it cannot run and what to do."""
        ...

    def default_variants(self, settings: PeerSettings) -> tuple[str, ...]:
        """What is run if nobody chooses."""
        ...

    def open(self, variant: str, settings: PeerSettings) -> Contender:
        """Load the model. Raises BenchmarkError."""
        ...


def variable(name: str) -> str:
    """The environment variable that says where a peer is."""
    return "DEEPSEEK_PEER_" + name.upper().replace("-", "_")


def configured(name: str) -> Path | None:
    """What the peer's environment variable says, if it is set. The path is made absolute, symbolic links are kept: a
    virtual environment's Python is one."""
    value = os.environ.get(variable(name))
    return Path(value).expanduser().absolute() if value else None


def missing(name: str) -> str:
    """What to say of a peer that is not there."""
    return f"not installed: run `make peer-{name}`, or set {variable(name)}"
