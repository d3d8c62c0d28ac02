"""Calls into the Rust library behind the tokenizer, which a hostile tokenizer.json can make fail in any way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from deepseek.errors import TokenizerError


@contextlib.contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """Raise TokenizerError for what the library raises in the block: plain Exception, and for a panic an exception that
    derives from BaseException, whose type cannot be imported."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{doing} failed, the model's tokenizer is damaged: {error}.") from error
