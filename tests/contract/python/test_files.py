"""``files``."""

from __future__ import annotations

import openai
import pytest

from tests.contract.node import FILE_BYTES, OTHER_KEY
from tests.contract.python.conftest import Connect


def test_the_life_of_a_file(sdk: openai.OpenAI) -> None:
    made = sdk.files.create(
        file=("notes.txt", b"one\ntwo\n"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "notes.txt", 8, "user_data")
    assert made.expires_at == made.created_at + 3600
    assert sdk.files.retrieve(made.id) == made
    assert sdk.files.content(made.id).content == b"one\ntwo\n"
    assert made.id in [file.id for file in sdk.files.list(purpose="user_data")]
    deleted = sdk.files.delete(made.id)
    assert deleted.deleted and deleted.id == made.id
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.files.retrieve(made.id)
    assert caught.value.code == "file_not_found"


def test_pages(sdk: openai.OpenAI) -> None:
    made = [sdk.files.create(file=(f"{i}.txt", b"x"), purpose="evals").id for i in range(5)]
    found = [file.id for file in sdk.files.list(purpose="evals", limit=2, order="asc")]
    assert found == made


def test_what_is_wrong_with_a_file(connect: Connect) -> None:
    sdk = connect()
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.files.create(file=("x.txt", b"x"), purpose="poetry")  # type: ignore[arg-type]
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match="empty"):
        sdk.files.create(file=("x.txt", b""), purpose="batch")
    with pytest.raises(openai.APIStatusError) as too_large:
        sdk.files.create(file=("x.txt", b"x" * (FILE_BYTES + 1)), purpose="batch")
    assert (too_large.value.status_code, too_large.value.code) == (413, "request_too_large")  # type: ignore[attr-defined]
    mine = sdk.files.create(file=("x.txt", b"x"), purpose="batch")
    with pytest.raises(openai.NotFoundError):
        connect(OTHER_KEY).files.content(mine.id)


@pytest.mark.anyio
async def test_async(async_sdk: openai.AsyncOpenAI) -> None:
    async with async_sdk as sdk:
        made = await sdk.files.create(file=("x.txt", b"content"), purpose="user_data")
        assert (await sdk.files.content(made.id)).content == b"content"
        assert made.id in [file.id async for file in sdk.files.list()]
