"""Programs that are run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from deepseek_eval.scorers.code import code, code_metrics
from deepseek_eval.task import Generate, Rows, Task
from deepseek_eval.tasks.builders import UNSPACED, Question, generate_task

_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


def tasks() -> Iterator[Task]:
    """All of them."""
    yield _humaneval("humaneval", Generate(max_tokens=512, stop=_STOP), (1,))
    several = Generate(max_tokens=512, stop=_STOP, samples=10, temperature=0.8)
    yield _humaneval("humaneval_10", several, (1, 10))


def _humaneval(name: str, ask: Generate, ks: tuple[int, ...]) -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        questions = [
            Question(
                row["task_id"],
                row["prompt"],
                target={part: row[part] for part in ("prompt", "test", "entry_point")},
            )
            for row in files["humaneval"].read("HumanEval.jsonl.gz")
        ]
        return questions, []

    return generate_task(
        name,
        "Python functions that must pass their tests",
        "code",
        ("en",),
        ("humaneval",),
        read,
        ask,
        code(ks),
        code_metrics(ks),
        style=UNSPACED,
        suites=("core",) if name == "humaneval" else (),
        note="The function's head is continued, as in the paper"
        + ("; ten samples at temperature 0.8." if len(ks) > 1 else "; one greedy answer.")
        + " Programs run in a sandbox of Linux.",
    )
