"""`deepseek serve`: a model behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from deepseek.attention.policy import DEFAULT_ERROR, QUESTION_TOKENS
from deepseek.config import DEFAULT_MODEL, MAX_ADAPTERS, PUBLIC_NAME, EngineConfig
from deepseek.errors import ConfigurationError

if TYPE_CHECKING:
    from deepseek_serve.observability.logs import LogFormat

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def serve(
    model: Annotated[str, typer.Argument(help="folder, .gguf file, built-in name or Hugging Face id")] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all interfaces")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="a key that may use the API; repeatable. Also $DEEPSEEK_API_KEY, which `ps` does not show"),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="keys, one per line; or .toml with their limits")] = None,
    limits_store: Annotated[
        str, typer.Option(metavar="URL", help="who counts requests per minute: memory, or redis://host:6379/0")
    ] = "memory",
    served_model_name: Annotated[str, typer.Option(help="name that clients ask for")] = PUBLIC_NAME,
    also: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="a further model to serve as NAME; repeatable")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER", help="an adapter of the model (a folder of peft) to serve as NAME; repeatable"
        ),
    ] = None,
    max_adapters: Annotated[int, typer.Option(help="adapters that may be loaded at a time")] = MAX_ADAPTERS,
    model_dir: Annotated[
        Path | None, typer.Option(help="folder below which requests may load models and adapters from")
    ] = None,
    allow_model_loading: Annotated[
        bool, typer.Option("--allow-model-loading", help="without keys, let everybody load and unload models, adapters")
    ] = False,
    replicas: Annotated[int, typer.Option(help="engines of the model, which share threads and memory")] = 1,
    embedding_model: Annotated[
        str | None, typer.Option(help="one more model, for /v1/embeddings, such as all-minilm-l6-v2")
    ] = None,
    tool_parser: Annotated[
        str, typer.Option(help="how models write calls: auto, none, hermes, qwen3_coder, llama3_json, deepseek_v3 ...")
    ] = "auto",
    reasoning_parser: Annotated[str, typer.Option(help="how models think: auto, none or think")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, int8 or int4")] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="keys and values: auto, fp16 or int8")] = "auto",
    device: Annotated[str, typer.Option(help="where the model runs: cpu or cuda")] = "cpu",
    tensor_parallel_size: Annotated[
        int, typer.Option(help="processes that each model is divided over, a GPU for each")
    ] = 1,
    backend: Annotated[str, typer.Option(help="kernels: auto, native, torch or reference")] = "auto",
    max_context: Annotated[int | None, typer.Option(help="tokens per request, prompt and answer")] = None,
    rope_scaling: Annotated[
        str, typer.Option(help="a max-context beyond the model's: auto (where documented), none, or yarn for any model")
    ] = "auto",
    max_running: Annotated[int, typer.Option(help="answers generated at the same time")] = 64,
    max_batch_tokens: Annotated[int, typer.Option(help="rows of one step; long prompts are cut into chunks")] = 512,
    max_sequences: Annotated[
        int | None, typer.Option(help="answers running and queued; more get 503 [default: 4 x max-running]")
    ] = None,
    max_waiting_tokens: Annotated[
        int | None, typer.Option(help="prompt tokens that may wait; more get 503 [default: 512 per sequence]")
    ] = None,
    kv_cache_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="memory for keys and values, such as 2GiB [default: from free]")
    ] = None,
    kv_spill: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="room for more of them in a file in --kv-spill-dir, such as 20GiB"),
    ] = None,
    kv_spill_dir: Annotated[str | None, typer.Option(metavar="DIR", help="a folder on a local disk")] = None,
    prefix_cache: Annotated[bool, typer.Option(help="reuse the cache of equal prompt beginnings")] = True,
    speculation: Annotated[str, typer.Option(help="guess tokens: auto, lookup, draft or off")] = "auto",
    draft_model: Annotated[str | None, typer.Option(help="a smaller model with the same vocabulary, to guess")] = None,
    attention: Annotated[
        str, typer.Option(help="read what matters of long contexts (auto), of all (sparse), or everything (dense)")
    ] = "auto",
    attention_error: Annotated[
        float, typer.Option(help="relative error that sparse attention aims at; 0 is exactly dense")
    ] = DEFAULT_ERROR,
    question_tokens: Annotated[
        int, typer.Option(help="the last so many tokens of a prompt are read densely")
    ] = QUESTION_TOKENS,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: one per core]")] = None,
    seed: Annotated[int | None, typer.Option(help="seeds requests that bring none")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="never touch the network")] = False,
    keep_alive_lines: Annotated[
        bool,
        typer.Option("--keep-alive-lines", help="empty lines before whole answers that take long; commits status 200"),
    ] = False,
    drain_timeout: Annotated[float, typer.Option(help="seconds for running requests after SIGTERM")] = 30.0,
    playground: Annotated[bool, typer.Option(help="serve a chat page at /")] = True,
    docs: Annotated[bool, typer.Option(help="serve the reference at /docs and /openapi.json")] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
    log_format: Annotated[str, typer.Option(help="json, text, or auto: text on a terminal")] = "auto",
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="collector of traces, as http://127.0.0.1:4318 [default: $OTEL_EXPORTER_OTLP_ENDPOINT]"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="files, batches and usage [default: $DEEPSEEK_DATA, else ~/.local/share/deepseek]"),
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPSEEK_DATABASE_URL",
            help="postgresql+psycopg://USER:PASSWORD@HOST/NAME instead of SQLite in the data directory",
        ),
    ] = None,
    max_file_bytes: Annotated[str, typer.Option(metavar="SIZE", help="longest file that may be uploaded")] = "512MiB",
    max_stored_bytes: Annotated[str, typer.Option(metavar="SIZE", help="files that one key may store")] = "10GiB",
    batch_concurrency: Annotated[int, typer.Option(help="answers of batches in work at a time")] = 8,
) -> None:
    """Serve a model over an OpenAI-compatible HTTP API until SIGTERM or Ctrl-C."""
    from deepseek_serve.auth import load_keys
    from deepseek_serve.config import ServeConfig
    from deepseek_serve.server import serve as run

    engine = EngineConfig(
        model=model,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
        tensor_parallel_size=tensor_parallel_size,
        backend=backend,
        max_context=max_context,
        rope_scaling=rope_scaling,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        kv_cache_bytes=None if kv_cache_bytes is None else parse_size(kv_cache_bytes),
        kv_spill_bytes=None if kv_spill is None else parse_size(kv_spill),
        kv_spill_dir=kv_spill_dir,
        prefix_cache=prefix_cache,
        speculation=speculation,
        draft_model=draft_model,
        attention=attention,
        attention_error=attention_error,
        question_tokens=question_tokens,
        max_adapters=max_adapters,
        threads=threads,
        seed=seed,
        offline=offline,
    )
    run(
        ServeConfig(
            engine=engine,
            replicas=replicas,
            also=named("--also", "MODEL", also or ()),
            adapters=named("--adapter", "FOLDER", adapter or ()),
            model_dir=None if model_dir is None else str(model_dir.expanduser().absolute()),
            allow_model_loading=allow_model_loading,
            host=host,
            port=port,
            api_keys=load_keys(api_key or (), api_key_file),
            limits_store=limits_store,
            served_model_name=served_model_name,
            embedding_model=embedding_model,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            max_sequences=max_sequences,
            max_waiting_tokens=max_waiting_tokens,
            keep_alive_lines=keep_alive_lines,
            drain_timeout=drain_timeout,
            playground=playground,
            docs=docs,
            log_level=log_level,
            log_format=cast("LogFormat", log_format),
            otlp_endpoint=otlp_endpoint,
            data_dir=None if data_dir is None else str(data_dir),
            database_url=database_url,
            max_file_bytes=parse_size(max_file_bytes),
            max_stored_bytes=parse_size(max_stored_bytes),
            batch_concurrency=batch_concurrency,
        )
    )


def named(flag: str, what: str, options: Sequence[str]) -> dict[str, str]:
    """``NAME=MODEL`` or ``NAME=FOLDER`` as a mapping. Raises :class:`ConfigurationError`."""
    found: dict[str, str] = {}
    for option in options:
        name, equals, model = option.partition("=")
        if not (name and equals and model) or name in found:
            raise ConfigurationError(f"{flag} {option!r}: write NAME={what}, each name once.")
        found[name] = model
    return found


def parse_size(text: str) -> int:
    """``2GiB``, ``500 MB`` or ``1073741824`` -> bytes. Raises :class:`ConfigurationError`."""
    compact = text.strip().replace(" ", "").lower()
    number = compact.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = compact[len(number) :].removesuffix("b")
    try:
        size = float(number) * _UNITS[unit]
        return int(size)
    except (ValueError, KeyError, OverflowError):
        raise ConfigurationError(f"{text!r} is not a size; write 2GiB, 500MB or a number of bytes.") from None
