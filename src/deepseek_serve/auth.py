"""API keys and what each may do. Every route under /v1 depends on :func:`require_key` or, if it is Anthropic's, on
:func:`require_anthropic_key`; the open ones are in app.py."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from starlette.requests import Request

from deepseek.engine.events import MAX_PRIORITY, MAX_WEIGHT
from deepseek.errors import ConfigurationError
from deepseek_serve.errors import ApiError

KEY_VARIABLE = "DEEPSEEK_API_KEY"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key and its settings. The key itself is not kept.

    Attributes:
        sha256: digest of the key, in hexadecimal; "" for everybody, on a server without keys.
        name: the tenant in logs, limits and usage; by default the digest's beginning.
        weight: part of the engine that it gets while others want it too, against theirs.
        requests_per_minute: None has no limit, as with the others.
        tokens_per_minute: of prompts and answers.
        concurrency: answers in work at a time, on one node.
        monthly_tokens: quota of prompt and answer tokens per calendar month (UTC); then 402.
        priority: of its requests.
        max_priority: of its requests with ``service_tier: priority``; None has no such tier.
        admin: it may load and unload models.
    """

    sha256: str = ""
    name: str = ""
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    monthly_tokens: int | None = None
    priority: int = 0
    max_priority: int | None = None
    admin: bool = False

    def __post_init__(self) -> None:
        where = f"API key {self.name or self.sha256[:16]!r}"
        if self.sha256 and not DIGEST.fullmatch(self.sha256):
            raise ConfigurationError(f"{where}: sha256 must be 64 hexadecimal digits, in lower case.")
        if self.name and not NAME.fullmatch(self.name):
            raise ConfigurationError(f"{where}: a name has 1 to 64 letters, digits, dots, dashes and underscores.")
        if not 1 / MAX_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise ConfigurationError(f"{where}: weight must be {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}.")
        for field in ("requests_per_minute", "tokens_per_minute", "concurrency", "monthly_tokens"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigurationError(f"{where}: {field} must be at least 1, not {value}.")
        for field in ("priority", "max_priority"):
            if abs(getattr(self, field) or 0) > MAX_PRIORITY:
                raise ConfigurationError(f"{where}: {field} must be {-MAX_PRIORITY} to {MAX_PRIORITY}.")

    @classmethod
    def of(cls, key: str, **settings: Any) -> Self:
        """The settings of a key as the client sends it. Raises :class:`ConfigurationError`."""
        if not key.strip() or not key.isascii():
            raise ConfigurationError("an API key must be non-empty ASCII: it travels in an HTTP header.")
        return cls(sha256=_digest(key.strip()), **settings)

    @property
    def tenant(self) -> str:
        """Its name in limits, fair shares and usage."""
        return self.name or self.sha256[:16]


EVERYBODY = ApiKey()


class Keys:
    """The keys that are let in. None configured: everybody is."""

    def __init__(self, keys: Sequence[ApiKey | str]) -> None:
        self._keys = [ApiKey.of(key) if isinstance(key, str) else key for key in keys]

    def identify(self, authorization: str | None) -> ApiKey:
        """Whose key a header ``Authorization`` has. Raises :class:`ApiError` 401."""
        if not self._keys:
            return EVERYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused(
                "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'.", code=None
            )
        return self.holder(key)

    def holder(self, key: str) -> ApiKey:
        """Whose key this is. Raises :class:`ApiError` 401.

        All keys are compared, each in constant time, whichever matches.
        """
        if not self._keys:
            return EVERYBODY
        given = _digest(key.strip())
        matches = [key for key in self._keys if hmac.compare_digest(given, key.sha256)]
        if not matches:
            raise _refused("Incorrect API key provided.", code="invalid_api_key")
        return matches[0]

    def named(self, tenant: str) -> ApiKey:
        """The key of this name; one without settings if it has been removed."""
        return next((key for key in self._keys if key.tenant == tenant), ApiKey(name=tenant))


async def require_key(request: Request) -> None:
    """Dependency of all protected routes; leaves the key in ``request.state.key``, its name in ``.tenant``.

    Raises :class:`ApiError` 401, and what :meth:`deepseek_serve.limits.Limits.begin` does.
    """
    server = request.app.state.server
    await _begin(request, server.keys.identify(request.headers.get("authorization")))


async def require_anthropic_key(request: Request) -> None:
    """As :func:`require_key`, on the routes of Anthropic's API, where the header ``x-api-key`` comes first."""
    given = request.headers.get("x-api-key", "")
    if given.strip():
        await _begin(request, request.app.state.server.keys.holder(given))
    else:
        await require_key(request)


async def _begin(request: Request, key: ApiKey) -> None:
    request.state.key, request.state.tenant = key, key.tenant
    await request.app.state.server.limits.begin(request, key)


def require_admin(request: Request) -> None:
    """Raise :class:`ApiError` 403 unless the caller may load and unload models.

    With keys that is who has an ``admin`` one; without keys nobody, unless the server was started to let everybody.
    """
    config = request.app.state.server.config
    if request.state.key.admin or (not config.api_keys and config.allow_model_loading):
        return
    what = "an API key with admin = true" if config.api_keys else "a server that was started with --allow-model-loading"
    raise ApiError(403, f"Loading and unloading models needs {what}.", code="insufficient_permissions")


def load_keys(given: Sequence[str], file: Path | None) -> tuple[ApiKey, ...]:
    """Keys from the command line, a file and the environment. A key that comes twice counts where it comes first.

    A file that ends in ``.toml`` has a table ``[[keys]]`` per key: ``key`` or ``sha256``, and the other fields of
    :class:`ApiKey`; a table ``[defaults]`` holds for all keys of the server. Any other file has one key per line; ``#``
    begins a comment.

    Raises :class:`ConfigurationError` if the file cannot be read, is wrong or holds no key: an empty file must not mean
    that everybody is let in.
    """
    defaults: dict[str, Any] = {}
    tables: list[dict[str, Any]] = []
    if file is not None:
        defaults, tables = _read(file)
        if not tables:
            raise ConfigurationError(f"the API key file {file} holds no key; remove the option to serve without keys.")
    plain = [*given, os.environ.get(KEY_VARIABLE, "")]
    found = [_key(defaults, {"key": key}, "the command line") for key in plain[:-1]]
    found += [_key(defaults, table, str(file)) for table in tables]
    if plain[-1].strip():
        found.append(_key(defaults, {"key": plain[-1]}, KEY_VARIABLE))
    unique = tuple({key.sha256: key for key in reversed(found)}.values())[::-1]
    names = [key.tenant for key in unique]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"two API keys have the name {min(repeated)!r}; limits and usage are by name.")
    return unique


