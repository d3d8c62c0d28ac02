"""A whole server in a process of its own, with the scripted engine: ``python run_server.py JSON``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from deepseek.errors import DeepSeekError, DownloadError
from deepseek.hub.progress import Progress
from deepseek_serve.config import ServeConfig
from deepseek_serve.memory import stored_bytes
from deepseek_serve.server import serve
from deepseek_serve.sources import Place, Source
from tests.runtime.conftest import fake_options
from tests.runtime.fake_engine import ENCODER, FakeTokenizer


def fetch(place: Place, offline: bool, progress: Progress) -> Source:
    """No files are needed. What is of ``slow/`` takes two seconds to come, what is of ``gone/`` does not."""
    if place.model.startswith("gone/"):
        raise DownloadError(f"{place.model} cannot be reached (offline: {offline}).")
    if place.model.startswith("slow/"):
        progress.start(place.name, 2000)
        for done in range(0, 2000, 100):
            progress.update(done, "")
            time.sleep(0.1)
        progress.finish()
    path = Path(place.model)
    weights = stored_bytes(path) if path.exists() else 2**20
    name = place.name if place.published or path.exists() or place.model == ENCODER else "tiny-fake-1b"
    return Source(name, place.model, weights, FakeTokenizer)  # type: ignore[arg-type]


def main() -> int:
    config = msgspec.json.decode(sys.argv[1], type=ServeConfig)
    options = fake_options(os.environ.get("DEEPSEEK_FAKE_LOAD", ""), **msgspec.json.decode(sys.argv[2]))
    try:
        serve(config, options=options, fetch=fetch)
    except DeepSeekError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
