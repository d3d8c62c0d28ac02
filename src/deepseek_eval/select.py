"""Which items of a task are asked, and from which files they were made."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepseek.errors import DataError
from deepseek_eval.datasets import Files
from deepseek_eval.task import Item, Rows, Task


class _Recorded:
    """Rows of a dataset that remember which files were read."""

    def __init__(self, files: Files, digests: dict[str, str]) -> None:
        self.name = files.name
        self._files = files
        self._digests = digests

    def _note(self, path: str) -> None:
        name = f"{self.name}/{path}"
        if name not in self._digests:
            self._digests[name] = self._files.sha256(path)

    def read(self, path: str) -> Iterator[dict[str, Any]]:
        self._note(path)
        return self._files.read(path)

    def text(self, path: str) -> str:
        self._note(path)
        return self._files.text(path)

    def json(self, path: str) -> Any:
        self._note(path)
        return self._files.json(path)


def items_of(task: Task, files: Mapping[str, Files], shots: int) -> tuple[list[Item], dict[str, str]]:
    """(all items, file -> SHA-256 of the files they were made of). Raises DataError for ids that are there twice, and
    for a task without items."""
    digests: dict[str, str] = {}
    rows: dict[str, Rows] = {name: _Recorded(own, digests) for name, own in files.items()}
    items = list(task.items(rows, shots))
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DataError(f"task {task.name} has several items of the id {twice[0]!r}: ids must differ.")
    if not items:
        raise DataError(f"task {task.name} has no items in its files {', '.join(digests) or '(none read)'}.")
    return items, digests


def subset(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most ``limit`` items, in their order.

    Which ones depends on their ids and the seed alone, and a larger limit keeps those of a smaller one where all are
    independent. Items of a cluster are taken together where they fit, whole clusters in the order of a hash.
    """
    if limit is None or limit >= len(items):
        return list(items)
    clusters: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        clusters.setdefault(("cluster", item.cluster) if item.cluster else ("item", item.id), []).append(item)
    order = sorted(clusters, key=lambda name: hashlib.sha256(f"{seed}/{'/'.join(name)}".encode()).digest())
    taken: list[Item] = []
    for name in order:
        if len(taken) + len(clusters[name]) <= limit:
            taken += clusters[name]
    if not taken:  # each cluster alone has more
        taken = clusters[order[0]][:limit]
    chosen = {item.id for item in taken}
    return [item for item in items if item.id in chosen]
