"""What the offline API and the server share about vectors."""

from __future__ import annotations

import sys
from array import array

from deepseek.engine.events import EmbeddingInfo
from deepseek.errors import InvalidRequestError


def floats(vector: bytes) -> array[float]:
    """The numbers of a vector of :class:`deepseek.engine.events.EmbedEvent`."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def check_dimensions(made: EmbeddingInfo, dimensions: int | None) -> None:
    """Raises InvalidRequestError if a vector cannot be cut to its first ``dimensions``."""
    if dimensions is None or dimensions == made.dimensions:
        return
    if made.shorter == ():
        raise InvalidRequestError(
            f"This model's vectors have {made.dimensions} dimensions and cannot be shortened: it was not trained for "
            "that. Leave 'dimensions' out.",
            param="dimensions",
            code="unsupported_value",
        )
    if not 1 <= dimensions <= made.dimensions:
        raise InvalidRequestError(
            f"'dimensions' must be 1 to {made.dimensions} for this model, not {dimensions}.",
            param="dimensions",
            code="invalid_value",
        )
    if made.shorter is not None and dimensions not in made.shorter:
        known = ", ".join(map(str, made.shorter))
        raise InvalidRequestError(
            f"'dimensions' must be one of {known} or {made.dimensions} for this model, not {dimensions}.",
            param="dimensions",
            code="invalid_value",
        )
