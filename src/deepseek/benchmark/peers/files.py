"""Model files made for peers from the file that is measured; kept in the model cache."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from deepseek.benchmark.engine import LOAD_TIMEOUT, start_worker
from deepseek.benchmark.peers.base import PeerSettings
from deepseek.benchmark.peers.llama_build import find_build
from deepseek.benchmark.process import run_program
from deepseek.errors import BenchmarkError


def exported(dtype: str, settings: PeerSettings) -> Path:
    """The weights in ``dtype`` as a Hugging Face folder; a folder is taken as it is. Raises BenchmarkError."""
    if settings.model.is_dir():
        return settings.model
    folder = settings.cache / f"{settings.model.stem}-{_key(settings.model)}-{dtype}"
    if not folder.exists():
        partial = _partial(folder)
        process = start_worker("the export")
        try:
            question = {"op": "export", "model": str(settings.model), "dtype": dtype, "folder": str(partial)}
            process.ask(question, LOAD_TIMEOUT)
        finally:
            process.close()
        partial.rename(folder)
    return folder


def requantized(settings: PeerSettings, scheme: str) -> Path:
    """The GGUF file in another of llama.cpp's types, made by `llama-quantize`. Raises BenchmarkError without it."""
    if settings.model.suffix != ".gguf":
        raise BenchmarkError(f"llama.cpp reads GGUF files only, and {settings.model} is none.")
    path = settings.cache / f"{settings.model.stem}-{_key(settings.model)}-{scheme}.gguf"
    if not path.exists():
        build = find_build()
        if build is None:
            raise BenchmarkError(f"a {scheme} file is made by llama-quantize, and llama.cpp is not installed.")
        partial = _partial(path)
        options = ["--allow-requantize", str(settings.model), str(partial), scheme, str(settings.threads)]
        run_program("llama-quantize", [build / "llama-quantize", *options], LOAD_TIMEOUT)
        partial.rename(path)
    return path


def _partial(path: Path) -> Path:
    """A name beside ``path`` for what is not finished, with nothing there."""
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    return partial


def _key(path: Path) -> str:
    """Another file under the same name gets another key."""
    status = path.stat()
    return hashlib.sha256(f"{path.resolve()}/{status.st_size}/{status.st_mtime_ns}".encode()).hexdigest()[:8]
