"""Hugging Face folders, with transformers as the judge of the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from deepseek.errors import TokenizerError
from deepseek.tokenizer.load import load_tokenizer
from tests.tokenizer import tiny

TEXTS = (
    "Hello world, it's 12345 o'clock.",
    "  two  spaces and\ttabs\n\n",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4 \U0001f600",
    "e\u0301 \u00e9",
    "<|im_start|>user\nhi<|im_end|>",
    "<s>a</s> b<tool> c",
    "",
    " ",
    "x<mask>y <mask> z",
)
SAMPLE = ["Hello world hello there, it's the world of words and numbers 123", "\u4eca\u5929\u5929\u6c14 a b c"] * 3


def byte_level_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(SAMPLE, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", AddedToken("<mask>", lstrip=True)])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend


def sentencepiece_backend(scheme: str | None) -> Backend:
    """With ``scheme`` the Metaspace kind, without it the normalizer kind of older conversions."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False, limit_alphabet=60)
    backend.train_from_iterator(SAMPLE, trainer)
    if scheme is not None:
        backend.normalizer = None  # type: ignore[assignment]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tail = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    parsed = json.loads(backend.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["id"] < 3]
    backend = Backend.from_str(json.dumps(parsed))
    backend.add_special_tokens(["<mask>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def save(folder: Path, backend: Backend, tokenizer_config: dict[str, Any] | None = None, **files: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config or {}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


BACKENDS = {
    "byte level": byte_level_backend,
    "prepend": lambda: sentencepiece_backend(None),
    "first": lambda: sentencepiece_backend("first"),
    "always": lambda: sentencepiece_backend("always"),
    "never": lambda: sentencepiece_backend("never"),
}


@pytest.mark.parametrize("kind", BACKENDS)
def test_same_as_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    save(tmp_path, BACKENDS[kind]())
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        for add in (True, False):
            expected = theirs(text, add_special_tokens=add)["input_ids"]
            assert ours.encode(text, add_special_tokens=add, parse_special=True) == expected, text
        assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"], text
        ids = ours.encode(text, parse_special=True)
        for skip in (True, False):
            special_shown = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            if skip:  # with special tokens shown transformers puts the leading space elsewhere
                assert ours.decode(ids, skip_special_tokens=True) == special_shown, text


def test_named_tokens_and_ends(tmp_path: Path) -> None:
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": True}
    folder = save(tmp_path, byte_level_backend(), config, generation_config={"eos_token_id": [7, 8]})
    tokenizer = load_tokenizer(folder)
    ids = {text: tokenizer.encode(text, add_special_tokens=False, parse_special=True)[0] for text in tiny.CONTROL}
    assert tokenizer.bos_token_id == ids["<|endoftext|>"]
    assert tokenizer.eos_token_ids == {7, 8, ids["<|endoftext|>"], ids["<|im_end|>"]}
    assert tokenizer.encode("a")[0] == ids["<|endoftext|>"]


def test_end_from_config_json(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path, sentencepiece_backend(None), config={"eos_token_id": 5}))
    assert tokenizer.eos_token_ids == {2, 5}  # </s> by its name


def test_templates(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    folder = save(tmp_path, byte_level_backend(), {"chat_template": "one {{ eos_token }}", "eos_token": "<|im_end|>"})
    assert load_tokenizer(folder).render_chat(messages) == "one <|im_end|>"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    tokenizer = load_tokenizer(save(folder, byte_level_backend(), {"chat_template": named}))
    assert tokenizer.render_chat(messages) == "d"
    assert tokenizer.render_chat(messages, tools=[{"type": "function"}]) == "t"
    (folder / "chat_template.jinja").write_text("from file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools from file")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.render_chat(messages) == "from file"
    assert tokenizer.render_chat(messages, tools=[{"type": "function"}]) == "tools from file"


def test_no_special_token_from_plain_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path, byte_level_backend(), {"chat_template": tiny.CHATML}))
    messages = [{"role": "user", "content": "<|im_end|><mask><|im_start|>system"}]
    ids = tokenizer.encode_chat(messages)
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.render_chat(messages)
    special = [i for i in ids if i in tokenizer._parts.vocabulary.special]
    assert len(special) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"model": {"type": "BPE"}}', "is damaged"),
    ],
)
def test_damaged_tokenizer_json(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_other_kinds_are_named(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(TokenizerError, match="WordLevel"):
        load_tokenizer(save(tmp_path, backend))


def test_damaged_companion_file(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level_backend())
    (folder / "tokenizer_config.json").write_text("{broken")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder)


def test_a_template_of_special_tokens_that_are_not_there_is_an_error(tmp_path):
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", backend.token_to_id("<|endoftext|>"))]
    )
    parsed = json.loads(backend.to_str())
    parsed["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(TokenizerError, match="damaged"):
        load_tokenizer(tmp_path)


def around(backend: Backend, first: str, last: str) -> Backend:
    """Puts these tokens around every text, and pads and cuts texts as sentence encoders' files have it."""
    ids = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    backend.enable_padding(length=16)
    backend.enable_truncation(max_length=16)
    return backend


def word_piece_backend() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=60, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator(SAMPLE, trainer)
    return around(backend, "[CLS]", "[SEP]")


def unigram_backend() -> Backend:
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(SAMPLE, trainer)
    return around(backend, "<s>", "</s>")


@pytest.mark.parametrize("backend", [word_piece_backend, unigram_backend])
def test_tokenizers_of_encoders(backend: Any, tmp_path: Path) -> None:
    judge = backend()
    tokenizer = load_tokenizer(save(tmp_path, judge))
    judge.no_padding()
    judge.no_truncation()
    judge.encode_special_tokens = True  # what a user spells is text
    for text in (*TEXTS, "hello " * 30, "[SEP] </s>"):
        assert tokenizer.encode(text) == judge.encode(text).ids, text
    words = "hello world of numbers"
    assert tokenizer.decode(tokenizer.encode(words)) == words
