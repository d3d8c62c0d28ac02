"""One HTML file that needs nothing else: style, script, charts and items are in it, and it may fetch nothing.

A content security policy in the page names the one style sheet and the one script by their hashes, so whatever a model
wrote can neither run nor load anything, even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from deepseek_eval.report import bias, charts, text
from deepseek_eval.report.clusters import Cluster, Confusion, confusions, similar_errors
from deepseek_eval.report.items import MOST_BYTES, STATES, Asked, pack, read_items
from deepseek_eval.report.matrix import Pair
from deepseek_eval.report.published import Figure, Published
from deepseek_eval.report.sources import Entry, Shown
from deepseek_eval.report.summary import Totals, asked, kind_means, totals
from deepseek_eval.results import MetricInfo, ScoreLine, TaskResult, read_lines, scores_file
from deepseek_eval.statistics import Estimate
from deepseek_eval.task import Task

_FILES = Path(__file__).parent / "page"
EVIDENCE = {
    "re-run": "asked here, by this tool",
    "re-scored": "answers that somebody stored, scored here",
    "published": "a figure somebody published, not run here",
    "judged": "the opinion of another model, which errs and has its likings",
}
KINDS = {"bias": "bias sets", "nli": "natural language inference", "long-context": "long contexts"}


@dataclass(frozen=True)
class Row:
    """A model's line under a task; ``figure`` is set for a published one."""

    label: str
    colour: str
    evidence: str
    value: str
    interval: str
    bar: Markup
    result: TaskResult | None = None
    figure: Figure | None = None
    above: bool | None = None


@dataclass(frozen=True)
class TaskView:
    """All that the page shows of a task."""

    place: int
    shown: Shown
    rows: tuple[Row, ...]
    errors: tuple[tuple[Entry, tuple[Confusion, ...], tuple[Cluster, ...]], ...]
    calibration: Markup | None
    judged: tuple[bias.Judged, ...]
    cases: tuple[bias.Case, ...]
    topics: tuple[bias.Topic, ...]
    lost: bool
    data: str
    index: dict[str, Any]


