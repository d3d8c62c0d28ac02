"""The page: figures, charts, answers, data, settings, and what to do next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.charts import STYLE, Line, line_chart
from deepseek.errors import CheckpointError
from deepseek_tune.adapters import REPORT, RUN
from deepseek_tune.checkpoints import write_file
from deepseek_tune.progress import duration
from deepseek_tune.report.answers import Sample

if TYPE_CHECKING:
    from jinja2 import Template

_MOVING = 40
"""The mean curve of the loss covers this many windows."""


def write_report(folder: Path, samples: Sequence[Sample] = ()) -> Path:
    """Write ``report.html`` of the finished run in ``folder``; returns its path.

    Raises CheckpointError if its run.json is missing or damaged, OSError if the page cannot be written.
    """
    try:
        run = json.loads((folder / RUN).read_bytes())
        page = render(run, folder, samples)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RUN} is missing or not that of a finished run ({error!r}).") from error
    write_file(folder / REPORT, page.encode())
    return folder / REPORT


def render(run: Mapping[str, Any], folder: Path, samples: Sequence[Sample]) -> str:
    """The page of a run, as HTML."""
    result, data = run["result"], run["data"]
    problems = data["problems"]
    seconds = sum(step["seconds"] for step in run["steps"])
    return _template().render(
        style=STYLE,
        name=folder.name,
        base=run["identity"]["base_model"],
        figures=_figures(run, seconds),
        commands=_commands(run, folder),
        charts=_charts(run),
        samples=samples,
        data=_data(run),
        bad=[
            (kind, count, problems["first"].get(kind, []))
            for kind, count in sorted(problems["counts"].items())
            if count
        ],
        settings={name: _shown(value) for name, value in run["settings"].items()},
        adapter={name: _shown(value) for name, value in run["adapter"].items()},
        versions=run["versions"],
        machine={name: _shown(value) for name, value in run["machine"].items()},
        stopped=result["stopped"] if result["stopped"].startswith("early") else f"after {result['stopped']}",
        best_step=result["best_step"],
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    source = files("deepseek_tune.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _figures(run: Mapping[str, Any], seconds: float) -> list[tuple[str, str]]:
    result = run["result"]
    held = result["validation_loss"]
    figures = [
        ("loss, held out", "none held out" if held is None else f"{held:.3f}"),
        ("loss", f"{result['loss']:.3f}"),
    ]
    if run["evaluations"] and len(run["evaluations"]) > 1:
        figures.append(("loss, held out, first judged", f"{run['evaluations'][0]['loss']:.3f}"))
    if base := run.get("base"):
        figures.append(("base model in memory", f"{base['bytes'] / 2**20:,.0f} MiB, {base['dtype']}"))
    return [
        *figures,
        ("of the parameters trained", f"{result['trainable_share']:.3%}"),
        ("parameters trained", f"{result['trainable_parameters']:,}"),
        ("steps", f"{result['steps']:,}"),
        ("tokens/s", f"{result['tokens_per_second']:,.0f}"),
        ("of training", duration(seconds)),
    ]


def _commands(run: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    base, place = shlex.quote(run["settings"]["base_model"]), shlex.quote(str(folder))
    name = shlex.quote(f"{folder.name}={folder}")
    commands = [("Serve it beside its base model", f"deepseek serve {base} --adapter {name}")]
    if "lora_rank" in run["settings"]:
        merged, file = shlex.quote(f"{folder}-merged"), shlex.quote(f"{folder}.gguf")
        commands += [
            ("Merge it into a model of its own", f"deepseek tune merge {place} {merged}"),
            ("Or into a GGUF file, at 8 bits", f"deepseek tune merge {place} {file} --dtype q8_0"),
        ]
    return commands


def _charts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, SVG) of each."""
    steps = run["steps"]
    numbers = [step["step"] for step in steps]
    losses = [step["loss"] for step in steps]
    judged = run["evaluations"]
    curves = [
        Line("each step", numbers, losses, faint=True),
        Line("mean", numbers, smoothed(losses, max(1, len(losses) // _MOVING))),
    ]
    if judged:
        points = ([one["step"] for one in judged], [one["loss"] for one in judged])
        curves.append(Line("held out", *points, colour=2, markers=True))
    unit = "nats per answer token"
    charts = [("Loss", line_chart(curves, x_label="step", y_label=unit, label="Loss of each step", width=13.0))]
    for title, key, unit, colour in (
        ("Learning rate", "learning_rate", "of the matrices A" if "lora_rank" in run["settings"] else "", 3),
        ("Norm of the gradient", "grad_norm", "before it was cut", 4),
    ):
        line = Line("", numbers, [step[key] for step in steps], colour=colour)
        charts.append((title, line_chart([line], x_label="step", y_label=unit, label=f"{title} of each step")))
    speeds = [step["tokens"] / step["seconds"] for step in steps]
    curve = [
        Line("", numbers, speeds, colour=5, faint=True),
        Line("", numbers, smoothed(speeds, max(1, len(speeds) // _MOVING)), colour=5),
    ]
    charts.append(("Speed", line_chart(curve, x_label="step", y_label="tokens/s", label="Tokens per second")))
    return charts


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to ``reach`` neighbours on both sides."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(0, at - reach), min(len(values), at + reach + 1)) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def _data(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    data = run["data"]
    problems = data["problems"]
    columns = ", ".join(f"{need}: {column}" for need, column in data["shape"]["columns"].items())
    rows = [
        ("file", Path(run["settings"]["train_data"]).name),
        ("SHA-256", run["identity"]["data_sha256"]),
        ("rows", f"{problems['rows']:,}, {sum(problems['counts'].values()):,} of them bad"),
        ("shape", f"{data['shape']['name']} ({columns})"),
        ("examples", f"{data['examples']:,}"),
        ("tokens per epoch", f"{data['tokens_per_epoch']:,}"),
        ("answer tokens", f"{data['answer_tokens']:,}"),
        ("packing", f"rows of {data['row_tokens']:,} tokens, filled to {data['efficiency']:.1%}"),
    ]
    if instruction := data["shape"].get("instruction"):
        rows.append(("instruction", instruction))
    return rows + [(what, f"{count:,}") for what, count in problems["notices"].items()]


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
