"""The npm package ``openai`` over the endpoints: fetched once, into the cache; without node or network it skips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek.hub.cache import cache_dir
from tests.contract import node as contract
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server

FOLDER = Path(__file__).parent / "npm"
INSTALL_SECONDS = 120
TEST_SECONDS = 120


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with contract.node() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our tests with the pinned package beside them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    version = json.loads((FOLDER / "package.json").read_text())["dependencies"]["openai"]
    cached = cache_dir().parent / "npm" / f"openai-{version}"
    if not (cached / "node_modules" / "openai" / "package.json").exists():
        cached.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / "package.json", cached)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=cached, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install the package within {INSTALL_SECONDS} s")
        if done.returncode:
            pytest.skip(f"npm cannot install the package: {done.stderr[-300:]}")
    made = tmp_path_factory.mktemp("npm") / "tests"
    shutil.copytree(FOLDER, made)
    (made / "node_modules").symlink_to(cached / "node_modules")
    return made


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.test.mjs")))
def test_the_npm_package_finds_what_it_expects(folder: Path, server: Server, file: str) -> None:
    limits = {name: value for name, value in vars(contract).items() if name.isupper()}
    environment = {"DEEPSEEK_URL": server.url, "LIMITS": json.dumps(limits), "ANSWER": ANSWER}
    done = subprocess.run(
        ["node", "--test", file],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
