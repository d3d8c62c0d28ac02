"""Multipart forms: the same however they are cut into pieces, and never more than an error that we raise."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.errors import InvalidRequestError
from deepseek_serve.uploads import Form

BOUNDARY = b"b0undary"


def body(content: bytes) -> bytes:
    return (
        b'--b0undary\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b0undary\r\ncontent-disposition: form-data; filename="a b.txt"; name="file"\r\ncontent-type: x/y\r\n\r\n'
        + content
        + b'\r\n--b0undary\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600\r\n'
        + b"--b0undary--\r\n"
    )


ALMOST = [b"\r\n", b"\r", b"\n", b"--", b"--b0undar", b"\r\n--b0undarx", b"b0undary", b"x" * 70]
NEAR_BOUNDARIES = st.lists(st.sampled_from(ALMOST), max_size=20).map(b"".join)
SYNTAX = [b"--b0undary", b"\r\n", b": ", b'name="file"', b";"]


@given(NEAR_BOUNDARIES | st.binary(max_size=300), st.lists(st.integers(1, 80), min_size=1, max_size=30))
@settings(deadline=None)
def test_any_cut_gives_the_same(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--b0undary" in b"\r\n" + content:
        return
    whole, form, start = body(content), Form(BOUNDARY), 0
    for size in cuts:
        form.feed(whole[start : start + size])
        start += size
    form.feed(whole[start:])
    assert form.complete and form.filename == "a b.txt" and bytes(form.pending) == content
    assert form.fields == {"purpose": "batch", "expires_after[seconds]": "3600"}


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([b"--b0undary", b"\r\n", b": ", b'name="file"', b";"]), max_size=20
    )
)
@settings(deadline=None)
def test_garbage_is_refused_and_nothing_else(parts: list[bytes]) -> None:
    form = Form(BOUNDARY)
    with contextlib.suppress(InvalidRequestError):
        for part in parts:
            form.feed(part)


@given(st.integers(0, len(body(b"content")) - 1), st.binary(min_size=1, max_size=3))
@settings(deadline=None)
def test_one_damaged_place(place: int, damage: bytes) -> None:
    whole = body(b"content")
    form = Form(BOUNDARY)
    with contextlib.suppress(InvalidRequestError):
        form.feed(whole[:place] + damage + whole[place + 1 :])
        assert len(form.fields) <= 3
