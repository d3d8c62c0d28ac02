"""Outputs that somebody stored: scored again, never asked for again.

A file holds one JSON object per line. The first may say whose outputs they are; each other one is the output for an
item of a task:

```
{"model": {"name": "gpt-4", "details": {"date": "2023-09", "prompt": "the paper's own"}}}
{"task": "sib200_en", "id": "1523", "text": "This is about science/technology."}
{"task": "humaneval", "id": "HumanEval/0", "texts": ["return 1", "return 2"]}
{"task": "xcopa_zh", "id": "7", "output": {"likelihoods": [{"logprob": -3.5, "tokens": 4}, ...]}}
{"task": "gsm8k", "id": "0", "error": "refused by the provider"}
```

``output`` is an :class:`deepseek_eval.task.Output`; files of outputs of earlier runs are of this form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deepseek.errors import DataError
from deepseek_eval.task import Choose, Generate, Item, ModelCard, Output, Sample, Task


class StoredModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose outputs a file holds."""

    name: str
    details: dict[str, Any] = {}


class StoredLine(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line: either ``model``, or ``task`` and ``id`` with one of the others."""

    model: StoredModelInfo | None = None
    task: str = ""
    id: str = ""
    text: str | None = None
    texts: tuple[str, ...] = ()
    output: Output | None = None
    error: str = ""
    digest: str = ""

    def given(self) -> Output | None:
        """The output; None if the line has none, or more than one."""
        samples = tuple(Sample(text=text) for text in (self.texts or (() if self.text is None else (self.text,))))
        found = [self.output, Output(samples=samples) if samples else None, Output(error=self.error)]
        found = [one for one in found if one is not None and one != Output()]
        return found[0] if len(found) == 1 and not (self.text is not None and self.texts) else None


class StoredModel:
    """Answers with what a file holds.

    Args:
        path: see this module.
        name: of the model, if the file does not say.

    Raises:
        DataError: the file cannot be read; names the line.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self._path = path
        self._outputs: dict[tuple[str, str], Output] = {}
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"stored outputs: {path} cannot be read: {error.strerror or error}.") from error
        info = self._read(content)
        likelihoods = any(output.likelihoods for output in self._outputs.values())
        self.card = ModelCard(
            name=name or (info.name if info else path.stem),
            kind="stored",
            evidence="re-scored",
            details={**(info.details if info else {}), "outputs_sha256": hashlib.sha256(content).hexdigest()},
            likelihoods=likelihoods,
        )

    def _read(self, content: bytes) -> StoredModelInfo | None:
        info = None
        decoder = msgspec.json.Decoder(StoredLine)
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                found = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"stored outputs: {self._path}, line {number}: {error}.") from error
            if found.model is not None:
                info = found.model
                continue
            output = found.given()
            if not found.task or not found.id or output is None:
                raise DataError(
                    f"stored outputs: {self._path}, line {number}: it needs task, id and one of text, texts, output "
                    "and error."
                )
            if (found.task, found.id) in self._outputs:
                raise DataError(
                    f"stored outputs: {self._path}, line {number}: task {found.task!r}, id {found.id!r} is there twice."
                )
            self._outputs[found.task, found.id] = output
        if not self._outputs:
            raise DataError(f"stored outputs: {self._path} holds no outputs.")
        return info

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that there are outputs of."""
        return list(dict.fromkeys(task for task, _ in self._outputs))

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[tuple[int, Output]]:
        for position, item in enumerate(items):
            output = self._outputs.get((task.name, item.id))
            if output is None:
                output = Output(error="there is no stored output")
            yield position, _fitting(item, output)

    def close(self) -> None:
        self._outputs.clear()


def _fitting(item: Item, output: Output) -> Output:
    """The output, or an error if it is no answer to what was asked."""
    if output.error:
        return output
    ask = item.ask
    if isinstance(ask, Generate) and output.samples:
        return output
    if isinstance(ask, Choose) and (output.samples or len(output.likelihoods) == len(ask.continuations)):
        return output
    if len(output.likelihoods) == 1 and not isinstance(ask, (Generate, Choose)):
        return output
    return Output(error="the stored output is no answer to what is asked")
