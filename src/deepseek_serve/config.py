"""Frozen settings of one server."""

from __future__ import annotations

import msgspec

from deepseek.config import PUBLIC_NAME, EngineConfig
from deepseek.errors import ConfigurationError


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one server.

    Attributes:
        engine: settings of its engine.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        api_keys: keys that may use the API; empty lets everybody in.
        served_model_name: the name clients ask for, besides the model's real one.
        max_sequences: answers (requests times ``n``) admitted at a time, running and queued; None takes four times
            the engine's ``max_running``. One more gets 503.
        max_body_bytes: longest request body; a longer one gets 413.
        drain_timeout: seconds that running requests get to finish after SIGTERM.
        keep_alive_interval: seconds of silence in a stream after which a comment is sent.
        log_level: of server and engine.
    """

    engine: EngineConfig = EngineConfig()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_name: str = PUBLIC_NAME
    max_sequences: int | None = None
    max_body_bytes: int = 16 << 20
    drain_timeout: float = 30.0
    keep_alive_interval: float = 15.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port must be 0 to 65535, not {self.port}.")
        if not self.served_model_name.strip():
            raise ConfigurationError("served_model_name must not be empty.")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise ConfigurationError("an API key must be non-empty ASCII: it travels in an HTTP header.")
        if self.log_level.lower() not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"log_level must be debug, info, warning or error, not {self.log_level!r}.")
        if self.max_sequences is not None and self.max_sequences < 1:
            raise ConfigurationError(f"max_sequences must be at least 1, not {self.max_sequences}.")
        if self.drain_timeout < 0 or self.keep_alive_interval <= 0 or self.max_body_bytes < 1:
            raise ConfigurationError("drain_timeout, keep_alive_interval and max_body_bytes must be positive.")

    @property
    def capacity(self) -> int:
        """Answers admitted at a time."""
        return self.max_sequences or 4 * self.engine.max_running
