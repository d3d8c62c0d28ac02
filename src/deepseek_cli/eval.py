"""`deepseek eval`: judge models, compare them."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek.errors import ConfigurationError, DeepSeekError
from deepseek_cli.bench_options import DTYPE_HELP, names

if TYPE_CHECKING:
    from deepseek_eval.results import Results
    from deepseek_eval.task import Model, Task

eval = typer.Typer(no_args_is_help=True, add_completion=False, help="Judge models, and say whether two differ.")

Data = Annotated[
    Path | None, typer.Option("--data", help="folder of datasets; else that of DEEPSEEK_EVAL_DATA, else the cache's")
]
OwnTasks = Annotated[
    str | None, typer.Option("--tasks", help="your own task files that the runs used, with commas between")
]


@eval.callback()
def root() -> None:
    """Judge models, and say whether two differ."""


@eval.command("list")
def list_tasks(
    suite: Annotated[str | None, typer.Option(help="only those of a suite or family")] = None,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="an array of tasks, for programs")] = False,
) -> None:
    """List the tasks, and whether their data is there."""
    from deepseek_cli.eval_tables import tasks_table
    from deepseek_eval.datasets import data_folder, missing_files
    from deepseek_eval.registry import SUITES, all_tasks, select

    tasks = select([suite]) if suite else list(all_tasks().values())
    folder = data_folder(data)
    rows = [
        {
            "name": task.name,
            "title": task.title,
            "kind": task.kind,
            "languages": list(task.languages),
            "suites": list(task.suites),
            "metrics": [metric.name for metric in task.metrics],
            "chance": task.metrics[0].chance,
            "shots": task.shots,
            "version": task.version,
            "datasets": list(task.datasets),
            "missing_datasets": [name for name in task.datasets if missing_files(name, folder)],
            "note": task.note,
        }
        for task in tasks
    ]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    tasks_table(rows, SUITES, folder)


@eval.command()
def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of results; a second run goes on in it")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="folder, .gguf, built-in name, Hugging Face id; several times"),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="tasks of a suite (core)")] = None,
    tasks: Annotated[str | None, typer.Option(help="names of tasks, families or suites, with commas between")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="items of each task at most, chosen by the seed")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="examples before each question; else the tasks' own")] = None,
    seed: Annotated[int, typer.Option(help="of samples, limit and intervals")] = 0,
    stored: Annotated[
        list[Path] | None, typer.Option(help="a file of stored outputs, to be scored; repeatable")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="models are names at this OpenAI-compatible address (https://.../v1)")
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(help="chat, completions or anthropic; without an address, the provider's own"),
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="variable that holds the key")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="requests to an endpoint at a time")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for an answer of an endpoint")] = 120.0,
    price_in: Annotated[float | None, typer.Option(min=0, help="dollars per million prompt tokens")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="dollars per million answer tokens")] = None,
    extra_body: Annotated[
        str | None, typer.Option(help="JSON: fields of each request to an endpoint; null leaves one out")
    ] = None,
    thinking_tokens: Annotated[
        int, typer.Option(min=0, help="room for an endpoint's thoughts, beside that for answers")
    ] = 0,
    max_cost: Annotated[float | None, typer.Option(min=0, help="stop before an endpoint costs more dollars")] = None,
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core by default")] = None,
    data: Data = None,
    download: Annotated[bool, typer.Option(help="fetch datasets that are missing from their public source")] = False,
    offline: Annotated[bool, typer.Option(help="fetch no model")] = False,
) -> None:
    """Run tasks on one or several models; write results.json and report.html to a folder."""
    from deepseek.hub.progress import RichProgress
    from deepseek_cli.eval_tables import Bars, results_tables
    from deepseek_eval.registry import select
    from deepseek_eval.run import evaluate

    endpoint: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if base_url is not None or api is not None:
        endpoint = {"base_url": base_url, "api": api or "chat", "api_key_env": api_key_env, "seed": seed}
        endpoint |= {"concurrency": concurrency, "timeout": timeout, "price_in": price_in, "price_out": price_out}
        endpoint |= {"max_cost": max_cost, "extra_body": _object(extra_body), "thinking_tokens": thinking_tokens}
    elif (max_cost, price_in, price_out) != (None, None, None):
        raise ConfigurationError("prices and --max-cost are for endpoints: name one with --base-url.")
    else:
        settings = {"dtype": dtype, "threads": threads, "offline": offline}
    models = _models(model or (), stored or (), endpoint)
    chosen = select(names(tasks or ""))
    with Bars() as watcher:
        results = evaluate(
            models,
            suite=suite,
            tasks=chosen,
            output_dir=output,
            limit=limit,
            shots=shots,
            seed=seed,
            data=data,
            download=download,
            command=shlex.join(["deepseek", *sys.argv[1:]]),
            watcher=watcher,
            progress=RichProgress(),
            **settings,
        )
    results_tables(results, output)
    _write_reports(results, output, {task.name: task for task in chosen})
    if any(result.stopped for one in results.models for result in one.tasks.values()):
        raise typer.Exit(3)


def _models(named: Sequence[str], stored: Sequence[Path], endpoint: Mapping[str, Any]) -> list[str | Model]:
    """What is evaluated; with settings of an endpoint, names are of models there. Raises ConfigurationError if that is
    nothing."""
    found: list[str | Model] = list(named)
    if endpoint:
        from deepseek_eval.models.endpoint import EndpointModel

        found = [EndpointModel(name, **endpoint) for name in named]
    if stored:
        from deepseek_eval.models.stored import StoredModel

        found += [StoredModel(path) for path in stored]
    if not found:
        raise ConfigurationError("there is no model to evaluate: name one with --model, or outputs with --stored.")
    return found


def _own(tasks: str | None) -> dict[str, Task]:
    """Tasks of users' files, by name."""
    from deepseek_eval.registry import select

    return {task.name: task for task in select(names(tasks or ""))}


