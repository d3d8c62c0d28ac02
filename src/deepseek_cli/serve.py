"""`deepseek serve`: a model behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepseek.config import DEFAULT_MODEL, PUBLIC_NAME, EngineConfig
from deepseek.errors import ConfigurationError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def serve(
    model: Annotated[str, typer.Argument(help="folder, .gguf file, built-in name or Hugging Face id")] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all interfaces")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="a key that may use the API; repeatable. Also $DEEPSEEK_API_KEY, which `ps` does not show"),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="keys, one per line")] = None,
    served_model_name: Annotated[str, typer.Option(help="name that clients ask for")] = PUBLIC_NAME,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, int8 or int4")] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="keys and values: auto, fp16 or int8")] = "auto",
    device: Annotated[str, typer.Option(help="where the model runs")] = "cpu",
    backend: Annotated[str, typer.Option(help="kernels: auto, native, torch or reference")] = "auto",
    max_context: Annotated[int | None, typer.Option(help="tokens per request, prompt and answer")] = None,
    max_running: Annotated[int, typer.Option(help="answers generated at the same time")] = 64,
    max_batch_tokens: Annotated[int, typer.Option(help="rows of one step; long prompts are cut into chunks")] = 512,
    max_sequences: Annotated[
        int | None, typer.Option(help="answers running and queued; more get 503 [default: 4 x max-running]")
    ] = None,
    kv_cache_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="memory for keys and values, such as 2GiB [default: from free]")
    ] = None,
    prefix_cache: Annotated[bool, typer.Option(help="reuse the cache of equal prompt beginnings")] = True,
    speculation: Annotated[str, typer.Option(help="guess tokens: auto, lookup, draft or off")] = "auto",
    draft_model: Annotated[str | None, typer.Option(help="a smaller model with the same vocabulary, to guess")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: one per core]")] = None,
    seed: Annotated[int | None, typer.Option(help="seeds requests that bring none")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="never touch the network")] = False,
    drain_timeout: Annotated[float, typer.Option(help="seconds for running requests after SIGTERM")] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
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
        backend=backend,
        max_context=max_context,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        kv_cache_bytes=None if kv_cache_bytes is None else parse_size(kv_cache_bytes),
        prefix_cache=prefix_cache,
        speculation=speculation,
        draft_model=draft_model,
        threads=threads,
        seed=seed,
        offline=offline,
    )
    run(
        ServeConfig(
            engine=engine,
            host=host,
            port=port,
            api_keys=load_keys(api_key or (), api_key_file),
            served_model_name=served_model_name,
            max_sequences=max_sequences,
            drain_timeout=drain_timeout,
            log_level=log_level,
        )
    )


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
