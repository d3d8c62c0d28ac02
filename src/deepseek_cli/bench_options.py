"""Options that several of `deepseek bench`'s commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepseek.errors import ConfigurationError

Model = Annotated[str, typer.Option(help="folder, .gguf file, built-in name or Hugging Face id")]
Shape = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="instead of a model, random weights of this shape, such as qwen2.5-7b"),
]
Device = Annotated[str, typer.Option(help="where the engine runs: cpu or cuda")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core by default")]
Repeats = Annotated[int, typer.Option(min=1, help="rounds; the median is reported")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write all figures to this file")]
Quick = Annotated[bool, typer.Option("--quick", help="an eighth of the work: shows that it runs, not how fast")]
KvDtype = Annotated[str, typer.Option(help="precision of keys and values: auto, fp16 or int8")]
Attention = Annotated[str, typer.Option(help="how long contexts are read: auto, dense or sparse")]
AttentionError = Annotated[float, typer.Option(help="relative error that sparse attention aims at; 0 is dense")]
RopeScaling = Annotated[str, typer.Option(help="beyond the model's own context: auto, none or yarn")]
Data = Annotated[
    Path | None,
    typer.Option(help="folder of real text (xquad, cmrc2018); else that of DEEPSEEK_BENCH_DATA; else text is made up"),
]
DTYPE_HELP = "auto, fp32, bf16, fp16, int8 or int4"


def model_of(model: str, shape: str | None) -> str:
    """The name of what is measured."""
    return model if shape is None else f"shape:{shape}"


def names(text: str) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers, with commas between. Raises ConfigurationError for anything else."""
    try:
        return tuple(int(part) for part in names(text))
    except ValueError as error:
        raise ConfigurationError(f"{option} takes whole numbers with commas between them, not {text!r}.") from error