def _write_reports(results: Results, output: Path, tasks: Mapping[str, Task]) -> None:
    """A page for each so many models as one can show. The run counts even if a page cannot be made."""
    from deepseek_eval.report import REPORT, write_report
    from deepseek_eval.report.sources import MOST_MODELS

    models = [f"{output}#{one.folder}" for one in results.models]
    for start in range(0, len(models), MOST_MODELS):
        own = models[start : start + MOST_MODELS]
        path = output / (REPORT if start == 0 else f"report-{start // MOST_MODELS + 1}.html")
        try:
            write_report(own, path, tasks=tasks)
        except Exception as error:  # noqa: BLE001 - shown whole; hours of answers are there, whatever a page does
            if not isinstance(error, DeepSeekError):
                traceback.print_exc()
            typer.echo(f"{path} is not written: {error or type(error).__name__}", err=True)
            typer.echo(
                f"The results are complete. `deepseek eval report {shlex.quote(str(output))}` tries again.", err=True
            )
            continue
        part = f", models {start + 1} to {start + len(own)} of {len(models)}" if len(models) > len(own) else ""
        typer.echo(f"{path}: for a browser{part}")


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object that was given as an option. Raises ConfigurationError."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigurationError(f"--extra-body is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError("--extra-body must be a JSON object.")
    return found


@eval.command()
def compare(
    first: Annotated[str, typer.Argument(help="folder of a run; FOLDER#MODEL where it has several models")],
    second: Annotated[str, typer.Argument(help="the same, of what is compared with it")],
    fail_if: Annotated[
        str | None, typer.Option("--fail-if", help="worse: exit status 2 if the second is worse in any task")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="also write a page with the items that changed")
    ] = None,
    tasks: OwnTasks = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Say in which tasks the second model differs from the first, on the items that both answered."""
    import msgspec

    from deepseek_cli.eval_tables import comparison_table
    from deepseek_eval.compare import compare as compare_runs

    if fail_if not in (None, "worse"):
        raise ConfigurationError(f"--fail-if knows 'worse', not {fail_if!r}.")
    own = _own(tasks)
    comparison = compare_runs(first, second, tasks=own)
    if output is not None:
        from deepseek_eval.report import write_difference

        write_difference(first, second, output, tasks=own)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(comparison), indent=1).decode())
    else:
        comparison_table(comparison)
    if fail_if == "worse" and comparison.worse:
        raise typer.Exit(2)


@eval.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="folders of runs; FOLDER#MODEL for one model of several")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the HTML file to write")] = Path("report.html"),
    published: Annotated[
        list[Path] | None, typer.Option(help="a file of published figures, shown apart; repeatable")
    ] = None,
    title: Annotated[str, typer.Option(help="of the page; else the models' names")] = "",
    tasks: OwnTasks = None,
) -> None:
    """Write one page with the models of all runs side by side. It needs no network."""
    from deepseek_eval.report import write_report

    write_report(runs, output, published=published or (), tasks=_own(tasks), title=title)
    typer.echo(f"{output}: for a browser")


@eval.command("stored-sib200")
def stored_sib200(
    model: Annotated[str, typer.Argument(help="gpt-3.5 or gpt-4")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write")],
    data: Data = None,
) -> None:
    """Write the answers of GPT-3.5 or GPT-4 that SIB-200 holds as stored outputs, for `run --stored`."""
    from deepseek_eval.models.sib200 import convert_sib200

    count = convert_sib200(model, output, data=data)
    typer.echo(f"{output}: {count} answers of {model}, in tasks sib200_en, sib200_zh, sib200_ja and sib200_ko")
