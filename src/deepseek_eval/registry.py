"""All tasks by name, families of tasks, suites."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from functools import cache

from deepseek.errors import ConfigurationError
from deepseek_eval.task import Task
from deepseek_eval.task_file import SUFFIXES, load_task_file

_MODULES = (
    *("classification", "inference", "similarity", "reading", "mathematics", "programs", "big_bench_hard", "documents"),
    *("extraction", "following", "structures", "long_context", "safety", "social_bias", "counterfactuals"),
)
FAMILIES = {
    "bbh": "BIG-Bench Hard, 27 kinds",
    "sib200": "topics in four languages",
    "xsid_intent": "intents in three languages",
    "xsid_slots": "slots in three languages",
    "mgsm": "school mathematics in three languages",
    "xquad": "reading in two languages",
    "ntrex": "translation in six directions",
    "headline": "headlines in four languages",
    "perplexity": "news in four languages",
    "instructions": "instructions in four languages",
    "json_schema": "JSON after a schema in four languages",
    "tool_calling": "calls of tools in four languages",
    "recall": "long contexts in two languages",
    "refusal": "requests to refuse and to answer in four languages",
    "truthfulness": "common errors in four languages",
    "counterfactual": "decisions about people in four languages",
    "tendencies": "contested statements in four languages",
}
"""A family has the tasks whose names begin with its own and an underscore."""
_OF_KIND = {
    "bias": "bias, with accuracy beside it",
    "safety": "refusals and truthfulness",
    "code": "programs that are run",
    "mathematics": "word problems",
    "translation": "translation",
    "reasoning": "BIG-Bench Hard",
}
_LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean"}
SUITES = {
    "core": "a small slice of most kinds: on SmolLM2 135M and two cores some minutes",
    "full": "every task",
    **{language: f"all tasks in {name} alone" for language, name in _LANGUAGES.items()},
    **_OF_KIND,
}


@cache
def all_tasks() -> dict[str, Task]:
    """Every built-in task, by name. No dataset is read for it."""
    found: dict[str, Task] = {}
    for name in _MODULES:
        for task in importlib.import_module(f"deepseek_eval.tasks.{name}").tasks():
            assert task.name not in found, f"two tasks are called {task.name}"
            found[task.name] = task
    return found


def members(name: str) -> list[Task]:
    """The tasks of a suite, of a family, or the one of this name or in this file.

    Raises ConfigurationError with the nearest names, and as :func:`deepseek_eval.task_file.load_task_file`.
    """
    if name.endswith(SUFFIXES):
        return [load_task_file(name)]
    known = all_tasks()
    if name in SUITES:
        return [task for task in known.values() if _in_suite(task, name)]
    if name in FAMILIES:
        return [task for task in known.values() if task.name.startswith(f"{name}_")]
    if name in known:
        return [known[name]]
    names = [*SUITES, *FAMILIES, *known]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    close = close or [one for one in names if len(name) > 2 and name.lower() in one][:3]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigurationError(f"there is no task, family or suite {name!r}.{hint} `deepseek eval list` shows all.")


def select(names: Iterable[str]) -> list[Task]:
    """The tasks of all ``names`` (:func:`members`), each once, in the order they were named."""
    return list({task.name: task for name in names for task in members(name)}.values())


def _in_suite(task: Task, suite: str) -> bool:
    if suite in _LANGUAGES:
        return task.languages == (suite,)
    return suite == "full" or suite in task.suites or (suite in _OF_KIND and task.kind == suite)
