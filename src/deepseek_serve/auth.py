"""API keys. Every route under /v1 depends on :func:`require_key`; the open routes are named in app.py."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request

from deepseek.errors import ConfigurationError
from deepseek_serve.errors import ApiError

KEY_VARIABLE = "DEEPSEEK_API_KEY"


class Keys:
    """The keys that are let in. None configured: everybody is."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def identify(self, authorization: str | None) -> str:
        """The caller's tenant name, "" without keys. Raises :class:`ApiError` 401.

        All keys are compared, each in constant time, whichever matches.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused(
                "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'.", code=None
            )
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise _refused("Incorrect API key provided.", code="invalid_api_key")
        return given.hex()[:16]


async def require_key(request: Request) -> None:
    """Dependency of all protected routes; leaves the tenant in ``request.state.tenant``."""
    keys: Keys = request.app.state.server.keys
    request.state.tenant = keys.identify(request.headers.get("authorization"))


def load_keys(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Keys from the command line, a file (one per line, ``#`` begins a comment) and the environment.

    Raises :class:`ConfigurationError` if the file cannot be read or holds no key: an empty file must not mean
    that everybody is let in.
    """
    keys = list(given)
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the API key file {file} cannot be read: {error}") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigurationError(f"the API key file {file} holds no key; remove the option to serve without keys.")
        keys += found
    if from_environment := os.environ.get(KEY_VARIABLE, "").strip():
        keys.append(from_environment)
    return tuple(dict.fromkeys(keys))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _refused(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})
