"""``deepseek quantize``: INT8 or INT4 weights in a folder that this engine and others load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[str, typer.Argument(help="A folder, .gguf file, built-in name or Hugging Face id.")],
    to: Annotated[str, typer.Option("--to", help="int8 (mixed: INT8, some FP16, some INT4) or int4.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; must not exist, or be empty.")],
    calibration: Annotated[
        Path | None,
        typer.Option(help='Text like what the model will see: plain, or .jsonl with a "text" field. Recommended.'),
    ] = None,
    tokens: Annotated[int, typer.Option(min=512, help="Tokens of the calibration text to use.")] = 8192,
    offline: Annotated[bool, typer.Option(help="Use the cache and never the network.")] = False,
) -> None:
    """Quantize a model and write it as safetensors in the compressed-tensors layout, with a quality report."""
    from deepseek.quantization import REPORT, quantize_model

    report = quantize_model(
        model,
        to,
        output,
        calibration=calibration,
        tokens=tokens,
        offline=offline,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(
        f"{output}: {report['size_bytes'] / 2**20:.0f} MiB of weights, {report['size_ratio']:.1%} of their size in FP16"
    )
    figures = report.get("held_out_text")
    if figures is None:
        typer.echo("no calibration text was given: nothing is known about the quality (--calibration FILE)")
        return
    typer.echo(
        f"on {figures['tokens']} held-out tokens: KL divergence {figures['kl_mean']:.5f}, the same "
        f"likeliest token {figures['top1_agreement']:.2%}, perplexity {figures['perplexity']:.3f} instead of "
        f"{figures['reference_perplexity']:.3f}. More in {output / REPORT}"
    )
