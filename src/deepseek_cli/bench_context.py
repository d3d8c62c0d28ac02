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
    JsonFile,
    KvDtype,
    Model,
    RopeScaling,
    Threads,
    names,
    numbers,
)
from deepseek_cli.bench_tables import say, write


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
    result = measure_recall(config, work, data=data, say=say(console))
    print_recall(console, result)
    write(console, result, json_file)
