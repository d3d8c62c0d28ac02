"""A tokenizer's files for a Hugging Face folder, made from the metadata of a GGUF file.

The GGUF reader's encoder does not know special tokens, so that no text can become one. tokenizer.json must hold them,
under the ids the model was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.tokenizer.from_gguf import tokenizer_from_gguf
from deepseek.tokenizer.tokenizer import TokenizerParts
from deepseek.tokenizer.vocabulary import SPACE_MARK


def write_tokenizer(metadata: Mapping[str, Any], name: str, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the chat templates into ``folder``;
    ``name`` is the GGUF file's, for messages. Raises TokenizerError as reading the GGUF file's tokenizer does."""
    parts = tokenizer_from_gguf(metadata, name)
    _write_json(folder / "tokenizer.json", _tokenizer_json(parts))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(parts.prefix),
        "add_eos_token": bool(parts.suffix),
        **parts.variables,
    }
    _write_json(folder / "tokenizer_config.json", config)
    generation: dict[str, Any] = {"eos_token_id": sorted(parts.eos_token_ids)}
    if parts.bos_token_id is not None:
        generation["bos_token_id"] = parts.bos_token_id
    _write_json(folder / "generation_config.json", generation)
    for template, text in parts.templates.items():
        path = folder / "chat_template.jinja"
        if template != "default":
            path = folder / "additional_chat_templates" / f"{_file_name(template)}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _file_name(template: str) -> str:
    """The name comes from a file: only letters, digits, ``_`` and ``-`` of it are kept."""
    return "".join(char for char in template if char.isalnum() or char in "_-") or "unnamed"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_json(parts: TokenizerParts) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(parts.first.to_str())
    spelling = {token.id: token.text for token in parts.special}
    vocabulary = result["model"]["vocab"]
    for token_id, text in spelling.items():
        vocabulary.setdefault(text, token_id)
    result["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    added = [token for token in result["added_tokens"] if token["id"] not in spelling]
    for token_id, text in spelling.items():
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added.append({"id": token_id, "content": text, **flags, "special": True})
    result["added_tokens"] = sorted(added, key=lambda token: int(token["id"]))
    result["decoder"] = _decoder(parts)
    result["post_processor"] = _around_text(parts, spelling)
    return result


def _decoder(parts: TokenizerParts) -> dict[str, Any]:
    if parts.vocabulary.byte_level:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if parts.strips_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _around_text(parts: TokenizerParts, spelling: Mapping[int, str]) -> dict[str, Any] | None:
    """The template that puts BOS and EOS around a text, where the model wants them."""
    if not parts.prefix and not parts.suffix:
        return None

    def special(token_id: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": spelling[token_id], "type_id": kind}}

    def template(*sequences: str) -> list[dict[str, Any]]:
        pieces = []
        for kind, sequence in enumerate(sequences):
            pieces += [special(token_id, kind) for token_id in parts.prefix]
            pieces.append({"Sequence": {"id": sequence, "type_id": kind}})
            pieces += [special(token_id, kind) for token_id in parts.suffix]
        return pieces

    used = dict.fromkeys((*parts.prefix, *parts.suffix))
    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {
            spelling[token_id]: {"id": spelling[token_id], "ids": [token_id], "tokens": [spelling[token_id]]}
            for token_id in used
        },
    }
