"""``deepseek pull``: fetch a model now, so that later starts need no network."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    model: Annotated[str, typer.Argument(help="A built-in name (`deepseek models`) or a Hugging Face id org/name.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Download a model into the cache, verify it, and print where it is."""
    from deepseek.hub.progress import RichProgress
    from deepseek.hub.registry import find
    from deepseek.hub.resolve import resolve

    try:
        files = resolve(model, progress=None if quiet else RichProgress())
    except KeyboardInterrupt as error:
        typer.echo("\nStopped. Run the same command to go on: finished parts are kept.", err=True)
        raise typer.Exit(130) from error
    known = find(model)
    if known is not None and not quiet:
        typer.echo(f"{known.name}: licence {known.licence}", err=True)
    typer.echo(str(files.path))
