"""Texts made comparable, in languages that part words and in those that do not."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_BETWEEN_UNSPACED = re.compile(rf"(?<=[{_UNSPACED}])\s+(?=[{_UNSPACED}])")


def normalize(text: str) -> str:
    """Without case, width, punctuation, English articles and superfluous spaces.

    SQuAD's normalization (Rajpurkar et al. 2016) carried over to other scripts: NFKC, every punctuation mark of
    Unicode, no space between Chinese or Japanese characters.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if unicodedata.category(c)[0] in "PSZ" and c not in "$€£¥₩+%°" else c for c in text)
    return _BETWEEN_UNSPACED.sub("", " ".join(_ARTICLES.sub(" ", text).split()))


def tokens(text: str) -> list[str]:
    """Words of the normalized text; Chinese and Japanese characters one by one."""
    return _TOKEN.findall(normalize(text))


def overlap_f1(answer: str, reference: str) -> float:
    """F1 of the shared :func:`tokens`; 1 if neither has any, 0 if one has none."""
    ours, theirs = tokens(answer), tokens(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def exact(answer: str, reference: str) -> bool:
    """Equal when normalized; texts of nothing but punctuation are compared as they are."""
    ours, theirs = normalize(answer), normalize(reference)
    return ours == theirs if ours or theirs else answer.strip() == reference.strip()


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def best(answer: str, references: Sequence[str]) -> tuple[float, bool]:
    """(best :func:`overlap_f1`, whether any is :func:`exact`)."""
    return max(overlap_f1(answer, one) for one in references), any(exact(answer, one) for one in references)