def render(
    entries: Sequence[Entry],
    tasks: Sequence[Shown],
    pairs: Sequence[Pair],
    published: Sequence[Published],
    *,
    title: str,
    difference: bool = False,
    known: Mapping[str, Task] | None = None,
    most_bytes: int = MOST_BYTES,
) -> str:
    """The whole page.

    Args:
        difference: put what changed between two models first.
        known: tasks that are not built in.
        most_bytes: of all items, packed.
    """
    views = _views(entries, tasks, published, known, most_bytes)
    means = kind_means(entries, tasks, all_models=difference)
    style, script = ((_FILES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    index = {
        "models": [{"label": text.visible(entry.label), "colour": f"m{entry.place}"} for entry in entries],
        "tasks": [view.index for view in views],
        "difference": difference,
        "opens": next((view.place for view in views if view.lost), 0) if difference else 0,
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            difference=difference,
            policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'",
            style=Markup(style),
            script=Markup(script),
            index=Markup(htmlsafe_json_dumps(index, ensure_ascii=False)),
            entries=entries,
            totals=[totals(entry) for entry in entries],
            runs=_runs(entries),
            views=views,
            kinds=_by_kind(views),
            means=means,
            radar=charts.radar([KINDS.get(kind, kind) for kind in means.tasks], means.polygons, means.chance)
            if len(means.tasks) >= 3 and means.polygons
            else None,
            pairs=pairs,
            elsewhere=_elsewhere(tasks, published),
            published=published,
            bars={view.place: view.rows for view in views},
        )
    )


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    made.filters |= {"shown": text.shown, "signed": text.signed, "duration": text.duration, "money": text.money}
    made.filters |= {"short": text.shortened, "json": _as_json, "part": _part}
    made.globals |= {
        "evidence_words": EVIDENCE,
        "kind_words": KINDS,
        "asked": asked,
        "key": charts.key,
        "value": _with_interval,
    }
    return made


def _finalize(value: Any) -> Any:
    return text.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    """A name as a part of an address, between slashes."""
    return quote(text.visible(name), safe="")


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode() if not isinstance(value, str) else value


def _with_interval(found: Estimate | None, unit: str) -> str:
    if found is None:
        return "–"
    return f"{text.shown(found.value, unit)} {_interval(found.low, found.high, unit)}".strip()


def _interval(low: float | None, high: float | None, unit: str) -> str:
    return "" if low is None or high is None else f"[{text.shown(low, unit)}, {text.shown(high, unit)}]"


def _views(
    entries: Sequence[Entry],
    tasks: Sequence[Shown],
    published: Sequence[Published],
    known: Mapping[str, Task] | None,
    most_bytes: int,
) -> list[TaskView]:
    views = []
    left = most_bytes
    for place, shown in enumerate(tasks):
        every = read_items(shown, known)
        packed = pack(every, [entry.place for entry in entries], left // (len(tasks) - place))
        left -= len(packed.data)
        is_bias = shown.info.kind == "bias"
        views.append(
            TaskView(
                place=place,
                shown=shown,
                rows=_rows(shown, published),
                errors=() if is_bias else _errors(shown, every),
                calibration=_calibration(shown),
                judged=tuple(bias.judge(shown)) if is_bias else (),
                cases=tuple(bias.cases(every, shown.info.metrics)) if is_bias else (),
                topics=tuple(bias.topics(every, shown)) if is_bias else (),
                lost=any(_lost(one, shown.metric.higher_is_better) for one in every),
                data=packed.data,
                index={
                    "name": text.visible(shown.info.name),
                    "title": text.visible(shown.info.title),
                    "unit": shown.metric.unit,
                    "metric": text.visible(shown.metric.name),
                    "better": shown.metric.higher_is_better,
                    "kept": packed.kept,
                    "total": packed.total,
                    "states": [one for one in STATES if any(_has(a, one) for a in every)],
                },
            )
        )
    return views


def _lost(asked_item: Asked, higher_is_better: bool | None) -> bool:
    """The second model has a worse value than the first."""
    before, after = (asked_item.given.get(place) for place in (0, 1))
    if before is None or after is None or before.value is None or after.value is None or higher_is_better is None:
        return False
    return after.value < before.value if higher_is_better else after.value > before.value


def _has(asked_item: Asked, state: str) -> bool:
    return any(given.state == state for given in asked_item.given.values())


def _rows(shown: Shown, published: Sequence[Published]) -> tuple[Row, ...]:
    metric = shown.metric
    found = [(entry, result, result.metrics.get(metric.name)) for entry, result in shown.entries]
    figures = [(p.model, f) for p in published for f in p.figures if f.task == shown.info.name]
    values = [v for _, _, one in found if one is not None for v in (one.value, one.low, one.high) if v is not None]
    values += [figure.value for _, figure in figures if figure.metric == metric.name]
    scale = charts.scale_for(metric.unit, values, metric.chance)
    rows = [_row(entry, result, one, metric, scale) for entry, result, one in found]
    return (*rows, *(_published_row(model, figure, shown, scale) for model, figure in figures))


def _row(entry: Entry, result: TaskResult, found: Estimate | None, metric: MetricInfo, scale: charts.Scale) -> Row:
    value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
    chance = "" if metric.chance is None else f", chance {text.shown(metric.chance, metric.unit)}"
    interval = _interval(low, high, metric.unit)
    return Row(
        label=entry.label,
        colour=f"m{entry.place}",
        evidence=entry.model.evidence,
        value=text.shown(value, metric.unit),
        interval=interval,
        bar=charts.bar(
            scale,
            value,
            low,
            high,
            chance=metric.chance,
            colour=f"m{entry.place}",
            words=text.visible(f"{entry.label}: {text.shown(value, metric.unit)} {interval}{chance}"),
        ),
        result=result,
        above=found.above_chance if found else None,
    )


def _published_row(model: str, figure: Figure, shown: Shown, scale: charts.Scale) -> Row:
    unit = next(one.unit for one in shown.info.metrics if one.name == figure.metric)
    main = figure.metric == shown.metric.name
    return Row(
        label=model,
        colour="mp",
        evidence="published",
        value=text.shown(figure.value, unit),
        interval=_interval(figure.low, figure.high, unit),
        bar=charts.bar(
            scale,
            figure.value if main else None,
            figure.low if main else None,
            figure.high if main else None,
            chance=shown.metric.chance,
            colour="mp",
            words=text.visible(f"{model}, published: {text.shown(figure.value, unit)}"),
            published=True,
        ),
        figure=figure,
    )


def _errors(
    shown: Shown, every: Sequence[Asked]
) -> tuple[tuple[Entry, tuple[Confusion, ...], tuple[Cluster, ...]], ...]:
    found = []
    for entry, _ in shown.entries:
        labels = tuple(confusions(every, entry.place))
        similar = tuple(similar_errors(every, entry.place, entry.results.seed))
        if labels or similar:
            found.append((entry, labels, similar))
    return tuple(found)


def _calibration(shown: Shown) -> Markup | None:
    """Where the calibration error is measured: accuracy over confidence."""
    if not any(one.name == "ece" for one in shown.info.metrics):
        return None
    curves = [
        (text.visible(entry.label), f"m{entry.place}", bins)
        for entry, _ in shown.entries
        if (bins := _bins(entry, shown))
    ]
    return charts.calibration(text.visible(shown.info.name), curves) if curves else None


def _bins(entry: Entry, shown: Shown) -> list[charts.Bin]:
    sums: list[float] = []
    for line in read_lines(scores_file(entry.folder, entry.model, shown.info.name), ScoreLine):
        row = line.score.statistics.get("ece") if line.score else None
        if row is not None:
            sums = [a + b for a, b in zip(sums, row, strict=True)] if sums else list(row)
    return [
        charts.Bin(int(count), confidence / count, right / count)
        for count, confidence, right in zip(sums[0::3], sums[1::3], sums[2::3], strict=True)
        if count
    ]


def _by_kind(views: Sequence[TaskView]) -> dict[str, list[TaskView]]:
    kinds: dict[str, list[TaskView]] = {}
    for view in views:
        kinds.setdefault(view.shown.info.kind, []).append(view)
    return kinds


def _runs(entries: Sequence[Entry]) -> list[Entry]:
    """The first entry of each run."""
    return list({entry.folder.resolve(): entry for entry in reversed(entries)}.values())[::-1]


def _elsewhere(tasks: Sequence[Shown], published: Sequence[Published]) -> list[tuple[str, Figure]]:
    """Published figures of tasks that were not run."""
    names = {one.info.name for one in tasks}
    return [(one.model, figure) for one in published for figure in one.figures if figure.task not in names]


__all__ = ["EVIDENCE", "Totals", "render"]
