"""A GGUF file's tokenizer as a folder: the same ids and the same text, for us and for transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek.hub.gguf_file import GGUFFile
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.to_folder import write_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.conftest import MODELS
from tests.tokenizer.tiny import build, byte_level, sentencepiece

TEXTS = [
    "",
    "hello world",
    "  two spaces\n\n\tand a tab ",
    "ab abc <tool> [TOOL] <|im_end|> </s> <s>",
    "Größe 天地玄黄 한국어 🙂 \u200d",
    "def f(x):\n    return x ** 2  # 12345",
]
CHAT = [{"role": "user", "content": "hello <|im_end|> world"}]


def check_same(first: Tokenizer, second: Tokenizer) -> None:
    assert (second.bos_token_id, second.eos_token_ids) == (first.bos_token_id, first.eos_token_ids)
    for text in TEXTS:
        for special in (False, True):
            ids = first.encode(text, add_special_tokens=special)
            assert second.encode(text, add_special_tokens=special) == ids
            assert second.decode(ids) == first.decode(ids)
            assert second.decode(ids, skip_special_tokens=False) == first.decode(ids, skip_special_tokens=False)
        assert second.encode(text, parse_special=True) == first.encode(text, parse_special=True)
    assert second.has_chat_template == first.has_chat_template
    if first.has_chat_template:
        assert second.encode_chat(CHAT) == first.encode_chat(CHAT)


@pytest.mark.parametrize(
    "metadata",
    [byte_level(), byte_level(bos_token_id=258, add_bos_token=True, add_eos_token=True), sentencepiece()],
    ids=["byte-level", "byte-level with BOS and EOS", "sentencepiece"],
)
def test_tiny(metadata, tmp_path: Path) -> None:
    write_tokenizer(metadata, "tiny.gguf", tmp_path)
    check_same(build(metadata), load_tokenizer(tmp_path))


def test_further_templates_get_harmless_file_names(tmp_path: Path) -> None:
    metadata = byte_level() | {"tokenizer.chat_template.tool_use": "x", "tokenizer.chat_template.../../evil": "y"}
    write_tokenizer(metadata, "tiny.gguf", tmp_path)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jinja"))
    assert found == [
        "additional_chat_templates/evil.jinja",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
    ]


@pytest.mark.parametrize("model", [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_real_models(model: str, cached_tokenizer, cached_path, tmp_path: Path) -> None:
    import transformers

    real_tokenizer = cached_tokenizer(model)
    file = GGUFFile(cached_path(model))
    try:
        write_tokenizer(file.metadata, file.path.name, tmp_path)
    finally:
        file.close()
    check_same(real_tokenizer, load_tokenizer(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == real_tokenizer.encode(text, parse_special=True)
        assert theirs.decode(ids, skip_special_tokens=False) == real_tokenizer.decode(ids, skip_special_tokens=False)
    if real_tokenizer.has_chat_template:
        messages = [{"role": "user", "content": "hello"}]
        expected = real_tokenizer.render_chat(messages)
        assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "BPE"
