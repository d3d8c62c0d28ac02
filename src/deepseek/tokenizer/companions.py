"""The files that stand beside the weights of a model folder: tokenizer, chat template, generation settings, licence."""

from __future__ import annotations

import shutil
from pathlib import Path

from deepseek.hub.gguf_file import GGUFFile
from deepseek.tokenizer.to_folder import write_tokenizer

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)


def write_companions(source: Path, folder: Path) -> None:
    """Put the companions of the model ``source`` into ``folder``: copied from a folder, written from a GGUF file's
    metadata. Raises TokenizerError for a GGUF file whose tokenizer cannot be written, OSError if writing fails."""
    if source.is_dir():
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        templates = source / "additional_chat_templates"
        if templates.is_dir():
            shutil.copytree(
                templates, folder / templates.name, ignore=lambda _, names: [n for n in names if n[-6:] != ".jinja"]
            )
        return
    file = GGUFFile(source)
    try:
        write_tokenizer(file.metadata, source.name, folder)
    finally:
        file.close()
