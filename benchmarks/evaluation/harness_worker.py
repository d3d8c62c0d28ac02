"""Runs in the Python of lm-evaluation-harness (0.4.13): the tasks of a folder on one model, timed.

Reads its settings as JSON from the first argument and prints one line of JSON: per task the seconds that the model was
asked for, of the clock and of the processor, and the scores of every item.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = json.loads(sys.argv[1])
    model = HFLM(pretrained=settings["model"], dtype="float32", device="cpu", batch_size=settings["batch_size"])
    spent = {"seconds": 0.0, "processor_seconds": 0.0}
    for name in ("loglikelihood", "generate_until"):
        setattr(model, name, timed(getattr(model, name), spent))
    manager = TaskManager(include_path=settings["tasks"], include_defaults=False)
    found = {}
    for name, scores in settings["scores"].items():
        spent |= {"seconds": 0.0, "processor_seconds": 0.0}
        result = simple_evaluate(model=model, tasks=[f"bench_{name}"], task_manager=manager, bootstrap_iters=0)
        found[name] = {**spent, "scores": [items(result["samples"][f"bench_{name}"], *one) for one in scores]}
    print(json.dumps(found))


def timed(call: Any, spent: dict[str, float]) -> Any:
    """``call``, with its seconds added to ``spent``."""

    def inner(*args: Any, **named: Any) -> Any:
        clock, processor = time.monotonic(), time.process_time()
        try:
            return call(*args, **named)
        finally:
            spent["seconds"] += time.monotonic() - clock
            spent["processor_seconds"] += time.process_time() - processor

    return inner


def items(samples: list[dict[str, Any]], metric: str, filtered: str) -> dict[str, float]:
    """Item -> score, of one metric behind one filter."""
    return {one["doc"]["item"]: float(one[metric]) for one in samples if one["filter"] == filtered}


if __name__ == "__main__":
    main()
