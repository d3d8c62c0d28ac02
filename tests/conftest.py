"""Fixtures that several folders share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepseek.errors import HubError
from deepseek.hub.resolve import resolve
from deepseek.threads import wait_politely

wait_politely()

# Without a GPU Triton's kernels run in its interpreter. Triton looks at this when it is imported, which other libraries
# do too.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# `make test-sanitized` puts another build of the extension in place. An editable installation finds its own first, so
# the other one must be there before anybody asks.
if folder := os.environ.get("DEEPSEEK_NATIVE"):
    (library,) = Path(folder).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("deepseek.kernels.cpu._native", library)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

TEST_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"


@pytest.fixture(scope="session", autouse=True)
def _data_dir_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers that are given no data directory must not write into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPSEEK_DATA", str(tmp_path_factory.mktemp("deepseek-data")))
        yield


@pytest.fixture(scope="session")
def test_model() -> Path:
    """The real SmolLM2-135M file, if it is in the cache (`make test` fetches it)."""
    try:
        return resolve(TEST_MODEL, offline=True).path
    except HubError as error:
        pytest.skip(f"{TEST_MODEL} is not in the cache: {error}")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, if it is in the cache (`make test` fetches it)."""
    try:
        return resolve(EMBEDDING_MODEL, offline=True).path
    except HubError as error:
        pytest.skip(f"{EMBEDDING_MODEL} is not in the cache: {error}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: ``$DEEPSEEK_EVAL_DATA``, or the one beside a development checkout."""
    named = os.environ.get("DEEPSEEK_EVAL_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout, and DEEPSEEK_EVAL_DATA names none")
    return folder
