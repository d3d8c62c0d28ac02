"""``models``."""

from __future__ import annotations

import openai
import pytest

from tests.serve.conftest import MODEL


def test_list_and_retrieve(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list()
    assert (model.id, model.object) == (MODEL, "model") and model.created > 0
    assert sdk.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"
