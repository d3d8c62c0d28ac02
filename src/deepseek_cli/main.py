"""The command's entry point. A subcommand's module is imported when it is called, so that `--help` stays fast."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from deepseek.errors import DeepSeekError

COMMANDS = {
    "serve": "serve a model over an OpenAI-compatible HTTP API",
    "chat": "talk to a model in the terminal",
    "pull": "download a model and verify it",
    "models": "list the built-in models",
    "usage": "list what each key has used",
    "doctor": "show what this machine can do and which kernels it gets",
    "quantize": "make a model half the size or less, and say what that costs",
    "eval": "judge models, and say whether two differ",
    "bench": "measure speed and memory",
    "tune": "adapt a model to data of your own",
}


class LazyGroup(TyperGroup):
    """Knows the names of all commands; imports ``deepseek_cli.<name>`` for the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        found: Any = _placeholder
        if not _only_listing():
            found = getattr(importlib.import_module(f"deepseek_cli.{cmd_name}"), cmd_name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(short_help=COMMANDS[cmd_name], help=function.__doc__, context_settings=HELP)(function)
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


def _placeholder() -> None:
    """Stands for a command while only the list of commands is shown."""


def _only_listing() -> bool:
    return len(sys.argv) < 2 or sys.argv[1] in HELP["help_option_names"]


HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, context_settings=HELP)


@app.callback()
def root() -> None:
    """DeepSeek V2.1: serve, chat with, and measure large language models on your own machine."""


def main() -> None:
    """Run the command; errors of ours are one readable line and exit status 1."""
    try:
        app()
    except DeepSeekError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
