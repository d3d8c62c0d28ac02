"""Encoders against transformers' own: on tiny random weights, on the real MiniLM, and as an engine."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from deepseek.config import EngineConfig
from deepseek.embedding import floats
from deepseek.engine.encoder import EncoderEngine
from deepseek.engine.events import EmbedEvent, EmbedRequest, EngineEvent, GenerateRequest, ScoreRequest, TokenEvent
from deepseek.engine.load import load_engine
from deepseek.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    UnsupportedModelError,
)
from deepseek.hub.open import open_checkpoint
from deepseek.hub.sentence_transformers import read_settings
from deepseek.kernels.registry import bind
from deepseek.models.bert import Bert, load_bert, parse_bert
from deepseek.sampling import SamplingParams

VOCAB = 61
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "bert-tanh": ("BertModel", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "bert-head": ("BertForMaskedLM", {}),
    "roberta": ("RobertaModel", {"pad_token_id": 1}),
    "xlm-roberta": ("XLMRobertaModel", {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta-head": ("XLMRobertaForMaskedLM", {"pad_token_id": 1, "hidden_act": "relu"}),
}
TEXTS = [[(7 * i * i + 3 * n + 2) % (VOCAB - 2) + 2 for i in range(n)] for n in (1, 2, 15, 16, 17, 38)]


@cache
def theirs(name: str) -> Any:
    architecture, settings = CASES[name]
    kind = getattr(transformers, architecture)
    torch.manual_seed(3)
    model = kind(kind.config_class(**(BASE | settings))).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms that say something
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Bert]:
    model = theirs(request.param)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    return model, load_bert(checkpoint, ops=bind("cpu"), dtype=torch.float32, device="cpu")


def states(model: Any, text: list[int]) -> torch.Tensor:
    base = getattr(model, model.base_model_prefix, model)
    with torch.inference_mode():
        result: torch.Tensor = base(torch.tensor([text])).last_hidden_state[0]
    return result


def test_hidden_states_equal_transformers(pair: tuple[Any, Bert]) -> None:
    model, ours = pair
    with torch.inference_mode():
        together = ours.encode(TEXTS)
        for text, rows in zip(TEXTS, together, strict=True):
            expected = states(model, text)
            assert expected.std() > 0.3
            torch.testing.assert_close(rows, expected, rtol=0, atol=2e-5)
            [alone] = ours.encode([text])
            torch.testing.assert_close(alone, rows, rtol=0, atol=1e-5)
    assert ours.max_context == (38 if "oberta" in ours.architecture.lower() else 40)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"position_embedding_type": "relative_key"}, UnsupportedModelError, "position_embedding_type"),
        ({"hidden_act": "silu"}, UnsupportedModelError, "hidden_act"),
        ({"num_attention_heads": 5}, CheckpointError, "no multiple"),
        ({"new_feature": 1}, UnsupportedModelError, "new_feature"),
        ({"hidden_size": None}, CheckpointError, "hidden_size"),
    ],
)
def test_what_is_not_implemented_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    config = BASE | {"architectures": ["BertModel"], "model_type": "bert"}
    assert parse_bert(config).heads == 4
    with pytest.raises(error, match=words):
        parse_bert(config | changes)


# -- what the files say ---------------------------------------------------------------------------------------------


def sentence_folder(folder: Path, steps: list[str], **pooling: Any) -> Path:
    modules = [{"idx": i, "type": f"sentence_transformers.models.{s}", "path": s} for i, s in enumerate(steps)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48} | pooling))
    return folder


def test_settings_of_sentence_transformers(tmp_path: Path) -> None:
    folder = sentence_folder(
        tmp_path, ["Transformer", "Pooling", "Normalize"], pooling_mode_lasttoken=True, pooling_mode_mean_tokens=False
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 30}')
    settings = read_settings(folder, {"matryoshka_dimensions": [32, 16]})
    assert (settings.pooling, settings.normalize, settings.max_tokens, settings.shorter) == ("last", True, 30, (16, 32))


def test_settings_that_say_nothing(tmp_path: Path) -> None:
    settings = read_settings(tmp_path, {})
    assert (settings.pooling, settings.normalize, settings.max_tokens, settings.shorter) == (None, None, None, ())
    assert read_settings(tmp_path, {"is_matryoshka": True}).shorter is None
    assert read_settings(tmp_path / "model.gguf", {"pooling_type": 3}).pooling == "last"
    with pytest.raises(UnsupportedModelError, match="pooling_type 4"):
        read_settings(tmp_path / "model.gguf", {"pooling_type": 4})


@pytest.mark.parametrize(
    ("steps", "pooling", "words"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, "Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "mean_tokens and pooling_mode_cls_token",
        ),
    ],
)
def test_steps_that_are_not_implemented(steps: list[str], pooling: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read_settings(sentence_folder(tmp_path, steps, **pooling), {})


def test_a_step_outside_of_the_folder_is_damage(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "models.Pooling", "path": "../1_Pooling"}]')
    with pytest.raises(CheckpointError, match="not a folder beside it"):
        read_settings(tmp_path, {})


# -- the engine -----------------------------------------------------------------------------------------------------


class Recorder:
    """A tiny encoder that remembers its batches: a token's state is its id, and 13 is broken."""

    vocab_size, hidden_size = 64, 2

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def encode(self, texts: list[list[int]]) -> list[torch.Tensor]:
        self.batches.append([len(text) for text in texts])
        return [torch.tensor([[t if t != 13 else torch.nan, 1.0] for t in text]) for text in texts]


