"""`deepseek bench`: measurements, printed and written as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.config import DEFAULT_MODEL, EngineConfig

bench = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure speed and memory.")


@bench.callback()
def root() -> None:
    """Measure speed and memory."""


@bench.command()
def engine(
    model: Annotated[str, typer.Option(help="folder, .gguf file, built-in name or Hugging Face id")] = DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; one per core by default")] = None,
    max_batch_tokens: Annotated[int, typer.Option(help="rows in one step")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; the median is reported")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
) -> None:
    """Prefill, decode, 32 requests at once, time to first token and peak memory of the engine."""
    from rich.console import Console
    from rich.table import Table

    from deepseek.benchmark import measure_engine

    console = Console()
    config = EngineConfig(model=model, dtype=dtype, threads=threads, max_batch_tokens=max_batch_tokens)
    result = measure_engine(config, repeats=repeats, say=lambda line: console.print(line, style="dim"))
    settings = result["settings"]
    table = Table(
        title=f"{settings['model']}, {settings['dtype']}, {result['machine']['cores']} cores", title_justify="left"
    )
    table.add_column("figure")
    table.add_column("median", justify="right")
    table.add_row("prefill, 512 tokens", f"{result['prefill_tok_s']:.1f} tok/s")
    table.add_row("decode, 1 stream", f"{result['decode_tok_s']:.1f} tok/s")
    table.add_row("32 requests of 128 + 64", f"{result['batch32_output_tok_s']:.1f} output tok/s")
    table.add_row("first token, prompt of 128", f"{result['ttft_ms']:.0f} ms")
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB")
    console.print(table)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")
