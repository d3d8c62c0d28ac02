"""The answers of GPT-3.5 and GPT-4 that the SIB-200 repository holds, as stored outputs.

Adelani et al. 2024, SIB-200: A Simple, Inclusive, and Big Evaluation Dataset for Topic Classification in 200+ Languages
and Dialects (arXiv:2309.07445). The models were asked with the paper's own prompts, one sentence at a time.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from deepseek.errors import ConfigurationError, DataError
from deepseek_eval.datasets import Files, data_folder
from deepseek_eval.models.stored import StoredLine, StoredModelInfo
from deepseek_eval.results import write_lines

MODELS = {"gpt-3.5": "output_gpt3.5", "gpt-4": "output_gpt4"}
"""Name -> folder."""
_LANGUAGES = {"en": "eng_Latn", "zh": "zho_Hans", "ja": "jpn_Jpan", "ko": "kor_Hang"}
_COLUMNS = ("gpt-3", "gpt-4")
"""Of the answers. GPT-3.5 is called gpt-3."""


def convert_sib200(model: str, output: Path, *, data: Path | None = None) -> int:
    """Write the answers of ``model`` in four languages to ``output``. Returns how many there are.

    Raises ConfigurationError for another model, DataError if the files are not there.
    """
    if model not in MODELS:
        raise ConfigurationError(f"SIB-200 has answers of {' and '.join(MODELS)}, not of {model!r}.")
    files = Files("sib200", data_folder(data) / "sib200")
    details = {"source": "github.com/dadelani/sib-200, llm-results", "prompt": "the paper's own (arXiv:2309.07445)"}
    lines = [StoredLine(model=StoredModelInfo(f"{model} (stored)", details))]
    for language, name in _LANGUAGES.items():
        path = f"llm-results/{MODELS[model]}/{name}.tsv"
        # Unlike the dataset's own files these are quoted.
        for row in csv.DictReader(io.StringIO(files.text(path)), delimiter="\t"):
            answer = next((row[column] for column in _COLUMNS if column in row), None)
            if answer is None or not row.get("index_id"):
                raise DataError(f"{path} of sib200 has no columns index_id and {' or '.join(_COLUMNS)}.")
            text = answer.strip()
            task = f"sib200_{language}"
            lines.append(
                StoredLine(task=task, id=row["index_id"], text=text)
                if text
                else StoredLine(task=task, id=row["index_id"], error="the stored answer is empty")
            )
    write_lines(output, lines)
    return len(lines) - 1
