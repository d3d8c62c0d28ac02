"""The tokenizer of a model's files."""

from __future__ import annotations

from pathlib import Path

from deepseek.errors import TokenizerError
from deepseek.tokenizer.tokenizer import Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file or of a Hugging Face folder (``tokenizer.json`` and its companions).

    Raises TokenizerError if there is none or it cannot be built, CheckpointError for a damaged GGUF file.
    """
    path = Path(path)
    if path.is_dir():
        from deepseek.tokenizer.from_folder import tokenizer_from_folder

        return Tokenizer(tokenizer_from_folder(path))
    if not path.is_file():
        raise TokenizerError(f"{path} does not exist: a model folder or a .gguf file is needed.")
    from deepseek.hub.gguf_file import GGUFFile
    from deepseek.tokenizer.from_gguf import tokenizer_from_gguf

    file = GGUFFile(path)
    try:
        return Tokenizer(tokenizer_from_gguf(file.metadata, path.name))
    finally:
        file.close()
