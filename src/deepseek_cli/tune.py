"""``deepseek tune``: adapt a model to data of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek.errors import ConfigurationError
from deepseek_cli.settings_options import add_settings, documented
from deepseek_tune.data.cache import DataSettings
from deepseek_tune.settings import LoRASettings, PTuningSettings

if TYPE_CHECKING:
    from deepseek_tune import TuningResult

tune = typer.Typer(no_args_is_help=True, add_completion=False, help="Adapt a model to data of your own.")
_DATA = documented(DataSettings)


@tune.callback()
def root() -> None:
    """Adapt a model to data of your own."""


@tune.command()
@add_settings(LoRASettings, extra=_DATA)
def lora(given: dict[str, Any]) -> None:
    """Train a LoRA adapter. A run that was cut off goes on when the same command is given again.

    deepseek tune lora --base-model deepseek-v2.1 --train-data customer_service.json
    """
    from deepseek_tune import LoRATuner

    _train(LoRATuner(**_complete(given)))


@tune.command()
@add_settings(PTuningSettings, extra=_DATA)
def ptuning(given: dict[str, Any]) -> None:
    """Train a prompt (P-Tuning), or with --variant prefix a prefix of every layer. A run that was cut off goes on when
    the same command is given again."""
    from deepseek_tune import PTuner

    _train(PTuner(**_complete(given)))


@tune.command()
@add_settings(LoRASettings, PTuningSettings, extra=_DATA)
def estimate(
    given: dict[str, Any],
    method: Annotated[str, typer.Option(help="lora or ptuning, whose options are taken")] = "lora",
) -> None:
    """Say what a run will cost in time and memory, and what is trained, without training."""
    from deepseek_tune import LoRATuner, PTuner

    tuners: dict[str, type[LoRATuner] | type[PTuner]] = {"lora": LoRATuner, "ptuning": PTuner}
    if method not in tuners:
        raise ConfigurationError(f"--method is {' or '.join(tuners)}, not {method!r}.")
    typer.echo(str(tuners[method](**_complete(given)).estimate()))


@tune.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="the adapter's folder")],
    output: Annotated[Path, typer.Argument(help="the folder to write, or the .gguf file")],
    base_model: Annotated[
        str | None, typer.Option(help="a folder, .gguf file, built-in name or Hugging Face id; else the adapter's own")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="safetensors, gguf, or gguf-lora (the adapter alone); else by the output's name")
    ] = None,
    dtype: Annotated[str, typer.Option(help="of matrices: auto (the base's), f32, f16, bf16; in GGUF q8_0")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier result")] = False,
    check: Annotated[bool, typer.Option(help="compare the result with base model and adapter on a text")] = True,
    probe: Annotated[str | None, typer.Option(help="the text to compare on; else one of our own")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="use the cache and never the network")] = False,
) -> None:
    """Merge an adapter into its base model: a folder or a GGUF file that runs without it."""
    from deepseek_tune.merge import merge as run

    result = run(
        adapter,
        output,
        base_model,
        format=format,
        dtype=dtype,
        overwrite=overwrite,
        check=check,
        probe=probe,
        offline=offline,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(f"{output}: {result.size_bytes / 2**20:,.0f} MiB of weights in {result.dtype}")
    if result.check is not None:
        typer.echo(f"checked: {result.check}")
    if result.format != "gguf-lora":
        typer.echo(f"serve it: deepseek serve {shlex.quote(str(output))}")


def _complete(given: dict[str, Any]) -> dict[str, Any]:
    """The settings, those that every run needs among them."""
    if missing := [name for name in ("base_model", "train_data") if name not in given]:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ConfigurationError(f"{options} must be given, as an option or in the file of --config.")
    return given


def _train(tuner: Any) -> None:
    """Run it; stopped with Ctrl-C, say how to go on."""
    output = tuner.settings.output
    try:
        result: TuningResult = tuner.train()
    except KeyboardInterrupt:
        typer.echo(_kept(output), err=True)
        raise typer.Exit(130) from None
    held = (
        "" if result.validation_loss is None else f", held out {result.validation_loss:.3f} (step {result.best_step})"
    )
    typer.echo(f"{output}: {result.trainable_parameters:,} parameters, {result.trainable_share:.3%} of the model")
    typer.echo(f"loss {result.loss:.3f}{held}; {result.tokens_per_second:,.0f} tokens/s; {result.stopped}")
    if isinstance(tuner.settings, LoRASettings):
        typer.echo(f"merge it: deepseek tune merge {shlex.quote(str(output))} {shlex.quote(f'{output}-merged')}")


def _kept(output: Path) -> str:
    """What there is of a run that was stopped."""
    from deepseek_tune import checkpoints
    from deepseek_tune.adapters import RUN

    if found := checkpoints.latest(output / checkpoints.FOLDER):
        step = checkpoints.step_of(found)
        return f"stopped; what was learned until step {step:,} is in {found}. The same command goes on from there."
    if (output / RUN).exists():
        return f"stopped; {output} holds a finished adapter, at most its report.html is missing."
    return "stopped before the first checkpoint: the same command starts again."
