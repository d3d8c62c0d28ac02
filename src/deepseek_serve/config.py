"""Frozen settings of one server."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from deepseek.config import PUBLIC_NAME, EngineConfig
from deepseek.errors import ConfigurationError
from deepseek_serve.auth import ApiKey
from deepseek_serve.observability.logs import FORMATS, LogFormat
from deepseek_serve.parsing.detect import check_names

MAX_REPLICAS = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")  # of a model, as clients call it


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one server.

    Attributes:
        engine: settings of its engine.
        replicas: engines of that model, which divide its ``threads``, ``kv_cache_bytes`` and processors.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        api_keys: keys that may use the API, with or without settings; empty lets everybody in.
        limits_store: where requests and tokens per minute are counted: ``memory``, or the address of a Redis that
            several nodes share (``redis://host:6379/0``).
        served_model_name: the name clients ask for, besides the model's real one.
        also: further models, by the names that clients ask for; loaded when the first one is.
        adapters: folders of adapters of the first model, by the names that clients ask for.
        model_dir: folder below which requests may load models from; None for none.
        allow_model_loading: on a server without keys, let everybody load and unload models and adapters.
        embedding_model: one more model, for ``/v1/embeddings``, in an engine of its own; named as ``engine.model`` is,
            and served under its real name. None: the engine's own model makes embeddings alone.
        tool_parser: the format in which models write calls (:mod:`deepseek_serve.parsing.formats`); ``auto`` takes that
            of a model's chat template, ``none`` refuses tools.
        reasoning_parser: ``think`` for models that think inside of ``<think>``; ``auto`` asks the chat template,
            ``none`` leaves thoughts in the answer.
        max_sequences: answers (requests times ``n``) admitted at a time, running and queued; None takes four times
            the engines' ``max_running``. One more gets 503.
        max_waiting_tokens: prompt tokens that may wait for their first step; None takes 512 for each answer admitted,
            and at least 65536. More get 503.
        max_body_bytes: longest request body; a longer one gets 413.
        drain_timeout: seconds that running requests get to finish after SIGTERM.
        keep_alive_interval: seconds of silence in a stream after which a comment is sent.
        playground: serve the page at ``/``.
        docs: serve the reference at ``/docs`` and ``/openapi.json``, without a key.
        keep_alive_lines: fill silences of answers that are not streamed too, with empty lines before the JSON. The
            first of them commits the status 200: an error that comes later is an error body under that status.
        log_level: of server and engine.
        log_format: ``json`` or ``text``; ``auto`` is text on a terminal and JSON otherwise.
        otlp_endpoint: collector of OpenTelemetry traces, by OTLP over HTTP; None takes that of the environment
            (``OTEL_EXPORTER_OTLP_ENDPOINT``), if there is one.
        data_dir: folder of files, batches and (without ``database_url``) the database; None takes ``$DEEPSEEK_DATA``,
            else ``~/.local/share/deepseek`` or where ``$XDG_DATA_HOME`` says.
        database_url: PostgreSQL as ``postgresql+psycopg://...``; None is SQLite in the data directory.
        max_file_bytes: longest file that may be uploaded; a longer one gets 413.
        max_stored_bytes: bytes of files that one key may store.
        batch_concurrency: answers of batches in work at a time, beside those admitted.
    """

    engine: EngineConfig = EngineConfig()
    replicas: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[ApiKey | str, ...] = ()
    limits_store: str = "memory"
    served_model_name: str = PUBLIC_NAME
    also: dict[str, str] = {}
    adapters: dict[str, str] = {}
    model_dir: str | None = None
    allow_model_loading: bool = False
    embedding_model: str | None = None
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    max_sequences: int | None = None
    max_waiting_tokens: int | None = None
    max_body_bytes: int = 16 << 20
    drain_timeout: float = 30.0
    keep_alive_interval: float = 15.0
    playground: bool = True
    docs: bool = True
    keep_alive_lines: bool = False
    log_level: str = "info"
    log_format: LogFormat = "auto"
    otlp_endpoint: str | None = None
    data_dir: str | None = None
    database_url: str | None = None
    max_file_bytes: int = 512 << 20
    max_stored_bytes: int = 10 << 30
    batch_concurrency: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port must be 0 to 65535, not {self.port}.")
        keys = tuple(ApiKey.of(key) if isinstance(key, str) else key for key in self.api_keys)
        msgspec.structs.force_setattr(self, "api_keys", keys)  # no key stays in memory, only what identifies it
        if not self.served_model_name.strip():
            raise ConfigurationError("served_model_name must not be empty.")
        if self.served_model_name in self.also or not all(NAME.fullmatch(name) for name in self.also):
            raise ConfigurationError(f"each further model needs a name of its own, of the form {NAME.pattern}.")
        taken = {self.served_model_name, self.engine.model, *self.also}
        if not all(NAME.fullmatch(name) and name not in taken for name in self.adapters):
            raise ConfigurationError(f"each adapter needs a name of its own, of the form {NAME.pattern}.")
        if self.engine.adapters:
            raise ConfigurationError("a server's adapters are named in its own settings, not in its engine's.")
        if len(self.adapters) > self.engine.max_adapters:
            raise ConfigurationError(
                f"there are {len(self.adapters)} adapters, and max_adapters is {self.engine.max_adapters}; raise it."
            )
        if self.model_dir is not None and not Path(self.model_dir).is_dir():
            raise ConfigurationError(f"model_dir {self.model_dir!r} is not a folder.")
        if self.allow_model_loading and self.api_keys:
            raise ConfigurationError(
                "allow_model_loading is for servers without API keys; with keys, give one of them admin = true."
            )
        if self.embedding_model is not None and self.embedding_model in ("", self.engine.model):
            raise ConfigurationError("embedding_model must be another model; leave it out to embed with the first one.")
        if self.log_level.lower() not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"log_level must be debug, info, warning or error, not {self.log_level!r}.")
        if self.log_format not in FORMATS:
            raise ConfigurationError(f"log_format must be one of {', '.join(FORMATS)}, not {self.log_format!r}.")
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise ConfigurationError(f"replicas must be 1 to {MAX_REPLICAS}, not {self.replicas}.")
        check_names(self.tool_parser, self.reasoning_parser)
        if self.max_sequences is not None and self.max_sequences < 1:
            raise ConfigurationError(f"max_sequences must be at least 1, not {self.max_sequences}.")
        if self.max_waiting_tokens is not None and self.max_waiting_tokens < 1:
            raise ConfigurationError(f"max_waiting_tokens must be at least 1, not {self.max_waiting_tokens}.")
        if self.drain_timeout < 0 or self.keep_alive_interval <= 0 or self.max_body_bytes < 1:
            raise ConfigurationError("drain_timeout, keep_alive_interval and max_body_bytes must be positive.")
        if self.max_file_bytes < 1 or self.max_stored_bytes < 1 or self.batch_concurrency < 1:
            raise ConfigurationError("max_file_bytes, max_stored_bytes and batch_concurrency must be positive.")
        if self.data_dir is not None and not self.data_dir.strip():
            raise ConfigurationError("data_dir must not be empty; leave it out for the default one.")

    @property
    def capacity(self) -> int:
        """Answers admitted at a time."""
        return self.max_sequences or 4 * self.engine.max_running * self.replicas

    @property
    def embedding_engine(self) -> EngineConfig | None:
        """Settings of the embedding model's engine, if there is one."""
        if self.embedding_model is None:
            return None
        own = self.engine
        return EngineConfig(model=self.embedding_model, device=own.device, threads=own.threads, offline=own.offline)

    @property
    def padding(self) -> float | None:
        """Seconds between empty lines before a whole answer, None for none."""
        return self.keep_alive_interval if self.keep_alive_lines else None

    @property
    def prompt_capacity(self) -> int:
        """Prompt tokens that may wait."""
        return self.max_waiting_tokens or max(65536, 512 * self.capacity)
