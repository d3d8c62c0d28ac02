"""Pieces of answers become items and events, and the events say the same as the items."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from deepseek.runtime.output import LogprobEntry
from deepseek_serve.answers import AnswerPiece, CallPiece
from deepseek_serve.protocol.responses_api.objects import OutputEvent
from deepseek_serve.responses.writer import OutputWriter

TOKEN = LogprobEntry(1, "a", b"a", -0.5, ())


def written(pieces: list[AnswerPiece], *, whole: bool = True) -> tuple[list[Any], list[tuple[str, Any]]]:
    """(output, (type, event) of all events), as JSON has them."""
    writer = OutputWriter()
    told: list[OutputEvent] = [event for piece in pieces for event in writer.push(piece)]
    told += writer.end(whole=whole)
    return msgspec.to_builtins(writer.output), [
        (str(event.__struct_config__.tag), msgspec.to_builtins(event)) for event in told
    ]


def replayed(events: list[tuple[str, Any]]) -> list[Any]:
    """The output as a client puts it together from deltas; checks the order of the events."""
    items: dict[int, Any] = {}
    texts: dict[int, str] = defaultdict(str)
    logprobs: dict[int, list[Any]] = defaultdict(list)
    open_item: int | None = None
    for name, body in events:
        index = body["output_index"]
        if name == "response.output_item.added":
            assert open_item is None and index == len(items)
            open_item, items[index] = index, body["item"]
            assert body["item"]["status"] == "in_progress"
            continue
        assert index == open_item
        if name.endswith(".delta"):
            assert body["item_id"] == items[index]["id"]
            texts[index] += body["delta"]
            logprobs[index] += body.get("logprobs", [])
        elif name in ("response.output_text.done", "response.reasoning_text.done"):
            assert body["text"] == texts[index] and body.get("logprobs", []) == logprobs[index]
        elif name == "response.function_call_arguments.done":
            assert (body["arguments"], body["name"]) == (texts[index], items[index]["name"])
        elif name == "response.content_part.done":
            assert body["part"]["text"] == texts[index]
        elif name == "response.output_item.done":
            kind = body["item"]["type"]
            said = body["item"]["arguments"] if kind == "function_call" else body["item"]["content"][0]["text"]
            assert said == texts[index]
            items[index], open_item = body["item"], None
        else:
            assert name == "response.content_part.added" and body["part"]["text"] == ""
    assert open_item is None
    return list(items.values())


def test_thoughts_words_and_calls() -> None:
    output, events = written(
        [
            AnswerPiece(reasoning="Hm"),
            AnswerPiece(reasoning="m.", content="Let me"),
            AnswerPiece(content=" look."),
            AnswerPiece(calls=(CallPiece(0, "", "call_1", "look"),)),
            AnswerPiece(calls=(CallPiece(0, '{"a":'), CallPiece(0, "1}"), CallPiece(1, "{}", "call_2", "see"))),
            AnswerPiece(finish_reason="tool_calls"),
        ]
    )
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"text": "Hmm.", "type": "reasoning_text"}] and not output[0]["summary"]
    assert output[1]["content"][0]["text"] == "Let me look."
    assert [(c["call_id"], c["name"], c["arguments"]) for c in output[2:]] == [
        ("call_1", "look", '{"a":1}'),
        ("call_2", "see", "{}"),
    ]
    assert {item["status"] for item in output} == {"completed"}
    assert len({item["id"] for item in output}) == 4
    assert [name.removeprefix("response.") for name, body in events if body["output_index"] == 0] == [
        "output_item.added",
        "content_part.added",
        *["reasoning_text.delta"] * 2,
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert replayed(events) == output


@pytest.mark.parametrize("seed", range(50))
def test_events_and_output_say_the_same(seed: int) -> None:
    rng = random.Random(seed)
    pieces, calls = [], 0
    for _ in range(rng.randrange(12)):
        kind = rng.choice(["reasoning", "content", "begin", "go on", "silent"])
        logprobs = (TOKEN,) * rng.randrange(3)
        if kind == "begin":
            pieces.append(AnswerPiece(calls=(CallPiece(calls, rng.choice(["", "{"]), f"call_{calls}", "f"),)))
            calls += 1
        elif kind == "go on" and pieces and pieces[-1].calls:
            pieces.append(AnswerPiece(calls=(CallPiece(calls - 1, "}"),)))
        elif kind in ("reasoning", "content"):
            pieces.append(AnswerPiece(**{kind: rng.choice(["a", "世", " "])}, logprobs=logprobs))
        else:
            pieces.append(AnswerPiece(logprobs=logprobs))
    output, events = written(pieces, whole=bool(seed % 2))
    assert replayed(events) == output and output
    assert "".join(p.reasoning for p in pieces) == "".join(
        item["content"][0]["text"] for item in output if item["type"] == "reasoning"
    )
    assert output[-1]["status"] == ("completed" if seed % 2 else "incomplete")


def test_logprobs_wait_for_their_text() -> None:
    output, events = written(
        [AnswerPiece(logprobs=(TOKEN,)), AnswerPiece(content="世", logprobs=(TOKEN,)), AnswerPiece(logprobs=(TOKEN,))]
    )
    deltas = [(body["delta"], len(body["logprobs"])) for name, body in events if name.endswith("text.delta")]
    assert deltas == [("世", 2), ("", 1)]
    assert len(output[0]["content"][0]["logprobs"]) == 3


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    output, events = written([])
    assert [item["type"] for item in output] == ["message"] and output[0]["content"][0]["text"] == ""
    assert replayed(events) == output


def test_broken_off() -> None:
    writer = OutputWriter()
    list(writer.push(AnswerPiece(content="Hal")))
    writer.break_off()
    writer.break_off()
    assert msgspec.to_builtins(writer.output)[0]["status"] == "incomplete" and len(writer.output) == 1
