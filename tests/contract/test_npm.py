"""The npm package ``openai`` over the endpoints: fetched once, into the cache; without node or network it skips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deepseek.hub.cache import cache_dir
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import running_server

FOLDER = Path(__file__).parent / "npm"
KEY = "sk-contract"
INSTALL_SECONDS = 120
TEST_SECONDS = 120


@pytest.fixture(scope="module")
def installed() -> Path:
    """A folder with the pinned package and our test beside it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    version = json.loads((FOLDER / "package.json").read_text())["dependencies"]["openai"]
    folder = cache_dir().parent / "npm" / f"openai-{version}"
    if not (folder / "node_modules" / "openai" / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / "package.json", folder)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install the package within {INSTALL_SECONDS} s")
        if done.returncode:
            pytest.skip(f"npm cannot install the package: {done.stderr[-300:]}")
    shutil.copy(FOLDER / "contract.test.mjs", folder)
    return folder


def test_the_npm_package_finds_what_it_expects(installed: Path) -> None:
    with running_server(api_keys=(KEY,)) as server:
        environment = {**os.environ, "DEEPSEEK_URL": server.url, "DEEPSEEK_KEY": KEY, "ANSWER": ANSWER}
        done = subprocess.run(
            ["node", "--test", "contract.test.mjs"],
            cwd=installed,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TEST_SECONDS,
        )
    assert done.returncode == 0, done.stdout + done.stderr
