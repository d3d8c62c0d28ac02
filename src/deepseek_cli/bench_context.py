"""`deepseek bench recall` and `deepseek bench context`: what sparse attention keeps, and what it saves."""

from __future__ import annotations

from typing import Annotated

import typer

from deepseek.attention.policy import DEFAULT_ERROR
from deepseek.config import DEFAULT_MODEL, EngineConfig
from deepseek_cli.bench_options import (
    DTYPE_HELP,
    AttentionError,
    Data,
    Device,
    JsonFile,
    KvDtype,
    Model,
    RopeScaling,
    Shape,
    Threads,
    model_of,
    names,
    numbers,
)
from deepseek_cli.bench_tables import keeper, say, write


def recall(
    model: Model = DEFAULT_MODEL,
    lengths: Annotated[str, typer.Option(help="tokens of context, with commas; '' for none")] = "8192,16384,32768",
    tasks: Annotated[
        str,
        typer.Option(
            help="needle, multi-needle, multi-key, tracking, passage, common-words, frequent-words; all by default"
        ),
    ] = "",
    languages: Annotated[str, typer.Option(help="en, zh")] = "en,zh",
    limit: Annotated[int, typer.Option(min=1, help="questions of each task and text")] = 4,
    texts: Annotated[int, typer.Option(min=1, help="texts of each length, language and group of tasks")] = 1,
    perplexity: Annotated[int, typer.Option(min=0, help="tokens of long text to score; 0 for none")] = 0,
    attention_error: AttentionError = DEFAULT_ERROR,
    data: Data = None,
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto",
    kv_dtype: KvDtype = "auto",
    rope_scaling: RopeScaling = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="another one makes other texts")] = 0,
    json_file: JsonFile = None,
) -> None:
    """What sparse attention still finds in a long text: RULER's kinds of tasks, dense and sparse on the same texts.

    Each question is asked three times: everything dense; the text sparse and the question dense; all sparse. A text is
    processed once for each of the first two, however many questions are asked about it. On two cores with a model of
    1.5 billion weights a text of 32,768 tokens takes several minutes each time; what a run will take is said first.
    """
    from rich.console import Console

    from deepseek.benchmark.recall.run import TASKS, Work, measure_recall
    from deepseek_cli.context_tables import print_recall

    console = Console()
    work = Work(
        lengths=numbers(lengths, "--lengths"),
        tasks=names(tasks) or TASKS,
        languages=names(languages),
        limit=limit,
        texts=texts,
        perplexity=perplexity,
        seed=seed,
    )
    config = EngineConfig(
        model=model,
        dtype=dtype,
        kv_dtype=kv_dtype,
        rope_scaling=rope_scaling,
        threads=threads,
        attention_error=attention_error,
    )
    result = measure_recall(config, work, say(console), data=data, keep=keeper(json_file))
    print_recall(console, result)
    write(console, result, json_file)


def context(
    model: Model = DEFAULT_MODEL,
    shape: Shape = None,
    device: Device = "cpu",
    lengths: Annotated[str, typer.Option(help="tokens of prompt and answer, with commas")] = "4096,32768,131072",
    peer_lengths: Annotated[
        str, typer.Option(help="those at which llama.cpp is measured too, if `make peer-llama-cpp` put it there")
    ] = "",
    attention: Annotated[str, typer.Option(help="what the sparse runs use: auto or sparse")] = "auto",
    attention_error: AttentionError = DEFAULT_ERROR,
    fill_dense_above: Annotated[
        int | None,
        typer.Option(help="of longer dense prompts compute the beginning only, and repeat its keys and values"),
    ] = None,
    fill_sparse_above: Annotated[int | None, typer.Option(help="the same for sparse prompts")] = None,
    output: Annotated[int, typer.Option(min=1, help="tokens to decode")] = 64,
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto",
    kv_dtype: KvDtype = "auto",
    rope_scaling: RopeScaling = "auto",
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each, in turn; ratios are of medians")] = 1,
    data: Data = None,
    json_file: JsonFile = None,
) -> None:
    """Prefill, decode, bytes read per token and memory behind contexts of each length, dense and sparse in turn.

    Every run has a process of its own. Figures of filled contexts are marked: what sparse attention selects in repeated
    keys is not what it selects in a text.
    """
    from rich.console import Console

    from deepseek.benchmark.context import Contexts, measure_context
    from deepseek_cli.context_tables import print_context

    console = Console()
    contexts = Contexts(
        lengths=numbers(lengths, "--lengths"),
        peer_lengths=numbers(peer_lengths, "--peer-lengths"),
        fill_dense_above=fill_dense_above,
        fill_sparse_above=fill_sparse_above,
        output=output,
        repeats=repeats,
    )
    config = EngineConfig(
        model=model_of(model, shape),
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        rope_scaling=rope_scaling,
        threads=threads,
        attention_error=attention_error,
    )
    result = measure_context(config, contexts, say(console), sparse=attention, data=data, keep=keeper(json_file))
    print_context(console, result)
    write(console, result, json_file)
