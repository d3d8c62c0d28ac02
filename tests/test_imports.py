"""Imports point down the house only, and the light entry points stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

# From top to bottom: a package imports only from those below it, and from itself.
HOUSE = [
    "deepseek_cli",
    "deepseek_apps",
    "deepseek_deploy",
    "deepseek_eval",
    "deepseek_tune",
    "deepseek_serve",
    "deepseek_guard",
    "deepseek",
]
# The same inside `deepseek`; names on one line may import each other's modules but not in a circle.
ROOMS = [
    ["benchmark", "quantization", "quality", "client", "export"],
    ["llm", "scoring"],
    ["runtime"],
    ["engine"],
    ["multimodal"],
    ["models"],
    ["layers"],
    ["quant"],
    ["adapters"],
    ["kernels"],
    ["attention"],
    ["tokenizer"],
    ["hub"],
    ["config", "constraints", "sampling", "machine", "threads", "helper", "embedding", "charts"],
    ["errors"],
]
# Modules that hold messages and settings only: anybody may import them.
CONTRACTS = {"deepseek.engine.events", "deepseek.attention.policy", "deepseek.models.base", "deepseek.kernels.paging"}
HEAVY = (
    *("torch", "transformers", "fastapi", "uvicorn", "numpy", "tokenizers", "huggingface_hub", "zmq", "gguf"),
    *("llguidance", "openai", "peft", "pyarrow", "accelerate", "matplotlib", "yaml"),
)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def room(module: str) -> int | None:
    """The floor of a module inside ``deepseek``, counted from the top."""
    parts = module.split(".")
    if parts[0] != "deepseek" or len(parts) == 1:
        return None
    floors = [i for i, names in enumerate(ROOMS) if parts[1] in names]
    assert floors, f"{module} has no place in ROOMS"
    return floors[0]


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    package = module.split(".")[0]
    for name in imported(path):
        target = name.split(".")[0]
        if target not in HOUSE or name in CONTRACTS:
            continue
        assert HOUSE.index(target) >= HOUSE.index(package), f"{module} imports {name}: upwards"
        above, below = room(module), room(name)
        if above is not None and below is not None:
            assert below >= above, f"{module} imports {name}: upwards"


def test_the_product_never_unpickles() -> None:
    for module, path in modules():
        assert not {"pickle", "marshal", "shelve", "dill"}.intersection(imported(path)), module
        assert "torch.load(" not in path.read_text(encoding="utf-8"), module


@pytest.mark.parametrize(
    "module",
    [
        *("deepseek", "deepseek_cli.main", "deepseek.config", "deepseek.constraints", "deepseek.engine.events"),
        *("deepseek_eval", "deepseek_tune"),
    ],
)
def test_light_imports_stay_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_the_public_interface_to_the_letter() -> None:
    code = "from deepseek import LLM, SamplingParams; print(LLM.__name__, SamplingParams.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == ["LLM", "SamplingParams"]
