"""Token ids and answers, by the chat templates of tiny tokenizers and of real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_tune.data.examples import CUT_IN_PIECES, DROPPED, SHORTENED, Encoder, Example
from deepseek_tune.data.problems import EMPTY_ANSWER, ENCODING, TEMPLATE, TOO_LONG, RowError
from deepseek_tune.data.shapes import Chat, Text
from tests.tokenizer.tiny import CHATML, build, byte_level

TURNS = [("system", "S"), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2, ab")]


def chat(*turns: tuple[str, str]) -> Chat:
    return Chat([{"role": role, "content": content} for role, content in turns])


def only(encoder: Encoder, sample: Chat | Text) -> Example:
    (example,) = encoder.encode(sample).examples
    return example


def said(tokenizer: Tokenizer, example: Example) -> list[str]:
    return [tokenizer.decode(example.ids[a:b], skip_special_tokens=False) for a, b in example.answers]


def test_all_answers_with_their_ends_and_nothing_else(tokenizer: Tokenizer) -> None:
    sample = chat(*TURNS)
    example = only(Encoder(tokenizer, 512), sample)
    assert said(tokenizer, example) == ["1<|im_end|>", "2, ab<|im_end|>"]
    whole = tokenizer.encode_chat(sample.messages, add_generation_prompt=False)
    assert example.ids == whole[: len(example.ids)] and len(example.ids) == example.answers[-1][1]
    for turn, (start, _) in zip((2, 4), example.answers, strict=True):
        assert example.ids[:start] == tokenizer.encode_chat(sample.messages[:turn])


def test_what_a_user_typed_ends_no_answer(tokenizer: Tokenizer) -> None:
    example = only(Encoder(tokenizer, 512), chat(("user", "<|im_end|>"), ("assistant", "say <|im_end|> so")))
    assert said(tokenizer, example) == ["say <|im_end|> so<|im_end|>"]
    start, end = example.answers[0]
    assert [token for token in example.ids[start:end] if token in tokenizer.eos_token_ids] == [example.ids[end - 1]]


def test_a_template_without_an_end_gets_one() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = build(byte_level() | {"tokenizer.chat_template": template})
    example = only(Encoder(tokenizer, 512), chat(*TURNS))
    assert said(tokenizer, example) == ["1", "2, ab<|im_end|>"]


def test_a_template_that_rewrites_history_is_refused() -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '...' }}")
    tokenizer = build(byte_level() | {"tokenizer.chat_template": template})
    encoder = Encoder(tokenizer, 512)
    assert said(tokenizer, only(encoder, chat(*TURNS[:3]))) == ["1<|im_end|>"]
    changing = CHATML.replace("{% for", "{{ messages | length }}{% for", 1)
    with pytest.raises(RowError, match="Make one row of each answer") as caught:
        Encoder(build(byte_level() | {"tokenizer.chat_template": changing}), 512).encode(chat(*TURNS))
    assert caught.value.kind == TEMPLATE


def test_a_prompt_that_grows_together_with_its_answer() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}a{% else %}<|im_end|>{% endif %}{% endfor %}"
    )
    tokenizer = build(byte_level() | {"tokenizer.chat_template": template})
    example = only(Encoder(tokenizer, 512), chat(("user", "x"), ("assistant", "b c")))
    assert said(tokenizer, example) == ["ab c<|im_end|>"]


def test_without_a_chat_template_prompt_and_answer_are_joined() -> None:
    metadata = byte_level()
    del metadata["tokenizer.chat_template"]
    tokenizer = build(metadata)
    encoder = Encoder(tokenizer, 512)
    example = only(encoder, chat(("user", "Q: "), ("assistant", "A")))
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == "Q: A<|im_end|>"
    assert said(tokenizer, example) == ["A<|im_end|>"]
    for sample, kind in (
        (chat(*TURNS), TEMPLATE),
        (chat(("user", ""), ("assistant", "A")), EMPTY_ANSWER),
        (Chat([{"role": "user", "content": [{"type": "text", "text": "Q"}]}, *chat(TURNS[2]).messages]), TEMPLATE),
    ):
        with pytest.raises(RowError) as caught:
            encoder.encode(sample)
        assert caught.value.kind == kind


def test_rows_that_no_template_can_show(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, 512)
    for sample, kind in (
        (chat(("assistant", "A")), TEMPLATE),
        (chat(("user", "\ud800"), ("assistant", "A")), ENCODING),
        (Text("\udcff"), ENCODING),
        (Chat([{"role": "user", "content": [{"type": "image"}]}, *chat(TURNS[2]).messages]), TEMPLATE),
    ):
        with pytest.raises(RowError) as caught:
            encoder.encode(sample)
        assert caught.value.kind == kind


def test_over_long_examples(tokenizer: Tokenizer) -> None:
    sample = chat(("user", "x" * 50), ("assistant", "answer"))
    whole = only(Encoder(tokenizer, 512), sample)
    length, start = len(whole.ids), whole.answers[0][0]
    for limit in (length + 1, length):
        assert Encoder(tokenizer, limit).encode(sample).examples == [whole]
    shortened = Encoder(tokenizer, length - 1).encode(sample)
    assert shortened.notice == SHORTENED
    assert shortened.examples == [Example(whole.ids[1:], [(start - 1, length - 1)])]
    least = length - start + 1  # one token of the prompt
    assert said(tokenizer, only(Encoder(tokenizer, least), sample)) == ["answer<|im_end|>"]
    assert Encoder(tokenizer, least - 1).encode(sample).notice == DROPPED
    assert Encoder(tokenizer, length - 1, "drop").encode(sample).examples == []
    with pytest.raises(RowError) as caught:
        Encoder(tokenizer, length - 1, "error").encode(sample)
    assert caught.value.kind == TOO_LONG


def test_earlier_turns_go_first(tokenizer: Tokenizer) -> None:
    sample = chat(*TURNS)
    whole = only(Encoder(tokenizer, 512), sample)
    (first, _), (second, _) = whole.answers
    for cut, expected in ((first - 1, 2), (first, 1), (second - 1, 1)):
        example = only(Encoder(tokenizer, len(whole.ids) - cut), sample)
        assert len(example.answers) == expected
        assert said(tokenizer, example)[-1] == "2, ab<|im_end|>"


@pytest.mark.parametrize("length", [7, 8, 9, 16, 17])
def test_long_texts_are_cut_in_pieces(tokenizer: Tokenizer, length: int) -> None:
    encoded = Encoder(tokenizer, 8).encode(Text("x" * (length - 1)))
    assert encoded.notice == (CUT_IN_PIECES if length > 8 else "")
    sizes = [len(example.ids) for example in encoded.examples]
    assert sum(sizes) == (length - 1 if length % 8 == 1 and length > 8 else length)
    assert all(example.answers == [(1, len(example.ids))] for example in encoded.examples)


def test_the_real_template(test_model: Path) -> None:
    tokenizer = load_tokenizer(test_model)
    example = only(Encoder(tokenizer, 512), chat(*TURNS))
    assert said(tokenizer, example) == ["1<|im_end|>", "2, ab<|im_end|>"]
