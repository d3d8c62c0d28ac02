"""The commands of the documentation run as they stand, in their order, against a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import RealServer
from tests.e2e.test_adapters import lora

ROOT = Path(__file__).parents[1]
ADDRESS = "http://127.0.0.1:8000"
PAGES = ("docs/quickstart.md", "docs/api.md")
# Programs of somebody else, and a server of one's own.
ELSEWHERE = ("prometheus ", "deepseek serve", "pip install", "npm ")
# Notes the status of each request; what curl prints stays as it is.
CURL = """#!/bin/sh
exec {curl} -sS --max-time 120 --write-out '%{{stderr}}%{{http_code}} %{{url}}\\n' "$@" 2>>"$STATUSES"
"""


@pytest.fixture(scope="module")
def server(test_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    data = tmp_path_factory.mktemp("data")
    models = tmp_path_factory.mktemp("models")
    lora(models / "adapters" / "support", seed=0)
    options = ("--dtype", "int8", "--tool-parser", "hermes", "--kv-cache-bytes", "512MiB", "--allow-model-loading")
    running = RealServer(str(test_model), *options, "--data-dir", str(data), "--model-dir", str(models))
    try:
        yield running
    finally:
        running.stop()


def blocks(page: str) -> list[str]:
    found = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if not any(word in block for word in ELSEWHERE)]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_runs(page: str, server: RealServer, tmp_path: Path) -> None:
    """A block says `HTTP/1.1 NNN` where its last request is not answered with success."""
    curl = tmp_path / "bin/curl"
    curl.parent.mkdir()
    curl.write_text(CURL.format(curl=shutil.which("curl")), encoding="ascii")
    curl.chmod(0o755)
    found = blocks(page)
    assert len(found) >= 5
    script = ["set -eu", 'export STATUSES="$HOME/statuses"']
    for number, block in enumerate(found):
        script += [f'echo "block {number}" >>"$STATUSES"', block.replace(ADDRESS, server.url)]
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "KEY": "sk-unused",
        "PATH": f"{curl.parent}:{os.environ['PATH']}",
    }
    run = subprocess.run(
        ["bash"], input="\n".join(script), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    statuses = (tmp_path / "statuses").read_text(encoding="utf-8")
    assert run.returncode == 0, statuses[-1000:] + run.stdout[-2000:] + run.stderr[-2000:]
    parts = re.split(r"^block \d+\n", statuses, flags=re.MULTILINE)[1:]
    for block, part in zip(found, parts, strict=True):
        answered = [int(line.split()[0]) for line in part.splitlines() if line[:3].isdigit()]
        claimed = re.search(r"HTTP/1\.1 (\d{3})", block)
        if claimed:
            assert answered[-1] == int(claimed[1]), f"{block}\n{part}"
            answered = answered[:-1]
        assert all(200 <= status < 300 for status in answered), f"{block}\n{part}"
