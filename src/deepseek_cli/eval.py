"""`deepseek eval`: judge models, compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek_cli.bench_options import DTYPE_HELP, names

if TYPE_CHECKING:
    from deepseek_eval.task import Model

eval = typer.Typer(no_args_is_help=True, add_completion=False, help="Judge models, and say whether two differ.")

Data = Annotated[
    Path | None, typer.Option("--data", help="folder of datasets; else that of DEEPSEEK_EVAL_DATA, else the cache's")
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
    from deepseek.errors import ConfigurationError
    from deepseek.hub.progress import RichProgress
    from deepseek_cli.eval_tables import Bars, results_tables
    from deepseek_eval.run import evaluate

    models: list[str | Model] = []
    settings: dict[str, Any] = {}
    endpoint = base_url is not None or api is not None
    if not endpoint and (max_cost is not None or price_in is not None or price_out is not None):
        raise ConfigurationError("prices and --max-cost are for endpoints: name one with --base-url.")
    if endpoint:
        from deepseek_eval.models.endpoint import EndpointModel

        for name in model or ():
            models.append(
                EndpointModel(
                    name,
                    base_url=base_url,
                    api=api or "chat",
                    api_key_env=api_key_env,
                    concurrency=concurrency,
                    timeout=timeout,
                    price_in=price_in,
                    price_out=price_out,
                    max_cost=max_cost,
                    extra_body=_object(extra_body),
                    thinking_tokens=thinking_tokens,
                    seed=seed,
                )
            )
    else:
        models += model or ()
        settings = {"dtype": dtype, "threads": threads, "offline": offline}
    if stored:
        from deepseek_eval.models.stored import StoredModel

        models += [StoredModel(path) for path in stored]
    if not models:
        raise ConfigurationError("there is no model to evaluate: name one with --model, or outputs with --stored.")
    with Bars() as watcher:
        results = evaluate(
            models,
            suite=suite,
            tasks=names(tasks or ""),
            output_dir=output,
            limit=limit,
            shots=shots,
            seed=seed,
            data=data,
            download=download,
            watcher=watcher,
            progress=RichProgress(),
            **settings,
        )
    from deepseek_eval.report import REPORT, write_report

    results_tables(results, output)
    write_report([output], output / REPORT)
    typer.echo(f"{output / REPORT}: for a browser")
    if any(result.stopped for one in results.models for result in one.tasks.values()):
        raise typer.Exit(3)


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object that was given as an option. Raises ConfigurationError."""
    from deepseek.errors import ConfigurationError

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
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Say in which tasks the second model differs from the first, on the items that both answered."""
    import msgspec

    from deepseek.errors import ConfigurationError
    from deepseek_cli.eval_tables import comparison_table
    from deepseek_eval.compare import compare as compare_runs

    if fail_if not in (None, "worse"):
        raise ConfigurationError(f"--fail-if knows 'worse', not {fail_if!r}.")
    comparison = compare_runs(first, second)
    if output is not None:
        from deepseek_eval.report import write_difference

        write_difference(first, second, output)
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
) -> None:
    """Write one page with the models of all runs side by side. It needs no network."""
    from deepseek_eval.report import write_report

    write_report(runs, output, published=published or (), title=title)
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
