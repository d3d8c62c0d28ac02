"""`deepseek eval`: judge models, compare them."""

from __future__ import annotations

import inspect
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
Published = Annotated[
    list[str] | None, typer.Option(help="a file of published figures, or gpt-4o, shown apart; repeatable")
]
_MOST_TABLES = 3
"""Models of a run that are compared on the screen; the page has any number."""


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
    judge: Annotated[
        str | None, typer.Option(help="the model that judges answers, for tasks that ask for one; named as --model is")
    ] = None,
    judge_base_url: Annotated[str | None, typer.Option(help="as --base-url, of the judge")] = None,
    judge_api: Annotated[str | None, typer.Option(help="as --api, of the judge")] = None,
    judge_options: Annotated[
        str | None, typer.Option(help="JSON: other settings of a judge's endpoint, as price_in, price_out, max_cost")
    ] = None,
    judge_itself: Annotated[bool, typer.Option(help="let a model under test be the judge")] = False,
    against: Annotated[
        str | None, typer.Option(help="a run, or FOLDER#MODEL, whose answers pairwise tasks compare with")
    ] = None,
    published: Published = None,
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core by default")] = None,
    data: Data = None,
    download: Annotated[bool, typer.Option(help="fetch datasets that are missing from their public source")] = False,
    offline: Annotated[bool, typer.Option(help="fetch no model")] = False,
) -> None:
    """Run tasks on one or several models, and compare these; write results.json and report.html to a folder."""
    from deepseek.hub.progress import RichProgress
    from deepseek_cli.eval_tables import Bars, results_tables
    from deepseek_eval.registry import select
    from deepseek_eval.run import evaluate

    endpoint: dict[str, Any] = {"api_key_env": api_key_env, "seed": seed}
    endpoint |= {"concurrency": concurrency, "timeout": timeout}
    endpoint |= {"price_in": price_in, "price_out": price_out, "max_cost": max_cost}
    endpoint |= {"extra_body": _object(extra_body, "--extra-body"), "thinking_tokens": thinking_tokens}
    if base_url is None and api is None and (max_cost, price_in, price_out) != (None, None, None):
        raise ConfigurationError("prices and --max-cost are for endpoints: name one with --base-url.")
    models = [*(_model(name, base_url, api, endpoint) for name in model or ()), *_stored(stored or ())]
    if not models:
        raise ConfigurationError("there is no model to evaluate: name one with --model, or outputs with --stored.")
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
            judge=_judge(judge, judge_base_url, judge_api, judge_options),
            judge_itself=judge_itself,
            against=against,
            command=shlex.join(["deepseek", *sys.argv[1:]]),
            watcher=watcher,
            progress=RichProgress(),
            dtype=dtype,
            threads=threads,
            offline=offline,
        )
    results_tables(results, output)
    own = {task.name: task for task in chosen}
    if 1 < len(results.models) <= _MOST_TABLES:
        _compare_all(output, own)
    _write_reports(results, output, own, published or ())
    if any(result.stopped for one in results.models for result in one.tasks.values()):
        raise typer.Exit(3)


def _model(name: str, base_url: str | None, api: str | None, settings: Mapping[str, Any]) -> str | Model:
    """A name for our engine, or a model at an endpoint where there is a setting of one."""
    if base_url is None and api is None:
        return name
    from deepseek_eval.models.endpoint import EndpointModel

    return EndpointModel(name, base_url=base_url, api=api or "chat", **settings)


def _stored(paths: Sequence[Path]) -> list[Model]:
    from deepseek_eval.models.stored import StoredModel

    return [StoredModel(path) for path in paths]


def _judge(name: str | None, base_url: str | None, api: str | None, options: str | None) -> str | Model | None:
    """Raises ConfigurationError for settings of a judge that is not there, and for unknown ones."""
    settings = _object(options, "--judge-options")
    if name is None:
        if base_url is not None or api is not None or settings:
            raise ConfigurationError("there are settings of a judge and no judge: name it with --judge.")
        return None
    if settings and base_url is None and api is None:
        raise ConfigurationError("--judge-options are of an endpoint: name one with --judge-base-url or --judge-api.")
    if settings:
        from deepseek_eval.models.endpoint import EndpointModel

        known = set(inspect.signature(EndpointModel).parameters) - {"name", "base_url", "api"}
        if unknown := sorted(settings.keys() - known):
            raise ConfigurationError(f"--judge-options knows {', '.join(sorted(known))}, not {', '.join(unknown)}.")
    return _model(name, base_url, api, settings)


def _compare_all(output: Path, tasks: Mapping[str, Task]) -> None:
    """Every two models of a run, on the screen."""
    from deepseek_cli.eval_tables import pairs_tables
    from deepseek_eval.report.matrix import all_pairs
    from deepseek_eval.report.sources import read_entries

    pairs_tables(all_pairs(read_entries([output]), tasks))


def _own(tasks: str | None) -> dict[str, Task]:
    """Tasks of users' files, by name."""
    from deepseek_eval.registry import select

    return {task.name: task for task in select(names(tasks or ""))}


def _write_reports(results: Results, output: Path, tasks: Mapping[str, Task], published: Sequence[str]) -> None:
    """A page for each so many models as one can show. The run counts even if a page cannot be made."""
    from deepseek_eval.report import REPORT, write_report
    from deepseek_eval.report.sources import MOST_MODELS

    models = [f"{output}#{one.folder}" for one in results.models]
    for start in range(0, len(models), MOST_MODELS):
        own = models[start : start + MOST_MODELS]
        path = output / (REPORT if start == 0 else f"report-{start // MOST_MODELS + 1}.html")
        try:
            write_report(own, path, published=published, tasks=tasks)
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


def _object(text: str | None, option: str) -> dict[str, Any]:
    """A JSON object that was given as an option. Raises ConfigurationError."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigurationError(f"{option} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{option} must be a JSON object.")
    return found


@eval.command()
def compare(
    first: Annotated[str, typer.Argument(help="folder of a run; FOLDER#MODEL for one of its models")],
    second: Annotated[
        str | None, typer.Argument(help="the same, of what is compared with it; else the second model of the first run")
    ] = None,
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
    from deepseek_eval.compare import two_models

    if fail_if not in (None, "worse"):
        raise ConfigurationError(f"--fail-if knows 'worse', not {fail_if!r}.")
    own = _own(tasks)
    first, second = (first, second) if second is not None else two_models(first)
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
    published: Published = None,
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
