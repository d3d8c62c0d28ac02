"""`deepseek bench`: measurements, printed and written as JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deepseek.attention.policy import DEFAULT_ERROR
from deepseek.config import DEFAULT_MODEL, EngineConfig
from deepseek_cli.bench_context import context, recall
from deepseek_cli.bench_options import (
    DTYPE_HELP,
    Attention,
    AttentionError,
    Device,
    JsonFile,
    KvDtype,
    Model,
    Quick,
    Repeats,
    Shape,
    Threads,
    model_of,
)
from deepseek_cli.bench_tables import engine_table, peers_table, print_contenders, say, write

bench = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure speed and memory.")

bench.command()(recall)
bench.command()(context)


@bench.callback()
def root() -> None:
    """Measure speed and memory."""
    # Asked to end, end the engines that were started too: leave through their `finally`.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@bench.command()
def engine(
    model: Model = DEFAULT_MODEL,
    shape: Shape = None,
    device: Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help=f"{DTYPE_HELP} (auto; with a profile int8)")] = None,
    kv_dtype: KvDtype = "auto",
    threads: Threads = None,
    max_batch_tokens: Annotated[int, typer.Option(help="rows in one step")] = 512,
    repeats: Repeats = 3,
    profile: Annotated[
        str | None, typer.Option(help="v2.1, baseline (FP16, no prefix cache, no speculation) or both, in turn")
    ] = None,
    attention: Attention = "auto",
    attention_error: AttentionError = DEFAULT_ERROR,
    price_per_hour: Annotated[float, typer.Option(help="of this machine; gives the cost per million tokens")] = 0.10,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Prefill, decode, 32 requests at once, long context, first token, peak memory and bandwidth of the engine."""
    from rich.console import Console

    from deepseek.benchmark.engine import measure_engine, measure_profiles, profile_configs

    console = Console()
    model = model_of(model, shape)
    options: dict[str, Any] = {"device": device, "threads": threads, "max_batch_tokens": max_batch_tokens}
    reading: dict[str, Any] = {"attention": attention, "attention_error": attention_error}
    result: dict[str, Any]
    if profile is None:
        config = EngineConfig(model=model, dtype=dtype or "auto", kv_dtype=kv_dtype, **options, **reading)
        result = measure_engine(config, repeats=repeats, quick=quick, say=say(console))
        console.print(engine_table({"median": result}, None))
    else:
        configs = profile_configs(model, profile, dtype=dtype or "int8", kv_dtype=kv_dtype, **options, **reading)
        result = measure_profiles(
            configs, repeats=repeats, price_per_hour=price_per_hour, quick=quick, say=say(console)
        )
        console.print(engine_table(result["profiles"], result.get("ratios")))
    write(console, result, json_file)


@bench.command()
def peers(
    model: Model = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="where all run: cpu, or cuda (ours and transformers)")] = "cpu",
    dtype: Annotated[list[str] | None, typer.Option(help=f"ours: {DTYPE_HELP}; repeat for several")] = None,
    kv_dtype: KvDtype = "auto",
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="prefill, decode, batch, context or speculation; repeat for several, all by default"),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="llama-cpp[:own|q8_0], openvino[:own|q8_0], vllm[:fp32|bf16] or transformers[:fp32|bf16]; repeat for "
            "several, all by default"
        ),
    ] = None,
    threads: Threads = None,
    repeats: Repeats = 3,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Other engines next to ours, in turn, on the same model, with ratios. `make peers` installs them."""
    from rich.console import Console

    from deepseek.benchmark.compare import compare

    console = Console()
    result = compare(
        EngineConfig(model=model, kv_dtype=kv_dtype, device=device, threads=threads),
        dtypes=dtype or ["auto"],
        scenarios=scenario or [],
        peers=peer or [],
        repeats=repeats,
        quick=quick,
        say=say(console),
    )
    console.print(peers_table(result))
    print_contenders(console, result)
    write(console, result, json_file)


@bench.command()
def quality(
    model: Annotated[str, typer.Argument(help="the model to judge: folder, .gguf file, built-in name or id")],
    against: Annotated[str, typer.Option(help="the model it was made of")],
    text: Annotated[
        list[Path] | None, typer.Option(help='text, or .jsonl with a "text" field; may be given again')
    ] = None,
    questions: Annotated[
        list[Path] | None, typer.Option(help=".jsonl with question, choices and answer; may be given again")
    ] = None,
    dtype: Annotated[str, typer.Option(help="precision of the model")] = "auto",
    against_dtype: Annotated[str, typer.Option(help="precision of the reference")] = "fp32",
    tokens: Annotated[int, typer.Option(min=64, help="tokens of each text")] = 1024,
    max_questions: Annotated[int | None, typer.Option(min=1, help="questions of each set; all by default")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; one per core by default")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
) -> None:
    """What quantization costs: size, KL divergence, agreement, perplexity, accuracy on multiple choice.

    With 1.5 billion weights on two cores five texts of 1,024 tokens and 400 questions take about ten minutes, most of
    them for the reference; smaller models, fewer tokens and fewer questions less in proportion.
    """
    from rich.console import Console
    from rich.table import Table

    from deepseek.quality import measure_quality, quality_rows, scoring_config

    console = Console()
    result = measure_quality(
        scoring_config(model, dtype, threads=threads),
        scoring_config(against, against_dtype, threads=threads),
        texts=text or (),
        questions=questions or (),
        tokens=tokens,
        max_questions=max_questions,
        say=lambda line: console.print(line, style="dim"),
    )
    settings = result["settings"]
    console.print(f"{settings['model']} ({settings['dtype']}) against {settings['reference']}, size on disk:")
    sizes = (result["size_bytes"] / 2**20, result["reference_size_bytes"] / 2**20)
    console.print(f"{sizes[0]:.0f} MiB against {sizes[1]:.0f} MiB; {result['fp16_size_ratio']:.1%} of FP16")
    text_head, text_rows, set_head, set_rows = quality_rows(result)
    for head, rows in ((text_head, text_rows), (set_head, set_rows)):
        if rows:
            table = Table()
            for index, title in enumerate(head):
                table.add_column(title, justify="right" if index else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")
