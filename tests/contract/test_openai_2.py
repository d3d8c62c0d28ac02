"""The contract and our client's errors with the SDK's major version before: fetched once, into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deepseek.hub.cache import cache_dir

ROOT = Path(__file__).parents[2]
VERSION = "2.54.0"
PACKAGES = (f"openai=={VERSION}", "distro==1.9.0")  # what else it needs is among the development tools
INSTALL_SECONDS = 120
TEST_SECONDS = 240


@pytest.fixture(scope="module")
def installed() -> Path:
    """A folder to put first on the path."""
    folder = cache_dir().parent / "python" / f"openai-{VERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(made), *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode:
            pytest.skip(f"pip cannot install the package: {done.stderr[-300:]}")
        if not folder.is_dir():
            made.rename(folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not install the package within {INSTALL_SECONDS} s")
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def test_the_contract_holds_for_openai_2(installed: Path) -> None:
    tests = ["tests/contract/python", "tests/client/test_errors.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(installed), "CONTRACT_OPENAI_MAJOR": "2"},
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
