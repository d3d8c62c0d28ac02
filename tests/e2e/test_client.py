"""Our own client with a real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from deepseek import Client
from tests.e2e.conftest import KEY, RealServer

API = Path(__file__).parents[2] / "docs" / "api.md"
PARIS = "What is the capital of France?"


def test_an_answer_and_its_tokens(server: RealServer) -> None:
    with Client(base_url=server.url, api_key=KEY) as client:
        assert "Paris" in "".join(client.stream_text(PARIS, temperature=0, max_tokens=30))
        tokens = client.tokenize(PARIS)
        assert client.detokenize(tokens.tokens) == PARIS and tokens.count == len(tokens.tokens)


def test_the_program_of_the_documentation(server: RealServer) -> None:
    section = API.read_text(encoding="utf-8").partition("\n## Python client\n")[2].partition("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    environment = {**os.environ, "DEEPSEEK_BASE_URL": server.url, "DEEPSEEK_API_KEY": KEY}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed" in done.stdout and "\nrequest-4 " in done.stdout
    assert "temperature must be in [0, 2]" in done.stdout
    assert "Health(ready=True" in done.stdout
