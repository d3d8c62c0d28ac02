"""Answers with a form: JSON after a schema, calls of tools, the state of a dialogue."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from deepseek_eval.metrics import mean, micro_f1, one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.scorers.spans import read_entities
from deepseek_eval.scorers.text import normalize
from deepseek_eval.task import Generate, Item, Metric, Output, Sample, Score, Scorer

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

JSON_METRICS: tuple[Metric, ...] = (mean("exact_match"), mean("schema_valid"), mean("json_valid"), mean("bare"))
TOOL_METRICS: tuple[Metric, ...] = (mean("call_match"), mean("name_match"), mean("schema_valid"))
STATE_METRICS: tuple[Metric, ...] = (mean("joint_goal_accuracy"), micro_f1("slot_f1"))
_STARTS = 1000
"""Each is read as far as it goes: answers of brackets alone would take minutes."""
_FENCE = re.compile(r"```(?:json|JSON)?\s*\n?(.*?)```", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


def read_json(text: str) -> tuple[Any, bool] | None:
    """(the value, whether it is all of the text): the text itself, what is fenced in it, or the first value that begins
    with a brace or a bracket. None if there is none, or none among the first :data:`_STARTS` of these. NaN and
    infinities are not JSON, nor is what is nested beyond Python's reach."""
    try:
        return _loads(text), True
    except ValueError:
        pass
    for fenced in _FENCE.findall(text):
        try:
            return _loads(fenced), False
        except ValueError:
            continue
    for start in islice(re.finditer(r"[{\[]", text), _STARTS):
        try:
            return json.JSONDecoder(parse_constant=_refuse).raw_decode(text, start.start())[0], False
        except ValueError:
            continue
        except RecursionError:
            return None
    return None


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@cache
def _validator(schema: str) -> Validator:
    from jsonschema import validators

    value = json.loads(schema)
    return validators.validator_for(value)(value)


def fault(value: Any, schema: Mapping[str, Any]) -> str:
    """What is wrong with a value after a JSON schema; "" if nothing is."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value))
    return "" if error is None else f"{error.json_path}: {error.message}"[:300]


def json_answer() -> Scorer:
    """JSON after the ask's schema. ``target``: {"schema": ..., "value": ...}.

    Metrics: ``exact_match``: the value, with texts normalized. ``schema_valid``. ``json_valid``: there is JSON in the
    answer. ``bare``: the answer is JSON and nothing else.
    """

    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text
        found = read_json(text)
        wrong = "no JSON in the answer" if found is None else fault(found[0], item.target["schema"])
        same = found is not None and _comparable(found[0]) == _comparable(item.target["value"])
        statistics: dict[str, tuple[float, ...]] = {
            "exact_match": one(same and not wrong),
            "schema_valid": one(not wrong),
            "json_valid": one(found is not None),
            "bare": one(found is not None and found[1]),
        }
        right = json.dumps(item.target["value"], ensure_ascii=False)
        return Score(
            statistics=statistics,
            answer="" if found is None else json.dumps(found[0], ensure_ascii=False),
            explanation=wrong or ("right" if same else f"right is {right}"),
            refused=found is None and is_refusal(text),
            expected=right,
        )

    return score


def _comparable(value: Any) -> Any:
    """Texts without case, width and punctuation; whole numbers as such; the order of keys does not count."""
    if isinstance(value, str):
        return normalize(value) or value.strip()
    if isinstance(value, dict):
        return {name: _comparable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_comparable(one) for one in value]
    if isinstance(value, bool) or value is None:
        return str(value)  # True is not 1
    return value


def calls_of(sample: Sample) -> list[tuple[str, Any]]:
    """(name, arguments) of a sample's calls: those that the server parsed, else what stands in the text as JSON.

    Arguments that are not JSON are None.
    """
    if sample.tool_calls:
        return [(call.name, _arguments(call.arguments)) for call in sample.tool_calls]
    written = _TOOL_CALL.findall(sample.text) or [sample.text]
    calls = []
    for text in written:
        found = read_json(text.strip())
        values = found[0] if found and isinstance(found[0], list) else [found[0]] if found else []
        for value in values:
            function = value.get("function", value) if isinstance(value, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                arguments = function.get("arguments", function.get("parameters", {}))
                calls.append((function["name"], _arguments(arguments) if isinstance(arguments, str) else arguments))
    return calls


def _arguments(text: str) -> Any:
    try:
        return _loads(text or "{}")
    except ValueError:
        return None


def tool_calls() -> Scorer:
    """Calls of tools. ``target``: [{"name": ..., "arguments": {...}}, ...], [] where no tool is to be called.

    Metrics: ``call_match``: all calls with all arguments, in any order, and no other. ``name_match``: the right tools.
    ``schema_valid``: each call names a tool that there is and its arguments fit its schema (of items with calls).
    """

    def score(item: Item, output: Output) -> Score:
        assert isinstance(item.ask, Generate)
        found = calls_of(output.samples[0])
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in item.ask.tools}
        wrong = [
            f"{name}: " + (fault(arguments, schemas[name]) if name in schemas else "no such tool")
            for name, arguments in found
            if name not in schemas or fault(arguments, schemas[name])
        ]
        ours = sorted(json.dumps([name, _comparable(arguments)], sort_keys=True) for name, arguments in found)
        theirs = sorted(json.dumps([one["name"], _comparable(one["arguments"])], sort_keys=True) for one in item.target)
        names = sorted(name for name, _ in found) == sorted(call["name"] for call in item.target)
        statistics: dict[str, tuple[float, ...]] = {"call_match": one(ours == theirs), "name_match": one(names)}
        if found:
            statistics["schema_valid"] = one(not wrong)
        return Score(
            statistics=statistics,
            answer=json.dumps([{"name": name, "arguments": value} for name, value in found], ensure_ascii=False),
            explanation="; ".join(wrong) or f"right is {json.dumps(item.target, ensure_ascii=False)}",
            refused=not found and is_refusal(output.samples[0].text),
            expected=json.dumps(item.target, ensure_ascii=False) if item.target else "no call",
        )

    return score


def dialogue_state(slots: Mapping[str, str]) -> Scorer:
    """What a user has asked for so far, as lines ``slot: value``. ``target``: {slot: value}.

    Metrics: ``joint_goal_accuracy``: all slots are right and there is no other (Henderson et al. 2014). ``slot_f1``.

    Args:
        slots: what the prompt calls a slot -> its name.
    """

    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text
        read = read_entities(text, slots)
        ours = {(name, normalize(value)) for name, value in dict(read).items()}
        theirs = {(name, normalize(value)) for name, value in item.target.items()}
        missed, wrong = sorted(theirs - ours), sorted(ours - theirs)
        return Score(
            statistics={
                "joint_goal_accuracy": one(ours == theirs),
                "slot_f1": (float(len(ours & theirs)), float(len(ours)), float(len(theirs))),
            },
            answer="; ".join(f"{name}: {value}" for name, value in read),
            explanation="all right" if ours == theirs else f"missed {missed}, wrong {wrong}",
            refused=not read and is_refusal(text),
            expected="; ".join(f"{name}: {value}" for name, value in item.target.items()),
        )

    return score
