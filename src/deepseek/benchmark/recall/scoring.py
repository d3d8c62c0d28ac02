"""How right an answer is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deepseek.benchmark.recall.documents import Question

_TOKEN = re.compile(r"[a-z0-9]+|[^\W\d_a-z]", re.IGNORECASE)
_ARTICLES = {"a", "an", "the"}


def score(question: Question, answer: str) -> float:
    """0 to 1.

    RULER's string match (Hsieh et al. 2024): the share of the right answers that occur in the model's, or, where any
    one will do, 1 if one does, and otherwise the best word overlap (F1, as SQuAD has it; Rajpurkar et al. 2016).
    """
    found = [occurs(right, answer) for right in question.answers]
    if question.every:
        return sum(found) / len(found)
    return 1.0 if any(found) else max(overlap(right, answer) for right in question.answers)


def occurs(wanted: str, text: str) -> bool:
    """Whether ``text`` has it, in any case, and not inside of a longer word or number."""
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", wanted, re.IGNORECASE) else ""
    behind = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]$", wanted, re.IGNORECASE) else ""
    return re.search(before + re.escape(wanted) + behind, text, re.IGNORECASE) is not None


def overlap(wanted: str, text: str) -> float:
    """F1 of the words, or of the characters where a script does not part words."""
    ours, theirs = _words(text), _words(wanted)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def _words(text: str) -> Sequence[str]:
    return [word for word in _TOKEN.findall(text.lower()) if word not in _ARTICLES]
