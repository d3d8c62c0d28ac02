"""Named things in a text: entities, slots, personal data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deepseek_eval.metrics import class_counts, macro_f1, mean, micro_f1, one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.scorers.text import normalize
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

Entity = tuple[str, str]
"""(type, text)."""

SPAN_METRICS: tuple[Metric, ...] = (micro_f1(), macro_f1(), mean("exact_match"))
_BULLET = re.compile(r"^\s*(?:[-*•・]|\d+[.)])\s*")


def spans_of_tags(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, start, end) of BIO tags, as seqeval reads them: a type that changes ends a span, an I- without B- begins
    one."""
    spans: list[tuple[str, int, int]] = []
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            spans.append((kind, start, place))
            kind = ""
        if prefix != "O" and not kind:
            kind, start = name, place
    return spans


def read_entities(text: str, types: Mapping[str, str]) -> list[Entity]:
    """Lines of the form ``type: text``, up to the first empty line behind one.

    Args:
        types: what a prompt calls a type -> the type. Lines of other types are not read.
    """
    known = {normalize(name): kind for name, kind in types.items()}
    found: list[Entity] = []
    for line in text.strip().splitlines():
        if not line.strip() and found:
            break
        name, mark, value = _BULLET.sub("", line).replace("：", ":").partition(":")
        kind = known.get(normalize(name))
        if mark and kind is not None and value.strip():
            found.append((kind, value.strip()))
    return found


def compared(entities: Iterable[Entity]) -> Counter[Entity]:
    """What is equal if type and normalized text are."""
    return Counter((kind, normalize(text) or text.strip()) for kind, text in entities)


def entities(types: Mapping[str, str]) -> Scorer:
    """Entities as lines ``type: text``. ``target``: [[type, text], ...], in which an entity may occur twice.

    A right entity has the type and the text; its place is not asked for, since a model gives none. Metrics: ``f1``
    over all entities, ``macro_f1`` over types, ``exact_match``: all of an item's entities and no other.
    """
    kinds = list(dict.fromkeys(types.values()))

    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text
        found = read_entities(text, types)
        ours, theirs = compared(found), compared((kind, value) for kind, value in item.target)
        both = ours & theirs
        counts = [0.0] * (3 * len(kinds))
        for column, side in enumerate((both, ours, theirs)):
            for (kind, _), times in side.items():
                counts[3 * kinds.index(kind) + column] += times
        statistics: dict[str, tuple[float, ...]] = {
            "f1": (float(both.total()), float(ours.total()), float(theirs.total())),
            "macro_f1": tuple(counts),
            "exact_match": one(ours == theirs),
        }
        return Score(
            statistics=statistics,
            answer="; ".join(f"{kind}: {value}" for kind, value in found),
            explanation=_explain(both, ours, theirs),
            refused=not found and is_refusal(text),
            expected="; ".join(f"{kind}: {value}" for kind, value in item.target),
        )

    return score


def _explain(both: Counter[Entity], ours: Counter[Entity], theirs: Counter[Entity]) -> str:
    parts = [f"{both.total()} of {theirs.total()} found"]
    for name, rest in (("missed", theirs - ours), ("wrong", ours - theirs)):
        if rest:
            parts.append(f"{name}: " + ", ".join(f"{kind}: {text}" for kind, text in rest))
    return "; ".join(parts)


def tag_counts(predicted: Sequence[str], actual: Sequence[str], kinds: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """What a tagged sentence adds to ``f1`` and ``macro_f1`` when spans are compared by place, as seqeval does."""
    ours, theirs = set(spans_of_tags(predicted)), set(spans_of_tags(actual))
    both = ours & theirs
    of_kind = class_counts(0, (), ())
    for kind in kinds:
        of_kind += tuple(float(sum(span[0] == kind for span in side)) for side in (both, ours, theirs))
    return {"f1": (float(len(both)), float(len(ours)), float(len(theirs))), "macro_f1": of_kind}