def engine(model: Recorder, **settings: int) -> EncoderEngine:
    return EncoderEngine(model, **{"max_context": 32, "max_running": 4, "max_batch_tokens": 64} | settings)


def run(of: EncoderEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while of.has_work:
        events += of.step()
    return events


def test_texts_of_like_length_share_steps() -> None:
    model = Recorder()
    own = engine(model)
    for i, length in enumerate((3, 30, 4, 31, 3, 29, 5)):
        own.add(EmbedRequest(str(i), [2] * length))
    events = run(own)
    assert {event.request_id for event in events} == set("0123456")
    assert model.batches == [[3, 3, 4, 5], [30, 31], [29]]
    assert own.stats().finished == 7 and own.stats().prompt_tokens == 105 and own.stats().steps == 3


def test_a_text_longer_than_a_step_has_one_to_itself() -> None:
    model = Recorder()
    own = engine(model, max_batch_tokens=16)
    for i in range(2):
        own.add(EmbedRequest(str(i), [2] * 32))
    assert len(run(own)) == 2 and model.batches == [[32], [32]]


def test_tenants_take_turns_and_the_urgent_go_first() -> None:
    own = engine(Recorder(), max_running=1)
    for i in range(3):
        own.add(EmbedRequest(f"many{i}", [2], tenant="many"))
    own.add(EmbedRequest("few", [2], tenant="few"))
    own.add(EmbedRequest("urgent", [2], tenant="many", priority=1))
    assert [event.request_id for event in run(own)] == ["urgent", "few", "many0", "many1", "many2"]


def test_cancelled_and_broken_texts_end_alone() -> None:
    own = engine(Recorder())
    for name, text in (("good", [2, 4]), ("bad", [2, 13]), ("gone", [2, 2])):
        own.add(EmbedRequest(name, text, normalize=False))
    own.cancel("gone")
    own.cancel("never")
    events = {event.request_id: event for event in run(own)}
    good, bad, gone = events["good"], events["bad"], events["gone"]
    assert isinstance(good, EmbedEvent) and floats(good.vector).tolist() == [3.0, 1.0]
    assert isinstance(bad, TokenEvent) and bad.finish_reason == "error"
    assert isinstance(gone, TokenEvent) and gone.finish_reason == "cancelled"
    stats = own.stats()
    assert (stats.finished, stats.failed, stats.cancelled, stats.waiting) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (GenerateRequest("x", [1], SamplingParams()), InvalidRequestError, "cannot generate"),
        (ScoreRequest("x", [1, 2], 1), InvalidRequestError, "cannot generate"),
        (EmbedRequest("x", [1] * 33), ContextLengthError, "33 tokens"),
        (EmbedRequest("x", []), InvalidRequestError, "empty"),
        (EmbedRequest("x", [64]), InvalidRequestError, "outside"),
        (EmbedRequest("x", [1], weight=0.0), InvalidRequestError, "weight"),
        (EmbedRequest("here", [1]), InvalidRequestError, "in use"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(request_: Any, error: type[Exception], words: str) -> None:
    own = engine(Recorder())
    own.add(EmbedRequest("here", [1]))
    with pytest.raises(error, match=words):
        own.add(request_)
    assert [event.request_id for event in run(own)] == ["here"]


# -- the real model -------------------------------------------------------------------------------------------------

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell sharply today.",
    "Crème brûlée, 北京 & [SEP] naïve café!",
    "word " * 200,
]


def test_minilm_equals_transformers(minilm: Path) -> None:
    loaded = load_engine(EngineConfig(model=str(minilm)))
    info = loaded.info
    assert info.embedding is not None and not info.generates and info.max_context == 256
    assert (info.embedding.dimensions, info.embedding.pooling, info.embedding.normalize) == (384, "mean", True)
    other = transformers.AutoModel.from_pretrained(minilm).eval()
    judge = transformers.AutoTokenizer.from_pretrained(minilm)
    tokens = [loaded.tokenizer.encode(text) for text in SENTENCES]
    for i, text in enumerate(SENTENCES):
        if "[SEP]" not in text:  # ours takes what a user spells for text
            assert tokens[i] == judge(text, truncation=False).input_ids
        loaded.engine.add(EmbedRequest(str(i), tokens[i]))
    found: dict[str, Any] = {}
    while loaded.engine.has_work:
        found |= {e.request_id: np.array(floats(e.vector)) for e in loaded.engine.step() if isinstance(e, EmbedEvent)}
    for i, text in enumerate(tokens):
        vector = states(other, text).mean(0)
        np.testing.assert_allclose(found[str(i)], (vector / vector.norm()).numpy(), atol=2e-6)
    assert found["0"] @ found["1"] > 0.5 > 0.2 > found["0"] @ found["2"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"backend": "native"}, BackendUnavailableError),
        ({"dtype": "int8"}, ConfigurationError),
        ({"kv_dtype": "fp16"}, ConfigurationError),
        ({"max_context": 512}, ConfigurationError),
    ],
)
def test_settings_that_an_encoder_does_not_have(minilm: Path, settings: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        load_engine(EngineConfig(model=str(minilm), **settings))
