"""A whole server in a process of its own, with the scripted engine: ``python run_server.py JSON``."""

from __future__ import annotations

import os
import sys

import msgspec

from deepseek.errors import DeepSeekError
from deepseek_serve.config import ServeConfig
from deepseek_serve.server import serve
from tests.runtime.conftest import fake_options
from tests.runtime.fake_engine import FakeTokenizer


def main() -> int:
    config = msgspec.json.decode(sys.argv[1], type=ServeConfig)
    options = fake_options(os.environ.get("DEEPSEEK_FAKE_LOAD", ""), **msgspec.json.decode(sys.argv[2]))
    try:
        serve(config, options=options, load_tokenizer=lambda: ("tiny-fake-1b", FakeTokenizer()))  # type: ignore[arg-type,return-value]
    except DeepSeekError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