def _read(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Defaults and keys of a file, unchecked."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".toml":
            lines = [line.strip() for line in text.splitlines()]
            return {}, [{"key": line} for line in lines if line and not line.startswith("#")]
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the API key file {file} cannot be read: {error}") from error
    defaults, tables = content.pop("defaults", {}), content.pop("keys", [])
    if content:
        raise ConfigurationError(f"{file}: {min(content)!r} is not known; write [defaults] and [[keys]].")
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ConfigurationError(f"{file}: write one table [defaults] and a table [[keys]] for each key.")
    if set(defaults) & {"key", "sha256", "name", "admin"}:
        raise ConfigurationError(f"{file}: key, sha256, name and admin belong to one key, not to [defaults].")
    return defaults, tables


def _key(defaults: dict[str, Any], table: dict[str, Any], where: str) -> ApiKey:
    settings = defaults | table
    key = settings.pop("key", None)
    if (key is None) == (not settings.get("sha256")):
        raise ConfigurationError(f"{where}: each of [[keys]] needs either key or sha256.")
    try:
        if key is not None:
            settings["sha256"] = ApiKey.of(str(key)).sha256
        return msgspec.convert(settings, ApiKey)
    except msgspec.ValidationError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ConfigurationError) else error
        raise ConfigurationError(f"{where}: {cause}") from error


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _refused(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})
