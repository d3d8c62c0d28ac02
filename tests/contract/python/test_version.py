from __future__ import annotations

import os

import openai


def test_the_major_version_is_the_one_that_is_meant() -> None:
    assert openai.__version__.partition(".")[0] == os.environ.get("CONTRACT_OPENAI_MAJOR", "3")
