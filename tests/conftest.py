"""Fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepseek.errors import HubError
from deepseek.hub.resolve import resolve
from deepseek.threads import wait_politely

wait_politely()

# `make test-sanitized` puts another build of the extension in place.
if folder := os.environ.get("DEEPSEEK_NATIVE"):
    import deepseek.kernels.cpu

    deepseek.kernels.cpu.__path__.insert(0, folder)

TEST_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def test_model() -> Path:
    """The real SmolLM2-135M file, if it is in the cache (`make test` fetches it)."""
    try:
        return resolve(TEST_MODEL, offline=True).path
    except HubError as error:
        pytest.skip(f"{TEST_MODEL} is not in the cache: {error}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside a development checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return folder
